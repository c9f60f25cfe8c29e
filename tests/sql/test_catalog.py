"""Rules that every object of the schema keeps, read from the catalog and from the sources."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from datetime import UTC, datetime, timedelta
from typing import LiteralString

import psycopg
import pytest
from pglast import parse_plpgsql
from sqltools import Row, row, rows, value

from pgrecall import calls, errors, schema

# Columns whose name says everything.
PLAIN = {
    "migrations.name",
    "migrations.version",
    "recall_runs.error",
    "recall_runs.finished_at",
    "recall_runs.session_id",
    "recall_runs.worker_id",
    "session_messages.content",
    "session_messages.created_at",
    "session_messages.session_id",
    "session_waiters.holder",
    "session_waiters.session_id",
    "session_waiters.since",
    "session_recalls.created_at",
    "session_recalls.id",
    "session_recalls.session_id",
    "sessions.created_at",
    "sessions.id",
    "workers.host",
    "workers.id",
    "workers.pid",
    "workers.started_at",
    "workers.version",
}


def sources() -> dict[str, str]:
    """Return the text of every SQL file by name."""
    return {name: (schema.sql_root() / name).read_text(encoding="utf-8") for name in schema.script_files()}


def routines(db: psycopg.Connection) -> list[Row]:
    """Return every routine of the schema."""
    return rows(
        db,
        """select p.oid, p.oid::regprocedure::text as signature, p.proname, p.proconfig, p.prosecdef, p.provolatile,
            l.lanname, pg_get_functiondef(p.oid) as source, p.prorettype = 'trigger'::regtype as is_trigger,
            obj_description(p.oid, 'pg_proc') as comment
        from pg_proc as p join pg_language as l on l.oid = p.prolang
        where p.pronamespace = 'pgrecall'::regnamespace order by 2""",
    )


UNCOMMENTED: dict[str, LiteralString] = {
    "tables, views and sequences": """select c.relname as name from pg_class as c
        where c.relnamespace = 'pgrecall'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S')
            and obj_description(c.oid, 'pg_class') is null
            and not exists (select from pg_depend as d
                where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'i')""",
    "indexes": """select c.relname as name from pg_class as c
        where c.relnamespace = 'pgrecall'::regnamespace and c.relkind = 'i'
            and obj_description(c.oid, 'pg_class') is null
            and not exists (select from pg_constraint as k
                where k.conindid = c.oid and k.contype in ('p', 'u', 'x'))""",
    "functions": """select p.oid::regprocedure::text as name from pg_proc as p
        where p.pronamespace = 'pgrecall'::regnamespace and obj_description(p.oid, 'pg_proc') is null""",
    # A primary key that is just the id of the row is plain; of a constraint trigger the trigger has the comment.
    "constraints": """select k.conname as name from pg_constraint as k
        where k.connamespace = 'pgrecall'::regnamespace and k.contype in ('c', 'f', 'u', 'x')
            and obj_description(k.oid, 'pg_constraint') is null""",
    "triggers": """select t.tgname as name from pg_trigger as t join pg_class as c on c.oid = t.tgrelid
        where c.relnamespace = 'pgrecall'::regnamespace and not t.tgisinternal
            and obj_description(t.oid, 'pg_trigger') is null""",
    "types": """select t.typname as name from pg_type as t
        where t.typnamespace = 'pgrecall'::regnamespace and t.typtype in ('d', 'e')
            and obj_description(t.oid, 'pg_type') is null""",
    "the schema": """select n.nspname as name from pg_namespace as n
        where n.nspname = 'pgrecall' and obj_description(n.oid, 'pg_namespace') is null""",
}


@pytest.mark.parametrize("kind", UNCOMMENTED)
def test_nothing_lacks_a_comment_among(db: psycopg.Connection, kind: str) -> None:
    assert [found["name"] for found in rows(db, UNCOMMENTED[kind])] == []


def test_every_column_has_a_comment_or_a_plain_name(db: psycopg.Connection) -> None:
    found = rows(
        db,
        """select c.relname || '.' || a.attname as name
        from pg_class as c join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        where c.relnamespace = 'pgrecall'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
            and col_description(c.oid, a.attnum) is null""",
    )
    assert {column["name"] for column in found} == PLAIN


def test_every_routine_pins_its_search_path(db: psycopg.Connection) -> None:
    loose = [
        routine["signature"]
        for routine in routines(db)
        if "search_path=pg_catalog, pg_temp" not in (routine["proconfig"] or [])
    ]
    # A procedure that commits cannot pin it. The others become part of the statements that call them, which pin it; and
    # those that anybody may call by themselves say where each name in them comes from.
    assert [signature.split("(")[0] for signature in loose] == [
        "pgrecall._model_text", "pgrecall.clock", "pgrecall.microseconds", "pgrecall.watch",
    ]  # fmt: skip


def test_what_forbids_plans_is_never_compiled(db: psycopg.Connection) -> None:
    """Before PostgreSQL 18 a forbidden plan that is used all the same counts as so dear that JIT compiles it."""
    forbidding = [
        routine
        for routine in routines(db)
        if any(re.match(r"enable_\w+=off", setting) for setting in routine["proconfig"] or [])
    ]
    assert {routine["proname"] for routine in forbidding} == {"claim", "finish_unobstructed"}
    assert [routine["signature"] for routine in forbidding if "jit=off" not in routine["proconfig"]] == []


def test_every_trigger_function_runs_with_its_owners_rights_but_the_one_that_only_refuses(
    db: psycopg.Connection,
) -> None:
    """Which other routines do is in the table of test_roles.py."""
    loose = [one["proname"] for one in routines(db) if one["is_trigger"] and not one["prosecdef"]]
    assert loose == ["_before_settings_removal"]


def test_the_comment_of_a_trigger_function_says_what_it_notifies(db: psycopg.Connection) -> None:
    silent = [
        one["signature"]
        for one in routines(db)
        if "pg_notify(" in one["source"] and "Notifies: channel pgrecall" not in one["comment"]
    ]
    assert silent == []


def test_only_clock_reads_the_time(db: psycopg.Connection) -> None:
    """A test, and nobody else, moves time in one place. The ids of rows are no times to compare with.

    How long claim() waits is a length of time, which passes in the machine.
    """
    readers = {
        one["proname"]
        for one in routines(db)
        if re.search(
            r"\b(clock_timestamp|now|statement_timestamp|transaction_timestamp)\(\)",
            re.sub(r"'[^']*'", "", one["source"]),
        )
    }
    assert readers == {"_wait_until", "claim", "clock", "new_id"}


def test_every_error_of_the_sql_has_a_class_and_every_class_an_error() -> None:
    raised = {code for text in sources().values() for code in re.findall(r"errcode = '(PR\d{3})'", text)}
    classes = [
        found.sqlstate
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, errors.RecallError) and found.sqlstate is not None
    ]
    assert sorted(classes) == sorted(raised)


def test_every_error_that_a_caller_can_tell_apart_has_a_hint() -> None:
    bare = [
        statement
        for text in sources().values()
        for statement in re.findall(r"raise exception[^;]*?errcode = 'PR\d{3}'[^;]*;", text)
        if "hint = " not in statement
    ]
    assert bare == []


def test_comments_promise_no_error_that_no_source_raises() -> None:
    text = "\n".join(sources().values())
    assert set(re.findall(r"\bPR\d{3}\b", text)) == set(re.findall(r"errcode = '(PR\d{3})'", text))


# The Python side: names and parameters

SAMPLES: Row = {
    "id": "x",
    "limit": 1,
    "offset": 0,
    "up_to": 1,
    "run_id": 1,
    "delivery_id": 1,
    "attempt": 1,
    "response_status": 200,
    "silent": False,
    "concurrency": 1,
    "pid": 1,
    "max_attempts": 1,
    "in_seconds": 1.0,
    "timeout_seconds": 1,
    "idle_for_seconds": 1,
    "max_defer_seconds": 1,
    "pause_after_failures": 1,
    "interval_seconds": 1,
    "is_admin": False,
    "inject": True,
    "retry": True,
    "counted": True,
    "append_reply": True,
    "trigger_at": datetime(2030, 1, 1, tzinfo=UTC),
    "new_trigger_at": datetime(2030, 1, 1, tzinfo=UTC),
    "paused_until": datetime(2030, 1, 1, tzinfo=UTC),
    "failed_since": datetime(2030, 1, 1, tzinfo=UTC),
    "end_at": datetime(2030, 1, 1, tzinfo=UTC),
    "before": datetime(2030, 1, 1, tzinfo=UTC),
    "since": datetime(2030, 1, 1, tzinfo=UTC),
    "batch": 1,
    "with_messages": False,
    "with_audit": False,
    "lease": timedelta(seconds=1),
    "reconnect_grace": timedelta(seconds=1),
    "lifelines": [1, None],
    "retry_after": timedelta(seconds=1),
    "by": timedelta(seconds=1),
    "within": timedelta(seconds=1),
    "metadata": {},
    "usage": {},
    "messages": [],
    "session_ids": [],
    "run_ids": [1],
    "started_at": [None],
    "replies": [None],
    "recall_ids": ["x"],
    "after_stop": "retry",
}
CALLS = {
    name: function
    for name, function in vars(calls).items()
    if inspect.isfunction(function) and str(function.__annotations__.get("return", "")).startswith("Call[")
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_from_python_fits_its_routine(db: psycopg.Connection, name: str) -> None:
    function = CALLS[name]
    parameters = inspect.signature(function).parameters.values()
    call = function(
        **{
            one.name: "x" if one.annotation in ("str", "str | None") else SAMPLES.get(one.name, "x")
            for one in parameters
        }
    )
    routine = row(
        db,
        """select coalesce(p.proargnames, '{}') as names, coalesce(p.proargmodes::text[], '{}') as modes, p.pronargs,
            (select array_agg(a.attname::text order by a.attnum) from pg_type as t
                join pg_attribute as a on a.attrelid = t.typrelid and a.attnum > 0
                where t.oid = p.prorettype) as columns
        from pg_proc as p where p.pronamespace = 'pgrecall'::regnamespace and p.proname = %s""",
        call.function,
    )
    inputs = routine["names"][: routine["pronargs"]]
    assert set(call.arguments) == set(inputs)
    if call.row is not None:
        columns = routine["columns"] or routine["names"][routine["pronargs"] :]
        assert [column.name for column in dataclasses.fields(call.row)] == columns


def test_every_routine_for_callers_has_a_call_from_python(db: psycopg.Connection) -> None:
    """The others are for people and for the SQL itself."""
    public = {one["proname"] for one in routines(db) if not one["proname"].startswith("_")}
    for_sql = {"clock", "new_id", "microseconds", "occurrence_message_id", "cron_error", "cron_next", "time_zone_error"}
    for_sql |= {
        "help",
        "current_user_id",
        "time_text",
        "span_text",
        "default_message_template",
        "message_template_error",
    }
    assert public - for_sql - {"grant_roles", "schema_version", "watch"} == set(CALLS)


# Bodies


def plpgsql(db: psycopg.Connection) -> list[Row]:
    """Return the routines in plpgsql."""
    return [one for one in routines(db) if one["lanname"] == "plpgsql"]


def parsed(routine: Row) -> list[Row]:
    """Parse a body. pglast knows no types of other schemas and no arrays of them, so they are made simpler."""
    simple = re.sub(r"pgrecall\.\w+\[\]", "text[]", routine["source"]).replace("pgrecall.", "pgrecall_")
    tree: list[Row] = parse_plpgsql(simple)
    return tree


def test_every_plpgsql_body_can_be_parsed(db: psycopg.Connection) -> None:
    found = plpgsql(db)
    assert len(found) > 10
    for routine in found:
        (tree,) = parsed(routine)
        assert "PLpgSQL_function" in tree, routine["signature"]


def expressions(tree: object) -> list[str]:
    """Collect the SQL texts of a parsed body."""
    if isinstance(tree, dict):
        own = [tree["query"]] if isinstance(tree.get("query"), str) else []
        return own + [text for branch in tree.values() for text in expressions(branch)]
    if isinstance(tree, list):
        return [text for branch in tree for text in expressions(branch)]
    return []


def test_only_routines_about_tables_of_the_host_and_about_roles_build_sql_from_text(db: psycopg.Connection) -> None:
    """Which tables, columns and roles there are is known when they run, not before."""
    dynamic = {one["proname"] for one in plpgsql(db) if re.search(r"PLpgSQL_stmt_dyn", json.dumps(parsed(one)))}
    assert dynamic == {
        "_before_host_session_change",
        "_follow_host_session",
        "adopt_recalls",
        "grant_roles",
        "use_own_sessions",
        "use_sessions_table",
    }


def test_every_table_and_routine_of_ours_is_named_with_its_schema(db: psycopg.Connection) -> None:
    """With an empty search path anything else fails, but only when that line runs for the first time."""
    names = [
        one["name"]
        for one in rows(
            db,
            """select relname as name from pg_class
            where relnamespace = 'pgrecall'::regnamespace and relkind in ('r', 'v', 'S')""",
        )
    ]
    bare = re.compile(rf"\b(?:from|join|into|update)\s+(?:{'|'.join(names)})\b(?!\.)(?! as )", re.IGNORECASE)
    found = [(one["signature"], text) for one in plpgsql(db) for text in expressions(parsed(one)) if bare.search(text)]
    assert found == []


def test_plpgsql_check_has_nothing_to_say(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        if value(db, "select count(*) from pg_available_extensions where name = 'plpgsql_check'") == 0:
            pytest.skip("the server does not have the extension plpgsql_check")
        db.execute("create extension plpgsql_check")
        said = [
            (one["signature"], complaint["message"])
            for one in plpgsql(db)
            for complaint in rows(
                db,
                # Some trigger functions are for tables of hosts.
                """select message from plpgsql_check_function_tb(%s::oid::regprocedure, coalesce(
                    (select min(tgrelid::oid)::regclass from pg_trigger where tgfoid = %s),
                    case when %s then 'pgrecall.session_recalls'::regclass else 0::regclass end))""",
                one["oid"],
                one["oid"],
                one["is_trigger"],
            )
        ]
    # The parameters of the contract are called so.
    allowed = [f'name of parameter "{name}" is reserved keyword' for name in ("limit", "offset")]
    assert [(routine, message) for routine, message in said if message not in allowed] == []
