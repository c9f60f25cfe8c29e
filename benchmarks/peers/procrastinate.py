"""procrastinate: psycopg, LISTEN for jobs for at once, a poll for the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from benchmarks.jobs import job
from benchmarks.peer import Peer, Settings


class _Producer:
    def __init__(self, task: Any) -> None:
        self._task = task

    async def one(self, number: int, at: datetime | None) -> None:
        task = self._task if at is None else self._task.configure(schedule_at=at)
        await task.defer_async(number=number)

    async def bulk(self, numbers: Sequence[int], at: datetime | None) -> None:
        task = self._task if at is None else self._task.configure(schedule_at=at)
        await task.batch_defer_async(*({"number": number} for number in numbers))


class Procrastinate(Peer):
    name = "procrastinate"
    distributions = ("procrastinate",)
    profiles = {
        "default": {},
        "best": {"concurrency": 10, "fetch_job_polling_interval": 0.005, "pool": [4, 10]},
        "throughput": {"concurrency": 20, "pool": [10, 20]},
    }
    unfinished = "select count(*) from public.procrastinate_jobs where status in ('todo', 'doing')"
    remark = "nothing rescues the jobs of a dead worker but a task that the user writes"

    def slots(self, settings: Settings) -> int:
        return int(settings.get("concurrency", 1))

    @staticmethod
    def _app(dsn: str, settings: Settings) -> tuple[Any, Any]:
        import procrastinate

        pool = dict(zip(("min_size", "max_size"), settings.get("pool", ()), strict=False))
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, **pool))
        return app, app.task(name="job")(job)

    async def install(self, dsn: str, settings: Settings) -> None:
        app, _ = self._app(dsn, settings)
        async with app.open_async():
            await app.schema_manager.apply_schema_async()

    @asynccontextmanager
    async def producing(self, dsn: str, settings: Settings) -> AsyncIterator[_Producer]:
        app, task = self._app(dsn, settings)
        async with app.open_async():
            yield _Producer(task)

    async def work(self, dsn: str, settings: Settings) -> None:
        app, _ = self._app(dsn, settings)
        options = {name: value for name, value in settings.items() if name != "pool"}
        async with app.open_async():
            await app.run_worker_async(**options)
