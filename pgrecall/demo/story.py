"""What happens, in which order: sleep, requests, firings, one worker killed, its runs rescued, figures."""

from __future__ import annotations

import importlib.util
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo

from pgrecall import database
from pgrecall.demo.ledger import AGENT_USER, WORKER_USER, Figures, Ledger, Rescue
from pgrecall.demo.plan import Wanted
from pgrecall.demo.processes import SLOTS, DemoError, Fleet, Producers
from pgrecall.demo.view import Screen
from pgrecall.embedded import EmbeddedPostgres

__all__ = ["DEMO_AGENT", "perform"]

DEMO_AGENT = "pgrecall.demo.agent:agent"

_IDLE = 1.0  # seconds for which the idle workers' statements are counted
_POLL = 0.05  # seconds between two looks at the ledger: how live the display is, not how exact the figures are


class _Demo:
    """One run of the demo, from the first request to the figures."""

    def __init__(
        self, screen: Screen, fleet: Fleet, producers: Producers, ledger: Ledger, wanted: Sequence[Wanted]
    ) -> None:
        self._screen = screen
        self._fleet = fleet
        self._producers = producers
        self._ledger = ledger
        self._wanted = {one.session_id: one for one in wanted}
        self._start = ledger.now()
        self._seen: set[int] = set()
        self._lost: dict[str, dict[str, Any]] = {}
        self._held: dict[str, str] = {}  # what the killed worker had: session, name of the worker
        self._killed_at: datetime | None = None
        self._statements: Counter[str] = Counter()
        self.figures = Figures(scheduled=len(wanted))

    def await_workers(self) -> None:
        """Returns when every worker has looked once and gone to sleep; then counts what sleepers send."""
        steady_since, before = time.monotonic(), Counter[str]()
        deadline = steady_since + 15
        while time.monotonic() - steady_since < 0.5 or self._ledger.workers() < len(self._fleet.processes):
            self._fleet.check()
            if (now := self._ledger.statements()) != before or not now["claim"]:
                steady_since, before = time.monotonic(), now
            if time.monotonic() > deadline:
                raise DemoError("the workers did not come up within 15 s")
            time.sleep(_POLL)
        began = time.monotonic()
        time.sleep(_IDLE)  # the measurement itself: this long, nothing happens
        self._statements = self._ledger.statements()
        self.figures.idle_seconds = round(time.monotonic() - began, 3)
        self.figures.idle_statements = (self._statements - before).total()

    def schedule(self) -> None:
        """Asks for all recalls."""
        self._start = self._producers.schedule(self._wanted.values())

    def watch(self, give_up_at: float) -> None:
        """Shows what happens until every recall has ended, or the monotonic time to give up has come."""
        self._screen.heading()
        while time.monotonic() < give_up_at:
            self._fleet.check()
            self._producers.next_command()
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

    def count(self) -> None:
        """Fills in the figures."""
        self._ledger.count(self.figures, list(self._wanted), self._start, self._statements)

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
        self.figures.rescued.append(Rescue(session_id, lost_on, reason, worker, round(seconds, 3)))
        text = f"{session_id}: run lost with {lost_on} → restarted on {worker} after {seconds:.2f} s ({reason})"
        self._screen.event(at, text, "yellow")

    def _show_present(self, running: Sequence[dict[str, Any]], statuses: dict[str, str]) -> None:
        busy = Counter(self._fleet.name_of(run["worker_id"]) for run in running)
        parts: list[str | tuple[str, str]] = []
        for name in self._fleet.processes:
            slots = "●" * busy[name] + "○" * (SLOTS - busy[name])
            parts += [("killed", "red") if name == self._fleet.killed else (slots, "green"), f" {name}   "]
        fired = sum(status == "fired" for status in statuses.values())
        self._screen.present(*parts, (f"fired {fired} of {len(self._wanted)}", "bold"))


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


def perform(screen: Screen, workers: int, wanted: Sequence[Wanted], agent: str, give_up_at: float) -> Figures:
    """Starts everything, runs the demo, ends everything."""
    with ExitStack() as stack, _guarded(give_up_at + 3 - time.monotonic()):
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgrecall-demo-")))
        settings = {"shared_preload_libraries": "pg_stat_statements"}
        began = time.monotonic()
        dsn = stack.enter_context(EmbeddedPostgres(settings=settings)).dsn
        database.install(dsn)
        ledger = Ledger(dsn)
        stack.callback(ledger.connection.close)
        ledger.prepare(wanted)
        screen.line(f"{ledger.server()} with the schema pgrecall: ready after {time.monotonic() - began:.1f} s")
        fleet = Fleet(directory)
        stack.callback(fleet.stop)
        for number in range(workers):
            fleet.start(
                f"w{number + 1}",
                agent,
                dsn=make_conninfo(dsn, user=WORKER_USER),
                agent_dsn=make_conninfo(dsn, user=AGENT_USER),
            )
        producers = Producers(dsn, ledger.now, screen.requested)
        stack.callback(producers.close)
        demo = _Demo(screen, fleet, producers, ledger, wanted)
        demo.await_workers()
        screen.line(f"agent {agent}: {_about(agent)}")
        screen.line(
            f"{workers} workers with {SLOTS} slots each, asleep: {demo.figures.idle_statements} statements sent in the"
            f" last {demo.figures.idle_seconds:.1f} s"
        )
        screen.line()
        stack.enter_context(screen)
        demo.schedule()
        demo.watch(give_up_at)
        demo.count()
        return demo.figures
