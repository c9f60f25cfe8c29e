"""The default history store and the host's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs
from workertools import Recorder, sql, working

from pgrecall import (
    CurrentRecall,
    PostgresSessionStore,
    RecallScheduler,
    Retry,
    RunResult,
    Session,
    SessionNotFoundError,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(database: str) -> Any:
    """A store on a fresh database."""
    async with RecallScheduler(database) as scheduler:
        yield PostgresSessionStore(scheduler)


def said(session: Session | None, what: str = "messages") -> list[str]:
    """The contents of a session's messages or context."""
    assert session is not None
    return [message["content"] for message in getattr(session, what)]


async def test_an_unknown_session_is_none(store: PostgresSessionStore) -> None:
    assert await store.get("nobody") is None


async def test_messages_and_context_survive_in_order(store: PostgresSessionStore) -> None:
    session = await store.create("s1", user_id="u1")
    for number in range(20):
        message = {"role": "user", "content": str(number), "metadata": {"n": number}}
        session.messages.append(message)
        session.context.append(message)
    await store.save(session)
    again = await store.get("s1")
    assert said(again) == said(again, "context") == [str(number) for number in range(20)]
    assert again is not None
    assert (again.user_id, again.messages[3]["metadata"]) == ("u1", {"n": 3})


async def test_what_only_the_model_or_only_people_are_given_keeps_its_place(store: PostgresSessionStore) -> None:
    session = await store.create("s1")
    for content, where in (
        ("question", "messages context"),
        ("call", "context"),
        ("result", "context"),
        ("banner", "messages"),
        ("answer", "messages context"),
        ("afterthought", "context"),
    ):
        message = {"role": "user", "content": content}
        for name in where.split():
            getattr(session, name).append(message)
    await store.save(session)
    again = await store.get("s1")
    assert said(again) == ["question", "banner", "answer"]
    assert said(again, "context") == ["question", "call", "result", "answer", "afterthought"]


async def test_creating_a_session_twice_keeps_the_first(store: PostgresSessionStore) -> None:
    await store.create("s1", user_id="u1")
    assert (await store.create("s1", user_id="u2")).user_id == "u1"


async def test_concurrent_writers_do_not_lose_each_others_messages(store: PostgresSessionStore) -> None:
    await store.create("s1")

    async def write(writer: int) -> None:
        for number in range(10):
            session = await store.get("s1")
            assert session is not None
            session.messages.append({"role": "user", "content": f"{writer}-{number}"})
            await store.save(session)

    async with anyio.create_task_group() as tasks:
        for writer in range(4):
            tasks.start_soon(write, writer)
    found = said(await store.get("s1"))
    assert sorted(found) == sorted(f"{writer}-{number}" for writer in range(4) for number in range(10))
    for writer in range(4):
        own = [content for content in found if content.startswith(f"{writer}-")]
        assert own == [f"{writer}-{number}" for number in range(10)]


async def test_a_message_taken_out_of_the_context_stays_in_the_history(store: PostgresSessionStore) -> None:
    session = await store.create("s1")
    for content in ("old", "new"):
        message = {"role": "user", "content": content}
        session.messages.append(message)
        session.context.append(message)
    await store.save(session)
    session.context[:1] = [{"role": "system", "content": "summary"}]
    await store.save(session)
    again = await store.get("s1")
    assert said(again) == ["old", "new"]
    assert sorted(said(again, "context")) == ["new", "summary"]


