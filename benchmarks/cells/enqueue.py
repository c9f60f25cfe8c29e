"""Making jobs through each peer's own interface: one by one, with one and with many producer processes, and in bulk.

The jobs are for tomorrow and nobody works, so this is the price of the interface and of the insert alone; what a
trigger costs beside listeners is the cell `trigger`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from benchmarks.cell import Cell, Contestant, Figure, Sample, Size, with_profiles
from benchmarks.peer import Peer
from benchmarks.server import Server
from benchmarks.stage import Failed, Stage


class Enqueue(Cell):
    name = "enqueue"
    title = "Making jobs through the public interface, rows per second"
    figures = (
        Figure("rate", "one by one, rows/s", "/s", better="high"),
        Figure("bulk", "in bulk, rows/s", "/s", better="high"),
    )

    def variants(self, size: Size) -> list[str]:
        return [f"{number} producers" if number > 1 else "1 producer" for number in size.clients]

    def contestants(self, peers: Iterable[Peer]) -> list[Contestant]:
        return with_profiles(peers, "best")

    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        assert contestant.peer is not None
        number = int(variant.split(maxsplit=1)[0])
        share = max(size.inserted // number, 1)
        tomorrow = time.time() + 86400
        with Stage(server, contestant.peer, contestant.peer.profiles[contestant.profile]) as stage:
            warm_up = 20 * number
            stage.prepare(warm_up + number * share + size.bulk)
            producers = stage.producers(number)
            # Connected, prepared, and planned for the last time.
            stage.each_at_once(producers, [range(20 * place, 20 * place + 20) for place in range(number)], tomorrow)
            first = [warm_up + place * share for place in range(number)]
            answers = stage.each_at_once(producers, [range(start, start + share) for start in first], tomorrow)
            seconds = max(answer[-1][1] for answer in answers) - min(answer[0][0] for answer in answers)
            figures = {"rate": number * share / (seconds / 1e9)}
            if number == 1:
                figures["bulk"] = size.bulk / stage.bulk(warm_up + share, size.bulk, tomorrow)
            account = stage.account(complete=False)
            if account.unfinished != account.made:
                raise Failed(f"made {account.made} jobs, but {account.unfinished} are in its tables")
            return Sample(figures, account)
