"""Doing: one claim, agent in, outcome out. Exactly one `finish` for each run.

Decides nothing about when or how many; the database decides what becomes of the recall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

import anyio

from pgrecall.agents import CurrentRecall, Retry, describe, running
from pgrecall.sessions import SessionStore, put_message

StopReason = Literal["told to stop", "lease lost", "worker stopping"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended: the arguments of `finish` but the ids."""

    outcome: str
    reply: str | None = None
    error: str | None = None
    reason: str | None = None
    retry: bool = False
    retry_after: timedelta | None = None
    counted: bool = True


@dataclass(slots=True)
class Run:
    """A run under way.

    Attributes:
        recall: What the agent can know.
        message_id: The id of the message that the occurrence puts into its session.
        timeout: Wall-clock limit in seconds.
        scope: Cancelled to stop the run.
        reached_agent_at: When the agent's `run` was entered, by the database's clock; None: it was not.
        stop_reason: Why it was stopped, if it was.
    """

    recall: CurrentRecall
    message_id: str
    timeout: float
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    reached_agent_at: datetime | None = None
    stop_reason: StopReason | None = None

    def stop(self, reason: StopReason) -> None:
        """Tells the run to stop; the first reason counts."""
        if self.stop_reason is None:
            self.stop_reason = reason
            self.recall._stop.set()  # noqa: SLF001 (ours)
            self.scope.cancel()


async def run_agent(
    run: Run, open_agent: Callable[[], Any], store: SessionStore | None, clock: Callable[[], datetime]
) -> Ending:
    """Opens the agent, runs it in its session and says how that ended. Never raises an agent's error.

    Args:
        run: The run.
        open_agent: Gives an async context manager that yields the agent.
        clock: The database's time now.
        store: The host's own store, which gets the recall's message first. None: the claim has put it into ours.
    """
    recall = run.recall
    reply: str | None = None
    ending: Ending | None = None
    with run.scope:
        try:
            with anyio.fail_after(run.timeout) as limit:
                async with running(recall):
                    if store is not None and not await _put_into(store, run):
                        return Ending(outcome="skipped", reason="session missing")
                    async with open_agent() as agent:
                        run.reached_agent_at = clock()
                        reply = await agent.run(
                            session_id=recall.session_id, user_message=recall.additional_context_message
                        )
                        ending = _success(reply)
        except Retry as request:
            ending = Ending(outcome="error", error=describe(request), retry=True, retry_after=request.after)
        except TimeoutError as error:
            if limit.cancelled_caught:
                ending = Ending(outcome="timeout", error=f"still running after {run.timeout:g} s")
            else:
                ending = ending or Ending(outcome="error", error=describe(error), retry=run.reached_agent_at is None)
        except Exception as error:  # noqa: BLE001 (whatever an agent raises is its outcome)
            # Failing to close after a reply does not undo the reply.
            ending = ending or Ending(outcome="error", error=describe(error), retry=run.reached_agent_at is None)
    return ending or stopped(run)


def stopped(run: Run) -> Ending:
    """The ending of a run that was stopped before it ended by itself."""
    match run.stop_reason:
        case "worker stopping":
            return Ending(outcome="interrupted", reason="worker stopping", retry=True, counted=False)
        case "lease lost":
            return Ending(outcome="interrupted", reason="lease lost", retry=True)
        case reason:
            return Ending(outcome="interrupted", reason=reason or "cancelled from outside")


def _success(reply: Any) -> Ending:
    if reply is not None and not isinstance(reply, str):
        return Ending(outcome="error", error=f"the agent returned {type(reply).__name__}, but a reply is a str or None")
    return Ending(outcome="success", reply=reply)


async def _put_into(store: SessionStore, run: Run) -> bool:
    """Puts the recall's message into the host's session, once for the occurrence; False if there is no session."""
    session = await store.get(run.recall.session_id)
    if session is None:
        return False
    message = {
        "id": run.message_id,
        "role": "system",
        "content": f"[Scheduled recall] {run.recall.additional_context_message}",
        "metadata": {"recall_id": run.recall.recall_id, "run_id": run.recall.run_id},
    }
    if put_message(session, message):
        await store.save(session)
    return True
