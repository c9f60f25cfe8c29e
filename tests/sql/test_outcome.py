"""What becomes of a recall when its run ends, whatever people did to the recall meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import psycopg
import pytest
from sqltools import (
    HOUR,
    MINUTE,
    NOW,
    SECOND,
    Ear,
    Row,
    add,
    add_recurring,
    call_one,
    change,
    claim,
    claim_one,
    finish,
    ledger,
    outcomes,
    recall,
    refused,
    rows,
    session,
    set_clock,
    value,
)

FAILURES = ["error", "timeout", "interrupted"]
SUCCESSES = ["success", "silent"]


@pytest.fixture
def db(db: psycopg.Connection) -> psycopg.Connection:
    """A connection in a transaction, at NOW."""
    set_clock(db, NOW)
    return db


@pytest.fixture
def ear(database: str) -> Iterator[Ear]:
    """A connection that commits, at NOW, and hears every message."""
    listener = Ear(database)
    set_clock(listener.connection, NOW)
    yield listener
    listener.close()


def shown(db: psycopg.Connection, recall_id: str, *columns: str) -> list[object]:
    """Return some columns of a recall."""
    found = recall(db, recall_id)
    return [found[column] for column in columns]


def conversation(db: psycopg.Connection, session_id: str) -> list[tuple[str, str]]:
    """Return role and text of a session's messages in order."""
    found = rows(db, "select * from pgrecall.session_messages where session_id = %s order by position", session_id)
    return [(message["role"], message["content"]) for message in found]


# Outcome, kind of recall, retry and attempts


@dataclass(frozen=True)
class Case:
    """A run that ends 10 seconds after NOW, and what is expected of its recall."""

    outcome: str
    call_type: str = "once"
    attempt: int = 1
    max_attempts: int = 3
    options: Mapping[str, object] = field(default_factory=dict)
    status: str = "fired"
    left: int = 1
    next_at: datetime = NOW
    due_at: datetime | None = None
    last_error: str | None = None

    def __str__(self) -> str:
        options = "-".join(f"{name}={option}" for name, option in self.options.items())
        return f"{self.outcome}-{self.call_type}-{self.attempt}-of-{self.max_attempts}-{options}"


