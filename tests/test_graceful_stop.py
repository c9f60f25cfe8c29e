"""Stopping `pgrecall worker`, as an init system, an orchestrator or Ctrl-C does: nothing is lost, repeated or late."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from sqltools import add, add_recurring, ledger, outcomes, recall, rows, value, wait_until
from workerprocess import DEADLINE, Start, now, worker_processes

from pgrecall import schema
from pgrecall.embedded import EmbeddedPostgres

#: Seconds within which something has to happen that takes milliseconds on an idle machine.
AT_ONCE = 3.0


@pytest.fixture
def db(database: str) -> Iterator[psycopg.Connection]:
    """Sees and makes what the workers see."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopping_worker_lets_its_runs_finish_and_takes_no_more(
    db: psycopg.Connection, start: Start, number: signal.Signals
) -> None:
    worker = start("--grace", "20")
    add(db, "running", now(), id="running", additional_context_message="sleep 2")
    add(db, "late", now() + timedelta(seconds=1), id="late")  # the signal is heard by then
    worker.event("recall_claimed")
    worker.send(number)
    assert worker.ended() == 0
    assert outcomes(db, "running") == ["success"]
    assert recall(db, "running")["status"] == "fired"
    late = recall(db, "late")
    assert (late["status"], late["attempt"], late["run_id"]) == ("pending", 0, None)
    assert worker.event("worker_stopped")["runs_given_back"] == 0
    assert value(db, "select count(*) from pgrecall.workers") == 0


@pytest.mark.parametrize(
    ("numbers", "grace"),
    [((signal.SIGTERM,), "0.2"), ((signal.SIGTERM, signal.SIGTERM), "60"), ((signal.SIGINT, signal.SIGTERM), "60")],
    ids=["grace over", "second SIGTERM", "SIGINT then SIGTERM"],
)
def test_what_a_stopping_worker_gives_back_starts_elsewhere_at_once_and_does_not_count(
    db: psycopg.Connection, start: Start, numbers: tuple[signal.Signals, ...], grace: str
) -> None:
    ids = [f"r{place}" for place in range(3)]
    first = start("--grace", grace)
    for name in ids:
        add(db, name, now(), id=name, additional_context_message="sleep 600")
    first.event("recall_claimed", count=3)
    second = start()
    at = first.send(numbers[0])
    for number in numbers[1:]:
        time.sleep(0.5)  # two signals of one kind that are under way together are one signal
        at = first.send(number)
    second.event("recall_claimed", count=3)
    assert first.ended() == 0
    assert time.monotonic() - at < float("0" if numbers[1:] else grace) + AT_ONCE
    assert first.event("worker_stopped")["runs_given_back"] == 3
    for name in ids:
        (run,) = ledger(db, name)
        assert (run["outcome"], run["reason"]) == ("interrupted", "worker stopping")
        now_running = recall(db, name)
        assert (now_running["attempt"], now_running["worker_id"]) == (1, second.event("worker_started")["worker_id"])
        # By the database's clock: from the end of the one run to the start of the other.
        assert now_running["claimed_at"] - run["finished_at"] < timedelta(seconds=AT_ONCE)


def test_an_idle_worker_ends_at_once(db: psycopg.Connection, start: Start) -> None:
    add(db, "tomorrow", now() + timedelta(days=1))
    worker = start("--grace", "60")
    at = worker.send(signal.SIGTERM)
    assert worker.ended() == 0
    assert time.monotonic() - at < AT_ONCE
    assert value(db, "select count(*) from pgrecall.workers") == 0


def test_a_worker_that_is_stopped_while_it_starts_ends_and_keeps_nothing(db: psycopg.Connection, start: Start) -> None:
    for number in range(20):
        add(db, f"s{number}", now(), additional_context_message="sleep 0.1")
    began = time.monotonic()
    start().send(signal.SIGKILL)
    takes = time.monotonic() - began
    db.execute("update pgrecall.workers set lease_until = pgrecall.clock() where lease_until is not null")
    for tenths in range(4, 13, 2):
        worker = start("--grace", "10", wait=False)
        time.sleep(takes * tenths / 10)  # not a wait for something: any moment will do
        worker.send(signal.SIGTERM)
        # The system ends a process that has not come to asking for signals yet.
        assert worker.ended() in {0, -signal.SIGTERM}
    assert rows(db, "select * from pgrecall.sessions where run_id is not null") == []
    ended = {(run["outcome"], run["reason"]) for run in rows(db, "select outcome, reason from pgrecall.recall_runs")}
    assert {outcome for outcome, _ in ended} <= {"success", "interrupted", "lost"}
    # A claim that was on its way is given back; what was lost is the three of the worker that was killed.
    assert {reason for outcome, reason in ended if outcome == "interrupted"} <= {"worker stopping"}
    assert value(db, "select count(*) from pgrecall.recall_runs where outcome = 'lost'") <= 3
    assert value(db, "select coalesce(max(attempt), 0) from pgrecall.recall_runs where outcome <> 'lost'") <= 2


