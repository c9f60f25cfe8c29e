"""Upgrades: from the database that a release left, by each way, while its workers and clients go on.

`upgrade/` holds the releases as they were; docs/upgrades.md is the rule that is held here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, LiteralString

import anyio
import psycopg
import pytest
from catalogtools import catalog
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqltools import (
    HOUR,
    NOW,
    Doing,
    Row,
    add,
    add_recurring,
    call,
    call_one,
    claim,
    claim_one,
    finish,
    outcomes,
    recall,
    row,
    rows,
    value,
    wait_until,
    wait_until_blocked,
)
from upgrade.previous import HERE, RELEASES, Previous
from upgrade.surface import incompatible, surface
from workerprocess import ROOT, WorkerProcess, worker_processes
from workertools import sql as sql_of
from workertools import until

from pgrecall import RecallScheduler, SchemaBusyError, SchemaOutdatedError, SyncRecallScheduler, schema
from pgrecall.database import UPGRADED

PSQL = shutil.which("psql")

#: How PostgreSQL refuses a call whose answer is rows of a table that got columns after the call had begun.
WAITED = ("DatatypeMismatch: ", "InvalidFunctionDefinition: ")

#: The server process that waits for a lock.
WAITING: LiteralString = """
    select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
"""

#: What a worker or listener logs when something has gone wrong.
TROUBLE = (
    "claim_unheard", "lease_connection_lost", "lease_lost", "listener_lost", "loop_error", "outcome_refused",
    "recall_failed", "recall_rescheduled", "watch_lost", "worker_died",
)  # fmt: skip


@pytest.fixture(params=RELEASES, ids=lambda release: release.version)
def former(request: pytest.FixtureRequest) -> Previous:
    """Each release of the past."""
    release: Previous = request.param
    return release


@pytest.fixture
def restored(former: Previous, empty_database: str) -> str:
    """The DSN of the database that the release left."""
    former.restore(empty_database)
    return empty_database


@pytest.fixture
def as_released(former: Previous, empty_database: str) -> str:
    """The DSN of an empty database with the schema of the release."""
    former.install(empty_database)
    return empty_database


def by_package(dsn: str) -> None:
    """Upgrade with `schema.install`."""
    with psycopg.connect(dsn) as connection:
        assert schema.install(connection) > 0


def by_command(dsn: str) -> None:
    """Upgrade with `pgrecall migrate`."""
    command = [sys.executable, "-m", "pgrecall", "migrate", "--dsn", dsn]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"upgraded, version {schema.SCHEMA_VERSION}" in done.stdout


def psql(dsn: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run install.sql."""
    assert PSQL is not None
    script = str(Path(str(schema.sql_root())) / "install.sql")
    command = [PSQL, "-X", "-d", dsn, "-v", "ON_ERROR_STOP=1", *options, "-f", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def by_psql(dsn: str) -> None:
    """Upgrade with install.sql."""
    if PSQL is None:
        pytest.skip("no psql in PATH")
    done = psql(dsn)
    assert (done.returncode, done.stderr) == (0, "")


WAYS = [by_package, by_command, by_psql]


def contents(dsn: str, columns: dict[str, dict[str, Any]]) -> dict[str, list[Row]]:
    """Every row of these tables, with these columns."""
    tables = {place: names for place, names in columns.items() if place not in {"migrations", "session_hold"}}
    with psycopg.connect(dsn) as db:
        return {
            place: rows(
                db,
                sql.SQL("select {} from {} order by 1, 2").format(
                    sql.SQL(", ").join(map(sql.Identifier, sorted(names))), sql.Identifier("pgrecall", place)
                ),
            )
            for place, names in tables.items()
        }


@pytest.mark.parametrize("upgrade", WAYS)
def test_an_upgrade_keeps_every_row_and_makes_what_a_fresh_installation_makes(
    former: Previous, restored: str, database: str, upgrade: Callable[[str], None]
) -> None:
    before = contents(restored, former.surface["columns"])
    assert sum(map(len, before.values())) > 50
    upgrade(restored)
    assert contents(restored, former.surface["columns"]) == before
    upgraded, fresh = catalog(restored), catalog(database)
    for kind, things in fresh.items():
        assert upgraded[kind] == things, kind


def let_time_pass(db: psycopg.Connection, days: float) -> None:
    """Make the database's clock go from so many days after the moment at which the data were left."""
    ahead = value(db, "select %s::timestamptz - clock_timestamp()", NOW) + timedelta(days=days)
    shown = f"pg_catalog.clock_timestamp() + interval '{ahead.total_seconds()} s'"
    db.execute(
        f"""create or replace function pgrecall.clock() returns timestamptz language sql volatile parallel safe
        set search_path = '' as $$ select {shown} $$""".encode()
    )


def test_everything_that_was_pending_fires_after_an_upgrade(restored: str, tmp_path: Path) -> None:
    by_package(restored)
    with psycopg.connect(restored, autocommit=True) as db, worker_processes(tmp_path, restored) as start:
        first = value(db, "select last_value + 1 from pgrecall.run_ids")
        let_time_pass(db, days=3)
        worker = start("--concurrency", "10", "--safety-interval", "1s")
        db.execute("select pgrecall.resume_recall('paused')")
        due = "select count(*) from pgrecall.session_recalls where due_at <= pgrecall.clock() or run_id is not null"
        wait_until(lambda: value(db, due) == 0, "everything fires")
        states: dict[str, str] = dict(db.execute("select id, status from pgrecall.session_recalls").fetchall())
        recurring = {"skipped", "missed", "mid-run", "cron", "interval"}
        stay = {"failed": "failed", "cancelled": "cancelled", "told to stop": "cancelled"}
        assert states == dict.fromkeys(states, "fired") | dict.fromkeys(recurring, "pending") | stay
        ran = [run["recall_id"] for run in rows(
            db, "select * from pgrecall.recall_runs where outcome = 'success' and id >= %s", first
        )]  # fmt: skip
        assert sorted(ran) == sorted(set(states) - set(stay) - {"fired", "silent"})
        assert outcomes(db, "lost") == ["lost", "success"]
        deliveries = "select count(*) from pgrecall.deliveries where status = 'pending' and attempt = 1"
        wait_until(lambda: value(db, deliveries) == 0, "the reply that waited is posted again")
        assert worker.all("loop_error") == []


def test_a_run_that_was_under_way_ends_in_the_upgraded_database(restored: str) -> None:
    by_package(restored)
    with psycopg.connect(restored, autocommit=True) as db:
        let_time_pass(db, days=0)
        for name, status in (("live", "fired"), ("mid-run", "pending"), ("told to stop", "cancelled")):
            ended = finish(db, {"recall_id": name, "run_id": recall(db, name)["run_id"]}, reply="Done.")
            assert (ended["accepted"], ended["status"]) == (True, status)
        assert call_one(db, "hold_session", session_id="held", holder="chat 1")["held"]
        assert value(db, "select pgrecall.free_session('held', 'chat 1')") is not None
        assert row(db, "select holder from pgrecall.sessions where id = 'held'") == {"holder": "chat 2"}


def test_sessions_of_a_host_stay_where_they_are(former: Previous, as_released: str, database: str) -> None:
    with psycopg.connect(as_released) as db:
        db.execute("create table public.chats (id text primary key, user_id text)")
        db.execute("insert into public.chats values ('before', 'ann')")
        db.execute("select pgrecall.use_sessions_table('public.chats')")
        add(db, "before", id="before")
    by_package(as_released)
    with psycopg.connect(as_released) as db:
        db.execute("insert into public.chats values ('after', 'ann')")
        add(db, "after", id="after")
        db.execute("delete from public.chats where id = 'before'")
        db.commit()
        let_time_pass(db, days=1)
        assert claim(db).recall_ids == ["after"]


@contextmanager
def producer(dsn: str, name: str, package: Path) -> Iterator[Callable[[str], dict[str, Any]]]:
    """A producer of this package; see `upgrade/producer.py`. Gives a function that tells it something."""
    process = subprocess.Popen(
        [sys.executable, "-P", str(HERE / "producer.py"), dsn, name],
        env=os.environ | {"PYTHONPATH": str(package)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process, closing(process.stdin):
        answers = process.stdout

        def tell(what: str) -> dict[str, Any]:
            assert process.stdin is not None
            process.stdin.write(f"{what}\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(answers.readline())
            return answer

        json.loads(answers.readline())
        yield tell


def trouble(worker: WorkerProcess) -> list[dict[str, Any]]:
    """What the worker has logged about things that went wrong."""
    return [event for name in TROUBLE for event in worker.all(name)]


def test_workers_and_producers_of_the_release_go_on_while_it_is_upgraded_and_after(
    former: Previous, as_released: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        db = stack.enter_context(psycopg.connect(as_released, autocommit=True))
        for name in ("early", "late", "new"):
            db.execute("insert into pgrecall.sessions (id) select %s || '-' || generate_series(1, 3000)", [name])
        start_old = stack.enter_context(worker_processes(tmp_path, as_released, former.wheel))
        workers = [start_old("--concurrency", "5") for _ in range(2)]
        early = stack.enter_context(producer(as_released, "early", former.wheel))
        assert early("run")["version"] == former.version

        def fired() -> int:
            return int(value(db, "select count(*) from pgrecall.session_recalls where status = 'fired'"))

        def goes_on(more: int = 40) -> None:
            wanted = fired() + more
            wait_until(lambda: fired() >= wanted, f"{more} more recalls are fired")

        goes_on()
        by_package(as_released)
        goes_on()
        start_new = stack.enter_context(worker_processes(tmp_path, as_released))
        workers += [start_old("--concurrency", "5"), start_new("--concurrency", "5")]
        late = stack.enter_context(producer(as_released, "late", former.wheel))
        new = stack.enter_context(producer(as_released, "new", ROOT))
        for tell in (late, new):
            tell("run")
        goes_on(100)
        every = {worker.all("worker_started")[0]["worker_id"] for worker in workers}
        wait_until(
            lambda: value(db, "select count(distinct worker_id) from pgrecall.recall_runs") == len(every),
            "each worker has had something to do",
        )
        said = [tell("stop") for tell in (early, late, new)]
        # One call may have waited for the upgrade, see the next test.
        errors = [error for error in said[0]["errors"] if not error.startswith(WAITED)]
        assert len(said[0]["errors"]) <= 1
        assert [errors, said[1]["errors"], said[2]["errors"]] == [[], [], []]
        asked = [name for answer in said for name in answer["ids"]]
        wait_until(lambda: fired() == len(asked), "all are fired")
        counted: dict[str, int] = dict(
            db.execute(
                "select recall_id, count(*) from pgrecall.recall_runs where outcome = 'success' group by 1"
            ).fetchall()
        )
        assert counted == dict.fromkeys(asked, 1)
        assert [trouble(worker) for worker in workers] == [[]] * len(workers)


@pytest.fixture
def login(as_released: str) -> Iterator[str]:
    """A role with a login and the rights of a worker, given before the upgrade: the old way, and the new."""
    name = f"recall_login_{uuid.uuid4().hex[:8]}"
    role, group = sql.Identifier(name), sql.Identifier("pgrecall_worker")
    with psycopg.connect(as_released, autocommit=True) as admin:
        admin.execute(sql.SQL("create role {} login").format(role))
        admin.execute(sql.SQL("grant usage on schema pgrecall to {}").format(role))
        for kind in ("tables", "sequences"):
            admin.execute(sql.SQL("grant all on all {} in schema pgrecall to {}").format(sql.SQL(kind), role))
        with suppress(psycopg.errors.DuplicateObject):
            admin.execute(sql.SQL("create role {}").format(group))
        admin.execute(sql.SQL("grant {} to {}").format(group, role))
        yield name
        admin.execute(sql.SQL("drop owned by {} cascade").format(role))
        admin.execute(sql.SQL("drop role {}").format(role))


def test_a_worker_with_a_login_of_its_own_goes_on_if_it_has_the_group_role(
    former: Previous, as_released: str, login: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        db = stack.enter_context(psycopg.connect(as_released, autocommit=True))
        dsn = make_conninfo(as_released, user=login)
        worker = stack.enter_context(worker_processes(tmp_path, dsn, former.wheel))()
        add(db, "before", NOW - 10 * 365 * 24 * HOUR)
        worker.event("recall_fired")
        by_package(as_released)
        add(db, "after", NOW - 10 * 365 * 24 * HOUR)
        worker.event("recall_fired", 2)
        worker.send(signal.SIGTERM)
        assert worker.ended() == 0
        assert trouble(worker) == []


#: Calls that change or read recalls, with the statements that the release sends.
_STATEMENTS = """
import inspect, json, sys
from datetime import UTC, datetime, timedelta
from pgrecall import calls
runs = json.loads(sys.argv[1])
at = datetime(2040, 1, 1, tzinfo=UTC)
asked = {"session_id": "plain", "additional_context_message": "hello", "trigger_at": at}
made = [
    calls.schedule_recall(**dict.fromkeys(inspect.signature(calls.schedule_recall).parameters) | asked),
    calls.list_recalls(session_id="listed", user_id=None, is_admin=False, limit=50, offset=0),
    calls.get_recall("listed"),
    calls.get_pending_recalls(at),
    calls.cancel_recall("cancelled"),
    calls.skip_next_recall("skipped"),
    calls.reschedule("moved", at),
    calls.mark_cancelled("marked"),
    calls.claim("w2", 5, timedelta(seconds=30), True),
    calls.release("w1", [runs["released"]]),
    calls.finish(**dict.fromkeys(inspect.signature(calls.finish).parameters) | {
        "recall_id": "finished", "run_id": runs["finished"], "outcome": "success", "reply": "Done.",
        "retry": False, "counted": True, "append_reply": True}),
    calls.hold_session("held", "chat", timedelta(seconds=30), "refuse"),
    calls.free_session("freed", "chat"),
]
print(json.dumps([[call.statement, call.arguments] for call in made], default=str))
"""


def the_lock() -> bytes:
    """The statement with which the newest migration locks all that it changes."""
    text = (schema.sql_root() / schema.migrations()[schema.SCHEMA_VERSION]).read_text(encoding="utf-8")
    (found,) = re.findall(r"lock table [\w., \n]+ in access exclusive mode", text)
    return str(found).encode()


def answer(client: psycopg.Connection, statement: bytes, arguments: dict[str, Any]) -> list[Any]:
    """Run a prepared statement."""
    return client.execute(statement, arguments, prepare=True).fetchall()


def test_calls_that_wait_for_the_upgrade_are_answered_after_it(former: Previous, as_released: str) -> None:
    """Their functions began before it, with statements prepared before it, and end after it."""
    with ExitStack() as stack:
        installer = stack.enter_context(psycopg.connect(as_released))
        for name in ("plain", "listed", "cancelled", "moved", "marked", "held", "freed"):
            add(installer, name, NOW + HOUR, id=name)
        installer.execute("delete from pgrecall.session_recalls where id = 'plain'")
        add_recurring(installer, "skipped", NOW + HOUR, id="skipped")
        for name in ("released", "finished", "claimed"):
            add(installer, name, NOW - HOUR * 24 * 3650, id=name, max_attempts=5)
            if name != "claimed":
                claim_one(installer, "w1")
        call(installer, "hold_session", session_id="freed", holder="chat")
        runs = {name: recall(installer, name)["run_id"] for name in ("finished", "released")}
        prepared = json.loads(former.python(_STATEMENTS, json.dumps(runs)))
        installer.commit()
        clients = []
        for statement, arguments in prepared:
            client = stack.enter_context(psycopg.connect(as_released))
            client.execute(statement.encode(), arguments, prepare=True)
            client.rollback()
            client.autocommit = True
            clients.append((client, statement.encode(), arguments))
        installer.execute(the_lock())
        waiting = [Doing(partial(answer, *client)) for client in clients]
        with psycopg.connect(as_released, autocommit=True) as observer:
            for client, _, _ in clients:
                wait_until_blocked(observer, client.info.backend_pid)
            schema.install(installer)
            installer.commit()
        refused = []
        for (statement, _), asked in zip(prepared, waiting, strict=True):
            try:
                assert asked.result(), statement
            except UPGRADED:
                refused.append(re.findall(r"pgrecall\.(\w+)", statement)[0])
        whole_rows = {one["name"] for one in former.surface["routines"] if one["answer"].endswith("session_recalls")}
        # PostgreSQL has planned the call for the columns that the table had then.
        assert set(refused) <= whole_rows
        # What was refused has done nothing, so it can be asked again.
        made = value(installer, "select count(*) from pgrecall.session_recalls where session_id = 'plain'")
        assert made == (0 if "schedule_recall" in refused else 1)
        assert recall(installer, "finished")["status"] == "fired"
        assert recall(installer, "claimed")["worker_id"] == "w2"


ANSWERED: list[Callable[[SyncRecallScheduler], object]] = [
    lambda scheduler: scheduler.schedule_recall(session_id="s1", additional_context_message="hello").session_id,
    lambda scheduler: scheduler.list_recalls(is_admin=True),
    lambda scheduler: scheduler.get_pending_recalls(NOW),
]


@pytest.mark.parametrize("ask", ANSWERED)
def test_a_scheduler_asks_again_if_its_call_has_waited_for_an_upgrade(
    database: str, ask: Callable[[SyncRecallScheduler], object]
) -> None:
    """The next one, that is: it knows what older packages had to learn."""
    with psycopg.connect(database) as installer, SyncRecallScheduler(database) as scheduler:
        add(installer, "s1", NOW, id="there", status="cancelled")
        installer.commit()
        for _ in range(6):  # so that it is prepared
            ask(scheduler)
            scheduler.cancel_recall("s1")
        installer.execute("alter table pgrecall.session_recalls add column more text")
        waiting = Doing(lambda: ask(scheduler))
        with psycopg.connect(database, autocommit=True) as observer:
            wait_until(lambda: value(observer, WAITING), "the call waits")
        installer.commit()
        waiting.result()


@pytest.mark.anyio
async def test_an_async_scheduler_asks_again_as_well(database: str) -> None:
    with psycopg.connect(database) as installer:
        add(installer, "s1", NOW)
        installer.commit()
        async with RecallScheduler(database) as scheduler, anyio.create_task_group() as tasks:
            for _ in range(6):
                await scheduler.list_recalls(is_admin=True)
            installer.execute("alter table pgrecall.session_recalls add column more text")
            found: list[str] = []

            async def ask() -> None:
                found.extend(one.session_id for one in await scheduler.list_recalls(is_admin=True))

            tasks.start_soon(ask)
            async with sql_of(database) as observer:
                await until(lambda: observer(WAITING))
            installer.commit()
        assert found == ["s1"]


def test_a_package_says_what_to_do_about_a_schema_that_is_older(as_released: str) -> None:
    with SyncRecallScheduler(as_released) as scheduler, pytest.raises(SchemaOutdatedError) as caught:
        scheduler.list_recalls(is_admin=True)
    assert caught.value.hint == "Run: pgrecall migrate"


def test_the_installer_of_the_release_leaves_a_newer_schema_alone(former: Previous, database: str) -> None:
    before = catalog(database)
    former.python("import sys; from pgrecall import database; database.ensure(sys.argv[1])", database)
    code = """
import sys
from pgrecall import SchemaTooNewError, database
try:
    database.install(sys.argv[1])
except SchemaTooNewError as error:
    print(error.hint)
"""
    assert former.python(code, database) == "Upgrade the package: pip install -U pgrecall\n"
    assert catalog(database) == before


# Alone, and in the way of others


def test_several_upgrades_at_once_happen_once(restored: str, database: str) -> None:
    def install() -> int:
        with psycopg.connect(restored) as connection:
            return schema.install(connection)

    several = [Doing(install) for _ in range(3)]
    assert sorted(done.result() for done in several)[:2] == [0, 0]
    assert catalog(restored) == catalog(database)


@pytest.mark.parametrize("client", ["package", "psql"])
def test_an_upgrade_that_is_killed_leaves_the_release_whole(former: Previous, restored: str, client: str) -> None:
    before, rows_before = catalog(restored), contents(restored, former.surface["columns"])
    code = """
import sys, psycopg
from datetime import timedelta
from pgrecall import schema
with psycopg.connect(sys.argv[1]) as connection:
    schema.install(connection, lock_timeout=timedelta(minutes=5))
"""
    command = [sys.executable, "-c", code, restored]
    if client == "psql":
        if PSQL is None:
            pytest.skip("no psql in PATH")
        script = str(Path(str(schema.sql_root())) / "install.sql")
        command = [PSQL, "-X", "-d", restored, "-v", "lock_timeout=5min", "-f", script]
    with psycopg.connect(restored) as blocker, psycopg.connect(restored, autocommit=True) as observer:
        blocker.execute("select from pgrecall.session_recalls limit 1")
        installer = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
        wait_until(lambda: value(observer, WAITING), "the installer has replaced functions, and waits for a table")
        pid = value(observer, WAITING)
        installer.kill()
        installer.wait()
        blocker.rollback()
        wait_until(lambda: not value(observer, "select true from pg_stat_activity where pid = %s", pid), "it is gone")
    assert catalog(restored) == before
    assert contents(restored, former.surface["columns"]) == rows_before


def test_an_upgrade_that_waits_for_a_long_transaction_does_not_keep_others_waiting(restored: str) -> None:
    with psycopg.connect(restored) as blocker, psycopg.connect(restored, autocommit=True) as other:
        blocker.execute("select from pgrecall.session_recalls limit 1")

        def install() -> int:
            with psycopg.connect(restored) as connection:
                return schema.install(connection, lock_timeout=timedelta(milliseconds=50))

        upgrade = Doing(install)
        for number in range(2):  # in vain, twice
            wait_until(lambda: value(other, WAITING), "it waits")
            add(other, f"meanwhile {number}", NOW)
            wait_until(lambda: not value(other, WAITING), "it makes a pause")
        blocker.rollback()
        assert upgrade.result() > 0


def test_an_upgrade_that_never_gets_the_tables_says_who_has_them(former: Previous, restored: str) -> None:
    before = catalog(restored)
    with psycopg.connect(restored, application_name="a report") as blocker:
        blocker.execute("select from pgrecall.session_recalls limit 1")
        who = f"process {blocker.info.backend_pid} \\(a report, idle in transaction, since 20[-0-9:+ ]+\\)"
        with (
            psycopg.connect(restored) as connection,
            pytest.raises(SchemaBusyError, match=f"^the tables of pgrecall are in use: {who}") as caught,
        ):
            schema.install(connection, lock_timeout=timedelta(milliseconds=20), patience=timedelta(0))
        assert "pg_terminate_backend" in caught.value.hint
        if PSQL is not None:
            done = psql(restored, "-v", "lock_timeout=20ms")
            assert done.returncode == 3
            assert re.search(who, done.stderr)
            assert "HINT:  Nothing has changed." in done.stderr
    assert catalog(restored) == before


_OWN_LOCKS: LiteralString = """
    select c.relname as name, l.mode
    from pg_locks as l
    join pg_class as c on c.oid = l.relation
    join pg_stat_user_tables as t on t.relid = c.oid
    where l.pid = pg_backend_pid() and c.relnamespace = 'pgrecall'::regnamespace and c.relname <> 'migrations'
        and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""


def test_a_migration_locks_all_tables_that_it_changes_at_once(former: Previous, as_released: str) -> None:
    """One by one it could wait for somebody who waits for it."""
    with psycopg.connect(as_released) as db:
        there = {found["name"] for found in rows(db, "select relname::text as name from pg_class where relkind = 'r'")}
        schema.install(db)
        taken = {lock["name"] for lock in rows(db, _OWN_LOCKS)}
    assert taken & there == set(re.findall(r"pgrecall\.(\w+)", the_lock().decode()))
    assert "workers" not in taken, "each worker reads it for seconds at a time: no lock on it is to be had"


def test_an_index_of_a_large_table_can_be_built_before_the_upgrade(as_released: str, database: str) -> None:
    page = (ROOT / "docs" / "upgrades.md").read_text(encoding="utf-8")
    migration = (schema.sql_root() / schema.migrations()[schema.SCHEMA_VERSION]).read_text(encoding="utf-8")
    with psycopg.connect(as_released, autocommit=True) as db:
        for statement, name in re.findall(r"(create index concurrently if not exists (\w+) [^;]+);", page):
            if name in migration:
                db.execute(statement.encode())
    by_package(as_released)
    assert catalog(as_released) == catalog(database)


def test_an_index_that_was_not_built_to_the_end_is_not_taken_for_one(as_released: str) -> None:
    with psycopg.connect(as_released, autocommit=True) as db:
        db.execute("insert into pgrecall.sessions (id, user_id) values ('a', 'ann'), ('b', 'ann')")
        with pytest.raises(psycopg.errors.UniqueViolation):
            db.execute("create unique index concurrently half_built on pgrecall.sessions (user_id)")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=r"index pgrecall\.half_built"):
        by_package(as_released)


def test_installing_again_locks_no_table(database: str) -> None:
    with psycopg.connect(database) as db:
        schema.install(db)
        assert rows(db, _OWN_LOCKS) == []


# The rule


def test_what_clients_of_the_release_use_is_still_there(former: Previous, db: psycopg.Connection) -> None:
    their_version = int(former.python("from pgrecall.schema import SCHEMA_VERSION; print(SCHEMA_VERSION)"))
    lost = incompatible(former.surface, surface(db))
    rule = "Keep it, or raise oldest_client in get_schema(): docs/upgrades.md tells what a release may change."
    assert value(db, "select oldest_client from pgrecall.get_schema()") > their_version or lost == [], rule


_ANSWER: LiteralString = "language sql as 'select false'"
_DROP: LiteralString = "drop function pgrecall.cancel_recall(text); create function pgrecall.cancel_recall"

BROKEN: list[tuple[LiteralString, str]] = [
    (
        "drop function pgrecall.cancel_recall(text)",
        "function cancel_recall(session_id text) is called by older clients, and is now: gone",
    ),
    (f"{_DROP}(name text) returns boolean {_ANSWER}", "is now: cancel_recall(name text)"),
    (
        f"{_DROP}(session_id text, why text) returns boolean {_ANSWER}",
        "is now: cancel_recall(session_id text, why text)",
    ),
    (
        f"create function pgrecall.cancel_recall(session_id text, why text default null) returns boolean {_ANSWER}",
        "a call of cancel_recall(session_id text) by an older client is ambiguous",
    ),
    (
        f"{_DROP}(session_id text) returns integer language sql as 'select 1'",
        "answered boolean to older clients, and now integer",
    ),
    (
        "alter table pgrecall.sessions drop column metadata",
        "column sessions.metadata is read by older clients, and is gone",
    ),
    (
        "alter table pgrecall.workers alter column lifelines type integer[]",
        "column workers.lifelines was bigint[] for older clients, and is now integer[]",
    ),
    (
        "alter table pgrecall.session_recalls alter column call_type drop default",
        "column session_recalls.call_type had a default for older clients, and must now be given",
    ),
    (
        "alter table pgrecall.session_recalls add column team text not null",
        "column session_recalls.team is not known to older clients, and must be given",
    ),
    ("drop function pgrecall._before_recalls_truncate() cascade", "notification pgrecall stop all means something"),
    (
        "alter table pgrecall.session_recalls drop constraint interval_seconds_must_be_greater_than_zero",
        "constraint interval_seconds_must_be_greater_than_zero means something to older clients, and is gone",
    ),
    ("drop index pgrecall.recalls_due", "constraint recalls_due"),
]


@pytest.mark.parametrize(("change", "sentence"), BROKEN)
def test_a_change_that_older_clients_do_not_bear_is_named(
    db: psycopg.Connection, change: LiteralString, sentence: str
) -> None:
    before = surface(db)
    db.execute(change)
    (found,) = incompatible(before, surface(db))
    assert sentence in found


def test_a_class_of_errors_that_gets_another_number_is_named(db: psycopg.Connection) -> None:
    before = surface(db)
    after = before | {"errors": before["errors"] | {"PR001": "AnotherError"}}
    (found,) = incompatible(before, after)
    assert found == "SQLSTATE PR001 means RecallExistsError to older clients, and now AnotherError"


BORNE: list[LiteralString] = [
    "create table pgrecall.more (id text primary key)",
    "alter table pgrecall.session_recalls add column team text",
    f"create function pgrecall.another(session_id text) returns boolean {_ANSWER}",
    f"{_DROP}(session_id text, why text default null) returns boolean {_ANSWER}",
]


@pytest.mark.parametrize("change", BORNE)
def test_a_change_that_older_clients_bear_is_none(db: psycopg.Connection, change: LiteralString) -> None:
    before = surface(db)
    db.execute(change)
    assert incompatible(before, surface(db)) == []
