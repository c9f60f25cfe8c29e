"""What the tests of the SQL share: asking, adding rows, claiming and finishing, a movable clock. psycopg only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

Row = dict[str, Any]

#: What the clock of a test shows that moves it.
NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
#: Longer than anything here takes on a busy machine.
DEADLINE = 15.0


def value(db: psycopg.Connection, statement: LiteralString, *arguments: object) -> Any:
    """Return the first column of the first row, None if there is no row."""
    found = db.execute(statement, arguments).fetchone()
    return None if found is None else found[0]


def rows(db: psycopg.Connection, statement: LiteralString | sql.Composed, *arguments: object) -> list[Row]:
    """Return all rows as dicts."""
    with db.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, arguments or None).fetchall()


def row(db: psycopg.Connection, statement: LiteralString | sql.Composed, *arguments: object) -> Row:
    """Return the only row."""
    (found,) = rows(db, statement, *arguments)
    return found


def call(db: psycopg.Connection, function: str, **arguments: object) -> list[Row]:
    """Call a routine of the schema with named arguments."""
    named = [sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in arguments]
    statement = sql.SQL("select * from pgrecall.{}({})").format(sql.Identifier(function), sql.SQL(", ").join(named))
    given = {name: Jsonb(argument) if isinstance(argument, dict) else argument for name, argument in arguments.items()}
    with db.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, given).fetchall()


def call_one(db: psycopg.Connection, function: str, **arguments: object) -> Row:
    """Call a routine that answers one row."""
    (found,) = call(db, function, **arguments)
    return found


def pretend_schema(db: psycopg.Connection, version: int, oldest_client: int) -> None:
    """Make the schema say that it is of another version."""
    db.execute(
        sql.SQL(
            """create or replace function pgrecall.get_schema()
            returns table (version integer, oldest_client integer) language sql immutable as 'select {}, {}'"""
        ).format(sql.Literal(version), sql.Literal(oldest_client))
    )


def set_clock(db: psycopg.Connection, at: datetime | None) -> None:
    """Stop the database's clock at a time; None: let it go again."""
    shown = "pg_catalog.clock_timestamp()" if at is None else f"timestamptz '{at.isoformat()}'"
    db.execute(
        f"""create or replace function pgrecall.clock() returns timestamptz language sql volatile parallel safe
        set search_path = '' as $$ select {shown} $$""".encode()
    )


def add_session(db: psycopg.Connection, *ids: str, user_id: str | None = None) -> None:
    """Add sessions."""
    for name in ids:
        db.execute("insert into pgrecall.sessions (id, user_id) values (%s, %s)", [name, user_id])


def add(db: psycopg.Connection, session_id: str, trigger_at: datetime = NOW, **columns: object) -> str:
    """Insert a recall with plain SQL, and its session if need be; return its id."""
    db.execute("insert into pgrecall.sessions (id) values (%s) on conflict do nothing", [session_id])
    given = {"session_id": session_id, "trigger_at": trigger_at, "additional_context_message": "go on"} | columns
    statement = sql.SQL("insert into pgrecall.session_recalls ({}) values ({}) returning id").format(
        sql.SQL(", ").join(map(sql.Identifier, given)), sql.SQL(", ").join(map(sql.Placeholder, given))
    )
    found = db.execute(statement, given).fetchone()
    assert found is not None
    return str(found[0])


def add_recurring(db: psycopg.Connection, session_id: str, trigger_at: datetime = NOW, **columns: object) -> str:
    """Insert a recurring recall, every 60 seconds unless told otherwise."""
    if "cron" not in columns:
        columns.setdefault("interval_seconds", 60)
    return add(db, session_id, trigger_at, call_type="recurring", **columns)


def recall(db: psycopg.Connection, recall_id: str) -> Row:
    """Return a recall's row."""
    return row(db, "select * from pgrecall.session_recalls where id = %s", recall_id)


def session(db: psycopg.Connection, session_id: str) -> Row:
    """Return a session's row."""
    return row(db, "select * from pgrecall.sessions where id = %s", session_id)


def ledger(db: psycopg.Connection, recall_id: str) -> list[Row]:
    """Return what was recorded about a recall, oldest first."""
    return rows(db, "select * from pgrecall.recall_runs where recall_id = %s order by id", recall_id)


def outcomes(db: psycopg.Connection, recall_id: str) -> list[str]:
    """Return the recorded outcomes, oldest first."""
    return [run["outcome"] for run in ledger(db, recall_id)]


