"""help(): what stands there works, fits the screen, and leaves nothing of the administration out."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from roletools import ROLES, connections, logins
from sqltools import Row, add, add_recurring, add_session, call, claim_one, finish, row, rows, value

WIDTH = 160
#: Commands of psql: not for the server.
META = re.compile(r"^\\")
#: What a row needs beside a pending recall of the session.
STATES = {
    "retry_recall(": "failed",
    "retry_recalls(": "failed",
    "stop_run(": "running",
    "stop_runs(": "running",
    "retry_delivery(": "running",
}


def page(db: psycopg.Connection, topic: str | None = None) -> list[Row]:
    """What help() answers."""
    return call(db, "help", topic=topic)


def shown(answer: list[Row]) -> int:
    """How wide psql's aligned format is: a blank on both sides of a column, a bar between two."""
    widths = [
        max([len(name), *(len(line) for one in answer for line in (one[name] or "").split("\n"))]) + 2
        for name in ("about", "you_want", "type_this")
    ]
    return sum(widths) + len(widths) - 1


def prepare(db: psycopg.Connection, statement: str) -> None:
    """Make the rows that the placeholders stand for, in a state that the statement is for."""
    add_session(db, "SESSION", user_id="USER")
    if "schedule_recall(" in statement or statement.startswith("insert"):
        return
    state = next((state for function, state in STATES.items() if function in statement), "pending")
    due = datetime.now(UTC) + (timedelta(minutes=30) if state == "pending" else timedelta(seconds=-1))
    if "skip" in statement:
        add_recurring(db, "SESSION", due, id="RECALL")
        return
    add(db, "SESSION", due, id="RECALL", deliver_to="https://host/replies")
    if state == "pending":
        return
    run = claim_one(db)
    if state == "failed":
        finish(db, run, "error", error="the API was down")


def test_what_it_says_works(db: psycopg.Connection) -> None:
    """Each statement on rows that are as it expects them; what changes something answers with what it has changed."""
    tried = 0
    for line in page(db):
        if META.match(line["type_this"]):
            continue
        statement = line["type_this"].removesuffix(r"\gx")
        try:
            with db.transaction(force_rollback=True):
                prepare(db, statement)
                if '"LOGIN"' in statement:
                    db.execute('create role "LOGIN"')
                if "retry_delivery(" in statement:
                    run = row(db, "select id as recall_id, run_id from pgrecall.session_recalls")
                    finish(db, run, reply="Done.")
                    statement = statement.replace("(1)", f"({value(db, 'select max(id) from pgrecall.deliveries')})")
                cursor = db.execute(statement.encode())
                changed = cursor.fetchall() if cursor.description else [(cursor.rowcount,)]
                if line["about"] in ("pause", "cancel", "run", "make") and not line["you_want"].startswith("resume"):
                    assert changed, line
        except psycopg.Error as error:
            error.add_note(repr(line))
            raise
        tried += 1
    assert tried > 55


@pytest.mark.parametrize(
    "topic", [None, "settings", "schedule_recall", "session_recalls", "overview", "claim", "help", "announce_update"]
)
def test_it_fits_the_screen(db: psycopg.Connection, topic: str | None) -> None:
    assert shown(page(db, topic)) <= WIDTH


def test_it_fits_the_screen_for_the_name_of_whatever_is_there(db: psycopg.Connection) -> None:
    names = rows(
        db,
        """select relname as name from pg_class where relnamespace = 'pgrecall'::regnamespace
        union select proname from pg_proc where pronamespace = 'pgrecall'::regnamespace
        union select conname from pg_constraint where connamespace = 'pgrecall'::regnamespace""",
    )
    wide = [(one["name"], shown(page(db, one["name"]))) for one in names]
    assert [one for one in wide if one[1] > WIDTH] == []


def test_all_that_operators_may_do_and_see_is_there(db: psycopg.Connection) -> None:
    said = " ".join(one["type_this"] for one in page(db))
    known = rows(
        db,
        """select proname as name from pg_proc as routine, aclexplode(proacl) as granted
        where pronamespace = 'pgrecall'::regnamespace and proname !~ '^_'
            and granted.grantee = to_regrole('pgrecall_operator')
        union select relname from pg_class where relnamespace = 'pgrecall'::regnamespace and relkind = 'v'""",
    )
    if value(db, "select to_regrole('pgrecall_operator') is not null"):
        assert len(known) > 40
    missing = [one["name"] for one in known if not re.search(rf"\bpgrecall\.{one['name']}\b", said)]
    assert missing == []


