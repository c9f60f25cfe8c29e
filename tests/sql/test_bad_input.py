"""Bad input, everywhere: each argument of each function, each column of each table, each option of each verb.

Whatever is given, it either works, and everything that is done with the row afterwards works too, or it is refused with
an SQLSTATE of the lists below, a message that names what is wrong, and nothing changed.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import fuzztools
import psycopg
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.types.json import set_json_loads
from servers import Server, with_database
from sqltools import Row, rows, value

from pgrecall import RecallError, SettingsError, SyncRecallScheduler
from pgrecall.cli.app import cli

pytestmark = pytest.mark.timeout(300)  # thousands of statements in one test
LONG = os.environ.get("PGRECALL_TEST_HYPOTHESIS") == "long"

#: Functions of the API and arguments that make sense for each. A new function fails a test until it is here.
FUNCTIONS: dict[str, Row] = {
    "adopt_recalls": {"old_table": "pgrecall.session_recalls"},
    "agent_cancel_recall": {"session_id": "waits"},
    "agent_list_recalls": {"session_id": "waits"},
    "agent_schedule_recall": {"session_id": "idle", "additional_context_message": "Go on.", "in_seconds": 3600},
    "agent_skip_next_recall": {"session_id": "waits"},
    "append_messages": {"session_id": "idle", "messages": '[{"role": "user", "content": "Hello."}]'},
    "cancel_recall": {"session_id": "waits"},
    "cancel_recalls": {"recall_ids": "{waits,runs}"},
    "claim": {"worker_id": "w2", "up_to": 5},
    "claim_deliveries": {"up_to": 5},
    "clock": {},
    "cron_error": {"expression": "0 9 * * *"},
    "default_message_template": {},
    "cron_next": {"expression": "0 9 * * *", "time_zone": "Europe/Paris", "after": "2026-11-23 00:00:00+00"},
    "end_delivery": {"delivery_id": 1, "attempt": 1, "status": "delivered"},
    "finish": {"recall_id": "runs", "run_id": "the run", "outcome": "error", "retry": True},
    "finish_unobstructed": {
        "run_ids": "{the run}",
        "outcomes": "{success}",
        "started_at": "{2026-11-23 00:00:00+00}",
        "replies": "{Done.}",
    },
    "free_session": {"session_id": "held", "holder": "chat"},
    "get_audit": {"recall_id": "waits"},
    "get_deliveries": {},
    "get_holds": {},
    "get_report": {"run_id": "the run"},
    "get_next_trigger_at": {},
    "get_pending_recalls": {"before": "2026-11-23 00:00:00+00"},
    "get_pending_session_ids": {"session_ids": "{waits}"},
    "get_recall": {"recall_id": "waits"},
    "get_runs": {"recall_id": "ended"},
    "help": {"topic": "pause"},
    "history": {"recall_id": "ended"},
    "hold_session": {"session_id": "idle", "holder": "chat"},
    "list_recalls": {"is_admin": True},
    "mark_cancelled": {"recall_id": "waits"},
    "mark_fired": {"recall_id": "waits"},
    "message_template_error": {"template": "{message} {now}"},
    "microseconds": {"moment": "2026-11-23 00:00:00+00"},
    "new_id": {},
    "occurrence_message_id": {"recall_id": "waits", "nominal_at": "2026-11-23 00:00:00+00"},
    "pause_all": {"reason": "an incident"},
    "pause_recall": {"recall_id": "waits"},
    "pause_recalls": {"recall_ids": "{waits,runs}", "reason": "an incident"},
    "pause_session": {"session_id": "waits", "reason": "an incident"},
    "pause_user": {"user_id": "ada", "reason": "an incident"},
    "register_worker": {"worker_id": "w1", "concurrency": 3},
    "give_up_lifelines": {"worker_id": "w1", "lifelines": "{1,2}"},
    "purge": {},
    "purge_history": {"session_id": "ended"},
    "release": {"worker_id": "w1", "run_ids": "{the run}"},
    "renew": {"worker_id": "w1"},
    "renew_hold": {"session_id": "held", "holder": "chat"},
    "resume_all": {},
    "resume_recall": {"recall_id": "waits"},
    "resume_recalls": {"recall_ids": "{waits,runs}"},
    "resume_session": {"session_id": "waits"},
    "resume_user": {"user_id": "ada"},
    "report_run": {"run_id": "the run", "reply": "Done."},
    "reschedule": {"recall_id": "waits", "new_trigger_at": "2026-11-23 00:00:00+00"},
    "reschedule_recalls": {"recall_ids": "{waits,runs}", "by": "1 hour"},
    "retry_delivery": {"delivery_id": 1},
    "retry_recall": {"recall_id": "broke"},
    "retry_recalls": {"recall_ids": "{broke,waits}"},
    "run_now": {"recall_id": "waits"},
    "run_recalls_now": {"recall_ids": "{waits,runs}"},
    "schedule_recall": {"session_id": "idle", "additional_context_message": "Go on."},
    "schema_version": {},
    "get_schema": {},
    "current_user_id": {},
    "skip_next_recall": {"session_id": "waits"},
    "skip_recalls": {"recall_ids": "{waits,runs}"},
    "stop_run": {"recall_id": "runs", "reason": "an incident"},
    "stop_runs": {"recall_ids": "{waits,runs}", "reason": "an incident"},
    "span_text": {"span": "90 seconds"},
    "time_text": {"moment": "2026-11-23 00:00:00+00", "time_zone": "Europe/Paris"},
    "time_zone_error": {"time_zone": "Europe/Paris"},
    "touch_session": {"session_id": "idle"},
    "unregister_worker": {"worker_id": "w1"},
    "upcoming": {"recall_id": "waits"},
    "use_own_sessions": {},
    "use_sessions_table": {"host_table": "pgrecall.session_recalls"},
}

#: Not called here, and why.
LEFT_OUT = {
    "watch": "waits for other workers; its only caller is the worker, with its own id (tests/sql/test_lifelines.py)",
    "grant_roles": "has no arguments, and is for the owner (tests/sql/test_roles.py)",
}

#: Which arguments do a function justice depends on the others: these are tried as well.
VARIANTS: list[tuple[str, Row]] = [
    ("schedule_recall", {"cron": "0 9 * * *", "time_zone": "Europe/Paris"}),
    ("schedule_recall", {"interval_seconds": 1, "trigger_at": "2026-11-23 00:00:00+00"}),
    ("schedule_recall", {"session_id": "waits"}),
    ("schedule_recall", {"idempotency_key": "k", "id": "waits"}),
    ("schedule_recall", {"session_id": "waits", "if_exists": "replace"}),
    ("schedule_recall", {"session_id": "runs", "if_exists": "keep"}),
    ("reschedule", {"recall_id": "runs"}),
    ("run_now", {"recall_id": "due"}),
    ("stop_run", {"after_stop": "retry"}),
    ("pause_session", {"session_id": "due", "paused_until": "2126-11-23 00:00:00+00"}),
    ("mark_fired", {"recall_id": "runs"}),
    ("finish", {"outcome": "success", "append_reply": True, "reply": "Done."}),
    ("list_recalls", {"is_admin": False, "user_id": "ada"}),
    ("append_messages", {"session_id": "waits"}),
    ("hold_session", {"session_id": "held"}),
    ("hold_session", {"session_id": "held", "holder": "other", "if_held": "wait"}),
    ("hold_session", {"session_id": "runs", "if_held": "interrupt"}),
    ("free_session", {"holder": None}),
    ("finish", {"outcome": "success", "messages": '[{"role": "assistant", "content": "Done."}]'}),
]

#: What a function may raise besides PR001 … PR008.
OF_FUNCTIONS = {
    "23502": "a value that must be given is null; the error names the column",
    "23514": "a CHECK refused the row; it is named as a sentence, see docs/errors.md",
}

#: What single functions may raise besides.
OF_FUNCTION = {
    ("cron_next", "22023"): "its documentation says so: callers that know no recalls use it, too",
    ("microseconds", "22003"): "a computation of the wake-up protocol; due_at is always within the years 1 to 9999",
    ("microseconds", "0A000"): "the same, for infinity before PostgreSQL 17",
}

#: What a plain INSERT or UPDATE may raise: PostgreSQL's own codes.
OF_WRITES = {
    "23502": "null where a value is needed; names the column",
    "23503": "names the foreign key: no such session",
    "54000": "an id too long for an index: refused before its foreign key is looked up, or one that only workers write",
    "23505": "names the unique index: a second pending recall, an id or key that is taken",
    "23514": "names the CHECK",
    "PR004": "a recall that is in a run cannot move to another session",
}

#: Rows of a sensible INSERT by table; a table that is not here fails a test.
INSERTS: dict[str, Row] = {
    "recall_runs": {
        "recall_id": "waits",
        "session_id": "waits",
        "nominal_at": "2026-11-23 00:00:00+00",
        "finished_at": "2026-11-23 00:00:01+00",
        "outcome": "success",
    },
    "session_messages": {"session_id": "idle", "role": "user", "content": "Hello."},
    "session_recalls": {"session_id": "idle", "additional_context_message": "Go on."},
    "sessions": {"id": "new"},
    "workers": {"id": "w9", "concurrency": 1},
}

#: The rows that are changed, by table: each state of a recall once.
UPDATES: dict[str, list[str]] = {
    "recall_runs": ["true"],
    "session_messages": ["t.position = (select min(position) from pgrecall.session_messages)"],
    "session_recalls": ["id = 'waits'", "id = 'runs'", "id = 'due'"],
    "sessions": ["id = 'runs'", "id = 'due'"],
    "workers": ["id = 'w1'"],
}

#: Columns that say which run has a recall: whoever writes another run's number there has made two of them.
CLAIMS_OWN = {"session_recalls.run_id"}

#: Tables that nobody is invited to write.
INTERNAL = {
    "migrations",
    "server_incarnation",
    "session_waiters",
    "deliveries",
    "run_reports",
    "host_sessions",
    "pauses",
    "audit",
    "purges",
    "unaudited",
}

#: A table of one row: no INSERT of any kind, and its CHECKs are tried in test_holds.py.
ONE_ROW = {"settings"}

BASE = """
insert into pgrecall.sessions (id, user_id) values
    ('idle', 'ada'), ('waits', 'ada'), ('runs', 'ben'), ('rests', null), ('ended', 'ben'), ('due', null),
    ('held', 'ada'), ('broke', 'ben');
