"""What a peer is: the one interface through which the cells see ours, the raw loop and every rival.

A rival is one module in `benchmarks/peers/` with one subclass of `Peer` in it; nothing else names it.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from importlib import metadata
from typing import Any, ClassVar, Protocol

import psycopg

Settings = Mapping[str, Any]


class Producer(Protocol):
    """Makes jobs through a peer's public interface, on one connection (or one pool used by one caller)."""

    async def one(self, number: int, at: datetime | None) -> None:
        """Makes one job in a transaction of its own; returns when that is committed.

        Args:
            number: The job's.
            at: When it is wanted. None: at once.
        """
        ...

    async def bulk(self, numbers: Sequence[int], at: datetime | None) -> None:
        """Makes many jobs in the quickest way that the peer documents."""
        ...


class Peer(ABC):
    """One contestant.

    Attributes:
        name: In tables and on the command line.
        distributions: What must be installed, the peer's own first; its release is the one that tables show.
        python: The oldest Python that it runs on.
        profiles: Settings by profile. `default` is what a user gets who says nothing, `best` the most favourable that
            the project documents for lateness and pickup, `throughput` the same for draining a backlog. A profile that
            is missing is not run, so a peer that has only `best` is measured once.
        unfinished: SQL that counts the jobs that are not completed, as one number.
        not_measured: Cells that it cannot take part in, each with the reason.
        remark: What a reader of the tables must know.
    """

    name: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]] = ()
    python: ClassVar[tuple[int, int]] = (3, 11)
    profiles: ClassVar[Mapping[str, Settings]]
    unfinished: ClassVar[str]
    not_measured: ClassVar[Mapping[str, str]] = {}
    remark: ClassVar[str] = ""

    def missing(self) -> str | None:
        """Why it cannot be started here; None if it can."""
        if sys.version_info < self.python:
            return f"needs Python {'.'.join(map(str, self.python))}, this is {sys.version.split()[0]}"
        for distribution in self.distributions:
            try:
                metadata.version(distribution)
            except metadata.PackageNotFoundError:
                return f"{distribution} is not installed"
        return None

    def version(self) -> str:
        """The release that is measured."""
        return metadata.version(self.distributions[0]) if self.distributions else ""

    @abstractmethod
    async def install(self, dsn: str, settings: Settings) -> None:
        """Makes its tables in an empty database."""

    def slots(self, settings: Settings) -> int:
        """How many jobs one worker runs at once, or any great number if there is no limit."""
        return int(settings.get("concurrency", 1000))

    def prepare(self, connection: psycopg.Connection[Any], numbers: range) -> None:  # noqa: B027 (most need nothing)
        """Makes what must be there before jobs of these numbers can be made, and is no part of making them."""

    @abstractmethod
    def producing(self, dsn: str, settings: Settings) -> AbstractAsyncContextManager[Producer]:
        """Opens a producer."""

    @abstractmethod
    async def work(self, dsn: str, settings: Settings) -> None:
        """Runs a worker for ever, or until cancelled; it runs `benchmarks.jobs.job` with each job's number."""

    def command(self, settings: str) -> list[str]:
        """How a worker process is started; what is not Python says so here.

        It gets the DSN in PGRECALL_BENCH_DSN and the path of the marks in PGRECALL_BENCH_MARKS, says `ready` on stdout
        and nothing after it (nobody reads it), begins when it reads a line from stdin, and ends when stdin does.

        Args:
            settings: As JSON.
        """
        return [sys.executable, "-m", "benchmarks.work", self.name, settings]


def every_peer() -> dict[str, Peer]:
    """All peers by name: raw first, then ours, then the rivals."""
    import benchmarks.peers as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    found = {peer.name: peer() for peer in _leaves(Peer)}  # type: ignore[type-abstract]
    first = ("raw", "ours", "ours-sessions")
    return {name: found[name] for name in sorted(found, key=lambda name: (name not in first, name))}


def _leaves(kind: type[Peer]) -> list[type[Peer]]:
    below = [leaf for inner in kind.__subclasses__() for leaf in _leaves(inner)]
    return below + ([kind] if "name" in vars(kind) else [])
