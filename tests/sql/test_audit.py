"""The audit: every way of changing by hand leaves exactly one row, and nothing that a worker does leaves any."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql
from sqltools import (
    HOUR,
    MINUTE,
    NOW,
    SECOND,
    Row,
    add,
    add_recurring,
    add_session,
    call,
    call_one,
    change,
    claim,
    claim_one,
    finish,
    ledger,
    outcomes,
    recall,
    refused,
    row,
    rows,
    set_clock,
    value,
)


@pytest.fixture(autouse=True)
def stopped_clock(request: pytest.FixtureRequest) -> None:
    if "db" in request.fixturenames:
        set_clock(request.getfixturevalue("db"), NOW)


def audit(db: psycopg.Connection) -> list[Row]:
    """All of it, oldest first."""
    return rows(db, "select * from pgrecall.audit order by id")


def delivery(db: psycopg.Connection, status: str) -> int:
    """A delivery that has this status."""
    add(db, "s1", NOW - SECOND, deliver_to="http://localhost/hook")
    run = claim_one(db)
    finish(db, run, reply="Done.")
    (taken,) = call(db, "claim_deliveries", up_to=1)
    if status != "pending":
        call(db, "end_delivery", delivery_id=taken["delivery_id"], attempt=1, status=status)
    return int(taken["delivery_id"])


def test_it_says_who_changed_what_when_and_from_where(db: psycopg.Connection) -> None:
    add_session(db, "s1", user_id="ada")
    one = add(db, "s1", NOW + HOUR, scheduled_by="audit_test_operator")
    db.execute("create role audit_test_operator")
    db.execute("grant usage on schema pgrecall to audit_test_operator")
    db.execute("grant select, update on pgrecall.session_recalls to audit_test_operator")
    db.execute("set application_name = 'psql of eve'")
    db.execute("set pgrecall.user_id = 'eve'")
    login = value(db, "select session_user")
    db.execute("set role audit_test_operator")
    change(db, one, trigger_at=NOW + 2 * HOUR, max_attempts=5)
    db.execute("reset role")
    (found,) = audit(db)
    assert found == {
        "id": found["id"],
        "changed_at": NOW,
        "role": "audit_test_operator",
        "login": login,
        "user_id": "eve",
        "application_name": "psql of eve",
        "client_address": value(db, "select inet_client_addr()"),
        "action": "update",
        "object": "session_recalls",
        "object_id": one,
        "session_id": "s1",
        "owner_id": "ada",
        "old": {"max_attempts": 3, "trigger_at": "2030-01-01T13:00:00+00:00"},
        "new": {"max_attempts": 5, "trigger_at": "2030-01-01T14:00:00+00:00"},
    }


#: Ways of changing a pending recall of the session s1: what is done, the action, the columns that are kept.
OF_A_RECALL: dict[str, tuple[LiteralString, str, set[str]]] = {
    "update of a time": (
        "update pgrecall.session_recalls set trigger_at = trigger_at + interval '1 hour' where id = 'r'",
        "update",
        {"trigger_at"},
    ),
    "update of the request": (
        "update pgrecall.session_recalls set additional_context_message = 'x', max_attempts = 9 where id = 'r'",
        "update",
        {"additional_context_message", "max_attempts"},
    ),
    "update of the status": (
        "update pgrecall.session_recalls set status = 'cancelled' where id = 'r'",
        "update",
        {"status"},
    ),
    "another service takes it": (
        "update pgrecall.session_recalls set status = 'running' where id = 'r'",
        "update",
        {"status"},
    ),
    "cancel_recall": ("select pgrecall.cancel_recall('s1')", "update", {"status"}),
    "mark_cancelled": ("select pgrecall.mark_cancelled('r')", "update", {"status"}),
    "mark_fired": ("select pgrecall.mark_fired('r')", "update", {"trigger_at"}),
    "skip_next_recall": ("select pgrecall.skip_next_recall('s1')", "update", {"trigger_at"}),
    "reschedule": ("select pgrecall.reschedule('r', '2031-01-01 00:00:00+00')", "update", {"trigger_at"}),
    "pause_recall": ("select pgrecall.pause_recall('r', 'why')", "update", {"paused_at", "pause_reason"}),
    "agent_cancel_recall": ("select pgrecall.agent_cancel_recall('s1')", "update", {"status"}),
}


@pytest.mark.parametrize("way", OF_A_RECALL)
def test_a_recall_changed_by_hand_leaves_one_row_with_the_changed_columns(db: psycopg.Connection, way: str) -> None:
    statement, action, columns = OF_A_RECALL[way]
    add_recurring(db, "s1", NOW + MINUTE, id="r")
    db.execute(statement)
    (found,) = audit(db)
    assert (found["action"], found["object"], found["object_id"], found["session_id"]) == (
        action,
        "session_recalls",
        "r",
        "s1",
    )
    assert (set(found["old"]), set(found["new"])) == (columns, columns)


def test_resuming_a_recall_leaves_a_row(db: psycopg.Connection) -> None:
    one = add(db, "s1", NOW + HOUR)
    call(db, "pause_recall", recall_id=one, reason="why")
    call(db, "resume_recall", recall_id=one)
    assert [(found["old"], found["new"]) for found in audit(db)] == [
        ({"paused_at": None, "pause_reason": None}, {"paused_at": "2030-01-01T12:00:00+00:00", "pause_reason": "why"}),
        ({"paused_at": "2030-01-01T12:00:00+00:00", "pause_reason": "why"}, {"paused_at": None, "pause_reason": None}),
    ]


@pytest.mark.parametrize("status", ["pending", "fired", "cancelled"])
def test_a_recall_deleted_by_hand_leaves_one_row_with_all_it_was(db: psycopg.Connection, status: str) -> None:
    one = add(db, "s1", NOW + HOUR, status=status, internal_comment="for eve")
    db.execute("delete from pgrecall.session_recalls")
    (found,) = audit(db)
    assert (found["action"], found["object_id"], found["new"]) == ("delete", one, None)
    assert found["old"]["status"] == status
    assert found["old"]["trigger_at"] == "2030-01-01T13:00:00+00:00"
    assert found["old"]["internal_comment"] == "7 characters"


def test_a_recall_deleted_while_it_runs_leaves_one_row(db: psycopg.Connection) -> None:
    add(db, "s1", NOW - SECOND)
    claim_one(db)
    db.execute("delete from pgrecall.session_recalls")
    assert [found["action"] for found in audit(db)] == ["delete"]


def test_a_recall_cancelled_while_it_runs_leaves_one_row_and_the_end_of_its_run_none(db: psycopg.Connection) -> None:
    one = add(db, "s1", NOW - SECOND)
    run = claim_one(db)
    call(db, "mark_cancelled", recall_id=one)
    finish(db, run, "interrupted")
    assert [found["new"] for found in audit(db)] == [{"status": "cancelled"}]


def test_truncating_the_recalls_leaves_one_row(db: psycopg.Connection) -> None:
    for number in range(3):
        add(db, f"s{number}", NOW + HOUR)
    db.execute("set constraints all immediate")
    db.execute("truncate pgrecall.session_recalls")
    assert [(found["action"], found["object"], found["object_id"]) for found in audit(db)] == [
        ("truncate", "session_recalls", None)
    ]


#: Ways of changing other things: what is done, action, table, session.
OF_OTHERS: dict[str, tuple[LiteralString, str, str, str | None]] = {
    "settings": ("update pgrecall.settings set max_runs_per_day = 5", "update", "settings", None),
    "pause_all": ("select pgrecall.pause_all('an incident')", "update", "settings", None),
    "a limit": ("update pgrecall.sessions set max_runs_per_day = 1 where id = 's1'", "update", "sessions", "s1"),
    "a zone": ("update pgrecall.sessions set time_zone = 'Europe/Paris' where id = 's1'", "update", "sessions", "s1"),
    "a URL": ("update pgrecall.sessions set deliver_to = 'http://x/' where id = 's1'", "update", "sessions", "s1"),
    "an owner": ("update pgrecall.sessions set user_id = 'eve' where id = 's1'", "update", "sessions", "s1"),
    "a session": ("delete from pgrecall.sessions where id = 's1'", "delete", "sessions", "s1"),
    "a paused session": (
        "insert into pgrecall.pauses (session_id, paused_at) values ('s1', '2030-01-01 00:00:00+00')",
        "insert",
        "pauses",
        "s1",
    ),
    "a paused user": (
        "insert into pgrecall.pauses (user_id, paused_at) values ('ada', '2030-01-01 00:00:00+00')",
        "insert",
        "pauses",
        None,
    ),
    "free_session": ("select pgrecall.free_session('held')", "free", "sessions", "held"),
}


@pytest.mark.parametrize("way", OF_OTHERS)
def test_other_changes_by_hand_leave_one_row(db: psycopg.Connection, way: str) -> None:
    statement, action, table, session_id = OF_OTHERS[way]
    add_session(db, "s1", user_id="ada")
    add(db, "s1", NOW + HOUR)
    add_session(db, "held")
    call(db, "hold_session", session_id="held", holder="chat")
    db.execute(statement)
    (found,) = audit(db)
    assert (found["action"], found["object"], found["session_id"]) == (action, table, session_id)
    assert found["owner_id"] == (None if session_id == "held" or table == "settings" else "ada")


def test_the_end_of_a_pause_leaves_a_row_unless_it_has_ended_by_itself(db: psycopg.Connection) -> None:
    db.execute(
        """insert into pgrecall.pauses (user_id, paused_at, paused_until) values
        ('ada', '2030-01-01 00:00:00+00', '2030-01-01 11:00:00+00'), ('ben', '2030-01-01 00:00:00+00', null)"""
    )
    db.execute("delete from pgrecall.pauses")
    assert [(found["action"], found["owner_id"]) for found in audit(db)] == [
        ("insert", "ada"),
        ("insert", "ben"),
        ("delete", "ben"),
    ]


@pytest.mark.parametrize(("status", "action"), [("failed", "update"), ("delivered", "update"), ("pending", "retry")])
def test_a_delivery_tried_again_by_hand_leaves_one_row(db: psycopg.Connection, status: str, action: str) -> None:
    one = delivery(db, status)
    assert audit(db) == []
    call(db, "retry_delivery", delivery_id=one)
    (found,) = audit(db)
    assert (found["action"], found["object"], found["object_id"]) == (action, "deliveries", str(one))


def test_a_delivery_sent_elsewhere_leaves_one_row(db: psycopg.Connection) -> None:
    delivery(db, "pending")
    db.execute("update pgrecall.deliveries set url = 'http://localhost/other'")
    (found,) = audit(db)
    assert (found["old"], found["new"]) == ({"url": "http://localhost/hook"}, {"url": "http://localhost/other"})


def test_nothing_is_written_where_nothing_has_changed(db: psycopg.Connection) -> None:
    one = add(db, "s1", NOW + HOUR)
    change(db, one, trigger_at=NOW + HOUR)
    db.execute("update pgrecall.sessions set deliver_to = deliver_to, metadata = '{}', active_at = now()")
    db.execute("update pgrecall.settings set max_runs_per_day = max_runs_per_day")
    call(db, "resume_all")
    call(db, "free_session", session_id="s1")
    assert audit(db) == []


def test_producers_leave_no_rows(db: psycopg.Connection) -> None:
    add_session(db, "s1")
    call(db, "schedule_recall", session_id="s1", additional_context_message="x", id="one")
    call(db, "append_messages", session_id="s1", messages='[{"role": "user", "content": "Hello."}]')
    db.execute(
        "insert into pgrecall.session_recalls (session_id, additional_context_message, status) "
        "values ('s1', 'x', 'fired')"
    )
    assert audit(db) == []


def test_a_change_that_is_rolled_back_or_vetoed_later_by_the_statement_leaves_none(db: psycopg.Connection) -> None:
    one = add(db, "s1", NOW + HOUR)
    with refused(db, "23514"):
        change(db, one, max_attempts=-1)
    assert audit(db) == []


def test_what_people_wrote_is_kept_as_a_length_only(db: psycopg.Connection) -> None:
    one = add(
        db, "s1", NOW + HOUR, additional_context_message="My health.", metadata=psycopg.types.json.Jsonb({"a": 1})
    )
    change(
        db, one, additional_context_message="My wealth!!", internal_comment="no", metadata=psycopg.types.json.Jsonb({})
    )
    db.execute("delete from pgrecall.session_recalls")
    assert next((found["old"], found["new"]) for found in audit(db)) == (
        {"additional_context_message": "10 characters", "internal_comment": None, "metadata": "not kept"},
        {"additional_context_message": "11 characters", "internal_comment": "2 characters", "metadata": "not kept"},
    )
    everything = value(db, "select string_agg(a::text, '') from pgrecall.audit as a")
    assert "health" not in everything
    assert "wealth" not in everything


# The engine


def a_success(db: psycopg.Connection) -> None:
    add(db, "s1", NOW - SECOND, deliver_to="http://localhost/hook")
    finish(db, claim_one(db), reply="Done.")
    (taken,) = call(db, "claim_deliveries", up_to=1)
    call(db, "end_delivery", delivery_id=taken["delivery_id"], attempt=1, status="pending")
    call(db, "claim_deliveries", up_to=1)
    call(db, "end_delivery", delivery_id=taken["delivery_id"], attempt=2, status="delivered")


def retries(db: psycopg.Connection) -> None:
    one = add(db, "s1", NOW - SECOND, max_attempts=3)
    for attempt in range(3):
        set_clock(db, NOW + attempt * HOUR)
        finish(db, claim_one(db), "error", error="no", retry=True)
    assert recall(db, one)["status"] == "failed"


def recurrence(db: psycopg.Connection) -> None:
    one = add_recurring(db, "s1", NOW - SECOND, pause_after_failures=1)
    finish(db, claim_one(db), usage='{"a": 1}')
    set_clock(db, NOW + 5 * MINUTE)
    finish(db, claim_one(db), "error", error="no")
    assert recall(db, one)["pause_reason"] is not None
    assert "missed" in outcomes(db, one)


def deferrals(db: psycopg.Connection) -> None:
    one = add(db, "s1", NOW - SECOND)
    call(db, "hold_session", session_id="s1", holder="chat")
    assert claim(db).deferred
    call(db, "free_session", session_id="s1", holder="chat")
    finish(db, claim_one(db))
    assert recall(db, one)["status"] == "fired"


def a_quiet_session(db: psycopg.Connection) -> None:
    one = add(db, "s1", NOW - SECOND, idle_for_seconds=60)
    call(db, "touch_session", session_id="s1")
    assert claim(db).deferred
    assert recall(db, one)["deferrals"] == 1


def left_out(db: psycopg.Connection, **columns: object) -> None:
    one = add(db, "s1", NOW - SECOND, max_defer_seconds=60, on_max_defer="skip", **columns)
    call(db, "hold_session", session_id="s1", holder="chat", lease=HOUR)
    assert claim(db).deferred
    set_clock(db, NOW + 2 * MINUTE)
    assert claim(db).deferred
    assert outcomes(db, one)[0] == "skipped"


def left_out_once(db: psycopg.Connection) -> None:
    left_out(db)


def left_out_recurring(db: psycopg.Connection) -> None:
    left_out(db, call_type="recurring", interval_seconds=60)


def an_interrupt(db: psycopg.Connection, on_interrupt: str = "retry") -> None:
    one = add(db, "s1", NOW - SECOND, on_interrupt=on_interrupt, max_defer_seconds=60, on_max_defer="skip")
    run = claim_one(db)
    call(db, "hold_session", session_id="s1", holder="chat", if_held="interrupt", lease=HOUR)
    finish(db, run, "interrupted")
    set_clock(db, NOW + 2 * MINUTE)
    claim(db)
    assert recall(db, one)["status"] == "cancelled"


def an_interrupt_that_skips(db: psycopg.Connection) -> None:
    an_interrupt(db, "skip")


def rescues(db: psycopg.Connection) -> None:
    one = add(db, "s1", NOW - SECOND, max_attempts=2)
    claim_one(db, "w1")
    set_clock(db, NOW + HOUR)
    claim_one(db, "w2")
    set_clock(db, NOW + 2 * HOUR)
    claim(db, "w3")
    assert outcomes(db, one) == ["lost", "lost"]
    assert recall(db, one)["status"] == "failed"


def a_give_back_beside_another(db: psycopg.Connection) -> None:
    one = add(db, "s1", NOW - SECOND)
    run = claim_one(db)
    add(db, "s1", NOW + HOUR, id="from inside")
    finish(db, run, "error", retry=True)
    assert recall(db, one)["status"] == "running"
    set_clock(db, NOW + MINUTE)
    finish(db, claim_one(db))
    assert recall(db, one)["status"] == "fired"


def a_release(db: psycopg.Connection) -> None:
    add(db, "s1", NOW - SECOND)
    run = claim_one(db)
    assert call_one(db, "release", worker_id="w1", run_ids=[run["run_id"]])["release"] == 1


def no_session_left(db: psycopg.Connection) -> None:
    add(db, "s1", NOW - SECOND)
    finish(db, claim_one(db), "skipped", reason="gone")


def a_daily_limit(db: psycopg.Connection) -> None:
    add_session(db, "s1")
    db.execute("insert into pgrecall.sessions (id, max_runs_per_day) values ('s2', 1)")
    add_recurring(db, "s2", NOW - SECOND)
    finish(db, claim_one(db))
    set_clock(db, NOW + HOUR)
    assert claim(db).deferred


def a_pause_of_its_session(db: psycopg.Connection) -> None:
    """What claim() will do for a paused session: the pause is in the audit, its recalls are not."""
    one = add(db, "s1", NOW - SECOND)
    for columns in ({"pause_id": 1, "paused_at": NOW}, {"pause_id": None, "paused_at": None}):
        change(db, one, **columns)


LIVES: list[Callable[[psycopg.Connection], None]] = [
    a_success,
    retries,
    recurrence,
    deferrals,
    a_quiet_session,
    left_out_once,
    left_out_recurring,
    an_interrupt,
    an_interrupt_that_skips,
    rescues,
    a_give_back_beside_another,
    a_release,
    no_session_left,
    a_daily_limit,
    a_pause_of_its_session,
]


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
def test_a_life_without_people_leaves_no_row(
    db: psycopg.Connection, life: Callable[[psycopg.Connection], None]
) -> None:
    life(db)
    assert audit(db) == []
    assert value(db, "select count(*) from pgrecall.unaudited") == 0


# Nobody gets around it

WRITER = "audit_test_writer"


@pytest.fixture
def writer(db: psycopg.Connection) -> psycopg.Connection:
    """A connection as a role that may change requests, as a producer may, and knows pgrecall's source."""
    add(db, "s1", NOW + HOUR, id="r", scheduled_by=WRITER)
    role = sql.Identifier(WRITER)
    db.execute(sql.SQL("create role {}").format(role))
    db.execute(sql.SQL("grant usage on schema pgrecall to {}").format(role))
    db.execute(sql.SQL("grant select, delete on pgrecall.session_recalls to {}").format(role))
    db.execute(
        sql.SQL(
            "grant update (trigger_at, status, additional_context_message) on pgrecall.session_recalls to {}"
        ).format(role)
    )
    return db


