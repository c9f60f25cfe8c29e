"""Attacks: a user, and a producer, on what belongs to somebody else. Each is a login, as an attacker would have one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from roletools import connections, dsn_of, logins
from sqltools import HOUR, NOW, add, add_session, call, call_one, claim_one, finish, row, rows, value, wait_until

PAST = NOW.replace(year=2020)


@pytest.fixture
def owner(database: str) -> Iterator[psycopg.Connection]:
    """The owner, with a session of ann and one of bob; bob's has a recall that has run, and one that will."""
    with psycopg.connect(database, autocommit=True) as db:
        add_session(db, "of ann", user_id="ann")
        add_session(db, "of bob", "of bob too", user_id="bob")
        add(db, "of bob", PAST, id="done of bob", additional_context_message="a secret of bob")
        finish(db, claim_one(db), reply="a secret of bob", append_reply=True)
        add(db, "of bob", NOW, id="next of bob", additional_context_message="a secret of bob", idempotency_key="k")
        db.execute(
            "insert into pgrecall.pauses (user_id, paused_at, reason) values ('carl', now(), 'a secret of carl')"
        )
        yield db


@pytest.fixture
def dsns(database: str) -> Iterator[dict[str, str]]:
    """A user, a producer, another producer, and one that is both."""
    with logins(database, user="user", producer="producer", other="producer", both="user producer") as made:
        yield made


@pytest.fixture
def opened(owner: psycopg.Connection, dsns: dict[str, str]) -> Iterator[dict[str, psycopg.Connection]]:
    """Their connections."""
    with connections(dsns) as found:
        yield found


@pytest.fixture
def ann(opened: dict[str, psycopg.Connection]) -> psycopg.Connection:
    """A connection that speaks for ann."""
    opened["user"].execute("set pgrecall.user_id = 'ann'")
    return opened["user"]


def error(db: psycopg.Connection, statement: LiteralString, *arguments: object) -> tuple[object, ...]:
    """Everything that the server says about a statement that fails; the given texts are taken out of it."""
    with pytest.raises(psycopg.Error) as caught, db.transaction():
        db.execute(statement, arguments)
    diag = caught.value.diag
    said = [
        diag.sqlstate,
        diag.message_primary,
        diag.message_detail,
        diag.message_hint,
        diag.context,
        diag.constraint_name,
        diag.table_name,
        diag.column_name,
        diag.schema_name,
        diag.datatype_name,
        diag.internal_query,
    ]
    texts = [str(argument) for argument in arguments]

    def shown(part: str | None) -> str | None:
        for text in texts if part is not None else []:
            part = str(part).replace(text, "…")
        return part

    return tuple(shown(part) for part in said)


# Who is it?


@pytest.mark.parametrize(
    ("settings", "user"),
    [
        ({}, None),
        ({"pgrecall.user_id": "ann"}, "ann"),
        ({"pgrecall.user_id": ""}, None),
        ({"request.jwt.claims": '{"sub": "ann"}'}, "ann"),
        ({"request.jwt.claims": '{"sub": "ann"}', "pgrecall.user_id": "bob"}, "ann"),
        ({"request.jwt.claims": "", "pgrecall.user_id": "ann"}, "ann"),
        ({"request.jwt.claims": "{}", "pgrecall.user_id": "bob"}, None),
        ({"request.jwt.claims": '{"sub": ""}', "pgrecall.user_id": "bob"}, None),
        ({"request.jwt.claims": '{"sub": null}', "pgrecall.user_id": "bob"}, None),
        ({"request.jwt.claims": '{"sub": 7}', "pgrecall.user_id": "7"}, None),
        ({"request.jwt.claims": '{"sub": ["ann"]}'}, None),
        ({"request.jwt.claims": '["ann"]'}, None),
        ({"request.jwt.claims": '"ann"'}, None),
        ({"request.jwt.claims": "null", "request.jwt.claim.sub": "bob"}, None),
        ({"request.jwt.claim.sub": "ann"}, "ann"),
        ({"request.jwt.claim.sub": "ann", "pgrecall.user_id": "bob"}, "ann"),
    ],
)
def test_the_user_is_whom_the_gateway_names_and_else_the_setting(
    db: psycopg.Connection, settings: dict[str, str], user: str | None
) -> None:
    for name, given in settings.items():
        db.execute("select set_config(%s, %s, true)", [name, given])
    assert value(db, "select pgrecall.current_user_id()") == user


