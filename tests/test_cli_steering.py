"""The verbs that hold runs back, and what `show`, `list` and `doctor` then say of a recall that does not run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgrecall.cli.app import cli

Run = Callable[..., Result]


@pytest.fixture
def run(database: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a verb on the test's database."""
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("COLUMNS", raising=False)
    return lambda *arguments: CliRunner().invoke(cli, [*arguments, "--dsn", database])


@pytest.fixture
def db(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connected:
        connected.execute("insert into pgrecall.sessions (id) values ('s1'), ('s2')")
        yield connected


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def failure(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("error: ")
    return result.stderr


def flat(result: Result) -> str:
    """What was printed, without the line breaks of its table."""
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def check(run: Run, name: str) -> dict[str, str]:
    found: list[dict[str, str]] = json.loads(run("doctor", "--patience", "1h", "--json").stdout)["checks"]
    return next(one for one in found if one["name"] == name)


def due(db: psycopg.Connection, recall_id: str, session_id: str = "s1", **columns: object) -> None:
    """A recall that is due now."""
    columns = {"id": recall_id, "session_id": session_id, "additional_context_message": "hello", **columns}
    names, places = ", ".join(columns), ", ".join(["%s"] * len(columns))
    db.execute(
        f"insert into pgrecall.session_recalls ({names}) values ({places})".encode(),
        list(columns.values()),
    )


def hold(db: psycopg.Connection, session_id: str = "s1", holder: str = "web") -> None:
    db.execute("select pgrecall.hold_session(%s, %s, '10 minutes')", [session_id, holder])


def claim(db: psycopg.Connection) -> list[Any]:
    db.execute("select pgrecall.register_worker('w1', 3)")
    return db.execute("select run_id from pgrecall.claim('w1', 5) where run_id is not null").fetchall()


# Holds


def test_holds_tell_who_has_which_session_and_who_waits(run: Run, db: psycopg.Connection) -> None:
    assert run("holds").stdout == "no session is held\n"
    due(db, "r2", "s2")
    ((run_id,),) = claim(db)
    hold(db)
    due(db, "r1")
    claim(db)
    db.execute("select pgrecall.hold_session('s2', 'phone', if_held => 'interrupt')")
    by_session = {one["held_session_id"]: one for one in answer(run("holds", "--json"))}
    assert (by_session["s1"]["kind"], by_session["s1"]["recalls_waiting"]) == ("chat", 1)
    assert (by_session["s2"]["run_id"], by_session["s2"]["chats_waiting"]) == (run_id, 1)
    assert [one["held_session_id"] for one in answer(run("holds", "--session", "s2", "--json"))] == ["s2"]
    said = flat(run("holds"))
    assert "the chat web" in said
    assert "1 recall" in said
    assert f"run {run_id} of recall r2" in said
    assert "told to stop by the chat phone" in said
    failure(run("holds", "--session", "nobody"), 3)


def test_free_ends_the_hold_of_a_chat_and_lets_its_recall_run(run: Run, db: psycopg.Connection) -> None:
    hold(db)
    due(db, "r1")
    assert claim(db) == []
    assert answer(run("free", "s1", "--json")) == {"freed": True, "session_id": "s1", "holder": "web"}
    assert len(claim(db)) == 1


def test_free_can_be_said_twice(run: Run, db: psycopg.Connection) -> None:
    hold(db)
    assert run("free", "s1").stdout == "freed session s1, held by the chat web\n"
    assert run("free", "s1").stdout == "nobody holds session s1: nothing to end\n"
    failure(run("free", "nobody"), 3)


def test_free_does_not_end_a_run_and_says_how_to(run: Run, db: psycopg.Connection) -> None:
    due(db, "r1")
    ((run_id,),) = claim(db)
    said = failure(run("free", "s1"), 1)
    assert f"held by run {run_id} of recall r1" in said
    assert "pgrecall cancel r1" in said
    assert db.execute("select run_id from pgrecall.sessions where id = 's1'").fetchone() == (run_id,)


def test_cancel_by_session_says_how_to_stop_a_run(run: Run, db: psycopg.Connection) -> None:
    due(db, "r1")
    claim(db)
    assert run("cancel", "--session", "s1").stdout.endswith("; to stop its run: pgrecall cancel r1\n")


# Pauses


def test_a_paused_recall_is_resumed_by_its_id(run: Run, db: psycopg.Connection) -> None:
    due(db, "r1")
    paused = answer(run("pause", "r1", "--reason", "holidays", "--for", "2h", "--json"))
    assert paused["pause_reason"] == "holidays"
    assert claim(db) == []
    assert answer(run("resume", "r1", "--json"))["paused_at"] is None
    assert len(claim(db)) == 1


def test_everything_is_paused_and_resumed_at_once(run: Run, db: psycopg.Connection) -> None:
    due(db, "r1")
    said = run("pause", "--all", "--until", "2031-01-01T00:00Z", "--reason", "release").stdout
    assert said == "all recalls are paused until 2031-01-01 00:00:00+00: release\n"
    assert claim(db) == []
    assert run("resume", "--all").stdout == "workers start runs\n"
    assert len(claim(db)) == 1


@pytest.mark.parametrize(
    "arguments", [[], ["r1", "--all"], ["r1", "--for", "1h", "--until", "2031-01-01T00:00Z"], ["r1", "--for", "soon"]]
)
def test_a_pause_that_could_mean_two_things_is_refused(run: Run, db: psycopg.Connection, arguments: list[str]) -> None:
    due(db, "r1")
    failure(run("pause", *arguments), 2)
    assert len(claim(db)) == 1


def test_an_unknown_or_ended_recall_cannot_be_paused(run: Run, db: psycopg.Connection) -> None:
    due(db, "r1", status="cancelled")
    failure(run("pause", "r1"), 4)
    failure(run("pause", "nobody"), 3)
    failure(run("resume", "nobody"), 3)
    failure(run("pause", "r1", "--until", "2020-01-01T00:00Z"), 2)


# Settings


def test_settings_are_shown_and_set(run: Run, db: psycopg.Connection) -> None:
    assert "timeout_seconds 600" in flat(run("settings"))
    changed = answer(run("settings", "timeout_seconds=900", "max_runs_per_day=5", "silent_token=", "--json"))
    assert (changed["timeout_seconds"], changed["max_runs_per_day"], changed["silent_token"]) == (900, 5, None)
    again = answer(
        run("settings", "max_runs_per_day=", "--reset", "timeout_seconds", "--reset", "silent_token", "--json")
    )
    assert (again["timeout_seconds"], again["max_runs_per_day"], again["silent_token"]) == (600, None, "[SILENT]")
    assert (
        answer(run("settings", "agent_can_change_host_recalls=no", "--json"))["agent_can_change_host_recalls"] is False
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("timeout_seconds=abc", "timeout_seconds cannot be 'abc': invalid input syntax for type integer"),
        ("timeout_seconds=0", "must be greater than zero"),
        ("timeout_seconds=", "timeout_seconds must be given"),
        ("message_template=Do {mesage}", "the template does not contain {message}"),
        ("message_template={message} {foo}", "unknown placeholders: {foo}"),
        ("silent_tokn=x", "Did you mean silent_token?"),
        ("timeout_seconds", "'timeout_seconds' is not NAME=VALUE"),
        ("paused_at=now", "pgrecall pause --all"),
    ],
)
def test_a_setting_that_makes_no_sense_changes_none(
    run: Run, db: psycopg.Connection, change: str, complaint: str
) -> None:
    before = answer(run("settings", "--json"))
    assert complaint in failure(run("settings", "agent_max_chain_depth=3", change), 2)
    assert answer(run("settings", "--json")) == before


# Why does it not run?


def test_show_says_that_a_chat_has_the_session(run: Run, db: psycopg.Connection) -> None:
    hold(db)
    due(db, "r1")
    assert ["the session is held by the chat web" in one for one in waits(run)] == [True]
    claim(db)
    assert "1 time since" in flat(run("show", "r1"))
    assert "deferred, in" in flat(run("list"))
    assert check(run, "sessions")["message"] == "1 recall deferred: session held by the chat web (1)"
    run("free", "s1")
    assert waits(run) == []
    assert check(run, "sessions")["message"] == "no recall waits for a session that is taken"


def test_show_sends_to_the_doctor_if_nothing_stands_in_the_way(run: Run, db: psycopg.Connection) -> None:
    due(db, "r1", trigger_at="2026-01-01T00:00Z")
    assert waits(run) == ["nothing stands in its way: pgrecall doctor looks at the workers"]


def waits(run: Run) -> list[str]:
    found: list[str] = answer(run("show", "r1", "--json"))["waits"]
    return found


def test_show_says_that_the_recall_or_everything_is_paused(run: Run, db: psycopg.Connection) -> None:
    due(db, "r1")
    run("pause", "r1", "--reason", "one")
    assert waits(run) == ["it is paused until pgrecall resume: one"]
    assert "paused" in flat(run("list"))
    assert check(run, "pauses") == {
        "name": "pauses", "status": "ok", "message": "1 recall paused, first r1: one", "hint": ""
    }  # fmt: skip
    run("pause", "--all", "--reason", "all of them")
    assert waits(run)[0] == "all recalls are paused until pgrecall resume: all of them (pgrecall resume --all)"
    assert flat(run("list")).startswith("all recalls are paused until pgrecall resume: all of them")
    assert check(run, "pauses")["status"] == "warn"
    assert "pgrecall resume --all" in check(run, "pauses")["hint"]


def test_a_pause_that_is_over_is_not_told(run: Run, db: psycopg.Connection) -> None:
    due(db, "r1", paused_at="2026-01-01T00:00Z", paused_until="2026-01-01T01:00Z", pause_reason="old")
    db.execute(
        "update pgrecall.settings set paused_at = '2026-01-01', paused_until = '2026-01-02', pause_reason = 'old'"
    )
    assert waits(run) == []
    assert "paused" not in flat(run("list"))
    assert check(run, "pauses")["message"] == "nothing is paused"


def test_a_recall_that_is_late_because_everything_is_paused_is_no_failure(run: Run, db: psycopg.Connection) -> None:
    due(db, "r1", trigger_at="2026-01-01T00:00Z")
    assert check(run, "overdue")["status"] == "fail"
    run("pause", "--all", "--reason", "release")
    overdue = check(run, "overdue")
    assert overdue["status"] == "warn"
    assert "everything is paused" in overdue["message"]


def test_show_says_that_a_session_has_had_its_runs_of_a_day(run: Run, db: psycopg.Connection) -> None:
    run("settings", "max_runs_per_day=1")
    due(db, "r0")
    ((run_id,),) = claim(db)
    db.execute("select pgrecall.finish('r0', %s, 'success')", [run_id])
    due(db, "r1")
    assert claim(db) == []
    assert waits(run) == ["session has had its runs of a day"]


def test_doctor_names_a_chat_that_keeps_a_session_for_too_long(run: Run, db: psycopg.Connection) -> None:
    hold(db)
    due(db, "r1", deferred_since="2026-01-01T00:00Z", deferrals=3, max_defer_seconds=60, not_before="2031-01-01T00:00Z")
    found = check(run, "sessions")
    assert found["status"] == "warn"
    assert "by the chat web" in found["message"]
    assert found["hint"].endswith("pgrecall free s1")


def test_show_tells_what_an_agent_made(run: Run, db: psycopg.Connection) -> None:
    db.execute("select pgrecall.agent_schedule_recall('s1', 'Look again.', in_seconds => 600)")
    row = db.execute("select id from pgrecall.session_recalls").fetchone()
    assert row is not None
    assert "made_by the agent, 0 deep" in flat(run("show", row[0]))
