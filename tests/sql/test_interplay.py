"""What one part of the SQL must not do to another: locks in their order, and one bad row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
from sqltools import (
    HOUR,
    MINUTE,
    NOW,
    add,
    add_session,
    call,
    claim,
    claim_one,
    finish,
    outcomes,
    recall,
    session,
    set_clock,
    value,
)


@pytest.fixture
def two(database: str) -> Iterator[tuple[psycopg.Connection, psycopg.Connection]]:
    """Two connections, each statement a transaction of its own; the clock stands at NOW."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(psycopg.connect(database, autocommit=True)) for _ in range(2))
        set_clock(first, NOW)
        add_session(first, "s1")
        yield first, second


def test_an_outcome_does_not_wait_for_a_transaction_in_which_the_user_speaks(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    host, worker = two
    name = add(host, "s1", call_type="recurring", interval_seconds=60)
    run = claim_one(worker)
    worker.execute("set lock_timeout = '5s'")
    with host.transaction():
        value(host, """select pgrecall.append_messages('s1', '[{"role": "user", "content": "Stop that."}]')""")
        # It has the recall and wants the session: if the session were taken, what follows would close the circle.
        assert finish(worker, run)["accepted"]
        assert value(host, "select pgrecall.cancel_recall('s1')")
    assert recall(host, name)["status"] == "cancelled"
    assert session(host, "s1")["active_at"] == NOW


def test_a_message_of_the_past_does_not_make_a_session_busy(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    host, _ = two
    for at in ("2030-01-01T11:00:00Z", "2030-01-01T10:00:00Z", "2031-01-01T00:00:00Z"):
        said = f'[{{"role": "user", "content": "Hello.", "created_at": "{at}"}}]'
        call(host, "append_messages", session_id="s1", messages=said)
        assert session(host, "s1")["active_at"] == (NOW - HOUR if at < "2031" else NOW)


def test_a_recall_that_cannot_be_left_out_does_not_stop_the_others(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    host, worker = two
    add_session(host, "s2")
    call(host, "hold_session", session_id="s1", holder="chat", lease=2 * HOUR)
    name = add(host, "s1", max_defer_seconds=60, on_max_defer="skip")
    assert claim(worker).runs == []
    host.execute("alter table pgrecall.session_recalls add constraint of_the_host check (status <> 'cancelled')")
    set_clock(host, NOW + MINUTE)
    other = add(host, "s2")
    assert claim(worker).recall_ids == [other]
    assert recall(host, name)["status"] == "pending"
    host.execute("alter table pgrecall.session_recalls drop constraint of_the_host")
    set_clock(host, NOW + 2 * MINUTE)
    claim(worker)
    assert recall(host, name)["status"] == "cancelled"
    assert outcomes(host, name) == ["skipped"]
