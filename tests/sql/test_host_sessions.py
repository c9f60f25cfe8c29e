"""A sessions table of the host: its rows are the sessions, with keys of several types, roles, locks and a dump."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import psycopg
import pytest
from psycopg import sql
from sqltools import (
    MINUTE,
    NOW,
    Doing,
    Ear,
    add,
    call,
    claim,
    claim_one,
    finish,
    refused,
    row,
    rows,
    session,
    set_clock,
    value,
    wait_until_blocked,
)
from workertools import Recorder, working
from workertools import sql as producer

from pgrecall import CurrentRecall, HostTableError, PostgresSessionStore, RecallScheduler, schema
from pgrecall.calls import use_own_sessions
from pgrecall.database import run_sync, translated

needs_dump = pytest.mark.skipif(
    not (shutil.which("pg_dump") and shutil.which("pg_restore")), reason="no pg_dump in PATH"
)


@dataclass(frozen=True)
class Key:
    """A type of key: how the host declares it, two values and one that is nobody's."""

    type: str
    one: Any
    two: Any
    nobody: Any


KEYS = {
    "uuid": Key("uuid", uuid.UUID(int=1), uuid.UUID(int=2), uuid.UUID(int=9)),
    "bigint": Key("bigint", 1, 2**40, 9),
    "integer": Key("integer", 1, 2, 9),
    "smallint": Key("smallint", 1, 2, 9),
    "text": Key("text", "one", "two", "nobody"),
    "varchar": Key("varchar(36)", "one", "two", "nobody"),
    "domain": Key("public.chat_id", uuid.UUID(int=1), uuid.UUID(int=2), uuid.UUID(int=9)),
}


@pytest.fixture
def own(database: str) -> Iterator[psycopg.Connection]:
    """A connection that commits each statement."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def make(db: psycopg.Connection, key: str = "text", name: str = "public.chats") -> None:
    """Make a host's table with the two sessions of that key."""
    if key == "domain":
        db.execute("create domain public.chat_id as uuid")
    db.execute(f"create table {name} (id {KEYS[key].type} primary key, user_id text, title text, zone text)".encode())
    for one, user in ((KEYS[key].one, "ann"), (KEYS[key].two, "bob")):
        db.execute(f"insert into {name} (id, user_id) values (%s, %s)".encode(), [one, user])


def use(db: psycopg.Connection, table: str = "public.chats", **options: Any) -> int:
    (found,) = call(db, "use_sessions_table", host_table=table, **options)
    return int(found["use_sessions_table"])


def users(db: psycopg.Connection) -> dict[str, str | None]:
    return {one["id"]: one["user_id"] for one in rows(db, "select id, user_id from pgrecall.sessions order by id")}


def shape(db: psycopg.Connection) -> list[Any]:
    """Everything that the set-up makes, in both schemas."""
    return [
        rows(
            db,
            """select pg_get_triggerdef(oid) as def, tgenabled from pg_trigger
            where tgname like '%session%' and not tgisinternal order by 1""",
        ),
        rows(
            db,
            """select conname, pg_get_constraintdef(oid) as def from pg_constraint
            where conrelid = 'pgrecall.sessions'::regclass order by 1""",
        ),
        rows(db, "select indexdef from pg_indexes where schemaname = 'pgrecall' order by 1"),
        rows(
            db,
            """select attname, atttypid::regtype from pg_attribute
            where attrelid = 'pgrecall.sessions'::regclass and attnum > 0 and not attisdropped order by 1""",
        ),
        rows(db, "select * from pgrecall.host_sessions"),
        users(db),
    ]


# The rows


@pytest.mark.parametrize("key", KEYS)
def test_the_rows_of_the_hosts_table_are_the_sessions(own: psycopg.Connection, key: str) -> None:
    make(own, key)
    assert use(own) == 2
    one, two, nobody = (str(name) for name in (KEYS[key].one, KEYS[key].two, KEYS[key].nobody))
    assert users(own) == {one: "ann", two: "bob"}
    own.execute("insert into public.chats (id, user_id) values (%s, 'eve')", [KEYS[key].nobody])
    assert users(own) == {one: "ann", two: "bob", nobody: "eve"}
    for name in (one, two, nobody):
        call(own, "schedule_recall", session_id=name, additional_context_message="go on")
    own.execute("delete from public.chats where id = %s", [KEYS[key].one])
    assert users(own) == {two: "bob", nobody: "eve"}
    assert {found["session_id"] for found in call(own, "list_recalls", is_admin=True)} == {two, nobody}


