"""The server object: a cluster made, started, stopped, and what its clients need to know."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgrecall.embedded import supervisor
from pgrecall.embedded.account import Account, account_for, short_directory
from pgrecall.embedded.binaries import find_binaries, reachable
from pgrecall.embedded.errors import EmbeddedPostgresError
from pgrecall.embedded.ownership import drop_stale_pid_file, take_lock

__all__ = ["EmbeddedPostgres"]

_START_SECONDS = 60.0  # crash recovery of a large data directory is part of a start
_USER = "postgres"
_RESERVED = {"listen_addresses", "port", "unix_socket_directories", "unix_socket_permissions", "logging_collector"}


class EmbeddedPostgres:
    """A PostgreSQL server that belongs to this process, as a context manager or by ``start`` and ``stop``.

    It listens on a Unix socket in a directory that only this user (and root) can enter. It ends with this process,
    also when that is killed. Methods may be called from any thread.

    Args:
        data_dir: directory that keeps the data (in ``postgres/``) and ``server.log`` of the last start; made with mode
            0700 if missing, used again if not. One server at a time. Default: a temporary one, removed by ``stop``.
        database: created if missing; the one that ``dsn`` names.
        port: also listen on 127.0.0.1 at this port, for clients with the random password in ``tcp_dsn``.
            Default: no TCP.
        settings: server settings as in postgresql.conf, with units where they have them. Addresses are not for it.
        binaries: directory of ``postgres`` and ``initdb``. Default: see ``find_binaries``.
        durable: survive a crash of the machine. False is faster; a temporary server never is durable.

    Raises:
        ValueError: ``settings`` names one that this class decides.
    """

    def __init__(
        self,
        data_dir: Path | str | None = None,
        *,
        database: str = "pgrecall",
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        binaries: Path | None = None,
        durable: bool = True,
    ) -> None:
        if refused := _RESERVED & set(settings or ()):
            raise ValueError(f"EmbeddedPostgres decides these settings itself: {', '.join(sorted(refused))}")
        self._data_dir = None if data_dir is None else Path(data_dir).expanduser().absolute()
        self._database = database
        self._port = port
        self._settings = dict(settings or {})
        self._binaries = binaries
        self._durable = durable and data_dir is not None
        self._password = secrets.token_urlsafe(24)
        self._mutex = threading.RLock()
        self._scratch: Path | None = None  # socket, and for a temporary server everything else
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0

    @property
    def dsn(self) -> str:
        """URI for psycopg, asyncpg and psql, from any process of this user; the same after every start."""
        address = {"host": str(self._directory), "port": self._port or 5432, "user": _USER}
        return f"postgresql:///{quote(self._database, safe='')}?{urlencode(address)}"

    @property
    def tcp_dsn(self) -> str:
        """URI with the password, for clients that cannot use the socket; needs ``port``."""
        if self._port is None:
            raise EmbeddedPostgresError("this server does not listen on TCP: pass a port")
        return f"postgresql://{_USER}:{self._password}@127.0.0.1:{self._port}/{quote(self._database, safe='')}"

    @property
    def pid(self) -> int:
        """Process id of the running postmaster.

        Raises:
            EmbeddedPostgresError: it is not running.
        """
        if self._process is None or self._process.poll() is not None:
            raise EmbeddedPostgresError("the server is not running")
        return self._pid

    def start(self) -> Self:
        """Bring the server up; does nothing while it is up, recovers the data after a crash.

        Raises:
            EmbeddedPostgresError: no binaries, the data directory cannot be made, is in use or of another major
                version, or the server does not start (with the end of its log).
        """
        with self._mutex:
            if self._process is not None and self._process.poll() is None:
                return self
            self._release()
            try:
                self._launch()
            except BaseException as error:
                self.stop()
                if isinstance(error, OSError) and error.errno:  # the system's, not that of a caller's signal handler
                    home = self._data_dir or tempfile.gettempdir()
                    raise EmbeddedPostgresError(f"no server can keep its data in {home}: {error}") from error
                raise
            return self

    def stop(self) -> None:
        """End the server cleanly, disconnecting its clients; does nothing when it is down.

        Raises:
            EmbeddedPostgresError: it had to be killed, because it did not end within 30 seconds.
        """
        with self._mutex:
            process, self._process = self._process, None
            try:
                if process is not None:
                    supervisor.end(process)
            finally:
                self._release()
                if self._scratch is not None and self._scratch.exists():
                    if self._data_dir is None:  # what a killed postmaster leaves running may still write
                        os.close(take_lock(self._scratch / "lock"))
                    shutil.rmtree(self._scratch)

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL, as a crash would; ``start`` then recovers the data. For tests."""
        with self._mutex:
            os.kill(self.pid, signal.SIGKILL)
            self._release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _directory(self) -> Path:
        if self._scratch is None:
            raise EmbeddedPostgresError("the server was never started")
        return self._scratch

    @property
    def _home(self) -> Path:
        return self._data_dir or self._directory

    def _launch(self) -> None:
        binaries = find_binaries(self._binaries)
        account = account_for(self._data_dir and self._data_dir / "postgres")
        self._make_directories(account)
        self._lock = take_lock(self._home / "lock")
        binaries, major = reachable(binaries, account, self._directory)
        cluster = self._home / "postgres"
        if not cluster.exists():
            self._initdb(binaries, account, cluster)
        if (made_by := (cluster / "PG_VERSION").read_text().strip()) != major:
            raise EmbeddedPostgresError(
                f"the data in {self._home} is of PostgreSQL {made_by}, but {binaries} is {major}: use the binaries of"
                f" {made_by}, move the data with pg_dump and psql, or choose another data directory"
            )
        drop_stale_pid_file(cluster)
        self._spawn([str(binaries / "postgres"), *self._arguments(cluster)], account)
        self._await_ready(cluster)
        self._prepare_database()

    def _make_directories(self, account: Account) -> None:
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="pgrecall-", dir=short_directory(account)))
        elif not self._scratch.exists():
            self._scratch.mkdir(mode=0o700)  # fails if somebody else took the name meanwhile: the DSN must not change
        account.own(self._scratch)
        if self._data_dir and not self._data_dir.exists():
            self._data_dir.parent.mkdir(parents=True, exist_ok=True)
            self._data_dir.mkdir(mode=0o700, exist_ok=True)  # another process may be starting here too
            account.own(self._data_dir)

    def _initdb(self, binaries: Path, account: Account, cluster: Path) -> None:
        unfinished = cluster.with_name("postgres.new")  # renamed when complete: a killed initdb leaves no half cluster
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        account.own(unfinished)
        flags = ["-E", "UTF8", "--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-instructions"]
        flags += [] if self._durable else ["--no-sync"]
        initdb = self._spawn([str(binaries / "initdb"), "-D", str(unfinished), "-U", _USER, *flags], account)
        if initdb.wait() != 0:
            raise EmbeddedPostgresError(f"initdb failed in {self._home}:\n{self._log_tail()}")
        unfinished.rename(cluster)
        if self._durable:
            parent = os.open(cluster.parent, os.O_RDONLY)
            os.fsync(parent)
            os.close(parent)

    def _arguments(self, cluster: Path) -> list[str]:
        unsafe = {} if self._durable else {"fsync": "off", "full_page_writes": "off"}
        ours = {
            "listen_addresses": "127.0.0.1" if self._port else "",
            "port": str(self._port or 5432),
            "unix_socket_directories": str(self._directory),
            "unix_socket_permissions": "0700",
            "logging_collector": "off",
        }
        settings = {"timezone": "UTC", "log_timezone": "UTC"} | unsafe | self._settings | ours
        return ["-D", str(cluster), *(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))]

    def _spawn(self, command: list[str], account: Account) -> subprocess.Popen[bytes]:
        """Start initdb or the server; its output goes to the log."""
        assert self._lock is not None
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()  # initdb's, which has ended
            self._process = None
        self._process = supervisor.start(
            command, account, scratch=self._directory, lock=self._lock, log=self._home / "server.log"
        )
        pid = supervisor.await_pid(self._process)
        if pid is None:
            raise EmbeddedPostgresError(f"the server's supervisor did not start:\n{self._log_tail()}")
        self._pid = pid
        return self._process

    def _await_ready(self, cluster: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(FileNotFoundError):  # not written yet
                lines = (cluster / "postmaster.pid").read_text().splitlines()
                if len(lines) > 7 and lines[0] == str(self._pid) and lines[7].strip() == "ready":
                    return
            if self._process.poll() is not None:
                raise EmbeddedPostgresError(f"PostgreSQL did not start:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"PostgreSQL was not ready in {_START_SECONDS:g} s:\n{self._log_tail()}")
            time.sleep(0.005)

    def _log_tail(self, lines: int = 20) -> str:
        return "\n".join((self._home / "server.log").read_text(errors="replace").splitlines()[-lines:])

    def _prepare_database(self) -> None:
        with psycopg.connect(make_conninfo(self.dsn, dbname="postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [self._database]).rowcount:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self._database)))
            if self._port:  # hashed here, so that no log or statistics view of the server sees it
                hashed = connection.pgconn.encrypt_password(self._password.encode(), _USER.encode(), b"scram-sha-256")
                change = sql.SQL("ALTER ROLE {} PASSWORD {}")
                connection.execute(change.format(sql.Identifier(_USER), sql.Literal(hashed.decode())))

    def _release(self) -> None:
        """Give the data directory up: forget the owner, and let go of our handle on the lock (not of the server's)."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.wait()
            self._process.stdin.close()  # not before: its end tells the supervisor to clear the scratch directory away
            self._process = None
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None
