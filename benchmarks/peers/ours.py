"""pgrecall: bare, with a plain callable as the agent and no session handling; and as users have it, with all of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import psycopg

from benchmarks.jobs import job
from benchmarks.peer import Peer, Settings
from pgrecall import RecallScheduler, Worker, schema


class _NoStore:
    """A host whose sessions cost nothing: no message is put in, none is saved."""

    async def get(self, session_id: str) -> Any:
        return SimpleNamespace(messages=[])

    async def save(self, session: Any) -> None:
        pass


class _Producer:
    def __init__(self, scheduler: RecallScheduler, connection: psycopg.AsyncConnection[Any]) -> None:
        self._scheduler = scheduler
        self._connection = connection

    async def one(self, number: int, at: datetime | None) -> None:
        await self._scheduler.schedule_recall(
            session_id=f"s{number}",
            call_type="immediate" if at is None else "once",
            trigger_at=at,
            additional_context_message="hello",
        )

    async def bulk(self, numbers: Sequence[int], at: datetime | None) -> None:
        # A plain INSERT by any service is part of the contract, and there is nothing quicker.
        await self._connection.execute(
            "insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message) "
            "select 's' || number, coalesce(%s::timestamptz, now()), 'hello' from unnest(%s::bigint[]) as number",
            [at, list(numbers)],
        )


class Ours(Peer):
    name = "ours"
    profiles = {
        "default": {"concurrency": 3, "log": "INFO", "sessions": False},
        "best": {"concurrency": 10, "log": "WARNING", "sessions": False},
        "throughput": {"concurrency": 500, "log": "WARNING", "sessions": False},
    }
    unfinished = "select count(*) from pgrecall.session_recalls where status in ('pending', 'running')"
    remark = "bare: a callable agent, the host's own store does nothing"

    def version(self) -> str:
        from pgrecall import __version__

        return __version__

    async def install(self, dsn: str, settings: Settings) -> None:
        with psycopg.connect(dsn) as connection:
            schema.install(connection)

    def prepare(self, connection: psycopg.Connection[Any], numbers: range) -> None:
        connection.execute(
            "insert into pgrecall.sessions (id) select 's' || n from generate_series(%s::bigint, %s::bigint) as n",
            [numbers.start, numbers.stop - 1],
        )

    @asynccontextmanager
    async def producing(self, dsn: str, settings: Settings) -> AsyncIterator[_Producer]:
        async with (
            RecallScheduler(dsn) as scheduler,
            await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection,
        ):
            yield _Producer(scheduler, connection)

    async def work(self, dsn: str, settings: Settings) -> None:
        import structlog

        level = logging.getLevelNamesMapping()[settings["log"]]
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))

        async def agent(*, session_id: str, user_message: str) -> str | None:
            await job(int(session_id[1:]))
            return "done" if settings["sessions"] else None

        worker = Worker(
            dsn,
            agent=agent,
            store=None if settings["sessions"] else _NoStore(),
            concurrency=settings["concurrency"],
        )
        await worker.run()


class OursWithSessions(Ours):
    name = "ours-sessions"
    profiles = {profile: {**settings, "sessions": True} for profile, settings in Ours.profiles.items()}
    remark = "full: message put into the session, reply saved to its history"