@pytest.mark.parametrize("key", KEYS)
def test_the_cascade_finds_its_rows_by_an_index(own: psycopg.Connection, key: str) -> None:
    make(own, key)
    use(own)
    own.execute("set enable_seqscan = off")
    column = value(
        own,
        """select a.attname from pg_constraint as c join pg_attribute as a
            on a.attrelid = c.conrelid and a.attnum = c.conkey[1]
        where c.conname = 'session_must_be_a_row_of_the_host_table'""",
    )
    plan = own.execute(
        sql.SQL("explain delete from only pgrecall.sessions where {} = {}").format(
            sql.Identifier(column), sql.Literal(KEYS[key].one)
        )
    ).fetchall()
    assert any("Index" in line[0] for line in plan), plan


def test_list_recalls_follows_a_change_of_owner(own: psycopg.Connection) -> None:
    make(own, "uuid")
    use(own)
    one = str(KEYS["uuid"].one)
    call(own, "schedule_recall", session_id=one, additional_context_message="go on")
    assert [found["session_id"] for found in call(own, "list_recalls", user_id="ann")] == [one]
    own.execute("update public.chats set user_id = 'eve' where user_id = 'ann'")
    assert call(own, "list_recalls", user_id="ann") == []
    assert [found["session_id"] for found in call(own, "list_recalls", user_id="eve")] == [one]
    own.execute("update public.chats set user_id = null where user_id = 'eve'")
    assert call(own, "list_recalls", user_id="eve") == []


def test_an_update_of_other_columns_writes_nothing_of_ours(own: psycopg.Connection) -> None:
    make(own)
    use(own)
    before = rows(own, "select ctid, xmin from pgrecall.sessions order by id")
    own.execute("update public.chats set title = 'new', user_id = user_id")
    assert rows(own, "select ctid, xmin from pgrecall.sessions order by id") == before


def test_an_owner_that_is_no_text_is_its_text(own: psycopg.Connection) -> None:
    own.execute("create table public.chats (id text primary key, owner_id bigint)")
    own.execute("insert into public.chats values ('one', 7)")
    use(own, user_id_column="owner_id")
    own.execute("insert into public.chats values ('two', 8)")
    assert users(own) == {"one": "7", "two": "8"}


def test_without_an_owner_column_the_owner_is_free(own: psycopg.Connection) -> None:
    own.execute("insert into pgrecall.sessions (id, user_id) values ('one', 'set by hand')")
    make(own)
    use(own, user_id_column=None)
    own.execute("update public.chats set user_id = 'eve'")
    assert users(own) == {"one": "set by hand", "two": None}
    own.execute("update pgrecall.sessions set user_id = 'by hand, too' where id = 'two'")
    own.execute("insert into public.chats (id) values ('two') on conflict (id) do update set title = 'again'")
    assert users(own)["two"] == "by hand, too"


def test_the_time_zone_is_followed_and_an_unknown_one_is_no_reason_to_refuse_the_host(own: psycopg.Connection) -> None:
    make(own)
    own.execute("update public.chats set zone = 'Europe/Paris' where id = 'one'")
    own.execute("update public.chats set zone = 'Mars/Phobos' where id = 'two'")
    use(own, time_zone_column="zone")
    assert [session(own, name)["time_zone"] for name in ("one", "two")] == ["Europe/Paris", None]
    own.execute("update public.chats set zone = case id when 'one' then 'nonsense' else 'Asia/Tokyo' end")
    own.execute("insert into public.chats (id, zone) values ('three', 'UTC')")
    zones = [session(own, name)["time_zone"] for name in ("one", "two", "three")]
    assert zones == [None, "Asia/Tokyo", "UTC"]


def test_sessions_that_were_there_keep_their_recalls_and_history(own: psycopg.Connection) -> None:
    kept = add(own, str(KEYS["uuid"].one), NOW)
    call(own, "append_messages", session_id=str(KEYS["uuid"].one), messages='[{"role": "user", "content": "hi"}]')
    make(own, "uuid")
    assert use(own) == 1
    assert [found["id"] for found in call(own, "list_recalls", user_id="ann")] == [kept]
    assert value(own, "select content from pgrecall.session_messages") == "hi"


def test_deleting_a_session_in_a_run_stops_the_run_and_leaves_nothing(database: str) -> None:
    ear = Ear(database)
    db = ear.connection
    make(db, "bigint")
    use(db)
    set_clock(db, NOW)
    add(db, "1", NOW)
    run = claim_one(db)
    ear.heard()
    db.execute("delete from public.chats where id = 1")
    assert ear.heard() == [f"stop {run['run_id']}"]
    assert finish(db, run)["accepted"] is False
    for table in ("session_recalls", "session_messages", "recall_runs"):
        assert rows(db, sql.SQL("select from pgrecall.{}").format(sql.Identifier(table))) == [], table
    ear.close()


