"""When to look: notifications, the time of the next due recall and the safety re-read become one `await wait()`.

Reconnects inside, and makes sure that what it listens to can be heard. Knows nothing of recalls.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import anyio
import psycopg

from pgrecall._backoff import Backoff
from pgrecall.agents import describe
from pgrecall.database import PLACE, AsyncConnection, answered_within, connect_async
from pgrecall.errors import RecallError, SettingsError
from pgrecall.telemetry import logger

CHANNEL = "pgrecall"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: The latest time that a recall can be due is before this, microseconds since 1970.
_NEVER = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)

#: Seconds within which the server must answer a statement of the listener.
_PATIENCE = 10.0

#: Seconds to wait for a notification to oneself before the server is asked whether it has been delivered.
_HELLO_SECONDS = 1.0

#: A connection that lived so many seconds is replaced at once; one that did not, after a pause.
_HELD_SECONDS = 5.0

_HELLO = "select pg_notify(%(channel)s, %(payload)s)"

_INSTEAD = (
    "Give the listener a direct connection to the same database: --listen-dsn, listen_dsn=…. "
    "Or do without, and look at intervals: --poll-interval 5s, poll_interval=5."
)


class ServerClock:
    """Maps the database's clock to this process's monotonic one; before the first sample, that of this machine.

    A reply carries the server's time at a moment before the reply arrived, so each sample can only be behind the truth;
    the best of the last few is the closest.
    """

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=8)
        self._offset = time.time() - time.monotonic()

    def sample(self, server_now: datetime) -> None:
        """Notes that the server's clock said this just now."""
        self._samples.append(server_now.timestamp() - time.monotonic())
        self._offset = max(self._samples)

    def monotonic(self, server_time: float) -> float:
        """The monotonic time at which the server's clock shows this many seconds since 1970."""
        return server_time - self._offset

    def now(self) -> datetime:
        """The server's time now."""
        return datetime.fromtimestamp(time.monotonic() + self._offset, UTC)


class Alarm:
    """The earliest moment at which there is a reason to look; anything may make it earlier while somebody waits.

    What it was set to by `due` may be taken back, whatever else there is stays until it is cleared.
    """

    def __init__(self) -> None:
        self._at = math.inf
        self._due = math.inf
        self._moved = asyncio.Event()

    @property
    def at(self) -> float:
        """The monotonic time it is set to."""
        return min(self._at, self._due)

    @property
    def due_at(self) -> float:
        """What `due` and `move` have set it to."""
        return self._due

    def clear(self) -> None:
        """Forgets what it was set to. Done *before* looking, so that what comes meanwhile is kept."""
        self._at = self._due = math.inf

    def no_later_than(self, at: float) -> None:
        """Rings at this monotonic time at the latest."""
        if at < self.at:
            self._moved.set()
        self._at = min(self._at, at)

    def due(self, at: float) -> None:
        """Rings at this monotonic time at the latest, unless it is moved."""
        self.move(min(self._due, at))

    def move(self, due_at: float) -> None:
        """Takes back what `due` has set, and sets this."""
        if due_at < self.at:
            self._moved.set()
        self._due = due_at

    async def wait(self) -> None:
        """Returns when the time has come."""
        loop = asyncio.get_running_loop()
        while (left := self.at - time.monotonic()) > 0:
            # Not anyio's, which take three times as long to wake up, and everybody waits for that.
            self._moved = asyncio.Event()
            timer = None if math.isinf(left) else loop.call_later(left, self._moved.set)
            try:
                await self._moved.wait()
            finally:
                if timer is not None:
                    timer.cancel()


