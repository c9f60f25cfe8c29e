"""Runs of agents without a worker: a recall made by hand, for what is about the agent alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pgrecall import agents
from pgrecall.agents import CurrentRecall, RunState


def a_recall(session_id: str = "s1", message: str = "Water the plants.", **changes: Any) -> CurrentRecall:
    """A recall that is due now."""
    now = datetime.now(UTC)
    given: dict[str, Any] = {
        "recall_id": "r1",
        "run_id": 1,
        "session_id": session_id,
        "user_id": None,
        "worker_id": "w1",
        "call_type": "once",
        "nominal_at": now,
        "started_at": now,
        "deadline": now + timedelta(minutes=10),
        "next_at": None,
        "attempt": 1,
        "max_attempts": 3,
        "deferrals": 0,
        "additional_context_message": message,
        "internal_comment": None,
        "metadata": {},
        "text": f"[Scheduled recall] {message}\nNobody is connected.",
        "time_zone": "UTC",
        "chain_depth": 0,
        "message_id": "recall:r1:2026-11-22T10:00:00.000000Z",
        "store": None,
        "scheduler": None,
        "_clock": lambda: datetime.now(UTC),
        "_state": RunState(),
    }
    return CurrentRecall(**given | changes)


async def run(agent: Any, recall: CurrentRecall | None = None) -> Any:
    """What the agent answers to the recall."""
    recall = recall or a_recall()
    token = agents._current.set(lambda: recall)
    try:
        return await agent.run(session_id=recall.session_id, user_message=recall.additional_context_message)
    finally:
        agents._current.reset(token)
