"""What a visitor sees, on a terminal or in a pipe. It asks nothing and starts nothing."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pgrecall.demo.ledger import Figures, milliseconds
from pgrecall.demo.plan import Source

__all__ = ["Screen"]

_WIDTH = 100  # columns where nobody says how wide the output is


class Screen:
    """Lines that stay, and on a terminal one more below them that shows the present."""

    def __init__(self, *, quiet: bool) -> None:
        terminal = sys.stdout.isatty()
        self.console = Console(quiet=quiet, width=None if terminal else _WIDTH, highlight=False)
        self._shown = Text()
        self._live = Live(console=self.console, transient=True, auto_refresh=False) if terminal and not quiet else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Prints one line, cut where the screen ends."""
        self.console.print(self._cut(Text.assemble(*parts)), soft_wrap=True)

    def present(self, *parts: str | tuple[str, str]) -> None:
        """Replaces the line at the bottom; nothing where there is no terminal."""
        text = self._cut(Text.assemble(*parts))
        if self._live is not None and text != self._shown:
            self._shown = text
            self._live.update(Group(Text(), text), refresh=True)

    def _cut(self, text: Text) -> Text:
        text.truncate(self.console.width, overflow="ellipsis")
        return text

    def introduction(self, workers: int, recalls: int, seconds: float) -> None:
        """Says what will happen."""
        self.line(
            ("pgrecall demo", "bold"),
            f": {workers} worker processes sleep until one of {recalls} recalls in PostgreSQL is due.",
        )
        self.line(
            f"For {seconds:g} s you see each of them wake an agent, and a worker die by kill -9 while it is at work."
        )
        self.line()

    def requested(self, source: Source, count: int, lines: Sequence[str]) -> None:
        """Shows how recalls are scheduled."""
        recalls = "1 recall" if count == 1 else f"{count} recalls"
        self.line((f"{source:<7}", "cyan"), recalls)
        for line in lines:
            self.line("       ", (line, "dim"))

    def heading(self) -> None:
        """Names the columns of `fired`."""
        self.line()
        self.line((f"{'time':<12}  {'session':<9} {'by':<7}{'lateness':>10}  {'on':<3} the agent's reply", "bold"))

    def fired(self, run: dict[str, Any], source: Source, worker: str, *, rescued: bool) -> None:
        """One run that ended well."""
        self.line(
            (_clock(run["finished_at"]), "dim"),
            f"  {run['session_id']:<9} ",
            (f"{source:<7}", "cyan"),
            (f"{milliseconds(run):>7.1f} ms", "yellow" if rescued else "green"),
            f"  {worker:<3} ",
            ("(rescued) ", "yellow") if rescued else "",
            run["reply"] or "",
        )

    def event(self, at: datetime, text: str, style: str) -> None:
        """Something that is no firing."""
        self.line((_clock(at), "dim"), "  ", (text, style))

    def results(self, figures: Figures) -> None:
        """The table at the end."""
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(style="dim")
        for name, value, note, good in _result_rows(figures):
            table.add_row(name, Text(value, "bold" if good is None else "bold green" if good else "bold red"), note)
        self.line()
        self.line(("What happened", "bold"))
        self.console.print(Padding(table, (0, 0, 0, 2)))
        if figures.missing:
            self.console.print(Text(f"\nDid not fire: {', '.join(figures.missing)}", "bold red"))

    def what_next(self) -> None:
        """Where a visitor goes from here."""
        self.console.print()
        self.line(("What next", "bold"))
        self.line("  your own database   ", ("pgrecall migrate --dsn postgresql://you@host/db", "cyan"))
        self.line("  your own agent      ", ("pgrecall worker --dsn … --agent yourmodule:agent", "cyan"))
        self.line("  how it works        ", ("README.md, docs/ — and \\df+ pgrecall.* in psql", "cyan"))


def _clock(at: datetime) -> str:
    return at.astimezone().strftime("%H:%M:%S.%f")[:-3]


def _result_rows(figures: Figures) -> Iterator[tuple[str, str, str, bool | None]]:
    """Name, value, note, and whether it is good (None: neither)."""
    yield "scheduled", str(figures.scheduled), "from Python, by plain INSERT, from the command line", None
    yield "fired", str(figures.fired), f"the agent ran and answered, within {figures.seconds:.1f} s", figures.all_fired
    if figures.failed:
        yield "failed", str(figures.failed), "the agent failed, and the recall says why", False
    yield "lost", str(figures.lost), "never came to an end", figures.lost == 0
    yield "fired twice", str(figures.fired_twice), "more than one success in the ledger", figures.fired_twice == 0
    runs = f"trigger_at to the agent's first line, {figures.lateness_runs} undisturbed runs"
    yield "lateness p50", _or_dash(figures.lateness_p50_ms, " ms"), runs, None
    yield "lateness p99", _or_dash(figures.lateness_p99_ms, " ms"), "by the database's clock; without the rescued", None
    if figures.rescued:
        slowest = max(rescue.seconds for rescue in figures.rescued)
        reasons = ", ".join(sorted({rescue.reason for rescue in figures.rescued}))
        yield "rescued", str(len(figures.rescued)), f"restarted {slowest:.2f} s after kill -9, when {reasons}", None
    sent = ", ".join(f"{count} {name}" for name, count in Counter(figures.worker_statements).most_common(3))
    per_fired = _or_dash(figures.statements_per_fired, "")
    yield "statements per fired recall", per_fired, f"2 by the one that ran it, else looks of the others: {sent}", None
    idle = f"all workers together, in {figures.idle_seconds:.1f} s without work"
    yield "statements while idle", str(figures.idle_statements), idle, None


def _or_dash(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.1f}{unit}"
