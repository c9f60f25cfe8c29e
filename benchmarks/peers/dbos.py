"""dbos: durable workflows on queues, polled; SQLAlchemy with psycopg, each workflow of ours one row and no step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from benchmarks.jobs import job
from benchmarks.peer import Peer, Settings

_APPLICATION = "benchmark"


class _Producer:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def one(self, number: int, at: datetime | None) -> None:
        options: dict[str, Any] = {"workflow_name": "job", "queue_name": "default", "app_version": "1"}
        if at is not None:
            options["delay_seconds"] = max(at.timestamp() - time.time(), 0.0)
        await self._client.enqueue_async(options, number)

    async def bulk(self, numbers: Sequence[int], at: datetime | None) -> None:
        for number in numbers:
            await self.one(number, at)


class Dbos(Peer):
    name = "dbos"
    distributions = ("dbos",)
    profiles = {
        "default": {},
        "best": {"polling_interval_sec": 0.005},
        "throughput": {"polling_interval_sec": 0.02, "worker_concurrency": 200},
    }
    unfinished = (
        "select count(*) from dbos.workflow_status "
        "where status not in ('SUCCESS', 'ERROR', 'CANCELLED', 'MAX_RECOVERY_ATTEMPTS_EXCEEDED')"
    )
    remark = (
        "delayed workflows are swept once a second, which cannot be set; takes a delay, not a time; no bulk interface; "
        "a dead worker's workflows wait for a start with the same executor id"
    )

    def slots(self, settings: Settings) -> int:
        return int(settings.get("worker_concurrency", 1000))

    @staticmethod
    def _launch(dsn: str, settings: Settings) -> None:
        from dbos import DBOS

        DBOS(
            config={
                "name": _APPLICATION,
                "system_database_url": dsn,
                "application_version": "1",
                "run_admin_server": False,
                "log_level": "WARNING",
            }
        )
        DBOS.workflow(name="job")(job)
        DBOS.launch()
        DBOS.register_queue("default", on_conflict="always_update", **settings)

    async def install(self, dsn: str, settings: Settings) -> None:
        from dbos import DBOS

        await asyncio.to_thread(self._launch, dsn, settings)
        await asyncio.to_thread(DBOS.destroy)

    @asynccontextmanager
    async def producing(self, dsn: str, settings: Settings) -> AsyncIterator[_Producer]:
        from dbos import DBOSClient

        client = await asyncio.to_thread(lambda: DBOSClient(system_database_url=dsn, application_name=_APPLICATION))
        try:
            yield _Producer(client)
        finally:
            client.destroy()

    async def work(self, dsn: str, settings: Settings) -> None:
        await asyncio.to_thread(self._launch, dsn, settings)
        await asyncio.Event().wait()
