"""One module for each kind of measurement; `every_cell` is the order in which they run and are shown."""

from __future__ import annotations

from benchmarks.cell import Cell
from benchmarks.cells.enqueue import Enqueue
from benchmarks.cells.idle import Idle
from benchmarks.cells.pickup import Pickup
from benchmarks.cells.scheduled import Scheduled
from benchmarks.cells.throughput import Throughput


def every_cell() -> dict[str, Cell]:
    """All cells by name."""
    cells: list[Cell] = [
        Scheduled(),
        Pickup(),
        Idle(),
        Throughput(),
        Enqueue(),
    ]
    return {cell.name: cell for cell in cells}
