"""What operators look at: each reason for which a recall does not run, or ran late, produced for real."""

from __future__ import annotations

import uuid
from datetime import timedelta

import psycopg
import pytest
from psycopg import sql
from sqltools import (
    HOUR,
    MINUTE,
    NOW,
    SECOND,
    Row,
    add,
    add_recurring,
    add_session,
    call,
    call_one,
    change,
    claim,
    claim_one,
    finish,
    recall,
    refused,
    row,
    rows,
    set_clock,
    value,
)

VIEWS = (
    "overview",
    "due_recalls",
    "running_recalls",
    "next_recalls",
    "failed_recalls",
    "left_out_occurrences",
    "late_runs",
    "session_states",
    "user_states",
    "worker_states",
    "lateness_per_hour",
)


@pytest.fixture(autouse=True)
def stopped_clock(request: pytest.FixtureRequest) -> None:
    if "db" in request.fixturenames:
        set_clock(request.getfixturevalue("db"), NOW)


def worker(db: psycopg.Connection, name: str = "w1", slots: int = 2) -> None:
    call(db, "register_worker", worker_id=name, concurrency=slots, host="web", pid=12, version="1.0")
    db.execute(
        "update pgrecall.workers set started_at = pgrecall.clock(), seen_at = pgrecall.clock() where id = %s", [name]
    )


def why(db: psycopg.Connection, recall_id: str) -> str | None:
    found: str | None = value(db, "select why from pgrecall.due_recalls where recall_id = %s", recall_id)
    return found


def why_late(db: psycopg.Connection, recall_id: str) -> str | None:
    found: str | None = value(db, "select why from pgrecall.late_runs where recall_id = %s limit 1", recall_id)
    return found


def late(db: psycopg.Connection, session_id: str = "s1", **columns: object) -> str:
    """A recall that was due a minute ago, and was made long before."""
    return add(db, session_id, NOW - MINUTE, created_at=NOW - HOUR, **columns)


# Why it does not run


def test_a_due_recall_without_a_worker_says_so(db: psycopg.Connection) -> None:
    one = late(db)
    assert why(db, one) == "no worker is alive"
    worker(db)
    set_clock(db, NOW + 3 * MINUTE)
    assert why(db, one) == "no worker is alive"


def test_a_due_recall_with_a_free_worker_is_about_to_start(db: psycopg.Connection) -> None:
    worker(db)
    one = late(db)
    assert why(db, one) == "about to start"
    assert value(db, "select late_by from pgrecall.due_recalls") == MINUTE


def test_a_due_recall_says_that_all_slots_are_taken(db: psycopg.Connection) -> None:
    worker(db, slots=1)
    late(db)
    claim_one(db)
    assert why(db, late(db, "s2")) == "all 1 slots of 1 worker are taken"


def test_a_due_recall_says_that_all_is_paused(db: psycopg.Connection) -> None:
    worker(db)
    one = late(db)
    call(db, "pause_all", reason="an incident")
    assert why(db, one) == "all is paused until resume_all(): an incident"
    call(db, "pause_all", reason="an incident", paused_until=NOW + HOUR)
    assert why(db, one) == "all is paused for 1 h 0 min more: an incident"


def test_a_paused_recall_is_late_when_its_time_has_come(db: psycopg.Connection) -> None:
    worker(db)
    one = late(db)
    ahead = add(db, "s2", NOW + HOUR)
    call(db, "pause_recall", recall_id=one, reason="wrong")
    call(db, "pause_recall", recall_id=ahead)
    assert why(db, one) == "paused until resumed: wrong"
    assert why(db, ahead) is None
    call(db, "pause_recall", recall_id=one, paused_until=NOW + MINUTE)
    assert why(db, one) == "paused for 1 min 0 s more: wrong"


@pytest.mark.parametrize("is_seen", [False, True])
def test_a_due_recall_says_that_its_session_or_user_is_paused(db: psycopg.Connection, is_seen: bool) -> None:
    """Before a worker has found it, and after."""
    worker(db)
    add_session(db, "s2", user_id="ann")
    one, other = late(db), late(db, "s2")
    call(db, "pause_session", session_id="s1", reason="an incident")
    call(db, "pause_user", user_id="ann", reason="on leave", paused_until=NOW + HOUR)
    if is_seen:
        assert claim(db).runs == []
    assert why(db, one) == "its session is paused until resumed: an incident"
    assert why(db, other) == "its user is paused for 1 h 0 min more: on leave"


