"""Writes tables and plots of a run into a page of the docs, between markers; what stands around them is people's.

A table goes between `<!-- bench: scheduled, best -->` and `<!-- bench: end -->`: the cell, and the profile if it has
several. `machine` and `contestants` are what they say; `plot lateness` is the picture of that name; `costs`,
`capacity`, `simulation` and `simulation check` are computed from the run (benchmarks/fleets.py).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.cell import Cell
from benchmarks.results import Results

_MARKED = re.compile(r"(<!-- bench: (?!end\b)([^\n]+?) -->\n)(.*?)(<!-- bench: end -->)", re.DOTALL)

_COMPUTED = ("costs", "capacity", "simulation", "simulation check")


def update(
    page: Path, results: Results, cells: Iterable[Cell], plots: Iterable[Path], *, keep: bool = False
) -> list[str]:
    """Replaces what stands between the markers of a page; says what it put there.

    Args:
        page: A Markdown file.
        results: Of a run.
        cells: Those that there are.
        plots: Pictures that were drawn; they go to `images/` beside the page.
        keep: Leave what was not measured as it is.

    Raises:
        ValueError: A marker has no end; or, unless `keep`, asks for what was not measured.
    """
    text = page.read_text()
    if len(re.findall(r"<!-- bench: (?!end\b)", text)) != len(_MARKED.findall(text)):
        raise ValueError(f"{page}: a marker has no <!-- bench: end -->")
    sheets = report.sheets(results, cells)
    pictures = {picture.stem: picture for picture in plots}
    done = []

    def put(found: re.Match[str]) -> str:
        wanted = found[2]
        made = _content(wanted, page, results, sheets, pictures)
        if made is None and keep:
            return found[0]
        if made is None:
            raise ValueError(f"{page}: {wanted!r} was not measured")
        done.append(wanted)
        return f"{found[1]}\n{made}\n{found[4]}"

    replaced = _MARKED.sub(put, text)
    page.write_text(replaced)
    return done


def _content(
    wanted: str, page: Path, results: Results, sheets: Sequence[report.Sheet], pictures: Mapping[str, Path]
) -> str | None:
    """What goes between the markers that ask for it; None: it was not measured."""
    if wanted == "machine":
        return report.machine(results) + "\n"
    if wanted == "contestants":
        return report.markdown(report.versions(results))
    if wanted.startswith("plot ") and (picture := pictures.get(wanted.removeprefix("plot "))):
        images = page.parent / "images"
        images.mkdir(exist_ok=True)
        shutil.copyfile(picture, images / picture.name)
        return f"![{picture.stem}](images/{picture.name})\n"
    cell, _, profile = wanted.partition(", ")
    for sheet in sheets:
        if sheet.cell == cell and (sheet.profile == profile or not profile):
            return report.markdown(sheet)
    if wanted in _COMPUTED:
        from benchmarks import fleets

        return report.markdown(fleets.docs_sheet(results, wanted))
    return None
