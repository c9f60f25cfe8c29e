"""Drivers of many languages behind one face, so that one set of tests runs against all of them.

Python's drivers run here; those of other languages are programs of tests/producers/peers, which take statements by
their standard input. What is not installed skips its tests, unless PGRECALL_REQUIRE contains `producers`.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

import asyncpg  # type: ignore[import-untyped]
import psycopg
import psycopg2  # type: ignore[import-untyped]
import psycopg2.extras  # type: ignore[import-untyped]
import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb
from sqlalchemy.dialects.postgresql import JSONB

PEERS = Path(__file__).parent / "producers" / "peers"
#: Where Debian's package libpostgresql-jdbc-java puts the driver; PGRECALL_PGJDBC names another jar.
_PGJDBC = "/usr/share/java/postgresql.jar"
#: Where Debian's packages put Go's sources.
_GOPATH = "/usr/share/gocode"
_NODE_POSTGRES = "8"

LIBPQ = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}


class Refused(Exception):
    """An error of the server as a driver shows it; None: the driver has no such field, or it is empty."""

    def __init__(
        self, sqlstate: str | None, message: str | None, detail: str | None, hint: str | None, constraint: str | None
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.detail = detail
        self.hint = hint
        self.constraint = constraint


class Peer(Protocol):
    """A connection. A statement's placeholders are written as $1, $2 … in order, whatever the driver wants."""

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run it and return its rows; a value is a str, an int, an aware datetime, a dict (JSON), or None."""

    def begin(self) -> None:
        """Begin a transaction; without one each statement commits by itself."""

    def commit(self) -> None:
        """End it."""

    def rollback(self) -> None:
        """End it, and all it did."""

    def close(self) -> None:
        """Hang up."""


def moment(cell: Any) -> datetime:
    """A time as a driver returns it: its own type, or text."""
    return cell if isinstance(cell, datetime) else datetime.fromisoformat(cell).astimezone(UTC)


def document(cell: Any) -> Any:
    """JSON as a driver returns it: its own type, or text."""
    return json.loads(cell) if isinstance(cell, str) else cell


def question_marks(statement: str) -> str:
    """The statement with the placeholders of JDBC, DBI and PDO."""
    return re.sub(r"\$\d+", "?", statement)


def formats(statement: str) -> str:
    """The statement with the placeholders of psycopg and psycopg2."""
    return re.sub(r"\$\d+", "%s", statement.replace("%", "%%"))


def names(statement: str) -> str:
    """The statement with the placeholders of SQLAlchemy."""
    return re.sub(r"\$(\d+)", r":v\1", statement)


def asyncpg_arguments(dsn: str) -> dict[str, Any]:
    """The address as asyncpg takes it; not by keywords of libpq."""
    parts = conninfo_to_dict(dsn)
    given = {name: parts[name] for name in ("host", "port", "user", "password") if parts.get(name)}
    return {**given, "database": parts["dbname"]}


# Drivers of Python


class Psycopg:
    """psycopg 3, with statements prepared on the server from the second time on if it is told so."""

    def __init__(self, dsn: str, *, prepare: bool | None = None) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._prepare = prepare

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run it."""
        given = [Jsonb(value) if isinstance(value, dict) else value for value in values]
        try:
            cursor = self._connection.execute(formats(statement).encode(), given, prepare=self._prepare)
        except psycopg.Error as error:
            told = error.diag
            raise Refused(
                error.sqlstate, told.message_primary, told.message_detail, told.message_hint, told.constraint_name
            ) from error
        return cursor.fetchall() if cursor.description else []

    def begin(self) -> None:
        """Begin, in the words of psql; the other drivers show their own way."""
        self._connection.execute("begin")

    def commit(self) -> None:
        """Commit."""
        self._connection.commit()

    def rollback(self) -> None:
        """Roll back."""
        self._connection.rollback()

    def close(self) -> None:
        """Close."""
        self._connection.close()


