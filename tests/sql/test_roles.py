"""Who may do what: every routine, column and sequence is tried as every role, by a login that is only in that one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
from psycopg import sql
from roletools import ROLES, connections, dsn_of, logins, must_make_roles
from servers import Server, ServerUnavailable, old_server, with_database
from sqltools import NOW, Doing, Row, add, add_session, call_one, claim, claim_one, finish, row, rows, value

from pgrecall import schema

#: Every routine: with whose rights it runs (a definer's, or its caller's), and who may call it.
ROUTINES = """
_after_change_by_hand               definer  -
_after_recall_delete                definer  -
_after_session_limit_update         definer  -
_after_session_owner_update         definer  -
_after_settings_update              definer  -
_after_user_message                 definer  -
_agent_end                          invoker  -
_agent_run                          invoker  -
_agent_settings                     invoker  -
_agent_time                         invoker  -
_agent_view                         invoker  -
_agent_zone                         invoker  -
_announce_due                       definer  -
_append_outcome                     invoker  -
_assign                             invoker  -
_audit                              invoker  -
_audit_shown                        invoker  -
_before_host_session_change         definer  -
_before_recall_update               definer  -
_before_recalls_truncate            definer  -
_before_session_insert              definer  -
_before_settings_removal            invoker  -
_caller                             invoker  -
_check_after_stop                   invoker  -
_check_hold                         invoker  -
_check_host_column                  invoker  -
_check_host_table                   invoker  -
_check_isolation                    invoker  -
_check_lease                        invoker  -
_check_pause                        invoker  -
_cron_field                         invoker  everybody
_cron_fields                        invoker  everybody
_cron_gap_seconds                   invoker  -
_cron_next_local                    invoker  everybody
_delivery_delay                     invoker  -
_end_dead_worker                    definer  worker
_end_lost_run                       invoker  -
_end_occurrence                     invoker  -
_ended_at                           invoker  -
_expire_leases                      invoker  -
_follow_host_session                definer  -
_forget_reports                     invoker  -
_free_lifelines                     definer  worker
_free_session                       invoker  -
_full_reason                        invoker  -
_full_until                         invoker  -
_give_back                          invoker  -
_give_hold                          invoker  -
_host_column_type                   invoker  -
_incarnation                        invoker  -
_is_about_a_row                     invoker  -
_is_held                            invoker  operator observer
_is_open                            invoker  -
_is_operator                        definer  -
_is_paused                          invoker  -
_is_right                           invoker  everybody
_is_suspect                         invoker  -
_let_go                             invoker  -
_line_until                         invoker  -
_lock_holders                       invoker  -
_lock_for_peek                      invoker  -
_make_due                           invoker  -
_make_way                           invoker  producer operator user
_missing_recall                     invoker  producer operator user
_missing_session                    definer  producer operator user
_model_text                         invoker  -
_next_occurrence                    invoker  producer operator user
_now                                invoker  operator observer
_pause                              invoker  -
_pause_due                          invoker  -
_pause_text                         invoker  -
_paused_by                          invoker  -
_purge_audit                        invoker  -
_purge_deliveries                   invoker  -
_purge_messages                     invoker  -
_purge_recalls                      invoker  -
_purge_runs                         invoker  -
_queue_delivery                     invoker  -
_record_deleted                     invoker  -
_record_missed                      invoker  -
_refuse_claim                       invoker  -
_refuse_second_recall               invoker  producer operator user
_refuse_status                      invoker  producer operator user
_resume_paused                      invoker  -
_retry_delay                        invoker  -
_runs_again                         invoker  -
_select_recalls                     invoker  -
_set_pending                        invoker  -
_skip_occurrence                    invoker  producer operator user
_skip_put_off                       invoker  -
_spread_pause                       invoker  -
_stop                               invoker  -
_stop_text                          invoker  -
_take                               invoker  -
_time_expression                    invoker  -
_wait_until                         invoker  -
_wanted_from                        invoker  -
_watch_next                         definer  worker
_weigh_again                        invoker  -
adopt_recalls                       invoker  -
agent_cancel_recall                 definer  chat worker
agent_list_recalls                  definer  chat worker
agent_schedule_recall               definer  chat worker
agent_skip_next_recall              definer  chat worker
append_messages                     definer  chat worker
cancel_recall                       invoker  producer operator user
cancel_recalls                      definer  operator
claim                               definer  worker
claim_deliveries                    definer  worker
clock                               invoker  everybody
cron_error                          invoker  everybody
cron_next                           invoker  everybody
current_user_id                     invoker  everybody
default_message_template            invoker  everybody
end_delivery                        definer  worker
finish                              definer  worker
finish_unobstructed                 definer  worker
free_session                        definer  chat operator
get_audit                           definer  operator
get_deliveries                      definer  operator
get_holds                           definer  chat operator observer
get_next_trigger_at                 invoker  producer operator observer user
get_pending_recalls                 invoker  producer operator user
get_pending_session_ids             invoker  producer operator observer user
get_recall                          invoker  producer operator user
get_report                          definer  worker
get_runs                            invoker  operator user
get_schema                          invoker  everybody
give_up_lifelines                   definer  worker
grant_roles                         invoker  -
help                                invoker  everybody
history                             definer  operator
hold_session                        definer  chat
list_recalls                        invoker  producer operator user
mark_cancelled                      invoker  producer operator user
mark_fired                          definer  worker operator
message_template_error              invoker  everybody
microseconds                        invoker  everybody
new_id                              invoker  everybody
occurrence_message_id               invoker  everybody
pause_all                           definer  operator
pause_recall                        definer  operator
pause_recalls                       definer  operator
pause_session                       definer  operator
pause_user                          definer  operator
purge                               definer  worker operator
purge_history                       definer  operator
register_worker                     definer  worker
release                             definer  worker
renew                               definer  worker
renew_hold                          definer  chat
report_run                          definer  worker
reschedule                          invoker  producer operator user
reschedule_recalls                  definer  operator
resume_all                          definer  operator
resume_recall                       definer  operator
resume_recalls                      definer  operator
resume_session                      definer  operator
resume_user                         definer  operator
retry_delivery                      definer  operator
retry_recall                        definer  operator
retry_recalls                       definer  operator
run_now                             definer  operator
run_recalls_now                     definer  operator
schedule_recall                     invoker  producer operator user
schema_version                      invoker  everybody
skip_next_recall                    invoker  producer operator user
skip_recalls                        definer  operator
span_text                           invoker  everybody
stop_run                            definer  operator
stop_runs                           definer  operator
time_text                           invoker  everybody
time_zone_error                     invoker  everybody
touch_session                       definer  chat
unregister_worker                   definer  worker
upcoming                            definer  operator observer
use_own_sessions                    invoker  -
use_sessions_table                  invoker  -
wanted_slots                        invoker  operator observer
watch                               invoker  worker
"""

ALL = "*"
CHANGE = (
    "call_type trigger_at interval_seconds internal_comment additional_context_message status updated_at cron "
    "time_zone end_at max_attempts timeout_seconds idle_for_seconds max_defer_seconds on_max_defer on_interrupt "
    "pause_after_failures metadata"
)
REQUEST = f"id session_id created_at deliver_to idempotency_key {CHANGE}"

#: What operators look at.
VIEWS = (
    "due_recalls",
    "failed_recalls",
    "late_runs",
    "lateness_per_hour",
    "left_out_occurrences",
    "next_recalls",
    "overview",
    "running_recalls",
    "session_states",
    "user_states",
    "worker_states",
)

#: Every table, view and sequence: who may do what with which columns; a leading minus: with all but these.
RELATIONS: dict[str, dict[str, dict[str, str]]] = {
    "audit": {"select": {"operator": ALL, "observer": "- client_address old new"}},
    "armed_until": {"select": {"operator": ALL, "observer": ALL}},
    "untold": {"select": {"operator": ALL, "observer": ALL}},
    "deliveries": {"select": {"operator": ALL, "observer": "- url payload"}, "update": {"operator": "url"}},
    "host_sessions": {"select": {"operator": ALL, "observer": ALL}},
    "migrations": {"select": {"operator": ALL, "observer": ALL}},
    "pauses": {"select": {"operator": ALL, "observer": ALL}},
    "purges": {"select": {"operator": ALL, "observer": ALL}},
    "recall_runs": {"select": {"operator": ALL, "user": ALL, "observer": "- reply"}},
    "run_ids": {"select": {"operator": ALL, "observer": ALL}},
    "run_reports": {"select": {"operator": ALL, "observer": "- reply error usage messages"}},
    "server_incarnation": {"select": {"operator": ALL, "observer": ALL}},
    "session_messages": {
        "select": {
            "operator": ALL,
            "chat": ALL,
            "worker": ALL,
            "user": "session_id position id role content in_history metadata created_at",
        },
        "insert": {"chat": "session_id id role content model_text in_history in_context metadata created_at"},
    },
    "session_recalls": {
        "select": {
            "operator": ALL,
            "producer": ALL,
            "user": ALL,
            "observer": "- additional_context_message internal_comment metadata deliver_to",
        },
        "insert": {"operator": REQUEST, "producer": REQUEST, "user": REQUEST},
        "update": {
            "operator": f"session_id deliver_to idempotency_key {CHANGE}",
            "producer": CHANGE,
            "user": CHANGE,
        },
        "delete": {"operator": ALL},
    },
    "session_waiters": {"select": {"operator": ALL, "observer": ALL}},
    "sessions": {
        "select": {
            "operator": ALL,
            "observer": "- metadata deliver_to",
            "producer": "id user_id created_at metadata time_zone made_by",
            "chat": "id user_id created_at metadata time_zone active_at",
            "worker": "id user_id",
            "user": "id user_id created_at metadata time_zone max_runs_per_day active_at",
        },
        "insert": {
            "operator": "id user_id time_zone metadata max_runs_per_day deliver_to",
            "producer": "id user_id time_zone metadata",
            "chat": "id user_id time_zone metadata",
            "worker": "id user_id",
        },
        "update": {"operator": "user_id time_zone metadata max_runs_per_day deliver_to"},
        "delete": {"operator": ALL},
    },
    "settings": {"select": {"operator": ALL, "observer": ALL}, "update": {"operator": ALL}},
    "unaudited": {"select": {"operator": ALL}},
    "workers": {"select": {"operator": ALL, "observer": ALL}},
} | {view: {"select": {"operator": ALL, "observer": ALL}} for view in VIEWS}

#: Tables whose rows are hidden from whoever no policy is for.
WITH_POLICIES = {"audit", "deliveries", "pauses", "recall_runs", "session_messages", "session_recalls", "sessions"}


def listed() -> dict[str, tuple[str, frozenset[str]]]:
    """The table of routines: whose rights, and who may call it."""
    found = {}
    for line in ROUTINES.strip().splitlines():
        name, rights, *roles = line.split()
        found[name] = (rights, frozenset(ROLES) if roles == ["everybody"] else frozenset(roles) - {"-"})
    return found


def columns_of(given: str | None, columns: list[str]) -> set[str]:
    """Those of the columns that an entry of RELATIONS stands for."""
    if given is None:
        return set()
    if given == ALL:
        return set(columns)
    if given.startswith("- "):
        return set(columns) - set(given[2:].split())
    return set(given.split())


@pytest.fixture
def as_role(database: str) -> Iterator[dict[str, psycopg.Connection]]:
    """A connection for a login in each group role, and for one in none, the stranger."""
    with logins(database, stranger="", **{role: role for role in ROLES}) as dsns, connections(dsns) as opened:
        yield opened


def is_denied(connection: psycopg.Connection, statement: str | sql.Composed) -> bool:
    """Whether a statement, which is taken back, fails for want of a right."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement.encode() if isinstance(statement, str) else statement)
    except psycopg.errors.InsufficientPrivilege as error:
        return str(error).startswith("permission denied for")
    except psycopg.Error:
        pass
    return False


