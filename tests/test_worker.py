"""The worker, on a real database: when it fires, what it says, and what does not disturb it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from structlog.testing import capture_logs
from workertools import NEVER, Recorder, Sql, sql, until, working

from pgrecall import (
    AgentError,
    CurrentRecall,
    RecallError,
    RecallScheduler,
    Retry,
    SchemaMissingError,
    SettingsError,
    Worker,
    _outcomes,
    current_recall,
    recall_scheduler_loop,
)
from pgrecall._lease import LeaseKeeper
from pgrecall._outcomes import Outcomes
from pgrecall._run import Run
from pgrecall.database import AsyncDatabase
from pgrecall.embedded import EmbeddedPostgres

pytestmark = pytest.mark.anyio


async def test_a_recall_fires_at_its_time_and_not_before(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db, working(database, agent):
        await db.session("s1")
        recall_id = await db.recall("s1", "now() + interval '0.4 seconds'")
        await db.ended(recall_id)
    assert len(agent.runs) == 1
    assert timedelta(0) <= agent.runs[0].lateness < timedelta(seconds=1)


async def test_a_worker_comes_a_moment_early_and_claims_as_of_the_time_itself(database: str) -> None:
    async def running() -> bool:
        return await db("select count(*) from pgrecall.session_recalls where status = 'running'") == [5]

    async def stays(_: CurrentRecall) -> None:
        await anyio.sleep_forever()

    agent = Recorder(stays)
    async with sql(database) as db, working(database, agent, concurrency=5, grace=0):
        names = [f"s{number}" for number in range(5)]
        await db.session(*names)
        for place, name in enumerate(names):
            await db.recall(name, f"now() + {place + 3} * interval '0.2 seconds'")
        await until(running)
        late = await db("select claimed_at - trigger_at from pgrecall.session_recalls order by 1")
    assert late[0] == timedelta(0)
    assert all(run.started_at >= run.nominal_at for run in agent.runs)


async def test_a_sleeping_worker_wakes_for_a_plain_insert(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db, working(database, agent):
        await db.session("s1", "s2")
        await db.recall("s1", "now() + interval '1 hour'")
        await db.asleep()
        await db.ended(await db.recall("s2"))
    assert [run.session_id for run in agent.runs] == ["s2"]


async def test_a_sleeping_worker_wakes_for_an_update_that_makes_a_recall_due(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db, working(database, agent):
        await db.session("s1")
        recall_id = await db.recall("s1", "now() + interval '1 hour'")
        await db.asleep()
        await db("update pgrecall.session_recalls set trigger_at = now() where id = %s", recall_id)
        await db.ended(recall_id)
    assert len(agent.runs) == 1


async def test_a_recall_whose_transaction_commits_after_its_time_fires_at_the_commit(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db, working(database, agent):
        await db.session("s1", "s2")
        await db.asleep()
        async with await psycopg.AsyncConnection.connect(database) as producer:
            late = await Sql(producer).recall("s1", "now() + interval '0.2 seconds'")
            await db.ended(await db.recall("s2", "now() + interval '0.4 seconds'"))
            assert [run.session_id for run in agent.runs] == ["s2"]
            await producer.commit()
            await db.ended(late)


async def test_every_one_of_a_burst_fires_once_with_several_workers(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db, working(database, agent), working(database, agent), working(database, agent):
        await db.session(*(f"s{number}" for number in range(40)))
        await db(
            "insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message) "
            "select id, now() + random() * interval '0.5 seconds', 'hello' from pgrecall.sessions"
        )
        await agent.count(40)

        async def all_ended() -> bool:
            return await db("select count(*) from pgrecall.session_recalls where status = 'fired'") == [40]

        await until(all_ended)
        assert await db("select count(*) from pgrecall.recall_runs") == [40]
    assert len({run.recall_id for run in agent.runs}) == len(agent.runs) == 40


async def statements(db: Sql) -> Counter[str]:
    """How often each statement was sent to this database so far, by the routine it calls or by its text."""
    rows = await db(
        "select query, calls::integer from pg_stat_statements where toplevel and dbid = "
        "(select oid from pg_database where datname = current_database()) and query not like '%%pg_stat%%' "
        # Once an hour, whatever else there is: tests/test_retention.py.
        "and query not like '%%pgrecall.purge(%%'"
    )
    counted: Counter[str] = Counter()
    for query, calls in rows:
        called = re.match(r"select .* from pgrecall\.(\w+)\(", query)
        counted[called[1] if called else query] += calls
    return counted


async def test_an_idle_worker_sends_nothing_but_the_safety_re_read(database: str) -> None:
    async with sql(database) as db, working(database, Recorder(), safety_interval=0.5):
        await db("create extension pg_stat_statements")
        await db.session("s1")
        await db.recall("s1", "now() + interval '1 hour'")

        async def looked() -> bool:
            return (await statements(db))["claim"] > 0

        await until(looked)
        await db.asleep()
        before = await statements(db)

        async def three_looks_later() -> bool:
            return (await statements(db))["claim"] >= before["claim"] + 3

        await until(three_looks_later)
        assert await statements(db) - before == Counter(claim=3)


async def test_a_fired_recall_costs_two_statements_from_claim_to_outcome(database: str) -> None:
    async with sql(database) as db:
        await db("create extension pg_stat_statements")
        await db.session("s1")
        async with working(database, Recorder()):

            async def looked() -> bool:
                return (await statements(db))["claim"] > 0

            await until(looked)
            before = await statements(db)
            await db.ended(await db.recall("s1"))
            sent = await statements(db) - before
    ours = ("insert into pgrecall.session_recalls", "select from pgrecall.session_recalls")  # of this test
    connecting = "set "  # once for each new connection
    in_the_trigger = "SELECT"  # deferred to the producer's commit, where its statements count as top-level ones
    others = (*ours, connecting, in_the_trigger)
    theirs = {statement: sent[statement] for statement in sent if not statement.startswith(others)}
    assert theirs == {"claim": 1, "finish_unobstructed": 1}


async def test_the_message_and_the_reply_are_in_the_session_and_the_ledger(database: str) -> None:
    async with sql(database) as db, working(database, Recorder()):
        await db.session("s1")
        await db("insert into pgrecall.session_messages (session_id, role, content) values ('s1', 'user', 'hi')")
        recall_id = await db.recall("s1", message="check the oven")
        await db.ended(recall_id)
        assert await db("select role, content from pgrecall.session_messages where in_context order by position") == [
            ("user", "hi"),
            ("system", "[Scheduled recall] check the oven"),
            ("assistant", "did check the oven"),
        ]
        assert await db("select outcome, attempt, reply from pgrecall.recall_runs") == [
            ("success", 1, "did check the oven")
        ]


async def test_a_slow_run_and_a_failing_one_do_not_hold_up_the_others(database: str) -> None:
    release = anyio.Event()

    async def then(recall: CurrentRecall) -> str | None:
        if recall.session_id == "slow":
            await release.wait()
        if recall.session_id.startswith("bad"):
            raise ValueError("boom")
        return "fine"

    agent = Recorder(then)
    async with sql(database) as db, working(database, agent, concurrency=2):
        await db.session("slow", "bad1", "bad2", "good1", "good2", "good3")
        slow = await db.recall("slow")
        await agent.count(1)
        for session_id in ("bad1", "good1", "bad2", "good2"):
            await db.ended(await db.recall(session_id), "failed" if session_id.startswith("bad") else "fired")
        assert await db("select last_error from pgrecall.session_recalls where session_id = 'bad1'") == [
            "ValueError: boom"
        ]
        release.set()
        await db.ended(slow)


async def test_a_worker_runs_at_most_its_concurrency_at_once_and_refills_freed_slots(database: str) -> None:
    async def then(_: CurrentRecall) -> str | None:
        await anyio.sleep(0.02)
        return None

    agent = Recorder(then)
    async with sql(database) as db, working(database, agent, concurrency=3):
        await db.session(*(f"s{number}" for number in range(12)))
        await db(
            "insert into pgrecall.session_recalls (session_id, additional_context_message) "
            "select id, 'hello' from pgrecall.sessions"
        )
        await agent.count(12)
    assert agent.most_at_once == 3


async def cancels_a_task_of_its_own() -> None:
    task = asyncio.create_task(anyio.sleep_forever())
    await asyncio.sleep(0)
    task.cancel()
    await task


async def leaves() -> None:
    sys.exit(2)


@pytest.mark.parametrize(
    ("misbehave", "error"), [(cancels_a_task_of_its_own, "CancelledError"), (leaves, "SystemExit: 2")]
)
async def test_an_agent_cannot_take_its_worker_down(
    database: str, misbehave: Callable[[], Awaitable[None]], error: str
) -> None:
    release = anyio.Event()

    async def then(recall: CurrentRecall) -> str | None:
        if recall.session_id == "bad":
            await misbehave()
        await release.wait()
        return "fine"

    agent = Recorder(then)
    async with sql(database) as db, working(database, agent):
        await db.session("bad", "good")
        good = await db.recall("good")
        await agent.count(1)
        await db.ended(await db.recall("bad"), "failed")
        assert await db("select outcome, error from pgrecall.recall_runs") == [("error", error)]
        release.set()
        await db.ended(good)


async def test_a_thread_keeps_its_session_until_it_ends(database: str) -> None:
    release = threading.Event()
    running: list[str] = []

    def agent(session_id: str, user_message: str) -> str:
        assert session_id == "s1"
        running.append(user_message)
        release.wait(10)
        return user_message

    async with sql(database) as db, working(database, agent, timeout=0.1):
        await db.session("s1")
        first = await db.recall("s1", message="first")

        async def over_its_time() -> bool:
            return await db("select now() - claimed_at > interval '0.3 seconds' from pgrecall.session_recalls") == [
                True
            ]

        await until(over_its_time)
        second = await db.recall("s1", message="second")

        async def deferred() -> bool:
            return await db("select deferrals from pgrecall.session_recalls where id = %s", second) == [1]

        await until(deferred)
        assert running == ["first"]
        release.set()
        await db.ended(first)


async def test_a_recall_that_another_service_runs_itself_is_left_alone(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db, working(database, agent):
        await db.session("s1", "s2")
        theirs = await db.recall("s1", "now() + interval '0.2 seconds'")
        await db("update pgrecall.session_recalls set status = 'running' where id = %s", theirs)
        await db.ended(await db.recall("s2", "now() + interval '0.4 seconds'"))
        await db("update pgrecall.session_recalls set status = 'fired' where id = %s", theirs)
        assert await db("select recall_id, outcome, reason from pgrecall.recall_runs where recall_id = %s", theirs) == [
            (theirs, "success", "marked as fired")
        ]
    assert [run.session_id for run in agent.runs] == ["s2"]


async def test_a_recurring_recall_fires_on_its_own_grid(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db, working(database, agent):
        await db.session("s1")
        await db.recall("s1", call_type="recurring", interval_seconds=1)
        await agent.count(3)
    steps = {after.nominal_at - before.nominal_at for before, after in zip(agent.runs, agent.runs[1:], strict=False)}
    assert steps == {timedelta(seconds=1)}
    assert agent.runs[0].next_at == agent.runs[1].nominal_at


async def test_a_run_knows_what_it_runs_for(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db, working(database, agent, timeout=60) as worker:
        await db.session("s1")
        recall_id = await db.recall("s1", "now() - interval '5 seconds'", metadata='{"a": 1}', internal_comment="why")
        await db.ended(recall_id)
    run = agent.runs[0]
    assert (run.recall_id, run.session_id, run.user_id) == (recall_id, "s1", "user of s1")
    assert (run.attempt, run.max_attempts, run.deferrals, run.metadata) == (1, 3, 0, {"a": 1})
    assert run.lateness >= timedelta(seconds=5)
    assert run.deadline == run.started_at + timedelta(seconds=60)
    assert run.worker_id == worker.worker_id
    assert current_recall() is None


async def test_an_agent_can_schedule_its_next_recall_from_inside_its_run(database: str) -> None:
    async with RecallScheduler(database) as scheduler:

        async def then(recall: CurrentRecall) -> str | None:
            if recall.additional_context_message == "first":
                await scheduler.schedule_recall(session_id=recall.session_id, additional_context_message="second")
            return None

        agent = Recorder(then)
        async with sql(database) as db, working(database, agent):
            await db.session("s1")
            await db.recall("s1", message="first")
            await agent.count(2)
        assert [run.additional_context_message for run in agent.runs] == ["first", "second"]
        assert agent.most_at_once == 1


async def test_an_agent_that_asks_for_a_retry_runs_again_and_its_message_is_there_once(database: str) -> None:
    async def then(recall: CurrentRecall) -> str | None:
        if recall.attempt == 1:
            raise Retry("not ready", after=0.05)
        return "done"

    agent = Recorder(then)
    async with sql(database) as db, working(database, agent):
        await db.session("s1")
        recall_id = await db.recall("s1")
        await db.ended(recall_id)
        assert await db("select outcome, attempt, error from pgrecall.recall_runs order by id") == [
            ("error", 1, "Retry: not ready"),
            ("success", 2, None),
        ]
        assert await db("select count(*) from pgrecall.session_messages where role = 'system'") == [1]
    assert agent.runs[0].nominal_at == agent.runs[1].nominal_at


async def test_retries_end_with_the_last_attempt(database: str) -> None:
    async def then(_: CurrentRecall) -> str | None:
        raise Retry(after=0)

    agent = Recorder(then)
    async with sql(database) as db, working(database, agent):
        await db.session("s1")
        await db.ended(await db.recall("s1", max_attempts=2), "failed")
    assert [run.attempt for run in agent.runs] == [1, 2]


async def test_a_run_over_its_time_limit_is_stopped(database: str) -> None:
    async def then(_: CurrentRecall) -> str | None:
        await anyio.sleep_forever()
        return None

    agent = Recorder(then)
    async with sql(database) as db, working(database, agent, timeout=0.1):
        await db.session("s1")
        await db.ended(await db.recall("s1"), "failed")
        assert await db("select outcome, error from pgrecall.recall_runs") == [("timeout", "still running after 0.1 s")]


@pytest.mark.parametrize(
    "statement",
    [
        "update pgrecall.session_recalls set status = 'cancelled' where id = %s",
        "select pgrecall.mark_cancelled(%s)",
        "delete from pgrecall.session_recalls where id = %s",
        "delete from pgrecall.sessions where id = (select session_id from pgrecall.session_recalls where id = %s)",
    ],
)
async def test_a_run_whose_recall_is_taken_away_is_told_and_stops(database: str, statement: str) -> None:
    stopped = anyio.Event()

    async def then(recall: CurrentRecall) -> str | None:
        try:
            await anyio.sleep_forever()
        finally:
            assert recall.cancelled
            stopped.set()
        return None

    agent = Recorder(then)
    async with sql(database) as db, working(database, agent):
        await db.session("s1", "s2")
        recall_id = await db.recall("s1")
        await agent.count(1)
        await db(statement, recall_id)
        with anyio.fail_after(5):
            await stopped.wait()
        if "delete" not in statement:
            await db.ended(recall_id, "cancelled")
            assert await db("select outcome, reason from pgrecall.recall_runs") == [("interrupted", "told to stop")]
        assert await db("select count(*) from pgrecall.sessions where run_id is not null and held_until is null") == [0]


async def test_a_worker_reconnects_its_listener_and_fires_what_came_meanwhile(database: str) -> None:
    agent = Recorder()
    with capture_logs() as events:
        async with sql(database) as db, working(database, agent):
            await db.session("s1", "s2")
            await db.asleep()
            assert await db(
                "select pg_terminate_backend(held.pid) from pgrecall.workers join pg_locks as held "
                "on (held.classid::bigint << 32 | held.objid::bigint) = lifelines[2] and held.locktype = 'advisory'"
            ) == [True]
            await db.ended(await db.recall("s1"))
            await db.asleep()
            await db.ended(await db.recall("s2"))
    names = [event["event"] for event in events]
    assert names.count("listener_lost") == names.count("listener_restored") == 1


async def test_a_worker_survives_losing_all_its_connections_while_it_runs_an_agent(database: str) -> None:
    release = anyio.Event()

    async def then(_: CurrentRecall) -> str | None:
        await release.wait()
        return "survived"

    agent = Recorder(then)
    async with sql(database) as db, working(database, agent):
        await db.session("s1", "s2")
        first = await db.recall("s1")
        await agent.count(1)
        await db(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
        release.set()
        await db.ended(first)
        await db.ended(await db.recall("s2"))
        assert await db("select outcome, reply from pgrecall.recall_runs order by id") == [("success", "survived")] * 2


async def test_a_worker_comes_back_by_itself_after_the_server_was_killed(tmp_path: Path) -> None:
    agent = Recorder()
    postgres = EmbeddedPostgres(tmp_path, durable=False)
    with capture_logs() as events:
        await anyio.to_thread.run_sync(postgres.start)
        try:
            async with RecallScheduler(postgres.dsn) as scheduler:
                await scheduler.ensure_tables()
            async with working(postgres.dsn, agent):
                async with sql(postgres.dsn) as db:
                    await db.session("s1", "s2")
                    await db.recall("s1", "now() + interval '1 second'")
                    await db.asleep()

                async def noticed() -> bool:
                    return {"listener_lost", "loop_error"} <= {event["event"] for event in events}

                await anyio.to_thread.run_sync(postgres.kill)
                await until(noticed)
                await anyio.to_thread.run_sync(postgres.start)
                await agent.count(1)
                async with sql(postgres.dsn) as db:
                    await db.ended(await db.recall("s2"))
        finally:
            await anyio.to_thread.run_sync(postgres.stop)
    names = Counter(event["event"] for event in events)
    assert (names["listener_lost"], names["listener_restored"]) == (1, 1)
    assert (names["loop_error"], names["loop_restored"]) == (1, 1)


def server_processes(postmaster: int) -> list[int]:
    """The postmaster and its children."""
    found = [postmaster]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended while we looked
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == postmaster:
                found.append(int(stat.parent.name))
    return found


def send(pids: list[int], number: signal.Signals) -> None:
    """Signal all of them; one may have ended meanwhile, and the others must get theirs all the same."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the server's processes")