def test_claims_that_are_no_json_are_an_error_and_no_user(opened: dict[str, psycopg.Connection]) -> None:
    db = opened["user"]
    db.execute("set pgrecall.user_id = 'ann'")
    db.execute("set request.jwt.claims = 'ann'")
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        db.execute("select * from pgrecall.session_recalls")


def test_without_a_user_nothing_is_seen_or_written(opened: dict[str, psycopg.Connection]) -> None:
    db = opened["user"]
    for place in ("sessions", "session_recalls", "session_messages", "recall_runs"):
        assert value(db, f"select count(*) from (select 1 from pgrecall.{place}) as seen") == 0
    assert error(db, SCHEDULE, "of ann")[0] == "PR002"
    db.execute("update pgrecall.session_recalls set status = 'cancelled'")
    db.execute("set pgrecall.user_id = 'bob'")
    assert value(db, "select count(*) from pgrecall.session_recalls") == 2


def test_a_session_without_a_user_is_nobodys(owner: psycopg.Connection, opened: dict[str, psycopg.Connection]) -> None:
    add_session(owner, "of nobody")
    add(owner, "of nobody", NOW)
    db = opened["user"]
    for given in ("", "null", "None"):
        db.execute("select set_config('pgrecall.user_id', %s, false)", [given])
        assert rows(db, "select id from pgrecall.sessions") == []


# What a user can do

SCHEDULE: LiteralString = "select * from pgrecall.schedule_recall(session_id => %s, additional_context_message => 'x')"
INSERT: LiteralString = (
    "insert into pgrecall.session_recalls (session_id, additional_context_message) values (%s, 'x') returning *"
)


def test_a_user_sees_and_changes_what_is_theirs(owner: psycopg.Connection, ann: psycopg.Connection) -> None:
    assert [one["id"] for one in rows(ann, "select id from pgrecall.sessions")] == ["of ann"]
    made = call_one(
        ann,
        "schedule_recall",
        session_id="of ann",
        additional_context_message="x",
        interval_seconds=60,
        trigger_at=NOW,
        idempotency_key="k",
    )
    again = call_one(ann, "schedule_recall", session_id="of ann", additional_context_message="x", idempotency_key="k")
    assert again["id"] == made["id"]
    assert call_one(ann, "reschedule", recall_id=made["id"], new_trigger_at=NOW + HOUR)["trigger_at"] == NOW + HOUR
    assert value(ann, "select pgrecall.skip_next_recall('of ann')")
    assert call_one(ann, "get_recall", recall_id=made["id"])["trigger_at"] > NOW + HOUR
    (skipped,) = call(ann, "get_runs", recall_id=made["id"])
    assert (skipped["outcome"], skipped["reason"], skipped["nominal_at"]) == (
        "skipped",
        "skipped by request",
        NOW + HOUR,
    )
    assert [one["id"] for one in call(ann, "list_recalls", is_admin=True)] == [made["id"]]
    assert call_one(ann, "mark_cancelled", recall_id=made["id"])["status"] == "cancelled"
    with ann.cursor() as cursor:
        theirs = cursor.execute(INSERT, ["of ann"]).fetchone()
        assert theirs is not None
    ann.execute("update pgrecall.session_recalls set trigger_at = now() + interval '1 day' where status = 'pending'")
    assert value(ann, "select pgrecall.cancel_recall('of ann')")


def test_a_recall_that_the_host_made_in_a_users_session_is_the_users_too(
    owner: psycopg.Connection, ann: psycopg.Connection
) -> None:
    made = add(owner, "of ann", NOW)
    assert call_one(ann, "mark_cancelled", recall_id=made)["status"] == "cancelled"


def test_a_user_reads_what_was_said_but_not_what_only_the_model_is_told(
    owner: psycopg.Connection, ann: psycopg.Connection
) -> None:
    add(owner, "of ann", PAST, additional_context_message="Call Mum.")
    finish(owner, claim_one(owner), reply="Done.", append_reply=True)
    owner.execute(
        "insert into pgrecall.session_messages (session_id, role, content, in_history) "
        "values ('of ann', 'system', 'hush', false)"
    )
    said = [one["content"] for one in rows(ann, "select content from pgrecall.session_messages order by position")]
    assert said == ["[Scheduled recall] Call Mum.", "Done."]
    assert value(ann, "select reply from pgrecall.recall_runs") == "Done."
    assert error(ann, "select model_text from pgrecall.session_messages")[0] == "42501"


