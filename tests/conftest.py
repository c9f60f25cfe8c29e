"""Fixtures that every test shares: one PostgreSQL per session, one template database, a clone of it per test.

Under pytest-xdist the controller starts the server and tells the workers where it is.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from servers import Server, ServerUnavailable, room_in_memory, with_database
from servers import server as running_server
from workerprocess import Start, worker_processes

_SERVER = pytest.StashKey[Server]()
_CLEANUP = pytest.StashKey[ExitStack]()
_RUN = pytest.StashKey[str]()
_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Start the server, or learn from the controller which one it started."""
    given = getattr(config, "workerinput", None)
    if given is not None:
        config.stash[_SERVER] = Server(**given["pgrecall_server"])
        config.stash[_RUN] = given["pgrecall_run"]
    elif not config.option.collectonly:
        cleanup = config.stash[_CLEANUP] = ExitStack()
        if memory := room_in_memory():
            os.environ.setdefault("TMPDIR", memory)  # also what the servers and processes of the tests go by
            tempfile.tempdir = None
        try:
            config.stash[_SERVER] = cleanup.enter_context(running_server())
        except ServerUnavailable as error:
            raise pytest.UsageError(str(error)) from error
        config.stash[_RUN] = uuid.uuid4().hex[:8]
        cleanup.callback(_drop_roles, config.stash[_SERVER], _group_roles(config.stash[_SERVER]))
        cleanup.callback(_drop_databases, config.stash[_SERVER], config.stash[_RUN])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """Tell an xdist worker about the server."""
    config: pytest.Config = node.config  # type: ignore[attr-defined]
    node.workerinput["pgrecall_server"] = asdict(config.stash[_SERVER])  # type: ignore[attr-defined]
    node.workerinput["pgrecall_run"] = config.stash[_RUN]  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what ``pytest_configure`` started."""
    if cleanup := config.stash.get(_CLEANUP, None):
        cleanup.close()


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say which PostgreSQL the results are about."""
    server = config.stash.get(_SERVER, None)
    return None if server is None else f"postgresql: {server.version // 10000}.{server.version % 10000} ({server.kind})"


def _drop_databases(server: Server, run: str) -> None:
    """Leave a server that outlives the session as it was."""
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        left = admin.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [f"recall_{run}_"])
        for (name,) in left.fetchall():
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _group_roles(server: Server) -> set[str]:
    with psycopg.connect(server.dsn) as db:
        found = db.execute(
            "SELECT rolname FROM pg_roles WHERE rolname LIKE 'pgrecall\\_%%' AND NOT rolcanlogin"
        ).fetchall()
    return {name for (name,) in found}


def _drop_roles(server: Server, before: set[str]) -> None:
    """Drop the group roles that installations have made meanwhile, unless another database of the server has them."""
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        for name in _group_roles(server) - before:
            with suppress(psycopg.errors.DependentObjectsStillExist, psycopg.errors.UndefinedObject):
                admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


class _Databases:
    """Makes databases, and drops them later: DROP waits 0.1 s where a connection to its database is just ending."""

    def __init__(self, admin: psycopg.Connection) -> None:
        self._admin = admin
        self._done: list[str] = []

    @contextmanager
    def new(self, name: str, template: str) -> Iterator[None]:
        """Make one, whose turn to be dropped comes with the next."""
        self.drop_done()
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        self._admin.execute(create)
        yield
        self._done.append(name)

    def drop_done(self) -> None:
        """Drop what no test uses any more."""
        while self._done:
            drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(self._done[-1]))
            self._admin.execute(drop)
            self._done.pop()


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Server:
    """The PostgreSQL of this session."""
    return pytestconfig.stash[_SERVER]


@pytest.fixture(scope="session")
def name_database(pytestconfig: pytest.Config, worker_id: str) -> Iterator[str]:
    """Names for databases that no other session or worker uses, one by ``next``."""
    return (f"recall_{pytestconfig.stash[_RUN]}_{worker_id}_{number}" for number in _numbers)


@pytest.fixture(scope="session")
def template(server: Server, pytestconfig: pytest.Config) -> str:
    """The name of a database with the schema installed, to be cloned; nobody can connect to it."""
    from pgrecall import schema

    name = f"recall_{pytestconfig.stash[_RUN]}_template"
    unfinished = f"{name}_new"
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        # Held until this connection ends: the first worker builds, the others find it built.
        admin.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
        if admin.execute("SELECT FROM pg_database WHERE datname = %s", [name]).rowcount == 0:
            admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(unfinished)))
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(unfinished)))
            with psycopg.connect(with_database(server.dsn, unfinished)) as connection:
                schema.install(connection)
            for change in ("ALTER DATABASE {} ALLOW_CONNECTIONS false", "ALTER DATABASE {} RENAME TO {}"):
                admin.execute(sql.SQL(change).format(sql.Identifier(unfinished), sql.Identifier(name)))
    return name


@pytest.fixture(scope="session")
def databases(server: Server) -> Iterator[_Databases]:
    """Makes and drops databases, over one connection that lasts as long as the session."""
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        made = _Databases(admin)
        yield made
        made.drop_done()


@pytest.fixture
def database(server: Server, template: str, databases: _Databases, name_database: Iterator[str]) -> Iterator[str]:
    """The DSN of a fresh database with the schema, for tests with several connections, NOTIFY or a worker."""
    name = next(name_database)
    with databases.new(name, template):
        yield with_database(server.dsn, name)


@pytest.fixture
def empty_database(server: Server, databases: _Databases, name_database: Iterator[str]) -> Iterator[str]:
    """The DSN of a fresh database without the schema."""
    name = next(name_database)
    with databases.new(name, "template1"):
        yield with_database(server.dsn, name)


@pytest.fixture(scope="session")
def shared_database(
    server: Server, template: str, databases: _Databases, name_database: Iterator[str]
) -> Iterator[str]:
    """The DSN of the database behind ``db``, one per worker; whoever commits there breaks the other tests."""
    name = next(name_database)
    with databases.new(name, template):
        yield with_database(server.dsn, name)


@pytest.fixture
def db(shared_database: str) -> Iterator[psycopg.Connection]:
    """A connection whose transaction is rolled back: the cheapest isolation, for one connection that never commits."""
    connection = psycopg.connect(shared_database)
    try:
        yield connection
    finally:
        connection.close()  # without a commit


@pytest.fixture
def start(database: str, tmp_path: Path) -> Iterator[Start]:
    """Starts worker processes on the fresh database; they are killed in the end."""
    with worker_processes(tmp_path, database) as starting:
        yield starting


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The only event loop that psycopg works on."""
    return "asyncio"
