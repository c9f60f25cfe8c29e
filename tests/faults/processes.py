"""Workers as processes that can be killed, stopped for a while, told to end, and given a wrong clock."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leash import LEASHED

from faults import clock

_ROOT = Path(__file__).resolve().parents[2]
_numbers = itertools.count(1)

#: Longer than a worker takes to start on a busy machine.
START_SECONDS = 20.0


@dataclass
class Pause:
    """A time in which a process did not execute; monotonic nanoseconds."""

    stopped_ns: int
    continued_ns: int | None = None


@dataclass(frozen=True)
class Settings:
    """What all workers of a test have in common.

    Attributes:
        directory: Gets their logs and their evidence.
        concurrency: Slots.
        lease: Seconds.
        grace: Seconds.
        safety_interval: Seconds; so long that it never saves anybody.
        agent: What runs in them, `module:attribute`.
    """

    directory: Path
    concurrency: int = 4
    lease: float = 30.0
    grace: float = 30.0
    safety_interval: float = 3600.0
    agent: str = "faults.agent:agent"


@dataclass(eq=False)
class WorkerProcess:
    """A `pgrecall worker`, and what was done to it.

    Args:
        settings: See there.
        dsn: Where it finds the database.
        prefix: Words before the command, such as those of a network namespace.
        wrong_by: Seconds by which its time of day is wrong.
    """

    settings: Settings
    dsn: str
    prefix: Sequence[str] = ()
    wrong_by: float = 0.0
    name: str = field(default_factory=lambda: f"w{next(_numbers)}")
    pauses: list[Pause] = field(default_factory=list)
    started_ns: int = 0
    died_ns: int | None = None
    killed_ns: int | None = None
    killed_at: datetime | None = None
    told_to_end: bool = False

    def __post_init__(self) -> None:
        options = {
            "agent": self.settings.agent,
            "concurrency": self.settings.concurrency,
            "lease": f"{self.settings.lease:g}s",
            "grace": f"{self.settings.grace:g}s",
            "safety-interval": f"{self.settings.safety_interval:g}s",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        paths = f"{_ROOT}{os.pathsep}{_ROOT / 'tests'}"
        environment = os.environ | {
            "PYTHONPATH": paths,
            "PYTHONUNBUFFERED": "1",
            "PGRECALL_DSN": self.dsn,
            "FAULTS_PROCESS": self.name,
            "FAULTS_EVIDENCE": str(self.settings.directory),
        }
        environment |= clock.environment(self.wrong_by)
        self.started_ns = time.monotonic_ns()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self.prefix, *LEASHED, "pgrecall", "--json", "worker", *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def _log(self) -> Path:
        return self.settings.directory / f"{self.name}.log"

    @property
    def evidence(self) -> Path:
        """Where its agent writes down what it does; it may be missing."""
        return self.settings.directory / f"{self.name}.evidence"

    @property
    def stalls(self) -> Path:
        """Where it writes down when it could not execute; it may be missing."""
        return self.settings.directory / f"{self.name}.stalls"

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        if self._process.poll() is None:
            return True
        self._note_death()
        return False

    @property
    def exit_code(self) -> int | None:
        """As of subprocess; None while it is alive."""
        return self._process.poll()

    def events(self) -> list[dict[str, Any]]:
        """Its log, without lines that are no events."""
        lines = self._log.read_text(errors="replace").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]

    def log_tail(self, lines: int = 15) -> str:
        """The end of what it said."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    @property
    def ready(self) -> bool:
        """Whether it has said that it works."""
        return any(event.get("event") == "worker_started" for event in self.events())

    def kill(self) -> None:
        """SIGKILL: it has no chance to say anything."""
        self.killed_ns, self.killed_at = time.monotonic_ns(), datetime.now(UTC)
        self._process.kill()
        self._process.wait()
        self._note_death()

    def freeze(self) -> None:
        """SIGSTOP: it executes nothing until thawed."""
        self._process.send_signal(signal.SIGSTOP)
        self.pauses.append(Pause(time.monotonic_ns()))

    def thaw(self) -> None:
        """SIGCONT."""
        stopped = [pause for pause in self.pauses if pause.continued_ns is None]
        if stopped and self.alive:
            # However often it was stopped, it executes again.
            for pause in stopped:
                pause.continued_ns = time.monotonic_ns()
            self._process.send_signal(signal.SIGCONT)

    def tell_to_end(self) -> None:
        """SIGTERM."""
        self.told_to_end = True
        self._process.terminate()

    def wait(self, seconds: float) -> int:
        """Wait for its end and return its exit code.

        Raises:
            subprocess.TimeoutExpired: It did not end in time.
        """
        code = self._process.wait(seconds)
        self._note_death()
        return code

    def _note_death(self) -> None:
        if self.died_ns is None:
            self.died_ns = time.monotonic_ns()
            assert self._process.stdin is not None
            self._process.stdin.close()
