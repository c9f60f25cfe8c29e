"""Producers connect by TCP, with a role that may do nothing else."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from faults.proxy import Proxy
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqltools import Ear, add_session


@pytest.fixture
def address(database: str) -> Iterator[str]:
    """The database by TCP, which not every driver can do without, for a member of pgrecall_producer."""
    role, password = f"shop_{secrets.token_hex(4)}", secrets.token_hex(16)
    name = sql.Identifier(role)
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(
            sql.SQL("create role {} login password {} in role pgrecall_producer").format(name, sql.Literal(password))
        )
        try:
            with Proxy(database) as way:
                yield make_conninfo(way.dsn, user=role, password=password)
        finally:
            owner.execute(sql.SQL("drop owned by {}").format(name))
            owner.execute(sql.SQL("drop role {}").format(name))


@pytest.fixture
def owner(database: str) -> Iterator[str]:
    """The database by TCP for its owner, who may do everything."""
    with Proxy(database) as way:
        yield way.dsn


@pytest.fixture
def ear(database: str) -> Iterator[Ear]:
    """A worker's connection; the sessions s1 to s9 exist."""
    listener = Ear(database)
    add_session(listener.connection, *(f"s{number}" for number in range(1, 10)), user_id="u1")
    yield listener
    listener.close()
