"""A program that ends with its caller, however the caller ends.

One shell per server, its parent. The caller holds the pipe's other end, so the kernel closes it however the caller
ends::

    caller ──pipe──> sh (supervisor) ──> postgres
                      └─> sh (watcher, reads the pipe)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from pgrecall.embedded.account import Account
from pgrecall.embedded.errors import EmbeddedPostgresError

__all__ = ["await_pid", "end", "start"]

_STOP_SECONDS = 30.0

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


def start(command: list[str], account: Account, *, scratch: Path, lock: int, log: Path) -> subprocess.Popen[bytes]:
    """Start a program that ends when we do and holds the lock, under its supervisor; ``await_pid`` comes next.

    Args:
        command: the program and its arguments.
        account: whom it runs as.
        scratch: directory that the supervisor removes at the end, unless the program ends by itself.
        lock: handle that the program inherits, so the lock stays taken until the last process on the data is gone.
        log: file that gets what it says, and nothing from before.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            ["/bin/sh", "-c", _SUPERVISOR, "pgrecall-postgres", str(scratch), *account.prefix, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            bufsize=0,
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C in a terminal is for the caller, which then stops the server
            **account.options(),
        )
    finally:
        os.close(output)


def await_pid(process: subprocess.Popen[bytes]) -> int | None:
    """Return the program's process id, or None if its supervisor did not start it."""
    assert process.stdout is not None
    with process.stdout as answer:
        first = answer.readline()
    return int(first) if first else None


def end(process: subprocess.Popen[bytes]) -> None:
    """End the program cleanly, and its supervisor with it.

    Raises:
        EmbeddedPostgresError: it had to be killed.
    """
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
