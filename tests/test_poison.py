"""Poison: recalls that kill their worker, and rows that fail where they are touched. Neither takes others along."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqltools import Row, add, add_recurring, change, claim, finish, ledger, outcomes, recall, rows, session, value
from structlog.testing import capture_logs
from workerprocess import DEADLINE, Start, WorkerProcess, worker_processes
from workertools import Recorder, sql, until, working

from pgrecall import CurrentRecall, schema

# Recalls that kill their worker


def supervised(start: Start, db: psycopg.Connection, *options: str) -> int:
    """Restart the worker whenever it is dead until every recall has ended; return how often it was."""
    deaths = 0
    deadline = time.monotonic() + 2 * DEADLINE
    worker: WorkerProcess = start(*options, wait=False)
    while value(db, "select count(*) from pgrecall.session_recalls where status in ('pending', 'running')"):
        assert time.monotonic() < deadline, rows(db, "select * from pgrecall.session_recalls order by id")
        if worker.process.poll() is not None:
            deaths += 1
            worker = start(*options, wait=False)
        time.sleep(0.02)
    return deaths


def test_a_recall_that_kills_its_worker_is_given_up_and_those_that_shared_the_worker_are_not(
    database: str, tmp_path: Path
) -> None:
    """Its neighbours are lost with it each time, in the same order; they must not use up their attempts with it."""
    with psycopg.connect(database, autocommit=True) as db, worker_processes(tmp_path, database) as start:
        at = datetime.now(UTC)
        for number in range(5):
            add(db, f"innocent {number}", at, id=f"innocent {number}", additional_context_message="sleep 0.3")
        add(db, "poison", at - timedelta(seconds=1), id="poison", additional_context_message="segfault")
        deaths = supervised(start, db, "--concurrency", "3", "--lease", "1.5")

        # The third time all three are at their last attempt; it is repeated, apart from the others.
        assert deaths == 4
        poison = recall(db, "poison")
        assert (poison["status"], poison["attempt"]) == ("failed", 3)
        assert "was lost during attempt 3" in poison["last_error"]
        runs = ledger(db, "poison")
        assert [(run["attempt"], run["outcome"]) for run in runs] == [
            (1, "lost"),
            (2, "lost"),
            (3, "lost"),
            (3, "lost"),
        ]
        assert all(run["reason"] and run["worker_id"] for run in runs)
        assert len({run["worker_id"] for run in runs}) == 4
        for number in range(5):
            assert recall(db, f"innocent {number}")["status"] == "fired", ledger(db, f"innocent {number}")
            assert outcomes(db, f"innocent {number}")[-1] == "success"
            assert outcomes(db, f"innocent {number}").count("success") == 1
        assert rows(db, "select * from pgrecall.sessions where run_id is not null") == []


def lose_all(db: psycopg.Connection) -> None:
    """What the others see when all workers have died."""
    db.execute("update pgrecall.workers set lease_until = pgrecall.clock() where lease_until is not null")


def test_recalls_that_were_lost_together_at_their_last_attempt_repeat_it_apart(db: psycopg.Connection) -> None:
    at = datetime.now(UTC) - timedelta(hours=1)
    for number in range(3):
        add(db, f"s{number}", at + timedelta(seconds=number), id=f"r{number}")
    for worker in ("w1", "w2", "w3"):
        # All at once each time: a rescue does not wait for anything.
        assert claim(db, worker, up_to=3).recall_ids == ["r0", "r1", "r2"]
        lose_all(db)
    first = claim(db, "w4", up_to=3).runs
    assert [(run["recall_id"], run["attempt"]) for run in first] == [("r0", 3)]
    add(db, "s3", at, id="fresh")
    assert claim(db, "w4", up_to=3).recall_ids == ["fresh"]
    assert claim(db, "w5", up_to=3).recall_ids == ["r1"]
    finish(db, first[0])
    assert claim(db, "w4", up_to=3).recall_ids == ["r2"]
    assert claim(db, "w4", up_to=3).recall_ids == []
    # Who is lost apart from the other suspects had its last chance, also beside others.
    lose_all(db)
    claim(db, "w6", up_to=0)
    assert [recall(db, name)["status"] for name in ("r1", "r2", "fresh")] == ["failed", "failed", "pending"]


def test_a_recall_that_is_lost_alone_at_its_last_attempt_is_failed(db: psycopg.Connection) -> None:
    add(db, "s1", datetime.now(UTC), id="r1", max_attempts=2)
    for worker in ("w1", "w2"):
        assert claim(db, worker).recall_ids == ["r1"]
        lose_all(db)
    assert claim(db, "w3").recall_ids == []
    assert recall(db, "r1")["status"] == "failed"


def test_a_recall_with_one_attempt_is_never_started_again(db: psycopg.Connection) -> None:
    for number in range(2):
        add(db, f"s{number}", datetime.now(UTC), id=f"r{number}", max_attempts=1)
    assert len(claim(db, "w1").runs) == 2
    lose_all(db)
    assert claim(db, "w2").recall_ids == []
    assert {recall(db, f"r{number}")["status"] for number in range(2)} == {"failed"}


def test_a_last_attempt_after_failures_that_no_worker_died_of_is_an_attempt_like_any_other(
    db: psycopg.Connection,
) -> None:
    for number in range(2):
        add(db, f"s{number}", datetime.now(UTC), id=f"r{number}", max_attempts=2)
    for run in claim(db).runs:
        finish(db, run, "error", error="no luck", retry=True, retry_after=timedelta(0))
    assert sorted(claim(db).recall_ids) == ["r0", "r1"]


# Rows that fail where they are touched. The clock of the SQL tests stands still; here it is the real one.

OLD = datetime(1, 1, 2, tzinfo=UTC)
#: A trigger of the host that refuses one recall or its session.
REFUSE = """
    create function public.refuse() returns trigger language plpgsql as
    $$ begin raise exception 'the host does not like it'; end $$;
    create trigger refuse before insert on pgrecall.{} for each row when ({}) execute function public.refuse()
