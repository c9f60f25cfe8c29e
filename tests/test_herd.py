"""Many workers and one recall: one of them looks, the others are told that they need not (docs/wake-up.md, "The herd").

What is said, and that it is never wrong, is in tests/sql/test_wake.py. Here are the workers that hear it.
"""

from __future__ import annotations

import re
import signal
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import psycopg
import pytest
import structlog
from roletools import logins
from sqltools import add, microseconds, outcomes, row, value, wait_until
from upgrade.previous import RELEASES, Previous
from workerprocess import Start, WorkerProcess, now, worker_processes
from workertools import Recorder, Sql, sql, until, working

from pgrecall import CurrentRecall, Worker

pytestmark = pytest.mark.anyio

#: Much later than any of these recalls, and than the end of these tests.
_LATER = timedelta(hours=1)

#: A worker that must wait for its safety re-read, or for a lease to end, is later than that.
_IN_TIME = timedelta(seconds=10)


async def _looks(db: Sql) -> int:
    """How many calls of claim() there have been."""
    found = await db(
        "select coalesce(sum(calls), 0)::integer from pg_stat_statements where toplevel "
        "and dbid = (select oid from pg_database where datname = current_database()) "
        "and query like '%%from pgrecall.claim(%%'"
    )
    return int(found[0])


async def _questions(db: Sql) -> int:
    """How often workers have asked who sent a notification."""
    found = await db(
        "select coalesce(sum(calls), 0)::integer from pg_stat_statements "
        "where dbid = (select oid from pg_database where datname = current_database()) "
        "and query like '%%has_function_privilege(sender.usesysid%%'"
    )
    return int(found[0])


async def _is_believed(db: Sql, worker: Worker) -> None:
    """Wait until the worker knows that this connection is a worker's, or of somebody who could be one."""
    pid = db.connection.info.backend_pid

    async def known() -> bool:
        return worker._senders.may_claim(pid)

    await until(known)


async def _fire_one(db: Sql, session_id: str) -> None:
    await db.session(session_id)
    await db.ended(await db.recall(session_id))


async def _looks_for_each_of(recalls: int, workers: int, dsn: str) -> float:
    """How many looks a recall costs that falls due alone."""
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(sql(dsn))
        await db("create extension if not exists pg_stat_statements")
        for _ in range(workers):
            await stack.enter_async_context(working(dsn, Recorder()))
        await db.asleep(workers)
        # From the first recall on, one of them is the first to look.
        await _fire_one(db, f"first of {workers}")
        names = [f"{number} of {workers}" for number in range(recalls)]
        await db.session(*names)
        # One statement for all of them, so that one announcement wakes for all.
        await db(
            "insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message) "
            "select name, now() + interval '0.5 seconds' + place * interval '0.2 seconds', 'hello' "
            "from unnest(%s::text[]) with ordinality as one (name, place)",
            names,
        )
        await db.asleep(workers)
        before = await _looks(db)

        async def all_ended() -> bool:
            left = "select count(*) from pgrecall.session_recalls where status <> 'fired' or run_id is not null"
            return await db(left) == [0]

        await until(all_ended)
        return (await _looks(db) - before) / recalls


async def test_sixteen_workers_look_hardly_more_often_than_one(database: str) -> None:
    alone = await _looks_for_each_of(10, 1, database)
    together = await _looks_for_each_of(10, 16, database)
    # And one statement for the outcome, whoever it is.
    assert 1 + together < 2 * (1 + alone)


async def test_when_the_first_has_no_free_slot_another_one_takes_the_next(database: str) -> None:
    release = anyio.Event()

    async def then(recall: CurrentRecall) -> str | None:
        if recall.additional_context_message == "long":
            await release.wait()
        return None

    agent = Recorder(then)
    async with sql(database) as db, AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(working(database, agent, concurrency=1))
        await db.asleep(3)
        await _fire_one(db, "s1")
        await db.session("s2", "s3", "s4", "s5")
        long = [await db.recall("s2", message="long"), await db.recall("s3", message="long")]
        await agent.count(3)
        for session_id in ("s4", "s5"):
            await db.ended(await db.recall(session_id, "now() + interval '0.3 seconds'"))
        release.set()
        for recall_id in long:
            await db.ended(recall_id)


