"""Runs Calls: on a connection, or on one of a pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar, cast

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from pgrecall import calls, schema
from pgrecall.calls import Call
from pgrecall.database.connections import CONNECT, AsyncConnection, is_alive, set_up_async
from pgrecall.database.errors import UPGRADED, translated
from pgrecall.database.rows import row_factory
from pgrecall.errors import RecallError
from pgrecall.model import InstalledSchema

T = TypeVar("T")

#: Seconds for which a pool that is closed waits for attempts to connect that are under way.
_CLOSE_SECONDS = 1.0

#: A pool opens a connection when somebody needs one, and leaves the next attempt after a failure to the next caller,
#: who wants it at once: by itself it would pause longer and longer, and come back late after a long outage.
_POOL: dict[str, Any] = {"name": "pgrecall", "kwargs": CONNECT, "min_size": 0, "reconnect_timeout": 0.0, "open": False}


# Behind a pooler a call is a transaction of its own, which says its isolation level, in one round trip where libpq can
# pipeline. Its answer is read in binary, which no DateStyle changes.


async def run_async(connection: psycopg.AsyncConnection[Any], call: Call[T]) -> list[T]:
    """Runs a call on this connection and returns its rows; joins its transaction if one is open.

    Raises:
        RecallError: The SQL refused; see the class.
        psycopg.Error: Anything else that the server or the network did.
    """
    is_pooled = isinstance(connection, AsyncConnection) and connection.is_pooled
    cursor = connection.cursor(row_factory=row_factory(call), binary=is_pooled)
    with translated():
        if is_pooled:
            async with AsyncExitStack() as stack:
                if psycopg.AsyncPipeline.is_supported():
                    await stack.enter_async_context(connection.pipeline())
                await stack.enter_async_context(connection.transaction())
                await cursor.execute(call.statement.encode(), call.arguments)
        else:
            await cursor.execute(call.statement.encode(), call.arguments)
    return cast("list[T]", await cursor.fetchall())


async def installed_schema_async(connection: psycopg.AsyncConnection[Any]) -> InstalledSchema | None:
    """The schema in this connection's database; None if there is none."""
    try:
        (found,) = await run_async(connection, calls.get_schema())
    except (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedFunction):
        return None
    return found


class _Pool(AsyncConnectionPool[AsyncConnection]):
    """Remembers why it could not connect, and tells who waits as soon as it has given up and no connection is left."""

    trouble: Exception | None = None

    async def _connect(self, timeout: float | None = None) -> AsyncConnection:
        try:
            connection = await super()._connect(timeout)
        except Exception as error:
            self.trouble = error
            raise
        self.trouble = None
        return connection

    async def reconnect_failed(self) -> None:
        async with self._lock:
            while self._waiting and self.get_stats()["pool_size"] == 0:
                await self._waiting.popleft().fail(PoolTimeout())


class AsyncDatabase:
    """A pool of autocommit connections that runs Calls.

    `AsyncDatabase` belongs to the event loop that uses it, until it is closed; `SyncDatabase` may be shared by threads.
    The schema's version is checked once, on first use.

    Args:
        dsn: A complete connection string, see `conninfo`.
        size: The most connections.
        patience: Seconds to wait for a connection.
    """

    def __init__(self, dsn: str, *, size: int, patience: float = 30.0) -> None:
        self.dsn = dsn
        self._settings = {**_POOL, "max_size": size, "timeout": patience, "configure": set_up_async}
        self._pool = _Pool(dsn, connection_class=AsyncConnection, **self._settings)
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
        (row,) = await self.run(call, connection)
        return row

    async def query(self, statement: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """Runs one SELECT of ours and returns its rows as dictionaries."""
        async with self._borrowed() as own, own.cursor(row_factory=dict_row, binary=own.is_pooled) as cursor:
            with translated():
                await cursor.execute(statement.encode(), arguments)
            return await cursor.fetchall()

    async def mend(self) -> None:
        """Replaces the connections that nobody uses: after an outage none of them is to be trusted."""
        if not self._pool.closed:
            await self._pool.drain()

    async def close(self) -> None:
        """Closes the connections; it opens new ones when used again."""
        pool, self._pool = self._pool, _Pool(self.dsn, connection_class=AsyncConnection, **self._settings)
        await pool.close(_CLOSE_SECONDS)

    @asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[AsyncConnection]:
        pool = self._pool
        await pool.open()
        try:
            # Not as the pool's `check`, after which it makes a pause of a second before it gives out the next one.
            while not is_alive(connection := await pool.getconn()):
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