def change(db: psycopg.Connection, recall_id: str, **columns: object) -> None:
    """Change a recall by hand, as an operator with psql does."""
    pairs = [sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in columns]
    statement = sql.SQL("update pgrecall.session_recalls set {} where id = {}").format(
        sql.SQL(", ").join(pairs), sql.Placeholder("recall_id")
    )
    assert db.execute(statement, {**columns, "recall_id": recall_id}).rowcount == 1


@dataclass(frozen=True)
class Claim:
    """What ``claim()`` answered."""

    now_at: datetime
    next_due_at: datetime | None
    settled: bool
    runs: list[Row]
    deferred: list[Row]

    @property
    def recall_ids(self) -> list[str]:
        """The recalls that are now the caller's, in the order given."""
        return [run["recall_id"] for run in self.runs]


def claim(
    db: psycopg.Connection,
    worker: str = "w1",
    up_to: int = 10,
    lease: timedelta = timedelta(seconds=30),
    inject: bool = True,
    *,
    due_from: datetime | None = None,
) -> Claim:
    """Claim what is due."""
    # A database of an older release has no due_from.
    more = {} if due_from is None else {"due_from": due_from}
    found = call(db, "claim", worker_id=worker, up_to=up_to, lease=lease, inject=inject, **more)
    return Claim(
        found[0]["now_at"],
        found[0]["next_due_at"],
        found[0]["settled"],
        [one for one in found if one["run_id"] is not None],
        [one for one in found if one["run_id"] is None and one["recall_id"] is not None],
    )


def claim_one(db: psycopg.Connection, worker: str = "w1", **options: Any) -> Row:
    """Claim the only recall that is due."""
    (run,) = claim(db, worker, **options).runs
    return run


def finish(db: psycopg.Connection, run: Row, outcome: str = "success", **options: object) -> Row:
    """Say that a run has ended."""
    return call_one(db, "finish", recall_id=run["recall_id"], run_id=run["run_id"], outcome=outcome, **options)


@contextmanager
def refused(db: psycopg.Connection, sqlstate: str) -> Iterator[pytest.ExceptionInfo[psycopg.Error]]:
    """Expect an error of the server with this SQLSTATE, and keep the transaction usable."""
    with pytest.raises(psycopg.Error) as caught, db.transaction():
        yield caught
    assert caught.value.sqlstate == sqlstate


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition that another connection or thread brings about."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE} s for: {what}"
        time.sleep(0.005)


def wait_until_blocked(observer: psycopg.Connection, pid: int) -> None:
    """Wait until a backend waits for a lock that another one has."""
    wait_until(lambda: value(observer, "select cardinality(pg_blocking_pids(%s)) > 0", pid), f"{pid} waits for a lock")


class Doing:
    """A piece of work in a thread, for a statement that is expected to wait."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._answer: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._answer = self._work()
        except BaseException as error:  # noqa: BLE001 (result() raises it)
            self._error = error

    def result(self) -> Any:
        """Wait for the end and return the answer, or raise the error."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "still waiting"
        if self._error is not None:
            raise self._error
        return self._answer


class Ear:
    """A connection that listens on the channel pgrecall and keeps what it hears."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        self._heard: list[str] = []
        self._marks: set[str] = set()
        self._asked = 0
        self.connection.add_notify_handler(self._hear)
        self.connection.execute("listen pgrecall")
        self.connection.execute("listen pgrecall_test_mark")

    def _hear(self, notify: psycopg.Notify) -> None:
        (self._heard.append if notify.channel == "pgrecall" else self._marks.add)(notify.payload)

    def heard(self) -> list[str]:
        """Return the messages of all transactions that have committed by now, and forget them."""
        self._asked += 1
        mark = f"{self.connection.info.backend_pid} {self._asked}"
        self.connection.execute("select pg_notify('pgrecall_test_mark', %s)", [mark])  # messages come in commit order
        wait_until(lambda: self.connection.execute("select") and mark in self._marks, "own message")
        messages, self._heard = self._heard, []
        return messages

    def close(self) -> None:
        """Hang up."""
        self.connection.close()


def microseconds(at: datetime) -> int:
    """Return a time in the form that messages carry."""
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def due(at: datetime) -> str:
    """Return the message that announces a time."""
    return f"due {microseconds(at)}"
