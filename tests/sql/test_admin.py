"""What operators do with recalls: run one now, try one again, and everything for many at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any

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
    add_session,
    call,
    call_one,
    change,
    claim,
    claim_one,
    due,
    finish,
    ledger,
    outcomes,
    recall,
    refused,
    rows,
    set_clock,
    value,
    wait_until_blocked,
)

Connect = Callable[[], psycopg.Connection]
DAY = timedelta(days=1)


@pytest.fixture
def db(db: psycopg.Connection) -> psycopg.Connection:
    """A connection whose clock stands still."""
    set_clock(db, NOW)
    return db


@pytest.fixture
def connect(database: str) -> Iterator[Connect]:
    """Opens autocommit connections to a fresh database."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(psycopg.connect(database, autocommit=True))


def run_now(db: psycopg.Connection, recall_id: str) -> Row:
    """Ask for a recall to be run now."""
    return call_one(db, "run_now", recall_id=recall_id)


def retry(db: psycopg.Connection, recall_id: str) -> Row:
    """Ask for a recall to be tried again."""
    return call_one(db, "retry_recall", recall_id=recall_id)


def ids(found: list[Row]) -> list[str]:
    """Return the ids of recalls, in their order."""
    return [one["id"] for one in found]


# run_now


def test_a_recall_that_is_run_now_gets_the_present_as_its_time(db: psycopg.Connection) -> None:
    early = add(db, "s", NOW + HOUR)
    changed = run_now(db, early)
    assert (changed["trigger_at"], changed["due_at"], changed["grid_at"]) == (NOW, NOW, None)
    assert claim_one(db)["nominal_at"] == NOW


def test_a_daily_recall_that_is_run_at_five_runs_at_nine_tomorrow_all_the_same(db: psycopg.Connection) -> None:
    nine, five = NOW.replace(hour=9), NOW.replace(hour=17)
    daily = add_recurring(db, "s", nine + DAY, interval_seconds=86400)
    set_clock(db, five)
    assert run_now(db, daily)["grid_at"] == nine + DAY
    run = claim_one(db)
    assert (run["nominal_at"], run["next_at"]) == (five, nine + DAY)
    set_clock(db, five + MINUTE)
    finish(db, run)
    after = recall(db, daily)
    assert (after["status"], after["trigger_at"], after["grid_at"]) == ("pending", nine + DAY, None)
    assert outcomes(db, daily) == ["success"]
    set_clock(db, nine + DAY)
    finish(db, claim_one(db))
    assert recall(db, daily)["trigger_at"] == nine + 2 * DAY


def test_what_an_extra_run_runs_past_is_recorded_as_missed(db: psycopg.Connection) -> None:
    often = add_recurring(db, "s", NOW + 10 * MINUTE, interval_seconds=600)
    run_now(db, often)
    run = claim_one(db)
    set_clock(db, NOW + 25 * MINUTE)
    finish(db, run)
    assert recall(db, often)["trigger_at"] == NOW + 30 * MINUTE
    assert [(one["nominal_at"], one["outcome"]) for one in ledger(db, often)] == [
        (NOW, "success"),
        (NOW + 10 * MINUTE, "missed"),
        (NOW + 20 * MINUTE, "missed"),
    ]


def test_an_extra_run_that_fails_and_is_retried_keeps_the_grid(db: psycopg.Connection) -> None:
    hourly = add_recurring(db, "s", NOW + HOUR, interval_seconds=3600)
    run_now(db, hourly)
    finish(db, claim_one(db), "error", retry=True)
    assert recall(db, hourly)["grid_at"] == NOW + HOUR
    set_clock(db, NOW + MINUTE)
    finish(db, claim_one(db))
    assert recall(db, hourly)["trigger_at"] == NOW + HOUR


def test_an_extra_run_that_is_skipped_leaves_the_occurrence_that_it_came_before(db: psycopg.Connection) -> None:
    hourly = add_recurring(db, "s", NOW + HOUR, interval_seconds=3600)
    run_now(db, hourly)
    assert call_one(db, "skip_next_recall", session_id="s")["skip_next_recall"]
    assert (recall(db, hourly)["trigger_at"], recall(db, hourly)["grid_at"]) == (NOW + HOUR, None)


