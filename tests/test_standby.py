"""A streaming standby: whatever only reads works there, as docs/scaling.md says, and whatever writes is refused."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from sqltools import wait_until

from pgrecall import SyncRecallScheduler, schema
from pgrecall.cli.app import cli
from pgrecall.embedded import EmbeddedPostgres, EmbeddedPostgresError, find_binaries

READS = (
    "get_audit()",
    "get_deliveries()",
    "get_holds()",
    "get_next_trigger_at()",
    "get_pending_recalls(before => now() + interval '1 day')",
    "get_pending_session_ids(session_ids => array['s1', 's2', 's3'])",
    "get_recall('soon')",
    "get_runs('ended')",
    "get_schema()",
    "help()",
    "history('ended')",
    "list_recalls(is_admin => true)",
    "upcoming('often')",
    "wanted_slots(within => '2 hours')",
)
WRITES = (
    "cancel_recall('s2')",
    "claim('w2', 1)",
    "claim('w2', 0)",
    "finish('runs', 1, 'success')",
    "hold_session('s2', 'chat')",
    "pause_all()",
    "purge()",
    "register_worker('w2', 1)",
    "renew('w1')",
    "schedule_recall('s1', 'Go on.')",
)


@dataclass(frozen=True)
class Pair:
    """A connection to each."""

    primary: psycopg.Connection[Any]
    standby: psycopg.Connection[Any]

    def catch_up(self) -> None:
        """Waits until the standby has all that the primary has."""
        (written,) = self.primary.execute("select pg_current_wal_flush_lsn()").fetchone() or ("",)

        def is_there() -> bool:
            found = self.standby.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", [written]).fetchone()
            return found == (True,)

        wait_until(is_there, "the standby to catch up")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    try:
        program = find_binaries() / "pg_basebackup"
    except EmbeddedPostgresError as error:
        pytest.skip(str(error))
    if not program.exists():
        pytest.skip(f"there is no {program}")
    home = tmp_path_factory.mktemp("standby")
    # fsync off: what the standby streams need not survive anything.
    with EmbeddedPostgres(home / "primary", settings={"wal_level": "replica"}, durable=False) as primary:
        with psycopg.connect(primary.dsn) as installing:
            schema.install(installing)
        (home / "copy").mkdir(mode=0o700)
        copied = str(home / "copy" / "postgres")
        copy = [str(program), "-D", copied, "-d", primary.dsn, "-R", "-X", "stream", "-c", "fast"]
        subprocess.run(copy, check=True, capture_output=True)
        with (
            EmbeddedPostgres(home / "copy", durable=False) as standby,
            psycopg.connect(primary.dsn, autocommit=True) as writing,
            psycopg.connect(standby.dsn, autocommit=True) as reading,
        ):
            fill(writing)
            made = Pair(writing, reading)
            made.catch_up()
            yield made


def fill(db: psycopg.Connection[Any]) -> None:
    """One recall that ended, one that runs, one late, one that comes soon and one that comes often."""
    db.execute("insert into pgrecall.sessions (id, user_id) select 's' || n, 'ann' from generate_series(1, 5) n")
    db.execute("select pgrecall.register_worker('w1', 3)")
    for number, name in ((1, "ended"), (2, "runs")):
        db.execute("select pgrecall.schedule_recall(%s, 'Go on.', id => %s)", [f"s{number}", name])
    db.execute("select from pgrecall.claim('w1', 2)")
    db.execute("select pgrecall.finish(id, run_id, 'success') from pgrecall.session_recalls where id = 'ended'")
    db.execute("select pgrecall.schedule_recall('s3', 'Go on.', now() - interval '1 minute', id => 'late')")
    db.execute("select pgrecall.schedule_recall('s4', 'Go on.', now() + interval '1 hour', id => 'soon')")
    db.execute("select pgrecall.schedule_recall('s5', 'Go on.', interval_seconds => 3600, id => 'often')")


def test_every_view_shows_on_a_standby_what_it_shows_on_the_primary(pair: Pair) -> None:
    views = [
        name
        for (name,) in pair.primary.execute("select viewname from pg_views where schemaname = 'pgrecall'").fetchall()
    ]
    assert len(views) > 10
    for view in views:
        # Ages go on between the two: what stands in the other columns is the same.
        statement = f"select count(*) from pgrecall.{view}".encode()
        assert pair.standby.execute(statement).fetchone() == pair.primary.execute(statement).fetchone(), view
    why = "select recall_id, why from pgrecall.due_recalls order by recall_id"
    assert pair.standby.execute(why).fetchall() == pair.primary.execute(why).fetchall() != []


@pytest.mark.parametrize("call", READS)
def test_a_function_that_reads_answers_on_a_standby_as_on_the_primary(pair: Pair, call: str) -> None:
    statement = f"select count(*) from pgrecall.{call}".encode()
    assert pair.standby.execute(statement).fetchone() == pair.primary.execute(statement).fetchone()


def test_an_autoscaler_may_ask_a_standby(pair: Pair) -> None:
    assert pair.standby.execute("select pgrecall.wanted_slots()").fetchone() == (3,)  # runs, late, often


@pytest.mark.parametrize("call", WRITES)
def test_a_function_that_writes_is_refused_on_a_standby(pair: Pair, call: str) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        pair.standby.execute(f"select * from pgrecall.{call}".encode())


def test_nobody_can_listen_or_notify_on_a_standby(pair: Pair) -> None:
    for statement in (b"listen pgrecall", b"select pg_notify('pgrecall', 'due 0')"):
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            pair.standby.execute(statement)


def test_who_has_locked_a_recall_is_known_on_its_own_server_only(pair: Pair) -> None:
    why = b"select why from pgrecall.due_recalls where recall_id = 'late'"
    with psycopg.connect(pair.primary.info.dsn) as other:
        other.execute("select from pgrecall.session_recalls where id = 'late' for update")
        (there,) = pair.primary.execute(why).fetchone() or ("",)
        (here,) = pair.standby.execute(why).fetchone() or ("",)
    assert there.startswith("locked by pid")
    assert not here.startswith("locked by")


def test_a_scheduler_lists_recalls_from_a_standby(pair: Pair) -> None:
    with SyncRecallScheduler(pair.standby.info.dsn) as recalls:
        assert {recall.id for recall in recalls.list_recalls(is_admin=True)} == {
            "ended",
            "runs",
            "late",
            "soon",
            "often",
        }
        assert recalls.wanted_slots() == 3


@pytest.mark.parametrize(
    ("verb", "shown"),
    [("status", "late"), ("list", "often"), ("show soon", "soon"), ("history ended", "success")],
)
def test_a_verb_that_shows_works_on_a_standby(pair: Pair, verb: str, shown: str) -> None:
    said = CliRunner().invoke(cli, [*verb.split(), "--dsn", pair.standby.info.dsn])
    assert said.exit_code == 0, said.output
    assert shown in said.output


def test_the_doctor_says_that_it_is_a_standby(pair: Pair) -> None:
    said = CliRunner().invoke(cli, ["doctor", "--dsn", pair.standby.info.dsn])
    assert said.exit_code == 1
    assert "is a standby" in " ".join(said.output.split())


def test_a_worker_does_not_start_on_a_standby(pair: Pair) -> None:
    said = CliRunner().invoke(cli, ["worker", "--agent", "exec:true", "--dsn", pair.standby.info.dsn])
    assert said.exit_code != 0
    assert "read-only" in said.output
