"""Stopping runs by hand: what the run is told, how it is recorded, what becomes of its recall."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from sqltools import (
    HOUR,
    MINUTE,
    NOW,
    SECOND,
    Doing,
    Ear,
    Row,
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
    session,
    set_clock,
    value,
    wait_until_blocked,
)


@pytest.fixture
def db(db: psycopg.Connection) -> psycopg.Connection:
    """A connection whose clock stands still."""
    set_clock(db, NOW)
    return db


@pytest.fixture
def me(db: psycopg.Connection) -> str:
    """The role of the operator."""
    return str(value(db, "select current_user"))


@pytest.fixture
def committed(database: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection to a fresh database whose clock stands still."""
    with psycopg.connect(database, autocommit=True) as db:
        set_clock(db, NOW)
        yield db


def stop(db: psycopg.Connection, recall_id: str, **how: object) -> Row:
    """Stop the run of a recall."""
    return call_one(db, "stop_run", recall_id=recall_id, **how)


def renewed(db: psycopg.Connection) -> list[int]:
    """Return the runs that are still the worker's."""
    return [one["renew"] for one in call(db, "renew", worker_id="w1")]


def test_a_run_is_told_to_stop_and_the_recall_says_by_whom(database: str, committed: psycopg.Connection) -> None:
    db = committed
    late = add(db, "s")
    run = claim_one(db)
    ear = Ear(database)
    ear.heard()
    told = stop(db, late, reason="too dear")
    assert ear.heard() == [f"stop {run['run_id']}"]
    assert (told["status"], told["run_id"]) == ("running", run["run_id"]), "it runs until its agent has stopped"
    assert (told["stopped_by"], told["stop_reason"], told["after_stop"]) == (
        value(db, "select current_user"),
        "too dear",
        "skip",
    )
    assert stop(db, late, reason="too dear") == told
    assert ear.heard() == [f"stop {run['run_id']}"], "in case that nobody listened before"
    ear.close()


def test_the_role_that_the_operator_has_taken_is_named(db: psycopg.Connection) -> None:
    late = add(db, "s")
    claim_one(db)
    db.execute("create role night_watch")
    db.execute("grant usage on schema pgrecall to night_watch")
    db.execute("grant execute on function pgrecall.stop_run to night_watch")
    db.execute("set local role night_watch")
    assert stop(db, late)["stopped_by"] == "night_watch"
    db.execute("reset role")


def test_a_worker_that_missed_the_message_hears_of_it_when_it_renews(db: psycopg.Connection) -> None:
    late = add(db, "s")
    run = claim_one(db)
    assert renewed(db) == [run["run_id"]]
    stop(db, late)
    assert renewed(db) == []


def test_an_occurrence_that_is_left_out_cancels_a_once_recall(db: psycopg.Connection, me: str) -> None:
    late = add(db, "s")
    run = claim_one(db)
    stop(db, late, reason="too dear")
    answer = finish(db, run, "interrupted", reason="cancelled from outside")
    assert (answer["accepted"], answer["status"]) == (True, "cancelled")
    (recorded,) = ledger(db, late)
    assert (recorded["outcome"], recorded["reason"]) == ("interrupted", f"stopped by {me}: too dear")
    ended = recall(db, late)
    assert (ended["last_error"], ended["run_id"], ended["due_at"]) == (f"stopped by {me}: too dear", None, None)
    assert (ended["stopped_by"], ended["stop_reason"], ended["after_stop"]) == (None, None, None)
    assert session(db, "s")["run_id"] is None


def test_and_a_recurring_one_goes_on_to_its_next_time_without_a_failure(db: psycopg.Connection) -> None:
    late = add_recurring(db, "s", pause_after_failures=1)
    run = claim_one(db)
    stop(db, late)
    finish(db, run, "interrupted")
    after = recall(db, late)
    assert (after["status"], after["trigger_at"], after["failures"]) == ("pending", NOW + MINUTE, 0)
    assert (after["stopped_by"], after["paused_at"]) == (None, None)


