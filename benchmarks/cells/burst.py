"""Very many jobs due at one instant: how long until the last has begun, and whether the rate holds to the end."""

from __future__ import annotations

import time
from collections.abc import Iterable

from benchmarks.cell import Cell, Contestant, Figure, Sample, Size, spread, with_profiles
from benchmarks.peer import Peer
from benchmarks.server import Server
from benchmarks.stage import Stage

#: Seconds for making the jobs, for each thousand; and beyond.
_MAKING, _MORE = 0.5, 3.0

#: Jobs per second below which nobody waits for the end.
_SLOWEST = 150

_WORKERS = 2


class Burst(Cell):
    name = "burst"
    title = "Jobs due at one instant, two workers: lateness in s"
    figures = (
        Figure("p50", "p50, s", "s"),
        Figure("max", "last, s", "s"),
        Figure("rate", "jobs/s", "/s", better="high"),
        Figure("last_quarter", "rate of the last quarter, of the first", better=None),
    )

    def variants(self, size: Size) -> list[str]:
        return [f"{size.burst:,} jobs"]

    def contestants(self, peers: Iterable[Peer]) -> list[Contestant]:
        return with_profiles((peer for peer in peers if not peer.distributions), "throughput")

    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        assert contestant.peer is not None
        jobs = size.burst
        with Stage(server, contestant.peer, contestant.peer.profiles[contestant.profile]) as stage:
            stage.prepare(jobs)
            stage.start(_WORKERS)
            stage.warm_up()
            due = time.time() + _MORE + jobs / 1000 * _MAKING
            stage.bulk(0, jobs, due)
            stage.analyze()
            time.sleep(max(due - time.time(), 0))
            complete = stage.all_done(max(jobs / _SLOWEST, 10))
            late = [mark.at / 1e9 - due for mark in stage.begun()]
            figures = {key: value for key, value in spread(late).items() if key in ("p50", "max")}
            quarter = len(late) // 4
            if quarter > 1:
                figures["rate"] = len(late) / max(late[-1], 1e-6)
                first, last = late[quarter] - late[0], late[-1] - late[-quarter - 1]
                figures["last_quarter"] = first / max(last, 1e-6)
            return Sample(figures, stage.account(complete=complete), late)
