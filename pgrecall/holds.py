"""Holding a session for a live chat: taking it, waiting for it, renewing the hold in the background, letting go.

Knows the SQL functions of holds and nothing of recalls. Who may hold when is decided by the database alone. `Hold` and
`SyncHold` are both written by hand: the loss of a hold cancels a task, and a thread cannot be cancelled.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import anyio
import psycopg

from pgrecall import calls
from pgrecall._backoff import Backoff
from pgrecall.database import AsyncDatabase, SyncDatabase, answered_within, connect_async, connect_sync
from pgrecall.errors import HoldLostError, RecallError, SessionHeldError, SettingsError
from pgrecall.model import IfHeld, SessionHold
from pgrecall.telemetry import logger

CHANNEL = "pgrecall_holds"

#: Seconds between two questions whether it is our turn, where nobody can tell us: behind a transaction pooler, or
#: while the listening connection is away.
_ASK = 0.5

#: The part of a lease after which a hold that could not be renewed is given up: the holder has to stop before others
#: may start.
_LATEST = 0.9

_LATE = "it could not be renewed in time"
_WANTED = "a recall that was put off for its max_defer_seconds wants the session, or somebody else has it"


def _name() -> str:
    """A name for a holder that has none."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def _is_between(seconds: object, least: float, most: float) -> bool:
    return isinstance(seconds, int | float) and least <= seconds <= most


class _Terms:
    """What both kinds of hold are asked for with, and what they know; see RecallScheduler.hold_session."""

    def __init__(self, session_id: str, holder: str | None, lease: float, if_held: IfHeld, wait: float | None) -> None:
        if not _is_between(lease, 0.1, 86400):
            raise SettingsError(f"lease is {calls.shown(lease)}, but must be 0.1 to 86400 seconds")
        if wait is not None and not _is_between(wait, 0, math.inf):
            raise SettingsError(f"wait is {calls.shown(wait)}, but must be 0 or more seconds, or None")
        self.session_id = session_id
        self.holder = _name() if holder is None else holder
        self.since: datetime | None = None
        self._lease = lease
        self._if_held: IfHeld = if_held
        self._wait = wait
        self._good_until = math.inf  # time.monotonic()
        self._is_over = False
        self._lost_because: str | None = None
        # The holder looks from one thread, and another one hears of renewals.
        self._deciding = threading.Lock()

    @property
    def lost(self) -> bool:
        """Whether the hold ended before its holder let go. Once true it stays so, whatever is heard afterwards."""
        with self._deciding:
            return self._is_lost()

    def _ask(self) -> calls.Call[SessionHold]:
        return calls.hold_session(self.session_id, self.holder, timedelta(seconds=self._lease), self._if_held)

    def _renewal(self) -> calls.Call[bool]:
        return calls.renew_hold(self.session_id, self.holder, timedelta(seconds=self._lease))

    def _has(self, hold: SessionHold, asked_at: float) -> None:
        self.since = hold.since
        assert hold.until is not None  # noqa: S101 (a chat's hold has an end)
        # Not the lease: one that was handed to us a while ago, and is wanted by now, is not renewed by asking.
        self._good_until = asked_at + (hold.until - hold.now_at).total_seconds() * _LATEST

    def _pause(self, hold: SessionHold) -> float:
        """Seconds until a place in the line has to be claimed again, or the present hold ends by itself."""
        left = self._lease / 3
        if hold.until is not None and hold.kind == "chat":
            left = min(left, (hold.until - hold.now_at).total_seconds() + 0.02)
        return max(left, 0.02)

    def _is_lost(self) -> bool:
        # Also while a renewal waits for an answer, or nothing else in this process gets to run.
        if self._lost_because is None and not self._is_over and time.monotonic() >= self._good_until:
            self._note_loss(_LATE)
        return self._lost_because is not None

    def _renewed(self, asked_at: float) -> bool:
        """Whether the answer came in time. One that comes later gives nothing back: the holder may have stopped."""
        with self._deciding:
            if self._is_lost():
                return False
            self._good_until = asked_at + self._lease * _LATEST
            return True

    def _renew_at(self) -> float:
        """When the next renewal is due: a third of the lease after the last one."""
        return self._good_until - self._lease * (_LATEST - 1 / 3)

    def _leave(self) -> None:
        """The holder lets go: whatever comes after that is no loss."""
        with self._deciding:
            self._is_lost()
            self._is_over = True

    def _lose(self, reason: str) -> None:
        with self._deciding:
            if not self._is_lost():
                self._note_loss(reason)

    def _note_loss(self, reason: str) -> None:
        self._lost_because = reason
        logger().warning("hold_lost", session_id=self.session_id, holder=self.holder, reason=reason)

    def _lost_error(self) -> HoldLostError:
        return HoldLostError(
            f"the hold on session {self.session_id!r} was lost: {self._lost_because}",
            session_id=self.session_id,
            hint="Stop what the chat is doing in this session; hold it again to go on.",
        )

    def _may_have(self, error: BaseException) -> bool:
        """Whether the session may be ours, now or soon, although asking for it has failed: if the answer got lost."""
        return self._if_held != "refuse" or not isinstance(error, RecallError)

    def _not_freed(self, error: Exception) -> None:
        logger().warning(
            "hold_not_freed", session_id=self.session_id, holder=self.holder, error=str(error), ends_in=self._lease
        )


