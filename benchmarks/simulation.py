"""A fleet of workers on one server, simulated: what it carries with the costs that were measured.

Rows fall due at random times, all known beforehand, as scheduled recalls are. A worker does what pgrecall.worker does:
it sleeps until the earliest time, looks (one statement), and looks again if the look was not settled. Statements take
processor time of the server, which has so many cores; the part of a look under the wake-up lock is done by one at a
time; what writes waits for the disk in the end. `HERD` is every worker waking for every row. `HAND_OVER` is one that
wakes in time and tells the others when the next row is due; they leave it a moment, as long as such words have taken.

Not simulated: producers, checkpoints, vacuum, bloat, jitter of timers and disk, and that processes on a full processor
slow each other down. So the latest runs of a real server are later than these. Messages that a real server hands over
in one go are counted one by one here.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import simpy

from benchmarks.cell import spread
from benchmarks.costs import Costs

#: What a simulated process is.
Steps = Generator[Any, Any, Any]

#: As in sql/routines/50_claim.sql and pgrecall/worker.py, in seconds.
_LOCK_TIMEOUT = 0.025
_FIRST_RETRY, _LAST_RETRY = 0.005, 2.0

#: By hand-over the others leave a head start to the one that wakes in time: at most so long, times one of these.
_LONGEST_HEAD_START = 0.1
_SPREAD = (1.0, 4.0)


class Waking(StrEnum):
    """Who wakes for a row that falls due."""

    HERD = "herd"
    HAND_OVER = "hand-over"


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated.

    Attributes:
        workers: How many.
        rate: Rows that fall due in a second, on average.
        cores: Of the server.
        waking: Who wakes.
        rows: After so many it ends.
        slots: Runs that a worker does at once.
        run: Seconds that a run takes.
        even: One row falls due in each part of the time, as in the cell scheduled; else by pure chance (Poisson).
        shared: The workers run on the server's own cores, as in `make bench`; else each has a core of its own.
        head_start: By hand-over: seconds that the others leave to the first; more if words take longer.
        seed: Of the chance.
    """

    workers: int
    rate: float
    cores: int = 2
    waking: Waking = Waking.HERD
    rows: int = 200
    slots: int = 10
    run: float = 0.0
    even: bool = False
    shared: bool = False
    head_start: float = 0.01
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        fires: Runs begun in a second.
        statements: For each run.
        utilisation: Part of the server's processor time that was used.
        late: Milliseconds from due to the agent: p50, p95, p99, max.
    """

    fires: float
    statements: float
    utilisation: float
    late: dict[str, float]


class Processor:
    """So many cores, first come, first served; counts what it does."""

    def __init__(self, env: simpy.Environment, cores: int) -> None:
        self._env = env
        self._cores = simpy.Resource(env, cores)
        self.busy = 0.0

    def run(self, milliseconds: float) -> Steps:
        """Takes so much time of one core."""
        with self._cores.request() as core:
            yield core
            yield self._env.timeout(milliseconds / 1e3)
            self.busy += milliseconds / 1e3


@dataclass(eq=False, slots=True)
class _Row:
    due: float
    locked: bool = False
    claimed: bool = False


@dataclass(eq=False, slots=True)
class _Worker:
    """`heard_after` is how long the others' words took to come; `moved` ends its sleep, while it sleeps."""

    free: int
    own: Processor
    wakes_at: float = math.inf
    is_first: bool = False
    heard_after: float = 0.0
    retry: float = _FIRST_RETRY
    moved: Any = None


