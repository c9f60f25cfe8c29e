"""Writes tables and plots of a run into a page of the docs, between markers; what stands around them is people's.

A table goes between `<!-- bench: scheduled, best -->` and `<!-- bench: end -->`: the cell, and the profile if it has
several. `machine` and `contestants` are what they say; `plot lateness` is the picture of that name; `costs`,
`capacity`, `simulation` and `simulation check` are computed from the run (benchmarks/fleets.py).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from benchmarks import report
from benchmarks.cell import Cell
from benchmarks.results import Results

_MARKED = re.compile(r"(<!-- bench: (?!end\b)([^\n]+?) -->\n)(.*?)(<!-- bench: end -->)", re.DOTALL)

_COMPUTED = ("costs", "capacity", "simulation", "simulation check")


def update(page: Path, results: Results, cells: Iterable[Cell], plots: Iterable[Path]) -> list[str]:
    """Replaces what stands between the markers of a page; says what it put there.

    Args:
        page: A Markdown file.
        results: Of a run.
        cells: Those that there are.
        plots: Pictures that were drawn; they go to `images/` beside the page.

    Raises:
        ValueError: A marker asks for what was not measured, or has no end.
    """
    text = page.read_text()
    if len(re.findall(r"<!-- bench: (?!end\b)", text)) != len(_MARKED.findall(text)):
        raise ValueError(f"{page}: a marker has no <!-- bench: end -->")
    sheets = report.sheets(results, cells)
    pictures = {picture.stem: picture for picture in plots}
    done = []

    def put(found: re.Match[str]) -> str:
        wanted = found[2]
        done.append(wanted)
        return f"{found[1]}\n{content(wanted)}\n{found[4]}"

    def content(wanted: str) -> str:
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
        raise ValueError(f"{page}: {wanted!r} was not measured")

    replaced = _MARKED.sub(put, text)
    page.write_text(replaced)
    return done