select pgrecall.hold_session('held', 'chat', '1 hour');
insert into pgrecall.session_recalls (id, session_id, trigger_at, additional_context_message)
values ('runs', 'runs', clock_timestamp() - interval '1 minute', 'Go on.'),
    ('ended', 'ended', clock_timestamp() - interval '2 minutes', 'Go on.');
select pgrecall.finish(recall_id, run_id, 'success', reply => 'Done.') from pgrecall.claim('w1', 1);
select pgrecall.register_worker('w1', 3);
select from pgrecall.claim('w1', 1, interval '1 day');
insert into pgrecall.session_recalls (
    id, session_id, call_type, interval_seconds, trigger_at, idempotency_key, additional_context_message
)
values ('waits', 'waits', 'recurring', 3600, clock_timestamp() + interval '1 hour', 'k', 'Go on.');
insert into pgrecall.session_recalls (id, session_id, trigger_at, additional_context_message, status)
values ('rests', 'rests', clock_timestamp() - interval '1 minute', 'Go on.', 'running'),
    ('broke', 'broke', clock_timestamp() - interval '1 minute', 'Go on.', 'failed'),
    ('due', 'due', clock_timestamp() - interval '1 minute', 'Go on.', 'pending');
"""

#: What happens to recalls after any write that was accepted; all of it must go on working for all rows.
AFTERWARDS = [
    "set constraints all immediate",
    "select * from pgrecall.get_pending_recalls(pgrecall.clock())",
    "select * from pgrecall.list_recalls(is_admin => true)",
    "select pgrecall.get_next_trigger_at()",
    "select * from pgrecall.renew('w1')",
    "select * from pgrecall.claim('w2', 100)",
    """select pgrecall.finish(held.id, held.run_id, 'error', error => 'it broke', retry => true, append_reply => true)
    from pgrecall.session_recalls as held where held.run_id is not null order by held.id""",
    "select pgrecall.skip_next_recall(s.id) from pgrecall.sessions as s",
    "update pgrecall.workers set lease_until = '2026-01-01'",
    "select * from pgrecall.claim('w3', 100)",
    """select pgrecall.finish(held.id, held.run_id, 'success', reply => 'Done.', append_reply => true)
    from pgrecall.session_recalls as held where held.run_id is not null order by held.id""",
    "select pgrecall.mark_fired(r.id) from pgrecall.session_recalls as r where r.status in ('pending', 'running')",
    "select * from pgrecall.list_recalls(is_admin => true)",
    "select pgrecall.cancel_recall(s.id) from pgrecall.sessions as s",
    "select * from pgrecall.claim('w2', 0)",
    "select runs.* from pgrecall.session_recalls as r, pgrecall.get_runs(r.id) as runs",
    "select * from pgrecall.session_messages",
]


class Place:
    """A database with a few rows in all states, to which anything may be done: it comes back as it was."""

    def __init__(self, dsn: str) -> None:
        self.db = psycopg.connect(dsn, autocommit=True)
        self.db.execute("set client_min_messages = error")
        set_json_loads(str, self.db)  # deeper than Python can read
        found = rows(
            self.db,
            """select tablename as name from pg_tables
            where schemaname = 'pgrecall' and tablename <> 'server_incarnation'""",
        )
        self.tables = [one["name"] for one in found]
        self.fill()
        self.constraints = {
            one["name"]
            for one in rows(
                self.db,
                """select conname as name from pg_constraint where connamespace = 'pgrecall'::regnamespace
                union all
                select indexrelid::regclass::text from pg_index
                where (select relnamespace from pg_class where oid = indrelid) = 'pgrecall'::regnamespace""",
            )
        }

    def fill(self) -> None:
        """Makes it as it was in the beginning, also after a change that was committed."""
        self.db.execute("truncate pgrecall.sessions, pgrecall.workers cascade")
        self.db.execute(BASE.encode())
        self.run_id = value(self.db, "select run_id from pgrecall.session_recalls where id = 'runs'")
        self.content = self.fingerprint()

    def fingerprint(self) -> dict[str, str]:
        """The content of all tables."""
        return fuzztools.fingerprint(self.db, self.tables)

    def routines(self) -> dict[str, list[tuple[str, str]]]:
        """The API, from the catalog: functions and procedures with their arguments and these's types."""
        found = rows(
            self.db,
            """select p.proname as name, coalesce(p.proargnames, '{}') as names,
                array(select format_type(t, null) from unnest(p.proargtypes) with ordinality as a (t, place)
                    order by place) as types
            from pg_proc as p
            where p.pronamespace = 'pgrecall'::regnamespace
                and p.proname !~ '^_' and p.prorettype <> 'trigger'::regtype""",
        )
        assert len(found) == len({one["name"] for one in found})  # none is overloaded
        return {one["name"]: list(zip(one["names"], one["types"], strict=False)) for one in found}

    def columns(self, table: str) -> dict[str, str]:
        """The columns that can be written, with their types."""
        found = rows(
            self.db,
            """select attname as name, format_type(atttypid, null) as type from pg_attribute
            where attrelid = %s::regclass and attnum > 0 and not attisdropped and attgenerated = ''
                and attidentity <> 'a'""",
            f"pgrecall.{table}",
        )
        return {one["name"]: one["type"] for one in found}

    def refusal(self, statement: sql.Composed, arguments: Row) -> psycopg.Error | None:
        """Tries it, and what comes after it if it works; returns the error if it is refused."""
        try:
            with self.db.transaction(force_rollback=True):
                self.db.execute(statement, arguments)
                self._afterwards()
        except psycopg.Error as caught:
            error = caught
        else:
            return None
        finally:
            self.db.execute("select pg_advisory_unlock_all()")
        # The same outside of a transaction: nothing is left behind.
        with pytest.raises(psycopg.Error) as again:
            self.db.execute(statement, arguments)
        assert again.value.sqlstate == error.sqlstate
        assert self.fingerprint() == self.content
        return error

    def _afterwards(self) -> None:
        # One message, so that it takes one round trip; what comes back is read, since a client must be able to.
        with self.db.cursor() as cursor:
            try:
                cursor.execute("; ".join(AFTERWARDS).encode())
                for _ in cursor.results():
                    if cursor.description is not None:
                        cursor.fetchall()
            except psycopg.Error as error:
                text = f"works, but afterwards {error.sqlstate} {str(error)[:200]} {error.diag.context}"
                raise AssertionError(text) from error

    def judge(self, error: psycopg.Error, given: Row, allowed: dict[str, str]) -> None:
        """Refused for a reason that is on the list, in words that help."""
        said = error.diag.message_primary or ""
        state = error.sqlstate or ""
        assert state.startswith("PR00") or state in allowed, f"{state} {said[:300]} {error.diag.context}"
        assert len(said) <= 1000, f"a message of {len(said)} characters"
        if state.startswith("PR00"):
            assert error.diag.message_hint
            named = [name for name in given if name.removesuffix("_id") in said]
            texts = ["NULL" if one is None else str(one)[:40].replace("'", "''") for one in given.values()]
            assert named or any(text in said for text in texts) or "cron" in said or "time zone" in said, said
        elif state in {"23514", "23505", "23503"}:
            assert error.diag.constraint_name in self.constraints
        elif state == "23502":
            assert error.diag.column_name


