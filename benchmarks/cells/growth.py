"""What a claim, a look, an outcome and an insert cost as the tables grow, and while an old snapshot is open.

One connection, statement by statement, commits not waited for on disk: what is measured is the work, not the disk.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, ClassVar

import psycopg

from benchmarks.cell import Cell, Contestant, Figure, Sample, Size
from benchmarks.peer import Peer
from benchmarks.peers import raw
from benchmarks.server import Database, Server
from benchmarks.stage import Failed
from pgrecall import schema
from pgrecall._listener import Front

#: Numbers of rows that are probed with, beyond those that fill the table.
_FIRST = 100_000_000

#: Probes before those that count.
_WARM_UP = 20


class _Table(ABC):
    """The same few operations on either table."""

    #: Fills it: pending rows far ahead, or finished ones; by `first` and `last`.
    pending: ClassVar[list[str]]
    finished: ClassVar[list[str]]
    #: What is there before a job is made, and is no part of making it; by `number`.
    before: ClassVar[str]
    #: A job that is due now, and one that is due in an hour.
    due: ClassVar[str]
    later: ClassVar[str]

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def run(self, statement: str, **arguments: Any) -> list[Any]:
        cursor = self.connection.execute(statement.encode(), arguments or None)
        return cursor.fetchall() if cursor.description else []

    @abstractmethod
    def install(self) -> None:
        """Sets up an empty database."""

    @abstractmethod
    def look(self) -> object:
        """Finds nothing that is due, and learns when to look again."""

    @abstractmethod
    def claim(self, up_to: int) -> list[Any]:
        """Takes what is due."""

    @abstractmethod
    def finish(self, claimed: list[Any]) -> None:
        """Completes what was claimed."""


class _Ours(_Table):
    pending: ClassVar = [
        (
            "insert into pgrecall.sessions (id) "
            "select 's' || n from generate_series(%(first)s::bigint, %(last)s::bigint) as n"
        ),
        (
            "insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message) "
            "select 's' || n, now() + interval '2 hours' + random() * interval '1 year', 'hello' "
            "from generate_series(%(first)s::bigint, %(last)s::bigint) as n"
        ),
    ]
    finished: ClassVar = [
        pending[0],
        (
            "insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message, status) "
            "select 's' || n, now() - random() * interval '1 year', 'hello', 'fired' "
            "from generate_series(%(first)s::bigint, %(last)s::bigint) as n"
        ),
        (
            "insert into pgrecall.recall_runs "
            "(recall_id, session_id, nominal_at, started_at, finished_at, attempt, outcome) "
            "select id, session_id, trigger_at, trigger_at, trigger_at, 1, 'success' from pgrecall.session_recalls"
        ),
    ]
    before: ClassVar = "insert into pgrecall.sessions (id) values ('s' || %(number)s::bigint)"
    due: ClassVar = (
        "insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message) "
        "values ('s' || %(number)s::bigint, now(), 'hello')"
    )
    later: ClassVar = due.replace("now()", "now() + interval '3 hours'")

    def install(self) -> None:
        with self.connection.transaction():
            schema.install(self.connection)
        # Looks begin where a worker's would: it hears what is due, and remembers what its last look has seen.
        self.connection.execute("listen pgrecall")
        self._front = Front()

    def look(self) -> object:
        return self.claim(10)

    def claim(self, up_to: int) -> list[Any]:
        for heard in self.connection.notifies(timeout=0):
            kind, _, value = heard.payload.partition(" ")
            if kind == "due":
                self._front.heard(int(value))
        rows = self.run(
            "select now_at, next_due_at, settled, recall_id, run_id "
            "from pgrecall.claim('benchmark', %(up_to)s, '30 seconds', false, %(due_from)s)",
            up_to=up_to,
            due_from=self._front.look(),
        )
        now_at, next_due_at, settled = rows[0][:3]
        if settled and (next_due_at is None or next_due_at > now_at):
            self._front.looked(next_due_at)
        return [row[3:] for row in rows if row[4] is not None]

    def finish(self, claimed: list[Any]) -> None:
        for recall_id, run_id in claimed:
            self.run(
                "select * from pgrecall.finish(%(recall_id)s, %(run_id)s, 'success')",
                recall_id=recall_id,
                run_id=run_id,
            )


class _Raw(_Table):
    pending: ClassVar = [
        (
            "insert into public.jobs (number, run_at) "
            "select n, now() + interval '2 hours' + random() * interval '1 year' "
            "from generate_series(%(first)s::bigint, %(last)s::bigint) as n"
        )
    ]
    finished: ClassVar = [
        (
            "insert into public.jobs (number, run_at, status) select n, now() - random() * interval '1 year', 'done' "
            "from generate_series(%(first)s::bigint, %(last)s::bigint) as n"
        )
    ]
    before: ClassVar = "select %(number)s::bigint"
    due: ClassVar = "insert into public.jobs (number, run_at) values (%(number)s, now())"
    later: ClassVar = "insert into public.jobs (number, run_at) values (%(number)s, now() + interval '3 hours')"

    def install(self) -> None:
        self.connection.execute(raw.INSTALL)

    def look(self) -> object:
        self.connection.execute(raw.CLAIM, [10])
        return self.run(raw.NEXT)

    def claim(self, up_to: int) -> list[Any]:
        return self.connection.execute(raw.CLAIM, [up_to]).fetchall()

    def finish(self, claimed: list[Any]) -> None:
        self.connection.execute(raw.COMPLETE, [[number for (number,) in claimed]])


@contextmanager
def _table(database: Database, name: str) -> Iterator[_Ours | _Raw]:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("set synchronous_commit = off")
        table = _Ours(connection) if name == "ours" else _Raw(connection)
        table.install()
        yield table


def _fill(table: _Ours | _Raw, statements: list[str], rows: int) -> None:
    # Neither foreign keys nor our trigger: both are checked row by row, and neither is measured here.
    table.run("set session_replication_role = replica")
    if isinstance(table, _Ours):
        table.run("alter table pgrecall.session_recalls disable trigger announce_insert")
    for statement in statements:
        table.run(statement, first=1, last=rows)
    if isinstance(table, _Ours):
        table.run("alter table pgrecall.session_recalls enable always trigger announce_insert")
    table.run("set session_replication_role = origin")
    table.run("vacuum analyze")


def _timed(function: Callable[[], object]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = function()
    return (time.perf_counter() - began) * 1e3, result


def _probe(table: _Ours | _Raw, probes: int, first: int = _FIRST) -> dict[str, float]:
    """Medians of milliseconds; each probe inserts one job for later and one for now, claims that and completes it."""
    times: dict[str, list[float]] = {key: [] for key in ("insert", "look", "claim", "finish")}
    for place in range(-_WARM_UP, probes):
        number = first + 2 * (place + _WARM_UP)
        table.run(table.before, number=number)
        table.run(table.before, number=number + 1)
        insert, _ = _timed(lambda number=number: table.run(table.later, number=number))  # type: ignore[misc]
        look, _ = _timed(table.look)
        table.run(table.due, number=number + 1)
        claim, claimed = _timed(lambda: table.claim(1))
        if len(claimed) != 1:
            raise Failed(f"{len(claimed)} jobs were claimed where one was due")
        finish, _ = _timed(lambda claimed=claimed: table.finish(claimed))  # type: ignore[misc]
        if place >= 0:
            for key, value in (("insert", insert), ("look", look), ("claim", claim), ("finish", finish)):
                times[key].append(value)
    return {key: median(values) for key, values in times.items()}


class _Growth(Cell):
    figures = (
        Figure("insert", "insert, ms", "ms"),
        Figure("look", "look that finds nothing, ms", "ms"),
        Figure("claim", "claim of one, ms", "ms"),
        Figure("finish", "outcome of one, ms", "ms"),
    )
    baseline_is_first_variant = True

    def contestants(self, peers: Iterable[Peer]) -> list[Contestant]:
        return [Contestant(name, "") for name in ("raw", "ours")]


class Pending(_Growth):
    name = "pending"
    title = "By pending rows"

    def variants(self, size: Size) -> list[str]:
        return [f"{rows:,} pending" for rows in size.pending]

    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        with server.database() as database, _table(database, contestant.name) as table:
            _fill(table, table.pending, int(variant.split(maxsplit=1)[0].replace(",", "")))
            server.settle()
            return Sample(_probe(table, size.probes))


class Finished(_Growth):
    name = "finished"
    title = "By finished rows"

    def variants(self, size: Size) -> list[str]:
        return [f"{rows:,} finished" for rows in (0, size.finished)]

    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        with server.database() as database, _table(database, contestant.name) as table:
            _fill(table, table.finished, int(variant.split(maxsplit=1)[0].replace(",", "")))
            server.settle()
            return Sample(_probe(table, size.probes))


class OldSnapshot(_Growth):
    name = "snapshot"
    title = "While a transaction is open that began before thousands fired"

    def variants(self, size: Size) -> list[str]:
        return [f"{size.snapshot_jobs:,} fired, {how}" for how in ("no snapshot", "old snapshot open")]

    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        jobs = size.snapshot_jobs
        with (
            server.database() as database,
            _table(database, contestant.name) as table,
            psycopg.connect(database.dsn) as reader,
        ):
            _fill(table, table.pending, 1000)
            server.settle()
            if variant.endswith("old snapshot open"):
                reader.execute("set transaction isolation level repeatable read")
                reader.execute("select count(*) from pg_class")
            for first in range(_FIRST, _FIRST + jobs, 100):
                numbers = list(range(first, min(first + 100, _FIRST + jobs)))
                for statement in (table.before, table.due):
                    with table.connection.transaction(), table.connection.cursor() as cursor:
                        cursor.executemany(statement.encode(), [{"number": number} for number in numbers])
                fired = table.claim(100)
                if len(fired) != len(numbers):
                    raise Failed(f"{len(fired)} of {len(numbers)} due jobs were claimed")
                table.finish(fired)
            return Sample(_probe(table, size.probes, _FIRST + jobs))
