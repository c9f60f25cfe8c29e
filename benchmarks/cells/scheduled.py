"""Lateness of jobs that were scheduled, and what it costs: statements and processor time per job, by workers.

All jobs are made before the first is due, so that no insert wakes anybody while it is measured.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable

from benchmarks.cell import Cell, Contestant, Figure, Sample, Size, spread, with_profiles
from benchmarks.peer import Peer
from benchmarks.server import Server
from benchmarks.stage import Failed, Stage

#: Seconds that making one job takes at most, so that all are made in time.
_MAKING = 0.02

#: Seconds after the last one is due in which all must have begun.
_PATIENCE = 15.0

#: Whose numbers with very many workers are of interest.
_HERDS = ("raw", "ours", "ours-sessions")


class Scheduled(Cell):
    name = "scheduled"
    title = "Scheduled jobs, ten a second: lateness in ms (due → handler), statements and processor time per job"
    figures = (
        Figure("p50", "p50", "ms"),
        Figure("p95", "p95", "ms"),
        Figure("p99", "p99", "ms"),
        Figure("max", "max", "ms"),
        Figure("statements", "statements per job"),
        Figure("worker_ms", "worker CPU ms per job", "ms"),
        Figure("server_ms", "server CPU ms per job", "ms"),
    )

    def variants(self, size: Size) -> list[str]:
        return [f"{number} workers" if number > 1 else "1 worker" for number in size.workers]

    def contestants(self, peers: Iterable[Peer]) -> list[Contestant]:
        return with_profiles(peers, "best", "default")

    def takes(self, contestant: Contestant, variant: str) -> bool:
        workers = int(variant.split(maxsplit=1)[0])
        if workers > 16:
            return contestant.name in _HERDS and contestant.profile == "best"
        return workers == 1 or contestant.profile == "best"

    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        assert contestant.peer is not None
        jobs = size.scheduled_jobs
        with Stage(server, contestant.peer, contestant.peer.profiles[contestant.profile]) as stage:
            stage.prepare(jobs)
            stage.start(int(variant.split(maxsplit=1)[0]))
            stage.warm_up()
            chance = random.Random(jobs)
            begins = time.time() + 1.5 + jobs * _MAKING
            # Not on a grid, which could beat with somebody's poll.
            due = [begins + (number + chance.random()) * size.scheduled_gap for number in range(jobs)]
            stage.each([(number, at, None) for number, at in enumerate(due)])
            if time.time() > begins - 0.5:
                raise Failed(f"making {jobs} jobs took longer than {jobs * _MAKING:g} s")
            time.sleep(max(begins - 0.3 - time.time(), 0))
            counts, seconds = stage.database.counts(), stage.worker_seconds()
            complete = stage.all_done(due[-1] - time.time() + _PATIENCE)
            counted, spent = stage.database.counts().since(counts), stage.worker_seconds() - seconds
            late = [mark.at / 1e6 - due[mark.number] * 1e3 for mark in stage.begun()]
            figures = spread(late)
            figures["worker_ms"] = spent * 1e3 / jobs
            figures["server_ms"] = counted.server_seconds * 1e3 / jobs
            if counted.statements is not None:
                figures["statements"] = counted.statements / jobs
            return Sample(figures, stage.account(complete=complete), late)
