"""docs/errors.md says what is so: no SQLSTATE, class, exit code or constraint is missing there, extra, or wrong."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest
from sqltools import refused, rows

from pgrecall import errors, schema
from pgrecall.cli.errors import report
from pgrecall.database import translate

PAGE = (Path(__file__).parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")
#: What an example leaves out, by table.
SENSIBLE = {
    "session_recalls": {"session_id": "'free'", "additional_context_message": "'Go on.'"},
    "sessions": {"id": "'new'"},
    "session_messages": {"session_id": "'free'", "role": "'user'", "content": "'Hello.'"},
    "settings": {},
}


def tables(text: str) -> list[list[str]]:
    """The rows of the tables in a text, without their heads."""
    lines = [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| SQLSTATE", "| cl"))
    ]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] not in ("constraint", "statement")]


def section(title: str) -> str:
    """The text below a heading."""
    return re.split(r"^#+ ", PAGE.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def constraints(table: str) -> list[tuple[str, str]]:
    """The constraints of a table on the page, each with its example."""
    return [(name.strip("`"), example.strip("`")) for name, _, example in tables(section(f"pgrecall.{table}"))]


def named(cell: str) -> list[str]:
    """What a cell puts between backquotes, without links and calls."""
    return re.findall(r"(?<!\[)`(\w+)`", cell)


def wanted() -> list[tuple[str, str]]:
    """What each constraint on the page asks for, without marks and links."""
    return [
        (name.strip("`"), re.sub(r"\[(.*?)\]\(.*?\)", r"\1", asks).replace("`", ""))
        for table in SENSIBLE
        for name, asks, _ in tables(section(f"pgrecall.{table}"))
    ]


CODES = [row for row in tables(section("Errors of the functions")) if row[0].startswith("`PR")]
CONSTRAINTS = [(table, *one) for table in SENSIBLE for one in constraints(table)]


@pytest.fixture
def db(db: psycopg.Connection) -> psycopg.Connection:
    """The connection, with the sessions that the page speaks of."""
    db.execute("insert into pgrecall.sessions (id) values ('free'), ('busy'), ('ended'), ('runs')")
    db.execute(
        """insert into pgrecall.session_recalls (
            id, session_id, additional_context_message, status, idempotency_key, run_id, worker_id, nominal_at,
            claimed_at
        )
        values
            ('taken', 'busy', 'Go on.', 'pending', null, null, null, null, null),
            ('over', 'ended', 'Go on.', 'fired', 'known', null, null, null, null),
            ('running', 'runs', 'Go on.', 'running', null, 7, 'w', now(), now())"""
    )
    # The server does not give this number again.
    db.execute("select setval(pg_get_serial_sequence('pgrecall.session_messages', 'position'), 1)")
    db.execute(
        """insert into pgrecall.session_messages (session_id, position, id, role, content)
        overriding system value values ('free', 1, 'said', 'user', 'Hello.')"""
    )
    return db


def test_every_sqlstate_has_its_class_and_no_other_is_told() -> None:
    classes = {
        found.sqlstate: name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.RecallError) and found.sqlstate is not None
    }
    assert {row[0].strip("`"): row[4].strip("`") for row in CODES} == classes


def test_every_class_is_told() -> None:
    above = {"RecallError", "SchemaError"}  # bases of others
    names = {name for name, found in vars(errors).items() if isinstance(found, type) and name.endswith("Error")}
    assert names - above == set(re.findall(r"`(\w+Error)`", section("Errors of the functions"))) - above


@pytest.mark.parametrize("row", CODES, ids=lambda row: row[0])
def test_the_functions_of_a_row_promise_its_sqlstate(db: psycopg.Connection, row: list[str]) -> None:
    code = row[0].strip("`")
    functions = [name for name in named(row[2]) if name != "session_id"]
    comments = rows(
        db,
        """select proname, obj_description(oid, 'pg_proc') as comment from pg_proc
        where pronamespace = 'pgrecall'::regnamespace and proname = any(%s)""",
        functions,
    )
    assert sorted(one["proname"] for one in comments) == sorted(functions)
    assert [one["proname"] for one in comments if code not in one["comment"]] == []


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    told: dict[str, str] = {}
    for row in tables(section("Errors of the functions")):
        told |= {name: row[-1] for cell in (row[0], row[-2]) for name in named(cell) if name.endswith("Error")}
    told.pop("HoldLostError")  # no verb holds a session
    assert {name: str(report(getattr(errors, name)("x"), as_json=True)) for name in told} == told


@pytest.mark.parametrize(("table", "constraint", "example"), CONSTRAINTS, ids=lambda part: part)
def test_an_example_is_refused_by_its_constraint(
    db: psycopg.Connection, table: str, constraint: str, example: str
) -> None:
    columns = SENSIBLE[table] | dict(re.findall(r"(\w+) = ('[^']*'|[\w-]+(?:\('x', \d+\))?)", example))
    names, values = ", ".join(columns), ", ".join(columns.values())
    statement = f"insert into pgrecall.{table} ({names}) overriding system value values ({values})"
    if table == "settings" and constraint != "settings_has_one_row":
        statement = f"update pgrecall.settings set {example}"
    with pytest.raises(psycopg.IntegrityError) as caught, db.transaction():
        db.execute(statement.encode())
    assert caught.value.diag.constraint_name == constraint


@pytest.mark.parametrize("table", SENSIBLE)
def test_every_constraint_is_told(db: psycopg.Connection, table: str) -> None:
    there = rows(
        db,
        """select conname as name from pg_constraint
        where conrelid = %(table)s::regclass and contype in ('c', 'f', 'p', 'u', 'x')
        union select relname from pg_index join pg_class on pg_class.oid = indexrelid
        where indrelid = %(table)s::regclass and indisunique order by 1""".replace("%(table)s", "%s"),
        f"pgrecall.{table}",
        f"pgrecall.{table}",
    )
    assert sorted(name for name, _ in constraints(table)) == [one["name"] for one in there]


@pytest.mark.parametrize("row", tables(section("Errors of a plain INSERT")), ids=lambda row: row[2][:40])
def test_a_plain_statement_gets_the_error_that_is_told(db: psycopg.Connection, row: list[str]) -> None:
    statement, code, message = row
    with refused(db, code.strip("`")) as caught:
        db.execute(statement.strip("`").encode())
    assert caught.value.diag.message_primary == message


def test_a_message_of_its_own_reaches_python(db: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as caught, db.transaction():
        db.execute("update pgrecall.sessions set time_zone = 'CET'")
    error = translate(caught.value)
    assert isinstance(error, errors.InvalidRecallError)
    assert error.constraint == "time_zone_of_session_must_be_an_iana_name"
    assert str(error).startswith("'CET' is not an IANA time zone name")
    assert "Europe/Paris" in error.hint


#: Of 0.1.0, and a name that clients may know does not change.
CUT = {
    "created_at_of_message_must_be_a_finite_time_in_the_years_1_to_9",
    "paused_at_of_settings_must_be_a_finite_time_in_the_years_1_to_9",
    "paused_until_of_settings_must_be_a_finite_time_in_the_years_1_t",
}


def test_no_other_name_of_a_constraint_was_cut(db: psycopg.Connection) -> None:
    """PostgreSQL keeps 63 bytes of it: "…_in_the_years_1_to_9" would not be so."""
    names = rows(db, "select conname as name from pg_constraint where connamespace = 'pgrecall'::regnamespace")
    cut = re.compile(r"_1_t(o(_9{0,3})?)?$")
    assert {one["name"] for one in names if cut.search(one["name"]) or len(one["name"]) > 62} == CUT


def test_an_upgrade_leaves_rows_alone_whose_zone_the_server_has_dropped(empty_database: str) -> None:
    """They stand in the way of nothing, and no new one gets in."""
    bad = "alter table pgrecall.session_recalls {} constraint time_zone_must_be_an_iana_name {}"
    with psycopg.connect(empty_database, autocommit=True) as old:
        for name in schema.script_files():
            if not name.startswith("routines") and "0002" not in name:
                old.execute((schema.sql_root() / name).read_text(encoding="utf-8").encode())
        old.execute(bad.format("drop", "").encode())
        old.execute("alter table pgrecall.session_recalls disable trigger announce_insert")
        old.execute("insert into pgrecall.sessions (id) values ('s1'), ('s2')")
        insert = """insert into pgrecall.session_recalls (id, session_id, additional_context_message, time_zone)
            values (%s, %s, 'Go on.', 'Gone/Zone')"""
        old.execute(insert, ["r1", "s1"])
        check = "check (time_zone is null or pgrecall.time_zone_error(time_zone) is null) not valid"
        old.execute(bad.format("add", check).encode())
        schema.install(old)
        valid = "select conname from pg_constraint where connamespace = 'pgrecall'::regnamespace and not convalidated"
        assert [one["conname"] for one in rows(old, valid)] == ["time_zone_must_be_an_iana_name"]
        with refused(old, "23514"):
            old.execute(insert, ["r2", "s2"])
        old.execute("update pgrecall.session_recalls set time_zone = 'UTC'")
        old.execute(bad.format("validate", "").encode())


def test_the_comment_of_a_constraint_asks_for_the_same_as_the_page(db: psycopg.Connection) -> None:
    comments = {
        one["name"]: one["comment"]
        for one in rows(
            db,
            """select conname as name, obj_description(oid, 'pg_constraint') as comment from pg_constraint
            where connamespace = 'pgrecall'::regnamespace
            union all
            select relname, obj_description(pg_class.oid, 'pg_class') from pg_index join pg_class on oid = indexrelid
            where relnamespace = 'pgrecall'::regnamespace and indisunique
                and not exists (select from pg_constraint where conindid = indexrelid)""",
        )
    }
    # A sentence may begin with a capital.
    assert [(name, asks, comments[name]) for name, asks in wanted() if asks[1:] not in comments[name]] == []
