"""Workers as real processes: `pgrecall worker` with an agent that does what its message says, and its log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leash import LEASHED

import pgrecall

ROOT = Path(pgrecall.__file__).parent.parent

#: Seconds for what takes milliseconds, or the start of a process, on a busy machine.
DEADLINE = 20.0

#: The message is a verb and its value. Whatever is not one of these is done at once.
AGENT = """
import asyncio, ctypes, os, signal, time

async def agent(*, session_id, user_message):
    verb, _, value = user_message.partition(" ")
    if verb == "sleep":
        await asyncio.sleep(float(value))
    elif verb == "block":
        time.sleep(float(value))
    elif verb == "exit":
        os._exit(int(value))
    elif verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "segfault":
        ctypes.string_at(0)
    return f"did {user_message}"
"""


def now() -> datetime:
    """The time, as a recall wants it."""
    return datetime.now(UTC)


@dataclass
class WorkerProcess:
    """A running `pgrecall worker`.

    Attributes:
        process: The process.
        events: What it has logged so far, in order; `at` is when it was read, by this process's monotonic clock.
    """

    process: subprocess.Popen[str]
    events: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line) | {"at": time.monotonic()}
            with self._more:
                self.events.append(event)
                self._more.notify_all()

    def all(self, name: str) -> list[dict[str, Any]]:
        """The events of this name so far."""
        with self._more:
            return [event for event in self.events if event["event"] == name]

    def event(self, name: str, count: int = 1, deadline: float = DEADLINE) -> dict[str, Any]:
        """Wait for an event of this name, or for several; return the last of these."""

        def there() -> bool:
            return len([event for event in self.events if event["event"] == name]) >= count

        with self._more:
            assert self._more.wait_for(there, deadline), f"no {name} in {self.events[-5:]}"
        return self.all(name)[count - 1]

    def send(self, number: signal.Signals) -> float:
        """Send a signal; return when."""
        at = time.monotonic()
        self.process.send_signal(number)
        return at

    def ended(self, deadline: float = DEADLINE) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(deadline)
        self._reader.join(DEADLINE)
        return code

    def memory(self) -> int:
        """The resident memory in bytes. Linux only."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        self._reader.join(DEADLINE)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


Start = Callable[..., WorkerProcess]


@contextmanager
def worker_processes(directory: Path, dsn: str, package: Path = ROOT) -> Iterator[Start]:
    """Gives a function that starts a worker with the given options; all of them are killed in the end.

    It returns when the worker has said that it started, unless told not to wait. The package is this checkout, or the
    wheel of another release.
    """
    (directory / "my_agent.py").write_text(AGENT)
    with ExitStack() as running:

        def start(*options: str, wait: bool = True) -> WorkerProcess:
            process = subprocess.Popen(
                [*LEASHED, "pgrecall", "worker", "--agent", "my_agent:agent", "--dsn", dsn, *options],
                cwd=directory,
                env=os.environ | {"PYTHONPATH": str(package), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            worker = WorkerProcess(process)
            running.callback(worker.close)
            if wait:
                worker.event("worker_started")
            return worker

        yield start
