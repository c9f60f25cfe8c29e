"""Poolers and modes: everything but LISTEN through a pgbouncer, workers that poll, and what is told at the start."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from faults.proxy import Proxy
from outages import heard, looked
from pgbouncer import PgBouncer, pgbouncer
from psycopg.conninfo import conninfo_to_dict
from structlog.testing import capture_logs
from workertools import NEVER, Recorder, sql, until, working

from pgrecall import (
    CurrentRecall,
    PostgresSessionStore,
    RecallExistsError,
    RecallScheduler,
    SettingsError,
    SyncRecallScheduler,
    Worker,
    recall_scheduler_loop,
)
from pgrecall.doctor import examine
from pgrecall.doctor.finding import Check

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent


@pytest.fixture
def pooler(database: str) -> Iterator[PgBouncer]:
    """A pgbouncer in transaction mode in front of the test's server."""
    with pgbouncer(database) as running:
        yield running


# Through a transaction pooler


async def test_a_scheduler_works_through_a_transaction_pooler_whatever_the_role_has_set(
    database: str, pooler: PgBouncer
) -> None:
    """No statement may need what an earlier one prepared or set: each may be served by another server process."""
    async with sql(database) as db:
        name = (await db("select quote_ident(current_database())"))[0]
        await db(f"alter database {name} set default_transaction_isolation = 'repeatable read'")
        await db(f"alter database {name} set datestyle = 'SQL, DMY'")
        await db(f"alter database {name} set timezone = 'Asia/Tokyo'")
    async with RecallScheduler(pooler.dsn(database)) as recalls:
        await recalls.ensure_tables()
        store = PostgresSessionStore(recalls)

        async def use(session_id: str) -> None:
            await store.create(session_id)
            for _ in range(8):  # more often than the driver waits before it prepares a statement
                made = await recalls.schedule_recall(
                    session_id=session_id, additional_context_message="hi", metadata={"a": [1]}
                )
                assert (made.metadata, made.trigger_at.utcoffset()) == ({"a": [1]}, made.created_at.utcoffset())
                with pytest.raises(RecallExistsError, match=session_id):
                    await recalls.schedule_recall(session_id=session_id, additional_context_message="hi")
                assert await recalls.cancel_recall(session_id)

        await asyncio.gather(*(use(f"s{number}") for number in range(6)))
        for _ in range(8):
            assert await recalls.get_next_trigger_at() is None
        listed = await recalls.list_recalls(is_admin=True, limit=100)
        assert Counter(recall.status for recall in listed) == {"cancelled": 48}
    with SyncRecallScheduler(pooler.dsn(database)) as recalls_in_threads:
        for _ in range(8):
            recalls_in_threads.schedule_recall(session_id="s0", additional_context_message="hi")
            with pytest.raises(RecallExistsError):
                recalls_in_threads.schedule_recall(session_id="s0", additional_context_message="hi")
            assert recalls_in_threads.cancel_recall("s0")
        for _ in range(8):
            assert recalls_in_threads.get_next_trigger_at() is None


async def test_nothing_is_left_behind_on_the_connections_that_a_pooler_shares(database: str) -> None:
    async with sql(database) as db:  # so that our settings would be seen
        name = (await db("select quote_ident(current_database())"))[0]
        for setting in ("default_transaction_isolation = 'serializable'", "idle_session_timeout = '1h'"):
            await db(f"alter database {name} set {setting}")
    with pgbouncer(database, size=1) as pooler:
        dsn = pooler.dsn(database)
        async with sql(dsn) as neighbour:
            before = await neighbour("select name, setting from pg_settings where name <> 'application_name'")
            async with RecallScheduler(dsn) as recalls:
                for _ in range(8):
                    await recalls.get_next_trigger_at()
            assert await neighbour("select name, setting from pg_settings where name <> 'application_name'") == before
            assert await neighbour("select name from pg_prepared_statements") == []


