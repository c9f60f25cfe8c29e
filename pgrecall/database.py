"""The only module that talks to psycopg on behalf of the others: connections, pools, running a Call, errors.

Knows nothing of what the calls mean. docs/connections.md says what may sit between here and the server.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import RowMaker
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from pgrecall import calls, schema
from pgrecall.calls import Call
from pgrecall.errors import (
    HostTableError,
    InvalidRecallError,
    RecallError,
    RecallExistsError,
    RecallLimitError,
    RecallNotFoundError,
    RecallStateError,
    SessionHeldError,
    SessionNotFoundError,
    SettingsError,
)
from pgrecall.model import InstalledSchema

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

#: Seconds for one of several hosts: one that is gone without a word must not keep us from the next one for long.
_CONNECT_TIMEOUT_OF_MANY = "3"

#: Seconds for the first statement of a connection.
_SETUP_SECONDS = 10.0

#: Seconds in which the server must have taken note that we gave a statement up. (psycopg waits ten for that.)
_CANCEL_SECONDS = 1.0

#: Seconds for which a pool that is closed waits for attempts to connect that are under way.
_CLOSE_SECONDS = 1.0

#: Seconds between two looks whether there is something else to do than wait for the server. With psycopg's tenth of a
#: second, meant for Ctrl-C, a connection that only listens would wake an idle process ten times a second.
_WAIT_SECONDS = 60.0

#: Uses of a statement before it is prepared, on direct connections.
_PREPARE_THRESHOLD = 5


def conninfo(dsn: str | None) -> str:
    """The connection string to use: the caller's, completed with what notices a dead server.

    Args:
        dsn: A libpq connection string or URI; None or empty leaves everything to the `PG*` variables.

    Raises:
        SettingsError: It is not a connection string.
    """
    try:
        given = conninfo_to_dict(dsn or "")
    except (psycopg.ProgrammingError, UnicodeError) as error:
        raise SettingsError(
            f"not a connection string: {str(error).strip()}", hint="For example postgresql://user@host/database."
        ) from error
    completed: dict[str, Any] = {**_LIVENESS, **given}
    if "connect_timeout" not in given and "," in str(given.get("host") or given.get("hostaddr") or ""):
        completed["connect_timeout"] = _CONNECT_TIMEOUT_OF_MANY
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
        case "PR006":
            return _held(message, detail, hint)
        case "PR007":
            return RecallLimitError(message, hint=hint)
        case "PR008":
            return HostTableError(message, hint=hint)
        case "23514" if error.diag.schema_name == "pgrecall" and error.diag.constraint_name:
            # The constraints are named as sentences. Those that have a hint have a message of their own, too.
            name = error.diag.constraint_name
            return InvalidRecallError(message if hint else name.replace("_", " "), constraint=name, hint=hint)
        case "23502" if error.diag.schema_name == "pgrecall":
            return InvalidRecallError(f"{error.diag.column_name} must be given", constraint=error.diag.column_name)
        case state if state and state.startswith("22"):
            return InvalidRecallError(message, hint=hint)
    return None


def _held(message: str, detail: str, hint: str) -> SessionHeldError:
    told = json.loads(detail)
    since, until = (told[name] and datetime.fromisoformat(told[name]).astimezone(UTC) for name in ("since", "until"))
    return SessionHeldError(
        message,
        session_id=told["session_id"],
        kind=told["kind"],
        holder=told["holder"],
        since=since,
        until=until,
        run_id=told["run_id"],
        recall_id=told["recall_id"],
        hint=hint,
    )


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


class AsyncConnection(psycopg.AsyncConnection[Any]):
    """A connection of our own, from `connect_async`.

    Attributes:
        is_pooled: A pooler sits between, so each transaction may be served by another server process: nothing that is
            set, prepared or locked for the session is there for the next statement.
    """

    is_pooled = False

    async def wait(self, gen: Any, interval: float = _WAIT_SECONDS, timeout: float | None = None) -> Any:  # noqa: ASYNC109 (psycopg's)
        """As psycopg's, but sleeps until there is something to do; asyncio itself brings Ctrl-C."""
        return await super().wait(gen, interval=interval, timeout=timeout)

    async def cancel_safe(self, *, timeout: float = _CANCEL_SECONDS) -> None:  # noqa: ASYNC109 (psycopg's)
        """Asks the server to end the statement that we gave up; gives up the connection if it does not hear that."""
        try:
            await super().cancel_safe(timeout=min(timeout, _CANCEL_SECONDS))
        except psycopg.Error:
            await self.close()


