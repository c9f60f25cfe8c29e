"""The worker: sleeps until a recall is due, claims while slots are free, and runs agents.

The loop is: forget the alarm, look (one statement: claim and peek), set the alarm to what the look said, wait. A
notification that arrives during the look makes the alarm earlier and is not forgotten. docs/wake-up.md says why this
never sleeps past a due recall.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import secrets
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

import anyio
import anyio.abc
import psycopg

from pgrecall import calls, database
from pgrecall._backoff import Backoff
from pgrecall._deliver import Deliverer
from pgrecall._lease import LeaseKeeper
from pgrecall._listener import Alarm, Front, Listener, ServerClock
from pgrecall._outcomes import Outcomes
from pgrecall._purge import Purger
from pgrecall._run import Run, StopReason
from pgrecall._runner import Runner
from pgrecall._senders import Senders
from pgrecall._version import __version__
from pgrecall._watch import Watch
from pgrecall.agents import agent_opener, describe
from pgrecall.client import RecallScheduler
from pgrecall.errors import RecallError, SettingsError
from pgrecall.model import ClaimRow
from pgrecall.sessions import PostgresSessionStore, SessionStore
from pgrecall.telemetry import logger
from pgrecall.webhooks import Signer

#: Seconds in which the database must have answered a worker that starts.
_SIGN_UP = 30.0

_POLLING_MEANS = (
    "no LISTEN: new recalls may start so late, cancelled runs stop at the next renewal of the lease, "
    "and the recalls of a dead worker wait for its lease to end"
)

#: Seconds for which a worker that must end goes on trying to tell outcomes to a database that does not answer.
_LET_GO = 5.0

#: So many runs may begin together, and so many outcomes may be told together, however few slots there are.
_FEW = 32

#: What the database takes for a lease, seconds.
_SHORTEST_LEASE = 0.001
_LONGEST_LEASE = 86400.0

#: Seconds that the first worker has to take what is due and to say so: at least, and at most when it has taken longer.
_HEAD_START = (0.01, 0.1)

#: Seconds by which the first worker comes early to a look, beside half of what one takes: claim() waits for the time.
_EARLY = 0.003

#: At most; claim() waits for up to 50 ms.
_EARLIEST = 0.04

#: What is said on the channel, see Worker._heard. Microseconds are those since 1970, and less than nothing before.
_PAYLOADS = {
    "due": re.compile(r"due (\+?)(-?[0-9]{1,19})"),
    "next": re.compile(r"next (-?[0-9]{1,19}) (-?[0-9]{1,19}) (.+)", re.DOTALL),
    "stop": re.compile(r"stop (all|[0-9]{1,19})"),
    "report": re.compile(r"report ([0-9]{1,19})"),
    "deliver": re.compile(r"deliver (-?[0-9]{1,19}) (.*)", re.DOTALL),
    "watch": re.compile(r"watch(?: (.+))?", re.DOTALL),
}

#: Seconds between two tries of something that another part of the worker is about to settle.
_RETRY = 0.05


class Worker:
    """Fires recalls: any number of workers, in any number of processes, share one database.

    Args:
        dsn: A libpq connection string or URI; None: libpq's own `PG*` variables.
        agent: What to run: an object with `async run(*, session_id, user_message)`, a function with these parameters,
            or a factory without parameters that builds one for each run (see AgentFactory).
        store: The host's own session store. None: the default store in Postgres, which costs no extra statements.
        concurrency: Slots: how many runs at once. Default 3.
        lease: For how many seconds a claim is good without a renewal. Default 30. Shorter means a quicker rescue after
            a crash that nobody could notice, longer means more patience with a slow network.
        safety_interval: At most so many seconds between two looks, in case a notification was lost. Default 60.
        timeout: Wall-clock limit of a run in seconds, unless its recall has its own. None: that of pgrecall.settings,
            which is 600 unless somebody changed it.
        grace: How many seconds a stopping worker lets its runs finish. Default 30.
        reconnect_grace: For how many seconds all connections of this worker may be gone before the others take it for
            dead and start its runs again; it stops them itself after 0.6 of that. Default 0.5, at most 60. None: only
            its lease counts.
        listen_dsn: Where to LISTEN, if `dsn` goes through a transaction pooler.
        poll_interval: Do not LISTEN at all, but look every so many seconds: for where a direct connection is not to be
            had. A recall that is inserted for sooner than that starts up to so many seconds late, a run that is
            cancelled hears of it at the next renewal of the lease, and a dead worker is noticed by its lease alone.
        webhook_secret: Signs the deliveries of replies, see docs/delivery.md: one secret or several. None: those in
            PGRECALL_WEBHOOK_SECRET; if there are none, deliveries go unsigned.

    Raises:
        SettingsError: A number makes no sense, or a DSN is not one.
        AgentError: The agent cannot be used as one.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        agent: Any,
        store: SessionStore | None = None,
        concurrency: int = 3,
        lease: float = 30.0,
        safety_interval: float = 60.0,
        timeout: float | None = None,
        grace: float = 30.0,
        reconnect_grace: float | None = 0.5,
        listen_dsn: str | None = None,
        poll_interval: float | None = None,
        webhook_secret: str | Sequence[str] | None = None,
    ) -> None:
        _check_numbers(
            concurrency,
            lease,
            grace,
            reconnect_grace,
            {"lease": lease, "safety_interval": safety_interval, "timeout": timeout, "poll_interval": poll_interval},
        )
        if poll_interval is not None and listen_dsn is not None:
            raise SettingsError("poll_interval and listen_dsn exclude each other", hint="Who polls does not LISTEN.")
        self.worker_id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._scheduler = RecallScheduler(dsn, pool_size=min(concurrency, 8) + 1, patience=2)
        self._database = self._scheduler.database
        # Looks have a connection of their own: outcomes that wait for a locked session must not keep them waiting.
        self._looks = database.OwnConnection(self._scheduler.dsn, patience=2)
        # Plain outcomes too: they follow each other closely, and wait for nobody.
        self._tells = database.OwnConnection(self._scheduler.dsn, patience=2)
        self._listen_dsn = database.conninfo(listen_dsn) if listen_dsn else self._scheduler.dsn
        self._host_store = None if isinstance(store, PostgresSessionStore) else store
        self._concurrency = concurrency
        # So many runs begin together; then whatever the database has said meanwhile comes first, so that it is not kept
        # waiting for hundreds of agents.
        self._together = max(concurrency // 8, _FEW)
        self._lease_seconds = lease
        # A statement that takes longer than half a lease is taken for lost.
        self._patience = max(lease / 2, 1)
        self._safety_interval = min(safety_interval, poll_interval or math.inf)
        self._poll_interval = poll_interval
        self._timeout = timeout
        self._grace = grace
        # Lifelines are kept by the connections that a worker that polls does without.
        self._reconnect_grace = None if poll_interval is not None else reconnect_grace
        self._clock = ServerClock()
        self._event_loop: asyncio.AbstractEventLoop  # as soon as it runs
        self._lease = LeaseKeeper(
            self._listen_dsn,
            self.worker_id,
            self._lease_seconds,
            self._patience,
            self._reconnect_grace,
            register=self._registration,
            on_lost=self._in_loop(self._lost),
            on_change=self._in_loop(self._look_at_lease),
        )
        self._outcomes = Outcomes(
            self.worker_id,
            self._tells,
            self._database,
            append_reply=self._host_store is None,
            patience=self._patience,
            most=max(concurrency // 2, _FEW),
            keep=self._keep,
            must_let_go=self._must_let_go,
            on_told=self._ended,
        )
        self._runner = Runner(
            self.worker_id,
            agent_opener(agent),
            self._scheduler,
            store or PostgresSessionStore(self._scheduler),
            self._outcomes,
            clock=self._clock.now,
            timeout=timeout,
        )
        self._deliverer = Deliverer(
            self.worker_id,
            self._database,
            self._clock.monotonic,
            Signer(webhook_secret),
        )

        self._runs: dict[int, Run] = {}
        # Plain tasks of asyncio, which cost a third of a group's: a worker with much to do starts thousands a second.
        self._tasks: set[asyncio.Task[None]] = set()
        self._alarm = Alarm()
        self._front = Front()
        # Is it the one to look when something is due, or does it leave a moment to another worker?
        self._is_first = True
        # The server process of the latest "next" that was passed over, because nobody knew yet whose it is.
        self._unbelieved: int | None = None
        # When the first of what waits is due, as its latest look has seen it.
        self._next_at = math.inf
        # How many seconds its latest looks took that did not wait for a recall to become due.
        self._look_took = deque[float](maxlen=8)
        # The server's time, seconds since 1970, at the end of its latest look.
        self._looked_at = -math.inf
        # How many seconds it took, the last times, until this worker heard of another one's look.
        self._heard_after = deque[float](maxlen=8)
        self._slot_freed = anyio.Event()
        self._connected = anyio.Event()
        self._lease_changed = anyio.Event()
        self._listener: Listener | None = None
        self._senders = Senders(self.worker_id, self._database, self._believe)
        self._watch = Watch(self._listen_dsn, self.worker_id)
        self._settled_at = -math.inf
        self._safety_at = -math.inf
        # When claims have expired of which we never heard, because their answers were lost.
        self._unheard_until = -math.inf
        self._stopping = anyio.Event()
        self._given_back = 0
        # Somebody says that runs must stop: to be asked about. The time when that was last said of a run that is not
        # among ours, or not yet: the answer to its claim may be on its way.
        self._told_to_stop = anyio.Event()
        self._early_stop_at = -math.inf
        self._let_go_at = math.inf
        self._started = False

    async def run(self) -> None:
        """Fires recalls until `stop()` is called or the task is cancelled.

        Returns after `stop()` when its runs have ended or were given back. Errors while running are logged as
        `loop_error` and survived.

        Raises:
            psycopg.Error: The database could not be reached at the start.
            SchemaError: The schema is missing, older or newer; the hint names the command to run.
            RecallError: It was called before; a worker runs once.
        """
        if self._started:
            raise RecallError("this worker has run already", hint="Make a new Worker to run again.")
        self._started = True
        self._event_loop = asyncio.get_running_loop()
        with _unpacked():
            await self._work()

    def _in_loop(self, function: Callable[..., None]) -> Callable[..., None]:
        """The function, for a caller in another thread."""

        def call(*arguments: object) -> None:
            with suppress(RuntimeError):  # the loop has just been closed, and the runs with it
                self._event_loop.call_soon_threadsafe(function, *arguments)

        return call

    def _registration(self, lifelines: Sequence[int | None] | None = None) -> calls.Call[datetime]:
        return calls.register_worker(
            self.worker_id,
            self._concurrency,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            reconnect_grace=timedelta(seconds=self._reconnect_grace or 0),
            lifelines=lifelines,
        )

    async def _work(self) -> None:
        listener = Listener(
            self._listen_dsn,
            self.worker_id,
            self._heard,
            self._on_connected,
            ask=self._database.query,
            on_connection=lambda connection: self._lease.take_lifeline(2, connection),
            on_lost=lambda: self._lease.lost_lifeline(2),
        )
        try:
            async with database.answered_within(_SIGN_UP, "register_worker()"):
                (now,) = await self._tells.run(self._registration())
            self._clock.sample(now)
            async with anyio.create_task_group() as background:
                if self._poll_interval is None:
                    await background.start(listener.run)
                    background.start_soon(listener.test)
                    background.start_soon(self._senders.run)
                    self._listener = listener
                # Not before the listener has shown that the two DSNs lead to one database.
                self._lease.start()
                if self._reconnect_grace is not None:
                    background.start_soon(self._watch.run)
                logger().info(
                    "worker_started",
                    worker_id=self.worker_id,
                    concurrency=self._concurrency,
                    lease_seconds=self._lease_seconds,
                    timeout_seconds=self._timeout,
                    mode="listen" if self._poll_interval is None else "poll",
                )
                if self._poll_interval is not None:
                    logger().warning(
                        "poll_mode",
                        worker_id=self.worker_id,
                        poll_seconds=self._poll_interval,
                        effect=_POLLING_MEANS,
                    )
                background.start_soon(self._guard_lease)
                background.start_soon(self._confirm_stops)
                background.start_soon(self._outcomes.run)
                background.start_soon(self._deliverer.run)
                background.start_soon(Purger(self.worker_id, self._database).run)
                await self._fire()
                with anyio.move_on_after(min(self._grace, _LET_GO)):
                    await self._deliverer.drain()
                background.cancel_scope.cancel()
        finally:
            self._lease.stop()
            try:
                with anyio.CancelScope(shield=True), suppress(psycopg.Error, TimeoutError):
                    # Nothing is lost if this fails: other workers forget this one after five minutes.
                    async with asyncio.timeout(5):
                        with anyio.move_on_after(1):  # unless its connection hangs
                            await self._lease.ended()
                        await self._database.run(calls.unregister_worker(self.worker_id))
            finally:
                with anyio.CancelScope(shield=True):
                    await self._looks.close()
                    await self._tells.close()
                    await self._scheduler.aclose()
            logger().info("worker_stopped", worker_id=self.worker_id, runs_given_back=self._given_back)

    async def _fire(self) -> None:
        """Looks and runs agents until it is stopped and the last run has ended."""
        # In a task of its own, which nothing cancels: a claim must not be torn from its answer.
        looking = asyncio.create_task(self._loop())
        looking.add_done_callback(lambda _: self._stopping.set())
        try:
            await self._stopping.wait()
            await self._let_runs_end()
        except BaseException:
            # Cancelled from outside: the runs stop, and what they held is given back at once.
            self.stop()
            self.stop()
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await looking
                while self._runs or self._tasks:
                    if self._tasks:
                        await asyncio.wait(self._tasks)
                    else:
                        await self._a_slot()

    def stop(self) -> None:
        """Stops gracefully: no more claims, runs may finish within the grace period, the rest are given back.

        Called a second time it gives back everything at once. Not thread-safe; use `loop.call_soon_threadsafe`.
        """
        if self._stopping.is_set():
            _stop(self._runs.values(), "worker stopping")
            self._let_go_at = time.monotonic() + _LET_GO
        self._stopping.set()
        self._connected.set()
        self._look_at_lease()
        self._look_now()
        self._slot_freed.set()

    # When to look

    def _look_now(self) -> None:
        self._alarm.no_later_than(time.monotonic())

    def _on_connected(self) -> None:
        self._connected.set()
        self._senders.forget()
        # Who is first may have been said meanwhile, and the other one be gone.
        self._be_first()
        self._front.forget()
        # The word that the ring has changed may be among the messages that were missed.
        self._watch.begin_anew()
        self._look_now()
        for run in self._runs.values():
            run.reported()

    def _heard(self, payload: str, pid: int) -> None:
        """A notification, and the server process that sent it.

        One of `due <microseconds>`, `due +<microseconds>`, `next <when> <now> <worker_id>`, `stop <run_id>`,
        `stop all`, `watch`, `watch <worker_id>`, `report <run_id>` and `deliver <microseconds> <worker_id>`. Anything
        else is none of ours: whoever may connect may say anything there.
        """
        kind = payload.partition(" ")[0]
        said = _PAYLOADS[kind].fullmatch(payload) if kind in _PAYLOADS else None
        if said is None:
            return
        match kind:
            case "due":
                self._heard_of_due(int(said[2]), is_certain=not said[1] and said[2] != "0")
            case "next":
                self._heard_of_next(int(said[1]), int(said[2]), said[3], pid)
            case "stop":
                self._heard_of_stop(None if said[1] == "all" else int(said[1]))
            case "report":
                self._heard_of_report(int(said[1]))
            case "deliver":
                self._deliverer.heard(int(said[1]), said[2] or None)
            case "watch" if said[1] is None:
                self._watch.begin()
            case "watch" if said[1] == self.worker_id:
                self._watch.begin_anew()

    def _heard_of_due(self, microseconds: int, *, is_certain: bool) -> None:
        """Something is due then; is_certain: no look that says later what is next has overlooked it."""
        self._front.heard(microseconds)
        at = self._when_to_look(self._clock.monotonic(microseconds / 1e6))
        is_news = at < self._alarm.at
        if is_certain:
            self._alarm.due(at)
        else:
            self._alarm.no_later_than(at)
        if not is_news and self._is_first and time.monotonic() - self._settled_at > 1:
            # Nobody needed this message, so the register is out of date: one look sets it right, and the producers of
            # a whole storm of later recalls need not notify any more.
            self._settled_at = time.monotonic()
            self._alarm.no_later_than(time.monotonic() + random.uniform(0.02, 0.1))  # noqa: S311

    def _heard_of_next(self, when: int, now: int, worker_id: str, pid: int) -> None:
        """A look that began just now has seen all that is due before then; its worker is the first to look again."""
        at, looked_at = self._clock.monotonic(when / 1e6), self._clock.monotonic(now / 1e6)
        if worker_id == self.worker_id:
            # The others leave it a head start. If it took nothing, it may have set its alarm as one of them.
            self._be_first()
            self._alarm.due(self._when_to_look(self._next_at))
            return
        # Only this message makes a look later, so a stranger must not say it. To pass over a worker's costs a look.
        if not self._senders.may_claim(pid):
            self._unbelieved = pid
            return
        self._is_first = False
        self._heard_after.append(time.monotonic() - looked_at)
        # An older look than this worker's latest may have missed what that one has seen.
        if now / 1e6 > self._looked_at:
            self._alarm.move(self._when_to_look(at))

    def _believe(self) -> None:
        """It is known now who some are that have said what is next."""
        if self._unbelieved is not None and self._senders.may_claim(self._unbelieved):
            # What it said may be out of date; but it looks, and so need not this worker at the same time.
            self._is_first = False
            self._unbelieved = None

    def _be_first(self) -> None:
        self._is_first = True
        self._unbelieved = None

    def _when_to_look(self, at: float) -> float:
        """When this worker should look for what is due at that time."""
        if self._is_first:
            # A moment before: claim() waits for where the look begins, if that is known.
            early = min(_EARLY + min(self._look_took, default=0) / 2, _EARLIEST)
            return at - early if self._listener is not None and self._front.is_known else at
        least, most = _HEAD_START
        head_start = min(max(1.5 * max(self._heard_after, default=0), least), most)
        # Not all at once, if the first does not come.
        return max(at, time.monotonic()) + head_start * random.uniform(1, 4)  # noqa: S311

    def _heard_of_report(self, run_id: int) -> None:
        run = self._runs.get(run_id)
        if run is not None:
            run.reported()

    def _heard_of_stop(self, run_id: int | None) -> None:
        """Somebody says that this run must stop, or (None) all."""
        if run_id not in self._runs:
            self._early_stop_at = time.monotonic()
        if run_id is None or run_id in self._runs:
            self._told_to_stop.set()

    async def _confirm_stops(self) -> None:
        """Stops runs that somebody says must stop, if the database says so, too.

        Whoever may connect to a database may notify, with any payload. One statement answers for all runs, and messages
        that come meanwhile wait for its end, so that a flood of them costs little.
        """
        failing = Backoff(0.05, 5)
        while True:
            await self._told_to_stop.wait()
            self._told_to_stop = anyio.Event()
            # Those claimed later may be missing in the answer.
            running = [run for run in self._runs.values() if run.stop_reason is None]
            if not running:
                continue
            call = calls.renew(self.worker_id, timedelta(seconds=self._lease_seconds))
            try:
                async with database.answered_within(self._patience, "renew()"):
                    held = await self._database.run(call)
            except (RecallError, psycopg.Error) as error:
                # The renewals of the lease ask the same, and stop runs in time if nobody answers.
                logger().debug("stop_unconfirmed", worker_id=self.worker_id, error=describe(error))
                self._told_to_stop.set()
                await anyio.sleep(failing.pause())
                continue
            failing.reset()
            for run in running:
                if run.run_id not in held:
                    run.stop("told to stop")
            await anyio.sleep(_RETRY)

    async def _loop(self) -> None:
        unsettled = Backoff(0.005, 2)
        failing = Backoff(0.1, 5)
        failing_since: float | None = None
        while not self._stopping.is_set():
            free = await self._free_slots()
            if not free:
                continue
            nobody_called = self._alarm.at == self._safety_at
            self._alarm.clear()
            # This look's own "next" may be heard before its answer.
            self._next_at = math.inf
            asked_at = time.monotonic()
            try:
                if self._lease.in_doubt:
                    await self._resolve_doubt()
                    continue
                rows = await self._look(free, everywhere=nobody_called)
            except Exception as error:  # noqa: BLE001 (nothing may end the loop but stopping it)
                # Once for an outage, however many tries it takes.
                if failing_since is None:
                    failing_since = asked_at
                    logger().error("loop_error", worker_id=self.worker_id, error=describe(error))
                await self._wait_for_database(failing.pause())
                continue
            if failing_since is not None:
                logger().info("loop_restored", worker_id=self.worker_id, seconds=round(asked_at - failing_since, 3))
                failing_since = None
                failing.reset()
                self._doubt_listener()
                self._unheard_until = time.monotonic() + self._lease_seconds * 1.05
            claimed = await self._take(rows, asked_at, free)
            if claimed:
                unsettled.reset()
                if nobody_called:
                    self._doubt_listener()
            if claimed == free or sum(row.recall_id is not None for row in rows) >= free:
                # There may be more. Recalls that were deferred are out of the way, so this comes to an end.
                continue
            self._arm(rows[0], unsettled)
            await self._alarm.wait()

    async def _free_slots(self) -> int:
        """How many slots there are to look for. 0: there were none, or few; it has waited for more."""
        free = self._concurrency - len(self._runs)
        if free <= 0:
            await self._a_slot()
            return 0
        if free < self._concurrency // 8 and self._outcomes.are_on_their_way:
            # More are about to become free, and one look for all of them is cheaper.
            await self._outcomes.arrived()
            return 0
        return free

    async def _a_slot(self) -> None:
        """Returns when one becomes free. One at a time may wait for that."""
        self._slot_freed = anyio.Event()
        await self._slot_freed.wait()

    async def _take(self, rows: list[ClaimRow], asked_at: float, free: int) -> int:
        """Begins the claimed runs, logs them and the deferred recalls, and says how many were claimed."""
        claimed = [Run(row) for row in rows if row.run_id is not None]
        if claimed:
            self._own(claimed, asked_at)
            if len(claimed) == free and len(self._runs) < self._concurrency:
                # There is more to take, and slots became free meanwhile: the next look leaves before these begin.
                self._keep(self._begin(claimed))
            else:
                # What is heard meanwhile stays in the alarm.
                await self._begin(claimed)
        for row in rows:
            if row.run_id is None and row.recall_id is not None:
                logger().info(
                    "recall_deferred",
                    recall_id=row.recall_id,
                    session_id=row.session_id,
                    deferrals=row.deferrals,
                    reason=row.defer_reason,
                )
        return len(claimed)

    async def _look(self, free: int, *, everywhere: bool) -> list[ClaimRow]:
        """Claims up to so many due recalls and learns when to look again: one statement.

        everywhere: Also where nothing can be, by all that was heard.
        """
        if everywhere or self._listener is None:
            self._front.forget()
        due_from = self._front.look()
        waits = due_from is not None and due_from > self._clock.now()
        call = calls.claim(
            self.worker_id, free, timedelta(seconds=self._lease_seconds), self._host_store is None, due_from=due_from
        )
        asked_at = time.monotonic()
        async with database.answered_within(self._patience, "claim()"):
            rows = await self._looks.run(call)
        if not waits:
            self._look_took.append(time.monotonic() - asked_at)
        self._clock.sample(rows[0].now_at)
        self._looked_at = rows[0].now_at.timestamp()
        self._deliverer.told(rows[0].next_delivery_at)
        return rows

    def _arm(self, look: ClaimRow, unsettled: Backoff) -> None:
        """Sets the alarm after a look that left slots free."""
        now = time.monotonic()
        if look.settled and look.recall_id is not None:
            # Whoever has taken something is the first from now on, and has told the others if there are any.
            self._be_first()
        self._safety_at = now + self._safety_interval
        self._alarm.no_later_than(self._safety_at)
        if self._unheard_until > now:
            self._alarm.no_later_than(self._unheard_until)
        if look.settled:
            self._settled_at = now
        if look.settled and (look.next_due_at is None or look.next_due_at > look.now_at):
            unsettled.reset()
            self._front.looked(look.next_due_at)
        else:
            # Something may be due that this look could not see or could not have (its row is locked).
            self._alarm.no_later_than(now + unsettled.pause())
        if look.next_due_at is not None:
            left = (look.next_due_at - look.now_at).total_seconds()
            if look.settled and left > 0:
                self._next_at = self._clock.monotonic(look.next_due_at.timestamp())
                self._alarm.due(self._when_to_look(self._next_at))
            elif left > 0:
                self._alarm.no_later_than(now + left)

    def _doubt_listener(self) -> None:
        """A look found what nobody had announced, or the database was away and the listener may not have noticed."""
        if self._listener is not None:
            self._listener.doubt()

    async def _wait_for_database(self, pause: float) -> None:
        # The listener tries on its own; when it is back, so is the database.
        self._connected = anyio.Event()
        with anyio.move_on_after(pause):
            await self._connected.wait()
        await self._looks.mend()
        await self._database.mend()

    # Runs

    def _own(self, runs: Sequence[Run], asked_at: float) -> None:
        """These were claimed: from now on the worker answers for them, also before they begin."""
        self._runs.update((run.run_id, run) for run in runs)
        self._lease.add([run.run_id for run in runs], asked_at)
        if self._lease.was_in_doubt_after(asked_at):
            _stop(runs, "claimed in doubt")
        elif self._stopping.is_set():
            _stop(runs, "worker stopping")
        elif self._early_stop_at >= asked_at:
            self._told_to_stop.set()

    async def _begin(self, runs: Sequence[Run]) -> None:
        """Begins the first of them; the others follow by themselves, while the next look is under way."""
        begun, later = runs[: self._together], runs[self._together :]
        for run in begun:
            self._keep(self._run(run), at_once=True)
        # Whoever guards the lease waits until they have begun.
        self._look_at_lease()
        if later:
            self._keep(self._begin(later))
        # The agents first, then the log.
        await asyncio.sleep(0)
        log = logger().bind()
        for run in begun:
            run.log_claim(log)

    def _keep(self, work: Coroutine[Any, Any, None], *, at_once: bool = False) -> None:
        """Does it in a task of its own; at_once: not only in the next turn of the event loop, where Python can that."""
        if at_once and sys.version_info >= (3, 12):
            task = asyncio.Task(work, loop=self._event_loop, eager_start=True)
            if task.done():
                return
        else:
            task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, run: Run) -> None:
        try:
            await self._runner.run(run)
        except Exception as error:  # noqa: BLE001 (what goes wrong with one run must not end the others)
            logger().error("loop_error", worker_id=self.worker_id, run_id=run.run_id, error=describe(error))

    def _ended(self, run: Run, log: Any) -> None:
        """Its outcome is told, or never will be: its slot is free."""
        if run.stop_reason == "worker stopping" and run.finished is not None and run.finished.due_at is not None:
            self._given_back += 1
        self._lease.remove(run.run_id)
        self._runs.pop(run.run_id, None)
        self._slot_freed.set()
        run.log_ending(log)

    def _must_let_go(self) -> bool:
        return time.monotonic() > self._let_go_at

    def _lost(self, run_ids: Collection[int], reason: str) -> None:
        """These runs are no longer ours, or will soon not be: they must stop."""
        affected = [run for run_id, run in self._runs.items() if run_id in run_ids and run.stop_reason is None]
        if affected:
            logger().warning(
                "lease_lost",
                worker_id=self.worker_id,
                run_ids=sorted(run.run_id for run in affected),
                reason=reason,
            )
        for run in affected:
            run.stop("lease lost")

    async def _resolve_doubt(self) -> None:
        """Others may take this worker for dead: it claims nothing until it has a lifeline again, or does without."""
        left = self._lease.stop_at - time.monotonic()
        if left > 0:
            with anyio.move_on_after(left):
                await self._lease_changed.wait()
            return
        # Its runs have been told to stop. It may go on if the way to the database for statements is open.
        given_up = await self._database.run(calls.give_up_lifelines(self.worker_id, self._lease.lost_lifelines))
        if given_up[0]:
            self._lease.gave_up_lifelines()
        else:
            await anyio.sleep(_RETRY)

    def _look_at_lease(self) -> None:
        self._lease_changed.set()

    async def _guard_lease(self) -> None:
        """Stops the runs in time when it cannot be proved that they are still ours, whatever the proof waits for."""
        while True:
            self._lease_changed = anyio.Event()
            left: float | None = None
            running = [run_id for run_id, run in self._runs.items() if run.stop_reason is None]
            if running:
                left = self._lease.stop_at - time.monotonic()
                if left <= 0:
                    in_doubt = self._lease.in_doubt
                    self._lost(
                        running, "its connections were lost" if in_doubt else "the lease could not be renewed in time"
                    )
                    continue
            with anyio.move_on_after(left):
                await self._lease_changed.wait()

    async def _let_runs_end(self) -> None:
        """Lets them end within the grace period, and then tells the rest to stop."""
        self._let_go_at = time.monotonic() + self._grace + _LET_GO
        with anyio.move_on_after(self._grace):
            while self._runs:
                await self._a_slot()
        _stop(self._runs.values(), "worker stopping")


def _stop(runs: Iterable[Run], reason: StopReason) -> None:
    for run in list(runs):
        run.stop(reason)


def _check_numbers(
    concurrency: int,
    lease: float,
    grace: float,
    reconnect_grace: float | None,
    seconds: Mapping[str, float | None],
) -> None:
    if concurrency < 1 or concurrency % 1:
        raise SettingsError(f"concurrency is {concurrency}, but must be a whole number greater than 0")
    for name, value in seconds.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise SettingsError(f"{name} is {value}, but must be greater than 0")
    if not _SHORTEST_LEASE <= lease <= _LONGEST_LEASE:
        raise SettingsError(f"lease is {lease}, but must be {_SHORTEST_LEASE:g} to {_LONGEST_LEASE:g} seconds")
    if reconnect_grace is not None and not 0 < reconnect_grace <= 60:
        raise SettingsError(f"reconnect_grace is {reconnect_grace}, but must be greater than 0 and at most 60, or None")
    if not grace >= 0:
        raise SettingsError(f"grace is {grace}, but must be 0 or more")


@contextmanager
def _unpacked() -> Iterator[None]:
    """A task group wraps even a single error in a group; a caller should see the error itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


async def recall_scheduler_loop(
    scheduler: RecallScheduler,
    store: SessionStore | None = None,
    *,
    agent: Any,
    concurrency: int = 3,
    lease: float = 30.0,
    safety_interval: float = 60.0,
    timeout: float | None = None,
    grace: float = 30.0,
    reconnect_grace: float | None = 0.5,
    listen_dsn: str | None = None,
    poll_interval: float | None = None,
    webhook_secret: str | Sequence[str] | None = None,
) -> None:
    """Runs one worker inside the host's own event loop, beside its web server, until the task is cancelled.

    Installs the schema if it is missing. A failure of the database, also at the start, is logged as `loop_error` and
    tried again; cancelling the task stops the runs, gives their recalls back and ends the loop.

    Args:
        scheduler: Says which database.
        store: The host's session store; None: the default store in Postgres.
        agent: As for Worker; AgentFactory builds one for each run from the host's parts.
        concurrency: As for Worker, like all that follow.
        lease: Seconds.
        safety_interval: Seconds.
        timeout: Seconds, or None.
        grace: Seconds.
        reconnect_grace: Seconds, or None.
        listen_dsn: Where to LISTEN, if the scheduler's DSN goes through a transaction pooler.
        poll_interval: Seconds between looks of a loop that does not LISTEN at all.
        webhook_secret: For the deliveries of replies.

    Raises:
        SettingsError: A number makes no sense.
        AgentError: The agent cannot be used as one.
    """
    failing = Backoff(0.5, 30)
    complaint = ""
    while True:
        worker = Worker(
            scheduler.dsn,
            agent=agent,
            store=store,
            concurrency=concurrency,
            lease=lease,
            safety_interval=safety_interval,
            timeout=timeout,
            grace=grace,
            reconnect_grace=reconnect_grace,
            listen_dsn=listen_dsn,
            poll_interval=poll_interval,
            webhook_secret=webhook_secret,
        )
        try:
            await scheduler.ensure_tables()
            await worker.run()
        except (psycopg.Error, RecallError) as error:
            # Once for each reason why it cannot start, however many tries it takes.
            if describe(error) != complaint:
                complaint = describe(error)
                hint = getattr(error, "hint", "")
                logger().error("loop_error", worker_id=worker.worker_id, error=f"{complaint}. {hint}".rstrip(". "))
        await anyio.sleep(failing.pause())