def _still_held(hold: SessionHold, waited: float) -> SessionHeldError:
    who = f"run {hold.run_id} of recall {hold.recall_id}" if hold.kind == "run" else f"the chat {hold.holder}"
    if hold.kind == "line" and hold.recall_id is not None:
        who = f"recall {hold.recall_id}, which comes first,"
    return SessionHeldError(
        f"session {hold.session_id!r} was not free within {waited:g} s: it is held by {who} since {hold.since}",
        session_id=hold.session_id,
        kind=hold.kind,
        holder=hold.holder,
        since=hold.since,
        until=hold.until,
        run_id=hold.run_id,
        recall_id=hold.recall_id,
    )


def _not_heard(error: Exception) -> None:
    logger().warning("line_not_heard", error=str(error), asking_every_seconds=_ASK)


class Line:
    """Hears, for all who wait on one scheduler, that a session has become theirs: one connection while anybody waits.

    Args:
        dsn: Where to LISTEN. A transaction pooler delivers nothing; then each asks again twice a second.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._waiting: set[asyncio.Event] = set()
        self._by_id: dict[int, asyncio.Event] = {}
        self._task: asyncio.Task[None] | None = None
        self._hears = False

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        """A place in the line, for the length of the block."""
        place = Place(self)
        self._waiting.add(place.event)
        if self._task is None:
            self._task = asyncio.create_task(self._listen())
        try:
            yield place
        finally:
            self._waiting.discard(place.event)
            self._by_id = {waiter_id: event for waiter_id, event in self._by_id.items() if event is not place.event}
            if not self._waiting and self._task is not None:
                task, self._task = self._task, None
                self._hears = False
                task.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([task])

    async def _listen(self) -> None:
        failing = Backoff(0.1, 3)
        this = asyncio.current_task()
        # A cancellation can get lost on the way: asyncio.wait_for of Python 3.11 forgets it if what it waits for comes
        # at the same time, and an error of the connection may come in its place. So we look whether we are wanted.
        while self._task is this:
            try:
                async with await connect_async(self._dsn) as connection:
                    if connection.is_pooled:
                        return
                    async with answered_within(_ASK * 10, "LISTEN"):
                        await connection.execute(f"listen {CHANNEL}".encode())
                    if self._task is not this:
                        return
                    # Whoever was told before has missed it.
                    self._hears = True
                    for event in self._waiting:
                        event.set()
                    failing.reset()
                    async for notify in connection.notifies():
                        kind, _, waiter_id = notify.payload.partition(" ")
                        with suppress(ValueError):  # from somebody else on the same channel
                            if kind == "granted" and int(waiter_id) in self._by_id:
                                self._by_id[int(waiter_id)].set()
            except (psycopg.Error, RecallError) as error:
                _not_heard(error)
            finally:
                if self._task is this:
                    self._hears = False
            if self._task is this:
                await asyncio.sleep(failing.pause())


class Place:
    """One who waits in a Line."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.event = asyncio.Event()

    async def turn(self, waiter_id: int, at_most: float) -> None:
        """Returns when it may be this one's turn, at the latest after so many seconds."""
        self._line._by_id[waiter_id] = self.event  # noqa: SLF001 (two halves of one thing)
        limit = at_most if self._line._hears else min(at_most, _ASK)  # noqa: SLF001
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self.event.wait()
        self.event.clear()