def test_every_routine_can_be_called_by_those_who_should_and_by_nobody_else(
    database: str, as_role: dict[str, psycopg.Connection]
) -> None:
    expected = listed()
    with psycopg.connect(database) as db:
        routines = rows(
            db,
            """select p.proname, p.prokind::text as kind,
                p.prorettype = 'trigger'::regtype or p.proisstrict as is_never_called,
                p.oid::regprocedure::text as signature,
                array(select format_type(t.oid, null) from unnest(p.proargtypes) with ordinality as a (oid, place)
                    join pg_type as t on t.oid = a.oid order by a.place) as types
            from pg_proc as p where p.pronamespace = 'pgrecall'::regnamespace""",
        )
    assert {one["proname"] for one in routines} == set(expected), "place each routine in ROUTINES and in grant_roles()"
    wrong = []
    for one in routines:
        if one["is_never_called"]:
            # As a trigger, but the right would let somebody make one of it; or strict, and not called with nulls.
            callers = {
                role
                for role, connection in as_role.items()
                if value(
                    connection,
                    """select has_function_privilege(oid, 'execute') and has_schema_privilege('pgrecall', 'usage')
                    from pg_proc where pronamespace = 'pgrecall'::regnamespace and proname = %s""",
                    one["proname"],
                )
            }
        else:
            arguments = ", ".join(f"null::{kind}" for kind in one["types"])
            verb = "call" if one["kind"] == "p" else "select"
            statement = f"{verb} pgrecall.{one['proname']}({arguments})"
            callers = {role for role, connection in as_role.items() if not is_denied(connection, statement)}
        if callers != expected[one["proname"]][1]:
            wrong.append((one["proname"], sorted(callers), sorted(expected[one["proname"]][1])))
    assert wrong == []