class Front:
    """Where the next look begins: nothing that waits is due before it (docs/wake-up.md, "Where a look begins").

    While somebody has an old snapshot open, the index keeps what was claimed since; who knows where its front is need
    not walk past all that. Times are whole microseconds since 1970: what is rounded up would be overlooked.
    """

    def __init__(self) -> None:
        # None: nothing is known.
        self._at: int | None = None
        self._heard: int | None = None

    @property
    def is_known(self) -> bool:
        """Whether the next look begins somewhere."""
        return self._at is not None

    def forget(self) -> None:
        """What was heard may not have been everything: the next look looks everywhere."""
        self._at = self._heard = None

    def heard(self, microseconds: int) -> None:
        """Something is due then."""
        self._at = _earlier(self._at, microseconds)
        self._heard = _earlier(self._heard, microseconds)

    def look(self) -> datetime | None:
        """From when on to look; a look begins. None: everywhere."""
        self._heard = _NEVER
        return None if self._at is None else _EPOCH + timedelta(microseconds=self._at)

    def looked(self, next_due_at: datetime | None) -> None:
        """A look that has seen everything said that this is the first of what waits; None: nothing waits."""
        self._at = self._heard
        if next_due_at is not None:
            self._at = _earlier(self._at, (next_due_at - _EPOCH) // timedelta(microseconds=1))


def _earlier(known: int | None, microseconds: int) -> int | None:
    return None if known is None or microseconds <= 0 else min(known, microseconds)


class Ask(Protocol):
    """Runs a SELECT where the recalls are written."""

    async def __call__(self, statement: str, arguments: dict[str, Any], /) -> list[dict[str, Any]]:
        """The rows, as dictionaries."""
        ...


class Listener:
    """A connection of its own that LISTENs, for as long as the worker lives.

    It has to show that it hears, by a notification to itself: a LISTEN through a transaction pooler, or in another
    database, succeeds and then hears nothing, for ever.

    Args:
        dsn: Where to listen: a direct connection, not one through a transaction pooler.
        worker_id: For the log.
        on_message: Called with each payload and the process id of the server process that sent it.
        on_connected: Called after every (re)connect: what was sent meanwhile is lost, so look.
        ask: Sends the notification where the recalls are written. None: no test.
        on_connection: Awaited with the connection on every (re)connect, after LISTEN and before on_connected; the first
            time not before the test.
        on_lost: Called when a connection on which on_connection may have been called is gone.
    """

    def __init__(
        self,
        dsn: str,
        worker_id: str,
        on_message: Callable[[str, int], None],
        on_connected: Callable[[], None],
        *,
        ask: Ask | None = None,
        on_connection: Callable[[AsyncConnection], Awaitable[None]] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._dsn = dsn
        self._worker_id = worker_id
        self._on_message = on_message
        self._on_connected = on_connected
        self._ask = ask
        self._on_connection = on_connection
        self._on_lost = on_lost
        self._hellos: dict[str, anyio.Event] = {}
        self._doubted = anyio.Event()
        self._pumping = anyio.CancelScope()
        self._has_listened = False
        self._connected_at = -math.inf
        self._lost_at: float | None = None
        self._is_deaf = False
        self._backoff = Backoff(0.1, 3)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listens until cancelled. `task_status` is started when the first LISTEN has been committed and is heard.

        Raises:
            psycopg.Error: The very first connection failed: a wrong DSN should not be retried for ever.
            SettingsError: The very first LISTEN would never hear anything.
        """
        while True:
            try:
                await self._listen(task_status)
            except (psycopg.Error, RecallError) as error:
                if not self._has_listened:
                    raise
                if self._lost_at is None:
                    self._lost_at = time.monotonic()
                    logger().warning("listener_lost", worker_id=self._worker_id, error=describe(error))
                    if self._lost_at - self._connected_at > _HELD_SECONDS:
                        self._backoff.reset()
                        continue
            await anyio.sleep(self._backoff.pause())

    def doubt(self) -> None:
        """Has the listener show again that it hears: it may be connected to a server that was."""
        self._doubted.set()

    async def test(self) -> None:
        """Tests the connection whenever it is doubted, beside `run`, and replaces one that does not hear."""
        while True:
            await self._doubted.wait()
            self._doubted = anyio.Event()
            pumping = self._pumping
            try:
                heard = await self._say_hello()
            except (psycopg.Error, RecallError):
                # Nothing is known then. What is wrong there is found out and told by those who work there.
                self._restored()
                continue
            with anyio.move_on_after(_PATIENCE):
                await heard.wait()
            if heard.is_set():
                self._restored()
            else:
                pumping.cancel()

    async def _listen(self, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Listens on one connection until it is lost."""
        async with await connect_async(self._dsn) as connection:
            try:
                async with answered_within(_PATIENCE, "LISTEN"):
                    await connection.execute(f"listen {CHANNEL}".encode())
                if not self._has_listened:
                    await self._must_hear_itself(connection)
                if self._on_connection is not None:
                    async with answered_within(_PATIENCE, "a statement of the listener"):
                        await self._on_connection(connection)
                self._connected_at = time.monotonic()
                self._on_connected()
                if not self._has_listened:
                    self._has_listened = True
                    task_status.started()
                await self._pump(connection)
            finally:
                if self._on_lost is not None:
                    self._on_lost()

    def _restored(self) -> None:
        if self._lost_at is not None:
            seconds = round(time.monotonic() - self._lost_at, 3)
            logger().info("listener_restored", worker_id=self._worker_id, seconds=seconds)
            self._lost_at = None
        self._is_deaf = False

    async def _pump(self, connection: AsyncConnection) -> None:
        with anyio.CancelScope() as self._pumping:
            if self._lost_at is not None:
                self.doubt()
                if not self._is_deaf:  # else it has to show first that it hears
                    self._restored()
            async for notify in connection.notifies():
                self._deliver(notify)
                # Whoever was waiting for it goes first, and then this waits for the next one.
                await asyncio.sleep(0)
        if self._pumping.cancelled_caught:
            self._is_deaf = True
            raise psycopg.OperationalError("a notification to itself did not arrive")

    def _deliver(self, notify: psycopg.Notify) -> None:
        if notify.payload in self._hellos:
            self._hellos[notify.payload].set()
        elif not notify.payload.startswith("hello "):  # another worker's to itself
            try:
                self._on_message(notify.payload, notify.pid)
            except Exception as error:  # noqa: BLE001 (what is heard next must be heard)
                logger().error("loop_error", worker_id=self._worker_id, error=describe(error))

    async def _say_hello(self) -> anyio.Event:
        """Sends a notification; the event is set when it arrives."""
        assert self._ask is not None  # noqa: S101 (the callers have looked)
        payload = f"hello {secrets.token_hex(8)}"
        self._hellos = {payload: anyio.Event()}
        async with answered_within(_PATIENCE, "NOTIFY"):
            await self._ask(_HELLO, {"channel": CHANNEL, "payload": payload})
        return self._hellos[payload]

    async def _must_hear_itself(self, connection: AsyncConnection) -> None:
        """Makes sure that what is sent where recalls are written arrives here.

        A server hands over the notifications of transactions that have ended before it answers the next statement of a
        session that listens. So it is not a matter of time: one that has not come before such an answer never will.

        Raises:
            SettingsError: It does not arrive.
            psycopg.Error: One of the connections broke.
        """
        if self._ask is None:
            return
        heard = await self._say_hello()
        await self._receive(connection, _HELLO_SECONDS, heard)
        if heard.is_set():
            return
        async with answered_within(_PATIENCE, "a statement of the listener"):
            here, name = (await (await connection.execute(PLACE.encode())).fetchall())[0]
        if connection.is_pooled:
            raise SettingsError(
                "notifications do not arrive: LISTEN goes through a transaction pooler, which delivers none",
                hint=_INSTEAD,
            )
        await self._receive(connection, 0, heard)
        if heard.is_set():
            return
        async with answered_within(_PATIENCE, "a statement"):
            there, its_name = (await self._ask(PLACE, {}))[0].values()
        why = "nobody knows why" if here == there else "the listener is connected to another database"
        raise SettingsError(f"notifications do not arrive: {why} ({name}; recalls are in {its_name})", hint=_INSTEAD)

    async def _receive(self, connection: AsyncConnection, seconds: float, heard: anyio.Event) -> None:
        """Hands on what arrives, until the hello has or the time is over."""
        ends = time.monotonic() + seconds
        while not heard.is_set():
            left = max(ends - time.monotonic(), 0)
            async for notify in connection.notifies(timeout=left, stop_after=1):
                self._deliver(notify)
            if time.monotonic() >= ends:
                return
