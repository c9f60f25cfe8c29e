"""The command: `python -m benchmarks`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click
import psycopg
from rich.console import Console

from benchmarks import plans as kept_plans
from benchmarks import report, results, run
from benchmarks.cell import FULL, QUICK
from benchmarks.cells import every_cell
from benchmarks.docs import update
from benchmarks.peer import every_peer
from benchmarks.plots import draw
from benchmarks.results import Record, Results
from benchmarks.server import Server
from benchmarks.stage import ROOT
from pgrecall import schema

_OUTPUT = ROOT / "dist" / "bench"


def _chosen(kind: str, given: str | None, known: dict[str, object]) -> list[str]:
    """Names given with commas, all if none are."""
    names = list(known) if given is None else [name.strip() for name in given.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise click.BadParameter(f"{', '.join(unknown)}: no such {kind}; there are {', '.join(known)}")
    return names


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measures pgrecall and its rivals side by side, on a PostgreSQL of its own."""


@main.command("list")
def list_() -> None:
    """Say which cells and peers there are, and which peers cannot be started here."""
    console = Console()
    for cell in every_cell().values():
        console.print(f"{cell.name:16} {cell.title}", highlight=False, soft_wrap=True)
    console.print()
    for peer in every_peer().values():
        console.print(f"{peer.name:16} {peer.missing() or peer.version()}", highlight=False, soft_wrap=True)


@main.command()
@click.option("--results", "given", type=click.Path(path_type=Path), default=_OUTPUT / "results.json")
@click.option("--page", type=click.Path(path_type=Path, exists=True), default=ROOT / "docs" / "performance.md")
@click.option("--keep", is_flag=True, help="Leave what was not measured as it is.")
def docs(*, given: Path, page: Path, keep: bool) -> None:
    """Put the tables and plots of a run into a page of the docs, between its markers."""
    if not given.exists():
        raise click.ClickException(f"{given} is not there: measure first")
    try:
        made = results.load(given)
        for what in update(page, made, every_cell().values(), draw(made, given.parent), keep=keep):
            click.echo(f"{page}: {what}")
    except ValueError as error:
        raise click.ClickException(str(error)) from error


@main.command()
def plans() -> None:
    """Keep the plans of the hot functions' statements as they are now; a test compares later ones with them."""
    with Server() as server, server.database() as database:
        if server.connection.info.server_version // 10000 != kept_plans.MAJOR:
            raise click.ClickException(f"the plans of PostgreSQL {kept_plans.MAJOR} are kept, this is another one")
        with psycopg.connect(database.dsn) as connection:
            schema.install(connection)
        for path in kept_plans.write(kept_plans.explained(database.dsn)):
            click.echo(path)


@main.command()
@click.option("--results", "given", type=click.Path(path_type=Path), default=_OUTPUT / "results.json", help="Of a run.")
@click.option("--workers", default="1+16+100+1000", show_default=True, help="Numbers of workers.")
@click.option("--rate", default="10", show_default=True, help="Recalls that fall due in a second; several with +.")
@click.option("--cores", type=click.IntRange(min=1), default=8, show_default=True, help="Of the server.")
@click.option("--waking", type=click.Choice(["herd", "hand-over", "both"]), default="both", show_default=True)
@click.option("--slots", type=click.IntRange(min=1), default=10, show_default=True, help="Of each worker.")
@click.option("--run-seconds", type=click.FloatRange(min=0), default=0.0, show_default=True, help="That a run takes.")
@click.option(
    "--head-start", type=click.FloatRange(min=0), default=0.01, show_default=True, help="Seconds, of hand-over."
)
@click.option("--rows", type=click.IntRange(min=1), default=60, show_default=True, help="Recalls for each line.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--cost", "changes", metavar="NAME=MS", multiple=True, help="Another cost, such as look=0.4.")
@click.option("--check", is_flag=True, help="Beside the cell scheduled of the results, on the same machine.")
def simulate(
    *,
    given: Path,
    workers: str,
    rate: str,
    cores: int,
    waking: str,
    slots: int,
    run_seconds: float,
    head_start: float,
    rows: int,
    seed: int,
    changes: tuple[str, ...],
    check: bool,
) -> None:
    """Simulate fleets of workers on one server, with the costs that were measured.

    Takes the costs from the cells scheduled, pending and fanout of a run; what was not measured has a default, and the
    first table says so.
    """
    try:
        from benchmarks import fleets
        from benchmarks.costs import costs_of
        from benchmarks.simulation import Waking
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error}: pip install simpy") from error
    console = Console(width=None if sys.stdout.isatty() else 170)
    try:
        made = results.load(given) if given.exists() else None
        costs = costs_of(made, dict(_number(change) for change in changes))
        sizes = [int(each) for each in workers.split("+")]
        rates = [float(each) for each in rate.split("+")]
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if min(sizes) < 1 or min(rates) <= 0:
        raise click.ClickException("workers and rates must be greater than 0")
    report.show(console, fleets.costs_sheet(costs))
    known = fleets.known_costs(costs)
    if check:
        if made is None or not any(each.cell == "scheduled" for each in made.records):
            raise click.ClickException(f"{given} has no cell scheduled: measure first")
        report.show(console, fleets.check_sheet(made, known))
        return
    wakings = tuple(Waking) if waking == "both" else (Waking(waking),)
    chosen = fleets.grid(
        sizes,
        rates,
        wakings,
        cores=cores,
        slots=slots,
        run=run_seconds,
        rows=rows,
        head_start=head_start,
        seed=seed,
    )
    report.show(console, fleets.fleets_sheet(chosen, known))