END = NOW + 10 * SECOND
NEXT = NOW + MINUTE
AGAIN: dict[str, object] = {"retry": True, "error": "no luck"}
FAILED: dict[str, object] = {"error": "no luck"}
CASES = [
    # A success is the end of a one-shot and one step of a recurring recall, whatever else is said.
    *(
        Case(outcome, kind, options=options)
        for outcome in SUCCESSES
        for kind in ("once", "immediate")
        for options in ({}, {"retry": True})
    ),
    *(
        Case(outcome, "recurring", options=options, status="pending", left=0, next_at=NEXT, due_at=NEXT)
        for outcome in SUCCESSES
        for options in ({}, {"retry": True})
    ),
    Case("success", attempt=3),
    # A failure without a retry fails a one-shot, and a recurring recall goes on.
    *(Case(outcome, options=FAILED, status="failed", last_error="no luck") for outcome in FAILURES),
    Case("error", "immediate", options=FAILED, status="failed", last_error="no luck"),
    Case("error", options={"reason": "why"}, status="failed", last_error="why"),
    Case("error", options={"reason": "why", "error": "no luck"}, status="failed", last_error="no luck"),
    *(
        Case(
            outcome,
            "recurring",
            options=FAILED,
            status="pending",
            left=0,
            next_at=NEXT,
            due_at=NEXT,
            last_error="no luck",
        )
        for outcome in FAILURES
    ),
    # A retry waits longer each time: 5, 10, 20 seconds.
    *(
        Case(outcome, options=AGAIN, status="pending", due_at=END + 5 * SECOND, last_error="no luck")
        for outcome in FAILURES
    ),
    Case("error", attempt=2, options=AGAIN, status="pending", left=2, due_at=END + 10 * SECOND, last_error="no luck"),
    Case("error", attempt=3, options=AGAIN, status="failed", left=3, last_error="no luck"),
    Case("error", max_attempts=1, options=AGAIN, status="failed", last_error="no luck"),
    Case(
        "error",
        "recurring",
        options=AGAIN,
        status="pending",
        due_at=END + 5 * SECOND,
        last_error="no luck",
    ),
    Case(
        "error",
        "recurring",
        attempt=3,
        options=AGAIN,
        status="pending",
        left=0,
        next_at=NEXT,
        due_at=NEXT,
        last_error="no luck",
    ),
    # The caller may know better when.
    Case("error", options={**AGAIN, "retry_after": HOUR}, status="pending", due_at=END + HOUR, last_error="no luck"),
    Case("error", options={**AGAIN, "retry_after": 0 * SECOND}, status="pending", due_at=END, last_error="no luck"),
    # A worker that stops gives its runs back at once and uncounted, even the last attempt.
    Case(
        "interrupted",
        options={"retry": True, "counted": False, "reason": "shut down"},
        status="pending",
        left=0,
        due_at=NOW,
        last_error="shut down",
    ),
    Case(
        "interrupted",
        attempt=3,
        options={"retry": True, "counted": False, "reason": "shut down"},
        status="pending",
        left=2,
        due_at=NOW,
        last_error="shut down",
    ),
    Case(
        "interrupted",
        "recurring",
        options={"retry": True, "counted": False, "reason": "shut down"},
        status="pending",
        left=0,
        due_at=NOW,
        last_error="shut down",
    ),
    # There was nothing to run it in.
    *(
        Case("skipped", kind, options={"reason": "no such session"}, status="cancelled", last_error="no such session")
        for kind in ("once", "recurring", "immediate")
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_outcome_decides_what_becomes_of_the_recall(db: psycopg.Connection, case: Case) -> None:
    name = add(
        db,
        "s1",
        NOW,
        call_type=case.call_type,
        interval_seconds=60 if case.call_type == "recurring" else None,
        attempt=case.attempt - 1,
        max_attempts=case.max_attempts,
    )
    run = claim_one(db)
    assert run["attempt"] == case.attempt
    set_clock(db, END)
    answer = finish(db, run, case.outcome, **case.options)
    found = recall(db, name)
    assert answer == {
        "accepted": True,
        "status": case.status,
        "trigger_at": case.next_at,
        "due_at": case.due_at,
        "attempt": case.left if case.attempt == 1 or case.status != "fired" else case.attempt,
    }
    assert {column: found[column] for column in ("status", "trigger_at", "due_at", "last_error")} == {
        "status": case.status,
        "trigger_at": case.next_at,
        "due_at": case.due_at,
        "last_error": case.last_error,
    }
    assert (found["run_id"], found["worker_id"], found["claimed_at"]) == (None, None, None)
    assert session(db, "s1")["run_id"] is None
    (recorded,) = ledger(db, name)
    assert (recorded["id"], recorded["outcome"], recorded["attempt"]) == (run["run_id"], case.outcome, case.attempt)


def test_a_run_is_recorded_with_all_that_is_known(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW - 3 * SECOND)
    run = claim_one(db, "w7")
    set_clock(db, NOW + 10 * SECOND)
    finish(db, run, "success", reply="done", reason="why", usage={"tokens": 7})
    assert ledger(db, name) == [
        {
            "id": run["run_id"],
            "recall_id": name,
            "session_id": "s1",
            "nominal_at": NOW - 3 * SECOND,
            "started_at": NOW,
            "finished_at": NOW + 10 * SECOND,
            "lateness": 3 * SECOND,
            "worker_id": "w7",
            "attempt": 1,
            "outcome": "success",
            "reason": "why",
            "reply": "done",
            "error": None,
            "usage": {"tokens": 7},
            "deferrals": 0,
            "defer_reason": None,
            "occurrences": 1,
            "refused_at": None,
        }
    ]


@pytest.mark.parametrize("outcome", ["splendid", "lost", "missed", None])
def test_an_outcome_that_no_run_has_is_refused_and_the_run_goes_on(db: psycopg.Connection, outcome: str) -> None:
    name = add(db, "s1", NOW)
    run = claim_one(db)
    with refused(db, "PR005") as caught:
        finish(db, run, outcome)
    assert "timeout" in (caught.value.diag.message_hint or "")
    assert shown(db, name, "status", "run_id") == ["running", run["run_id"]]


def test_the_backoff_doubles_up_to_ten_minutes(db: psycopg.Connection) -> None:
    delays = [value(db, "select pgrecall._retry_delay(%s)", attempt).total_seconds() for attempt in (1, 2, 3, 7, 8, 99)]
    assert delays == [5, 10, 20, 320, 600, 600]


def test_a_success_after_a_failure_forgets_the_error(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    finish(db, claim_one(db), "error", error="no luck", retry=True, retry_after=timedelta(0))
    finish(db, claim_one(db))
    assert shown(db, name, "status", "last_error", "attempt") == ["fired", None, 2]


# Recurring recalls


def test_a_late_run_does_not_move_the_grid(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1", NOW - 7 * SECOND)
    grid = []
    for late in range(3):
        found = recall(db, name)["trigger_at"]
        set_clock(db, found + late * 17 * SECOND)
        finish(db, claim_one(db))
        grid.append(recall(db, name)["trigger_at"] - NOW)
    assert grid == [timedelta(seconds=53), timedelta(seconds=113), timedelta(seconds=173)]


def test_a_time_that_comes_exactly_when_the_run_ends_is_missed_only_if_it_has_passed(db: psycopg.Connection) -> None:
    """The next occurrence is strictly after the end, so that no occurrence is both missed and run."""
    name = add_recurring(db, "s1", NOW)
    run = claim_one(db)
    set_clock(db, NOW + MINUTE)
    assert finish(db, run)["trigger_at"] == NOW + 2 * MINUTE
    assert [one["nominal_at"] for one in ledger(db, name) if one["outcome"] == "missed"] == [NOW + MINUTE]


@pytest.mark.parametrize("outcome", ["success", "error"])
def test_each_time_that_passes_during_a_run_is_recorded_as_missed(db: psycopg.Connection, outcome: str) -> None:
    name = add_recurring(db, "s1", NOW - 30 * SECOND)
    run = claim_one(db)
    set_clock(db, NOW + 3 * MINUTE)
    assert finish(db, run, outcome)["trigger_at"] == NOW + 210 * SECOND
    missed = [one for one in ledger(db, name) if one["outcome"] == "missed"]
    assert [one["nominal_at"] - NOW for one in missed] == [timedelta(seconds=at) for at in (30, 90, 150)]
    assert {(one["started_at"], one["attempt"], one["occurrences"]) for one in missed} == {(None, 0, 1)}
    assert missed[0]["reason"] == ("its time passed while the occurrence of 2030-01-01 11:59:30Z was late or running")


@pytest.mark.parametrize(
    "schedule",
    [{"interval_seconds": 60}, {"cron": "* * * * *", "time_zone": "Europe/Berlin"}],
    ids=["interval", "cron"],
)
def test_a_long_outage_is_summed_up_after_a_thousand_rows(db: psycopg.Connection, schedule: Row) -> None:
    name = add_recurring(db, "s1", NOW, **schedule)
    outage = timedelta(minutes=1500, seconds=30)
    set_clock(db, NOW + outage)
    assert finish(db, claim_one(db))["trigger_at"] == NOW + timedelta(minutes=1501)
    missed = [one for one in ledger(db, name) if one["outcome"] == "missed"]
    assert len(missed) == 1001
    assert sum(one["occurrences"] for one in missed) == 1500
    assert [one["nominal_at"] for one in missed] == [NOW + number * MINUTE for number in range(1, 1002)]
    assert missed[-1]["occurrences"] == 500
    assert missed[-1]["reason"].endswith("; this row stands for 500 more occurrences")


@pytest.mark.parametrize("passed", [999, 1000, 1001, 1002])
def test_the_occurrences_of_all_rows_add_up(db: psycopg.Connection, passed: int) -> None:
    name = add_recurring(db, "s1", NOW)
    set_clock(db, NOW + passed * MINUTE + SECOND)
    finish(db, claim_one(db))
    missed = [one["occurrences"] for one in ledger(db, name) if one["outcome"] == "missed"]
    assert missed == [1] * min(passed, 1000) + [passed - 1000] * (passed > 1000)


def test_a_year_of_seconds_is_affordable(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1", NOW, interval_seconds=1)
    set_clock(db, NOW + timedelta(days=365))
    db.execute("set local statement_timeout = '5s'")
    finish(db, claim_one(db))
    assert sum(one["occurrences"] for one in ledger(db, name) if one["outcome"] == "missed") == 365 * 86400


def test_a_recurring_recall_ends_after_its_end_at(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1", NOW, end_at=NOW + MINUTE)
    assert finish(db, claim_one(db))["status"] == "pending"
    set_clock(db, NOW + MINUTE)
    assert finish(db, claim_one(db))["status"] == "fired"
    assert shown(db, name, "due_at", "trigger_at") == [None, NOW + MINUTE]


def test_a_recurring_recall_whose_last_occurrence_fails_is_failed(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1", NOW, end_at=NOW)
    finish(db, claim_one(db), "error", error="no luck")
    assert shown(db, name, "status", "last_error") == ["failed", "no luck"]


def test_a_cron_recall_follows_its_time_zone(db: psycopg.Connection) -> None:
    start = datetime.fromisoformat("2030-03-30T09:00:00+01:00")
    name = add_recurring(db, "s1", start, cron="0 9 * * *", time_zone="Europe/Berlin")
    set_clock(db, start + SECOND)
    finish(db, claim_one(db))
    assert recall(db, name)["trigger_at"] == datetime.fromisoformat("2030-03-31T09:00:00+02:00")


# Changed while it runs


def test_cancelled_by_hand_while_it_runs(ear: Ear) -> None:
    """The run is told to stop; nothing else runs in its session until it has."""
    db = ear.connection
    name = add(db, "s1", NOW)
    run = claim_one(db)
    ear.heard()
    change(db, name, status="cancelled")
    assert ear.heard() == [f"stop {run['run_id']}"]
    assert shown(db, name, "run_id", "due_at") == [run["run_id"], None]
    waiting = add(db, "s1", NOW)
    assert [one["recall_id"] for one in claim(db, "w2").deferred] == [waiting]
    answer = finish(db, run, "interrupted", reason="cancelled", retry=True)
    assert (answer["accepted"], answer["status"], answer["due_at"]) == (True, "cancelled", None)
    assert shown(db, name, "status", "run_id") == ["cancelled", None]
    assert outcomes(db, name) == ["interrupted"]
    assert claim_one(db, "w2")["recall_id"] == waiting


@pytest.mark.parametrize("outcome", ["success", "error", "interrupted"])
def test_a_recurring_recall_cancelled_while_it_runs_stays_cancelled(db: psycopg.Connection, outcome: str) -> None:
    name = add_recurring(db, "s1", NOW)
    run = claim_one(db)
    change(db, name, status="cancelled")
    assert finish(db, run, outcome, retry=True)["status"] == "cancelled"
    assert shown(db, name, "status", "trigger_at", "due_at") == ["cancelled", NOW, None]


def test_set_back_to_pending_by_hand_while_it_runs(ear: Ear) -> None:
    """Somebody wants it to run again: the present run is told to stop, and another one follows."""
    db = ear.connection
    name = add(db, "s1", NOW)
    run = claim_one(db)
    ear.heard()
    change(db, name, status="pending")
    assert ear.heard() == [f"stop {run['run_id']}"]
    assert claim(db, "w2").runs == []
    ear.heard()
    answer = finish(db, run, "interrupted")
    assert (answer["status"], answer["due_at"], answer["attempt"]) == ("pending", NOW, 0)
    assert ear.heard() == [f"due {int(NOW.timestamp()) * 1000000}"]
    assert claim_one(db, "w2")["recall_id"] == name


@pytest.mark.parametrize("outcome", ["success", "error"])
@pytest.mark.parametrize("kind", ["once", "recurring"])
def test_rescheduled_while_it_runs_means_one_more_run_at_the_new_time(
    db: psycopg.Connection, kind: str, outcome: str
) -> None:
    name = add(db, "s1", NOW, call_type=kind, interval_seconds=60 if kind == "recurring" else None)
    run = claim_one(db)
    change(db, name, trigger_at=NOW + HOUR)
    assert shown(db, name, "status", "due_at") == ["running", None]
    answer = finish(db, run, outcome, retry=True)
    assert (answer["status"], answer["due_at"], answer["attempt"]) == ("pending", NOW + HOUR, 0)
    assert shown(db, name, "nominal_at") == [NOW]
    set_clock(db, NOW + HOUR)
    again = claim_one(db)
    assert (again["nominal_at"], again["attempt"]) == (NOW + HOUR, 1)
    finish(db, again)
    expected = ["fired", NOW + HOUR] if kind == "once" else ["pending", NOW + HOUR + MINUTE]
    assert shown(db, name, "status", "trigger_at") == expected


def test_deleted_while_it_runs(ear: Ear) -> None:
    """It is recorded, told to stop, and its session is kept for it until it has or a lease has passed."""
    db = ear.connection
    name = add(db, "s1", NOW)
    run = claim_one(db)
    ear.heard()
    set_clock(db, NOW + SECOND)
    db.execute("delete from pgrecall.session_recalls where id = %s", [name])
    assert ear.heard() == [f"stop {run['run_id']}"]
    (recorded,) = ledger(db, name)
    assert (recorded["id"], recorded["outcome"], recorded["reason"]) == (run["run_id"], "interrupted", "recall deleted")
    assert (recorded["started_at"], recorded["finished_at"]) == (NOW, NOW + SECOND)
    waiting = add(db, "s1", NOW)
    assert [one["recall_id"] for one in claim(db).deferred] == [waiting]
    assert (session(db, "s1")["run_id"], session(db, "s1")["held_until"]) == (run["run_id"], NOW + 31 * SECOND)
    assert finish(db, run, "interrupted") == {
        "accepted": True,
        "status": None,
        "trigger_at": None,
        "due_at": None,
        "attempt": None,
    }
    assert (session(db, "s1")["run_id"], session(db, "s1")["held_until"]) == (None, None)
    assert claim_one(db)["recall_id"] == waiting
    assert len(ledger(db, name)) == 1


def test_its_session_deleted_while_it_runs(ear: Ear) -> None:
    db = ear.connection
    name = add(db, "s1", NOW)
    run = claim_one(db)
    ear.heard()
    db.execute("delete from pgrecall.sessions where id = 's1'")
    assert ear.heard() == [f"stop {run['run_id']}"]
    assert ledger(db, name) == []
    assert finish(db, run)["accepted"] is False


# Ended by hand before it ran: nothing vanishes without a row


@pytest.mark.parametrize(("status", "outcome"), [("cancelled", "skipped"), ("failed", "skipped"), ("fired", "success")])
def test_a_waiting_recall_that_is_ended_by_hand_leaves_a_row(db: psycopg.Connection, status: str, outcome: str) -> None:
    name = add(db, "s1", NOW - MINUTE)
    change(db, name, status=status)
    change(db, name, internal_comment="once is enough")
    (recorded,) = ledger(db, name)
    assert (recorded["outcome"], recorded["nominal_at"], recorded["started_at"]) == (outcome, NOW - MINUTE, None)
    assert recorded["reason"] is not None


def test_a_waiting_recall_that_is_deleted_leaves_a_row(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW - MINUTE)
    db.execute("delete from pgrecall.session_recalls where id = %s", [name])
    (recorded,) = ledger(db, name)
    shown_row = (recorded["outcome"], recorded["reason"], recorded["nominal_at"], recorded["attempt"])
    assert shown_row == ("skipped", "recall deleted", NOW - MINUTE, 0)


def test_an_ended_recall_that_is_deleted_leaves_no_second_row(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    finish(db, claim_one(db))
    db.execute("delete from pgrecall.session_recalls where id = %s", [name])
    assert outcomes(db, name) == ["success"]


def test_a_session_takes_its_recalls_and_their_records_with_it(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    db.execute("delete from pgrecall.sessions where id = 's1'")
    assert ledger(db, name) == []


# Given back while the session has another pending recall


def test_a_one_shot_is_tried_again_although_its_session_got_another_recall(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    run = claim_one(db)
    other = add(db, "s1", NOW + HOUR)
    answer = finish(db, run, "error", retry=True)
    assert (answer["status"], answer["due_at"]) == ("running", NOW + 5 * SECOND)
    assert shown(db, name, "status", "run_id", "worker_id") == ["running", None, None]
    assert claim(db).next_due_at == NOW + 5 * SECOND
    set_clock(db, NOW + 5 * SECOND)
    again = claim_one(db)
    assert (again["recall_id"], again["attempt"]) == (name, 2)
    finish(db, again)
    assert shown(db, name, "status") == ["fired"]
    assert shown(db, other, "status", "due_at") == ["pending", NOW + HOUR]


def test_a_lost_one_shot_is_given_back_although_its_session_got_another_recall(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    claim_one(db, "w1")
    add(db, "s1", NOW + HOUR)
    set_clock(db, NOW + MINUTE)
    assert claim_one(db, "w2")["recall_id"] == name


def test_another_recall_that_is_not_committed_yet_does_not_hold_up_the_end_of_a_run(database: str) -> None:
    with (
        psycopg.connect(database, autocommit=True) as worker,
        psycopg.connect(database, autocommit=True) as producer,
    ):
        set_clock(worker, NOW)
        name = add(worker, "s1", NOW)
        run = claim_one(worker)
        worker.execute("set statement_timeout = '5s'")
        with producer.transaction():
            other = add(producer, "s1", NOW + HOUR)
            answer = finish(worker, run, "error", retry=True)
            assert (answer["status"], answer["due_at"]) == ("running", NOW + 5 * SECOND)
        assert shown(worker, name, "status") == ["running"]
        assert shown(worker, other, "status") == ["pending"]
        set_clock(worker, NOW + 5 * SECOND)
        assert finish(worker, claim_one(worker))["status"] == "fired"


def test_the_end_of_a_run_leaves_the_callers_lock_timeout_alone(db: psycopg.Connection) -> None:
    add(db, "s1", NOW)
    db.execute("set local lock_timeout = '1234ms'")
    run = claim_one(db)
    finish(db, run, "error", retry=True)
    assert value(db, "show lock_timeout") == "1234ms"


# Said twice


@pytest.mark.parametrize("kind", ["once", "recurring"])
def test_the_same_finish_again_is_accepted_and_changes_nothing(db: psycopg.Connection, kind: str) -> None:
    """The answer to the first may have been lost on the way."""
    name = add(db, "s1", NOW, call_type=kind, interval_seconds=60 if kind == "recurring" else None)
    run = claim_one(db)
    first = finish(db, run, "success", reply="hello", append_reply=True)
    before = (recall(db, name), session(db, "s1"), ledger(db, name), conversation(db, "s1"))
    set_clock(db, NOW + SECOND)
    assert finish(db, run, "success", reply="hello", append_reply=True) == first
    assert (recall(db, name), session(db, "s1"), ledger(db, name), conversation(db, "s1")) == before


def test_a_finish_again_does_not_free_the_session_from_the_next_run(db: psycopg.Connection) -> None:
    add_recurring(db, "s1", NOW)
    first = claim_one(db)
    finish(db, first)
    set_clock(db, NOW + MINUTE)
    second = claim_one(db)
    assert finish(db, first)["accepted"] is True
    assert session(db, "s1")["run_id"] == second["run_id"]


def test_a_finish_of_a_run_that_never_was_is_refused(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    answer = call_one(db, "finish", recall_id=name, run_id=987654321, outcome="success")
    assert (answer["accepted"], answer["status"]) == (False, "pending")
    answer = call_one(db, "finish", recall_id="no such", run_id=987654321, outcome="success")
    assert (answer["accepted"], answer["status"]) == (False, None)


# Replies


def test_the_reply_is_added_once(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    run = claim_one(db)
    finish(db, run, reply="Ada says hello", append_reply=True)
    finish(db, run, reply="Ada says hello", append_reply=True)
    assert conversation(db, "s1") == [("system", "[Scheduled recall] go on"), ("assistant", "Ada says hello")]
    identity = value(db, "select id from pgrecall.session_messages where role = 'assistant'")
    assert identity == f"recall:{name}:2030-01-01T12:00:00.000000Z:reply"


@pytest.mark.parametrize("reply", [None, "", " \n\t"])
def test_an_empty_reply_is_not_added(db: psycopg.Connection, reply: str | None) -> None:
    add(db, "s1", NOW)
    finish(db, claim_one(db), "silent", reply=reply, append_reply=True)
    assert conversation(db, "s1") == [("system", "[Scheduled recall] go on")]


def test_a_host_with_its_own_store_adds_the_reply_itself(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    finish(db, claim_one(db), reply="hello")
    assert conversation(db, "s1") == [("system", "[Scheduled recall] go on")]
    assert ledger(db, name)[0]["reply"] == "hello"


def test_get_runs_shows_the_newest_first(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1", NOW)
    run = claim_one(db)
    set_clock(db, NOW + 2 * MINUTE)
    finish(db, run)
    found = rows(db, "select outcome from pgrecall.get_runs(%s)", name)
    assert [one["outcome"] for one in found] == ["missed", "missed", "success"]
    found = rows(db, "select outcome from pgrecall.get_runs(%s, 1)", name)
    assert [one["outcome"] for one in found] == ["missed"]


def test_runs_of_a_truncated_table_are_recorded_and_free_their_sessions_when_they_stop(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    run = claim_one(db)
    db.execute("set constraints all immediate")  # TRUNCATE refuses while triggers wait for the commit
    db.execute("truncate pgrecall.session_recalls")
    assert [(one["id"], one["outcome"]) for one in ledger(db, name)] == [(run["run_id"], "interrupted")]
    assert session(db, "s1")["held_until"] == NOW + 30 * SECOND
    assert finish(db, run, "interrupted")["accepted"] is True
    assert session(db, "s1")["run_id"] is None


def test_recalls_of_a_truncated_table_that_waited_are_recorded_as_skipped(db: psycopg.Connection) -> None:
    set_clock(db, NOW)
    waiting, ended = add(db, "s1", NOW + HOUR), add(db, "s2")
    finish(db, claim_one(db))
    db.execute("set constraints all immediate")
    db.execute("truncate pgrecall.session_recalls")
    assert [(run["outcome"], run["reason"], run["nominal_at"]) for run in ledger(db, waiting)] == [
        ("skipped", "recall deleted", NOW + HOUR)
    ]
    assert outcomes(db, ended) == ["success"]


def test_the_times_that_passed_before_the_end_of_the_schedule_are_recorded(db: psycopg.Connection) -> None:
    """There is no next time any more, but there were some on the way."""
    name = add_recurring(db, "s1", end_at=NOW + 3 * MINUTE)
    run = claim_one(db)
    set_clock(db, NOW + HOUR)
    assert finish(db, run)["status"] == "fired"
    assert [(one["outcome"], one["nominal_at"]) for one in ledger(db, name)] == [
        ("success", NOW),
        *(("missed", NOW + passed * MINUTE) for passed in (1, 2, 3)),
    ]


def test_many_times_that_passed_before_the_end_of_the_schedule_are_summed_up(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1", interval_seconds=1, end_at=NOW + 2000 * SECOND)
    run = claim_one(db)
    set_clock(db, NOW + HOUR)
    finish(db, run)
    assert value(db, "select sum(occurrences) from pgrecall.recall_runs where outcome = 'missed'") == 2000
    assert max(one["nominal_at"] for one in ledger(db, name)) == NOW + 1001 * SECOND
