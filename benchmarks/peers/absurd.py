"""absurd: everything in SQL functions, polled; a task for later is one that first sleeps until then."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.jobs import job
from benchmarks.peer import Peer, Settings
from pgrecall.embedded import find_binaries


class _Producer:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def one(self, number: int, at: datetime | None) -> None:
        await self._client.spawn("job", {"number": number, "at": None if at is None else at.timestamp()})

    async def bulk(self, numbers: Sequence[int], at: datetime | None) -> None:
        for number in numbers:
            await self.one(number, at)


class Absurd(Peer):
    name = "absurd"
    distributions = ("absurd-sdk", "absurdctl")
    profiles = {
        "default": {},
        "best": {"concurrency": 10, "poll_interval": 0.005},
        "throughput": {"concurrency": 50, "poll_interval": 0.02},
    }
    unfinished = "select count(*) from absurd.t_default where state not in ('completed', 'failed', 'cancelled')"
    remark = "no way to spawn for later, so its tasks sleep first, which is a second claim; no bulk interface"

    def slots(self, settings: Settings) -> int:
        return int(settings.get("concurrency", 1))

    async def install(self, dsn: str, settings: Settings) -> None:
        # Brings the schema of its own release along, and needs psql to install it.
        search = os.pathsep.join([str(find_binaries()), os.environ.get("PATH", "")])
        await asyncio.to_thread(
            subprocess.run,
            [str(Path(sys.executable).with_name("absurdctl")), "init", "--database", dsn],
            check=True,
            env={**os.environ, "PATH": search},
        )
        client = self._client(dsn)
        try:
            await client.create_queue("default")
        finally:
            await client.close()

    def missing(self) -> str | None:
        if why := super().missing():
            return why
        sdk, schema = (metadata.version(name) for name in self.distributions)
        return None if sdk == schema else f"absurd-sdk is {sdk}, but the schema of absurdctl is {schema}"

    @staticmethod
    def _client(dsn: str) -> Any:
        from absurd_sdk import AsyncAbsurd

        client = AsyncAbsurd(dsn)

        @client.register_task(name="job")  # type: ignore[untyped-decorator]
        async def run(parameters: Any, context: Any) -> None:
            if parameters["at"] is not None:
                await context.sleep_until("until it is due", parameters["at"])
            await job(parameters["number"])

        return client

    @asynccontextmanager
    async def producing(self, dsn: str, settings: Settings) -> AsyncIterator[_Producer]:
        client = self._client(dsn)
        try:
            yield _Producer(client)
        finally:
            await client.close()

    async def work(self, dsn: str, settings: Settings) -> None:
        await self._client(dsn).start_worker(**settings)
