"""How a job says that it has begun: one small record, appended to the file of the cell by whatever process it runs in.

One `write` a job, at about a microsecond, the same for every peer, and not lost when the process is killed.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

#: The environment variable that names the file.
VARIABLE = "PGRECALL_BENCH_MARKS"

_RECORD = struct.Struct("<qqq")

#: The open file; a forked or spawned child opens its own.
_opened: dict[int, int] = {}


class Mark(NamedTuple):
    """A job has begun.

    Attributes:
        number: Which; negative ones are for warming up and are never measured.
        at: By the machine's clock, which is also the database's; nanoseconds since 1970.
        process: In which process.
    """

    number: int
    at: int
    process: int


def mark(number: int) -> None:
    """Says that this job begins now."""
    at = time.time_ns()
    process = os.getpid()
    file = _opened.get(process)
    if file is None:
        file = _opened[process] = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND)
    os.write(file, _RECORD.pack(number, at, process))


def count(path: Path) -> int:
    """How many there are, without reading them."""
    return path.stat().st_size // _RECORD.size


def read(path: Path) -> list[Mark]:
    """All of them, in the order in which they were written."""
    content = path.read_bytes()
    whole = len(content) - len(content) % _RECORD.size
    return [Mark(*record) for record in _RECORD.iter_unpack(content[:whole])]
