"""What callers do with recalls: ask for one, look at them, change them. And what the table itself refuses."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import LiteralString

import psycopg
import pytest
from psycopg import IsolationLevel, sql
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
    rows,
    set_clock,
    value,
    wait_until_blocked,
)


@pytest.fixture
def db(db: psycopg.Connection) -> psycopg.Connection:
    """A connection in a transaction, at NOW, with the session s1."""
    set_clock(db, NOW)
    add_session(db, "s1")
    return db


@pytest.fixture
def two(database: str) -> Iterator[tuple[psycopg.Connection, psycopg.Connection]]:
    """Two autocommit connections to one database with the session s1."""
    with psycopg.connect(database, autocommit=True) as first, psycopg.connect(database, autocommit=True) as second:
        add_session(first, "s1")
        yield first, second


def schedule(db: psycopg.Connection, **arguments: object) -> Row:
    """Call schedule_recall for s1 unless told otherwise."""
    return call_one(db, "schedule_recall", **{"session_id": "s1", "additional_context_message": "go on"} | arguments)


def hint(caught: pytest.ExceptionInfo[psycopg.Error]) -> str:
    """Return the hint of a server's error."""
    return caught.value.diag.message_hint or ""


# A plain INSERT


def test_three_columns_are_a_complete_request(db: psycopg.Connection) -> None:
    (found,) = rows(
        db,
        """insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)
        values ('s1', %s, 'go on') returning *, now() as transaction_began""",
        NOW + HOUR,
    )
    began = found.pop("transaction_began")
    assert uuid.UUID(found.pop("id")).version == 7
    assert found == {
        "session_id": "s1",
        "call_type": "once",
        "trigger_at": NOW + HOUR,
        "interval_seconds": None,
        "internal_comment": None,
        "additional_context_message": "go on",
        "status": "pending",
        "created_at": began,
        "updated_at": began,
        "cron": None,
        "time_zone": None,
        "end_at": None,
        "max_attempts": 3,
        "timeout_seconds": None,
        "idle_for_seconds": None,
        "max_defer_seconds": 86400,
        "on_max_defer": "run",
        "on_interrupt": "retry",
        "pause_after_failures": None,
        "deliver_to": None,
        "created_by": "host",
        "created_by_run_id": None,
        "chain_depth": 0,
        "idempotency_key": None,
        "metadata": {},
        "nominal_at": None,
        "attempt": 0,
        "not_before": None,
        "deferrals": 0,
        "defer_reason": None,
        "deferred_since": None,
        "failures": 0,
        "paused_at": None,
        "paused_until": None,
        "pause_reason": None,
        "run_id": None,
        "worker_id": None,
        "claimed_at": None,
        "last_error": None,
        "due_at": NOW + HOUR,
        "pause_id": None,
        "grid_at": None,
        "stopped_by": None,
        "stop_reason": None,
        "after_stop": None,
        "scheduled_by": value(db, "select current_user"),
    }


def test_without_a_time_a_recall_is_wanted_now(db: psycopg.Connection) -> None:
    found = value(
        db,
        """insert into pgrecall.session_recalls (session_id, additional_context_message) values ('s1', 'go on')
        returning trigger_at = now()""",
    )
    assert found is True


def test_new_ids_are_ordered_by_time(db: psycopg.Connection) -> None:
    ids = []
    for _ in range(5):
        ids.append(value(db, "select pgrecall.new_id()"))
        db.execute("select pg_sleep(0.002)")  # the next millisecond
    assert ids == sorted(ids)
    made_at = datetime.fromtimestamp(int(ids[0].replace("-", "")[:12], 16) / 1000, UTC)
    assert abs(made_at - datetime.now(UTC)) < MINUTE
    assert uuid.UUID(ids[0]).variant == uuid.RFC_4122


# What the table refuses

