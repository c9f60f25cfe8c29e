"""Retention: what has ended goes when its time is over, in small steps, and nothing else ever does."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import LiteralString

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
    refused,
    rows,
    set_clock,
    value,
)

DAY = timedelta(days=1)
KINDS = ("fired", "failed", "cancelled", "runs", "messages", "deliveries", "audit_rows")


@pytest.fixture(autouse=True)
def stopped_clock(request: pytest.FixtureRequest) -> None:
    if "db" in request.fixturenames:
        set_clock(request.getfixturevalue("db"), NOW)


def keep(db: psycopg.Connection, **times: timedelta | None) -> None:
    """Change how long things stay; without an audit row, which would be one more thing to count."""
    for name, time in times.items():
        db.execute(sql.SQL("update pgrecall.settings set {} = %s").format(sql.Identifier(name)), [time])
    db.execute("delete from pgrecall.audit")


def purge(db: psycopg.Connection, **arguments: object) -> Row:
    return call_one(db, "purge", **arguments)


def gone(step: Row) -> Row:
    """What was deleted, without what was not."""
    return {name: step[name] for name in KINDS if step[name]}


def ended(db: psycopg.Connection, status: str, at: datetime, session_id: str = "s1", **columns: object) -> str:
    """A recall that ended at this time, by the same way as any other."""
    set_clock(db, at)
    one = add(db, session_id, at, **columns)
    if status == "cancelled":
        call(db, "mark_cancelled", recall_id=one)
    else:
        run = claim_one(db, inject=False)
        finish(db, run, "success" if status == "fired" else "error", reply="Done.", retry=False)
    set_clock(db, NOW)
    return one


def recalls(db: psycopg.Connection) -> set[str]:
    return {one["id"] for one in rows(db, "select id from pgrecall.session_recalls")}


def run(db: psycopg.Connection, at: datetime, session_id: str = "s1", **columns: object) -> int:
    """A row of the ledger."""
    db.execute("insert into pgrecall.sessions (id) values (%s) on conflict do nothing", [session_id])
    given: Row = {
        "recall_id": "r",
        "session_id": session_id,
        "nominal_at": at,
        "finished_at": at,
        "outcome": "success",
    } | columns
    statement = sql.SQL("insert into pgrecall.recall_runs ({}) values ({}) returning id").format(
        sql.SQL(", ").join(map(sql.Identifier, given)), sql.SQL(", ").join(map(sql.Placeholder, given))
    )
    found = db.execute(statement, given).fetchone()
    assert found is not None
    return int(found[0])


def message(db: psycopg.Connection, session_id: str, at: datetime, content: str = "x") -> None:
    db.execute("insert into pgrecall.sessions (id) values (%s) on conflict do nothing", [session_id])
    db.execute(
        "insert into pgrecall.session_messages (session_id, role, content, created_at) values (%s, 'user', %s, %s)",
        [session_id, content, at],
    )


def delivery(
    db: psycopg.Connection, at: datetime, status: str = "delivered", number: int = 1, recall_id: str = "r"
) -> None:
    db.execute("insert into pgrecall.sessions (id) values ('s1') on conflict do nothing")
    db.execute(
        """insert into pgrecall.deliveries
            (id, recall_id, session_id, url, payload, status, next_at, created_at, ended_at)
        values (%s, %s, 's1', 'http://localhost/', '{}', %s, %s, %s, %s)""",
        [number, recall_id, status, at if status == "pending" else None, at, None if status == "pending" else at],
    )


# By the settings


def test_the_settings_have_their_defaults(db: psycopg.Connection) -> None:
    (found,) = rows(db, "select * from pgrecall.settings")
    assert {name: time for name, time in found.items() if name.startswith("keep_")} == {
        "keep_fired": 30 * DAY,
        "keep_failed": 90 * DAY,
        "keep_cancelled": 30 * DAY,
        "keep_runs": 90 * DAY,
        "keep_messages": None,
        "keep_deliveries": 30 * DAY,
        "keep_audit": 365 * DAY,
    }


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("keep_fired", "-1 second"),
        ("keep_failed", "1001 years"),
        ("keep_cancelled", "-1 day"),
        ("keep_runs", "47 hours"),
        ("keep_messages", "1 day"),
        ("keep_deliveries", "-1 day"),
        ("keep_audit", "10000 years"),
    ],
)
def test_a_time_that_makes_no_sense_is_refused_by_name(db: psycopg.Connection, name: str, time: str) -> None:
    with refused(db, "23514") as caught:
        db.execute(sql.SQL("update pgrecall.settings set {} = %s").format(sql.Identifier(name)), [time])
    assert str(caught.value.diag.constraint_name).startswith(f"{name}_must_be_")


@pytest.mark.parametrize("status", ["fired", "failed", "cancelled"])
def test_a_recall_goes_when_its_status_has_been_kept_for_its_time(db: psycopg.Connection, status: str) -> None:
    keep(db, **dict.fromkeys(("keep_fired", "keep_failed", "keep_cancelled"), 10 * DAY) | {f"keep_{status}": 5 * DAY})
    for other in ("fired", "failed", "cancelled"):
        ended(db, other, NOW - 5 * DAY - SECOND, id=f"{other} before")
        ended(db, other, NOW - 5 * DAY, id=f"{other} just now")
    db.execute("delete from pgrecall.audit")
    assert gone(purge(db)) == {status: 1}
    assert f"{status} before" not in recalls(db)
    assert len(recalls(db)) == 5


def test_null_keeps_for_ever(db: psycopg.Connection) -> None:
    names = ("fired", "failed", "cancelled", "runs", "messages", "deliveries", "audit")
    for status in ("fired", "failed", "cancelled"):
        ended(db, status, NOW - 1000 * DAY)
    message(db, "s1", NOW - 1000 * DAY)
    delivery(db, NOW - 1000 * DAY)
    for name in names:
        db.execute(sql.SQL("update pgrecall.settings set {} = null").format(sql.Identifier(f"keep_{name}")))
    db.execute("update pgrecall.audit set changed_at = %s", [NOW - 1000 * DAY])
    assert gone(purge(db)) == {}
    for name in names:
        db.execute(
            sql.SQL("update pgrecall.settings set {} = interval '30 days'").format(sql.Identifier(f"keep_{name}"))
        )
    assert set(gone(purge(db))) == set(KINDS)


@pytest.mark.parametrize("is_paused", [True, False])
@pytest.mark.parametrize("state", ["pending", "running", "between two attempts", "cancelled in its run", "overdue"])
def test_what_has_not_ended_stays_however_old_it_is(db: psycopg.Connection, state: str, is_paused: bool) -> None:
    keep(db, keep_fired=timedelta(), keep_failed=timedelta(), keep_cancelled=timedelta())
    set_clock(db, NOW - 1000 * DAY)
    one = add(db, "s1", NOW - 1000 * DAY if state != "pending" else NOW + DAY)
    if state not in ("pending", "overdue"):
        taken = claim_one(db)
        if state == "between two attempts":
            finish(db, taken, "error", retry=True, retry_after=300 * DAY)
        elif state == "cancelled in its run":
            call(db, "mark_cancelled", recall_id=one)
    if is_paused and state != "cancelled in its run":
        call(db, "pause_recall", recall_id=one)
    set_clock(db, NOW)
    purge(db)
    assert recalls(db) == {one}


def test_a_recall_whose_reply_is_on_its_way_stays_with_its_run_until_that_has_ended(db: psycopg.Connection) -> None:
    one = ended(db, "fired", NOW - 100 * DAY, deliver_to="http://localhost/hook")
    assert gone(purge(db)) == {}
    (taken,) = call(db, "claim_deliveries", up_to=1)
    call(db, "end_delivery", delivery_id=taken["delivery_id"], attempt=1, status="failed")
    assert one in recalls(db)
    assert gone(purge(db)) == {"fired": 1, "runs": 1}


def test_deleting_what_has_ended_is_neither_an_occurrence_nor_a_change_by_hand(db: psycopg.Connection) -> None:
    for status in ("fired", "failed", "cancelled"):
        ended(db, status, NOW - 1000 * DAY)
    keep(db, keep_runs=None)
    before = value(db, "select count(*) from pgrecall.recall_runs")
    assert set(gone(purge(db))) == {"fired", "failed", "cancelled"}
    assert value(db, "select count(*) from pgrecall.recall_runs") == before
    assert value(db, "select count(*) from pgrecall.audit") == 0
    assert value(db, "select count(*) from pgrecall.unaudited") == 0


def test_runs_go_by_their_end_and_not_by_their_number(db: psycopg.Connection) -> None:
    old_number = run(db, NOW - DAY, started_at=NOW - 100 * DAY)
    run(db, NOW - 91 * DAY)
    run(db, NOW - 92 * DAY)
    young = run(db, NOW - 89 * DAY)
    assert gone(purge(db)) == {"runs": 2}
    assert [one["id"] for one in rows(db, "select id from pgrecall.recall_runs order by id")] == [old_number, young]


def test_runs_that_were_too_young_go_as_soon_as_they_are_old_enough(db: psycopg.Connection) -> None:
    for hours in range(5):
        run(db, NOW - 90 * DAY + (hours - 1) * HOUR)
    gone_by = []
    for hours in range(5):
        set_clock(db, NOW + hours * HOUR + SECOND)
        while (step := purge(db, worker_id="w1"))["next_at"] == step["now_at"]:
            pass
        gone_by.append(5 - int(value(db, "select count(*) from pgrecall.recall_runs")))
    assert gone_by == [2, 3, 4, 5, 5]


def test_the_runs_that_a_limit_of_a_day_counts_stay(db: psycopg.Connection) -> None:
    db.execute("insert into pgrecall.sessions (id, max_runs_per_day) values ('s1', 1)")
    keep(db, keep_runs=2 * DAY, keep_fired=timedelta())
    add(db, "s1", NOW - SECOND)
    finish(db, claim_one(db))
    set_clock(db, NOW + 23 * HOUR)
    purge(db)
    add(db, "s1", NOW + HOUR)
    assert claim(db).deferred


def test_a_conversation_loses_its_beginning_and_never_its_middle(db: psycopg.Connection) -> None:
    keep(db, keep_messages=10 * DAY)
    for at, content in ((30, "a"), (20, "b"), (5, "c"), (15, "imported later"), (1, "d")):
        message(db, "s1", NOW - at * DAY, content)
    message(db, "s2", NOW - 30 * DAY, "all of it")
    message(db, "s3", NOW - DAY, "nothing of it")
    assert gone(purge(db)) == {"messages": 3}
    left = rows(db, "select session_id, content from pgrecall.session_messages order by position")
    assert [(one["session_id"], one["content"]) for one in left] == [
        ("s1", "c"),
        ("s1", "imported later"),
        ("s1", "d"),
        ("s3", "nothing of it"),
    ]


def test_a_retry_after_the_message_has_gone_puts_it_in_again(db: psycopg.Connection) -> None:
    keep(db, keep_messages=2 * DAY)
    add(db, "s1", NOW - SECOND)
    finish(db, claim_one(db), "error", retry=True, retry_after=3 * DAY)
    set_clock(db, NOW + 4 * DAY)
    assert gone(purge(db)) == {"messages": 1}
    claim_one(db)
    assert value(db, "select content from pgrecall.session_messages") == "[Scheduled recall] go on"


def test_deliveries_go_by_their_end_and_pending_ones_stay(db: psycopg.Connection) -> None:
    delivery(db, NOW - 31 * DAY, "delivered", 1)
    delivery(db, NOW - 31 * DAY, "failed", 2)
    delivery(db, NOW - 31 * DAY, "pending", 3)
    delivery(db, NOW - 29 * DAY, "delivered", 4)
    assert gone(purge(db)) == {"deliveries": 2}
    assert [one["id"] for one in rows(db, "select id from pgrecall.deliveries order by id")] == [3, 4]


def test_rows_of_the_audit_go(db: psycopg.Connection) -> None:
    one = add(db, "s1", NOW + 1000 * DAY)
    for at in (NOW - 366 * DAY, NOW - 364 * DAY):
        set_clock(db, at)
        change(db, one, max_attempts=at.day)
    set_clock(db, NOW)
    assert gone(purge(db)) == {"audit_rows": 1}


def test_reports_about_recalls_that_are_gone_go_as_well(db: psycopg.Connection) -> None:
    one = add(db, "s1", NOW - SECOND)
    taken = claim_one(db)
    call(db, "report_run", run_id=taken["run_id"], reply="Done.")
    purge(db)
    assert value(db, "select count(*) from pgrecall.run_reports") == 1
    db.execute("delete from pgrecall.session_recalls where id = %s", [one])
    purge(db)
    assert value(db, "select count(*) from pgrecall.run_reports") == 0


# Step by step


def test_a_step_deletes_at_most_a_batch_of_each_kind_and_the_oldest_first(db: psycopg.Connection) -> None:
    for number in range(5):
        ended(db, "cancelled", NOW - (200 - number) * DAY, id=f"r{number}")
    db.execute("delete from pgrecall.audit")
    steps = [purge(db, batch=2)]
    assert recalls(db) == {"r2", "r3", "r4"}
    while steps[-1]["next_at"] == steps[-1]["now_at"]:
        steps.append(purge(db, batch=2))
    assert [(step["cancelled"], step["runs"]) for step in steps] == [(2, 2), (2, 2), (1, 1), (0, 0)]
    assert recalls(db) == set()


def test_a_step_goes_on_where_the_last_one_ended_and_the_next_walk_begins_at_the_start(db: psycopg.Connection) -> None:
    for number in range(3):
        ended(db, "cancelled", NOW - (200 - number) * DAY, id=f"r{number}")
    purge(db, batch=1)
    (walk,) = rows(db, "select * from pgrecall.purges")
    assert walk["cancelled_from"] == NOW - 200 * DAY
    # What comes in behind that point is found by the next walk.
    ended(db, "cancelled", NOW - 300 * DAY, id="r3")
    while (step := purge(db, batch=1))["next_at"] == step["now_at"]:
        pass
    assert recalls(db) == {"r3"}
    assert purge(db)["cancelled"] == 1


def test_a_worker_begins_at_the_start_once_a_day_and_people_each_time(db: psycopg.Connection) -> None:
    keep(db, keep_runs=None)
    ended(db, "cancelled", NOW - 200 * DAY, id="first")
    db.execute("delete from pgrecall.audit")

    def walk() -> set[str]:
        while (step := purge(db, batch=1, worker_id="w1"))["next_at"] == step["now_at"]:
            pass
        return recalls(db)

    assert walk() == set()
    ended(db, "cancelled", NOW - 300 * DAY, id="behind")
    ended(db, "cancelled", NOW - 100 * DAY, id="ahead")
    assert walk() == {"behind"}
    set_clock(db, NOW + DAY - SECOND)
    assert walk() == {"behind"}
    set_clock(db, NOW + DAY)
    assert walk() == set()
    ended(db, "cancelled", NOW - 300 * DAY, id="behind again")
    purge(db)
    assert recalls(db) == set()


def test_messages_of_many_sessions_are_walked_through_in_steps(db: psycopg.Connection) -> None:
    keep(db, keep_messages=10 * DAY)
    db.execute("insert into pgrecall.sessions (id) select 's' || n from generate_series(1, 2500) as n")
    db.execute(
        """insert into pgrecall.session_messages (session_id, role, content, created_at)
        select 's' || n, 'user', 'x', %s from generate_series(1, 2500) as n, generate_series(1, 2)""",
        [NOW - 20 * DAY],
    )
    deleted = []
    while True:
        step = purge(db, batch=999)
        deleted.append(step["messages"])
        assert len(deleted) < 20
        if step["next_at"] > step["now_at"]:
            break
    assert sum(deleted) == 5000
    assert max(deleted) == 999


@pytest.mark.parametrize("batch", [0, -1, 100001, None])
def test_a_batch_that_makes_no_sense_is_refused(db: psycopg.Connection, batch: int | None) -> None:
    with refused(db, "PR005") as caught:
        purge(db, batch=batch)
    assert str("null" if batch is None else batch) in str(caught.value)


@pytest.mark.parametrize(
    ("ends", "comes"),
    [
        (NOW - 5 * DAY, NOW + HOUR),  # in 25 days: at the latest in an hour
        (NOW - 30 * DAY + 30 * MINUTE, NOW + 30 * MINUTE),
        (NOW - 30 * DAY + MINUTE, NOW + 10 * MINUTE),  # not before some minutes have passed
    ],
)
@pytest.mark.parametrize("kind", ["recall", "delivery"])
def test_it_says_when_the_next_thing_expires(
    db: psycopg.Connection, kind: str, ends: datetime, comes: datetime
) -> None:
    if kind == "recall":
        ended(db, "fired", ends)
    else:
        delivery(db, ends)
    step = purge(db)
    assert (step["now_at"], step["next_at"]) == (NOW, comes)


def test_with_nothing_to_delete_it_comes_back_in_an_hour_and_writes_nothing(db: psycopg.Connection) -> None:
    purge(db)
    before = rows(db, "select ctid::text from pgrecall.purges")
    step = purge(db, worker_id="w1")
    assert (gone(step), step["next_at"]) == ({}, NOW + HOUR)
    assert rows(db, "select ctid::text from pgrecall.purges") == before


def test_while_one_worker_is_at_it_the_others_leave_it_and_people_do_not(db: psycopg.Connection) -> None:
    for number in range(6):
        ended(db, "cancelled", NOW - (200 - number) * DAY)
    assert gone(purge(db, batch=1, worker_id="w1"))
    other = purge(db, batch=1, worker_id="w2")
    assert (gone(other), other["next_at"]) == ({}, NOW + MINUTE)
    assert gone(purge(db, batch=1, worker_id="w1"))
    assert gone(purge(db, batch=1))
    # Nobody has heard of it for a minute: another one goes on.
    set_clock(db, NOW + MINUTE)
    assert gone(purge(db, batch=1, worker_id="w2"))


@pytest.fixture
def second(database: str) -> Iterator[tuple[psycopg.Connection, psycopg.Connection]]:
    """Two connections to a fresh database, the first in a transaction."""
    with psycopg.connect(database) as one, psycopg.connect(database, autocommit=True) as two:
        two.execute("set lock_timeout = '5s'")
        yield one, two


def test_two_at_a_time_do_not_wait_for_each_other(second: tuple[psycopg.Connection, psycopg.Connection]) -> None:
    one, two = second
    add(two, "s1", status="fired", trigger_at=NOW)
    two.execute("update pgrecall.settings set keep_fired = '0'")
    assert gone(purge(one)) == {"fired": 1}
    step = purge(two)
    assert gone(step) == {}
    assert step["next_at"] - step["now_at"] == MINUTE
    one.rollback()
    assert gone(purge(two)) == {"fired": 1}


@pytest.mark.parametrize("kind", ["fired", "runs", "messages", "deliveries"])
def test_what_is_locked_stays_and_nobody_waits(
    second: tuple[psycopg.Connection, psycopg.Connection], kind: str
) -> None:
    one, two = second
    old = datetime(2020, 1, 1, tzinfo=NOW.tzinfo)
    two.execute("update pgrecall.settings set keep_fired = '0', keep_messages = '2 days', keep_deliveries = '0'")
    add(two, "s1", status="fired", trigger_at=old)
    run(two, old)
    message(two, "s1", old)
    delivery(two, old)
    table = {"fired": "session_recalls", "runs": "recall_runs", "messages": "session_messages"}.get(kind, kind)
    one.execute(sql.SQL("select * from pgrecall.{} for update").format(sql.Identifier(table)))
    assert set(gone(purge(two))) == {"fired", "runs", "messages", "deliveries"} - {kind}
    one.rollback()
    while (step := purge(two))["next_at"] == step["now_at"]:
        pass
    assert value(two, sql.SQL("select count(*) from pgrecall.{}").format(sql.Identifier(table)).as_string()) == 0


# Plans


@pytest.fixture
def large(database: str) -> Iterator[psycopg.Connection]:
    """A history of some size, nine tenths of it expired, and two eligible recalls."""
    with psycopg.connect(database) as db:
        db.execute("insert into pgrecall.sessions (id) select 's' || n from generate_series(1, 2000) as n")
        db.execute(
            """insert into pgrecall.session_recalls
                (session_id, additional_context_message, status, trigger_at, updated_at)
            select 's' || n % 2000 + 1, 'x', (array['fired', 'failed', 'cancelled'])[n % 3 + 1], at, at
            from generate_series(1, 20000) as n,
                lateral (select now() - n * interval '10 minutes' - interval '10 days') as ended (at)"""
        )
        db.execute(
            """insert into pgrecall.recall_runs (recall_id, session_id, nominal_at, finished_at, outcome)
            select 'r', 's1', now() - interval '200 days', now() - interval '200 days', 'success'
            from generate_series(1, 20000)"""
        )
        db.execute(
            """insert into pgrecall.session_messages (session_id, role, content, created_at)
            select 's' || n % 2000 + 1, 'user', 'x', now() - interval '20 days' from generate_series(1, 20000) as n"""
        )
        db.execute(
            """insert into pgrecall.deliveries (id, recall_id, session_id, url, payload, status, created_at, ended_at)
            select n, 'r', 's1', 'http://localhost/', '{}', 'delivered', now(), now() - interval '200 days'
            from generate_series(1, 20000) as n"""
        )
        db.execute("update pgrecall.settings set keep_messages = '2 days'")
        db.commit()
        db.autocommit = True
        db.execute("vacuum analyze")
        yield db


def plans_of_purge(db: psycopg.Connection) -> str:
    """What the planner chose for the statements of one step, as auto_explain tells it."""
    said: list[str] = []
    db.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    db.execute("load 'auto_explain'")
    db.execute("set auto_explain.log_min_duration = 0")
    db.execute("set auto_explain.log_nested_statements = on")
    db.execute("set client_min_messages = log")
    purge(db, batch=10)
    db.execute("reset client_min_messages")
    return "\n".join(said)


def test_each_statement_of_a_step_uses_an_index(large: psycopg.Connection) -> None:
    try:
        said = plans_of_purge(large)
    except psycopg.errors.UndefinedFile:
        pytest.skip("the server does not have auto_explain")
    for index in ("recalls_ended", "recall_runs_pkey", "deliveries_ended", "sessions_pkey", "session_messages_pkey"):
        assert f"using {index}" in said, index
    for table in ("session_recalls", "recall_runs", "session_messages", "sessions"):
        assert f"Seq Scan on {table}" not in said, table


def test_a_step_reads_little_whatever_the_table_has(large: psycopg.Connection) -> None:
    large.execute("select pg_stat_force_next_flush()") if large.info.server_version >= 150000 else None

    def pages() -> int:
        return int(
            value(
                large,
                """select sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)
                from pg_statio_user_tables where schemaname = 'pgrecall'""",
            )
        )

    purge(large, batch=10)
    before = pages()
    purge(large, batch=10)
    assert pages() - before < 3000


# By hand


def history(db: psycopg.Connection) -> None:
    """Of three sessions, two of them ada's: a recall that has ended, its run, a message, a change by hand."""
    add_session(db, "s1", "s2", user_id="ada")
    add_session(db, "s3", user_id="ben")
    for number, days in ((1, 10), (2, 20), (3, 30)):
        ended(db, "fired", NOW - days * DAY, f"s{number}", id=f"r{number}")
        message(db, f"s{number}", NOW - days * DAY)
        set_clock(db, NOW - days * DAY)
        change(db, f"r{number}", max_attempts=9)
        set_clock(db, NOW)
        add(db, f"s{number}", NOW + DAY, id=f"next{number}")