def test_an_occurrence_that_is_to_run_again_does_so_at_once_and_the_attempt_does_not_count(
    db: psycopg.Connection, me: str
) -> None:
    late = add(db, "s", max_attempts=1)
    run = claim_one(db)
    stop(db, late, after_stop="retry")
    answer = finish(db, run, "interrupted", reason="cancelled from outside", retry=False)
    assert (answer["status"], answer["due_at"], answer["attempt"]) == ("pending", NOW, 0)
    assert recall(db, late)["last_error"] == f"stopped by {me}"
    again = claim_one(db)
    assert (again["recall_id"], again["attempt"], again["nominal_at"]) == (late, 1, NOW)
    assert renewed(db) == [again["run_id"]], "the stop was about the run before"
    finish(db, again)
    assert outcomes(db, late) == ["interrupted", "success"]


def test_a_backoff_that_the_worker_asks_for_is_not_waited_for(db: psycopg.Connection) -> None:
    late = add(db, "s")
    run = claim_one(db)
    stop(db, late, after_stop="retry")
    assert finish(db, run, "interrupted", retry=True, retry_after=HOUR)["due_at"] == NOW


@pytest.mark.parametrize("outcome", ["error", "timeout"])
@pytest.mark.parametrize(("after_stop", "status"), [("skip", "cancelled"), ("retry", "pending")])
def test_an_agent_that_answers_the_stop_with_an_error_changes_nothing_of_that(
    db: psycopg.Connection, outcome: str, after_stop: str, status: str
) -> None:
    late = add(db, "s", max_attempts=1)
    run = claim_one(db)
    stop(db, late, after_stop=after_stop)
    answer = finish(db, run, outcome, error="the tool was cut off", retry=after_stop == "skip")
    assert (answer["status"], answer["attempt"]) == (status, 0 if after_stop == "retry" else 1)
    (recorded,) = ledger(db, late)
    assert (recorded["outcome"], recorded["error"]) == (outcome, "the tool was cut off")
    assert recorded["reason"].startswith("stopped by ")


@pytest.mark.parametrize("outcome", ["success", "silent"])
@pytest.mark.parametrize("after_stop", ["skip", "retry"])
def test_a_run_that_ends_well_in_that_moment_has_ended_well(
    db: psycopg.Connection, outcome: str, after_stop: str
) -> None:
    late = add(db, "s")
    run = claim_one(db)
    stop(db, late, after_stop=after_stop)
    assert finish(db, run, outcome)["status"] == "fired"
    assert outcomes(db, late) == [outcome]
    assert ledger(db, late)[0]["reason"] is None


def test_a_success_that_commits_first_stands_and_the_stop_changes_nothing(
    database: str, committed: psycopg.Connection
) -> None:
    db = committed
    late = add(db, "s")
    run = claim_one(db)
    with psycopg.connect(database, autocommit=True) as worker, psycopg.connect(database, autocommit=True) as operator:
        with worker.transaction():
            finish(worker, run)
            stopping = Doing(lambda: stop(operator, late))
            wait_until_blocked(db, operator.info.backend_pid)
        assert (stopping.result()["status"], stopping.result()["stopped_by"]) == ("fired", None)


@pytest.mark.parametrize(("after_stop", "status", "attempt"), [("skip", "cancelled", 1), ("retry", "pending", 0)])
def test_a_run_whose_worker_is_dead_ends_as_was_asked(
    db: psycopg.Connection, me: str, after_stop: str, status: str, attempt: int
) -> None:
    late = add(db, "s")
    claim_one(db)
    stop(db, late, reason="too dear", after_stop=after_stop)
    set_clock(db, NOW + MINUTE)
    claim(db, "w2", up_to=0)
    ended = recall(db, late)
    assert (ended["status"], ended["attempt"], ended["run_id"]) == (status, attempt, None)
    assert ended["stopped_by"] is None
    assert outcomes(db, late) == ["lost"]
    assert session(db, "s")["run_id"] is None
    if after_stop == "skip":
        assert ended["last_error"] == f"stopped by {me}: too dear"
    else:
        assert claim(db, "w2").recall_ids == [late]


def test_a_dead_workers_recurring_run_that_was_stopped_is_no_failure(db: psycopg.Connection) -> None:
    late = add_recurring(db, "s", max_attempts=1)
    claim_one(db)
    stop(db, late)
    set_clock(db, NOW + MINUTE + SECOND)
    claim(db, "w2", up_to=0)
    after = recall(db, late)
    assert (after["status"], after["failures"], after["trigger_at"]) == ("pending", 0, NOW + 2 * MINUTE)


