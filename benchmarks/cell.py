"""What a cell of the tables is: something measured, of one contestant in one variant, once per round."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from benchmarks.peer import Peer
from benchmarks.server import Server
from benchmarks.stage import Account


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything.

    Attributes:
        rounds: Of each cell.
        scheduled_jobs: Jobs with a time of their own, and how many seconds lie between two.
        workers: Numbers of worker processes for scheduled jobs; more than 16 for ours and raw only.
        immediate_jobs: Jobs for at once, one at a time.
        idle_seconds: For how long nothing is to do.
        backlog: Jobs that are due when the workers begin.
        backlog_seconds: After so long a slow peer is cut off.
        processes: Numbers of worker processes for the backlog.
        inserted: Jobs that are made one by one by all producers together, and in bulk.
        clients: Numbers of producers.
        pgbench_seconds: Of each run of pgbench.
        held: Runs that are lost with their worker.
        rescue_seconds: After so long nobody waits for a rescue any more.
        rescue_phase: The worker is killed at a random time up to so many seconds after it has its jobs.
        pending: Numbers of pending rows.
        finished: Number of finished rows.
        probes: How often each statement is timed.
        snapshot_jobs: How many fire while an old snapshot is open.
        burst: Jobs due at one instant.
        churned: Jobs that fire to see how tables grow.
        listeners: Numbers of connections that LISTEN while one NOTIFY after another is sent.
    """

    rounds: int
    scheduled_jobs: int
    workers: tuple[int, ...]
    immediate_jobs: int
    idle_seconds: float
    backlog: int
    backlog_seconds: float
    processes: tuple[int, ...]
    inserted: int
    bulk: int
    clients: tuple[int, ...]
    pgbench_seconds: int
    held: int
    rescue_seconds: float
    pending: tuple[int, ...]
    finished: int
    probes: int
    snapshot_jobs: int
    burst: int
    churned: int
    listeners: tuple[int, ...]
    rescue_phase: float = 1
    scheduled_gap: float = 0.1


FULL = Size(
    rounds=5,
    scheduled_jobs=200,
    workers=(1, 4, 16, 64),
    immediate_jobs=200,
    idle_seconds=60,
    backlog=20_000,
    backlog_seconds=25,
    processes=(1, 2, 4),
    inserted=4000,
    bulk=20_000,
    clients=(1, 8),
    pgbench_seconds=5,
    held=10,
    rescue_seconds=150,
    rescue_phase=15,
    pending=(10_000, 100_000, 1_000_000, 10_000_000),
    finished=1_000_000,
    probes=300,
    snapshot_jobs=20_000,
    burst=100_000,
    churned=1_000_000,
    listeners=(0, 8, 64, 256),
)

QUICK = Size(
    rounds=1,
    scheduled_jobs=30,
    workers=(1, 4),
    immediate_jobs=30,
    idle_seconds=4,
    backlog=1000,
    backlog_seconds=5,
    processes=(1, 2),
    inserted=400,
    bulk=1000,
    clients=(1, 8),
    pgbench_seconds=1,
    held=10,
    rescue_seconds=5,
    pending=(1000, 10_000),
    finished=10_000,
    probes=40,
    snapshot_jobs=400,
    burst=1000,
    churned=2000,
    listeners=(0, 8),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a cell gives.

    Attributes:
        key: In the JSON file.
        label: In tables.
        unit: Of the number.
        better: Which direction is better; None: neither, it is told for the record, without a ratio.
    """

    key: str
    label: str
    unit: str = ""
    better: Literal["low", "high"] | None = "low"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run of a cell gave.

    Attributes:
        figures: By key.
        account: Of its jobs; None: the cell has none.
        samples: The single values behind the percentiles, if any.
        remark: What happened that the reader must know.
    """

    figures: Mapping[str, float]
    account: Account | None = None
    samples: Sequence[float] = field(default=(), repr=False)
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who is measured: a peer with a profile, or what a cell of its own compares."""

    name: str
    profile: str
    peer: Peer | None = None


class Cell(ABC):
    """A kind of measurement.

    Attributes:
        name: On the command line and in the JSON file.
        title: Of its table, with the unit of most figures.
        figures: What it gives.
        baseline: Whose figures of the same variant and round are the denominator of the ratios.
        baseline_is_first_variant: The denominator is the contestant's own first variant instead.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    figures: ClassVar[tuple[Figure, ...]]
    baseline: ClassVar[str] = "raw"
    baseline_is_first_variant: ClassVar[bool] = False

    @abstractmethod
    def variants(self, size: Size) -> list[str]:
        """What is varied, such as the number of workers; as tables show it."""

    @abstractmethod
    def contestants(self, peers: Iterable[Peer]) -> list[Contestant]:
        """Who takes part, in a fixed order."""

    def takes(self, contestant: Contestant, variant: str) -> bool:
        """Whether this contestant is measured in this variant."""
        return True

    @abstractmethod
    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        """Measures once.

        Raises:
            Failed: The contestant could not do it.
        """


def with_profiles(peers: Iterable[Peer], *profiles: str) -> list[Contestant]:
    """The peers, each with those of these profiles that it has."""
    return [Contestant(peer.name, name, peer) for name in profiles for peer in peers if name in peer.profiles]


def spread(values: Iterable[float]) -> dict[str, float]:
    """The percentiles that tables show, of values in the order they came or any other."""
    ordered = sorted(values)
    if not ordered:
        return {}

    def percentile(part: float) -> float:
        # The nearest rank: always a value that was measured.
        return ordered[max(math.ceil(part * len(ordered)) - 1, 0)]

    return {"p50": percentile(0.5), "p95": percentile(0.95), "p99": percentile(0.99), "max": ordered[-1]}