# constraint, columns that differ from a good recall
CHECKS: list[tuple[str, Row]] = [
    ("recall_id_must_have_1_to_255_characters", {"id": ""}),
    ("recall_id_must_have_1_to_255_characters", {"id": "x" * 256}),
    ("call_type_must_be_once_recurring_or_immediate", {"call_type": "sometimes"}),
    ("trigger_at_must_be_a_finite_time_in_the_years_1_to_9999", {"trigger_at": "infinity"}),
    ("trigger_at_must_be_a_finite_time_in_the_years_1_to_9999", {"trigger_at": "-infinity"}),
    ("trigger_at_must_be_a_finite_time_in_the_years_1_to_9999", {"trigger_at": "0044-03-15 00:00:00+00 BC"}),
    ("trigger_at_must_be_a_finite_time_in_the_years_1_to_9999", {"trigger_at": "10000-01-01 00:00:00+00"}),
    ("interval_seconds_must_be_greater_than_zero", {"call_type": "recurring", "interval_seconds": 0}),
    ("interval_seconds_must_be_greater_than_zero", {"call_type": "recurring", "interval_seconds": -5}),
    ("additional_context_message_must_not_be_empty", {"additional_context_message": ""}),
    ("additional_context_message_must_not_be_empty", {"additional_context_message": " \n\t\r "}),
    ("additional_context_message_must_be_at_most_65536_characters", {"additional_context_message": "x" * 65537}),
    ("status_must_be_pending_running_fired_failed_or_cancelled", {"status": "done"}),
    ("created_at_must_be_a_finite_time_in_the_years_1_to_9999", {"created_at": "infinity"}),
    ("updated_at_must_be_a_finite_time_in_the_years_1_to_9999", {"updated_at": "-infinity"}),
    ("cron_must_be_a_valid_expression", {"call_type": "recurring", "cron": "0 9 * *", "time_zone": "UTC"}),
    ("time_zone_must_be_an_iana_name", {"time_zone": "Middle/Earth"}),
    ("end_at_must_be_a_finite_time_in_the_years_1_to_9999", {"end_at": "infinity"}),
    ("max_attempts_must_be_greater_than_zero", {"max_attempts": 0}),
    ("timeout_seconds_must_be_greater_than_zero", {"timeout_seconds": 0}),
    ("idempotency_key_must_have_1_to_255_characters", {"idempotency_key": ""}),
    ("idempotency_key_must_have_1_to_255_characters", {"idempotency_key": "x" * 256}),
    ("not_before_must_be_a_finite_time_in_the_years_1_to_9999", {"not_before": "infinity"}),
    ("recurring_recall_needs_interval_seconds_or_cron", {"call_type": "recurring"}),
    (
        "interval_seconds_and_cron_exclude_each_other",
        {"call_type": "recurring", "interval_seconds": 60, "cron": "@daily", "time_zone": "UTC"},
    ),
    ("cron_needs_a_time_zone", {"call_type": "recurring", "cron": "@daily"}),
    ("end_at_must_not_be_before_trigger_at", {"end_at": "2001-01-01 00:00:00+00"}),
    ("nominal_at_must_be_a_finite_time_in_the_years_1_to_9999", {"nominal_at": "infinity"}),
    ("claimed_at_must_be_a_finite_time_in_the_years_1_to_9999", {"claimed_at": "infinity"}),
    ("attempt_must_be_0_to_1000000", {"attempt": -1}),
    ("idle_for_seconds_must_be_greater_than_zero", {"idle_for_seconds": 0}),
    ("max_defer_seconds_must_be_greater_than_zero", {"max_defer_seconds": 0}),
    ("on_max_defer_must_be_run_or_skip", {"on_max_defer": "wait"}),
    ("on_interrupt_must_be_retry_or_skip", {"on_interrupt": "run"}),
    ("pause_after_failures_must_be_greater_than_zero", {"pause_after_failures": 0}),
    ("deliver_to_must_be_an_http_url", {"deliver_to": "ftp://host/file"}),
    ("deliver_to_must_be_an_http_url", {"deliver_to": "https://"}),
    ("created_by_must_be_host_or_agent", {"created_by": "user"}),
    ("chain_depth_must_be_0_to_1000000", {"chain_depth": -1}),
    ("deferred_since_must_be_a_finite_time_in_the_years_1_to_9999", {"deferred_since": "infinity"}),
    ("failures_must_be_0_to_1000000000", {"failures": -1}),
    ("paused_at_must_be_a_finite_time_in_the_years_1_to_9999", {"paused_at": "infinity"}),
    (
        "paused_until_must_be_a_finite_time_in_the_years_1_to_9999",
        {"paused_at": "2030-01-01", "paused_until": "infinity"},
    ),
    ("paused_until_needs_paused_at", {"paused_until": "2030-01-01"}),
    ("deferrals_must_be_0_to_1000000000", {"deferrals": 2**31 - 1}),
    ("run_id_is_set_by_claim_with_worker_id_and_times", {"run_id": 1}),
    ("grid_at_must_be_a_finite_time_in_the_years_1_to_9999", {"grid_at": "infinity"}),
    ("after_stop_must_be_retry_or_skip", {"after_stop": "run"}),
]


@pytest.mark.parametrize(("constraint", "columns"), CHECKS, ids=lambda part: part if isinstance(part, str) else "")
def test_the_table_refuses_by_name(db: psycopg.Connection, constraint: str, columns: Row) -> None:
    with refused(db, "23514") as caught:
        add(db, "s1", **columns)
    assert caught.value.diag.constraint_name == constraint
    name = add(db, "s1")
    set_by_trigger = {"updated_at", "after_stop"}  # always; while nothing runs
    changed = {column: part for column, part in columns.items() if column not in set_by_trigger}
    if changed:
        with refused(db, "23514") as caught:
            change(db, name, **changed)
        assert caught.value.diag.constraint_name == constraint


def test_every_check_of_recalls_has_a_case_above(db: psycopg.Connection) -> None:
    found = rows(
        db,
        """select conname from pg_catalog.pg_constraint
        where conrelid = 'pgrecall.session_recalls'::regclass and contype = 'c'""",
    )
    assert {one["conname"] for one in found} == {constraint for constraint, _ in CHECKS}


