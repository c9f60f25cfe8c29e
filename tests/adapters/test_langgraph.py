"""LangGraphAgent with real graphs and their Postgres checkpointer: one message for an occurrence, whatever happens."""

from __future__ import annotations

import builtins
import importlib
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import anyio
import psycopg
import pytest
from langchain_core.language_models import BaseChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.types import Command, Send, interrupt
from psycopg.conninfo import make_conninfo
from pydantic import Field
from recalltools import a_recall, run
from typing_extensions import TypedDict
from workerprocess import DEADLINE, ROOT, Start
from workertools import sql, until, working

from pgrecall import AgentError, Retry
from pgrecall.adapters.langgraph import LangGraphAgent
from pgrecall.agents import CurrentRecall, GiveUp, current_recall

pytestmark = pytest.mark.anyio

CHAT: Any = {"configurable": {"thread_id": "s1"}}


class Model(BaseChatModel):
    """Answers what it was told to, and notes what it was sent."""

    answers: list[Any] = Field(default_factory=list)
    sent: list[list[AnyMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "fake"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
        self.sent.append(list(messages))
        answer = self.answers.pop(0) if self.answers else f"answer {len(self.sent)}"
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, str):
            used = {"input_tokens": 10 * len(messages), "output_tokens": 2, "total_tokens": 10 * len(messages) + 2}
            answer = AIMessage(answer, usage_metadata=used)
        return ChatResult(generations=[ChatGeneration(message=answer)])

    def texts(self, call: int = -1) -> list[str]:
        return [message.text.splitlines()[0] for message in self.sent[call]]


class Talk(TypedDict):
    talk: Annotated[list[AnyMessage], add_messages]


@pytest.fixture
async def saver(database: str) -> AsyncIterator[AsyncPostgresSaver]:
    """The checkpointer, with its tables in a schema of their own beside ours."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("create schema graphs")
    async with AsyncPostgresSaver.from_conn_string(make_conninfo(database, options="-csearch_path=graphs")) as opened:
        await opened.setup()
        yield opened


def graph_of(saver: Any, *nodes: Callable[..., Any], **options: Any) -> Any:
    """A graph that runs these nodes one after the other."""
    builder = StateGraph(MessagesState)
    names = [getattr(node, "__name__", "model") for node in nodes]
    for name, node in zip(names, nodes, strict=True):
        builder.add_node(name, node)
    for before, after in zip([START, *names], [*names, END], strict=True):
        builder.add_edge(before, after)
    return builder.compile(checkpointer=saver, **options)


def asking(model: BaseChatModel) -> Callable[..., Any]:
    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    return ask


async def texts(graph: Any) -> list[str]:
    state = await graph.aget_state(CHAT)
    return [message.text.splitlines()[0] for message in state.values["messages"]]


RECALL = "[Scheduled recall] Water the plants."


async def test_the_recall_is_put_into_the_sessions_thread_and_the_answer_comes_back(saver: AsyncPostgresSaver) -> None:
    model = Model(answers=["They have water."])
    graph = graph_of(saver, asking(model))
    recall = a_recall()

    result = await run(LangGraphAgent(graph), recall)

    assert result.reply == "They have water."
    assert result.messages is None  # the thread is the history
    (message,) = model.sent[0]
    assert isinstance(message, HumanMessage)
    assert (message.content, message.id) == (recall.text, recall.message_id)
    assert message.additional_kwargs["recall_id"] == recall.recall_id
    assert await texts(graph) == [RECALL, "They have water."]


async def test_it_can_be_put_in_as_a_system_message(saver: AsyncPostgresSaver) -> None:
    model = Model()
    graph = graph_of(saver, asking(model))
    await graph.ainvoke({"messages": [SystemMessage("You are kind."), HumanMessage("Hello.")]}, CHAT)

    await run(LangGraphAgent(graph, inject_as="system"))

    assert [message.type for message in model.sent[-1]] == ["system", "human", "ai", "system"]


async def test_chats_and_recalls_are_one_conversation(saver: AsyncPostgresSaver) -> None:
    model = Model()
    graph = graph_of(saver, asking(model))
    agent = LangGraphAgent(graph)

    await graph.ainvoke({"messages": [HumanMessage("Hello.")]}, CHAT)
    await run(agent, a_recall(message_id="recall:r1:first"))
    await run(agent, a_recall(message_id="recall:r1:second", message="And the cat?"))
    await graph.ainvoke({"messages": [HumanMessage("Thank you.")]}, CHAT)

    assert model.texts() == [
        "Hello.", "answer 1",
        RECALL, "answer 2",
        "[Scheduled recall] And the cat?", "answer 3",
        "Thank you.",
    ]  # fmt: skip


async def test_three_attempts_put_it_in_once_and_repeat_no_finished_node(saver: AsyncPostgresSaver) -> None:
    model = Model(answers=[Retry("busy"), Retry("busy"), "done"])
    prepared: list[int] = []

    def prepare(state: MessagesState) -> dict[str, Any]:
        recall = current_recall()
        assert recall is not None
        prepared.append(recall.attempt)
        return {}

    graph = graph_of(saver, prepare, asking(model))
    agent = LangGraphAgent(graph)
    recall = a_recall()

    for attempt in (1, 2):
        with pytest.raises(Retry, match="busy"):
            await run(agent, replace(recall, attempt=attempt, run_id=attempt))
    result = await run(agent, replace(recall, attempt=3, run_id=3))

    assert result.reply == "done"
    assert prepared == [1]
    assert [len(sent) for sent in model.sent] == [1, 1, 1]
    assert await texts(graph) == [RECALL, "done"]


async def test_a_run_that_was_stopped_goes_on_from_its_last_checkpoint(saver: AsyncPostgresSaver) -> None:
    model = Model(answers=["half", "whole"])
    reached = anyio.Event()
    stopping = True

    async def slow(state: MessagesState) -> dict[str, Any]:
        reached.set()
        if stopping:
            await anyio.sleep_forever()
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = graph_of(saver, asking(model), slow)
    agent = LangGraphAgent(graph)
    recall = a_recall()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, agent, recall)
        await reached.wait()
        tasks.cancel_scope.cancel()
    stopping = False
    # The attempt of a run that was given back by a stopping worker does not count.
    result = await run(agent, replace(recall, run_id=2))

    assert result.reply == "whole"
    assert await texts(graph) == [RECALL, "half", "whole"]


async def test_a_turn_that_ended_before_its_worker_could_tell_is_not_run_again(saver: AsyncPostgresSaver) -> None:
    model = Model()
    graph = graph_of(saver, asking(model))
    agent = LangGraphAgent(graph)
    recall = a_recall()
    first = await run(agent, recall)  # and then its worker dies

    second = await run(agent, replace(recall, attempt=2, run_id=2))

    assert second == first
    assert second.usage == {"requests": 1, "tool_calls": 0, "input_tokens": 10, "output_tokens": 2}
    assert len(model.sent) == 1


async def test_not_even_if_a_chat_came_in_between(saver: AsyncPostgresSaver) -> None:
    model = Model()
    graph = graph_of(saver, asking(model))
    agent = LangGraphAgent(graph)
    recall = a_recall()
    await run(agent, recall)
    await graph.ainvoke({"messages": [HumanMessage("Hello.")]}, CHAT)

    again = await run(agent, replace(recall, attempt=2, run_id=2))

    assert again.reply == "answer 1"
    assert len(model.sent) == 2


async def test_a_chat_between_two_attempts_moves_the_recall_to_the_end(saver: AsyncPostgresSaver) -> None:
    """LangGraph drops an unfinished turn when there is new input; its message would stay where it was."""
    model = Model(answers=[Retry("busy"), "hello", Retry("busy"), "done"])
    graph = graph_of(saver, asking(model))
    agent = LangGraphAgent(graph)
    recall = a_recall()

    with pytest.raises(Retry):
        await run(agent, recall)
    await graph.ainvoke({"messages": [HumanMessage("Hello.")]}, CHAT)
    with pytest.raises(Retry):
        await run(agent, replace(recall, attempt=2, run_id=2))
    result = await run(agent, replace(recall, attempt=3, run_id=3))

    assert result.reply == "done"
    assert await texts(graph) == [RECALL, "Hello.", "hello", RECALL, "done"]


async def test_a_finished_turn_is_not_taken_for_that_of_the_next_occurrence(saver: AsyncPostgresSaver) -> None:
    model = Model()
    agent = LangGraphAgent(graph_of(saver, asking(model)))
    replies = [(await run(agent, a_recall(message_id=f"recall:r1:{day}"))).reply for day in ("one", "two")]
    assert replies == ["answer 1", "answer 2"]


# People


async def test_a_graph_that_asks_a_person_gives_up_with_the_question(saver: AsyncPostgresSaver) -> None:
    async def pay(state: MessagesState) -> dict[str, Any]:
        answer = interrupt({"question": "Pay 20 EUR?"})
        return {"messages": [AIMessage(f"paid: {answer}")]}

    graph = graph_of(saver, pay)
    agent = LangGraphAgent(graph)
    recall = a_recall()

    with pytest.raises(GiveUp, match=r"waits for a person to answer: \{'question': 'Pay 20 EUR\?'\}"):
        await run(agent, recall)
    # Neither another attempt nor another recall takes the question away.
    for later in (replace(recall, attempt=2, run_id=2), a_recall(message_id="recall:r2:later")):
        with pytest.raises(GiveUp, match="Pay 20 EUR"):
            await run(agent, later)

    await graph.ainvoke(Command(resume="yes"), CHAT)
    assert await texts(graph) == [RECALL, "paid: yes"]


@pytest.mark.parametrize("breakpoints", [{"interrupt_before": ["pay"]}, {"interrupt_after": ["think"]}])
async def test_no_attempt_goes_past_a_breakpoint(breakpoints: dict[str, Any], saver: AsyncPostgresSaver) -> None:
    paid: list[bool] = []

    def think(state: MessagesState) -> dict[str, Any]:
        return {}

    def pay(state: MessagesState) -> dict[str, Any]:
        paid.append(True)
        return {}

    graph = graph_of(saver, think, pay, **breakpoints)
    agent = LangGraphAgent(graph)
    for attempt in (1, 2):
        with pytest.raises(GiveUp, match="waits for a person at its breakpoint"):
            await run(agent, a_recall(attempt=attempt))
    assert paid == []

    await graph.ainvoke(None, CHAT)
    assert paid == [True]


async def test_a_crash_is_not_taken_for_a_breakpoint(saver: AsyncPostgresSaver) -> None:
    model = Model(answers=["first", Retry("busy"), "done"])

    def think(state: MessagesState) -> dict[str, Any]:
        return {}

    ask, then = asking(model), asking(model)
    then.__name__ = "then"
    graph = graph_of(saver, think, ask, then, interrupt_after=["then"], interrupt_before=["think"])
    agent = LangGraphAgent(graph)
    with pytest.raises(GiveUp, match="before think"):
        await run(agent, a_recall())
    with pytest.raises(Retry):
        await graph.ainvoke(None, {**CHAT, "metadata": {"pgrecall_message_id": a_recall().message_id}})

    assert (await run(agent, a_recall(attempt=2))).reply == "done"


# A turn of somebody else that was cut off


async def test_tool_calls_that_nobody_answered_do_not_spoil_the_thread(saver: AsyncPostgresSaver) -> None:
    calls: list[Any] = [{"name": "search", "args": {}, "id": name} for name in ("c1", "c2")]
    model = Model(answers=[AIMessage("", tool_calls=calls), "done"])

    def search(state: MessagesState) -> dict[str, Any]:
        raise OSError("no network")

    def maybe(state: MessagesState) -> str:
        return "search" if getattr(state["messages"][-1], "tool_calls", None) else END

    builder = StateGraph(MessagesState)
    builder.add_node("ask", asking(model))
    builder.add_node("search", search)
    builder.add_edge(START, "ask")
    builder.add_conditional_edges("ask", maybe)
    graph = builder.compile(checkpointer=saver)
    agent = LangGraphAgent(graph)
    with pytest.raises(OSError, match="no network"):
        await run(agent, a_recall(message_id="recall:r1:monday"))

    assert (await run(agent, a_recall(message_id="recall:r1:tuesday"))).reply == "done"

    sent = model.sent[-1]
    assert [message.type for message in sent] == ["human", "ai", "tool", "tool", "human"]
    assert [message.tool_call_id for message in sent if isinstance(message, ToolMessage)] == ["c1", "c2"]


async def test_nor_do_those_of_which_some_were_answered_when_the_turn_was_cut_off(saver: AsyncPostgresSaver) -> None:
    """The thread's state shows the answer of a task that ended beside one that failed, but new input drops it."""
    calls: list[Any] = [{"name": "search", "args": {}, "id": name} for name in ("c1", "c2")]
    model = Model(answers=[AIMessage("", tool_calls=calls), "done"])

    def search(call: dict[str, Any]) -> dict[str, Any]:
        if call["id"] == "c2":
            raise OSError("no network")
        return {"messages": [ToolMessage("found", tool_call_id=call["id"])]}

    def each(state: MessagesState) -> list[Send]:
        return [Send("search", call) for call in getattr(state["messages"][-1], "tool_calls", [])]

    builder: Any = StateGraph(MessagesState)  # its types do not know that a Send has its own input
    builder.add_node("ask", asking(model))
    builder.add_node("search", search)
    builder.add_edge(START, "ask")
    builder.add_conditional_edges("ask", each, ["search"])
    agent = LangGraphAgent(builder.compile(checkpointer=saver))
    with pytest.raises(OSError, match="no network"):
        await run(agent, a_recall(message_id="recall:r1:monday"))

    assert (await run(agent, a_recall(message_id="recall:r1:tuesday"))).reply == "done"

    assert [getattr(message, "tool_call_id", message.type) for message in model.sent[-1]] == [
        "human", "ai", "c1", "c2", "human",
    ]  # fmt: skip


# What it used, settings, errors


async def test_usage_counts_every_model_call_also_those_the_thread_does_not_show(saver: AsyncPostgresSaver) -> None:
    hidden, model = Model(), Model()

    def summarise(state: MessagesState) -> dict[str, Any]:
        hidden.invoke("Summarise.")
        return {}

    result = await run(LangGraphAgent(graph_of(saver, summarise, asking(model))))
    assert result.usage == {"requests": 2, "tool_calls": 0, "input_tokens": 20, "output_tokens": 4}


async def test_usage_of_an_attempt_that_failed_is_counted_with_the_one_that_succeeds(saver: AsyncPostgresSaver) -> None:
    model = Model(answers=["one", Retry("busy"), "two"])
    then = asking(model)
    then.__name__ = "then"
    agent = LangGraphAgent(graph_of(saver, asking(model), then))
    with pytest.raises(Retry):
        await run(agent)
    result = await run(agent, a_recall(attempt=2, run_id=2))
    assert result.usage == {"requests": 2, "tool_calls": 0, "input_tokens": 30, "output_tokens": 4}


async def test_a_model_that_says_nothing_of_usage_costs_no_run(saver: AsyncPostgresSaver) -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage("Fine.")]))
    result = await run(LangGraphAgent(graph_of(saver, asking(model))))
    assert (result.reply, result.usage) == ("Fine.", {"requests": 1, "tool_calls": 0})