def _number(change: str) -> tuple[str, float]:
    name, _, value = change.partition("=")
    return name, float(value)


@main.command("run")
@click.option("--quick", is_flag=True, help="Every cell at a small size: shows that it works, its figures mean little.")
@click.option("--cells", "wanted_cells", metavar="NAMES", help="Only these cells, with commas between.")
@click.option("--peers", "wanted_peers", metavar="NAMES", help="Only these peers; raw is always among them.")
@click.option("--profiles", metavar="NAMES", default="default,best,throughput", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), help="Default: 5, with --quick 1.")
@click.option("--set", "changes", metavar="NAME=VALUE", multiple=True, help="Another size, such as burst=1000.")
@click.option("--keep", is_flag=True, help="Keep what an earlier run to the same place has measured of other cells.")
@click.option("--server", "binaries", type=click.Path(path_type=Path), help="Directory of another postgres and initdb.")
@click.option("--output", type=click.Path(path_type=Path), default=_OUTPUT, help="Default: dist/bench.")
def run_(
    *,
    quick: bool,
    wanted_cells: str | None,
    wanted_peers: str | None,
    profiles: str,
    rounds: int | None,
    changes: tuple[str, ...],
    keep: bool,
    binaries: Path | None,
    output: Path,
) -> None:
    """Measure.

    Writes results.json after every single measurement, so nothing is lost if it is stopped; tables and plots in the
    end. Ends with status 1 if raw or ours could not be measured, or lost or repeated a job.
    """
    console = Console(width=None if sys.stdout.isatty() else 170)
    known_peers, known_cells = every_peer(), every_cell()
    peers = [known_peers[name] for name in _chosen("peer", wanted_peers, dict(known_peers))]
    if known_peers["raw"] not in peers:
        peers.insert(0, known_peers["raw"])
    cells = [known_cells[name] for name in _chosen("cell", wanted_cells, dict(known_cells))]
    size = QUICK if quick else FULL
    for change in changes:
        name, _, value = change.partition("=")
        wanted: dict[str, Any] = {name: _like(getattr(size, name, None), name, value)}
        size = dataclasses.replace(size, **wanted)
    if rounds is not None:
        size = dataclasses.replace(size, rounds=rounds)
    output.mkdir(parents=True, exist_ok=True)

    with Server(binaries=binaries) as server:
        made = Results(results.about(server, peers, size, sys.argv[1:]))
        if keep and (output / "results.json").exists():
            made.keep(results.load(output / "results.json"), {cell.name for cell in cells})

        def tell(place: int, of: int, seconds: float, record: Record) -> None:
            made.write(output / "results.json")
            first = next(iter(record.figures.items()), None)
            told = record.failure or record.trouble or (f"{first[0]} {report.number(first[1])}" if first else "")
            who = f"{record.contestant} ({record.profile})" if record.profile else record.contestant
            console.print(
                f"[{place}/{of}] round {record.round} {record.cell}, {record.variant}: {who}: {told} [{seconds:.1f} s]",
                highlight=False,
                markup=False,
            )

        run.measure(server, made, cells, peers, size, profiles=profiles.split(","), tell=tell)
    _write(made, output, console)
    own = {name for name, peer in known_peers.items() if not peer.distributions} | {""}
    wrong = [
        line
        for line in (*made.troubles(own), *made.failures(own))
        if not any(why in line for peer in peers for why in peer.not_measured.values())
    ]
    if wrong:
        console.print("Not right:", *wrong, sep="\n", highlight=False, markup=False)
        sys.exit(1)


def _like(example: object, name: str, value: str) -> object:
    """The value of a size, of the type that it has."""
    match example:
        case int():
            return int(value)
        case float():
            return float(value)
        case tuple():
            return tuple(int(part) for part in value.split("+"))
    raise click.BadParameter(f"{name}: no such size; they are {', '.join(f.name for f in dataclasses.fields(QUICK))}")


def _write(made: Results, output: Path, console: Console) -> None:
    cells = every_cell().values()
    tables = [report.versions(made), *report.sheets(made, cells)]
    for sheet in tables:
        report.show(console, sheet)
    text = "\n".join([report.machine(made), "", *(report.markdown(sheet) for sheet in tables)])
    (output / "tables.md").write_text(text)
    try:
        made_plots = draw(made, output)
    except ModuleNotFoundError as error:
        console.print(f"no plots: {error}", highlight=False)
    else:
        console.print(f"{len(made_plots)} plots", highlight=False)
    console.print(f"everything is in {output}", highlight=False)


if __name__ == "__main__":
    main()