READS: list[LiteralString] = [
    "select * from pgrecall.session_recalls where session_id <> 'of ann'",
    "select id from pgrecall.sessions where id <> 'of ann'",
    "select content from pgrecall.session_messages",
    "select * from pgrecall.recall_runs",
    "select * from pgrecall.list_recalls(user_id => 'bob')",
    "select * from pgrecall.list_recalls(session_id => 'of bob')",
    "select * from pgrecall.list_recalls(is_admin => true)",
    "select * from pgrecall.get_pending_recalls('infinity')",
    "select * from pgrecall.get_pending_session_ids(array['of bob', 'of ann'])",
    "select * from pgrecall.get_runs('done of bob')",
    "select * from pgrecall.get_next_trigger_at() as at where at is not null",
    "update pgrecall.session_recalls set status = 'cancelled' where session_id = 'of bob' returning *",
    "select * from pgrecall.session_recalls where id = 'next of bob' for update",
    "select from pgrecall.cancel_recall('of bob') as done where done",
    "select from pgrecall.skip_next_recall('of bob') as done where done",
]


@pytest.mark.parametrize("statement", READS)
def test_nothing_of_another_user_is_read_or_changed_by(
    owner: psycopg.Connection, ann: psycopg.Connection, statement: LiteralString
) -> None:
    before = rows(owner, "select * from pgrecall.session_recalls order by id")
    assert rows(ann, statement) == []
    assert rows(owner, "select * from pgrecall.session_recalls order by id") == before


FORBIDDEN: list[LiteralString] = [
    "copy pgrecall.session_recalls from stdin",
    "update pgrecall.session_recalls set session_id = 'of ann' where id = 'next of bob'",
    "update pgrecall.session_recalls set session_id = 'of bob'",
    "update pgrecall.session_recalls set deliver_to = 'https://evil.example/'",
    "update pgrecall.session_recalls set run_id = 1",
    "update pgrecall.session_recalls set scheduled_by = current_user",
    "update pgrecall.sessions set user_id = 'ann'",
    (
        "insert into pgrecall.sessions (id, user_id) values ('of bob', 'ann') on conflict (id) do update "
        "set user_id = 'ann'"
    ),
    "insert into pgrecall.sessions (id, user_id) values ('of bob', 'ann')",
    "delete from pgrecall.sessions",
    "delete from pgrecall.session_recalls",
    "insert into pgrecall.session_messages (session_id, role, content) values ('of bob', 'user', 'x')",
    (
        "insert into pgrecall.recall_runs (recall_id, session_id, nominal_at, outcome) "
        "values ('x', 'of ann', now(), 'success')"
    ),
    "select * from pgrecall.deliveries",
    "select * from pgrecall.pauses",
    "select * from pgrecall.workers",
    "select * from pgrecall.settings",
    "select * from pgrecall.session_waiters",
    "select deliver_to from pgrecall.sessions",
    "select * from pgrecall.claim('w', 1)",
    "select pgrecall.mark_fired('next of bob')",
    "select pgrecall.hold_session('of bob', 'me')",
    "select pgrecall.append_messages('of bob', '[]')",
    "select pgrecall.agent_list_recalls('of bob')",
    "select pgrecall.grant_roles()",
    "select setval('pgrecall.armed_until', 1)",
    "alter table pgrecall.session_recalls disable row level security",
    "drop policy users_keep_to_recalls_of_their_own_sessions on pgrecall.session_recalls",
    "create trigger t after insert on pgrecall.session_recalls for each row execute function pgrecall._announce_due()",
    "create policy mine on pgrecall.session_recalls using (true)",
    "create view pgrecall.all_of_it as select * from pgrecall.session_recalls",
    "set role pgrecall_operator",
    "set session_replication_role = replica",
    "lock table pgrecall.session_recalls in access exclusive mode",
]


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_a_user_is_refused(ann: psycopg.Connection, owner: psycopg.Connection, statement: LiteralString) -> None:
    add(owner, "of ann", NOW)
    state = error(ann, statement)[0]
    assert state in ("42501", "0A000"), state  # 0A000: COPY FROM with row-level security


