"""Logins for the tests of roles: each in one group role, with names that no other session uses, dropped in the end."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

#: The group roles, without their prefix.
ROLES = ("producer", "chat", "worker", "operator", "observer", "user")


def dsn_of(dsn: str, login: str) -> str:
    """The same database as this login."""
    return make_conninfo(dsn, user=login, password="recall_test")


def must_make_roles(dsn: str) -> None:
    """Skip where the server's user may not make roles."""
    with psycopg.connect(dsn) as db:
        found = db.execute("select rolsuper or rolcreaterole from pg_roles where rolname = current_user").fetchone()
    if found != (True,):
        pytest.skip("the user of this server may not make roles")


@contextmanager
def logins(dsn: str, **groups: str) -> Iterator[dict[str, str]]:
    """Makes logins, gives the DSN of each by its key, and drops them.

    Args:
        dsn: The database, as a user who may make roles.
        groups: For each login the group roles that it is in, without prefix, separated by spaces.
    """
    must_make_roles(dsn)
    run = uuid.uuid4().hex[:8]
    names = {key: f"recall_{run}_{key}" for key in groups}
    with psycopg.connect(dsn, autocommit=True) as admin:
        for key, name in names.items():
            login = sql.Identifier(name)
            admin.execute(sql.SQL("create role {} login password 'recall_test'").format(login))
            for group in groups[key].split():
                admin.execute(sql.SQL("grant {} to {}").format(sql.Identifier(f"pgrecall_{group}"), login))
    try:
        yield {key: dsn_of(dsn, name) for key, name in names.items()}
    finally:
        with psycopg.connect(dsn, autocommit=True) as admin:
            for name in names.values():
                admin.execute(sql.SQL("drop owned by {} cascade").format(sql.Identifier(name)))
                admin.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@contextmanager
def connections(dsns: dict[str, str]) -> Iterator[dict[str, psycopg.Connection]]:
    """An autocommit connection for each."""
    opened: dict[str, psycopg.Connection] = {}
    try:
        for key, dsn in dsns.items():
            opened[key] = psycopg.connect(dsn, autocommit=True)
        yield opened
    finally:
        for connection in opened.values():
            connection.close()