def test_routines_run_with_the_rights_that_the_table_says(db: psycopg.Connection) -> None:
    found = rows(db, "select proname, prosecdef from pg_proc where pronamespace = 'pgrecall'::regnamespace")
    assert {one["proname"]: "definer" if one["prosecdef"] else "invoker" for one in found} == {
        name: rights for name, (rights, _) in listed().items()
    }


def attempts(relation: str, columns: list[Row]) -> dict[tuple[str, str], str]:
    """A statement for each right that somebody may have on a relation and its columns."""
    place = f"pgrecall.{relation}"
    tried = {("select", one["attname"]): f"select {one['attname']} from {place} limit 0" for one in columns}
    if columns[0]["kind"] == "r":
        for one in columns:
            name, null = one["attname"], f"null::{one['type']}"
            if not one["is_generated"]:
                tried["insert", name] = f"insert into {place} ({name}) select {null} where false"
                tried["update", name] = f"update {place} set {name} = {null} where false"
        tried["delete", ALL] = f"delete from {place} where false"
        # Whoever can lock a table can stop all work.
        tried["lock", ALL] = f"lock table {place} in exclusive mode"
        tried["truncate", ALL] = f"truncate {place}"
    elif columns[0]["kind"] == "S":
        tried["nextval", ALL] = f"select nextval('{place}')"
        tried["setval", ALL] = f"select setval('{place}', 1)"
    return tried


