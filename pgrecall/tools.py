"""Tools with which an agent schedules, sees, cancels and skips its own recalls, for any framework that takes functions.

Whose recalls is never an argument of a tool: it is the run under way, or the session that the host has named. What is
allowed is decided by the database (sql/routines/77_agents.sql); here a model's arguments go in and a text or dict comes
out, never a traceback.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from pgrecall import calls
from pgrecall.agents import current_recall, describe
from pgrecall.calls import Call
from pgrecall.client import RecallScheduler
from pgrecall.errors import AgentError, InvalidRecallError, RecallError, SessionNotFoundError
from pgrecall.telemetry import logger

#: What a tool answers: JSON for the model. `error` is there, and alone, if nothing was done.
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the tools act for.

    Attributes:
        scheduler: On which database.
        session_id: In which session.
        run_id: For which run; None: whichever has the session, else nobody's (a live chat).
    """

    scheduler: RecallScheduler
    session_id: str
    run_id: int | None = None


_live: ContextVar[Identity | None] = ContextVar("pgrecall_live_session", default=None)


@contextmanager
def live_session(scheduler: RecallScheduler, session_id: str) -> Iterator[None]:
    """Says whom `recall_tools()` act for inside the block, so that one agent serves live chats and runs alike.

    Inside a run it is the run that counts.

    Args:
        scheduler: On which database.
        session_id: The session of the chat, from the host's own login: never from the model.
    """
    token = _live.set(Identity(scheduler, session_id))
    try:
        yield
    finally:
        _live.reset(token)


def acting() -> Identity:
    """Whom tools act for here: the run under way, or the session of `live_session`.

    Raises:
        AgentError: Neither is there.
    """
    recall = current_recall()
    if recall is not None:
        return Identity(recall.scheduler, recall.session_id, recall.run_id)
    live = _live.get()
    if live is None:
        raise AgentError(
            "a recall tool was called outside a run",
            hint="In a chat server wrap the agent in live_session(scheduler, session_id), or use RecallTools.",
        )
    return live


class BoundTools:
    """The four tools, each a coroutine method that can be handed to a framework as it is.

    Args:
        identity: Asked at each call: whom to act for.
    """

    def __init__(self, identity: Callable[[], Identity]) -> None:
        self._identity = identity

    @property
    def functions(self) -> list[Callable[..., Awaitable[Answer]]]:
        """All four, to hand to a framework."""
        return [self.schedule_recall, self.list_recalls, self.cancel_recall, self.skip_next_recall]

    async def schedule_recall(
        self,
        message: str,
        in_seconds: float | None = None,
        trigger_at: str | None = None,
        interval_seconds: int | None = None,
        cron: str | None = None,
        time_zone: str | None = None,
        end_at: str | None = None,
        if_exists: Literal["replace", "raise", "keep"] = "replace",
    ) -> Answer:
        """Wake yourself later in this conversation, once or again and again, even if nobody is connected then.

        Give exactly one of in_seconds and trigger_at for once, or interval_seconds or cron for again and again. Do not
        compute times yourself: for "in two hours" use in_seconds=7200, the server adds it to its own clock. The answer
        says what the time is now and when you will be woken. A conversation has one recall at a time: a new one
        replaces the present one, which the answer then shows.

        Args:
            message: What you will be told then: what to do, and all that you need to know for it.
            in_seconds: So many seconds from now.
            trigger_at: A time such as 2030-01-31T09:00, in time_zone unless it has an offset.
            interval_seconds: Again and again, so many seconds apart. The first time is one interval from now, or what
                in_seconds or trigger_at says.
            cron: Again and again, by a five-field cron expression in time_zone, such as 0 9 * * mon-fri.
            time_zone: IANA name such as Europe/Paris. Leave it out for the zone of this conversation.
            end_at: No times after this one, for interval_seconds and cron; written like trigger_at.
            if_exists: What to do if a recall is there already: replace it, raise an error, or keep it and add nothing.
        """
        return await self._do(
            lambda who: calls.agent_schedule_recall(
                who.session_id,
                message,
                run_id=who.run_id,
                # Models say "" for what they leave out, where a framework makes them say something.
                trigger_at=trigger_at or None,
                in_seconds=in_seconds,
                interval_seconds=interval_seconds,
                cron=cron or None,
                time_zone=time_zone or None,
                end_at=end_at or None,
                if_exists=if_exists,
                idempotency_key=None,
            )
        )

    async def list_recalls(self) -> Answer:
        """Show when you will be woken in this conversation, for what, and what the time is now."""
        return await self._do(lambda who: calls.agent_list_recalls(who.session_id))

    async def cancel_recall(self, recall_id: str | None = None) -> Answer:
        """Cancel what was scheduled in this conversation, so that you are not woken for it any more.

        Args:
            recall_id: Which one, from list_recalls or schedule_recall. Leave it out for the one that is there.
        """
        return await self._do(lambda who: calls.agent_cancel_recall(who.session_id, recall_id or None, who.run_id))

    async def skip_next_recall(self, recall_id: str | None = None) -> Answer:
        """Leave out the next time of what is scheduled again and again in this conversation; later times stay.

        Args:
            recall_id: Which one, from list_recalls or schedule_recall. Leave it out for the one that is there.
        """
        return await self._do(lambda who: calls.agent_skip_next_recall(who.session_id, recall_id or None, who.run_id))

    async def _do(self, call: Callable[[Identity], Call[Answer]]) -> Answer:
        """Makes the call for whom the tools act, and turns every expected error into a text for the model."""
        who = self._identity()
        try:
            return await who.scheduler.database.one(call(who))
        except SessionNotFoundError:
            return {"error": "this conversation has no session (any more), so nothing can be scheduled in it."}
        except RecallError as error:
            # A constraint's name reads as a sentence; a hint may be missing there.
            hint = error.hint or ("Change it and try again." if isinstance(error, InvalidRecallError) else "")
            return {"error": f"{error}. {hint}".rstrip()}
        except psycopg.Error as error:
            logger().warning("tool_failed", session_id=who.session_id, run_id=who.run_id, error=describe(error))
            return {
                "error": "the schedule could not be reached, so it is not known whether anything was changed. "
                "Try list_recalls in a while, or say that it did not work."
            }


class RecallTools(BoundTools):
    """The four tools for one session, for a chat server: `RecallTools(scheduler, session_id=…).functions`.

    Args:
        scheduler: On which database.
        session_id: Whose recalls: from the host's own login, never from the model.
    """

    def __init__(self, scheduler: RecallScheduler, *, session_id: str) -> None:
        super().__init__(lambda: Identity(scheduler, session_id))


_acting = BoundTools(acting)
schedule_recall = _acting.schedule_recall
list_recalls = _acting.list_recalls
cancel_recall = _acting.cancel_recall
skip_next_recall = _acting.skip_next_recall


def recall_tools() -> list[Callable[..., Awaitable[Answer]]]:
    """The four tools for the run under way, or the session of `live_session`, whichever there is when one is called."""
    return _acting.functions