class Connection(psycopg.Connection[Any]):
    """As `AsyncConnection`, sync; from `connect_sync`."""

    is_pooled = False


#: What a role or database may have set otherwise. A look needs a snapshot for each of its statements; psycopg reads ISO
#: dates only; an idle worker is idle on purpose; and the server shall notice within a minute that we are gone, because
#: what our session holds and the notifications that wait for it stay until then (its own default is two hours).
_SETTINGS = {
    "default_transaction_isolation": "read committed",
    "datestyle": "ISO",
    "idle_session_timeout": "0",
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "5",
    "tcp_user_timeout": "30000",
}


def _setup(connection: psycopg.BaseConnection[Any]) -> bytes:
    """The first statement of a connection: sets it up, and tells whether it is direct.

    A pooler has announced a process id of its own. Behind one that shares its connections, what is set for the session
    would stay with the server's process and go to whoever has it next, so nothing is set.
    """
    settings = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in _SETTINGS.items())
    is_direct = f"pg_backend_pid() = {connection.info.backend_pid}"
    return f"select {is_direct} as is_direct, case when {is_direct} then array[{settings}] end".encode()


#: Tells two databases and two servers apart, and what to call one.
PLACE = """
    select oid || ' ' || pg_postmaster_start_time() as place, datname || ' at ' || coalesce(
        host(inet_server_addr()) || ':' || inet_server_port(), 'port ' || current_setting('port')
    ) as name
    from pg_database
    where datname = current_database()
"""


def _loads(text: str | bytes) -> Any:
    """JSON as Python; what PostgreSQL can hold and Python cannot read must not stop the rows beside it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return {"unreadable": f"{type(error).__name__}: {error}"}


@asynccontextmanager
async def answered_within(seconds: float, what: str) -> AsyncIterator[None]:
    """Gives up what is not answered in time.

    Raises:
        psycopg.OperationalError: It was not.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise psycopg.OperationalError(f"{what} was not answered within {seconds:g} s") from error


#: Behind a pooler nothing can be prepared, so that is switched on by `_set_up`.
_CONNECT: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}


async def connect_async(dsn: str) -> AsyncConnection:
    """An autocommit connection that is set up for our statements, also if a pooler sits between.

    Args:
        dsn: A complete connection string, see `conninfo`; its `connect_timeout` is the limit for each of its hosts.

    Raises:
        psycopg.Error: There is none to be had.
    """
    connection = await AsyncConnection.connect(dsn, **_CONNECT)
    await _set_up_async(connection)
    return connection


async def _set_up_async(connection: AsyncConnection) -> None:
    """Sets up a new connection; closes it if that fails."""
    try:
        set_json_loads(_loads, connection)
        async with answered_within(_SETUP_SECONDS, "the first statement of a connection"):
            row = await (await connection.execute(_setup(connection))).fetchone()
        connection.is_pooled = row is None or not row[0]
        if connection.is_pooled:
            await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        else:
            connection.prepare_threshold = _PREPARE_THRESHOLD
    except BaseException:
        await connection.close()
        raise


def connect_sync(dsn: str) -> Connection:
    """As `connect_async`, for threads; what bounds its statements is the network's liveness only."""
    connection = Connection.connect(dsn, **_CONNECT)
    _set_up_sync(connection)
    return connection


def _set_up_sync(connection: Connection) -> None:
    try:
        set_json_loads(_loads, connection)
        row = connection.execute(_setup(connection)).fetchone()
        connection.is_pooled = row is None or not row[0]
        if connection.is_pooled:
            connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        else:
            connection.prepare_threshold = _PREPARE_THRESHOLD
    except BaseException:
        connection.close()
        raise


def _is_alive(connection: AsyncConnection | Connection) -> bool:
    """Whether the server has not ended it while it was idle. Asks the socket, not the server."""
    try:
        for _ in range(2):  # the server's last words, then the end
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return False
    return connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE


# Behind a pooler a call is a transaction of its own, which says its isolation level, in one round trip where libpq can
# pipeline. Its answer is read in binary, which no DateStyle changes.


async def run_async(connection: psycopg.AsyncConnection[Any], call: Call[T]) -> list[T]:
    """Runs a call on this connection and returns its rows; joins its transaction if one is open.

    Raises:
        RecallError: The SQL refused; see the class.
        psycopg.Error: Anything else that the server or the network did.
    """
    is_pooled = isinstance(connection, AsyncConnection) and connection.is_pooled
    async with connection.cursor(row_factory=_factory(call), binary=is_pooled) as cursor:
        with translated():
            async with AsyncExitStack() as stack:
                if is_pooled:
                    if psycopg.AsyncPipeline.is_supported():
                        await stack.enter_async_context(connection.pipeline())
                    await stack.enter_async_context(connection.transaction())
                await cursor.execute(call.statement.encode(), call.arguments)
            return cast("list[T]", await cursor.fetchall())


