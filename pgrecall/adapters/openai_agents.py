"""Agents of the OpenAI Agents SDK: a session's rows as their input items, and their new items as rows.

A row of theirs keeps the whole item (a dict in the format of the Responses API) in its metadata. Rows of anybody else
are read by role and content.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from pgrecall.adapters import _history
from pgrecall.adapters._history import InjectAs
from pgrecall.agents import CurrentRecall, GiveUp, Retry, RunResult, describe
from pgrecall.client import RecallScheduler
from pgrecall.errors import AgentError
from pgrecall.sessions import Message, SessionStore

try:
    import openai
    from agents import (
        Agent,
        MaxTurnsExceeded,
        ModelResponse,
        RunConfig,
        RunHooks,
        Runner,
        SessionSettings,
        ToolCallItem,
        Usage,
        UserError,
    )
    from agents.run import DEFAULT_MAX_TURNS
    from pydantic_core import to_json, to_jsonable_python
except ImportError as error:
    raise AgentError(
        f"pgrecall.adapters.openai_agents needs openai-agents: pip install 'pgrecall[openai-agents]' ({error})"
    ) from error

#: Where in a row's metadata the item is.
KEY = "openai_agents"

#: The SDK's type is a union of some thirty TypedDicts; nothing here depends on which it is.
Item = Any


class OpenAIAgentsAgent:
    """An agent of the OpenAI Agents SDK as an agent of ours: `Worker(dsn, agent=OpenAIAgentsAgent(agent))`.

    Each run is given the session's history and, as its new turn, the recall's text (`current_recall().text`). What it
    adds to the conversation is stored with the outcome of the run: once, and only if the run counts.

    A retried attempt starts from the stored history again, so it has the recall's text once, and nothing of the failed
    attempt. A run that exceeds `max_turns`, or that ends with a tool call for which somebody must be asked, is given
    up. A model that cannot be reached for its first answer is tried again later, while attempts are left. The SDK tells
    the model what a tool has raised, so Retry and GiveUp reach the worker from a tool only if it was made with
    `function_tool(failure_error_function=None)`.

    Args:
        agent: The agent that a run starts with; it may hand off to others.
        inject_as: As what the recall's text reaches the model. `user`, the default, works with every model; `system`
            is for models that take a system message in the middle of a conversation.
        context: The run's context object, or a function (also an async one) that takes the CurrentRecall and returns
            it. A value that can itself be called goes behind such a function.
        run_config: For each run, as it is. None: the SDK's defaults, and no tracing if there is no OPENAI_API_KEY.
        max_turns: The most turns of a run; None: no limit.

    Raises:
        AgentError: `agent` is no agent of the SDK, or `inject_as` is neither of the two.
    """

    def __init__(
        self,
        agent: Agent[Any],
        *,
        inject_as: InjectAs = "user",
        context: Any = None,
        run_config: RunConfig | None = None,
        max_turns: int | None = DEFAULT_MAX_TURNS,
    ) -> None:
        if not isinstance(agent, Agent):
            raise AgentError(f"{agent!r} is no agent of the OpenAI Agents SDK")
        self.agent = agent
        self._inject_as = _history.checked_inject_as(inject_as)
        self._context = context
        self._run_config = run_config
        self._max_turns = max_turns

    async def run(self, *, session_id: str, user_message: str) -> RunResult:  # noqa: ARG002 (the recall's text has it)
        """Runs the agent in its session.

        Returns:
            The final output as the reply (JSON if it is no text), the usage, and the run's new items as messages.

        Raises:
            GiveUp: The run has used up its turns, or a tool call waits for somebody.
            Retry: The model could not be reached, and nothing has been done yet.
            AgentError: There is no recall to run for.
        """
        recall = _history.this_run(self)
        rows = await _history.context_of(recall.store, session_id)
        history = _items([row for row in rows if row["id"] != recall.message_id], self._inject_as)
        answered = _Answered(recall)
        try:
            result = await Runner.run(
                self.agent,
                [{"role": self._inject_as, "content": recall.text}],
                session=_RunSession(session_id, history),
                context=await _history.for_this_run(self._context, recall),
                run_config=self._run_config or _default_config(session_id),
                hooks=answered,
                max_turns=self._max_turns,
            )
        except MaxTurnsExceeded as error:
            raise GiveUp(f"the run has used up its turns: {error.message}") from error
        except UserError as error:
            if not isinstance(error.__cause__, Retry | GiveUp):
                raise
            raise error.__cause__ from None  # the SDK has wrapped what a tool raised
        except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
            if answered.requests:
                raise  # the model has answered before, so something may have been done
            raise Retry(describe(error)) from error
        if result.interruptions:
            names = ", ".join(call.name or "a tool" for call in result.interruptions)
            raise GiveUp(f"nobody is connected who could answer for the agent's calls of {names}")
        reply = _text(result.final_output)
        return RunResult(
            reply=reply,
            usage=_usage(
                result.context_wrapper.usage, sum(isinstance(item, ToolCallItem) for item in result.new_items)
            ),
            messages=_rows([item.to_input_item() for item in result.new_items], reply),
        )


class RecallSession:
    """The SDK's Session protocol over a store, for a live chat in the same conversation as the recalls.

    `Runner.run(agent, "Hello", session=RecallSession("s1", recalls))`. Items are stored as the SDK adds them; hold the
    session meanwhile (`hold_session`), so that no recall runs in it. Items that are popped or cleared stay in the
    default store's table, neither shown nor given to the model.

    Args:
        session_id: The session; it must exist.
        store: The worker's store; a scheduler stands for the default one.
        inject_as: As what the model sees the recalls in it; the same as the OpenAIAgentsAgent's.
        session_settings: The SDK's settings for this session.
    """

    def __init__(
        self,
        session_id: str,
        store: SessionStore | RecallScheduler,
        *,
        inject_as: InjectAs = "user",
        session_settings: SessionSettings | None = None,
    ) -> None:
        self.session_id = session_id
        self.session_settings = session_settings
        self._store = _history.as_store(store)
        self._inject_as = _history.checked_inject_as(inject_as)

    async def get_items(self, limit: int | None = None) -> list[Item]:
        """The conversation, oldest first; with a limit its latest items.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        return _latest(_items(await _history.context_of(self._store, self.session_id), self._inject_as), limit)

    async def add_items(self, items: list[Item]) -> None:
        """Adds items, in their order.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        if items:
            await _history.append(self._store, self.session_id, _rows(items))

    async def pop_item(self) -> Item | None:
        """Takes the latest item out and returns it; None if there is none.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        session = await _history.session_of(self._store, self.session_id)
        lists = _history.lists_of(session)
        while lists and lists[-1]:
            message = lists[-1][-1]
            _history.take_out(session, message)
            if items := _items([_history.row(message)], self._inject_as):
                await self._store.save(session)
                return items[0]
        return None

    async def clear_session(self) -> None:
        """Takes everything out.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        session = await _history.session_of(self._store, self.session_id)
        for each in _history.lists_of(session):
            each.clear()
        await self._store.save(session)


class _RunSession:
    """The conversation as a run sees it. Nothing leaves it: what is new is stored with the outcome."""

    session_settings: SessionSettings | None = None

    def __init__(self, session_id: str, items: list[Item]) -> None:
        self.session_id = session_id
        self._items = items

    async def get_items(self, limit: int | None = None) -> list[Item]:
        return _latest(self._items, limit)

    async def add_items(self, items: list[Item]) -> None:
        self._items.extend(items)

    async def pop_item(self) -> Item | None:
        return self._items.pop() if self._items else None

    async def clear_session(self) -> None:
        self._items.clear()


class _Answered(RunHooks[Any]):
    """Counts the model's answers, and reports what they have cost as they come: a run that fails has cost it, too."""

    def __init__(self, recall: CurrentRecall) -> None:
        self._recall = recall
        self._usage = Usage()
        self._tool_calls = 0
        self.requests = 0

    async def on_llm_end(self, context: Any, agent: Any, response: ModelResponse) -> None:  # noqa: ARG002 (the SDK's)
        self.requests += 1
        self._usage.add(response.usage)
        self._tool_calls += sum(getattr(item, "type", None) == "function_call" for item in response.output)
        self._recall.report_usage(_usage(self._usage, self._tool_calls))


