"""The verbs `purge` and `audit`, and the settings about retention."""

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
    """Of two users a fired recall of long ago, and a fresh one; and a message."""
    with psycopg.connect(database, autocommit=True) as connected:
        connected.execute("insert into pgrecall.sessions (id, user_id) values ('s1', 'ann'), ('s2', 'bob')")
        connected.execute(
            """insert into pgrecall.session_recalls (id, session_id, additional_context_message, status, updated_at)
            select id || ' of ' || session, session, 'hello', 'fired', now() - age
            from (values ('old', interval '1 year'), ('new', interval '1 hour')) as kind (id, age),
                (values ('s1'), ('s2')) as known (session)"""
        )
        connected.execute(
            "insert into pgrecall.session_messages (session_id, role, content) values ('s1', 'user', 'x')"
        )
        yield connected


def left(db: psycopg.Connection) -> set[str]:
    return {name for (name,) in db.execute("select id from pgrecall.session_recalls").fetchall()}


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_purge_does_all_that_the_workers_would_do_by_themselves(run: Run, db: psycopg.Connection) -> None:
    db.execute(
        """insert into pgrecall.recall_runs (recall_id, session_id, nominal_at, finished_at, outcome)
        select 'r', 's1', now() - interval '1 year', now() - interval '1 year', 'success'
        from generate_series(1, 2500)"""
    )
    assert run("purge").stdout == "deleted: 2 fired, 2500 runs\n"
    assert left(db) == {"new of s1", "new of s2"}
    assert run("purge").stdout == "nothing to delete\n"


def test_purge_tells_programs_how_many_of_each_kind(run: Run, db: psycopg.Connection) -> None:
    assert answer(run("purge", "--json")) == {
        "fired": 2,
        "failed": 0,
        "cancelled": 0,
        "runs": 0,
        "messages": 0,
        "deliveries": 0,
        "audit_rows": 0,
    }


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        (["--user", "ann"], {"old of s1", "new of s1"}),
        (["--session", "s2"], {"old of s2", "new of s2"}),
        (["--before", "2021-01-01T00:00:00Z"], set()),
        (["--user", "ann", "--session", "s2"], set()),
    ],
)
def test_purge_of_a_selection_deletes_what_has_ended_there(
    run: Run, db: psycopg.Connection, options: list[str], gone: set[str]
) -> None:
    if "--before" in options:
        db.execute("alter table pgrecall.session_recalls disable trigger user")
        db.execute("update pgrecall.session_recalls set updated_at = '2020-01-01' where id = 'old of s2'")
        gone = {"old of s2"}
    before = left(db)
    assert answer(run("purge", *options, "--yes", "--json"))["recalls"] == len(gone)
    assert before - left(db) == gone


def test_purge_of_a_selection_needs_a_yes_and_takes_messages_and_audit_if_told(
    run: Run, db: psycopg.Connection
) -> None:
    db.execute("update pgrecall.sessions set time_zone = 'Europe/Paris' where id = 's1'")
    refused = run("purge", "--user", "ann", "--messages", "--audit")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: nothing is deleted without --yes\nhint: ")
    assert len(left(db)) == 4
    assert run("purge", "--user", "ann", "--messages", "--audit", "--yes").stdout == (
        "deleted: 2 recalls, 1 messages, 1 audit rows\n"
    )


@pytest.mark.parametrize("flag", ["--messages", "--audit", "--yes"])
def test_purge_by_the_settings_takes_no_flags_of_a_selection(run: Run, db: psycopg.Connection, flag: str) -> None:
    refused = run("purge", flag)
    assert refused.exit_code == 2
    assert "--user" in refused.stderr
    assert len(left(db)) == 4


def test_audit_tells_who_changed_what(run: Run, db: psycopg.Connection) -> None:
    assert run("audit").stdout == "no changes by hand\n"
    run("settings", "keep_fired=7 days")
    db.execute("set application_name = 'psql'")
    db.execute(
        "update pgrecall.session_recalls set max_attempts = 5, internal_comment = 'for bob' where id = 'new of s2'"
    )
    shown = run("audit", "new of s2").stdout
    assert "update session_recalls new of s2" in shown
    assert "psql" in shown
    assert "    max_attempts: 3 → 5\n" in shown
    assert "    internal_comment: null → 7 characters\n" in shown
    (setting,) = answer(run("audit", "--limit", "5", "--since", "2026-01-01T00:00:00Z", "--json"))[1:]
    assert (setting["object"], setting["old"], setting["new"]) == (
        "settings",
        {"keep_fired": "30 days"},
        {"keep_fired": "7 days"},
    )
    assert [one["object_id"] for one in answer(run("audit", "--user", "bob", "--json"))] == ["new of s2"]
    assert answer(run("audit", "--session", "s1", "--json")) == []


def test_settings_show_and_change_how_long_things_stay(run: Run, db: psycopg.Connection) -> None:
    assert "keep_audit                     365d" in run("settings").stdout
    assert answer(run("settings", "keep_fired=7 days", "keep_failed=", "--json"))["keep_fired"] == 7 * 86400
    assert answer(run("settings", "--json"))["keep_failed"] is None
    assert answer(run("settings", "--reset", "keep_fired", "--json"))["keep_fired"] == 30 * 86400
    refused = run("settings", "keep_runs=1 day")
    assert refused.exit_code == 2
    assert "keep runs must be 2 days to 1000 years" in refused.stderr