def test_switching_row_level_security_off_is_an_error_and_shows_nothing(ann: psycopg.Connection) -> None:
    ann.execute("set row_security = off")
    assert error(ann, "select * from pgrecall.session_recalls")[0] == "42501"
    assert error(ann, SCHEDULE, "of ann")[0] == "42501"


# Oracles: what is not there and what is somebody else's look the same


@pytest.mark.parametrize("statement", [SCHEDULE, INSERT])
def test_another_users_session_looks_like_one_that_is_not_there(
    ann: psycopg.Connection, statement: LiteralString
) -> None:
    theirs = error(ann, statement, "of bob")
    assert theirs == error(ann, statement, "of bob too") == error(ann, statement, "not there")
    assert theirs[0] == ("PR002" if statement is SCHEDULE else "42501")


def test_an_idempotency_key_of_another_user_is_no_answer(ann: psycopg.Connection) -> None:
    with_key: LiteralString = "select * from pgrecall.schedule_recall(%s, 'x', idempotency_key => 'k')"
    assert error(ann, with_key, "of bob") == error(ann, with_key, "not there")


@pytest.mark.parametrize(
    "statement",
    [
        "select * from pgrecall.get_recall(%s)",
        "select * from pgrecall.reschedule(%s, now() + interval '1 hour')",
        "select * from pgrecall.mark_cancelled(%s)",
        "select * from pgrecall._refuse_status(%s, 'moved')",
    ],
)
def test_another_users_recall_looks_like_one_that_is_not_there(
    ann: psycopg.Connection, statement: LiteralString
) -> None:
    theirs = error(ann, statement, "next of bob")
    assert theirs == error(ann, statement, "done of bob") == error(ann, statement, "not there")
    assert theirs[0] == "PR003"


def test_a_chosen_id_is_no_oracle(owner: psycopg.Connection, ann: psycopg.Connection) -> None:
    with_id: LiteralString = (
        "insert into pgrecall.session_recalls (id, session_id, additional_context_message) values (%s, 'of ann', 'x')"
    )
    theirs = error(ann, with_id, "next of bob")
    assert theirs == error(ann, with_id, "not there")
    assert "users_give_only_uuids_as_ids" in str(theirs[1])
    ann.execute(with_id, [str(uuid.uuid4())])


def test_the_rule_comes_before_the_unique_index_so_neither_error_nor_waiting_tells(
    database: str, owner: psycopg.Connection, ann: psycopg.Connection
) -> None:
    """An insertion into an index would wait for a transaction that has the same key, for as long as that takes."""
    with psycopg.connect(database) as busy:
        add(busy, "of bob too", NOW)
        ann.execute("set lock_timeout = '2s'")
        assert error(ann, INSERT, "of bob too") == error(ann, INSERT, "not there")
        assert error(ann, SCHEDULE, "of bob too") == error(ann, SCHEDULE, "not there")
        with psycopg.connect(database, autocommit=True) as other:
            # That it would wait: without the rule it does.
            other.execute("set lock_timeout = '200ms'")
            assert error(other, INSERT, "of bob too")[0] == "55P03"


def test_a_foreign_key_is_no_oracle(database: str, owner: psycopg.Connection, ann: psycopg.Connection) -> None:
    assert error(ann, "create temp table t (id text references pgrecall.sessions (id))")[0] in ("42501", "42P16")
    place = "create table mine (id text references pgrecall.sessions (id))"
    owner.execute(sql.SQL("create schema of_ann authorization {}").format(sql.Identifier(ann.info.user)))
    ann.execute("set search_path = of_ann")
    assert error(ann, place)[0] == "42501"


# Functions, operators and plans that leak