def test_a_deletion_and_a_finish_of_the_same_session_do_not_deadlock(database: str, own: psycopg.Connection) -> None:
    """The deletion must not have the session while it waits for the recall that finish() has."""
    make(own)
    use(own)
    set_clock(own, NOW)
    add(own, "one", NOW)
    run = claim_one(own)
    with psycopg.connect(database) as worker, psycopg.connect(database, autocommit=True) as host:
        worker.execute("select from pgrecall.session_recalls where id = %s for no key update", [run["recall_id"]])
        deleting = Doing(lambda: host.execute("delete from public.chats where id = 'one'"))
        wait_until_blocked(own, host.info.backend_pid)
        worker.execute("select from pgrecall.sessions where id = 'one' for no key update nowait")
        worker.commit()
        deleting.result()
    assert users(own) == {"two": "bob"}


def test_truncating_the_hosts_table_with_cascade_empties_ours(own: psycopg.Connection) -> None:
    make(own)
    use(own)
    add(own, "one", NOW)
    own.execute("truncate public.chats cascade")
    assert users(own) == {}
    assert call(own, "list_recalls", is_admin=True) == []


def test_the_id_of_a_session_cannot_change(own: psycopg.Connection) -> None:
    make(own, "bigint")
    use(own)
    with refused(own, "PR008") as caught:
        own.execute("update public.chats set id = 5 where id = 1")
    assert caught.value.diag.message_primary == (
        "the id of session '1' cannot change: its recalls, messages and runs know it by its id"
    )
    own.execute("update public.chats set id = id, title = 'same id'")


def test_rows_that_come_by_replication_are_sessions(own: psycopg.Connection) -> None:
    make(own)
    use(own)
    own.execute("set session_replication_role = replica")
    own.execute("insert into public.chats values ('three', 'eve')")
    own.execute("update public.chats set user_id = 'zoe' where id = 'one'")
    assert users(own) == {"one": "zoe", "three": "eve", "two": "bob"}


def test_a_row_without_an_id_is_no_session(own: psycopg.Connection) -> None:
    own.execute("create table public.chats (id text unique, user_id text)")
    own.execute("insert into public.chats values (null, 'ann')")
    assert use(own) == 0
    own.execute("insert into public.chats values (null, 'bob'), ('one', 'eve')")
    assert users(own) == {"one": "eve"}


def test_a_partitioned_table_works_if_it_is_partitioned_by_its_id(own: psycopg.Connection) -> None:
    own.execute("create table public.chats (id uuid primary key, user_id text) partition by hash (id)")
    for part in range(2):
        own.execute(
            f"create table public.chats_{part} partition of public.chats for values with (modulus 2, remainder {part})"
        )
    own.execute("insert into public.chats select gen_random_uuid(), 'ann' from generate_series(1, 4)")
    assert use(own) == 4
    own.execute("insert into public.chats select gen_random_uuid(), 'bob' from generate_series(1, 4)")
    own.execute("update public.chats set user_id = 'eve' where user_id = 'ann'")
    assert sorted(users(own).values(), key=str) == ["bob"] * 4 + ["eve"] * 4
    own.execute("delete from public.chats where user_id = 'bob'")
    assert list(users(own).values()) == ["eve"] * 4


def test_names_that_need_quotes_work(own: psycopg.Connection) -> None:
    own.execute("""create schema "My ""App" """)
    own.execute("""create table "My ""App"."Chat Sessions" ("The Id" uuid primary key, "it's" text)""")
    table = '"My ""App"."Chat Sessions"'
    options = {"id_column": "The Id", "user_id_column": "it's"}
    assert use(own, table, **options) == 0
    own.execute(f"insert into {table} values (%s, 'ann')".encode(), [uuid.UUID(int=1)])
    own.execute(f"""update {table} set "it's" = 'bob'""".encode())
    assert users(own) == {str(uuid.UUID(int=1)): "bob"}
    with refused(own, "PR008"):
        own.execute(f"""update {table} set "The Id" = gen_random_uuid()""".encode())
    own.execute(f"delete from {table}".encode())
    assert users(own) == {}
    assert call(own, "use_own_sessions") == [{"use_own_sessions": True}]


# Again, another table, back