async def test_a_worker_that_is_left_alone_goes_on_and_tells_nobody(database: str) -> None:
    """The one that was has stopped, and nobody says that it has."""
    agent = Recorder()
    async with sql(database) as db, working(database, agent) as worker:
        async with working(database, agent) as other:
            await db.asleep(2)
            await _fire_one(db, "s1")
            await _is_believed(db, worker)
            await db("select pg_notify('pgrecall', %s)", _next(datetime.now(UTC) + _LATER, name=other.worker_id))
        for session_id in ("s2", "s3"):
            await _fire_one(db, session_id)
        # What it took last it has told nobody.
        assert await db("select last_value from pgrecall.untold") == [1]


def _next(when: datetime, at: datetime | None = None, name: str = "another") -> str:
    """What a worker that looked at that time, or now, says."""
    return f"next {microseconds(when)} {microseconds(at or datetime.now(UTC))} {name}"


async def _silently(db: Sql, session_id: str, due: datetime) -> str:
    """A recall that nobody has been told of."""
    await db("alter table pgrecall.session_recalls disable trigger announce_insert")
    recall_id = await db.recall(session_id, f"timestamptz '{due.isoformat()}'")
    await db("alter table pgrecall.session_recalls enable always trigger announce_insert")
    return recall_id


async def test_a_worker_sleeps_until_the_time_that_it_is_told(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db, working(database, agent) as worker:
        await db.session("s1")
        await _is_believed(db, worker)
        await db.asleep()
        due = datetime.now(UTC) + timedelta(seconds=0.5)
        told = due + timedelta(seconds=0.5)
        recall_id = await db.recall("s1", f"timestamptz '{due.isoformat()}'")
        await db("select pg_notify('pgrecall', %s)", _next(told))
        await db.ended(recall_id)
        assert (await db("select started_at from pgrecall.recall_runs"))[0] >= told


async def test_what_an_older_look_has_told_is_not_obeyed(database: str) -> None:
    """It may have missed what the worker's own look has seen."""
    async with sql(database) as db, working(database, Recorder()) as worker:
        await db.session("s1")
        await _is_believed(db, worker)
        recall_id = await db.recall("s1", "now() + interval '1 second'")
        at = datetime.now(UTC)
        await db("select pg_notify('pgrecall', 'due 0')")
        await db.asleep()

        async def looked() -> bool:
            found = await db("select last_value from pgrecall.armed_until")
            return bool(found[0] < microseconds(at + _LATER))

        await until(looked)
        await db("select pg_notify('pgrecall', %s)", _next(at + _LATER, at - timedelta(seconds=60)))
        await db.ended(recall_id)


async def test_a_worker_that_is_named_after_it_has_set_its_alarm_is_not_later_than_it_should(database: str) -> None:
    """The others give it a head start; if it gave one to somebody, too, nobody would look in time."""
    async with sql(database) as db, working(database, Recorder()) as worker:
        await db.session("s1")
        await _is_believed(db, worker)
        await db("select pg_notify('pgrecall', %s)", _next(datetime.now(UTC) + _LATER, datetime.now(UTC)))

        async def is_second() -> bool:
            return not worker._is_first

        await until(is_second)
        worker._heard_after.append(3600.0)  # a head start of a tenth of a second at least
        at = datetime.now(UTC) + timedelta(seconds=3)
        await db.recall("s1", f"'{at.isoformat()}'")
        await db("select pg_notify('pgrecall', 'due 0')")

        async def is_armed() -> bool:
            return worker._next_at < worker._alarm.at < worker._next_at + 1

        await until(is_armed)
        own = f"next {microseconds(at)} {microseconds(datetime.now(UTC))} {worker.worker_id}"
        await db("select pg_notify('pgrecall', %s)", own)

        async def is_exact() -> bool:
            return worker._is_first and worker._alarm.at <= worker._next_at

        await until(is_exact)
        assert datetime.now(UTC) < at  # by what it heard, and not because it has looked meanwhile


@pytest.mark.parametrize("sign", ["+", ""])
async def test_only_what_a_look_may_have_missed_is_not_taken_back(database: str, sign: str) -> None:
    async with sql(database) as db, working(database, Recorder()) as worker:
        await db.session("s1", "s2")
        await _is_believed(db, worker)
        await db.asleep()
        first = datetime.now(UTC) + timedelta(seconds=0.5)
        second = first + timedelta(seconds=0.5)
        recall_ids = [await _silently(db, "s1", first), await _silently(db, "s2", second)]
        await db("select pg_notify('pgrecall', %s)", f"due {sign}{microseconds(first)}")
        await db("select pg_notify('pgrecall', %s)", _next(second))
        for recall_id in recall_ids:
            await db.ended(recall_id)
        started = await db("select started_at from pgrecall.recall_runs order by nominal_at")
        assert (started[0] < second) is (sign == "+")


async def test_words_that_nobody_says_are_passed_over(database: str) -> None:
    async with sql(database) as db, working(database, Recorder()):
        await db.asleep()
        words = ["next", "next 1", "next 1 2", "next x y z", f"next {'9' * 400} 1 w", "due", "due +", "due x", "stop"]
        words += ["stop x", "stop -1", "report", "report x", "deliver", "deliver 1", "deliver x w", ""]
        with structlog.testing.capture_logs() as events:
            for payload in words:
                await db("select pg_notify('pgrecall', %s)", payload)
            await _fire_one(db, "s1")
        assert not [event for event in events if event["event"] == "loop_error"]


@pytest.mark.parametrize("sign", ["", "+"])
async def test_a_time_before_1970_is_heard(database: str, sign: str) -> None:
    async with sql(database) as db, working(database, Recorder()):
        await db.session("s1")
        await db.asleep()
        at = datetime(1965, 1, 1, tzinfo=UTC)
        recall_id = await _silently(db, "s1", at)
        await db("select pg_notify('pgrecall', %s)", f"due {sign}{microseconds(at)}")
        await db.ended(recall_id)


async def _flood(dsn: str, *, hung_up: bool) -> None:
    """A login says again and again that nothing is due for a long time, on one connection or each time on a new one."""
    async with AsyncExitStack() as stack:
        stranger = None
        while True:
            if stranger is None or hung_up:
                await stack.aclose()
                stranger = await stack.enter_async_context(sql(dsn))
            await stranger("select pg_notify('pgrecall', %s)", _next(datetime.now(UTC) + _LATER))


@pytest.mark.parametrize("hung_up", [False, True])
async def test_what_is_next_is_not_believed_of_those_who_may_not_claim(database: str, hung_up: bool) -> None:
    with logins(database, producer="producer", worker="worker") as dsns:
        async with sql(database) as db, sql(dsns["producer"]) as producer:
            await db("create extension if not exists pg_stat_statements")
            async with working(dsns["worker"], Recorder()), anyio.create_task_group() as tasks:
                await db.asleep()
                tasks.start_soon(lambda: _flood(dsns["producer"], hung_up=hung_up))

                async def asked() -> bool:
                    return await _questions(db) > 0

                await until(asked)
                for number in range(3):
                    await db.session(f"s{number}")
                    due = datetime.now(UTC) + timedelta(seconds=0.7)
                    recall_id = await db.recall(f"s{number}", f"timestamptz '{due.isoformat()}'")
                    await producer("select pg_notify('pgrecall', %s)", _next(due + _LATER))
                    await db.ended(recall_id)
                # They become rarer while only strangers speak, and there is none for each message.
                assert await _questions(db) <= 15
                tasks.cancel_scope.cancel()


async def test_workers_are_believed_in_their_role_and_asked_about_once(database: str) -> None:
    with logins(database, worker="worker", twin="worker") as dsns:
        async with sql(database) as db, sql(dsns["twin"]) as twin:
            await db("create extension if not exists pg_stat_statements")
            async with working(dsns["worker"], Recorder()) as worker:
                await db.session("s1")
                await _fire_one(db, "alone")
                await _fire_one(db, "alone again")
                assert await _questions(db) == 0
                await _is_believed(twin, worker)
                asked = await _questions(db)
                due = datetime.now(UTC) + timedelta(seconds=0.5)
                told = due + timedelta(seconds=0.5)
                recall_id = await db.recall("s1", f"timestamptz '{due.isoformat()}'")
                for _ in range(100):
                    await twin("select pg_notify('pgrecall', %s)", _next(told))
                await db.ended(recall_id)
                started = "select started_at from pgrecall.recall_runs where recall_id = %s"
                assert (await db(started, recall_id))[0] >= told
                assert await _questions(db) == asked == 1


async def test_nobody_is_known_after_a_reconnect(database: str) -> None:
    """The server may be another one, with other processes of the same numbers."""
    async with sql(database) as db, working(database, Recorder()) as worker:
        await db.asleep()
        await _is_believed(db, worker)
        assert await db(
            "select pg_terminate_backend(held.pid) from pgrecall.workers join pg_locks as held "
            "on (held.classid::bigint << 32 | held.objid::bigint) = lifelines[2] and held.locktype = 'advisory'"
        ) == [True]

        async def unknown() -> bool:
            return not worker._senders._known

        await until(unknown)
        await _is_believed(db, worker)


def _worker_of(db: psycopg.Connection, recall_id: str) -> str:
    found: str = value(db, "select worker_id from pgrecall.recall_runs where recall_id = %s", recall_id)
    return found


def _fire(db: psycopg.Connection, name: str, due: datetime) -> timedelta:
    """Wait until a recall has fired; how late that was."""
    add(db, name, due, id=name)
    wait_until(lambda: outcomes(db, name) == ["success"], f"{name} has fired")
    run = row(db, "select started_at - nominal_at as late from pgrecall.recall_runs where recall_id = %s", name)
    late: timedelta = run["late"]
    return late


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_nobody_waits_for_a_first_one_that_is_gone(database: str, start: Start, number: signal.Signals) -> None:
    workers = {str(worker.process.pid): worker for worker in [start("--safety-interval", "1h") for _ in range(3)]}
    with psycopg.connect(database, autocommit=True) as db:
        for name in ("one", "two"):
            _fire(db, name, now())
        first: WorkerProcess = workers[re.split(":", _worker_of(db, "two"))[-2]]
        # A recall that all of them wait for, when the first one is gone.
        add(db, "s", due := now() + timedelta(seconds=1.5), id="next")
        first.send(number)
        wait_until(lambda: outcomes(db, "next") == ["success"], "the next one has fired")
        assert value(db, "select started_at from pgrecall.recall_runs where recall_id = 'next'") - due < _IN_TIME / 10
        assert _fire(db, "another", now() + timedelta(seconds=0.5)) < _IN_TIME / 10


@pytest.mark.parametrize("former", RELEASES, ids=lambda former: former.version)
def test_workers_of_the_releases_go_on_beside_it(database: str, start: Start, former: Previous, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with (
        worker_processes(tmp_path / "old", database, former.wheel) as start_old,
        psycopg.connect(database, autocommit=True) as db,
    ):
        old = start_old("--safety-interval", "1h", "--concurrency", "1")
        new = start("--safety-interval", "1h", "--concurrency", "1")
        for number in range(6):
            assert _fire(db, f"both {number}", now() + timedelta(seconds=0.2)) < _IN_TIME / 10
        new.process.kill()
        assert _fire(db, "old", now() + timedelta(seconds=0.2)) < _IN_TIME / 10
        assert [event for event in old.events if event.get("level") in ("warning", "error")] == []


def test_a_worker_without_lifelines_is_missed_when_its_lease_ends(database: str, start: Start) -> None:
    """The others have not looked since its lease began: they were told when it ends."""
    workers = [start("--safety-interval", "1h", "--reconnect-grace", "0s", "--lease", "2s") for _ in range(2)]
    with psycopg.connect(database, autocommit=True) as db:
        _fire(db, "one", now())
        started = time.monotonic()
        add(db, "s", now(), id="long", additional_context_message="sleep 1")
        wait_until(lambda: value(db, "select run_id from pgrecall.session_recalls where id = 'long'"), "it runs")
        name: str = value(db, "select worker_id from pgrecall.session_recalls where id = 'long'")
        (dead,) = [worker for worker in workers if f":{worker.process.pid}:" in name]
        dead.process.kill()
        wait_until(lambda: outcomes(db, "long") == ["lost", "success"], "the other one has run it")
        assert time.monotonic() - started < _IN_TIME.total_seconds()
