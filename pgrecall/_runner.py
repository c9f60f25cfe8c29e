"""Doing: one claim, agent in, outcome out. Exactly one `finish` for each run.

Decides nothing about when or how many; the database decides what becomes of the recall.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import anyio

from pgrecall import calls
from pgrecall._outcomes import Outcomes
from pgrecall._run import Ending, Run
from pgrecall.agents import CurrentRecall, GiveUp, Retry, RunResult, begin, describe
from pgrecall.client import RecallScheduler
from pgrecall.errors import RecallError
from pgrecall.sessions import Message, PostgresSessionStore, SessionStore, put_message

#: Seconds. A deadline must be a date: nobody notices the difference.
_LONGEST = 36500 * 86400


class Runner:
    """Runs claims and tells the database how they ended.

    Args:
        worker_id: Whose runs.
        open_agent: Gives, for each run, an async context manager that yields the agent.
        scheduler: What a run schedules with.
        outcomes: Tells how the runs ended.
        store: Where the sessions' messages are. A host's own store gets the recall's message, and what the agent said,
            from here; the default one has the former by the claim, and gets the latter with the outcome.
        clock: The database's time now.
        timeout: Wall-clock limit of a run in seconds, unless its recall has its own. None: that of the settings.
    """

    def __init__(
        self,
        worker_id: str,
        open_agent: Callable[[], Any],
        scheduler: RecallScheduler,
        store: SessionStore,
        outcomes: Outcomes,
        *,
        clock: Callable[[], datetime],
        timeout: float | None,
    ) -> None:
        self._worker_id = worker_id
        self._open_agent = open_agent
        self._scheduler = scheduler
        self._store = store
        self._host_store = None if isinstance(store, PostgresSessionStore) else store
        self._clock = clock
        self._timeout = timeout
        self._outcomes = outcomes

    def _recall(self, run: Run) -> CurrentRecall:
        """What the agent can know; made when it first asks, as many never do."""
        if run.recall is not None:
            return run.recall
        row = run.claim
        run.recall = CurrentRecall(
            recall_id=run.recall_id,
            run_id=run.run_id,
            session_id=row.session_id,
            user_id=row.user_id,
            worker_id=self._worker_id,
            call_type=row.call_type,
            nominal_at=row.nominal_at,
            started_at=row.now_at,
            deadline=row.now_at + timedelta(seconds=min(run.timeout, _LONGEST)),
            next_at=row.next_at,
            attempt=row.attempt,
            max_attempts=row.max_attempts,
            deferrals=row.deferrals,
            additional_context_message=row.additional_context_message,
            internal_comment=row.internal_comment,
            metadata=row.metadata,
            text=run.text,
            time_zone=row.time_zone,
            chain_depth=row.chain_depth,
            message_id=run.message_id,
            store=self._store,
            scheduler=self._scheduler,
            _clock=self._clock,
            _state=run.state,
        )
        return run.recall

    async def run(self, run: Run) -> None:
        """Runs the agent and has the outcome told, also when the task is cancelled.

        Args:
            run: It has not begun yet. Runs in a task of its own.
        """
        ending: Ending | None = None
        try:
            claim = run.claim
            run.timeout = float(claim.timeout_seconds or self._timeout or claim.default_timeout_seconds)
            run.began_at = time.monotonic()
            begin(partial(self._recall, run))
            ending = await run_agent(run, self._open_agent, self._host_store, self._clock)
        finally:
            run.scope = None
            if ending is None:
                # The worker's own task is cancelled: what it holds goes back, without counting the attempt.
                run.stop("worker stopping")
                ending = stopped(run)
            if ending.usage is None and run.state.usage:
                ending = replace(ending, usage=run.state.usage)
            run.ending = ending
            self._outcomes.tell(run)


async def run_agent(
    run: Run,
    open_agent: Callable[[], Any],
    store: SessionStore | None,
    clock: Callable[[], datetime],
) -> Ending:
    """Opens the agent, runs it in its session and says how that ended. Never raises an agent's error.

    Args:
        run: The run.
        open_agent: Gives an async context manager that yields the agent.
        clock: The database's time now.
        store: The host's own store, which gets the recall's message first. None: the claim has put it into ours.
    """
    ending: Ending | None = None
    if run.stop_reason is not None:
        return stopped(run)  # a cancelled task would still run to its first await
    run.scope = scope = anyio.CancelScope(deadline=asyncio.get_running_loop().time() + run.timeout)
    with scope:
        try:
            if store is not None and not await _put_into(store, run):
                return Ending(outcome="skipped", reason="session missing")
            async with open_agent() as agent:
                run.reached_agent_at = clock()
                claim = run.claim
                reply = await agent.run(session_id=claim.session_id, user_message=claim.additional_context_message)
                answered = _ending_of(reply, run.claim.silent_token)
                if store is not None and answered.messages is not None:
                    await _save(store, run, answered.messages, in_history=answered.outcome != "silent")
                # Not before what it said is saved: else the run is no success.
                ending = answered
        except Retry as request:
            ending = _retry(request)
        except GiveUp as request:
            ending = _gave_up(request)
        except BaseException as error:
            # Whatever an agent raises is its outcome, also SystemExit, and the CancelledError of a task of its own. Not
            # so when this very task is being cancelled, or somebody at the keyboard wants the process to end.
            if isinstance(error, KeyboardInterrupt) or (
                isinstance(error, asyncio.CancelledError) and _is_being_cancelled()
            ):
                raise
            # Failing to close after a reply does not undo the reply.
            ending = ending or Ending(outcome="error", error=describe(error), retry=run.reached_agent_at is None)
    if scope.cancelled_caught and run.stop_reason is None:
        return Ending(outcome="timeout", error=f"still running after {run.timeout:g} s")
    return ending or stopped(run)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def stopped(run: Run) -> Ending:
    """The ending of a run that was stopped before it ended by itself."""
    match run.stop_reason:
        case "worker stopping":
            return Ending(outcome="interrupted", reason="worker stopping", retry=True, counted=False)
        case "claimed in doubt":
            return Ending(outcome="interrupted", reason="connections lost while claiming", retry=True, counted=False)
        case "lease lost":
            return Ending(outcome="interrupted", reason="lease lost", retry=True)
        case reason:
            return Ending(outcome="interrupted", reason=reason or "cancelled from outside")


def _retry(request: Retry) -> Ending:
    return Ending(outcome="error", error=describe(request), retry=True, retry_after=request.after)


def _gave_up(request: GiveUp) -> Ending:
    return Ending(outcome="error", error=describe(request), reason=request.reason)


def _ending_of(answer: Any, silent_token: str | None) -> Ending:
    """How a run ended whose agent has returned this."""
    match answer:
        case Retry():
            return _retry(answer)
        case GiveUp():
            return _gave_up(answer)
        case RunResult():
            result = answer
        case None | str():
            result = RunResult(reply=answer)
        case _:
            return _unusable(f"the agent returned {type(answer).__name__}, but a reply is a str, None or a RunResult")
    if result.reply is not None and not isinstance(result.reply, str):
        return _unusable(f"the agent's RunResult has a {type(result.reply).__name__} as its reply, not a str")
    for name, value in (("usage", result.usage), ("messages", result.messages)):
        if value is None:
            continue
        try:
            calls.as_json(value if name == "usage" else list(value))
        except (RecallError, TypeError) as error:
            return _unusable(f"the {name} of the agent's RunResult cannot be stored: {error}")
    reply = _last_said(result.messages or ()) if result.reply is None else result.reply
    has_nothing_to_say = result.silent or (silent_token is not None and (reply or "").strip(" \t\r\n") == silent_token)
    return Ending(
        outcome="silent" if has_nothing_to_say else "success",
        reply=reply,
        usage=result.usage,
        messages=result.messages,
    )


def _last_said(messages: Sequence[Mapping[str, Any]]) -> str | None:
    for message in reversed(messages):
        if message.get("role") == "assistant" and isinstance(message.get("content"), str):
            return str(message["content"])
    return None


def _unusable(error: str) -> Ending:
    return Ending(outcome="error", error=error)


async def _save(store: SessionStore, run: Run, messages: Sequence[Mapping[str, Any]], *, in_history: bool) -> None:
    """Adds what the agent said to the host's session, with the ids that the default store gives.

    Not in_history: to the model's context only.
    """
    session = await store.get(run.claim.session_id)
    if session is None:
        return
    replies = [place for place, message in enumerate(messages, 1) if message.get("role") == "assistant"]
    for place, message in enumerate(messages, 1):
        name = "reply" if replies and place == replies[-1] else str(place)
        shown = in_history and message.get("in_history", True)
        put_message(session, {**message, "id": f"{run.message_id}:{name}", "in_history": shown})
    await store.save(session)


async def _put_into(store: SessionStore, run: Run) -> bool:
    """Puts the recall's message into the host's session, once for the occurrence; False if there is no session."""
    session = await store.get(run.claim.session_id)
    if session is None:
        return False
    message: Message = {
        "id": run.message_id,
        "role": "system",
        "content": f"[Scheduled recall] {run.claim.additional_context_message}",
        "metadata": {"recall_id": run.recall_id, "run_id": run.run_id},
    }
    if put_message(session, message, model_text=run.text):
        await store.save(session)
    return True
