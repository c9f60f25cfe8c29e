"""What `pgrecall doctor` looks at, in which order, and what becomes of a check that fails or may not look.

Each check is one function, each a few SELECTs. Changes nothing, prints nothing; it must not know what a check asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import psycopg
from psycopg import errors
from psycopg.rows import dict_row

from pgrecall import database
from pgrecall.doctor import recalls, server, tables, wake_up, workers
from pgrecall.doctor.finding import Check, Connection, one_line


def examine(dsn: str | None, *, listen_dsn: str | None = None, patience: timedelta) -> Iterator[Check]:
    """Looks at a database and its workers, and yields each finding as it is made.

    Args:
        dsn: A libpq connection string or URI; None: libpq's own `PG*` variables.
        listen_dsn: Where the workers LISTEN, if not at dsn.
        patience: How long a transaction may stay open before it is reported.

    Raises:
        SettingsError: A DSN is not a connection string.
    """
    conninfo = database.conninfo(dsn)
    try:
        connection = psycopg.connect(conninfo, autocommit=True, row_factory=dict_row)
    except psycopg.Error as error:
        yield Check("server", "fail", one_line(error), "Is it running, and is the address right? See --dsn.")
        return
    with connection:
        yield from _checked("server", server.server, connection)
        yield from _checked("clock", server.clock, connection)
        yield from _checked(
            "notify", lambda _: server.notify(conninfo, database.conninfo(listen_dsn or dsn)), connection
        )
        yield from _checked("notify queue", server.notify_queue, connection)
        yield from _checked("transactions", lambda db: server.transactions(db, patience), connection)
        yield from _checked("prepared", lambda db: server.prepared(db, patience), connection)
        missing = wake_up.schema(connection)
        yield missing
        if missing.status == "ok":
            for name, check in (
                ("triggers", wake_up.triggers),
                ("wake-up lock", wake_up.wake_up_lock),
                ("register", wake_up.register),
                ("workers", workers.workers),
                ("listeners", workers.listeners),
                ("claims", workers.claims),
                ("sessions", recalls.sessions),
                ("pauses", recalls.pauses),
                ("overdue", recalls.overdue),
                ("vacuum", tables.vacuum),
            ):
                yield from _checked(name, check, connection)


def _checked(name: str, check: Callable[[Connection], Check], connection: Connection) -> Iterator[Check]:
    """Runs a check in a transaction of its own that waits for nobody; what it may not see becomes a warning."""
    try:
        with connection.transaction():
            connection.execute("set local lock_timeout = '2s'; set local statement_timeout = '15s'")
            yield check(connection)
    except errors.InsufficientPrivilege as error:
        yield Check(name, "warn", f"not allowed to look: {one_line(error)}", "Ask as a role that may read it.")
    except (errors.LockNotAvailable, errors.QueryCanceled) as error:
        yield Check(
            name, "fail", f"a table is locked: {one_line(error)}", "See transactions above for who may hold it."
        )
    except psycopg.Error as error:
        yield Check(name, "fail", one_line(error), "If something of the schema is missing: pgrecall migrate")
