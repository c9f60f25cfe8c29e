"""Agents of the OpenAI Agents SDK run by real workers, with its scripted model: what it is sent and what is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import anyio
import httpx2
import openai
import pytest
from adaptertools import recalled, shown
from agents import Agent, RunConfig, RunContextWrapper, Runner, SessionSettings, function_tool
from agents.memory import Session
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call
from agents.tracing import set_trace_processors
from agents.tracing.processor_interface import TracingProcessor
from agents.usage import Usage
from pydantic import BaseModel
from workertools import sql, until, working

from pgrecall import (
    AgentError,
    CurrentRecall,
    PostgresSessionStore,
    RecallScheduler,
    Retry,
    SessionNotFoundError,
    current_recall,
)
from pgrecall.adapters.openai_agents import OpenAIAgentsAgent, RecallSession

pytestmark = pytest.mark.anyio

RECALL = "[Scheduled recall] Water the plants."
QUIET = RunConfig(tracing_disabled=True)


@pytest.fixture(autouse=True)
def without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def script(*answers: Any) -> ScriptedModel:
    """A model that says these texts, calls these tools, or raises these errors, each message with an id of its own."""
    return ScriptedModel(
        [
            [assistant_message(answer, item_id=f"msg_{place}")] if isinstance(answer, str) else answer
            for place, answer in enumerate(answers)
        ],
        default_usage=Usage(requests=1, input_tokens=30, output_tokens=4, total_tokens=34),
    )


def calling(tool: str, *, call_id: str = "", **arguments: Any) -> list[Any]:
    return [function_call(tool, arguments, call_id=call_id or f"call of {tool}")]


def heard(call: ModelCall) -> list[tuple[str, str]]:
    """What the model was sent: role or type, and the first line of its text."""
    return [spoken(item) for item in call.input]


def spoken(item: Any) -> tuple[str, str]:
    content = item.get("content", item.get("arguments", item.get("output")))
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return item.get("role") or item["type"], text.split("\n")[0]


async def talk(store: Any, agent: Agent[Any], text: str) -> str:
    """A turn of a live chat."""
    result = await Runner.run(agent, text, session=RecallSession("s1", store), run_config=QUIET)
    return str(result.final_output)


@pytest.mark.parametrize("inject_as", ["user", "system"])
async def test_the_model_gets_what_was_said_and_the_recall_as_its_new_turn(
    database: str, store: PostgresSessionStore, inject_as: Any
) -> None:
    async with sql(database) as db:
        for role, content in (("user", "I have plants."), ("assistant", "Nice."), ("tool", "of another framework")):
            await db(
                "insert into pgrecall.session_messages (session_id, role, content) values ('s1', %s, %s)", role, content
            )
    told: list[str] = []

    def answer(call: ModelCall) -> Any:
        recall = current_recall()
        assert recall is not None
        told.append(recall.text)
        return [assistant_message("Watered.")]

    model = script(ModelStep.respond(answer))
    agent = Agent(name="Gardener", instructions="Be brief.", model=model)
    (run,) = await recalled(database, OpenAIAgentsAgent(agent, inject_as=inject_as))
    assert (run.outcome, run.reply) == ("success", "Watered.")
    (call,) = model.calls
    assert call.system_instructions == "Be brief."
    assert heard(call) == [("user", "I have plants."), ("assistant", "Nice."), (inject_as, RECALL)]
    assert call.input[-1]["content"] == told[0]
    assert "obody is connected" in told[0]


async def test_a_chat_and_two_runs_are_one_conversation(database: str, store: PostgresSessionStore) -> None:
    model = script("Hello.", "Watered.", "You are welcome.", "Watered again.")
    agent = Agent(name="Gardener", model=model)
    assert await talk(store, agent, "Hi.") == "Hello."
    await recalled(database, OpenAIAgentsAgent(agent))
    assert await talk(store, agent, "Thanks.") == "You are welcome."
    await recalled(database, OpenAIAgentsAgent(agent))
    conversation = [
        ("user", "Hi."),
        ("assistant", "Hello."),
        ("user", RECALL),
        ("assistant", "Watered."),
        ("user", "Thanks."),
        ("assistant", "You are welcome."),
        ("user", RECALL),
        ("assistant", "Watered again."),
    ]
    assert [heard(call) for call in model.calls] == [conversation[:length] for length in (1, 3, 5, 7)]
    seen = [("system" if text == RECALL else role, text) for role, text in conversation]
    assert await shown(database) == seen


async def test_a_retried_attempt_is_given_the_recall_once_and_nothing_of_the_failed_one(
    database: str, store: PostgresSessionStore
) -> None:
    @function_tool(failure_error_function=None)
    def act() -> str:
        """Acts."""
        recall = current_recall()
        assert recall is not None
        if recall.attempt < 3:
            raise Retry("not yet", after=0)
        return "acted"

    model = script(calling("act"), calling("act"), calling("act"), "Done at last.")
    adapter = OpenAIAgentsAgent(Agent(name="Gardener", model=model, tools=[act]))
    runs = await recalled(database, adapter, max_attempts=3)
    assert [run.outcome for run in runs] == ["error", "error", "success"]
    assert [heard(call) for call in model.calls[:3]] == [[("user", RECALL)]] * 3
    assert await shown(database) == [("system", RECALL), ("assistant", "Done at last.")]


async def test_a_failed_run_leaves_only_the_recall_in_the_conversation(
    database: str, store: PostgresSessionStore
) -> None:
    @function_tool(failure_error_function=None)
    def act() -> str:
        """Acts."""
        raise OSError("disk full")

    model = script(calling("act"), "Better.")
    agent = Agent(name="Gardener", model=model, tools=[act])
    (run,) = await recalled(database, OpenAIAgentsAgent(agent), status="failed")
    assert run.outcome == "error"
    assert "disk full" in run.error
    async with sql(database) as db:
        assert await db("select role, content from pgrecall.session_messages") == [("system", RECALL)]
    await recalled(database, OpenAIAgentsAgent(agent))
    assert heard(model.calls[-1]) == [("user", RECALL)] * 2


async def test_tool_calls_and_their_results_come_back_as_they_were_and_people_are_not_shown_them(
    database: str, store: PostgresSessionStore
) -> None:
    @function_tool
    async def look(plant: str) -> str:
        """Looks at a plant."""
        recall = current_recall()
        assert recall is not None
        return f"{plant} for {recall.additional_context_message} \x00\ud83d"

    model = script(calling("look", plant="fern"), "It is dry.", "And now?")
    agent = Agent(name="Gardener", model=model, tools=[look])
    await recalled(database, OpenAIAgentsAgent(agent))
    await recalled(database, OpenAIAgentsAgent(agent))
    sent = [item for item in model.calls[2].input if "role" not in item]
    assert sent == [
        {
            "type": "function_call",
            "name": "look",
            "arguments": '{"plant":"fern"}',
            "call_id": "call of look",
            "id": "call of look",
        },
        {"type": "function_call_output", "call_id": "call of look", "output": "fern for Water the plants. \ufffd?"},
    ]
    assert [role for role, _ in await shown(database)] == ["system", "assistant"] * 2
    async with sql(database) as db:
        called = await db("select content from pgrecall.session_messages where role = 'tool' order by position limit 1")
        assert called == ['look({"plant":"fern"})']


async def test_what_the_run_used_is_recorded(database: str, store: PostgresSessionStore) -> None:
    @function_tool
    def look() -> str:
        """Looks."""
        return "green"

    agent = Agent(name="Gardener", model=script(calling("look"), "Done."), tools=[look])
    (run,) = await recalled(database, OpenAIAgentsAgent(agent))
    assert run.usage == {
        "requests": 2,
        "tool_calls": 1,
        "input_tokens": 60,
        "output_tokens": 8,
        "cache_read_tokens": 0,
    }


async def test_the_silent_token_is_a_success_that_only_the_model_remembers(
    database: str, store: PostgresSessionStore
) -> None:
    model = script("[SILENT]", "Watered.")
    agent = Agent(name="Gardener", model=model)
    (run,) = await recalled(database, OpenAIAgentsAgent(agent))
    assert run.outcome == "silent"
    assert await shown(database) == [("system", RECALL)]
    await recalled(database, OpenAIAgentsAgent(agent))
    assert heard(model.calls[1])[1] == ("assistant", "[SILENT]")


async def test_sessions_that_run_at_once_do_not_mix(database: str, store: PostgresSessionStore) -> None:
    both = anyio.Event()
    waiting: list[ModelCall] = []

    async def answer(call: ModelCall) -> Any:
        waiting.append(call)
        if len(waiting) == 2:
            both.set()
        await both.wait()
        recall = current_recall()
        assert recall is not None
        return [assistant_message(f"done in {recall.session_id}")]

    await store.create("s2")
    agent = Agent(name="Gardener", model=script(ModelStep.respond(answer), ModelStep.respond(answer)))
    for session_id in ("s1", "s2"):
        await RecallSession(session_id, store).add_items([{"role": "user", "content": f"This is {session_id}."}])
    async with sql(database) as db, working(database, OpenAIAgentsAgent(agent)):
        for recall_id in [await db.recall(session_id, message=f"For {session_id}.") for session_id in ("s1", "s2")]:
            await db.ended(recall_id)
    for session_id in ("s1", "s2"):
        assert await shown(database, session_id) == [
            ("user", f"This is {session_id}."),
            ("system", f"[Scheduled recall] For {session_id}."),
            ("assistant", f"done in {session_id}"),
        ]
    assert sorted(heard(call) for call in waiting) == [
        [("user", f"This is {session_id}."), ("user", f"[Scheduled recall] For {session_id}.")]
        for session_id in ("s1", "s2")
    ]


class Report(BaseModel):
    plant: str
    wet: bool


async def test_structured_output_is_a_reply_in_json(database: str, store: PostgresSessionStore) -> None:
    agent = Agent(name="Gardener", model=script('{"plant": "fern", "wet": true}'), output_type=Report)
    (run,) = await recalled(database, OpenAIAgentsAgent(agent))
    assert json.loads(run.reply) == {"plant": "fern", "wet": True}
    assert await shown(database) == [("system", RECALL), ("assistant", run.reply)]


async def test_a_tools_answer_that_is_the_output_is_shown_as_the_reply(
    database: str, store: PostgresSessionStore
) -> None:
    @function_tool
    def look() -> str:
        """Looks."""
        return "It is dry."

    agent = Agent(name="Gardener", model=script(calling("look")), tools=[look], tool_use_behavior="stop_on_first_tool")
    await recalled(database, OpenAIAgentsAgent(agent))
    assert await shown(database) == [("system", RECALL), ("assistant", "It is dry.")]


async def test_an_agent_that_is_handed_the_conversation_answers_in_it(
    database: str, store: PostgresSessionStore
) -> None:
    botanist = Agent(name="Botanist", model=script("It is a fern.", "Still a fern."))
    agent = Agent(name="Gardener", model=script(calling("transfer_to_botanist"), "Welcome."), handoffs=[botanist])
    (run,) = await recalled(database, OpenAIAgentsAgent(agent))
    assert run.reply == "It is a fern."
    assert await talk(store, agent, "Thanks.") == "Welcome."


async def made(recall: CurrentRecall) -> str:
    return f"{recall.session_id} async"


@pytest.mark.parametrize(
    ("context", "seen"),
    [("a value", "a value"), (lambda recall: recall.session_id, "s1"), (made, "s1 async"), (None, "None")],
)
async def test_the_context_is_a_value_or_made_for_the_run(
    database: str, store: PostgresSessionStore, context: Any, seen: str
) -> None:
    @function_tool
    def look(wrapper: RunContextWrapper[Any]) -> str:
        """Looks."""
        return str(wrapper.context)

    agent = Agent(name="Gardener", model=script(calling("look"), "Done."), tools=[look])
    await recalled(database, OpenAIAgentsAgent(agent, context=context))
    assert (await RecallSession("s1", store).get_items())[2]["output"] == seen


async def test_a_run_that_uses_up_its_turns_is_given_up(database: str, store: PostgresSessionStore) -> None:
    looks: list[int] = []

    @function_tool
    def look() -> str:
        """Looks."""
        looks.append(1)
        return "green"

    agent = Agent(
        name="Gardener", model=script(*[calling("look", call_id=f"call {n}") for n in range(9)]), tools=[look]
    )
    (run,) = await recalled(database, OpenAIAgentsAgent(agent, max_turns=3), status="failed", max_attempts=5)
    assert run.reason == "the run has used up its turns: Max turns (3) exceeded"
    assert len(looks) == 3
    assert run.usage["tool_calls"] == 3


async def test_a_call_that_somebody_must_approve_is_given_up(database: str, store: PostgresSessionStore) -> None:
    @function_tool(needs_approval=True)
    def buy(what: str) -> str:
        """Buys."""
        raise AssertionError("bought without asking")

    agent = Agent(name="Gardener", model=script(calling("buy", what="soil")), tools=[buy])
    (run,) = await recalled(database, OpenAIAgentsAgent(agent), status="failed", max_attempts=5)
    assert run.reason == "nobody is connected who could answer for the agent's calls of buy"


def down() -> openai.APIError:
    return openai.APIConnectionError(request=httpx2.Request("POST", "https://model.invalid"))


async def test_a_model_that_is_down_at_first_is_tried_again(database: str, store: PostgresSessionStore) -> None:
    agent = Agent(name="Gardener", model=script(down(), "Back."))
    async with sql(database) as db, working(database, OpenAIAgentsAgent(agent)):
        recall_id = await db.recall("s1", message="Water the plants.", max_attempts=3)
        await until(lambda: db("select from pgrecall.recall_runs where outcome = 'error'"))
        await db("update pgrecall.session_recalls set not_before = null where id = %s", recall_id)
        await db.ended(recall_id)
    assert await shown(database) == [("system", RECALL), ("assistant", "Back.")]


async def test_a_model_that_goes_down_after_a_tool_was_called_is_not_tried_again(
    database: str, store: PostgresSessionStore
) -> None:
    @function_tool
    def act() -> str:
        """Acts."""
        return "acted"

    agent = Agent(name="Gardener", model=script(calling("act"), down(), "Twice!"), tools=[act])
    runs = await recalled(database, OpenAIAgentsAgent(agent), status="failed", max_attempts=3)
    assert [run.outcome for run in runs] == ["error"]


async def test_a_run_that_is_told_to_stop_stops_its_tools_and_leaves_nothing(
    database: str, store: PostgresSessionStore
) -> None:
    reached, stopped = anyio.Event(), anyio.Event()

    @function_tool
    async def wait() -> str:
        """Waits."""
        reached.set()
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()
        return "never"

    agent = Agent(name="Gardener", model=script(calling("wait")), tools=[wait])
    async with sql(database) as db, working(database, OpenAIAgentsAgent(agent)):
        recall_id = await db.recall("s1")
        await reached.wait()
        await db("update pgrecall.session_recalls set status = 'cancelled' where id = %s", recall_id)
        await stopped.wait()
        await db.ended(recall_id, "cancelled")
        outcomes = await until(lambda: db("select outcome from pgrecall.recall_runs"))
    assert outcomes == ["interrupted"]
    assert len(await RecallSession("s1", store).get_items()) == 1


class Traces(TracingProcessor):
    def __init__(self) -> None:
        self.names: list[str] = []

    def on_trace_start(self, trace: Any) -> None:
        self.names.append(trace.group_id)

    def on_trace_end(self, trace: Any) -> None: ...
    def on_span_start(self, span: Any) -> None: ...
    def on_span_end(self, span: Any) -> None: ...
    def shutdown(self) -> None: ...
    def force_flush(self) -> None: ...


@pytest.mark.parametrize(("key", "traced"), [("", []), ("sk-test", ["s1"])])
async def test_runs_are_traced_if_there_is_a_key(
    database: str, store: PostgresSessionStore, monkeypatch: pytest.MonkeyPatch, key: str, traced: list[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    traces = Traces()
    set_trace_processors([traces])
    await recalled(database, OpenAIAgentsAgent(Agent(name="Gardener", model=script("Done."))))
    assert traces.names == traced


ITEMS: list[Any] = [
    {"role": "user", "content": "Look."},
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "x"},
    {"type": "function_call", "name": "look", "arguments": "{}", "call_id": "c1", "id": "fc_1"},
    {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "green"}]},
    {"role": "user", "content": [{"type": "input_text", "text": "And"}, {"type": "input_image", "image_url": "u"}]},
]


async def test_the_session_gives_back_what_it_was_given(database: str, store: PostgresSessionStore) -> None:
    session = RecallSession("s1", store)
    assert isinstance(session, Session)
    assert await session.get_items() == []
    assert await session.pop_item() is None
    await session.add_items(ITEMS[:2])
    await session.add_items([])
    await session.add_items(ITEMS[2:])
    assert await session.get_items() == ITEMS
    assert await session.get_items(limit=2) == ITEMS[-2:]
    assert await session.get_items(limit=0) == []
    assert await RecallSession("s1", store, session_settings=SessionSettings(limit=1)).get_items() == ITEMS[-1:]
    assert await shown(database) == [("user", "Look."), ("user", "And")]
    assert await session.pop_item() == ITEMS[-1]
    assert await session.pop_item() == ITEMS[-2]
    assert await session.get_items() == ITEMS[:3]
    await session.add_items(ITEMS[3:])
    assert await session.get_items() == ITEMS
    await session.clear_session()
    assert await session.get_items() == []
    assert await shown(database) == []


async def test_a_recall_is_taken_out_like_any_item(database: str, store: PostgresSessionStore) -> None:
    await recalled(database, OpenAIAgentsAgent(Agent(name="Gardener", model=script("Watered."))))
    session = RecallSession("s1", store)
    assert spoken(await session.pop_item()) == ("assistant", "Watered.")
    assert spoken(await session.pop_item()) == ("user", RECALL)
    assert await session.pop_item() is None
    assert await shown(database) == []


async def test_an_unknown_session_is_an_error(database: str) -> None:
    async with RecallScheduler(database) as scheduler:
        session = RecallSession("nobody", scheduler)
        for asked in (session.get_items, session.pop_item, session.clear_session, lambda: session.add_items(ITEMS)):
            with pytest.raises(SessionNotFoundError, match="nobody"):
                await asked()


class Memory:
    """A host's own store."""

    def __init__(self, *messages: Any) -> None:
        self.chat = {"messages": list(messages), "context": list(messages)}

    async def get(self, session_id: str) -> Any:
        return self.chat if session_id == "s1" else None

    async def save(self, session: Any) -> None:
        assert session is self.chat