@pytest.mark.parametrize("table", ["sessions", "session_messages", "recall_runs", "workers", "migrations", "settings"])
def test_the_checks_of_the_other_tables_have_names_that_say_what_is_wrong(db: psycopg.Connection, table: str) -> None:
    found = rows(
        db,
        "select conname from pg_catalog.pg_constraint where conrelid = %s::regclass and contype = 'c'",
        f"pgrecall.{table}",
    )
    assert [one["conname"] for one in found if one["conname"].endswith("_check")] == []


@pytest.mark.parametrize(
    ("constraint", "statement"),
    [
        ("session_id_must_have_1_to_255_characters", "insert into pgrecall.sessions (id) values ('')"),
        (
            "message_role_must_not_be_empty",
            "insert into pgrecall.session_messages (session_id, role, content) values ('s1', '', 'x')",
        ),
        (
            "message_id_must_have_1_to_512_characters",
            "insert into pgrecall.session_messages (session_id, id, role, content) values ('s1', '', 'user', 'x')",
        ),
        (
            "outcome_is_known",
            """insert into pgrecall.recall_runs (recall_id, session_id, nominal_at, finished_at, outcome)
            values ('r', 's1', now(), now(), 'splendid')""",
        ),
        (
            "occurrences_is_positive",
            """insert into pgrecall.recall_runs (recall_id, session_id, nominal_at, finished_at, outcome, occurrences)
            values ('r', 's1', now(), now(), 'missed', 0)""",
        ),
    ],
)
def test_the_other_tables_refuse_by_name(db: psycopg.Connection, constraint: str, statement: LiteralString) -> None:
    with refused(db, "23514") as caught:
        db.execute(statement)
    assert caught.value.diag.constraint_name == constraint


@pytest.mark.parametrize(
    "column",
    [
        "id",
        "session_id",
        "call_type",
        "trigger_at",
        "additional_context_message",
        "status",
        "created_at",
        "max_attempts",
        "metadata",
        "attempt",
        "deferrals",
    ],
)
def test_a_recall_cannot_be_without(db: psycopg.Connection, column: str) -> None:
    name = add(db, "s1")
    statement = sql.SQL("update pgrecall.session_recalls set {} = null where id = %s").format(sql.Identifier(column))
    with refused(db, "23502") as caught:
        db.execute(statement, [name])
    assert caught.value.diag.column_name == column


def test_the_longest_message_and_the_longest_id_are_stored(db: psycopg.Connection) -> None:
    name = add(db, "s1", id="ä" * 255, additional_context_message="ä" * 65536)
    assert len(recall(db, name)["additional_context_message"]) == 65536


def test_a_recall_of_an_unknown_session_is_refused(db: psycopg.Connection) -> None:
    with refused(db, "23503") as caught:
        db.execute(
            "insert into pgrecall.session_recalls (session_id, additional_context_message) values ('nobody', 'go on')"
        )
    assert caught.value.diag.constraint_name == "session_of_recall_must_exist"


def test_recalls_go_with_their_session(db: psycopg.Connection) -> None:
    add(db, "s1")
    db.execute("delete from pgrecall.sessions where id = 's1'")
    assert value(db, "select count(*) from pgrecall.session_recalls") == 0


def test_a_session_has_one_pending_recall(db: psycopg.Connection) -> None:
    add(db, "s1")
    with refused(db, "23505") as caught:
        add(db, "s1")
    assert caught.value.diag.constraint_name == "one_pending_recall_per_session"


@pytest.mark.parametrize("status", ["fired", "failed", "cancelled"])
def test_ended_recalls_do_not_stand_in_the_way(db: psycopg.Connection, status: str) -> None:
    add(db, "s1", status=status)
    add(db, "s1", status=status)
    add(db, "s1")
    assert value(db, "select count(*) from pgrecall.session_recalls") == 3


def test_a_running_one_shot_does_not_stand_in_the_way(db: psycopg.Connection) -> None:
    add(db, "s1")
    claim_one(db)
    assert schedule(db, trigger_at=NOW + HOUR)["status"] == "pending"


def test_a_running_recurring_recall_counts_as_pending(db: psycopg.Connection) -> None:
    add_recurring(db, "s1")
    claim_one(db)
    with refused(db, "PR001"):
        schedule(db, trigger_at=NOW + HOUR)


@pytest.mark.parametrize("column", ["internal_comment", "metadata", "status"])
def test_updated_at_follows_every_change_by_hand(db: psycopg.Connection, column: str) -> None:
    name = add(db, "s1", NOW + HOUR)
    set_clock(db, NOW + 7 * SECOND)
    change(db, name, **{column: {"internal_comment": "x", "metadata": "{}", "status": "cancelled"}[column]})
    assert recall(db, name)["updated_at"] == NOW + 7 * SECOND
    change(db, name, updated_at=NOW - HOUR)
    assert recall(db, name)["updated_at"] == NOW + 7 * SECOND


def test_a_new_time_by_hand_forgets_backoff_attempts_and_deferral(db: psycopg.Connection) -> None:
    name = add(db, "s1", attempt=2, not_before=NOW + HOUR, defer_reason="x")
    change(db, name, internal_comment="not about time")
    assert recall(db, name)["attempt"] == 2
    change(db, name, trigger_at=NOW + MINUTE)
    found = recall(db, name)
    assert (found["attempt"], found["not_before"], found["defer_reason"]) == (0, None, None)
    assert found["due_at"] == NOW + MINUTE


