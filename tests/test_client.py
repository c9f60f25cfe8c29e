"""The schedulers in Python: both faces of every method, joining transactions, and errors before the database."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import psycopg
import pytest
from sqltools import pretend_schema

from pgrecall import (
    InvalidRecallError,
    Recall,
    RecallExistsError,
    RecallNotFoundError,
    RecallScheduler,
    RecallStateError,
    SchemaMissingError,
    SchemaOutdatedError,
    SchemaTooNewError,
    SessionNotFoundError,
    SettingsError,
    SyncRecallScheduler,
)

pytestmark = pytest.mark.anyio

LATER = datetime(2035, 6, 1, 9, 0, tzinfo=UTC)


class Face:
    """One of the two schedulers, called the same way."""

    def __init__(self, kind: type[Any], dsn: str) -> None:
        self.scheduler = kind(dsn)

    async def __call__(self, method: str, *arguments: Any, **named: Any) -> Any:
        function: Callable[..., Any] = getattr(self.scheduler, method)
        if inspect.iscoroutinefunction(function):
            return await function(*arguments, **named)
        return await anyio.to_thread.run_sync(lambda: function(*arguments, **named))

    async def schedule(self, session_id: str = "s1", **named: Any) -> Recall:
        given = {"additional_context_message": "hello", "trigger_at": LATER, **named}
        recall = await self("schedule_recall", session_id=session_id, **given)
        assert isinstance(recall, Recall)
        return recall


@pytest.fixture(params=[RecallScheduler, SyncRecallScheduler])
async def face(request: pytest.FixtureRequest, database: str) -> Any:
    """Each scheduler in turn, on a database with the sessions s1 and s2 of the user u1 and s3 of u2."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "insert into pgrecall.sessions (id, user_id) values ('s1', 'u1'), ('s2', 'u1'), ('s3', 'u2')"
        )
    face = Face(request.param, database)
    yield face
    await face("aclose" if request.param is RecallScheduler else "close")


def test_the_two_schedulers_have_the_same_methods_parameters_and_words() -> None:
    def surface(kind: type[Any]) -> dict[str, tuple[str, str]]:
        methods = {}
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            plain = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}.get(name, name)
            signature = (
                str(inspect.signature(method)).replace("AsyncConnection", "Connection").replace("SyncHold", "Hold")
            )
            methods[plain] = (signature, inspect.getdoc(method) or "")
        return methods

    assert surface(RecallScheduler) == surface(SyncRecallScheduler)


def test_the_words_about_a_method_for_threads_are_true_for_threads() -> None:
    methods = inspect.getmembers(SyncRecallScheduler, inspect.isfunction)
    words = {name: inspect.getdoc(method) or "" for name, method in methods}
    assert {name: text for name, text in words.items() if "await" in text or "async" in text.lower()} == {}


async def test_schedule_recall_returns_the_row_with_every_field(face: Face) -> None:
    recall = await face.schedule(
        call_type="recurring",
        interval_seconds=3600,
        internal_comment="for people",
        id="my-id",
        end_at=LATER + timedelta(days=1),
        max_attempts=5,
        timeout_seconds=30,
        idempotency_key="once",
        metadata={"a": [1, None, "é"]},
    )
    assert recall == await face("get_recall", "my-id")
    assert (recall.trigger_at, recall.due_at, recall.status) == (LATER, LATER, "pending")
    assert (recall.call_type, recall.interval_seconds, recall.max_attempts) == ("recurring", 3600, 5)
    assert recall.metadata == {"a": [1, None, "é"]}
    assert recall.created_at.tzinfo is UTC


async def test_call_type_follows_from_the_schedule_and_time_from_cron(face: Face) -> None:
    assert (await face.schedule("s1")).call_type == "once"
    assert (await face.schedule("s2", interval_seconds=5)).call_type == "recurring"
    daily = await face.schedule("s3", cron="0 9 * * *", time_zone="Europe/Paris", trigger_at=None)
    assert daily.call_type == "recurring"
    assert daily.trigger_at.astimezone(UTC).minute == 0
    assert daily.trigger_at > datetime.now(UTC)


