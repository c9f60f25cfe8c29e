"""A real pgbouncer in front of the tests' server, in transaction mode unless told otherwise.

It hands out the server's processes in turn, so that nothing works by the luck of getting the same one again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgrecall.embedded.account import Account, account_for, short_directory

_CONFIG = """
[databases]
* = {target}

[pgbouncer]
listen_addr =
unix_socket_dir = {directory}
listen_port = 6432
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
min_pool_size = 3
server_round_robin = 1
logfile = {directory}/log
"""


def _program() -> str:
    """Where pgbouncer is; skips the test if it is not installed, fails it if it is required."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        reason = "pgbouncer is not installed"
        if "pgbouncer" in os.environ.get("PGRECALL_REQUIRE", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class PgBouncer:
    """One pgbouncer on a Unix socket of its own; its address stays the same after a restart."""

    def __init__(self, program: str, account: Account, directory: Path) -> None:
        self._program = program
        self._account = account
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def dsn(self, database: str) -> str:
        """The address of this database behind the pooler."""
        name = conninfo_to_dict(database)["dbname"]
        return (
            f"postgresql:///{quote(str(name), safe='')}?{urlencode({'host': self._directory, 'port': 6432})}&user=any"
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [*self._account.prefix, self._program, "-q", str(self._directory / "ini")]
        socket = self._directory / ".s.PGSQL.6432"
        socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            **self._account.options(),
        )  # fmt: skip
        ends = time.monotonic() + 20
        while True:
            with suppress(psycopg.OperationalError):
                psycopg.connect(host=str(self._directory), port=6432, user="any", dbname="postgres").close()
                return
            log = self._directory / "log"
            text = log.read_text() if log.exists() else ""
            assert self._process.poll() is None, text
            assert time.monotonic() < ends, f"pgbouncer does not answer: {text}"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End it if it runs."""
        if self._process is not None and self._process.poll() is None:
            self.kill()


@contextmanager
def pgbouncer(server_dsn: str, *, mode: str = "transaction", size: int = 20) -> Iterator[PgBouncer]:
    """A running pgbouncer in front of the server of this DSN, for all of its databases."""
    program = _program()
    account = account_for(None)
    target = {name: value for name, value in conninfo_to_dict(server_dsn).items() if value is not None}
    wanted = {name: target[name] for name in ("host", "port", "user", "password") if name in target}
    directory = Path(tempfile.mkdtemp(prefix="pgrecall-", dir=short_directory(account)))
    try:
        (directory / "ini").write_text(
            _CONFIG.format(
                target=" ".join(f"{name}='{value}'" for name, value in wanted.items()),
                directory=directory,
                mode=mode,
                size=size,
            )
        )
        account.own(directory)
        bouncer = PgBouncer(program, account, directory)
        try:
            bouncer.start()
            yield bouncer
        finally:
            bouncer.stop()
    finally:
        shutil.rmtree(directory)