def allowed(relation: str, role: str, columns: list[Row]) -> set[tuple[str, str]]:
    """Which of the attempts succeed."""
    names = [one["attname"] for one in columns]
    rights = {privilege: given.get(role) for privilege, given in RELATIONS[relation].items()}
    found = {
        (privilege, name)
        for privilege, given in rights.items()
        if privilege != "delete"
        for name in columns_of(given, names)
    }
    if rights.get("delete"):
        found.add(("delete", ALL))
    if ALL in (rights.get("delete"), rights.get("update")):
        found.add(("lock", ALL))
    return found


def test_every_column_can_be_used_by_those_who_should_and_by_nobody_else(
    database: str, as_role: dict[str, psycopg.Connection]
) -> None:
    with psycopg.connect(database) as db:
        found = rows(
            db,
            """select c.relname, c.relkind::text as kind, a.attname, format_type(a.atttypid, a.atttypmod) as type,
                a.attgenerated <> '' or a.attidentity <> '' as is_generated
            from pg_class as c join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
            where c.relnamespace = 'pgrecall'::regnamespace and c.relkind in ('r', 'v', 'S')
                and not exists (select from pg_depend as d
                    where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'i' and c.relkind = 'S')
            order by c.relname, a.attnum""",
        )
    relations = {one["relname"]: [column for column in found if column["relname"] == one["relname"]] for one in found}
    assert set(relations) == set(RELATIONS), "place each table, view and sequence in RELATIONS and in grant_roles()"
    wrong = [
        (role, relation, *right)
        for relation, columns in relations.items()
        for role, connection in as_role.items()
        for right, statement in attempts(relation, columns).items()
        if is_denied(connection, statement) == (right in allowed(relation, role, columns))
    ]
    assert wrong == []