async def test_a_direct_connection_prepares_what_it_repeats_and_sets_what_it_needs(database: str) -> None:
    async with RecallScheduler(database, pool_size=1) as recalls:
        for _ in range(8):
            await recalls.get_next_trigger_at()
        statements = await recalls.database.query("select statement from pg_prepared_statements", {})
        assert ["get_next_trigger_at" in row["statement"] for row in statements] == [True]
        names = ("default_transaction_isolation", "idle_session_timeout")
        settings = await recalls.database.query(
            "select setting from pg_settings where name = any(%(names)s) order by name", {"names": list(names)}
        )
        assert [row["setting"] for row in settings] == ["read committed", "0"]


async def test_a_worker_behind_a_transaction_pooler_does_everything_with_a_direct_listener(
    database: str, pooler: PgBouncer
) -> None:
    told = anyio.Event()
    release = anyio.Event()

    async def then(recall: CurrentRecall) -> str | None:
        if recall.session_id == "cancelled":
            try:
                await anyio.sleep_forever()
            finally:
                told.set()
        if recall.session_id == "long":
            await release.wait()
        return recall.session_id

    agent = Recorder(then)
    dsn = pooler.dsn(database)
    async with sql(database) as db, sql(dsn) as producer:
        producer.connection.prepare_threshold = None
        name = (await db("select quote_ident(current_database())"))[0]
        await db(f"alter database {name} set default_transaction_isolation = 'serializable'")
        async with working(dsn, agent, listen_dsn=database, lease=1.2, concurrency=20, poll_interval=None):
            await looked(db)
            names = [f"s{number}" for number in range(30)]
            await db.session("long", "cancelled", "later", *names)
            long = await producer.recall("long")
            cancelled = await producer.recall("cancelled")
            later = await producer.recall("later", "now() + interval '1 hour'")
            await agent.count(2)
            many = [await producer.recall(session_id) for session_id in names]
            await producer("update pgrecall.session_recalls set status = 'cancelled' where id = %s", cancelled)
            await producer("update pgrecall.session_recalls set trigger_at = now() where id = %s", later)
            with anyio.fail_after(10):
                await told.wait()
            for recall_id in [later, *many]:
                await db.ended(recall_id)

            async def renewed() -> bool:
                lease = await db(
                    "select lease_until - claimed_at > interval '4 s' from pgrecall.session_recalls as recall "
                    "join pgrecall.workers as worker on worker.id = recall.worker_id where recall.run_id is not null"
                )
                return lease == [True]

            await until(renewed)  # ten times: a prepared statement would have failed by now
            release.set()
            await db.ended(long)
        outcomes = await db("select outcome, count(*)::int from pgrecall.recall_runs group by 1 order by 1")
        assert outcomes == [("interrupted", 1), ("success", 32)]
        assert await db("select count(*) from pgrecall.workers") == [0]


async def test_a_worker_survives_its_poolers_death_and_says_so_once(database: str, pooler: PgBouncer) -> None:
    release = anyio.Event()

    async def then(recall: CurrentRecall) -> str | None:
        if recall.session_id == "long":
            await release.wait()
        return None

    agent = Recorder(then)
    with capture_logs() as events:
        async with (
            sql(database) as db,
            working(pooler.dsn(database), agent, listen_dsn=database, reconnect_grace=None) as worker,
        ):
            await looked(db)
            await db.session("long", "s1", "s2")
            long = await db.recall("long")
            await agent.count(1)
            pooler.kill()
            first = await db.recall("s1")

            async def noticed() -> bool:
                return bool(heard(events, "loop_error"))

            await until(noticed)
            release.set()
            await anyio.sleep(1)  # time to complain again
            pooler.start()
            await db.ended(first)
            await db.ended(long)
            await db.ended(await db.recall("s2"))
            assert await db("select count(*) from pgrecall.recall_runs where outcome = 'success'") == [3]
    assert len([event for event in heard(events, "loop_error") if "recall_id" not in event]) == 1
    assert len(heard(events, "loop_restored")) == 1
    assert not heard(events, "listener_lost")
    assert worker.worker_id


# LISTEN that nobody hears


async def test_listening_through_a_transaction_pooler_is_refused_with_what_to_do(
    database: str, pooler: PgBouncer
) -> None:
    with pytest.raises(SettingsError, match="transaction pooler, which delivers none") as refused:
        await Worker(pooler.dsn(database), agent=Recorder()).run()
    assert "--listen-dsn" in refused.value.hint
    assert "--poll-interval" in refused.value.hint
    async with sql(database) as db:
        assert await db("select count(*) from pgrecall.workers") == [0]