def test_a_function_that_leaks_sees_only_own_rows(owner: psycopg.Connection, ann: psycopg.Connection) -> None:
    """As cheap as can be, so that the planner would like to have it first."""
    add(owner, "of ann", NOW, additional_context_message="of ann's own")
    heard: list[str] = []
    ann.add_notice_handler(lambda notice: heard.append(str(notice.message_primary)))
    ann.execute(
        """create function pg_temp.leak(text) returns boolean language plpgsql cost 0.0000001 as
        'begin raise notice ''%'', $1; return true; end'"""
    )
    ann.execute(
        """create function pg_temp.leak_it(text, text) returns boolean language plpgsql cost 0.0000001 as
        'begin raise notice ''%'', $1; return true; end'"""
    )
    ann.execute("create operator pg_temp.=== (leftarg = text, rightarg = text, function = pg_temp.leak_it)")
    for condition in (
        "pg_temp.leak(additional_context_message)",
        "additional_context_message operator(pg_temp.===) 'x'",
        "1 / (length(additional_context_message) - 15) = 0",
    ):
        assert (
            len(rows(ann, sql.SQL("select id from pgrecall.session_recalls where {}").format(sql.SQL(condition)))) <= 1
        )
    plan = rows(ann, "explain (analyze, verbose) select * from pgrecall.session_recalls where pg_temp.leak(id)")
    assert "secret" not in str(plan)
    ann.execute("select count(*) from pgrecall.session_messages where pg_temp.leak(content)")
    ann.execute(
        "update pgrecall.session_recalls set internal_comment = 'x' where pg_temp.leak(additional_context_message)"
    )
    assert len(heard) >= 3
    assert [text for text in heard if "bob" in text] == []


def test_statistics_are_hidden(owner: psycopg.Connection, ann: psycopg.Connection) -> None:
    owner.execute("analyze pgrecall.session_recalls, pgrecall.sessions, pgrecall.session_messages")
    assert value(owner, "select count(*) from pg_stats where schemaname = 'pgrecall' and tablename = 'sessions'") > 0
    hidden = "('session_recalls', 'sessions', 'session_messages', 'recall_runs')"
    assert rows(ann, f"select * from pg_stats where schemaname = 'pgrecall' and tablename in {hidden}") == []
    assert error(ann, "select * from pg_statistic")[0] == "42501"


def test_the_statements_of_others_are_hidden(owner: psycopg.Connection, ann: psycopg.Connection) -> None:
    owner.execute("select 'a secret of bob'")
    seen = rows(ann, "select query from pg_stat_activity where usename <> current_user")
    assert "secret" not in str(seen)


def test_a_plan_made_for_one_user_or_role_serves_no_other(
    owner: psycopg.Connection, opened: dict[str, psycopg.Connection], database: str
) -> None:
    add(owner, "of ann", NOW)
    db = opened["user"]
    db.execute("prepare mine as select session_id from pgrecall.session_recalls order by session_id")
    for user, seen in (("ann", {"of ann"}), ("bob", {"of bob"}), ("", set()), ("ann", {"of ann"})):
        for _ in range(7):  # beyond the custom plans
            db.execute("select set_config('pgrecall.user_id', %s, false)", [user])
            assert {found[0] for found in db.execute("execute mine").fetchall()} == seen
    login = sql.Identifier(db.info.user)
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("prepare mine as select session_id from pgrecall.session_recalls")
        assert len(admin.execute("execute mine").fetchall()) == 3
        admin.execute(sql.SQL("set role {}").format(login))
        assert admin.execute("execute mine").fetchall() == []
        admin.execute("set pgrecall.user_id = 'ann'")
        assert admin.execute("execute mine").fetchall() == [("of ann",)]
        admin.execute("reset role")
        assert len(admin.execute("execute mine").fetchall()) == 3


def test_a_user_of_one_transaction_is_gone_in_the_next(opened: dict[str, psycopg.Connection]) -> None:
    db = opened["user"]
    with db.transaction():
        db.execute("set local pgrecall.user_id = 'bob'")
        assert value(db, "select count(*) from pgrecall.session_recalls") == 2
    assert value(db, "select count(*) from pgrecall.session_recalls") == 0


def test_whoever_sends_sql_chooses_the_user_unless_the_owner_ties_it_to_the_login(
    owner: psycopg.Connection, ann: psycopg.Connection
) -> None:
    ann.execute("set pgrecall.user_id = 'bob'")
    assert value(ann, "select count(*) from pgrecall.session_recalls") == 2
    owner.execute(
        "create policy a_login_is_its_user on pgrecall.sessions as restrictive to pgrecall_user "
        "using (user_id = session_user)"
    )
    assert value(ann, "select count(*) from pgrecall.session_recalls") == 0
    assert value(ann, "select count(*) from pgrecall.recall_runs") == 0
    assert error(ann, SCHEDULE, "of bob") == error(ann, SCHEDULE, "not there")
    owner.execute("update pgrecall.sessions set user_id = %s where id = 'of ann'", [ann.info.user])
    ann.execute("select set_config('pgrecall.user_id', session_user, false)")
    assert (
        call_one(ann, "schedule_recall", session_id="of ann", additional_context_message="x")["session_id"] == "of ann"
    )


