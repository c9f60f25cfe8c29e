"""How long a job that is wanted at once waits for its handler, one job at a time, with an idle worker."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable

from benchmarks.cell import Cell, Contestant, Figure, Sample, Size, spread, with_profiles
from benchmarks.peer import Peer
from benchmarks.server import Server
from benchmarks.stage import Stage

_PATIENCE = 15.0

#: Seconds between two jobs: at least, and at random on top of it.
_GAP, _MORE = 0.05, 0.05


class Pickup(Cell):
    name = "pickup"
    title = "Jobs wanted at once, one at a time: commit acknowledged → handler, ms"
    figures = (
        Figure("p50", "p50", "ms"),
        Figure("p95", "p95", "ms"),
        Figure("p99", "p99", "ms"),
        Figure("max", "max", "ms"),
        Figure("p50_from_call", "p50 from the call", "ms"),
    )

    def variants(self, size: Size) -> list[str]:
        return ["1 worker"]

    def contestants(self, peers: Iterable[Peer]) -> list[Contestant]:
        return with_profiles(peers, "best", "default")

    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        assert contestant.peer is not None
        jobs = size.immediate_jobs
        with Stage(server, contestant.peer, contestant.peer.profiles[contestant.profile]) as stage:
            stage.prepare(jobs)
            stage.start(1)
            stage.warm_up()
            chance = random.Random(jobs)
            at = time.time() + 0.2
            plan = []
            for number in range(jobs):
                plan.append((number, None, at))
                at += _GAP + chance.random() * _MORE
            times = stage.each(plan)
            complete = stage.all_done(_PATIENCE)
            begun = stage.begun()
            waited = [(mark.at - times[mark.number][1]) / 1e6 for mark in begun]
            from_call = [(mark.at - times[mark.number][0]) / 1e6 for mark in begun]
            figures = spread(waited)
            if from_call:
                figures["p50_from_call"] = spread(from_call)["p50"]
            return Sample(figures, stage.account(complete=complete), waited)
