"""Claiming: who gets which recall, one run per session, leases, and what happens to a dead worker's runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta

import psycopg
import pytest
from psycopg import IsolationLevel
from sqltools import (
    HOUR,
    MINUTE,
    NOW,
    SECOND,
    Doing,
    add,
    add_recurring,
    call,
    call_one,
    change,
    claim,
    claim_one,
    finish,
    ledger,
    outcomes,
    recall,
    refused,
    row,
    rows,
    session,
    set_clock,
    value,
    wait_until_blocked,
)

LEASE = timedelta(seconds=30)


@pytest.fixture
def db(db: psycopg.Connection) -> psycopg.Connection:
    """A connection in a transaction, at NOW."""
    set_clock(db, NOW)
    return db


@pytest.fixture
def two(database: str) -> Iterator[tuple[psycopg.Connection, psycopg.Connection]]:
    """Two autocommit connections to one database, at NOW."""
    with psycopg.connect(database, autocommit=True) as first, psycopg.connect(database, autocommit=True) as second:
        set_clock(first, NOW)
        yield first, second


def messages(db: psycopg.Connection, session_id: str) -> list[tuple[str, str]]:
    """Return role and text of a session's messages in order."""
    found = rows(db, "select * from pgrecall.session_messages where session_id = %s order by position", session_id)
    return [(message["role"], message["content"]) for message in found]


def lease_until(db: psycopg.Connection, worker: str) -> object:
    """Return the end of a worker's lease."""
    return value(db, "select lease_until from pgrecall.workers where id = %s", worker)


# What is taken


def test_a_claim_of_nothing_is_one_row_with_the_time(db: psycopg.Connection) -> None:
    found = claim(db)
    assert (found.now_at, found.next_due_at, found.settled, found.runs, found.deferred) == (NOW, None, True, [], [])
    assert value(db, "select count(*) from pgrecall.workers") == 0


def test_a_look_that_comes_a_moment_early_waits_and_claims_as_of_the_time(db: psycopg.Connection) -> None:
    due_at = NOW + timedelta(milliseconds=40)
    name = add(db, "s1", due_at)
    began = time.monotonic()
    assert claim(db, due_from=due_at).recall_ids == [name]
    assert time.monotonic() - began >= 0.04
    taken = recall(db, name)
    assert (taken["claimed_at"], taken["nominal_at"], session(db, "s1")["held_since"]) == (due_at, due_at, due_at)


