"""Staying alive: renews the worker's lease while it has runs, from a thread that no agent can starve.

Knows nothing of what the runs do; it says which of them are no longer the worker's own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import psycopg

from pgrecall import calls, database
from pgrecall.agents import describe
from pgrecall.errors import RecallError
from pgrecall.telemetry import logger


class LeaseKeeper:
    """One renewal for all runs every third of the lease, and none while there are no runs.

    The lease is counted from when the request for it was *sent*, by the monotonic clock, so it never seems to last
    longer than the database thinks.

    Args:
        dsn: Where to renew.
        worker_id: Whose lease.
        lease: Its length in seconds.
        on_lost: Called from the thread with the runs that must stop, and why.
    """

    def __init__(self, dsn: str, worker_id: str, lease: float, on_lost: Callable[[frozenset[int], str], None]) -> None:
        self._dsn = dsn
        self._worker_id = worker_id
        self._lease = lease
        self._on_lost = on_lost
        self._runs: dict[int, float] = {}
        self._until = 0.0
        self._renew_at = 0.0
        self._told: set[int] = set()
        self._unknown: frozenset[int] = frozenset()
        self._changed = threading.Condition()
        self._stopping = False
        self._connection: psycopg.Connection | None = None
        self._thread = threading.Thread(target=self._keep, name="pgrecall-lease", daemon=True)

    def start(self) -> None:
        """Starts the thread; it connects when it first has something to renew."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; does not wait for a renewal that is under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def add(self, run_id: int, asked_at: float) -> None:
        """A run has begun; its claim was sent at this monotonic time.

        The claim left at least 0.66 of a lease (see the SQL function claim), which is what is counted on.
        """
        with self._changed:
            if not self._runs:
                self._until, self._renew_at = 0.0, asked_at + self._lease / 3
            self._until = max(self._until, asked_at + self._lease * 0.66)
            self._runs[run_id] = asked_at
            self._changed.notify()

    def remove(self, run_id: int) -> None:
        """A run has ended."""
        with self._changed:
            self._runs.pop(run_id, None)
            self._told.discard(run_id)

    @property
    def seconds_left(self) -> float:
        """For how long the claims are certainly still the worker's own."""
        return self._until - time.monotonic()

    def _keep(self) -> None:
        while True:
            with self._changed:
                while not self._runs and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    break
                # Due when a third of the lease is over: two thirds are left for trying.
                pause = self._renew_at - time.monotonic()
                if pause > 0:
                    self._changed.wait(pause)
                    continue
            try:
                self._renew()
            except (psycopg.Error, RecallError) as error:
                logger().warning("renewal_failed", worker_id=self._worker_id, error=describe(error))
                with self._changed:
                    self._renew_at = time.monotonic() + min(1.0, self._lease / 10)
        if self._connection is not None:
            self._connection.close()

    def _renew(self) -> None:
        asked_at = time.monotonic()
        if self._connection is None or self._connection.broken or self._connection.closed:
            self._connection = psycopg.connect(self._dsn, autocommit=True)
            self._connection.execute(database.SESSION_SETTINGS)
        call = calls.renew(self._worker_id, timedelta(seconds=self._lease))
        held = frozenset(database.run_sync(self._connection, call))
        with self._changed:
            self._until = asked_at + self._lease
            self._renew_at = asked_at + self._lease / 3
            # A run claimed after the question was asked is not in the answer. One that was told to stop goes on being
            # renewed for until it has stopped: its session stays taken for so long.
            gone = frozenset(run for run, claimed_at in self._runs.items() if run not in held and claimed_at < asked_at)
            gone -= self._told
            self._told |= gone
        if gone:
            self._on_lost(gone, "another worker has them, or they were cancelled")
        self._release_unheard(held)

    def _release_unheard(self, held: frozenset[int]) -> None:
        """Gives back claims whose answer was lost on its way here; nobody else may while we renew the lease."""
        assert self._connection is not None  # noqa: S101 (the caller has just used it)
        with self._changed:
            unknown = held - self._runs.keys()
        # Unknown twice, a third of a lease apart: not just an answer that is still on its way.
        unheard = unknown & self._unknown
        self._unknown = unknown - unheard
        if unheard:
            database.run_sync(self._connection, calls.release(self._worker_id, unheard))
            logger().warning("claim_unheard", worker_id=self._worker_id, run_ids=sorted(unheard))
