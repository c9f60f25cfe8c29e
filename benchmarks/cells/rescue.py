"""Kill -9: how long until the runs of a dead worker have begun again elsewhere.

The one worker has taken all its jobs, which hold it; a second one is started and idle, then the first one is killed.
It is killed at a random moment: right after the claim is the worst one for a peer that waits for a heartbeat to get
old, and all the same to one that notices the broken connection.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from benchmarks.cell import Cell, Contestant, Figure, Sample, Size, with_profiles
from benchmarks.peer import Peer
from benchmarks.server import Server
from benchmarks.stage import Failed, Stage

#: Seconds that a job takes: longer than anybody waits for the rescue.
_HELD = 3600.0

#: Seconds for the first worker to begin what it can.
_PATIENCE = 15.0


class Rescue(Cell):
    name = "rescue"
    title = "kill -9 of a worker: seconds until its running jobs run elsewhere"
    figures = (
        Figure("first", "first, s", "s"),
        Figure("all", "all, s", "s"),
        Figure("held", "held", better=None),
        Figure("restarted", "restarted", better=None),
        Figure("killed_after", "killed so many s after they began", "s", better=None),
    )
    baseline = "ours"

    def variants(self, size: Size) -> list[str]:
        return ["2 workers"]

    def contestants(self, peers: Iterable[Peer]) -> list[Contestant]:
        return with_profiles(peers, "best", "default")

    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        assert contestant.peer is not None
        settings = contestant.peer.profiles[contestant.profile]
        # No more than fit into one worker: the rest would fill the slots of the one that is to rescue.
        jobs = min(size.held, contestant.peer.slots(settings))
        with Stage(server, contestant.peer, settings, job_seconds=_HELD) as stage:
            stage.prepare(jobs)
            # All there before it starts: one that claims a batch and waits for it would take only the first to come.
            stage.bulk(0, jobs)
            stage.start(1)
            stage.all_begun(_PATIENCE)
            held = {mark.number for mark in stage.begun()}
            if len(held) < jobs:
                # The rest would fill the worker that is to rescue.
                raise Failed(f"the first worker took only {len(held)} of {jobs} jobs within {_PATIENCE:g} s")
            stage.start(1)
            stage.quiet()
            stage.watch(random.uniform(1, max(size.rescue_phase, 1)))
            at = stage.kill(0)
            began = min(mark.at for mark in stage.begun()) / 1e9

            def again() -> dict[int, float]:
                later = ((mark.number, mark.at / 1e9) for mark in stage.marks() if mark.at / 1e9 > at)
                return {number: when for number, when in sorted(later, reverse=True) if number in held}

            complete = stage.until(lambda: len(again()) >= len(held), size.rescue_seconds)
            restarted = again()
            figures: dict[str, float] = {"held": len(held), "restarted": len(restarted), "killed_after": at - began}
            if restarted:
                figures["first"] = min(restarted.values()) - at
            if complete:
                figures["all"] = max(restarted.values()) - at
            remark = "" if complete else f"not all within {size.rescue_seconds:g} s"
            return Sample(figures, remark=remark)
