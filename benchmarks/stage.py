"""One peer in one database with its processes, from installing to the account of what was made, begun and completed."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import psutil

from benchmarks import jobs, marks
from benchmarks.marks import Mark
from benchmarks.peer import Peer, Settings
from benchmarks.server import Database, Server

ROOT = Path(__file__).parent.parent

#: Seconds for a process to be ready, and for a few jobs to run while nothing else does.
_PATIENCE = 60.0

#: Seconds in which every worker should have run a job for warming up.
_WARM = 8.0

#: Jobs of a cell that are made by one bulk call.
CHUNK = 1000


class Failed(Exception):
    """The peer could not do what the cell needs; the message is for the table."""


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the jobs of a cell, those for warming up left out.

    Attributes:
        made: Jobs whose making was acknowledged.
        begun: Different ones that have begun.
        repeated: Beginnings beyond the first of a job.
        unknown: Beginnings of jobs that nobody made.
        unfinished: Jobs that the peer's tables do not show as completed in the end.
        complete: Whether the cell ran to its end: not cut off by its time limit.
        warmed: Workers (or processes of theirs) that had run a job before the measuring began, of how many.
    """

    made: int
    begun: int
    repeated: int
    unknown: int
    unfinished: int
    complete: bool
    warmed: int
    workers: int

    def trouble(self) -> str | None:
        """What is wrong with it; None: nothing."""
        found = [f"{count} {what}" for what, count in (("repeated", self.repeated), ("unknown", self.unknown)) if count]
        if self.complete and self.begun < self.made:
            found.append(f"{self.made - self.begun} of {self.made} lost")
        if self.complete and self.unfinished:
            found.append(f"{self.unfinished} not completed")
        return ", ".join(found) or None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Process:
    """A worker or producer that is talked to by lines."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            # A session of its own: its children go with it, and Ctrl-C is the harness's.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
                text=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed(self._last_words()) from None

    def hear(self, seconds: float) -> str:
        """The next line.

        Raises:
            Failed: It ended, or said nothing for so long.
        """
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                raise Failed(f"no answer within {seconds:g} s: {self._last_words()}")
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self._last_words())
        return line

    def must_live(self) -> None:
        if self.process.poll() is not None:
            raise Failed(self._last_words())

    def processor_seconds(self) -> float:
        """Its processor time so far, with its children's."""
        total = 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            itself = psutil.Process(self.pid)
            for process in [itself, *itself.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    total += times.user + times.system
                    if process is itself:
                        total += times.children_user + times.children_system
        return total

    def kill(self) -> None:
        """With SIGKILL, and what it has started too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        status = self.process.poll()
        told = lines[-1][:200] if lines else "it said nothing"
        return told if status is None else f"ended with status {status}: {told}"


class Stage:
    """A peer, ready to be measured.

    Args:
        server: Where its database is made.
        peer: Which.
        settings: Of the profile.
        job_seconds: How long each of its jobs takes.
    """

    def __init__(self, server: Server, peer: Peer, settings: Settings, *, job_seconds: float = 0) -> None:
        self._server = server
        self._peer = peer
        self._settings = json.dumps(dict(settings))
        self._job_seconds = job_seconds
        self._stack = ExitStack()
        self._workers: list[_Process] = []
        self._made = 0
        self._next_warm_up = -1
        self._warmed = 0
        self._started = 0

    def __enter__(self) -> Self:
        try:
            self._server.settle()
            self._directory = Path(self._stack.enter_context(TemporaryDirectory(prefix="pgrecall-bench-")))
            self.marks_file = self._directory / "marks"
            self.marks_file.touch()
            self.database: Database = self._stack.enter_context(self._server.database())
            self._environment = {
                **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
                "PYTHONPATH": str(ROOT),
                "PGRECALL_BENCH_DSN": self.database.dsn,
                marks.VARIABLE: str(self.marks_file),
                jobs.VARIABLE: str(self._job_seconds),
            }
            self._producer = self._new_producer()
            self._ask(self._producer, {"do": "install"})
            self.connection = self._stack.enter_context(self.database.connect())
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # Processes

    def _new_producer(self) -> _Process:
        command = [sys.executable, "-m", "benchmarks.produce", self._peer.name, self._settings]
        process = _Process(command, self._environment, self._directory / f"producer-{time.monotonic_ns()}.log")
        self._stack.callback(process.kill)
        process.hear(_PATIENCE)
        return process

    @staticmethod
    def _ask(producer: _Process, order: dict[str, Any], seconds: float = _PATIENCE) -> Any:
        producer.say(json.dumps(order))
        return json.loads(producer.hear(seconds))["answer"]

    def producers(self, number: int) -> list[_Process]:
        """That many more producer processes, connected."""
        made = [self._new_producer() for _ in range(number)]
        for producer in made:
            self._ask(producer, {"do": "each", "jobs": []})
        return made

    def start(self, number: int) -> None:
        """Starts that many more worker processes and lets them go all at once, when each has imported everything."""
        new: list[_Process] = []
        for _ in range(number):
            log = self._directory / f"worker-{len(self._workers) + len(new)}.log"
            process = _Process(self._peer.command(self._settings), self._environment, log)
            self._stack.callback(process.kill)
            new.append(process)
        for process in new:
            process.hear(_PATIENCE)
        for process in new:
            process.say("go")
        self._workers += new
        self._started += number

    def kill(self, place: int) -> float:
        """Kills a worker process, and says when, in seconds since 1970."""
        at = time.time()
        self._workers.pop(place).kill()
        return at

    def warm_up(self) -> None:
        """Waits until every worker has run a job, or enough jobs have run; nothing is measured before.

        Raises:
            Failed: A worker ended, or jobs do not run at all.
        """
        give_up = time.monotonic() + _WARM
        while True:
            count = 4 * len(self._workers)
            numbers = range(self._next_warm_up - count + 1, self._next_warm_up + 1)
            self._next_warm_up = numbers.start - 1
            self._peer.prepare(self.connection, numbers)
            order = {"do": "each", "jobs": [[number, None, None] for number in numbers]}
            self._ask(self._producer, order)
            self.until(lambda: self.unfinished() == 0, _PATIENCE, "the jobs for warming up did not run")
            self._warmed = len({mark.process for mark in marks.read(self.marks_file)})
            if self._warmed >= len(self._workers) or time.monotonic() > give_up:
                break
        self.quiet()

    def quiet(self) -> None:
        """Waits until no connection has come or gone for half a second: pools have filled."""
        count, since = self.database.clients(), time.monotonic()
        deadline = since + 5
        while time.monotonic() < min(since + 0.5, deadline):
            time.sleep(0.05)
            if (now := self.database.clients()) != count:
                count, since = now, time.monotonic()

    # Jobs

    def prepare(self, count: int, first: int = 0) -> None:
        """Makes what so many jobs from the first on need, and is no part of making them."""
        self._peer.prepare(self.connection, range(first, first + count))

    def bulk(self, first: int, count: int, at: float | None = None, chunk: int = CHUNK) -> float:
        """Makes jobs in the peer's quickest way and says in how many seconds."""
        order = {"do": "bulk", "first": first, "count": count, "at": at, "chunk": chunk}
        seconds = self._ask(self._producer, order, 600)
        self._made += count
        return float(seconds)

    def each(self, jobs: Sequence[tuple[int, float | None, float | None]]) -> list[tuple[int, int]]:
        """Makes jobs one by one: number, when it is wanted, not to be made before; seconds since 1970, or None.

        Returns:
            When each call was made and when it returned, in nanoseconds since 1970.
        """
        order = {"do": "each", "jobs": jobs}
        times = self._ask(self._producer, order, 600)
        self._made += len(jobs)
        return [(called, acknowledged) for called, acknowledged in times]

    def each_at_once(
        self, producers: Sequence[_Process], shares: Sequence[range], at: float | None
    ) -> list[list[tuple[int, int]]]:
        """Lets several producers make jobs one by one at the same time, all wanted at this time."""
        for producer, share in zip(producers, shares, strict=True):
            producer.say(json.dumps({"do": "each", "jobs": [[number, at, None] for number in share]}))
        answers = [json.loads(producer.hear(600))["answer"] for producer in producers]
        self._made += sum(map(len, shares))
        return [[(called, acknowledged) for called, acknowledged in answer] for answer in answers]

    def unfinished(self) -> int:
        """How many jobs are not completed, by the peer's own tables."""
        row = self.connection.execute(self._peer.unfinished.encode()).fetchone()
        assert row is not None
        return int(row[0])

    def begun(self) -> list[Mark]:
        """The first beginning of each measured job, in order of time."""
        first: dict[int, Mark] = {}
        for mark in sorted(marks.read(self.marks_file), key=lambda mark: mark.at):
            if mark.number >= 0:
                first.setdefault(mark.number, mark)
        return list(first.values())

    def marks(self) -> list[Mark]:
        """All beginnings."""
        return marks.read(self.marks_file)

    # Waiting

    def until(
        self, condition: Callable[[], bool], seconds: float, complaint: str | None = None, *, every: float = 0.01
    ) -> bool:
        """Waits for it, with an eye on the workers, looking after so many seconds.

        Returns:
            Whether it came true in time.

        Raises:
            Failed: A worker ended; or it did not come true, if there is a complaint.
        """
        deadline = time.monotonic() + seconds
        looked = time.monotonic()
        while not condition():
            now = time.monotonic()
            if now - looked > 0.5:
                looked = now
                for worker in self._workers:
                    worker.must_live()
            if now > deadline:
                if complaint:
                    raise Failed(f"{complaint} within {seconds:g} s")
                return False
            time.sleep(every)
        return True

    def watch(self, seconds: float) -> None:
        """Waits for so long.

        Raises:
            Failed: A worker ended meanwhile.
        """
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))
            for worker in self._workers:
                worker.must_live()

    def all_begun(self, seconds: float) -> bool:
        """Waits until all jobs that were made have begun; counts only, so that it costs the peer nothing."""
        before = -self._next_warm_up - 1
        return self.until(lambda: marks.count(self.marks_file) - before >= self._made, seconds, every=0.002)

    def all_done(self, seconds: float) -> bool:
        """Waits until all jobs that were made have begun and are completed."""
        deadline = time.monotonic() + seconds
        return self.all_begun(seconds) and self.until(
            lambda: self.unfinished() == 0, max(deadline - time.monotonic(), 1)
        )

    # Counting

    def analyze(self) -> None:
        """Has the planner know what is in the tables, as it would in a database that is in use."""
        self.connection.execute("analyze")

    def worker_seconds(self) -> float:
        """Processor time of the workers so far."""
        return sum(worker.processor_seconds() for worker in self._workers)

    def account(self, *, complete: bool) -> Account:
        """What became of the jobs."""
        seen = Counter(mark.number for mark in marks.read(self.marks_file) if mark.number >= 0)
        return Account(
            made=self._made,
            begun=len(seen),
            repeated=seen.total() - len(seen),
            unknown=sum(number >= self._made for number in seen),
            unfinished=self.unfinished(),
            complete=complete,
            warmed=self._warmed,
            workers=self._started,
        )

    def logs(self) -> Iterator[str]:
        """What the processes wrote to stderr."""
        for log in self._directory.glob("*.log"):
            yield log.read_text(errors="replace")
