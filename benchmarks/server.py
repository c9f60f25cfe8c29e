"""The PostgreSQL that is measured: its own, durable, the same for all peers; and what it counts."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgrecall.embedded import EmbeddedPostgres, find_binaries

#: What a machine of this size would be given; fsync and full_page_writes stay on.
SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "max_connections": "700",
    "checkpoint_timeout": "30min",  # checkpoints come between the cells, see Server.settle
    "max_locks_per_transaction": "256",
    "idle_session_timeout": "0",
}

_MODULES = ("pg_stat_statements", "auto_explain")


@dataclass(frozen=True, slots=True)
class Counts:
    """What has been counted so far.

    Attributes:
        statements: Top-level statements of clients in the database, BEGIN, LISTEN and NOTIFY included; None: the
            server has no pg_stat_statements.
        transactions: In the database, of background processes too.
        server_seconds: Processor time of the whole server.
    """

    statements: int | None
    transactions: int
    server_seconds: float

    def since(self, before: Counts) -> Counts:
        """What was counted between the two."""
        return Counts(
            None if self.statements is None or before.statements is None else self.statements - before.statements,
            self.transactions - before.transactions,
            self.server_seconds - before.server_seconds,
        )


class Server:
    """A running server with a connection for the harness, in a database that no peer uses.

    Args:
        durable: With fsync, as what is measured must be; tests of the harness do without.
        binaries: Where another PostgreSQL's `postgres` and `initdb` are. Default: see `find_binaries`.
    """

    def __init__(self, *, durable: bool = True, binaries: Path | None = None) -> None:
        self.binaries = find_binaries(binaries)
        library = subprocess.run(
            [self.binaries / "pg_config", "--pkglibdir"], capture_output=True, text=True, check=False
        ).stdout.strip()
        self.modules = [name for name in _MODULES if library and (Path(library) / f"{name}.so").exists()]
        self._stack = ExitStack()
        directory = Path(self._stack.enter_context(TemporaryDirectory(prefix="pgrecall-bench-")))
        own = {"shared_preload_libraries": ",".join(self.modules)}
        if "pg_stat_statements" in self.modules:
            own |= {"pg_stat_statements.track": "top", "pg_stat_statements.max": "10000"}
        unsafe = {} if durable else {"fsync": "off", "full_page_writes": "off"}
        self.settings = {**SETTINGS, **own, **unsafe}
        self._postgres = EmbeddedPostgres(
            directory / "data", settings=self.settings, binaries=self.binaries, durable=durable
        )
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self._postgres)
            self.connection = self._stack.enter_context(psycopg.connect(self._postgres.dsn, autocommit=True))
            # Its own role tells what the harness does from what is measured.
            self.connection.execute("create role harness superuser login")
            if "pg_stat_statements" in self.modules:
                self.connection.execute("create extension pg_stat_statements")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def number(self, statement: str) -> Any:
        """The one value that it answers."""
        row = self.connection.execute(statement.encode()).fetchone()
        assert row is not None
        return row[0]

    @contextmanager
    def database(self) -> Iterator[Database]:
        """An empty database, dropped afterwards."""
        name = f"bench{next(self._numbers)}"
        self.connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            yield Database(self, name, self._postgres.dsn)
        finally:
            self.connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def settle(self) -> None:
        """Ends what the cell before left to do, so that the next one does not pay for it."""
        self.connection.execute("checkpoint")
        if "pg_stat_statements" in self.modules:
            self.connection.execute("select pg_stat_statements_reset()")

    def processor_seconds(self) -> float:
        """Processor time of the server so far: of all that runs, and of all that has ended."""
        postmaster = psutil.Process(self._postgres.pid)
        times = postmaster.cpu_times()
        total = times.user + times.system + times.children_user + times.children_system
        for child in postmaster.children():
            try:
                of_child = child.cpu_times()
            except psutil.NoSuchProcess:  # now among the children of the postmaster, a moment too late
                continue
            total += of_child.user + of_child.system
        return float(total)


class Database:
    """One database of the server.

    Attributes:
        dsn: A URI that psycopg, asyncpg and sqlx understand.
    """

    def __init__(self, server: Server, name: str, dsn: str) -> None:
        self.server = server
        self.name = name
        base, _, parameters = dsn.partition("?")
        self.dsn = f"{base.rpartition('/')[0]}/{name}?{parameters}"

    def connect(self) -> psycopg.Connection[Any]:
        """A connection of the harness's own: nothing that is to be counted goes through it."""
        return psycopg.connect(make_conninfo(self.dsn, user="harness"), autocommit=True)

    def counts(self) -> Counts:
        """As of now, also for the statistics of sessions that are idle."""
        statements = None
        if "pg_stat_statements" in self.server.modules:
            statements = self.server.number(
                "select coalesce(sum(calls), 0)::bigint from pg_stat_statements where toplevel "
                f"and dbid = (select oid from pg_database where datname = '{self.name}') "
                "and userid <> 'harness'::regrole"
            )
        transactions = self.server.number(
            f"select xact_commit + xact_rollback from pg_stat_database where datname = '{self.name}'"
        )
        return Counts(statements, transactions, self.server.processor_seconds())

    def clients(self) -> int:
        """How many connections there are."""
        return int(
            self.server.number(
                f"select count(*) from pg_stat_activity where datname = '{self.name}' "
                "and backend_type = 'client backend' and usename <> 'harness'"
            )
        )
