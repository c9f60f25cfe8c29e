"""`pgrecall demo`: a private PostgreSQL, real worker processes, a real agent, and one worker killed in the middle.

Everything it starts ends with it. What it shows is read from the ledger, `pgrecall.recall_runs`, not from the workers.

How statements are counted: the workers log in as a database user of their own, and pg_stat_statements counts what that
user sends (top level; what a function does inside counts as its caller). The agent reads its history as a third user.
The figure is everything the workers sent from the first request to the last outcome, divided by the recalls that fired.
"""

from __future__ import annotations

import importlib.util
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from json import dumps
from pathlib import Path
from typing import Any, Literal, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pgrecall import database
from pgrecall.client import SyncRecallScheduler
from pgrecall.embedded import EmbeddedPostgres, EmbeddedPostgresError
from pgrecall.errors import RecallError, SettingsError

__all__ = ["DEMO_AGENT", "main"]

DEMO_AGENT = "pgrecall.demo_agent:agent"

Source = Literal["Python", "CLI", "SQL"]

_LEASE = 3.0  # seconds; short, so that the rescue is seen
_THINK = 1.5  # seconds that the agent takes for the recalls during which a worker is killed
_SLOTS = 3
_IDLE = 1.0  # seconds for which the idle workers' statements are counted
_LEAD = 1.0  # seconds from the first request to the first recall
_POLL = 0.05  # seconds between two looks at the ledger: how live the display is, not how exact the figures are
_RESERVE = 20.0  # seconds beyond the last recall after which the demo gives up
_WIDTH = 100  # columns where nobody says how wide the output is
_WORKER_USER, _AGENT_USER = "demo_worker", "demo_agent"

_EXECUTE = "import sys, psycopg; psycopg.connect(sys.argv[1], autocommit=True).execute(sys.argv[2])"

_PEOPLE = ("Ada", "Ben", "Chloe", "Dev", "Elif", "Finn", "Grace", "Hugo", "Ines", "Jun")
_TOPICS = ("the nightly backup", "the invoice run", "the DNS change", "the flaky test", "the visa form", "the release")
_TASKS = ("has it finished?", "still on track?", "look again tomorrow?", "who signs it off?")


class _DemoError(Exception):
    """Something that the demo needs did not work; the message says what."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A recall that the demo schedules."""

    session_id: str
    source: Source
    after: timedelta
    message: str
    history: str
    think_seconds: float = 0


@dataclass(frozen=True, slots=True)
class _Rescue:
    """A run that was lost with its worker, and the run that replaced it."""

    session_id: str
    lost_on: str
    reason: str
    restarted_on: str
    seconds: float


@dataclass(slots=True, kw_only=True)
class _Figures:
    """What the demo found; `--json` prints these fields."""

    scheduled: int
    fired: int = 0
    failed: int = 0
    lost: int = 0
    fired_twice: int = 0
    missing: list[str] = field(default_factory=list)
    lateness_runs: int = 0
    lateness_p50_ms: float | None = None
    lateness_p99_ms: float | None = None
    lateness_max_ms: float | None = None
    killed_worker: str | None = None
    killed_runs: int = 0
    rescued: list[_Rescue] = field(default_factory=list)
    worker_statements: dict[str, int] = field(default_factory=dict)
    statements_per_fired: float | None = None
    idle_seconds: float = 0
    idle_statements: int = 0
    seconds: float = 0

    @property
    def all_fired(self) -> bool:
        """Whether every recall fired, each once."""
        return self.fired == self.scheduled and self.fired_twice == 0


# What to schedule


