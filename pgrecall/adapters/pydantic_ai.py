"""Agents of pydantic-ai: a session's rows as their message history, and their new messages as rows.

A row of theirs keeps the whole ModelMessage in its metadata, so tool calls and thinking come back as they were. Rows of
anybody else are read by role and content.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pgrecall.adapters import _history
from pgrecall.adapters._history import InjectAs
from pgrecall.agents import GiveUp, Retry, RunResult, describe
from pgrecall.client import RecallScheduler
from pgrecall.errors import AgentError
from pgrecall.sessions import Message, SessionStore

try:
    from pydantic import ValidationError
    from pydantic_ai import DeferredToolRequests, RunUsage, UsageLimitExceeded, UsageLimits
    from pydantic_ai.agent import AbstractAgent
    from pydantic_ai.exceptions import (
        FallbackExceptionGroup,
        ModelConnectionError,
        ModelRateLimitError,
        ModelServerError,
        ModelUnavailableError,
    )
    from pydantic_ai.messages import (
        ModelMessage,
        ModelMessagesTypeAdapter,
        ModelRequest,
        ModelResponse,
        SystemPromptPart,
        TextPart,
        ToolReturnPart,
        UserPromptPart,
        repair_messages,
    )
    from pydantic_core import to_json
except ImportError as error:
    raise AgentError(
        f"pgrecall.adapters.pydantic_ai needs pydantic-ai: pip install 'pgrecall[pydantic-ai]' ({error})"
    ) from error

#: Where in a row's metadata the ModelMessage is.
KEY = "pydantic_ai"

#: The model has not heard the request, or has not begun with it.
_UNREACHABLE = (ModelConnectionError, ModelRateLimitError, ModelServerError, ModelUnavailableError)

#: What the adapter itself gives to Agent.run.
_OURS = {"user_prompt", "message_history", "conversation", "conversation_id", "run_id", "usage"}


class PydanticAIAgent:
    """A pydantic-ai agent as an agent of ours: `Worker(dsn, agent=PydanticAIAgent(agent))`.

    Each run is given the session's history and, as its new turn, the recall's text (`current_recall().text`). What it
    adds to the conversation is stored with the outcome of the run: once, and only if the run counts.

    A retried attempt starts from the stored history again, so it has the recall's text once, and nothing of the failed
    attempt. A run that exceeds `usage_limits`, or that ends with a tool call for which somebody must be asked, is given
    up. A model that cannot be reached for its first answer is tried again later, while attempts are left.

    Args:
        agent: The agent.
        inject_as: As what the recall's text reaches the model. `user`, the default, works with every model; `system`
            is for models that take a system message in the middle of a conversation; pydantic-ai sends it as marked
            user text to others.
        deps: The agent's dependencies, or a function (also an async one) that takes the CurrentRecall and returns them.
            A value that can itself be called goes behind such a function.
        usage_limits: For each run; None: pydantic-ai's own, 50 requests.
        model_settings: For each run; None: the agent's own.
        options: Further keyword arguments of `Agent.run`, for each run: `model`, `toolsets`, `capabilities` …

    Raises:
        AgentError: `agent` is no pydantic-ai agent, `inject_as` is neither of the two, or `options` has an argument
            that the adapter itself gives.
    """

    def __init__(
        self,
        agent: AbstractAgent[Any, Any],
        *,
        inject_as: InjectAs = "user",
        deps: Any = None,
        usage_limits: UsageLimits | None = None,
        model_settings: Any = None,
        **options: Any,
    ) -> None:
        if not isinstance(agent, AbstractAgent):
            raise AgentError(f"{agent!r} is no agent of pydantic-ai")
        if taken := _OURS & options.keys():
            raise AgentError(f"PydanticAIAgent gives {', '.join(sorted(taken))} to Agent.run itself")
        self.agent = agent
        self._inject_as = _history.checked_inject_as(inject_as)
        self._deps = deps
        self._options = {"usage_limits": usage_limits, "model_settings": model_settings, **options}

    async def run(self, *, session_id: str, user_message: str) -> RunResult:  # noqa: ARG002 (the recall's text has it)
        """Runs the agent in its session.

        Returns:
            The output as the reply (JSON if it is no text), the usage, and the run's new messages.

        Raises:
            GiveUp: The run has used up its limits, or a tool call waits for somebody.
            Retry: The model could not be reached, and nothing has been done yet.
            AgentError: There is no recall to run for, or the session has a message that pydantic-ai cannot read.
        """
        recall = _history.this_run(self)
        rows = await _history.context_of(recall.store, session_id)
        deps = await _history.for_this_run(self._deps, recall)
        # A call that was never answered (a chat server died in it) would be refused together with a new turn.
        history = repair_messages(
            _messages([row for row in rows if row["id"] != recall.message_id], self._inject_as, session_id)
        )
        history = await self._with_system_prompt(history, rows, deps, recall.text)
        turn = recall.text if self._inject_as == "user" else None
        if turn is None:
            history = [*history, ModelRequest(parts=[SystemPromptPart(recall.text)])]
        usage = RunUsage()
        try:
            result = await self.agent.run(
                turn, message_history=history, conversation_id=session_id, deps=deps, usage=usage, **self._options
            )
        except UsageLimitExceeded as error:
            raise GiveUp(f"the run has used up its limits: {error.message}") from error
        except (*_UNREACHABLE, FallbackExceptionGroup) as error:
            refused = isinstance(error, FallbackExceptionGroup) and error.split(_UNREACHABLE)[1] is not None
            if refused or usage.requests:
                raise  # the model has answered before, so something may have been done
            raise Retry(describe(error), after=getattr(error, "retry_after", None)) from error
        finally:
            # However it ends: a run that fails, or that is stopped, has cost as much.
            recall.report_usage(_usage(usage))
        if isinstance(result.output, DeferredToolRequests):
            names = ", ".join(call.tool_name for call in [*result.output.approvals, *result.output.calls])
            raise GiveUp(f"nobody is connected who could answer for the agent's calls of {names}")
        reply = _text(result.output)
        return RunResult(
            reply=reply,
            usage={**_usage(usage), "model": result.response.model_name},
            messages=_rows(_without_turn(result.new_messages(), turn), reply),
        )

    async def _with_system_prompt(
        self, history: list[ModelMessage], rows: Iterable[Message], deps: Any, turn: str
    ) -> list[ModelMessage]:
        """The history with the agent's system prompt at its head, unless somebody has put one into it.

        pydantic-ai itself adds it to an empty history only, and that of a session has the recall at least.
        """
        recalls = {row["content"] for row in rows if _history.is_recall(row)}
        if any(
            isinstance(part, SystemPromptPart) and part.content not in recalls
            for message in history
            for part in message.parts
        ):
            return history
        parts = await self.agent.system_prompt_parts(
            deps=deps, model=self._options.get("model"), message_history=history, prompt=turn
        )
        return [ModelRequest(parts=parts), *history] if parts else history


async def load_history(
    store: SessionStore | RecallScheduler, session_id: str, *, inject_as: InjectAs = "user"
) -> list[ModelMessage]:
    """The session's history for `Agent.run(message_history=…)`, for a live chat in the same conversation.

    Args:
        store: The worker's store; a scheduler stands for the default one.
        session_id: The session.
        inject_as: As what the model sees the recalls in it; the same as the PydanticAIAgent's.

    Raises:
        SessionNotFoundError: There is no such session.
        AgentError: The session has a message that pydantic-ai cannot read.
    """
    rows = await _history.context_of(_history.as_store(store), session_id)
    return _messages(rows, _history.checked_inject_as(inject_as), session_id)


async def save_history(
    store: SessionStore | RecallScheduler, session_id: str, new_messages: Sequence[ModelMessage]
) -> None:
    """Adds messages to the session, in their order. Saving the same ones again changes nothing.

    Args:
        store: The worker's store; a scheduler stands for the default one.
        session_id: The session.
        new_messages: `result.new_messages()` of a turn of the live chat.

    Raises:
        SessionNotFoundError: There is no such session.
    """
    rows = _rows(new_messages)
    for row in rows:
        # The id comes from the message with its times, so a caller who cannot know whether it was stored can ask again.
        row["id"] = str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(row["metadata"][KEY], sort_keys=True)))
    await _history.append(_history.as_store(store), session_id, rows)


def _messages(rows: Iterable[Message], inject_as: InjectAs, session_id: str) -> list[ModelMessage]:
    messages: list[ModelMessage] = []
    for row in rows:
        text = row["content"]
        if KEY in row["metadata"]:
            messages.append(_restored(row, session_id))
            continue
        match inject_as if _history.is_recall(row) else _history.speaker(row):
            case "assistant" if text:
                messages.append(ModelResponse(parts=[TextPart(text)]))
            case "system" if text:
                messages.append(ModelRequest(parts=[SystemPromptPart(text)]))
            case "user" if text:
                messages.append(ModelRequest(parts=[UserPromptPart(text)]))
    return messages


def _restored(row: Message, session_id: str) -> ModelMessage:
    try:
        return ModelMessagesTypeAdapter.validate_python([row["metadata"][KEY]])[0]
    except ValidationError as error:
        raise AgentError(
            f"message {row['id']} of session {session_id!r} is not one that this pydantic-ai can read: {error}",
            hint=f"Without {KEY!r} in its metadata it is read by its role and content.",
        ) from error


def _without_turn(messages: Sequence[ModelMessage], turn: str | None) -> list[ModelMessage]:
    """The messages without the recall's text, which the store has already."""
    first = messages[0]
    if turn is None or not isinstance(first, ModelRequest):
        return list(messages)
    parts = [part for part in first.parts if not (isinstance(part, UserPromptPart) and part.content == turn)]
    return [*([replace(first, parts=parts)] if parts else []), *messages[1:]]