def test_a_deferred_recall_says_by_whom_and_until_when(db: psycopg.Connection) -> None:
    worker(db)
    one = late(db)
    call(db, "hold_session", session_id="s1", holder="chat-1", lease=20 * SECOND)
    claim(db)
    assert why(db, one) == "deferred, again in 20 s: session held by the chat chat-1"


def test_a_recall_between_two_attempts_says_what_went_wrong(db: psycopg.Connection) -> None:
    worker(db)
    one = late(db)
    finish(db, claim_one(db), "error", error="no money", retry=True, retry_after=30 * SECOND)
    assert why(db, one) == "attempt 1 of 3 failed, again in 30 s: no money"


def test_a_locked_recall_or_session_names_who_has_it(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as db, psycopg.connect(database) as other:
        worker(db)
        one = add(db, "s1", NOW.replace(year=2020))
        user = value(db, "select current_user")
        other.execute("select from pgrecall.session_recalls for update")
        pid = other.info.backend_pid
        assert str(why(db, one)).startswith(f"locked by pid {pid} ({user}, idle in transaction) for ")
        other.rollback()
        assert why(db, one) == "about to start"
        other.execute("select from pgrecall.sessions for update")
        assert why(db, one) == f"its session is in a transaction of pid {pid} ({user})"


def test_what_runs_is_to_come_or_has_ended_is_not_late(db: psycopg.Connection) -> None:
    worker(db)
    late(db)
    run = claim_one(db)
    add(db, "s2", NOW + HOUR)
    assert rows(db, "select * from pgrecall.due_recalls") == []
    finish(db, run)
    assert rows(db, "select * from pgrecall.due_recalls") == []


# Why it ran late


def ran(db: psycopg.Connection, recall_id: str) -> str | None:
    """Runs what is due with success; why that was late."""
    run = claim_one(db)
    assert run["recall_id"] == recall_id
    finish(db, run)
    return why_late(db, recall_id)


def test_a_run_that_waited_for_a_chat_says_so(db: psycopg.Connection) -> None:
    worker(db)
    one = late(db)
    call(db, "hold_session", session_id="s1", holder="chat-1")
    claim(db)
    call(db, "free_session", session_id="s1", holder="chat-1")
    assert ran(db, one) == "deferred 1 time: session held by the chat chat-1"


def test_a_retry_says_what_went_wrong_before(db: psycopg.Connection) -> None:
    worker(db)
    one = late(db)
    finish(db, claim_one(db), "error", error="no money", retry=True, retry_after=timedelta())
    assert ran(db, one) == "attempt 2, the one before: error: no money"


def test_a_recall_that_was_asked_for_too_late_says_so(db: psycopg.Connection) -> None:
    worker(db)
    one = add(db, "s1", NOW - HOUR, created_at=NOW)
    assert ran(db, one) == "scheduled 1 h 0 min after its time"
    other = late(db, "s2")
    call(db, "reschedule", recall_id=other, new_trigger_at=NOW - 2 * MINUTE)
    assert ran(db, other) == "asked for 2 min 0 s after its time"


def test_a_run_after_a_pause_of_any_kind_says_so(db: psycopg.Connection) -> None:
    worker(db)
    add_session(db, "s3", user_id="ann")
    kinds = {
        "s1": ("pause_recall", "resume_recall", "it was"),
        "s2": ("pause_session", "resume_session", "its session was"),
        "s3": ("pause_user", "resume_user", "its user was"),
        "s4": ("pause_all", "resume_all", "all was"),
    }
    for session_id, (pause, resume, whose) in kinds.items():
        set_clock(db, NOW - 2 * MINUTE)
        one = late(db, session_id)
        whom = {
            "recall": {"recall_id": one},
            "session": {"session_id": session_id},
            "user": {"user_id": "ann"},
            "all": {},
        }
        about = whom[pause.removeprefix("pause_")]
        call(db, pause, **about, reason="an incident")
        set_clock(db, NOW)
        call(db, resume, **about)
        assert ran(db, one) == f"{whose} paused: an incident"


def test_a_run_after_a_pause_that_ended_by_itself_says_so(db: psycopg.Connection) -> None:
    worker(db)
    set_clock(db, NOW - 2 * MINUTE)
    one = late(db)
    call(db, "pause_recall", recall_id=one, reason="an hour off", paused_until=NOW - SECOND)
    set_clock(db, NOW)
    assert ran(db, one) == "it was paused: an hour off"


def test_a_run_that_nobody_took_in_time_tells_from_the_workers_why(db: psycopg.Connection) -> None:
    worker(db)
    one = late(db)
    assert ran(db, one) == "no worker was alive"
    db.execute("update pgrecall.workers set started_at = %s", [NOW - HOUR])
    assert why_late(db, one) == "not known: its row was locked, or its transaction committed late"
    db.execute("delete from pgrecall.workers")
    assert why_late(db, one) == "not known: no slot free, no worker alive, a lock or a late commit"


@pytest.mark.parametrize("is_over", [False, True])
def test_a_run_that_waited_for_a_slot_says_so(db: psycopg.Connection, is_over: bool) -> None:
    """Whether the runs that had the slots have ended or not."""
    worker(db, slots=2)
    db.execute("update pgrecall.workers set started_at = %s", [NOW - HOUR])
    set_clock(db, NOW - 2 * MINUTE)
    for name in ("s7", "s8"):
        add(db, name, NOW - 2 * MINUTE)
    runs = claim(db, lease=HOUR).runs
    assert len(runs) == 2
    one = late(db)
    set_clock(db, NOW)
    db.execute("update pgrecall.workers set seen_at = %s", [NOW])
    if is_over:
        for run in runs:
            finish(db, run)
    assert ran(db, one) == "no slot was free"
    db.execute("update pgrecall.workers set concurrency = 3")
    assert (why_late(db, one) or "").startswith("not known")


def test_a_run_in_time_and_one_of_last_week_are_no_late_runs(db: psycopg.Connection) -> None:
    worker(db)
    one = add(db, "s1", NOW, created_at=NOW - HOUR)
    assert ran(db, one) is None
    old = late(db, "s2")
    assert ran(db, old) is not None
    set_clock(db, NOW + timedelta(days=8))
    assert why_late(db, old) is None


# The other views


def test_the_overview_counts(db: psycopg.Connection) -> None:
    worker(db, slots=3)
    late(db)
    claim_one(db)
    late(db, "s2")
    add(db, "s3", NOW)
    add(db, "s4", NOW + HOUR)
    call(db, "pause_recall", recall_id=late(db, "s5"))
    late(db, "s6", not_before=NOW + 2 * HOUR, defer_reason="because")
    add(db, "s7", status="failed", updated_at=NOW)
    call(db, "pause_all", reason="an incident", paused_until=NOW + HOUR)
    assert row(db, "select * from pgrecall.overview") == {
        "workers": 1,
        "slots": 3,
        "free_slots": 2,
        "running": 1,
        "due": 2,
        "late": 1,
        "put_off": 1,
        "paused": 1,
        "waiting": 2,
        "failed_24h": 1,
        "next_due_in": HOUR,
        "all_paused": "for 1 h 0 min more: an incident",
    }


def test_running_recalls_tell_who_and_how_long(db: psycopg.Connection) -> None:
    worker(db)
    one = late(db, timeout_seconds=100)
    claim(db, lease=40 * SECOND)
    set_clock(db, NOW + 30 * SECOND)
    call(db, "stop_run", recall_id=one)
    assert row(db, "select * from pgrecall.running_recalls") == {
        "runs_for": 30 * SECOND,
        "recall_id": one,
        "session_id": "s1",
        "worker": "w1",
        "try": "1/3",
        "time_left": 70 * SECOND,
        "lease": 10 * SECOND,
        "stopping": f"by {value(db, 'select current_user')}"[:12],
    }
    assert row(db, "select * from pgrecall.worker_states") == {
        "worker": "w1",
        "alive": True,
        "seen_ago": 30 * SECOND,
        "running": 1,
        "slots": 2,
        "oldest_run": 30 * SECOND,
        "lease_left": 10 * SECOND,
        "version": "1.0",
        "process": "web:12",
    }


def test_next_recalls_come_in_their_order_with_their_schedule(db: psycopg.Connection) -> None:
    add_recurring(db, "s1", NOW + 2 * HOUR, cron="0 9 * * *", time_zone="Europe/Paris")
    add_recurring(db, "s2", NOW + HOUR, interval_seconds=5400)
    add(db, "s3", NOW + MINUTE)
    late(db, "s4")
    found = rows(db, "select due_in, schedule from pgrecall.next_recalls")
    assert found == [
        {"due_in": MINUTE, "schedule": "once"},
        {"due_in": HOUR, "schedule": "every 1 h 30 min"},
        {"due_in": 2 * HOUR, "schedule": "0 9 * * * Europe/Paris"},
    ]


def test_failed_recalls_are_those_given_up_and_those_that_go_on(db: psycopg.Connection) -> None:
    worker(db)
    once, again = late(db), add_recurring(db, "s2", NOW - MINUTE)
    for run in claim(db, up_to=2).runs:
        finish(db, run, "error", error=f"no\nmoney {'x' * 100}")
    found = rows(db, "select recall_id, attempts, error from pgrecall.failed_recalls")
    assert {one["recall_id"]: one["attempts"] for one in found} == {once: "1 of 3", again: "1 in a row"}
    assert {one["error"] for one in found} == {f"no money {'x' * 29}"}


def test_left_out_occurrences_have_a_reason(db: psycopg.Connection) -> None:
    one = add_recurring(db, "s1", NOW + MINUTE)
    call(db, "skip_next_recall", session_id="s1")
    found = row(db, "select * from pgrecall.left_out_occurrences")
    assert found == {
        "nominal_at": NOW + MINUTE,
        "outcome": "skipped",
        "recall_id": one,
        "session_id": "s1",
        "reason": "skipped by request",
    }


def test_sessions_and_users_have_a_state(db: psycopg.Connection) -> None:
    worker(db)
    add_session(db, "s1", "s2", user_id="ann")
    late(db)
    run = claim_one(db)

    def state(session_id: str) -> Row:
        return row(db, "select * from pgrecall.session_states where session_id = %s", session_id)

    assert state("s1")["state"] == f"in run {run['run_id']}"
    set_clock(db, NOW + 10 * SECOND)
    finish(db, run)
    add(db, "s2", NOW + MINUTE)
    call(db, "hold_session", session_id="s2", holder="chat-1")
    db.execute("update pgrecall.settings set max_runs_per_day = 5")
    assert state("s2")["state"] == "held by chat chat-1"
    call(db, "pause_user", user_id="ann", reason="on leave")
    assert state("s1") == {
        "session_id": "s1",
        "user_id": "ann",
        "state": "user paused: on leave",
        "due_in": None,
        "last_run": "success 0 s",
        "runs_24h": "1/5",
    }
    assert row(db, "select * from pgrecall.user_states where user_id = 'ann'") == {
        "user_id": "ann",
        "sessions": 2,
        "pending": 1,
        "running": 0,
        "paused": "until resumed: on leave",
        "due_in": 50 * SECOND,
        "last_run": "success 0 s",
        "runs_24h": 1,
    }


def test_lateness_per_hour_leaves_retries_out(db: psycopg.Connection) -> None:
    db.execute("insert into pgrecall.sessions (id) values ('s1')")
    for milliseconds, attempt in ((10, 1), (20, 1), (30, 1), (90000, 2)):
        db.execute(
            """insert into pgrecall.recall_runs (recall_id, session_id, nominal_at, started_at, finished_at, attempt,
                outcome) values ('r', 's1', %s, %s, %s, %s, 'success')""",
            [NOW, NOW + timedelta(milliseconds=milliseconds), NOW + 2 * MINUTE, attempt],
        )
    set_clock(db, NOW + HOUR)
    found = row(db, "select * from pgrecall.lateness_per_hour")
    shown = [float(found[name]) for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")]
    assert (found["hour"], found["runs"], shown) == (NOW, 3, [20, 29, 29.8, 30])


# One recall


def test_history_tells_all_of_a_recall_in_order_also_when_it_is_deleted(db: psycopg.Connection) -> None:
    worker(db)
    me = value(db, "select current_user")
    db.execute("insert into pgrecall.sessions (id, deliver_to) values ('s1', 'https://example.org/hook')")
    one = late(db)
    change(db, one, trigger_at=NOW - 2 * MINUTE)
    call(db, "hold_session", session_id="s1", holder="chat-1")
    claim(db)
    call(db, "free_session", session_id="s1", holder="chat-1")
    set_clock(db, NOW + SECOND)
    finish(db, claim_one(db), "error", error="no money", retry=True, retry_after=timedelta())
    set_clock(db, NOW + MINUTE)
    run = claim_one(db)
    told = call(db, "history", recall_id=one)
    assert [event["what"] for event in told] == [
        f"scheduled by {me}",
        f"changed by {me}",
        "put off",
        f"run {run['run_id'] - 1} attempt 1: error",
        f"run {run['run_id']} attempt 2: under way",
    ]
    assert "trigger_at: 2030-01-01T11:59:00+00:00 → 2030-01-01T11:58:00+00:00" in told[1]["details"].replace("\n", " ")
    assert told[3]["details"].replace("\n", " ") == (
        "late by 2 min 1 s, took 0 s on w1, put off 1 times (session held by the chat chat-1): no money"
    )
    finish(db, run, reply="secret")
    db.execute("delete from pgrecall.session_recalls")
    told = call(db, "history", recall_id=one)
    assert [event["what"] for event in told][-3:] == [
        f"run {run['run_id']} attempt 2: success",
        "reply on its way",
        f"deleted by {me}",
    ]
    assert "secret" not in str(told)
    assert "go on" not in str(told)


def test_history_ends_with_what_is_to_come_and_why_it_does_not(db: psycopg.Connection) -> None:
    one = late(db)
    assert call(db, "history", recall_id=one)[-1] == {
        "happened_at": NOW - MINUTE,
        "what": "due since then",
        "details": "no worker is alive",
    }


def test_history_and_upcoming_know_nothing_of_a_recall_that_never_was(db: psycopg.Connection) -> None:
    for function in ("history", "upcoming"):
        with refused(db, "PR003"):
            call(db, function, recall_id="none")
    with refused(db, "PR005"):
        call(db, "upcoming", recall_id="none", limit=1001)


def test_upcoming_tells_times_in_the_recalls_own_zone(db: psycopg.Connection) -> None:
    one = add_recurring(db, "s1", NOW + HOUR, cron="0 14 * * *", time_zone="Europe/Paris", end_at=NOW + 30 * HOUR)
    found = call(db, "upcoming", recall_id=one)
    assert [event["local_text"] for event in found] == [
        "Tue 2030-01-01 14:00:00+01:00 (Europe/Paris)",
        "Wed 2030-01-02 14:00:00+01:00 (Europe/Paris)",
    ]
    assert found[0]["due_in"] == HOUR
    assert len(call(db, "upcoming", recall_id=one, limit=1)) == 1
    call(db, "mark_cancelled", recall_id=one)
    assert call(db, "upcoming", recall_id=one) == []


# What an autoscaler asks


def wanted(db: psycopg.Connection, **arguments: object) -> int:
    found: int = call_one(db, "wanted_slots", **arguments)["wanted_slots"]
    return found


def test_nothing_to_do_wants_no_slot(db: psycopg.Connection) -> None:
    worker(db)
    ended = add(db, "s1")
    finish(db, claim_one(db))
    assert recall(db, ended)["status"] == "fired"
    call(db, "pause_recall", recall_id=add(db, "s2"))
    assert wanted(db) == 0


def test_what_is_due_or_soon_will_be_wants_a_slot_and_what_comes_later_does_not(db: psycopg.Connection) -> None:
    late(db)
    add(db, "s2", NOW + MINUTE)
    add(db, "s3", NOW + MINUTE + SECOND)
    assert wanted(db) == 2
    assert wanted(db, within=timedelta()) == 1
    assert wanted(db, within=2 * MINUTE) == 3


def test_a_run_wants_its_slot_until_it_ends_also_when_its_worker_is_dead(db: psycopg.Connection) -> None:
    worker(db)
    late(db)
    run = claim_one(db)
    db.execute("update pgrecall.workers set died_at = pgrecall.clock()")
    assert wanted(db) == 1
    finish(db, run)
    assert wanted(db) == 0


def test_a_recall_that_is_put_off_wants_a_slot_when_its_time_comes(db: psycopg.Connection) -> None:
    add_session(db, "s1")
    call(db, "hold_session", session_id="s1", holder="chat-1", lease=HOUR)
    late(db)
    claim(db)
    assert wanted(db, within=10 * SECOND) == 0
    assert wanted(db, within=MINUTE) == 1


@pytest.mark.parametrize(("until", "slots"), [(None, 0), (NOW + HOUR, 0), (NOW + 30 * SECOND, 1)])
def test_while_all_is_paused_only_a_pause_that_is_about_to_end_wants_slots(
    db: psycopg.Connection, until: object, slots: int
) -> None:
    late(db)
    call(db, "pause_all", reason="incident", paused_until=until)
    assert wanted(db) == slots


def test_a_run_under_way_wants_its_slot_while_all_is_paused(db: psycopg.Connection) -> None:
    worker(db)
    late(db)
    claim_one(db)
    call(db, "pause_all")
    assert wanted(db) == 1


def test_a_reply_that_is_to_be_posted_wants_one_worker(db: psycopg.Connection) -> None:
    worker(db)
    db.execute("insert into pgrecall.sessions (id, deliver_to) values ('s1', 'https://example.org/hook')")
    late(db)
    finish(db, claim_one(db), reply="Done.")
    assert wanted(db) == 1
    late(db, "s2")
    assert wanted(db) == 1  # beside a run there is time for it


def test_slots_are_counted_no_further_than_asked(db: psycopg.Connection) -> None:
    worker(db)
    for number in range(4):
        late(db, f"s{number}")
    claim(db, up_to=2)
    assert wanted(db, up_to=3) == 3


@pytest.mark.parametrize("within", [timedelta(seconds=-1), timedelta(days=1, seconds=1), None])
def test_a_time_that_no_autoscaler_means_is_refused(db: psycopg.Connection, within: object) -> None:
    with refused(db, "PR005"):
        wanted(db, within=within)


@pytest.mark.parametrize("up_to", [0, 1_000_001, None])
def test_a_number_of_slots_that_makes_no_sense_is_refused(db: psycopg.Connection, up_to: object) -> None:
    with refused(db, "PR005"):
        wanted(db, up_to=up_to)


# How it looks


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_at_most_160_columns_wide(db: psycopg.Connection, view: str) -> None:
    """With ids that are uuids, long reasons, and ages of days, as psql lays it out."""
    name = f"web-7f9c5b:12345:{uuid.uuid4().hex[:8]}"
    worker(db, name, 1)
    long = "the agent has told a customer something that is neither true nor kind, and more than once"
    ids = [str(uuid.uuid4()) for _ in range(9)]
    for number, one in enumerate(ids):
        add_session(db, one, user_id=str(uuid.uuid4()))
        add_recurring(
            db,
            one,
            NOW - timedelta(days=12, hours=number) if number < 8 else NOW + timedelta(days=12),
            cron="0,30 9-17 * * mon-fri",
            time_zone="America/Argentina/Buenos_Aires",
            id=str(uuid.uuid4()),
        )
    for _ in range(2):
        run = claim_one(db, name, up_to=1)
        finish(db, run, "error", error=long)
    claim_one(db, name, up_to=1)
    call(db, "stop_runs", session_id=ids[2])
    call(db, "pause_recalls", session_id=ids[3], reason=long)
    call(db, "pause_session", session_id=ids[4], reason=long)
    call(
        db, "pause_user", user_id=value(db, "select user_id from pgrecall.sessions where id = %s", ids[5]), reason=long
    )
    call(db, "hold_session", session_id=ids[6], holder=f"chat-{uuid.uuid4()}")
    call(db, "skip_recalls", session_id=ids[7])
    claim(db, name)
    db.execute("update pgrecall.settings set max_runs_per_day = 50")
    if view == "overview":
        call(db, "pause_all", reason=long)
    found = rows(db, sql.SQL("select * from pgrecall.{}").format(sql.Identifier(view)))
    assert found
    texts = rows(
        db,
        sql.SQL("select {} from pgrecall.{}").format(
            sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(column)) for column in found[0]),
            sql.Identifier(view),
        ),
    )
    widths = [max(len(column), *(len(one[column] or "") for one in texts)) for column in found[0]]
    assert sum(widths) + 3 * len(widths) - 1 <= 160, dict(zip(found[0], widths, strict=True))
