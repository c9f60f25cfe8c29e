"""Who has a data directory: our lock on it, and PostgreSQL's own pid file in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

from pgrecall.embedded.errors import EmbeddedPostgresError

__all__ = ["drop_stale_pid_file", "is_alive", "take_lock"]

_LOCK_SECONDS = 30.0  # how long a server whose owner is gone may take to shut down
_DEATH_SECONDS = 0.5  # how long a process that was just killed may still look alive


def take_lock(path: Path) -> int:
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
            patience = _DEATH_SECONDS if owner and is_alive(owner) else _LOCK_SECONDS
            if time.monotonic() - began > patience:
                os.close(handle)
                whose = f"process {owner}" if owner else "a server that is shutting down"
                raise EmbeddedPostgresError(f"the data directory {path.parent} is in use by {whose}") from None
            time.sleep(0.01)
        else:
            os.ftruncate(handle, 0)
            os.pwrite(handle, b"%d" % os.getpid(), 0)
            return handle


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie, whose parent may never collect it, does not."""
    if sys.platform == "linux":
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] not in b"ZX"
        return False
    return _ps(pid, "stat").strip(" Z\n") != ""


def drop_stale_pid_file(cluster: Path) -> None:
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
