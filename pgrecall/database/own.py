"""One connection for what a worker does all the time."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import psycopg

from pgrecall import schema
from pgrecall.calls import Call
from pgrecall.database._async import installed_schema_async, run_async
from pgrecall.database.connections import AsyncConnection, connect_async, is_alive
from pgrecall.database.errors import UPGRADED
from pgrecall.errors import RecallError

T = TypeVar("T")


class OwnConnection:
    """A connection that runs Calls, opened when it is first needed and again after it was lost.

    A pool hands its connections out in turn, so that each statement wakes another process of the server, which has long
    forgotten what it takes; and takes them back beside the caller, so that the next statement may need one more.

    Args:
        dsn: A complete connection string, see `conninfo`.
        patience: Seconds to wait until it is open. The attempt goes on meanwhile, for whoever comes next.
    """

    def __init__(self, dsn: str, *, patience: float) -> None:
        self._dsn = dsn
        self._patience = patience
        self._connection: AsyncConnection | None = None
        self._opening: asyncio.Task[AsyncConnection] | None = None
        self._checked = False

    async def run(self, call: Call[T]) -> list[T]:
        """Runs a call and returns its rows; one at a time.

        Raises:
            RecallError: The SQL refused; see the class.
            psycopg.Error: Anything else that the server or the network did. Whether it was done is not known.
        """
        connection = await self._opened()
        try:
            try:
                return await run_async(connection, call)
            except UPGRADED:
                return await run_async(connection, call)
        except BaseException as error:
            # What failed may lead to a server that has become a standby; unless we refused, for good reason.
            if not isinstance(error, RecallError):
                await self.mend()
            raise

    async def mend(self) -> None:
        """Replaces it, if it is open: after an outage it is not to be trusted."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def close(self) -> None:
        """Closes it; it opens another one when used again."""
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
            await asyncio.wait({opening})
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().close()  # nobody has waited for it to the end
        await self.mend()

    async def _opened(self) -> AsyncConnection:
        connection = self._connection
        if connection is not None and is_alive(connection):
            return connection
        if self._opening is None:
            await self.mend()
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(_look_at)
        opening = self._opening
        await asyncio.wait({opening}, timeout=self._patience)
        if not opening.done():
            raise psycopg.OperationalError(f"there was no connection within {self._patience:g} s")
        if opening is self._opening:
            self._opening = None
            self._connection = opening.result()
        return opening.result()

    async def _open(self) -> AsyncConnection:
        connection = await connect_async(self._dsn)
        try:
            if not self._checked:
                schema.check(await installed_schema_async(connection))
                self._checked = True
        except BaseException:
            await connection.close()
            raise
        return connection


def _look_at(opening: asyncio.Task[AsyncConnection]) -> None:
    """Whoever waited for it may have gone: asyncio shall not complain that nobody has looked at its error."""
    if not opening.cancelled():
        opening.exception()
