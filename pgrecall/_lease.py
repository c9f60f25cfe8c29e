"""Staying alive: proves to the others that this worker lives, from a thread that no agent can starve.

Two proofs: a lease that is renewed while there are runs, and lifelines, advisory locks that the server releases when
the connections of a dead process are closed (sql/routines/52_lifelines.sql). Says which runs are no longer the
worker's own, and by when all must stop because neither proof can be given. Knows nothing of what the runs do.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import anyio
import anyio.to_thread
import psycopg

from pgrecall import calls, database
from pgrecall._backoff import Backoff
from pgrecall._peer import Peer, peer_of
from pgrecall.agents import describe
from pgrecall.errors import RecallError
from pgrecall.telemetry import logger

#: Seconds between two renewals at most. The server takes a worker that was silent for 15 s before its connections ended
#: for one that was cut off, and waits for its lease to end (see _end_dead_worker).
_RENEW_EVERY = 10.0

#: Which part of its grace a worker without lifelines waits for one before it stops its runs. The rest is for stopping.
_PROVE_WITHIN = 0.6


class LeaseKeeper:
    """One renewal for all runs every third of the lease, none while there are no runs; and a connection that holds on.

    The lease is counted from when the request for it was *sent*, by the monotonic clock, so it never seems to last
    longer than the database thinks.

    Args:
        dsn: Where to renew.
        worker_id: Whose lease.
        lease: Its length in seconds.
        patience: Seconds after which a statement is taken for lost.
        reconnect_grace: For how many seconds both lifelines may be gone; None: no lifelines, the lease alone.
        register: The call that registers the worker with these lifelines, taken on the connection that runs it.
        on_lost: Called from the thread with the runs that must stop, and why.
        on_change: Called from any thread when `stop_at` or `in_doubt` has changed.
    """

    def __init__(
        self,
        dsn: str,
        worker_id: str,
        lease: float,
        patience: float,
        reconnect_grace: float | None,
        *,
        register: Callable[[Sequence[int | None]], calls.Call[datetime]],
        on_lost: Callable[[frozenset[int], str], None],
        on_change: Callable[[], None],
    ) -> None:
        self._dsn = dsn
        self._worker_id = worker_id
        self._lease = lease
        self._patience = patience
        self._reconnect_grace = reconnect_grace
        self._register = register
        self._on_lost = on_lost
        self._on_change = on_change

        # Shared by the thread and the worker's event loop, under the lock.
        self._lock = threading.Lock()
        self._runs: dict[int, float] = {}
        self._until = 0.0
        self._renew_at = 0.0
        self._told: set[int] = set()
        self._lifelines: dict[int, int] = {}
        #: Keys of lifelines that were tried, and may be in the worker's row.
        self._keys: deque[int] = deque(maxlen=64)
        self._alone_since: float | None = None
        self._alone_until = -math.inf
        self._server_was_down = False

        # The thread's own.
        self._connection: database.AsyncConnection | None = None
        self._peer: Peer | None = None
        self._unknown: frozenset[int] = frozenset()
        self._lost_at: float | None = None
        self._failing = Backoff(0.02, 3)

        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._keep()), name="pgrecall-lease", daemon=True)

    # Called by the worker

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; does not wait for a statement that is under way."""
        self._stopping = True
        self._wake_up()

    async def ended(self) -> None:
        """Returns when the thread has ended: nothing of it is under way that would sign the worker up once more."""
        if self._thread.is_alive():
            await anyio.to_thread.run_sync(self._thread.join, abandon_on_cancel=True)

    def add(self, run_ids: Iterable[int], asked_at: float) -> None:
        """Runs have been claimed; the claim was sent at this monotonic time.

        The claim left at least 0.66 of a lease (see the SQL function claim), which is what is counted on.
        """
        # Does not wake the thread: it would take the interpreter from a run that is just about to begin.
        with self._lock:
            if not self._runs:
                self._until, self._renew_at = 0.0, asked_at + self._renew_every
            self._until = max(self._until, asked_at + self._lease * 0.66)
            self._runs.update(dict.fromkeys(run_ids, asked_at))

    def remove(self, run_id: int) -> None:
        """A run has ended."""
        with self._lock:
            self._runs.pop(run_id, None)
            self._told.discard(run_id)

    async def take_lifeline(self, line: int, connection: database.AsyncConnection) -> None:
        """Takes a lifeline on this connection: 1 for the one that renews, 2 for the one that listens.

        Does nothing if the worker is to have none, or a pooler sits between. Called in the worker's loop or the thread.

        Raises:
            psycopg.Error: The connection is gone.
        """
        if self._reconnect_grace is None or connection.is_pooled:
            return
        key = secrets.randbits(63)
        with self._lock:
            self._keys.append(key)
        await database.run_async(connection, self._register([key, None] if line == 1 else [None, key]))
        with self._lock:
            self._lifelines[line] = key
            self._end_doubt()
        self._on_change()

    def lost_lifeline(self, line: int) -> None:
        """The connection that held this lifeline is gone."""
        with self._lock:
            if self._lifelines.pop(line, None) is None or self._lifelines:
                return
            self._alone_since = time.monotonic()
        self._wake_up()
        self._on_change()

    @property
    def lost_lifelines(self) -> list[int]:
        """The keys of all lifelines that it tried to take and does not hold."""
        with self._lock:
            return [key for key in self._keys if key not in self._lifelines.values()]

    def gave_up_lifelines(self) -> None:
        """The database knows that the worker lives by its lease alone, until it takes a lifeline again."""
        with self._lock:
            if not self._lifelines:
                self._end_doubt()

    def _end_doubt(self) -> None:
        if self._alone_since is not None and not self._server_was_down:
            self._alone_until = time.monotonic()
        self._alone_since = None
        self._server_was_down = False

    @property
    def in_doubt(self) -> bool:
        """Whether others may take this worker for dead.

        They may not while the server is down, nor afterwards: its next life does not know the worker's lifelines.
        """
        with self._lock:
            return self._is_in_doubt

    @property
    def _is_in_doubt(self) -> bool:
        return self._alone_since is not None and not self._server_was_down

    def was_in_doubt_after(self, moment: float) -> bool:
        """Whether claims asked for at this monotonic time may have been taken away before their answer came."""
        with self._lock:
            return self._is_in_doubt or self._alone_until >= moment

    @property
    def stop_at(self) -> float:
        """The monotonic time by which runs must have been told to stop, unless the worker proves that it lives."""
        with self._lock:
            return min(self._until - min(5.0, self._lease / 6), self._prove_by)

    @property
    def _prove_by(self) -> float:
        if self._alone_since is None or self._reconnect_grace is None or self._server_was_down:
            return math.inf
        return self._alone_since + self._reconnect_grace * _PROVE_WITHIN

    @property
    def _renew_every(self) -> float:
        return min(self._lease / 3, _RENEW_EVERY)

    def _wake_up(self) -> None:
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(self._wake.set)

    # In the thread

    async def _keep(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not self._stopping:
            try:
                await self._turn()
            except (psycopg.Error, RecallError, OSError) as error:  # a TimeoutError is an OSError
                await self._failed(error)
                await self._sleep(self._failing.pause())
        await self._close()

    async def _turn(self) -> None:
        """Does what is to be done now, or waits until there is something."""
        with self._lock:
            # Also without runs: those that come meanwhile have so long.
            pause = min(self._renew_at - time.monotonic(), self._renew_every) if self._runs else self._renew_every
        if self._connection is None and (self._reconnect_grace is not None or self._runs):
            await self._connect()
        elif pause <= 0:
            # Due when a third of the lease is over: two thirds are left for trying.
            await self._renew()
        else:
            await self._wait(pause)

    async def _connect(self) -> None:
        async with asyncio.timeout(self._patience):
            connection = await database.connect_async(self._dsn)
            self._connection = connection
            self._peer = await peer_of(connection)
            await self.take_lifeline(1, connection)
        with self._lock:
            if self._lost_at is not None:
                # Others may have taken it for dead meanwhile: what it still has is in the answer to a renewal.
                self._renew_at = 0.0

    async def _renew(self) -> None:
        asked_at = time.monotonic()
        assert self._connection is not None  # noqa: S101 (see _turn)
        async with asyncio.timeout(self._patience):
            call = calls.renew(self._worker_id, timedelta(seconds=self._lease))
            held = frozenset(await database.run_async(self._connection, call))
        with self._lock:
            self._until = asked_at + self._lease
            self._renew_at = asked_at + self._renew_every
            # A run claimed after the question was asked is not in the answer. One that was told to stop goes on being
            # renewed for until it has stopped: its session stays taken for so long.
            gone = frozenset(run for run, claimed_at in self._runs.items() if run not in held and claimed_at < asked_at)
            gone -= self._told
            self._told |= gone
        if gone:
            self._on_lost(gone, "another worker has them, or they were cancelled")
        await self._release_unheard(held)
        self._restored()

    async def _release_unheard(self, held: frozenset[int]) -> None:
        """Gives back claims whose answer was lost on its way here; nobody else may while we renew the lease."""
        assert self._connection is not None  # noqa: S101 (the caller has just used it)
        with self._lock:
            unknown = held - self._runs.keys()
        # Unknown twice, one renewal apart: not just an answer that is still on its way.
        unheard = unknown & self._unknown
        self._unknown = unknown - unheard
        if unheard:
            async with asyncio.timeout(self._patience):
                await database.run_async(self._connection, calls.release(self._worker_id, unheard))
            logger().warning("claim_unheard", worker_id=self._worker_id, run_ids=sorted(unheard))

    async def _wait(self, pause: float) -> None:
        """Waits so long at most; ends early for news from the worker, and raises when the connection is lost."""
        self._restored()
        connection = self._connection
        if connection is not None:
            assert self._loop is not None  # noqa: S101 (the thread runs in it)
            # The server never speaks first here but to say goodbye.
            self._loop.add_reader(connection.fileno(), self._wake.set)
            try:
                await self._sleep(pause)
            finally:
                self._loop.remove_reader(connection.fileno())
            connection.pgconn.consume_input()
        else:
            await self._sleep(pause)

    async def _sleep(self, pause: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(None if math.isinf(pause) else pause):
                await self._wake.wait()
        self._wake.clear()

    async def _failed(self, error: Exception) -> None:
        await self._close()
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            # Without runs it matters to nobody yet, and the listener says that the database is away.
            say = logger().warning if self._runs else logger().debug
            say("lease_connection_lost", worker_id=self._worker_id, error=describe(error))
        if self.in_doubt and self._peer is not None and await self._peer.is_down():
            with self._lock:
                # Not when it is known too late: a stop that is due stays due.
                self._server_was_down = time.monotonic() < self._prove_by

    def _restored(self) -> None:
        self._failing.reset()
        if self._lost_at is not None:
            seconds = round(time.monotonic() - self._lost_at, 3)
            say = logger().info if self._runs else logger().debug
            say("lease_connection_restored", worker_id=self._worker_id, seconds=seconds)
            self._lost_at = None

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
            self.lost_lifeline(1)