def test_nobody_makes_anything_in_the_schema(as_role: dict[str, psycopg.Connection]) -> None:
    made = "create function pgrecall.clock(text) returns text language sql as 'select $1'"
    assert [role for role, connection in as_role.items() if not is_denied(connection, made)] == []


def test_nobody_makes_a_trigger_of_one_of_our_functions(as_role: dict[str, psycopg.Connection]) -> None:
    """One that runs with its owner's rights would write what the trigger's maker wants."""
    for role, connection in as_role.items():
        connection.execute("create temp table mine (id text, user_id text)")
        assert is_denied(
            connection,
            "create trigger t after insert on mine for each row "
            "execute function pgrecall._follow_host_session('id', 'user_id', '')",
        ), role


def test_row_level_security_is_on_where_rows_belong_to_somebody(db: psycopg.Connection) -> None:
    found = rows(
        db,
        """select relname, relforcerowsecurity as forced from pg_class
        where relnamespace = 'pgrecall'::regnamespace and relrowsecurity""",
    )
    assert {one["relname"]: one["forced"] for one in found} == dict.fromkeys(WITH_POLICIES, False)


def test_a_role_with_grants_of_its_own_goes_on_as_before_roles(database: str) -> None:
    """A producer from before version 2, or one of a host that makes its own roles."""
    with logins(database, mine="") as dsns, psycopg.connect(database, autocommit=True) as admin:
        login = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(dsns["mine"])["user"]))
        add_session(admin, "s1")
        admin.execute(sql.SQL("grant usage on schema pgrecall to {}").format(login))
        admin.execute(sql.SQL("grant insert, update, select on pgrecall.session_recalls to {}").format(login))
        theirs = add(admin, "s2", NOW)
        with psycopg.connect(dsns["mine"], autocommit=True) as mine:
            made = value(
                mine,
                """insert into pgrecall.session_recalls (session_id, cron, time_zone, call_type, trigger_at,
                    additional_context_message)
                values ('s1', '0 9 * * *', 'Europe/Paris', 'recurring', now(), 'go on') returning id""",
            )
            mine.execute("update pgrecall.session_recalls set status = 'cancelled'")
        assert call_one(admin, "get_recall", recall_id=made)["status"] == "cancelled"
        assert call_one(admin, "get_recall", recall_id=theirs)["status"] == "pending"


# What each can do in its own part


def test_an_operator_steers_by_hand(database: str, as_role: dict[str, psycopg.Connection]) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        add_session(admin, "s1", "s2", user_id="ann")
        first, second = add(admin, "s1", NOW), add(admin, "s2", NOW)
    db = as_role["operator"]
    db.execute("update pgrecall.session_recalls set trigger_at = '2031-01-01 00:00+00' where id = %s", [first])
    db.execute("update pgrecall.session_recalls set status = 'cancelled' where id = %s", [first])
    db.execute("update pgrecall.sessions set max_runs_per_day = 5, deliver_to = 'https://x.example/' where id = 's1'")
    db.execute("update pgrecall.settings set timeout_seconds = 60")
    assert call_one(db, "pause_recall", recall_id=second)["paused_at"] is not None
    assert call_one(db, "mark_fired", recall_id=second)["status"] == "fired"
    assert value(db, "select count(*) from pgrecall.recall_runs") == 2
    assert call_one(db, "list_recalls", is_admin=True, limit=1)["id"] == first
    made = call_one(db, "schedule_recall", session_id="s1", additional_context_message="x", deliver_to="https://x/")
    assert made["scheduled_by"] == value(db, "select current_user")
    db.execute("delete from pgrecall.sessions where id = 's2'")
    for forbidden in ("run_id = 1", "worker_id = 'w'", "scheduled_by = 'x'", "nominal_at = now()", "attempt = 0"):
        assert is_denied(db, f"update pgrecall.session_recalls set {forbidden}")
    assert is_denied(db, "update pgrecall.recall_runs set outcome = 'success'")


