"""What the database says: the demo's own connection, and the figures at the end.

How statements are counted: the workers log in as a database user of their own, and pg_stat_statements counts what that
user sends (top level; what a function does inside counts as its caller). The agent reads its history as a third user.
The figure is everything the workers sent from the first request to the last outcome, divided by the recalls that fired.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pgrecall.demo.plan import Wanted

__all__ = ["AGENT_USER", "WORKER_USER", "Figures", "Ledger", "Rescue", "milliseconds"]

WORKER_USER, AGENT_USER = "demo_worker", "demo_agent"


@dataclass(frozen=True, slots=True)
class Rescue:
    """A run that was lost with its worker, and the run that replaced it."""

    session_id: str
    lost_on: str
    reason: str
    restarted_on: str
    seconds: float


@dataclass(slots=True, kw_only=True)
class Figures:
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
    rescued: list[Rescue] = field(default_factory=list)
    worker_statements: dict[str, int] = field(default_factory=dict)
    statements_per_fired: float | None = None
    idle_seconds: float = 0
    idle_statements: int = 0
    seconds: float = 0

    @property
    def all_fired(self) -> bool:
        """Whether every recall fired, each once."""
        return self.fired == self.scheduled and self.fired_twice == 0


class Ledger:
    """The demo's own connection: what happened, from the tables that any program can read."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True, row_factory=dict_row)

    def prepare(self, wanted: Sequence[Wanted]) -> None:
        """Makes the users and the sessions, each with something to remember."""
        for user in (WORKER_USER, AGENT_USER):  # the owner's rights under names of their own, to count by
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
            WORKER_USER,
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

    def count(self, figures: Figures, session_ids: Sequence[str], start: datetime, before: Counter[str]) -> None:
        """Fills in the figures: what happened to the recalls of these sessions, and what was sent since `before`."""
        statuses, runs = self.statuses(), self.runs()
        figures.fired = sum(status == "fired" for status in statuses.values())
        figures.failed = sum(status in ("failed", "cancelled") for status in statuses.values())
        figures.lost = figures.scheduled - figures.fired - figures.failed
        figures.missing = [session_id for session_id in session_ids if statuses.get(session_id) != "fired"]
        successes = [run for run in runs if run["outcome"] in ("success", "silent")]
        figures.fired_twice = len(successes) - len({run["recall_id"] for run in successes})
        lateness = sorted(milliseconds(run) for run in successes if run["attempt"] == 1)
        figures.lateness_runs = len(lateness)
        if lateness:
            figures.lateness_p50_ms = round(_percentile(lateness, 50), 3)
            figures.lateness_p99_ms = round(_percentile(lateness, 99), 3)
            figures.lateness_max_ms = round(lateness[-1], 3)
        sent = self.statements() - before
        figures.worker_statements = dict(sent)
        if figures.fired:
            figures.statements_per_fired = round(sent.total() / figures.fired, 2)
        figures.seconds = round((self.now() - start).total_seconds(), 1)

    def _rows(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        return self.connection.execute(query.encode(), arguments or None).fetchall()


def milliseconds(run: dict[str, Any]) -> float:
    """The lateness of a run."""
    return float(run["lateness"].total_seconds() * 1000)


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent of all do not exceed (nearest rank)."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]
