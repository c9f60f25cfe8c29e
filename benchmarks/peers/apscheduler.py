"""apscheduler: an in-process scheduler whose jobs can be kept in PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.peer import Peer, Producer, Settings

_WHY = (
    "release 3 is one process: by its documentation a job store must never be shared between schedulers, and here jobs "
    "are made by another process; release 4 has workers, but is a pre-release that says not to use it in production"
)


class Apscheduler(Peer):
    name = "apscheduler"
    distributions = ("apscheduler", "sqlalchemy")
    profiles = {"best": {}}
    unfinished = "select count(*) from public.apscheduler_jobs"
    not_measured = dict.fromkeys(("scheduled", "pickup", "idle", "throughput", "enqueue", "rescue", "burst"), _WHY)

    async def install(self, dsn: str, settings: Settings) -> None:
        raise NotImplementedError(_WHY)

    @asynccontextmanager
    async def producing(self, dsn: str, settings: Settings) -> AsyncIterator[Producer]:
        raise NotImplementedError(_WHY)
        yield

    async def work(self, dsn: str, settings: Settings) -> None:
        raise NotImplementedError(_WHY)