def _default_config(session_id: str) -> RunConfig:
    return RunConfig(tracing_disabled=not os.environ.get("OPENAI_API_KEY"), group_id=session_id)


def _latest(items: list[Item], limit: int | None) -> list[Item]:
    return list(items) if limit is None else items[-limit:] if limit > 0 else []


def _items(rows: Iterable[Message], inject_as: InjectAs) -> list[Item]:
    items: list[Item] = []
    for row in rows:
        role = inject_as if _history.is_recall(row) else _history.speaker(row)
        if KEY in row["metadata"]:
            items.append(row["metadata"][KEY])
        elif role is not None and row["content"]:
            items.append({"role": role, "content": row["content"]})
    return items


def _rows(items: Sequence[Item], reply: str | None = None) -> list[Message]:
    """The items as rows. The last message of the model is shown as the reply."""
    natives = _history.storable(to_jsonable_python(items, fallback=str))
    shown = [_shown(item) for item in items]
    if reply:
        last = max((place for place, (role, _) in enumerate(shown) if role == "assistant"), default=None)
        if last is None:  # a tool's answer is the output, and the model has said nothing
            return [*_rows(items), {"role": "assistant", "content": _history.storable(reply)}]
        shown[last] = ("assistant", reply)
    return _history.rows(KEY, shown, natives)


def _shown(item: Item) -> tuple[str, str]:
    """Role and content for people, and for frameworks that do not know this one's items."""
    if "role" in item:
        return item["role"], _history.plain(item.get("content"))
    match item.get("type"):
        case "function_call":
            return "tool", f"{item['name']}({item['arguments']})"
        case "function_call_output":
            output = item["output"]
            return "tool", output if isinstance(output, str) else json.dumps(output)
        case "reasoning":
            return "reasoning", _history.plain(item.get("summary"))
    return "tool", str(item.get("type"))


def _text(output: Any) -> str | None:
    if output is None or isinstance(output, str):
        return output
    return to_json(output, fallback=str).decode()


def _usage(usage: Usage, tool_calls: int) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.input_tokens_details.cached_tokens,
        "requests": usage.requests,
        "tool_calls": tool_calls,
    }
