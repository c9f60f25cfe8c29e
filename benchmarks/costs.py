"""What a statement, a message and a wake-up cost, read from the records of a run; the simulation works with it.

Each cost says where it comes from, so that nobody takes a default for a measurement.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import linear_regression

from benchmarks.results import Results

#: What claim() does after it has the wake-up lock is short beside what it does before.
_UNDER_LOCK = 0.3


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one statement or message, in milliseconds.

    The defaults are those of a virtual machine with 2 cores and PostgreSQL 18, in November 2026.

    Attributes:
        look: Server's processor for a look that finds nothing.
        claim: For one that takes a row; each further row costs the difference again.
        finish: For telling an outcome.
        locked: The part of a look under the wake-up lock.
        commit: Waiting for the disk, no processor.
        notify: Server's processor for each connection that is told something.
        wake: A worker's processor from its timer until its statement is sent.
        answer: From the answer until the agent is called, or until it sleeps again.
        told: For reading what it is told.
        network: One way.
    """

    look: float = 0.5
    claim: float = 1.9
    finish: float = 1.2
    locked: float = 0.15
    commit: float = 2.5
    notify: float = 0.035
    wake: float = 0.6
    answer: float = 0.6
    told: float = 0.03
    network: float = 0.05


@dataclass(frozen=True, slots=True)
class Cost:
    """Where the value of one of the costs comes from."""

    value: float
    source: str


def costs_of(results: Results | None, given: Mapping[str, float]) -> dict[str, Cost]:
    """The costs by name: those that are given, else those that were measured, else the defaults.

    Args:
        results: Of a run with the cells scheduled (several numbers of workers), pending and fanout. None: none.
        given: By name.

    Raises:
        ValueError: There is no such cost.
    """
    costs = {name: Cost(value, "default") for name, value in asdict(Costs()).items()}
    if unknown := given.keys() - costs.keys():
        raise ValueError(f"{', '.join(sorted(unknown))}: no such cost; there are {', '.join(costs)}")
    chosen = {name: Cost(value, "given") for name, value in given.items()}
    if results is not None:
        # What is left of a p50 depends on the other costs, also on those that are given.
        costs |= _measured(results, costs | chosen)
    return costs | chosen


def _measured(results: Results, costs: Mapping[str, Cost]) -> dict[str, Cost]:
    found: dict[str, Cost] = {}

    def figures(cell: str, contestant: str, profile: str, *keys: str) -> list[list[float]]:
        """Medians of these figures, a line for each variant."""
        variants = dict.fromkeys(each.variant for each in results.records if each.cell == cell)
        lines = []
        for variant in variants:
            told = [results.figure(cell, variant, contestant, profile, key) for key in keys]
            if all(told):
                lines.append([summary.median for summary in told if summary is not None])
        return lines

    tables = figures("pending", "ours", "", "look", "claim", "finish") or figures(
        "pending", "ours", "best", "look", "claim", "finish"
    )
    if tables:
        look = tables[0][0]
        found["look"] = Cost(look, "cell pending, its first line")
        found["locked"] = Cost(_UNDER_LOCK * look, f"estimated: {_UNDER_LOCK:.0%} of a look")
    alone = figures("scheduled", "ours", "best", "statements", "server_ms", "worker_ms", "p50")
    if alone:
        # Those with more workers depend on who wakes; they are what the simulation is compared with.
        statements, server, worker, p50 = alone[0]
        half = worker / statements / 2
        found["wake"] = found["answer"] = Cost(half, "cell scheduled, 1 worker: half its processor time a statement")
        claim, finish = tables[0][1:] if tables else (costs["claim"].value, costs["finish"].value)
        split = "split as in cell pending" if tables else "split as the defaults"
        for name, part in (("claim", claim), ("finish", finish)):
            value = server * part / (claim + finish)
            found[name] = Cost(value, f"cell scheduled, 1 worker: the server's processor time a job, {split}")
        now = {name: cost.value for name, cost in {**costs, **found}.items()}
        rest = p50 - now["wake"] - 2 * now["network"] - now["claim"] - now["answer"]
        found["commit"] = Cost(max(rest, 0.0), "cell scheduled, 1 worker: what is left of its p50")
    fanout = {
        float(found_in[1]): [
            results.figure("fanout", variant, "NOTIFY", "", key) for key in ("server_ms", "listener_us")
        ]
        for variant in dict.fromkeys(each.variant for each in results.records if each.cell == "fanout")
        if (found_in := re.fullmatch(r"(\d+) listeners", variant))
    }
    spent = {listeners: told.median for listeners, (told, _) in fanout.items() if told is not None}
    if len(spent) > 1:
        slope = linear_regression(list(spent), list(spent.values())).slope
        found["notify"] = Cost(slope, "cell fanout, slope over listeners")
    heard = [each.median for _, each in fanout.values() if each is not None]
    if heard:
        found["told"] = Cost(heard[-1] / 1e3, "cell fanout, most listeners")
    return found
