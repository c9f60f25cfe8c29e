"""What the tests of the adapters share: a recall run by a real worker, and what people see of the session after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workertools import sql, working


@dataclass(frozen=True)
class Ran:
    """A row of recall_runs."""

    outcome: str
    reply: str
    error: str
    reason: str
    usage: dict[str, Any]


async def recalled(
    dsn: str,
    agent: Any,
    message: str = "Water the plants.",
    *,
    status: str = "fired",
    worker: dict[str, Any] | None = None,
    **more: Any,
) -> list[Ran]:
    """Has a worker run the agent for one recall in s1 until it has this status; its runs, oldest first."""
    async with sql(dsn) as db, working(dsn, agent, **(worker or {})):
        recall_id = await db.recall("s1", message=message, **more)
        await db.ended(recall_id, status)
        rows = await db(
            "select outcome, reply, error, reason, usage from pgrecall.recall_runs where recall_id = %s order by id",
            recall_id,
        )
        return [Ran(*row) for row in rows]


async def shown(dsn: str, session_id: str = "s1") -> list[tuple[str, str]]:
    """What people see of the session: role and content."""
    async with sql(dsn) as db:
        return await db(
            "select role, content from pgrecall.session_messages "
            "where session_id = %s and in_history order by position",
            session_id,
        )