async def test_a_known_idempotency_key_returns_the_first_recall(face: Face) -> None:
    first = await face.schedule(idempotency_key="k")
    assert await face.schedule(idempotency_key="k", trigger_at=LATER + timedelta(days=1)) == first


async def test_a_second_pending_recall_of_a_session_is_refused_by_name(face: Face) -> None:
    await face.schedule()
    with pytest.raises(RecallExistsError, match="session 's1' already has a pending recall") as raised:
        await face.schedule()
    assert raised.value.session_id == "s1"
    assert "cancel_recall" in raised.value.hint


async def test_a_pending_recall_is_kept_or_replaced_if_that_is_asked_for(face: Face) -> None:
    first = await face.schedule()
    assert await face.schedule(if_exists="keep", interval_seconds=60) == first
    second = await face.schedule(if_exists="replace", interval_seconds=60)
    assert (second.call_type, (await face("get_recall", first.id)).status) == ("recurring", "cancelled")
    assert [run.reason for run in await face("get_runs", first.id)] == [f"replaced by recall {second.id}"]
    with pytest.raises(InvalidRecallError, match="if_exists is 'overwrite'"):
        await face.schedule(if_exists="overwrite")


async def test_an_unknown_session_is_refused_by_name(face: Face) -> None:
    with pytest.raises(SessionNotFoundError, match="no session with id 'nobody'") as raised:
        await face.schedule("nobody")
    assert raised.value.session_id == "nobody"


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"trigger_at": datetime(2035, 6, 1)}, "trigger_at is 2035-06-01T00:00:00, which has no time zone"),  # noqa: DTZ001
        ({"additional_context_message": " \n"}, "additional context message must not be empty"),
        ({"additional_context_message": "x" * 65537}, "must be at most 65536 characters"),
        ({"additional_context_message": None}, "additional_context_message must be given"),
        ({"additional_context_message": "a\x00b"}, "additional_context_message contains a NUL"),
        ({"additional_context_message": "\ud800"}, "contains a lone surrogate"),
        ({"call_type": "recurring"}, "recurring recall needs interval seconds or cron"),
        ({"call_type": "weekly"}, "call type must be once recurring or immediate"),
        ({"interval_seconds": 0}, "interval seconds must be greater than zero"),
        ({"interval_seconds": 2**31}, "interval_seconds is 2147483648, which is out of range"),
        (
            {"interval_seconds": 5, "cron": "* * * * *", "time_zone": "UTC"},
            "interval seconds and cron exclude each other",
        ),
        ({"cron": "61 * * * *", "time_zone": "UTC"}, "61"),
        ({"cron": "* * * * *"}, "needs a time_zone"),
        ({"cron": "* * * * *", "time_zone": "Europe/Pari"}, "Europe/Pari"),
        ({"if_exists": None}, "if_exists is NULL, but must be raise, replace or keep"),
        ({"max_attempts": 0}, "max attempts must be greater than zero"),
        ({"timeout_seconds": -1}, "timeout seconds must be greater than zero"),
        ({"id": "x" * 256}, "recall id must have 1 to 255 characters"),
        ({"metadata": {"a": object()}}, "not JSON"),
        ({"metadata": {"a": float("nan")}}, "not JSON"),
        ({"metadata": {"a": "\x00"}}, "NUL"),
        ({"metadata": {"a": "\\\x00"}}, "NUL"),
    ],
)
async def test_a_bad_argument_is_refused_with_its_name_and_nothing_is_scheduled(
    face: Face, named: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRecallError) as raised:
        await face.schedule(**named)
    assert words in str(raised.value)
    assert await face("list_recalls", is_admin=True) == []