def test_a_worker_works_with_its_functions_alone(database: str, as_role: dict[str, psycopg.Connection]) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        add(admin, "s1", NOW.replace(year=2020))
        made = add(admin, "s2", NOW.replace(year=2020), deliver_to="https://x.example/")
    db = as_role["worker"]
    runs = claim(db).runs
    assert len(runs) == 2
    assert finish(db, runs[0], reply="Done.", append_reply=True)["accepted"]
    assert value(db, "select count(*) from pgrecall.session_messages where session_id = 's1'") == 2
    assert made == runs[1]["recall_id"]
    assert finish(db, runs[1], reply="Done.")["accepted"]
    (delivery,) = db.execute("select delivery_id, attempt from pgrecall.claim_deliveries(1)").fetchall()
    db.execute("select pgrecall.end_delivery(%s, %s, 'delivered')", delivery)


def test_a_chat_holds_and_talks_and_frees_only_what_it_names(
    database: str, as_role: dict[str, psycopg.Connection]
) -> None:
    db = as_role["chat"]
    db.execute("insert into pgrecall.sessions (id, user_id) values ('s1', 'ann') on conflict (id) do nothing")
    assert call_one(db, "hold_session", session_id="s1", holder="me")["held"]
    db.execute("insert into pgrecall.session_messages (session_id, role, content) values ('s1', 'user', 'Hello.')")
    assert value(db, 'select pgrecall.append_messages(\'s1\', \'[{"role": "assistant", "content": "Hi."}]\')') == 1
    assert value(db, "select count(*) from pgrecall.session_messages") == 2
    assert value(db, "select result ->> 'result' from pgrecall.agent_list_recalls('s1') as result") is None
    with pytest.raises(
        psycopg.errors.InsufficientPrivilege, match="only an operator frees a session without"
    ) as caught:
        db.execute("select pgrecall.free_session('s1')")
    assert caught.value.diag.message_hint == "Give the holder, or ask a member of pgrecall_operator."
    assert value(as_role["operator"], "select pgrecall.free_session('s1')")
    assert call_one(db, "hold_session", session_id="s1", holder="me")["held"]
    assert value(db, "select pgrecall.free_session('s1', 'me')")
    with psycopg.connect(database) as owner:
        assert not value(owner, "select pgrecall.free_session('s1')")


def test_what_an_agent_schedules_carries_the_role_of_the_client(as_role: dict[str, psycopg.Connection]) -> None:
    db = as_role["chat"]
    db.execute("insert into pgrecall.sessions (id) values ('s1')")
    db.execute("select pgrecall.agent_schedule_recall('s1', 'go on', in_seconds => 3600)")
    assert value(as_role["operator"], "select scheduled_by from pgrecall.session_recalls") == value(
        db, "select session_user"
    )


def test_an_observer_sees_everything_but_words(database: str, as_role: dict[str, psycopg.Connection]) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        add(admin, "s1", NOW.replace(year=2020), additional_context_message="a secret")
        finish(admin, claim_one(admin), reply="a secret")
    db = as_role["observer"]
    assert row(db, "select id, status from pgrecall.session_recalls")["status"] == "fired"
    assert value(db, "select outcome from pgrecall.recall_runs") == "success"
    seen = rows(
        db,
        """select format('select %I from pgrecall.%I', column_name, table_name) as statement
        from information_schema.column_privileges
        where table_schema = 'pgrecall' and privilege_type = 'SELECT'""",
    )
    assert len(seen) > 50
    for one in seen:
        assert "a secret" not in str(rows(db, one["statement"])), one["statement"]