def test_sessions_of_the_host_belong_to_the_hosts_users(owner: psycopg.Connection, ann: psycopg.Connection) -> None:
    owner.execute("create table chats (id uuid primary key default gen_random_uuid(), owner text)")
    mine = value(owner, "insert into chats (owner) values ('ann') returning id::text")
    owner.execute("insert into chats (owner) values ('bob')")
    owner.execute("select pgrecall.use_sessions_table('public.chats', user_id_column => 'owner', orphans => 'delete')")
    later = value(owner, "insert into chats (owner) values ('ann') returning id::text")
    assert {one["id"] for one in rows(ann, "select id from pgrecall.sessions")} == {mine, later}
    assert call_one(ann, "schedule_recall", session_id=mine, additional_context_message="x")["session_id"] == mine
    owner.execute("update chats set owner = 'bob' where id = %s::uuid", [mine])
    assert rows(ann, "select id from pgrecall.session_recalls") == []
    assert error(ann, SCHEDULE, mine) == error(ann, SCHEDULE, str(uuid.uuid4()))


def test_what_a_user_sees_is_found_by_an_index(owner: psycopg.Connection, ann: psycopg.Connection) -> None:
    owner.execute(
        """insert into pgrecall.sessions (id, user_id)
        select 's' || n, 'u' || n / 10 from generate_series(1, 20000) as n;
        insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message, status)
        select 's' || (n %% 20000 + 1), now() + interval '1 day' * n, 'x', 'fired' from generate_series(1, 100000) as n;
        analyze pgrecall.sessions, pgrecall.session_recalls""".replace("%%", "%")
    )
    ann.execute("set pgrecall.user_id = 'u700'")
    for statement in (
        "select * from pgrecall.session_recalls",
        "select * from pgrecall.session_recalls order by trigger_at desc limit 50",
        "select * from pgrecall.session_recalls where session_id = 's7001'",
        "update pgrecall.session_recalls set internal_comment = 'x' where session_id = 's7001'",
    ):
        plan = value(ann, f"explain (format json) {statement}")
        assert not any(node["Node Type"] == "Seq Scan" for node in nodes(plan[0]["Plan"])), plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All nodes of a plan."""
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


# Producers


def test_a_producer_schedules_in_every_way_and_sees_its_own(
    owner: psycopg.Connection, opened: dict[str, psycopg.Connection]
) -> None:
    db = opened["producer"]
    db.execute("insert into pgrecall.sessions (id, user_id, time_zone, metadata) values ('p1', 'ann', 'UTC', '{}')")
    for again in ("on conflict (id) do nothing", "on conflict do nothing"):
        db.execute(f"insert into pgrecall.sessions (id) values ('p1'), ('p2'), ('of bob') {again}".encode())
    assert {one["id"] for one in rows(db, "select id from pgrecall.sessions")} == {"p1", "p2"}
    made = row(db, INSERT, "p1")
    assert made["scheduled_by"] == db.info.user
    made = call_one(db, "schedule_recall", session_id="p2", additional_context_message="x", idempotency_key="k")
    same = call_one(db, "schedule_recall", session_id="p2", additional_context_message="x", idempotency_key="k")
    assert same == made
    kept = call_one(db, "schedule_recall", session_id="p2", additional_context_message="y", if_exists="keep")
    assert kept == made
    newer = call_one(db, "schedule_recall", session_id="p2", additional_context_message="y", if_exists="replace")
    was = call_one(db, "get_recall", recall_id=made["id"])
    assert (was["status"], was["last_error"]) == ("cancelled", f"replaced by recall {newer['id']}")
    made = newer
    db.execute(
        """insert into pgrecall.session_recalls (session_id, additional_context_message, status, created_at, updated_at)
        values ('p1', 'x', 'fired', now(), now()), ('p2', 'x', 'fired', now(), now()) on conflict do nothing"""
    )
    with db.transaction():
        db.execute(
            """create temp table incoming (session_id text, trigger_at timestamptz, message text) on commit drop"""
        )
        with db.cursor() as cursor, cursor.copy("copy incoming from stdin") as copy:
            copy.write_row(("of bob too", NOW, "x"))
        db.execute(
            """insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)
            select session_id, trigger_at, message from incoming"""
        )
    assert call_one(db, "reschedule", recall_id=made["id"], new_trigger_at=NOW)["trigger_at"] == NOW
    assert value(db, "select pgrecall.cancel_recall('p2')")
    assert len(rows(db, "select * from pgrecall.session_recalls")) == 6
    assert len(call(db, "list_recalls", is_admin=True)) == 6
    assert rows(opened["other"], "select * from pgrecall.session_recalls") == []
    assert rows(opened["other"], "select id from pgrecall.sessions") == []


@pytest.mark.parametrize(
    "statement", [one for one in READS if "get_runs" not in one and "recall_runs" not in one and "messages" not in one]
)
def test_a_producer_reads_and_changes_nothing_of_others_by(
    owner: psycopg.Connection, opened: dict[str, psycopg.Connection], statement: LiteralString
) -> None:
    before = rows(owner, "select * from pgrecall.session_recalls order by id")
    assert rows(opened["producer"], statement) == []
    assert rows(owner, "select * from pgrecall.session_recalls order by id") == before


@pytest.mark.parametrize(
    "statement",
    [
        *FORBIDDEN,
        "select * from pgrecall.recall_runs",
        "select content from pgrecall.session_messages",
        "select * from pgrecall.get_runs('done of bob')",
        (
            "insert into pgrecall.session_recalls (session_id, additional_context_message, deliver_to) "
            "values ('of bob too', 'x', 'https://evil.example/')"
        ),
        "select pgrecall.schedule_recall('of bob too', 'x', deliver_to => 'https://evil.example/')",
        (
            "insert into pgrecall.session_recalls (session_id, additional_context_message, scheduled_by) "
            "values ('of bob too', 'x', 'other')"
        ),
        (
            "insert into pgrecall.session_recalls (session_id, additional_context_message, created_by) "
            "values ('of bob too', 'x', 'agent')"
        ),
        (
            "insert into pgrecall.session_recalls (session_id, additional_context_message, not_before) "
            "values ('of bob too', 'x', now())"
        ),
        "insert into pgrecall.sessions (id, deliver_to) values ('p3', 'https://evil.example/')",
        "insert into pgrecall.sessions (id, made_by) values ('p3', 'other')",
    ],
)
def test_a_producer_is_refused(
    owner: psycopg.Connection, opened: dict[str, psycopg.Connection], statement: LiteralString
) -> None:
    if (
        statement.startswith("insert into pgrecall.sessions (id, user_id) values ('of bob', 'ann')")
        and "conflict" not in statement
    ):
        pytest.skip("a producer makes sessions; this one is there already")
    assert error(opened["producer"], statement)[0] in ("42501", "0A000")


def test_the_error_names_the_rule_about_deliver_to(opened: dict[str, psycopg.Connection]) -> None:
    said = error(
        opened["producer"],
        "select pgrecall.schedule_recall('of bob too', 'x', deliver_to => 'https://evil.example/')",
    )
    assert "producers_give_no_deliver_to" in str(said[1])


def test_a_key_that_another_producer_has_used_gives_nothing_away(opened: dict[str, psycopg.Connection]) -> None:
    """That the session has a recall is told, since a session has one; not which."""
    said = error(
        opened["producer"],
        "select pgrecall.schedule_recall('of bob', 'x', idempotency_key => 'k')",
    )
    assert "secret" not in str(said)
    assert said[2] in (None, "of bob")


@pytest.mark.parametrize("if_exists", ["keep", "replace"])
def test_a_recall_of_another_producer_is_neither_kept_nor_replaced(
    owner: psycopg.Connection, opened: dict[str, psycopg.Connection], if_exists: str
) -> None:
    before = rows(owner, "select * from pgrecall.session_recalls")
    said = error(
        opened["producer"],
        "select pgrecall.schedule_recall('of bob', 'x', if_exists => %s)",
        if_exists,
    )
    assert said[0] == "PR001"
    assert "secret" not in str(said)
    assert rows(owner, "select * from pgrecall.session_recalls") == before


@pytest.mark.parametrize("if_exists", ["raise", "keep", "replace"])
def test_another_users_session_looks_like_none_whatever_is_to_become_of_its_recall(
    ann: psycopg.Connection, if_exists: str
) -> None:
    statement: LiteralString = "select * from pgrecall.schedule_recall(%s, 'x', if_exists => %s)"
    theirs = error(ann, statement, "of bob", if_exists)
    assert theirs == error(ann, statement, "of bob too", if_exists) == error(ann, statement, "not there", if_exists)
    assert theirs[0] == "PR002"


def test_whoever_is_user_and_producer_is_narrowed_as_a_user(opened: dict[str, psycopg.Connection]) -> None:
    db = opened["both"]
    db.execute("set pgrecall.user_id = 'ann'")
    assert error(db, SCHEDULE, "of bob too") == error(db, SCHEDULE, "not there")
    made = call_one(db, "schedule_recall", session_id="of ann", additional_context_message="x")
    db.execute("set pgrecall.user_id = 'bob'")
    assert made["id"] not in {one["id"] for one in rows(db, "select id from pgrecall.session_recalls")}


def test_forging_a_skip_records_the_move_of_ones_own_recall_only(
    owner: psycopg.Connection, opened: dict[str, psycopg.Connection]
) -> None:
    db = opened["producer"]
    made = call_one(
        db, "schedule_recall", session_id="of ann", additional_context_message="x", interval_seconds=60, trigger_at=NOW
    )["id"]
    db.execute("select set_config('pgrecall.skips', 'next of bob', false)")
    db.execute("update pgrecall.session_recalls set trigger_at = trigger_at + interval '1 hour'")
    assert rows(owner, "select * from pgrecall.recall_runs where outcome = 'skipped'") == []
    db.execute("select set_config('pgrecall.skips', %s, false)", [made])
    db.execute("update pgrecall.session_recalls set trigger_at = trigger_at + interval '1 hour'")
    assert [
        one["recall_id"] for one in rows(owner, "select * from pgrecall.recall_runs where outcome = 'skipped'")
    ] == [made]


def test_functions_that_run_with_the_owners_rights_use_nothing_of_the_callers(
    owner: psycopg.Connection, database: str
) -> None:
    """Tables, functions and operators in pg_temp, or first in the search_path, of the same names."""
    with logins(database, chat="chat") as dsns, psycopg.connect(dsns["chat"], autocommit=True) as db:
        owner.execute(sql.SQL("create schema evil authorization {}").format(sql.Identifier(db.info.user)))
        db.execute("set search_path = evil, pg_temp, pg_catalog")
        for name in (
            "now()",
            "clock_timestamp()",
            "length(text)",
            "coalesce_it(text)",
            "format(text)",
            "left(text, integer)",
        ):
            db.execute(
                f"create function evil.{name} returns text language plpgsql as 'begin raise ''evil''; end'".encode()
            )
        for place in ("sessions", "session_recalls", "pg_roles", "pg_namespace", "pg_class"):
            db.execute(f"create temp table {place} (id text)".encode())
        db.execute(
            "create function evil.eq(text, text) returns boolean language plpgsql as 'begin raise ''evil''; end'"
        )
        db.execute("create operator evil.= (leftarg = text, rightarg = text, function = evil.eq)")
        assert value(db, "select held from pgrecall.hold_session('of ann', 'me')")
        assert value(db, "select pgrecall.free_session('of ann', 'me')")
        assert value(db, "select pgrecall.agent_list_recalls('of ann') ->> 'recalls'") == "[]"
        db.execute("drop schema evil cascade")


def test_a_lock_that_anybody_can_take_keeps_no_recall_waiting(
    owner: psycopg.Connection, opened: dict[str, psycopg.Connection]
) -> None:
    """The wake-up lock: producers announce without it, workers give up soon and look again."""
    opened["user"].execute("select pg_advisory_lock(8099568234633718892)")
    owner.execute("set lock_timeout = '2s'")
    made = add(owner, "of ann", PAST)
    run = claim_one(owner)
    assert run["recall_id"] == made
    finish(owner, run)
    look = call(owner, "claim", worker_id="w1", up_to=1)[0]
    assert not look["settled"]
    assert look["next_due_at"] == NOW
    opened["user"].execute("select pg_advisory_unlock_all()")
    wait_until(lambda: call(owner, "claim", worker_id="w1", up_to=1)[0]["settled"], "a settled look")


def test_the_login_of_a_test_is_no_superuser(dsns: dict[str, str], database: str) -> None:
    """Else every test above would prove nothing."""
    with psycopg.connect(dsn_of(database, str(psycopg.conninfo.conninfo_to_dict(dsns["user"])["user"]))) as db:
        assert value(db, "select rolsuper or rolbypassrls from pg_roles where rolname = session_user") is False