def test_a_worker_whose_start_hangs_in_the_database_can_be_stopped(
    database: str, db: psycopg.Connection, start: Start
) -> None:
    with psycopg.connect(database) as holder:
        holder.execute("lock table pgrecall.workers in access exclusive mode")
        worker = start("--grace", "0.2", wait=False)
        wait_until(lambda: rows(db, "select from pg_locks where not granted and mode = 'RowExclusiveLock'"), "it hangs")
        at = worker.send(signal.SIGTERM)
        worker.ended()
        # Five seconds after the grace period the process ends by force.
        assert time.monotonic() - at < 0.2 + 5 + AT_ONCE


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, to be taken away."""
    with EmbeddedPostgres(tmp_path / "data", durable=False) as server:
        with psycopg.connect(server.dsn) as connection:
            schema.install(connection)
        yield server


def test_a_worker_can_be_stopped_while_the_database_is_down_and_its_run_is_not_lost(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    with worker_processes(tmp_path, postgres.dsn) as start:
        idle, busy = start("--grace", "1"), start("--grace", "1", "--lease", "3")
        with psycopg.connect(postgres.dsn, autocommit=True) as db:
            # Only the busy one is there to take it.
            at = idle.send(signal.SIGSTOP)
            add(db, "s1", now(), id="r1", additional_context_message="sleep 600")
            busy.event("recall_claimed")
        postgres.stop()
        idle.send(signal.SIGCONT)
        at = time.monotonic()
        for worker in (idle, busy):
            worker.send(signal.SIGTERM)
        for worker in (idle, busy):
            worker.ended()
        assert time.monotonic() - at < 1 + 5 + AT_ONCE + 2
        postgres.start()
        third = start("--lease", "3")
        assert third.event("recall_claimed")["attempt"] in {1, 2}
        with psycopg.connect(postgres.dsn, autocommit=True) as db:
            assert recall(db, "r1")["worker_id"] == third.event("worker_started")["worker_id"]
            assert len(ledger(db, "r1")) == 1


class Stream:
    """A thread that goes on producing until told to stop."""

    def __init__(self, dsn: str, produce: Callable[[psycopg.Connection, int], object], pause: float) -> None:
        self._dsn = dsn
        self._produce = produce
        self._pause = pause
        self._over = threading.Event()
        self._failed: BaseException | None = None
        self.produced = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as db:
                while not self._over.wait(self._pause):
                    self._produce(db, self.produced)
                    self.produced += 1
        except psycopg.Error as error:
            self._failed = error

    def end(self) -> int:
        """Stop it; return how many it made."""
        self._over.set()
        self._thread.join(DEADLINE)
        assert self._failed is None, self._failed
        return self.produced


def test_a_rolling_restart_of_three_workers_under_load_loses_and_repeats_nothing(
    database: str, db: psycopg.Connection, start: Start
) -> None:
    # Light work would go to one of them: each has one slot, and there is more to do than the three can.
    started = [start("--grace", "20", "--concurrency", "1") for _ in range(3)]
    recurring = [add_recurring(db, f"often {number}", now(), interval_seconds=1) for number in range(5)]

    def produce(connection: psycopg.Connection, number: int) -> None:
        due_at = now() + timedelta(milliseconds=number % 7 * 50)
        add(connection, f"once {number}", due_at, additional_context_message="sleep 0.2")

    stream = Stream(database, produce, 0.05)
    for place in range(3):
        old = started[place]
        fired = len(old.all("recall_fired"))
        old.event("recall_fired", count=fired + 5)  # it is under load
        old.send(signal.SIGTERM)
        started.append(start("--grace", "20", "--concurrency", "1"))
        assert old.ended() == 0
    produced = stream.end()
    for name in recurring:
        db.execute("update pgrecall.session_recalls set status = 'cancelled' where id = %s", [name])
    wait_until(
        lambda: not rows(db, "select from pgrecall.session_recalls where due_at is not null or run_id is not null"),
        "everything has ended",
    )
    for worker in started[3:]:
        worker.send(signal.SIGTERM)
        assert worker.ended() == 0

    # What a worker was claiming when it was told to stop goes back before it reaches the agent, and leaves a row too.
    given_back = rows(db, "select * from pgrecall.recall_runs where outcome = 'interrupted' and attempt > 0")
    assert {run["reason"] for run in given_back} <= {"worker stopping", "told to stop"}
    ended = [run for run in rows(db, "select * from pgrecall.recall_runs") if run["reason"] != "worker stopping"]
    once = [run for run in ended if run["session_id"].startswith("once")]
    assert len(once) == len({run["recall_id"] for run in once}) == produced > 30
    assert {(run["outcome"], run["attempt"]) for run in once} == {("success", 1)}
    for name in recurring:
        runs = sorted((run for run in ended if run["recall_id"] == name), key=lambda run: run["nominal_at"])
        first = runs[0]["nominal_at"]
        # Each point of the grid once. A machine that stands still for a second may have one recorded as missed.
        assert [run["nominal_at"] - first for run in runs] == [timedelta(seconds=place) for place in range(len(runs))]
        assert [run["outcome"] for run in runs].count("success") >= 2
        assert {run["outcome"] for run in runs[:-1]} <= {"success", "missed"}
        assert runs[-1]["outcome"] in {"success", "missed", "skipped", "interrupted"}  # it was cancelled
    assert rows(db, "select * from pgrecall.sessions where run_id is not null") == []
    # What the workers began is what the ledger has.
    begun = [event["run_id"] for worker in started for event in worker.all("recall_claimed")]
    assert sorted(begun) == [
        run["id"] for run in rows(db, "select id from pgrecall.recall_runs where attempt > 0 order by id")
    ]
    assert value(db, "select count(*) from pgrecall.workers") == 0