# Installing


def test_installing_again_takes_back_what_was_added_to_the_group_roles_and_leaves_others_alone(database: str) -> None:
    with logins(database, mine="", seen="observer") as dsns, psycopg.connect(database, autocommit=True) as admin:
        mine = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(dsns["mine"])["user"]))
        admin.execute("grant select on pgrecall.session_messages to pgrecall_observer, public")
        admin.execute("grant update (content) on pgrecall.session_messages to pgrecall_observer")
        admin.execute("grant execute on function pgrecall.claim to public")
        admin.execute(sql.SQL("grant usage on schema pgrecall to {}").format(mine))
        admin.execute(sql.SQL("grant execute on function pgrecall.report_run to {}").format(mine))
        schema.install(admin)
        with connections(dsns) as opened:
            assert is_denied(opened["seen"], "select content from pgrecall.session_messages")
            assert is_denied(opened["seen"], "update pgrecall.session_messages set content = 'x'")
            assert is_denied(opened["seen"], "select pgrecall.claim('w', 1)")
            assert not is_denied(opened["mine"], "select pgrecall.report_run(1)")


def test_installing_again_waits_for_no_reader(database: str) -> None:
    """To make a policy anew would. Views are replaced: only people read them, and no worker waits for that."""
    with psycopg.connect(database) as reader, psycopg.connect(database, autocommit=True) as admin:
        for relation in RELATIONS.keys() - set(VIEWS):
            reader.execute(f"select count(*) from pgrecall.{relation}".encode())
        admin.execute("set lock_timeout = '2s'")
        assert schema.install(admin) == 0


def test_what_a_superuser_adds_belongs_to_the_owner_of_the_schema(empty_database: str) -> None:
    with logins(empty_database, owner="") as dsns, psycopg.connect(empty_database, autocommit=True) as admin:
        owner = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(dsns["owner"])["user"]))
        if value(admin, "select current_setting('is_superuser')") != "on":
            pytest.skip("the user of this server is no superuser")
        admin.execute(sql.SQL("create schema pgrecall authorization {}").format(owner))
        schema.install(admin)
        strangers = rows(
            admin,
            """select relname::text as name from pg_class
            where relnamespace = 'pgrecall'::regnamespace and relowner <> %(owner)s::regrole
            union all
            select proname::text from pg_proc
            where pronamespace = 'pgrecall'::regnamespace and proowner <> %(owner)s::regrole""".replace(
                "%(owner)s", f"'{owner.as_string(admin)}'"
            ),
        )
        assert strangers == []
        with psycopg.connect(dsns["owner"], autocommit=True) as db:
            add(db, "s1", NOW.replace(year=2020))
            assert finish(db, claim_one(db))["status"] == "fired"
        admin.execute("drop schema pgrecall cascade")