async def test_a_graph_that_says_nothing_gives_no_reply(saver: AsyncPostgresSaver) -> None:
    result = await run(LangGraphAgent(graph_of(saver, lambda state: {})))
    assert (result.reply, result.usage) == (None, None)


async def test_settings_of_the_run_come_from_the_host(saver: AsyncPostgresSaver) -> None:
    @dataclass
    class Who:
        user: str | None

    seen: list[Any] = []

    def look(state: dict[str, Any], runtime: Runtime[Who]) -> dict[str, Any]:
        seen.append(runtime.context.user)
        return {}

    builder = StateGraph(MessagesState, context_schema=Who)
    builder.add_node("look", look)
    builder.add_edge(START, "look")
    builder.add_edge("look", "look")
    graph = builder.compile(checkpointer=saver)

    def config(recall: CurrentRecall) -> dict[str, Any]:
        return {"recursion_limit": 3, "configurable": {"thread_id": f"{recall.user_id}/{recall.session_id}"}}

    agent = LangGraphAgent(graph, config=config, context=lambda recall: Who(recall.user_id))
    with pytest.raises(GraphRecursionError):
        await run(agent, a_recall(user_id="ada"))
    assert seen == ["ada"] * 3
    assert (await graph.aget_state({"configurable": {"thread_id": "ada/s1"}})).values["messages"]


