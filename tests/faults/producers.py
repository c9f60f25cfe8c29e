"""Producers: transactions of every isolation level and length, with savepoints and rollbacks, that ask for recalls.

What a producer asked for stands in `faults.asked`, written by the same transaction as the recall, so that it is there
if and only if the recall was committed; not even the producer knows when its connection dies during COMMIT.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psycopg
from psycopg.types.json import Jsonb

_LEVELS = (
    psycopg.IsolationLevel.READ_COMMITTED,
    psycopg.IsolationLevel.REPEATABLE_READ,
    psycopg.IsolationLevel.SERIALIZABLE,
)
_ASK = """
with asked as (
    insert into pgrecall.session_recalls (
        id, session_id, call_type, trigger_at, interval_seconds, end_at, additional_context_message, metadata,
        max_attempts
    )
    values (
        %(id)s, %(session_id)s, %(call_type)s, clock_timestamp() + %(after)s * interval '1 second', %(interval)s,
        clock_timestamp() + %(after)s * interval '1 second' + %(ends)s * interval '1 second', %(message)s,
        %(metadata)s, 1000
    )
    returning *
)
insert into faults.asked (recall_id, session_id, producer, isolation, trigger_at, interval_seconds, occurrences)
select
    id, session_id, %(producer)s, current_setting('transaction_isolation'), trigger_at, interval_seconds,
    %(occurrences)s
from asked
"""


@dataclass(frozen=True)
class Habits:
    """How producers behave; all times in seconds, all shares between 0 and 1.

    Attributes:
        sessions: How many sessions there are, named s0, s1 …; they exist.
        run: The longest that a run takes; most are much shorter.
        ahead: A recall is due at most so long after it was asked for; some are overdue.
        long_transaction: The longest that a transaction stays open.
        rolled_back: The share of transactions, and of savepoints, that are rolled back.
        recurring: The share of recalls that recur, 2 to 4 times.
    """

    sessions: int = 200
    run: float = 1.5
    ahead: float = 5.0
    long_transaction: float = 3.0
    rolled_back: float = 0.15
    recurring: float = 0.1


class Producer:
    """One producer in a thread; a context manager that stops it.

    Args:
        dsn: The database, prepared by `accounting.prepare`.
        number: Its own, for its share of the sessions and the ids of its recalls.
        seed: Decides what it does, but not when the database lets it.
        habits: See there.
        pause: Asked before each transaction: how many seconds to wait; None: it is done.
    """

    def __init__(self, dsn: str, number: int, seed: int, habits: Habits, pause: Callable[[], float | None]) -> None:
        self._dsn = dsn
        self._number = number
        self._random = random.Random(f"{seed} {number}")
        self._habits = habits
        self._pause = pause
        self._ids = (f"p{number}-{count}" for count in itertools.count(1))
        self._rolled_back: list[str] = []
        self._connection: psycopg.Connection | None = None
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self.transactions = 0
        self.interrupted = 0
        self._thread = threading.Thread(target=self._run, name=f"producer {number}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(30)
        if self._connection is not None:
            self._connection.close()
        if self._error is not None and value is None:
            raise self._error

    @property
    def done(self) -> bool:
        """Whether it has nothing more to do."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                pause = self._pause()
                if pause is None:
                    break
                if not self._stopping.wait(pause):
                    self._transact()
            self._until_done(self._confess)
        except Exception as error:  # noqa: BLE001 (raised where the producer is left)
            self._error = error

    def _until_done(self, work: Callable[[], None]) -> None:
        while True:
            try:
                work()
            except psycopg.OperationalError:
                if self._stopping.wait(0.1):
                    return
            else:
                return

    def _transact(self) -> None:
        """One transaction, whatever becomes of it."""
        ids: list[str] = []
        try:
            connection = self._connected()
            connection.isolation_level = self._random.choice(_LEVELS)
            self.transactions += 1
            with connection.transaction() as whole:
                self._ask_several(connection, ids)
                if self._random.random() < self._habits.rolled_back:
                    raise psycopg.Rollback(whole)  # noqa: TRY301 (caught by the transaction)
                ids = []
            self._rolled_back += ids
            self._confess()
        except (psycopg.OperationalError, psycopg.Rollback):
            # A connection that was cut (also while rolling back), a serialization failure or a deadlock: all of it is
            # rolled back, unless the connection was lost during COMMIT. So these ids tell nothing, and faults.asked
            # tells all.
            self.interrupted += 1
            self._stopping.wait(0.05)

    def _confess(self) -> None:
        """Write down what was rolled back for certain."""
        if self._rolled_back:
            connection = self._connected()
            connection.isolation_level = None
            with connection.transaction(), connection.cursor() as cursor:
                statement = "insert into faults.rolled_back (recall_id) values (%s) on conflict do nothing"
                cursor.executemany(statement, [[recall_id] for recall_id in self._rolled_back])
            self._rolled_back = []

    def _connected(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._dsn, autocommit=True, application_name="producer")
        return self._connection

    def _ask_several(self, connection: psycopg.Connection, ids: list[str]) -> None:
        dice = self._random
        # Most transactions are short, some are very long.
        length = dice.choice([0, 0, 0, 0.05, 0.3, self._habits.long_transaction * dice.random()])
        count = dice.choice([1, 1, 1, 2, 3, 6])
        for _ in range(count):
            recall_id = next(self._ids)
            kept = False
            # The session may have a pending recall already: only the savepoint is lost then.
            with suppress(psycopg.errors.UniqueViolation), connection.transaction() as savepoint:
                self._ask(connection, recall_id)
                if dice.random() < self._habits.rolled_back:
                    raise psycopg.Rollback(savepoint)
                kept = True
            (ids if kept else self._rolled_back).append(recall_id)
            time.sleep(length / count)

    def _ask(self, connection: psycopg.Connection, recall_id: str) -> None:
        dice, habits = self._random, self._habits
        # Sessions of its own mostly: two producers that want the same one wait for each other's transaction.
        session = dice.randrange(habits.sessions)
        if dice.random() < 0.9:
            session = (session - session % 4 + self._number % 4) % habits.sessions
        recurring = dice.random() < habits.recurring
        interval = dice.choice([1, 1, 2]) if recurring else None
        occurrences = dice.choice([2, 3, 4]) if recurring else 1
        values = {
            "id": recall_id,
            "session_id": f"s{session}",
            "call_type": "recurring" if recurring else "once",
            "after": dice.choice([-1, 0, 0.01, 0.5, *[dice.random() * habits.ahead] * 4]),
            "interval": interval,
            # The time of the last occurrence, plus less than an interval.
            "ends": (occurrences - 1) * interval + 0.5 if interval else None,
            "occurrences": occurrences,
            "message": f"message of {recall_id}",
            "metadata": Jsonb({"seconds": round(habits.run * dice.random() ** 3, 3)}),
            "producer": self._number,
        }
        connection.execute(_ASK, values)
