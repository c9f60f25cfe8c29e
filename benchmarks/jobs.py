"""What every peer runs: a job that does nothing but say that it has begun, or one that also holds its worker.

Importable by name, because some libraries run jobs in processes of their own.
"""

from __future__ import annotations

import asyncio
import os
import time

from benchmarks.marks import mark

#: The environment variable that says how many seconds a measured job takes. Default 0.
VARIABLE = "PGRECALL_BENCH_JOB_SECONDS"

#: Seconds that a job for warming up takes: long enough that one worker does not get all of them.
WARM_UP_SECONDS = 0.02


def _seconds(number: int) -> float:
    return WARM_UP_SECONDS if number < 0 else float(os.environ.get(VARIABLE, "0"))


async def job(number: int) -> None:
    """The job of this number, for libraries that run coroutines."""
    mark(number)
    if seconds := _seconds(number):
        await asyncio.sleep(seconds)


def blocking_job(number: int) -> None:
    """The same for libraries that run functions."""
    mark(number)
    if seconds := _seconds(number):
        time.sleep(seconds)
