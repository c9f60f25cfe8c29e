"""Who sent a notification: whoever may connect may notify, but nobody can forge the process id that comes with it.

Knows nothing of what is said. docs/wake-up.md, "The herd", says what hangs on it.
"""

from __future__ import annotations

import math
import time

import anyio
import psycopg

from pgrecall._backoff import Backoff
from pgrecall.agents import describe
from pgrecall.database import AsyncDatabase, answered_within
from pgrecall.errors import RecallError
from pgrecall.telemetry import logger

#: Seconds for which an answer counts. The system gives a process id again when its owner has ended, and that is not said
#: to anybody.
_COUNTS_FOR = 600.0

#: The most process ids that are remembered, and the most that are asked about at once.
_MOST = 1000
_MOST_AT_ONCE = 100

#: Seconds between two questions at least, however many strangers speak.
_PAUSE = 1.0

#: Seconds within which the database must answer.
_PATIENCE = 10.0

#: Which of these processes serve somebody who may take recalls; of others everybody sees no more than who they are.
_MAY_CLAIM = """
    select sender.pid
    from pg_catalog.pg_stat_activity as sender
    where sender.pid = any (%(pids)s)
        and exists (
            select
            from pg_catalog.pg_proc as routine
            join pg_catalog.pg_namespace as place on place.oid = routine.pronamespace
            where place.nspname = 'pgrecall'
                and routine.proname = 'claim'
                and pg_catalog.has_function_privilege(sender.usesysid, routine.oid, 'execute')
        )
"""


class Senders:
    """Tells workers from others by the server process that sent a notification.

    The answer comes from memory at once, so that a flood of messages costs nothing. Who is unknown counts as a
    stranger and is asked about: one statement for all who have spoken meanwhile.

    Args:
        worker_id: For the log.
        database: Where the notifications are sent.
    """

    def __init__(self, worker_id: str, database: AsyncDatabase) -> None:
        self._worker_id = worker_id
        self._database = database
        # For each process id, the oldest answer first: whether it may claim, and until when that counts.
        self._known: dict[int, tuple[bool, float]] = {}
        self._unknown: set[int] = set()
        self._wanted = anyio.Event()

    def may_claim(self, pid: int) -> bool:
        """Whether this server process is known to serve a role that may execute `claim`, as a worker's does."""
        may_claim, counts_until = self._known.get(pid, (False, -math.inf))
        if time.monotonic() < counts_until:
            return may_claim
        if len(self._unknown) < _MOST_AT_ONCE:
            self._unknown.add(pid)
            self._wanted.set()
        return False

    def forget(self) -> None:
        """The listener is connected to another server, or may be: its process ids are others."""
        # Another dictionary, so that an answer that is under way is not taken for one of this server.
        self._known = {}

    async def run(self) -> None:
        """Asks about those who are unknown, until cancelled."""
        failing = Backoff(_PAUSE, 60)
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            known, pids = self._known, self._unknown
            self._unknown = set()
            try:
                async with answered_within(_PATIENCE, "the question who sent a notification"):
                    rows = await self._database.query(_MAY_CLAIM, {"pids": sorted(pids)})
            except (RecallError, psycopg.Error) as error:
                # Whoever speaks again is asked about again.
                logger().debug("senders_unknown", worker_id=self._worker_id, error=describe(error))
                await anyio.sleep(failing.pause())
                continue
            failing.reset()
            workers = {row["pid"] for row in rows}
            counts_until = time.monotonic() + _COUNTS_FOR
            for pid in pids:
                known.pop(pid, None)
                known[pid] = (pid in workers, counts_until)
            while len(known) > _MOST:
                del known[next(iter(known))]
            await anyio.sleep(_PAUSE)
