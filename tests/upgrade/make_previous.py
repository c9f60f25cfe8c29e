"""Freezes a release: its wheel, a database that it left, and what its clients use, for the tests of later releases.

    PYTHONPATH=tests python -m upgrade.make_previous v0.2.0

Give the tag of the release, once it is final. Its version names the folder beside this script; what is there is
replaced. It runs the release itself, on a server of its own, so nothing here has to know how that worked inside.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb
from servers import server
from sqltools import HOUR, MINUTE, NOW, add, add_recurring, add_session, call, call_one, claim, finish, set_clock, value
from upgrade.previous import HERE, Previous

DAY = timedelta(days=1)
ROOT = HERE.parent.parent


def fill(db: psycopg.Connection) -> None:
    """Leave something in every table and every state, at 12:00 on 2030-01-01 by the database's clock."""
    db.execute("update pgrecall.settings set timeout_seconds = 300, max_runs_per_day = 50, agent_max_chain_depth = 7")
    set_clock(db, NOW - DAY)
    _past(db)
    set_clock(db, NOW - MINUTE)
    _present(db)
    set_clock(db, NOW)
    _future(db)


def _past(db: psycopg.Connection) -> None:
    """What has ended, and what it has left behind."""
    yesterday = NOW - DAY
    add_session(db, "fired", "silent", "failed", "retried", "deleted", "missed", "skipped", user_id="ann")
    db.execute("update pgrecall.sessions set deliver_to = 'http://localhost:9/replies' where user_id = 'ann'")
    db.execute("insert into pgrecall.session_messages (session_id, role, content) values ('fired', 'user', 'Hello.')")
    for outcome in ("fired", "silent", "failed", "deleted"):
        add(db, outcome, yesterday, id=outcome, metadata=Jsonb({"n": 1}), idempotency_key="once")
    add(db, "retried", yesterday, id="retried", max_attempts=2)
    add_recurring(db, "skipped", yesterday + HOUR, id="skipped", interval_seconds=2 * 86400)
    call(db, "skip_next_recall", session_id="skipped")
    for run in claim(db, "yesterday").runs:
        match run["recall_id"]:
            case "fired":
                finish(db, run, reply="Done.", usage=Jsonb({"tokens": 12}), append_reply=True)
            case "silent":
                finish(db, run, "silent")
            case "failed":
                finish(db, run, "error", error="no such tool")
            case "retried":
                finish(db, run, "error", error="unreachable", retry=True, retry_after=2 * DAY)
            case "deleted":
                finish(db, run, reply="Gone.")
    db.execute("delete from pgrecall.session_recalls where id = 'deleted'")
    add_recurring(db, "missed", yesterday, id="missed", interval_seconds=3600)
    (run,) = claim(db, "yesterday").runs
    set_clock(db, yesterday + 3 * HOUR)
    finish(db, run, reply="Late.")
    first, second, _ = [delivery["delivery_id"] for delivery in call(db, "claim_deliveries", up_to=3)]
    call(db, "end_delivery", delivery_id=first, attempt=1, status="delivered", response_status=204)
    call(db, "end_delivery", delivery_id=second, attempt=1, status="failed", response_status=410, error="gone")
    add_session(db, "cancelled", user_id="ann")
    add(db, "cancelled", NOW, id="cancelled")
    call(db, "cancel_recall", session_id="cancelled")
    call(db, "unregister_worker", worker_id="yesterday")


def _present(db: psycopg.Connection) -> None:
    """What runs, and what waits for a session."""
    before = NOW - MINUTE
    running = ("lost", "live", "mid-run", "told to stop", "handed over", "scheduled from inside")
    add_session(db, *running, user_id="bob")
    add(db, "lost", before, id="lost")
    call(db, "register_worker", worker_id="dead", concurrency=3)
    claim(db, "dead", lease=timedelta(seconds=61))  # one second from now on
    call(db, "register_worker", worker_id="alive", concurrency=10, host="a-host", pid=1, version="0.1.0")
    for name in running[1:]:
        if name == "mid-run":
            add_recurring(db, name, before, id=name, cron="*/10 * * * *", time_zone="Europe/Berlin")
        else:
            add(db, name, before, id=name)
    runs = {run["recall_id"]: run for run in claim(db, "alive", lease=timedelta(minutes=5)).runs}
    call(db, "mark_cancelled", recall_id="told to stop")
    call(db, "report_run", run_id=runs["handed over"]["run_id"], reply="From elsewhere.")
    add(db, "scheduled from inside", NOW + HOUR, id="inside")
    finish(db, runs["scheduled from inside"], "error", error="again", retry=True, retry_after=HOUR)


