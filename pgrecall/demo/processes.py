"""The programs around the database: workers as processes, and producers that ask for recalls in three ways."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from pgrecall.client import SyncRecallScheduler
from pgrecall.demo.plan import Source, Wanted, plain_insert

__all__ = ["SLOTS", "DemoError", "Fleet", "Producers"]

SLOTS = 4

_EXECUTE = "import sys, psycopg; psycopg.connect(sys.argv[1], autocommit=True).execute(sys.argv[2])"


class DemoError(Exception):
    """Something that the demo needs did not work; the message says what."""


def _pgrecall(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pgrecall", *arguments]


def _tail(output: str) -> str:
    return "\n".join(output.strip().splitlines()[-5:])


class Fleet:
    """The worker processes, named w1, w2 … in the order of their start."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.killed: str | None = None

    def start(self, name: str, agent: str, *, dsn: str, agent_dsn: str) -> None:
        """Starts a worker; its log goes to a file, and its agent finds the sessions by PGRECALL_DSN."""
        command = _pgrecall("worker", "--dsn", dsn, "--agent", agent, "--concurrency", str(SLOTS))
        environment = os.environ | {"PGRECALL_DSN": agent_dsn}
        with (self._directory / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def name_of(self, worker_id: str) -> str:
        """The name of a worker by its id, which is host:pid:random."""
        pid = int(worker_id.split(":")[-2])
        return next((name for name, process in self.processes.items() if process.pid == pid), worker_id)

    def kill(self, name: str) -> None:
        """Ends a worker with SIGKILL: it gets no chance to say goodbye."""
        self.killed = name
        self.processes[name].kill()
        self.processes[name].wait()

    def check(self) -> None:
        """Raises DemoError if a worker has ended that should run."""
        for name, process in self.processes.items():
            if name != self.killed and process.poll() is not None:
                log = (self._directory / f"{name}.log").read_text(errors="replace")
                raise DemoError(f"worker {name} ended by itself, exit code {process.returncode}:\n{_tail(log)}")

    def stop(self) -> None:
        """SIGTERM, so that runs may end; SIGKILL after five seconds."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + 5
        for process in self.processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Producers:
    """Whoever asks for recalls.

    Args:
        dsn: The database.
        clock: Tells the database's time.
        announce: Called before recalls are asked for, with the source, their number and a few lines that show how.
    """

    def __init__(
        self, dsn: str, clock: Callable[[], datetime], announce: Callable[[Source, int, Sequence[str]], None]
    ) -> None:
        self._dsn = dsn
        self._clock = clock
        self._announce = announce
        self._start = clock()
        self._commands: deque[Wanted] = deque()
        self._command: subprocess.Popen[bytes] | None = None

    def schedule(self, wanted: Iterable[Wanted]) -> datetime:
        """Asks for all recalls: the command line's follow one by one by `next_command`, while the first ones fire.

        Returns:
            The time from which `Wanted.after` counts.
        """
        self._start = self._clock()
        by_source: dict[Source, list[Wanted]] = {"Python": [], "SQL": [], "CLI": []}
        for one in wanted:
            by_source[one.source].append(one)
        self._schedule_by_python(by_source["Python"])
        self._schedule_by_sql(by_source["SQL"])
        self._schedule_by_cli(by_source["CLI"])
        return self._start

    def _schedule_by_python(self, wanted: Sequence[Wanted]) -> None:
        first = wanted[0]
        call = f'scheduler.schedule_recall(session_id="{first.session_id}", trigger_at=start + '
        arguments = f'timedelta(seconds={first.after.total_seconds():g}), additional_context_message="{first.message}")'
        self._announce("Python", len(wanted), [call, f"    {arguments}"])
        with SyncRecallScheduler(self._dsn) as scheduler:
            for one in wanted:
                scheduler.schedule_recall(
                    session_id=one.session_id,
                    trigger_at=self._start + one.after,
                    additional_context_message=one.message,
                    metadata={"think_seconds": one.think_seconds} if one.think_seconds else None,
                )

    def _schedule_by_sql(self, wanted: Sequence[Wanted]) -> None:
        insert = plain_insert(wanted, self._start)
        psql = shutil.which("psql")
        if psql:
            command = [psql, self._dsn, "--no-psqlrc", "--quiet", f"--command={insert}"]
        else:
            command = [sys.executable, "-c", _EXECUTE, self._dsn, insert]
        lines = insert.splitlines()
        by = "psql" if psql else "another Python process"
        shown = [*lines[:3], f"    …  -- {len(wanted)} rows in one INSERT, by {by}"]
        self._announce("SQL", len(wanted), shown)
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
        if done.returncode != 0:
            raise DemoError(f"the INSERT of another process failed: {done.stderr.strip()}")

    def _schedule_by_cli(self, wanted: Sequence[Wanted]) -> None:
        shown = f"$ pgrecall {shlex.join(self._schedule_command(wanted[0]))}"
        self._announce("CLI", len(wanted), [shown])
        self._commands.extend(wanted)

    def _schedule_command(self, one: Wanted) -> list[str]:
        # The command itself takes a moment: never ask for a time that is over by then.
        left = max(self._start + one.after - self._clock(), timedelta(seconds=2))
        return ["schedule", one.session_id, one.message, "--in", f"{left.total_seconds():.1f}s"]

    def next_command(self) -> None:
        """Starts the next `pgrecall schedule` when the one before has ended."""
        if self._command is not None:
            if self._command.poll() is None:
                return
            if self._command.returncode != 0:
                output, _ = self._command.communicate()
                raise DemoError(f"pgrecall schedule failed:\n{_tail(output.decode(errors='replace'))}")
            self.close()
        if self._commands:
            command = _pgrecall(*self._schedule_command(self._commands.popleft()), "--dsn", self._dsn)
            self._command = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def close(self) -> None:
        """Ends the `pgrecall schedule` that is under way, if there is one."""
        if self._command is not None:
            self._command.kill()
            self._command.communicate()
            self._command = None
