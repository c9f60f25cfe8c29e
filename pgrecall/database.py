"""The only module that talks to psycopg on behalf of the others: connections, pools, running a Call, errors.

Knows nothing of what the calls mean.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import RowMaker
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from pgrecall import calls, schema
from pgrecall.calls import Call
from pgrecall.errors import (
    InvalidRecallError,
    RecallError,
    RecallExistsError,
    RecallNotFoundError,
    RecallStateError,
    SessionNotFoundError,
    SettingsError,
)

T = TypeVar("T")

#: How libpq notices a peer that is gone: idle connections within about 45 s, unacknowledged data within 30 s. (A
#: listener sends nothing by itself, so the system's default of two hours would leave it deaf for two hours.)
_LIVENESS = {
    "keepalives": "1",
    "keepalives_idle": "20",
    "keepalives_interval": "5",
    "keepalives_count": "5",
    "tcp_user_timeout": "30000",
    "connect_timeout": "10",
    "application_name": "pgrecall",
    "client_encoding": "utf8",
}

#: Seconds for which a pool tries to replace a lost connection by itself. It waits longer and longer between its tries,
#: so after a long outage it would come back late; giving up early leaves it to the next caller, who tries at once.
_RECONNECT_TIMEOUT = 1.0


def conninfo(dsn: str | None) -> str:
    """The connection string to use: the caller's, completed with what notices a dead server.

    Args:
        dsn: A libpq connection string or URI; None or empty leaves everything to the `PG*` variables.

    Raises:
        SettingsError: It is not a connection string.
    """
    try:
        given = conninfo_to_dict(dsn or "")
    except psycopg.ProgrammingError as error:
        raise SettingsError(
            f"not a connection string: {str(error).strip()}", hint="For example postgresql://user@host/database."
        ) from error
    completed: dict[str, Any] = {**_LIVENESS, **given}
    return make_conninfo("", **completed)


@contextmanager
def translated() -> Iterator[None]:
    """Turns the SQLSTATEs that mean something here into our exceptions; the driver's error is chained."""
    try:
        yield
    except (psycopg.DatabaseError, psycopg.DataError) as error:
        ours = translate(error)
        if ours is None:
            raise
        raise ours from error


def translate(error: psycopg.Error) -> RecallError | None:
    """Our exception for an error of the server; None if it is none of ours."""
    message = error.diag.message_primary or str(error).strip()
    hint = error.diag.message_hint or ""
    detail = error.diag.message_detail or ""
    match error.sqlstate:
        case "PR001":
            return RecallExistsError(message, session_id=detail, hint=hint)
        case "PR002":
            return SessionNotFoundError(message, session_id=detail, hint=hint)
        case "PR003":
            return RecallNotFoundError(message, hint=hint)
        case "PR004":
            return RecallStateError(message, hint=hint)
        case "PR005":
            return InvalidRecallError(message, constraint=error.diag.constraint_name, hint=hint)
        case "23514" if error.diag.schema_name == "pgrecall" and error.diag.constraint_name:
            # The constraints are named as sentences.
            name = error.diag.constraint_name
            return InvalidRecallError(name.replace("_", " "), constraint=name, hint=hint)
        case "23502" if error.diag.schema_name == "pgrecall":
            return InvalidRecallError(f"{error.diag.column_name} must be given", constraint=error.diag.column_name)
        case state if state and state.startswith("22"):
            return InvalidRecallError(message, hint=hint)
    return None


def _utc(value: Any) -> Any:
    # psycopg gives times in the session's time zone; here all are UTC, whatever that is set to.
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _row_factory(row: type[T]) -> Callable[[Any], RowMaker[T]]:
    wanted = {field.name for field in fields(cast("Any", row))}

    def for_cursor(cursor: Any) -> RowMaker[T]:
        # A newer minor schema may have more columns than we know.
        names = [column.name for column in cursor.description or ()]
        keep = [(place, name) for place, name in enumerate(names) if name in wanted]

        def make(values: Any) -> T:
            return row(**{name: _utc(values[place]) for place, name in keep})

        return make

    return for_cursor


def _scalar_factory(_: Any) -> RowMaker[Any]:
    return lambda values: _utc(values[0])


def _factory(call: Call[T]) -> Any:
    return _scalar_factory if call.row is None else _row_factory(call.row)


async def run_async(connection: psycopg.AsyncConnection[Any], call: Call[T]) -> list[T]:
    """Runs a call on this connection and returns its rows; joins its transaction if one is open.

    Raises:
        RecallError: The SQL refused; see the class.
        psycopg.Error: Anything else that the server or the network did.
    """
    async with connection.cursor(row_factory=_factory(call)) as cursor:
        with translated():
            await cursor.execute(call.statement.encode(), call.arguments)
        return cast("list[T]", await cursor.fetchall())


def run_sync(connection: psycopg.Connection[Any], call: Call[T]) -> list[T]:
    """As `run_async`, on a sync connection."""
    with connection.cursor(row_factory=_factory(call)) as cursor:
        with translated():
            cursor.execute(call.statement.encode(), call.arguments)
        return cast("list[T]", cursor.fetchall())


def schema_version_sync(connection: psycopg.Connection[Any]) -> int | None:
    """The version of the schema in this connection's database; None if there is none."""
    try:
        return run_sync(connection, calls.schema_version())[0]
    except (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedFunction):
        return None