def run_sync(connection: psycopg.Connection[Any], call: Call[T]) -> list[T]:
    """As `run_async`, on a sync connection."""
    is_pooled = isinstance(connection, Connection) and connection.is_pooled
    with connection.cursor(row_factory=_factory(call), binary=is_pooled) as cursor, translated():
        with ExitStack() as stack:
            if is_pooled:
                if psycopg.Pipeline.is_supported():
                    stack.enter_context(connection.pipeline())
                stack.enter_context(connection.transaction())
            cursor.execute(call.statement.encode(), call.arguments)
        return cast("list[T]", cursor.fetchall())


def installed_schema_sync(connection: psycopg.Connection[Any]) -> InstalledSchema | None:
    """The schema in this connection's database; None if there is none."""
    try:
        return run_sync(connection, calls.get_schema())[0]
    except (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedFunction):
        return None


async def installed_schema_async(connection: psycopg.AsyncConnection[Any]) -> InstalledSchema | None:
    """As `installed_schema_sync`, on an async connection."""
    try:
        return (await run_async(connection, calls.get_schema()))[0]
    except (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedFunction):
        return None


def install(dsn: str) -> int:
    """`schema.install` on a connection of its own; returns how many migrations ran."""
    with connect_sync(dsn) as connection:
        return schema.install(connection)


def ensure(dsn: str) -> None:
    """Installs the schema if it is missing or older than this package.

    Raises:
        SchemaTooNewError: It is newer.
    """
    with connect_sync(dsn) as connection:
        installed = installed_schema_sync(connection)
        if installed is None or installed.version < schema.SCHEMA_VERSION:
            schema.install(connection)
        else:
            schema.check(installed)


#: An upgrade was committed while the call was under way: its function now gives more columns than it was planned for.
#: The call has done nothing.
UPGRADED = (psycopg.errors.DatatypeMismatch, psycopg.errors.InvalidFunctionDefinition)

#: A pool opens a connection when somebody needs one, and leaves the next attempt after a failure to the next caller,
#: who wants it at once: by itself it would pause longer and longer, and come back late after a long outage.
_POOL: dict[str, Any] = {"name": "pgrecall", "kwargs": _CONNECT, "min_size": 0, "reconnect_timeout": 0.0, "open": False}


def _is_for_the_host(record: logging.LogRecord) -> bool:
    # A pool warns of each attempt that fails. Ours tell their callers, and a worker logs an outage once, so the host's
    # log is spared the rest. There is one logger for all pools, and the host's own may be among them.
    # It names first which pool, or which task of it, or it names the connection.
    arguments = tuple(record.args or ())
    is_ours = any(isinstance(each, AsyncConnection | Connection) for each in arguments)
    return not (is_ours or "'pgrecall" in repr(arguments[:1]))


logging.getLogger("psycopg.pool").addFilter(_is_for_the_host)


class _AsyncPool(AsyncConnectionPool[AsyncConnection]):
    """Remembers why it could not connect, and tells who waits as soon as it has given up and no connection is left."""

    trouble: Exception | None = None

    async def _connect(self, timeout: float | None = None) -> AsyncConnection:  # noqa: ASYNC109 (psycopg_pool's)
        try:
            connection = await super()._connect(timeout)
        except Exception as error:
            self.trouble = error
            raise
        self.trouble = None
        return connection

    async def reconnect_failed(self) -> None:
        while self._waiting and self.get_stats()["pool_size"] == 0:
            await self._waiting.popleft().fail(PoolTimeout())


class _SyncPool(ConnectionPool[Connection]):
    """As `_AsyncPool`, for threads."""

    trouble: Exception | None = None

    def _connect(self, timeout: float | None = None) -> Connection:
        try:
            connection = super()._connect(timeout)
        except Exception as error:
            self.trouble = error
            raise
        self.trouble = None
        return connection

    def reconnect_failed(self) -> None:
        with self._lock:
            while self._waiting and self.get_stats()["pool_size"] == 0:
                self._waiting.popleft().fail(PoolTimeout())