async def test_a_run_is_stopped_before_a_lease_ends_that_cannot_be_renewed(tmp_path: Path) -> None:
    """The server hangs: nothing fails, nothing answers."""
    stopped_at: list[float] = []
    lease = 3.0

    async def then(_: CurrentRecall) -> str | None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped_at.append(time.monotonic())
        return None

    agent = Recorder(then)
    with EmbeddedPostgres(tmp_path, durable=False) as postgres:
        async with RecallScheduler(postgres.dsn) as scheduler:
            await scheduler.ensure_tables()
        async with working(postgres.dsn, agent, lease=lease):
            async with sql(postgres.dsn) as db:
                await db.session("s1")
                await db.recall("s1")
                await agent.count(1)
            hung = server_processes(postgres.pid)
            try:
                send(hung, signal.SIGSTOP)
                # No renewal was answered after this, so the lease ends no later than a lease from now.
                hung_at = time.monotonic()

                async def stopped() -> bool:
                    return bool(stopped_at)

                await until(stopped)
            finally:
                send(hung, signal.SIGCONT)
    assert stopped_at[0] < hung_at + lease


async def test_a_stopping_worker_lets_its_runs_finish(database: str) -> None:
    release = anyio.Event()

    async def then(_: CurrentRecall) -> str | None:
        await release.wait()
        return "finished"

    agent = Recorder(then)
    async with sql(database) as db:
        worker = Worker(database, agent=agent, safety_interval=NEVER)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            await db.session("s1", "s2")
            recall_id = await db.recall("s1")
            await agent.count(1)
            worker.stop()
            await db.recall("s2")
            release.set()
        assert await db("select status from pgrecall.session_recalls where id = %s", recall_id) == ["fired"]
        assert await db("select status from pgrecall.session_recalls where session_id = 's2'") == ["pending"]
        assert await db("select count(*) from pgrecall.workers") == [0]


