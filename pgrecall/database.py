"""The only module that talks to psycopg on behalf of the others: connections, pools, running a Call, errors.

Knows nothing of what the calls mean. docs/connections.md says what may sit between here and the server.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import RowMaker
from psycopg.types.json import set_json_loads

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

#: Seconds for one of several hosts: one that is gone without a word must not keep us from the next one for long.
_CONNECT_TIMEOUT_OF_MANY = "3"

#: Seconds for the first statement of a connection.
_SETUP_SECONDS = 10.0

#: Seconds in which the server must have taken note that we gave a statement up. (psycopg waits ten for that.)
_CANCEL_SECONDS = 1.0

#: Seconds after which a pooled connection that nobody needed is closed.
_SPARE_SECONDS = 600.0

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
    except psycopg.ProgrammingError as error:
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


class AsyncConnection(psycopg.AsyncConnection[Any]):
    """A connection of our own, from `connect_async`.

    Attributes:
        is_pooled: A pooler sits between, so each transaction may be served by another server process: nothing that is
            set, prepared or locked for the session is there for the next statement.
    """

    is_pooled = False

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

#: For a direct connection.
SESSION_SETTINGS = "; ".join(f"set {name} = '{value}'" for name, value in _SETTINGS.items()).encode()


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


async def connect_async(dsn: str) -> AsyncConnection:
    """An autocommit connection that is set up for our statements, also if a pooler sits between.

    Args:
        dsn: A complete connection string, see `conninfo`; its `connect_timeout` is the limit for each of its hosts.

    Raises:
        psycopg.Error: There is none to be had.
    """
    connection = await AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=None)
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
    return connection


def connect_sync(dsn: str) -> Connection:
    """As `connect_async`, for threads; what bounds its statements is the network's liveness only."""
    connection = Connection.connect(dsn, autocommit=True, prepare_threshold=None)
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
    return connection


def _is_alive(connection: AsyncConnection | Connection) -> bool:
    """Whether the server has not ended it while it was idle. Asks the socket, not the server."""
    try:
        for _ in range(2):  # the server's last words, then the end
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return False
    return _is_at_rest(connection)


def _is_at_rest(connection: AsyncConnection | Connection) -> bool:
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
    with connect_sync(dsn) as connection:
        return schema.install(connection)


def ensure(dsn: str) -> None:
    """Installs the schema if it is missing or older than this package.

    Raises:
        SchemaTooNewError: It is newer.
    """
    with connect_sync(dsn) as connection:
        version = schema_version_sync(connection)
        if version is None or version < schema.SCHEMA_VERSION:
            schema.install(connection)
        else:
            schema.check(version)