@pytest.mark.parametrize(
    "trick",
    [
        "set application_name = ''",
        "set pgrecall.purging = 'on'",
        "set pgrecall.user_id = ''",
        "select set_config('pgrecall.unaudited', 'true', true)",
        "create temporary table unaudited as select 'x'::text as reason; create temporary table audit (id bigint)",
        "select pg_advisory_xact_lock(8099568234633718892)",
        "set search_path = pg_temp, pgrecall",
    ],
)
def test_no_setting_and_no_temporary_object_hides_a_change(writer: psycopg.Connection, trick: LiteralString) -> None:
    writer.execute(f"set role {WRITER}".encode())
    writer.execute(trick)
    writer.execute("update pgrecall.session_recalls set additional_context_message = 'x' where id = 'r'")
    writer.execute("delete from pgrecall.session_recalls where id = 'r'")
    writer.execute("reset role")
    assert [(found["action"], found["role"]) for found in rows(writer, "select * from pgrecall.audit order by id")] == [
        ("update", WRITER),
        ("delete", WRITER),
    ]


@pytest.mark.parametrize(
    "attempt",
    [
        "insert into pgrecall.unaudited values ('me')",
        "insert into pgrecall.audit (changed_at, role, login, action, object) values (now(), 'x', 'x', 'update', 'x')",
        "update pgrecall.audit set role = 'somebody else'",
        "delete from pgrecall.audit",
        "truncate pgrecall.audit",
        "select * from pgrecall.audit",
        "select pgrecall._audit('update', 'x', 'x', 'x', '{}', '{\"a\": 1}')",
        "alter table pgrecall.session_recalls disable trigger recall_update",
        "update pgrecall.session_recalls set run_id = 1",
        "update pgrecall.session_recalls set pause_id = 1",
    ],
)
def test_whoever_may_change_recalls_may_not_touch_the_audit(writer: psycopg.Connection, attempt: LiteralString) -> None:
    writer.execute(f"set role {WRITER}".encode())
    with refused(writer, "42501"):
        writer.execute(attempt)