async def test_a_pooler_in_session_mode_is_no_obstacle(database: str) -> None:
    agent = Recorder()
    with pgbouncer(database, mode="session") as pooler:
        async with sql(database) as db, working(pooler.dsn(database), agent):
            await looked(db)
            await db.session("s1")
            await db.ended(await db.recall("s1"))


async def test_a_listener_at_another_database_is_refused_by_name(database: str, empty_database: str) -> None:
    with pytest.raises(SettingsError, match="another database") as refused:
        await Worker(database, agent=Recorder(), listen_dsn=empty_database).run()
    for dsn in (database, empty_database):
        assert str(conninfo_to_dict(dsn)["dbname"]) in str(refused.value)


async def test_a_slow_server_is_not_taken_for_a_deaf_one(database: str) -> None:
    """Nothing is concluded from how long the notification takes."""
    agent = Recorder()
    with Proxy(database) as slow:
        slow.delay(1.2)
        with capture_logs() as events:
            async with sql(database) as db, working(database, agent, listen_dsn=slow.dsn):

                async def started() -> bool:
                    return bool(heard(events, "worker_started"))

                await until(started, deadline=40)
                slow.heal()
                await db.session("s1")
                await db.ended(await db.recall("s1"))


async def test_the_loop_beside_a_web_server_says_once_that_it_cannot_listen(database: str, pooler: PgBouncer) -> None:
    with capture_logs() as events:
        async with RecallScheduler(pooler.dsn(database)) as recalls:
            loop = asyncio.create_task(recall_scheduler_loop(recalls, agent=Recorder()))

            async def tried(times: int) -> bool:
                return len(heard(events, "worker_stopped")) >= times

            await until(lambda: tried(2), deadline=20)
            loop.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loop
    (complaint,) = heard(events, "loop_error")
    assert "transaction pooler" in complaint["error"]
    assert "--listen-dsn" in complaint["error"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the worker command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pgrecall", "worker", "--agent", "test_poolers:Recorder", *arguments],
        cwd=ROOT / "tests", env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=40,
    )  # fmt: skip


def test_the_command_ends_with_a_line_and_a_hint_when_it_cannot_listen(database: str, pooler: PgBouncer) -> None:
    done = command("--dsn", pooler.dsn(database))
    assert done.returncode == 2
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    assert "transaction pooler" in done.stderr
    assert "--poll-interval" in done.stderr
    done = command("--dsn", pooler.dsn(database), "--json")
    assert json.loads(done.stderr)["type"] == "SettingsError"


def test_doctor_tells_a_pooler_and_a_listener_that_is_elsewhere(
    database: str, empty_database: str, pooler: PgBouncer
) -> None:
    def found(dsn: str, listen_dsn: str | None = None) -> dict[str, Check]:
        return {check.name: check for check in examine(dsn, listen_dsn=listen_dsn, patience=timedelta(minutes=1))}

    behind = found(pooler.dsn(database))
    assert behind["server"].status == "ok"
    assert "behind a pooler" in behind["server"].message
    assert (behind["notify"].status, "pooler" in behind["notify"].message) == ("fail", True)
    assert "--poll-interval" in behind["notify"].hint
    assert {name for name, check in behind.items() if check.status == "fail"} == {"notify"}
    assert found(pooler.dsn(database), database)["notify"].status == "ok"
    elsewhere = found(database, empty_database)["notify"]
    assert (elsewhere.status, "another database" in elsewhere.message) == ("fail", True)
    assert "pooler" not in found(database)["server"].message


# Polling


