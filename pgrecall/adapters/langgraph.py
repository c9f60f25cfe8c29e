"""A LangGraph graph as an agent: one thread per session, continued from its last checkpoint after a crash.

The thread's checkpoints say how far an occurrence has come, because each of them carries the id of the occurrence that
wrote it. Knows nothing of pgrecall's own store: the conversation is in the thread.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal

from pgrecall.agents import CurrentRecall, GiveUp, Retry, RunResult, current_recall, describe
from pgrecall.errors import AgentError

try:
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
    from langchain_core.outputs import ChatGeneration, LLMResult
    from langchain_core.runnables import RunnableConfig
    from langchain_core.runnables.config import merge_configs
    from langgraph.constants import START
    from langgraph.types import StateSnapshot
except ModuleNotFoundError as error:
    raise AgentError(
        f"LangGraphAgent needs LangGraph: there is no module {error.name!r}",
        hint="Run: pip install 'pgrecall[langgraph]'",
    ) from error

#: Where every checkpoint that an occurrence writes says which one that was.
_WRITTEN_FOR = "pgrecall_message_id"

#: Characters of a question that are told.
_LONGEST_QUESTION = 500


class LangGraphAgent:
    """Runs a graph on the session's thread when a recall is due.

    What an attempt finds in the thread decides what it does:

    - nothing of its occurrence: it puts the recall's message in and runs the graph;
    - an unfinished turn of its occurrence (the worker died, or was told to stop): it goes on from the last checkpoint,
      without a second message;
    - a finished turn of its occurrence (the worker died just before it could tell): the reply that is there;
    - a question to a person, by `interrupt()` or a breakpoint: it gives up with the question as the reason and leaves
      the thread as it is, for the next chat to answer.

    Args:
        graph: A compiled graph with a checkpointer; or a function without parameters that gives one for each run: the
            graph, an awaitable of it, or an async context manager that yields it.
        inject_as: The role of the recall's message for the model. Not every model takes `system` in mid-conversation.
        input_key: The key of the graph's state that has the messages.
        config: Added to the run's configuration (recursion_limit, configurable, callbacks, tags …), or a function of
            the CurrentRecall that gives it. A `thread_id` in it takes the place of the session's id.
        context: The graph's runtime context, or a function of the CurrentRecall that gives it.

    Raises:
        AgentError: What was given is no graph, or `inject_as` is neither `user` nor `system`.
    """

    def __init__(
        self,
        graph: Any,
        *,
        inject_as: Literal["user", "system"] = "user",
        input_key: str = "messages",
        config: Mapping[str, Any] | Callable[[CurrentRecall], Mapping[str, Any]] | None = None,
        context: Any = None,
    ) -> None:
        if inject_as not in {"user", "system"}:
            raise AgentError(f"inject_as is {inject_as!r}", hint="Write inject_as='user' or inject_as='system'.")
        if not hasattr(graph, "ainvoke"):
            if hasattr(graph, "compile"):
                raise AgentError("the graph is not compiled", hint="Give builder.compile(checkpointer=…).")
            if hasattr(graph, "__aenter__"):
                raise AgentError(
                    f"{graph!r} can be entered once only",
                    hint="Give the function that makes it: it is called for each run.",
                )
            if not callable(graph):
                raise AgentError(
                    f"{graph!r} is no graph",
                    hint="Give a compiled graph, builder.compile(checkpointer=…), or a function that gives one.",
                )
        self._graph = graph
        self._message_type = HumanMessage if inject_as == "user" else SystemMessage
        self._key = input_key
        self._config = config
        self._context = context

    async def run(self, *, session_id: str, user_message: str) -> RunResult:  # noqa: ARG002 (the protocol's)
        """Runs the graph for the current recall, or goes on where an earlier attempt has stopped.

        Args:
            session_id: The thread, unless `config` names another.
            user_message: Not used: the model is told the recall's `text`, which has it.

        Returns:
            The last answer of the turn, and what its model calls used.

        Raises:
            AgentError: It is not called by a worker, or the graph has no checkpointer.
            Retry: The graph could not be opened, or its thread not be read: nothing has run.
            GiveUp: The graph waits for a person.
            Exception: Whatever the graph raises.
        """
        recall = current_recall()
        if recall is None:
            raise AgentError("LangGraphAgent.run() was called outside a run", hint="Give the agent to a Worker.")
        usage = _Usage()
        config = merge_configs(
            {
                "configurable": {"thread_id": session_id},
                "metadata": {_WRITTEN_FOR: recall.message_id},
                "callbacks": [usage],
            },
            _of(recall, self._config),
        )
        async with AsyncExitStack() as stack:
            try:
                graph = await stack.enter_async_context(self._opened())
                thread = await graph.aget_state(config)
                mine = await _last_of(recall, graph, config, thread)
            except (AgentError, Retry, GiveUp):
                raise
            except Exception as error:
                raise Retry(f"the thread could not be opened: {describe(error)}") from error
            if mine is not None:
                # What earlier attempts used was recorded by none of them.
                usage.count(self._turn(recall, mine))
            if mine is None or mine.tasks:
                await _refuse_if_waiting(graph, thread)
                going_on = mine is thread
                given = None if going_on else await self._input(recall, graph, thread, again=mine is not None)
                options = {} if self._context is None else {"context": _of(recall, self._context)}
                # A step counts when its checkpoint is stored, so that a crash later does not repeat it.
                await graph.ainvoke(given, config, durability="sync", **options)
                mine = await graph.aget_state(config)
                await _refuse_if_waiting(graph, mine)
        answers = [message for message in self._turn(recall, mine) if isinstance(message, AIMessage)]
        return RunResult(reply=str(answers[-1].text) or None if answers else None, usage=usage.total)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            graph = self._graph
            if not hasattr(graph, "ainvoke"):
                graph = graph()
                if hasattr(graph, "__await__"):
                    graph = await graph
                if hasattr(graph, "__aenter__"):
                    graph = await stack.enter_async_context(graph)
            if not getattr(graph, "checkpointer", None):
                raise AgentError(
                    f"{graph!r} has no checkpointer, so it would forget the session",
                    hint="Compile it with one: builder.compile(checkpointer=AsyncPostgresSaver(…)).",
                )
            yield graph

    async def _input(self, recall: CurrentRecall, graph: Any, thread: StateSnapshot, *, again: bool) -> dict[str, Any]:
        """The recall's message, after answers for tool calls that an unfinished turn of somebody else has left.

        Models refuse a conversation with calls that nobody answered, and LangGraph drops what is unfinished when there
        is new input; without the answers, one run that was cut off would spoil the thread for all that come later.
        """
        if thread.tasks:  # `thread` shows results that will be dropped as well; asked for by its id, it does not
            thread = await graph.aget_state(thread.config)
        unanswered: list[Any] = []
        answered = set()
        for message in reversed(self._messages(thread)):
            if isinstance(message, AIMessage):
                unanswered = [call for call in message.tool_calls if call["id"] not in answered]
            if not isinstance(message, ToolMessage):
                break
            answered.add(message.tool_call_id)
        answers = [
            ToolMessage(
                "There is no result: this turn was cut off before the tool had answered.",
                id=f"{recall.message_id}:{call['id']}",
                name=call["name"],
                tool_call_id=call["id"],
                status="error",
            )
            for call in unanswered
        ]
        message = self._message_type(
            recall.text,
            # Somebody has used the thread after the attempt before: a message with its id would stay in its old place.
            id=f"{recall.message_id}:{recall.run_id}" if again else recall.message_id,
            additional_kwargs={"recall_id": recall.recall_id, "nominal_at": recall.nominal_at.isoformat()},
        )
        return {self._key: [*answers, message]}

    def _turn(self, recall: CurrentRecall, state: StateSnapshot) -> Sequence[AnyMessage]:
        """The messages since the recall's own; all, if the graph has taken that one out."""
        messages = self._messages(state)
        for place in range(len(messages) - 1, -1, -1):
            if str(messages[place].id).startswith(recall.message_id) and isinstance(
                messages[place], self._message_type
            ):
                return messages[place + 1 :]
        return messages

    def _messages(self, state: StateSnapshot) -> Sequence[AnyMessage]:
        messages = state.values.get(self._key) if isinstance(state.values, Mapping) else None
        return messages if isinstance(messages, Sequence) else ()


