"""Connections that end, hang, lead nowhere or are not to be had: what workers and schedulers make of it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import anyio
import psycopg
import pytest
from faults.proxy import Proxy
from outages import both, end, fill, hear, heard, looked, paused, small_disk, standby_of, with_schema
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool
from structlog.testing import capture_logs
from workertools import Recorder, sql, until, working

from pgrecall import CurrentRecall, RecallScheduler, SyncRecallScheduler
from pgrecall.database import connect_async, conninfo
from pgrecall.embedded import EmbeddedPostgres

pytestmark = pytest.mark.anyio

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="needs /proc to find the server's processes"
)


class Counting(Proxy):
    """A proxy that counts who wanted to connect."""

    attempts = 0

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.attempts += 1
        return await super()._connect()


class Held:
    """What an agent does that is busy in the session `long` until it is released."""

    def __init__(self) -> None:
        self.release = anyio.Event()

    async def __call__(self, recall: CurrentRecall) -> str | None:
        if recall.session_id.startswith("long"):
            await self.release.wait()
        return recall.session_id


async def ended_once(dsn: str, recall_ids: list[str]) -> None:
    """Every one of the recalls has one success, and whatever else happened to it is recorded with its reason."""
    async with sql(dsn) as db:
        for recall_id in recall_ids:
            await db.ended(recall_id)
        rows = await db("select recall_id, outcome, attempt from pgrecall.recall_runs order by id")
        assert Counter(recall_id for recall_id, outcome, _ in rows if outcome == "success") == Counter(recall_ids)
        assert {outcome for _, outcome, _ in rows} <= {"success", "lost", "interrupted"}
        assert await db("select count(*) from pgrecall.session_recalls where run_id is not null") == [0]
        assert await db("select count(*) from pgrecall.sessions where run_id is not null") == [0]


# The server ends and comes back


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fast", "immediate", "kill -9"])
async def test_a_restart_loses_nothing_and_is_told_once(
    tmp_path: Path, how: Literal["fast", "immediate", "kill -9"], caplog: pytest.LogCaptureFixture
) -> None:
    held = Held()
    agent = Recorder(held)
    postgres = EmbeddedPostgres(tmp_path, durable=False)
    caplog.set_level(logging.WARNING)
    try:
        await with_schema(postgres)
        with capture_logs() as events, Counting(postgres.dsn) as proxy:
            async with working(proxy.dsn, agent):
                async with sql(postgres.dsn) as db:
                    await looked(db)
                    await db.session("long", "s1", "s2")
                    # In this order: the look that finds the second sees the first.
                    recalls = [await db.recall("s1", "now() + interval '3 seconds'"), await db.recall("long")]
                    await agent.count(1)
                await anyio.to_thread.run_sync(end, postgres, how)
                before, began = proxy.attempts, time.monotonic()

                async def noticed() -> bool:
                    return any("recall_id" not in event for event in heard(events, "loop_error"))

                await until(noticed, deadline=20)
                await anyio.sleep(3)
                # Four connections that each try again after growing pauses of at most a few seconds.
                assert proxy.attempts - before < 40 + 4 * (time.monotonic() - began)
                held.release.set()
                await anyio.to_thread.run_sync(postgres.start)
                async with sql(postgres.dsn) as db:
                    recalls.append(await db.recall("s2"))
                await ended_once(postgres.dsn, recalls)
                await hear(events, "listener_restored")
                await hear(events, "loop_restored")
    finally:
        await anyio.to_thread.run_sync(postgres.stop)
    told = Counter(event["event"] for event in events if "recall_id" not in event)
    for name in ("loop_error", "loop_restored", "listener_lost", "listener_restored"):
        assert told[name] == 1, (name, events)
    assert len(events) < 30
    assert not [record for record in caplog.records if record.name.startswith("psycopg")]


@pytest.mark.slow
async def test_a_scheduler_does_not_notice_a_restart_between_two_calls(tmp_path: Path) -> None:
    """A server says goodbye to idle connections; nobody should get an error for what happened while they slept."""
    with EmbeddedPostgres(tmp_path, durable=False) as postgres:
        await with_schema(postgres)
        in_threads = SyncRecallScheduler(postgres.dsn)
        async with RecallScheduler(postgres.dsn) as recalls, sql(postgres.dsn) as db:
            await db("create function pg_temp.nothing() returns void language sql as ''")

            async def all_at_once() -> None:
                await asyncio.gather(*(recalls.get_next_trigger_at() for _ in range(4)))
                assert in_threads.get_next_trigger_at() is None

            await all_at_once()
            await anyio.to_thread.run_sync(end, postgres, "fast")
            await anyio.to_thread.run_sync(postgres.start)
            await all_at_once()
        in_threads.close()


async def test_every_connection_of_a_worker_may_be_ended_while_it_runs_an_agent(database: str) -> None:
    """One after the other, whatever each is for: looks, outcomes, LISTEN, the lease, the watch."""
    held = Held()
    agent = Recorder(held)
    others = "datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
    with capture_logs() as events:
        async with sql(database) as db, working(database, agent, lease=3):
            await looked(db)
            await db.session("long", "s")
            long = await db.recall("long")
            await agent.count(1)
            await db.ended(await db.recall("s"))
            pids = await db(f"select pid from pg_stat_activity where {others} order by backend_start")
            assert len(pids) >= 3  # looks, outcomes, LISTEN at least
            for pid in pids:
                assert await db("select pg_terminate_backend(%s, 5000)", pid) == [True]
                await db.ended(await db.recall("s"))
                await db.ended(await db.recall("s", "now() + interval '50 milliseconds'"))

                async def listens() -> bool:
                    return len(heard(events, "listener_lost")) == len(heard(events, "listener_restored"))

                await until(listens)
            held.release.set()
            await db.ended(long)
            rows = await db("select outcome, attempt from pgrecall.recall_runs where recall_id = %s", long)
            assert rows == [("success", 1)]
    assert len(heard(events, "listener_lost")) == 1


async def test_a_listener_that_cannot_stay_does_not_try_in_a_tight_loop(database: str) -> None:
    """Somebody ends it whenever it comes back: each time after a longer pause, and with two lines each."""
    with capture_logs() as events:
        async with sql(database) as db, working(database, Recorder(), reconnect_grace=None):
            await looked(db)
            began = time.monotonic()
            while time.monotonic() < began + 5:
                await db(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where datname = current_database() and query ~* '^listen'"
                )
                await anyio.sleep(0.01)
    # Pauses of at least 50, 100, 200 … milliseconds; three at once in the beginning.
    assert 2 <= len(heard(events, "listener_lost")) <= 12


# Failover


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_workers_follow_a_failover_to_the_standby_and_lose_nothing(tmp_path: Path) -> None:
    held = Held()
    agent = Recorder(held)
    with EmbeddedPostgres(tmp_path / "primary", durable=False) as primary:
        await with_schema(primary)
        with standby_of(primary, tmp_path / "standby") as standby, capture_logs() as events:
            async with sql(primary.dsn) as db:
                # Nothing that was told to be committed may be lost.
                await db("alter system set synchronous_standby_names = '*'")
                await db("select pg_reload_conf()")

                async def in_step() -> bool:
                    return await db("select sync_state from pg_stat_replication") == ["sync"]

                await until(in_step)
            dsn = both(primary, standby)
            async with working(dsn, agent, concurrency=5), working(dsn, agent, concurrency=5):
                async with sql(primary.dsn) as db:
                    await looked(db, 2)
                    names = [f"s{number}" for number in range(10)]
                    await db.session("long 1", "long 2", "after", *names)
                    recalls = [await db.recall("long 1"), await db.recall("long 2")]
                    recalls += [
                        await db.recall(name, f"now() + interval '{number * 0.3} seconds'")
                        for number, name in enumerate(names)
                    ]
                    await agent.count(3)
                await anyio.to_thread.run_sync(primary.kill)
                await hear(events, "loop_error")
                held.release.set()  # two outcomes are to be told while there is no server to write to
                async with sql(standby.dsn) as db:
                    await db("select pg_promote()")
                async with RecallScheduler(dsn) as recall_scheduler:
                    made = await recall_scheduler.schedule_recall(session_id="after", additional_context_message="hi")
                    recalls.append(made.id)
                await ended_once(standby.dsn, recalls)

                async def both_listen() -> bool:
                    return len(heard(events, "listener_restored")) == 2

                await until(both_listen)
    assert len(heard(events, "listener_lost")) == len(heard(events, "listener_restored")) == 2
    assert len(events) < 120


async def test_a_connection_to_what_has_become_a_standby_is_not_used_again(tmp_path: Path) -> None:
    """As after a demotion that leaves connections open: claims fail as read-only, and a new connection may not."""
    agent = Recorder()
    with EmbeddedPostgres(tmp_path, durable=False) as postgres:
        await with_schema(postgres)
        with capture_logs() as events:
            async with sql(postgres.dsn) as db, working(postgres.dsn, agent, reconnect_grace=None):
                await looked(db)
                await db.session("s1", "s2")
                scheduler = RecallScheduler(postgres.dsn, pool_size=1)
                server_process = (await scheduler.database.query("select pg_backend_pid()", {}))[0]
                backend = (
                    "select min(pid) from pg_stat_activity where query ~ 'pgrecall.claim' and pid <> pg_backend_pid()"
                )
                before = await db(backend)
                await db("alter system set default_transaction_read_only = on")
                await db("select pg_reload_conf()")
                await db("set default_transaction_read_only = off")
                recall_id = await db.recall("s1")
                await hear(events, "loop_error")
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                    await scheduler.cancel_recall("s1")
                assert (await scheduler.database.query("select pg_backend_pid()", {}))[0] != server_process
                await scheduler.aclose()
                await db("alter system reset default_transaction_read_only")
                await db("select pg_reload_conf()")
                await db.ended(recall_id)

                async def replaced() -> bool:
                    return await db(backend) not in (before, [None])

                await until(replaced)
    assert len(heard(events, "loop_error")) == len(heard(events, "loop_restored")) == 1
    assert "ReadOnlySqlTransaction" in heard(events, "loop_error")[0]["error"]


# The server or the network hangs


@needs_proc
async def test_a_short_pause_of_the_server_is_waited_out_in_silence(tmp_path: Path) -> None:
    held = Held()
    agent = Recorder(held)
    with EmbeddedPostgres(tmp_path, durable=False) as postgres:
        await with_schema(postgres)
        with capture_logs() as events:
            async with sql(postgres.dsn) as db, working(postgres.dsn, agent):
                await looked(db)
                await db.session("long", "s1")
                recalls = [await db.recall("s1", "now() + interval '1 second'"), await db.recall("long")]
                await agent.count(1)
                with paused(postgres):
                    await anyio.sleep(2.5)
                    held.release.set()
                    await anyio.sleep(0.5)
                await ended_once(postgres.dsn, recalls)
    assert {event["event"] for event in events} <= {
        "worker_started", "recall_claimed", "recall_fired", "worker_stopped",
    }  # fmt: skip


@pytest.mark.slow
async def test_a_network_that_hangs_is_given_up_in_time_and_used_again_when_it_is_back(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing fails, nothing answers, and the kernel at the other end still says that it is there."""
    monkeypatch.setattr("pgrecall._listener._PATIENCE", 1.0)
    agent = Recorder()
    with Proxy(database) as network, capture_logs() as events:
        dsn = make_conninfo(network.dsn, connect_timeout=2)
        async with sql(database) as db:
            await db.session("s1", "s2")
            recall_id = await db.recall("s1", "now() + interval '3 seconds'")
            async with working(dsn, agent, lease=2):
                await looked(db)
                network.stall()
                await hear(events, "loop_error")
                await anyio.sleep(4)
                assert len(heard(events, "loop_error")) == 1
                network.heal()
                await db.ended(recall_id)
                await db.ended(await db.recall("s2"))
                await hear(events, "loop_restored")
    assert "was not answered within" in heard(events, "loop_error")[0]["error"]
    assert len(heard(events, "loop_restored")) == 1
    assert len(events) < 40


