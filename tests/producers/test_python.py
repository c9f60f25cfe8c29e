"""Ways of Python's drivers that others have no equal of: pipelines, executemany, COPY, naive times, ORMs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import psycopg
import psycopg2  # type: ignore[import-untyped]
import pytest
import sqlalchemy
from peers import asyncpg_arguments, environment
from producerpage import PROGRAMS
from sqlalchemy import MetaData, Table, create_engine, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqltools import HOUR, MINUTE, Ear, claim, due, recall, rows, value

from pgrecall.embedded import EmbeddedPostgres

INSERT = """insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)
    values (%s, %s, %s)"""
COPY = "copy pgrecall.session_recalls (session_id, trigger_at, additional_context_message) from stdin"


def soon(delta: timedelta) -> datetime:
    """Return a time relative to now, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0) + delta


def connect(address: str, driver: str) -> Any:
    """What SQLAlchemy connects by."""
    return (psycopg if driver == "psycopg" else psycopg2).connect(address)


# psycopg


@pytest.mark.anyio
async def test_a_pipeline_of_psycopg_wakes_once_and_when_it_commits(address: str, ear: Ear) -> None:
    at = soon(HOUR)
    async with await psycopg.AsyncConnection.connect(address) as producer:
        async with producer.pipeline():
            for number in range(1, 6):
                await producer.execute(INSERT, [f"s{number}", at + number * MINUTE, "hello"])
            await producer.execute("select")
        assert ear.heard() == []
    assert ear.heard() == [due(at + MINUTE)]


def test_executemany_returns_the_ids_and_wakes_once(address: str, ear: Ear) -> None:
    at = soon(HOUR)
    with psycopg.connect(address) as producer, producer.cursor() as cursor:
        cursor.executemany(
            INSERT + " returning id",
            [(f"s{number}", at + number * MINUTE, "hello") for number in range(1, 6)],
            returning=True,
        )
        made = [one for _ in cursor.results() for (one,) in cursor.fetchall()]
    assert [recall(ear.connection, one)["session_id"] for one in made] == ["s1", "s2", "s3", "s4", "s5"]
    assert ear.heard() == [due(at + MINUTE)]


def test_a_refused_row_of_executemany_leaves_none(address: str, ear: Ear) -> None:
    with pytest.raises(psycopg.errors.ForeignKeyViolation) as caught, psycopg.connect(address) as producer:
        producer.cursor().executemany(INSERT, [("s1", soon(HOUR), "hello"), ("nobody", soon(HOUR), "hello")])
    assert caught.value.diag.constraint_name == "session_of_recall_must_exist"
    assert value(ear.connection, "select count(*) from pgrecall.session_recalls") == 0
    assert ear.heard() == []


def test_a_binary_copy_by_way_of_a_temporary_table_wakes(address: str, ear: Ear) -> None:
    at = soon(HOUR)
    with psycopg.connect(address) as producer, producer.cursor() as cursor:
        cursor.execute("create temp table wanted (session_id text, trigger_at timestamptz, said text) on commit drop")
        with cursor.copy("copy wanted from stdin (format binary)") as copy:
            copy.set_types(["text", "timestamptz", "text"])
            for number in range(1, 6):
                copy.write_row((f"s{number}", at + number * MINUTE, "hello"))
        cursor.execute(
            """insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)
            select session_id, trigger_at, said from wanted order by trigger_at"""
        )
    assert ear.heard() == [due(at + MINUTE)]


def test_a_producer_is_told_to_use_insert_instead_of_copy(address: str, ear: Ear) -> None:
    """PostgreSQL has no COPY into a table with row-level security; the table's owner can."""
    with pytest.raises(psycopg.errors.FeatureNotSupported) as caught, psycopg.connect(address) as producer:
        producer.cursor().copy(COPY).__enter__()
    assert caught.value.diag.message_hint == "Use INSERT statements instead."