@pytest.fixture(scope="module")
def place(server: Server, template: str, name_database: Iterator[str]) -> Iterator[Place]:
    """One database for all of it."""
    name = next(name_database)
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template)))
        made = Place(with_database(server.dsn, name))
        yield made
        made.db.close()
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def call(function: str, types: dict[str, str], given: Row) -> sql.Composed:
    """A call with named arguments, each cast to its type so that the text goes to the function."""
    named = [
        sql.SQL("{} => {}::{}").format(sql.Identifier(name), sql.Placeholder(name), sql.SQL(types[name]))
        for name in given
    ]
    return sql.SQL("select * from pgrecall.{}({})").format(sql.Identifier(function), sql.SQL(", ").join(named))


def test_every_function_of_the_api_is_tried_here(place: Place) -> None:
    assert set(place.routines()) == set(FUNCTIONS) | set(LEFT_OUT), "add arguments that make sense to FUNCTIONS"


def test_every_table_is_tried_here(place: Place) -> None:
    found = rows(place.db, "select tablename as name from pg_tables where schemaname = 'pgrecall'")
    assert {one["name"] for one in found} == set(INSERTS) | INTERNAL | ONE_ROW


def test_every_argument_and_column_has_a_type_with_values_to_try(place: Place) -> None:
    arguments = {kind for known in place.routines().values() for _, kind in known}
    columns = {kind for table in INSERTS for kind in place.columns(table).values()}
    assert arguments | columns <= set(fuzztools.VALUES)


