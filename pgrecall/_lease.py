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
from pgrecall.telemetry import logger


class LeaseKeeper:
    """One renewal for all runs every third of the lease, and none while there are no runs.

    The lease is counted from when the request for it was *sent*, by the monotonic clock, so it never seems to last
    longer than the database thinks.

    Args:
        dsn: Where to renew.
        worker_id: Whose lease.
        lease: Its length in seconds.
        on_lost: Called from the thread with the runs that must stop, and why; None means all of them.
    """

    def __init__(
        self, dsn: str, worker_id: str, lease: float, on_lost: Callable[[frozenset[int] | None, str], None]
    ) -> None:
        self._dsn = dsn
        self._worker_id = worker_id
        self._lease = lease
        self._on_lost = on_lost
        self._runs: dict[int, float] = {}
        self._until = 0.0
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
            self._until = max(self._until if self._runs else 0.0, asked_at + self._lease * 0.66)
            self._runs[run_id] = asked_at
            self._changed.notify()

    def remove(self, run_id: int) -> None:
        """A run has ended."""
        with self._changed:
            self._runs.pop(run_id, None)

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
                pause = self._until - self._lease * 0.33 - time.monotonic()
                if pause > 0:
                    self._changed.wait(min(pause, self._lease / 3))
                    continue
            self._renew()
        if self._connection is not None:
            self._connection.close()

    def _renew(self) -> None:
        asked_at = time.monotonic()
        try:
            if self._connection is None or self._connection.broken or self._connection.closed:
                self._connection = psycopg.connect(self._dsn, autocommit=True)
            held = frozenset(
                database.run_sync(self._connection, calls.renew(self._worker_id, timedelta(seconds=self._lease)))
            )
            self._release_unheard(held)
        except psycopg.Error as error:
            self._after_failure(describe(error))
            return
        with self._changed:
            self._until = asked_at + self._lease
            # A run claimed after the question was asked is not in the answer.
            gone = frozenset(run for run, claimed_at in self._runs.items() if run not in held and claimed_at < asked_at)
            for run in gone:
                del self._runs[run]
        if gone:
            self._on_lost(gone, "another worker has them, or they were cancelled")

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

    def _after_failure(self, error: str) -> None:
        # The margin is the time a cancelled run gets to stop before the lease really ends.
        margin = min(5.0, self._lease / 6)
        with self._changed:
            if self.seconds_left > margin:
                self._changed.wait(min(1.0, self._lease / 10))
                return
            self._runs.clear()
        logger().error("lease_lost", worker_id=self._worker_id, run_ids="all", reason=error)
        self._on_lost(None, "the lease could not be renewed in time")
