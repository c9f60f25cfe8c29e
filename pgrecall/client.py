"""The schedulers: `RecallScheduler` for asyncio, `SyncRecallScheduler` for threads, with the same methods.

Here is what the two do differently, opening and closing. What they can be asked is in `_async`, and in `_sync`, which
is made of it.
"""

from __future__ import annotations

import functools
from typing import Self

import anyio.to_thread

from pgrecall import database
from pgrecall._async.administration import AsyncAdministration
from pgrecall._async.requests import AsyncRequests
from pgrecall._sync.administration import SyncAdministration
from pgrecall._sync.requests import SyncRequests
from pgrecall.holds import Line, SyncLine


class RecallScheduler(AsyncRequests, AsyncAdministration):
    """Schedules and manages recalls.

    The connection pool opens on first use and belongs to the running event loop. Close it with `aclose()`, or use the
    scheduler as an async context manager.

    Args:
        dsn: A libpq connection string or URI; None: libpq's own `PG*` variables.
        pool_size: The most connections to use at once. Default 4.
        patience: Seconds to wait for a free connection. Default 30.

    Raises:
        SettingsError: The DSN is not a connection string.
    """

    def __init__(self, dsn: str | None = None, *, pool_size: int = 4, patience: float = 30.0) -> None:
        self.dsn = database.conninfo(dsn)
        self.database = database.AsyncDatabase(self.dsn, size=pool_size, patience=patience)
        self._line = Line(self.dsn)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections; using the scheduler again opens new ones."""
        await self.database.close()

    async def ensure_tables(self) -> None:
        """Installs the schema if it is missing or older than this package. Safe for many at once.

        Raises:
            SchemaTooNewError: The schema is newer than this package.
        """
        await anyio.to_thread.run_sync(functools.partial(database.ensure, self.dsn))


class SyncRecallScheduler(SyncRequests, SyncAdministration):
    """Schedules and manages recalls, for programs without an event loop.

    The connection pool opens on first use and may be shared by threads. Close it with `close()`, or use the scheduler
    as a context manager.

    Args:
        dsn: A libpq connection string or URI; None: libpq's own `PG*` variables.
        pool_size: The most connections to use at once. Default 4.
        patience: Seconds to wait for a free connection. Default 30.

    Raises:
        SettingsError: The DSN is not a connection string.
    """

    def __init__(self, dsn: str | None = None, *, pool_size: int = 4, patience: float = 30.0) -> None:
        self.dsn = database.conninfo(dsn)
        self.database = database.SyncDatabase(self.dsn, size=pool_size, patience=patience)
        self._line = SyncLine(self.dsn)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; using the scheduler again opens new ones."""
        self.database.close()

    def ensure_tables(self) -> None:
        """Installs the schema if it is missing or older than this package. Safe for many at once.

        Raises:
            SchemaTooNewError: The schema is newer than this package.
        """
        database.ensure(self.dsn)