def test_with_replicated_sessions_changes_are_written_too(db: psycopg.Connection) -> None:
    one = add(db, "s1", NOW + HOUR)
    db.execute("set session_replication_role = replica")
    change(db, one, status="cancelled")
    db.execute("delete from pgrecall.session_recalls")
    db.execute("update pgrecall.settings set max_runs_per_day = 5")
    db.execute("reset session_replication_role")
    assert [found["action"] for found in audit(db)] == ["update", "delete", "update"]


# Reading it


def test_it_is_read_by_recall_session_user_and_time(db: psycopg.Connection) -> None:
    add_session(db, "s1", "s2", user_id="ada")
    add_session(db, "s3", user_id="ben")
    for number in (1, 2, 3):
        add(db, f"s{number}", NOW + HOUR, id=f"r{number}")
        change(db, f"r{number}", max_attempts=9)
    set_clock(db, NOW + MINUTE)
    db.execute("set pgrecall.user_id = 'ada'")
    change(db, "r3", max_attempts=8)
    db.execute("reset pgrecall.user_id")

    def read(**filters: object) -> list[str]:
        return [found["object_id"] for found in call(db, "get_audit", **filters)]

    assert read() == ["r3", "r3", "r2", "r1"]
    assert read(recall_id="r2") == ["r2"]
    assert read(session_id="s3") == ["r3", "r3"]
    assert read(user_id="ada") == ["r3", "r2", "r1"]
    assert read(user_id="ben") == ["r3", "r3"]
    assert read(since=NOW + MINUTE) == ["r3"]
    assert read(limit=1) == ["r3"]
    with refused(db, "PR005"):
        read(limit=-1)


