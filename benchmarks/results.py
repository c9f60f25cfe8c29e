"""What was measured, as one flat list of records; medians and ratios are computed from it, never stored beside it."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cell import Cell, Contestant, Sample, Size
from benchmarks.peer import Peer
from benchmarks.server import Server

#: Of the JSON file; raised when a reader of older ones would go wrong.
FORMAT = 1

#: Single values that are kept of a run, evenly chosen from all in order of size.
_KEPT = 500


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one cell.

    Attributes:
        failure: Why there are no figures; None: there are.
        trouble: What is wrong with the account of the jobs; None: nothing.
    """

    cell: str
    variant: str
    contestant: str
    profile: str
    round: int
    figures: dict[str, float] = field(default_factory=dict)
    samples: list[float] = field(default_factory=list)
    account: dict[str, Any] | None = None
    remark: str = ""
    failure: str | None = None
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """A figure over the rounds: median, and the range that it came from."""

    median: float
    least: float
    most: float
    rounds: int


def record_of(cell: Cell, variant: str, contestant: Contestant, number: int, sample: Sample) -> Record:
    """The record of a sample."""
    ordered = sorted(sample.samples)
    step = max(len(ordered) / _KEPT, 1)
    kept = [round(ordered[int(place * step)], 4) for place in range(min(len(ordered), _KEPT))]
    account = sample.account
    remarks = [sample.remark] if sample.remark else []
    # Nobody is warmed up where the start belongs to what is measured.
    if account is not None and 0 < account.warmed < account.workers:
        remarks.append(f"only {account.warmed} of {account.workers} workers had run a job before")
    return Record(
        cell.name,
        variant,
        contestant.name,
        contestant.profile,
        number,
        dict(sample.figures),
        kept,
        None if account is None else account.as_dict(),
        "; ".join(remarks),
        None,
        None if account is None else account.trouble(),
    )


def summarised(values: Iterable[float]) -> Summary | None:
    """The median and the range; None of nothing."""
    known = list(values)
    return Summary(statistics.median(known), min(known), max(known), len(known)) if known else None


class Results:
    """All records of a run of the harness, and where they were made.

    Args:
        about: The machine, versions and settings.
        records: In the order in which they were made.
    """

    def __init__(self, about: dict[str, Any], records: Sequence[Record] = ()) -> None:
        self.about = about
        self.records = list(records)

    def keep(self, earlier: Results, but: Collection[str]) -> None:
        """Takes over what an earlier run has measured, of other cells than these."""
        self.records = [record for record in earlier.records if record.cell not in but] + self.records
        self.about["peers"] = earlier.about["peers"] | self.about["peers"]
        self.about["earlier"] = [*earlier.about.get("earlier", []), earlier.about["arguments"]]

    def of(self, cell: str, variant: str, contestant: str, profile: str) -> list[Record]:
        """The rounds of one."""
        wanted = (cell, variant, contestant, profile)
        return [each for each in self.records if (each.cell, each.variant, each.contestant, each.profile) == wanted]

    def figure(self, cell: str, variant: str, contestant: str, profile: str, key: str) -> Summary | None:
        """A figure over the rounds."""
        records = self.of(cell, variant, contestant, profile)
        return summarised(record.figures[key] for record in records if key in record.figures)

    def ratio(self, cell: Cell, variant: str, contestant: str, profile: str, key: str) -> Summary | None:
        """A figure divided by the baseline's of the same round, over the rounds."""
        ratios = []
        for record in self.of(cell.name, variant, contestant, profile):
            base = self._baseline(cell, record)
            if base is not None and key in record.figures and base.figures.get(key):
                ratios.append(record.figures[key] / base.figures[key])
        return summarised(ratios)

    def _baseline(self, cell: Cell, record: Record) -> Record | None:
        for other in self.records:
            if other.cell != record.cell or other.round != record.round or other.failure is not None:
                continue
            if cell.baseline_is_first_variant:
                if (other.contestant, other.profile) == (record.contestant, record.profile):
                    return other
            # The raw loop has one set of settings, whatever the others' profile.
            elif other.contestant == cell.baseline and other.variant == record.variant:
                return other
        return None

    def troubles(self, contestants: Collection[str]) -> list[str]:
        """Jobs of these contestants that were lost, repeated or not completed."""
        return [_line(each, each.trouble) for each in self.records if each.trouble and each.contestant in contestants]

    def failures(self, contestants: Collection[str]) -> list[str]:
        """What could not be measured of these contestants."""
        return [_line(each, each.failure) for each in self.records if each.failure and each.contestant in contestants]

    def write(self, path: Path) -> None:
        """As JSON; a reader never sees half a file."""
        content = {"format": FORMAT, "about": self.about, "records": [asdict(record) for record in self.records]}
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps(content, indent=1))
        unfinished.replace(path)


def _line(record: Record, what: str) -> str:
    who = f"{record.contestant} ({record.profile})" if record.profile else record.contestant
    return f"{record.cell}, {record.variant}: {who}, round {record.round}: {what}"


def load(path: Path) -> Results:
    """What `Results.write` wrote.

    Raises:
        ValueError: The file is of another format.
    """
    content = json.loads(path.read_text())
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} is of format {content.get('format')}, this reads {FORMAT}: measure again")
    return Results(content["about"], [Record(**record) for record in content["records"]])


def about(server: Server, peers: Iterable[Peer], size: Size, arguments: Sequence[str]) -> dict[str, Any]:
    """Everything that a reader of the figures must know."""
    from importlib import metadata

    described = {}
    for peer in peers:
        missing = peer.missing()
        described[peer.name] = {
            "version": None if missing else peer.version(),
            "missing": missing,
            "profiles": {name: dict(settings) for name, settings in peer.profiles.items()},
            "not_measured": dict(peer.not_measured),
            "remark": peer.remark,
        }
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": list(arguments),
        "machine": {
            "processors": os.cpu_count(),
            "processor": _processor(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": platform.platform(),
            "load_at_start": [round(load, 2) for load in os.getloadavg()],
        },
        "python": platform.python_version(),
        "postgresql": server.number("select version()"),
        "server_settings": server.settings,
        "fsync": server.number("select current_setting('fsync')"),
        "modules": server.modules,
        "psycopg": metadata.version("psycopg"),
        "size": asdict(size),
        "peers": described,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
