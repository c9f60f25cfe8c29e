"""Installs, upgrades and checks the SQL of `sql/`: the same files, in the same order, as `sql/install.sql`."""

from __future__ import annotations

import time
from datetime import timedelta
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import psycopg

from pgrecall._backoff import Backoff
from pgrecall.errors import SchemaBusyError, SchemaError, SchemaMissingError, SchemaOutdatedError, SchemaTooNewError
from pgrecall.model import InstalledSchema

#: The version of sql/ that this package was made for; `pgrecall.schema_version()` says the database's.
SCHEMA_VERSION = 2

#: How long an upgrade waits for a table, with everybody else behind it. Less than a server's deadlock_timeout (1 s by
#: default): a worker that waits for the upgrade, and for which the upgrade waits, shall not be the one that is stopped.
LOCK_TIMEOUT = timedelta(seconds=0.5)

#: For how long it tries again.
PATIENCE = timedelta(seconds=60)

#: Seconds between two attempts.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0

_WHEN_BUSY = "Nothing has changed. Run it again when there are no long transactions."

_FIRST_TIME = """\
-- A first installation of pgrecall, for any client. A database that has pgrecall is upgraded by `pgrecall migrate`, or
-- by psql with sql/install.sql: this script stops there with an error and changes nothing."""

#: Who may do what, see docs/roles.md.
GROUP_ROLES = (
    "pgrecall_chat",
    "pgrecall_observer",
    "pgrecall_operator",
    "pgrecall_producer",
    "pgrecall_user",
    "pgrecall_worker",
)

_ROLES_BY_HAND = """\
-- The group roles of pgrecall, for a server on which the installation could not make them. Run the first part as a role
-- that may (CREATEROLE, or your provider's administrator), the last line as the owner of the schema pgrecall, in each
-- database that has it. Then, for example: grant pgrecall_worker to my_worker;"""

BOOKKEEPING = "migrations/0000_bookkeeping.sql"


def sql_root() -> Traversable:
    """The folder with the SQL: inside an installed package, or beside the package in a checkout.

    Raises:
        SchemaError: The installation is incomplete.
    """
    packaged = files("pgrecall") / "sql"
    if (packaged / "install.sql").is_file():
        return packaged
    checkout = Path(__file__).parent.parent / "sql"
    if (checkout / "install.sql").is_file():
        return checkout
    raise SchemaError("this installation of pgrecall has no SQL files", hint="Install it again from its wheel.")


def _sorted(folder: str) -> list[str]:
    return sorted(f"{folder}/{entry.name}" for entry in (sql_root() / folder).iterdir() if entry.name.endswith(".sql"))


def _text(name: str) -> str:
    return (sql_root() / name).read_text(encoding="utf-8")


def migrations() -> dict[int, str]:
    """The run-once files by version, without the bookkeeping file."""
    found = {int(name.split("/")[1].split("_")[0]): name for name in _sorted("migrations")}
    del found[0]
    return found


def script_files() -> list[str]:
    """All files in the order in which a first installation runs them."""
    return [BOOKKEEPING, *_sorted("foundation"), *migrations().values(), *_sorted("routines")]


def script() -> str:
    """One SQL script for a first installation with any client: no psql commands, one transaction."""
    return "\n".join([_FIRST_TIME, "begin;", *(f"-- {name}\n{_text(name)}" for name in script_files()), "commit;\n"])


def roles_script() -> str:
    """SQL that makes the group roles by hand, for servers on which the owner of the schema may not."""
    made = "\n".join(
        f"do $$ begin create role {name} nologin; exception when duplicate_object then null; end $$;"
        for name in GROUP_ROLES
    )
    return f"{_ROLES_BY_HAND}\n{made}\nselect pgrecall.grant_roles();\n"


def install(
    connection: psycopg.Connection, *, lock_timeout: timedelta = LOCK_TIMEOUT, patience: timedelta = PATIENCE
) -> int:
    """Installs pgrecall into the database of this connection, or upgrades it, in one transaction.

    Safe to run again and by several at once: later ones wait for the first and find nothing left to do. While workers
    and producers are at work, too: see docs/upgrades.md.

    Args:
        connection: Any connection whose user may create the schema; not inside a transaction.
        lock_timeout: The longest wait for a table that others use: meanwhile everybody else waits behind it. Then it
            starts anew, after a pause.
        patience: No new attempt after this time.

    Returns:
        How many run-once migrations it applied: 0 if the tables were up to date.

    Raises:
        SchemaTooNewError: The database was installed by a newer pgrecall.
        SchemaBusyError: Others used the tables for all that time; nothing has changed.
        psycopg.Error: The server refused; nothing has changed then.
    """
    pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
    ends = time.monotonic() + patience.total_seconds()
    while True:
        try:
            return _install_once(connection, lock_timeout)
        except psycopg.errors.LockNotAvailable as error:
            pause = pauses.pause()
            if time.monotonic() + pause > ends:
                raise SchemaBusyError(
                    error.diag.message_primary or str(error), hint=error.diag.message_hint or _WHEN_BUSY
                ) from error
        time.sleep(pause)


def _install_once(connection: psycopg.Connection, lock_timeout: timedelta) -> int:
    known = migrations()
    with connection.transaction():
        connection.execute(_text(BOOKKEEPING).encode())
        milliseconds = max(1, round(lock_timeout / timedelta(milliseconds=1)))  # 0 would mean for ever
        connection.execute("select pg_catalog.set_config('lock_timeout', %s, true)", [str(milliseconds)])
        row = connection.execute("select coalesce(max(version), 0) from pgrecall.migrations").fetchone()
        installed = int(row[0]) if row else 0
        if installed > max(known):
            raise SchemaTooNewError(_too_new(installed), hint="Upgrade the package: pip install -U pgrecall")
        for name in _sorted("foundation"):
            connection.execute(_text(name).encode())
        pending = [name for version, name in sorted(known.items()) if version > installed]
        for name in pending:
            connection.execute(_text(name).encode())
        for name in _sorted("routines"):
            connection.execute(_text(name).encode())
    return len(pending)


def _too_new(version: int) -> str:
    return f"the pgrecall schema in the database is version {version}, this package was made for {SCHEMA_VERSION}"


def check(installed: InstalledSchema | None) -> None:
    """Compares the database's schema with the one that this package was made for.

    Args:
        installed: What `pgrecall.get_schema()` said; None if there is no such function.

    Raises:
        SchemaMissingError: None was given.
        SchemaOutdatedError: The database is behind.
        SchemaTooNewError: The database is ahead, and does not work with clients as old as this one any more.
    """
    if installed is None:
        raise SchemaMissingError("the database has no pgrecall schema", hint="Run: pgrecall migrate")
    if installed.version < SCHEMA_VERSION:
        raise SchemaOutdatedError(
            f"the pgrecall schema in the database is version {installed.version}, this package needs {SCHEMA_VERSION}",
            hint="Run: pgrecall migrate",
        )
    if installed.oldest_client > SCHEMA_VERSION:
        raise SchemaTooNewError(_too_new(installed.version), hint="Upgrade the package: pip install -U pgrecall")