def _rows(messages: Sequence[ModelMessage], reply: str | None = None) -> list[Message]:
    """The messages as rows. The last answer is shown as the reply: structured output is no text of the model."""
    dumped = _history.storable(ModelMessagesTypeAdapter.dump_python(list(messages), mode="json"))
    shown = [_shown(message) for message in messages]
    if reply:
        last = max(place for place, message in enumerate(messages) if isinstance(message, ModelResponse))
        shown[last] = ("assistant", reply)
    return _history.rows(KEY, shown, dumped)


def _shown(message: ModelMessage) -> tuple[str, str]:
    """Role and content for people, and for frameworks that do not know ours."""
    if isinstance(message, ModelResponse):
        if message.text or not message.tool_calls:
            return "assistant", message.text or ""
        return "tool", "\n".join(f"{call.tool_name}({call.args_as_json_str()})" for call in message.tool_calls)
    for role, kind in (("user", UserPromptPart), ("tool", ToolReturnPart), ("instructions", SystemPromptPart)):
        if parts := [part for part in message.parts if isinstance(part, kind)]:
            return role, "\n".join(
                part.model_response_str() if isinstance(part, ToolReturnPart) else _history.plain(part.content)
                for part in parts
            )
    return "tool", ""


def _text(output: Any) -> str | None:
    if output is None or isinstance(output, str):
        return output
    return to_json(output, fallback=str).decode()


def _usage(usage: RunUsage) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "requests": usage.requests,
        "tool_calls": usage.tool_calls,
    }
    if usage.cost is not None:
        counts["cost_usd"] = float(usage.cost)
    return counts
