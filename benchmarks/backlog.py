"""Many recalls due at once: how steadily real workers drain them, in which order, and what it costs.

Starts a PostgreSQL of its own and as many `pgrecall worker` processes as asked for; the agent does nothing, so what is
measured is pgrecall and the database.

    python benchmarks/backlog.py --recalls 100000 --workers 2 --concurrency 10

With --held N, N sessions are taken by somebody else for the whole time and their recalls are due before all others:
each must be put out of the way first. With --snapshot, a transaction stays open meanwhile, so that no dead row can be
removed. Numbers to look at: the rate must not fall as the backlog shrinks, memory must not grow, and `late first`
(how many recalls fired before one that was due earlier, beyond what fits into the slots) must be zero.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg

from pgrecall import schema
from pgrecall.embedded import EmbeddedPostgres

AGENT = """
async def agent(*, session_id, user_message):
    return None
"""


def memory(pid: int) -> float:
    """Resident memory in MiB; 0 where there is no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def fill(db: psycopg.Connection[Any], recalls: int, held: int) -> None:
    """Put in the backlog: all due, a millisecond apart; the held ones are due first."""
    db.execute("insert into pgrecall.sessions (id) select 's' || n from generate_series(1, %s) as n", [recalls])
    db.execute(
        "insert into pgrecall.sessions (id, run_id) select 'held' || n, -n from generate_series(1, %s) as n", [held]
    )
    db.execute(
        """
        insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)
        select 's' || n, now() - interval '1 hour' + n * interval '1 millisecond', 'hello'
        from generate_series(1, %s) as n
        union all
        select 'held' || n, now() - interval '2 hours' + n * interval '1 millisecond', 'hello'
        from generate_series(1, %s) as n
        """,
        [recalls, held],
    )
    db.execute("vacuum analyze pgrecall.session_recalls")
    db.execute("vacuum analyze pgrecall.sessions")


def claims(db: psycopg.Connection[Any]) -> tuple[int, float]:
    """Calls of claim() so far, and their time in milliseconds."""
    row = db.execute(
        "select coalesce(sum(calls), 0)::integer, coalesce(sum(total_exec_time), 0) from pg_stat_statements "
        "where toplevel and query like 'select * from pgrecall.claim(%'"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def number(db: psycopg.Connection[Any], statement: str) -> int:
    """The one number that it answers."""
    row = db.execute(statement.encode()).fetchone()
    assert row is not None
    return int(row[0])


def out_of_order(db: psycopg.Connection[Any], slots: int) -> int:
    """How many recalls were claimed when more recalls that were due later than fit into the slots had been already."""
    return number(
        db,
        f"""
        with placed as (
            select
                row_number() over (order by id) as claimed,
                row_number() over (order by nominal_at) as wanted
            from pgrecall.recall_runs
            where outcome = 'success' and session_id like 's%'
        )
        select count(*) from placed where claimed > wanted + {slots}
        """,
    )


def watch(db: psycopg.Connection[Any], processes: list[subprocess.Popen[bytes]], every: float, limit: float) -> bool:
    """Print a line now and then until the backlog is gone; false if it is not in time."""
    print(f"{'seconds':>8} {'fired':>8} {'per s':>7} {'claims/s':>9} {'ms/claim':>9} {'held off':>9}  worker MiB")
    began = last = time.monotonic()
    fired, (calls, spent) = 0, claims(db)
    while True:
        time.sleep(every)
        at = time.monotonic()
        fired_now, (calls_now, spent_now) = number(db, "select count(*) from pgrecall.recall_runs"), claims(db)
        held_off = number(db, "select coalesce(sum(deferrals), 0) from pgrecall.session_recalls where deferrals > 0")
        print(
            f"{at - began:8.1f} {fired_now:8} {(fired_now - fired) / (at - last):7.0f} "
            f"{(calls_now - calls) / (at - last):9.0f} {(spent_now - spent) / max(calls_now - calls, 1):9.2f} "
            f"{held_off:9}  {' '.join(f'{memory(process.pid):.0f}' for process in processes)}",
            flush=True,
        )
        last, fired, calls, spent = at, fired_now, calls_now, spent_now
        waiting = "select count(*) from pgrecall.session_recalls where session_id like 's%' and status <> 'fired'"
        if number(db, waiting) == 0:
            return True
        if at - began > limit:
            return False


def main() -> int:
    """Fill, start, watch, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recalls", type=int, default=100_000)
    parser.add_argument("--held", type=int, default=0, help="recalls of sessions that somebody else has")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=10)
    parser.add_argument("--snapshot", action="store_true", help="keep a transaction open meanwhile")
    parser.add_argument("--every", type=float, default=5, help="seconds between two lines")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which to give up")
    options = parser.parse_args()

    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (directory / "nothing.py").write_text(AGENT)
        settings = {"shared_preload_libraries": "pg_stat_statements", "shared_buffers": "256MB"}
        postgres = stack.enter_context(EmbeddedPostgres(settings=settings))
        db = stack.enter_context(psycopg.connect(postgres.dsn, autocommit=True))
        with psycopg.connect(postgres.dsn) as installing:
            schema.install(installing)
        db.execute("create extension pg_stat_statements")
        fill(db, options.recalls, options.held)
        if options.snapshot:
            reader = stack.enter_context(psycopg.connect(postgres.dsn))
            reader.execute("set transaction isolation level repeatable read")
            reader.execute("select count(*) from pgrecall.sessions")
        processes = []
        for _ in range(options.workers):
            command = [sys.executable, "-m", "pgrecall", "worker", "--agent", "nothing:agent", "--dsn", postgres.dsn]
            process = subprocess.Popen(
                [*command, "--concurrency", str(options.concurrency)], cwd=directory, stdout=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            processes.append(process)
        done = watch(db, processes, options.every, options.limit)
        slots = options.workers * options.concurrency
        wrong = out_of_order(db, 2 * slots)
        repeated = number(db, "select count(*) - count(distinct recall_id) from pgrecall.recall_runs")
        print(f"drained: {done}; out of order: {wrong}; repeated: {repeated}")
    return 0 if done and not wrong and not repeated else 1


if __name__ == "__main__":
    sys.exit(main())
