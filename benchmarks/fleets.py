"""Tables of what a server carries: computed from the costs that were measured, and simulated with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.costs import Cost, Costs, costs_of
from benchmarks.report import Sheet, number
from benchmarks.results import Results
from benchmarks.simulation import Fleet, Waking, simulated

#: Of the tables in the docs.
CORES = 8
WORKERS = (1, 16, 100, 1000)
RATES = (1, 10, 100)

#: A server that does more than this of what it can does it late.
_BUSY = 0.7

_COLUMNS = ["workers", "due a second", "who wakes", "fires/s", "statements per fire", "statements/s", "server busy"]


def known_costs(costs: Mapping[str, Cost]) -> Costs:
    """What the simulation takes."""
    return Costs(**{name: cost.value for name, cost in costs.items()})


def costs_sheet(costs: Mapping[str, Cost]) -> Sheet:
    """The costs, and where each comes from."""
    rows = [[name, f"{cost.value:.3f}", cost.source] for name, cost in costs.items()]
    return Sheet("Costs that are simulated with", "", "", ["", "ms", "from"], rows)


def fleets_sheet(fleets: Iterable[Fleet], costs: Costs) -> Sheet:
    """What comes of each fleet."""
    rows = []
    title = "Simulated"
    for fleet in fleets:
        came = simulated(fleet, costs)
        cores = "on the same cores" if fleet.shared else "with cores of their own"
        title = f"Simulated: a server with {fleet.cores} cores, workers {cores}, {fleet.rows} recalls each"
        rows.append(
            [
                f"{fleet.workers:,}",
                number(fleet.rate),
                fleet.waking,
                number(came.fires),
                number(came.statements),
                number(came.fires * came.statements),
                f"{came.utilisation:.0%}",
                number(came.late["p50"]),
                number(came.late["p99"]),
            ]
        )
    return Sheet(title, "simulation", "", [*_COLUMNS, "p50 late, ms", "p99 late, ms"], rows)


def check_sheet(results: Results, costs: Costs) -> Sheet:
    """The simulation beside the cell scheduled, on the machine on which that was measured."""
    rows = []
    made = results.about["size"]
    for variant in dict.fromkeys(each.variant for each in results.records if each.cell == "scheduled"):
        came = [
            simulated(
                Fleet(
                    int(variant.split()[0]),
                    1 / made["scheduled_gap"],
                    cores=results.about["machine"]["processors"],
                    waking=waking,
                    rows=made["scheduled_jobs"],
                    even=True,
                    shared=True,
                ),
                costs,
            )
            for waking in Waking
        ]
        row = [variant]
        for key, simulations in (
            ("statements", [each.statements for each in came]),
            ("p50", [each.late["p50"] for each in came]),
            ("p99", [each.late["p99"] for each in came]),
        ):
            measured = results.figure("scheduled", variant, "ours", "best", key)
            row += ["–" if measured is None else number(measured.median), *map(number, simulations)]
        rows.append(row)
    columns = [""]
    for what in ("statements per job", "p50 late, ms", "p99 late, ms"):
        columns += [f"{what}: measured", *Waking]
    return Sheet(
        "The simulation beside the cell scheduled, workers and server on the same cores", "", "", columns, rows
    )


def capacity_sheet(results: Results, cores: Sequence[int] = (2, 8)) -> Sheet:
    """Fires a second by the server's processor time, at most seven tenths of it."""
    ways = [
        ("one at a time, without history", "scheduled", "1 worker", "ours", "best"),
        ("one at a time, with history", "scheduled", "1 worker", "ours-sessions", "best"),
        ("a backlog, without history", "throughput", "1 process", "ours", "throughput"),
        ("a backlog, with history", "throughput", "1 process", "ours-sessions", "throughput"),
    ]
    rows = []
    for what, cell, variant, contestant, profile in ways:
        spent = results.figure(cell, variant, contestant, profile, "server_ms")
        if spent is not None and spent.median > 0:
            rates = [number(_BUSY * 1e3 * each / spent.median) for each in cores]
            rows.append([what, f"{spent.median:.2f}", *rates])
    title = f"Fires a second, computed: {_BUSY:.0%} of the server's processor time, and nothing else on it"
    columns = ["", "server CPU ms per fire", *(f"{each} cores" for each in cores)]
    return Sheet(title, "", "", columns, rows)


def docs_sheet(results: Results, wanted: str) -> Sheet:
    """The table that a marker in the docs asks for: costs, capacity, simulation, simulation check."""
    costs = costs_of(results, {})
    if wanted == "costs":
        return costs_sheet(costs)
    if wanted == "capacity":
        return capacity_sheet(results)
    if wanted == "simulation check":
        return check_sheet(results, known_costs(costs))
    return fleets_sheet(grid(WORKERS, RATES, tuple(Waking)), known_costs(costs))


def grid(
    workers: Iterable[int],
    rates: Iterable[float],
    wakings: Sequence[Waking],
    *,
    cores: int = CORES,
    slots: int = 10,
    run: float = 0.0,
    rows: int = 60,
    head_start: float = 0.01,
    seed: int = 1,
) -> list[Fleet]:
    """Fleets of each size at each rate; one worker has nobody to hand over to."""
    rates = list(rates)
    return [
        Fleet(
            number, rate, cores=cores, waking=waking, slots=slots, run=run, rows=rows, head_start=head_start, seed=seed
        )
        for number in workers
        for rate in rates
        for waking in (wakings if number > 1 else wakings[:1])
    ]
