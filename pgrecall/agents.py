"""What an agent is: the user's code, an object or a factory of one for each run, and what it can know of its run.

Knows nothing of Postgres.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, runtime_checkable

import anyio
import anyio.to_thread

from pgrecall.calls import as_json
from pgrecall.errors import AgentError
from pgrecall.telemetry import logger

_YEAR = timedelta(days=365)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What an agent may return in place of a text, to say more about its run.

    Attributes:
        reply: What it answers; None or an empty text: nothing.
        silent: It has nothing to say, and that is a success: the outcome is `silent`, the reply is recorded and goes
            nowhere else.
        usage: What the run has used, JSON. The adapters use the names `input_tokens`, `output_tokens`, `requests`,
            `tool_calls` and `cost_usd`.
        messages: What the session gets in place of the reply, in order: objects with `role` and `content`, and
            optionally `metadata`, `in_history` and `in_context`. In the default store they are written in the
            transaction that records the outcome, so they are there once and only if the run counts. The last one with
            role `assistant` is taken for the reply.
    """

    reply: str | None = None
    silent: bool = False
    usage: Mapping[str, Any] | None = None
    messages: Sequence[Mapping[str, Any]] | None = None


@runtime_checkable
class Agent(Protocol):
    """Anything with this coroutine method."""

    async def run(self, *, session_id: str, user_message: str) -> str | RunResult | Retry | GiveUp | None:
        """Answers the message in the session, with nobody connected.

        Args:
            session_id: The session that the recall belongs to.
            user_message: The recall's additional_context_message. What the model should be told about the occasion as
                well is `current_recall().text`.

        Returns:
            The reply; None or an empty text if there is nothing to say; or a RunResult. A Retry or GiveUp may be
            returned as well as raised.

        Raises:
            Retry: Run this occurrence again, later.
            GiveUp: This occurrence has failed.
            Exception: Anything else is a failure and is not retried: the agent may have acted already.
        """
        ...


class Retry(Exception):  # noqa: N818 (an answer, not an error)
    """Raised by an agent to have its occurrence run again, while attempts are left.

    Args:
        reason: Why, for people; stored as the run's error.
        after: When to try again, seconds or a timedelta from now, at most a year. None: 5 s, 10 s, 20 s … by attempt.

    Raises:
        ValueError: `after` is negative or not a number.
    """

    def __init__(self, reason: str = "the agent asked for a retry", *, after: float | timedelta | None = None) -> None:
        super().__init__(reason)
        if after is not None and not isinstance(after, timedelta):
            after = timedelta(seconds=min(after, _YEAR.total_seconds()))
        if after is not None and after < timedelta(0):
            raise ValueError(f"after is {after}, but must not be negative")
        self.after = after if after is None else min(after, _YEAR)


