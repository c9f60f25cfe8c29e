"""What the tests of connections do to a server: restart, fail over, pause, fill up; and how they wait for a worker."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from psycopg.conninfo import conninfo_to_dict
from workertools import Sql, until

from pgrecall import RecallScheduler
from pgrecall.embedded import EmbeddedPostgres
from pgrecall.embedded.account import account_for
from pgrecall.embedded.binaries import find_binaries, reachable


async def looked(db: Sql, workers: int = 1) -> None:
    """Wait until so many workers have registered and one has looked; by then the first one listens, if it does."""

    async def have() -> bool:
        return bool(
            await db(
                "select where pg_sequence_last_value('pgrecall.armed_until') is not null "
                "and (select count(*) from pgrecall.workers) >= %s",
                workers,
            )
        )

    await until(have)


def heard(events: Sequence[Any], name: str) -> list[Any]:
    """The log events of this name."""
    return [event for event in events if event["event"] == name]


async def hear(events: Sequence[Any], name: str, deadline: float = 20) -> None:
    """Wait for a log event of this name."""

    async def has() -> bool:
        return bool(heard(events, name))

    await until(has, deadline)


async def with_schema(postgres: EmbeddedPostgres) -> None:
    """Start it if it does not run, and install the schema."""
    await anyio.to_thread.run_sync(postgres.start)
    async with RecallScheduler(postgres.dsn) as scheduler:
        await scheduler.ensure_tables()


def end(postgres: EmbeddedPostgres, how: Literal["fast", "immediate", "kill -9"]) -> None:
    """End a server in one of three ways; `start` brings it back."""
    match how:
        case "fast":
            postgres.stop()
        case "immediate":
            os.kill(postgres.pid, signal.SIGQUIT)
            postgres.stop()
        case "kill -9":
            postgres.kill()


def processes(postmaster: int) -> list[int]:
    """The postmaster and its children."""
    found = [postmaster]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended while we looked
            if int(stat.read_text().rpartition(")")[2].split()[1]) == postmaster:
                found.append(int(stat.parent.name))
    return found


@contextmanager
def paused(postgres: EmbeddedPostgres) -> Iterator[None]:
    """A server none of whose processes moves; needs /proc."""
    stopped = processes(postgres.pid)
    try:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def standby_of(primary: EmbeddedPostgres, home: Path) -> Iterator[EmbeddedPostgres]:
    """A streaming standby of a running server, in a directory of its own."""
    account = account_for(None)
    binaries, _ = reachable(find_binaries(), account, primary._directory)
    program = binaries / "pg_basebackup"
    if not program.exists():
        pytest.skip(f"{binaries} has no pg_basebackup")
    home.mkdir(mode=0o700)
    account.own(home)
    target = conninfo_to_dict(primary.dsn)
    source = f"host={target['host']} port={target['port']} user={target['user']}"
    made = account.run(program, "-d", source, "-D", home / "postgres", "-R", "-X", "stream", "-c", "fast", "--no-sync")
    assert made.returncode == 0, made.stderr
    with EmbeddedPostgres(home, durable=False) as standby:
        yield standby


def both(first: EmbeddedPostgres, second: EmbeddedPostgres) -> str:
    """A DSN that leads to whichever of them can be written to."""
    one, other = conninfo_to_dict(first.dsn), conninfo_to_dict(second.dsn)
    hosts = f"host={one['host']},{other['host']} port={one['port']},{other['port']}"
    return f"{hosts} user={one['user']} dbname={one['dbname']} target_session_attrs=read-write"


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own that can be filled up."""
    place.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "pgrecall-test", str(place)]
    if (
        os.geteuid() != 0
        or not shutil.which("mount")
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("only root can mount a small file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Leave no room in this file system; the file that takes it."""
    filler = place / "filler"
    with filler.open("wb") as file, suppress(OSError):
        while True:
            file.write(bytes(65536))
            file.flush()
    return filler