class Hold(_Terms):
    """A session held for a live chat: an async context manager, from `RecallScheduler.hold_session`.

    Inside the block no run starts in the session, and no other chat has it. The hold is renewed in the background; if
    that fails the block is cancelled, and leaving it raises HoldLostError.

    Attributes:
        session_id: The session.
        holder: Who holds it.
        since: Since when, in UTC; None: not yet.
    """

    def __init__(
        self,
        database: AsyncDatabase,
        line: Line,
        session_id: str,
        *,
        holder: str | None,
        lease: float,
        if_held: IfHeld,
        wait: float | None,
    ) -> None:
        super().__init__(session_id, holder, lease, if_held, wait)
        self._database = database
        self._line = line
        self._scope = asyncio.timeout(None)
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._obtain()
        except BaseException as error:
            if self._may_have(error):
                await self._free()
            raise
        self._renewing = asyncio.create_task(self._renew())
        await self._scope.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._renewing is not None  # noqa: S101 (entered)
        self._renewing.cancel()
        self._leave()
        try:
            # Before anything is awaited: a loss that comes just now must not cancel us here.
            await self._scope.__aexit__(kind, error, traceback)
        except TimeoutError:
            if not self.lost:
                raise
        finally:
            await self._free()
        if self.lost and (kind is None or kind is asyncio.CancelledError):
            raise self._lost_error() from error

    async def _obtain(self) -> None:
        asked_at = time.monotonic()
        hold = await self._database.one(self._ask())
        if hold.held:
            self._has(hold, asked_at)
            return
        try:
            async with asyncio.timeout(self._wait) as limit, self._line.place() as place:
                # Not only until it is cancelled, which can get lost, see Line._listen.
                while not limit.expired():
                    assert hold.waiter_id is not None  # noqa: S101 (who is not refused has a place)
                    await place.turn(hold.waiter_id, self._pause(hold))
                    asked_at = time.monotonic()
                    hold = await self._database.one(self._ask())
                    if hold.held:
                        break
        except TimeoutError:
            if not limit.expired():
                raise
        if not hold.held:
            raise _still_held(hold, self._wait or 0)
        self._has(hold, asked_at)

    async def _renew(self) -> None:
        failing = Backoff(0.05, 1)
        next_at = self._renew_at()
        while True:
            await asyncio.sleep(max(next_at - time.monotonic(), 0))
            asked_at = time.monotonic()
            if self.lost:
                break
            try:
                async with asyncio.timeout(self._good_until - asked_at):
                    is_held = await self._database.one(self._renewal())
            except (psycopg.Error, RecallError, TimeoutError):
                if self._is_over:
                    return
                next_at = min(time.monotonic() + failing.pause(), self._good_until)
                continue
            if self._is_over:
                # We were cancelled and have not heard of it, see Line._listen. Nobody would cancel us again.
                return
            if not is_held:
                self._lose(_WANTED)
                break
            failing.reset()
            if not self._renewed(asked_at):
                break
            next_at = self._renew_at()
        self._scope.reschedule(asyncio.get_running_loop().time())

    async def _free(self) -> None:
        # In a task of its own: neither anyio nor asyncio, which knows no shield, cancels it together with the chat.
        freeing = asyncio.create_task(self._free_now())
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while not freeing.done():
                try:
                    await asyncio.wait([freeing])
                except asyncio.CancelledError as error:
                    cancelled = error
        freeing.result()
        if cancelled is not None:
            raise cancelled

    async def _free_now(self) -> None:
        if self._renewing is not None:
            await asyncio.wait([self._renewing])
        # A lost one is freed too: it is ours until its lease ends, and whoever wants it need not wait for that.
        try:
            async with asyncio.timeout(max(min(self._lease, 5), 1)):
                await self._database.run(calls.free_session(self.session_id, self.holder))
        except (psycopg.Error, RecallError, TimeoutError) as error:
            self._not_freed(error)