def counts(db: psycopg.Connection) -> dict[str, list[str]]:
    """Whose rows are left of each kind."""
    tables: dict[str, LiteralString] = {
        "recalls": "select session_id from pgrecall.session_recalls where status = 'fired'",
        "pending": "select session_id from pgrecall.session_recalls where status = 'pending'",
        "runs": "select session_id from pgrecall.recall_runs",
        "messages": "select session_id from pgrecall.session_messages",
        "audit": "select session_id from pgrecall.audit where action = 'update'",
    }
    return {name: sorted(one["session_id"] for one in rows(db, statement)) for name, statement in tables.items()}


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        ({"user_id": "ada"}, ["s3"]),
        ({"session_id": "s1"}, ["s2", "s3"]),
        ({"before": NOW - 15 * DAY}, ["s1"]),
        ({"user_id": "ada", "before": NOW - 15 * DAY}, ["s1", "s3"]),
        ({"user_id": "ben", "session_id": "s1"}, ["s1", "s2", "s3"]),
        ({"user_id": "nobody"}, ["s1", "s2", "s3"]),
    ],
)
@pytest.mark.parametrize("everything", [True, False])
def test_by_hand_goes_what_has_ended_of_a_selection_and_nothing_else(
    db: psycopg.Connection, selection: Row, left: list[str], everything: bool
) -> None:
    history(db)
    every = ["s1", "s2", "s3"]
    answer = call_one(db, "purge_history", **selection, with_messages=everything, with_audit=everything)
    assert counts(db) == {
        "recalls": left,
        "pending": every,
        "runs": left,
        "messages": left if everything else every,
        "audit": left if everything else every,
    }
    number = 3 - len(left)
    assert answer == {
        "recalls": number,
        "runs": number,
        "deliveries": 0,
        "messages": number if everything else 0,
        "audit_rows": number if everything else 0,
    }


