"""Taking over the pending recalls of another table: which, in what form, and who waits for whom meanwhile."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqltools import (
    HOUR,
    NOW,
    Doing,
    Ear,
    Row,
    add,
    call,
    claim,
    refused,
    row,
    rows,
    set_clock,
    value,
    wait_until_blocked,
)
from workertools import Recorder, working
from workertools import sql as producer

KEYS: dict[str, tuple[Any, ...]] = {
    "uuid": tuple(uuid.UUID(int=number) for number in range(1, 9)),
    "text": tuple(f"r{number}" for number in range(1, 9)),
    "bigint": tuple(range(1, 9)),
}


@pytest.fixture
def own(database: str) -> Iterator[psycopg.Connection]:
    """A connection that commits each statement."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def make(db: psycopg.Connection, ids: str = "text", sessions: str = "text", more: str = "") -> None:
    """Make the table of an application that had recalls of its own."""
    db.execute("create schema if not exists legacy")
    db.execute(
        f"""create table legacy.session_recalls (
            id {ids} primary key,
            session_id {sessions} not null,
            call_type text not null default 'once',
            trigger_at timestamptz not null,
            interval_seconds integer,
            internal_comment text,
            additional_context_message text not null,
            status text not null default 'pending' check (status in ('pending', 'fired', 'cancelled')),
            created_at timestamptz not null default now(){more}
        )""".encode()
    )


def old(db: psycopg.Connection, id: object = "r1", session_id: object = "s1", **columns: object) -> None:
    """Insert a row of the old table."""
    given = {"id": id, "session_id": session_id, "trigger_at": NOW, "additional_context_message": "go on"} | columns
    db.execute(
        sql.SQL("insert into legacy.session_recalls ({}) values ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, given)), sql.SQL(", ").join(map(sql.Placeholder, given))
        ),
        given,
    )


def adopt(db: psycopg.Connection, **options: object) -> list[Row]:
    return call(db, "adopt_recalls", old_table="legacy.session_recalls", **options)


def left(found: list[Row]) -> dict[str, str]:
    return {one["recall_id"]: one["reason"] for one in found if not one["adopted"]}


def statuses(db: psycopg.Connection) -> dict[str, str]:
    return {one["id"]: one["status"] for one in rows(db, "select id::text, status::text from legacy.session_recalls")}


def ours(db: psycopg.Connection) -> list[str]:
    return [one["id"] for one in rows(db, "select id from pgrecall.session_recalls order by id")]


@pytest.mark.parametrize("sessions", KEYS)
@pytest.mark.parametrize("ids", KEYS)
def test_a_pending_recall_comes_as_it_is(own: psycopg.Connection, ids: str, sessions: str) -> None:
    make(own, ids, sessions)
    created = datetime(2029, 1, 1, tzinfo=UTC)
    old(
        own, KEYS[ids][0], KEYS[sessions][0], trigger_at=NOW + HOUR, call_type="recurring", interval_seconds=90,
        internal_comment="for us", additional_context_message="Look after it.", created_at=created,
    )  # fmt: skip
    recall_id, session_id = str(KEYS[ids][0]), str(KEYS[sessions][0])
    assert adopt(own) == [
        {
            "recall_id": recall_id,
            "session_id": session_id,
            "trigger_at": NOW + HOUR,
            "adopted": True,
            "reason": None,
        }
    ]
    taken = row(own, "select * from pgrecall.session_recalls")
    assert {name: taken[name] for name in ("id", "session_id", "call_type", "status", "created_at", "metadata")} == {
        "id": recall_id,
        "session_id": session_id,
        "call_type": "recurring",
        "status": "pending",
        "created_at": created,
        "metadata": {"adopted_from": "legacy.session_recalls"},
    }
    assert (taken["trigger_at"], taken["interval_seconds"]) == (NOW + HOUR, 90)
    assert (taken["internal_comment"], taken["additional_context_message"]) == ("for us", "Look after it.")
    assert rows(own, "select id, user_id from pgrecall.sessions") == [{"id": session_id, "user_id": None}]
    assert statuses(own) == {recall_id: "cancelled"}


