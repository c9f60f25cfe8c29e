"""What a program that is not Python is told of a run: the object that a command reads and that is posted to a URL."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pgrecall.agents import CurrentRecall, GiveUp


async def described(recall: CurrentRecall, session_id: str, user_message: str, *, with_context: bool) -> dict[str, Any]:
    """The run as JSON; docs/adapters.md says what each field means.

    Args:
        recall: The run.
        session_id: As the agent was given it.
        user_message: As the agent was given it.
        with_context: Add what the session's model is given, oldest first.

    Raises:
        GiveUp: The context is wanted, and the store has no such session.
    """
    told: dict[str, Any] = {
        "session_id": session_id,
        "user_id": recall.user_id,
        "recall_id": recall.recall_id,
        "run_id": recall.run_id,
        "message_id": recall.message_id,
        "call_type": recall.call_type,
        "user_message": user_message,
        "text": recall.text,
        "nominal_at": iso(recall.nominal_at),
        "started_at": iso(recall.started_at),
        "now": iso(recall.now),
        "deadline": iso(recall.deadline),
        "next_at": None if recall.next_at is None else iso(recall.next_at),
        "time_zone": recall.time_zone,
        "attempt": recall.attempt,
        "max_attempts": recall.max_attempts,
        "deferrals": recall.deferrals,
        "metadata": recall.metadata,
    }
    if with_context:
        session = await recall.store.get(session_id)
        if session is None:
            raise GiveUp(f"the store has no session {session_id!r}")
        told["context"] = [
            {"id": message.get("id"), "role": message["role"], "content": message["content"]}
            for message in session.context
        ]
    return told


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC, with a Z."""
    return moment.isoformat().replace("+00:00", "Z")
