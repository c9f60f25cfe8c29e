"""Watching over the other workers: keeps a call of the SQL procedure `watch` running while anybody has runs.

The procedure finds the dead and gives back their claims by itself, in the server, so a blocked event loop does not
delay it. Knows nothing of what this worker does.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

import anyio
import psycopg

from pgrecall._backoff import Backoff
from pgrecall.agents import describe
from pgrecall.database import AsyncConnection, answered_within, connect_async
from pgrecall.telemetry import logger

#: A watch waits long and on purpose; its notices are read; and the server ends it when its client has vanished.
_SETTINGS = b"set statement_timeout = 0; set client_min_messages = notice; set search_path = pg_catalog, pg_temp"

#: Seconds within which the server must answer what prepares a watch.
_PATIENCE = 10.0

#: Seconds that a stopping worker waits for the server to end its watch.
_LET_GO = 2.0

#: Seconds after which a watch that has not failed is taken to work.
_AT_ONCE = 1.0


class Watch:
    """A connection of its own in which the procedure runs; none while nobody has had runs for a while.

    Args:
        dsn: A direct connection, not one through a pooler.
        worker_id: Who watches.
    """

    def __init__(self, dsn: str, worker_id: str) -> None:
        self._dsn = dsn
        self._worker_id = worker_id
        self._wanted = anyio.Event()
        self._call: asyncio.Task[Any] | None = None
        self._failing = Backoff(0.1, 3)
        self._lost_at: float | None = None

    def begin(self) -> None:
        """Somebody has runs, or may have: be watching."""
        self._wanted.set()

    def begin_anew(self) -> None:
        """The ring has changed: the one to watch may be another."""
        self._wanted.set()
        if self._call is not None and not self._call.cancelling():
            self._call.cancel()

    async def run(self) -> None:
        """Watches when it is wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                async with await connect_async(self._dsn) as connection:
                    if connection.is_pooled:
                        return  # it has no lifelines itself, and holds up a server process of the pooler
                    await self._prepare(connection)
                    while self._wanted.is_set():
                        self._wanted = anyio.Event()
                        await self._watch(connection)
            except psycopg.Error as error:
                self._wanted.set()
                if self._lost_at is None:
                    self._lost_at = time.monotonic()
                    logger().debug("watch_lost", worker_id=self._worker_id, error=describe(error))
                await anyio.sleep(self._failing.pause())

    async def _watch(self, connection: AsyncConnection) -> None:
        # A task of its own, because anyio cancels again and again: cancelled just once, the driver ends the statement
        # on the server and keeps the connection.
        self._call = asyncio.create_task(connection.execute("call pgrecall.watch(%s)", [self._worker_id]))
        try:
            # What fails does so at once; to return soon is to have nobody to watch over.
            await asyncio.wait([self._call], timeout=_AT_ONCE)
            if not self._call.done() or (not self._call.cancelled() and self._call.exception() is None):
                self._restored()
            await asyncio.wait([self._call])
        finally:
            # To its end, or it would keep the connection from being closed. Cancelled twice it waits for nobody.
            with anyio.CancelScope(shield=True):
                while not self._call.done():
                    self._call.cancel()
                    await asyncio.wait([self._call], timeout=_LET_GO)
        if not self._call.cancelled():
            self._call.result()

    def _restored(self) -> None:
        self._failing.reset()
        if self._lost_at is not None:
            seconds = round(time.monotonic() - self._lost_at, 3)
            logger().debug("watch_restored", worker_id=self._worker_id, seconds=seconds)
            self._lost_at = None

    async def _prepare(self, connection: AsyncConnection) -> None:
        async with answered_within(_PATIENCE, "a statement of the watch"):
            await connection.execute(_SETTINGS)
            # Not on every platform, hence in a statement of its own that may be refused.
            with suppress(psycopg.errors.InvalidParameterValue):
                await connection.execute("set client_connection_check_interval = '10s'")
        connection.add_notice_handler(self._found)

    def _found(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.message_detail and (notice.message_primary or "").startswith("pgrecall: "):
            found = json.loads(notice.message_detail)
            logger().warning(
                "worker_died",
                worker_id=self._worker_id,
                dead_worker_id=found["worker_id"],
                run_ids=found["run_ids"],
            )
