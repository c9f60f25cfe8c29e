"""Tables of what was measured: for the terminal and as Markdown, from the same rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.cell import Cell, Figure
from benchmarks.results import Results, Summary


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table before it is laid out."""

    title: str
    cell: str
    profile: str
    columns: list[str]
    rows: list[list[str]]


def number(value: float) -> str:
    """A number in the precision that it deserves."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"


def _told(figure: Summary | None, ratio: Summary | None) -> str:
    if figure is None:
        return "–"
    told = number(figure.median)
    if figure.rounds > 1:
        told += f" ({number(figure.least)}–{number(figure.most)})"
    if ratio is not None:
        told += f" · {ratio.median:.2f}×"
    return told


def sheets(results: Results, cells: Iterable[Cell]) -> list[Sheet]:
    """A table for each cell and profile; a contestant without figures has a line that says why."""
    made = []
    for cell in cells:
        records = [record for record in results.records if record.cell == cell.name]
        for profile in dict.fromkeys(record.profile for record in records):
            rows = []
            keys = {key for record in records if record.profile == profile for key in record.figures}
            figures = [figure for figure in cell.figures if figure.key in keys]
            for variant in dict.fromkeys(record.variant for record in records):
                # The baseline stands in every table, for it is what the ratios are to.
                shown = dict.fromkeys(
                    (record.contestant, record.profile)
                    for record in sorted(records, key=lambda each: (each.round, each.contestant != cell.baseline))
                    if record.variant == variant and (record.profile == profile or record.contestant == cell.baseline)
                )
                for contestant, its in shown:
                    rows.append([contestant, variant, *_cells(results, cell, variant, contestant, its, figures)])
            base = "its own first line" if cell.baseline_is_first_variant else cell.baseline
            settings = f" — {profile} settings" if profile else ""
            title = f"{cell.title}{settings}; × is the ratio to {base} in the same round"
            made.append(
                Sheet(title, cell.name, profile, ["", "", *(figure.label for figure in figures), "remarks"], rows)
            )
    return made


def _cells(
    results: Results, cell: Cell, variant: str, contestant: str, profile: str, figures: list[Figure]
) -> list[str]:
    told = []
    for figure in figures:
        ratio = None
        if figure.better is not None and (cell.baseline_is_first_variant or contestant != cell.baseline):
            ratio = results.ratio(cell, variant, contestant, profile, figure.key)
        told.append(_told(results.figure(cell.name, variant, contestant, profile, figure.key), ratio))
    of = results.of(cell.name, variant, contestant, profile)
    remarks = dict.fromkeys(text for each in of for text in (each.failure, each.trouble, each.remark) if text)
    return [*told, "; ".join(remarks)]


def versions(results: Results) -> Sheet:
    """Who was measured, and who could not be."""
    rows = []
    for name, known in results.about["peers"].items():
        left_out: dict[str, list[str]] = {}
        for cell, why in known["not_measured"].items():
            left_out.setdefault(why, []).append(cell)
        told = [f"{', '.join(cells)}: {why}" for why, cells in left_out.items()]
        remarks = filter(None, [known["missing"], known["remark"], *told])
        rows.append([name, known["version"] or "–", "; ".join(remarks)])
    return Sheet("Contestants", "", "", ["", "version", "remarks"], rows)


def machine(results: Results) -> str:
    """In one sentence, where and when."""
    about = results.about
    known = about["machine"]
    return (
        f"{about['at'][:10]}: {known['processors']} processors ({known['processor'] or 'unknown'}), "
        f"{known['memory_gib']} GiB, {about['postgresql'].split(' on ')[0]} with fsync {about['fsync']}, "
        f"Python {about['python']}, psycopg {about['psycopg']}, rounds: {about['size']['rounds']}."
    )


def markdown(sheet: Sheet) -> str:
    """A sheet as a Markdown table, with its title before it."""
    lines = [f"**{sheet.title}**", ""]
    rows = [sheet.columns, ["---"] * len(sheet.columns), *sheet.rows]
    return (
        "\n".join(lines + ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]) + "\n"
    )


def show(console: Console, sheet: Sheet) -> None:
    """Prints a sheet."""
    table = Table(title=sheet.title, title_justify="left", title_style="bold")
    for place, column in enumerate(sheet.columns):
        last = place == len(sheet.columns) - 1
        table.add_column(column, justify="left" if place < 2 or last else "right", overflow="fold")
    for row in sheet.rows:
        table.add_row(*row)
    console.print(table)
    console.print()