class _Usage(BaseCallbackHandler):
    """Adds up what model calls say they used, wherever in the graph they are made, subgraphs and tools included."""

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}
        self._lock = threading.Lock()  # plain nodes run in threads

    @property
    def total(self) -> dict[str, int] | None:
        """The sums, by RunResult's names; None: no model was called."""
        return self._totals or None

    def count(self, messages: Sequence[Any]) -> None:
        """Adds the model's messages among these."""
        with self._lock:
            for message in messages:
                if not isinstance(message, AIMessage):
                    continue
                used = message.usage_metadata
                self._add("requests", 1)
                self._add("tool_calls", len(message.tool_calls))
                if used is not None:
                    self._add("input_tokens", used["input_tokens"])
                    self._add("output_tokens", used["output_tokens"])

    def on_llm_end(self, response: LLMResult, **_details: Any) -> None:
        """Called by LangChain after each call of a model."""
        self.count(
            [choice.message for call in response.generations for choice in call if isinstance(choice, ChatGeneration)]
        )

    def _add(self, name: str, amount: int) -> None:
        self._totals[name] = self._totals.get(name, 0) + amount


def _of(recall: CurrentRecall, given: Any) -> Any:
    """A setting, which may be a function of the recall."""
    return given(recall) if callable(given) else given


def _is_of(recall: CurrentRecall, state: StateSnapshot) -> bool:
    return state.metadata is not None and state.metadata.get(_WRITTEN_FOR) == recall.message_id


async def _last_of(
    recall: CurrentRecall, graph: Any, config: RunnableConfig, thread: StateSnapshot
) -> StateSnapshot | None:
    """The last state that an attempt of this occurrence has left in the thread; None: there is none."""
    if _is_of(recall, thread):
        return thread
    async for state in graph.aget_state_history(config, filter={_WRITTEN_FOR: recall.message_id}, limit=1):
        return state  # type: ignore[no-any-return]
    return None


async def _refuse_if_waiting(graph: Any, state: StateSnapshot) -> None:
    """Leaves a thread alone that waits for a person: going on would be taking the answer for granted.

    Raises:
        GiveUp: It waits, and this is its question.
    """
    if state.interrupts:
        question = "; ".join(str(interrupt.value) for interrupt in state.interrupts)
        raise GiveUp(f"the graph waits for a person to answer: {question[:_LONGEST_QUESTION]}")
    if stopped_at := _named(state.next, graph.interrupt_before_nodes):
        raise GiveUp(f"the graph waits for a person at its breakpoint before {', '.join(stopped_at)}")
    if state.tasks and graph.interrupt_after_nodes and state.parent_config is not None:
        before = await graph.aget_state(state.parent_config)
        if stopped_at := _named([task.name for task in before.tasks], graph.interrupt_after_nodes):
            raise GiveUp(f"the graph waits for a person at its breakpoint after {', '.join(stopped_at)}")


def _named(nodes: Sequence[str], breakpoints: Sequence[str]) -> list[str]:
    return [node for node in nodes if node != START and (breakpoints == "*" or node in breakpoints)]
