"""Agents of pydantic-ai run by real workers, with its offline models: what the model is sent and what is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from adaptertools import recalled, shown
from pydantic import BaseModel
from pydantic_ai import Agent, DeferredToolRequests, RunContext, UsageLimits
from pydantic_ai.exceptions import ModelRequestRejectedError, ModelServerError
from pydantic_ai.messages import (
    BinaryImage,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
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
from pgrecall.adapters.pydantic_ai import PydanticAIAgent, load_history, save_history

pytestmark = pytest.mark.anyio

Answer = str | ModelResponse | Exception | Callable[[list[ModelMessage]], Any]


@dataclass
class Script:
    """A model that says what is written, and keeps what it was sent."""

    answers: list[Answer]
    sent: list[list[ModelMessage]] = field(default_factory=list)

    async def __call__(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.sent.append(list(messages))
        answer = self.answers.pop(0)
        if callable(answer):
            answer = await answer(messages)
        if isinstance(answer, Exception):
            raise answer
        return ModelResponse(parts=[TextPart(answer)]) if isinstance(answer, str) else answer

    def agent(self, **options: Any) -> Agent[Any, Any]:
        return Agent(FunctionModel(self), **options)


def calling(tool: str, **arguments: Any) -> ModelResponse:
    """The model calls a tool."""
    return ModelResponse(parts=[ToolCallPart(tool, arguments, tool_call_id=f"call of {tool}")])


def heard(messages: Sequence[ModelMessage]) -> list[tuple[str, str]]:
    """What was sent: each part's kind, and the first line of its text."""
    return [
        (part.part_kind, str(getattr(part, "content", None) or getattr(part, "args", "")).split("\n")[0])
        for message in messages
        for part in message.parts
    ]


async def talk(store: Any, agent: Agent[Any, Any], text: str, session_id: str = "s1") -> str:
    """A turn of a live chat."""
    result = await agent.run(text, message_history=await load_history(store, session_id))
    await save_history(store, session_id, result.new_messages())
    return str(result.output)


RECALL = "[Scheduled recall] Water the plants."


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

    async def answer(messages: list[ModelMessage]) -> str:
        recall = current_recall()
        assert recall is not None
        told.append(recall.text)
        return "Watered."

    script = Script([answer])
    (run,) = await recalled(database, PydanticAIAgent(script.agent(), inject_as=inject_as))
    assert (run.outcome, run.reply) == ("success", "Watered.")
    assert [message.kind for message in script.sent[0]] == ["request", "response", "request"]
    # A model without system messages in mid-conversation is sent them as marked user text, by pydantic-ai.
    turn = ("user-prompt", RECALL if inject_as == "user" else f"<system>{RECALL}")
    assert heard(script.sent[0]) == [("user-prompt", "I have plants."), ("text", "Nice."), turn]
    assert told[0] in script.sent[0][-1].parts[0].content  # type: ignore[operator, union-attr]
    assert "obody is connected" in told[0]


async def test_a_chat_and_two_runs_are_one_conversation(database: str, store: PostgresSessionStore) -> None:
    script = Script(["Hello.", "Watered.", "You are welcome.", "Watered again."])
    agent = script.agent(system_prompt="You are a gardener.")
    assert await talk(store, agent, "Hi.") == "Hello."
    await recalled(database, PydanticAIAgent(agent))
    assert await talk(store, agent, "Thanks.") == "You are welcome."
    await recalled(database, PydanticAIAgent(agent))
    conversation = [
        ("system-prompt", "You are a gardener."),
        ("user-prompt", "Hi."),
        ("text", "Hello."),
        ("user-prompt", RECALL),
        ("text", "Watered."),
        ("user-prompt", "Thanks."),
        ("text", "You are welcome."),
        ("user-prompt", RECALL),
    ]
    assert [heard(sent) for sent in script.sent] == [conversation[:length] for length in (2, 4, 6, 8)]
    assert await shown(database) == [
        ("user", "Hi."),
        ("assistant", "Hello."),
        ("system", RECALL),
        ("assistant", "Watered."),
        ("user", "Thanks."),
        ("assistant", "You are welcome."),
        ("system", RECALL),
        ("assistant", "Watered again."),
    ]


