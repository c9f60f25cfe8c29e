"""One session, several frameworks: what one has stored the others can read."""

from __future__ import annotations

import pytest
from adaptertools import recalled
from agents import Agent as OpenAIAgent
from agents.testing import ScriptedModel, assistant_message, function_call
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.models.test import TestModel

from pgrecall import PostgresSessionStore
from pgrecall.adapters.openai_agents import OpenAIAgentsAgent, RecallSession
from pgrecall.adapters.pydantic_ai import PydanticAIAgent, load_history

pytestmark = pytest.mark.anyio


def look() -> str:
    """Looks at the plant."""
    return "dry"


async def test_each_framework_reads_what_the_other_said_but_not_its_tools(
    database: str, store: PostgresSessionStore
) -> None:
    from agents import function_tool

    await recalled(
        database, PydanticAIAgent(PydanticAgent(TestModel(custom_output_text="One."), tools=[look])), "For pydantic-ai."
    )
    model = ScriptedModel([[function_call("look", {}, call_id="c1")], [assistant_message("Two.")]])
    await recalled(
        database, OpenAIAgentsAgent(OpenAIAgent(name="a", model=model, tools=[function_tool(look)])), "For the SDK."
    )
    sent = [(item["role"], item["content"].split("\n")[0]) for item in model.calls[0].input]
    assert sent == [
        ("user", "[Scheduled recall] For pydantic-ai."),
        ("assistant", "One."),
        ("user", "[Scheduled recall] For the SDK."),
    ]
    theirs = [
        (part.part_kind, str(getattr(part, "content", "")).split("\n")[0])
        for message in await load_history(store, "s1")
        for part in message.parts
    ]
    assert theirs == [
        ("user-prompt", "[Scheduled recall] For pydantic-ai."),
        ("tool-call", ""),
        ("tool-return", "dry"),
        ("text", "One."),
        ("user-prompt", "[Scheduled recall] For the SDK."),
        ("text", "Two."),
    ]
    ours = [item.get("role") or item["type"] for item in await RecallSession("s1", store).get_items()]
    assert ours == ["user", "assistant", "user", "function_call", "function_call_output", "assistant"]
