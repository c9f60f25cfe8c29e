"""Retention by real workers: they purge by themselves, one at a time, beside their runs, and die without harm."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import cast

import anyio
import psycopg
import pytest
from sqltools import add, add_session, value, wait_until
from structlog.testing import capture_logs
from workerprocess import Start, now
from workertools import Recorder, sql, until, working

from pgrecall import PurgeStep, RecallScheduler, SyncRecallScheduler, _purge, calls
from pgrecall.database import AsyncDatabase

#: Rows that are a year over their time, by kind of table.
OLD = 12_000
SOME = 6_000


@pytest.fixture
def db(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        add_session(connection, "s1")
        yield connection


def fill(db: psycopg.Connection, number: int = OLD) -> None:
    """As much history that has expired."""
    db.execute(
        """insert into pgrecall.session_recalls
            (id, session_id, additional_context_message, status, trigger_at, updated_at)
        select 'old ' || n, 's1', 'x', 'fired', ended, ended
        from generate_series(1, %s) as n, lateral (select now() - interval '1 year' + n * interval '1 second' as ended)
            as x""",
        [number],
    )
    db.execute(
        """insert into pgrecall.recall_runs (recall_id, session_id, nominal_at, finished_at, outcome)
        select 'old ' || n, 's1', now() - interval '1 year', now() - interval '1 year', 'success'
        from generate_series(1, %s) as n""",
        [number],
    )


def old(db: psycopg.Connection) -> int:
    found: int = value(db, "select count(*) from pgrecall.session_recalls where id like 'old %%'") + value(
        db, "select count(*) from pgrecall.recall_runs where recall_id like 'old %%'"
    )
    return found


def slow_down(db: psycopg.Connection) -> None:
    """Each step takes so long that a test can look at it: a trigger of the host on what is deleted."""
    db.execute(
        """create function public.slowly() returns trigger language plpgsql as
        'begin perform pg_sleep(0.05); return null; end'"""
    )
    db.execute(
        """create trigger slowly after delete on pgrecall.session_recalls for each statement
        execute function public.slowly()"""
    )


def test_a_worker_purges_by_itself_while_recalls_fire_in_time(db: psycopg.Connection, start: Start) -> None:
    fill(db)
    worker = start("--safety-interval", "1h")
    fired = 0
    while old(db):
        fired += 1
        add_session(db, f"due {fired}")
        add(db, f"due {fired}", now(), id=f"due {fired}")
        wait_until(
            lambda: not value(db, "select count(*) from pgrecall.session_recalls where due_at is not null"), "it"
        )
    assert worker.event("purged")["rows"] == 2 * OLD
    wait_until(
        lambda: not value(db, "select count(*) from pgrecall.session_recalls where run_id is not null"), "the end"
    )
    late = value(db, "select max(extract(epoch from lateness)) from pgrecall.recall_runs where recall_id like 'due %%'")
    assert fired >= 2
    assert late < 2, (late, fired)
    assert not worker.all("purge_failed")
    assert value(db, "select count(*) from pgrecall.audit") == 0


def test_of_two_workers_one_purges_and_the_other_leaves_it(db: psycopg.Connection, start: Start) -> None:
    slow_down(db)
    fill(db, SOME)
    workers = [start(), start()]
    seen = set()

    def all_is_gone() -> bool:
        seen.add(value(db, "select worker_id from pgrecall.purges"))
        return old(db) == 0

    wait_until(all_is_gone, "all is gone")
    assert len(seen - {None}) == 1
    wait_until(lambda: any(worker.all("purged") for worker in workers), "one says so")
    assert [event["rows"] for worker in workers for event in worker.all("purged")] == [2 * SOME]


def test_a_worker_killed_in_the_middle_loses_nothing_and_another_goes_on(db: psycopg.Connection, start: Start) -> None:
    slow_down(db)
    fill(db, SOME)
    add(db, "s1", now().replace(year=2100), id="pending")
    first = start()
    wait_until(lambda: old(db) < 2 * SOME, "the first has begun")
    first.send(signal.SIGKILL)
    first.ended()
    left = old(db)
    assert left > 0
    # Each step is all or nothing: a recall is there or not, and no marker is left behind.
    assert left % 1000 == 0
    assert value(db, "select count(*) from pgrecall.unaudited") == 0
    # Its minute is over.
    db.execute("update pgrecall.purges set walked_at = walked_at - interval '1 minute'")
    second = start()
    wait_until(lambda: old(db) == 0, "the second has gone on")
    assert second.event("purged")["rows"] <= left
    assert value(db, "select array_agg(id) from pgrecall.session_recalls") == ["pending"]


@pytest.mark.anyio
async def test_an_error_is_said_once_and_tried_again(
    database: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(db, 10)
    db.execute(
        """create function public.refuse() returns trigger language plpgsql as
        $$ begin perform nextval('public.tries'); raise exception 'the host keeps this'; end $$"""
    )
    db.execute("create sequence public.tries")
    db.execute(
        "create trigger refuse before delete on pgrecall.session_recalls for each row execute function public.refuse()"
    )
    for name in ("_FIRST_WITHIN", "_AGAIN", "_LONGEST"):
        monkeypatch.setattr(f"pgrecall._purge.{name}", 0.02)

    async def tried_often() -> bool:
        return bool(value(db, "select last_value > 3 from public.tries"))

    async def is_gone() -> bool:
        return old(db) == 0

    with capture_logs() as events:
        async with RecallScheduler(database) as scheduler, anyio.create_task_group() as tasks:
            tasks.start_soon(_purge.Purger("w1", scheduler.database).run)
            await until(tried_often)
            db.execute("drop trigger refuse on pgrecall.session_recalls")
            await until(is_gone)
            tasks.cancel_scope.cancel()
    (said,) = [event for event in events if event["event"] == "purge_failed"]
    assert "the host keeps this" in said["error"]


@pytest.mark.anyio
async def test_an_idle_worker_purges_once_and_then_not_before_an_hour_has_passed(database: str) -> None:
    async with sql(database) as db, working(database, Recorder()):
        await db("create extension pg_stat_statements")

        async def purges() -> int:
            found = await db(
                "select coalesce(sum(calls), 0)::integer from pg_stat_statements where toplevel "
                "and query like '%%pgrecall.purge(%%' and query not like '%%pg_stat%%' "
                "and dbid = (select oid from pg_database where datname = current_database())"
            )
            return int(found[0])

        await until(purges)
        step = await db("select next_at - now_at = interval '1 hour' from pgrecall.purge()")
        assert step == [True]
        assert await purges() <= 2  # the worker's and ours


@pytest.mark.anyio
async def test_the_worker_calls_again_exactly_when_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the database and of this machine may differ: only the time between the two of the answer counts."""
    slept: list[float] = []
    ended = anyio.Event()
    steps = iter([(5.0, 7), (0.0, 3), (0.0, 2), (3600.0, 1), (3600.0, 0)])

    class Database:
        async def run(self, call: calls.Call[object]) -> list[object]:
            assert call.arguments["worker_id"] == "w1"
            left, rows = next(steps)
            at = datetime(2000, 1, 1, tzinfo=UTC)
            kinds = dict.fromkeys(("failed", "cancelled", "runs", "messages", "deliveries", "audit_rows"), 0)
            return [PurgeStep(now_at=at, next_at=at + timedelta(seconds=left), fired=rows, **kinds)]

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 6:
            ended.set()
            await anyio.Event().wait()

    monkeypatch.setattr("anyio.sleep", sleep)
    with capture_logs() as events:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_purge.Purger("w1", cast("AsyncDatabase", Database())).run)
            await ended.wait()
            tasks.cancel_scope.cancel()
    assert slept[1:] == [5.0, pytest.approx(0.1, abs=0.1), pytest.approx(0.1, abs=0.1), 3600.0, 3600.0]
    assert [event["rows"] for event in events if event["event"] == "purged"] == [7, 6]


# The faces


def test_the_scheduler_purges_and_reads_the_audit(database: str, db: psycopg.Connection) -> None:
    fill(db, 3)
    add(db, "s1", now().replace(year=2100), id="mine")
    with SyncRecallScheduler(database) as scheduler:
        step = scheduler.purge(batch=2)
        assert (step.fired, step.runs, step.rows, step.next_at == step.now_at) == (2, 2, 4, True)
        gone = scheduler.purge_history(session_id="s1")
        assert (gone.recalls, gone.runs, gone.messages) == (1, 1, 0)
        scheduler.reschedule("mine", now().replace(year=2101))
        (moved,) = scheduler.get_audit("mine")
        assert (moved.action, moved.object_id, set(moved.new or {})) == ("update", "mine", {"trigger_at"})
        assert [change.action for change in scheduler.get_audit(session_id="s1")] == ["update", "purge"]