async def test_a_worker_that_stops_while_it_signs_up_does_not_come_back(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease has a thread of its own, which signs up as soon as it has a connection."""
    is_about_to, may_sign_up = threading.Event(), threading.Event()
    take_lifeline, ended, run = LeaseKeeper.take_lifeline, LeaseKeeper.ended, AsyncDatabase.run

    async def take_it_late(self: LeaseKeeper, line: int, connection: Any) -> None:
        if line == 1:
            is_about_to.set()
            await asyncio.to_thread(may_sign_up.wait, 10)
        await take_lifeline(self, line, connection)

    async def ran(self: AsyncDatabase, call: Any, connection: Any = None) -> Any:
        rows = await run(self, call, connection)
        if "unregister_worker" in call.statement:
            may_sign_up.set()
        return rows

    async def waits_for_it(self: LeaseKeeper) -> None:
        may_sign_up.set()
        await ended(self)

    monkeypatch.setattr(LeaseKeeper, "take_lifeline", take_it_late)
    monkeypatch.setattr(LeaseKeeper, "ended", waits_for_it)
    monkeypatch.setattr(AsyncDatabase, "run", ran)
    worker = Worker(database, agent=Recorder())
    async with sql(database) as db:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            await until(_are(is_about_to.is_set))
            worker.stop()
        await asyncio.to_thread(worker._lease._thread.join)
        assert await db("select count(*) from pgrecall.workers") == [0]


@pytest.mark.parametrize("how", ["grace over", "second stop", "cancelled"])
async def test_a_stopped_worker_gives_its_runs_back_at_once_without_counting_them(database: str, how: str) -> None:
    async def then(recall: CurrentRecall) -> str | None:
        if recall.worker_id == first.worker_id:
            await anyio.sleep_forever()
        return "done"

    agent = Recorder(then)
    first = Worker(database, agent=agent, safety_interval=NEVER, grace=0.05 if how == "grace over" else 60)
    async with sql(database) as db:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.run)
            await db.session("s1")
            recall_id = await db.recall("s1")
            await agent.count(1)
            if how == "cancelled":
                tasks.cancel_scope.cancel()
            else:
                first.stop()
                if how == "second stop":
                    first.stop()
        assert await db("select status, attempt from pgrecall.session_recalls where due_at <= now()") == [
            ("pending", 0)
        ]
        async with working(database, agent):
            await db.ended(recall_id)
        assert await db("select outcome, reason from pgrecall.recall_runs order by id") == [
            ("interrupted", "worker stopping"),
            ("success", None),
        ]


WORKER_PROCESS = """
import sys, time, anyio
from pgrecall import Worker

class Agent:
    async def run(self, *, session_id, user_message):
        print("running", session_id, flush=True)
        if user_message == "block":
            time.sleep(3)
            return "blocked the loop"
        await anyio.sleep_forever()

anyio.run(Worker(sys.argv[1], agent=Agent(), lease=float(sys.argv[2])).run)
"""


@contextmanager
def worker_process(dsn: str, lease: float) -> Iterator[subprocess.Popen[str]]:
    """A worker in a process of its own, with the package of this checkout; killed in the end."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER_PROCESS, dsn, str(lease)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def said(process: subprocess.Popen[str], words: str) -> None:
    """Wait until the process has printed a line that begins with these words."""
    assert process.stdout is not None
    with anyio.fail_after(20):
        while not (await anyio.to_thread.run_sync(process.stdout.readline)).startswith(words):
            assert process.poll() is None


async def test_the_runs_of_a_killed_worker_are_started_again_elsewhere(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db:
        await db.session("s1")
        with worker_process(database, lease=1.5) as process:
            recall_id = await db.recall("s1")
            await said(process, "running s1")
            async with working(database, agent):
                await db.asleep()
                process.send_signal(signal.SIGKILL)
                await db.ended(recall_id)
        assert await db("select outcome, attempt from pgrecall.recall_runs order by id") == [
            ("lost", 1),
            ("success", 2),
        ]
        assert await db("select count(*) from pgrecall.session_messages where role = 'system'") == [1]


async def test_a_blocking_agent_does_not_cost_its_worker_the_lease(database: str) -> None:
    rival = Recorder()
    async with sql(database) as db:
        await db.session("s1")
        with worker_process(database, lease=1) as process:
            recall_id = await db.recall("s1", message="block")
            await said(process, "running s1")
            async with working(database, rival):
                await db.ended(recall_id)
        assert await db("select outcome, reply from pgrecall.recall_runs") == [("success", "blocked the loop")]
    assert rival.runs == []


@pytest.mark.parametrize("worker_is", ["busy", "idle"])
async def test_a_claim_whose_answer_never_arrived_is_given_back_and_runs(database: str, worker_is: str) -> None:
    """The connection broke after the commit: the database thinks that the worker has it, the worker does not."""
    release = anyio.Event()

    async def then(recall: CurrentRecall) -> str | None:
        if recall.session_id == "busy":
            await release.wait()
        return None

    agent = Recorder(then)
    async with sql(database) as db, working(database, agent, lease=0.9, safety_interval=0.3) as worker:
        await db.session("busy", "s1")
        if worker_is == "busy":
            await db.recall("busy")
            await agent.count(1)
        async with db.connection.transaction():
            recall_id = await db.recall("s1")
            claimed = await db("select recall_id from pgrecall.claim(%s, 3, interval '0.9 seconds')", worker.worker_id)
            assert claimed == [recall_id]
        await db.ended(recall_id)
        outcomes = await db(
            "select outcome, attempt from pgrecall.recall_runs where recall_id = %s order by id", recall_id
        )
        assert outcomes == (
            [("interrupted", 1), ("success", 1)] if worker_is == "busy" else [("lost", 1), ("success", 2)]
        )
        release.set()


async def test_a_worker_whose_own_clock_is_wrong_fires_on_time(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    agent = Recorder()
    async with sql(database) as db, working(database, agent):
        await db.session("s1")
        await db.ended(await db.recall("s1", "now() + interval '0.3 seconds'"))
    assert timedelta(0) <= agent.runs[0].lateness < timedelta(seconds=1)


async def test_a_worker_says_what_to_do_when_there_is_no_schema(empty_database: str) -> None:
    with pytest.raises(SchemaMissingError) as raised:
        await Worker(empty_database, agent=Recorder()).run()
    assert raised.value.hint == "Run: pgrecall migrate"


async def test_a_worker_that_cannot_reach_its_database_at_the_start_raises_the_drivers_error() -> None:
    with pytest.raises(psycopg.OperationalError):
        await Worker("host=127.0.0.1 port=1 connect_timeout=2", agent=Recorder()).run()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("concurrency", 0),
        ("concurrency", 1.5),
        ("lease", 0),
        ("safety_interval", -1),
        ("timeout", 0),
        ("grace", -1),
        ("lease", 1e6),
        ("reconnect_grace", 0),
        ("reconnect_grace", 61),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(setting: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"{setting} is {value}, but must be"):
        Worker("", agent=Recorder(), **{setting: value})  # type: ignore[arg-type]


async def test_a_worker_runs_once(database: str) -> None:
    worker = Worker(database, agent=Recorder())
    worker.stop()
    await worker.run()
    with pytest.raises(RecallError, match="has run already"):
        await worker.run()


def test_something_that_is_no_agent_is_refused_at_once() -> None:
    with pytest.raises(AgentError, match="is not an agent"):
        Worker("", agent=42)


async def test_the_log_tells_the_life_of_a_recall(database: str) -> None:
    async def then(recall: CurrentRecall) -> str | None:
        if recall.session_id == "bad":
            raise ValueError("boom")
        return None

    with capture_logs() as events:
        async with sql(database) as db, working(database, Recorder(then)):
            await db.session("good", "bad")
            good = await db.recall("good")
            await db.ended(good)
            await db.ended(await db.recall("bad"), "failed")
    told: list[Any] = [event for event in events if event.get("recall_id")]
    assert [event["event"] for event in told] == ["recall_claimed", "recall_fired", "recall_claimed", "recall_failed"]
    assert told[0]["recall_id"] == good
    assert set(told[0]) >= {"run_id", "session_id", "nominal_at", "lateness_ms", "attempt"}
    assert told[3]["error"] == "ValueError: boom"


async def test_the_scheduler_loop_installs_what_is_missing_and_fires_beside_the_hosts_own_tasks(
    empty_database: str,
) -> None:
    agent = Recorder()
    async with RecallScheduler(empty_database) as scheduler, sql(empty_database) as db:
        loop = asyncio.create_task(recall_scheduler_loop(scheduler, agent=agent, safety_interval=NEVER))
        await scheduler.ensure_tables()
        await db.session("s1")
        await db.ended(await db.recall("s1"))
        loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loop
        assert await db("select count(*) from pgrecall.workers") == [0]


async def test_the_scheduler_loop_survives_a_database_that_is_not_there_yet(server: Any, empty_database: str) -> None:
    from psycopg.conninfo import conninfo_to_dict

    name = conninfo_to_dict(empty_database)["dbname"]
    agent = Recorder()
    with capture_logs() as events:
        async with sql(server.dsn) as admin, RecallScheduler(empty_database) as scheduler:
            await admin(f'alter database "{name}" allow_connections false')
            loop = asyncio.create_task(recall_scheduler_loop(scheduler, agent=agent))

            async def complained() -> bool:
                return any(event["event"] == "loop_error" for event in events)

            await until(complained)
            await admin(f'alter database "{name}" allow_connections true')

            async def works() -> bool:
                return any(event["event"] == "worker_started" for event in events)

            await until(works)
            loop.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loop


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_a_role_with_another_default_isolation_level_changes_nothing(database: str, isolation: str) -> None:
    agent = Recorder()
    async with sql(database) as db:
        name = (await db("select quote_ident(current_database())"))[0]
        await db(f"alter database {name} set default_transaction_isolation = '{isolation}'")
        async with working(database, agent):
            await db.session("s1", "s2")
            await db.ended(await db.recall("s1"))
            await db.ended(await db.recall("s2", "now() + interval '0.2 seconds'"))


async def test_times_in_a_run_are_utc(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db, working(database + "&options=-c%20timezone%3DAsia%2FTokyo", agent):
        await db.session("s1")
        await db.ended(await db.recall("s1"))
    assert agent.runs[0].nominal_at.tzinfo is UTC
    assert abs(agent.runs[0].nominal_at - datetime.now(UTC)) < timedelta(minutes=5)


# Outcomes


def _told(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[str]]:
    """How many outcomes are told together each time, and the recalls whose outcomes are told alone."""
    together: list[int] = []
    alone: list[str] = []
    tell_together, tell_alone = Outcomes._tell_together, Outcomes._tell_alone

    async def told_together(self: Outcomes, runs: Any) -> Any:
        together.append(len(runs))
        return await tell_together(self, runs)

    async def told_alone(self: Outcomes, run: Any) -> None:
        alone.append(run.claim.recall_id)
        await tell_alone(self, run)

    monkeypatch.setattr(Outcomes, "_tell_together", told_together)
    monkeypatch.setattr(Outcomes, "_tell_alone", told_alone)
    return together, alone


async def test_outcomes_whose_rows_another_claim_holds_are_told_together_when_it_has_ended(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_outcomes, "_TRIES_TOGETHER", 1000)
    together, alone = _told(monkeypatch)
    may_end = anyio.Event()

    async def then(_recall: CurrentRecall) -> str:
        await may_end.wait()
        return "done"

    agent = Recorder(then)
    sessions = ["s1", "s2", "s3"]
    async with sql(database) as db, sql(database) as other, working(database, agent):
        await db.session(*sessions)
        recall_ids = [await db.recall(session) for session in sessions]
        await agent.count(3)
        async with other.connection.transaction():
            await other("select from pgrecall.session_recalls for no key update")
            may_end.set()
            await until(_are(lambda: len(together) >= 3))
        for recall_id in recall_ids:
            await db.ended(recall_id)
    assert max(together) == 3
    assert alone == []


async def test_a_worker_whose_grace_is_over_waits_for_outcomes_that_are_on_their_way(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, alone = _told(monkeypatch)
    on_their_way, arrive = anyio.Event(), anyio.Event()
    tell_together = Outcomes._tell_together

    async def told_together(self: Outcomes, runs: Any) -> Any:
        on_their_way.set()
        await arrive.wait()
        return await tell_together(self, runs)

    monkeypatch.setattr(Outcomes, "_tell_together", told_together)
    worker = Worker(database, agent=Recorder(), grace=0)
    async with sql(database) as db:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            await db.session("s1")
            recall_id = await db.recall("s1")
            await on_their_way.wait()
            worker.stop()
            await until(_are(lambda: all(run.stop_reason == "worker stopping" for run in worker._runs.values())))
            arrive.set()
        assert await db("select outcome from pgrecall.recall_runs where recall_id = %s", recall_id) == ["success"]
    assert alone == []


async def test_a_log_that_fails_keeps_no_run_and_no_other_outcome(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Run, log: Any) -> None:
        raise BrokenPipeError("nobody reads the log")

    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(context))
    monkeypatch.setattr(Run, "log_ending", fails)
    agent = Recorder()
    async with sql(database) as db, working(database, agent) as worker:
        await db.session("s1", "s2")
        for session in ("s1", "s2"):
            await db.ended(await db.recall(session))
        await until(_are(lambda: not worker._runs))
    assert [type(context["exception"]) for context in heard] == [BrokenPipeError] * 2


async def test_a_run_is_told_the_same_of_itself_whenever_it_asks(database: str) -> None:
    asked: list[CurrentRecall | None] = []

    async def agent(*, session_id: str, user_message: str) -> None:
        asked.append(current_recall())
        asked.append(await asyncio.create_task(_asks()))

    async def _asks() -> CurrentRecall | None:
        return current_recall()

    async with sql(database) as db, working(database, agent):
        await db.session("s1")
        await db.ended(await db.recall("s1"))
    assert asked[0] is asked[1] is not None


async def test_the_outcome_of_a_recurring_recall_is_told_at_once_the_longer_way(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, alone = _told(monkeypatch)
    agent = Recorder()
    async with sql(database) as db, working(database, agent):
        await db.session("s1")
        (recall_id,) = await db(
            "insert into pgrecall.session_recalls (session_id, trigger_at, call_type, interval_seconds, "
            "additional_context_message) values ('s1', now(), 'recurring', 3600, 'x') returning id"
        )
        await until(lambda: db("select from pgrecall.recall_runs where outcome = 'success'"))
    assert (together, alone) == ([], [recall_id])


async def test_a_look_waits_for_slots_that_are_about_to_become_free(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While outcomes are on their way, one slot of sixteen is not worth a look of its own."""
    free: list[int] = []
    on_its_way, arrives = anyio.Event(), anyio.Event()
    look, tell_together = Worker._look, Outcomes._tell_together

    async def looked(self: Worker, slots: int, *, everywhere: bool) -> Any:
        free.append(slots)
        return await look(self, slots, everywhere=everywhere)

    async def told_together(self: Outcomes, runs: Any) -> Any:
        on_its_way.set()
        await arrives.wait()
        return await tell_together(self, runs)

    monkeypatch.setattr(Worker, "_look", looked)
    monkeypatch.setattr(Outcomes, "_tell_together", told_together)
    succeeds, fails = anyio.Event(), anyio.Event()

    async def then(recall: CurrentRecall) -> str:
        if recall.session_id == "s0":
            await fails.wait()
            raise ValueError("boom")
        if recall.session_id != "last":
            await succeeds.wait()
        return "done"

    agent = Recorder(then)
    sessions = [f"s{number}" for number in range(16)]
    async with sql(database) as db, working(database, agent, concurrency=16) as worker:
        await db.session(*sessions, "last")
        for session in sessions:
            await db.recall(session)
        await agent.count(16)
        recall_id = await db.recall("last")
        del free[:]
        succeeds.set()
        await on_its_way.wait()
        fails.set()
        await until(_are(lambda: len(worker._runs) == 15))
        arrives.set()
        await db.ended(recall_id)
    assert free[0] > 1


def _are(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return condition()

    return holds
