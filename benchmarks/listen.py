"""Connections that LISTEN and only read: `python -m benchmarks.listen DSN CHANNEL NUMBER`; ends with its stdin."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from benchmarks.stage import ROOT, Failed


@contextmanager
def listening(dsn: str, number: int, channel: str = "pgrecall") -> Iterator[int | None]:
    """Has a process of its own with so many connections that LISTEN; yields its id, None if they are none.

    Raises:
        Failed: They could not connect.
    """
    if not number:
        yield None
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.listen", dsn, channel, str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None and process.stdin is not None  # noqa: PT018 (pipes)
    try:
        if process.stdout.readline().strip() != b"ready":
            raise Failed("the listeners did not start")
        yield process.pid
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


async def _listen(dsn: str, channel: str, ready: asyncio.Barrier) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(f"listen {channel}".encode())
        await ready.wait()
        async for _ in connection.notifies():
            pass


async def _main(dsn: str, channel: str, number: int) -> None:
    ready = asyncio.Barrier(number + 1)
    listeners = [asyncio.create_task(_listen(dsn, channel, ready)) for _ in range(number)]
    await ready.wait()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for listener in listeners:
        listener.cancel()
    await asyncio.gather(*listeners, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
