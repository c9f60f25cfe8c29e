"""What agents may do with recalls by themselves: the bounds, identity by session and run, and answers for a model."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqltools import (
    HOUR,
    MINUTE,
    NOW,
    SECOND,
    Doing,
    Row,
    add,
    add_recurring,
    add_session,
    call_one,
    change,
    claim_one,
    finish,
    ledger,
    recall,
    refused,
    rows,
    set_clock,
    value,
    wait_until_blocked,
)

DAY = timedelta(days=1)
AT_NOW = "Tue 2030-01-01 12:00:00+00:00 (UTC)"


@pytest.fixture
def db(db: psycopg.Connection) -> psycopg.Connection:
    """A connection in a transaction, at NOW, with the sessions s1 and s2 of ada and s3 of ben."""
    set_clock(db, NOW)
    add_session(db, "s1", "s2", user_id="ada")
    add_session(db, "s3", user_id="ben")
    return db


@pytest.fixture
def two(database: str) -> Iterator[tuple[psycopg.Connection, psycopg.Connection]]:
    """Two autocommit connections to one database with the sessions s1 and s2 of ada."""
    with psycopg.connect(database, autocommit=True) as first, psycopg.connect(database, autocommit=True) as second:
        add_session(first, "s1", "s2", user_id="ada")
        yield first, second


def ask(db: psycopg.Connection, session_id: str = "s1", **arguments: object) -> dict[str, Any]:
    """Let the agent of a session schedule; in an hour, unless a time is given."""
    if not {"trigger_at", "in_seconds", "interval_seconds", "cron"} & set(arguments):
        arguments["in_seconds"] = 3600.0
    given = {"session_id": session_id, "additional_context_message": "look again"} | arguments
    answer: dict[str, Any] = call_one(db, "agent_schedule_recall", **given)["agent_schedule_recall"]
    return answer


def made(db: psycopg.Connection, answer: dict[str, Any]) -> Row:
    """The row of the recall that an answer is about."""
    return recall(db, answer["recall"]["recall_id"])


def cancel(db: psycopg.Connection, session_id: str = "s1", **arguments: object) -> dict[str, Any]:
    """Let the agent of a session cancel."""
    answer: dict[str, Any] = call_one(db, "agent_cancel_recall", session_id=session_id, **arguments)[
        "agent_cancel_recall"
    ]
    return answer


def skip(db: psycopg.Connection, session_id: str = "s1", **arguments: object) -> dict[str, Any]:
    """Let the agent of a session skip."""
    answer: dict[str, Any] = call_one(db, "agent_skip_next_recall", session_id=session_id, **arguments)[
        "agent_skip_next_recall"
    ]
    return answer


def listed(db: psycopg.Connection, session_id: str = "s1") -> dict[str, Any]:
    """Let the agent of a session look."""
    answer: dict[str, Any] = call_one(db, "agent_list_recalls", session_id=session_id)["agent_list_recalls"]
    return answer


def settings(db: psycopg.Connection, **columns: object) -> None:
    """Change settings as a host does."""
    for name, wanted in columns.items():
        db.execute(f"update pgrecall.settings set {name} = %s".encode(), [wanted])


def said(caught: pytest.ExceptionInfo[psycopg.Error]) -> str:
    """What the model reads of an error."""
    return f"{caught.value.diag.message_primary}. {caught.value.diag.message_hint}"


def run_of(db: psycopg.Connection, session_id: str = "s1", **columns: object) -> Row:
    """A run under way in a session, of a recall that the host made."""
    add(db, session_id, NOW, **columns)
    return claim_one(db)


# Which time is meant


def test_in_seconds_counts_from_the_databases_clock(db: psycopg.Connection) -> None:
    answer = ask(db, in_seconds=7200.5)
    assert made(db, answer)["trigger_at"] == NOW + timedelta(seconds=7200.5)
    assert answer["result"] == "scheduled"
    assert answer["now"] == AT_NOW
    assert answer["recall"]["next_times"] == ["Tue 2030-01-01 14:00:00+00:00 (UTC)"]
    assert answer["recall"]["first_in"] == "2 h 0 min"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2030-07-01T09:00", datetime(2030, 7, 1, 7, tzinfo=UTC)),
        (" 2030-07-01 09:00:30.5 ", datetime(2030, 7, 1, 7, 0, 30, 500000, tzinfo=UTC)),
        ("2030-07-01T09:00:00Z", datetime(2030, 7, 1, 9, tzinfo=UTC)),
        ("2030-07-01t09:00:00.000z", datetime(2030, 7, 1, 9, tzinfo=UTC)),
        ("2030-07-01T09:00-0530", datetime(2030, 7, 1, 14, 30, tzinfo=UTC)),
        ("2030-07-01 09:00:00+02:00", datetime(2030, 7, 1, 7, tzinfo=UTC)),
        ("2030-03-31T02:30", datetime(2030, 3, 31, 1, 30, tzinfo=UTC)),  # skipped by the clock change
    ],
)
def test_a_time_without_an_offset_is_read_in_the_sessions_zone(
    db: psycopg.Connection, text: str, meant: datetime
) -> None:
    db.execute("update pgrecall.sessions set time_zone = 'Europe/Paris' where id = 's1'")
    db.execute("set local timezone = 'America/New_York'")
    db.execute("set local datestyle = 'German'")
    answer = ask(db, trigger_at=text)
    db.execute("set local datestyle = 'ISO'")
    assert made(db, answer)["trigger_at"] == meant
    assert answer["time_zone"] == made(db, answer)["time_zone"] == "Europe/Paris"


def test_the_given_zone_counts_before_the_sessions(db: psycopg.Connection) -> None:
    db.execute("update pgrecall.sessions set time_zone = 'Europe/Paris' where id = 's1'")
    answer = ask(db, trigger_at="2030-01-02T09:00", time_zone="Asia/Tokyo")
    assert made(db, answer)["trigger_at"] == datetime(2030, 1, 2, 0, tzinfo=UTC)
    assert answer["recall"]["next_times"] == ["Wed 2030-01-02 09:00:00+09:00 (Asia/Tokyo)"]


@pytest.mark.parametrize(
    "text",
    [
        "tomorrow",
        "now",
        "infinity",
        "9am",
        "2030-07-01",
        "2030-02-30T09:00",
        "2030-07-01T25:00",
        "01/02/2030 09:00",
        "2030-07-01T09:00+99:00",
        "2030-07-01T09:00 Europe/Paris",
        "",
        "x" * 10000,
        "2030-07-01T09:00'; drop table x",
    ],
)
def test_what_is_no_iso_time_is_refused_with_an_example(db: psycopg.Connection, text: str) -> None:
    with refused(db, "PR005") as caught:
        ask(db, trigger_at=text)
    assert "which is not an ISO 8601 date with a time of day" in said(caught)
    assert "For example 2030-01-02T12:00 (read in the time zone UTC)" in said(caught)
    assert len(said(caught)) < 500


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"trigger_at": None}, "no time was given"),
        ({"trigger_at": "2031-01-01T00:00", "in_seconds": 100.0}, "exclude each other"),
        ({"cron": "0 9 * * *", "in_seconds": 100.0}, "exclude it"),
        ({"cron": "0 9 * * *", "trigger_at": "2031-01-01T00:00"}, "exclude it"),
        ({"cron": "0 9 * * *", "interval_seconds": 3600}, "exclude it"),
        ({"cron": "every day"}, "5 fields"),
        ({"cron": "0 9 31 2 *"}, "no such day"),
        ({"in_seconds": float("nan")}, "in_seconds is NaN"),
        ({"in_seconds": float("inf")}, "in_seconds is Infinity"),
        ({"in_seconds": -1.0}, "in_seconds is -1"),
        ({"in_seconds": 1e300}, "in_seconds is 1e+300"),
        ({"time_zone": "CET"}, "leave it out for UTC"),
        ({"end_at": "2031-01-01T00:00"}, "end_at is for recurring"),
        ({"interval_seconds": 3600, "end_at": "2030-01-01T12:30"}, "before the first time"),
        ({"interval_seconds": 3600, "end_at": "soon"}, "end_at is 'soon'"),
        ({"if_exists": "overwrite"}, "must be replace, raise or keep"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    db: psycopg.Connection, arguments: dict[str, Any], complaint: str
) -> None:
    with refused(db, "PR005") as caught:
        ask(db, **arguments)
    assert complaint in said(caught)
    assert listed(db)["recalls"] == []


def test_an_interval_begins_one_interval_from_now_or_at_the_given_time(db: psycopg.Connection) -> None:
    alone = ask(db, interval_seconds=3600)
    assert made(db, alone)["trigger_at"] == NOW + HOUR
    from_then = ask(db, interval_seconds=3600, trigger_at="2030-01-02T09:00")
    assert from_then["recall"]["next_times"] == [
        "Wed 2030-01-02 09:00:00+00:00 (UTC)",
        "Wed 2030-01-02 10:00:00+00:00 (UTC)",
        "Wed 2030-01-02 11:00:00+00:00 (UTC)",
    ]
    soon = ask(db, interval_seconds=3600, in_seconds=90.0)
    assert made(db, soon)["trigger_at"] == NOW + 90 * SECOND


# The bounds


@pytest.mark.parametrize("seconds", [0.0, 59.999])
def test_a_recall_must_be_the_shortest_time_from_now(db: psycopg.Connection, seconds: float) -> None:
    with refused(db, "PR007") as caught:
        ask(db, in_seconds=seconds)
    assert f"too soon: it is {AT_NOW} now, and a recall must be at least 60 s from now" in said(caught)
    assert "in_seconds of 60 or more" in said(caught)
    assert made(db, ask(db, in_seconds=60.0))["trigger_at"] == NOW + MINUTE
    settings(db, agent_min_interval_seconds=0)
    assert made(db, ask(db, in_seconds=seconds))["status"] == "pending"


def test_a_time_in_the_past_is_called_so(db: psycopg.Connection) -> None:
    settings(db, agent_min_interval_seconds=0)
    with refused(db, "PR007") as caught:
        ask(db, trigger_at="2030-01-01T11:59:59")
    assert "Tue 2030-01-01 11:59:59+00:00 (UTC) is in the past" in said(caught)


@pytest.mark.parametrize(
    ("schedule", "gap"),
    [
        ({"interval_seconds": 299}, "299 s"),
        ({"interval_seconds": -5}, "-5 s"),
        ({"cron": "* * * * *"}, "60 s"),
        ({"cron": "@hourly"}, None),
        ({"cron": "*/5 * * * *"}, None),
        ({"cron": "0,4 9 1 1 *"}, "240 s"),
        ({"cron": "0,56 * * * *"}, "240 s"),
        ({"cron": "0,59 0,23 * * *"}, "60 s"),
        ({"cron": "0 9 * * mon#1"}, None),
        ({"interval_seconds": 300}, None),
    ],
)
def test_the_times_of_a_recurring_recall_must_lie_apart(
    db: psycopg.Connection, schedule: dict[str, Any], gap: str | None
) -> None:
    settings(db, agent_min_interval_seconds=300)
    if gap is None:
        assert ask(db, **schedule)["result"] == "scheduled"
        return
    with refused(db, "PR007") as caught:
        ask(db, **schedule)
    assert f"would come every {gap}, but at least 300 s must lie between" in said(caught)


def test_a_cron_whose_next_time_is_too_soon_begins_with_the_one_after(db: psycopg.Connection) -> None:
    set_clock(db, NOW - 30 * SECOND)
    answer = ask(db, cron="0 12 * * *")
    assert made(db, answer)["trigger_at"] == NOW + DAY
    set_clock(db, NOW - MINUTE)
    assert made(db, ask(db, cron="0 12 * * *"))["trigger_at"] == NOW


def test_a_recurring_recall_ends_by_itself_and_says_so(db: psycopg.Connection) -> None:
    answer = ask(db, cron="0 9 * * *")
    assert made(db, answer)["end_at"] == NOW + 30 * DAY
    assert answer["recall"]["ends_at"] == "Thu 2030-01-31 12:00:00+00:00 (UTC)"
    assert answer["notes"] == ["A recurring recall ends after 30 days at the latest; schedule it anew to go on."]


def test_a_later_end_is_shortened_with_a_note(db: psycopg.Connection) -> None:
    settings(db, agent_recurring_days=7)
    answer = ask(db, interval_seconds=3600, end_at="2031-01-01T00:00")
    assert made(db, answer)["end_at"] == NOW + 7 * DAY
    assert answer["notes"][0] == "end_at was moved to Tue 2030-01-08 12:00:00+00:00 (UTC)."
    earlier = ask(db, interval_seconds=3600, end_at="2030-01-03T00:00")
    assert made(db, earlier)["end_at"] == datetime(2030, 1, 3, tzinfo=UTC)
    assert "notes" not in earlier


def test_a_recurring_recall_cannot_begin_after_its_latest_end(db: psycopg.Connection) -> None:
    with refused(db, "PR007") as caught:
        ask(db, interval_seconds=3600, trigger_at="2030-03-01T09:00")
    assert "must end by Thu 2030-01-31 12:00:00+00:00 (UTC)" in said(caught)
    assert "without cron or interval_seconds" in said(caught)


def test_a_recurring_recall_made_by_an_agent_is_paused_after_three_failures(db: psycopg.Connection) -> None:
    assert made(db, ask(db, interval_seconds=3600))["pause_after_failures"] == 3
    assert made(db, ask(db))["pause_after_failures"] is None


def test_only_so_many_recalls_made_by_agents_wait_for_a_user(db: psycopg.Connection) -> None:
    settings(db, agent_max_pending_per_user=1)
    add(db, "of the host")
    db.execute("update pgrecall.sessions set user_id = 'ada' where id = 'of the host'")
    first = ask(db, "s1")
    assert ask(db, "s1")["replaced"]["recall_id"] == first["recall"]["recall_id"]
    with refused(db, "PR007") as caught:
        ask(db, "s2")
    assert "this user has 1 recalls made by agents already" in said(caught)
    assert listed(db, "s2")["recalls"] == []
    assert ask(db, "s3")["result"] == "scheduled"
    cancel(db, "s1")
    assert ask(db, "s2")["result"] == "scheduled"


def test_with_no_pending_allowed_agents_schedule_nothing(db: psycopg.Connection) -> None:
    settings(db, agent_max_pending_per_user=0)
    add_session(db, "of nobody")
    for session_id in ("s1", "of nobody"):
        with refused(db, "PR007"):
            ask(db, session_id)


def test_sessions_without_a_user_are_counted_each_for_itself(db: psycopg.Connection) -> None:
    settings(db, agent_max_pending_per_user=1)
    add_session(db, "n1", "n2")
    assert ask(db, "n1")["result"] == ask(db, "n2")["result"] == "scheduled"


def test_two_sessions_of_a_user_cannot_both_take_the_last_place(two: tuple[psycopg.Connection, ...]) -> None:
    first, second = two
    settings(first, agent_max_pending_per_user=1)
    with first.transaction():
        ask(first, "s1")
        pid = value(second, "select pg_backend_pid()")
        other = Doing(lambda: ask(second, "s2"))
        wait_until_blocked(first, pid)
    with pytest.raises(psycopg.Error) as caught:
        other.result()
    assert caught.value.sqlstate == "PR007"


def test_without_its_settings_an_agent_schedules_nothing(db: psycopg.Connection) -> None:
    db.execute("set local session_replication_role = replica")  # or it cannot be removed
    db.execute("delete from pgrecall.settings")
    with refused(db, "P0002"):
        ask(db)


# Runs and chains


def test_in_a_live_chat_the_chain_begins_anew(db: psycopg.Connection) -> None:
    row = made(db, ask(db))
    assert (row["created_by"], row["created_by_run_id"], row["chain_depth"]) == ("agent", None, 0)


def test_inside_a_run_the_recall_is_one_link_further(db: psycopg.Connection) -> None:
    run = run_of(db, chain_depth=4)
    row = made(db, ask(db, run_id=run["run_id"]))
    assert (row["created_by"], row["created_by_run_id"], row["chain_depth"]) == ("agent", run["run_id"], 5)
    assert row["status"] == "pending"


def test_a_run_that_does_not_say_that_it_is_one_is_taken_for_one(db: psycopg.Connection) -> None:
    run = run_of(db, chain_depth=4)
    row = made(db, ask(db))
    assert (row["created_by_run_id"], row["chain_depth"]) == (run["run_id"], 5)


def test_a_chain_ends_at_its_greatest_depth(db: psycopg.Connection) -> None:
    settings(db, agent_max_chain_depth=2)
    ask(db, in_seconds=60.0)
    for depth in (1, 2):
        set_clock(db, NOW + depth * HOUR)
        run = claim_one(db)
        answer = ask(db, in_seconds=60.0)
        assert made(db, answer)["chain_depth"] == depth
        finish(db, run)
    set_clock(db, NOW + 3 * HOUR)
    run = claim_one(db)
    with refused(db, "PR007") as caught:
        ask(db, in_seconds=60.0)
    assert "3 runs in a row were each scheduled by the one before" in said(caught)
    finish(db, run)
    assert made(db, ask(db))["chain_depth"] == 0


def test_with_a_chain_depth_of_0_runs_schedule_nothing(db: psycopg.Connection) -> None:
    settings(db, agent_max_chain_depth=0)
    assert ask(db, "s2")["result"] == "scheduled"
    run_of(db)
    with refused(db, "PR007"):
        ask(db)


@pytest.mark.parametrize("act", [ask, cancel, skip])
@pytest.mark.parametrize("lost", ["finished", "of another session", "unknown", "told to stop"])
def test_a_run_that_has_lost_its_session_changes_nothing(db: psycopg.Connection, act: Any, lost: str) -> None:
    run = run_of(db, "s2" if lost == "of another session" else "s1")
    run_id = 4711 if lost == "unknown" else run["run_id"]
    if lost == "finished":
        finish(db, run)
    elif lost == "told to stop":
        change(db, run["recall_id"], status="cancelled")
    before = rows(db, "select * from pgrecall.session_recalls order by id")
    with refused(db, "PR004") as caught:
        act(db, run_id=run_id)
    assert "this run does not have the session any more" in said(caught)
    assert rows(db, "select * from pgrecall.session_recalls order by id") == before


def test_a_cancelled_run_cannot_schedule_by_not_saying_that_it_is_one(db: psycopg.Connection) -> None:
    run = run_of(db)
    change(db, run["recall_id"], status="cancelled")
    with refused(db, "PR004"):
        ask(db)
    finish(db, run, "interrupted")
    assert made(db, ask(db))["chain_depth"] == 0


def test_the_rest_of_a_run_whose_recall_was_deleted_counts_until_it_ends(db: psycopg.Connection) -> None:
    run = run_of(db)
    db.execute("delete from pgrecall.session_recalls where id = %s", [run["recall_id"]])
    with refused(db, "PR004"):
        ask(db)
    set_clock(db, NOW + DAY)
    assert made(db, ask(db))["chain_depth"] == 0


def test_the_outcome_waits_for_a_call_of_its_run(two: tuple[psycopg.Connection, ...]) -> None:
    first, second = two
    add(first, "s1", value(first, "select now()"))
    run = claim_one(first)
    pid = value(second, "select pg_backend_pid()")
    with first.transaction():
        answer = ask(first, run_id=run["run_id"])
        ending = Doing(lambda: finish(second, run))
        wait_until_blocked(first, pid)
    assert ending.result()["accepted"]
    assert made(first, answer)["status"] == "pending"


def test_a_call_that_comes_after_the_outcome_is_refused(two: tuple[psycopg.Connection, ...]) -> None:
    first, second = two
    add(first, "s1", value(first, "select now()"))
    run = claim_one(first)
    pid = value(second, "select pg_backend_pid()")
    with first.transaction():
        finish(first, run)
        asking = Doing(lambda: ask(second, run_id=run["run_id"]))
        wait_until_blocked(first, pid)
    with pytest.raises(psycopg.Error) as caught:
        asking.result()
    assert caught.value.sqlstate == "PR004"
    assert listed(first)["recalls"] == []


def test_two_calls_of_one_run_do_not_deadlock(two: tuple[psycopg.Connection, ...]) -> None:
    first, second = two
    add_recurring(first, "s1", value(first, "select now()"), interval_seconds=3600)
    run = claim_one(first)
    pid = value(second, "select pg_backend_pid()")
    with first.transaction():
        call_one(first, "agent_list_recalls", session_id="s1")
        skipping = first.execute("select pgrecall._agent_run('s1', %s)", [run["run_id"]])
        assert skipping.rowcount == 1
        other = Doing(lambda: cancel(second, run_id=run["run_id"]))
        wait_until_blocked(first, pid)
        ask(first, run_id=run["run_id"])
    assert other.result()["result"] == "cancelled"


# Replacing


def test_a_new_recall_replaces_the_pending_one_and_tells_what_it_was(db: psycopg.Connection) -> None:
    first = ask(db, interval_seconds=3600, additional_context_message="every hour")
    second = ask(db)
    assert second["replaced"] == first["recall"]
    assert made(db, first)["status"] == "cancelled"
    assert [one["outcome"] for one in ledger(db, first["recall"]["recall_id"])] == ["skipped"]
    assert [one["recall_id"] for one in listed(db)["recalls"]] == [second["recall"]["recall_id"]]


def test_a_new_recall_that_is_refused_leaves_the_pending_one(db: psycopg.Connection) -> None:
    first = ask(db)
    with refused(db, "23514"):
        ask(db, additional_context_message="   ")
    with refused(db, "PR007"):
        ask(db, in_seconds=1.0)
    assert made(db, first)["status"] == "pending"


def test_keep_returns_the_pending_recall(db: psycopg.Connection) -> None:
    first = ask(db)
    second = ask(db, if_exists="keep", in_seconds=100.0)
    assert (second["result"], second["recall"]) == ("kept", first["recall"])
    assert ask(db, "s2", if_exists="keep")["result"] == "scheduled"


def test_raise_refuses_beside_a_pending_recall(db: psycopg.Connection) -> None:
    first = ask(db)
    with refused(db, "PR001") as caught:
        ask(db, if_exists="raise")
    assert first["recall"]["recall_id"] in said(caught)
    assert ask(db, "s2", if_exists="raise")["result"] == "scheduled"


def test_a_known_idempotency_key_returns_its_recall(db: psycopg.Connection) -> None:
    first = ask(db, idempotency_key="k")
    again = ask(db, idempotency_key="k", in_seconds=100.0)
    assert (again["result"], again["recall"]["recall_id"]) == ("scheduled before", first["recall"]["recall_id"])
    assert ask(db, "s2", idempotency_key="k")["result"] == "scheduled"


def test_somebody_elses_recall_that_comes_first_is_replaced_too(two: tuple[psycopg.Connection, ...]) -> None:
    first, second = two
    pid = value(second, "select pg_backend_pid()")
    with first.transaction():
        theirs = add(first, "s1", datetime(2040, 1, 1, tzinfo=UTC))
        asking = Doing(lambda: ask(second))
        wait_until_blocked(first, pid)
    answer = asking.result()
    assert answer["replaced"]["recall_id"] == theirs
    assert recall(first, theirs)["status"] == "cancelled"


def test_a_recurring_recall_replaced_by_its_own_run_is_not_stopped(db: psycopg.Connection) -> None:
    old = add_recurring(db, "s1", NOW, interval_seconds=3600)
    run = claim_one(db)
    answer = ask(db, run_id=run["run_id"], in_seconds=600.0)
    assert answer["replaced"]["recall_id"] == old
    assert recall(db, old)["status"] == "running"
    assert finish(db, run, reply="done")["status"] == "fired"
    set_clock(db, NOW + HOUR)
    assert claim_one(db)["recall_id"] == answer["recall"]["recall_id"]


# Looking


def test_a_list_shows_what_is_to_come_with_absolute_times(db: psycopg.Connection) -> None:
    db.execute("update pgrecall.sessions set time_zone = 'Europe/Paris' where id = 's1'")
    made_by_host = add_recurring(
        db, "s1", NOW + HOUR, interval_seconds=3600, internal_comment="for people", metadata='{"secret": 1}'
    )
    answer = listed(db)
    assert answer == {
        "now": "Tue 2030-01-01 13:00:00+01:00 (Europe/Paris)",
        "time_zone": "Europe/Paris",
        "recalls": [
            {
                "recall_id": made_by_host,
                "message": "go on",
                "status": "pending",
                "next_times": [
                    "Tue 2030-01-01 14:00:00+01:00 (Europe/Paris)",
                    "Tue 2030-01-01 15:00:00+01:00 (Europe/Paris)",
                    "Tue 2030-01-01 16:00:00+01:00 (Europe/Paris)",
                ],
                "first_in": "1 h 0 min",
                "interval_seconds": 3600,
                "made_by": "the application",
            }
        ],
    }


def test_a_list_shows_the_run_under_way_and_the_end_of_a_schedule(db: psycopg.Connection) -> None:
    add_recurring(db, "s1", NOW, interval_seconds=3600, end_at=NOW + 2 * HOUR)
    claim_one(db)
    (one,) = listed(db)["recalls"]
    assert one["status"] == "running"
    assert one["next_times"] == ["Tue 2030-01-01 13:00:00+00:00 (UTC)", "Tue 2030-01-01 14:00:00+00:00 (UTC)"]


def test_a_list_leaves_out_what_has_ended_and_shortens_long_messages(db: psycopg.Connection) -> None:
    ask(db, additional_context_message="gone")
    ask(db, additional_context_message="x" * 65536)
    (one,) = listed(db)["recalls"]
    assert one["message"] == "x" * 500 + "…"


def test_a_paused_recall_is_shown_as_paused(db: psycopg.Connection) -> None:
    change(db, add(db, "s1", NOW + HOUR), paused_at=NOW)
    assert listed(db)["recalls"][0]["status"] == "pending, paused"


# Cancelling


def test_cancelling_without_an_id_takes_the_pending_recall(db: psycopg.Connection) -> None:
    first = ask(db)
    answer = cancel(db)
    assert (answer["result"], answer["cancelled"]) == ("cancelled", first["recall"])
    assert made(db, first)["status"] == "cancelled"
    assert cancel(db)["result"] == "nothing to cancel"
    assert cancel(db, recall_id=first["recall"]["recall_id"])["result"] == "cancelled before"


def test_a_run_can_cancel_what_it_has_scheduled(db: psycopg.Connection) -> None:
    run = run_of(db)
    answer = ask(db, run_id=run["run_id"])
    assert cancel(db, run_id=run["run_id"])["cancelled"]["recall_id"] == answer["recall"]["recall_id"]
    assert recall(db, run["recall_id"])["status"] == "running"


def test_a_run_that_cancels_its_own_recurring_recall_goes_on_to_its_end(db: psycopg.Connection) -> None:
    old = add_recurring(db, "s1", NOW, interval_seconds=3600)
    run = claim_one(db)
    assert cancel(db, run_id=run["run_id"])["result"] == "cancelled: this run is its last"
    assert recall(db, old)["status"] == "running"
    assert finish(db, run, reply="done")["status"] == "fired"
    assert [one["outcome"] for one in ledger(db, old)] == ["success"]


def test_a_recurring_recall_that_was_moved_while_it_runs_is_cancelled_too(db: psycopg.Connection) -> None:
    old = add_recurring(db, "s1", NOW, interval_seconds=3600)
    run = claim_one(db)
    change(db, old, trigger_at=NOW + 5 * HOUR)
    cancel(db)
    assert finish(db, run)["status"] == "fired"


def test_a_run_cannot_cancel_itself(db: psycopg.Connection) -> None:
    run = run_of(db)
    with refused(db, "PR004") as caught:
        cancel(db, recall_id=run["recall_id"])
    assert "the one that you run for now. It will not come again" in said(caught)


def test_what_has_ended_cannot_be_cancelled(db: psycopg.Connection) -> None:
    run = run_of(db)
    finish(db, run)
    with refused(db, "PR004") as caught:
        cancel(db, recall_id=run["recall_id"])
    assert "is fired" in said(caught)


# Skipping


def test_skipping_leaves_out_the_next_time_and_tells_the_one_after(db: psycopg.Connection) -> None:
    first = ask(db, interval_seconds=3600)
    answer = skip(db)
    assert answer["result"] == "skipped"
    assert answer["skipped"] == "Tue 2030-01-01 13:00:00+00:00 (UTC)"
    assert answer["recall"]["next_times"][0] == "Tue 2030-01-01 14:00:00+00:00 (UTC)"
    assert made(db, first)["trigger_at"] == NOW + 2 * HOUR
    assert skip(db, recall_id=first["recall"]["recall_id"])["skipped"] == "Tue 2030-01-01 14:00:00+00:00 (UTC)"


def test_skipping_the_last_time_leaves_nothing(db: psycopg.Connection) -> None:
    first = ask(db, interval_seconds=3600, end_at="2030-01-01T13:30")
    assert skip(db)["result"].startswith("skipped: that was the last time")
    assert made(db, first)["status"] == "cancelled"
    assert skip(db)["result"].startswith("nothing to skip")


def test_only_a_waiting_recurring_recall_can_be_skipped(db: psycopg.Connection) -> None:
    once = ask(db)
    with refused(db, "PR004") as caught:
        skip(db, recall_id=once["recall"]["recall_id"])
    assert "a single one can be cancelled" in said(caught)
    assert skip(db)["result"].startswith("nothing to skip")
    add_recurring(db, "s2", NOW)
    claim_one(db)
    with refused(db, "PR004") as caught:
        skip(db, "s2")
    assert "runs now" in said(caught)


# Whose recalls


@pytest.mark.parametrize("act", [cancel, skip])
def test_a_recall_of_another_session_is_as_unknown_as_none(db: psycopg.Connection, act: Any) -> None:
    theirs = ask(db, "s2", interval_seconds=3600)["recall"]["recall_id"]
    same_length = theirs[:-1] + ("0" if theirs[-1] != "0" else "1")
    texts = []
    for recall_id in (theirs, same_length):
        with refused(db, "PR003") as caught:
            act(db, recall_id=recall_id)
        error = caught.value.diag
        parts = (error.message_primary, error.message_hint, error.message_detail, error.constraint_name, error.context)
        texts.append([part and part.replace(recall_id, "<id>") for part in parts])
    assert texts[0] == texts[1]
    assert recall(db, theirs)["status"] == "pending"


def test_an_agent_sees_and_replaces_only_what_is_in_its_session(db: psycopg.Connection) -> None:
    theirs = ask(db, "s2")["recall"]["recall_id"]
    assert listed(db)["recalls"] == []
    assert "replaced" not in ask(db)
    assert cancel(db)["result"] == "cancelled"
    assert recall(db, theirs)["status"] == "pending"


@pytest.mark.parametrize("act", [ask, cancel, skip, listed])
@pytest.mark.parametrize("session_id", ["nobody", "s1' or '1'='1", "%", "x" * 300, ""])
def test_an_unknown_session_is_an_error(db: psycopg.Connection, act: Any, session_id: str) -> None:
    with refused(db, "PR002"):
        act(db, session_id)


@pytest.mark.parametrize(
    "text", ["'; delete from pgrecall.session_recalls; --", "$$ || pg_sleep(9) || $$", "%s %(x)s {now}", "\u202e\x01"]
)
def test_text_is_only_text(db: psycopg.Connection, text: str) -> None:
    theirs = ask(db, "s2")["recall"]["recall_id"]
    answer = ask(db, additional_context_message=text)
    assert answer["recall"]["message"] == text
    with refused(db, "PR003"):
        cancel(db, recall_id=text)
    assert recall(db, theirs)["status"] == "pending"


def test_a_host_can_keep_its_recalls_to_itself(db: psycopg.Connection) -> None:
    mine = add_recurring(db, "s1", NOW + HOUR)
    settings(db, agent_can_change_host_recalls=False)
    for act in (ask, cancel, skip):
        with refused(db, "PR007") as caught:
            act(db)
        assert "was made by the application" in said(caught)
    assert listed(db)["recalls"][0]["recall_id"] == mine
    settings(db, agent_can_change_host_recalls=True)
    assert skip(db)["result"] == "skipped"
    assert cancel(db)["result"] == "cancelled"