class SyncLine:
    """As `Line`, for threads: each has a connection of its own while it waits.

    Args:
        dsn: Where to LISTEN.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    @contextmanager
    def place(self) -> Iterator[psycopg.Connection | None]:
        """A connection that hears whose turn it is; None where there is none to be had."""
        with ExitStack() as stack:
            connection = None
            try:
                connection = stack.enter_context(connect_sync(self._dsn))
                if connection.is_pooled:
                    connection = None
                else:
                    connection.execute(f"listen {CHANNEL}".encode())
            except (psycopg.Error, RecallError) as error:
                _not_heard(error)
                connection = None
            yield connection


class SyncHold(_Terms):
    """A session held for a live chat: a context manager, from `SyncRecallScheduler.hold_session`.

    The hold is renewed by a thread. A thread cannot be cancelled: if the hold is lost, `lost` is true, and leaving the
    block raises HoldLostError unless another error is on its way.

    Attributes:
        session_id: The session.
        holder: Who holds it.
        since: Since when, in UTC; None: not yet.
    """

    def __init__(
        self,
        database: SyncDatabase,
        line: SyncLine,
        session_id: str,
        *,
        holder: str | None,
        lease: float,
        if_held: IfHeld,
        wait: float | None,
    ) -> None:
        super().__init__(session_id, holder, lease, if_held, wait)
        self._database = database
        self._line = line
        self._left = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="pgrecall-hold", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._obtain()
        except BaseException as error:
            if self._may_have(error):
                self._free()
            raise
        self._renewing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()
        self._left.set()
        self._renewing.join()
        self._free()
        if self.lost and kind is None:
            raise self._lost_error()

    def _obtain(self) -> None:
        asked_at = started = time.monotonic()
        hold = self._database.one(self._ask())
        if not hold.held:
            with self._line.place() as listener:
                connection = listener
                asked_at = time.monotonic()
                hold = self._database.one(self._ask())  # it may have been granted before we listened
                while not hold.held:
                    pause = self._pause(hold) if connection else min(self._pause(hold), _ASK)
                    if self._wait is not None:
                        left = started + self._wait - time.monotonic()
                        if left <= 0:
                            raise _still_held(hold, self._wait)
                        pause = min(pause, left)
                    if connection:
                        try:
                            for notify in connection.notifies(timeout=pause):
                                if notify.payload == f"granted {hold.waiter_id}":
                                    break
                        except psycopg.Error as error:
                            _not_heard(error)
                            connection = None
                    else:
                        time.sleep(pause)  # nobody can tell us, so it is asked again after at most _ASK
                    asked_at = time.monotonic()
                    hold = self._database.one(self._ask())
        self._has(hold, asked_at)

    def _renew(self) -> None:
        failing = Backoff(0.05, 1)
        next_at = self._renew_at()
        while not self._left.wait(max(next_at - time.monotonic(), 0)):
            asked_at = time.monotonic()
            if self.lost:
                return
            try:
                if not self._database.one(self._renewal()):
                    self._lose(_WANTED)
                    return
            except (psycopg.Error, RecallError):
                next_at = min(time.monotonic() + failing.pause(), self._good_until)
                continue
            failing.reset()
            if not self._renewed(asked_at):
                return
            next_at = self._renew_at()

    def _free(self) -> None:
        try:
            self._database.run(calls.free_session(self.session_id, self.holder))
        except (psycopg.Error, RecallError) as error:
            self._not_freed(error)