@pytest.mark.parametrize("key", ["text", "uuid"])
def test_the_same_call_again_changes_nothing_and_waits_for_nobody(
    database: str, own: psycopg.Connection, key: str
) -> None:
    make(own, key)
    use(own)
    before = shape(own)
    with psycopg.connect(database) as other:
        other.execute("select from public.chats for update")
        other.execute("update pgrecall.sessions set metadata = '{}'")
        own.execute("set statement_timeout = '5s'")
        assert use(own) == 0
        other.rollback()
    assert shape(own) == before


def test_migrating_again_leaves_the_set_up_alone(database: str, own: psycopg.Connection) -> None:
    make(own, "uuid")
    use(own)
    before = shape(own)
    with psycopg.connect(database) as installer:
        assert schema.install(installer) == 0
    assert shape(own) == before
    own.execute("insert into public.chats values (gen_random_uuid(), 'eve')")
    assert "eve" in users(own).values()


def test_other_columns_of_the_same_table_replace_the_former_ones(own: psycopg.Connection) -> None:
    make(own)
    use(own)
    own.execute("update public.chats set title = 'owner of ' || id")
    assert use(own, user_id_column="title", time_zone_column="zone") == 0
    assert users(own) == {"one": "owner of one", "two": "owner of two"}
    own.execute("update public.chats set user_id = 'nobody', zone = 'UTC'")
    assert users(own) == {"one": "owner of one", "two": "owner of two"}
    assert session(own, "one")["time_zone"] == "UTC"


def test_another_table_is_refused_until_sessions_are_our_own_again(own: psycopg.Connection) -> None:
    make(own)
    make(own, "text", "public.other")
    untouched = shape(own)
    use(own)
    before = shape(own)
    with refused(own, "PR008") as caught:
        use(own, "public.other")
    assert caught.value.diag.message_primary == "sessions are the rows of public.chats already"
    assert "use_own_sessions" in (caught.value.diag.message_hint or "")
    assert shape(own) == before
    assert run_sync(own, use_own_sessions()) == [True]
    assert run_sync(own, use_own_sessions()) == [False]
    assert shape(own)[:-1] == untouched[:-1]
    assert users(own) == {"one": "ann", "two": "bob"}
    assert use(own, "public.other") == 0


@pytest.mark.parametrize("key", ["text", "bigint"])
def test_our_own_sessions_keep_what_they_have_and_follow_nobody(own: psycopg.Connection, key: str) -> None:
    make(own, key)
    use(own)
    one = str(KEYS[key].one)
    kept = add(own, one, NOW)
    call(own, "use_own_sessions")
    own.execute("delete from public.chats")
    own.execute("insert into pgrecall.sessions (id) values ('free again')")
    assert [found["id"] for found in call(own, "list_recalls", session_id=one)] == [kept]


def test_a_table_that_was_dropped_can_be_replaced(own: psycopg.Connection) -> None:
    make(own)
    use(own)
    own.execute("drop table public.chats cascade")
    make(own, "text", "public.other")
    assert use(own, "public.other") == 0
    own.execute("insert into public.other values ('three', 'eve')")
    assert users(own)["three"] == "eve"


def test_the_table_may_be_renamed_and_a_renamed_column_is_named_with_what_to_do(own: psycopg.Connection) -> None:
    make(own)
    use(own)
    own.execute("alter table public.chats rename to talks")
    own.execute("insert into public.talks values ('three', 'eve')")
    own.execute("alter table public.talks rename column user_id to owner")
    with refused(own, "PR008") as caught:
        own.execute("insert into public.talks values ('four', 'zoe')")
    assert "use_sessions_table() again" in (caught.value.diag.message_hint or "")
    use(own, "public.talks", user_id_column="owner")
    own.execute("insert into public.talks values ('four', 'zoe')")
    assert users(own) == {"four": "zoe", "one": "ann", "three": "eve", "two": "bob"}


