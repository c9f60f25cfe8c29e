"""Installs the schema where it is missing or old."""

from __future__ import annotations

from pgrecall import schema
from pgrecall.database._sync import installed_schema_sync
from pgrecall.database.connections import connect_sync


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
