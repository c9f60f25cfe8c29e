"""Which database is meant, how a verb gets a connection to it, and the few things that verbs ask it themselves.

Knows no verb, and does not show anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg

from pgrecall import database, schema
from pgrecall.calls import Call
from pgrecall.cli.errors import WrongUsage
from pgrecall.client import SyncRecallScheduler
from pgrecall.doctor.finding import span
from pgrecall.embedded import EmbeddedPostgres
from pgrecall.errors import SessionNotFoundError
from pgrecall.model import Settings

#: The limit of a list that shall have none.
EVERYTHING = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Target:
    """The options that every verb has.

    Attributes:
        dsn: A libpq connection string or URI; None: libpq's own `PG*` variables.
        embedded: Data directory of a private server, to be started for the length of the command.
        as_json: Whether to answer in JSON.
    """

    dsn: str | None
    embedded: str | None
    as_json: bool

    @contextmanager
    def server(self, *, with_schema: bool = True) -> Iterator[str | None]:
        """The DSN to use; with `--embedded` of a server that ends with the block, and has the schema."""
        if self.embedded is None:
            yield self.dsn
            return
        with EmbeddedPostgres(self.embedded) as postgres:
            if with_schema:
                database.ensure(postgres.dsn)
            yield postgres.dsn

    @contextmanager
    def open(self) -> Iterator[tuple[SyncRecallScheduler, psycopg.Connection[Any]]]:
        """A scheduler and the one connection to hand to each of its calls: no pool for a command of one statement."""
        with self.server() as dsn:
            scheduler = SyncRecallScheduler(dsn)
            with psycopg.connect(scheduler.dsn, autocommit=True) as connection:
                schema.check(database.installed_schema_sync(connection))
                yield scheduler, connection


def clock(connection: psycopg.Connection[Any]) -> datetime:
    """The database's time: the only clock that recalls follow."""
    call: Call[datetime] = Call("clock", {})
    return database.run_sync(connection, call)[0]


def later(connection: psycopg.Connection[Any], after: timedelta) -> datetime:
    """So long from now, by the database's time."""
    try:
        return clock(connection) + after
    except OverflowError as error:
        raise WrongUsage(f"{span(after)} from now is no date", hint="A recall fires before the year 9999.") from error


class _Settings(Call[Settings]):
    """The row itself; there is no function for it."""

    @property
    def statement(self) -> str:
        """The row."""
        return "select * from pgrecall.settings"


def current_settings(connection: psycopg.Connection[Any]) -> Settings:
    """What holds for all recalls of this database."""
    (settings,) = database.run_sync(connection, _Settings("settings", {}, Settings))
    return settings


def session_must_exist(connection: psycopg.Connection[Any], session_id: str) -> None:
    """Raises SessionNotFoundError unless there is this session."""
    if connection.execute("select from pgrecall.sessions where id = %s", [session_id]).rowcount == 0:
        raise SessionNotFoundError(f"no session with id '{session_id}'", session_id=session_id)