class AsyncDatabase:
    """A small pool of autocommit connections that runs Calls.

    Connections are opened when they are needed, by whoever needs one; there are no tasks in the background. The pool
    belongs to the event loop that uses it, until it is closed. The schema's version is checked once, on first use.

    Args:
        dsn: A complete connection string, see `conninfo`.
        size: The most connections.
        patience: Seconds to wait while all of them are in use.
    """

    def __init__(self, dsn: str, *, size: int, patience: float = 30.0) -> None:
        self.dsn = dsn
        self._size = size
        self._patience = patience
        self._checked = False
        self._slots = asyncio.Semaphore(size)
        #: With the time of its last use; the latest is last, and used first.
        self._idle: list[tuple[float, AsyncConnection]] = []
        self._connecting: set[asyncio.Task[AsyncConnection]] = set()

    async def run(self, call: Call[T], connection: psycopg.AsyncConnection[Any] | None = None) -> list[T]:
        """Runs a call on a pooled connection, or on the caller's own and in its transaction.

        Raises:
            RecallError: The SQL refused; see the class.
            psycopg.Error: Anything else that the server or the network did.
        """
        if connection is not None:
            return await run_async(connection, call)
        async with self._borrowed() as borrowed:
            return await run_async(borrowed, call)

    async def query(self, statement: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """Runs one SELECT of ours and returns its rows as dictionaries."""
        async with self._borrowed() as borrowed:
            row_factory = psycopg.rows.dict_row
            async with borrowed.cursor(row_factory=row_factory, binary=borrowed.is_pooled) as cursor:
                with translated():
                    await cursor.execute(statement.encode(), arguments)
                return await cursor.fetchall()

    async def mend(self) -> None:
        """Closes the connections that nobody uses: after an outage none of them is to be trusted."""
        idle, self._idle = self._idle, []
        for _, connection in idle:
            await connection.close()

    async def close(self) -> None:
        """Closes the connections; it opens new ones when used again."""
        self._slots = asyncio.Semaphore(self._size)  # what is still in use is closed when it comes back
        connecting, self._connecting = self._connecting, set()
        for task in connecting:
            task.cancel()
        for made in await asyncio.gather(*connecting, return_exceptions=True):
            if isinstance(made, AsyncConnection):
                await made.close()
        await self.mend()

    @asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[AsyncConnection]:
        slots = self._slots
        async with answered_within(self._patience, f"the call for one of {self._size} connections, all in use,"):
            await slots.acquire()
        connection = await self._idle_or_new(slots)
        reusable = False
        try:
            yield connection
            reusable = True
        except RecallError:
            reusable = True  # refused by us, for good reason
            raise
        finally:
            # A connection that failed may be one to a server that has become a standby: the next one may not.
            if reusable and slots is self._slots and _is_at_rest(connection):
                self._idle.append((time.monotonic(), connection))
            else:
                await connection.close()
            slots.release()
            while self._idle and self._idle[0][0] < time.monotonic() - _SPARE_SECONDS:
                await self._idle.pop(0)[1].close()

    async def _idle_or_new(self, slots: asyncio.Semaphore) -> AsyncConnection:
        while self._idle:
            _, connection = self._idle.pop()
            if _is_alive(connection):
                return connection
            await connection.close()

        # A caller who gives up leaves the connecting to go on: a host that does not answer may come before the one that
        # does, and take longer than any one caller has time.
        connecting = asyncio.create_task(self._connect())
        self._connecting.add(connecting)

        def settle(task: asyncio.Task[AsyncConnection]) -> None:
            if task in self._connecting and not task.cancelled() and task.exception() is None:
                self._idle.append((time.monotonic(), task.result()))
            self._connecting.discard(task)
            slots.release()

        try:
            connection = await asyncio.shield(connecting)
        except BaseException as error:
            connecting.add_done_callback(settle)
            if connecting.cancelled() and slots is not self._slots:
                raise psycopg.OperationalError("the pool was closed") from error
            raise
        self._connecting.discard(connecting)
        return connection

    async def _connect(self) -> AsyncConnection:
        connection = await connect_async(self.dsn)
        if not self._checked:
            try:
                schema.check(await schema_version_async(connection))
            except BaseException:
                await connection.close()
                raise
            self._checked = True
        return connection


class SyncDatabase:
    """As `AsyncDatabase`, for threads."""

    def __init__(self, dsn: str, *, size: int, patience: float = 30.0) -> None:
        self.dsn = dsn
        self._size = size
        self._patience = patience
        self._checked = False
        self._slots = threading.BoundedSemaphore(size)
        self._mutex = threading.Lock()
        self._idle: list[tuple[float, Connection]] = []
        self._generation = 0

    def run(self, call: Call[T], connection: psycopg.Connection[Any] | None = None) -> list[T]:
        """As `AsyncDatabase.run`."""
        if connection is not None:
            return run_sync(connection, call)
        with self._borrowed() as borrowed:
            return run_sync(borrowed, call)

    def close(self) -> None:
        """Closes the connections; it opens new ones when used again."""
        with self._mutex:
            self._generation += 1
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    @contextmanager
    def _borrowed(self) -> Iterator[Connection]:
        generation = self._generation
        if not self._slots.acquire(timeout=self._patience):
            raise psycopg.OperationalError(f"all {self._size} connections were in use for {self._patience:g} s")
        try:
            connection = self._idle_or_new()
            reusable = False
            try:
                yield connection
                reusable = True
            except RecallError:
                reusable = True
                raise
            finally:
                self._put_back(connection, generation if reusable else -1)
        finally:
            self._slots.release()

    def _put_back(self, connection: Connection, generation: int) -> None:
        with self._mutex:
            if generation == self._generation and _is_at_rest(connection):
                self._idle.append((time.monotonic(), connection))
                spare = [old for at, old in self._idle if at < time.monotonic() - _SPARE_SECONDS]
                self._idle = self._idle[len(spare) :]
            else:
                spare = [connection]
        for old in spare:
            old.close()

    def _idle_or_new(self) -> Connection:
        while True:
            with self._mutex:
                if not self._idle:
                    break
                _, connection = self._idle.pop()
            if _is_alive(connection):
                return connection
            connection.close()
        connection = connect_sync(self.dsn)
        if not self._checked:
            try:
                schema.check(schema_version_sync(connection))
            except BaseException:
                connection.close()
                raise
            self._checked = True
        return connection