@pytest.mark.parametrize("inject_as", ["user", "system"])
async def test_the_agents_system_prompt_leads_also_when_a_recall_comes_before_any_chat(
    database: str, store: PostgresSessionStore, inject_as: Any
) -> None:
    script = Script(["Watered.", "Watered again."])
    agent = script.agent(instructions="Be brief.")

    @agent.system_prompt
    def who(context: RunContext[str]) -> str:
        return f"You work for {context.deps}."

    adapter = PydanticAIAgent(agent, inject_as=inject_as, deps="Ann")
    await recalled(database, adapter)
    await recalled(database, adapter)
    for sent in script.sent:
        assert heard(sent)[0] == ("system-prompt", "You work for Ann.")
        assert heard(sent).count(heard(sent)[0]) == 1
    told = [text.removeprefix("<system>") for _, text in heard(script.sent[1])]
    assert told.count(RECALL) == 2


async def test_a_retried_attempt_is_given_the_recall_once_and_nothing_of_the_failed_one(
    database: str, store: PostgresSessionStore
) -> None:
    script = Script([calling("act"), calling("act"), calling("act"), "Done at last."])
    agent = script.agent()

    @agent.tool_plain
    def act() -> str:
        recall = current_recall()
        assert recall is not None
        if recall.attempt < 3:
            raise Retry("not yet", after=0)
        return "acted"

    runs = await recalled(database, PydanticAIAgent(agent), max_attempts=3)
    assert [run.outcome for run in runs] == ["error", "error", "success"]
    assert [heard(sent) for sent in script.sent[:3]] == [[("user-prompt", RECALL)]] * 3
    assert await shown(database) == [("system", RECALL), ("assistant", "Done at last.")]


async def test_a_failed_run_leaves_only_the_recall_in_the_conversation(
    database: str, store: PostgresSessionStore
) -> None:
    script = Script([calling("act"), "Better."])
    agent = script.agent()

    @agent.tool_plain
    def act() -> str:
        raise OSError("disk full")

    (run,) = await recalled(database, PydanticAIAgent(agent), status="failed")
    assert (run.outcome, run.error) == ("error", "OSError: disk full")
    async with sql(database) as db:
        assert await db("select role, content from pgrecall.session_messages") == [("system", RECALL)]
    await recalled(database, PydanticAIAgent(agent))
    assert heard(script.sent[-1]) == [("user-prompt", RECALL)] * 2


async def test_tool_calls_and_their_results_come_back_as_they_were_and_people_are_not_shown_them(
    database: str, store: PostgresSessionStore
) -> None:
    script = Script([calling("look", plant="fern"), "It is dry. \ud83d", "And now?"])
    agent = script.agent()

    @agent.tool_plain
    async def look(plant: str) -> dict[str, Any]:
        recall = current_recall()
        assert recall is not None
        return {"plant": plant, "for": recall.additional_context_message, "raw": "\x00", "wet": float("nan")}

    await recalled(database, PydanticAIAgent(agent))
    await recalled(database, PydanticAIAgent(agent))
    (call,) = [part for message in script.sent[2] for part in message.parts if isinstance(part, ToolCallPart)]
    assert (call.tool_name, call.args, call.tool_call_id) == ("look", {"plant": "fern"}, "call of look")
    (result,) = [part for message in script.sent[2] for part in message.parts if isinstance(part, ToolReturnPart)]
    assert result.content == {"plant": "fern", "for": "Water the plants.", "raw": "\ufffd", "wet": None}
    assert result.tool_call_id == "call of look"
    assert [role for role, _ in await shown(database)] == ["system", "assistant"] * 2
    async with sql(database) as db:
        called = await db("select content from pgrecall.session_messages where role = 'tool' order by position limit 1")
        assert called == ['look({"plant":"fern"})']


async def test_what_the_run_used_is_recorded(database: str, store: PostgresSessionStore) -> None:
    agent = Agent(TestModel(custom_output_text="Done."))

    @agent.tool_plain
    def look() -> str:
        return "green"

    (run,) = await recalled(database, PydanticAIAgent(agent))
    assert run.usage["requests"] == 2
    assert run.usage["tool_calls"] == 1
    assert run.usage["input_tokens"] > 50
    assert run.usage["output_tokens"] > 0
    assert run.usage["model"] == "test"