def test_marking_an_extra_run_as_fired_leaves_the_occurrence_that_it_came_before(db: psycopg.Connection) -> None:
    hourly = add_recurring(db, "s", NOW + HOUR, interval_seconds=3600)
    run_now(db, hourly)
    call_one(db, "mark_fired", recall_id=hourly)
    assert (recall(db, hourly)["trigger_at"], recall(db, hourly)["grid_at"]) == (NOW + HOUR, None)


def test_the_grid_of_an_extra_run_is_forgotten_by_whoever_names_another_time(db: psycopg.Connection) -> None:
    hourly = add_recurring(db, "s", NOW + HOUR, interval_seconds=3600)
    run_now(db, hourly)
    change(db, hourly, trigger_at=NOW + 10 * MINUTE)
    assert recall(db, hourly)["grid_at"] is None
    set_clock(db, NOW + 10 * MINUTE)
    finish(db, claim_one(db))
    assert recall(db, hourly)["trigger_at"] == NOW + 70 * MINUTE


def test_a_cron_recall_needs_no_grid(db: psycopg.Connection) -> None:
    daily = add_recurring(db, "s", NOW.replace(hour=9) + DAY, cron="0 9 * * *", time_zone="UTC")
    assert run_now(db, daily)["grid_at"] is None
    finish(db, claim_one(db))
    assert recall(db, daily)["trigger_at"] == NOW.replace(hour=9) + DAY


def test_an_overdue_recall_does_not_wait_for_its_retry_any_more(db: psycopg.Connection) -> None:
    late = add(db, "s")
    finish(db, claim_one(db), "error", retry=True, retry_after=HOUR)
    changed = run_now(db, late)
    assert (changed["trigger_at"], changed["due_at"], changed["attempt"]) == (NOW, NOW, 1)
    assert claim_one(db)["attempt"] == 2


def test_one_that_rests_between_two_attempts_beside_a_newer_recall_is_due_at_once(db: psycopg.Connection) -> None:
    first = add(db, "s")
    run = claim_one(db)
    add(db, "s", NOW + HOUR)
    finish(db, run, "error", retry=True, retry_after=HOUR)
    assert recall(db, first)["status"] == "running"
    assert run_now(db, first)["due_at"] == NOW
    assert claim(db).recall_ids == [first]


def test_a_deferred_recall_is_looked_at_again_but_a_hold_is_still_waited_for(db: psycopg.Connection) -> None:
    late = add(db, "s")
    call_one(db, "hold_session", session_id="s", holder="alice")
    assert len(claim(db).deferred) == 1
    assert run_now(db, late)["due_at"] == NOW
    assert claim(db).runs == []
    assert recall(db, late)["deferrals"] == 2


def test_one_that_is_due_or_runs_is_returned_as_it_is(db: psycopg.Connection) -> None:
    late = add(db, "s")
    before = recall(db, late)
    assert run_now(db, late) == before
    claim_one(db)
    running = recall(db, late)
    assert run_now(db, late) == running


def test_a_paused_recall_is_not_run_now_and_the_error_says_how_to_resume_it(db: psycopg.Connection) -> None:
    early = add(db, "s", NOW + HOUR)
    call_one(db, "pause_recall", recall_id=early, reason="too dear")
    with refused(db, "PR004") as caught:
        run_now(db, early)
    assert "paused" in str(caught.value)
    assert "too dear" in str(caught.value)
    assert "resume_recall()" in (caught.value.diag.message_hint or "")


@pytest.mark.parametrize(("function", "argument", "hint"), [
    ("pause_session", {"session_id": "s"}, "resume_session()"),
    ("pause_user", {"user_id": "ada"}, "resume_user()"),
])
def test_nor_is_one_whose_session_or_user_is_paused(
    db: psycopg.Connection, function: str, argument: Row, hint: str
) -> None:
    add_session(db, "s", user_id="ada")
    early = add(db, "s", NOW + HOUR)
    call_one(db, function, reason="an incident", **argument)
    with refused(db, "PR004") as caught:
        run_now(db, early)
    assert "an incident" in str(caught.value)
    assert hint in (caught.value.diag.message_hint or "")