class Psycopg2:
    """psycopg2, which puts the values into the statement's text."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg2.connect(dsn)
        self._connection.autocommit = True

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run it."""
        given = [psycopg2.extras.Json(value) if isinstance(value, dict) else value for value in values]
        with self._connection.cursor() as cursor:
            try:
                cursor.execute(formats(statement), given)
            except psycopg2.Error as error:
                told = error.diag
                raise Refused(
                    error.pgcode, told.message_primary, told.message_detail, told.message_hint, told.constraint_name
                ) from error
            return list(cursor.fetchall()) if cursor.description else []

    def begin(self) -> None:
        """Every statement begins a transaction if there is none."""
        self._connection.autocommit = False

    def commit(self) -> None:
        """Commit."""
        self._connection.commit()
        self._connection.autocommit = True

    def rollback(self) -> None:
        """Roll back."""
        self._connection.rollback()
        self._connection.autocommit = True

    def close(self) -> None:
        """Close."""
        self._connection.close()


class Asyncpg:
    """asyncpg: statements are prepared, values binary."""

    def __init__(self, dsn: str) -> None:
        self._loop = asyncio.Runner()
        given = {
            name: value for name, value in conninfo_to_dict(dsn).items() if name in {"host", "port", "user", "password"}
        }
        self._connection: Any = self._loop.run(asyncpg.connect(database=conninfo_to_dict(dsn)["dbname"], **given))
        self._transaction: Any = None

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run it."""
        given = [json.dumps(value) if isinstance(value, dict) else value for value in values]

        async def run() -> list[tuple[Any, ...]]:
            return [tuple(row) for row in await self._connection.fetch(statement, *given)]

        try:
            return self._loop.run(run())
        except asyncpg.PostgresError as error:
            raise Refused(
                error.sqlstate, str(error.args[0]), error.detail, error.hint, error.constraint_name
            ) from error

    def begin(self) -> None:
        """Begin."""
        self._transaction = self._connection.transaction()
        self._loop.run(self._transaction.start())

    def commit(self) -> None:
        """Commit."""
        self._loop.run(self._transaction.commit())

    def rollback(self) -> None:
        """Roll back."""
        self._loop.run(self._transaction.rollback())

    def close(self) -> None:
        """Close."""
        self._loop.run(self._connection.close())
        self._loop.close()


class SqlAlchemyCore:
    """SQLAlchemy's text() on psycopg; its errors have those of the driver inside."""

    def __init__(self, dsn: str) -> None:
        self._engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
        self._connection = self._engine.connect()
        self._in_transaction = False

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run it."""
        given = {f"v{number}": value for number, value in enumerate(values, 1)}
        typed = [sqlalchemy.bindparam(name, type_=JSONB) for name, value in given.items() if isinstance(value, dict)]
        try:
            answer = self._connection.execute(sqlalchemy.text(names(statement)).bindparams(*typed), given)
            rows = [tuple(row) for row in answer] if answer.returns_rows else []
        except sqlalchemy.exc.DBAPIError as error:
            if not self._in_transaction:
                self._connection.rollback()
            told = error.orig.diag  # type: ignore[union-attr]
            raise Refused(
                told.sqlstate, told.message_primary, told.message_detail, told.message_hint, told.constraint_name
            ) from error
        if not self._in_transaction:
            self._connection.commit()
        return rows

    def begin(self) -> None:
        """It has begun: a connection commits only when told."""
        self._in_transaction = True

    def commit(self) -> None:
        """Commit."""
        self._connection.commit()
        self._in_transaction = False

    def rollback(self) -> None:
        """Roll back."""
        self._connection.rollback()
        self._in_transaction = False

    def close(self) -> None:
        """Close."""
        self._connection.close()
        self._engine.dispose()


# Drivers of other languages


class Program:
    """A program of tests/producers/peers."""

    def __init__(self, dsn: str, language: Language) -> None:
        self._spelled = language.spelled
        self._process = subprocess.Popen(
            language.command(),
            env=os.environ | environment(dsn) | language.extra(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def _ask(self, *fields: str) -> list[tuple[Any, ...]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\t".join(quote(field, safe="") for field in fields) + "\n")
        self._process.stdin.flush()
        rows: list[tuple[Any, ...]] = []
        for line in self._process.stdout:
            what, *cells = (unquote(field) for field in line.rstrip("\n").split("\t"))
            values = [None if cell == "n" else cell[1:] for cell in cells]
            match what:
                case "row":
                    rows.append(tuple(values))
                case "ok":
                    return rows
                case "error":
                    raise Refused(*(value or None for value in values))
        raise AssertionError(f"the peer ended with {self._process.wait()}")

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run it."""
        return self._ask("execute", self._spelled(statement), *map(_field, values))

    def begin(self) -> None:
        """Begin."""
        self._ask("begin")

    def commit(self) -> None:
        """Commit."""
        self._ask("commit")

    def rollback(self) -> None:
        """Roll back."""
        self._ask("rollback")

    def close(self) -> None:
        """End it."""
        try:
            self._process.communicate(timeout=20)
        finally:
            self._process.kill()
            self._process.wait()


