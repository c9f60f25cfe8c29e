"""The physical limit: the loop that anybody could write by hand, with no lease, no retry, no rescue and no ledger.

Claims a batch with one UPDATE … FOR UPDATE SKIP LOCKED … RETURNING, runs it, completes it with one UPDATE; sleeps on
LISTEN with a timer to the earliest run_at. Inserting notifies by a statement-level trigger, for each insert.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import psycopg

from benchmarks.jobs import job
from benchmarks.peer import Peer, Settings

INSTALL = """
    create table public.jobs (
        number bigint primary key,
        run_at timestamptz not null default now(),
        status text not null default 'pending'
    );
    create index jobs_due on public.jobs (run_at) where status = 'pending';
    create function public.announce() returns trigger language plpgsql as $$
    begin
        notify jobs;
        return null;
    end;
    $$;
    create trigger announce after insert on public.jobs for each statement execute function public.announce();
"""

CLAIM = """
    update public.jobs set status = 'running'
    where number in (
        select number from public.jobs
        where status = 'pending' and run_at <= now()
        order by run_at limit %s for update skip locked
    )
    returning number
"""

NEXT = "select extract(epoch from min(run_at) - clock_timestamp())::float8 from public.jobs where status = 'pending'"

COMPLETE = "update public.jobs set status = 'done' where number = any(%s::bigint[])"

#: Seconds between two looks at most, as ours has its safety re-read.
_SAFETY = 60.0


class _Producer:
    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    async def one(self, number: int, at: datetime | None) -> None:
        await self._connection.execute(
            "insert into public.jobs (number, run_at) values (%s, coalesce(%s::timestamptz, now()))", [number, at]
        )

    async def bulk(self, numbers: Sequence[int], at: datetime | None) -> None:
        await self._connection.execute(
            "insert into public.jobs (number, run_at) "
            "select number, coalesce(%s::timestamptz, now()) from unnest(%s::bigint[]) as number",
            [at, list(numbers)],
        )


class Raw(Peer):
    name = "raw"
    profiles = {"best": {"batch": 100}, "throughput": {"batch": 500}}
    unfinished = "select count(*) from public.jobs where status <> 'done'"
    not_measured = {"rescue": "a job whose worker dies stays running for ever: it has no lease"}
    remark = "hand-written loop without lease, retry, rescue or ledger: the limit, not a rival"

    async def install(self, dsn: str, settings: Settings) -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await connection.execute(INSTALL)

    @asynccontextmanager
    async def producing(self, dsn: str, settings: Settings) -> AsyncIterator[_Producer]:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            yield _Producer(connection)

    async def work(self, dsn: str, settings: Settings) -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=1) as connection:
            await connection.execute("listen jobs")
            while True:
                claimed = await (await connection.execute(CLAIM, [settings["batch"]])).fetchall()
                if claimed:
                    numbers = [number for (number,) in claimed]
                    for number in numbers:
                        await job(number)
                    await connection.execute(COMPLETE, [numbers])
                if len(claimed) == settings["batch"]:
                    continue
                row = await (await connection.execute(NEXT)).fetchone()
                left = _SAFETY if row is None or row[0] is None else min(max(row[0], 0.0), _SAFETY)
                async for _ in connection.notifies(timeout=left, stop_after=1):
                    pass
