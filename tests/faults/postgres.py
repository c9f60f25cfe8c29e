"""Servers of a suite's own, to be restarted and crashed; and what can be done to the connections of any server."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psycopg
from servers import Server

from pgrecall import schema
from pgrecall.embedded import EmbeddedPostgres, EmbeddedPostgresError

#: A crash of the machine is not tested, so nothing need reach the disk; a crash of the server is.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "on",
    "max_connections": "200",
    "track_commit_timestamp": "on",
    "log_lock_waits": "on",
}

Way = Literal["fast", "immediate", "kill -9"]
WAYS: tuple[Way, ...] = ("fast", "immediate", "kill -9")


def binaries_of(server: Server) -> Path | None:
    """The programs of a server that runs on this machine, so that another one is of the same version."""
    with psycopg.connect(server.dsn) as connection:
        row = connection.execute("select setting from pg_config where name = 'BINDIR'").fetchone()
    assert row is not None
    directory = Path(row[0])
    return directory if server.kind not in ("dsn", "docker") and (directory / "initdb").exists() else None


@contextmanager
def crashable(directory: Path, binaries: Path | None = None) -> Iterator[EmbeddedPostgres]:
    """A server that keeps its data in the directory, with the schema installed."""
    with EmbeddedPostgres(directory, settings=_SETTINGS, binaries=binaries) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            schema.install(connection)
        yield server


def bring_down(server: EmbeddedPostgres, way: Way) -> None:
    """End the server in one of three ways; `start` brings it back."""
    match way:
        case "fast":
            server.stop()
        case "immediate":
            pid = server.pid
            os.kill(pid, signal.SIGQUIT)
            _await_end(server, pid)
        case "kill -9":
            server.kill()


def _await_end(server: EmbeddedPostgres, pid: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if server.pid != pid:
                return
        except EmbeddedPostgresError:
            return
        time.sleep(0.005)
    raise TimeoutError("the server did not end")


def terminate_connections(dsn: str, share: float = 1.0) -> int:
    """Terminate a random share of pgrecall's connections to the database; returns how many."""
    with psycopg.connect(dsn, autocommit=True, application_name="operator") as connection:
        ended = connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
            "and application_name = 'pgrecall' and pid <> pg_backend_pid() and random() < %s",
            [share],
        )
        return ended.rowcount


@contextmanager
def accepting_nobody(server: EmbeddedPostgres) -> Iterator[None]:
    """Stop the postmaster alone: who is connected notices nothing, who connects gets no answer."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def connections(dsn: str) -> int:
    """How many connections pgrecall has to the database."""
    with psycopg.connect(dsn, autocommit=True, application_name="operator") as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'pgrecall'"
        ).fetchone()
        assert row is not None
        return int(row[0])
