"""Who sent a notification: whoever may connect may notify, but nobody can forge the process id that comes with it.

Knows nothing of what is said. docs/wake-up.md, "The herd", says what hangs on it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import anyio
import psycopg

from pgrecall._backoff import Backoff
from pgrecall.agents import describe
from pgrecall.database import AsyncDatabase, answered_within
from pgrecall.errors import RecallError
from pgrecall.telemetry import logger

#: Seconds for which an answer counts: the system gives a process id again when its owner has ended, and tells nobody.
_COUNTS_FOR = 600.0

#: The most workers' processes and the most strangers that are remembered, and the most strangers in one question.
_MOST = 1000
_MOST_AT_ONCE = 100

#: Seconds between two questions at least: while they find workers, and at most while all who speak are strangers.
_PAUSE = (0.05, 5)

#: Seconds within which the database must answer.
_PATIENCE = 10.0

#: The server processes that serve somebody who may take recalls: everybody sees of all who they are. All and not only
#: those who have spoken, so that one question is enough for a fleet.
_MAY_CLAIM = """
    select sender.pid
    from pg_catalog.pg_stat_activity as sender
    where sender.datname = pg_catalog.current_database()
        and exists (
            select
            from pg_catalog.pg_proc as routine
            join pg_catalog.pg_namespace as place on place.oid = routine.pronamespace
            where place.nspname = 'pgrecall'
                and routine.proname = 'claim'
                and pg_catalog.has_function_privilege(sender.usesysid, routine.oid, 'execute')
        )
    order by sender.pid = any (%(pids)s) desc
    limit %(most)s
"""


class Senders:
    """Tells workers from others by the server process that sent a notification.

    The answer comes from memory at once, so that a flood of messages costs nothing. Who is unknown counts as a
    stranger and is asked about: one statement, whoever has spoken meanwhile.

    Args:
        worker_id: For the log.
        database: Where the notifications are sent.
        on_known: Called when somebody who was asked about is known to be no stranger.
    """

    def __init__(self, worker_id: str, database: AsyncDatabase, on_known: Callable[[], None]) -> None:
        self._worker_id = worker_id
        self._database = database
        self._on_known = on_known
        # Whether they may claim, and until when that counts.
        self._known: dict[int, bool] = {}
        self._counts_until = -math.inf
        self._unknown: set[int] = set()
        self._wanted = anyio.Event()

    def may_claim(self, pid: int) -> bool:
        """Whether this server process is known to serve a role that may execute `claim`, as a worker's does."""
        if pid in self._known and time.monotonic() < self._counts_until:
            return self._known[pid]
        if len(self._unknown) < _MOST_AT_ONCE:
            self._unknown.add(pid)
            self._wanted.set()
        return False

    def forget(self) -> None:
        """The listener is connected to another server, or may be: its process ids are others."""
        self._known = {}

    async def run(self) -> None:
        """Asks about those who are unknown, until cancelled."""
        pausing = Backoff(*_PAUSE)
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            known, asked = self._known, self._unknown
            self._unknown = set()
            try:
                async with answered_within(_PATIENCE, "the question who sent a notification"):
                    rows = await self._database.query(_MAY_CLAIM, {"pids": sorted(asked), "most": _MOST})
            except (RecallError, psycopg.Error) as error:
                # Whoever speaks again is asked about again.
                logger().debug("senders_unknown", worker_id=self._worker_id, error=describe(error))
            else:
                workers = {row["pid"] for row in rows}
                if known is self._known:  # else the answer is of another server
                    strangers = [pid for pid in known if not known[pid]] + sorted(asked)
                    self._known = dict.fromkeys(strangers[-_MOST:], False) | dict.fromkeys(workers, True)
                    self._counts_until = time.monotonic() + _COUNTS_FOR
                if workers & asked:
                    pausing.reset()
                    self._on_known()
            await anyio.sleep(pausing.pause())