def problems_of_arguments(place: Place, function: str, given: Row, *names: str) -> list[str]:
    """What is not as it should be when these arguments get every value of their type in turn."""
    types = dict(place.routines()[function])
    allowed = OF_FUNCTIONS | {state: why for (name, state), why in OF_FUNCTION.items() if name == function}
    given = {name: str(one).replace("the run", str(place.run_id)) for name, one in given.items()}
    wrong = []
    for name in names:
        for tried in fuzztools.values_of(place.db, types[name]):
            arguments = given | {name: tried}
            try:
                error = place.refusal(call(function, types, arguments), arguments)
                if error is not None:
                    place.judge(error, {name: tried} | arguments, allowed)
            except AssertionError as error:
                wrong.append(f"{name} => {fuzztools.shown(tried)}: {str(error)[:400]}")
    return wrong


CASES = [*FUNCTIONS.items(), *((name, FUNCTIONS[name] | more) for name, more in VARIANTS)]


@pytest.mark.parametrize(
    ("function", "given"), CASES, ids=[*FUNCTIONS, *(f"{name}-{'-'.join(more)}" for name, more in VARIANTS)]
)
def test_a_function_works_or_refuses_by_name_whatever_it_is_given(place: Place, function: str, given: Row) -> None:
    names = [name for name, _ in place.routines()[function]]
    assert problems_of_arguments(place, function, given, *names) == []