async def test_the_silent_token_is_a_success_that_only_the_model_remembers(
    database: str, store: PostgresSessionStore
) -> None:
    script = Script(["[SILENT]", "Watered."])
    (run,) = await recalled(database, PydanticAIAgent(script.agent()))
    assert run.outcome == "silent"
    assert await shown(database) == [("system", RECALL)]
    await recalled(database, PydanticAIAgent(script.agent()))
    assert ("text", "[SILENT]") in heard(script.sent[1])


async def test_sessions_that_run_at_once_do_not_mix(database: str, store: PostgresSessionStore) -> None:
    both = anyio.Event()
    waiting: list[list[ModelMessage]] = []

    async def answer(messages: list[ModelMessage]) -> str:
        waiting.append(messages)
        if len(waiting) == 2:
            both.set()
        await both.wait()
        recall = current_recall()
        assert recall is not None
        return f"done in {recall.session_id}"

    await store.create("s2")
    agent = Script([answer, answer]).agent()
    for session_id in ("s1", "s2"):
        await save_history(store, session_id, [ModelRequest(parts=[UserPromptPart(f"This is {session_id}.")])])
    async with sql(database) as db, working(database, PydanticAIAgent(agent)):
        for recall_id in [await db.recall(session_id, message=f"For {session_id}.") for session_id in ("s1", "s2")]:
            await db.ended(recall_id)
    for session_id in ("s1", "s2"):
        assert await shown(database, session_id) == [
            ("user", f"This is {session_id}."),
            ("system", f"[Scheduled recall] For {session_id}."),
            ("assistant", f"done in {session_id}"),
        ]
    assert sorted(heard(messages) for messages in waiting) == [
        [("user-prompt", f"This is {session_id}."), ("user-prompt", f"[Scheduled recall] For {session_id}.")]
        for session_id in ("s1", "s2")
    ]


class Report(BaseModel):
    plant: str
    wet: bool


async def test_structured_output_is_a_reply_in_json(database: str, store: PostgresSessionStore) -> None:
    agent = Agent(TestModel(custom_output_args={"plant": "fern", "wet": True}), output_type=Report)
    (run,) = await recalled(database, PydanticAIAgent(agent))
    assert json.loads(run.reply) == {"plant": "fern", "wet": True}
    assert await shown(database) == [("system", RECALL), ("assistant", run.reply)]
    async with sql(database) as db:
        assert await db("select content from pgrecall.session_messages where id like '%%:reply'") == [run.reply]
    assert isinstance((await load_history(store, "s1"))[1].parts[0], ToolCallPart)


async def depending(recall: CurrentRecall) -> str:
    return f"{recall.session_id} async"


@pytest.mark.parametrize(
    ("deps", "seen"),
    [("a value", "a value"), (lambda recall: recall.session_id, "s1"), (depending, "s1 async"), (None, "None")],
)
async def test_dependencies_are_a_value_or_made_for_the_run(
    database: str, store: PostgresSessionStore, deps: Any, seen: str
) -> None:
    agent = Script([calling("look"), "Done."]).agent()

    @agent.tool
    def look(context: RunContext[Any]) -> str:
        return str(context.deps)

    await recalled(database, PydanticAIAgent(agent, deps=deps))
    assert (await load_history(store, "s1"))[2].parts[0].content == seen  # type: ignore[union-attr]


async def test_a_run_that_uses_up_its_limits_is_given_up(database: str, store: PostgresSessionStore) -> None:
    agent = Script([calling("look")] * 9).agent()
    looks: list[int] = []

    @agent.tool_plain
    def look() -> None:
        looks.append(1)

    limited = PydanticAIAgent(agent, usage_limits=UsageLimits(request_limit=3))
    (run,) = await recalled(database, limited, status="failed", max_attempts=5)
    assert "used up its limits" in run.reason
    assert "request_limit of 3" in run.reason
    assert len(looks) == 3
    assert (run.usage["requests"], run.usage["tool_calls"]) == (3, 3)
    assert run.usage["input_tokens"] > 0


