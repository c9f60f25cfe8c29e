"""One module for each kind of measurement; `every_cell` is the order in which they run and are shown."""

from __future__ import annotations

from benchmarks.cell import Cell
from benchmarks.cells.burst import Burst
from benchmarks.cells.churn import Churn
from benchmarks.cells.enqueue import Enqueue
from benchmarks.cells.fanout import Fanout
from benchmarks.cells.footprint import Footprint
from benchmarks.cells.growth import Finished, OldSnapshot, Pending
from benchmarks.cells.idle import Idle
from benchmarks.cells.pickup import Pickup
from benchmarks.cells.rescue import Rescue
from benchmarks.cells.scheduled import Scheduled
from benchmarks.cells.throughput import Throughput
from benchmarks.cells.trigger import Trigger


def every_cell() -> dict[str, Cell]:
    """All cells by name."""
    cells: list[Cell] = [
        Scheduled(),
        Pickup(),
        Idle(),
        Throughput(),
        Enqueue(),
        Trigger(),
        Rescue(),
        Pending(),
        Finished(),
        OldSnapshot(),
        Burst(),
        Churn(),
        Fanout(),
        Footprint(),
    ]
    return {cell.name: cell for cell in cells}