@pytest.mark.parametrize("right", ["owner", "create"])
def test_whoever_may_make_a_schema_installs_upgrades_and_removes_it(empty_database: str, right: str) -> None:
    with logins(empty_database, owner="") as dsns, psycopg.connect(empty_database, autocommit=True) as admin:
        owner = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(dsns["owner"])["user"]))
        place = sql.Identifier(admin.info.dbname)
        if right == "owner":
            admin.execute(sql.SQL("alter database {} owner to {}").format(place, owner))
        else:
            admin.execute(sql.SQL("grant create on database {} to {}").format(place, owner))
        with psycopg.connect(dsns["owner"], autocommit=True) as db:
            assert schema.install(db) == len(schema.migrations())
            assert schema.install(db) == 0
            with logins(empty_database, worker="worker", producer="producer") as others, connections(others) as opened:
                opened["producer"].execute("insert into pgrecall.sessions (id) values ('s1')")
                call_one(opened["producer"], "schedule_recall", session_id="s1", additional_context_message="go on")
                assert finish(opened["worker"], claim_one(opened["worker"]))["status"] == "fired"
            db.execute("drop schema pgrecall cascade")
            assert value(db, "select count(*) from pg_namespace where nspname = 'pgrecall'") == 0
        admin.execute(sql.SQL("alter database {} owner to current_user").format(place))


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server without group roles: they belong to the whole server, and the others have them."""
    with ExitStack() as stack:
        try:
            yield stack.enter_context(old_server(17))
        except ServerUnavailable as why:
            pytest.skip(str(why))


@pytest.fixture
def places(own_server: Server) -> Iterator[list[str]]:
    """Three databases on the server without group roles, of an owner who may not make roles."""
    must_make_roles(own_server.dsn)
    names = ["first", "second", "third"]
    with psycopg.connect(own_server.dsn, autocommit=True) as admin:
        admin.execute("create role simple_owner login password 'recall_test'")
        for name in names:
            admin.execute(f"create database {name} owner simple_owner".encode())
        yield [with_database(own_server.dsn, name) for name in names]
        for name in names:
            admin.execute(f"drop database {name} with (force)".encode())
        for role in ("simple_owner", *(f"pgrecall_{role}" for role in ROLES)):
            admin.execute(f"drop role if exists {role}".encode())


def group_roles(dsn: str) -> int:
    """How many of the group roles there are."""
    with psycopg.connect(dsn) as db:
        return int(value(db, "select count(*) from pg_roles where rolname like 'pgrecall\\_%%' and not rolcanlogin"))


def test_without_the_right_to_make_roles_it_installs_with_a_notice_and_they_are_made_by_hand(places: list[str]) -> None:
    notices: list[tuple[str | None, str | None]] = []
    with psycopg.connect(dsn_of(places[0], "simple_owner"), autocommit=True) as db:
        db.add_notice_handler(lambda notice: notices.append((notice.message_primary, notice.message_hint)))
        assert schema.install(db) == len(schema.migrations())
        ((said, hint),) = notices
        assert "may not make roles" in str(said)
        assert "pgrecall roles --print" in str(hint)
        assert group_roles(places[0]) == 0
        add(db, "s1", NOW.replace(year=2020))
        assert finish(db, claim_one(db))["status"] == "fired"
        assert rows(db, "select pgrecall.grant_roles() as role") == []
    with psycopg.connect(places[0], autocommit=True) as admin:
        admin.execute(schema.roles_script().encode())
    assert group_roles(places[0]) == len(ROLES)
    with logins(places[0], producer="producer") as dsns, psycopg.connect(dsns["producer"], autocommit=True) as producer:
        producer.execute("insert into pgrecall.sessions (id) values ('s2')")
        assert call_one(producer, "schedule_recall", session_id="s2", additional_context_message="x")["id"]


def test_installs_into_several_databases_at_once_share_the_roles(places: list[str]) -> None:
    def install(dsn: str) -> int:
        with psycopg.connect(dsn) as connection:
            return schema.install(connection)

    doing = [Doing(lambda dsn=dsn: install(dsn)) for dsn in places]  # type: ignore[misc]
    assert [one.result() for one in doing] == [len(schema.migrations())] * 3
    for dsn in places:
        assert group_roles(dsn) == len(ROLES)
        with psycopg.connect(dsn) as db:
            assert value(
                db,
                "select has_function_privilege('pgrecall_worker', oid, 'execute') from pg_proc "
                "where proname = 'claim' and pronamespace = 'pgrecall'::regnamespace",
            )


def test_dropping_the_schema_everywhere_lets_the_roles_be_dropped(places: list[str]) -> None:
    for dsn in places[:2]:
        with psycopg.connect(dsn) as connection:
            schema.install(connection)
    with psycopg.connect(places[0], autocommit=True) as db:
        db.execute("drop schema pgrecall cascade")
        with pytest.raises(psycopg.errors.DependentObjectsStillExist):
            db.execute("drop role pgrecall_worker")
    with psycopg.connect(places[1], autocommit=True) as db:
        db.execute("drop schema pgrecall cascade")
        for role in ROLES:
            db.execute(f"drop role pgrecall_{role}".encode())