async def test_a_call_that_somebody_must_approve_is_given_up(database: str, store: PostgresSessionStore) -> None:
    agent = Script([calling("buy", what="soil")]).agent(output_type=[str, DeferredToolRequests])

    @agent.tool_plain(requires_approval=True)
    def buy(what: str) -> None:
        raise AssertionError("bought without asking")

    (run,) = await recalled(database, PydanticAIAgent(agent), status="failed", max_attempts=5)
    assert run.reason == "nobody is connected who could answer for the agent's calls of buy"


DOWN = ModelServerError("big-model", "overloaded", retry_after=0)


async def test_a_model_that_is_down_at_first_is_tried_again(database: str, store: PostgresSessionStore) -> None:
    runs = await recalled(database, PydanticAIAgent(Script([DOWN, "Back."]).agent()), max_attempts=3)
    assert [(run.outcome, run.reply) for run in runs] == [("error", None), ("success", "Back.")]
    assert "overloaded" in runs[0].error


async def test_models_that_are_all_down_are_tried_again_unless_one_of_them_has_refused(
    database: str, store: PostgresSessionStore
) -> None:
    models = [Script([DOWN, DOWN]), Script([DOWN, ModelRequestRejectedError("small-model", "too long")])]
    agent = Agent(FallbackModel(*[FunctionModel(model) for model in models]))
    async with sql(database) as db, working(database, PydanticAIAgent(agent)):
        recall_id = await db.recall("s1", max_attempts=3)
        await until(lambda: db("select from pgrecall.recall_runs"))
        await db("update pgrecall.session_recalls set not_before = null where id = %s", recall_id)
        await db.ended(recall_id, "failed")
        assert await db("select outcome from pgrecall.recall_runs") == ["error", "error"]


async def test_a_model_that_goes_down_after_a_tool_was_called_is_not_tried_again(
    database: str, store: PostgresSessionStore
) -> None:
    agent = Script([calling("act"), DOWN, "Twice!"]).agent()

    @agent.tool_plain
    def act() -> None: ...

    runs = await recalled(database, PydanticAIAgent(agent), status="failed", max_attempts=3)
    assert [run.outcome for run in runs] == ["error"]


async def test_a_call_that_was_never_answered_does_not_block_the_session(
    database: str, store: PostgresSessionStore
) -> None:
    await save_history(store, "s1", [ModelRequest(parts=[UserPromptPart("Look.")]), calling("look")])
    (run,) = await recalled(database, PydanticAIAgent(Script(["Watered."]).agent()))
    assert (run.outcome, run.reply) == ("success", "Watered.")


async def test_saving_a_turn_twice_keeps_it_once(store: PostgresSessionStore) -> None:
    turn: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart("Yes.")]), ModelResponse(parts=[TextPart("No.")])]
    again: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart("Yes.")])]
    for messages in (turn, turn, again):
        await save_history(store, "s1", messages)
    assert heard(await load_history(store, "s1")) == [("user-prompt", "Yes."), ("text", "No."), ("user-prompt", "Yes.")]


async def test_pictures_and_thinking_survive(store: PostgresSessionStore) -> None:
    picture = BinaryImage(b"\x00\xff", media_type="image/png")
    turn: list[ModelMessage] = [
        ModelRequest(parts=[SystemPromptPart("Be kind."), UserPromptPart(["What is it?", picture])]),
        ModelResponse(parts=[ThinkingPart("hm"), TextPart("A fern.")]),
    ]
    await save_history(store, "s1", turn)
    assert await load_history(store, "s1") == turn


async def test_an_unknown_session_is_an_error(database: str) -> None:
    async with RecallScheduler(database) as scheduler:
        with pytest.raises(SessionNotFoundError, match="nobody"):
            await load_history(scheduler, "nobody")
        with pytest.raises(SessionNotFoundError, match="nobody"):
            await save_history(scheduler, "nobody", [ModelResponse(parts=[TextPart("x")])])