class GiveUp(Exception):  # noqa: N818 (an answer, not an error)
    """Raised by an agent that cannot do what it was woken for: the occurrence fails and is not tried again.

    A recurring recall goes on to its next time.

    Args:
        reason: Why, for people; stored as the run's error and reason.
    """

    def __init__(self, reason: str = "the agent gave up") -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class RunState:
    """What changes while a run is under way: between its worker and its agent.

    Attributes:
        is_stopped: It has been told to stop.
        reported: Set when somebody may have reported about it; None: nobody waits for that.
        usage: What it has used up to now; None: it has not said.
    """

    is_stopped: bool = False
    reported: asyncio.Event | None = None
    usage: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentRecall:
    """What a run knows of itself. All times are aware and in UTC.

    Attributes:
        recall_id: The recall.
        run_id: This run; a later run has a higher number.
        session_id: The session it works in.
        user_id: The session's owner, or None.
        worker_id: The worker it runs on.
        call_type: `once`, `recurring` or `immediate`.
        nominal_at: The time that this occurrence was wanted for.
        started_at: When the database gave it to the worker, by the database's clock.
        deadline: When the run will be stopped.
        next_at: The next occurrence of a recurring recall, or None.
        attempt: 1 for the first run of this occurrence.
        max_attempts: How many runs the occurrence may take.
        deferrals: How often it was put off: its session was taken, not quiet, or had had its runs of a day.
        additional_context_message: What the agent is told.
        internal_comment: The comment for people, or None.
        metadata: What the caller of schedule_recall gave.
        text: What the model is told: additional_context_message with when, how late and that nobody is connected, by
            settings.message_template. The session's message has it already.
        time_zone: IANA name of the zone in which `text` gives times: the recall's, else its session's, else UTC.
        chain_depth: How many recalls before this one were each made by the run of the one before.
        message_id: The id of the session's message that this occurrence has put in, the same at every attempt.
        store: Where the session's messages are: the worker's store.
        scheduler: For what the agent does with recalls; on the worker's database.
    """

    recall_id: str
    run_id: int
    session_id: str
    user_id: str | None
    worker_id: str
    call_type: str
    nominal_at: datetime
    started_at: datetime
    deadline: datetime
    next_at: datetime | None
    attempt: int
    max_attempts: int
    deferrals: int
    additional_context_message: str
    internal_comment: str | None
    metadata: dict[str, Any]
    text: str
    time_zone: str
    chain_depth: int
    message_id: str
    store: Any = field(repr=False, compare=False)
    scheduler: Any = field(repr=False, compare=False)
    _clock: Callable[[], datetime] = field(repr=False, compare=False)
    _state: RunState = field(repr=False, compare=False)

    @property
    def now(self) -> datetime:
        """The time by the database's clock, which is the one that the other times are by."""
        return self._clock()

    def report_usage(self, usage: Mapping[str, Any]) -> None:
        """Says what the run has used up to now; it is recorded however the run ends, unless its worker dies.

        A later report replaces an earlier one, and a RunResult's own usage replaces both.

        Args:
            usage: As in RunResult.

        Raises:
            InvalidRecallError: It is not JSON.
        """
        used = dict(usage)
        as_json(used)
        self._state.usage = used

    @property
    def lateness(self) -> timedelta:
        """How long after its nominal time the run started."""
        return self.started_at - self.nominal_at

    @property
    def cancelled(self) -> bool:
        """Whether the run has been told to stop. Its task is cancelled too; a thread can look here."""
        return self._state.is_stopped


_current: ContextVar[Callable[[], CurrentRecall] | None] = ContextVar("pgrecall_current_recall", default=None)


def current_recall() -> CurrentRecall | None:
    """The recall that the calling code runs for; None outside a run. Works in the agent's tasks and threads."""
    recall = _current.get()
    return None if recall is None else recall()


def begin(recall: Callable[[], CurrentRecall]) -> None:
    """Makes `current_recall()` answer with this recall for the rest of the task, and in the tasks that it starts."""
    _current.set(recall)


class AgentFactory:
    """Builds one agent for each run from the host's own parts, and closes them after it.

    A part is a value, or something that is opened for each run: an async context manager, or a function without
    parameters that returns one (or a value, or an awaitable). A function with parameters is a value like any other.
    `build` is called with the opened parts by name and returns the agent, an awaitable of it, or an async context
    manager that yields it.

        AgentFactory(build_agent, store=store, tools=tools, mcp=lambda: McpManager(config), optional=("mcp",))

    Args:
        build: Called with the parts as keyword arguments.
        optional: Names of parts that may fail: the failure is logged as `part_failed` and the part is None in that
            run. A failure of any other part fails the run before anything reached the agent, so it is retried.
        parts: The parts, by the names that `build` takes.

    Raises:
        AgentError: `optional` names a part that is not there.
    """

    def __init__(self, build: Callable[..., Any], *, optional: Collection[str] = (), **parts: Any) -> None:
        unknown = set(optional) - set(parts)
        if unknown:
            raise AgentError(f"optional names no part of this agent: {', '.join(sorted(unknown))}")
        self._build = build
        self._optional = frozenset(optional)
        self._parts = parts

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Agent]:
        """Opens the parts, builds the agent, and closes everything at the end of the block."""
        async with AsyncExitStack() as stack:
            opened: dict[str, Any] = {}
            for name, part in self._parts.items():
                try:
                    opens = inspect.isroutine(part) and not inspect.signature(part).parameters
                    opened[name] = await _opened(part() if opens else part, stack)
                except Exception as error:
                    if name not in self._optional:
                        raise
                    recall = current_recall()
                    logger().warning(
                        "part_failed", recall_id=recall and recall.recall_id, part=name, error=describe(error)
                    )
                    opened[name] = None
            yield as_agent(await _opened(self._build(**opened), stack))