async def test_a_hosts_own_store_is_read_and_written(database: str, store: PostgresSessionStore) -> None:
    @function_tool
    def look() -> str:
        """Looks."""
        return "dry"

    host = Memory({"role": "user", "content": "I have plants."})
    model = script(calling("look"), "Watered.", "Welcome.")
    agent = Agent(name="Gardener", model=model, tools=[look])
    await recalled(database, OpenAIAgentsAgent(agent), worker={"store": host})
    assert await talk(host, agent, "Thanks.") == "Welcome."
    assert heard(model.calls[2]) == [
        ("user", "I have plants."),
        ("user", RECALL),
        ("function_call", "{}"),
        ("function_call_output", "dry"),
        ("assistant", "Watered."),
        ("user", "Thanks."),
    ]
    assert [message["role"] for message in host.chat["messages"]] == [
        "user",
        "system",
        "assistant",
        "user",
        "assistant",
    ]
    session = RecallSession("s1", host)
    assert spoken(await session.pop_item()) == ("assistant", "Welcome.")
    assert [message["role"] for message in host.chat["messages"]] == ["user", "system", "assistant", "user"]
    await session.clear_session()
    assert host.chat == {"messages": [], "context": []}


async def test_outside_a_worker_it_says_so() -> None:
    with pytest.raises(AgentError, match="OpenAIAgentsAgent runs for recalls only"):
        await OpenAIAgentsAgent(Agent(name="Gardener")).run(session_id="s1", user_message="x")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: OpenAIAgentsAgent("my agent"), "'my agent' is no agent of the OpenAI Agents SDK"),  # type: ignore[arg-type]
        (lambda: OpenAIAgentsAgent(Agent(name="x"), inject_as="developer"), "inject_as is 'developer'"),  # type: ignore[arg-type]
        (lambda: RecallSession("s1", Memory(), inject_as="tool"), "inject_as is 'tool'"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_used_is_refused_at_once(make: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(AgentError, match=complaint):
        make()


def test_without_the_package_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['agents'] = None; import pgrecall.adapters.openai_agents"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "AgentError: pgrecall.adapters.openai_agents needs openai-agents: pip install 'pgrecall[openai-agents]'" in (
        done.stderr
    )