def _plan(recalls: int, seconds: float) -> list[_Wanted]:
    """Spreads the recalls over the time: most quick ones evenly, the slow ones all at one moment, for the kill."""
    slow, cli, by_sql = max(2, recalls // 5), max(1, recalls // 10), max(1, recalls // 3)
    quick = recalls - slow
    sources: list[Source] = ["SQL" if place < by_sql else "Python" for place in range(quick - cli)]
    random.Random(7).shuffle(sources)  # noqa: S311 (the same mixture every time)
    for count in range(cli):  # the command line takes a moment to start: its recalls are for the end
        sources.insert(len(sources) - count, "CLI")
    times = [seconds * place / max(quick - 1, 1) for place in range(quick)]
    wanted = [(source, at, 0.0) for source, at in zip(sources, times, strict=True)]
    wanted += [("Python", seconds * 0.3, _THINK)] * slow
    wanted.sort(key=lambda one: one[1])
    return [_describe(number, *one) for number, one in enumerate(wanted)]


def _describe(number: int, source: Source, at: float, think_seconds: float) -> _Wanted:
    person, topic = _PEOPLE[number % len(_PEOPLE)], _TOPICS[number % len(_TOPICS)]
    return _Wanted(
        session_id=f"{person.lower()}-{number + 1}",
        source=source,
        after=timedelta(seconds=round(_LEAD + at, 3)),
        message=f"Ask: {_TASKS[number % len(_TASKS)]}",
        history=f"I am {person}. Come back to me about {topic}.",
        think_seconds=think_seconds,
    )


def _plain_insert(wanted: Sequence[_Wanted], start: datetime) -> str:
    """One INSERT that names only what must be named, with a row on each line from the third on."""
    rows = [
        sql.SQL("    ({}, {}, {})")
        .format(one.session_id, (start + one.after).isoformat(" ", "milliseconds"), one.message)
        .as_string()
        for one in wanted
    ]
    columns = "session_id, trigger_at, additional_context_message"
    return f"insert into pgrecall.session_recalls ({columns})\nvalues\n" + ",\n".join(rows)


# Processes


def _pgrecall(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pgrecall", *arguments]


def _tail(output: str) -> str:
    return "\n".join(output.strip().splitlines()[-5:])


class _Fleet:
    """The worker processes, named w1, w2 … in the order of their start."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.killed: str | None = None

    def start(self, name: str, dsn: str, agent: str) -> None:
        """Starts a worker; its log goes to a file."""
        command = _pgrecall(
            "worker", "--dsn", make_conninfo(dsn, user=_WORKER_USER), "--agent", agent,
            "--concurrency", str(_SLOTS), "--lease", str(_LEASE),
        )  # fmt: skip
        # The agent finds its sessions as any program would, by PGRECALL_DSN.
        environment = os.environ | {"PGRECALL_DSN": make_conninfo(dsn, user=_AGENT_USER)}
        with (self._directory / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def name_of(self, worker_id: str) -> str:
        """The name of a worker by its id, which is host:pid:random."""
        pid = int(worker_id.split(":")[-2])
        return next((name for name, process in self.processes.items() if process.pid == pid), worker_id)

    def kill(self, name: str) -> None:
        """Ends a worker with SIGKILL: it gets no chance to say goodbye."""
        self.killed = name
        self.processes[name].kill()
        self.processes[name].wait()

    def check(self) -> None:
        """Raises _DemoError if a worker has ended that should run."""
        for name, process in self.processes.items():
            if name != self.killed and process.poll() is not None:
                log = (self._directory / f"{name}.log").read_text(errors="replace")
                raise _DemoError(f"worker {name} ended by itself, exit code {process.returncode}:\n{_tail(log)}")

    def stop(self) -> None:
        """SIGTERM, so that runs may end; SIGKILL after five seconds."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + 5
        for process in self.processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# What the database says


class _Ledger:
    """The demo's own connection: what happened, from the tables that any program can read."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True, row_factory=dict_row)

    def prepare(self, wanted: Sequence[_Wanted]) -> None:
        """Makes the users and the sessions, each with something to remember."""
        for user in (_WORKER_USER, _AGENT_USER):  # the owner's rights under names of their own, to count by
            self.connection.execute(f"create role {user} login in role current_user".encode())
        self.connection.execute("create extension pg_stat_statements")
        with self.connection.cursor() as cursor:
            cursor.executemany("insert into pgrecall.sessions (id) values (%s)", [[one.session_id] for one in wanted])
            cursor.executemany(
                "insert into pgrecall.session_messages (session_id, role, content)"
                " values (%s, 'user', %s), (%s, 'assistant', 'I will.')",
                [[one.session_id, one.history, one.session_id] for one in wanted],
            )

    def now(self) -> datetime:
        """The database's time."""
        (row,) = self._rows("select clock_timestamp() as now")
        now: datetime = row["now"]
        return now

    def server(self) -> str:
        """The server's version."""
        (row,) = self._rows("select current_setting('server_version') as version")
        return f"PostgreSQL {row['version']}"

    def workers(self) -> int:
        """How many workers have registered."""
        return len(self._rows("select from pgrecall.workers"))

    def statements(self) -> Counter[str]:
        """What the workers have sent so far, by the function called."""
        rows = self._rows(
            "select query, calls from pg_stat_statements join pg_roles on pg_roles.oid = userid"
            " where rolname = %s and toplevel",
            _WORKER_USER,
        )
        counts: Counter[str] = Counter()
        for row in rows:
            called = re.search(r"pgrecall\.(\w+)\(", row["query"])
            counts[called[1] if called else row["query"].split()[0].lower()] += row["calls"]
        return counts

    def runs(self) -> list[dict[str, Any]]:
        """Every run that has ended, in the order of their ends."""
        return self._rows("select * from pgrecall.recall_runs order by finished_at, id")

    def running(self) -> list[dict[str, Any]]:
        """Every run under way."""
        return self._rows(
            "select run_id, session_id, worker_id, claimed_at, attempt from pgrecall.session_recalls"
            " where run_id is not null order by run_id"
        )

    def statuses(self) -> dict[str, str]:
        """The status of each recall, by session: the demo gives each session one."""
        return {
            row["session_id"]: row["status"]
            for row in self._rows("select session_id, status from pgrecall.session_recalls")
        }

    def _rows(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        return self.connection.execute(query.encode(), arguments or None).fetchall()


# What a visitor sees


class _Screen:
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
            (f"{_milliseconds(run):>7.1f} ms", "yellow" if rescued else "green"),
            f"  {worker:<3} ",
            ("(rescued) ", "yellow") if rescued else "",
            run["reply"] or "",
        )

    def event(self, at: datetime, text: str, style: str) -> None:
        """Something that is no firing."""
        self.line((_clock(at), "dim"), "  ", (text, style))

    def results(self, figures: _Figures) -> None:
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


def _milliseconds(run: dict[str, Any]) -> float:
    return float(run["lateness"].total_seconds() * 1000)


def _result_rows(figures: _Figures) -> Iterator[tuple[str, str, str, bool | None]]:
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
        yield "rescued", str(len(figures.rescued)), f"restarted {slowest:.1f} s after kill -9, when {reasons}", None
    sent = ", ".join(f"{count} {name}" for name, count in Counter(figures.worker_statements).most_common(4))
    per_fired = _or_dash(figures.statements_per_fired, "")
    yield "statements per fired recall", per_fired, f"all that the workers sent: {sent}", None
    idle = f"all workers together, in {figures.idle_seconds:.1f} s without work"
    yield "statements while idle", str(figures.idle_statements), idle, None


def _or_dash(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.1f}{unit}"


# The demo itself


class _Demo:
    """One run of the demo, from the first request to the figures."""

    def __init__(self, screen: _Screen, fleet: _Fleet, ledger: _Ledger, dsn: str, wanted: Sequence[_Wanted]) -> None:
        self._screen = screen
        self._fleet = fleet
        self._ledger = ledger
        self._dsn = dsn
        self._wanted = {one.session_id: one for one in wanted}
        self._start = ledger.now()
        self._seen: set[int] = set()
        self._lost: dict[str, dict[str, Any]] = {}
        self._held: dict[str, str] = {}  # what the killed worker had: session, name of the worker
        self._killed_at: datetime | None = None
        self._statements: Counter[str] = Counter()
        self._commands: deque[_Wanted] = deque()
        self._command: subprocess.Popen[bytes] | None = None
        self.figures = _Figures(scheduled=len(wanted))

    def await_workers(self) -> None:
        """Returns when every worker has looked once and gone to sleep; then counts what sleepers send."""
        steady_since, before = time.monotonic(), Counter[str]()
        deadline = steady_since + 15
        while time.monotonic() - steady_since < 0.5 or self._ledger.workers() < len(self._fleet.processes):
            self._fleet.check()
            if (now := self._ledger.statements()) != before or not now["claim"]:
                steady_since, before = time.monotonic(), now
            if time.monotonic() > deadline:
                raise _DemoError("the workers did not come up within 15 s")
            time.sleep(_POLL)
        began = time.monotonic()
        time.sleep(_IDLE)  # the measurement itself: this long, nothing happens
        self._statements = self._ledger.statements()
        self.figures.idle_seconds = round(time.monotonic() - began, 3)
        self.figures.idle_statements = (self._statements - before).total()

    def schedule(self) -> None:
        """Asks for all recalls: the command line's follow one by one while the first ones fire."""
        self._start = self._ledger.now()
        by_source: dict[Source, list[_Wanted]] = {"Python": [], "SQL": [], "CLI": []}
        for one in self._wanted.values():
            by_source[one.source].append(one)
        self._schedule_by_python(by_source["Python"])
        self._schedule_by_sql(by_source["SQL"])
        self._schedule_by_cli(by_source["CLI"])

    def _schedule_by_python(self, wanted: Sequence[_Wanted]) -> None:
        first = wanted[0]
        call = f'scheduler.schedule_recall(session_id="{first.session_id}", trigger_at=start + '
        arguments = f'timedelta(seconds={first.after.total_seconds():g}), additional_context_message="{first.message}")'
        self._screen.requested("Python", len(wanted), [call, f"    {arguments}"])
        with SyncRecallScheduler(self._dsn) as scheduler:
            for one in wanted:
                scheduler.schedule_recall(
                    session_id=one.session_id,
                    trigger_at=self._start + one.after,
                    additional_context_message=one.message,
                    metadata={"think_seconds": one.think_seconds} if one.think_seconds else None,
                )

    def _schedule_by_sql(self, wanted: Sequence[_Wanted]) -> None:
        insert = _plain_insert(wanted, self._start)
        psql = shutil.which("psql")
        if psql:
            command = [psql, self._dsn, "--no-psqlrc", "--quiet", f"--command={insert}"]
        else:
            command = [sys.executable, "-c", _EXECUTE, self._dsn, insert]
        lines = insert.splitlines()
        by = "psql" if psql else "another Python process"
        shown = [*lines[:3], f"    …  -- {len(wanted)} rows in one INSERT, by {by}"]
        self._screen.requested("SQL", len(wanted), shown)
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
        if done.returncode != 0:
            raise _DemoError(f"the INSERT of another process failed: {done.stderr.strip()}")

    def _schedule_by_cli(self, wanted: Sequence[_Wanted]) -> None:
        shown = f"$ pgrecall {shlex.join(self._schedule_command(wanted[0]))}"
        self._screen.requested("CLI", len(wanted), [shown])
        self._commands.extend(wanted)

    def _schedule_command(self, one: _Wanted) -> list[str]:
        # The command itself takes a moment: never ask for a time that is over by then.
        left = max(self._start + one.after - self._ledger.now(), timedelta(seconds=2))
        return ["schedule", one.session_id, one.message, "--in", f"{left.total_seconds():.1f}s"]

    def _next_command(self) -> None:
        """Starts the next `pgrecall schedule` when the one before has ended."""
        if self._command is not None:
            if self._command.poll() is None:
                return
            if self._command.returncode != 0:
                output, _ = self._command.communicate()
                raise _DemoError(f"pgrecall schedule failed:\n{_tail(output.decode(errors='replace'))}")
            self.close()
        if self._commands:
            command = _pgrecall(*self._schedule_command(self._commands.popleft()), "--dsn", self._dsn)
            self._command = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def watch(self, give_up_at: float) -> None:
        """Shows what happens until every recall has ended, or the monotonic time to give up has come."""
        self._screen.heading()
        while time.monotonic() < give_up_at:
            self._fleet.check()
            self._next_command()
            running = self._ledger.running()
            statuses = self._ledger.statuses()  # before the runs: what has ended by now is in the ledger
            for run in self._ledger.runs():
                if run["id"] not in self._seen:
                    self._seen.add(run["id"])
                    self._show(run)
            self._kill_in_time(running)
            for run in running:
                self._show_restart(run["session_id"], run["worker_id"], run["claimed_at"])
            self._show_present(running, statuses)
            ended = [status for status in statuses.values() if status not in ("pending", "running")]
            if len(ended) == len(self._wanted):
                return
            time.sleep(_POLL)

    def _show(self, run: dict[str, Any]) -> None:
        if run["outcome"] != "lost":  # it may have begun and ended between two looks
            self._show_restart(run["session_id"], run["worker_id"], run["started_at"])
        worker = self._fleet.name_of(run["worker_id"])
        if run["outcome"] in ("success", "silent"):
            rescued = run["session_id"] in self._lost
            self._screen.fired(run, self._wanted[run["session_id"]].source, worker, rescued=rescued)
        elif run["outcome"] == "lost":
            self._lost[run["session_id"]] = run
        else:
            text = f"{run['session_id']} {run['outcome']} on {worker}: {run['error'] or run['reason'] or ''}"
            self._screen.event(run["finished_at"], text, "red")

    def _kill_in_time(self, running: Sequence[dict[str, Any]]) -> None:
        """Kills the worker with the most runs, when the slow ones are well under way."""
        slow = max(one.after for one in self._wanted.values() if one.think_seconds)
        now = self._ledger.now()
        if self._killed_at is not None or now < self._start + slow + timedelta(seconds=0.4):
            return
        holders = Counter(self._fleet.name_of(run["worker_id"]) for run in running)
        name = holders.most_common(1)[0][0] if holders else next(iter(self._fleet.processes))
        self._fleet.kill(name)
        self._killed_at = self._ledger.now()
        held = [run["session_id"] for run in self._ledger.running() if self._fleet.name_of(run["worker_id"]) == name]
        self._held = dict.fromkeys(held, name)
        self.figures.killed_worker, self.figures.killed_runs = name, len(held)
        runs = f"{len(held)} run{'' if len(held) == 1 else 's'}"
        what = f"worker {name} killed with kill -9 while it had {runs}{': ' if held else ''}{', '.join(held)}"
        self._screen.event(self._killed_at, what, "bold red")

    def _show_restart(self, session_id: str, worker_id: str, at: datetime) -> None:
        """Notes that a session has a run, if it is the one that replaces a run of the killed worker."""
        if self._killed_at is None or session_id not in self._held or at < self._killed_at:
            return
        lost_on, worker = self._held.pop(session_id), self._fleet.name_of(worker_id)
        seconds = (at - self._killed_at).total_seconds()
        reason = (self._lost.get(session_id) or {}).get("reason") or "its worker was lost"
        self.figures.rescued.append(_Rescue(session_id, lost_on, reason, worker, round(seconds, 3)))
        text = f"{session_id}: run lost with {lost_on} → restarted on {worker} after {seconds:.2f} s ({reason})"
        self._screen.event(at, text, "yellow")

    def _show_present(self, running: Sequence[dict[str, Any]], statuses: dict[str, str]) -> None:
        busy = Counter(self._fleet.name_of(run["worker_id"]) for run in running)
        parts: list[str | tuple[str, str]] = []
        for name in self._fleet.processes:
            slots = "●" * busy[name] + "○" * (_SLOTS - busy[name])
            parts += [("killed", "red") if name == self._fleet.killed else (slots, "green"), f" {name}   "]
        fired = sum(status == "fired" for status in statuses.values())
        self._screen.present(*parts, (f"fired {fired} of {len(self._wanted)}", "bold"))

    def close(self) -> None:
        """Ends the `pgrecall schedule` that is under way, if there is one."""
        if self._command is not None:
            self._command.kill()
            self._command.communicate()
            self._command = None

    def count(self) -> None:
        """Fills in the figures from the ledger and pg_stat_statements."""
        figures, statuses, runs = self.figures, self._ledger.statuses(), self._ledger.runs()
        figures.fired = sum(status == "fired" for status in statuses.values())
        figures.failed = sum(status in ("failed", "cancelled") for status in statuses.values())
        figures.lost = figures.scheduled - figures.fired - figures.failed
        figures.missing = [session_id for session_id in self._wanted if statuses.get(session_id) != "fired"]
        successes = [run for run in runs if run["outcome"] in ("success", "silent")]
        figures.fired_twice = len(successes) - len({run["recall_id"] for run in successes})
        lateness = sorted(_milliseconds(run) for run in successes if run["attempt"] == 1)
        figures.lateness_runs = len(lateness)
        if lateness:
            figures.lateness_p50_ms = round(_percentile(lateness, 50), 3)
            figures.lateness_p99_ms = round(_percentile(lateness, 99), 3)
            figures.lateness_max_ms = round(lateness[-1], 3)
        sent = self._ledger.statements() - self._statements
        figures.worker_statements = dict(sent)
        if figures.fired:
            figures.statements_per_fired = round(sent.total() / figures.fired, 2)
        figures.seconds = round((self._ledger.now() - self._start).total_seconds(), 1)


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent of all do not exceed (nearest rank)."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def _about(agent: str) -> str:
    if agent != DEMO_AGENT:
        return "your own"
    kind = "pydantic-ai, offline model" if importlib.util.find_spec("pydantic_ai") else "plain Python"
    return f"answers from its session's history ({kind})"


@contextmanager
def _guarded(seconds: float) -> Iterator[None]:
    """Turns a hang into TimeoutError and SIGTERM into KeyboardInterrupt, so that whatever was started is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hangs(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    def told_to_stop(*_: object) -> None:
        raise KeyboardInterrupt

    handlers: dict[signal.Signals, Callable[..., None]] = {signal.SIGALRM: hangs, signal.SIGTERM: told_to_stop}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(screen: _Screen, workers: int, wanted: Sequence[_Wanted], agent: str, give_up_at: float) -> _Figures:
    """Starts everything, runs the demo, ends everything."""
    with ExitStack() as stack, _guarded(give_up_at + 3 - time.monotonic()):
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgrecall-demo-")))
        settings = {"shared_preload_libraries": "pg_stat_statements"}
        began = time.monotonic()
        dsn = stack.enter_context(EmbeddedPostgres(settings=settings)).dsn
        database.install(dsn)
        ledger = _Ledger(dsn)
        stack.callback(ledger.connection.close)
        ledger.prepare(wanted)
        screen.line(f"{ledger.server()} with the schema pgrecall: ready after {time.monotonic() - began:.1f} s")
        fleet = _Fleet(directory)
        stack.callback(fleet.stop)
        for number in range(workers):
            fleet.start(f"w{number + 1}", dsn, agent)
        demo = _Demo(screen, fleet, ledger, dsn, wanted)
        stack.callback(demo.close)
        demo.await_workers()
        screen.line(f"agent {agent}: {_about(agent)}")
        screen.line(
            f"{workers} workers with {_SLOTS} slots each, asleep: {demo.figures.idle_statements} statements sent in the"
            f" last {demo.figures.idle_seconds:.1f} s"
        )
        screen.line()
        stack.enter_context(screen)
        demo.schedule()
        demo.watch(give_up_at)
        demo.count()
        return demo.figures


def _complain(message: str) -> None:
    sys.stderr.write(f"{message}\n")


def main(
    *, workers: int = 3, recalls: int = 30, seconds: float = 15.0, json: bool = False, agent: str = DEMO_AGENT
) -> int:
    """Runs the demo and returns its exit code.

    Args:
        workers: Worker processes to start; one of them is killed.
        recalls: How many recalls to schedule.
        seconds: Over how long their times are spread; the demo takes about 8 s more.
        json: Print nothing but the figures, as one JSON object.
        agent: What the workers run, `module:attribute`; another one shows your own agent in the demo.

    Returns:
        0: every recall fired, each once. 1: something is missing, and the output says what. 130: interrupted.

    Raises:
        SettingsError: A number is too small for the demo to make sense.
    """
    for name, value, least in (("workers", workers, 2), ("recalls", recalls, 6), ("seconds", seconds, 1)):
        if value < least:
            raise SettingsError(f"{name} is {value}, but the demo needs at least {least}")
    screen = _Screen(quiet=json)
    screen.introduction(workers, recalls, seconds)
    try:
        figures = _run(screen, workers, _plan(recalls, seconds), agent, time.monotonic() + seconds + _RESERVE)
    except KeyboardInterrupt:
        _complain("interrupted; everything that the demo started has ended")
        return 130
    except (_DemoError, EmbeddedPostgresError, RecallError, psycopg.Error, OSError, subprocess.TimeoutExpired) as error:
        _complain(f"error: {error}")
        return 1
    if json:
        sys.stdout.write(dumps(asdict(figures) | {"all_fired": figures.all_fired}) + "\n")
    else:
        screen.results(figures)
        screen.what_next()
    return 0 if figures.all_fired else 1