def test_a_pause_that_has_ended_is_in_nobodys_way(db: psycopg.Connection) -> None:
    early = add(db, "s", NOW + HOUR)
    call_one(db, "pause_recall", recall_id=early, paused_until=NOW + MINUTE)
    call_one(db, "pause_session", session_id="s", paused_until=NOW + MINUTE)
    set_clock(db, NOW + MINUTE)
    assert run_now(db, early)["due_at"] == NOW + MINUTE


@pytest.mark.parametrize(("status", "hint"), [
    ("fired", "schedule_recall()"), ("failed", "retry_recall()"), ("cancelled", "retry_recall()"),
])
def test_one_that_has_ended_is_not_run_now(db: psycopg.Connection, status: str, hint: str) -> None:
    ended = add(db, "s", status=status)
    with refused(db, "PR004") as caught:
        run_now(db, ended)
    assert status in str(caught.value)
    assert hint in (caught.value.diag.message_hint or "")


@pytest.mark.parametrize("function", ["run_now", "retry_recall", "stop_run"])
def test_an_unknown_recall_is_refused(db: psycopg.Connection, function: str) -> None:
    for unknown in ("nobody", None):
        with refused(db, "PR003"):
            call_one(db, function, recall_id=unknown)


# retry_recall


def failed(db: psycopg.Connection, session_id: str, **columns: object) -> str:
    """Add a recall and let its only attempt fail."""
    late = add(db, session_id, max_attempts=1, **columns)
    run = next(run for run in claim(db).runs if run["recall_id"] == late)
    finish(db, run, "error", error="it broke")
    assert recall(db, late)["status"] == "failed"
    return late


def test_a_failed_recall_runs_its_occurrence_again_and_says_its_message_once(db: psycopg.Connection) -> None:
    broken = failed(db, "s")
    set_clock(db, NOW + HOUR)
    again = retry(db, broken)
    assert (again["status"], again["trigger_at"], again["attempt"]) == ("pending", NOW, 0)
    run = claim_one(db)
    assert (run["nominal_at"], run["attempt"]) == (NOW, 1)
    finish(db, run)
    assert recall(db, broken)["status"] == "fired"
    assert outcomes(db, broken) == ["error", "success"]
    assert value(db, "select count(*) from pgrecall.session_messages") == 1


def test_a_recall_that_was_cancelled_before_its_time_waits_for_it_again(db: psycopg.Connection) -> None:
    early = add(db, "s", NOW + HOUR)
    call_one(db, "mark_cancelled", recall_id=early)
    assert retry(db, early)["due_at"] == NOW + HOUR
    assert run_now(db, early)["due_at"] == NOW


def test_one_that_is_tried_again_is_not_paused_any_more(db: psycopg.Connection) -> None:
    late = add(db, "s")
    call_one(db, "pause_recall", recall_id=late)
    call_one(db, "mark_cancelled", recall_id=late)
    assert retry(db, late)["due_at"] == NOW


def test_one_whose_cancelled_run_has_not_stopped_yet_waits_for_that(db: psycopg.Connection) -> None:
    late = add(db, "s")
    run = claim_one(db)
    call_one(db, "mark_cancelled", recall_id=late)
    again = retry(db, late)
    assert (again["status"], again["run_id"], again["due_at"]) == ("pending", run["run_id"], None)
    assert value(db, "select count(*) from pgrecall.renew('w1')") == 0, "the run must stop all the same"
    assert claim(db).runs == []
    finish(db, run, "interrupted")
    second = claim_one(db)
    assert (second["recall_id"], second["nominal_at"], second["attempt"]) == (late, NOW, 1)


def test_retrying_again_changes_nothing(db: psycopg.Connection) -> None:
    broken = failed(db, "s")
    once = retry(db, broken)
    assert retry(db, broken) == once
    claim_one(db)
    running = recall(db, broken)
    assert retry(db, broken) == running


def test_a_fired_recall_is_not_tried_again(db: psycopg.Connection) -> None:
    fired = add(db, "s", status="fired")
    with refused(db, "PR004"):
        retry(db, fired)