@pytest.mark.parametrize(
    ("topic", "found"),
    [
        ("why was a recall late", "late_runs"),
        ("late", "due_recalls"),
        ("pause everything for an hour", "pause_all("),
        ("Pause everything", "pause_all("),
        ("cancel user", "cancel_recalls(user_id"),
        ("cancel all of a user's recalls", "cancel_recalls(user_id"),
        ("stop", "stop_run("),
        ("resume", "resume_all("),
        ("audit", "get_audit("),
        ("pause_user", "pause_user("),
        ("pgrecall.pause_user('ann')", "pause_user("),
        ("history", "purge_history("),
        ("one_pending_recall_per_session", "one_pending_recall_per_session"),
    ],
)
def test_a_topic_finds(db: psycopg.Connection, topic: str, found: str) -> None:
    answer = page(db, topic)
    assert [one for one in answer if found in one["type_this"]] != []
    assert len(answer) < len(page(db)) / 2


@pytest.mark.parametrize(
    ("topic", "about", "comment"),
    [
        ("stop_run", "function", "Tells the run of a recall to stop"),
        ("PGRECALL.STOP_RUN(", "function", "Tells the run of a recall to stop"),
        ("recall_runs", "table", "ledger"),
        ("overview", "view", ""),
        ("timeout_seconds", "column", "Wall-clock limit"),
        ("settings.timeout_seconds", "column", "Wall-clock limit"),
        ("max_attempts_must_be_greater_than_zero", "rule", "1 or more"),
        ("recall_update", "trigger", ""),
        ("recalls_ended", "index", "Serves purge()"),
        ("run_ids", "sequence", "Numbers runs."),
    ],
)
def test_a_name_finds_the_comment_first(db: psycopg.Connection, topic: str, about: str, comment: str) -> None:
    first = page(db, topic)[0]
    assert first["about"] == about
    assert first["you_want"]
    assert comment in first["you_want"].replace("\n", " ")


def test_the_signature_of_a_function_says_what_may_be_left_out_and_what_comes_back(db: psycopg.Connection) -> None:
    assert page(db, "pause_all")[0]["type_this"].replace("\n", " ") == (
        "pgrecall.pause_all(reason text = NULL, paused_until timestamp with time zone = NULL) returns pgrecall.settings"
    )


@pytest.mark.parametrize("topic", ["qwertz", "%", "''; drop", "(", "_", "Ωμέγα", "x" * 10_000, " "])
def test_it_always_answers(db: psycopg.Connection, topic: str) -> None:
    answer = page(db, topic)
    everything = page(db)
    assert shown(answer) <= WIDTH
    if answer[0]["about"] == "nothing":
        assert answer[1:] == everything
    else:
        assert answer


def test_a_topic_that_nothing_is_about_is_told_so(db: psycopg.Connection) -> None:
    assert page(db, "qwertz")[0] == {
        "about": "nothing",
        "you_want": "nothing is about 'qwertz'; this is all there is",
        "type_this": None,
    }


def test_a_role_is_told_what_it_may_do_and_nothing_else(database: str) -> None:
    with logins(database, **{role: role for role in ROLES}) as dsns, connections(dsns) as opened:
        said = {role: " ".join(one["type_this"] for one in page(connection)) for role, connection in opened.items()}
    expected = {
        "pgrecall.pause_all(": {"operator"},
        "update pgrecall.settings": {"operator"},
        "from pgrecall.overview": {"operator", "observer"},
        "insert into pgrecall.session_recalls": {"producer", "operator", "user"},
        "insert into pgrecall.sessions": {"producer", "chat", "worker", "operator"},
        "pgrecall.free_session(": {"chat", "operator"},
        r"\df+ pgrecall.*": set(ROLES),
    }
    assert {text: {role for role in ROLES if text in said[role]} for text in expected} == expected


def test_it_names_nothing_that_is_not_there(db: psycopg.Connection) -> None:
    """What does not exist may not be called either, and would be left out without a word."""
    source = str(
        value(db, "select prosrc from pg_proc where proname = 'help' and pronamespace = 'pgrecall'::regnamespace")
    )
    named = set(re.findall(r"\bpgrecall\.(\w+)", source))
    known = rows(
        db,
        """select proname as name from pg_proc where pronamespace = 'pgrecall'::regnamespace
        union select relname from pg_class where relnamespace = 'pgrecall'::regnamespace""",
    )
    assert named - {one["name"] for one in known} == set()
