"""chancy: psycopg, LISTEN for jobs for at once, a poll of whole seconds for others, outcomes written once a second."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from benchmarks.peer import Peer, Settings

_ASYNC = "chancy.executors.asyncex.AsyncExecutor"


def _job(number: int, at: datetime | None, settings: Settings) -> Any:
    from chancy import Job

    function = "job" if settings.get("executor") == _ASYNC else "blocking_job"
    options: dict[str, Any] = {} if at is None else {"scheduled_at": at}
    return Job(func=f"benchmarks.jobs.{function}", kwargs={"number": number}, **options)


class _Producer:
    def __init__(self, application: Any, settings: Settings) -> None:
        self._application = application
        self._settings = settings

    async def one(self, number: int, at: datetime | None) -> None:
        await self._application.push(_job(number, at, self._settings))

    async def bulk(self, numbers: Sequence[int], at: datetime | None) -> None:
        async for _ in self._application.push_many([_job(number, at, self._settings) for number in numbers]):
            pass


class Chancy(Peer):
    name = "chancy"
    distributions = ("chancy",)
    profiles = {
        "default": {},
        "best": {"executor": _ASYNC, "concurrency": 10, "polling_interval": 1, "eager_polling": True},
        "throughput": {"executor": _ASYNC, "concurrency": 200, "polling_interval": 1, "eager_polling": True},
    }
    unfinished = "select count(*) from public.chancy_jobs where state in ('pending', 'running', 'retrying')"
    remark = "outcomes wait up to a second in memory, and are lost in a crash"

    def slots(self, settings: Settings) -> int:
        return int(settings.get("concurrency", os.cpu_count() or 1))

    async def install(self, dsn: str, settings: Settings) -> None:
        from chancy import Chancy as Application
        from chancy import Queue

        async with Application(dsn) as application:
            await application.migrate()
            await application.declare(Queue("default", **settings))

    @asynccontextmanager
    async def producing(self, dsn: str, settings: Settings) -> AsyncIterator[_Producer]:
        from chancy import Chancy as Application

        async with Application(dsn) as application:
            yield _Producer(application, settings)

    async def work(self, dsn: str, settings: Settings) -> None:
        from chancy import Chancy as Application
        from chancy import Worker

        options = {}
        if settings:
            # By default it logs every job through rich, which costs more than the job.
            quiet = logging.getLogger("chancy")
            quiet.setLevel(logging.WARNING)
            options["log"] = quiet
        async with Application(dsn, **options) as application, Worker(application) as worker:
            await worker.wait_for_shutdown()