"""


def add_bad_and_good(db: psycopg.Connection, **columns: Any) -> None:
    at = datetime.now(UTC) - timedelta(minutes=2)
    add(db, "bad", **{"id": "bad", "trigger_at": at, **columns})
    add(db, "good", at + timedelta(minutes=1), id="good")


def test_a_grid_of_more_occurrences_than_an_integer_holds_is_finished_and_summed_up(db: psycopg.Connection) -> None:
    """Two thousand years by the second: the number of the missed ones does not fit into an integer."""
    add_recurring(db, "s1", OLD, id="old", interval_seconds=1)
    (run,) = claim(db).runs
    assert finish(db, run)["status"] == "pending"
    assert recall(db, "old")["trigger_at"] > datetime.now(UTC)
    assert outcomes(db, "old")[:2] == ["success", "missed"]


def test_a_recurring_recall_as_old_as_can_be_does_not_stop_the_others_when_its_workers_die(
    db: psycopg.Connection,
) -> None:
    add_bad_and_good(db, trigger_at=OLD, call_type="recurring", interval_seconds=1, max_attempts=1)
    assert sorted(claim(db, "w1").recall_ids) == ["bad", "good"]
    lose_all(db)
    assert claim(db, "w2").recall_ids == ["good"]


@pytest.mark.parametrize("column", ["attempt", "deferrals"])
def test_a_count_as_high_as_can_be_does_not_stop_the_others(db: psycopg.Connection, column: str) -> None:
    db.execute("select")  # so that the next is a savepoint of the test's transaction
    try:
        with db.transaction():
            add_bad_and_good(db, **{column: 2**31 - 1})
    except psycopg.errors.CheckViolation:
        return  # it cannot be there
    db.execute("update pgrecall.sessions set run_id = 0 where id = 'bad'" if column == "deferrals" else "select")
    assert "good" in claim(db).recall_ids


def test_an_interval_that_no_rule_allows_does_not_stop_the_others(db: psycopg.Connection) -> None:
    """Data may come from a dump whose rules were switched off for the load."""
    db.execute(
        "alter table pgrecall.session_recalls drop constraint interval_seconds_must_be_greater_than_zero;"
        "alter table pgrecall.session_recalls drop constraint cron_must_be_a_valid_expression;"
        "alter table pgrecall.session_recalls drop constraint time_zone_must_be_an_iana_name"
    )
    add_bad_and_good(db, call_type="recurring", interval_seconds=0)
    add_recurring(db, "zone", id="zone", cron="0 9 * * *", time_zone="Mars/Olympus", trigger_at=OLD)
    add_recurring(db, "cron", id="cron", cron="at noon", time_zone="UTC", trigger_at=OLD)
    runs = claim(db).runs
    assert {run["recall_id"] for run in runs} >= {"good", "zone", "cron"}
    for run in runs:
        assert finish(db, run)["accepted"]


def test_a_lease_without_end_does_not_give_the_others_a_time_that_they_cannot_read(db: psycopg.Connection) -> None:
    at = datetime.now(UTC)
    add(db, "s1", at, id="r1")
    add(db, "s2", at, id="r2")
    db.execute("insert into pgrecall.workers (id, concurrency, lease_until) values ('w0', 1, 'infinity')")
    assert claim(db, "w2", up_to=3).recall_ids == ["r1", "r2"]


def test_a_claim_whose_nominal_time_was_erased_does_not_stop_the_others_when_its_worker_dies(
    db: psycopg.Connection,
) -> None:
    db.execute("alter table pgrecall.session_recalls drop constraint run_id_is_set_by_claim_with_worker_id_and_times")
    add_bad_and_good(db)
    claim(db, "w1")
    change(db, "bad", nominal_at=None)
    lose_all(db)
    assert "good" in claim(db, "w2").recall_ids
    assert session(db, "good")["run_id"] is not None


@pytest.mark.parametrize(
    ("table", "when"), [("recall_runs", "new.recall_id = 'bad'"), ("session_messages", "new.session_id = 'bad'")]
)
def test_a_row_that_a_trigger_of_the_host_refuses_does_not_stop_the_others(
    db: psycopg.Connection, table: str, when: str
) -> None:
    add_bad_and_good(db)
    db.execute(REFUSE.format(table, when).encode())
    assert "good" in claim(db, "w1").recall_ids
    lose_all(db)
    assert "good" in claim(db, "w2").recall_ids


def test_a_refused_row_is_shown_with_its_reason_and_tried_again_later(db: psycopg.Connection) -> None:
    add_bad_and_good(db)
    db.execute(REFUSE.format("session_messages", "new.session_id = 'bad'").encode())
    assert claim(db, "w1").recall_ids == ["good"]
    bad = recall(db, "bad")
    assert (bad["status"], bad["attempt"]) == ("pending", 0)
    assert "the host does not like it" in bad["last_error"]
    assert bad["due_at"] > datetime.now(UTC) + timedelta(seconds=30)


def test_a_refused_end_of_a_lost_run_leaves_the_recall_failed_with_its_reason(db: psycopg.Connection) -> None:
    add_bad_and_good(db)
    claim(db, "w1")
    db.execute(REFUSE.format("recall_runs", "new.recall_id = 'bad'").encode())
    lose_all(db)
    claim(db, "w2")
    bad: Row = recall(db, "bad")
    assert (bad["status"], bad["run_id"]) == ("failed", None)
    assert "the host does not like it" in bad["last_error"]
    assert session(db, "bad")["run_id"] is None


async def with_refusal(database: str, table: LiteralString, when: LiteralString) -> list[Row]:
    """A worker with one slot: first a recall that is refused somewhere, then a good one. The bad one's ledger."""
    agent = Recorder()
    async with sql(database) as db:
        await db.session("bad", "good")
        await db(REFUSE.format(table, when))
        await db.recall("bad", "now() - interval '1 second'", id="bad")
        good = await db.recall("good")
        async with working(database, agent, concurrency=1):
            await db.ended(good)
    assert [run.session_id for run in agent.runs] == ["bad", "good"]
    with psycopg.connect(database) as read:
        return ledger(read, "bad")