def test_what_has_ended_stays_where_it_is(own: psycopg.Connection) -> None:
    make(own)
    old(own, "r1", "s1", status="fired")
    old(own, "r2", "s2", status="cancelled")
    assert adopt(own) == []
    assert (ours(own), statuses(own)) == ([], {"r1": "fired", "r2": "cancelled"})
    assert value(own, "select count(*) from pgrecall.sessions") == 0


def test_a_session_that_is_there_keeps_its_owner(own: psycopg.Connection) -> None:
    own.execute("insert into pgrecall.sessions (id, user_id) values ('s1', 'ann')")
    make(own)
    old(own)
    adopt(own)
    assert [one["id"] for one in call(own, "list_recalls", user_id="ann")] == ["r1"]


def test_what_is_overdue_is_announced_and_fires_at_once(database: str) -> None:
    ear = Ear(database)
    db = ear.connection
    make(db)
    old(db, trigger_at=NOW - HOUR)
    adopt(db)
    assert len(ear.heard()) == 1
    set_clock(db, NOW)
    assert claim(db).recall_ids == ["r1"]
    ear.close()


def test_only_the_needed_columns_are_needed(own: psycopg.Connection) -> None:
    own.execute(
        """create table public.todo (id bigint, session_id text, trigger_at timestamptz, status text,
        additional_context_message varchar(100))"""
    )
    own.execute("insert into public.todo values (1, 's1', now(), 'pending', 'go on')")
    assert [one["adopted"] for one in call(own, "adopt_recalls", old_table="public.todo")] == [True]
    assert row(own, "select call_type, interval_seconds, internal_comment from pgrecall.session_recalls") == {
        "call_type": "once",
        "interval_seconds": None,
        "internal_comment": None,
    }


def test_an_enum_and_quoted_names_are_read_like_any_other(own: psycopg.Connection) -> None:
    own.execute("""create type public.state as enum ('pending', 'fired', 'taken')""")
    own.execute(
        """create table public."Old ""Recalls" (id bigint primary key, session_id text, trigger_at timestamptz,
        status public.state, additional_context_message text)"""
    )
    own.execute("""insert into public."Old ""Recalls" values (1, 's1', now(), 'pending', 'go on')""")
    (found,) = call(own, "adopt_recalls", old_table='public."Old ""Recalls"', mark_as="taken")
    assert found["adopted"]
    assert value(own, """select status::text from public."Old ""Recalls" """) == "taken"


def test_times_without_a_zone_need_one(own: psycopg.Connection) -> None:
    own.execute(
        """create table legacy_recalls (id text, session_id text, trigger_at timestamp, status text,
        additional_context_message text, created_at timestamp)"""
    )
    own.execute("insert into legacy_recalls values ('r1', 's1', '2030-07-01 12:00', 'pending', 'go on', '2030-01-01')")
    with refused(own, "PR008") as caught:
        call(own, "adopt_recalls", old_table="legacy_recalls")
    assert "naive_times_in => 'UTC'" in (caught.value.diag.message_hint or "")
    own.execute("set timezone = 'Asia/Tokyo'")
    (found,) = call(own, "adopt_recalls", old_table="legacy_recalls", naive_times_in="Europe/Paris")
    assert found["trigger_at"] == datetime(2030, 7, 1, 10, tzinfo=UTC)
    assert value(own, "select created_at from pgrecall.session_recalls") == datetime(2029, 12, 31, 23, tzinfo=UTC)


# Again


def test_again_takes_what_has_come_since_and_nothing_twice(own: psycopg.Connection) -> None:
    make(own)
    old(own, "r1", "s1")
    assert [one["recall_id"] for one in adopt(own)] == ["r1"]
    old(own, "r2", "s2")
    assert [one["recall_id"] for one in adopt(own)] == ["r2"]
    assert adopt(own) == []
    assert ours(own) == ["r1", "r2"]