def _future(db: psycopg.Connection) -> None:
    """What is held off, paused, or not due yet."""
    add_session(db, "held", "idle", "paused", "paused for an hour", "plain", "due", "cron", "interval", user_id="cat")
    call(db, "hold_session", session_id="held", holder="chat 1", lease=timedelta(minutes=5))
    call(db, "hold_session", session_id="held", holder="chat 2", lease=timedelta(minutes=5), if_held="wait")
    call(db, "touch_session", session_id="idle")
    add(db, "held", NOW, id="held")
    add(db, "idle", NOW, id="idle", idle_for_seconds=600)
    assert len(claim(db, "alive", lease=timedelta(minutes=5)).deferred) == 2
    for name in ("paused", "paused for an hour"):
        add(db, name, NOW + MINUTE, id=name)
    call(db, "pause_recall", recall_id="paused", reason="a holiday")
    call(db, "pause_recall", recall_id="paused for an hour", paused_until=NOW + HOUR)
    add(db, "plain", NOW + HOUR, id="plain", internal_comment="for people", call_type="immediate", created_by="agent")
    add(db, "due", NOW, id="due")
    add_recurring(
        db, "cron", NOW + HOUR, id="cron", cron="0 9 * * 1-5", time_zone="Europe/Berlin", end_at=NOW + 30 * DAY
    )
    add_recurring(db, "interval", NOW + HOUR, id="interval", interval_seconds=3600, pause_after_failures=3)
    assert call_one(db, "get_recall", recall_id="paused")["due_at"] is None


#: Not of an installation: what the installer writes, and what belongs to the life of the server.
_LEFT_OUT = ["migrations", "server_incarnation", "host_sessions"]

_TABLES = """
    select c.relname::text,
        array_agg(a.attname::text order by a.attnum) filter (where a.attgenerated = ''),
        bool_or(a.attidentity <> '')
    from pg_class as c
    join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = 'pgrecall'::regnamespace and c.relkind = 'r' and c.relname <> all(%s)
    group by c.relname
    order by c.relname
"""


def dump(db: psycopg.Connection) -> str:
    """The rows as INSERTs that every server and client understands, whatever it is."""
    lines = ["begin;", "-- Without foreign keys and triggers, but for those that are enabled always."]
    lines += ["set local session_replication_role = replica;", "delete from pgrecall.settings;"]
    db.execute("set time zone utc")
    for table, columns, has_identity in db.execute(_TABLES.encode(), [_LEFT_OUT]).fetchall():
        quoted = sql.SQL(", ").join(
            sql.SQL("quote_nullable({}::text)").format(sql.Identifier(name)) for name in columns
        )
        place = sql.Identifier("pgrecall", table)
        rows = db.execute(sql.SQL("select concat_ws(', ', {}) from {} order by 1").format(quoted, place)).fetchall()
        names = ", ".join(f'"{name}"' for name in columns)
        if rows:
            lines.append(f"insert into pgrecall.{table} ({names})")
            lines += ["overriding system value"] * has_identity
            lines += ["values", ",\n".join(f"    ({row})" for (row,) in rows) + ";"]
        else:
            print(f"no row in {table}")
    sequences = "select sequencename, last_value from pg_sequences where schemaname = 'pgrecall' order by 1"
    for name, last in db.execute(sequences).fetchall():
        lines += [f"select setval('pgrecall.{name}', {last});"] if last is not None else []
    return "\n".join([*lines, "commit;\n"])


def build(tag: str, place: Path) -> Path:
    """The wheel of a tag, in this place."""
    archive = subprocess.run(["git", "archive", tag], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(place / "source", filter="data")
    command: list[str | Path] = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    command += ["--outdir", place, place / "source"]
    subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = place.glob("*.whl")
    return wheel


_SURFACE = """
import json, sys, psycopg
from upgrade.surface import surface
with psycopg.connect(sys.argv[1]) as db:
    print(json.dumps(surface(db), indent=1))
"""


def main(tag: str) -> None:
    """Make the files of a release."""
    with tempfile.TemporaryDirectory() as temporary, server() as postgres:
        wheel = build(tag, Path(temporary))
        release = Previous(wheel.name.split("-")[1])
        release.folder.mkdir(exist_ok=True)
        shutil.copy(wheel, release.wheel)
        release.install(postgres.dsn)
        paths = f"import sys; sys.path.insert(0, {str(HERE.parent)!r})"
        found = json.loads(release.python(paths + _SURFACE, postgres.dsn))
        (release.folder / "surface.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        with psycopg.connect(postgres.dsn) as db:
            fill(db)
            (release.folder / "data.sql").write_text(dump(db), encoding="utf-8")
            print(f"{release.version}: {value(db, 'select count(*) from pgrecall.session_recalls')} recalls")


if __name__ == "__main__":
    main(*sys.argv[1:])