async def test_a_claim_that_was_given_up_but_came_through_is_found_out_soon_after(database: str) -> None:
    """The answer was lost with the network, and nobody else is there to notice when the lease ends."""
    agent = Recorder()
    with Proxy(database) as network, capture_logs() as events:
        dsn = make_conninfo(network.dsn, connect_timeout=2)
        async with sql(database) as db:
            await db.session("s1")
            recall_id = await db.recall("s1", "now() + interval '3 seconds'")
            async with working(dsn, agent, lease=1.5, reconnect_grace=None) as worker:
                await looked(db)
                network.stall()
                await hear(events, "loop_error")
                taken = "select recall_id from pgrecall.claim(%s, 3, interval '1.5 seconds')"

                async def came_through() -> bool:
                    return await db(taken, worker.worker_id) == [recall_id]

                await until(came_through)  # the look that failed may have been one before its time
                network.heal()
                await db.ended(recall_id)
            rows = await db("select outcome, attempt from pgrecall.recall_runs order by id")
            assert rows == [("lost", 1), ("success", 2)]


@pytest.mark.slow
async def test_a_worker_can_stop_while_the_network_hangs(database: str) -> None:
    held = Held()
    agent = Recorder(held)
    with Proxy(database) as network:
        async with sql(database) as db:
            async with working(make_conninfo(network.dsn, connect_timeout=2), agent, lease=3):
                await looked(db)
                await db.session("long")
                await db.recall("long")
                await agent.count(1)
                network.stall()
                began = time.monotonic()
            assert time.monotonic() - began < 25  # outcomes, unregistering and closing all have their limits
            network.heal()


