"""What our trigger costs a plain INSERT: the same table with it, without it, and with a NOTIFY for each row instead.

By pgbench with a script of ours, where the binaries have it, else by threads of the harness; the remark says which.
The recalls are due after a worker has looked, which is the usual case: it is armed for something earlier. `ours, due
now` is the other one. Listeners only read; they are no workers.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from benchmarks.cell import Cell, Contestant, Figure, Sample, Size
from benchmarks.listen import listening
from benchmarks.peer import Peer
from benchmarks.server import Database, Server
from benchmarks.stage import Failed
from pgrecall import schema

_LISTENERS = (0, 8)

#: Rows of one bulk insert, and how many of those each client makes.
_ROWS, _BULKS = 1000, 20

#: Single inserts of each client before the measured ones.
_WARM_UP = 50

#: Sessions for each second of single inserts: more than any machine makes.
_A_SECOND = 40_000

_INSERT = (
    "insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message) "
    "select 's' || nextval('public.numbers'), now() + interval '{due}', 'hello' from generate_series(1, {rows})"
)

#: What the function of the third contestant does for each row.
_NOTIFY = """
    create function public.announce() returns trigger language plpgsql as $$
    begin
        perform pg_notify('pgrecall', 'due ' || (extract(epoch from new.trigger_at) * 1000000)::bigint);
        return null;
    end;
    $$;
    create trigger announce after insert on pgrecall.session_recalls
    for each row execute function public.announce()
"""


class Trigger(Cell):
    name = "trigger"
    title = "A plain INSERT by the table's trigger, rows per second"
    figures = (Figure("rate", "rows/s", "/s", better="high"),)
    baseline = "no trigger"

    def variants(self, size: Size) -> list[str]:
        return [
            f"{clients} clients, {listeners} listeners, {how}"
            for how in ("one by one", "in bulk")
            for clients in size.clients
            for listeners in _LISTENERS
        ]

    def contestants(self, peers: Iterable[Peer]) -> list[Contestant]:
        names = ("no trigger", "ours", "ours, due now", "a NOTIFY for each row")
        return [Contestant(name, "") for name in names]

    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        clients, listeners = (int(number) for number in re.findall(r"\d+", variant))
        rows = _ROWS if variant.endswith("in bulk") else 1
        pgbench = server.binaries / "pgbench"
        sessions = clients * (_BULKS * _ROWS + _WARM_UP * rows) if rows > 1 else size.pgbench_seconds * _A_SECOND
        with server.database() as database, database.connect() as connection:
            _make_table(connection, database, contestant.name, sessions)
            server.settle()
            due = "0" if contestant.name == "ours, due now" else "2 hours"
            statement = _INSERT.format(due=due, rows=rows)
            run = _pgbench if pgbench.exists() else _threads
            with listening(database.dsn, listeners):
                run(pgbench, database.dsn, statement, clients, ["-t", str(_WARM_UP if rows == 1 else 2)])
                before = _inserted(connection)
                length = ["-t", str(_BULKS)] if rows > 1 else ["-T", str(size.pgbench_seconds)]
                began = time.monotonic()
                transactions = run(pgbench, database.dsn, statement, clients, length)
                elapsed = time.monotonic() - began
            made = _inserted(connection) - before
            rate = transactions * rows
            if made == 0 or made < rate * elapsed * 0.2:
                raise Failed(f"pgbench told {rate:.0f} rows a second, but {made} are there after {elapsed:.1f} s")
            return Sample({"rate": rate}, remark="by " + ("pgbench" if pgbench.exists() else "threads of the harness"))


def _make_table(connection: psycopg.Connection[Any], database: Database, name: str, sessions: int) -> None:
    with psycopg.connect(database.dsn) as installing:
        schema.install(installing)
    connection.execute("create sequence public.numbers cache 100")
    connection.execute(
        "insert into pgrecall.sessions (id) select 's' || n from generate_series(0, %s::bigint) as n", [sessions + 5000]
    )
    # A worker has looked, and is armed for this one.
    connection.execute(
        "insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message) "
        "values ('s0', now() + interval '1 hour', 'hello')"
    )
    connection.execute("select from pgrecall.claim('benchmark', 0)")
    if not name.startswith("ours"):
        connection.execute("alter table pgrecall.session_recalls disable trigger announce_insert")
    if name.startswith("a NOTIFY"):
        connection.execute(_NOTIFY)
    connection.execute("vacuum analyze")


def _inserted(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("select count(*) from pgrecall.session_recalls").fetchone()
    assert row is not None
    return int(row[0])


def _pgbench(program: Path, dsn: str, statement: str, clients: int, length: list[str]) -> float:
    """Transactions per second, without the time for connecting."""
    with TemporaryDirectory() as directory:
        script = Path(directory) / "insert.sql"
        script.write_text(statement + ";\n")
        threads = min(clients, os.cpu_count() or 1)
        # -M prepared: the statement is planned once, as a service's driver would have it.
        command = [str(program), "-n", "-M", "prepared", "-f", str(script), "-c", str(clients), "-j", str(threads)]
        done = subprocess.run([*command, *length, dsn], capture_output=True, text=True, check=False, timeout=300)
    found = re.search(r"^tps = ([\d.]+) \(without initial connection time\)", done.stdout, re.MULTILINE)
    failed = re.search(r"^number of failed transactions: (\d+)", done.stdout, re.MULTILINE)
    if done.returncode or found is None or (failed and int(failed[1])):
        raise Failed(f"pgbench ended with status {done.returncode}: {done.stderr.strip()[-200:]}")
    return float(found[1])


def _threads(_: Path, dsn: str, statement: str, clients: int, length: list[str]) -> float:
    """As pgbench, by threads of this process."""
    kind, given = length
    made: list[int] = []
    barrier = threading.Barrier(clients + 1)

    def insert() -> None:
        done = 0
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as connection:
            barrier.wait()
            ends = time.monotonic() + (float(given) if kind == "-T" else float("inf"))
            while time.monotonic() < ends and (kind == "-T" or done < int(given)):
                connection.execute(statement.encode())
                done += 1
        made.append(done)

    threads = [threading.Thread(target=insert) for _ in range(clients)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    return sum(made) / (time.monotonic() - began)