def test_by_hand_an_empty_selection_is_refused(db: psycopg.Connection) -> None:
    history(db)
    with refused(db, "PR005") as caught:
        call(db, "purge_history", with_messages=True)
    assert "user_id" in str(caught.value.diag.message_hint) + str(caught.value)


def test_by_hand_it_leaves_one_row_in_the_audit_and_none_if_there_was_nothing(db: psycopg.Connection) -> None:
    history(db)
    db.execute("delete from pgrecall.audit")
    call(db, "purge_history", user_id="ada", before=NOW)
    call(db, "purge_history", user_id="ada", before=NOW)
    (found,) = rows(db, "select * from pgrecall.audit")
    assert (found["action"], found["object"], found["owner_id"]) == ("purge", "history", "ada")
    assert (found["new"]["recalls"], found["new"]["runs"], found["new"]["before"][:10]) == (2, 2, "2030-01-01")
    assert value(db, "select count(*) from pgrecall.unaudited") == 0


def test_by_hand_what_the_audit_says_of_a_deleted_user_goes_too(db: psycopg.Connection) -> None:
    history(db)
    db.execute("delete from pgrecall.sessions where user_id = 'ada'")
    assert call_one(db, "purge_history", user_id="ada", with_audit=True)["audit_rows"] == 4
    assert {one["owner_id"] for one in rows(db, "select owner_id from pgrecall.audit where action <> 'purge'")} == {
        "ben"
    }


