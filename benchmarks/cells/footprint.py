"""What a worker has at the server: its connections, and the memory of the processes behind them."""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil

from benchmarks.cell import Cell, Contestant, Figure, Sample, Size, with_profiles
from benchmarks.peer import Peer
from benchmarks.server import Database, Server
from benchmarks.stage import Stage

#: Seconds in which the jobs must have run.
_PATIENCE = 30.0


class Footprint(Cell):
    name = "footprint"
    title = "One worker at the server: connections, and private memory of their processes"
    figures = (
        Figure("idle_connections", "connections before its first job", better=None),
        Figure("idle_mib", "MiB for them", "MiB", better=None),
        Figure("connections", "connections after its jobs"),
        Figure("mib", "MiB for them", "MiB"),
    )

    def variants(self, size: Size) -> list[str]:
        return ["1 worker"]

    def contestants(self, peers: Iterable[Peer]) -> list[Contestant]:
        return with_profiles(peers, "best", "default")

    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        assert contestant.peer is not None
        with Stage(server, contestant.peer, contestant.peer.profiles[contestant.profile]) as stage:
            stage.prepare(size.immediate_jobs)
            stage.each([])
            others = _backends(stage.database)
            stage.start(1)
            stage.until(lambda: bool(_backends(stage.database) - others), _PATIENCE, "no connection came")
            stage.quiet()
            idle = _backends(stage.database) - others
            idle_mib = sum(map(_mib, idle))
            stage.each([(number, None, time.time() + number * 0.01) for number in range(size.immediate_jobs)])
            complete = stage.all_done(_PATIENCE)
            busy = _backends(stage.database) - others
            return Sample(
                {
                    "idle_connections": float(len(idle)),
                    "idle_mib": idle_mib,
                    "connections": float(len(busy)),
                    "mib": sum(map(_mib, busy)),
                },
                stage.account(complete=complete),
            )


def _backends(database: Database) -> set[int]:
    with database.connect() as connection:
        found = connection.execute(
            "select pid from pg_stat_activity where datname = current_database() "
            "and backend_type = 'client backend' and usename <> 'harness'"
        ).fetchall()
    return {pid for (pid,) in found}


def _mib(pid: int) -> float:
    """Memory that would be free if the process ended."""
    try:
        return float(psutil.Process(pid).memory_full_info().uss) / 2**20
    except psutil.NoSuchProcess:  # it has just gone
        return 0.0
