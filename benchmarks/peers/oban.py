"""oban: a stager moves what is due and tells the queues; psycopg."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from benchmarks.jobs import job
from benchmarks.peer import Peer, Settings


def _worker() -> Any:
    from oban import worker

    class BenchmarkJob:
        async def process(self, taken: Any) -> None:
            await job(taken.args["number"])

    return worker(queue="default")(BenchmarkJob)


class _Producer:
    def __init__(self, application: Any, worker: Any) -> None:
        self._application = application
        self._worker = worker

    def _job(self, number: int, at: datetime | None) -> Any:
        options: dict[str, Any] = {} if at is None else {"scheduled_at": at}
        return self._worker.new({"number": number}, **options)

    async def one(self, number: int, at: datetime | None) -> None:
        await self._application.enqueue(self._job(number, at))

    async def bulk(self, numbers: Sequence[int], at: datetime | None) -> None:
        await self._application.enqueue_many(*(self._job(number, at) for number in numbers))


class Oban(Peer):
    name = "oban"
    distributions = ("oban",)
    python = (3, 12)
    profiles = {
        "default": {"queue": {"limit": 10}},
        "best": {"queue": {"limit": 10, "debounce_interval": 0.001}, "stager": {"interval": 0.005}},
        "throughput": {"queue": {"limit": 200}},
    }
    unfinished = "select count(*) from public.oban_jobs where state not in ('completed', 'cancelled', 'discarded')"
    remark = "rescues by age: jobs that run longer than 5 minutes are started twice"

    def slots(self, settings: Settings) -> int:
        return int(settings["queue"]["limit"])

    async def install(self, dsn: str, settings: Settings) -> None:
        from oban.schema import install
        from psycopg_pool import AsyncConnectionPool

        async with AsyncConnectionPool(dsn, min_size=1, open=False) as pool:
            await install(pool)

    @asynccontextmanager
    async def producing(self, dsn: str, settings: Settings) -> AsyncIterator[_Producer]:
        from oban import Oban as Application

        pool = await Application.create_pool(dsn)
        async with pool, Application(pool=pool) as application:
            yield _Producer(application, _worker())

    async def work(self, dsn: str, settings: Settings) -> None:
        import asyncio

        from oban import Oban as Application

        _worker()
        pool = await Application.create_pool(dsn)
        options = {"stager": settings["stager"]} if "stager" in settings else {}
        async with pool, Application(pool=pool, queues={"default": settings["queue"]}, **options):
            await asyncio.Event().wait()
