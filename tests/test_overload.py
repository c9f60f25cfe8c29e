"""More at once than there are slots for, and agents that leave the worker no time: steady, in order, on time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest
from sqltools import add, claim, ledger, outcomes, rows, value, wait_until
from workerprocess import DEADLINE, Start, now


@pytest.fixture
def db(database: str) -> Iterator[psycopg.Connection]:
    """Sees and makes what the workers see."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def add_backlog(
    db: psycopg.Connection, size: int, prefix: str = "s", run_id: str = "null", ago: str = "1 hour"
) -> None:
    """Recalls that are all due, a millisecond apart, each in a session of its own."""
    db.execute(
        f"insert into pgrecall.sessions (id, run_id) select '{prefix}' || n, {run_id} "
        f"from generate_series(1, {size}) n;"
        "insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message) "
        f"select '{prefix}' || n, now() - interval '{ago}' + n * interval '1 millisecond', 'at once' "
        f"from generate_series(1, {size}) n".encode()
    )


def count(db: psycopg.Connection) -> int:
    found: int = value(db, "select count(*) from pgrecall.recall_runs")
    return found


# A backlog


def test_a_backlog_drains_steadily_in_due_order_with_bounded_memory(db: psycopg.Connection, start: Start) -> None:
    """benchmarks/backlog.py does the same with 100,000."""
    size = 3000
    add_backlog(db, size)
    workers = [start("--concurrency", "10") for _ in range(2)]
    # Due now, so behind all of them; an immediate recall has no priority over what is due longer.
    newest = add(db, "newest", now(), call_type="immediate")
    wait_until(lambda: count(db) > size / 10, "it has begun")
    before = [worker.memory() for worker in workers] if sys.platform == "linux" else []
    began, fired = time.monotonic(), count(db)
    while count(db) < size + 1:
        assert time.monotonic() < began + 2 * DEADLINE, count(db)
        time.sleep(0.05)
    for worker, had in zip(workers, before, strict=False):
        assert worker.memory() < had + 20 * 2**20
    assert fired < size  # so the memory was looked at under load

    runs = rows(db, "select recall_id, outcome, attempt, nominal_at from pgrecall.recall_runs order by id")
    assert len({run["recall_id"] for run in runs}) == len(runs) == size + 1
    assert {(run["outcome"], run["attempt"]) for run in runs} == {("success", 1)}
    # Nothing is claimed before what was due earlier, but for what two workers take at the same moment.
    wanted = sorted(run["nominal_at"] for run in runs)
    claimed = [run["nominal_at"] for run in runs]
    assert max(abs(place - wanted.index(at)) for place, at in enumerate(claimed)) <= 2 * 2 * 10
    assert runs.index(next(run for run in runs if run["recall_id"] == newest)) >= size - 40