@pytest.mark.parametrize("status", ["fired", "failed", "cancelled"])
def test_an_ended_recall_set_back_to_pending_by_hand_begins_anew(db: psycopg.Connection, status: str) -> None:
    name = add(db, "s1", status=status, attempt=3, not_before=NOW + HOUR)
    assert recall(db, name)["due_at"] is None
    change(db, name, status="pending")
    assert (recall(db, name)["attempt"], recall(db, name)["due_at"]) == (0, NOW)


# schedule_recall


def test_schedule_recall_returns_the_new_row(db: psycopg.Connection) -> None:
    made = schedule(
        db,
        trigger_at=NOW + HOUR,
        call_type="immediate",
        internal_comment="why",
        id="mine",
        end_at=NOW + 2 * HOUR,
        max_attempts=5,
        timeout_seconds=9,
        idempotency_key="k",
        metadata={"a": [1]},
    )
    assert made == recall(db, "mine")
    given = ("call_type", "trigger_at", "internal_comment", "end_at", "max_attempts", "timeout_seconds", "metadata")
    assert [made[column] for column in given] == ["immediate", NOW + HOUR, "why", NOW + 2 * HOUR, 5, 9, {"a": [1]}]
    assert (made["idempotency_key"], made["status"], made["session_id"]) == ("k", "pending", "s1")


def test_schedule_recall_without_a_time_means_now_by_the_database_clock(db: psycopg.Connection) -> None:
    assert schedule(db)["trigger_at"] == NOW


def test_schedule_recall_makes_its_own_id(db: psycopg.Connection) -> None:
    assert uuid.UUID(schedule(db)["id"]).version == 7


@pytest.mark.parametrize(
    ("arguments", "call_type"),
    [
        ({}, "once"),
        ({"interval_seconds": 60}, "recurring"),
        ({"cron": "@daily", "time_zone": "UTC"}, "recurring"),
        ({"call_type": "immediate"}, "immediate"),
        ({"call_type": "once", "interval_seconds": 60}, "once"),
    ],
)
def test_schedule_recall_guesses_the_call_type(db: psycopg.Connection, arguments: Row, call_type: str) -> None:
    assert schedule(db, **arguments)["call_type"] == call_type


def test_schedule_recall_with_cron_begins_at_its_first_time(db: psycopg.Connection) -> None:
    made = schedule(db, cron="30 9 * * *", time_zone="Asia/Tokyo")
    assert made["trigger_at"] == datetime.fromisoformat("2030-01-02T09:30:00+09:00")
    assert (made["cron"], made["time_zone"], made["interval_seconds"]) == ("30 9 * * *", "Asia/Tokyo", None)


def test_schedule_recall_with_cron_may_begin_at_another_time(db: psycopg.Connection) -> None:
    assert schedule(db, cron="@daily", time_zone="UTC", trigger_at=NOW)["trigger_at"] == NOW


# SQLSTATE, what the message names, what the hint says, arguments
REFUSALS: list[tuple[str, str, str, Row]] = [
    ("PR002", "no session with id 'nobody'", "insert into pgrecall.sessions", {"session_id": "nobody"}),
    ("PR005", "0-59", "mon-fri", {"cron": "61 * * * *", "time_zone": "UTC"}),
    ("PR005", "cron '@daily' needs a time_zone", "Europe/Paris", {"cron": "@daily"}),
    ("PR005", "Middle/Earth", "IANA", {"cron": "@daily", "time_zone": "Middle/Earth"}),
    ("PR005", "trigger_at is infinity", "finite", {"trigger_at": "infinity"}),
    ("PR005", "trigger_at is -infinity", "finite", {"trigger_at": "-infinity"}),
    ("PR005", "no such day", "mon-fri", {"cron": "0 9 31 2 *", "time_zone": "UTC"}),
]


@pytest.mark.parametrize(("sqlstate", "message", "advice", "arguments"), REFUSALS)
def test_schedule_recall_refuses(
    db: psycopg.Connection, sqlstate: str, message: str, advice: str, arguments: Row
) -> None:
    with refused(db, sqlstate) as caught:
        schedule(db, **arguments)
    assert message in str(caught.value)
    assert advice in hint(caught)


def test_schedule_recall_refuses_a_cron_that_names_no_time_any_more(db: psycopg.Connection) -> None:
    set_clock(db, datetime(9999, 12, 31, 23, 59, tzinfo=UTC))
    with refused(db, "PR005") as caught:
        schedule(db, cron="0 9 29 2 *", time_zone="UTC")
    assert "names no time" in str(caught.value)
    assert hint(caught) != ""


def test_schedule_recall_names_the_session_that_has_a_recall(db: psycopg.Connection) -> None:
    schedule(db)
    with refused(db, "PR001") as caught:
        schedule(db)
    assert "session 's1' already has a pending recall" in str(caught.value)
    assert (caught.value.diag.message_detail, "cancel_recall()" in hint(caught)) == ("s1", True)