def test_a_session_that_has_another_pending_recall_keeps_it(db: psycopg.Connection) -> None:
    broken = failed(db, "s")
    add(db, "s", NOW + HOUR)
    with refused(db, "PR001") as caught:
        retry(db, broken)
    with refused(db, "PR001") as scheduled:
        call_one(db, "schedule_recall", session_id="s", additional_context_message="go on")
    for caught_one in (caught, scheduled):
        assert caught_one.value.diag.message_primary == "session 's' already has a pending recall"
        assert caught_one.value.diag.message_detail == "s"
        assert caught_one.value.diag.constraint_name == "one_pending_recall_per_session"
    assert caught.value.diag.message_hint == scheduled.value.diag.message_hint
    assert recall(db, broken)["status"] == "failed"


def test_a_retry_does_not_wait_for_a_pending_recall_that_is_not_committed(connect: Connect) -> None:
    db, other = connect(), connect()
    set_clock(db, NOW)
    broken = failed(db, "s")
    with other.transaction():
        add(other, "s", NOW + HOUR)
        before = value(db, "show lock_timeout")
        with pytest.raises(psycopg.Error) as caught:
            retry(db, broken)
        assert caught.value.sqlstate == "PR001"
        assert value(db, "show lock_timeout") == before


def test_workers_that_sleep_are_woken_for_what_runs_now_or_again(database: str, connect: Connect) -> None:
    db = connect()
    set_clock(db, NOW)
    broken = failed(db, "s")
    early = add(db, "t", NOW + HOUR)
    claim(db)
    ear = Ear(database)
    ear.heard()
    run_now(db, early)
    assert ear.heard() == [due(NOW)]
    claim(db)
    retry(db, broken)
    assert ear.heard() == [due(NOW)]
    ear.close()


# many


#: Each with what it needs besides, the state that it changes, and one that it leaves alone.
BULK: dict[str, Row] = {
    "cancel_recalls": {},
    "pause_recalls": {"reason": "an incident"},
    "resume_recalls": {},
    "skip_recalls": {},
    "reschedule_recalls": {"by": HOUR},
    "run_recalls_now": {},
    "retry_recalls": {},
    "stop_runs": {"reason": "an incident"},
}


@pytest.fixture
def many(db: psycopg.Connection) -> psycopg.Connection:
    """Recalls of Ada and Ben, in every state that one of the functions changes; the ids say what."""
    for user in ("ada", "ben"):
        for state in ("runs", "waits", "repeats", "rests", "broke", "fired", "gone"):
            add_session(db, f"{user} {state}", user_id=user)
        add(db, f"{user} runs", id=f"{user} runs")
        add(db, f"{user} broke", id=f"{user} broke", max_attempts=1)
    for run in claim(db).runs:
        if run["recall_id"].endswith("broke"):
            finish(db, run, "error")
    for user in ("ada", "ben"):
        add(db, f"{user} waits", NOW + HOUR, id=f"{user} waits")
        add_recurring(db, f"{user} repeats", NOW + HOUR, id=f"{user} repeats")
        add(db, f"{user} rests", NOW + HOUR, id=f"{user} rests", paused_at=NOW)
        add(db, f"{user} fired", id=f"{user} fired", status="fired")
        add(db, f"{user} gone", id=f"{user} gone", status="cancelled")
    return db


CHANGES = {
    "cancel_recalls": ["repeats", "rests", "runs", "waits"],
    "pause_recalls": ["repeats", "rests", "runs", "waits"],
    "resume_recalls": ["rests"],
    "skip_recalls": ["repeats"],
    "reschedule_recalls": ["repeats", "rests", "runs", "waits"],
    "run_recalls_now": ["repeats", "waits"],
    "retry_recalls": ["broke"],
    "stop_runs": ["runs"],
}


@pytest.mark.parametrize("function", BULK)
def test_it_returns_exactly_the_recalls_that_it_has_changed(many: psycopg.Connection, function: str) -> None:
    before = {one["id"]: one for one in rows(many, "select * from pgrecall.session_recalls")}
    answer = call(many, function, user_id="ada", **BULK[function])
    after = {one["id"]: one for one in rows(many, "select * from pgrecall.session_recalls")}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {f"ada {state}" for state in CHANGES[function]}
    assert {one["id"]: one for one in answer} == {name: after[name] for name in changed}
    assert ids(answer) == sorted(changed)


