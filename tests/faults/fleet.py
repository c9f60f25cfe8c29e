"""A few workers on one database, for a test of one fault: start them, watch their agents, and account for it all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

from faults import accounting
from faults.processes import START_SECONDS, Settings, WorkerProcess

#: Longer than anything here takes on a busy machine; what a test asserts about times it asserts itself.
DEADLINE = 25.0


@dataclass(frozen=True)
class Start:
    """The beginning of a run, as its agent has noted it."""

    at: float
    process: str
    run_id: int
    attempt: int
    recall_id: str
    session_id: str


def wait_until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """The first true answer of the condition; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.02)
    return answer


def _settled(process: WorkerProcess) -> bool:
    return process.ready or not process.alive


class Fleet:
    """Workers with the same settings; a context manager that ends them.

    Args:
        dsn: The database, with the schema; it is prepared for the account, with sessions s0 to s39.
        directory: Gets their logs and their evidence.
        settings: As in Settings.
    """

    def __init__(self, dsn: str, directory: Path, **settings: Any) -> None:
        self.dsn = dsn
        self.settings = Settings(directory, **settings)
        self.processes: list[WorkerProcess] = []
        accounting.prepare(dsn, (f"s{number}" for number in range(40)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self.processes:
            if process.alive:
                process.kill()
            if value is not None:
                print(f"--- {process.name}\n{process.log_tail()}")

    def start(self, dsn: str | None = None, **options: Any) -> WorkerProcess:
        """Start a worker, by another way to the database if one is given; the rest as in WorkerProcess."""
        process = WorkerProcess(self.settings, dsn or self.dsn, **options)
        self.processes.append(process)
        return process

    def ready(self, *processes: WorkerProcess) -> None:
        """Wait until these workers work; none: all."""
        for process in processes or self.processes:
            wait_until(partial(_settled, process), f"{process.name} to start", START_SECONDS)
            assert process.alive, f"{process.name} ended:\n{process.log_tail()}"

    def ask(self, count: int, **wish: Any) -> list[str]:
        """Ask for recalls in the first sessions, see `accounting.ask`; returns their ids."""
        return accounting.ask(self.dsn, *(f"s{number}" for number in range(count)), **wish)

    def starts(self, *processes: WorkerProcess) -> list[Start]:
        """The runs that have begun in these workers, in order; none: in all."""
        found = []
        for process in processes or self.processes:
            if process.evidence.exists():
                for line in process.evidence.read_text().splitlines(keepends=True):
                    kind, at, name, run_id, attempt, recall_id, session_id, _ = line.split("\t")
                    if kind == "start":
                        found.append(Start(int(at) / 1e9, name, int(run_id), int(attempt), recall_id, session_id))
        return sorted(found, key=lambda start: start.at)

    def started(self, count: int, *processes: WorkerProcess, seconds: float = DEADLINE) -> list[Start]:
        """Wait until so many runs have begun in these workers."""

        def enough() -> list[Start] | None:
            starts = self.starts(*processes)
            return starts if len(starts) >= count else None

        found: list[Start] = wait_until(enough, f"{count} runs to begin", seconds)
        return found

    def value(self, query: str, *arguments: object) -> Any:
        """The first column of the first row."""
        with psycopg.connect(self.dsn, autocommit=True, application_name="operator") as connection:
            row = connection.execute(query.encode(), arguments).fetchone()
            return None if row is None else row[0]

    def account(self, seconds: float = DEADLINE) -> accounting.Verdict:
        """Wait until everything has ended, end the workers gently, and look at what came of it."""
        wait_until(
            lambda: (
                not self.value(
                    "select count(*) from faults.asked as asked join pgrecall.session_recalls as recall "
                    "on recall.id = asked.recall_id where recall.due_at is not null or recall.run_id is not null"
                )
            ),
            "everything to end",
            seconds,
        )
        living = [process for process in self.processes if process.alive]
        for process in living:
            process.tell_to_end()
        for process in living:
            process.wait(DEADLINE)
        accounting.load(self.dsn, self.processes)
        return accounting.judge(self.dsn, lease=self.settings.lease)
