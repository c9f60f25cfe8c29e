"""Real workers, chats, producers, operators and observers, each a login in its group role alone."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict
from receiver import SECRET, receiving
from roletools import ROLES, logins
from starlette.responses import Response
from structlog.testing import capture_logs
from workerprocess import worker_processes
from workertools import Recorder, Sql, sql, until, working

from pgrecall import CurrentRecall, PostgresSessionStore, RecallScheduler, SessionHeldError, tools
from pgrecall.cli.app import cli
from pgrecall.database import conninfo

pytestmark = pytest.mark.anyio

#: Uses all that a run is given: its store, the tools, its scheduler's connection.
AGENT = """
import os, signal
from pgrecall import current_recall
from pgrecall.tools import recall_tools

schedule, listed, cancel, skip = recall_tools()

async def agent(*, session_id, user_message):
    recall = current_recall()
    if user_message == "once more":
        answer = await schedule("and again", in_seconds=3600)
        assert answer["result"] == "scheduled", answer
        assert len((await listed())["recalls"]) >= 1
        assert "error" not in await cancel(answer["recall"]["recall_id"])
    elif user_message == "remember":
        session = await recall.store.get(session_id)
        session.messages.append({"role": "assistant", "content": "remembered"})
        await recall.store.save(session)
    elif user_message == "kill" and recall.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"did {user_message}"
"""


@pytest.fixture
def dsns(database: str) -> Iterator[dict[str, str]]:
    """A login for each group role, and one that has none."""
    with logins(database, stranger="", **{role: role for role in ROLES}) as made:
        yield made


@pytest.fixture
async def db(database: str) -> AsyncIterator[Sql]:
    """The owner, to look."""
    async with sql(database) as connected:
        yield connected


def user_of(dsn: str) -> str:
    return str(conninfo_to_dict(dsn)["user"])


async def test_a_worker_process_does_all_its_work_as_a_member_of_its_role(
    dsns: dict[str, str], db: Sql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claims, outcomes, history, tools, deliveries, the rescue of a killed one, and the end."""
    monkeypatch.setenv("PGRECALL_WEBHOOK_SECRET", SECRET)
    (tmp_path / "all_agent.py").write_text(AGENT)
    async with receiving(Response(status_code=204)) as receiver, sql(dsns["producer"]) as producer:
        with worker_processes(tmp_path, dsns["worker"]) as start:
            first = await anyio.to_thread.run_sync(lambda: start("--agent", "all_agent:agent", "--concurrency", "1"))
            second = await anyio.to_thread.run_sync(lambda: start("--agent", "all_agent:agent", "--concurrency", "1"))
            for session_id in ("s1", "s2", "s3", "s4"):
                await producer("insert into pgrecall.sessions (id, user_id) values (%s, 'ann')", session_id)
            await db("update pgrecall.sessions set deliver_to = %s where id = 's1'", receiver.url)
            made = [
                await producer.recall(session_id, message=message)
                for session_id, message in (("s1", "deliver"), ("s2", "once more"), ("s3", "remember"))
            ]
            for one in made:
                await db.ended(one)

            async def delivered() -> bool:
                return await db("select status from pgrecall.deliveries") == ["delivered"]

            await until(delivered)
            killed = await producer.recall("s4", message="kill")
            await db.ended(killed)
            assert await db("select outcome from pgrecall.recall_runs where recall_id = %s order by id", killed) == [
                "lost",
                "success",
            ]
            (survivor,) = [one for one in (first, second) if one.process.poll() is None]
            survivor.send(signal.SIGTERM)
            assert await anyio.to_thread.run_sync(survivor.ended) == 0
            events = [event for one in (first, second) for event in one.events]
            assert [event for event in events if event["event"] in ("loop_error", "tool_failed")] == []
            assert [event["event"] for event in survivor.events].count("worker_died") == 1
    assert await db("select count(*) from pgrecall.recall_runs where outcome = 'success'") == [4]
    assert "remembered" in await db("select content from pgrecall.session_messages where session_id = 's3'")
    scheduled = await db("select scheduled_by from pgrecall.session_recalls where created_by = 'agent'")
    assert scheduled == [user_of(dsns["worker"])]
    assert await db("select count(*) from pgrecall.workers where died_at is null") == [0]