def test_by_hand_what_is_under_way_stays(db: psycopg.Connection) -> None:
    retried = add(db, "s1", NOW - SECOND)
    finish(db, claim_one(db), "error", retry=True)
    runs = add_recurring(db, "s2", NOW - SECOND)
    claim_one(db)
    ended(db, "fired", NOW, "s3", deliver_to="http://localhost/hook", id="on its way")
    answer = call_one(db, "purge_history", before=NOW + DAY)
    assert set(answer.values()) == {0}
    assert recalls(db) == {retried, runs, "on its way"}
    assert value(db, "select count(*) from pgrecall.recall_runs") == 2


# What the tables stand on


def test_hot_tables_have_room_and_are_vacuumed_early(db: psycopg.Connection) -> None:
    found = rows(
        db,
        """select relname, reloptions from pg_class
        where relnamespace = 'pgrecall'::regnamespace and relkind = 'r' and reloptions is not null""",
    )
    options = {one["relname"]: dict(option.split("=") for option in one["reloptions"]) for one in found}
    assert {name: known.get("fillfactor") for name, known in options.items() if "fillfactor" in known} == {
        "session_recalls": "80",
        "sessions": "80",
        "workers": "50",
        "purges": "50",
    }
    early = {name for name, known in options.items() if known.get("autovacuum_vacuum_scale_factor") == "0.02"}
    assert early == {"session_recalls", "sessions", "recall_runs", "session_messages", "deliveries", "audit"}


def test_holding_renewing_and_running_update_sessions_in_place(database: str) -> None:
    """The triggers and indexes of the audit and of retention must not change that: hot rows stay hot."""
    with psycopg.connect(database, autocommit=True) as db:
        add_session(db, "s1")
        for _ in range(20):
            add(db, "s1", datetime(2020, 1, 1, tzinfo=NOW.tzinfo))
            finish(db, claim_one(db))
        if db.info.server_version >= 150000:
            db.execute("select pg_stat_force_next_flush()")
        else:
            db.execute("select pg_stat_clear_snapshot(), pg_sleep(1)")
        (found,) = rows(
            db,
            """select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables
            where relname = 'sessions' and schemaname = 'pgrecall'""",
        )
        assert found["n_tup_upd"] == found["n_tup_hot_upd"] > 0