async def test_messages_may_be_under_another_key(saver: AsyncPostgresSaver) -> None:
    builder = StateGraph(Talk)
    builder.add_node("say", lambda state: {"talk": [AIMessage("Hm.")]})
    builder.add_edge(START, "say")
    graph = builder.compile(checkpointer=saver)
    assert (await run(LangGraphAgent(graph, input_key="talk"))).reply == "Hm."


async def test_a_graph_can_be_opened_for_each_run(database: str, saver: AsyncPostgresSaver) -> None:
    model = Model()
    opened: list[str] = []

    @asynccontextmanager
    async def opening() -> AsyncIterator[Any]:
        conninfo = make_conninfo(database, options="-csearch_path=graphs")
        async with AsyncPostgresSaver.from_conn_string(conninfo) as own:
            opened.append("open")
            yield graph_of(own, asking(model))
        opened.append("closed")

    async def awaited() -> Any:
        return graph_of(saver, asking(model))

    ways: Sequence[Callable[[], Any]] = [opening, awaited, lambda: graph_of(saver, asking(model))]
    for number, way in enumerate(ways):
        await run(LangGraphAgent(way), a_recall(message_id=f"recall:r1:{number}"))
    assert opened == ["open", "closed"]
    assert len(model.sent[-1]) == 5


