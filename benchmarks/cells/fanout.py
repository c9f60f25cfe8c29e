"""What one NOTIFY costs by the number of connections that LISTEN, to its channel, to another one, and elsewhere."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from benchmarks.cell import Cell, Contestant, Figure, Sample, Size
from benchmarks.listen import listening
from benchmarks.peer import Peer
from benchmarks.server import Server

#: Seconds between two, so that each finds everybody asleep.
_GAP = 0.02

#: Before the measured ones.
_WARM_UP = 20


class Fanout(Cell):
    name = "fanout"
    title = "One NOTIFY by the number of connections that LISTEN"
    figures = (
        Figure("server_ms", "server CPU ms", "ms"),
        Figure("commit_ms", "its statement, ms", "ms"),
        Figure("listener_us", "CPU of each that is told, µs", "us", better=None),
    )
    baseline_is_first_variant = True

    def variants(self, size: Size) -> list[str]:
        same = [f"{number} listeners" for number in size.listeners]
        most = size.listeners[-1]
        return [*same, f"{most} listeners to another channel", f"{most} listeners in another database"]

    def contestants(self, peers: Iterable[Peer]) -> list[Contestant]:
        return [Contestant("NOTIFY", "")]

    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        listeners = int(re.findall(r"\d+", variant)[0])
        channel = "elsewhere" if variant.endswith("another channel") else "pgrecall"
        with server.database() as database, server.database() as other, database.connect() as connection:
            server.settle()
            place = other if variant.endswith("another database") else database
            with listening(place.dsn, listeners, channel) as process:

                def tell(number: int) -> list[float]:
                    taken = []
                    for _ in range(number):
                        began = time.perf_counter()
                        connection.execute("select pg_notify('pgrecall', 'due 1')")
                        taken.append((time.perf_counter() - began) * 1e3)
                        time.sleep(_GAP)
                    return taken

                tell(_WARM_UP)
                backends = [
                    pid
                    for (pid,) in connection.execute(
                        "select pid from pg_stat_activity where datname ^@ 'bench' and backend_type = 'client backend'"
                    )
                ]
                before = sum(map(_on_processor, backends))
                client = 0.0 if process is None else _on_processor(process)
                taken = tell(size.probes)
                spent = sum(map(_on_processor, backends)) - before
                figures = {"server_ms": spent * 1e3 / size.probes, "commit_ms": statistics.median(taken)}
                if process is not None and variant.endswith("listeners"):
                    figures["listener_us"] = (_on_processor(process) - client) * 1e6 / size.probes / listeners
        return Sample(figures)


def _on_processor(pid: int) -> float:
    """Seconds that the process has been on a processor, to the nanosecond where Linux tells."""
    try:
        # Of the main thread, which is all that a backend has and all that works in a listener.
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except FileNotFoundError:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