def test_schedule_recall_refuses_an_id_that_is_known(db: psycopg.Connection) -> None:
    schedule(db, id="mine", trigger_at=NOW)
    add_session(db, "s2")
    with refused(db, "PR005") as caught:
        schedule(db, session_id="s2", id="mine")
    assert "a recall with id 'mine' exists already" in str(caught.value)
    assert "Leave id out" in hint(caught)


def test_schedule_recall_leaves_the_table_to_refuse_the_rest(db: psycopg.Connection) -> None:
    with refused(db, "23514") as caught:
        schedule(db, additional_context_message=" ")
    assert caught.value.diag.constraint_name == "additional_context_message_must_not_be_empty"


def test_schedule_recall_joins_the_callers_transaction(two: tuple[psycopg.Connection, psycopg.Connection]) -> None:
    first, second = two
    count: LiteralString = "select count(*) from pgrecall.session_recalls"
    with first.transaction(force_rollback=True):
        schedule(first)
        assert (value(first, count), value(second, count)) == (1, 0)
    assert value(second, count) == 0
    with first.transaction():
        schedule(first)
        first.execute("update pgrecall.sessions set metadata = '{\"step\": 2}'")
    assert value(second, count) == 1


# idempotency_key


def test_a_known_key_returns_the_recall_that_has_it(db: psycopg.Connection) -> None:
    made = schedule(db, idempotency_key="k", trigger_at=NOW + HOUR)
    assert schedule(db, idempotency_key="k", trigger_at=NOW + 2 * HOUR, internal_comment="again") == made


@pytest.mark.parametrize("status", ["fired", "failed", "cancelled"])
def test_a_key_is_known_after_its_recall_has_ended(db: psycopg.Connection, status: str) -> None:
    made = schedule(db, idempotency_key="k")
    change(db, made["id"], status=status)
    assert schedule(db, idempotency_key="k")["id"] == made["id"]
    assert schedule(db, idempotency_key="other")["id"] != made["id"]


def test_a_key_belongs_to_its_session(db: psycopg.Connection) -> None:
    add_session(db, "s2")
    assert schedule(db, idempotency_key="k")["id"] != schedule(db, session_id="s2", idempotency_key="k")["id"]


def test_another_key_does_not_make_room_for_a_second_recall(db: psycopg.Connection) -> None:
    schedule(db, idempotency_key="k")
    with refused(db, "PR001"):
        schedule(db, idempotency_key="other")