def test_a_claim_does_not_take_longer_while_a_backlog_shrinks(db: psycopg.Connection) -> None:
    """Rows that are done leave dead entries in the index, before the ones that are due."""
    size, at_once = 4000, 50
    add_backlog(db, size)
    took = []
    for _ in range(size // at_once):
        began = time.perf_counter()
        taken = claim(db, up_to=at_once)
        took.append(time.perf_counter() - began)
        db.execute(
            "select pgrecall.finish(recall_id, run_id, 'success') from unnest(%s::text[], %s::bigint[]) "
            "as t (recall_id, run_id)",
            [taken.recall_ids, [run["run_id"] for run in taken.runs]],
        )
    fifth = len(took) // 5
    # The median, which does not mind a machine that stands still now and then.
    assert sorted(took[-fifth:])[fifth // 2] < 4 * sorted(took[:fifth])[fifth // 2]


def test_a_storm_of_taken_sessions_does_not_starve_what_is_due_after_it(db: psycopg.Connection, start: Start) -> None:
    """Each recall of a taken session is put off once; whatever is free behind them is reached in a moment."""
    add_backlog(db, 400, prefix="taken ", run_id="-n", ago="2 hours")
    free = add(db, "free", now() - timedelta(minutes=1))
    worker = start("--concurrency", "2")
    worker.event("recall_fired", deadline=10)
    assert outcomes(db, free) == ["success"]
    assert value(db, "select count(*) from pgrecall.session_recalls where deferrals > 1") == 0


# A storm of inserts


@contextmanager
def storm(dsn: str, connections: int) -> Iterator[Callable[[], int]]:
    """Single inserts for far-off times, each its own transaction, as fast as it goes; gives how many there were."""
    over = threading.Event()
    done = [0] * connections
    failed: list[BaseException] = []

    def insert(place: int) -> None:
        statement = (
            "insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message) "
            "values (%s, now() + interval '1 day' + random() * interval '1 year', 'far off')"
        )
        try:
            with psycopg.connect(dsn, autocommit=True) as producer:
                while not over.is_set():
                    with producer.pipeline():
                        for _ in range(50):
                            producer.execute(statement, [f"far {place} {done[place]}"])
                            done[place] += 1
        except psycopg.Error as error:
            failed.append(error)

    threads = [threading.Thread(target=insert, args=[place], daemon=True) for place in range(connections)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sum(done)
    finally:
        over.set()
        for thread in threads:
            thread.join(DEADLINE)
    assert failed == []


def looks(db: psycopg.Connection) -> int:
    found: int = value(
        db,
        "select coalesce(sum(calls), 0)::integer from pg_stat_statements where toplevel and query like '%%claim(%%' "
        "and dbid = (select oid from pg_database where datname = current_database())",
    )
    return found


def test_a_storm_of_inserts_for_later_wakes_nobody_and_what_is_due_fires_on_time(
    database: str, db: psycopg.Connection, start: Start
) -> None:
    connections = 3
    db.execute("create extension pg_stat_statements")
    db.execute(
        "insert into pgrecall.sessions (id) select 'far ' || c || ' ' || n "
        f"from generate_series(0, {connections - 1}) c, generate_series(0, 30000) n".encode()
    )
    workers = [start("--safety-interval", "1h") for _ in range(2)]
    add(db, "tomorrow", now() + timedelta(hours=23))
    due = 10
    with storm(database, connections) as inserted:
        wait_until(lambda: inserted() > 200, "the storm rages")
        before, far = looks(db), inserted()
        began = time.monotonic()
        for number in range(due):
            add(db, f"due {number}", now() + timedelta(milliseconds=300 + 200 * number), id=f"due {number}")
        wait_until(lambda: value(db, "select count(*) from pgrecall.recall_runs") == due, "all that is due has fired")
        seconds = time.monotonic() - began
        looked, stormed = looks(db) - before, inserted() - far
    assert stormed > 500
    late = [ledger(db, f"due {number}")[0]["lateness"] for number in range(due)]
    assert {outcomes(db, f"due {number}")[0] for number in range(due)} == {"success"}
    assert max(late) < timedelta(seconds=2), late
    # Both workers look for each that is due, and again soon when a look met a producer at its commit.
    assert looked < due * 2 * 6 + seconds * 10, (looked, stormed, seconds)
    assert looked < stormed / 5
    assert all(worker.process.poll() is None for worker in workers)


# An agent that blocks the event loop


def test_an_agent_that_blocks_for_longer_than_the_lease_keeps_its_claims_and_those_beside_it(
    db: psycopg.Connection, start: Start
) -> None:
    """The lease is renewed by a thread, so a rival with nothing to do gets neither."""
    lease = 1.2
    blocked = start("--lease", str(lease), "--concurrency", "2")
    at = now() + timedelta(seconds=0.5)
    add(db, "beside", at, id="beside", additional_context_message="sleep 1")
    add(db, "blocks", at + timedelta(milliseconds=1), id="blocks", additional_context_message="block 4")
    blocked.event("recall_claimed", count=2)
    rival = start("--lease", str(lease))
    wait_until(lambda: outcomes(db, "blocks"), "it has ended")
    (run,) = ledger(db, "blocks")
    assert (run["outcome"], run["attempt"]) == ("success", 1)
    assert run["finished_at"] - run["started_at"] > timedelta(seconds=3 * lease)
    wait_until(lambda: outcomes(db, "beside"), "the one beside it has ended")
    assert outcomes(db, "beside") == ["success"]
    assert blocked.all("lease_lost") == rival.all("recall_claimed") == []
