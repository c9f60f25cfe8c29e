"""awa: a worker in Rust that runs Python coroutines; polls, a leader promotes what is due, NOTIFY on promotion."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from benchmarks.jobs import job
from benchmarks.peer import Peer, Settings


@dataclass
class Numbered:
    number: int


class _Producer:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def one(self, number: int, at: datetime | None) -> None:
        await self._client.insert(Numbered(number), kind="job", queue="default", run_at=at)

    async def bulk(self, numbers: Sequence[int], at: datetime | None) -> None:
        await self._client.enqueue_many_copy(
            [Numbered(number) for number in numbers], kind="job", queue="default", run_at=at
        )


class Awa(Peer):
    name = "awa"
    distributions = ("awa-pg",)
    profiles = {
        "default": {"workers": 10},
        "best": {"workers": 10, "poll_interval_ms": 20, "promote_interval_ms": 20},
        "throughput": {"workers": 200, "poll_interval_ms": 20},
    }
    unfinished = "select count(*) from awa.jobs where state not in ('completed', 'failed', 'cancelled')"

    def slots(self, settings: Settings) -> int:
        return int(settings["workers"])

    @staticmethod
    def _register(client: Any) -> None:
        @client.task(Numbered, kind="job", queue="default")  # type: ignore[untyped-decorator]
        async def run(taken: Any) -> None:
            await job(taken.args.number)

    async def install(self, dsn: str, settings: Settings) -> None:
        from awa import AsyncClient

        async with AsyncClient(dsn) as client:
            await client.migrate()
            # A new installation gets its fast storage when the first worker starts, as any in use has it.
            self._register(client)
            await client.start([("default", 1)])
            for _ in range(600):
                if json.loads(await client.storage_status())["active_engine"] == "queue_storage":
                    break
                await asyncio.sleep(0.05)
            await client.shutdown()

    @asynccontextmanager
    async def producing(self, dsn: str, settings: Settings) -> AsyncIterator[_Producer]:
        from awa import AsyncClient

        async with AsyncClient(dsn) as client:
            yield _Producer(client)

    async def work(self, dsn: str, settings: Settings) -> None:
        from awa import AsyncClient

        client = AsyncClient(dsn)
        self._register(client)
        options = {name: value for name, value in settings.items() if name != "workers"}
        await client.start([("default", settings["workers"])], **options)
        await asyncio.Event().wait()