def test_two_calls_at_once_do_it_once(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        make(db, "uuid")

    def once() -> int:
        with psycopg.connect(database, autocommit=True) as db:
            return use(db)

    both = [Doing(once) for _ in range(2)]
    assert sorted(done.result() for done in both) == [0, 2]


# What it refuses


def test_sessions_that_the_table_does_not_have_are_named_and_counted(own: psycopg.Connection) -> None:
    for number in range(7):
        add(own, f"orphan {number}", NOW)
    make(own, "uuid")
    before = shape(own)
    with refused(own, "PR008") as caught:
        use(own)
    assert caught.value.diag.message_primary == (
        "7 session(s) of pgrecall are not in public.chats: 'orphan 0', 'orphan 1', 'orphan 2', 'orphan 3', 'orphan 4' …"
    )
    assert "orphans => 'delete'" in (caught.value.diag.message_hint or "")
    assert shape(own) == before
    assert use(own, orphans="delete") == 2
    assert call(own, "list_recalls", is_admin=True) == []
    assert len(users(own)) == 2


def test_a_uuid_in_another_spelling_is_an_orphan(own: psycopg.Connection) -> None:
    """Otherwise one row of the host would have two sessions."""
    name = "ABCDEF00-0000-0000-0000-000000000000"
    add(own, name, NOW)
    make(own, "uuid")
    own.execute("insert into public.chats values (%s)", [name])
    with refused(own, "PR008") as caught:
        use(own)
    assert name in (caught.value.diag.message_primary or "")


@pytest.mark.parametrize(("key", "other"), [("uuid", "ABCDEF00-0000-0000-0000-000000000000"), ("bigint", "007")])
def test_a_session_cannot_get_another_spelling_of_its_id(own: psycopg.Connection, key: str, other: str) -> None:
    """The host's id would no longer find it, and its triggers would make a second one."""
    make(own, key)
    own.execute("insert into public.chats (id) values (%s)", [other])
    use(own)
    with refused(own, "23514") as caught:
        own.execute("update pgrecall.sessions set id = %s where host_id::text = lower(ltrim(%s, '0'))", [other, other])
    assert caught.value.diag.constraint_name == "id_must_be_written_as_the_host_table_writes_it"


WRONG: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    "a view": ("create view public.chats as select 'a' as id, 'u' as user_id", {}, "PR008", "a view", "stored in"),
    "no unique id": (
        "create table public.chats (id text, user_id text)", {}, "PR008", "id of public.chats is not unique",
        "alter table public.chats add unique (id);",
    ),
    "an id that is unique for some rows only": (
        """create table public.chats (id text, user_id text);
        create unique index on public.chats (id) where user_id is not null""",
        {}, "PR008", "not unique", "add unique",
    ),
    "an id that is unique with another column": (
        "create table public.chats (id text, user_id text, primary key (id, user_id))",
        {}, "PR008", "not unique", "add unique",
    ),
    "an unfit type": (
        "create table public.chats (id numeric primary key, user_id text)", {}, "PR008", "of type numeric", "uuid",
    ),
    "a type of somebody": (
        "create type public.who as enum ('a'); create table public.chats (id text primary key, user_id public.who)",
        {}, "PR008", "user_id of public.chats is of type public.who", "text",
    ),
    "no such owner column": (
        "create table public.chats (id text primary key)", {}, "PR005", "public.chats has no column 'user_id'",
        "user_id_column names it, in the spelling of the table; null: there is none.",
    ),
    "no such id column": (
        "create table public.chats (id text primary key)", {"id_column": "ID"}, "PR005", "no column 'ID'", "id_column",
    ),
    "no id column": (
        "create table public.chats (id text primary key)", {"id_column": None}, "PR005", "no column NULL", "id_column",
    ),
    "no such zone column": (
        "create table public.chats (id text primary key, user_id text)", {"time_zone_column": "tz"},
        "PR005", "no column 'tz'", "time_zone_column",
    ),
    "an unlogged table": (
        "create unlogged table public.chats (id text primary key, user_id text)", {}, "PR008", "unlogged", "set logged",
    ),
    "a partition": (
        """create table public.whole (id text primary key, user_id text) partition by hash (id);
        create table public.chats partition of public.whole for values with (modulus 1, remainder 0)""",
        {}, "PR008", "one partition of public.whole", "partitioned table",
    ),
    "something else than refuse or delete": (
        "create table public.chats (id text primary key, user_id text)", {"orphans": "keep"},
        "PR005", "orphans is 'keep'", "does not have",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_it_refuses_with_what_to_do(own: psycopg.Connection, case: str) -> None:
    made, options, sqlstate, message, hint = WRONG[case]
    own.execute(made.encode())
    before = shape(own)
    with refused(own, sqlstate) as caught:
        use(own, **options)
    assert message in (caught.value.diag.message_primary or "")
    assert hint in (caught.value.diag.message_hint or "")
    assert shape(own) == before


def test_it_refuses_a_table_of_pgrecall_and_none(own: psycopg.Connection) -> None:
    with refused(own, "PR005"):
        use(own, "pgrecall.sessions", id_column="id")
    with refused(own, "PR005"):
        own.execute("select pgrecall.use_sessions_table(null)")
    with refused(own, "PR005"):
        own.execute("select pgrecall.use_sessions_table(1::oid::regclass)")


def test_an_id_that_is_too_long_for_a_session_is_refused_by_name(own: psycopg.Connection) -> None:
    make(own)
    own.execute("insert into public.chats values (repeat('x', 256), 'ann')")
    with refused(own, "23514") as caught:
        use(own)
    assert caught.value.diag.constraint_name == "session_id_must_have_1_to_255_characters"


@pytest.mark.parametrize("key", ["uuid", "text"])
def test_a_session_made_beside_the_table_is_refused_with_where_to_make_it(own: psycopg.Connection, key: str) -> None:
    make(own, key)
    use(own)
    for name in ("nobody", str(KEYS[key].nobody)):
        with refused(own, "PR008") as caught:
            own.execute("insert into pgrecall.sessions (id) values (%s)", [name])
        assert caught.value.diag.message_primary == (
            f"session '{name}' cannot be made here: sessions are the rows of public.chats"
        )
    with pytest.raises(HostTableError, match="cannot be made here") as ours:
        _insert(own)
    assert "Insert it there (column id)" in ours.value.hint
    # One that is there is no news.
    own.execute("insert into pgrecall.sessions (id) values (%s) on conflict do nothing", [str(KEYS[key].one)])


def _insert(db: psycopg.Connection) -> None:
    with translated():
        db.execute("insert into pgrecall.sessions (id) values ('x')")


def test_a_trigger_of_somebody_else_cannot_make_a_session_beside_the_table(own: psycopg.Connection) -> None:
    make(own)
    use(own)
    own.execute(
        """create table public.logins (name text);
        create function public.on_login() returns trigger language plpgsql as
        $$ begin insert into pgrecall.sessions (id) values (new.name); return new; end $$;
        create trigger on_login before insert on public.logins for each row execute function public.on_login()"""
    )
    with refused(own, "23503"):
        own.execute("insert into public.logins values ('nobody')")


def test_a_recall_for_an_unknown_session_says_where_sessions_are_made(own: psycopg.Connection) -> None:
    make(own, "uuid")
    use(own)
    with refused(own, "PR002") as caught:
        call(own, "schedule_recall", session_id="nobody", additional_context_message="go on")
    assert caught.value.diag.message_hint == "Sessions are the rows of public.chats: insert it there first."
    with refused(own, "23503"):
        own.execute("insert into pgrecall.session_recalls (session_id, additional_context_message) values ('no', 'x')")


# Roles


@contextmanager
def role(dsn: str) -> Iterator[str]:
    """A role without rights; what it owns goes with it."""
    name = f"recall_host_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create role {}").format(sql.Identifier(name)))
        try:
            yield name
        finally:
            admin.execute(sql.SQL("drop owned by {} cascade").format(sql.Identifier(name)))
            admin.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def become(db: psycopg.Connection, name: str) -> None:
    db.execute(sql.SQL("set session authorization {}").format(sql.Identifier(name)))


