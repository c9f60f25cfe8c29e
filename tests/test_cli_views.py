"""The verbs `status` and `history`."""

from __future__ import annotations

import json
from collections.abc import Callable

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgrecall.cli.app import cli

Run = Callable[..., Result]


@pytest.fixture
def run(database: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a verb on a database with a late recall and one that is to come."""
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("COLUMNS", raising=False)
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("insert into pgrecall.sessions (id) values ('s1'), ('s2')")
        db.execute(
            """insert into pgrecall.session_recalls (id, session_id, trigger_at, additional_context_message)
            values ('late', 's1', now() - interval '1 hour', 'secret'), ('next', 's2', now() + interval '1 day', 'x')"""
        )
    return lambda *arguments: CliRunner().invoke(cli, [*arguments, "--dsn", database])


def test_status_tells_what_is_late_and_why_and_what_comes_next(run: Run) -> None:
    said = run("status").stdout
    assert "no worker is alive" in said
    assert [title in said for title in ("due recalls", "running recalls", "next recalls")] == [True, False, True]


def test_status_answers_programs_in_json(run: Run) -> None:
    found = json.loads(run("status", "--json").stdout)
    assert found["overview"]["due"] == 1
    assert [one["recall_id"] for one in found["due_recalls"]] == ["late"]
    assert found["running_recalls"] == []
    assert [one["recall_id"] for one in found["next_recalls"]] == ["next"]


def test_history_tells_what_happened(run: Run) -> None:
    said = run("history", "late").stdout
    assert "scheduled by" in said
    assert "no worker is alive" in said
    assert "secret" not in said
    assert [one["what"] for one in json.loads(run("history", "next", "--json").stdout)][-1] == "next due"
    assert run("history", "none").exit_code == 3
