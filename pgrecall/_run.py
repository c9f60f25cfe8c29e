"""A run: from its claim to what the database has made of its outcome."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import anyio

from pgrecall.agents import CurrentRecall, RunState
from pgrecall.model import ClaimRow, Finished
from pgrecall.telemetry import is_heard

StopReason = Literal["told to stop", "lease lost", "worker stopping", "claimed in doubt"]


@dataclass(slots=True, kw_only=True)
class Ending:
    """How a run ended: the arguments of `finish` but the ids."""

    outcome: str
    reply: str | None = None
    error: str | None = None
    reason: str | None = None
    retry: bool = False
    retry_after: timedelta | None = None
    counted: bool = True
    usage: Mapping[str, Any] | None = None
    messages: Sequence[Mapping[str, Any]] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is a success with a reply at most."""
        return self.outcome in ("success", "silent") and self.usage is None and self.messages is None


class Run:
    """A run under way.

    A worker may have hundreds in its hands whose outcomes are on their way, so it is one small object.

    Attributes:
        run_id: The run.
        recall_id: Its recall.
        claim: The recall as it was claimed.
        timeout: Wall-clock limit in seconds.
        scope: Cancelled to stop the run, and by its deadline; None: its agent has not begun, or has ended.
        state: What it shares with the agent.
        recall: What the agent knows of it; None: it has not asked.
        began_at: When it began, by the monotonic clock.
        reached_agent_at: When the agent's `run` was entered, by the database's clock; None: it was not.
        stop_reason: Why it was stopped, if it was.
        ending: How it ended; None: it has not.
        tries: How often its outcome was told together with others without being taken.
        finished: What the database made of the outcome; None: it has not heard it.
    """

    __slots__ = (
        "began_at",
        "claim",
        "ending",
        "finished",
        "reached_agent_at",
        "recall",
        "recall_id",
        "run_id",
        "scope",
        "state",
        "stop_reason",
        "timeout",
        "tries",
    )

    def __init__(self, claim: ClaimRow) -> None:
        assert claim.run_id is not None and claim.recall_id is not None  # noqa: PT018, S101 (the caller looked)
        self.run_id = claim.run_id
        self.recall_id = claim.recall_id
        self.claim = claim
        self.timeout = math.inf
        self.scope: anyio.CancelScope | None = None
        self.state = RunState()
        self.recall: CurrentRecall | None = None
        self.began_at = math.nan
        self.reached_agent_at: datetime | None = None
        self.stop_reason: StopReason | None = None
        self.ending: Ending | None = None
        self.tries = 0
        self.finished: Finished | None = None

    @property
    def message_id(self) -> str:
        """The id of the session's message that its occurrence puts in, as `occurrence_message_id()` makes it."""
        nominal_at = self.claim.nominal_at.isoformat(timespec="microseconds").removesuffix("+00:00")
        return f"recall:{self.recall_id}:{nominal_at}Z"

    @property
    def text(self) -> str:
        """What the model is told."""
        return self.claim.model_text or self.claim.additional_context_message

    def stop(self, reason: StopReason) -> None:
        """Tells the run to stop; the first reason counts."""
        if self.stop_reason is None:
            self.stop_reason = reason
            self.state.is_stopped = True
            if self.scope is not None:
                self.scope.cancel()

    def reported(self) -> None:
        """Somebody may have reported about it."""
        if self.state.reported is not None:
            self.state.reported.set()

    def log_claim(self, log: Any) -> None:
        """Logs there that it was claimed."""
        if not is_heard(log, logging.INFO):
            return
        log.info(
            "recall_claimed",
            **self._names,
            nominal_at=self.claim.nominal_at.isoformat(),
            lateness_ms=round((self.claim.now_at - self.claim.nominal_at).total_seconds() * 1000, 3),
            attempt=self.claim.attempt,
        )

    def log_ending(self, log: Any) -> None:
        """Logs there how it ended, and what became of the recall."""
        ending, finished = self.ending, self.finished
        if ending is None or finished is None or not finished.accepted:
            log.warning("outcome_refused", **self._names, outcome=ending and ending.outcome)
            return
        if ending.outcome in ("success", "silent") and not is_heard(log, logging.INFO):
            return
        names = self._names
        seconds = round(time.monotonic() - self.began_at, 3)
        next_due_at = finished.due_at.isoformat() if finished.due_at else None
        match ending.outcome:
            case "success" | "silent":
                log.info(
                    "recall_fired",
                    **names,
                    seconds=seconds,
                    outcome=ending.outcome,
                    status=finished.status,
                    next_trigger_at=next_due_at,
                )
            case "skipped":
                log.warning("session_missing", **names)
            case "interrupted":
                log.info("run_stopped", **names, reason=ending.reason)
                if next_due_at is not None:
                    log.info(
                        "recall_rescheduled",
                        **names,
                        outcome=ending.outcome,
                        status=finished.status,
                        next_due_at=next_due_at,
                    )
            case _:
                log.error(
                    "recall_failed",
                    **names,
                    seconds=seconds,
                    outcome=ending.outcome,
                    error=ending.error,
                    status=finished.status,
                    next_due_at=next_due_at,
                )

    @property
    def _names(self) -> dict[str, Any]:
        return {"recall_id": self.recall_id, "run_id": self.run_id, "session_id": self.claim.session_id}
