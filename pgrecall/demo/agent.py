"""The agent that `pgrecall demo` runs, and a pattern for your own: an object with one coroutine method.

    pgrecall worker --agent pgrecall.demo.agent:agent

It reads the session's history from the default store and lets a model answer. The model works offline: it finds in the
history who is talking and about what, and joins that with the recall's message. With pydantic-ai installed it is a
pydantic-ai agent; without it the same function is called directly.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Sequence

from pgrecall.agents import current_recall
from pgrecall.client import RecallScheduler
from pgrecall.errors import SessionNotFoundError
from pgrecall.sessions import Message, PostgresSessionStore

_INTRODUCTION = re.compile(r"I am (?P<name>\w+)\. Come back to me about (?P<topic>[^.]+)\.")
_RECALL = re.compile(r"\[Scheduled recall\] (?:Ask: )?(?P<task>[^<\n]+)")  # frameworks may wrap it in <system>


def answer(history: Sequence[Message]) -> str:
    """Says what a model would say, from nothing but the conversation.

    Args:
        history: The model's context, oldest first; the recall's own message is in it.
    """
    texts = [message["content"] for message in history if message["role"] != "assistant"]
    person = next(filter(None, map(_INTRODUCTION.search, texts)), None)
    recall = next(filter(None, map(_RECALL.search, reversed(texts))), None)
    task = recall["task"] if recall else "here I am."
    if person is None:
        return f"Awake, with {len(history)} messages of history: {task}"
    return f"{person['name']}, about {person['topic']}: {task}"


async def _plain(history: Sequence[Message]) -> str:
    return answer(history)


def _pydantic_ai() -> Callable[[Sequence[Message]], Awaitable[str]]:
    """The same answer by way of a pydantic-ai agent: history in, a model request, a text out.

    Raises:
        ImportError: pydantic-ai is not installed.
    """
    import pydantic_ai  # type: ignore[import-not-found, unused-ignore]
    from pydantic_ai import messages  # type: ignore[import-not-found, unused-ignore]
    from pydantic_ai.models import function  # type: ignore[import-not-found, unused-ignore]

    kinds = {"system-prompt": "system", "user-prompt": "user", "text": "assistant"}

    def model(given: list[messages.ModelMessage], _: function.AgentInfo) -> messages.ModelResponse:
        parts = [part for message in given for part in message.parts if part.part_kind in kinds]
        seen = [{"role": kinds[part.part_kind], "content": str(getattr(part, "content", ""))} for part in parts]
        return messages.ModelResponse(parts=[messages.TextPart(answer(seen))])

    def as_pydantic(message: Message) -> messages.ModelMessage:
        if message["role"] == "assistant":
            return messages.ModelResponse(parts=[messages.TextPart(message["content"])])
        part = messages.SystemPromptPart if message["role"] == "system" else messages.UserPromptPart
        return messages.ModelRequest(parts=[part(message["content"])])

    agent = pydantic_ai.Agent(function.FunctionModel(model))

    async def ask(history: Sequence[Message]) -> str:
        result = await agent.run(message_history=[as_pydantic(message) for message in history])
        return str(result.output)

    return ask


class DemoAgent:
    """Answers from the session's history; a recall's metadata `think_seconds` makes it take its time.

    Args:
        dsn: Where the sessions are.
    """

    def __init__(self, dsn: str | None = None) -> None:
        self._store = PostgresSessionStore(RecallScheduler(dsn))
        try:
            self._ask = _pydantic_ai()
        except ImportError:
            self._ask = _plain

    async def run(self, *, session_id: str, user_message: str) -> str:  # noqa: ARG002 (it is in the history too)
        """Loads the session, thinks, answers.

        Raises:
            SessionNotFoundError: The session has been deleted meanwhile.
        """
        session = await self._store.get(session_id)
        if session is None:
            raise SessionNotFoundError(f"no session with id {session_id!r}", session_id=session_id)
        recall = current_recall()
        if recall is not None:
            await asyncio.sleep(float(recall.metadata.get("think_seconds", 0)))
        return await self._ask(session.context)


agent = DemoAgent(os.environ.get("PGRECALL_DSN"))
