"""A producer process: `python -m benchmarks.produce PEER SETTINGS` reads orders from stdin and answers each on stdout.

An order is a JSON object:

    {"do": "install"}
    {"do": "bulk", "first": 0, "count": 1000, "at": null, "chunk": 1000}
    {"do": "each", "jobs": [[number, at, not_before], …]}   times in seconds since 1970, or null

The answer to `bulk` is its seconds; to `each` for each job the times, in nanoseconds since 1970, at which the call was
made and at which it returned.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from datetime import UTC, datetime
from typing import Any

from benchmarks.peer import Peer, Producer, Settings, every_peer


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


async def _each(producer: Producer, jobs: list[tuple[int, float | None, float | None]]) -> list[tuple[int, int]]:
    times = []
    for number, at, not_before in jobs:
        if not_before is not None:
            await asyncio.sleep(max(not_before - time.time(), 0))
        called = time.time_ns()
        await producer.one(number, _time(at))
        times.append((called, time.time_ns()))
    return times


async def _bulk(producer: Producer, order: dict[str, Any]) -> float:
    numbers = range(order["first"], order["first"] + order["count"])
    began = time.perf_counter()
    for start in range(0, len(numbers), order["chunk"]):
        await producer.bulk(numbers[start : start + order["chunk"]], _time(order["at"]))
    return time.perf_counter() - began


def _answer(answer: object) -> None:
    print(json.dumps({"answer": answer}), file=_answers, flush=True)


async def _serve(peer: Peer, dsn: str, settings: Settings) -> None:
    """Installs first if that is the first order: most libraries cannot connect before."""
    _answer("ready")
    order = await _order()
    if order is not None and order["do"] == "install":
        await peer.install(dsn, settings)
        _answer("installed")
        order = await _order()
    if order is None:
        return
    async with peer.producing(dsn, settings) as producer:
        while order is not None:
            _answer(await (_bulk(producer, order) if order["do"] == "bulk" else _each(producer, order["jobs"])))
            order = await _order()


async def _order() -> dict[str, Any] | None:
    line = await asyncio.to_thread(sys.stdin.readline)
    return json.loads(line) if line else None


if __name__ == "__main__":
    # What libraries print is not for the harness.
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, given = sys.argv[1:]
    asyncio.run(_serve(every_peer()[name], os.environ["PGRECALL_BENCH_DSN"], json.loads(given)))