def test_the_hosts_role_needs_no_right_on_pgrecall(database: str, own: psycopg.Connection) -> None:
    make(own, "uuid")
    use(own)
    call(own, "schedule_recall", session_id=str(KEYS["uuid"].one), additional_context_message="go on")
    with role(database) as name:
        own.execute(f"grant insert, select, update, delete on public.chats to {name}".encode())
        with psycopg.connect(database, autocommit=True) as host:
            become(host, name)
            host.execute("insert into public.chats values (%s, 'eve')", [KEYS["uuid"].nobody])
            host.execute("update public.chats set user_id = 'zoe' where user_id = 'bob'")
            host.execute("delete from public.chats where user_id = 'ann'")
            with refused(host, "42501"):
                host.execute("select from pgrecall.sessions")
    assert users(own) == {str(KEYS["uuid"].two): "zoe", str(KEYS["uuid"].nobody): "eve"}


def test_nobody_else_can_make_sessions_through_the_trigger_function(database: str, own: psycopg.Connection) -> None:
    with role(database) as name:
        own.execute(f"grant usage on schema pgrecall to {name}".encode())
        with psycopg.connect(database, autocommit=True) as host:
            become(host, name)
            host.execute("create temporary table mine (id text, user_id text)")
            with refused(host, "42501"):
                host.execute(
                    """create trigger forge after insert on mine for each row
                    execute function pgrecall._follow_host_session('id', 'user_id', '')"""
                )


@contextmanager
def installer(dsn: str) -> Iterator[psycopg.Connection]:
    """A connection of a role that owns pgrecall and nothing else, not a superuser."""
    with role(dsn) as name, psycopg.connect(dsn, autocommit=True) as db:
        db.execute(f"grant create on database {db.info.dbname} to {name}".encode())
        become(db, name)
        schema.install(db)
        yield db