def test_a_worker_that_gives_the_claim_back_does_what_was_asked(db: psycopg.Connection) -> None:
    late = add(db, "s")
    run = claim_one(db)
    stop(db, late)
    call(db, "release", worker_id="w1", run_ids=[run["run_id"]])
    assert recall(db, late)["status"] == "cancelled"


def test_a_run_that_a_chat_has_interrupted_ends_as_the_operator_asked(db: psycopg.Connection) -> None:
    late = add(db, "s", on_interrupt="retry")
    run = claim_one(db)
    call_one(db, "hold_session", session_id="s", holder="alice", if_held="interrupt")
    stop(db, late)
    assert finish(db, run, "interrupted")["status"] == "cancelled"
    assert session(db, "s")["holder"] == "alice"


def test_one_that_is_to_run_again_comes_after_the_chat_that_waits(db: psycopg.Connection) -> None:
    late = add(db, "s")
    run = claim_one(db)
    call_one(db, "hold_session", session_id="s", holder="alice", if_held="interrupt")
    stop(db, late, after_stop="retry")
    finish(db, run, "interrupted")
    assert [one["defer_reason"] for one in claim(db).deferred] == ["session held by the chat alice"]
    call_one(db, "free_session", session_id="s", holder="alice")
    assert claim(db).recall_ids == [late]


def test_a_recall_that_was_moved_while_it_ran_runs_at_its_new_time(db: psycopg.Connection) -> None:
    late = add(db, "s")
    run = claim_one(db)
    call_one(db, "reschedule", recall_id=late, new_trigger_at=NOW + HOUR)
    stop(db, late)
    finish(db, run, "interrupted")
    assert (recall(db, late)["status"], recall(db, late)["due_at"]) == ("pending", NOW + HOUR)


def test_the_word_of_whoever_cancels_a_run_that_is_stopping_stands(db: psycopg.Connection) -> None:
    late = add(db, "s")
    run = claim_one(db)
    stop(db, late, after_stop="retry")
    call_one(db, "mark_cancelled", recall_id=late)
    finish(db, run, "interrupted")
    assert recall(db, late)["status"] == "cancelled"


def test_stopping_again_changes_the_reason_and_what_comes_after(db: psycopg.Connection) -> None:
    late = add(db, "s")
    claim_one(db)
    stop(db, late, reason="too dear")
    again = stop(db, late, after_stop="retry")
    assert (again["stop_reason"], again["after_stop"]) == ("too dear", "retry")
    assert stop(db, late, reason="worse")["stop_reason"] == "worse"


@pytest.mark.parametrize("status", ["pending", "running", "fired", "failed", "cancelled"])
def test_a_recall_that_does_not_run_is_returned_as_it_is(db: psycopg.Connection, status: str) -> None:
    still = add(db, "s", NOW + HOUR, status=status)
    before = recall(db, still)
    assert stop(db, still) == before


def test_a_cancelled_run_that_has_not_stopped_yet_is_told_by_that(db: psycopg.Connection) -> None:
    late = add(db, "s")
    claim_one(db)
    call_one(db, "mark_cancelled", recall_id=late)
    before = recall(db, late)
    assert stop(db, late, after_stop="retry") == before


@pytest.mark.parametrize("after_stop", [None, "", "run"])
@pytest.mark.parametrize("function", ["stop_run", "stop_runs"])
def test_what_cannot_become_of_a_run_is_refused(db: psycopg.Connection, function: str, after_stop: str | None) -> None:
    late = add(db, "s")
    claim_one(db)
    given: Row = {"recall_id": late} if function == "stop_run" else {"session_id": "s"}
    with refused(db, "PR005") as caught:
        call(db, function, **given, after_stop=after_stop)
    assert "skip or retry" in str(caught.value)


def test_a_stop_that_was_written_by_hand_into_a_recall_that_does_not_run_is_forgotten(db: psycopg.Connection) -> None:
    late = add(db, "s", stopped_by="me", after_stop="retry")
    run = claim_one(db)
    assert recall(db, late)["stopped_by"] is None
    assert renewed(db) == [run["run_id"]]
    change(db, late, stopped_by="me")
    finish(db, run, "interrupted", retry=True)
    assert recall(db, late)["status"] == "cancelled"
    change(db, late, stopped_by="me")
    assert recall(db, late)["stopped_by"] is None