def test_the_functions_that_say_what_is_wrong_never_raise(place: Place) -> None:
    for text in fuzztools.TEXTS:
        for function in ("cron_error", "time_zone_error"):
            said = place.db.execute(f"select pgrecall.{function}(%s)".encode(), [text]).fetchone()
            assert said is not None
            assert said[0] is None or 0 < len(said[0]) < 1000


def problems_of_columns(place: Place, table: str, *names: str) -> list[str]:
    """What is not as it should be when these columns get every value of their type, by INSERT and by UPDATE."""
    kinds = place.columns(table)
    wrong = []
    for column in names:
        name = sql.Identifier(column)
        mark = sql.SQL("%(tried)s::{}").format(sql.SQL(kinds[column]))
        others = {known: one for known, one in INSERTS[table].items() if known != column}
        insert = sql.SQL("insert into pgrecall.{} ({}) values ({})").format(
            sql.Identifier(table),
            sql.SQL(", ").join([name, *map(sql.Identifier, others)]),
            sql.SQL(", ").join([mark, *map(sql.Placeholder, others)]),
        )
        # One row at a time: otherwise the first one that is refused hides the others.
        updates = [
            sql.SQL("update pgrecall.{} as t set {} = {} where {}").format(
                sql.Identifier(table),
                name,
                mark,
                sql.SQL(where),
            )
            for where in UPDATES[table]
        ]
        for statement in [insert, *updates]:
            for tried in fuzztools.values_of(place.db, kinds[column]):
                try:
                    error = place.refusal(statement, {"tried": tried, **others})
                    if error is not None:
                        place.judge(error, {column: tried}, OF_WRITES)
                except AssertionError as error:
                    verb = "insert" if statement is insert else f"update {UPDATES[table][updates.index(statement)]}"
                    wrong.append(f"{verb} {column} = {fuzztools.shown(tried)}: {str(error)[:400]}")
    return wrong


