"""What the worker tests share: a worker in the background, an agent that records, waiting for a condition."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import psycopg

from pgrecall import CurrentRecall, Worker, current_recall

DEADLINE = 10.0
#: For workers that must not be saved by their safety re-read.
NEVER = 3600.0


async def until(condition: Callable[[], Awaitable[Any]], deadline: float = DEADLINE) -> Any:
    """The first true answer of the condition; fails when there is none in time."""
    ends = time.monotonic() + deadline
    while True:
        answer = await condition()
        if answer:
            return answer
        assert time.monotonic() < ends, "the condition did not become true in time"
        await anyio.sleep(0.01)


@dataclass
class Recorder:
    """An agent that notes its runs and does what `then` says."""

    then: Callable[[CurrentRecall], Awaitable[str | None]] | None = None
    runs: list[CurrentRecall] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def run(self, *, session_id: str, user_message: str) -> str | None:
        """Note the run."""
        recall = current_recall()
        assert recall is not None
        assert (session_id, user_message) == (recall.session_id, recall.additional_context_message)
        self.runs.append(recall)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return f"did {user_message}" if self.then is None else await self.then(recall)
        finally:
            self.at_once -= 1

    async def count(self, runs: int) -> None:
        """Wait for so many runs."""

        async def enough() -> bool:
            return len(self.runs) >= runs

        await until(enough)


@asynccontextmanager
async def working(dsn: str, agent: Any, **options: Any) -> AsyncIterator[Worker]:
    """A worker in the background that is cancelled in the end. It is never saved by its safety re-read."""
    worker = Worker(dsn, agent=agent, **{"safety_interval": NEVER, **options})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        yield worker
        tasks.cancel_scope.cancel()


class Sql:
    """A few statements over one connection, as a producer or operator would type them."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self.connection = connection

    async def __call__(self, statement: str, *values: Any) -> list[Any]:
        """Run it; the rows, each a single value or a tuple."""
        cursor = await self.connection.execute(statement.encode(), values)
        if cursor.description is None:
            return []
        rows = await cursor.fetchall()
        return [row[0] if len(row) == 1 else row for row in rows]

    async def session(self, *session_ids: str) -> None:
        """Make sessions."""
        for session_id in session_ids:
            await self(
                "insert into pgrecall.sessions (id, user_id) values (%s, %s)", session_id, f"user of {session_id}"
            )

    async def recall(self, session_id: str, due: str = "now()", message: str = "hello", **more: Any) -> str:
        """Insert a recall with plain SQL; `due` is an SQL expression. Returns its id."""
        columns = "".join(f", {name}" for name in more)
        values = ", %s" * len(more)
        rows = await self(
            f"insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message{columns}) "
            f"values (%s, {due}, %s{values}) returning id",
            session_id,
            message,
            *more.values(),
        )
        return str(rows[0])

    async def ended(self, recall_id: str, status: str = "fired") -> None:
        """Wait until the recall has this status and nobody runs it."""

        async def has() -> bool:
            return bool(
                await self(
                    "select from pgrecall.session_recalls where id = %s and status = %s and run_id is null",
                    recall_id,
                    status,
                )
            )

        await until(has)

    async def asleep(self, workers: int = 1) -> None:
        """Wait until so many workers listen and none of them has a statement under way."""

        async def are() -> bool:
            registered = await self("select count(*) from pgrecall.workers where lifelines[2] is not null")
            asked = await self(
                "select count(*) filter (where state = 'idle' and query like '%%pgrecall.claim(%%'), "
                "count(*) filter (where state <> 'idle' and query not like 'call pgrecall.watch(%%') "
                "from pg_stat_activity where datname = current_database() and application_name = 'pgrecall'"
            )
            looked, at_it = asked[0]
            return bool(registered[0] >= workers and looked >= workers and at_it == 0)

        await until(are)


@asynccontextmanager
async def sql(dsn: str) -> AsyncIterator[Sql]:
    """An autocommit connection."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield Sql(connection)