async def test_an_edited_message_is_saved_in_its_place_and_a_stale_copy_does_not_undo_it(
    store: PostgresSessionStore,
) -> None:
    session = await store.create("s1")
    session.messages += [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    await store.save(session)
    stale, fresh = await store.get("s1"), await store.get("s1")
    assert stale is not None
    assert fresh is not None
    fresh.messages[0]["content"] = "ONE"
    await store.save(fresh)
    stale.messages.append({"role": "user", "content": "three"})
    await store.save(stale)
    assert said(await store.get("s1")) == ["ONE", "two", "three"]


async def test_saving_into_a_session_that_is_gone_is_an_error(database: str, store: PostgresSessionStore) -> None:
    session = await store.create("s1")
    async with sql(database) as db:
        await db("delete from pgrecall.sessions")
    session.messages.append({"role": "user", "content": "hello"})
    with pytest.raises(SessionNotFoundError):
        await store.save(session)


class HostStore:
    """A store as a host may have it: two methods, and sessions of its own shape."""

    def __init__(self, *session_ids: str) -> None:
        self.sessions = {
            session_id: SimpleNamespace(id=session_id, messages=[], context=SimpleNamespace(messages=[]))
            for session_id in session_ids
        }
        self.saves = 0

    async def get(self, session_id: str) -> Any:
        return self.sessions.get(session_id)

    async def save(self, session: Any) -> None:
        assert self.sessions[session.id] is session
        self.saves += 1


async def test_a_hosts_own_store_gets_the_message_once_whatever_the_attempts(database: str) -> None:
    host = HostStore("s1")

    async def then(recall: CurrentRecall) -> str | None:
        assert [message["content"] for message in host.sessions["s1"].messages] == ["[Scheduled recall] hello"]
        if recall.attempt == 1:
            raise Retry(after=0)
        return "done"

    async with sql(database) as db, working(database, Recorder(then), store=host):
        await db.session("s1")
        recall_id = await db.recall("s1")
        await db.ended(recall_id)
        assert await db("select count(*) from pgrecall.session_messages") == [0]
    session = host.sessions["s1"]
    told = session.context.messages[0].pop("content")
    assert told.startswith("[Scheduled recall] hello\n")
    assert "Attempt: 2 of 3" in told
    assert [message["id"] for message in session.context.messages] == [session.messages[0]["id"]]
    assert session.messages[0]["role"] == "system"
    assert session.messages[0]["id"].startswith(f"recall:{recall_id}:")


async def test_a_host_with_one_list_for_people_and_model_gets_what_people_see(database: str) -> None:
    class OneList(HostStore):
        def __init__(self, session_id: str) -> None:
            super().__init__(session_id)
            self.sessions[session_id].context.messages = self.sessions[session_id].messages

    host = OneList("s1")
    async with sql(database) as db, working(database, Recorder(), store=host):
        await db.session("s1")
        await db.ended(await db.recall("s1"))
    assert [message["content"] for message in host.sessions["s1"].messages] == ["[Scheduled recall] hello"]


async def test_a_session_that_the_host_does_not_have_cancels_the_recall_with_a_warning(database: str) -> None:
    agent = Recorder()
    with capture_logs() as events:
        async with sql(database) as db, working(database, agent, store=HostStore()):
            await db.session("s1")
            await db.ended(await db.recall("s1"), "cancelled")
            assert await db("select outcome, reason from pgrecall.recall_runs") == [("skipped", "session missing")]
    assert agent.runs == []
    assert [event["log_level"] for event in events if event["event"] == "session_missing"] == ["warning"]


async def test_a_store_that_fails_before_the_agent_was_reached_is_tried_again(database: str) -> None:
    class Shaky(HostStore):
        failures = 1

        async def get(self, session_id: str) -> Any:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("store is away")
            return await super().get(session_id)

    agent = Recorder()
    async with sql(database) as db, working(database, agent, store=Shaky("s1")):
        await db.session("s1")
        recall_id = await db.recall("s1")

        async def backing_off() -> bool:
            rows = await db(
                "update pgrecall.session_recalls set not_before = null "
                "where id = %s and status = 'pending' and not_before > now() returning id",
                recall_id,
            )
            return bool(rows)

        with anyio.fail_after(10):
            while not await backing_off():  # noqa: ASYNC110 (the database is asked)
                await anyio.sleep(0.01)
        await db.ended(recall_id)
        assert await db("select outcome, error from pgrecall.recall_runs order by id") == [
            ("error", "ConnectionError: store is away"),
            ("success", None),
        ]
    assert len(agent.runs) == 1


SAID = [{"role": "tool", "content": "42"}, {"role": "assistant", "content": "It is 42."}]


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (RunResult(messages=SAID), ["42", "It is 42."]),
        (RunResult(messages=SAID, silent=True), []),
        (RunResult(messages=[*SAID[:1], {"role": "assistant", "content": " [SILENT]\n"}]), []),
    ],
)
async def test_a_hosts_own_store_gets_what_was_said_and_shows_nothing_of_a_silent_run(
    database: str, result: RunResult, shown: list[str]
) -> None:
    host = HostStore("s1")

    async def agent(session_id: str, user_message: str) -> RunResult:
        return result

    async with sql(database) as db, working(database, agent, store=host):
        await db.session("s1")
        await db.ended(await db.recall("s1"))
        outcome = await db("select outcome from pgrecall.recall_runs")
    assert outcome == ["success" if shown else "silent"]
    session = host.sessions["s1"]
    assert [message["content"] for message in session.messages[1:]] == shown
    assert [message["id"][-2:] for message in session.context.messages[1:]] == [":1", "ly"]


async def test_a_run_is_no_success_if_the_hosts_store_does_not_save_what_was_said(database: str) -> None:
    class Full(HostStore):
        async def save(self, session: Any) -> None:
            if len(session.messages) > 1:
                raise OSError("no space left")
            await super().save(session)

    async def agent(session_id: str, user_message: str) -> RunResult:
        return RunResult(messages=SAID)

    async with sql(database) as db, working(database, agent, store=Full("s1")):
        await db.session("s1")
        await db.ended(await db.recall("s1"), "failed")
        assert await db("select outcome, error from pgrecall.recall_runs") == [("error", "OSError: no space left")]