@pytest.mark.parametrize("function", sorted(set(BULK) - {"skip_recalls", "reschedule_recalls"}))
def test_doing_it_again_changes_nothing(many: psycopg.Connection, function: str) -> None:
    assert call(many, function, user_id="ada", **BULK[function]) != []
    assert call(many, function, user_id="ada", **BULK[function]) == []


@pytest.mark.parametrize("function", BULK)
def test_what_is_given_is_anded(many: psycopg.Connection, function: str) -> None:
    state = CHANGES[function][0]
    given = BULK[function]
    assert call(many, function, user_id="ben", session_id=f"ada {state}", **given) == []
    assert call(many, function, user_id="ben", recall_ids=[f"ada {state}"], **given) == []
    assert call(many, function, session_id=f"ben {state}", recall_ids=[f"ada {state}"], **given) == []
    assert call(many, function, recall_ids=[], **given) == []
    assert ids(
        call(many, function, user_id="ada", session_id=f"ada {state}", recall_ids=[f"ada {state}", "nobody"], **given)
    ) == [f"ada {state}"]


@pytest.mark.parametrize("function", BULK)
def test_nothing_given_is_refused_and_the_error_says_how_to_say_everything(
    many: psycopg.Connection, function: str
) -> None:
    with refused(many, "PR005") as caught:
        call(many, function, **BULK[function])
    assert f"{function}() needs recall_ids, a session_id or a user_id" in str(caught.value)
    everything = value(many, "select array(select id from pgrecall.session_recalls)")
    assert len(call(many, function, recall_ids=everything, **BULK[function])) >= 2 * len(CHANGES[function])


def test_plain_sql_does_the_same(many: psycopg.Connection) -> None:
    statement = """select (pgrecall.mark_cancelled(recall.id)).id
        from pgrecall.session_recalls as recall join pgrecall.sessions as session on session.id = recall.session_id
        where session.user_id = 'ada' and recall.status = 'pending'"""
    assert {one["id"] for one in rows(many, statement)} == {"ada waits", "ada repeats", "ada rests"}


def test_retrying_many_takes_the_last_that_failed_of_each_session_and_no_cancelled_one(db: psycopg.Connection) -> None:
    first, second = failed(db, "s"), failed(db, "s")
    call_one(db, "cancel_recall", session_id=recall(db, add(db, "t"))["session_id"])
    assert ids(call(db, "retry_recalls", recall_ids=[first, second])) == [second]
    assert recall(db, first)["status"] == "failed"
    assert call(db, "retry_recalls", session_id="t") == []
    (gone,) = rows(db, "select id from pgrecall.session_recalls where session_id = 't'")
    assert ids(call(db, "retry_recalls", recall_ids=[gone["id"]])) == [gone["id"]]


def test_retrying_what_has_failed_since_a_time_goes_by_when_it_ended(db: psycopg.Connection) -> None:
    before = failed(db, "s")
    set_clock(db, NOW + HOUR)
    after = failed(db, "t")
    change(db, before, internal_comment="touched later")
    found = call(db, "retry_recalls", recall_ids=[before, after], failed_since=NOW + MINUTE)
    assert ids(found) == [after]
    assert ids(call(db, "retry_recalls", recall_ids=[before, after], failed_since=NOW)) == [before]


def test_moving_many_leaves_out_what_has_no_such_time(db: psycopg.Connection) -> None:
    add_session(db, "s", "t", "u", user_id="ada")
    ends = add_recurring(db, "s", NOW + HOUR, end_at=NOW + 2 * HOUR)
    last = add(db, "t", datetime(9999, 1, 1, tzinfo=NOW.tzinfo))
    moved = add(db, "u", NOW + HOUR)
    found = call(db, "reschedule_recalls", user_id="ada", by=400 * DAY)
    assert ids(found) == [moved]
    assert found[0]["trigger_at"] == NOW + HOUR + 400 * DAY
    assert recall(db, ends)["trigger_at"] == NOW + HOUR
    assert recall(db, last)["trigger_at"].year == 9999


def test_moving_many_to_one_time(many: psycopg.Connection) -> None:
    found = call(many, "reschedule_recalls", user_id="ada", new_trigger_at=NOW + DAY)
    assert {one["trigger_at"] for one in found} == {NOW + DAY}
    assert call(many, "reschedule_recalls", user_id="ada", new_trigger_at=NOW + DAY) == []