async def schema_version_async(connection: psycopg.AsyncConnection[Any]) -> int | None:
    """As `schema_version_sync`, on an async connection."""
    try:
        return (await run_async(connection, calls.schema_version()))[0]
    except (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedFunction):
        return None


def install(dsn: str) -> int:
    """`schema.install` on a connection of its own; returns how many migrations ran."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return schema.install(connection)


def ensure(dsn: str) -> None:
    """Installs the schema if it is missing or older than this package.

    Raises:
        SchemaTooNewError: It is newer.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        version = schema_version_sync(connection)
        if version is None or version < schema.SCHEMA_VERSION:
            schema.install(connection)
        else:
            schema.check(version)


#: What a role or database may have set otherwise: a look needs a snapshot for each of its statements, psycopg reads
#: ISO dates only, and an idle worker is idle on purpose.
SESSION_SETTINGS = (
    b"set default_transaction_isolation = 'read committed'; set datestyle = 'ISO'; set idle_session_timeout = 0"
)


def _loads(text: str | bytes) -> Any:
    """JSON as Python; what PostgreSQL can hold and Python cannot read must not stop the rows beside it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return {"unreadable": f"{type(error).__name__}: {error}"}


async def _configure_async(connection: psycopg.AsyncConnection[Any]) -> None:
    set_json_loads(_loads, connection)
    await connection.execute(SESSION_SETTINGS)


def _configure_sync(connection: psycopg.Connection[Any]) -> None:
    set_json_loads(_loads, connection)
    connection.execute(SESSION_SETTINGS)


class AsyncDatabase:
    """A lazily opened pool of autocommit connections that runs Calls.

    The pool belongs to the event loop that used it first. The schema's version is checked once, on first use.

    Args:
        dsn: A complete connection string, see `conninfo`.
        size: The most connections.
        patience: Seconds to wait for a connection before it is a PoolTimeout.
    """

    def __init__(self, dsn: str, *, size: int, patience: float = 30.0) -> None:
        self.dsn = dsn
        self._size = size
        self._patience = patience
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] | None = None
        self._opening: asyncio.Lock | None = None
        self._checked = False

    async def _open(self) -> AsyncConnectionPool[psycopg.AsyncConnection[Any]]:
        if self._pool is not None and self._checked:
            return self._pool
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._pool is None:
                # One plain attempt first: a wrong DSN gives its own error now, not a pool's timeout after 30 s.
                connection = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
                async with connection:
                    schema.check(await schema_version_async(connection))
                self._checked = True
                pool = AsyncConnectionPool(
                    self.dsn,
                    min_size=1,
                    max_size=self._size,
                    open=False,
                    kwargs={"autocommit": True},
                    name="pgrecall",
                    timeout=self._patience,
                    reconnect_timeout=_RECONNECT_TIMEOUT,
                    configure=_configure_async,
                )
                await pool.open()
                self._pool = pool
            return self._pool

    async def run(self, call: Call[T], connection: psycopg.AsyncConnection[Any] | None = None) -> list[T]:
        """Runs a call on a pooled connection, or on the caller's own and in its transaction.

        Raises:
            RecallError: The SQL refused; see the class.
            psycopg.Error: Anything else that the server or the network did.
        """
        if connection is not None:
            return await run_async(connection, call)
        pool = await self._open()
        async with pool.connection() as pooled:
            return await run_async(pooled, call)

    async def query(self, statement: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """Runs one SELECT of ours and returns its rows as dictionaries."""
        pool = await self._open()
        async with pool.connection() as pooled, pooled.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            with translated():
                await cursor.execute(statement.encode(), arguments)
            return await cursor.fetchall()

    async def mend(self) -> None:
        """Replaces broken pooled connections now, instead of one error for each."""
        if self._pool is not None:
            await self._pool.check()

    async def close(self) -> None:
        """Closes the pool; it opens again when used again."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()


class SyncDatabase:
    """As `AsyncDatabase`, for threads."""

    def __init__(self, dsn: str, *, size: int, patience: float = 30.0) -> None:
        self.dsn = dsn
        self._size = size
        self._patience = patience
        self._pool: ConnectionPool[psycopg.Connection[Any]] | None = None
        self._opening = threading.Lock()

    def _open(self) -> ConnectionPool[psycopg.Connection[Any]]:
        with self._opening:
            if self._pool is None:
                with psycopg.connect(self.dsn, autocommit=True) as connection:
                    schema.check(schema_version_sync(connection))
                pool = ConnectionPool(
                    self.dsn,
                    min_size=1,
                    max_size=self._size,
                    open=False,
                    kwargs={"autocommit": True},
                    name="pgrecall",
                    timeout=self._patience,
                    reconnect_timeout=_RECONNECT_TIMEOUT,
                    configure=_configure_sync,
                )
                pool.open()
                self._pool = pool
            return self._pool

    def run(self, call: Call[T], connection: psycopg.Connection[Any] | None = None) -> list[T]:
        """As `AsyncDatabase.run`."""
        if connection is not None:
            return run_sync(connection, call)
        with self._open().connection() as pooled:
            return run_sync(pooled, call)

    def close(self) -> None:
        """Closes the pool; it opens again when used again."""
        with self._opening:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