def _field(value: Any) -> str:
    match value:
        case None:
            return "n"
        case datetime():
            return "z" + value.astimezone(UTC).isoformat()
        case dict():
            return "j" + json.dumps(value)
        case int():
            return f"i{value}"
    return f"t{value}"


def environment(dsn: str) -> dict[str, str]:
    """The variables from which libpq and most drivers read where the database is. The address must be a TCP one."""
    return {LIBPQ[name]: str(value) for name, value in conninfo_to_dict(dsn).items() if value and name in LIBPQ}


def missing(reason: str) -> None:
    """Skip the test because something is not installed, or fail it if that is required."""
    if "producers" in os.environ.get("PGRECALL_REQUIRE", ""):
        pytest.fail(reason)
    pytest.skip(reason)


def tool(name: str) -> list[str]:
    """The command of a program that must be in PATH."""
    found = shutil.which(name)
    if found is None:
        missing(f"{name} is not installed")
    return [str(found)]


@dataclass(frozen=True)
class Language:
    """How to run a program in it, with PostgreSQL's driver for it."""

    name: str
    #: The driver, as its users call it.
    driver: str
    command: Callable[[], list[str]]
    extra: Callable[[], dict[str, str]] = dict
    spelled: Callable[[str], str] = str


@cache
def _build_folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="pgrecall-peers-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def build(*command: str | Path, **variables: str) -> None:
    """Compile something."""
    done = subprocess.run(
        list(map(str, command)), env=os.environ | variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@cache
def node_modules() -> Path:
    """A folder with node-postgres in its node_modules, fetched once."""
    node = Path.home() / ".cache" / "pgrecall" / f"node-postgres-{_NODE_POSTGRES}"
    if not node.exists():
        npm = tool("npm")
        node.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=node.parent, prefix="fetch-") as work:
            place = Path(work, "modules")
            place.mkdir()
            options = ["--no-audit", "--no-fund", "--no-package-lock", "--silent", "--prefix", str(place)]
            try:
                done = subprocess.run(
                    [*npm, "install", *options, f"pg@{_NODE_POSTGRES}"],
                    capture_output=True, text=True, timeout=40, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                missing("npm does not get node-postgres: no answer")
            if done.returncode != 0:
                missing(f"npm does not get node-postgres: {done.stderr.strip()[:200]}")
            try:
                place.rename(node)
            except OSError:
                if not node.exists():  # else another process was first, with the same files
                    raise
    return node


@cache
def pgjdbc() -> str:
    """The jar of pgjdbc."""
    jar = os.environ.get("PGRECALL_PGJDBC", _PGJDBC)
    if not Path(jar).exists():
        missing(f"pgjdbc is not installed ({jar}; PGRECALL_PGJDBC names another place)")
    return jar


@cache
def go_variables() -> dict[str, str]:
    """What go needs to build with the driver that Debian packages."""
    if not Path(_GOPATH, "src/github.com/lib/pq").exists():
        missing("lib/pq is not installed")
    return {"GO111MODULE": "off", "GOPATH": _GOPATH, "GOFLAGS": "", "CGO_ENABLED": "0"}


@cache
def libpq_flags() -> tuple[list[str], list[str]]:
    """What cc needs to compile with libpq, and to link."""
    directory = subprocess.run([*tool("pg_config"), "--includedir"], capture_output=True, text=True, check=True)
    headers = directory.stdout.strip()
    if not Path(headers, "libpq-fe.h").exists():
        missing("libpq's headers are not installed")
    return [f"-I{headers}"], ["-lpq"]


@cache
def _node() -> list[str]:
    return [*tool("node"), str(PEERS / "node.mjs")]


@cache
def _java(mode: str) -> list[str]:
    classes = _build_folder() / "java"
    if not classes.exists():
        build(*tool("javac"), "-cp", pgjdbc(), "-d", classes, PEERS / "Jdbc.java")
    return [*tool("java"), "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp", f"{classes}:{pgjdbc()}", "Jdbc", mode]


@cache
def perl() -> list[str]:
    """Perl with DBD::Pg."""
    if subprocess.run([*tool("perl"), "-MDBD::Pg", "-e", "1"], capture_output=True, check=False).returncode:
        missing("DBD::Pg is not installed")
    return tool("perl")


@cache
def ruby() -> list[str]:
    """Ruby with ruby-pg."""
    if subprocess.run([*tool("ruby"), "-rpg", "-e", "1"], capture_output=True, check=False).returncode:
        missing("ruby-pg is not installed")
    return tool("ruby")


@cache
def php() -> list[str]:
    """PHP with PDO's driver for PostgreSQL."""
    if b"pdo_pgsql" not in subprocess.run([*tool("php"), "-m"], capture_output=True, check=False).stdout:
        missing("PDO's driver for PostgreSQL is not installed")
    return tool("php")


@cache
def _go() -> list[str]:
    program = _build_folder() / "go"
    build(*tool("go"), "build", "-o", program, PEERS / "peer.go", **go_variables())
    return [str(program)]


@cache
def _c() -> list[str]:
    program = _build_folder() / "libpq"
    compiling, linking = libpq_flags()
    build(*tool("cc"), "-Wall", "-Werror", *compiling, "-o", program, PEERS / "libpq.c", *linking)
    return [str(program)]


LANGUAGES = {
    language.name: language
    for language in (
        Language("node", "node-postgres", _node, lambda: {"PEER_MODULES": str(node_modules())}),
        Language("java", "pgjdbc", lambda: _java("extended"), spelled=question_marks),
        Language("java-simple", "pgjdbc, simple protocol", lambda: _java("simple"), spelled=question_marks),
        Language("go", "lib/pq", _go),
        Language("perl", "DBD::Pg", lambda: [*perl(), str(PEERS / "perl.pl")], spelled=question_marks),
        Language("ruby", "ruby-pg", lambda: [*ruby(), str(PEERS / "ruby.rb")]),
        Language("php", "PDO", lambda: [*php(), str(PEERS / "peer.php")], spelled=question_marks),
        Language("c", "libpq", _c),
    )
}
PYTHON: dict[str, Callable[[str], Peer]] = {
    "psycopg": Psycopg,
    "psycopg-prepared": lambda dsn: Psycopg(dsn, prepare=True),
    "psycopg2": Psycopg2,
    "asyncpg": Asyncpg,
    "sqlalchemy": SqlAlchemyCore,
}
DRIVERS = [*PYTHON, *LANGUAGES]


@contextmanager
def peer(driver: str, dsn: str) -> Iterator[Peer]:
    """Connect with a driver; those of other languages need an address by TCP."""
    made = PYTHON[driver](dsn) if driver in PYTHON else Program(dsn, LANGUAGES[driver])
    try:
        yield made
    finally:
        made.close()
