"""What a worker costs while there is nothing to do: one job waits, an hour ahead."""

from __future__ import annotations

import time
from collections.abc import Iterable

from benchmarks.cell import Cell, Contestant, Figure, Sample, Size, with_profiles
from benchmarks.peer import Peer
from benchmarks.server import Server
from benchmarks.stage import Stage


class Idle(Cell):
    name = "idle"
    title = "Idle: one worker, one job an hour ahead; per minute"
    figures = (
        Figure("statements", "statements"),
        Figure("transactions", "transactions"),
        Figure("worker_ms", "worker CPU", "ms"),
        Figure("server_ms", "server CPU", "ms", better=None),
        Figure("connections", "connections", better=None),
    )

    def variants(self, size: Size) -> list[str]:
        return ["1 worker"]

    def contestants(self, peers: Iterable[Peer]) -> list[Contestant]:
        return with_profiles(peers, "best", "default")

    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        assert contestant.peer is not None
        with Stage(server, contestant.peer, contestant.peer.profiles[contestant.profile]) as stage:
            stage.prepare(1)
            stage.start(1)
            stage.warm_up()
            stage.each([(0, time.time() + 3600, None)])
            stage.quiet()
            counts, seconds, began = stage.database.counts(), stage.worker_seconds(), time.monotonic()
            stage.watch(size.idle_seconds)
            minutes = (time.monotonic() - began) / 60
            counted, spent = stage.database.counts().since(counts), stage.worker_seconds() - seconds
            figures = {
                "transactions": counted.transactions / minutes,
                "worker_ms": spent * 1e3 / minutes,
                "server_ms": counted.server_seconds * 1e3 / minutes,
                "connections": float(stage.database.clients()),
            }
            if counted.statements is not None:
                figures["statements"] = counted.statements / minutes
            return Sample(figures, stage.account(complete=False))