async def test_a_message_that_cannot_be_read_fails_the_run_and_is_named(
    database: str, store: PostgresSessionStore
) -> None:
    async with sql(database) as db:
        await db(
            "insert into pgrecall.session_messages (session_id, id, role, content, metadata) "
            """values ('s1', 'm7', 'user', 'x', '{"pydantic_ai": {"kind": "future"}}')"""
        )
    (run,) = await recalled(database, PydanticAIAgent(Script([]).agent()), status="failed")
    assert run.error.startswith("AgentError: message m7 of session 's1' is not one that this pydantic-ai can read")


class Memory:
    """A host's own store, whose messages are objects."""

    def __init__(self, *said: tuple[str, Any]) -> None:
        messages: list[Any] = [
            SimpleNamespace(id=str(n), role=role, content=text) for n, (role, text) in enumerate(said)
        ]
        self.chat = SimpleNamespace(messages=messages, context=SimpleNamespace(messages=list(messages)))

    async def get(self, session_id: str) -> Any:
        return self.chat if session_id == "s1" else None

    async def save(self, session: Any) -> None:
        assert session is self.chat


async def test_a_hosts_own_store_is_read_and_written(database: str, store: PostgresSessionStore) -> None:
    host = Memory(("human", [{"type": "text", "text": "I have plants."}]), ("ai", "Nice."))
    script = Script([calling("look"), "Watered.", "Welcome."])
    agent = script.agent()

    @agent.tool_plain
    def look() -> str:
        return "dry"

    await recalled(database, PydanticAIAgent(agent), worker={"store": host})
    assert await talk(host, agent, "Thanks.") == "Welcome."
    assert heard(script.sent[2]) == [
        ("user-prompt", "I have plants."),
        ("text", "Nice."),
        ("user-prompt", RECALL),
        ("tool-call", "{}"),
        ("tool-return", "dry"),
        ("text", "Watered."),
        ("user-prompt", "Thanks."),
    ]
    assert [getattr(message, "role", None) or message["role"] for message in host.chat.messages] == [
        *("human", "ai", "system", "assistant", "user", "assistant")
    ]
    saved = host.chat.context.messages[-1]
    await save_history(host, "s1", await load_history(host, "s1"))
    assert host.chat.context.messages.count(saved) == 1


async def test_a_run_that_is_told_to_stop_stops_its_tools_and_leaves_nothing(
    database: str, store: PostgresSessionStore
) -> None:
    agent = Script([calling("wait")]).agent()
    reached, stopped = anyio.Event(), anyio.Event()

    @agent.tool_plain
    async def wait() -> None:
        reached.set()
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    async with sql(database) as db, working(database, PydanticAIAgent(agent)):
        recall_id = await db.recall("s1")
        await reached.wait()
        await db("update pgrecall.session_recalls set status = 'cancelled' where id = %s", recall_id)
        await stopped.wait()
        await db.ended(recall_id, "cancelled")
        outcomes = await until(lambda: db("select outcome from pgrecall.recall_runs"))
    assert outcomes == ["interrupted"]
    assert len(await load_history(store, "s1")) == 1


async def test_outside_a_worker_it_says_so() -> None:
    with pytest.raises(AgentError, match="PydanticAIAgent runs for recalls only"):
        await PydanticAIAgent(Script([]).agent()).run(session_id="s1", user_message="x")


@pytest.mark.parametrize(
    ("arguments", "options", "complaint"),
    [
        (("my agent",), {}, "'my agent' is no agent of pydantic-ai"),
        ((Agent(TestModel()),), {"inject_as": "developer"}, "inject_as is 'developer'"),
        ((Agent(TestModel()),), {"message_history": []}, "gives message_history to Agent.run itself"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(arguments: Any, options: Any, complaint: str) -> None:
    with pytest.raises(AgentError, match=complaint):
        PydanticAIAgent(*arguments, **options)


def test_without_the_package_the_error_says_what_to_install() -> None:
    script = "import sys; sys.modules['pydantic_ai'] = None; import pgrecall.adapters.pydantic_ai"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (
        "pgrecall.AgentError: pgrecall.adapters.pydantic_ai needs pydantic-ai: pip install 'pgrecall[pydantic-ai]'"
        in (done.stderr)
    )