def test_a_second_recall_of_a_session_waits_for_the_first(own: psycopg.Connection) -> None:
    make(own)
    old(own, "r1", "s1", trigger_at=NOW + HOUR)
    old(own, "r2", "s1", trigger_at=NOW)
    assert left(adopt(own)) == {"r1": "its session has a pending recall already"}
    assert statuses(own) == {"r1": "pending", "r2": "cancelled"}
    assert left(adopt(own)) == {"r1": "its session has a pending recall already"}
    call(own, "mark_fired", recall_id="r2")
    assert left(adopt(own)) == {}
    assert statuses(own) == {"r1": "cancelled", "r2": "cancelled"}


def test_a_row_that_the_old_application_sets_back_is_reported_and_not_fired_twice(own: psycopg.Connection) -> None:
    make(own)
    old(own)
    adopt(own)
    call(own, "mark_fired", recall_id="r1")
    own.execute("update legacy.session_recalls set status = 'pending'")
    assert left(adopt(own)) == {"r1": "there is a recall with this id already"}


UNFIT: dict[str, tuple[Row, str]] = {
    "an empty message": ({"additional_context_message": " "}, "additional context message must not be empty"),
    "a huge message": (
        {"additional_context_message": "x" * 65537},
        "additional context message must be at most 65536 characters",
    ),
    "recurring without an interval": ({"call_type": "recurring"}, "recurring recall needs interval seconds or cron"),
    "an interval below zero": (
        {"call_type": "recurring", "interval_seconds": -5},
        "interval seconds must be greater than zero",
    ),
    "an infinite time": (
        {"trigger_at": "infinity"},
        "trigger at must be a finite time in the years 1 to 9999",
    ),
    "an unknown type": ({"call_type": "sometimes"}, "call type must be once recurring or immediate"),
    "an id that is too long": ({"id": "x" * 256}, "recall id must have 1 to 255 characters"),
    "a session that is too long": ({"session_id": "x" * 256}, "session id must have 1 to 255 characters"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_row_that_does_not_fit_stays_with_its_reason_and_holds_up_no_other(
    own: psycopg.Connection, case: str
) -> None:
    changed, reason = UNFIT[case]
    make(own)
    old(own, "good 1", "s8", trigger_at=NOW - HOUR)
    old(own, **({"id": "bad", "session_id": "s1"} | changed))
    old(own, "good 2", "s9", trigger_at=NOW + HOUR)
    assert list(left(adopt(own)).values()) == [reason]
    assert ours(own) == ["good 1", "good 2"]
    assert sorted(statuses(own).values()) == ["cancelled", "cancelled", "pending"]
    assert value(own, "select count(*) from pgrecall.sessions") == 2


def test_nulls_and_numbers_that_do_not_fit_are_named(own: psycopg.Connection) -> None:
    own.execute(
        """create table legacy_recalls (id text, session_id text, trigger_at timestamptz, status text,
        additional_context_message text, interval_seconds numeric)"""
    )
    own.execute(
        """insert into legacy_recalls values
        (null, 's1', now(), 'pending', 'x', null), ('r2', null, now(), 'pending', 'x', null),
        ('r3', 's3', null, 'pending', 'x', null), ('r4', 's4', now(), 'pending', null, null),
        ('r5', 's5', now(), 'pending', 'x', 1.5)"""
    )
    assert left(call(own, "adopt_recalls", old_table="legacy_recalls")) == {
        None: "id is null",
        "r2": "session_id is null",
        "r3": "trigger_at is null",
        "r4": "additional_context_message is null",
        "r5": 'invalid input syntax for type integer: "1.5"',
    }
    assert ours(own) == []


def test_with_a_sessions_table_of_the_host_only_its_sessions_are_taken(own: psycopg.Connection) -> None:
    make(own, "bigint", "uuid")
    own.execute("create table public.chats (id uuid primary key, user_id text)")
    own.execute("insert into public.chats values (%s, 'ann')", [KEYS["uuid"][0]])
    call(own, "use_sessions_table", host_table="public.chats")
    old(own, 1, KEYS["uuid"][0])
    old(own, 2, KEYS["uuid"][1])
    assert left(adopt(own)) == {
        "2": f"session '{KEYS['uuid'][1]}' cannot be made here: sessions are the rows of public.chats"
    }
    assert [one["id"] for one in call(own, "list_recalls", user_id="ann")] == ["1"]


# What it refuses: all of it or nothing


def test_a_table_that_does_not_allow_the_mark_is_left_alone(own: psycopg.Connection) -> None:
    make(own)
    old(own)
    with refused(own, "PR008") as caught:
        adopt(own, mark_as="taken over")
    assert "legacy.session_recalls refuses to mark what was adopted as 'taken over'" in str(caught.value)
    assert (ours(own), statuses(own)) == ([], {"r1": "pending"})
    assert value(own, "select count(*) from pgrecall.sessions") == 0


@pytest.mark.parametrize("keeps", ["return null;", "new.status := old.status; return new;"])
def test_a_trigger_that_keeps_a_row_pending_stops_all_of_it(own: psycopg.Connection, keeps: str) -> None:
    make(own)
    old(own, "r1", "s1")
    old(own, "r2", "s2")
    own.execute(
        f"""create function legacy.keep() returns trigger language plpgsql as $$ begin {keeps} end $$;
        create trigger keep before update on legacy.session_recalls
        for each row when (old.id = 'r2') execute function legacy.keep()""".encode()
    )
    with refused(own, "PR008") as caught:
        adopt(own)
    assert caught.value.diag.message_primary == (
        "of 2 rows to adopt, 1 could be marked as 'cancelled' in legacy.session_recalls"
    )
    assert (ours(own), statuses(own)) == ([], {"r1": "pending", "r2": "pending"})


def test_a_row_whose_id_another_one_has_is_not_lost(own: psycopg.Connection) -> None:
    own.execute(
        """create table legacy_recalls (id text, session_id text, trigger_at timestamptz, status text,
        additional_context_message text)"""
    )
    own.execute(
        "insert into legacy_recalls values ('r1', 's1', now(), 'pending', 'x'), ('r1', 's2', now(), 'pending', 'y')"
    )
    with refused(own, "PR008") as caught:
        call(own, "adopt_recalls", old_table="legacy_recalls")
    assert "its ids are not unique" in (caught.value.diag.message_hint or "")
    assert ours(own) == []


def test_missing_columns_are_named(own: psycopg.Connection) -> None:
    own.execute("create table legacy_recalls (id text, session_id text, status text)")
    with refused(own, "PR008") as caught:
        call(own, "adopt_recalls", old_table="legacy_recalls")
    assert "has no column trigger_at, additional_context_message" in (caught.value.diag.message_primary or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mark_as": "pending"}, "mark_as is 'pending'"),
        ({"mark_as": None}, "mark_as is NULL"),
        ({"naive_times_in": "CET"}, "naive_times_in: 'CET'"),
    ],
)
def test_arguments_that_make_no_sense_are_named(own: psycopg.Connection, options: Row, message: str) -> None:
    make(own)
    with refused(own, "PR005") as caught:
        adopt(own, **options)
    assert message in (caught.value.diag.message_primary or "")


def test_our_own_table_and_a_view_are_no_old_tables(own: psycopg.Connection) -> None:
    own.execute("create view legacy_recalls as select * from pgrecall.session_recalls")
    with refused(own, "PR005"):
        call(own, "adopt_recalls", old_table="pgrecall.session_recalls")
    with refused(own, "PR008"):
        call(own, "adopt_recalls", old_table="legacy_recalls")


def test_an_adoption_that_is_rolled_back_leaves_everything_and_wakes_nobody(database: str) -> None:
    ear = Ear(database)
    db = ear.connection
    make(db)
    old(db)
    with db.transaction(force_rollback=True):
        assert left(adopt(db)) == {}
        assert ours(db) == ["r1"]
    assert (ours(db), statuses(db), ear.heard()) == ([], {"r1": "pending"}, [])
    ear.close()


# Beside others


def test_two_adoptions_at_once_take_each_row_once(database: str, own: psycopg.Connection) -> None:
    make(own)
    for number in range(300):
        old(own, f"r{number}", f"s{number}")

    def once() -> list[Row]:
        with psycopg.connect(database, autocommit=True) as db:
            return adopt(db)

    taken = [one["recall_id"] for done in [Doing(once) for _ in range(3)] for one in done.result()]
    assert sorted(taken) == sorted(statuses(own)) == ours(own)
    assert set(statuses(own).values()) == {"cancelled"}


def test_a_row_that_the_old_scheduler_is_firing_is_waited_for_and_left_to_it(
    database: str, own: psycopg.Connection
) -> None:
    make(own)
    old(own, "r1", "s1")
    old(own, "r2", "s2")
    with psycopg.connect(database) as loop, psycopg.connect(database, autocommit=True) as other:
        loop.execute(
            """select from legacy.session_recalls where status = 'pending' and id = 'r1'
            for update skip locked"""
        )
        adopting = Doing(lambda: adopt(other))
        wait_until_blocked(own, other.info.backend_pid)
        loop.execute("update legacy.session_recalls set status = 'fired' where id = 'r1'")
        loop.commit()
        assert [one["recall_id"] for one in adopting.result()] == ["r2"]
    assert statuses(own) == {"r1": "fired", "r2": "cancelled"}


def test_a_scheduler_that_comes_during_the_adoption_finds_nothing_to_fire(
    database: str, own: psycopg.Connection
) -> None:
    make(own)
    old(own)
    with psycopg.connect(database) as adopting, psycopg.connect(database, autocommit=True) as loop:
        adopt(adopting)
        assert statuses(own) == {"r1": "pending"}, "readers go on"
        looking = Doing(
            lambda: loop.execute(
                "select id from legacy.session_recalls where status = 'pending' for update skip locked"
            ).fetchall()
        )
        wait_until_blocked(own, loop.info.backend_pid)
        adopting.commit()
        assert looking.result() == []


def test_an_insert_during_the_adoption_waits_and_is_for_the_next_one(database: str, own: psycopg.Connection) -> None:
    make(own)
    old(own, "r1", "s1")
    with psycopg.connect(database) as adopting, psycopg.connect(database, autocommit=True) as application:
        adopt(adopting)
        inserting = Doing(lambda: old(application, "r2", "s2"))
        wait_until_blocked(own, application.info.backend_pid)
        adopting.commit()
        inserting.result()
    assert statuses(own) == {"r1": "cancelled", "r2": "pending"}
    assert [one["recall_id"] for one in adopt(own)] == ["r2"]


def test_an_adoption_that_is_killed_leaves_nothing(database: str, own: psycopg.Connection) -> None:
    make(own)
    old(own)
    victim = psycopg.connect(database)
    adopt(victim)
    own.execute("select pg_terminate_backend(%s, 5000)", [victim.info.backend_pid])
    victim.close()
    assert (ours(own), statuses(own)) == ([], {"r1": "pending"})
    assert [one["recall_id"] for one in adopt(own)] == ["r1"]


def test_a_lock_that_is_not_to_be_had_ends_it_and_is_no_reason_of_a_row(database: str, own: psycopg.Connection) -> None:
    make(own)
    old(own)
    with psycopg.connect(database) as other:
        add(other, "s1", NOW)  # not committed: our insert must wait for it
        own.execute("set lock_timeout = '100ms'")
        with refused(own, "55P03"):
            adopt(own)
        other.rollback()
    assert (ours(own), statuses(own)) == ([], {"r1": "pending"})


@pytest.mark.anyio
async def test_a_worker_fires_what_is_adopted_while_it_sleeps(database: str) -> None:
    agent = Recorder()
    async with working(database, agent), producer(database) as ask:
        await ask(
            """create table public.old_recalls (id uuid primary key default gen_random_uuid(), session_id bigint,
            trigger_at timestamptz, status text default 'pending', additional_context_message text)"""
        )
        await ask(
            """insert into public.old_recalls (session_id, trigger_at, additional_context_message) values
            (7, now() - interval '1 day', 'long ago'), (8, now() + interval '1 second', 'soon')"""
        )
        await ask.asleep()
        assert await ask("select adopted from pgrecall.adopt_recalls('public.old_recalls')") == [True, True]
        await agent.count(2)
        assert [(run.session_id, run.additional_context_message) for run in agent.runs] == [
            ("7", "long ago"),
            ("8", "soon"),
        ]
