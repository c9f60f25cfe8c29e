"""What a worker does when it cannot prove that it lives, and what it does not take for a proof of death."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import psycopg
import pytest
from faults.proxy import Proxy
from structlog.testing import capture_logs
from workertools import Recorder, Sql, sql, until, working

from pgrecall import CurrentRecall, Worker, current_recall, schema
from pgrecall._watch import Watch
from pgrecall.database import AsyncConnection, connect_async
from pgrecall.embedded import EmbeddedPostgres

pytestmark = pytest.mark.anyio

WATCHES = "from pg_stat_activity where datname = current_database() and query like 'call pgrecall.watch(%%'"


class Patient:
    """An agent that runs until it is told to stop, and notes when it ran, by the monotonic clock."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, float, float]] = []
        self.begun: list[str] = []

    async def run(self, *, session_id: str, user_message: str) -> str:
        """Run on."""
        recall = current_recall()
        assert recall is not None
        begun = time.monotonic()
        self.begun.append(recall.worker_id)
        try:
            await anyio.sleep_forever()
        finally:
            self.spans.append((recall.worker_id, begun, time.monotonic()))
        return f"{session_id} {user_message}"

    async def count(self, runs: int) -> None:
        """Wait for so many runs to begin."""

        async def enough() -> bool:
            return len(self.begun) >= runs

        await until(enough)


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    """A way to the database that can be cut."""
    with Proxy(database) as made:
        yield made


async def holds_both_lifelines(db: Sql, worker: Worker) -> None:
    """Wait until the worker holds two lifelines."""

    async def holds() -> bool:
        lifelines = "select lifelines[1] is not null and lifelines[2] is not null from pgrecall.workers where id = %s"
        return await db(lifelines, worker.worker_id) == [True]

    await until(holds)


async def test_a_worker_that_is_cut_off_stops_its_runs_before_another_one_starts_them(
    database: str, proxy: Proxy
) -> None:
    agent = Patient()
    with capture_logs() as events:
        async with sql(database) as db, working(proxy.dsn, agent) as cut_off:
            await db.session("s1")
            await holds_both_lifelines(db, cut_off)
            await db.recall("s1")
            await agent.count(1)
            async with working(database, agent) as rescuer:
                await holds_both_lifelines(db, rescuer)
                proxy.refuse()
                proxy.cut()
                await agent.count(2)
                assert agent.begun == [cut_off.worker_id, rescuer.worker_id]
                proxy.heal()
                await holds_both_lifelines(db, cut_off)
    (worker_id, _, stopped_at), (_, begun_at, _), *_ = sorted(agent.spans, key=lambda span: span[1])
    assert worker_id == cut_off.worker_id
    assert stopped_at < begun_at
    assert [event["reason"] for event in events if event["event"] == "lease_lost"] == ["its connections were lost"]
    assert [event["dead_worker_id"] for event in events if event["event"] == "worker_died"] == [cut_off.worker_id]


async def test_a_worker_whose_connections_are_cut_for_a_moment_goes_on(database: str, proxy: Proxy) -> None:
    agent = Patient()
    lifelines = "select lifelines[1], lifelines[2] from pgrecall.workers where id = %s"
    async with sql(database) as db, working(proxy.dsn, agent) as worker:
        await db.session("s1")
        await holds_both_lifelines(db, worker)
        await db.recall("s1")
        await agent.count(1)
        async with working(database, Recorder()) as other:
            await holds_both_lifelines(db, other)
            ((first, second),) = await db(lifelines, worker.worker_id)
            proxy.cut()

            async def has_others() -> bool:
                ((now_first, now_second),) = await db(lifelines, worker.worker_id)
                return bool(now_first != first and now_second != second)

            await until(has_others)
            assert agent.spans == []
            assert await db("select outcome from pgrecall.recall_runs") == []


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_a_run_goes_on_while_the_server_is_down_for_longer_than_the_grace(way: str, tmp_path: Path) -> None:
    """Nobody can have taken its recall: the others need the server too, and it has another life afterwards."""
    release = anyio.Event()

    async def then(_: CurrentRecall) -> str:
        await release.wait()
        return "done"

    with EmbeddedPostgres(tmp_path / "data", durable=False) as postgres:
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            schema.install(connection)
        agent = Recorder(then)
        async with working(postgres.dsn, agent, reconnect_grace=0.3), working(postgres.dsn, agent, reconnect_grace=0.3):
            async with sql(postgres.dsn) as db:
                await db.session("s1")
                await db.asleep(2)
                recall_id = await db.recall("s1")
                await agent.count(1)
            with capture_logs() as events:
                postgres.kill() if way == "kill" else postgres.stop()
                await anyio.sleep(1)  # the outage
                postgres.start()

                async def is_back() -> bool:
                    return "lease_connection_restored" in {event["event"] for event in events}

                await until(is_back, 20)
            release.set()
            async with sql(postgres.dsn) as db:
                await db.ended(recall_id)
                assert await db("select outcome, attempt from pgrecall.recall_runs") == [("success", 1)]
    assert len(agent.runs) == 1


