"""Which database is meant, how a verb gets a connection to it, and the few things that verbs ask it themselves.

Knows no verb, and does not show anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
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
from pgrecall.model import Pause, Settings

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


def earlier(connection: psycopg.Connection[Any], ago: timedelta) -> datetime:
    """So long ago, by the database's time."""
    try:
        return clock(connection) - ago
    except OverflowError as error:
        raise WrongUsage(f"{span(ago)} ago is no date", hint="There is no year before the first.") from error


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


class _Pauses(Call[Pause]):
    """The pauses of sessions and users that have not ended, the oldest first; there is no function for them."""

    @property
    def statement(self) -> str:
        """The rows."""
        columns = ", ".join(f"pause.{field.name}" for field in fields(Pause))
        return f"""
            select {columns}
            from pgrecall.pauses as pause
            where coalesce(pause.paused_until, 'infinity') > pgrecall.clock()
                and (
                    %(session)s::text is null
                    or pause.session_id = %(session)s
                    or pause.user_id = (select one.user_id from pgrecall.sessions as one where one.id = %(session)s)
                )
                and (
                    %(user)s::text is null
                    or pause.user_id = %(user)s
                    or pause.session_id in (select one.id from pgrecall.sessions as one where one.user_id = %(user)s)
                )
            order by pause.id
        """  # noqa: S608 (names of columns only)


def current_pauses(
    connection: psycopg.Connection[Any], *, session: str | None = None, user: str | None = None
) -> list[Pause]:
    """The pauses of sessions and users that hold now: all, or those that concern a session or a user."""
    return database.run_sync(connection, _Pauses("pauses", {"session": session, "user": user}, Pause))


def count_recalls(connection: psycopg.Connection[Any], user_id: str, statuses: Collection[str]) -> int:
    """How many recalls with one of these statuses the sessions of a user have."""
    row = connection.execute(
        """select count(*) from pgrecall.session_recalls as recall
        join pgrecall.sessions as session on session.id = recall.session_id
        where session.user_id = %s and recall.status = any(%s)""",
        [user_id, list(statuses)],
    ).fetchone()
    return int(row[0]) if row else 0


def user_must_have_sessions(connection: psycopg.Connection[Any], user_id: str) -> None:
    """Raises SessionNotFoundError unless the user has a session: the name may be misspelled."""
    if connection.execute("select from pgrecall.sessions where user_id = %s limit 1", [user_id]).rowcount == 0:
        raise SessionNotFoundError(f"no session belongs to user '{user_id}'")
