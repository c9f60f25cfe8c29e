"""Services that have never heard of this package and write the table with statements of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import psycopg
import pytest
from psycopg import sql
from sqltools import HOUR, MINUTE, Ear, add_session, claim, claim_one, due, finish, ledger, recall, session

INSERT = """
    INSERT INTO session_recalls (
        id, session_id, call_type, trigger_at, interval_seconds, internal_comment, additional_context_message, status,
        created_at, updated_at
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    RETURNING *
"""


@pytest.fixture
def ear(database: str) -> Iterator[Ear]:
    """A worker's connection: hears messages, claims and finishes; the sessions s1 to s3 exist."""
    listener = Ear(database)
    add_session(listener.connection, "s1", "s2", "s3", user_id="u1")
    yield listener
    listener.close()


@pytest.fixture
async def foreign(database: str) -> AsyncIterator[Any]:
    """A connection of another service."""
    connection = await asyncpg.connect(database, server_settings={"search_path": "pgrecall"})
    yield connection
    await connection.close()


def soon(delta: timedelta) -> datetime:
    """Return a time relative to now, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0) + delta


async def insert(foreign: Any, session_id: str, trigger_at: datetime, *, seconds: int | None = None) -> Any:
    """Write a recall as the other service does: all of its ten columns."""
    now = datetime.now(UTC)
    kind = "once" if seconds is None else "recurring"
    name = str(uuid.uuid4())
    return await foreign.fetchrow(
        INSERT, name, session_id, kind, trigger_at, seconds, "from elsewhere", "look at the mail", "pending", now, now
    )


@pytest.mark.anyio
async def test_its_insert_returns_its_own_values_and_wakes_the_worker(foreign: Any, ear: Ear) -> None:
    at = soon(HOUR)
    made = await insert(foreign, "s1", at)
    assert uuid.UUID(made["id"]).version == 4
    assert (made["session_id"], made["call_type"], made["trigger_at"]) == ("s1", "once", at)
    assert (made["status"], made["additional_context_message"]) == ("pending", "look at the mail")
    assert ear.heard() == [due(at)]
    assert recall(ear.connection, made["id"])["due_at"] == at


@pytest.mark.anyio
async def test_its_recall_runs_and_its_query_sees_the_end(foreign: Any, ear: Ear) -> None:
    made = await insert(foreign, "s1", soon(-MINUTE))
    due_now = "SELECT * FROM session_recalls WHERE status = 'pending' AND trigger_at <= now() ORDER BY trigger_at"
    assert [one["id"] for one in await foreign.fetch(due_now)] == [made["id"]]
    run = claim_one(ear.connection)
    assert await foreign.fetch(due_now) == []
    finish(ear.connection, run)
    status = "SELECT status, updated_at > created_at AS changed FROM session_recalls WHERE id = $1"
    assert tuple(await foreign.fetchrow(status, made["id"])) == ("fired", True)


@pytest.mark.anyio
async def test_its_second_pending_recall_is_refused_by_the_name_of_the_rule(foreign: Any, ear: Ear) -> None:
    await insert(foreign, "s1", soon(HOUR))
    with pytest.raises(asyncpg.UniqueViolationError) as caught:
        await insert(foreign, "s1", soon(2 * HOUR))
    assert caught.value.constraint_name == "one_pending_recall_per_session"


@pytest.mark.anyio
async def test_its_update_cancels(foreign: Any, ear: Ear) -> None:
    made = await insert(foreign, "s1", soon(HOUR))
    cancelled = await foreign.execute(
        """UPDATE session_recalls SET status = 'cancelled', updated_at = now()
        WHERE session_id = $1 AND status = 'pending'""",
        "s1",
    )
    assert cancelled == "UPDATE 1"
    assert claim(ear.connection).next_due_at is None
    assert recall(ear.connection, made["id"])["status"] == "cancelled"


@pytest.mark.anyio
async def test_its_update_cancels_a_run(foreign: Any, ear: Ear) -> None:
    made = await insert(foreign, "s1", soon(-MINUTE), seconds=60)
    run = claim_one(ear.connection)
    ear.heard()
    await foreign.execute("UPDATE session_recalls SET status = 'cancelled' WHERE id = $1", made["id"])
    assert ear.heard() == [f"stop {run['run_id']}"]
    assert finish(ear.connection, run, "interrupted")["status"] == "cancelled"


@pytest.mark.anyio
async def test_its_update_skips_an_occurrence(foreign: Any, ear: Ear) -> None:
    at = soon(HOUR)
    made = await insert(foreign, "s1", at, seconds=90)
    moved = await foreign.fetchval(
        """UPDATE session_recalls SET trigger_at = trigger_at + make_interval(secs => interval_seconds)
        WHERE session_id = $1 AND status = 'pending' AND call_type = 'recurring' RETURNING trigger_at""",
        "s1",
    )
    assert moved == at + timedelta(seconds=90)
    assert claim(ear.connection).next_due_at == moved
    assert recall(ear.connection, made["id"])["status"] == "pending"


@pytest.mark.anyio
async def test_its_update_reschedules_and_wakes_the_worker(foreign: Any, ear: Ear) -> None:
    at = soon(2 * HOUR)
    made = await insert(foreign, "s1", at)
    assert claim(ear.connection).next_due_at == at
    ear.heard()
    await foreign.execute("UPDATE session_recalls SET trigger_at = $2 WHERE id = $1", made["id"], at - HOUR)
    assert ear.heard() == [due(at - HOUR)]


@pytest.mark.anyio
async def test_its_update_marks_a_recall_as_fired(foreign: Any, ear: Ear) -> None:
    made = await insert(foreign, "s1", soon(-MINUTE))
    await foreign.execute("UPDATE session_recalls SET status = 'fired' WHERE id = $1", made["id"])
    assert claim(ear.connection).runs == []


@pytest.mark.anyio
async def test_its_update_marks_a_recurring_recall_as_fired_and_sets_the_next_time(foreign: Any, ear: Ear) -> None:
    """It fires recalls itself: status and time in one statement, as its own worker did."""
    at = soon(-MINUTE)
    made = await insert(foreign, "s1", at, seconds=3600)
    await foreign.execute(
        "UPDATE session_recalls SET trigger_at = $2, status = 'pending', updated_at = now() WHERE id = $1",
        made["id"],
        at + HOUR,
    )
    assert claim(ear.connection).next_due_at == at + HOUR


@pytest.mark.anyio
async def test_its_delete_removes_a_run(foreign: Any, ear: Ear) -> None:
    made = await insert(foreign, "s1", soon(-MINUTE))
    run = claim_one(ear.connection)
    assert await foreign.execute("DELETE FROM session_recalls WHERE id = $1", made["id"]) == "DELETE 1"
    finish(ear.connection, run, "interrupted")
    assert [one["outcome"] for one in ledger(ear.connection, made["id"])] == ["interrupted"]
    assert session(ear.connection, "s1")["run_id"] is None


@pytest.mark.anyio
async def test_its_long_serializable_transaction_wakes_the_worker_when_it_commits(foreign: Any, ear: Ear) -> None:
    at = soon(HOUR)
    async with foreign.transaction(isolation="serializable"):
        await insert(foreign, "s1", at)
        assert claim(ear.connection).next_due_at is None
        assert ear.heard() == []
    assert ear.heard() == [due(at)]


@pytest.mark.anyio
async def test_its_binary_copy_wakes_the_worker(foreign: Any, ear: Ear) -> None:
    at = soon(HOUR)
    copied = await foreign.copy_records_to_table(
        "session_recalls",
        records=[(f"s{number}", at + number * MINUTE, "go on") for number in (1, 2, 3)],
        columns=["session_id", "trigger_at", "additional_context_message"],
    )
    assert copied == "COPY 3"
    assert ear.heard() == [due(at + MINUTE)]


@pytest.mark.anyio
async def test_the_sql_functions_work_from_its_driver(foreign: Any, ear: Ear) -> None:
    at = soon(HOUR)
    made = await foreign.fetchrow(
        """SELECT * FROM schedule_recall(session_id => $1, additional_context_message => 'go on', trigger_at => $2,
            metadata => $3)""",
        "s1",
        at,
        json.dumps({"from": "asyncpg"}),
    )
    assert json.loads(made["metadata"]) == {"from": "asyncpg"}
    with pytest.raises(asyncpg.PostgresError) as caught:
        await foreign.fetchrow("SELECT * FROM schedule_recall('s1', 'again')")
    assert (caught.value.sqlstate, caught.value.detail) == ("PR001", "s1")
    assert await foreign.fetchval("SELECT cancel_recall('s1')") is True


def psql(dsn: str, command: str) -> str:
    """Run a command as an operator does."""
    program = shutil.which("psql")
    if program is None:
        pytest.skip("no psql in PATH")
    done = subprocess.run(
        [program, "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", dsn, "-c", command],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.strip()


def test_psql_is_a_producer(database: str, ear: Ear) -> None:
    at = soon(HOUR)
    name = psql(
        database,
        f"""insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)
        values ('s1', '{at.isoformat()}', 'go on') returning id""",
    )
    assert ear.heard() == [due(at)]
    psql(
        database, f"update pgrecall.session_recalls set trigger_at = trigger_at - interval '1 min' where id = '{name}'"
    )
    assert claim(ear.connection).next_due_at == at - MINUTE
    psql(database, f"update pgrecall.session_recalls set status = 'cancelled' where id = '{name}'")
    assert claim(ear.connection).next_due_at is None


def test_psql_copies_a_file_in(database: str, ear: Ear) -> None:
    at = soon(HOUR)
    program = shutil.which("psql")
    if program is None:
        pytest.skip("no psql in PATH")
    columns = "(session_id, trigger_at, additional_context_message)"
    subprocess.run(
        [program, "-X", "-q", "-d", database, "-c", f"\\copy pgrecall.session_recalls {columns} from stdin csv"],
        input=f"s1,{at.isoformat()},go on\ns2,{(at - MINUTE).isoformat()},go on\n",
        text=True,
        timeout=30,
        check=True,
    )
    assert ear.heard() in ([due(at), "due 0"], [due(at - MINUTE)])
    assert claim(ear.connection).next_due_at == at - MINUTE


def test_psycopg_copy_is_a_producer(database: str, ear: Ear) -> None:
    at = soon(-MINUTE)
    with (
        psycopg.connect(database) as producer,
        producer.cursor().copy(
            "copy pgrecall.session_recalls (session_id, trigger_at, additional_context_message) from stdin"
        ) as copy,
    ):
        for number in (1, 2, 3):
            copy.write_row((f"s{number}", at + number * timedelta(seconds=1), f"message\t{number}\n"))
    assert ear.heard() == [due(at + timedelta(seconds=1))]
    found = claim(ear.connection).runs
    assert [run["additional_context_message"] for run in found] == [f"message\t{number}\n" for number in (1, 2, 3)]


def test_a_producer_cannot_slip_code_of_its_own_into_the_triggers(database: str) -> None:
    """The triggers run with their owner's rights; a temporary type must not stand in for one of PostgreSQL's own."""
    role = f"producer_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("insert into pgrecall.sessions (id) values ('s1')")
        db.execute(sql.SQL("create role {}").format(sql.Identifier(role)))
        try:
            for grant in (
                "grant usage on schema pgrecall to {}",
                "grant insert, update, delete on pgrecall.session_recalls to {}",
                "grant select on pgrecall.session_recalls, pgrecall.sessions to {}",
            ):
                db.execute(sql.SQL(grant).format(sql.Identifier(role)))
            db.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
            for kind in ("text", "int8"):
                db.execute(
                    f"""create function pg_temp.evil(value pg_catalog.{kind}) returns boolean language plpgsql as $$
                    begin raise exception 'ran as %', current_user; end $$""".encode()
                )
                db.execute(f"create domain pg_temp.{kind} as pg_catalog.{kind} check (pg_temp.evil(value))".encode())
            db.execute(
                "insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message) "
                "values ('s1', now(), 'hello')"
            )
            db.execute("update pgrecall.session_recalls set status = 'cancelled'")
            db.execute("delete from pgrecall.session_recalls")
        finally:
            db.execute("reset role")
            db.execute(sql.SQL("drop owned by {}").format(sql.Identifier(role)))
            db.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))