async def test_a_worker_without_a_grace_has_its_lease_only(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db, working(database, agent, reconnect_grace=None):
        await db.session("s1")
        await db.ended(await db.recall("s1"))
        assert await db("select incarnation is null, lifelines from pgrecall.workers") == [(True, [None, None])]
        assert await db(f"select count(*) {WATCHES}") == [0]


async def test_a_blocked_event_loop_does_not_keep_a_worker_from_finding_the_dead(database: str) -> None:
    """The watch runs in the server; the blocked worker need not hear of it, others take what it gave back."""
    victim_runs = anyio.Event()

    async def then(recall: CurrentRecall) -> str | None:
        victim_runs.set()
        if recall.attempt == 1:
            await anyio.sleep_forever()
        return None

    agent = Recorder(then)
    async with sql(database) as db:
        await db.session("s1")
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as life:
            await life.execute("select pgrecall.register_worker('dead', 1, lifelines => '{1, null}')")
            recall_id = await db.recall("s1")
            await db("select pgrecall.claim('dead', 1)")
            async with working(database, agent):
                await db.asleep()

                async def watches() -> bool:
                    return await db(f"select count(*) {WATCHES} and wait_event = 'advisory'") == [1]

                await until(watches)
                await life.close()
                with psycopg.connect(database, autocommit=True) as looking:
                    ends = time.monotonic() + 10
                    while looking.execute("select from pgrecall.recall_runs where outcome = 'lost'").fetchone() is None:
                        assert time.monotonic() < ends
                        time.sleep(0.01)  # noqa: ASYNC251 (the worker's event loop stands still for as long)
                await db.ended(recall_id)


async def test_a_worker_that_lost_its_direct_connections_only_goes_on_by_its_lease(database: str, proxy: Proxy) -> None:
    """It can still ask for work and tell outcomes, by way of the other DSN."""
    agent = Recorder()
    async with sql(database) as db, working(database, agent, listen_dsn=proxy.dsn, safety_interval=0.2) as worker:
        await db.session("s1", "s2")
        await holds_both_lifelines(db, worker)
        proxy.refuse()
        proxy.cut()
        await db.ended(await db.recall("s1"))
        assert await db("select incarnation, lifelines from pgrecall.workers") == [(None, None)]
        proxy.heal()
        await holds_both_lifelines(db, worker)
        await db.ended(await db.recall("s2"))
    assert [run.session_id for run in agent.runs] == ["s1", "s2"]


async def test_a_claim_whose_answer_is_older_than_a_doubt_is_not_begun(database: str, proxy: Proxy) -> None:
    """While the answer was on its way the worker was taken for dead, and somebody else may have the recall."""
    agent = Recorder()
    with Proxy(database) as statements:
        async with sql(database) as db, working(statements.dsn, agent, listen_dsn=proxy.dsn) as worker:
            await db.session("s1")
            await holds_both_lifelines(db, worker)
            await db.asleep()
            async with await psycopg.AsyncConnection.connect(database) as blocking:
                # The claim waits for the worker's own row, so that its answer can be held up.
                await blocking.execute("select from pgrecall.workers for update")
                recall_id = await db.recall("s1")

                async def claims() -> bool:
                    waits = "select count(*) from pg_stat_activity where query like '%%pgrecall.claim(%%'"
                    return await db(waits + " and datname = current_database() and wait_event_type = 'Lock'") == [1]

                await until(claims)
                statements.stall()
                await blocking.commit()
            await until(lambda: _has(db, "run_id is not null"))
            proxy.refuse()
            proxy.cut()
            # What a neighbour does half a second later.
            await until(lambda: _is_free(db))
            ended = await db("select pgrecall._end_dead_worker(id, lifelines) is not null from pgrecall.workers")
            assert ended == [True]
            assert await _has(db, "run_id is null and status = 'pending'")
            await db("update pgrecall.session_recalls set trigger_at = now() + interval '1 hour'")
            proxy.heal()
            await holds_both_lifelines(db, worker)
            statements.heal()

            async def has_answered() -> bool:
                return bool(await db("select count(*) from pgrecall.recall_runs where refused_at is not null") == [1])

            await until(has_answered)
            assert agent.runs == []
            assert await _has(db, f"status = 'pending' and id = '{recall_id}'")


async def _has(db: Sql, condition: str) -> bool:
    return bool(await db(f"select count(*) from pgrecall.session_recalls where {condition}") == [1])


async def _is_free(db: Sql) -> bool:
    free = "select not pgrecall._is_held(lifelines[1]) and not pgrecall._is_held(lifelines[2]) from pgrecall.workers"
    return bool(await db(free) == [True])


@pytest.mark.parametrize("let_go", [0.0, 2.0])
async def test_a_watch_that_is_cancelled_leaves_no_connection_open(
    database: str, monkeypatch: pytest.MonkeyPatch, let_go: float
) -> None:
    """Also if the server needs longer to end its statement than the worker waits for that."""
    opened = []

    async def connect(dsn: str) -> AsyncConnection:
        opened.append(await connect_async(dsn))
        return opened[-1]

    monkeypatch.setattr("pgrecall._watch.connect_async", connect)
    monkeypatch.setattr("pgrecall._watch._LET_GO", let_go)
    async with sql(database) as db, sql(database) as other:
        watch = Watch(database, "nobody")
        watch.begin()
        async with other.connection.transaction(), anyio.create_task_group() as tasks:
            await other("lock table pgrecall.workers")
            tasks.start_soon(watch.run)

            async def watches() -> bool:
                return await db(f"select count(*) {WATCHES} and wait_event_type = 'Lock'") == [1]

            await until(watches)
            tasks.cancel_scope.cancel()
        assert [connection.closed for connection in opened] == [True]
        assert watch._call is not None
        assert watch._call.done()
