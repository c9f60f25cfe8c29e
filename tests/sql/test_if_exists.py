"""schedule_recall(if_exists => …): what becomes of a session's pending recall, also when many ask at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import psycopg
import pytest
from sqltools import (
    HOUR,
    NOW,
    Doing,
    Row,
    add,
    add_recurring,
    add_session,
    call_one,
    claim,
    claim_one,
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


def ask(db: psycopg.Connection, if_exists: str | None = "replace", **arguments: object) -> Row:
    """Ask for a recall in session s1."""
    given = {"session_id": "s1", "additional_context_message": "anew", "trigger_at": NOW + HOUR, **arguments}
    return call_one(db, "schedule_recall", if_exists=if_exists, **given)


@pytest.fixture
def db(db: psycopg.Connection) -> psycopg.Connection:
    """The connection, at the time NOW."""
    set_clock(db, NOW)
    return db


@pytest.fixture
def two(database: str) -> Iterator[tuple[psycopg.Connection, psycopg.Connection, psycopg.Connection]]:
    """Two connections with transactions of their own, and one that only looks; session s1 exists."""
    with ExitStack() as open_ones:
        first, second, looking = (open_ones.enter_context(psycopg.connect(database, autocommit=True)) for _ in range(3))
        set_clock(first, NOW)
        add_session(first, "s1")
        yield first, second, looking


def live(db: psycopg.Connection) -> list[str]:
    """Return the recalls of s1 that stand for the index, by id."""
    return [
        one["id"]
        for one in rows(
            db,
            """select id from pgrecall.session_recalls where session_id = 's1'
            and (status = 'pending' or (status = 'running' and call_type = 'recurring'))""",
        )
    ]


# One after the other


@pytest.mark.parametrize("if_exists", ["raise", "replace", "keep"])
def test_a_session_without_a_pending_recall_gets_one_whatever_was_said(db: psycopg.Connection, if_exists: str) -> None:
    add_session(db, "s1")
    made = ask(db, if_exists, id="mine")
    assert (made["id"], made["status"]) == ("mine", "pending")


@pytest.mark.parametrize("if_exists", [None, "", "Replace", "overwrite"])
def test_another_word_is_refused_also_if_nothing_is_pending(db: psycopg.Connection, if_exists: str | None) -> None:
    add_session(db, "s1")
    with refused(db, "PR005") as caught:
        ask(db, if_exists)
    assert "must be raise, replace or keep" in str(caught.value)


def test_raise_is_the_default_and_tells_of_the_others(db: psycopg.Connection) -> None:
    add(db, "s1", NOW + HOUR)
    with refused(db, "PR001") as caught:
        call_one(db, "schedule_recall", session_id="s1", additional_context_message="anew")
    assert "if_exists => 'replace' or 'keep'" in str(caught.value.diag.message_hint)


def test_keep_returns_the_pending_recall_as_it_is(db: psycopg.Connection) -> None:
    old = add(db, "s1", NOW + HOUR, additional_context_message="first", internal_comment="mine")
    before = recall(db, old)
    assert ask(db, "keep", id="new", trigger_at=NOW) == before
    assert recall(db, old) == before


def test_replace_cancels_the_pending_recall_and_its_ledger_says_for_which(db: psycopg.Connection) -> None:
    old = add(db, "s1", NOW + HOUR, additional_context_message="first")
    new = ask(db, "replace", interval_seconds=60)
    assert new["id"] != old
    assert (new["status"], new["call_type"], new["additional_context_message"]) == ("pending", "recurring", "anew")
    assert recall(db, old)["status"] == "cancelled"
    (left_out,) = ledger(db, old)
    assert (left_out["outcome"], left_out["nominal_at"]) == ("skipped", NOW + HOUR)
    assert left_out["reason"] == f"replaced by recall {new['id']}"


def test_replace_leaves_nothing_of_the_old_ones_pause_and_deferral(db: psycopg.Connection) -> None:
    old = add(db, "s1", NOW, deferrals=3, not_before=NOW + HOUR, defer_reason="held", attempt=2, failures=2)
    call_one(db, "pause_recall", recall_id=old, reason="holidays")
    new = ask(db)
    assert (new["paused_at"], new["not_before"], new["attempt"], new["failures"]) == (None, None, 0, 0)


@pytest.mark.parametrize("if_exists", ["replace", "keep"])
def test_a_recall_that_runs_once_does_not_count(db: psycopg.Connection, if_exists: str) -> None:
    old = add(db, "s1")
    run = claim_one(db)
    assert ask(db, if_exists)["id"] != old
    assert finish(db, run)["accepted"]
    assert (recall(db, old)["status"], outcomes(db, old)) == ("fired", ["success"])


def test_a_recurring_recall_that_runs_is_kept(db: psycopg.Connection) -> None:
    old = add_recurring(db, "s1")
    claim_one(db)
    assert ask(db, "keep")["id"] == old


def test_a_recurring_recall_that_is_replaced_while_it_runs_ends_with_this_run(db: psycopg.Connection) -> None:
    """The run may be the very one that asks: it is not stopped."""
    old = add_recurring(db, "s1")
    run = claim_one(db)
    new = ask(db, "replace", interval_seconds=3600)
    assert recall(db, old)["status"] == "running"
    assert finish(db, run)["accepted"]
    assert (recall(db, old)["status"], outcomes(db, old)) == ("fired", ["success"])
    assert live(db) == [new["id"]]


def test_a_failed_replace_leaves_the_old_recall_alone(db: psycopg.Connection) -> None:
    old = add(db, "s1", NOW + HOUR)
    before = recall(db, old)
    for wrong in ({"max_attempts": 0}, {"id": old}, {"call_type": "daily"}, {"additional_context_message": " "}):
        with pytest.raises(psycopg.Error), db.transaction():
            ask(db, "replace", **wrong)
    assert recall(db, old) == before
    assert ledger(db, old) == []


def test_an_unknown_session_is_told_whatever_was_said(db: psycopg.Connection) -> None:
    for if_exists in ("raise", "replace", "keep"):
        with refused(db, "PR002"):
            ask(db, if_exists, session_id="nobody")


@pytest.mark.parametrize("if_exists", ["replace", "keep"])
def test_a_known_idempotency_key_wins(db: psycopg.Connection, if_exists: str) -> None:
    add_session(db, "s1")
    first = ask(db, idempotency_key="k")
    assert ask(db, if_exists, idempotency_key="k", additional_context_message="other") == first
    other = ask(db, "replace")
    assert ask(db, if_exists, idempotency_key="k")["id"] == first["id"], "also when that one has ended"
    assert live(db) == [other["id"]]


# At once


def test_replace_waits_for_an_insert_that_is_not_committed_and_replaces_it(two: Any) -> None:
    first, second, looking = two
    with first.transaction():
        theirs = add(first, "s1", NOW + HOUR)
        asking = Doing(lambda: ask(second))
        wait_until_blocked(looking, second.info.backend_pid)
    ours = asking.result()["id"]
    assert live(looking) == [ours]
    assert recall(looking, theirs)["status"] == "cancelled"


def test_keep_waits_for_an_insert_that_is_not_committed_and_returns_it(two: Any) -> None:
    first, second, looking = two
    with first.transaction():
        theirs = add(first, "s1", NOW + HOUR)
        asking = Doing(lambda: ask(second, "keep"))
        wait_until_blocked(looking, second.info.backend_pid)
    assert asking.result()["id"] == theirs
    assert live(looking) == [theirs]


@pytest.mark.parametrize("if_exists", ["replace", "keep"])
def test_an_insert_that_is_rolled_back_was_never_there(two: Any, if_exists: str) -> None:
    first, second, looking = two
    with first.transaction(force_rollback=True):
        add(first, "s1", NOW + HOUR)
        asking = Doing(lambda: ask(second, if_exists, id="mine"))
        wait_until_blocked(looking, second.info.backend_pid)
    assert asking.result()["id"] == "mine"


def test_of_two_replaces_at_once_the_later_one_stands(two: Any) -> None:
    first, second, looking = two
    old = add(first, "s1", NOW + HOUR)
    with first.transaction():
        theirs = ask(first)["id"]
        asking = Doing(lambda: ask(second))
        wait_until_blocked(looking, second.info.backend_pid)
    ours = asking.result()["id"]
    assert live(looking) == [ours]
    assert [one["reason"] for one in ledger(looking, old)] == [f"replaced by recall {theirs}"]
    assert recall(looking, old)["last_error"] == f"replaced by recall {theirs}"
    assert [one["reason"] for one in ledger(looking, theirs)] == [f"replaced by recall {ours}"]


def test_of_two_replaces_at_once_with_one_key_the_second_gets_the_firsts(two: Any) -> None:
    first, second, looking = two
    add(first, "s1", NOW + HOUR)
    with first.transaction():
        theirs = ask(first, idempotency_key="k")["id"]
        asking = Doing(lambda: ask(second, idempotency_key="k"))
        wait_until_blocked(looking, second.info.backend_pid)
    assert asking.result()["id"] == theirs
    assert ledger(looking, theirs) == []


def test_a_claim_that_comes_first_keeps_its_run(two: Any) -> None:
    first, second, looking = two
    old = add(first, "s1")
    with first.transaction():
        run = claim_one(first)
        asking = Doing(lambda: ask(second))
        wait_until_blocked(looking, second.info.backend_pid)
    ours = asking.result()["id"]
    assert live(looking) == [ours]
    assert recall(looking, old)["status"] == "running"
    assert finish(first, run)["accepted"]
    assert (recall(looking, old)["status"], outcomes(first, old)) == ("fired", ["success"])


def test_a_claim_that_comes_first_keeps_its_run_of_a_recurring_recall(two: Any) -> None:
    first, second, looking = two
    old = add_recurring(first, "s1")
    with first.transaction():
        run = claim_one(first)
        asking = Doing(lambda: ask(second))
        wait_until_blocked(looking, second.info.backend_pid)
    new = asking.result()["id"]
    assert finish(first, run)["accepted"]
    assert outcomes(first, old) == ["success"]
    assert live(looking) == [new]


def test_a_worker_does_not_claim_what_is_being_replaced(two: Any) -> None:
    first, second, _ = two
    old = add(first, "s1")
    with first.transaction():
        new = ask(first, trigger_at=NOW)["id"]
        assert claim(second).runs == []
    assert claim(second).recall_ids == [new]
    assert outcomes(first, old) == ["skipped"]


def replace_ten_times(db: psycopg.Connection) -> list[str]:
    """Replace whatever is there, again and again."""
    return [ask(db)["id"] for _ in range(10)]


def test_many_replaces_at_once_all_succeed_and_each_leaves_a_ledger_row(database: str) -> None:
    with ExitStack() as open_ones:
        everybody = [open_ones.enter_context(psycopg.connect(database, autocommit=True)) for _ in range(12)]
        add_session(everybody[0], "s1")
        asking = [Doing(partial(replace_ten_times, db)) for db in everybody]
        made = [name for one in asking for name in one.result()]
        db = everybody[0]
        assert len(set(made)) == 120
        assert value(db, "select count(*) from pgrecall.session_recalls where status = 'cancelled'") == 119
        assert value(db, "select count(*) from pgrecall.recall_runs where outcome = 'skipped'") == 119
        assert len(live(db)) == 1


def test_many_keeps_at_once_agree(database: str) -> None:
    with ExitStack() as open_ones:
        everybody = [open_ones.enter_context(psycopg.connect(database, autocommit=True)) for _ in range(8)]
        add_session(everybody[0], "s1")
        asking = [Doing(partial(ask, db, "keep")) for db in everybody]
        assert len({one.result()["id"] for one in asking}) == 1


# In the caller's transaction


def test_replace_joins_the_callers_transaction(two: Any) -> None:
    first, _, looking = two
    old = add(first, "s1", NOW + HOUR)
    with first.transaction(force_rollback=True):
        ask(first)
    assert live(looking) == [old]
    assert ledger(looking, old) == []


def test_one_transaction_may_replace_again_and_again(db: psycopg.Connection) -> None:
    add_session(db, "s1")
    made = [ask(db)["id"] for _ in range(3)]
    assert live(db) == made[-1:]


@pytest.mark.parametrize("isolation", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
@pytest.mark.parametrize("if_exists", ["replace", "keep"])
def test_a_transaction_that_cannot_see_the_newer_recall_is_told_to_begin_again(
    two: Any, isolation: psycopg.IsolationLevel, if_exists: str
) -> None:
    first, second, _ = two
    second.isolation_level = isolation
    with second.transaction(force_rollback=True):
        value(second, "select count(*) from pgrecall.sessions")
        theirs = add(first, "s1", NOW + HOUR)
        with refused(second, "40001") as caught:
            ask(second, if_exists)
    assert "after this transaction began" in str(caught.value)
    assert "again" in str(caught.value.diag.message_hint)
    assert ask(second, "keep")["id"] == theirs


def test_a_snapshot_that_is_new_enough_replaces_and_keeps(two: Any) -> None:
    first, second, _ = two
    old = add(first, "s1", NOW + HOUR)
    second.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    assert ask(second, "keep")["id"] == old
    assert ask(second)["id"] != old