@pytest.mark.parametrize("way", ["direct", "through a transaction pooler"])
async def test_a_worker_that_polls_needs_no_listener_and_says_so(
    database: str, way: str, request: pytest.FixtureRequest
) -> None:
    stopped_at: list[float] = []

    async def then(recall: CurrentRecall) -> str | None:
        if recall.session_id == "cancelled":
            try:
                await anyio.sleep_forever()
            finally:
                stopped_at.append(time.monotonic())
        return None

    agent = Recorder(then)
    dsn = database if way == "direct" else request.getfixturevalue("pooler").dsn(database)
    with capture_logs() as events:
        async with sql(database) as db, working(dsn, agent, poll_interval=0.2, lease=0.9):
            await looked(db)
            await db.session("cancelled", "s1", "s2")
            cancelled = await db.recall("cancelled")
            await agent.count(1)
            for _ in range(10):  # longer than a lease, and more renewals than the driver waits before it prepares
                await db("select pg_sleep(0.3)")
            assert not stopped_at
            assert agent.runs[0].attempt == len(agent.runs) == 1
            await db.ended(await db.recall("s1"))
            await db("update pgrecall.session_recalls set status = 'cancelled' where id = %s", cancelled)
            await db.ended(cancelled, "cancelled")
            assert stopped_at
            # A time that is known beforehand is met, however long the interval.
            await db.ended(await db.recall("s2", "now() + interval '0.5 seconds'"))
            listening = (
                "select count(*) from pg_stat_activity where datname = current_database() and query ~* '^listen'"
            )
            assert await db(listening) == [0]
            outcomes = await db("select attempt, outcome from pgrecall.recall_runs order by id")
            assert outcomes == [(1, "interrupted"), (1, "success"), (1, "success")]
    (started,) = heard(events, "worker_started")
    (warning,) = heard(events, "poll_mode")
    assert started["mode"] == "poll"
    assert warning["poll_seconds"] == 0.2
    # The run that was cancelled has lost its lease, as far as its worker knows; nothing else went wrong.
    assert [event["event"] for event in events if event["event"].endswith(("_lost", "_error"))] == ["lease_lost"]


async def test_a_worker_that_polls_looks_at_intervals_and_sleeps_in_between(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db, working(database, agent, poll_interval=0.5):
        await db("create extension pg_stat_statements")
        await looked(db)
        count = (
            "select coalesce(sum(calls), 0)::int from pg_stat_statements "
            "where toplevel and query !~ 'pg_stat|pg_sleep|purge|is_direct|get_schema' "
            "and dbid = (select oid from pg_database where datname = current_database())"
        )
        began = time.monotonic()
        before = await db(count)
        await db("select pg_sleep(3)")
        calls = (await db(count))[0] - before[0]
        assert 2 <= calls <= (time.monotonic() - began) / 0.5 + 1


async def test_a_listening_worker_says_that_it_listens(database: str) -> None:
    with capture_logs() as events:
        async with sql(database) as db, working(database, Recorder()):
            await looked(db)
    assert [event["mode"] for event in heard(events, "worker_started")] == ["listen"]
    assert not heard(events, "poll_mode")


def test_polling_and_listening_elsewhere_exclude_each_other() -> None:
    with pytest.raises(SettingsError, match="exclude each other"):
        Worker("", agent=Recorder(), poll_interval=1, listen_dsn="")
    with pytest.raises(SettingsError, match="poll_interval is 0"):
        Worker("", agent=Recorder(), poll_interval=0)


def test_the_command_polls_when_told_to(database: str, pooler: PgBouncer) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pgrecall", "worker", "--agent", "test_poolers:Recorder", "--json",
         "--dsn", pooler.dsn(database), "--poll-interval", "1s"],
        cwd=ROOT / "tests", env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        names = [json.loads(process.stdout.readline())["event"] for _ in range(2)]
        process.terminate()
        assert process.wait(20) == 0
    assert names == ["worker_started", "poll_mode"]


async def test_pollers_and_listeners_share_the_work(database: str) -> None:
    """What a worker that polls writes into the register must not silence announcements that listeners need."""
    poller, listener = Recorder(), Recorder()
    async with sql(database) as db, working(database, poller, poll_interval=0.05):
        await looked(db)
        async with working(database, listener, safety_interval=NEVER):
            await looked(db, 2)
            for number in range(40):
                await db.session(f"s{number}")
                await db.ended(await db.recall(f"s{number}", f"now() + interval '{number % 4} milliseconds'"))
    assert len(poller.runs) + len(listener.runs) == 40