async def test_a_chat_server_holds_talks_and_schedules_as_a_member_of_its_role(
    database: str, dsns: dict[str, str], db: Sql
) -> None:
    async with RecallScheduler(dsns["chat"]) as chat:
        store = PostgresSessionStore(chat)
        session = await store.create("s1", user_id="ann")
        async with chat.hold_session("s1", holder="chat 1"):
            with pytest.raises(SessionHeldError):
                async with chat.hold_session("s1", holder="chat 2"):
                    pass
            session.messages.append({"role": "user", "content": "Remind me."})
            await store.save(session)
            with tools.live_session(chat, "s1"):
                schedule = tools.recall_tools()[0]
                assert (await schedule("Remind them.", in_seconds=3600))["result"] == "scheduled"
            assert [hold.holder for hold in await chat.get_holds()] == ["chat 1"]
        assert await chat.touch_session("s1")
    assert await db("select content from pgrecall.session_messages") == ["Remind me."]


async def test_a_chat_interrupts_a_run_at_once(dsns: dict[str, str], db: Sql) -> None:
    """The message to stop is asked about, and that costs a round trip only."""

    async def wait(_: CurrentRecall) -> str:
        await anyio.sleep_forever()
        return ""

    agent = Recorder(then=wait)
    await db.session("s1")
    async with RecallScheduler(dsns["chat"]) as chat, working(dsns["worker"], agent):
        await db.recall("s1")
        await agent.count(1)
        async with chat.hold_session("s1", holder="chat", if_held="interrupt", wait=5):
            assert await db("select outcome, reason from pgrecall.recall_runs") == [
                ("interrupted", "interrupted by the chat chat")
            ]


# Whoever can connect can notify


@pytest.mark.parametrize("payload", ["stop {run_id}", "stop all", "stop 99999999999999999999", "report {run_id}"])
async def test_a_forged_message_stops_no_run(dsns: dict[str, str], db: Sql, payload: str) -> None:
    go_on = anyio.Event()

    async def wait(_: CurrentRecall) -> str:
        await go_on.wait()
        return "done"

    agent = Recorder(then=wait)
    await db.session("s1")
    with capture_logs() as logged:
        async with working(dsns["worker"], agent), sql(dsns["stranger"]) as stranger:
            recall_id = await db.recall("s1")
            await agent.count(1)
            forged = payload.format(run_id=agent.runs[0].run_id)
            before = (await db("select lease_until from pgrecall.workers"))[0]
            for _ in range(100):
                await stranger("select pg_notify('pgrecall', %s)", forged)
            if forged in (f"stop {agent.runs[0].run_id}", "stop all"):

                async def asked() -> bool:
                    return bool((await db("select lease_until from pgrecall.workers"))[0] > before)

                await until(asked)
            # A recall that is cancelled now is stopped: so the messages before it have been dealt with.
            await db.session("s2")
            other = await db.recall("s2")
            await agent.count(2)
            await db("update pgrecall.session_recalls set status = 'cancelled' where id = %s", other)
            await db.ended(other, "cancelled")
            assert agent.at_once == 1
            go_on.set()
            await db.ended(recall_id)
    assert await db("select outcome from pgrecall.recall_runs where recall_id = %s", recall_id) == ["success"]
    assert [event for event in logged if event["event"] in ("lease_lost", "loop_error")] == []


async def test_a_run_that_is_cancelled_while_its_claim_is_answered_is_stopped(dsns: dict[str, str], db: Sql) -> None:
    """The message to stop may come before the worker knows that the run is its own."""

    async def wait(_: CurrentRecall) -> str:
        await anyio.sleep_forever()
        return ""

    await db.session("s1")
    async with working(dsns["worker"], Recorder(then=wait)) as worker:
        await db.asleep()
        look = worker._look

        async def slow_look(free: int, *, everywhere: bool) -> Any:
            answer = await look(free, everywhere=everywhere)
            if any(one.run_id for one in answer):
                await db("update pgrecall.session_recalls set status = 'cancelled'")

                async def heard() -> bool:
                    return worker._early_stop_at > 0

                await until(heard)
            return answer

        worker._look = slow_look  # type: ignore[method-assign]
        recall_id = await db.recall("s1")
        await db.ended(recall_id, "cancelled")