@pytest.mark.parametrize("table", INSERTS)
def test_a_plain_write_works_or_is_refused_by_name(place: Place, table: str) -> None:
    names = [name for name in place.columns(table) if f"{table}.{name}" not in CLAIMS_OWN]
    assert problems_of_columns(place, table, *names) == []


# Several at once

SCHEDULE = {
    "session_id": "text",
    "additional_context_message": "text",
    "trigger_at": "timestamp with time zone",
    "call_type": "text",
    "interval_seconds": "integer",
    "cron": "text",
    "time_zone": "text",
    "end_at": "timestamp with time zone",
    "max_attempts": "integer",
    "timeout_seconds": "integer",
    "idempotency_key": "text",
    "metadata": "jsonb",
}
short = [text for text in fuzztools.TEXTS if len(text) <= 1000]
some = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from([None, *(short if kind == "text" else fuzztools.VALUES[kind])])
        for name, kind in SCHEDULE.items()
    },
)


@settings(
    max_examples=5000 if LONG else 150,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(chosen=some, function=st.booleans())
def test_several_bad_values_at_once_are_refused_like_one(place: Place, chosen: Row, function: bool) -> None:
    arguments = {"session_id": "idle", "additional_context_message": "Go on."} | chosen
    if function:
        statement = call("schedule_recall", SCHEDULE, arguments)
    else:
        statement = sql.SQL("insert into pgrecall.session_recalls ({}) values ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, arguments)),
            sql.SQL(", ").join(
                sql.SQL("{}::{}").format(sql.Placeholder(name), sql.SQL(SCHEDULE[name])) for name in arguments
            ),
        )
    error = place.refusal(statement, arguments)
    if error is not None:
        place.judge(error, arguments, OF_FUNCTIONS if function else OF_WRITES)


# Python

#: Methods of the scheduler and arguments that make sense for each.
METHODS: dict[str, Row] = {
    "schedule_recall": {"session_id": "idle", "additional_context_message": "Go on."},
    "cancel_recall": {"session_id": "waits"},
    "skip_next_recall": {"session_id": "waits"},
    "resume_all": {},
    "resume_recall": {"recall_id": "waits"},
    "reschedule": {"recall_id": "waits", "new_trigger_at": datetime(2030, 1, 1, tzinfo=UTC)},
    "mark_fired": {"recall_id": "waits"},
    "mark_cancelled": {"recall_id": "waits"},
    "history": {"recall_id": "ended"},
    "hold_session": {"session_id": "idle", "holder": "chat"},
    "pause_all": {"reason": "an incident"},
    "pause_recall": {"recall_id": "waits"},
    "touch_session": {"session_id": "idle"},
    "report_run": {"run_id": 1, "reply": "Done."},
    "retry_delivery": {"delivery_id": 1},
    "get_audit": {"recall_id": "waits"},
    "get_deliveries": {},
    "purge": {},
    "purge_history": {"session_id": "ended"},
    "list_recalls": {"is_admin": True},
    "get_pending_recalls": {"before": datetime(2030, 1, 1, tzinfo=UTC)},
    "free_session": {"session_id": "held", "holder": "chat"},
    "get_holds": {},
    "get_next_trigger_at": {},
    "get_pending_session_ids": {"session_ids": ["waits"]},
    "get_recall": {"recall_id": "waits"},
    "get_runs": {"recall_id": "waits"},
    "run_now": {"recall_id": "waits"},
    "retry_recall": {"recall_id": "waits"},
    "stop_run": {"recall_id": "runs"},
    "pause_session": {"session_id": "idle"},
    "pause_user": {"user_id": "ada"},
    "resume_session": {"session_id": "idle"},
    "resume_user": {"user_id": "ada"},
    "cancel_recalls": {"user_id": "ada"},
    "pause_recalls": {"user_id": "ada"},
    "resume_recalls": {"user_id": "ada"},
    "skip_recalls": {"user_id": "ada"},
    "reschedule_recalls": {"user_id": "ada", "by": timedelta(hours=1)},
    "run_recalls_now": {"user_id": "ada"},
    "retry_recalls": {"user_id": "ada"},
    "stop_runs": {"user_id": "ada"},
    "upcoming": {"recall_id": "waits"},
}
#: Methods that take nothing from a caller that could be bad.
WITHOUT_INPUT = {"close", "ensure_tables"}


def test_every_method_of_the_scheduler_is_tried_here() -> None:
    public = {name for name, _ in inspect.getmembers(SyncRecallScheduler, callable) if not name.startswith("_")}
    assert public == set(METHODS) | WITHOUT_INPUT


@pytest.mark.parametrize("method", METHODS)
def test_a_method_works_or_raises_a_recall_error_whatever_it_is_given(place: Place, method: str) -> None:
    scheduler = SyncRecallScheduler(place.db.info.dsn)
    function = getattr(scheduler, method)
    wrong = []
    tried = [None, *fuzztools.TEXTS, *fuzztools.UNSTORABLE, *fuzztools.STRANGE]
    tried += [[one] for one in (None, 5, "\x00", "\ud800", object())]
    for name in inspect.signature(function).parameters:
        if name == "connection":
            continue
        for one in tried:
            try:
                with place.db.transaction(force_rollback=True):
                    given = METHODS[method] | {name: one}
                    if method == "hold_session":  # it has connections of its own, so here it only asks
                        scheduler.database.run(function(**given)._ask(), place.db)
                    else:
                        function(**given, connection=place.db)
            except RecallError as error:
                if len(str(error)) > 1000 or not str(error):
                    wrong.append(f"{name}={fuzztools.shown(one)}: a message of {len(str(error))} characters")
            except Exception as error:  # noqa: BLE001 (that is the question)
                wrong.append(f"{name}={fuzztools.shown(one)}: {type(error).__name__} {str(error)[:200]}")
    assert not wrong, "\n".join(wrong)
    assert place.fingerprint() == place.content


@pytest.mark.parametrize(
    "dsn",
    [
        *(text for text in fuzztools.TEXTS if len(text) < 1000),
        "postgresql://[",
        "port=no",
        "\x00",
        "\ud800",
    ],
    ids=fuzztools.shown,
)
def test_a_connection_string_is_usable_or_refused(dsn: str) -> None:
    with suppress(SettingsError):
        SyncRecallScheduler(dsn)


# The command line

#: Arguments that make sense, by verb; the options are found in the program.
VERBS: dict[str, list[str]] = {
    "adopt": ["pgrecall.session_messages"],  # it has no column status
    "audit": ["waits"],
    "cancel": ["waits"],
    "deliveries": [],
    "free": ["idle"],
    "history": ["waits"],
    "holds": [],
    "list": [],
    "pause": ["waits"],
    "purge": ["--session", "ended", "--yes"],
    "reschedule": ["waits", "--in", "1h"],
    "resume": ["waits"],
    "retry": ["ended"],
    "run-now": ["waits"],
    "schedule": ["idle", "Go on."],
    "settings": ["timeout_seconds=600"],
    "status": [],
    "show": ["waits"],
    "skip": ["waits"],
    "stop": ["runs"],
    "token": ["idle"],
    "use-own-sessions": [],
    "use-sessions-table": ["pg_class"],
    "worker": ["--agent", "no_such_module:agent"],  # so no worker starts
}
#: Verbs that run until something ends them, or look at the whole database.
OTHER_VERBS = {"demo", "doctor", "mcp", "migrate", "roles"}
#: Options that say which database and how to answer.
COMMON = {"dsn", "embedded", "as_json", "debug", "help"}


def test_every_verb_is_tried_here() -> None:
    assert set(cli.commands) == set(VERBS) | OTHER_VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_works_or_says_in_one_line_what_is_wrong(place: Place, verb: str) -> None:
    wrong = []
    dsn = place.db.info.dsn
    texts = [text for text in fuzztools.TEXTS if len(text) <= 100_000] + fuzztools.UNSTORABLE
    texts += ["99999999999999999999w", "1e400s", "-1h", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "[1]"]
    texts += [
        "2147483648",
        "-2147483649",
        "9" * 5000,
        "[" * 100_000,
        '{"a": NaN}',
        '{"a": "\\ud800"}',
        '{"\\u0000": 1}',
    ]
    for parameter in cli.commands[verb].params:
        if parameter.name in COMMON or getattr(parameter, "is_flag", False):
            continue
        for text in texts:
            arguments = VERBS[verb]
            if parameter.param_type_name == "argument":
                place_of = [one for one in cli.commands[verb].params if one.param_type_name == "argument"].index(
                    parameter
                )
                arguments = [text if number == place_of else one for number, one in enumerate(arguments)]
                if text.startswith("-"):
                    arguments = ["--", *arguments]
            else:
                arguments = [*arguments, f"{parameter.opts[-1]}={text}"]
            result = CliRunner().invoke(cli, [verb, "--dsn", dsn, *arguments])
            if problem := problem_of(result):
                wrong.append(f"{parameter.opts[-1]} {fuzztools.shown(text)}: {problem}")
            if result.exit_code == 0:
                place.fill()
            else:
                assert place.fingerprint() == place.content
    assert not wrong, "\n".join(wrong)


def problem_of(result: Result) -> str | None:
    """What is wrong with how a verb ended."""
    if result.exit_code == 0:
        return None
    if not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__} {str(result.exception)[:200]}"
    if result.exit_code not in {1, 2, 3, 4}:
        return f"exit code {result.exit_code}: {result.stderr[:300]}"
    line, *hints, end = result.stderr.split("\n")
    if not line.startswith("error: ") or len(hints) > 1 or not all(hint.startswith("hint: ") for hint in hints) or end:
        return f"not an error and a hint, one line each: {result.stderr[:300]!r}"
    if len(line) > 1000:
        return f"a line of {len(line)} characters"
    return None
