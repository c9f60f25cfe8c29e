"""The only package that talks to psycopg on behalf of the others: connections, pools, running a Call, errors.

Knows nothing of what the calls mean.
"""

from pgrecall.database._async import AsyncDatabase, installed_schema_async, run_async
from pgrecall.database._sync import SyncDatabase, installed_schema_sync, run_sync
from pgrecall.database.connections import (
    PLACE,
    AsyncConnection,
    Connection,
    answered_within,
    connect_async,
    connect_sync,
    conninfo,
)
from pgrecall.database.errors import UPGRADED, translate, translated
from pgrecall.database.installing import ensure, install
from pgrecall.database.own import OwnConnection

__all__ = [
    "PLACE",
    "UPGRADED",
    "AsyncConnection",
    "AsyncDatabase",
    "Connection",
    "OwnConnection",
    "SyncDatabase",
    "answered_within",
    "connect_async",
    "connect_sync",
    "conninfo",
    "ensure",
    "install",
    "installed_schema_async",
    "installed_schema_sync",
    "run_async",
    "run_sync",
    "translate",
    "translated",
]