@pytest.mark.anyio
async def test_an_outcome_that_cannot_be_stored_is_replaced_by_an_error_that_says_so(database: str) -> None:
    with capture_logs() as log:
        (run,) = await with_refusal(database, "session_messages", "new.session_id = 'bad' and new.role = 'assistant'")
    assert (run["outcome"], run["reply"]) == ("error", None)
    assert "the host does not like it" in run["error"]
    assert [event["event"] for event in log].count("loop_error") == 1


@pytest.mark.anyio
async def test_a_run_whose_end_cannot_be_stored_at_all_does_not_keep_its_slot(database: str) -> None:
    with capture_logs() as log:
        assert await with_refusal(database, "recall_runs", "new.recall_id = 'bad'") == []
    assert [event["event"] for event in log].count("outcome_refused") == 1


@pytest.mark.anyio
async def test_a_recall_that_missed_decades_by_the_minute_does_not_keep_its_slot(database: str) -> None:
    """With a lease this short the statement that ends a run is taken for lost after a second."""
    async with sql(database) as db, working(database, Recorder(), lease=2, concurrency=1):
        await db.session("old", "good")
        await db.recall("old", "'1990-01-01'", call_type="recurring", cron="* * * * *", time_zone="Europe/Paris")
        await db.ended(await db.recall("good"))
        assert await db("select outcome from pgrecall.recall_runs where session_id = 'old' order by id limit 2") == [
            "success",
            "missed",
        ]


