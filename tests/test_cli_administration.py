"""The verbs for operators: run-now, retry, stop, pauses of sessions and users, and all recalls of a user."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgrecall.cli import many
from pgrecall.cli.app import cli

Run = Callable[..., Result]


@pytest.fixture
def run(database: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a verb on the test's database."""
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("COLUMNS", raising=False)
    return lambda *arguments, **more: CliRunner().invoke(cli, [*arguments, "--dsn", database], **more)


@pytest.fixture
def db(database: str) -> Iterator[psycopg.Connection]:
    """A connection; the sessions s1 and s2 belong to ada, s3 to ben."""
    with psycopg.connect(database, autocommit=True) as connected:
        connected.execute(
            "insert into pgrecall.sessions (id, user_id) values ('s1', 'ada'), ('s2', 'ada'), ('s3', 'ben')"
        )
        yield connected


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody could answer."""
    monkeypatch.setattr(many, "_is_at_terminal", lambda: True)


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def said(result: Result) -> str:
    """What was printed, without the line breaks of its table."""
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def failure(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    return result.stderr


def add(db: psycopg.Connection, recall_id: str, session_id: str = "s1", **columns: object) -> None:
    """A recall that is due in 2031."""
    given = {"trigger_at": "2031-01-01T00:00Z", "additional_context_message": "hello", **columns}
    given |= {"id": recall_id, "session_id": session_id}
    names, places = ", ".join(given), ", ".join(["%s"] * len(given))
    db.execute(f"insert into pgrecall.session_recalls ({names}) values ({places})".encode(), list(given.values()))


def status(db: psycopg.Connection, *recall_ids: str) -> list[str]:
    found = db.execute("select id, status from pgrecall.session_recalls")
    by_id: dict[str, str] = dict(found.fetchall())
    return [by_id[recall_id] for recall_id in recall_ids]


def claim(db: psycopg.Connection) -> list[str]:
    db.execute("select pgrecall.register_worker('w1', 9)")
    found = db.execute("select recall_id from pgrecall.claim('w1', 50) where run_id is not null")
    return sorted(recall_id for (recall_id,) in found.fetchall())


def crowd(db: psycopg.Connection, number: int, **columns: object) -> None:
    """So many sessions of eve, each with a recall."""
    for one in range(number):
        db.execute("insert into pgrecall.sessions (id, user_id) values (%s, 'eve')", [f"e{one}"])
        add(db, f"r{one}", f"e{one}", **columns)


# One recall


def test_run_now_makes_a_recall_due(run: Run, db: psycopg.Connection) -> None:
    add(db, "r1")
    assert run("run-now", "r1").stdout.startswith("made due r1 in session s1, pending, ")
    assert run("run-now", "r1").stdout.startswith("was due already: r1 in")
    assert claim(db) == ["r1"]
    assert run("run-now", "r1").stdout.startswith("runs already: r1 in")
    assert answer(run("run-now", "r1", "--json"))["status"] == "running"


def test_run_now_says_what_stands_in_its_way(run: Run, db: psycopg.Connection) -> None:
    add(db, "r1")
    run("pause", "--user", "ada", "--reason", "holidays")
    assert "user ada is paused: holidays" in failure(run("run-now", "r1"), 4)
    add(db, "r3", "s3", status="cancelled")
    assert "retry_recall" in failure(run("run-now", "r3"), 4)
    failure(run("run-now", "nobody"), 3)
    failure(run("run-now"), 2)


def test_retry_makes_a_failed_recall_pending_again(run: Run, db: psycopg.Connection) -> None:
    add(db, "r1", status="failed", trigger_at="2026-01-01T00:00Z")
    assert run("retry", "r1").stdout.startswith("tries again r1 in session s1, pending")
    assert run("retry", "r1").stdout.startswith("has not ended: r1 in session s1, pending")
    add(db, "r2", status="failed")
    assert "already has a pending recall" in failure(run("retry", "r2"), 4)
    failure(run("retry", "nobody"), 3)


def test_stop_tells_the_run_and_show_and_list_tell_of_it(run: Run, db: psycopg.Connection) -> None:
    add(db, "r1", trigger_at="2026-01-01T00:00Z")
    assert run("stop", "r1").stdout == "recall r1 does not run: nothing to stop\n"
    claim(db)
    told = run("stop", "r1", "--reason", "too costly", "--then", "retry").stdout
    assert told.startswith("told run ")
    assert told.endswith(" of recall r1 in session s1 to stop: its occurrence runs again\n")
    assert "stopping, for" in said(run("list"))
    assert "too costly; then the occurrence runs again" in said(run("show", "r1"))
    stopped = answer(run("stop", "r1", "--json"))
    assert (stopped["after_stop"], stopped["stop_reason"]) == ("skip", "too costly")
    failure(run("stop", "nobody"), 3)


def test_reschedule_by_moves_from_the_recalls_own_time(run: Run, db: psycopg.Connection) -> None:
    add(db, "r1")
    assert answer(run("reschedule", "r1", "--by", "1h", "--json"))["trigger_at"] == "2031-01-01T01:00:00+00:00"
    assert answer(run("reschedule", "r1", "--by", "-2h", "--json"))["trigger_at"] == "2030-12-31T23:00:00+00:00"
    assert "no date" in failure(run("reschedule", "r1", "--by", "999999w"), 2)


# A session or a user


def test_a_session_is_paused_and_resumed_by_its_name(run: Run, db: psycopg.Connection) -> None:
    add(db, "r1", trigger_at="2026-01-01T00:00Z")
    line = "session s1 is paused until pgrecall resume --session s1: holidays"
    assert run("pause", "--session", "s1", "--reason", "holidays").stdout == f"{line}\n"
    assert said(run("list")).startswith(line), "before a worker has looked"
    assert answer(run("show", "r1", "--json"))["waits"] == [line]
    assert claim(db) == []
    assert answer(run("show", "r1", "--json"))["waits"] == [line], "and after"
    assert run("list", "--session", "s3").stdout == "no recalls\n"
    assert run("resume", "--session", "s1").stdout == "resumed session s1\n"
    assert run("resume", "--session", "s1").stdout == "session s1 was not paused\n"
    assert claim(db) == ["r1"]
    failure(run("pause", "--session", "nobody"), 3)
    failure(run("resume", "--session", "nobody"), 3)


def test_a_user_is_paused_and_resumed_by_its_name(run: Run, db: psycopg.Connection) -> None:
    add(db, "r1", trigger_at="2026-01-01T00:00Z")
    add(db, "r3", "s3", trigger_at="2026-01-01T00:00Z")
    made = answer(run("pause", "--user", "ada", "--until", "2031-01-01T00:00Z", "--json"))
    assert (made["user_id"], made["session_id"], made["paused_until"]) == ("ada", None, "2031-01-01T00:00:00+00:00")
    line = "user ada is paused until 2031-01-01 00:00:00+00"
    assert said(run("list", "--user", "ada")).startswith(line)
    assert "is paused" not in said(run("list", "--user", "ben"))
    assert claim(db) == ["r3"]
    assert line in said(run("show", "r1"))
    assert answer(run("resume", "--user", "ada", "--json")) == [made]
    assert answer(run("resume", "--user", "ada", "--json")) == []
    assert claim(db) == ["r1"]


def test_what_is_paused_by_itself_says_so_beside_its_session(run: Run, db: psycopg.Connection) -> None:
    add(db, "r1")
    run("pause", "r1", "--reason", "one")
    run("pause", "--session", "s1", "--reason", "all")
    waits = answer(run("show", "r1", "--json"))["waits"]
    assert waits == [
        "session s1 is paused until pgrecall resume --session s1: all",
        "it is paused until pgrecall resume: one",
    ]


def test_doctor_counts_paused_sessions_and_users(run: Run, db: psycopg.Connection) -> None:
    def pauses() -> str:
        found = json.loads(run("doctor", "--patience", "1h", "--json").stdout)["checks"]
        return str(next(one["message"] for one in found if one["name"] == "pauses"))

    run("pause", "--user", "ada")
    assert pauses() == "1 user paused"
    run("pause", "--session", "s1")
    run("pause", "--session", "s2")
    assert pauses() == "2 sessions, 1 user paused"
    add(db, "r3", "s3")
    run("pause", "r3", "--reason", "one")
    assert pauses() == "2 sessions, 1 user, 1 recall paused, first r3: one"


def test_stop_by_session_and_user_lists_what_was_told(run: Run, db: psycopg.Connection) -> None:
    add(db, "r1", trigger_at="2026-01-01T00:00Z")
    add(db, "r2", "s2", trigger_at="2026-01-01T00:00Z")
    assert run("stop", "--user", "ada").stdout == "user ada has no run that was not told so already\n"
    claim(db)
    told = said(run("stop", "--session", "s1"))
    assert told.startswith("told to stop: 1 recall of session s1")
    assert [one["id"] for one in answer(run("stop", "--user", "ada", "--json"))] == ["r2"]


def test_retry_by_user_takes_those_that_failed_since(run: Run, db: psycopg.Connection) -> None:
    add(db, "r1")
    add(db, "r2", "s2", status="failed")
    db.execute("update pgrecall.session_recalls set status = 'failed' where id = 'r1'")
    said_nothing = run("retry", "--user", "ada", "--failed-since", "2035-01-01T00:00Z").stdout
    assert said_nothing == "user ada has no failed recall that can be tried again\n"
    assert said(run("retry", "--session", "s1", "--failed-since", "1h")).startswith(
        "tries again: 1 recall of session s1"
    )
    assert [one["id"] for one in answer(run("retry", "--user", "ada", "--json"))] == ["r2"]
    assert status(db, "r1", "r2") == ["pending", "pending"]
    failure(run("retry", "r1", "--failed-since", "1h"), 2)


def test_cancel_skip_and_reschedule_take_a_user(run: Run, db: psycopg.Connection) -> None:
    add(db, "r1")
    add(db, "r2", "s2", call_type="recurring", interval_seconds=3600)
    add(db, "r3", "s3")
    moved = answer(run("reschedule", "--user", "ada", "--by", "1h", "--json"))
    assert {one["id"]: one["trigger_at"] for one in moved} == dict.fromkeys(["r1", "r2"], "2031-01-01T01:00:00+00:00")
    assert said(run("skip", "--user", "ada")).startswith("skipped one occurrence of 1 recall of user ada")
    shown = said(run("cancel", "--user", "ada"))
    assert shown.startswith("cancelled 2 recalls of user ada")
    assert all(recall_id in shown for recall_id in ("r1", "r2"))
    assert run("cancel", "--user", "ada").stdout == "user ada has no recall left to cancel\n"
    assert answer(run("cancel", "--user", "ada", "--json")) == []
    assert status(db, "r1", "r2", "r3") == ["cancelled", "cancelled", "pending"]


@pytest.mark.parametrize(
    "arguments", [["cancel"], ["skip"], ["reschedule", "--in", "1h"], ["retry"], ["stop"]], ids=lambda one: one[0]
)
def test_a_user_without_sessions_may_be_misspelled(run: Run, db: psycopg.Connection, arguments: list[str]) -> None:
    assert "no session belongs to user 'adda'" in failure(run(*arguments, "--user", "adda"), 3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["cancel"], ["cancel", "r1", "--user", "ada"], ["cancel", "--session", "s1", "--user", "ada"],
        ["skip"], ["skip", "s1", "--user", "ada"],
        ["reschedule", "--in", "1h"], ["reschedule", "r1", "--user", "ada", "--in", "1h"],
        ["reschedule", "r1"], ["reschedule", "r1", "--by", "1h", "--in", "1h"], ["reschedule", "r1", "--by", "--1h"],
        ["reschedule", "r1", "--by", "soon"],
        ["retry"], ["retry", "r1", "--session", "s1"], ["retry", "--user", "ada", "--failed-since", "soon"],
        ["stop"], ["stop", "r1", "--user", "ada"], ["stop", "r1", "--then", "cancel"],
        ["pause", "--session", "s1", "--user", "ada"], ["pause", "--user", "ada", "--all"],
        ["resume"], ["resume", "r1", "--session", "s1"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_could_mean_two_things_changes_nothing(run: Run, db: psycopg.Connection, arguments: list[str]) -> None:
    add(db, "r1")
    before = db.execute("select * from pgrecall.session_recalls").fetchall()
    failure(run(*arguments), 2)
    assert db.execute("select * from pgrecall.session_recalls").fetchall() == before
    assert db.execute("select * from pgrecall.pauses").fetchall() == []


# What it looks like


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_ids_and_times_are_whole_at_usual_widths(
    run: Run, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    recall_id = "01a207f9-e561-7a67-bb8f-deb1ab174884"
    db.execute("insert into pgrecall.sessions (id) values ('support-4711')")
    cron = {"call_type": "recurring", "cron": "0 9 * * mon-fri", "time_zone": "America/Argentina/Buenos_Aires"}
    add(db, recall_id, "support-4711", additional_context_message="word " * 40, **cron)
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = run("list").stdout
    assert all(word in shown for word in (recall_id, "support-4711", "2031-01-01 00:00:00+00", "pending"))
    assert max(map(len, shown.splitlines())) <= columns


# Many


def test_more_than_20_are_counted_and_not_all_shown(run: Run, db: psycopg.Connection) -> None:
    crowd(db, 23)
    result = run("cancel", "--user", "eve")
    assert result.stdout.startswith("cancelled 23 recalls of user eve\n")
    assert result.stdout.endswith("and 3 more; --json lists all\n")


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(
    "arguments",
    [["cancel"], ["skip"], ["reschedule", "--in", "1h"]],
    ids=lambda one: one[0],
)
def test_at_a_terminal_more_than_20_need_a_yes(run: Run, db: psycopg.Connection, arguments: list[str]) -> None:
    crowd(db, 21, call_type="recurring", interval_seconds=60)
    before = db.execute("select * from pgrecall.session_recalls order by id").fetchall()
    refused = run(*arguments, "--user", "eve", input="n\n")
    assert "21 recalls of user eve? [y/N]" in refused.stdout
    assert "nothing was changed" in failure(refused, 1)
    assert db.execute("select * from pgrecall.session_recalls order by id").fetchall() == before
    assert "21 recalls of user eve\n" in run(*arguments, "--user", "eve", input="y\n").stdout


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("arguments", [["--yes"], ["--json"]])
def test_yes_and_json_are_not_asked(run: Run, db: psycopg.Connection, arguments: list[str]) -> None:
    crowd(db, 21)
    assert "[y/N]" not in said(run("cancel", "--user", "eve", *arguments))


@pytest.mark.usefixtures("terminal")
def test_20_are_not_asked_about(run: Run, db: psycopg.Connection) -> None:
    crowd(db, 20)
    add(db, "ended", "e0", status="fired")
    assert "[y/N]" not in said(run("cancel", "--user", "eve"))


def test_a_question_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for both in ((True, True), (True, False), (False, True)):
        monkeypatch.setattr(sys.stdin, "isatty", lambda is_one=both[0]: is_one)
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_one=both[1]: is_one)
        assert many._is_at_terminal() is all(both)
