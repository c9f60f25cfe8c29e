"""When to look: notifications, the time of the next due recall and the safety re-read become one `await wait()`.

Reconnects inside. Knows nothing of recalls.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import anyio
import psycopg

from pgrecall._backoff import Backoff
from pgrecall.agents import describe
from pgrecall.database import SESSION_SETTINGS
from pgrecall.telemetry import logger

CHANNEL = "pgrecall"


class ServerClock:
    """Maps the database's clock to this process's monotonic one; the wall clock of this machine is never read.

    A reply carries the server's time at a moment before the reply arrived, so each sample can only be behind the truth;
    the best of the last few is the closest.
    """

    def __init__(self) -> None:
        self._offsets: deque[float] = deque(maxlen=8)

    def sample(self, server_now: datetime) -> None:
        """Notes that the server's clock said this just now."""
        self._offsets.append(server_now.timestamp() - time.monotonic())

    def monotonic(self, server_time: float) -> float:
        """The monotonic time at which the server's clock shows this many seconds since 1970."""
        return server_time - max(self._offsets, default=time.time() - time.monotonic())

    def now(self) -> datetime:
        """The server's time now."""
        offset = max(self._offsets, default=time.time() - time.monotonic())
        return datetime.fromtimestamp(time.monotonic() + offset, UTC)


class Alarm:
    """The earliest moment at which there is a reason to look; anything may make it earlier while somebody waits."""

    def __init__(self) -> None:
        self._at = math.inf
        self._moved = anyio.Event()

    @property
    def at(self) -> float:
        """The monotonic time it is set to."""
        return self._at

    def clear(self) -> None:
        """Forgets what it was set to. Done *before* looking, so that what comes meanwhile is kept."""
        self._at = math.inf

    def no_later_than(self, at: float) -> None:
        """Rings at this monotonic time at the latest."""
        if at < self._at:
            self._at = at
            self._moved.set()

    async def wait(self) -> None:
        """Returns when the time has come."""
        while (left := self._at - time.monotonic()) > 0:
            self._moved = anyio.Event()
            with anyio.move_on_after(None if math.isinf(left) else left):
                await self._moved.wait()


class Listener:
    """A connection of its own that LISTENs, for as long as the worker lives.

    Args:
        dsn: Where to listen: a direct connection, not one through a transaction pooler.
        worker_id: For the log.
        on_message: Called with each payload.
        on_connected: Called after every (re)connect: what was sent meanwhile is lost, so look.
    """

    def __init__(
        self, dsn: str, worker_id: str, on_message: Callable[[str], None], on_connected: Callable[[], None]
    ) -> None:
        self._dsn = dsn
        self._worker_id = worker_id
        self._on_message = on_message
        self._on_connected = on_connected

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listens until cancelled. `task_status` is started when the first LISTEN has been committed.

        Raises:
            psycopg.Error: The very first connection failed: a wrong DSN should not be retried for ever.
        """
        backoff = Backoff(0.1, 3)
        lost_at: float | None = None
        first = True
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
                    await connection.execute(SESSION_SETTINGS)
                    await connection.execute(f"listen {CHANNEL}".encode())
                    backoff.reset()
                    if lost_at is not None:
                        logger().info(
                            "listener_restored",
                            worker_id=self._worker_id,
                            seconds=round(time.monotonic() - lost_at, 3),
                        )
                        lost_at = None
                    self._on_connected()
                    if first:
                        first = False
                        task_status.started()
                    await self._pump(connection)
            except psycopg.Error as error:
                if first:
                    raise
                if lost_at is None:
                    lost_at = time.monotonic()
                    logger().warning("listener_lost", worker_id=self._worker_id, error=describe(error))
            await anyio.sleep(backoff.pause())

    async def _pump(self, connection: psycopg.AsyncConnection[Any]) -> None:
        async for notify in connection.notifies():
            with suppress(ValueError, OverflowError):  # a message that is not ours, from somebody on the same channel
                self._on_message(notify.payload)