async def test_what_came_while_nobody_listened_is_found_on_return(database: str) -> None:
    agent = Recorder()
    with Proxy(database) as way, capture_logs() as events:
        async with sql(database) as db, working(database, agent, listen_dsn=way.dsn, reconnect_grace=None):
            await looked(db)
            await db.session("s1")
            way.refuse()
            way.cut()
            await hear(events, "listener_lost")
            recall_id = await db.recall("s1")
            await anyio.sleep(0.5)
            assert agent.runs == []  # nothing but the listener would tell it
            way.heal()
            await db.ended(recall_id)


async def test_a_listener_that_hears_nothing_any_more_is_replaced(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection looks well. But a safety look has found what should have been announced to it."""
    monkeypatch.setattr("pgrecall._listener._PATIENCE", 1.0)
    agent = Recorder()
    with Proxy(database) as deaf, capture_logs() as events:
        listen_dsn = make_conninfo(deaf.dsn, connect_timeout=2)
        async with (
            sql(database) as db,
            working(database, agent, listen_dsn=listen_dsn, safety_interval=0.5, reconnect_grace=None),
        ):
            await looked(db)
            await db.session("s1", "s2")
            deaf.stall()
            await db.ended(await db.recall("s1"))
            await hear(events, "listener_lost")
            deaf.heal()
            await hear(events, "listener_restored")
            await db.ended(await db.recall("s2"))
    assert len(heard(events, "listener_lost")) == 1


async def test_a_server_learns_within_a_minute_that_a_worker_has_vanished() -> None:
    """Otherwise what its sessions hold, and the notifications that wait for them, would stay for two hours."""
    with socket.socket() as free:  # over TCP: on a Unix socket the settings mean nothing
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with EmbeddedPostgres(port=port) as postgres:
        async with RecallScheduler(postgres.tcp_dsn) as recalls:
            await recalls.ensure_tables()
            rows = await recalls.database.query("select name, setting::int from pg_settings where name ~ '^tcp_'", {})
            settings = {row["name"]: row["setting"] for row in rows}
    idle = settings["tcp_keepalives_idle"] + settings["tcp_keepalives_interval"] * settings["tcp_keepalives_count"]
    assert 0 < idle <= 60
    assert 0 < settings["tcp_user_timeout"] <= 60_000


# There is no room


@pytest.mark.slow
async def test_a_worker_gets_in_when_there_is_room_again_and_does_not_push(tmp_path: Path) -> None:
    agent = Recorder()
    with EmbeddedPostgres(tmp_path, durable=False) as postgres:
        await with_schema(postgres)
        async with sql(postgres.dsn) as db:
            await db("create role worker login")
            await db("grant pgrecall_worker to worker")
            dsn = make_conninfo(postgres.dsn, user="worker")
            with capture_logs() as events:
                async with working(dsn, agent):
                    await looked(db)
                    await db.session("s0", "s1", "s2")
                    recall_id = await db.recall("s1", "now() + interval '3 seconds'")
                    await db.ended(await db.recall("s0"))
                    await db("alter role worker connection limit 0")
                    await db("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'worker'")
                    began = time.monotonic()
                    await hear(events, "loop_error")
                    await anyio.sleep(4)
                    log = (tmp_path / "server.log").read_text()
                    refused = log.count("too many connections for role")
                    assert 3 <= refused < 40 + 4 * (time.monotonic() - began)
                    await db("alter role worker connection limit -1")
                    await db.ended(recall_id)
                    await db.ended(await db.recall("s2"))
                    await hear(events, "listener_restored")
    told = Counter(event["event"] for event in events)
    for name in ("loop_error", "loop_restored", "listener_lost", "listener_restored"):
        assert told[name] == 1
    assert "too many connections" in heard(events, "loop_error")[0]["error"]


@pytest.mark.slow
async def test_a_full_disk_is_told_once_and_nothing_is_lost(tmp_path: Path) -> None:
    held = Held()

    async def then(recall: CurrentRecall) -> str | None:
        await held(recall)
        return secrets.token_hex(200_000)  # more than any page with room left can take

    agent = Recorder(then)
    with small_disk(tmp_path / "disk", 160) as disk, EmbeddedPostgres(disk, durable=False) as postgres:
        await with_schema(postgres)
        with capture_logs() as events:
            async with sql(postgres.dsn) as db, working(postgres.dsn, agent):
                await looked(db)
                await db.session("long", "s1", "s2")
                long = await db.recall("long")
                await agent.count(1)
                due = await db.recall("s1", "now() + interval '1 second'", secrets.token_hex(30_000))
                filler = fill(disk)
                held.release.set()
                await hear(events, "loop_error")

                async def both_failed() -> bool:
                    return len(heard(events, "loop_error")) == 2

                await until(both_failed)  # the outcome of one, the claim of the other
                await anyio.sleep(2)
                assert len(heard(events, "loop_error")) == 2
                assert all("DiskFull" in event["error"] for event in heard(events, "loop_error"))
                filler.unlink()
                await ended_once(postgres.dsn, [long, due])
                assert len(agent.runs) == 2
                await db.ended(await db.recall("s2"))
    assert len(heard(events, "loop_restored")) == 1


async def test_nobody_waits_for_a_connection_for_ever(database: str) -> None:
    async with RecallScheduler(database, pool_size=1, patience=0.2) as recalls:
        async with recalls.database._borrowed():
            with pytest.raises(psycopg.OperationalError, match="get a connection after"):
                await recalls.get_next_trigger_at()
        assert await recalls.get_next_trigger_at() is None
    with SyncRecallScheduler(database, pool_size=1, patience=0.2) as in_threads:
        with (
            in_threads.database._borrowed(),
            pytest.raises(psycopg.OperationalError, match="get a connection after"),
        ):
            in_threads.get_next_trigger_at()
        assert in_threads.get_next_trigger_at() is None


async def test_a_call_during_an_outage_says_at_once_what_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of many, whatever became of the connections that were open; and a call after it works at once."""
    caplog.set_level(logging.WARNING)
    postgres = EmbeddedPostgres(tmp_path, durable=False)
    await with_schema(postgres)
    in_threads = SyncRecallScheduler(postgres.dsn)
    async with RecallScheduler(postgres.dsn) as recalls:

        async def all_at_once() -> list[object]:
            calls = [recalls.get_next_trigger_at() for _ in range(6)]
            calls += [anyio.to_thread.run_sync(in_threads.get_next_trigger_at) for _ in range(6)]
            return await asyncio.gather(*calls, return_exceptions=True)

        assert await all_at_once() == [None] * 12
        await anyio.to_thread.run_sync(postgres.stop)
        for _ in range(2):
            began = time.monotonic()
            errors = await all_at_once()
            assert time.monotonic() - began < 10  # the patience is 30 s
            for error in errors:
                assert isinstance(error, psycopg.OperationalError)
                assert "Is the server running" in str(error)
        await anyio.to_thread.run_sync(postgres.start)
        assert await all_at_once() == [None] * 12
    in_threads.close()
    await anyio.to_thread.run_sync(postgres.stop)
    assert not [record for record in caplog.records if record.name.startswith("psycopg")]


async def test_a_hosts_own_pool_may_still_warn(database: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "psycopg.pool")  # a command line in the same process has silenced it
    dsn = make_conninfo(database, dbname="pgrecall_is_not_here")
    async with AsyncConnectionPool(dsn, min_size=1, open=False, name="theirs"):

        async def warned() -> bool:
            return "error connecting in 'theirs'" in caplog.text

        await until(warned)


async def test_connections_are_not_lost_by_callers_who_give_up(database: str) -> None:
    async with RecallScheduler(database, pool_size=2, patience=5) as recalls:
        for turn in range(150):
            with anyio.move_on_after(turn / 10_000):
                await asyncio.gather(*(recalls.get_next_trigger_at() for _ in range(3)))
        async with recalls.database._borrowed(), recalls.database._borrowed():
            pass  # both are still to be had


async def test_a_connection_that_only_listens_does_not_wake_the_process(database: str) -> None:
    async with await connect_async(database) as connection:
        turns = 0
        add_reader = asyncio.get_running_loop().add_reader

        def counting(*arguments: Any) -> None:
            nonlocal turns
            turns += 1
            add_reader(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio.get_running_loop(), "add_reader", counting)
            assert [notify async for notify in connection.notifies(timeout=1)] == []
    assert turns == 1


async def test_a_caller_who_gives_up_while_connecting_leaves_the_connection_to_the_next_one(database: str) -> None:
    """A host that does not answer may stand before the one that does, and take longer than any caller has."""
    with Proxy(database) as slow:
        slow.delay(0.3)
        async with RecallScheduler(slow.dsn, pool_size=1) as recalls:
            answers = []
            for _ in range(10):
                with anyio.move_on_after(1.2):  # a connection takes 1.8 s, a statement 0.6
                    answers.append(await recalls.get_next_trigger_at())
                    break
            assert answers == [None]


async def test_a_connection_that_is_left_is_closed_whatever_it_is_at(database: str) -> None:
    connection = await connect_async(conninfo(database))
    async with sql(database) as db, anyio.create_task_group() as tasks:
        pid = connection.info.backend_pid

        async def sleep() -> None:
            with suppress(psycopg.Error):
                await connection.execute("select pg_sleep(60)")

        async def sleeps() -> bool:
            return await db("select state from pg_stat_activity where pid = %s", pid) == ["active"]

        tasks.start_soon(sleep)
        await until(sleeps)
        with anyio.CancelScope() as scope:
            async with connection:
                scope.cancel()
                await anyio.sleep_forever()
        assert connection.closed
        tasks.cancel_scope.cancel()