async def test_a_thread_that_cannot_be_read_is_tried_again_later() -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[Any]:
        raise OSError("no route to the database")
        yield

    with pytest.raises(Retry, match="OSError: no route to the database"):
        await run(LangGraphAgent(broken))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (lambda: 42, "no graph"),
        (lambda: AsyncPostgresSaver.from_conn_string(""), "entered once only"),
        (lambda: StateGraph(MessagesState), "not compiled"),
    ],
)
async def test_what_is_no_graph_is_refused_with_a_hint(given: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(AgentError, match=complaint) as caught:
        LangGraphAgent(given())
    assert caught.value.hint


async def test_a_graph_that_would_forget_is_refused() -> None:
    with pytest.raises(AgentError, match="has no checkpointer"):
        await run(LangGraphAgent(graph_of(None, lambda state: {})))


async def test_wrong_settings_and_places_are_refused(saver: AsyncPostgresSaver) -> None:
    graph = graph_of(saver, lambda state: {})
    with pytest.raises(AgentError, match="inject_as is 'assistant'"):
        LangGraphAgent(graph, inject_as="assistant")  # type: ignore[arg-type]
    with pytest.raises(AgentError, match="outside a run"):
        await LangGraphAgent(graph).run(session_id="s1", user_message="hello")


async def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("langgraph"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "pgrecall.adapters.langgraph")
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(AgentError, match="needs LangGraph") as caught:
        importlib.import_module("pgrecall.adapters.langgraph")
    assert "pgrecall[langgraph]" in caught.value.hint


# With workers


async def test_the_ledger_has_the_reply_and_the_usage(database: str, saver: AsyncPostgresSaver) -> None:
    model = Model(answers=["They have water."])
    async with sql(database) as ask, working(database, LangGraphAgent(graph_of(saver, asking(model)))):
        await ask.session("s1")
        recall_id = await ask.recall("s1", message="Water the plants.")
        await ask.ended(recall_id)
        runs = await ask("select outcome, reply, usage->'requests' from pgrecall.recall_runs")
        messages = await ask("select role, content from pgrecall.session_messages order by position")
    assert runs == [("success", "They have water.", 1)]
    assert messages == [("system", RECALL), ("assistant", "They have water.")]
    assert model.texts() == [RECALL]


async def test_a_question_to_a_person_ends_the_occurrence_with_its_text(
    database: str, saver: AsyncPostgresSaver
) -> None:
    def pay(state: MessagesState) -> dict[str, Any]:
        interrupt("Pay 20 EUR?")
        return {}

    async with sql(database) as ask, working(database, LangGraphAgent(graph_of(saver, pay))):
        await ask.session("s1")
        recall_id = await ask.recall("s1")
        (ended,) = await until(lambda: ask("select outcome, reason, attempt from pgrecall.recall_runs"))
        (status,) = await ask("select status from pgrecall.session_recalls where id = %s", recall_id)
    assert ended == ("error", "the graph waits for a person to answer: Pay 20 EUR?", 1)
    assert status == "failed"


GRAPH = """
import asyncio, os, pathlib
from contextlib import asynccontextmanager

from langchain_core.messages import AIMessage
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import START, MessagesState, StateGraph
from pgrecall.adapters.langgraph import LangGraphAgent

def note(what):
    with open("notes", "a") as notes:
        notes.write(f"{what} {os.getpid()}\\n")

async def think(state):
    note("think")
    return {"messages": [AIMessage("thought")]}

async def act(state):
    note("act")
    if pathlib.Path("hang").exists():
        await asyncio.sleep(1000)
    return {"messages": [AIMessage("acted")]}

builder = StateGraph(MessagesState)
builder.add_node(think)
builder.add_node(act)
builder.add_edge(START, "think")
builder.add_edge("think", "act")

@asynccontextmanager
async def graph():
    async with AsyncPostgresSaver.from_conn_string(os.environ["GRAPH_DSN"]) as saver:
        yield builder.compile(checkpointer=saver)

agent = LangGraphAgent(graph)
"""


async def test_a_worker_killed_in_the_middle_of_a_node_is_continued_by_another(
    database: str, saver: AsyncPostgresSaver, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPH_DSN", make_conninfo(database, options="-csearch_path=graphs"))
    (tmp_path / "graph_agent.py").write_text(GRAPH)
    (tmp_path / "hang").touch()
    notes = tmp_path / "notes"
    workers = {worker.process.pid: worker for worker in (start("--agent", "graph_agent:agent") for _ in range(2))}

    async def acting() -> list[list[str]]:
        lines = [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []
        return lines if lines and lines[-1][0] == "act" else []

    async with sql(database) as ask:
        await ask.session("s1")
        recall_id = await ask.recall("s1", message="Water the plants.")
        (_, pid), _ = await until(acting, DEADLINE)
        (tmp_path / "hang").unlink()
        workers[int(pid)].send(signal.SIGKILL)
        await ask.ended(recall_id)
        runs = await ask("select outcome, reply from pgrecall.recall_runs order by id")

    assert runs == [("lost", None), ("success", "acted")]
    assert [line.split()[0] for line in notes.read_text().splitlines()] == ["think", "act", "act"]
    state = await graph_of(saver, lambda state: {}).aget_state(CHAT)
    assert [message.text.splitlines()[0] for message in state.values["messages"]] == [RECALL, "thought", "acted"]


async def test_the_example_runs(database: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGRECALL_DSN", database)
    example = shutil.copy(ROOT / "examples" / "langgraph_agent.py", tmp_path)
    await anyio.run_process([sys.executable, example])
    start("--agent", "langgraph_agent:agent")
    async with sql(database) as ask:
        await ask.session("s1")
        await ask.ended(await ask.recall("s1"))
        assert await ask("select reply from pgrecall.recall_runs") == ["The plants have water."]