class Simulation:
    """One run of it."""

    def __init__(self, fleet: Fleet, costs: Costs) -> None:
        self._fleet = fleet
        self._costs = costs
        self._env = env = simpy.Environment()
        self._chance = random.Random(fleet.seed)
        self._server = Processor(env, fleet.cores)
        self._wake_up_lock = simpy.Resource(env, 1)
        self._statements = 0
        self._late: list[float] = []
        self._rows = [_Row(due) for due in self._due_times()]
        self._first = 0  # all rows before it are claimed
        self._register = 0.0  # everybody is armed for then
        self._workers = [
            _Worker(fleet.slots, self._server if fleet.shared else Processor(env, 1)) for _ in range(fleet.workers)
        ]
        self._over = env.event()

    def _due_times(self) -> list[float]:
        fleet = self._fleet
        if fleet.even:
            return [1 + (number + self._chance.random()) / fleet.rate for number in range(fleet.rows)]
        return list(itertools.accumulate(self._chance.expovariate(fleet.rate) for _ in range(fleet.rows)))

    def outcome(self) -> Outcome:
        """Runs it."""
        fleet, env = self._fleet, self._env
        for place, worker in enumerate(self._workers):
            worker.is_first = place == 0
            worker.wakes_at = self._wake_time(worker, self._rows[0].due)
            env.process(self._work(worker))
        begins = self._rows[0].due
        env.run(until=self._over)
        seconds = env.now - begins
        fires = len(self._late)
        return Outcome(
            fires=fires / seconds if seconds else 0.0,
            statements=self._statements / fires if fires else 0.0,
            utilisation=self._server.busy / (fleet.cores * seconds) if seconds else 0.0,
            late=spread(self._late),
        )

    # A worker

    def _wake_time(self, worker: _Worker, due: float) -> float:
        if self._fleet.waking is Waking.HERD or worker.is_first:
            return due
        head_start = max(min(1.5 * worker.heard_after, _LONGEST_HEAD_START), self._fleet.head_start)
        now: float = self._env.now
        return max(due, now) + head_start * self._chance.uniform(*_SPREAD)

    def _arm(self, worker: _Worker, at: float) -> None:
        """Wakes it at this time at the latest."""
        self._set(worker, min(worker.wakes_at, at))

    def _set(self, worker: _Worker, at: float) -> None:
        worker.wakes_at = at
        if worker.moved is not None and not worker.moved.triggered:
            worker.moved.succeed()

    def _work(self, worker: _Worker) -> Steps:
        env = self._env
        while True:
            while worker.free == 0 or worker.wakes_at > env.now:
                worker.moved = env.event()
                left = worker.wakes_at - env.now
                timer = [] if worker.free == 0 or math.isinf(left) else [env.timeout(left)]
                yield env.any_of([worker.moved, *timer])
            worker.wakes_at = math.inf
            yield from worker.own.run(self._costs.wake)
            free = worker.free
            taken, settled, next_due = yield from self._look(worker)
            yield from worker.own.run(self._costs.answer)
            for row in taken:
                self._begin(worker, row)
            is_sure = settled and next_due > env.now
            if taken or is_sure:
                worker.retry = _FIRST_RETRY
            if len(taken) == free:
                self._arm(worker, env.now)  # there may be more
                continue
            if next_due > env.now:
                self._arm(worker, self._wake_time(worker, next_due))
            if not is_sure:
                self._arm(worker, env.now + worker.retry * self._chance.uniform(0.5, 1))
                worker.retry = min(worker.retry * 2, _LAST_RETRY)

    def _begin(self, worker: _Worker, row: _Row) -> None:
        self._late.append((self._env.now - row.due) * 1e3)
        worker.free -= 1
        self._env.process(self._finish(worker))

    def _finish(self, worker: _Worker) -> Steps:
        env, costs = self._env, self._costs
        yield env.timeout(self._fleet.run)
        yield env.timeout(costs.network / 1e3)
        yield from self._server.run(costs.finish)
        yield env.timeout((costs.commit + costs.network) / 1e3)
        self._statements += 1
        worker.free += 1
        if worker.moved is not None and not worker.moved.triggered:
            worker.moved.succeed()
        self._end_if_over()

    # The server

    def _look(self, worker: _Worker) -> Steps:
        """One statement: what it took, whether it is settled, and when the next row is due."""
        env, costs = self._env, self._costs
        yield env.timeout(costs.network / 1e3)
        started = env.now
        yield from self._server.run(max(costs.look - costs.locked, 0))
        taken = self._take(worker, started)
        if taken:
            yield from self._server.run((costs.claim - costs.look) * len(taken))
        with self._wake_up_lock.request() as lock:
            # Who has work does not wait for it.
            patience = env.timeout(0 if taken else _LOCK_TIMEOUT)
            settled = lock in (yield lock | patience)
            if settled:
                yield from self._server.run(costs.locked)
            next_due = self._next_due(taken)
            has_news = settled and next_due > env.now and (taken or self._register <= started)
            if settled:
                self._register = next_due
            if taken:
                yield env.timeout(costs.commit / 1e3)
            for row in taken:
                row.claimed = True
            if has_news and self._fleet.waking is Waking.HAND_OVER:
                self._hand_over(worker, next_due, started)
        self._statements += 1
        yield env.timeout(costs.network / 1e3)
        return taken, settled, next_due

    def _take(self, worker: _Worker, now: float) -> list[_Row]:
        taken: list[_Row] = []
        for place in range(self._first, len(self._rows)):
            row = self._rows[place]
            if row.due > now or len(taken) == worker.free:
                break
            if not row.locked:
                row.locked = True
                taken.append(row)
        return taken

    def _next_due(self, taken: list[_Row]) -> float:
        """The earliest as the database shows it: what others have taken counts until that is committed."""
        while self._first < len(self._rows) and self._rows[self._first].claimed:
            self._first += 1
        for place in range(self._first, len(self._rows)):
            row = self._rows[place]
            if not row.claimed and row not in taken:
                return row.due
        return math.inf

    def _hand_over(self, worker: _Worker, next_due: float, looked_at: float) -> None:
        """The one that looked, if it has a free slot, wakes in time for the next row; the others are told of it."""
        first = worker if worker.free > 0 else next((each for each in self._workers if each.free > 0), worker)
        for other in self._workers:
            other.is_first = other is first
        for other in self._workers:
            if other is not worker:
                self._env.process(self._tell(other, next_due, looked_at))

    def _tell(self, worker: _Worker, next_due: float, looked_at: float) -> Steps:
        yield from self._server.run(self._costs.notify)
        yield self._env.timeout(self._costs.network / 1e3)
        yield from worker.own.run(self._costs.told)
        # The latest of the last few.
        worker.heard_after = max(self._env.now - looked_at, worker.heard_after * 0.9)
        if next_due > self._env.now:
            self._set(worker, self._wake_time(worker, next_due))

    # The end

    def _end_if_over(self) -> None:
        if len(self._late) == len(self._rows) and not self._over.triggered:
            self._over.succeed()


def simulated(fleet: Fleet, costs: Costs) -> Outcome:
    """What comes of a fleet; the same for the same arguments."""
    return Simulation(fleet, costs).outcome()
