"""Connections of our own: what they are opened with, and how they are set up; for asyncio and for threads.

Those for asyncio and for threads are both written by hand: a task can stop waiting for the server at any time, a thread
waits as long as the network is alive. docs/connections.md says what may sit between here and the server.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import set_json_loads

from pgrecall.errors import SettingsError

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

    async def __aexit__(self, *_: object) -> None:
        """Closes it. psycopg's asks for a rollback first, and leaves it open if it is cancelled meanwhile."""
        await self.close()

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


#: Makes the server's process keep the memory that a statement has used for the next one. The C library (glibc) gives
#: what is more than 128 kB back to the system after each, and gets it again page by page: that is a quarter of a claim.
#: Once it was asked for a larger piece, and got it back, it keeps twice as much (mallopt(3), M_TRIM_THRESHOLD).
_KEEP_MEMORY = "length(repeat(' ', 1000000))"


def _setup(connection: psycopg.BaseConnection[Any]) -> bytes:
    """The first statement of a connection: sets it up, and tells whether it is direct.

    A pooler has announced a process id of its own. Behind one that shares its connections, what is set for the session
    would stay with the server's process and go to whoever has it next, so nothing is set.
    """
    settings = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in _SETTINGS.items())
    is_direct = f"pg_backend_pid() = {connection.info.backend_pid}"
    return f"select {is_direct} as is_direct, case when {is_direct} then array[{settings}] end, {_KEEP_MEMORY}".encode()


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
    if text == b"{}":  # as nearly all metadata
        return {}
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


#: Behind a pooler nothing can be prepared, so that is switched on by `set_up_async` and `set_up_sync`.
CONNECT: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}


async def connect_async(dsn: str) -> AsyncConnection:
    """An autocommit connection that is set up for our statements, also if a pooler sits between.

    Args:
        dsn: A complete connection string, see `conninfo`; its `connect_timeout` is the limit for each of its hosts.

    Raises:
        psycopg.Error: There is none to be had.
    """
    connection = await AsyncConnection.connect(dsn, **CONNECT)
    await set_up_async(connection)
    return connection


async def set_up_async(connection: AsyncConnection) -> None:
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
    connection = Connection.connect(dsn, **CONNECT)
    set_up_sync(connection)
    return connection


def set_up_sync(connection: Connection) -> None:
    """As `set_up_async`."""
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


def is_alive(connection: AsyncConnection | Connection) -> bool:
    """Whether the server has not ended it while it was idle. Asks the socket, not the server."""
    try:
        for _ in range(2):  # the server's last words, then the end
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return False
    return connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE


def _is_for_the_host(record: logging.LogRecord) -> bool:
    # A pool warns of each attempt that fails. Ours tell their callers, and a worker logs an outage once, so the host's
    # log is spared the rest. There is one logger for all pools, and the host's own may be among them.
    # It names first which pool, or which task of it, or it names the connection.
    arguments = tuple(record.args or ())
    is_ours = any(isinstance(each, AsyncConnection | Connection) for each in arguments)
    return not (is_ours or "'pgrecall" in repr(arguments[:1]))


logging.getLogger("psycopg.pool").addFilter(_is_for_the_host)