async def test_a_text_that_speaks_of_a_nul_is_kept(face: Face) -> None:
    recall = await face.schedule(metadata={"a": "\\u0000"})
    assert recall.metadata == {"a": "\\u0000"}


async def test_cancel_skip_reschedule_and_mark(face: Face) -> None:
    assert await face("cancel_recall", "s1") is False
    once = await face.schedule()
    moved = await face("reschedule", once.id, LATER + timedelta(hours=1))
    assert moved.trigger_at == LATER + timedelta(hours=1)
    assert await face("skip_next_recall", "s1") is False
    assert await face("cancel_recall", "s1") is True
    with pytest.raises(RecallStateError, match="cancelled"):
        await face("reschedule", once.id, LATER)
    recurring = await face.schedule(interval_seconds=60)
    assert await face("skip_next_recall", "s1") is True
    assert (await face("get_recall", recurring.id)).trigger_at == LATER + timedelta(seconds=60)
    assert [run.outcome for run in await face("get_runs", recurring.id)] == ["skipped"]
    assert (await face("mark_fired", recurring.id)).trigger_at == LATER + timedelta(seconds=120)
    assert (await face("mark_cancelled", recurring.id)).status == "cancelled"
    other = await face.schedule("s2")
    assert (await face("mark_fired", other.id)).status == "fired"
    for method in ("mark_fired", "mark_cancelled", "get_recall"):
        with pytest.raises(RecallNotFoundError, match="no recall with id 'nothing'"):
            await face(method, "nothing")


async def test_lists_show_what_the_asker_may_see_newest_first(face: Face) -> None:
    mine = [await face.schedule("s1"), await face.schedule("s2", trigger_at=LATER + timedelta(days=1))]
    theirs = await face.schedule("s3", trigger_at=LATER + timedelta(days=2))
    ids = {"mine": [mine[1].id, mine[0].id], "all": [theirs.id, mine[1].id, mine[0].id]}
    assert [recall.id for recall in await face("list_recalls", user_id="u1")] == ids["mine"]
    assert [recall.id for recall in await face("list_recalls", is_admin=True)] == ids["all"]
    assert [recall.id for recall in await face("list_recalls", user_id="u1", is_admin=True)] == ids["all"]
    assert [recall.id for recall in await face("list_recalls", session_id="s3")] == [theirs.id]
    assert await face("list_recalls", session_id="s3", user_id="u1") == []
    assert [recall.id for recall in await face("list_recalls", is_admin=True, limit=1, offset=1)] == [mine[1].id]
    with pytest.raises(InvalidRecallError, match="needs a session_id, a user_id or is_admin"):
        await face("list_recalls")


async def test_what_is_pending_can_be_asked_without_claiming(face: Face) -> None:
    assert await face("get_next_trigger_at") is None
    first = await face.schedule("s1")
    await face.schedule("s2", trigger_at=LATER + timedelta(days=1))
    assert await face("get_next_trigger_at") == LATER
    assert [recall.id for recall in await face("get_pending_recalls", LATER)] == [first.id]
    assert await face("get_pending_session_ids", ["s1", "s3", "nobody"]) == {"s1"}
    assert await face("get_pending_session_ids", []) == set()


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_recall_joins_the_callers_own_transaction(database: str, end: str) -> None:
    async with RecallScheduler(database) as scheduler:
        async with await psycopg.AsyncConnection.connect(database) as connection:
            await connection.execute("create table note (text text)")
            await connection.execute("insert into pgrecall.sessions (id) values ('s1')")
            await connection.commit()
            await connection.execute("insert into note values ('mine')")
            await scheduler.schedule_recall(
                session_id="s1", additional_context_message="hello", trigger_at=LATER, connection=connection
            )
            await (connection.commit() if end == "commit" else connection.rollback())
            kept = await (await connection.execute("select count(*)::integer from note")).fetchone()
        pending = await scheduler.get_pending_session_ids(["s1"])
    assert (kept, pending) == (((1,), {"s1"}) if end == "commit" else ((0,), set()))