def test_a_lacking_privilege_is_named_with_its_grant(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as admin, installer(empty_database) as db:
        make(admin, "uuid")
        name = value(db, "select current_user")
        for privilege in ("select", "trigger", "references"):
            with refused(db, "PR008") as caught:
                use(db)
            hint = f"grant {privilege} on public.chats to {name};"
            assert hint in (caught.value.diag.message_hint or "")
            admin.execute(hint.encode())
        assert use(db) == 2
        admin.execute("insert into public.chats values (%s, 'eve')", [KEYS["uuid"].nobody])
        assert "eve" in users(admin).values()
        with refused(db, "PR008") as caught:
            call(db, "use_own_sessions")
        assert "only the owner of public.chats" in (caught.value.diag.message_primary or "")
        assert call(admin, "use_own_sessions") == [{"use_own_sessions": True}]


def test_only_the_owner_of_pgrecall_can_change_what_sessions_are(database: str, own: psycopg.Connection) -> None:
    with role(database) as name:
        own.execute(
            f"grant usage on schema pgrecall to {name}; grant all on all tables in schema pgrecall to {name};"
            f" grant execute on all routines in schema pgrecall to {name}".encode()
        )
        own.execute(f"grant create on schema public to {name}".encode())
        with psycopg.connect(database, autocommit=True) as host:
            become(host, name)
            make(host)
            with refused(host, "PR008") as caught:
                use(host)
    assert caught.value.diag.message_primary == "only the owner of pgrecall's tables can let them follow another one"


def test_rows_that_are_hidden_from_the_caller_are_not_taken_for_missing(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as admin, installer(empty_database) as db:
        make(admin)
        admin.execute("alter table public.chats enable row level security")
        admin.execute("grant all on public.chats to public")
        with refused(db, "PR008") as caught:
            use(db)
        assert "row-level security hides rows of public.chats" in (caught.value.diag.message_primary or "")


# Locks and dumps


def test_a_row_whose_transaction_is_open_is_waited_for_and_not_missed(database: str, own: psycopg.Connection) -> None:
    make(own)
    with psycopg.connect(database) as host, psycopg.connect(database, autocommit=True) as other:
        host.execute("insert into public.chats values ('three', 'eve')")
        using = Doing(lambda: use(other))
        wait_until_blocked(own, other.info.backend_pid)
        host.commit()
        assert using.result() == 3


def test_writers_of_the_hosts_table_wait_and_readers_do_not(database: str, own: psycopg.Connection) -> None:
    make(own)
    with psycopg.connect(database) as setting, psycopg.connect(database, autocommit=True) as host:
        use(setting)
        assert value(own, "select count(*) from public.chats") == 2
        inserting = Doing(lambda: host.execute("insert into public.chats values ('three', 'eve')"))
        wait_until_blocked(own, host.info.backend_pid)
        setting.commit()
        inserting.result()
    assert users(own) == {"one": "ann", "three": "eve", "two": "bob"}


def test_a_transaction_older_than_the_set_up_follows_it_too(database: str, own: psycopg.Connection) -> None:
    make(own)
    with psycopg.connect(database) as host:
        host.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        host.execute("select 1")  # takes the snapshot, and no lock
        use(own)
        host.execute("insert into public.chats values ('three', 'eve')")
        host.commit()
    assert users(own)["three"] == "eve"


def test_if_it_fails_nothing_of_it_stays(own: psycopg.Connection) -> None:
    make(own, "uuid")
    before = shape(own)
    with own.transaction(force_rollback=True):
        use(own)
        assert shape(own) != before
    assert shape(own) == before


@needs_dump
@pytest.mark.parametrize("key", ["text", "uuid"])
def test_a_dump_restores_it(database: str, empty_database: str, own: psycopg.Connection, server: Any, key: str) -> None:
    version = subprocess.run(["pg_dump", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.split()[2].split(".")[0]) < server.version // 10000:
        pytest.skip(f"{version.strip()} cannot read a newer server")
    make(own, key)
    use(own, time_zone_column="zone")
    add(own, str(KEYS[key].one), NOW)
    before = shape(own)
    dump = subprocess.run(["pg_dump", "-Fc", "-d", database], capture_output=True, check=True).stdout
    subprocess.run(["pg_restore", "--exit-on-error", "-d", empty_database], input=dump, check=True)
    with psycopg.connect(empty_database, autocommit=True) as restored:
        assert shape(restored) == before
        restored.execute("insert into public.chats (id, user_id) values (%s, 'eve')", [KEYS[key].nobody])
        assert users(restored)[str(KEYS[key].nobody)] == "eve"
        restored.execute("delete from public.chats")
        assert users(restored) == {}
        assert use(restored, time_zone_column="zone") == 0


def test_claims_go_on_beside_the_change(database: str, own: psycopg.Connection) -> None:
    """A worker's connection has prepared statements and plans of the table as it was."""
    make(own, "uuid")
    set_clock(own, NOW)
    with psycopg.connect(database, autocommit=True, prepare_threshold=0) as worker:
        own.execute("insert into pgrecall.sessions (id) values (%s)", [str(KEYS["uuid"].one)])
        for change in (lambda: use(own), lambda: call(own, "use_own_sessions"), lambda: use(own)):
            add(own, str(KEYS["uuid"].one), NOW)
            assert finish(worker, claim_one(worker))["status"] == "fired"
            change()
        set_clock(own, NOW + MINUTE)
        assert claim(worker).runs == []
    assert row(own, "select count(*) as runs from pgrecall.recall_runs")["runs"] == 3


# Holds, and a worker


def test_a_chat_holds_a_session_of_the_host(own: psycopg.Connection) -> None:
    make(own, "uuid")
    use(own)
    one = str(KEYS["uuid"].one)
    set_clock(own, NOW)
    call(own, "hold_session", session_id=one, holder="web-1")
    recall_id = add(own, one, NOW)
    assert [found["recall_id"] for found in claim(own).deferred] == [recall_id]
    own.execute("update public.chats set user_id = 'eve' where user_id = 'ann'")
    (held,) = call(own, "get_holds")
    assert (held["held_session_id"], held["holder"]) == (one, "web-1")
    assert call(own, "free_session", session_id=one, holder="web-1") == [{"free_session": True}]
    assert claim_one(own)["user_id"] == "eve"
    with refused(own, "PR002") as caught:
        call(own, "hold_session", session_id=str(KEYS["uuid"].nobody), holder="web-1")
    assert "rows of public.chats" in (caught.value.diag.message_hint or "")


def test_a_held_session_that_the_host_deletes_is_held_by_nobody(own: psycopg.Connection) -> None:
    make(own)
    use(own)
    call(own, "hold_session", session_id="one", holder="web-1")
    own.execute("delete from public.chats where id = 'one'")
    assert call(own, "get_holds") == []
    assert call(own, "renew_hold", session_id="one", holder="web-1") == [{"renew_hold": False}]


@pytest.mark.anyio
async def test_a_worker_fires_a_recall_of_a_session_that_the_host_has_just_made(database: str) -> None:
    agent = Recorder()
    async with working(database, agent), producer(database) as ask:
        await ask("create table public.chats (id uuid primary key default gen_random_uuid(), user_id text)")
        await ask.asleep()
        await ask("select pgrecall.use_sessions_table('public.chats')")
        # The worker, with its connections from before, goes on.
        async with ask.connection.transaction():
            (session_id,) = await ask("insert into public.chats (user_id) values ('ann') returning id::text")
            recall_id = await ask.recall(session_id)
        await agent.count(1)
        await ask.ended(recall_id)
        assert agent.runs[0].session_id == session_id
        history = await ask("select role from pgrecall.session_messages order by position")
        assert history == ["system", "assistant"]
        await ask("delete from public.chats")
        assert await ask("select count(*) from pgrecall.session_messages") == [0]


@pytest.mark.anyio
async def test_a_session_that_the_host_deletes_stops_its_run(database: str) -> None:
    stopped = anyio.Event()

    async def wait(recall: CurrentRecall) -> str:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()
        return recall.recall_id

    agent = Recorder(then=wait)
    async with working(database, agent), producer(database) as ask:
        await ask("create table public.chats (id bigint primary key, user_id text)")
        await ask("select pgrecall.use_sessions_table('public.chats')")
        await ask("insert into public.chats values (7, 'ann')")
        await ask.recall("7")
        await agent.count(1)
        await ask("delete from public.chats where id = 7")
        with anyio.fail_after(10):
            await stopped.wait()


@pytest.mark.anyio
async def test_the_default_store_finds_sessions_of_the_host_and_makes_none(database: str) -> None:
    async with producer(database) as ask, RecallScheduler(database) as scheduler:
        await ask("create table public.chats (id uuid primary key, user_id text)")
        await ask("select pgrecall.use_sessions_table('public.chats')")
        known, unknown = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
        await ask("insert into public.chats values (%s, 'ann')", known)
        store = PostgresSessionStore(scheduler)
        assert (await store.create(known, user_id="bob")).user_id == "ann"
        with pytest.raises(HostTableError, match=r"sessions are the rows of public\.chats"):
            await store.create(unknown)
