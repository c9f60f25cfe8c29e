"""Pictures of what was measured; each is left out if its cell was not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import Results

#: Ours and raw in every picture in the same colours; the rivals take the next ones, none of which is red.
_COLOURS = {"ours": "#c1121f", "ours-sessions": "#e76f51", "raw": "#264653"}
_OTHERS = ["#1f77b4", "#2ca02c", "#9467bd", "#bcbd22", "#17becf", "#8c564b", "#e377c2", "#7f7f7f"]


def draw(results: Results, directory: Path) -> list[Path]:
    """Draws what there are figures for, as SVG, and says which files were made."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "pgrecall"  # the same picture gives the same file
    from matplotlib import pyplot as plt

    made = []
    for name, picture in _PICTURES.items():
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        axes.set_prop_cycle(color=_OTHERS)
        if picture(results, axes):
            axes.grid(visible=True, which="major", alpha=0.3)
            figure.legend(fontsize="small", loc="outside right upper")
            path = directory / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            made.append(path)
        plt.close(figure)
    return made


def _contestants(results: Results, cell: str, profile: str | None) -> list[tuple[str, str]]:
    """Contestants of a cell with the profile, and raw, in the order of the records."""
    found = (
        (each.contestant, each.profile)
        for each in results.records
        if each.cell == cell and each.failure is None and (each.profile == profile or each.contestant == "raw")
    )
    return list(dict.fromkeys(found))


def _first_number(variant: str) -> int:
    found = re.search(r"[\d,]+", variant)
    return int(found[0].replace(",", "")) if found else 0


def _lateness(results: Results, axes: Any) -> bool:
    shown = _contestants(results, "scheduled", "best")
    for contestant, profile in shown:
        records = results.of("scheduled", "1 worker", contestant, profile)
        late = sorted(value for record in records for value in record.samples)
        if late:
            parts = [(place + 1) / len(late) for place in range(len(late))]
            # A recall cannot begin early by more than the clock's grain; the log scale wants more than nothing.
            axes.plot([max(value, 0.05) for value in late], parts, label=contestant, color=_COLOURS.get(contestant))
    axes.set(xscale="log", xlabel="lateness, ms", ylabel="part of the jobs", title="Scheduled jobs, best settings")
    return bool(axes.lines)


def _lines(
    cell: str, key: str, profile: str, *, xlabel: str, ylabel: str, title: str, logarithmic: bool
) -> Callable[[Results, Any], bool]:
    def picture(results: Results, axes: Any) -> bool:
        shown = _contestants(results, cell, profile)
        variants = list(dict.fromkeys(each.variant for each in results.records if each.cell == cell))
        for contestant, its in shown:
            known = [(v, results.figure(cell, v, contestant, its, key)) for v in variants]
            points = [(_first_number(variant), figure) for variant, figure in known if figure is not None]
            if points:
                places, figures = zip(*points, strict=True)
                middle = [figure.median for figure in figures]
                below = [figure.median - figure.least for figure in figures]
                above = [figure.most - figure.median for figure in figures]
                colour = _COLOURS.get(contestant)
                axes.errorbar(places, middle, [below, above], label=contestant, color=colour, marker="o", capsize=3)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title, xscale="log")
        if logarithmic:
            axes.set_yscale("log")
        ticks = sorted({_first_number(variant) for variant in variants})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        return bool(axes.containers)

    return picture


def _growth(results: Results, axes: Any) -> bool:
    shown = _contestants(results, "pending", "")
    variants = list(dict.fromkeys(each.variant for each in results.records if each.cell == "pending"))
    for contestant, its in shown:
        for key, style in (("claim", "-"), ("insert", "--")):
            known = [(v, results.figure("pending", v, contestant, its, key)) for v in variants]
            points = [(_first_number(variant), figure.median) for variant, figure in known if figure is not None]
            if points:
                colour = _COLOURS.get(contestant)
                axes.plot(*zip(*points, strict=True), style, marker="o", label=f"{contestant}, {key}", color=colour)
    axes.set(xscale="log", xlabel="pending rows", ylabel="ms", title="Cost against table size")
    axes.set_ylim(bottom=0)
    return bool(axes.lines)


_PICTURES: dict[str, Callable[[Results, Any], bool]] = {
    "lateness": _lateness,
    "throughput": _lines(
        "throughput",
        "rate",
        "throughput",
        xlabel="worker processes",
        ylabel="jobs a second",
        title="No-op jobs",
        logarithmic=True,
    ),
    "statements": _lines(
        "scheduled",
        "statements",
        "best",
        xlabel="workers",
        ylabel="statements per job",
        title="Statements per scheduled job",
        logarithmic=True,
    ),
    "growth": _growth,
}
