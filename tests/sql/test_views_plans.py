"""What operators look at stays fast when there is much of it: the plans of the views on some 100,000 rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from servers import Server, with_database

#: Sequential scans of these would take minutes on 10 million rows.
LARGE = {"session_recalls", "recall_runs", "sessions"}


@pytest.fixture(scope="module")
def full(server: Server, template: str, name_database: Iterator[str]) -> Iterator[psycopg.Connection]:
    """100,000 sessions; 200,000 recalls, few of which are due, held back, running or failing; 300,000 runs."""
    name = sql.Identifier(next(name_database))
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {} template {}").format(name, sql.Identifier(template)))
        with psycopg.connect(with_database(server.dsn, name._obj[0]), autocommit=True) as db:
            fill(db)
            yield db
        admin.execute(sql.SQL("drop database {} with (force)").format(name))


def fill(db: psycopg.Connection) -> None:
    db.execute("set session_replication_role = replica")  # no foreign keys are checked
    db.execute("alter table pgrecall.session_recalls disable trigger user")
    db.execute(
        """insert into pgrecall.sessions (id, user_id)
        select 's' || n, 'u' || n % 30000 from generate_series(1, 100000) n"""
    )
    db.execute(
        """insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message, status, updated_at)
        select 's' || n, now() - n * interval '1 minute', 'go on', case n % 50 when 0 then 'failed' else 'fired' end,
            now() - n * interval '1 minute'
        from generate_series(1, 100000) n"""
    )
    db.execute(
        """insert into pgrecall.session_recalls (session_id, call_type, interval_seconds, trigger_at,
            additional_context_message, failures, not_before, paused_at, run_id, worker_id, nominal_at, claimed_at,
            status)
        select 's' || n, 'recurring', 3600,
            now() + case when n % 500 < 3 then -1 else n end * interval '1 minute', 'go on',
            case when n % 500 = 3 then 1 else 0 end,
            case when n % 500 = 1 then now() + interval '1 hour' end,
            case when n % 500 = 2 then now() end,
            case when n % 500 = 4 then n end, case when n % 500 = 4 then 'w' end, case when n % 500 = 4 then now() end,
            case when n % 500 = 4 then now() end, case when n % 500 = 4 then 'running' else 'pending' end
        from generate_series(1, 100000) n"""
    )
    db.execute(
        """insert into pgrecall.recall_runs (id, recall_id, session_id, nominal_at, started_at, finished_at, worker_id,
            attempt, outcome)
        select n, 'r' || n % 50000, 's' || n % 100000 + 1,
            at - case when n % 100 = 0 then 5 else 0 end * interval '1 second',
            at, at + interval '1 second', 'w', 1, case when n % 100 = 1 then 'skipped' else 'success' end
        from generate_series(1, 300000) n, lateral (select now() - (300000 - n) * interval '26 seconds' as at) as t"""
    )
    db.execute("vacuum analyze")


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from nodes(inner)


@pytest.mark.parametrize(
    "query",
    [
        "pgrecall.overview",
        "pgrecall.due_recalls",
        "pgrecall.running_recalls",
        "pgrecall.next_recalls limit 20",
        "pgrecall.failed_recalls limit 20",
        "pgrecall.left_out_occurrences limit 20",
        "pgrecall.late_runs limit 20",
        "pgrecall.late_runs where recall_id = 'r17'",
        "pgrecall.session_states where session_id = 's17'",
        "pgrecall.session_states where user_id = 'u17'",
        "pgrecall.user_states where user_id = 'u17'",
        "pgrecall.worker_states",
        "pgrecall.lateness_per_hour",
    ],
)
def test_no_view_reads_a_large_table_from_end_to_end(full: psycopg.Connection, query: str) -> None:
    found = full.execute(f"explain (analyze, format json) select * from {query}".encode()).fetchone()
    assert found is not None
    (explained,) = found[0] if isinstance(found[0], list) else json.loads(found[0])
    plan = list(nodes(explained["Plan"]))
    scanned = [one["Relation Name"] for one in plan if one["Node Type"] == "Seq Scan"]
    assert LARGE.isdisjoint(scanned), json.dumps(explained, indent=1)
    # Nor through an index: what is read has to do with what is shown.
    most = max(one.get("Actual Rows", 0) * one.get("Actual Loops", 1) for one in plan)
    allowed = 1_500
    if query in ("pgrecall.overview", "pgrecall.lateness_per_hour"):
        allowed = 110_000  # they count
    elif query == "pgrecall.late_runs limit 20":
        allowed *= 20  # whether slots were free is told by the runs before each
    assert most <= allowed, json.dumps(explained, indent=1)


def test_an_autoscaler_is_answered_from_indexes_however_often_it_asks(full: psycopg.Connection) -> None:
    """From the sixth call on the plans may be made without knowing the times, as they are here from the first."""
    with full.transaction():
        full.execute("set local plan_cache_mode = force_generic_plan")
        for _ in range(8):
            wanted = full.execute("select pgrecall.wanted_slots()").fetchone()
            assert wanted is not None
            assert 200 <= wanted[0] <= 1_000
        scans = full.execute("select pg_stat_get_xact_numscans('pgrecall.session_recalls'::regclass)").fetchone()
        assert scans == (0,)
