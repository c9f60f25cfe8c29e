"""The order of events: rounds of cells, and in each the contestants in alternating order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from benchmarks.cell import Cell, Contestant, Size
from benchmarks.peer import Peer
from benchmarks.results import Record, Results, record_of
from benchmarks.server import Server
from benchmarks.stage import Failed

#: What is told of every run when it has ended: how many have, of how many, its seconds, and what it gave.
Tell = Callable[[int, int, float, Record], None]


def measure(
    server: Server,
    results: Results,
    cells: Iterable[Cell],
    peers: Sequence[Peer],
    size: Size,
    *,
    profiles: Sequence[str],
    tell: Tell,
) -> None:
    """Runs everything, and adds the records to the results as they come.

    Args:
        server: A running one.
        results: Gets the records.
        cells: Which, in this order.
        peers: Which. One that cannot be started gets records that say why.
        size: How much.
        profiles: Which profiles of the peers; one that has no `default`, such as raw, always takes part.
        tell: Called after every run.
    """
    plan = []
    for number in range(1, size.rounds + 1):
        for cell in cells:
            contestants = [
                each
                for each in cell.contestants(peers)
                if each.peer is None or "default" not in each.peer.profiles or each.profile in profiles
            ]
            # The order is turned round in every other round, so that nobody always runs on another's remains.
            if number % 2 == 0:
                contestants.reverse()
            for variant in cell.variants(size):
                plan += [(number, cell, variant, each) for each in contestants if cell.takes(each, variant)]
    for place, (number, cell, variant, contestant) in enumerate(plan, 1):
        began = time.monotonic()
        record = _one(server, cell, variant, contestant, number, size)
        results.records.append(record)
        tell(place, len(plan), time.monotonic() - began, record)


def _one(server: Server, cell: Cell, variant: str, contestant: Contestant, number: int, size: Size) -> Record:
    why = None
    if contestant.peer is not None:
        why = contestant.peer.missing() or contestant.peer.not_measured.get(cell.name)
    if why is None:
        try:
            return record_of(cell, variant, contestant, number, cell.run(server, contestant, variant, size))
        except Failed as failure:
            why = str(failure)
    return Record(cell.name, variant, contestant.name, contestant.profile, number, failure=why)