# Rows that somebody has locked


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["recall", "session"])
async def test_a_row_that_is_locked_for_long_holds_up_nothing_else(database: str, what: str) -> None:
    agent = Recorder()
    async with sql(database) as db, await psycopg.AsyncConnection.connect(database) as holder:
        await db.session("locked", *(f"s{number}" for number in range(5)))
        locked = await db.recall("locked", "now() - interval '1 minute'")
        if what == "recall":
            await holder.execute("select from pgrecall.session_recalls where id = %s for update", [locked])
        else:
            await holder.execute("select from pgrecall.sessions where id = 'locked' for update")
        async with working(database, agent, concurrency=1):
            for number in range(5):
                await db.ended(await db.recall(f"s{number}"))
            await holder.rollback()
            await db.ended(locked)
    assert [run.session_id for run in agent.runs] == [*(f"s{number}" for number in range(5)), "locked"]


@pytest.mark.anyio
async def test_an_outcome_that_waits_for_a_locked_row_holds_up_no_other_slot(database: str) -> None:
    go = anyio.Event()

    async def then(recall: CurrentRecall) -> str | None:
        if recall.session_id == "locked":
            await go.wait()
        return None

    agent = Recorder(then)
    async with sql(database) as db, await psycopg.AsyncConnection.connect(database) as holder:
        await db.session("locked", *(f"s{number}" for number in range(5)))
        async with working(database, agent, concurrency=2):
            locked = await db.recall("locked")
            await agent.count(1)
            await holder.execute("select from pgrecall.session_recalls where id = %s for update", [locked])
            go.set()

            async def waits() -> bool:
                return bool(await db("select from pg_locks where not granted and locktype = 'transactionid'"))

            await until(waits)
            for number in range(5):
                await db.ended(await db.recall(f"s{number}"))
            await holder.rollback()
            await db.ended(locked)
    assert len(agent.runs) == 6


# Rows that Python cannot read

UNREADABLE = ["1e9999", "[1]", "null", '"text"', '{"n": ' + "9" * 5000 + "}", "[" * 5000 + "]" * 5000]


@pytest.mark.anyio
@pytest.mark.parametrize("metadata", UNREADABLE)
async def test_metadata_that_python_cannot_read_stops_nothing(database: str, metadata: str) -> None:
    agent = Recorder()
    async with sql(database) as db, working(database, agent):
        await db.session("odd", "good")
        await db(
            "insert into pgrecall.session_recalls (id, session_id, additional_context_message, metadata) "
            "values ('odd', 'odd', 'hello', %s::jsonb), ('good', 'good', 'hello', default)",
            metadata,
        )
        await db.ended("odd")
        await db.ended("good")


@pytest.mark.anyio
async def test_a_database_whose_text_may_be_anything_is_refused(database: str) -> None:
    """In a database of encoding SQL_ASCII a message may hold bytes that are no character, which no client can read."""
    name = f"{conninfo_to_dict(database)['dbname']}_ascii"
    async with sql(database) as admin:
        await admin(f"create database {name} encoding 'SQL_ASCII' locale 'C' template template0")
    dsn = make_conninfo(database, dbname=name)
    try:
        with psycopg.connect(dsn) as connection, pytest.raises(psycopg.Error, match="encoding"):
            schema.install(connection)
    finally:
        async with sql(database) as admin:
            await admin(f"drop database {name} with (force)")