class AsyncDatabase:
    """A pool of autocommit connections that runs Calls.

    It belongs to the event loop that uses it, until it is closed. The schema's version is checked once, on first use.

    Args:
        dsn: A complete connection string, see `conninfo`.
        size: The most connections.
        patience: Seconds to wait for a connection.
    """

    def __init__(self, dsn: str, *, size: int, patience: float = 30.0) -> None:
        self.dsn = dsn
        self._settings = {**_POOL, "max_size": size, "timeout": patience, "configure": _set_up_async}
        self._pool = _AsyncPool(dsn, connection_class=AsyncConnection, **self._settings)
        self._checked = False

    async def run(self, call: Call[T], connection: psycopg.AsyncConnection[Any] | None = None) -> list[T]:
        """Runs a call on a pooled connection, or on the caller's own and in its transaction.

        Raises:
            RecallError: The SQL refused; see the class.
            psycopg.Error: Anything else that the server or the network did.
        """
        if connection is not None:
            return await run_async(connection, call)
        async with self._borrowed() as borrowed:
            try:
                return await run_async(borrowed, call)
            except UPGRADED:
                return await run_async(borrowed, call)

    async def one(self, call: Call[T], connection: psycopg.AsyncConnection[Any] | None = None) -> T:
        """As `run`, for a call that answers with one row."""
        return (await self.run(call, connection))[0]

    async def query(self, statement: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """Runs one SELECT of ours and returns its rows as dictionaries."""
        async with self._borrowed() as borrowed:
            row_factory = psycopg.rows.dict_row
            async with borrowed.cursor(row_factory=row_factory, binary=borrowed.is_pooled) as cursor:
                with translated():
                    await cursor.execute(statement.encode(), arguments)
                return await cursor.fetchall()

    async def mend(self) -> None:
        """Replaces the connections that nobody uses: after an outage none of them is to be trusted."""
        if not self._pool.closed:
            await self._pool.drain()

    async def close(self) -> None:
        """Closes the connections; it opens new ones when used again."""
        pool, self._pool = self._pool, _AsyncPool(self.dsn, connection_class=AsyncConnection, **self._settings)
        await pool.close(_CLOSE_SECONDS)

    @asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[AsyncConnection]:
        pool = self._pool
        await pool.open()
        try:
            # Not as the pool's `check`, after which it makes a pause of a second before it gives out the next one.
            while not _is_alive(connection := await pool.getconn()):
                await connection.close()
                await pool.putconn(connection)
        except PoolTimeout as error:
            raise (pool.trouble or error).with_traceback(None) from None
        try:
            if not self._checked:
                schema.check(await installed_schema_async(connection))
                self._checked = True
            yield connection
        except BaseException as error:
            # What failed may lead to a server that has become a standby; unless we refused, for good reason.
            if not isinstance(error, RecallError):
                await connection.close()
            raise
        finally:
            await pool.putconn(connection)


class SyncDatabase:
    """As `AsyncDatabase`, for threads."""

    def __init__(self, dsn: str, *, size: int, patience: float = 30.0) -> None:
        self.dsn = dsn
        self._settings = {**_POOL, "max_size": size, "timeout": patience, "configure": _set_up_sync}
        self._pool = _SyncPool(dsn, connection_class=Connection, **self._settings)
        self._checked = False

    def run(self, call: Call[T], connection: psycopg.Connection[Any] | None = None) -> list[T]:
        """As `AsyncDatabase.run`."""
        if connection is not None:
            return run_sync(connection, call)
        with self._borrowed() as borrowed:
            try:
                return run_sync(borrowed, call)
            except UPGRADED:
                return run_sync(borrowed, call)

    def one(self, call: Call[T], connection: psycopg.Connection[Any] | None = None) -> T:
        """As `AsyncDatabase.one`."""
        return self.run(call, connection)[0]

    def close(self) -> None:
        """Closes the connections; it opens new ones when used again."""
        pool, self._pool = self._pool, _SyncPool(self.dsn, connection_class=Connection, **self._settings)
        pool.close(_CLOSE_SECONDS)

    @contextmanager
    def _borrowed(self) -> Iterator[Connection]:
        pool = self._pool
        pool.open()
        try:
            while not _is_alive(connection := pool.getconn()):
                connection.close()
                pool.putconn(connection)
        except PoolTimeout as error:
            raise (pool.trouble or error).with_traceback(None) from None
        try:
            if not self._checked:
                schema.check(installed_schema_sync(connection))
                self._checked = True
            yield connection
        except BaseException as error:
            if not isinstance(error, RecallError):
                connection.close()
            raise
        finally:
            pool.putconn(connection)