def test_a_claim_that_came_early_is_not_committed_before_its_time(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        for n in range(10):
            at = value(db, "select clock_timestamp() + interval '45 milliseconds'")
            add(db, f"s{n}", at)
            assert claim(db, due_from=at).now_at >= at
            assert value(db, "select clock_timestamp()") >= at


@pytest.mark.parametrize("up_to", [0, 1])
def test_it_waits_for_nothing_that_is_further_away_and_not_without_a_free_slot(
    db: psycopg.Connection, up_to: int
) -> None:
    due_at = NOW + timedelta(milliseconds=50 if up_to == 0 else 51)
    add(db, "s1", due_at)
    db.execute(
        """create or replace function pgrecall._wait_until(moment timestamptz) returns void language plpgsql as
        $$ begin raise 'it has waited'; end $$"""
    )
    found = claim(db, up_to=up_to, due_from=due_at)
    assert (found.runs, found.next_due_at) == ([], due_at)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Paris"])
@pytest.mark.parametrize("late", [timedelta(0), timedelta(milliseconds=999), SECOND, MINUTE, HOUR])
def test_the_model_is_told_times_as_everybody_is(db: psycopg.Connection, zone: str, late: timedelta) -> None:
    """_model_text() writes the commonest times and spans itself, because calls would be a tenth of a claim."""
    at = NOW + timedelta(microseconds=123456)
    told, expected = db.execute(
        """select pgrecall._model_text(
                '{scheduled_for}, {now}, {late_by}, {next}: {message}', 'r', 's', 'go on', %(zone)s,
                %(at)s::timestamptz, %(at)s::timestamptz + %(late)s, 1, 3, 0, %(at)s::timestamptz + interval '1 day'
            ),
            format(
                '%%s, %%s, %%s, %%s: go on', pgrecall.time_text(%(at)s, %(zone)s),
                pgrecall.time_text(%(at)s::timestamptz + %(late)s, %(zone)s), pgrecall.span_text(%(late)s),
                pgrecall.time_text(%(at)s::timestamptz + interval '1 day', %(zone)s)
            )""",
        {"zone": zone, "at": at, "late": late},
    ).fetchone() or ("", None)
    assert told == expected


def test_a_look_that_comes_early_for_a_lease_finds_it_ended(database: str) -> None:
    """It would look again and again in the moment before, if it did not wait."""
    with psycopg.connect(database, autocommit=True) as db:
        name = add(db, "s1", value(db, "select now()"))
        assert claim(db, "dead", lease=timedelta(milliseconds=40)).recall_ids == [name]
        ends_at = lease_until(db, "dead")
        assert isinstance(ends_at, datetime)
        assert claim(db, "w2", due_from=ends_at).recall_ids == [name]


def test_due_recalls_are_taken_in_the_order_in_which_they_are_due(db: psycopg.Connection) -> None:
    for name, delta in (("b", -2 * MINUTE), ("c", -MINUTE), ("a", -HOUR), ("now", 0 * MINUTE), ("later", SECOND)):
        add(db, f"session of {name}", NOW + delta, id=name)
    found = claim(db)
    assert found.recall_ids == ["a", "b", "c", "now"]
    assert found.next_due_at == NOW + SECOND


def test_the_longest_due_are_taken_when_there_are_more_than_asked_for(db: psycopg.Connection) -> None:
    for number in range(5):
        add(db, f"s{number}", NOW - number * MINUTE, id=f"r{number}")
    assert claim(db, up_to=2).recall_ids == ["r4", "r3"]
    assert claim(db, up_to=2).recall_ids == ["r2", "r1"]
    assert claim(db, up_to=2).recall_ids == ["r0"]
    assert claim(db, up_to=2).recall_ids == []


def test_a_claim_that_may_have_left_something_says_that_it_is_not_settled(db: psycopg.Connection) -> None:
    add(db, "s1", NOW)
    found = claim(db, up_to=1)
    assert (found.settled, found.next_due_at) == (False, None)
    assert claim(db, up_to=1).settled is True


def test_a_full_worker_only_asks_for_the_time(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW - MINUTE)
    found = claim(db, up_to=0)
    assert (found.runs, found.settled, found.next_due_at) == ([], True, NOW - MINUTE)
    assert recall(db, name)["status"] == "pending"


@pytest.mark.parametrize("up_to", [-1, None])
def test_a_senseless_limit_is_refused(db: psycopg.Connection, up_to: int | None) -> None:
    with refused(db, "PR005") as caught:
        call(db, "claim", worker_id="w1", up_to=up_to)
    assert "up_to is" in str(caught.value)


def test_a_claim_hands_out_what_the_run_needs(db: psycopg.Connection) -> None:
    db.execute("insert into pgrecall.sessions (id, user_id) values ('s1', 'u1')")
    name = add_recurring(
        db, "s1", NOW - 90 * SECOND, internal_comment="why", timeout_seconds=7, max_attempts=4, metadata='{"a": 1}'
    )
    run = claim_one(db)
    del run["now_at"], run["next_due_at"], run["settled"], run["next_delivery_at"]
    assert isinstance(run.pop("run_id"), int)
    assert run.pop("model_text").startswith("[Scheduled recall] go on\n")
    assert run == {
        "recall_id": name,
        "session_id": "s1",
        "user_id": "u1",
        "call_type": "recurring",
        "nominal_at": NOW - 90 * SECOND,
        "next_at": NOW + 30 * SECOND,
        "attempt": 1,
        "max_attempts": 4,
        "deferrals": 0,
        "timeout_seconds": 7,
        "additional_context_message": "go on",
        "internal_comment": "why",
        "metadata": {"a": 1},
        "time_zone": "UTC",
        "chain_depth": 0,
        "default_timeout_seconds": 600,
        "silent_token": "[SILENT]",
        "defer_reason": None,
    }


def test_a_claimed_recall_shows_its_run(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW - MINUTE)
    run = claim_one(db, "w7")
    found = recall(db, name)
    shown = {
        column: found[column]
        for column in ("status", "run_id", "worker_id", "claimed_at", "nominal_at", "attempt", "trigger_at", "due_at")
    }
    assert shown == {
        "status": "running",
        "run_id": run["run_id"],
        "worker_id": "w7",
        "claimed_at": NOW,
        "nominal_at": NOW - MINUTE,
        "attempt": 1,
        "trigger_at": NOW - MINUTE,
        "due_at": None,
    }
    assert session(db, "s1")["run_id"] == run["run_id"]


def test_a_later_run_has_a_higher_number(db: psycopg.Connection) -> None:
    add(db, "s1", NOW)
    add(db, "s2", NOW)
    first, second = claim(db, up_to=1).runs[0], claim(db, up_to=1).runs[0]
    assert first["run_id"] < second["run_id"]


@pytest.mark.parametrize("status", ["fired", "failed", "cancelled"])
def test_ended_recalls_are_not_taken(db: psycopg.Connection, status: str) -> None:
    add(db, "s1", NOW - MINUTE, status=status)
    found = claim(db)
    assert (found.runs, found.next_due_at) == ([], None)


def test_a_claimed_recall_is_not_taken_again(db: psycopg.Connection) -> None:
    add(db, "s1", NOW)
    claim_one(db, "w1")
    assert claim(db, "w2").runs == []


def test_a_recall_that_waits_for_a_retry_is_taken_at_its_not_before(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW - MINUTE, not_before=NOW + MINUTE)
    found = claim(db)
    assert (found.runs, found.next_due_at) == ([], NOW + MINUTE)
    set_clock(db, NOW + MINUTE)
    run = claim_one(db)
    assert run["nominal_at"] == NOW - MINUTE
    assert recall(db, name)["not_before"] is None


# Locked rows


def test_a_recall_that_somebody_has_locked_is_passed_over(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    first, second = two
    locked, free = add(first, "s1", NOW - MINUTE), add(first, "s2", NOW)
    with first.transaction():
        first.execute("select from pgrecall.session_recalls where id = %s for update", [locked])
        second.execute("set statement_timeout = '5s'")
        found = claim(second)
        assert found.recall_ids == [free]
        assert found.next_due_at == NOW - MINUTE
    assert claim(second).recall_ids == [locked]


def test_a_recall_whose_session_row_is_locked_is_passed_over(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    first, second = two
    locked, free = add(first, "s1", NOW - MINUTE), add(first, "s2", NOW)
    with first.transaction():
        first.execute("select from pgrecall.sessions where id = 's1' for update")
        second.execute("set statement_timeout = '5s'")
        assert claim(second).recall_ids == [free]
    assert claim(second).recall_ids == [locked]


def test_a_producer_that_refers_to_the_session_does_not_hold_up_its_recall(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    """An open insert holds the session's row FOR KEY SHARE."""
    first, second = two
    name = add(first, "s1", NOW)
    with first.transaction():
        first.execute("insert into pgrecall.session_messages (session_id, role, content) values ('s1', 'user', 'hi')")
        assert claim(second).recall_ids == [name]


def test_two_workers_at_once_take_different_recalls_and_neither_waits(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    first, second = two
    for number in range(4):
        add(first, f"s{number}", NOW - number * SECOND, id=f"r{number}")
    second.execute("set statement_timeout = '5s'")
    with first.transaction():
        mine = claim(first, "w1", up_to=2)
        found = claim(second, "w2", up_to=10)
        assert (mine.recall_ids, found.recall_ids) == (["r3", "r2"], ["r1", "r0"])
    assert claim(second, "w2").runs == []


def test_a_claim_that_is_rolled_back_leaves_everything_as_it_was(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    before = recall(db, name)
    with db.transaction(force_rollback=True):
        claim_one(db)
    assert recall(db, name) == before
    assert (session(db, "s1")["run_id"], messages(db, "s1")) == (None, [])


def test_a_claim_sees_what_was_changed_just_before_it_got_the_lock(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    first, second = two
    name = add(first, "s1", NOW - MINUTE)
    change(first, name, trigger_at=NOW + HOUR)
    assert claim(second).runs == []
    change(first, name, trigger_at=NOW)
    assert claim(second).recall_ids == [name]


# One run per session


def test_a_second_due_recall_of_a_session_in_the_same_batch_waits(db: psycopg.Connection) -> None:
    first = add(db, "s1", NOW - MINUTE, status="running", not_before=NOW - MINUTE)
    second = add(db, "s1", NOW)
    found = claim(db)
    (run,), (waiting,) = found.runs, found.deferred
    assert (run["recall_id"], waiting["recall_id"]) == (first, second)
    reason = f"session held by run {run['run_id']}"
    assert (waiting["defer_reason"], waiting["deferrals"], waiting["attempt"]) == (reason, 1, 0)
    shown = recall(db, second)
    assert (shown["status"], shown["due_at"], shown["trigger_at"]) == ("pending", NOW + MINUTE, NOW)
    assert session(db, "s1")["has_waiting"] is True
    assert messages(db, "s1") == [("system", "[Scheduled recall] go on")]


def test_a_recall_of_a_taken_session_waits_with_a_reason_and_is_tried_again(db: psycopg.Connection) -> None:
    add(db, "s1", NOW)
    run = claim_one(db)
    waiting = add(db, "s1", NOW)
    assert [one["recall_id"] for one in claim(db).deferred] == [waiting]
    again = claim(db)
    assert (again.deferred, again.next_due_at) == ([], NOW + MINUTE)
    set_clock(db, NOW + MINUTE)
    call(db, "renew", worker_id=recall(db, run["recall_id"])["worker_id"])
    (deferred,) = claim(db).deferred
    assert (deferred["deferrals"], deferred["defer_reason"]) == (2, f"session held by run {run['run_id']}")


def test_a_waiting_recall_is_due_at_once_when_the_session_is_freed(db: psycopg.Connection) -> None:
    add(db, "s1", NOW - MINUTE)
    run = claim_one(db)
    waiting = add(db, "s1", NOW)
    claim(db)
    finish(db, run)
    shown = recall(db, waiting)
    assert (shown["due_at"], shown["not_before"], shown["deferrals"]) == (NOW, None, 1)
    assert shown["defer_reason"] == f"session held by run {run['run_id']}"
    assert session(db, "s1")["has_waiting"] is False
    later = claim_one(db)
    assert (later["recall_id"], later["deferrals"]) == (waiting, 1)


def test_a_deferral_counts_against_one_occurrence_only(db: psycopg.Connection) -> None:
    add(db, "s1", NOW - MINUTE)
    run = claim_one(db)
    name = add_recurring(db, "s1", NOW)
    claim(db)
    finish(db, run)
    finish(db, claim_one(db))
    assert recall(db, name)["deferrals"] == 0


def test_a_hold_whose_time_has_passed_no_longer_counts(db: psycopg.Connection) -> None:
    """The recall of the run was deleted, and its worker never came back."""
    gone = add(db, "s1", NOW)
    claim_one(db)
    db.execute("delete from pgrecall.session_recalls where id = %s", [gone])
    name = add(db, "s1", NOW)
    assert [one["recall_id"] for one in claim(db).deferred] == [name]
    set_clock(db, NOW + MINUTE)
    assert claim(db).recall_ids == [name]
    assert session(db, "s1")["held_until"] is None


# Injection


def test_the_message_of_an_occurrence_is_put_in_once_however_many_attempts_it_takes(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW, additional_context_message="call Ada")
    first = claim_one(db)
    finish(db, first, "error", retry=True, retry_after=timedelta(0))
    second = claim_one(db)
    assert second["attempt"] == 2
    (message,) = rows(db, "select * from pgrecall.session_messages where session_id = 's1'")
    assert message["id"] == f"recall:{name}:2030-01-01T12:00:00.000000Z"
    assert (message["role"], message["content"]) == ("system", "[Scheduled recall] call Ada")
    assert (message["in_history"], message["in_context"]) == (True, True)
    assert message["metadata"] == {"recall_id": name, "run_id": first["run_id"]}


def test_each_occurrence_has_its_own_message(db: psycopg.Connection) -> None:
    add_recurring(db, "s1", NOW)
    finish(db, claim_one(db))
    set_clock(db, NOW + MINUTE)
    claim_one(db)
    assert len(messages(db, "s1")) == 2


def test_a_host_with_its_own_store_injects_itself(db: psycopg.Connection) -> None:
    add(db, "s1", NOW)
    claim_one(db, inject=False)
    assert messages(db, "s1") == []


def test_the_message_id_does_not_depend_on_the_time_zone_of_the_connection(db: psycopg.Connection) -> None:
    ask = "select pgrecall.occurrence_message_id('r', timestamptz '2030-01-01 12:00:00.123456+00')"
    db.execute("set local timezone = 'Asia/Tokyo'")
    assert value(db, ask) == "recall:r:2030-01-01T12:00:00.123456Z"


# Attempts and leases


def test_attempts_are_counted(db: psycopg.Connection) -> None:
    add(db, "s1", NOW, max_attempts=3)
    attempts = []
    for _ in range(3):
        run = claim_one(db)
        attempts.append(run["attempt"])
        finish(db, run, "error", retry=True, retry_after=timedelta(0))
    assert attempts == [1, 2, 3]
    assert claim(db).runs == []


def test_the_lease_begins_with_the_first_claim_and_is_not_written_for_each(db: psycopg.Connection) -> None:
    add(db, "s1", NOW)
    claim_one(db)
    assert lease_until(db, "w1") == NOW + LEASE
    set_clock(db, NOW + 9 * SECOND)
    add(db, "s2", NOW)
    claim_one(db)
    assert lease_until(db, "w1") == NOW + LEASE
    set_clock(db, NOW + 11 * SECOND)
    add(db, "s3", NOW)
    claim_one(db)
    assert lease_until(db, "w1") == NOW + 11 * SECOND + LEASE


def test_others_wake_for_a_lease_and_its_owner_does_not(db: psycopg.Connection) -> None:
    add(db, "s1", NOW)
    claim_one(db, "w1")
    assert claim(db, "w1").next_due_at is None
    assert claim(db, "w2").next_due_at == NOW + LEASE


def test_renew_prolongs_the_lease_and_names_the_runs_that_are_still_the_workers_own(db: psycopg.Connection) -> None:
    names = [add(db, f"s{number}", NOW) for number in range(5)]
    runs = {run["recall_id"]: run for run in claim(db).runs}
    finish(db, runs[names[0]])
    change(db, names[1], status="cancelled")
    db.execute("delete from pgrecall.session_recalls where id = %s", [names[2]])
    set_clock(db, NOW + 10 * SECOND)
    own = [one["renew"] for one in call(db, "renew", worker_id="w1", lease=timedelta(minutes=1))]
    assert sorted(own) == sorted(runs[name]["run_id"] for name in names[3:])
    assert lease_until(db, "w1") == NOW + 10 * SECOND + MINUTE


def test_renew_of_a_worker_that_lost_everything_names_no_run_and_gives_no_lease(db: psycopg.Connection) -> None:
    add(db, "s1", NOW)
    claim_one(db, "w1")
    set_clock(db, NOW + MINUTE)
    claim_one(db, "w2")
    assert call(db, "renew", worker_id="w1") == []
    assert lease_until(db, "w1") is None
    assert call(db, "renew", worker_id="nobody") == []


def test_a_lease_that_covers_nothing_any_more_ends_when_it_passes(db: psycopg.Connection) -> None:
    add(db, "s1", NOW)
    finish(db, claim_one(db, "w1"))
    set_clock(db, NOW + MINUTE)
    assert claim(db, "w2").next_due_at is None
    assert lease_until(db, "w1") is None


def test_a_dead_workers_run_is_recorded_and_goes_to_another_worker_in_the_same_call(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW - SECOND)
    first = claim_one(db, "w1")
    set_clock(db, NOW + LEASE - SECOND)
    assert claim(db, "w2").runs == []
    set_clock(db, NOW + LEASE)
    second = claim_one(db, "w2")
    assert (second["recall_id"], second["attempt"], second["nominal_at"]) == (name, 2, NOW - SECOND)
    (lost,) = ledger(db, name)
    shown = {column: lost[column] for column in ("id", "outcome", "worker_id", "attempt", "started_at", "lateness")}
    assert shown == {
        "id": first["run_id"],
        "outcome": "lost",
        "worker_id": "w1",
        "attempt": 1,
        "started_at": NOW,
        "lateness": SECOND,
    }
    assert lost["finished_at"] == NOW + LEASE
    assert session(db, "s1")["run_id"] == second["run_id"]
    assert len(messages(db, "s1")) == 1


def test_a_worker_whose_own_lease_has_passed_loses_its_claims_like_any_other(db: psycopg.Connection) -> None:
    """Also those it does not know of, because the answer to its claim was lost on the way."""
    name = add(db, "s1", NOW)
    first = claim_one(db, "w1")
    set_clock(db, NOW + MINUTE)
    second = claim_one(db, "w1")
    assert (second["recall_id"], second["attempt"]) == (name, 2)
    assert outcomes(db, name) == ["lost"]
    assert finish(db, first)["accepted"] is False
    assert [one["renew"] for one in call(db, "renew", worker_id="w1")] == [second["run_id"]]


def test_claims_that_their_worker_never_heard_of_are_given_back_uncounted(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    run = claim_one(db, "w1")
    assert call_one(db, "release", worker_id="w2", run_ids=[run["run_id"]]) == {"release": 0}
    assert call_one(db, "release", worker_id="w1", run_ids=[run["run_id"]]) == {"release": 1}
    assert (recall(db, name)["status"], recall(db, name)["attempt"]) == ("pending", 0)
    assert session(db, "s1")["run_id"] is None
    assert outcomes(db, name) == ["interrupted"]


def test_a_late_finish_is_refused_and_noted(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    first = claim_one(db, "w1")
    set_clock(db, NOW + MINUTE)
    second = claim_one(db, "w2")
    before = recall(db, name)
    set_clock(db, NOW + 2 * MINUTE)
    answer = finish(db, first, reply="I was only slow", append_reply=True)
    assert (answer["accepted"], answer["status"]) == (False, "running")
    assert recall(db, name) == before
    assert session(db, "s1")["run_id"] == second["run_id"]
    assert ledger(db, name)[0]["refused_at"] == NOW + 2 * MINUTE
    set_clock(db, NOW + 3 * MINUTE)
    finish(db, first)
    assert ledger(db, name)[0]["refused_at"] == NOW + 2 * MINUTE
    assert finish(db, second)["accepted"] is True
    assert outcomes(db, name) == ["lost", "success"]
    assert len(messages(db, "s1")) == 1


def test_a_one_shot_whose_workers_all_die_fails_with_the_reason(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW, max_attempts=2)
    claim_one(db, "w1")
    set_clock(db, NOW + MINUTE)
    claim_one(db, "w2")
    set_clock(db, NOW + 2 * MINUTE)
    assert claim(db, "w3").runs == []
    found = recall(db, name)
    assert (found["status"], found["attempt"], found["run_id"]) == ("failed", 2, None)
    assert found["last_error"] == "worker w2 was lost during attempt 2"
    assert outcomes(db, name) == ["lost", "lost"]
    assert session(db, "s1")["run_id"] is None


def test_a_recurring_recall_whose_workers_all_die_goes_on_with_its_next_occurrence(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1", NOW, interval_seconds=3600, max_attempts=1)
    claim_one(db, "w1")
    set_clock(db, NOW + MINUTE)
    assert claim(db, "w2").runs == []
    found = recall(db, name)
    assert (found["status"], found["attempt"], found["trigger_at"]) == ("pending", 0, NOW + HOUR)
    assert found["last_error"] == "worker w1 was lost during attempt 1"


def test_a_cancelled_run_whose_worker_died_stays_cancelled_and_frees_its_session(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    claim_one(db, "w1")
    change(db, name, status="cancelled")
    set_clock(db, NOW + MINUTE)
    assert claim(db, "w2").runs == []
    assert (recall(db, name)["status"], recall(db, name)["run_id"]) == ("cancelled", None)
    assert (session(db, "s1")["run_id"], outcomes(db, name)) == (None, ["lost"])


def test_all_runs_of_a_dead_worker_are_given_back_and_those_of_a_live_one_are_not(db: psycopg.Connection) -> None:
    for number in range(3):
        add(db, f"s{number}", NOW)
    claim(db, "dead")
    set_clock(db, NOW + 20 * SECOND)
    kept = add(db, "s9", NOW)
    claim_one(db, "live")
    set_clock(db, NOW + 31 * SECOND)
    assert len(claim(db, "other").runs) == 3
    assert recall(db, kept)["worker_id"] == "live"


def test_a_waiting_recall_goes_on_when_the_run_before_it_is_lost(db: psycopg.Connection) -> None:
    add(db, "s1", NOW, max_attempts=1)
    claim_one(db, "w1")
    waiting = add(db, "s1", NOW)
    claim(db, "w2")
    set_clock(db, NOW + 31 * SECOND)
    assert claim(db, "w2").recall_ids == [waiting]


def test_a_claim_does_not_wait_for_a_renewal_that_is_open(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    """The worker whose lease has just passed may be alive after all: it is left alone while it says so."""
    first, second = two
    name = add(first, "s1", NOW)
    claim_one(first, "w1")
    set_clock(first, NOW + MINUTE)
    second.execute("set statement_timeout = '5s'")
    with first.transaction():
        assert len(call(first, "renew", worker_id="w1")) == 1
        assert claim(second, "w2").runs == []
    assert claim(second, "w2").runs == []
    assert outcomes(second, name) == []


def test_a_renewal_that_comes_after_an_open_expiry_finds_its_runs_gone(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    first, second = two
    add(first, "s1", NOW)
    claim_one(first, "w1")
    set_clock(first, NOW + MINUTE)
    with first.transaction():
        assert len(claim(first, "w2").runs) == 1
        renewing = Doing(lambda: call(second, "renew", worker_id="w1"))
        wait_until_blocked(first, second.info.backend_pid)
    assert renewing.result() == []


def test_an_expiry_does_not_wait_for_a_finish_that_is_open_and_respects_it(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    first, second = two
    name = add(first, "s1", NOW)
    run = claim_one(first, "w1")
    set_clock(first, NOW + MINUTE)
    second.execute("set statement_timeout = '5s'")
    with first.transaction():
        finish(first, run)
        assert claim(second, "w2").runs == []
    assert claim(second, "w2").runs == []
    assert outcomes(first, name) == ["success"]


def test_an_expiry_leaves_what_somebody_has_locked_for_the_next_look(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    first, second = two
    names = [add(first, session_id, NOW) for session_id in ("s1", "s2")]
    assert claim(first, "dead").recall_ids == names
    set_clock(first, NOW + MINUTE)
    second.execute("set statement_timeout = '5s'")
    with first.transaction():
        first.execute("select from pgrecall.sessions where id = 's1' for update")
        found = claim(second, "w2")
        assert found.recall_ids == [names[1]]
        assert found.next_due_at is None or found.next_due_at <= NOW + MINUTE
    assert claim(second, "w2").recall_ids == [names[0]]


# Workers


def test_a_registered_worker_is_visible_and_learns_the_time(db: psycopg.Connection) -> None:
    answer = call(db, "register_worker", worker_id="w1", concurrency=3, host="h", pid=7, version="0.1")
    assert answer == [{"register_worker": NOW}]
    found = row(db, "select concurrency, host, pid, version, lease_until from pgrecall.workers where id = 'w1'")
    assert found == {"concurrency": 3, "host": "h", "pid": 7, "version": "0.1", "lease_until": None}


def test_registering_again_keeps_the_lease(db: psycopg.Connection) -> None:
    call(db, "register_worker", worker_id="w1", concurrency=3)
    add(db, "s1", NOW)
    claim_one(db, "w1")
    call(db, "register_worker", worker_id="w1", concurrency=5)
    found = row(db, "select concurrency, lease_until from pgrecall.workers where id = 'w1'")
    assert found == {"concurrency": 5, "lease_until": NOW + LEASE}


def test_unregistering_forgets_a_worker_without_runs(db: psycopg.Connection) -> None:
    call(db, "register_worker", worker_id="w1", concurrency=3)
    call(db, "unregister_worker", worker_id="w1")
    call(db, "unregister_worker", worker_id="never seen")
    assert value(db, "select count(*) from pgrecall.workers") == 0


def test_unregistering_keeps_a_worker_that_has_runs(db: psycopg.Connection) -> None:
    add(db, "s1", NOW)
    run = claim_one(db, "w1")
    call(db, "unregister_worker", worker_id="w1")
    assert lease_until(db, "w1") == NOW + LEASE
    finish(db, run)
    call(db, "unregister_worker", worker_id="w1")
    assert value(db, "select count(*) from pgrecall.workers") == 0


def test_workers_that_ended_without_saying_so_are_forgotten(db: psycopg.Connection) -> None:
    add(db, "s1", NOW)
    finish(db, claim_one(db, "w1"))
    set_clock(db, NOW + 6 * MINUTE)
    claim(db, "w2")
    assert value(db, "select count(*) from pgrecall.workers where id = 'w1'") == 0


def test_an_idle_worker_is_seen_to_be_alive(db: psycopg.Connection) -> None:
    call(db, "register_worker", worker_id="w1", concurrency=3)
    db.execute("update pgrecall.workers set seen_at = %s", [NOW])
    set_clock(db, NOW + 29 * SECOND)
    claim(db, "w1")
    assert value(db, "select seen_at from pgrecall.workers") == NOW
    set_clock(db, NOW + 31 * SECOND)
    claim(db, "w1")
    assert value(db, "select seen_at from pgrecall.workers") == NOW + 31 * SECOND


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_a_claim_with_one_snapshot_for_all_its_statements_is_refused(database: str, level: IsolationLevel) -> None:
    with psycopg.connect(database) as connection:
        connection.isolation_level = level
        with refused(connection, "PR005") as caught:
            call(connection, "claim", worker_id="w1", up_to=1)
    assert "read committed" in str(caught.value)
