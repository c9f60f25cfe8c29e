"""How quickly a backlog of jobs that do nothing is worked off, until the last is completed in the database.

The worker processes have imported everything and begin at one word. The first twentieth of the jobs is the warm-up:
the rate is that of the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from benchmarks.cell import Cell, Contestant, Figure, Sample, Size, with_profiles
from benchmarks.peer import Peer
from benchmarks.server import Server
from benchmarks.stage import Failed, Stage

_WARM_UP = 0.05


class Throughput(Cell):
    name = "throughput"
    title = "A backlog of no-op jobs: completed per second"
    figures = (
        Figure("rate", "jobs/s", "/s", better="high"),
        Figure("statements", "statements per job"),
        Figure("worker_ms", "worker CPU ms per job", "ms"),
        Figure("server_ms", "server CPU ms per job", "ms"),
    )

    def variants(self, size: Size) -> list[str]:
        return [f"{number} processes" if number > 1 else "1 process" for number in size.processes]

    def contestants(self, peers: Iterable[Peer]) -> list[Contestant]:
        return with_profiles(peers, "throughput")

    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        assert contestant.peer is not None
        jobs = size.backlog
        with Stage(server, contestant.peer, contestant.peer.profiles[contestant.profile]) as stage:
            stage.prepare(jobs)
            stage.bulk(0, jobs)
            stage.analyze()
            counts = stage.database.counts()
            stage.start(int(variant.split(maxsplit=1)[0]))
            complete = stage.all_done(size.backlog_seconds)
            ended = time.time()
            counted, spent = stage.database.counts().since(counts), stage.worker_seconds()
            begun = stage.begun()
            skipped = int(jobs * _WARM_UP)
            if len(begun) <= skipped:
                raise Failed(f"only {len(begun)} of {jobs} jobs had begun after {size.backlog_seconds:g} s")
            measured = len(begun) - skipped - 1
            until = ended if complete else begun[-1].at / 1e9
            figures = {
                "rate": measured / max(until - begun[skipped].at / 1e9, 1e-6),
                "server_ms": counted.server_seconds * 1e3 / len(begun),
                "worker_ms": spent * 1e3 / len(begun),
            }
            if counted.statements is not None:
                figures["statements"] = counted.statements / len(begun)
            remark = "" if complete else f"cut off after {size.backlog_seconds:g} s: the rate is that of beginnings"
            return Sample(figures, stage.account(complete=complete), remark=remark)
