"""Retention in the background: has the database delete what has outlived the settings, bit by bit.

Knows no table and no setting: purge() deletes, and says when to call it again.
"""

from __future__ import annotations

import math
import random
import time

import anyio
import psycopg

from pgrecall import calls
from pgrecall._backoff import Backoff
from pgrecall.agents import describe
from pgrecall.database import AsyncDatabase, answered_within
from pgrecall.errors import RecallError
from pgrecall.telemetry import logger

#: A fleet that starts together does not ask together: seconds.
_FIRST_WITHIN = 2.0

#: Seconds within which the database must answer. A step is some thousand rows.
_PATIENCE = 60.0

#: Seconds between two steps at least; and so many times as long as the step before has taken, so that whatever else
#: the database does comes first.
_PAUSE = 0.1
_REST = 4.0

#: The first and the longest pause after a failure, seconds. Nothing waits for what should be gone.
_AGAIN = 5.0
_LONGEST = 600.0


class Purger:
    """Calls purge() at the start, and then exactly when the last call has said.

    Args:
        worker_id: Whose. While one worker is at it, the others leave it to that one.
        database: Where the settings and the rows are.
    """

    def __init__(self, worker_id: str, database: AsyncDatabase) -> None:
        self._worker_id = worker_id
        self._database = database
        self._failing = Backoff(_AGAIN, _LONGEST)
        self._failed = False

    async def run(self) -> None:
        """Purges until cancelled."""
        await anyio.sleep(random.uniform(0, _FIRST_WITHIN))  # noqa: S311 (jitter, not a secret)
        began, gone = math.nan, 0
        while True:
            asked_at = time.monotonic()
            try:
                async with answered_within(_PATIENCE, "purge()"):
                    (step,) = await self._database.run(calls.purge(worker_id=self._worker_id))
            except (RecallError, psycopg.Error, TimeoutError) as error:
                # Once for an outage, however many tries it takes.
                if not self._failed:
                    self._failed = True
                    logger().warning("purge_failed", worker_id=self._worker_id, error=describe(error))
                await anyio.sleep(self._failing.pause())
                continue
            self._failed = False
            self._failing.reset()
            gone += step.rows
            took = time.monotonic() - asked_at
            began = asked_at if math.isnan(began) else began
            left = (step.next_at - step.now_at).total_seconds()
            if left > 0:
                if gone:
                    seconds = round(time.monotonic() - began, 3)
                    logger().info("purged", worker_id=self._worker_id, rows=gone, seconds=seconds)
                began, gone = math.nan, 0
            await anyio.sleep(max(left, _PAUSE, _REST * took))
