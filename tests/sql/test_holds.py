"""Holds: a live chat, a run, the line, and what becomes of recalls that are put off because of them."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
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

LEASE = 30 * SECOND


@pytest.fixture
def db(db: psycopg.Connection) -> psycopg.Connection:
    """A connection in a transaction, at NOW, with the session s1."""
    set_clock(db, NOW)
    add_session(db, "s1")
    return db


def hold(db: psycopg.Connection, holder: str = "chat", session_id: str = "s1", **options: object) -> Row:
    return call_one(db, "hold_session", session_id=session_id, holder=holder, **options)


def free(db: psycopg.Connection, holder: str | None = "chat", session_id: str = "s1") -> bool:
    return bool(value(db, "select pgrecall.free_session(%s, %s)", session_id, holder))


def renew(db: psycopg.Connection, holder: str = "chat", lease: timedelta = LEASE) -> bool:
    return bool(value(db, "select pgrecall.renew_hold('s1', %s, %s)", holder, lease))


def put_off(db: psycopg.Connection, at: datetime | None = None) -> Row:
    """The only recall that a claim puts off."""
    if at is not None:
        set_clock(db, at)
    found = claim(db)
    assert found.runs == []
    (one,) = found.deferred
    return one


# Taking and letting go


def test_a_chat_gets_a_free_session_for_the_length_of_its_lease(db: psycopg.Connection) -> None:
    got = hold(db)
    assert (got["held"], got["kind"], got["holder"], got["since"], got["until"]) == (
        True,
        "chat",
        "chat",
        NOW,
        NOW + LEASE,
    )
    (shown,) = call(db, "get_holds")
    assert (shown["held_session_id"], shown["kind"], shown["holder"], shown["since"], shown["until"]) == (
        "s1",
        "chat",
        "chat",
        NOW,
        NOW + LEASE,
    )


def test_a_second_chat_is_refused_and_told_who_and_since_when(db: psycopg.Connection) -> None:
    hold(db, "web-1")
    set_clock(db, NOW + SECOND)
    with refused(db, "PR006") as caught:
        hold(db, "web-2")
    error = caught.value.diag
    assert "'s1' is held by the chat web-1 since Tue 2030-01-01 12:00:00+00:00 (UTC)" in (error.message_primary or "")
    assert "if_held => 'wait'" in (error.message_hint or "")
    told = json.loads(error.message_detail or "")
    assert (told["kind"], told["holder"], told["run_id"]) == ("chat", "web-1", None)
    assert datetime.fromisoformat(told["since"]) == NOW


def test_a_chat_is_refused_while_a_run_has_the_session_and_told_which(db: psycopg.Connection) -> None:
    name = add(db, "s1")
    run = claim_one(db, "w7")
    with refused(db, "PR006") as caught:
        hold(db)
    told = json.loads(caught.value.diag.message_detail or "")
    assert (told["kind"], told["holder"], told["run_id"], told["recall_id"]) == ("run", "w7", run["run_id"], name)
    finish(db, run)
    assert hold(db)["held"]


def test_the_same_holder_asking_again_renews(db: psycopg.Connection) -> None:
    hold(db)
    set_clock(db, NOW + 10 * SECOND)
    again = hold(db)
    assert (again["held"], again["since"], again["until"]) == (True, NOW, NOW + 40 * SECOND)


def test_a_hold_that_is_not_renewed_ends_by_itself(db: psycopg.Connection) -> None:
    hold(db, "web-1")
    set_clock(db, NOW + LEASE)
    assert call(db, "get_holds") == []
    assert hold(db, "web-2")["held"]
    assert not renew(db, "web-1")
    assert not free(db, "web-1")
    assert session(db, "s1")["holder"] == "web-2"


def test_a_renewal_that_comes_late_counts_if_nobody_came_between(db: psycopg.Connection) -> None:
    hold(db)
    set_clock(db, NOW + 2 * LEASE)
    assert renew(db)
    assert session(db, "s1")["held_until"] == NOW + 3 * LEASE


def test_only_its_holder_or_an_operator_frees_a_session(db: psycopg.Connection) -> None:
    hold(db, "web-1")
    assert not free(db, "web-2")
    assert free(db, None)
    assert not free(db, None)
    assert not free(db, None, "unknown")


def test_an_operator_does_not_free_a_session_from_a_run_that_is_alive(db: psycopg.Connection) -> None:
    add(db, "s1")
    run = claim_one(db)
    assert not free(db, None)
    assert session(db, "s1")["run_id"] == run["run_id"]


def test_an_operator_frees_what_is_left_of_a_run_whose_recall_is_gone(db: psycopg.Connection) -> None:
    add(db, "s1")
    claim_one(db)
    db.execute("delete from pgrecall.session_recalls")
    assert free(db, None)
    assert session(db, "s1")["holder"] is None


def test_an_unknown_session_cannot_be_held(db: psycopg.Connection) -> None:
    with refused(db, "PR002"):
        hold(db, session_id="unknown")


@pytest.mark.parametrize("given", [{"lease": "0"}, {"lease": "2 days"}, {"if_held": "steal"}])
def test_a_hold_that_makes_no_sense_is_refused(db: psycopg.Connection, given: Row) -> None:
    with refused(db, "PR005"):
        hold(db, **given)


# Recalls that come due meanwhile


def test_a_due_recall_waits_for_the_chat_with_a_reason_and_starts_when_it_ends(db: psycopg.Connection) -> None:
    hold(db, "web-1", lease=MINUTE * 5)
    name = add(db, "s1")
    waits = put_off(db)
    assert (waits["defer_reason"], waits["deferrals"]) == ("session held by the chat web-1", 1)
    shown = recall(db, name)
    assert (shown["due_at"], shown["deferred_since"]) == (NOW + MINUTE, NOW)
    set_clock(db, NOW + 10 * SECOND)
    free(db, "web-1")
    assert recall(db, name)["due_at"] == NOW
    assert claim(db).recall_ids == [name]


def test_a_recall_is_tried_again_when_the_lease_of_a_dead_chat_ends(db: psycopg.Connection) -> None:
    hold(db, lease=5 * SECOND)
    name = add(db, "s1")
    put_off(db)
    assert recall(db, name)["due_at"] == NOW + 5 * SECOND
    set_clock(db, NOW + 5 * SECOND)
    assert claim(db).recall_ids == [name]
    assert session(db, "s1")["held_until"] is None


def test_a_long_chat_puts_a_recall_off_once_a_minute(db: psycopg.Connection) -> None:
    hold(db, lease=HOUR)
    name = add(db, "s1")
    put_off(db)
    assert put_off(db, NOW + MINUTE)["deferrals"] == 2
    assert recall(db, name)["deferred_since"] == NOW


def test_the_ledger_tells_how_often_and_why_a_run_was_put_off(db: psycopg.Connection) -> None:
    hold(db)
    name = add(db, "s1")
    put_off(db)
    free(db)
    finish(db, claim_one(db))
    (run,) = ledger(db, name)
    assert (run["deferrals"], run["defer_reason"]) == (1, "session held by the chat chat")
    assert recall(db, name)["deferred_since"] is None


# idle_for_seconds


def test_a_recall_waits_until_the_session_has_been_quiet(db: psycopg.Connection) -> None:
    hold(db)
    set_clock(db, NOW + 10 * SECOND)
    free(db)
    name = add(db, "s1", idle_for_seconds=300)
    assert put_off(db)["defer_reason"] == "session not quiet for 300 s"
    assert recall(db, name)["due_at"] == NOW + 310 * SECOND
    set_clock(db, NOW + 310 * SECOND)
    assert claim(db).recall_ids == [name]


def test_quiet_begins_anew_when_a_chat_ends_and_costs_no_look_before(db: psycopg.Connection) -> None:
    hold(db, lease=HOUR)
    name = add(db, "s1", idle_for_seconds=300)
    put_off(db)
    set_clock(db, NOW + 10 * SECOND)
    free(db)
    assert recall(db, name)["due_at"] == NOW + 310 * SECOND


@pytest.mark.parametrize(
    "spoke",
    [
        "select pgrecall.touch_session('s1')",
        """select pgrecall.append_messages('s1', '[{"role": "user", "content": "Hello."}]')""",
    ],
)
def test_speaking_without_a_hold_counts_too(db: psycopg.Connection, spoke: str) -> None:
    db.execute(spoke.encode())
    db.execute("set constraints all immediate")  # as at the commit
    add(db, "s1", idle_for_seconds=60)
    assert put_off(db)["defer_reason"] == "session not quiet for 60 s"


def test_what_the_agent_says_is_not_somebody_speaking(db: psycopg.Connection) -> None:
    db.execute("""select pgrecall.append_messages('s1', '[{"role": "assistant", "content": "Hello."}]')""")
    add(db, "s1")
    said = '[{"role": "user", "content": "asked by the agent itself"}, {"role": "assistant", "content": "Done."}]'
    finish(db, claim_one(db), messages=said)
    db.execute("set constraints all immediate")  # as at the commit
    name = add(db, "s1", idle_for_seconds=60)
    assert claim(db).recall_ids == [name]


# max_defer_seconds


def test_who_waited_long_enough_no_longer_waits_for_quiet(db: psycopg.Connection) -> None:
    value(db, "select pgrecall.touch_session('s1')")
    name = add(db, "s1", idle_for_seconds=300, max_defer_seconds=100)
    put_off(db)
    assert recall(db, name)["due_at"] == NOW + 100 * SECOND
    set_clock(db, NOW + 100 * SECOND)
    assert claim(db).recall_ids == [name]


def test_a_chat_that_goes_on_for_too_long_is_not_renewed_and_the_recall_runs(db: psycopg.Connection) -> None:
    hold(db)
    name = add(db, "s1", max_defer_seconds=20)
    put_off(db)
    set_clock(db, NOW + 15 * SECOND)
    assert renew(db)
    put_off(db, NOW + 20 * SECOND)
    assert session(db, "s1")["wanted_by"] == name
    set_clock(db, NOW + 25 * SECOND)
    assert not renew(db)
    assert call_one(db, "hold_session", session_id="s1", holder="chat")["until"] == NOW + 45 * SECOND
    with refused(db, "PR006"):
        hold(db, "other")
    set_clock(db, NOW + 45 * SECOND)
    assert claim(db).recall_ids == [name]


def test_a_recall_that_waited_long_enough_comes_before_the_line(db: psycopg.Connection) -> None:
    hold(db)
    name = add(db, "s1", max_defer_seconds=10)
    put_off(db)
    put_off(db, NOW + 10 * SECOND)
    assert not hold(db, "other", if_held="wait")["held"]
    free(db)
    assert session(db, "s1")["holder"] is None
    assert claim(db).recall_ids == [name]


def test_a_recall_that_is_not_to_be_late_is_left_out(db: psycopg.Connection) -> None:
    hold(db, lease=HOUR)
    name = add(db, "s1", max_defer_seconds=20, on_max_defer="skip")
    put_off(db)
    put_off(db, NOW + 20 * SECOND)
    assert recall(db, name)["status"] == "cancelled"
    (left_out,) = ledger(db, name)
    assert (left_out["outcome"], left_out["deferrals"]) == ("skipped", 2)
    assert left_out["reason"] == "put off for 20 s: session held by the chat chat"
    assert session(db, "s1")["wanted_by"] is None


def test_a_recurring_recall_that_is_not_to_be_late_goes_on_to_its_next_time(db: psycopg.Connection) -> None:
    hold(db, lease=HOUR)
    name = add_recurring(db, "s1", max_defer_seconds=20, on_max_defer="skip")
    put_off(db)
    put_off(db, NOW + 20 * SECOND)
    shown = recall(db, name)
    assert (shown["status"], shown["trigger_at"], shown["deferrals"]) == ("pending", NOW + MINUTE, 0)
    assert (shown["deferred_since"], shown["due_at"]) == (None, NOW + MINUTE)
    assert outcomes(db, name) == ["skipped"]


# The line


def test_chats_get_the_session_in_the_order_in_which_they_came(db: psycopg.Connection) -> None:
    hold(db, "first")
    second = hold(db, "second", if_held="wait")
    third = hold(db, "third", if_held="wait")
    assert [(one["held"], one["place"]) for one in (second, third)] == [(False, 1), (False, 2)]
    assert hold(db, "third", if_held="wait")["place"] == 2
    free(db, "first")
    assert session(db, "s1")["holder"] == "second"
    assert not hold(db, "third", if_held="wait")["held"]
    assert hold(db, "second", if_held="wait")["held"]
    free(db, "second")
    assert hold(db, "third", if_held="wait")["held"]
    assert rows(db, "select * from pgrecall.session_waiters") == []


def test_a_chat_in_line_comes_before_a_recall_that_waits(db: psycopg.Connection) -> None:
    add(db, "s1")
    run = claim_one(db)
    later = add(db, "s1")
    put_off(db)
    hold(db, if_held="wait")
    finish(db, run)
    assert session(db, "s1")["holder"] == "chat"
    assert recall(db, later)["due_at"] == NOW + LEASE
    free(db)
    assert claim(db).recall_ids == [later]


def test_a_recall_does_not_wait_a_minute_for_a_chat_that_died_in_the_line(db: psycopg.Connection) -> None:
    add(db, "s1")
    run = claim_one(db)
    later = add(db, "s1")
    put_off(db)
    hold(db, if_held="wait", lease=10 * SECOND)
    finish(db, run)
    assert recall(db, later)["due_at"] == NOW + 10 * SECOND
    set_clock(db, NOW + 10 * SECOND)
    assert claim(db).recall_ids == [later]


def test_an_interrupted_recall_does_not_wait_a_minute_for_a_chat_that_died(db: psycopg.Connection) -> None:
    name = add(db, "s1")
    run = claim_one(db)
    hold(db, if_held="interrupt", lease=10 * SECOND)
    finish(db, run, "interrupted")
    assert recall(db, name)["due_at"] == NOW + 10 * SECOND


def test_a_run_does_not_take_a_session_for_which_a_chat_waits(db: psycopg.Connection) -> None:
    """The hold before has just ended by itself, and the chat in line has not heard of it yet."""
    hold(db, "first", lease=5 * SECOND)
    hold(db, "second", if_held="wait")
    name = add(db, "s1")
    set_clock(db, NOW + 6 * SECOND)
    assert put_off(db)["defer_reason"] == "a chat waits for the session"
    with refused(db, "PR006") as caught:
        hold(db, "third")
    assert json.loads(caught.value.diag.message_detail or "")["kind"] == "line"
    assert hold(db, "second", if_held="wait")["held"]
    free(db, "second")
    assert claim(db).recall_ids == [name]


def test_a_chat_that_died_in_line_is_forgotten(db: psycopg.Connection) -> None:
    hold(db, "first", lease=HOUR)
    hold(db, "second", if_held="wait", lease=5 * SECOND)
    hold(db, "third", if_held="wait", lease=HOUR)
    set_clock(db, NOW + 5 * SECOND)
    free(db, "first")
    assert session(db, "s1")["holder"] == "third"


def test_a_chat_that_leaves_the_line_is_not_waited_for(db: psycopg.Connection) -> None:
    hold(db, "first")
    hold(db, "second", if_held="wait")
    assert free(db, "second")
    assert session(db, "s1")["line_until"] is None
    free(db, "first")
    assert session(db, "s1")["holder"] is None


# Interrupting


def interrupted(db: psycopg.Connection, **columns: Any) -> tuple[str, Row]:
    """A recall whose run a chat has interrupted, and the run."""
    name = add(db, "s1", **columns)
    run = claim_one(db)
    waits = hold(db, "web-1", if_held="interrupt")
    assert (waits["held"], waits["kind"], waits["run_id"]) == (False, "run", run["run_id"])
    assert value(db, "select interrupted_by from pgrecall.get_holds()") == "web-1"
    return name, run


def test_an_interrupted_run_frees_the_session_for_the_chat_and_runs_again_after_it(db: psycopg.Connection) -> None:
    name, run = interrupted(db)
    finish(db, run, "interrupted", reason="told to stop")
    assert session(db, "s1")["holder"] == "web-1"
    (ended,) = ledger(db, name)
    assert (ended["outcome"], ended["reason"]) == ("interrupted", "interrupted by the chat web-1")
    shown = recall(db, name)
    assert (shown["status"], shown["attempt"], shown["deferrals"]) == ("pending", 0, 1)
    assert claim(db).runs == []
    free(db, "web-1")
    assert claim_one(db)["attempt"] == 1


def test_an_interrupted_run_that_is_not_to_come_back_does_not(db: psycopg.Connection) -> None:
    name, run = interrupted(db, on_interrupt="skip")
    finish(db, run, "interrupted", reason="told to stop")
    assert recall(db, name)["status"] == "cancelled"
    assert outcomes(db, name) == ["interrupted"]


def test_an_interrupted_recurring_run_that_is_not_to_come_back_goes_on_to_its_next_time(db: psycopg.Connection) -> None:
    name, run = interrupted(db, on_interrupt="skip", call_type="recurring", interval_seconds=60)
    finish(db, run, "interrupted", reason="told to stop")
    shown = recall(db, name)
    assert (shown["status"], shown["trigger_at"], shown["failures"]) == ("pending", NOW + MINUTE, 0)


def test_a_run_that_succeeds_before_it_hears_of_the_interruption_has_succeeded(db: psycopg.Connection) -> None:
    name, run = interrupted(db)
    finish(db, run, "success")
    assert (recall(db, name)["status"], session(db, "s1")["holder"]) == ("fired", "web-1")


def test_a_cancelled_recall_stays_cancelled_though_its_run_was_interrupted(db: psycopg.Connection) -> None:
    name, run = interrupted(db)
    call(db, "mark_cancelled", recall_id=name)
    finish(db, run, "interrupted", reason="told to stop")
    assert recall(db, name)["status"] == "cancelled"
    assert session(db, "s1")["holder"] == "web-1"


def test_a_worker_that_missed_the_word_learns_of_it_when_it_renews(db: psycopg.Connection) -> None:
    add(db, "s1")
    run = claim_one(db)
    assert call(db, "renew", worker_id="w1") == [{"renew": run["run_id"]}]
    hold(db, if_held="interrupt")
    assert call(db, "renew", worker_id="w1") == []


def test_another_chat_is_not_interrupted(db: psycopg.Connection) -> None:
    hold(db, "first")
    hold(db, "second", if_held="interrupt")
    assert session(db, "s1")["interrupted_by"] is None
    assert renew(db, "first")


# Limits and pauses


def test_a_session_has_only_its_runs_of_a_day(db: psycopg.Connection) -> None:
    db.execute("update pgrecall.settings set max_runs_per_day = 2")
    for minute in range(2):
        set_clock(db, NOW + minute * MINUTE)
        add(db, "s1", NOW)
        finish(db, claim_one(db))
    name = add(db, "s1", NOW)
    assert put_off(db)["defer_reason"] == "session has had its runs of a day"
    assert recall(db, name)["due_at"] == NOW + 24 * HOUR
    set_clock(db, NOW + 24 * HOUR)
    assert claim(db).recall_ids == [name]


def test_a_session_may_have_a_limit_of_its_own(db: psycopg.Connection) -> None:
    db.execute("update pgrecall.settings set max_runs_per_day = 1")
    db.execute("update pgrecall.sessions set max_runs_per_day = 2 where id = 's1'")
    for _ in range(2):
        add(db, "s1", NOW)
        finish(db, claim_one(db))
    add(db, "s1", NOW)
    put_off(db)


@pytest.mark.parametrize(
    "change",
    [
        "update pgrecall.settings set max_runs_per_day = 2",
        "update pgrecall.settings set max_runs_per_day = null",
        "update pgrecall.sessions set max_runs_per_day = 2 where id = 's1'",
    ],
)
def test_a_raised_limit_counts_at_once(db: psycopg.Connection, change: str) -> None:
    db.execute("update pgrecall.settings set max_runs_per_day = 1")
    add(db, "s1", NOW)
    finish(db, claim_one(db))
    name = add(db, "s1", NOW)
    put_off(db)
    db.execute(change.encode())
    assert claim(db).recall_ids == [name]


@pytest.mark.parametrize("change", ["idle_for_seconds = null", "max_defer_seconds = 1"])
def test_new_terms_of_waiting_count_at_once(db: psycopg.Connection, change: str) -> None:
    value(db, "select pgrecall.touch_session('s1')")
    name = add(db, "s1", idle_for_seconds=300)
    put_off(db)
    set_clock(db, NOW + 2 * SECOND)
    db.execute(f"update pgrecall.session_recalls set {change}".encode())
    assert claim(db).recall_ids == [name]


def test_a_raised_limit_of_all_leaves_what_a_limit_of_its_own_put_off(db: psycopg.Connection) -> None:
    db.execute("update pgrecall.sessions set max_runs_per_day = 1 where id = 's1'")
    add(db, "s1", NOW)
    finish(db, claim_one(db))
    name = add(db, "s1", NOW)
    put_off(db)
    db.execute("update pgrecall.settings set max_runs_per_day = 5")
    assert recall(db, name)["due_at"] == NOW + 24 * HOUR
    db.execute("update pgrecall.sessions set max_runs_per_day = 1 where id = 's1'")
    assert recall(db, name)["due_at"] == NOW + 24 * HOUR


def test_a_changed_limit_makes_only_that_due_what_a_limit_put_off(db: psycopg.Connection) -> None:
    hold(db)
    name = add(db, "s1", NOW)
    until = put_off(db)["defer_reason"], recall(db, name)["due_at"]
    db.execute("update pgrecall.settings set max_runs_per_day = 5")
    assert (recall(db, name)["defer_reason"], recall(db, name)["due_at"]) == until


def test_a_recurring_recall_pauses_after_its_failures_in_a_row(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1", pause_after_failures=2)
    for minute, outcome in enumerate(["error", "success", "error", "error"]):
        set_clock(db, NOW + minute * MINUTE)
        finish(db, claim_one(db), outcome, error="no luck")
    shown = recall(db, name)
    assert (shown["status"], shown["failures"], shown["due_at"]) == ("pending", 2, None)
    assert shown["pause_reason"] == "2 failures in a row, the last: no luck"
    set_clock(db, NOW + HOUR)
    assert claim(db).runs == []
    call(db, "resume_recall", recall_id=name)
    assert claim_one(db)["nominal_at"] == NOW + 4 * MINUTE
    assert recall(db, name)["failures"] == 0


def test_a_paused_recall_is_not_due_until_its_pause_ends(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    paused = call_one(db, "pause_recall", recall_id=name, reason="holiday", paused_until=NOW + HOUR)
    assert (paused["due_at"], paused["pause_reason"]) == (NOW + HOUR, "holiday")
    assert claim(db).runs == []
    set_clock(db, NOW + HOUR)
    assert claim(db).recall_ids == [name]
    assert recall(db, name)["paused_at"] is None


def test_a_recall_that_is_paused_while_it_runs_stays_paused(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1")
    run = claim_one(db)
    call(db, "pause_recall", recall_id=name)
    finish(db, run)
    shown = recall(db, name)
    assert (shown["status"], shown["due_at"], shown["paused_at"]) == ("pending", None, NOW)


def test_nothing_runs_while_all_is_paused(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    call(db, "pause_all", reason="an incident", paused_until=NOW + HOUR)
    found = claim(db)
    assert (found.runs, found.next_due_at, found.settled) == ([], NOW + HOUR, True)
    call(db, "resume_all")
    assert claim(db).recall_ids == [name]


def test_a_pause_of_all_ends_by_itself(db: psycopg.Connection) -> None:
    name = add(db, "s1", NOW)
    call(db, "pause_all", paused_until=NOW + HOUR)
    set_clock(db, NOW + HOUR)
    assert claim(db).recall_ids == [name]


def test_the_register_is_left_alone_while_all_is_paused(db: psycopg.Connection) -> None:
    """Nobody waits for what is due in a pause, so nothing may say that somebody does."""
    claim(db)
    before = value(db, "select last_value from pgrecall.armed_until")
    call(db, "pause_all")
    add(db, "s1", NOW + HOUR)
    claim(db)
    assert value(db, "select last_value from pgrecall.armed_until") == before


@pytest.mark.parametrize("until", [NOW, "infinity"])
def test_a_pause_must_end_in_the_future(db: psycopg.Connection, until: object) -> None:
    with refused(db, "PR005"):
        call(db, "pause_all", paused_until=until)


def test_the_settings_cannot_be_lost(db: psycopg.Connection) -> None:
    for statement in ("delete from pgrecall.settings", "truncate pgrecall.settings"):
        with refused(db, "PR005"):
            db.execute(statement.encode())
    with refused(db, "23505"):
        db.execute("insert into pgrecall.settings default values")


# What the model is told, and what the session gets


def test_the_model_is_told_when_how_late_and_that_nobody_is_there(db: psycopg.Connection) -> None:
    db.execute("update pgrecall.sessions set time_zone = 'Europe/Paris' where id = 's1'")
    add(db, "s1", NOW - 250 * SECOND)
    text = claim_one(db)["model_text"]
    assert text.startswith("[Scheduled recall] go on\n")
    assert "Scheduled for: Tue 2030-01-01 12:55:50+01:00 (Europe/Paris)" in text
    assert "Now: Tue 2030-01-01 13:00:00+01:00 (Europe/Paris)" in text
    assert "Late by: 4 min 10 s" in text
    assert "Attempt: 1 of 3" in text
    assert "Nobody is connected" in text
    assert "neither consent" in text
    stored = rows(db, "select content, model_text from pgrecall.session_messages")
    assert stored == [{"content": "[Scheduled recall] go on", "model_text": text}]


def test_a_further_attempt_tells_the_model_its_own_number_in_the_same_message(db: psycopg.Connection) -> None:
    add(db, "s1")
    finish(db, claim_one(db), "error", retry=True, retry_after=timedelta(0))
    text = claim_one(db)["model_text"]
    assert "Attempt: 2 of 3" in text
    assert [one["model_text"] for one in rows(db, "select model_text from pgrecall.session_messages")] == [text]


def test_the_host_can_replace_the_text(db: psycopg.Connection) -> None:
    db.execute("update pgrecall.settings set message_template = 'It is {now}. {message} Next: {next}.'")
    add_recurring(db, "s1", additional_context_message="Look at {attempt}.")
    assert claim_one(db)["model_text"] == (
        "It is Tue 2030-01-01 12:00:00+00:00 (UTC). Look at {attempt}. Next: Tue 2030-01-01 12:01:00+00:00 (UTC)."
    )


@pytest.mark.parametrize("text", ["no message", "{message} {tomorrow}", "{message}" + "x" * 20000])
def test_a_template_that_cannot_be_filled_in_is_refused(db: psycopg.Connection, text: str) -> None:
    assert value(db, "select pgrecall.message_template_error(%s)", text)
    with refused(db, "23514") as caught:
        db.execute("update pgrecall.settings set message_template = %s", [text])
    assert caught.value.diag.constraint_name == "message_template_must_be_valid"


def test_the_silent_token_means_success_with_nothing_to_say(db: psycopg.Connection) -> None:
    name = add(db, "s1")
    finish(db, claim_one(db), reply=" [SILENT]\n", append_reply=True)
    assert (outcomes(db, name), recall(db, name)["status"]) == (["silent"], "fired")
    assert [one["role"] for one in rows(db, "select role from pgrecall.session_messages")] == ["system"]


def test_the_messages_of_a_run_are_there_once_in_order_with_ids_of_the_occurrence(db: psycopg.Connection) -> None:
    add(db, "s1")
    run = claim_one(db)
    said = [
        {"role": "assistant", "content": "", "in_history": False, "metadata": {"call": 1}},
        {"role": "tool", "content": "42", "in_history": False},
        {"role": "assistant", "content": "It is 42."},
    ]
    for _ in range(2):
        finish(db, run, messages=json.dumps(said), reply="It is 42.", append_reply=True)
    stored = rows(db, "select * from pgrecall.session_messages order by position")
    injected = stored[0]["id"]
    assert [(one["id"], one["role"], one["in_history"]) for one in stored] == [
        (injected, "system", True),
        (f"{injected}:1", "assistant", False),
        (f"{injected}:2", "tool", False),
        (f"{injected}:reply", "assistant", True),
    ]
    assert stored[1]["metadata"]["call"] == 1
    assert stored[1]["metadata"]["run_id"] == run["run_id"]


def test_a_run_that_failed_leaves_no_messages(db: psycopg.Connection) -> None:
    add(db, "s1")
    finish(db, claim_one(db), "error", messages='[{"role": "assistant", "content": "Half"}]')
    assert [one["role"] for one in rows(db, "select role from pgrecall.session_messages")] == ["system"]


@pytest.mark.parametrize("messages", ['{"role": "user"}', "[1]", '[{"role": "user", "in_history": "perhaps"}]'])
def test_messages_that_are_none_are_refused_and_the_run_goes_on(db: psycopg.Connection, messages: str) -> None:
    name = add(db, "s1")
    run = claim_one(db)
    with refused(db, "PR005"):
        finish(db, run, messages=messages)
    assert recall(db, name)["run_id"] == run["run_id"]