@pytest.mark.parametrize(
    ("filter_", "index"),
    [
        ("object = 'session_recalls' and object_id = 'x'", "audit_of_object"),
        ("session_id = 'x'", "audit_of_session"),
        ("(owner_id = 'x' or user_id = 'x')", "audit_of_owner"),
    ],
)
def test_reading_it_uses_an_index(db: psycopg.Connection, filter_: LiteralString, index: str) -> None:
    db.execute(
        """insert into pgrecall.audit
            (changed_at, role, login, user_id, action, object, object_id, session_id, owner_id, old, new)
        select now(), 'x', 'x', 'u' || n % 5000, 'update', 'session_recalls', 'r' || n, 's' || n, 'u' || n % 5000,
            '{}', '{}'
        from generate_series(1, 20000) as n"""
    )
    db.execute("analyze pgrecall.audit")
    plan = rows(db, sql.SQL("explain select * from pgrecall.audit where " + filter_ + " order by id desc limit 50"))  # type: ignore[arg-type]
    assert index in "\n".join(line["QUERY PLAN"] for line in plan)


def test_a_host_trigger_that_vetoes_before_ours_leaves_no_row(db: psycopg.Connection) -> None:
    one = add(db, "s1", NOW + HOUR)
    db.execute("create function public.veto() returns trigger language plpgsql as 'begin return null; end'")
    db.execute(
        "create trigger a_veto before update on pgrecall.session_recalls for each row execute function public.veto()"
    )
    db.execute("update pgrecall.session_recalls set max_attempts = 9 where id = %s", [one])
    assert recall(db, one)["max_attempts"] == 3
    assert audit(db) == []
    assert ledger(db, one) == []


def test_a_deferred_life_keeps_its_clock(db: psycopg.Connection) -> None:
    """The row is written when the statement runs, not at the commit: SET ROLE afterwards hides nobody."""
    one = add(db, "s1", NOW + timedelta(hours=1))
    change(db, one, max_attempts=9)
    assert row(db, "select count(*) as n from pgrecall.audit")["n"] == 1
