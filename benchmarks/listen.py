"""Connections that LISTEN and only read: `python -m benchmarks.listen DSN CHANNEL NUMBER`; ends with its stdin."""

from __future__ import annotations

import asyncio
import sys

import psycopg


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