async def test_a_refused_recall_inside_a_savepoint_leaves_the_callers_transaction_usable(database: str) -> None:
    with psycopg.connect(database) as connection, SyncRecallScheduler(database) as scheduler:
        connection.execute("insert into pgrecall.sessions (id) values ('s1')")
        with pytest.raises(SessionNotFoundError), connection.transaction():
            scheduler.schedule_recall(session_id="nobody", additional_context_message="hello", connection=connection)
        scheduler.schedule_recall(session_id="s1", additional_context_message="hello", connection=connection)
        connection.commit()
        assert scheduler.get_pending_session_ids(["s1"]) == {"s1"}


async def test_many_tasks_and_threads_may_start_at_once_on_an_empty_database(empty_database: str) -> None:
    async with RecallScheduler(empty_database) as scheduler:
        await asyncio.gather(*(scheduler.ensure_tables() for _ in range(8)))
        assert await asyncio.gather(*(scheduler.get_next_trigger_at() for _ in range(8))) == [None] * 8
    failures: list[BaseException] = []

    def start() -> None:
        try:
            with SyncRecallScheduler(empty_database) as own:
                own.ensure_tables()
                own.get_next_trigger_at()
        except BaseException as error:  # noqa: BLE001 (told by the assertion below)
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("kind", [RecallScheduler, SyncRecallScheduler])
async def test_a_missing_schema_is_said_with_the_command_to_run(empty_database: str, kind: type[Any]) -> None:
    face = Face(kind, empty_database)
    with pytest.raises(SchemaMissingError) as raised:
        await face("get_next_trigger_at")
    assert raised.value.hint == "Run: pgrecall migrate"


@pytest.mark.parametrize("kind", [RecallScheduler, SyncRecallScheduler])
async def test_an_older_schema_is_said_with_the_command_to_run_and_brought_up_to_date(
    database: str, kind: type[Any]
) -> None:
    with psycopg.connect(database) as connection:
        pretend_schema(connection, 0, oldest_client=0)
    face = Face(kind, database)
    with pytest.raises(SchemaOutdatedError, match="is version 0, this package needs 2") as raised:
        await face("get_next_trigger_at")
    assert raised.value.hint == "Run: pgrecall migrate"
    await face("ensure_tables")
    assert await face("get_next_trigger_at") is None
    await face("aclose" if kind is RecallScheduler else "close")


async def test_a_newer_schema_is_said_and_left_alone(database: str) -> None:
    with psycopg.connect(database) as connection:
        pretend_schema(connection, 99, oldest_client=99)
    async with RecallScheduler(database) as scheduler:
        with pytest.raises(SchemaTooNewError, match="version 99"):
            await scheduler.get_next_trigger_at()
        with pytest.raises(SchemaTooNewError):
            await scheduler.ensure_tables()


async def test_a_newer_schema_that_works_with_older_clients_is_used(database: str) -> None:
    with psycopg.connect(database) as connection:
        pretend_schema(connection, 99, oldest_client=1)
    async with RecallScheduler(database) as scheduler:
        await scheduler.ensure_tables()
        assert await scheduler.get_next_trigger_at() is None


@pytest.mark.parametrize("kind", [RecallScheduler, SyncRecallScheduler])
async def test_a_prepared_statement_outlives_an_upgrade_that_adds_columns(database: str, kind: type[Any]) -> None:
    face = Face(kind, database)
    with psycopg.connect(database) as connection:
        for number in range(12):
            if number == 8:  # psycopg has prepared it by then
                connection.execute("alter table pgrecall.session_recalls add column new_one text default 'x'")
                connection.commit()
            assert await face("list_recalls", is_admin=True) == []
    await face("aclose" if kind is RecallScheduler else "close")


def test_a_dsn_that_is_none_is_refused_before_anything_connects() -> None:
    with pytest.raises(SettingsError, match="not a connection string"):
        RecallScheduler("this is no dsn")