def test_values_in_the_text_of_the_statement_work(address: str, ear: Ear) -> None:
    """A client that never prepares, as behind an old pooler."""
    with psycopg.connect(address, cursor_factory=psycopg.ClientCursor, autocommit=True) as producer:
        producer.execute(INSERT, ["s1", soon(HOUR), "it's \\ 🦉"])
    assert rows(ear.connection, "select additional_context_message as said from pgrecall.session_recalls") == [
        {"said": "it's \\ 🦉"}
    ]


# Times without a zone, and without an end


@pytest.mark.parametrize("driver", [psycopg, psycopg2])
def test_a_naive_time_is_read_in_the_zone_of_the_connection(driver: Any, address: str, ear: Ear) -> None:
    """It says 12:00 and nothing else: what the page warns of."""
    connection = driver.connect(address, options="-c timezone=America/New_York")
    connection.cursor().execute(INSERT, ["s1", datetime(2031, 1, 1, 12), "hello"])  # noqa: DTZ001 (the point)
    connection.commit()
    connection.close()
    found = value(ear.connection, "select trigger_at from pgrecall.session_recalls")
    assert found == datetime(2031, 1, 1, 17, tzinfo=UTC)


@pytest.mark.anyio
async def test_asyncpg_reads_a_naive_time_in_the_zone_of_the_process(
    address: str, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await asyncpg.connect(**asyncpg_arguments(address), server_settings={"timezone": "America/New_York"})
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        await connection.execute(INSERT.replace("%s, %s, %s", "$1, $2, $3"), "s1", datetime(2031, 1, 1, 12), "hello")  # noqa: DTZ001
    finally:
        monkeypatch.undo()
        time.tzset()
        await connection.close()
    found = value(ear.connection, "select trigger_at from pgrecall.session_recalls")
    assert found == datetime(2031, 1, 1, 3, tzinfo=UTC)


@pytest.mark.parametrize("at", ["infinity", "-infinity", datetime.max.replace(tzinfo=UTC)], ids=str)
def test_a_time_without_an_end_is_refused_by_name(at: object, address: str, ear: Ear) -> None:
    with psycopg.connect(address) as producer, pytest.raises(psycopg.errors.CheckViolation) as caught:
        producer.execute(INSERT, ["s1", at, "hello"])
    assert caught.value.diag.constraint_name == "trigger_at_must_be_a_finite_time_in_the_years_1_to_9999"


# SQLAlchemy


def asyncpg_url(address: str) -> sqlalchemy.URL:
    """The address as SQLAlchemy takes it."""
    given = asyncpg_arguments(address)
    return sqlalchemy.URL.create(
        "postgresql+asyncpg", given["user"], given["password"], given["host"], int(given["port"]), given["database"]
    )


@pytest.fixture
def page() -> types.ModuleType:
    """The module with the mapped class, as the page prints it."""
    module = types.ModuleType("remind_sqlalchemy")
    exec(compile(PROGRAMS["remind_sqlalchemy.py"], "docs/producers.md", "exec", dont_inherit=True), vars(module))
    return module


@pytest.fixture(params=["psycopg", "psycopg2"])
def engine(request: pytest.FixtureRequest, address: str) -> Iterator[sqlalchemy.Engine]:
    """SQLAlchemy on either driver."""
    made = create_engine(f"postgresql+{request.param}://", creator=lambda: connect(address, request.param))
    yield made
    made.dispose()


def test_the_mapped_class_of_the_page_writes_only_what_is_set(
    page: types.ModuleType, engine: sqlalchemy.Engine, ear: Ear
) -> None:
    at = soon(HOUR)
    with Session(engine) as session, session.begin():
        one = page.Recall(session_id="s1", trigger_at=at, additional_context_message="hello")
        session.add(one)
        session.flush()
        assert ear.heard() == []
        assert (one.status, one.call_type, one.details, one.due_at) == ("pending", "once", {}, at)
    assert ear.heard() == [due(at)]


def test_an_object_can_be_moved_and_cancelled(page: types.ModuleType, engine: sqlalchemy.Engine, ear: Ear) -> None:
    at = soon(HOUR)
    with Session(engine) as session:
        one = page.Recall(session_id="s1", trigger_at=at, additional_context_message="hello")
        session.add(one)
        session.commit()
        assert claim(ear.connection).next_due_at == at
        ear.heard()
        one.trigger_at = at - MINUTE
        session.commit()
        assert ear.heard() == [due(at - MINUTE)]
        assert one.due_at == at - MINUTE
        session.execute(update(page.Recall).where(page.Recall.id == one.id).values(status="cancelled"))
        session.commit()
        assert (one.status, one.due_at) == ("cancelled", None)


def test_many_objects_are_one_statement_and_one_message(
    page: types.ModuleType, engine: sqlalchemy.Engine, ear: Ear
) -> None:
    at = soon(HOUR)
    given = [
        {"session_id": f"s{number}", "trigger_at": at + number * MINUTE, "additional_context_message": "hello"}
        for number in range(1, 6)
    ]
    with Session(engine) as session, session.begin():
        made = session.scalars(sqlalchemy.insert(page.Recall).returning(page.Recall.id), given).all()
    assert len(set(made)) == 5
    assert ear.heard() == [due(at + MINUTE)]


def test_on_conflict_leaves_the_pending_recall(page: types.ModuleType, engine: sqlalchemy.Engine, ear: Ear) -> None:
    given = {"session_id": "s1", "trigger_at": soon(HOUR), "additional_context_message": "hello"}
    statement = insert(page.Recall).values(given).on_conflict_do_nothing().returning(page.Recall.id)
    with Session(engine) as session, session.begin():
        assert session.scalar(statement) is not None
        assert session.scalar(statement) is None


def test_a_column_mapped_without_its_default_is_sent_as_null(engine: sqlalchemy.Engine, ear: Ear) -> None:
    """SQLAlchemy's ORM names every mapped column that it knows no default of: what the page warns of."""

    class Base(DeclarativeBase):
        pass

    class Recall(Base):
        __tablename__ = "session_recalls"
        __table_args__ = {"schema": "pgrecall"}  # noqa: RUF012 (SQLAlchemy's own way)
        id: Mapped[str] = mapped_column(primary_key=True)
        session_id: Mapped[str]
        additional_context_message: Mapped[str]
        call_type: Mapped[str]

    with Session(engine) as session:
        session.add(Recall(id="mine", session_id="s1", additional_context_message="hello"))
        with pytest.raises(sqlalchemy.exc.IntegrityError) as caught:
            session.flush()
    assert 'null value in column "call_type"' in str(caught.value.orig)


def test_a_reflected_table_knows_defaults_and_the_generated_column(engine: sqlalchemy.Engine, ear: Ear) -> None:
    at = soon(HOUR)
    table = Table("session_recalls", MetaData(), schema="pgrecall", autoload_with=engine)
    assert table.c.due_at.computed is not None
    with engine.begin() as connection:
        made = connection.execute(
            table.insert()
            .values(session_id="s1", trigger_at=at, additional_context_message="hello", metadata={"a": 1})
            .returning(table.c.id, table.c.due_at, table.c.metadata)
        ).one()
        assert tuple(made)[1:] == (at, {"a": 1})
        assert connection.execute(select(table.c.status).where(table.c.id == made.id)).scalar_one() == "pending"


@pytest.mark.anyio
async def test_an_async_session_works(page: types.ModuleType, address: str, ear: Ear) -> None:
    at = soon(HOUR)
    engine = create_async_engine(asyncpg_url(address))
    async with AsyncSession(engine) as session, session.begin():
        session.add(page.Recall(session_id="s1", trigger_at=at, additional_context_message="hello", details={"a": [1]}))
        await session.flush()
        assert ear.heard() == []
    await engine.dispose()
    assert ear.heard() == [due(at)]


@pytest.mark.anyio
async def test_an_error_under_the_async_session_has_the_name_of_the_rule(
    page: types.ModuleType, address: str, ear: Ear
) -> None:
    engine = create_async_engine(asyncpg_url(address))
    with pytest.raises(sqlalchemy.exc.IntegrityError) as caught:
        async with AsyncSession(engine) as session, session.begin():
            session.add(page.Recall(session_id="nobody", trigger_at=soon(HOUR), additional_context_message="hello"))
    await engine.dispose()
    assert caught.value.orig is not None
    assert caught.value.orig.__cause__.constraint_name == "session_of_recall_must_exist"  # type: ignore[union-attr]


# Django: one process, one set of settings, so the model is asked in a process of its own

DJANGO = """
import json
import remind_django as page

page.timezone.activate("UTC")
at = page.timezone.now() + page.timedelta(hours=1)
one = page.Recall(session_id="s1", trigger_at=at, additional_context_message="hello", metadata={"a": [1]})
one.save()
many = page.Recall.objects.bulk_create([
    page.Recall(id=f"mine-{n}", session_id=f"s{n}", trigger_at=at, additional_context_message="hello") for n in (2, 3)
])
again = page.Recall(session_id="s1", trigger_at=at, additional_context_message="again")
page.Recall.objects.bulk_create([again], ignore_conflicts=True)
page.Recall.objects.filter(session_id="s2", status="pending").update(status="cancelled")
one.trigger_at = at + page.timedelta(hours=1)
one.save(update_fields=["trigger_at"])
try:
    one.save()
except page.django.db.ProgrammingError as error:
    assert error.__cause__.sqlstate == "42501", error
else:
    raise AssertionError("an object was written back whole")
print(json.dumps([one.id, one.status, one.call_type, one.trigger_at.isoformat()]))
"""


def test_the_django_model_of_the_page_inserts_and_changes(address: str, ear: Ear, tmp_path: Path) -> None:
    (tmp_path / "remind_django.py").write_text(PROGRAMS["remind_django.py"], encoding="utf-8")
    (tmp_path / "try.py").write_text(DJANGO, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "try.py"],
        cwd=tmp_path, env=os.environ | environment(address), capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made, *shown, at = json.loads(done.stdout)
    assert shown == ["pending", "once"]
    assert recall(ear.connection, made)["due_at"] == datetime.fromisoformat(at)
    assert recall(ear.connection, made)["metadata"] == {"a": [1]}
    assert recall(ear.connection, "mine-2")["status"] == "cancelled"
    assert value(ear.connection, "select count(*) from pgrecall.session_recalls") == 3


# Two-phase commit


def test_a_transaction_that_announces_cannot_be_prepared_and_one_that_does_not_can() -> None:
    from pgrecall import schema

    with EmbeddedPostgres(settings={"max_prepared_transactions": "4"}) as server:
        with psycopg.connect(server.dsn) as owner:
            schema.install(owner)
            owner.execute("insert into pgrecall.sessions (id) values ('s1'), ('s2')")
        listener = Ear(server.dsn)
        with psycopg.connect(server.dsn, autocommit=True) as producer:
            producer.execute("begin")
            producer.execute(INSERT, ["s1", soon(HOUR), "hello"])
            with pytest.raises(psycopg.errors.FeatureNotSupported):
                producer.execute("prepare transaction 'loud'")
            producer.execute(INSERT, ["s1", soon(HOUR), "hello"])
            claim(listener.connection)
            producer.execute("begin")
            producer.execute(INSERT, ["s2", soon(2 * HOUR), "hello"])
            producer.execute("prepare transaction 'silent'")
            producer.execute("commit prepared 'silent'")
            found = producer.execute("select session_id from pgrecall.session_recalls order by 1").fetchall()
        listener.close()
    assert found == [("s1",), ("s2",)]
