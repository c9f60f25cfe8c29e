"""What may be given as an agent, and how it is built, opened and closed for each run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs
from workertools import sql, until, working

from pgrecall import AgentError, AgentFactory, GiveUp, InvalidRecallError, RunResult, Worker, current_recall

pytestmark = pytest.mark.anyio

seen: list[str] = []


class Plain:
    async def run(self, *, session_id: str, user_message: str) -> str | None:
        return f"{session_id}: {user_message}"


async def function(session_id: str, user_message: str) -> str:
    return f"{session_id}: {user_message}"


def in_a_thread(session_id: str, user_message: str) -> str:
    recall = current_recall()
    assert recall is not None
    return f"{recall.session_id}: {user_message}"


def factory() -> Plain:
    return Plain()


async def async_factory() -> Plain:
    return Plain()


@asynccontextmanager
async def opened_and_closed() -> AsyncIterator[Plain]:
    seen.append("opened")
    yield Plain()
    seen.append("closed")


async def reply_of(database: str, agent: Any) -> tuple[str, str | None, str | None]:
    """Outcome, reply and error of one run of this agent."""
    async with sql(database) as db, working(database, agent):
        await db.session("s1")
        await db.recall("s1", max_attempts=1)

        async def ended() -> Any:
            return await db("select outcome, reply, error from pgrecall.recall_runs")

        outcome, reply, error = (await until(ended))[0]
        return outcome, reply, error


@pytest.mark.parametrize("agent", [Plain(), function, in_a_thread, factory, async_factory, Plain, opened_and_closed])
async def test_an_agent_may_be_an_object_a_function_or_a_factory(database: str, agent: Any) -> None:
    seen.clear()
    assert await reply_of(database, agent) == ("success", "s1: hello", None)
    assert seen == (["opened", "closed"] if agent is opened_and_closed else [])


def broken() -> Plain:
    raise RuntimeError("no tools today")


def wrong_type() -> Any:
    return object()


async def test_a_factory_that_fails_is_an_error_of_the_run(database: str) -> None:
    assert await reply_of(database, broken) == ("error", None, "RuntimeError: no tools today")


async def test_a_factory_that_builds_no_agent_is_an_error_of_the_run(database: str) -> None:
    outcome, _, error = await reply_of(database, wrong_type)
    assert outcome == "error"
    assert error is not None
    assert "is not an agent" in error


async def test_a_factory_builds_from_parts_and_closes_them_after_the_run(database: str) -> None:
    seen.clear()

    @asynccontextmanager
    async def tools() -> AsyncIterator[list[str]]:
        seen.append("tools opened")
        yield ["hammer"]
        seen.append("tools closed")

    async def profile() -> str:
        return "kind"

    class Built:
        def __init__(self, **parts: Any) -> None:
            self.parts = parts

        async def run(self, *, session_id: str, user_message: str) -> str:
            seen.append("ran")
            return f"{self.parts}"

    agent = AgentFactory(Built, tools=tools, profile=profile, limit=3)
    assert await reply_of(database, agent) == ("success", "{'tools': ['hammer'], 'profile': 'kind', 'limit': 3}", None)
    assert seen == ["tools opened", "ran", "tools closed"]


async def test_an_optional_part_that_fails_does_not_stop_the_run(database: str) -> None:
    def mcp() -> Any:
        raise ConnectionError("no MCP server")

    class Built(Plain):
        def __init__(self, mcp: Any) -> None:
            assert mcp is None

    with capture_logs() as events:
        reply = await reply_of(database, AgentFactory(Built, mcp=mcp, optional=("mcp",)))
    assert reply == ("success", "s1: hello", None)
    assert [(event["part"], event["error"]) for event in events if event["event"] == "part_failed"] == [
        ("mcp", "ConnectionError: no MCP server")
    ]


@pytest.mark.parametrize(
    ("how", "timeout_seconds", "outcome"), [("raises", 30, "error"), ("gives up", 30, "error"), ("hangs", 1, "timeout")]
)
async def test_what_a_run_has_used_is_recorded_however_it_ends(
    database: str, how: str, timeout_seconds: int, outcome: str
) -> None:
    async def agent(*, session_id: str, user_message: str) -> None:
        recall = current_recall()
        assert recall is not None
        recall.report_usage({"input_tokens": 1})
        recall.report_usage({"input_tokens": 7, "cost_usd": 0.5})
        if how == "raises":
            raise RuntimeError
        if how == "gives up":
            raise GiveUp("no way")
        await anyio.sleep_forever()

    async with sql(database) as db, working(database, agent):
        await db.session("s1")
        await db.ended(await db.recall("s1", max_attempts=1, timeout_seconds=timeout_seconds), "failed")
        assert await db("select outcome, usage from pgrecall.recall_runs") == [
            (outcome, {"input_tokens": 7, "cost_usd": 0.5})
        ]


async def test_a_runs_result_says_the_last_word_on_what_it_used_and_what_is_not_json_is_refused(database: str) -> None:
    async def agent(*, session_id: str, user_message: str) -> RunResult:
        recall = current_recall()
        assert recall is not None
        recall.report_usage({"requests": 1})
        with pytest.raises(InvalidRecallError):
            recall.report_usage({"requests": object()})
        return RunResult(reply="done", usage={"requests": 2} if user_message == "hello" else None)

    async with sql(database) as db, working(database, agent):
        await db.session("s1")
        await db.ended(await db.recall("s1"))
        await db.ended(await db.recall("s1", message="again"))
        assert await db("select usage from pgrecall.recall_runs order by id") == [{"requests": 2}, {"requests": 1}]


def test_an_optional_part_must_be_a_part() -> None:
    with pytest.raises(AgentError, match="optional names no part of this agent: mpc"):
        AgentFactory(Plain, optional=("mpc",), mcp=None)


class NoMessage:
    async def run(self) -> None:
        """Takes nothing."""


@pytest.mark.parametrize("agent", [42, "module:agent", NoMessage(), lambda a, b: None])
def test_what_is_no_agent_is_refused_when_the_worker_is_made(agent: Any) -> None:
    with pytest.raises(AgentError):
        Worker("", agent=agent)