async def test_a_forged_word_that_a_session_is_free_gives_it_to_nobody(dsns: dict[str, str], db: Sql) -> None:
    async with RecallScheduler(dsns["chat"]) as chat, sql(dsns["stranger"]) as stranger:
        await db.session("s1")
        async with chat.hold_session("s1", holder="first"), anyio.create_task_group() as tasks:
            got = anyio.Event()

            async def second() -> None:
                async with chat.hold_session("s1", holder="second", if_held="wait"):
                    got.set()

            tasks.start_soon(second)

            async def waits() -> bool:
                return await db("select count(*) from pgrecall.session_waiters") == [1]

            await until(waits)
            (waiter,) = await db("select id from pgrecall.session_waiters")
            for payload in (f"granted {waiter}", "granted " + "9" * 7000, "granted x"):
                await stranger("select pg_notify('pgrecall_holds', %s)", payload)
            assert not got.is_set()
            assert [hold.holder for hold in await chat.get_holds("s1")] == ["first"]
            assert await db("select pgrecall.free_session('s1', 'first')") == [True]
            with anyio.fail_after(5):
                await got.wait()
            await db("select pgrecall.free_session('s1', 'second')")
            tasks.cancel_scope.cancel()


# The command line


def verb(dsn: str, *arguments: str) -> Any:
    """Run a verb; its answer."""
    result = CliRunner().invoke(cli, [*arguments, "--dsn", dsn, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_an_operator_has_every_verb_but_those_of_the_owner(database: str, dsns: dict[str, str]) -> None:
    dsn = dsns["operator"]
    made = verb(dsn, "schedule", "s1", "Hello.", "--in", "1h", "--create-session", "--user-id", "ann")["id"]
    assert verb(dsn, "list", "--all")
    assert verb(dsn, "show", made)
    verb(dsn, "reschedule", made, "--in", "2h")
    verb(dsn, "pause", made)
    verb(dsn, "resume", made)
    verb(dsn, "pause", "--all")
    verb(dsn, "resume", "--all")
    verb(dsn, "settings", "timeout_seconds=60")
    verb(dsn, "holds")
    verb(dsn, "deliveries")
    verb(dsn, "cancel", made)
    assert CliRunner().invoke(cli, ["use-own-sessions", "--dsn", dsn]).exit_code == 5


@pytest.mark.parametrize("role", ["operator", "observer"])
def test_doctor_looks_everywhere_as(database: str, dsns: dict[str, str], role: str) -> None:
    with psycopg.connect(conninfo(database), autocommit=True) as owner:
        owner.execute("insert into pgrecall.sessions (id) values ('s1')")
        owner.execute(
            "insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message) "
            "values ('s1', now() - interval '1 hour', 'x')"
        )
        owner.execute("select pgrecall.register_worker('w1', 1)")
    result = CliRunner().invoke(cli, ["doctor", "--dsn", dsns[role], "--json"])
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert [name for name, check in checks.items() if "not allowed" in check["message"]] == []
    assert checks["overdue"]["status"] == "fail"
    assert len(checks) >= 16


def test_roles_shows_who_is_in_which(database: str, dsns: dict[str, str]) -> None:
    shown = verb(dsns["operator"], "roles")
    assert user_of(dsns["chat"]) in shown["pgrecall_chat"]["members"]
    assert all(one["exists"] for one in shown.values())
    said = CliRunner().invoke(cli, ["roles", "--dsn", database])
    assert user_of(dsns["worker"]) in said.stdout
    printed = CliRunner().invoke(cli, ["roles", "--print"])
    assert printed.stdout.count("create role pgrecall_") == len(ROLES)
    assert "select pgrecall.grant_roles();" in printed.stdout