async def _opened(part: Any, stack: AsyncExitStack) -> Any:
    """The part itself, after awaiting or entering it where it is something to await or enter."""
    if isinstance(part, Awaitable):
        part = await part
    if hasattr(part, "__aenter__"):
        return await stack.enter_async_context(part)
    return part


class _CallableAgent:
    """A plain function used as an agent; a sync one runs in a thread."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function)

    async def run(self, *, session_id: str, user_message: str) -> Any:
        if self._is_async:
            reply = await self._function(session_id=session_id, user_message=user_message)
        else:
            # A thread of its own: the worker's slots are the limit. A thread cannot be stopped, so the run lasts, and
            # the session stays taken, until it ends; it can look at current_recall().cancelled.
            reply = await anyio.to_thread.run_sync(
                lambda: self._function(session_id=session_id, user_message=user_message),
                limiter=anyio.CapacityLimiter(1),
            )
        return reply


def _takes_a_message(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return {"session_id", "user_message"} <= set(parameters)


def as_agent(candidate: Any) -> Agent:
    """An agent as such: an object with `run`, or a function of session_id and user_message.

    Raises:
        AgentError: It is neither.
    """
    if not isinstance(candidate, type) and callable(getattr(candidate, "run", None)):
        if not _takes_a_message(candidate.run):
            raise AgentError(f"the run method of {candidate!r} must take session_id and user_message as keywords")
        return candidate  # type: ignore[no-any-return]
    if callable(candidate) and not isinstance(candidate, type) and _takes_a_message(candidate):
        return _CallableAgent(candidate)
    raise AgentError(
        f"{candidate!r} is not an agent",
        hint="An agent has `async def run(*, session_id, user_message)`, or is a function with these parameters.",
    )


def agent_opener(agent: Any) -> Callable[[], Any]:
    """What to enter for each run: an async context manager that yields the agent.

    Args:
        agent: An agent, or a factory without parameters: a function or class that returns an agent, an awaitable of
            one, or an async context manager that yields one.

    Raises:
        AgentError: It is neither; a factory's product is checked at each run.
    """
    try:
        ready = as_agent(agent)
    except AgentError:
        if not callable(agent) or (callable(getattr(agent, "run", None)) and not isinstance(agent, type)):
            raise
        if any(
            parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            for parameter in inspect.signature(agent).parameters.values()
        ):
            raise

    else:
        return lambda: nullcontext(ready)

    @asynccontextmanager
    async def built() -> AsyncIterator[Agent]:
        async with AsyncExitStack() as stack:
            product = agent()
            if isinstance(product, Awaitable):
                product = await product
            if hasattr(product, "__aenter__"):
                product = await stack.enter_async_context(product)
            yield as_agent(product)

    return built


def describe(error: BaseException) -> str:
    """An error in one line for a log or a row: its class and message."""
    try:
        text = str(error).strip()
    except Exception as broken:  # noqa: BLE001 (an error that cannot say what it is must not cost its run)
        text = f"(its text failed with {type(broken).__name__})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