@pytest.mark.parametrize("given", [
    {},
    {"new_trigger_at": NOW, "by": HOUR},
    {"by": timedelta(days=400000)},
    {"by": timedelta(days=-400000)},
    {"new_trigger_at": "infinity"},
    {"new_trigger_at": "-infinity"},
    {"new_trigger_at": "10000-01-01"},
])
def test_moving_many_needs_one_sensible_time(db: psycopg.Connection, given: Row) -> None:
    with refused(db, "PR005"):
        call(db, "reschedule_recalls", user_id="ada", **given)


def test_what_a_paused_session_or_user_covers_is_left_out_when_many_are_run_now(db: psycopg.Connection) -> None:
    add_session(db, "s", "t", user_id="ada")
    covered, free = add(db, "s", NOW + HOUR), add(db, "t", NOW + HOUR)
    call_one(db, "pause_session", session_id="s")
    assert ids(call(db, "run_recalls_now", user_id="ada")) == [free]
    call_one(db, "pause_user", user_id="ada")
    assert call(db, "run_recalls_now", recall_ids=[covered, free]) == []


# many at once


def test_two_that_change_many_lock_in_one_order_and_never_wait_for_each_other(connect: Connect) -> None:
    """Ten of them at once over the same rows, in any order that the ids are given in, beside claims and finishes."""
    db = connect()
    names = [f"r{number:02}" for number in range(30)]
    for name in names:
        add_session(db, name, user_id="ada")
        add_recurring(db, name, value(db, "select now() + interval '1 hour'"), id=name, interval_seconds=1)
    stop_at = time.monotonic() + 4
    works: list[Doing] = []

    def steer(seed: int) -> int:
        chance = random.Random(seed)
        connection = connect()
        done = 0
        while time.monotonic() < stop_at:
            function = chance.choice(sorted(BULK))
            more: dict[str, Any] = dict(BULK[function])
            if chance.random() < 0.5:
                more["recall_ids"] = chance.sample(names, 20)
            else:
                more["user_id"] = "ada"
            if function == "retry_recalls":
                more.setdefault("recall_ids", names)
            if function == "reschedule_recalls":
                more["by"] = timedelta(seconds=chance.choice([-1800, 1700]))
            call(connection, function, **more)
            done += 1
        return done

    def work(name: str) -> int:
        connection = connect()
        done = 0
        while time.monotonic() < stop_at:
            runs = claim(connection, name, up_to=5).runs
            for run in runs:
                finish(connection, run, "interrupted" if done % 3 else "success", retry=True, counted=False)
                done += 1
        return done

    works = [Doing(lambda seed=seed: steer(seed)) for seed in range(6)]  # type: ignore[misc]
    works += [Doing(lambda name=name: work(name)) for name in ("w1", "w2")]  # type: ignore[misc]
    done = [one.result() for one in works]
    assert all(count > 3 for count in done[:6]), done
    assert sum(done[6:]) > 10, done


def test_one_that_changes_many_waits_for_one_that_is_changed_and_sees_what_it_became(connect: Connect) -> None:
    db, other, bulk = connect(), connect(), connect()
    early = add(db, "s", NOW + HOUR)
    with other.transaction():
        call_one(other, "mark_cancelled", recall_id=early)
        cancelling = Doing(lambda: call(bulk, "cancel_recalls", recall_ids=[early]))
        wait_until_blocked(db, bulk.info.backend_pid)
    assert cancelling.result() == []


# free_session, for an operator


def test_an_operator_ends_a_stuck_hold_and_again_is_harmless(db: psycopg.Connection) -> None:
    late = add(db, "s")
    call_one(db, "hold_session", session_id="s", holder="a dead chat", lease=HOUR)
    assert len(claim(db).deferred) == 1
    assert call_one(db, "free_session", session_id="s")["free_session"] is True
    assert recall(db, late)["due_at"] == NOW
    assert call_one(db, "free_session", session_id="s")["free_session"] is False
    assert call_one(db, "free_session", session_id="nobody")["free_session"] is False
    run = claim_one(db)
    assert call_one(db, "free_session", session_id="s")["free_session"] is False, "a run that is alive keeps it"
    set_clock(db, NOW + SECOND)
    finish(db, run)