def test_two_requests_with_one_key_at_the_same_time_get_the_same_recall(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    first, second = two
    with first.transaction():
        made = schedule(first, idempotency_key="k")
        asking = Doing(lambda: schedule(second, idempotency_key="k"))
        wait_until_blocked(first, second.info.backend_pid)
    assert asking.result() == made


def test_a_request_gets_its_own_recall_when_the_other_with_its_key_is_rolled_back(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    first, second = two
    with first.transaction(force_rollback=True):
        schedule(first, idempotency_key="k", id="never")
        asking = Doing(lambda: schedule(second, idempotency_key="k", id="mine"))
        wait_until_blocked(first, second.info.backend_pid)
    assert asking.result()["id"] == "mine"


def test_two_requests_without_a_key_at_the_same_time_make_one_recall(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    first, second = two
    with first.transaction():
        schedule(first)
        asking = Doing(lambda: schedule(second))
        wait_until_blocked(first, second.info.backend_pid)
    with pytest.raises(psycopg.Error) as caught:
        asking.result()
    assert caught.value.sqlstate == "PR001"


def test_a_key_that_an_old_snapshot_cannot_see_is_an_error_and_never_a_second_recall(
    two: tuple[psycopg.Connection, psycopg.Connection],
) -> None:
    first, second = two
    second.isolation_level = IsolationLevel.REPEATABLE_READ
    with second.transaction(force_rollback=True):
        second.execute("select count(*) from pgrecall.session_recalls")
        schedule(first, idempotency_key="k")
        with refused(second, "PR001"):
            schedule(second, idempotency_key="k")
    assert value(first, "select count(*) from pgrecall.session_recalls") == 1


# cancel_recall


def test_cancel_recall_ends_the_pending_recall_and_says_so(db: psycopg.Connection) -> None:
    name = add(db, "s1")
    assert call(db, "cancel_recall", session_id="s1") == [{"cancel_recall": True}]
    assert recall(db, name)["status"] == "cancelled"
    (recorded,) = ledger(db, name)
    shown = (recorded["outcome"], recorded["reason"], recorded["nominal_at"], recorded["started_at"])
    assert shown == ("skipped", "cancelled", NOW, None)


@pytest.mark.parametrize("status", [None, "fired", "failed", "cancelled"])
def test_cancel_recall_is_false_if_nothing_is_pending(db: psycopg.Connection, status: str | None) -> None:
    if status is not None:
        add(db, "s1", status=status)
    assert call(db, "cancel_recall", session_id="s1") == [{"cancel_recall": False}]
    assert call(db, "cancel_recall", session_id="nobody") == [{"cancel_recall": False}]
    assert value(db, "select count(*) from pgrecall.recall_runs") == 0


def test_cancel_recall_leaves_the_run_of_a_one_shot_alone(db: psycopg.Connection) -> None:
    """From inside its own run an agent cancels what it has scheduled, not itself."""
    name = add(db, "s1")
    claim_one(db)
    later = add(db, "s1", NOW + HOUR)
    assert call(db, "cancel_recall", session_id="s1") == [{"cancel_recall": True}]
    assert call(db, "cancel_recall", session_id="s1") == [{"cancel_recall": False}]
    assert (recall(db, name)["status"], recall(db, later)["status"]) == ("running", "cancelled")


def test_cancel_recall_stops_a_recurring_recall_that_runs(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1")
    run = claim_one(db)
    assert call(db, "cancel_recall", session_id="s1") == [{"cancel_recall": True}]
    assert ledger(db, name) == []
    finish(db, run, "interrupted", reason="cancelled")
    assert (recall(db, name)["status"], outcomes(db, name)) == ("cancelled", ["interrupted"])


def test_cancel_recall_waits_for_a_claim_that_is_open(two: tuple[psycopg.Connection, psycopg.Connection]) -> None:
    first, second = two
    name = add_recurring(first, "s1", datetime.now(UTC))
    with first.transaction():
        claim_one(first)
        cancelling = Doing(lambda: call(second, "cancel_recall", session_id="s1"))
        wait_until_blocked(first, second.info.backend_pid)
    assert cancelling.result() == [{"cancel_recall": True}]
    assert (recall(first, name)["status"], recall(first, name)["run_id"] is None) == ("cancelled", False)


# skip_next_recall


@pytest.mark.parametrize("late", [-HOUR, timedelta(0), 10 * HOUR])
def test_skip_next_recall_moves_one_step_on_the_grid(db: psycopg.Connection, late: timedelta) -> None:
    """However far away or overdue the occurrence is."""
    name = add_recurring(db, "s1", NOW - late, interval_seconds=7)
    assert call(db, "skip_next_recall", session_id="s1") == [{"skip_next_recall": True}]
    assert recall(db, name)["trigger_at"] == NOW - late + 7 * SECOND
    (recorded,) = ledger(db, name)
    assert (recorded["outcome"], recorded["reason"]) == ("skipped", "skipped by request")
    assert (recorded["nominal_at"], recorded["started_at"], recorded["attempt"]) == (NOW - late, None, 0)


def test_skip_next_recall_follows_cron_across_a_clock_change(db: psycopg.Connection) -> None:
    start = datetime.fromisoformat("2030-03-30T09:00:00+01:00")
    name = add_recurring(db, "s1", start, cron="0 9 * * *", time_zone="Europe/Berlin")
    call(db, "skip_next_recall", session_id="s1")
    assert recall(db, name)["trigger_at"] == datetime.fromisoformat("2030-03-31T09:00:00+02:00")


def test_skip_next_recall_forgets_the_backoff_of_the_occurrence_left_out(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1")
    finish(db, claim_one(db), "error", retry=True)
    assert recall(db, name)["attempt"] == 1
    call(db, "skip_next_recall", session_id="s1")
    found = recall(db, name)
    assert (found["attempt"], found["due_at"]) == (0, NOW + MINUTE)


def test_skip_next_recall_of_the_last_occurrence_cancels(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1", end_at=NOW + SECOND)
    assert call(db, "skip_next_recall", session_id="s1") == [{"skip_next_recall": True}]
    assert recall(db, name)["status"] == "cancelled"
    (recorded,) = ledger(db, name)
    assert (recorded["outcome"], recorded["nominal_at"], recorded["started_at"]) == ("skipped", NOW, None)
    assert recorded["reason"] is not None


def test_skip_next_recall_is_false_without_a_pending_recurring_recall(db: psycopg.Connection) -> None:
    assert call(db, "skip_next_recall", session_id="s1") == [{"skip_next_recall": False}]
    once = add(db, "s1")
    assert call(db, "skip_next_recall", session_id="s1") == [{"skip_next_recall": False}]
    change(db, once, status="fired")
    name = add_recurring(db, "s1")
    claim_one(db)
    assert call(db, "skip_next_recall", session_id="s1") == [{"skip_next_recall": False}]
    assert recall(db, name)["trigger_at"] == NOW


# reschedule


def test_reschedule_moves_a_pending_recall_and_returns_it(db: psycopg.Connection) -> None:
    name = add(db, "s1", attempt=1, not_before=NOW + 5 * HOUR)
    moved = call_one(db, "reschedule", recall_id=name, new_trigger_at=NOW + HOUR)
    assert moved == recall(db, name)
    assert (moved["trigger_at"], moved["due_at"], moved["attempt"]) == (NOW + HOUR, NOW + HOUR, 0)


def test_reschedule_moves_the_grid_of_a_recurring_recall(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1")
    call(db, "reschedule", recall_id=name, new_trigger_at=NOW + 7 * SECOND)
    set_clock(db, NOW + 10 * SECOND)
    finish(db, claim_one(db))
    assert recall(db, name)["trigger_at"] == NOW + 67 * SECOND


def test_reschedule_of_a_running_recall_makes_it_run_again(db: psycopg.Connection) -> None:
    name = add(db, "s1")
    run = claim_one(db)
    assert call_one(db, "reschedule", recall_id=name, new_trigger_at=NOW + HOUR)["status"] == "running"
    assert finish(db, run)["due_at"] == NOW + HOUR


@pytest.mark.parametrize("status", ["fired", "failed", "cancelled"])
def test_reschedule_refuses_an_ended_recall(db: psycopg.Connection, status: str) -> None:
    name = add(db, "s1", status=status)
    with refused(db, "PR004") as caught:
        call(db, "reschedule", recall_id=name, new_trigger_at=NOW + HOUR)
    assert f"is {status}, so it cannot be rescheduled" in str(caught.value)
    assert (caught.value.diag.message_detail, "schedule a new one" in hint(caught)) == (status, True)


@pytest.mark.parametrize("at", [None, "infinity", "-infinity"])
def test_reschedule_needs_a_finite_time(db: psycopg.Connection, at: str | None) -> None:
    with refused(db, "PR005") as caught:
        call(db, "reschedule", recall_id=add(db, "s1"), new_trigger_at=at)
    assert f"new_trigger_at is {at or 'null'}" in str(caught.value)
    assert "finite" in hint(caught)


# mark_fired, mark_cancelled, get_recall

UNKNOWN: list[tuple[str, Row]] = [
    ("reschedule", {"new_trigger_at": NOW}),
    ("mark_fired", {}),
    ("mark_cancelled", {}),
    ("get_recall", {}),
]


@pytest.mark.parametrize("name", ["no such", None])
@pytest.mark.parametrize(("function", "arguments"), UNKNOWN)
def test_an_unknown_recall_is_an_error(db: psycopg.Connection, function: str, arguments: Row, name: str | None) -> None:
    with refused(db, "PR003") as caught:
        call(db, function, recall_id=name, **arguments)
    assert f"no recall with id {'NULL' if name is None else repr(name)}" in str(caught.value)
    assert "list_recalls()" in hint(caught)


def test_mark_fired_ends_a_one_shot_once(db: psycopg.Connection) -> None:
    name = add(db, "s1")
    fired = call_one(db, "mark_fired", recall_id=name)
    assert (fired["status"], fired["due_at"]) == ("fired", None)
    assert call_one(db, "mark_fired", recall_id=name) == fired
    assert [(one["outcome"], one["reason"]) for one in ledger(db, name)] == [("success", "marked as fired")]


def test_mark_fired_moves_a_recurring_recall_to_its_next_time(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1", NOW + MINUTE)
    assert call_one(db, "mark_fired", recall_id=name)["trigger_at"] == NOW + 2 * MINUTE
    set_clock(db, NOW + HOUR + SECOND)
    found = call_one(db, "mark_fired", recall_id=name)
    assert (found["status"], found["trigger_at"]) == ("pending", NOW + HOUR + MINUTE)
    assert [one["nominal_at"] for one in ledger(db, name) if one["outcome"] == "success"] == [
        NOW + MINUTE,
        NOW + 2 * MINUTE,
    ]


def test_mark_fired_ends_a_recurring_recall_after_its_last_time(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1", end_at=NOW)
    assert call_one(db, "mark_fired", recall_id=name)["status"] == "fired"


@pytest.mark.parametrize("kind", ["once", "recurring"])
def test_mark_fired_of_a_running_recall_stands_when_the_run_ends(db: psycopg.Connection, kind: str) -> None:
    name = add(db, "s1", call_type=kind, interval_seconds=60 if kind == "recurring" else None)
    run = claim_one(db)
    call(db, "mark_fired", recall_id=name)
    finish(db, run, "interrupted", reason="told to stop", retry=True)
    expected = ("fired", NOW) if kind == "once" else ("pending", NOW + MINUTE)
    assert (recall(db, name)["status"], recall(db, name)["trigger_at"]) == expected
    assert outcomes(db, name) == ["interrupted"]


def test_mark_cancelled_ends_a_recall_once(db: psycopg.Connection) -> None:
    name = add_recurring(db, "s1")
    cancelled = call_one(db, "mark_cancelled", recall_id=name)
    assert (cancelled["status"], cancelled["due_at"]) == ("cancelled", None)
    assert call_one(db, "mark_cancelled", recall_id=name) == cancelled
    assert [(one["outcome"], one["reason"]) for one in ledger(db, name)] == [("skipped", "cancelled")]


def test_mark_cancelled_reaches_a_running_one_shot(db: psycopg.Connection) -> None:
    name = add(db, "s1")
    run = claim_one(db)
    assert call_one(db, "mark_cancelled", recall_id=name)["run_id"] == run["run_id"]
    assert finish(db, run, "interrupted")["status"] == "cancelled"


@pytest.mark.parametrize(
    ("function", "status"),
    [
        ("mark_fired", "failed"),
        ("mark_fired", "cancelled"),
        ("mark_cancelled", "fired"),
        ("mark_cancelled", "failed"),
    ],
)
def test_marking_refuses_a_recall_that_ended_otherwise(db: psycopg.Connection, function: str, status: str) -> None:
    name = add(db, "s1", status=status)
    with refused(db, "PR004") as caught:
        call(db, function, recall_id=name)
    assert f"is {status}" in str(caught.value)
    assert (caught.value.diag.message_detail, hint(caught)) == (status, "Only a pending or running recall can.")


def test_get_recall_returns_the_row(db: psycopg.Connection) -> None:
    name = add(db, "s1")
    assert call_one(db, "get_recall", recall_id=name) == recall(db, name)


# Looking


@pytest.fixture
def crowd(db: psycopg.Connection) -> psycopg.Connection:
    """Ada has two sessions, Bob one, one is nobody's; each has an old recall and a pending one."""
    add_session(db, "ada-1", "ada-2", user_id="ada")
    add_session(db, "bob-1", user_id="bob")
    add_session(db, "free")
    for place, name in enumerate(["ada-1", "bob-1", "ada-2", "free"]):
        add(db, name, NOW - place * HOUR - MINUTE, id=f"{name} old", status="fired")
        add(db, name, NOW + place * HOUR + MINUTE, id=f"{name} new")
    return db


ALL = ["free new", "ada-2 new", "bob-1 new", "ada-1 new", "ada-1 old", "bob-1 old", "ada-2 old", "free old"]
ADAS = [name for name in ALL if name.startswith("ada")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"user_id": "ada"}, ADAS),
        ({"user_id": "nobody"}, []),
        ({"is_admin": True}, ALL),
        ({"is_admin": True, "user_id": "ada"}, ALL),
        ({"session_id": "bob-1"}, ["bob-1 new", "bob-1 old"]),
        ({"session_id": "bob-1", "user_id": "bob"}, ["bob-1 new", "bob-1 old"]),
        ({"session_id": "bob-1", "user_id": "ada"}, []),
        ({"session_id": "bob-1", "user_id": "ada", "is_admin": True}, ["bob-1 new", "bob-1 old"]),
        ({"session_id": "nobody"}, []),
        ({"is_admin": True, "limit": 3}, ALL[:3]),
        ({"is_admin": True, "limit": 3, "offset": 6}, ALL[6:]),
        ({"is_admin": True, "limit": 0}, []),
    ],
    ids=str,
)
def test_list_recalls_shows_what_the_caller_may_see_newest_first(
    crowd: psycopg.Connection, arguments: Row, expected: list[str]
) -> None:
    assert [one["id"] for one in call(crowd, "list_recalls", **arguments)] == expected


def test_list_recalls_shows_fifty_unless_told_otherwise(db: psycopg.Connection) -> None:
    for number in range(51):
        add(db, "s1", NOW, id=f"{number:02}", status="fired")
    found = [one["id"] for one in call(db, "list_recalls", session_id="s1")]
    assert found == [f"{number:02}" for number in range(50, 0, -1)]


@pytest.mark.parametrize("is_admin", [False, None])
def test_list_recalls_of_nobody_is_an_error_and_not_everything(db: psycopg.Connection, is_admin: bool | None) -> None:
    with refused(db, "PR005") as caught:
        call(db, "list_recalls", session_id=None, user_id=None, is_admin=is_admin)
    assert "is_admin => true" in hint(caught)


@pytest.mark.parametrize("bounds", [{"limit": -1}, {"offset": -1}, {"limit": None}, {"offset": None}], ids=str)
def test_list_recalls_refuses_senseless_bounds(db: psycopg.Connection, bounds: Row) -> None:
    with refused(db, "PR005") as caught:
        call(db, "list_recalls", is_admin=True, **bounds)
    assert "50 and 0" in hint(caught)


def test_get_pending_recalls_shows_what_is_due_by_a_time_earliest_first(db: psycopg.Connection) -> None:
    for name, at in (("b", NOW), ("a", NOW - HOUR), ("c", NOW + SECOND)):
        add(db, f"session {name}", at, id=name)
    add(db, "waiting", NOW - HOUR, not_before=NOW + HOUR)
    add(db, "ended", NOW, status="cancelled")
    found = call(db, "get_pending_recalls", before=NOW)
    assert found == [recall(db, "a"), recall(db, "b")]
    assert [one["id"] for one in call(db, "get_pending_recalls", before=NOW + SECOND)] == ["a", "b", "c"]
    claim(db)
    assert call(db, "get_pending_recalls", before=NOW) == []


def test_get_next_trigger_at_is_when_the_next_pending_recall_is_due(db: psycopg.Connection) -> None:
    ask: Callable[[], object] = lambda: value(db, "select pgrecall.get_next_trigger_at()")  # noqa: E731
    assert ask() is None
    add(db, "a", NOW + 2 * HOUR)
    add(db, "b", NOW, not_before=NOW + HOUR)
    add(db, "c", NOW, status="fired")
    assert ask() == NOW + HOUR


def test_get_pending_session_ids_names_those_that_wait(crowd: psycopg.Connection) -> None:
    crowd.execute("update pgrecall.session_recalls set status = 'cancelled' where id = 'bob-1 new'")
    found = call(crowd, "get_pending_session_ids", session_ids=["ada-1", "bob-1", "free", "nobody", "ada-1"])
    assert sorted(one["get_pending_session_ids"] for one in found) == ["ada-1", "free"]
    assert call(crowd, "get_pending_session_ids", session_ids=[]) == []
