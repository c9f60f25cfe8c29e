"""pgqueuer: asyncpg, LISTEN, and a timer to the next execute_after."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks.jobs import job
from benchmarks.peer import Peer, Settings


def _delay(at: datetime | None) -> timedelta | None:
    return None if at is None else max(at - datetime.now(UTC), timedelta(0))


class _Producer:
    def __init__(self, queries: Any) -> None:
        self._queries = queries

    async def one(self, number: int, at: datetime | None) -> None:
        await self._queries.enqueue("job", str(number).encode(), execute_after=_delay(at))

    async def bulk(self, numbers: Sequence[int], at: datetime | None) -> None:
        count, delay = len(numbers), _delay(at)
        payloads = [str(number).encode() for number in numbers]
        await self._queries.enqueue(["job"] * count, payloads, [0] * count, [delay] * count)


class PgQueuer(Peer):
    name = "pgqueuer"
    distributions = ("pgqueuer", "asyncpg")
    profiles = {
        "default": {},
        "best": {},
        "throughput": {"batch_size": 500, "pool": [4, 8]},
    }
    unfinished = "select count(*) from public.pgqueuer"
    remark = "takes a delay, not a time: its jobs are due later than wanted by the time that the insert takes"

    async def install(self, dsn: str, settings: Settings) -> None:
        import asyncpg  # type: ignore[import-untyped]
        from pgqueuer.db import AsyncpgDriver
        from pgqueuer.queries import Queries

        connection = await asyncpg.connect(dsn)
        try:
            await Queries(AsyncpgDriver(connection)).install()
        finally:
            await connection.close()

    @asynccontextmanager
    async def producing(self, dsn: str, settings: Settings) -> AsyncIterator[_Producer]:
        import asyncpg
        from pgqueuer.db import AsyncpgDriver
        from pgqueuer.queries import Queries

        connection = await asyncpg.connect(dsn)
        try:
            yield _Producer(Queries(AsyncpgDriver(connection)))
        finally:
            await connection.close()

    async def work(self, dsn: str, settings: Settings) -> None:
        import asyncpg
        from pgqueuer import PgQueuer as Application

        async with AsyncExitStack() as stack:
            if "pool" in settings:
                least, most = settings["pool"]
                pool = await stack.enter_async_context(asyncpg.create_pool(dsn, min_size=least, max_size=most))
                application = Application.from_asyncpg_pool(pool)
            else:
                connection = await asyncpg.connect(dsn)
                stack.push_async_callback(connection.close)
                application = Application.from_asyncpg_connection(connection)

            @application.entrypoint("job")  # type: ignore[untyped-decorator]
            async def run(taken: Any) -> None:
                await job(int(taken.payload))

            await application.run(**{name: value for name, value in settings.items() if name != "pool"})
