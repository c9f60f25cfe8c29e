"""What `pgrecall doctor` looks at: one function for each check, each a few SELECTs. Changes nothing, prints nothing."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

import psycopg
from psycopg import errors, sql
from psycopg.rows import dict_row

from pgrecall import database, schema
from pgrecall.errors import SchemaError

Row: TypeAlias = Mapping[str, Any]
Connection: TypeAlias = psycopg.Connection[dict[str, Any]]

#: Advisory key of the wake-up lock, see sql/foundation/30_wake.sql.
WAKE_UP_LOCK = 8099568234633718892
#: The register's value for "no recall is waiting".
NOTHING_WAITS = 253402300800000000

_NOTIFY_SECONDS = 3.0
_OVERDUE = timedelta(seconds=5)  # a worker starts a due recall within milliseconds
_ALIVE = timedelta(seconds=150)  # an idle worker speaks once a minute
_TRIGGERS = ("announce_insert", "announce_update", "recall_delete", "recall_update", "recalls_truncate")
_START_A_WORKER = "Start one: pgrecall worker --agent module:attribute"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        status: `fail`: recalls do not run as they should, or soon will not. `warn`: worth a look.
        message: What is so.
        hint: What to do about it; empty if it is well.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    message: str
    hint: str = ""


def examine(dsn: str | None, *, listen_dsn: str | None = None, patience: timedelta) -> Iterator[Check]:
    """Looks at a database and its workers, and yields each finding as it is made.

    Args:
        dsn: A libpq connection string or URI; None: libpq's own `PG*` variables.
        listen_dsn: Where the workers LISTEN, if not at dsn.
        patience: How long a transaction may stay open before it is reported.

    Raises:
        SettingsError: A DSN is not a connection string.
    """
    conninfo = database.conninfo(dsn)
    try:
        connection = psycopg.connect(conninfo, autocommit=True, row_factory=dict_row)
    except psycopg.Error as error:
        yield Check("server", "fail", one_line(error), "Is it running, and is the address right? See --dsn.")
        return
    with connection:
        yield from _checked("server", _server, connection)
        yield from _checked("clock", _clock, connection)
        yield from _checked("notify", lambda _: _notify(conninfo, database.conninfo(listen_dsn or dsn)), connection)
        yield from _checked("notify queue", _notify_queue, connection)
        yield from _checked("transactions", lambda db: _transactions(db, patience), connection)
        yield from _checked("prepared", lambda db: _prepared(db, patience), connection)
        missing = _schema(connection)
        yield missing
        if missing.status == "ok":
            for name, check in (
                ("triggers", _triggers),
                ("wake-up lock", _wake_up_lock),
                ("register", _register),
                ("workers", _workers),
                ("claims", _claims),
                ("sessions", _sessions),
                ("overdue", _overdue),
            ):
                yield from _checked(name, check, connection)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, and without libpq's indented guesses at the reason."""
    lines = [line for line in str(error).splitlines() if not line.startswith("\t")]
    return " ".join(" ".join(lines).split()) or type(error).__name__


def span(length: timedelta) -> str:
    """A length of time for people, in its two largest units: `4m 10s`."""
    left = max(int(length.total_seconds()), 0)
    parts = []
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if count := left // seconds:
            parts.append(f"{count}{unit}")
        elif parts:
            break  # 2d 5s says less than 2d
        left %= seconds
    return " ".join(parts[:2]) or "0s"


def _checked(name: str, check: Callable[[Connection], Check], connection: Connection) -> Iterator[Check]:
    """Runs a check in a transaction of its own that waits for nobody; what it may not see becomes a warning."""
    try:
        with connection.transaction():
            connection.execute("set local lock_timeout = '2s'; set local statement_timeout = '15s'")
            yield check(connection)
    except errors.InsufficientPrivilege as error:
        yield Check(name, "warn", f"not allowed to look: {one_line(error)}", "Ask as a role that may read it.")
    except (errors.LockNotAvailable, errors.QueryCanceled) as error:
        yield Check(
            name, "fail", f"a table is locked: {one_line(error)}", "See transactions above for who may hold it."
        )
    except psycopg.Error as error:
        yield Check(name, "fail", one_line(error), "If something of the schema is missing: pgrecall migrate")


def _one(connection: Connection, statement: str, **values: Any) -> dict[str, Any]:
    row = connection.execute(statement.encode(), values).fetchone()
    assert row is not None  # noqa: S101 (a SELECT of expressions has one row)
    return row


def _all(connection: Connection, statement: str, **values: Any) -> list[dict[str, Any]]:
    return connection.execute(statement.encode(), values).fetchall()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _who(row: Row) -> str:
    """A backend, for people: `pid 12 (psql, idle in transaction, open for 5m)`."""
    if row["pid"] is None:
        return "a prepared transaction"
    about = [row["application_name"], row["state"], row["open_for"] and f"open for {span(row['open_for'])}"]
    return f"pid {row['pid']} ({', '.join(filter(None, about))})"


# The server


def _server(connection: Connection) -> Check:
    began = time.perf_counter()
    row = _one(
        connection, "select pg_is_in_recovery() as is_standby, current_setting('server_version') as server_version"
    )
    milliseconds = (time.perf_counter() - began) * 1000
    info = connection.info
    version = row["server_version"].split()[0]
    where = f"PostgreSQL {version} at {info.host or 'localhost'}, database {info.dbname}, user {info.user}"
    if info.server_version < 140000:
        return Check("server", "fail", f"{where} is too old", "pgrecall needs PostgreSQL 14 or newer.")
    if row["is_standby"]:
        return Check("server", "fail", f"{where} is a standby", "Use the primary: target_session_attrs=read-write.")
    return Check("server", "ok", f"{where}, {milliseconds:.1f} ms away")


def _clock(connection: Connection) -> Check:
    best, ahead, zone = float("inf"), 0.0, ""
    for _ in range(3):
        before = datetime.now(UTC)
        row = _one(connection, "select clock_timestamp() as at, current_setting('TimeZone') as zone")
        after = datetime.now(UTC)
        if (took := (after - before).total_seconds()) < best:
            best, zone = took, row["zone"]
            ahead = (row["at"] - (before + (after - before) / 2)).total_seconds()
    here = f"{datetime.now().astimezone():%Z %z}"
    zones = f"time zone there {zone}, here {here}"
    if abs(ahead) <= max(1.0, best):
        return Check("clock", "ok", f"as the server's, within {abs(ahead) * 1000 + best * 500:.1f} ms; {zones}")
    direction = "behind" if ahead > 0 else "ahead of"
    return Check(
        "clock",
        "warn",
        f"this machine is {abs(ahead):.1f} s {direction} the server; {zones}",
        "Recalls follow the server's clock, so they are right; set the wrong clock before people compare logs.",
    )


def _notify(conninfo: str, listen: str) -> Check:
    channel = f"pgrecall_doctor_{secrets.token_hex(4)}"
    try:
        listening = psycopg.connect(listen, autocommit=True)
    except psycopg.Error as error:
        return Check("notify", "fail", f"cannot LISTEN: {one_line(error)}", "Check --listen-dsn.")
    with listening, psycopg.connect(conninfo, autocommit=True) as notifying:
        listening.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        row = listening.execute("select pg_backend_pid()").fetchone()
        is_pooled = row is not None and row[0] != listening.info.backend_pid
        began = time.perf_counter()
        notifying.execute("select pg_notify(%s, '')", [channel])
        for _ in listening.notifies(timeout=_NOTIFY_SECONDS, stop_after=1):
            milliseconds = (time.perf_counter() - began) * 1000
            return Check("notify", "ok", f"a notification arrived after {milliseconds:.1f} ms")
    why = ", and a pooler sits between (its server process is not the one that it announced)" if is_pooled else ""
    return Check(
        "notify",
        "fail",
        f"no notification within {_NOTIFY_SECONDS:g} s{why}",
        "LISTEN does not work through a transaction pooler: give workers a direct --listen-dsn, else they look once a "
        "minute only.",
    )


def _notify_queue(connection: Connection) -> Check:
    usage = _one(connection, "select pg_notification_queue_usage() as usage")["usage"]
    message = f"{usage:.0%} of the server's notification queue is used"
    if usage < 0.1:
        return Check("notify queue", "ok", message)
    hint = "A listener sits in a long transaction (see transactions); when the queue is full, COMMIT fails."
    return Check("notify queue", "fail" if usage >= 0.5 else "warn", message, hint)


def _transactions(connection: Connection, patience: timedelta) -> Check:
    rows = _all(
        connection,
        """
        select pid, application_name, state, clock_timestamp() - xact_start as open_for
        from pg_stat_activity
        where datname = current_database()
            and backend_type = 'client backend'
            and pid <> pg_backend_pid()
            and clock_timestamp() - xact_start > %(patience)s
        order by xact_start
        """,
        patience=patience,
    )
    sees_all = _one(connection, "select pg_has_role('pg_read_all_stats', 'usage') as it")["it"]
    if not rows:
        scope = "" if sees_all else " of this role; grant pg_monitor to see all"
        return Check("transactions", "ok", f"none open for longer than {span(patience)}{scope}")
    oldest = ", ".join(_who(row) for row in rows[:3]) + (", …" if len(rows) > 3 else "")
    return Check(
        "transactions",
        "warn",
        f"{_count(len(rows), 'transaction')} open for longer than {span(patience)}: {oldest}",
        "It may lock recalls, and keeps dead rows from being vacuumed. "
        f"To end the oldest: select pg_terminate_backend({rows[0]['pid']})",
    )


def _prepared(connection: Connection, patience: timedelta) -> Check:
    rows = _all(
        connection,
        """
        select gid, clock_timestamp() - prepared as open_for
        from pg_prepared_xacts
        where database = current_database()
            and clock_timestamp() - prepared > %(patience)s
        order by prepared
        """,
        patience=patience,
    )
    if not rows:
        return Check("prepared", "ok", f"no prepared transaction older than {span(patience)}")
    gid = rows[0]["gid"].replace("'", "''")
    return Check(
        "prepared",
        "warn",
        f"{_count(len(rows), 'prepared transaction')}, the oldest '{gid}' for {span(rows[0]['open_for'])}",
        f"It keeps its locks until somebody ends it: commit prepared '{gid}', or rollback prepared '{gid}'",
    )


# The schema


def _schema(connection: Connection) -> Check:
    try:
        version = database.schema_version_sync(connection)
        schema.check(version)
    except SchemaError as error:
        return Check("schema", "fail", str(error), error.hint)
    except psycopg.Error as error:
        return Check("schema", "fail", one_line(error), "The role needs usage on the schema pgrecall.")
    return Check("schema", "ok", f"version {version}, as this package needs")


def _triggers(connection: Connection) -> Check:
    rows = _all(
        connection,
        "select tgname, tgenabled::text from pg_trigger where tgrelid = 'pgrecall.session_recalls'::regclass",
    )
    modes = {row["tgname"]: row["tgenabled"] for row in rows}
    missing = [name for name in _TRIGGERS if name not in modes]
    off = [name for name in _TRIGGERS if modes.get(name) in ("D", "R")]
    partly = [name for name in _TRIGGERS if modes.get(name) == "O"]
    if missing:
        return Check("triggers", "fail", f"missing: {', '.join(missing)}", "Restore the table from sql/migrations.")
    repair = "alter table pgrecall.session_recalls " + ", ".join(
        f"enable always trigger {name}" for name in off + partly
    )
    if off:
        return Check("triggers", "fail", f"disabled: {', '.join(off)}; recalls may run up to a minute late", repair)
    if partly:
        return Check("triggers", "warn", f"not fired for replicated rows: {', '.join(partly)}", repair)
    return Check("triggers", "ok", f"all {len(_TRIGGERS)} are enabled always")


# Waking up


def _wake_up_lock(connection: Connection) -> Check:
    rows = _all(
        connection,
        """
        select held.pid, activity.application_name, activity.state,
            clock_timestamp() - activity.xact_start as open_for
        from pg_locks as held
        left join pg_stat_activity as activity on activity.pid = held.pid
        where held.locktype = 'advisory'
            and held.database = (select oid from pg_database where datname = current_database())
            and held.classid = %(high)s
            and held.objid = %(low)s
            and held.objsubid = 1
            and held.granted
            and (held.pid is null or clock_timestamp() - activity.xact_start > interval '5 seconds')
        order by activity.xact_start nulls first
        """,
        high=WAKE_UP_LOCK >> 32,
        low=WAKE_UP_LOCK & 0xFFFFFFFF,
    )
    if not rows:
        return Check("wake-up lock", "ok", "nobody keeps it")
    hint = "Until it is given up, workers look several times a second. " + (
        "See prepared above." if rows[0]["pid"] is None else f"To end it: select pg_terminate_backend({rows[0]['pid']})"
    )
    return Check("wake-up lock", "fail", f"kept by {_who(rows[0])}", hint)


def _register(connection: Connection) -> Check:
    row = _one(
        connection,
        """
        select pg_sequence_last_value('pgrecall.armed_until') as armed, pgrecall.microseconds(pgrecall.clock()) as now,
            has_sequence_privilege('pgrecall.armed_until', 'select, usage') as is_readable
        """,
    )
    armed, now = row["armed"], row["now"]
    if not row["is_readable"]:
        return Check("register", "warn", "not allowed to read it", "grant usage on sequence pgrecall.armed_until.")
    if armed is None:
        return Check("register", "ok", "no worker has written it yet, so every recall is announced")
    if armed >= NOTHING_WAITS:
        return Check("register", "ok", "nothing was waiting at the last look; the next recall is announced")
    ahead = timedelta(microseconds=armed - now)
    idle = [
        worker
        for worker in _known_workers(connection)
        if _is_alive(worker) and worker["running"] < worker["concurrency"]
    ]
    if ahead < -_ALIVE and idle:
        return Check(
            "register",
            "warn",
            f"{_count(len(idle), 'idle worker')} should have looked {span(-ahead)} ago and written a later time",
            "Read their logs for loop_error; restart them if they hang.",
        )
    if ahead < timedelta():
        return Check("register", "ok", f"the last look was meant for {span(-ahead)} ago")
    return Check("register", "ok", f"every sleeping worker wakes within {span(ahead)}")


# Workers and what they hold


def _known_workers(connection: Connection) -> list[dict[str, Any]]:
    return _all(
        connection,
        """
        select worker.id, worker.concurrency, pgrecall.clock() - worker.seen_at as unseen,
            pgrecall.clock() - worker.lease_until as lease_over, count(claimed.id) as running
        from pgrecall.workers as worker
        left join pgrecall.session_recalls as claimed on claimed.worker_id = worker.id and claimed.run_id is not null
        group by worker.id
        order by worker.seen_at desc
        """,
    )


def _is_alive(worker: Row) -> bool:
    return bool(worker["unseen"] < _ALIVE)


def _workers(connection: Connection) -> Check:
    workers = _known_workers(connection)
    alive = [worker for worker in workers if _is_alive(worker)]
    stale = [worker for worker in workers if not _is_alive(worker)]
    slots = sum(worker["concurrency"] for worker in alive)
    running = sum(worker["running"] for worker in alive)
    said = f"{_count(len(alive), 'worker')}, {running} of {_count(slots, 'slot')} busy"
    if alive:
        said += f", last seen {span(alive[0]['unseen'])} ago"
    if stale:
        quiet = f"{stale[0]['id']} was last seen {span(stale[0]['unseen'])} ago"
        return Check(
            "workers",
            "warn",
            f"{said}; {quiet}",
            "It was killed or is cut off; another worker forgets it after five minutes. "
            + ("" if alive else _START_A_WORKER),
        )
    if not alive:
        return Check("workers", "warn", "no worker is running", _START_A_WORKER)
    if running >= slots:
        return Check(
            "workers", "warn", said, "Due recalls wait for a slot: raise --concurrency, or start more workers."
        )
    return Check("workers", "ok", said)


def _claims(connection: Connection) -> Check:
    orphans = _all(
        connection,
        """
        select claimed.id, claimed.run_id
        from pgrecall.session_recalls as claimed
        where claimed.run_id is not null
            and not exists (select from pgrecall.workers as worker where worker.id = claimed.worker_id)
        order by claimed.run_id
        """,
    )
    if orphans:
        first = orphans[0]
        recall_id = first["id"].replace("'", "''")
        return Check(
            "claims",
            "fail",
            f"{_count(len(orphans), 'recall')} claimed by a worker that is not registered, first {first['id']}",
            f"select pgrecall.finish('{recall_id}', {first['run_id']}, 'interrupted', retry => true, counted => false)",
        )
    workers = _known_workers(connection)
    late = timedelta(seconds=5)  # the next look of any other worker ends the lease
    over = [worker for worker in workers if worker["lease_over"] is not None and worker["lease_over"] > late]
    held = [worker for worker in over if worker["running"]]
    if held:
        alive = any(_is_alive(worker) for worker in workers if worker not in held)
        return Check(
            "claims",
            "fail",
            f"the lease of {held[0]['id']} ended {span(held[0]['lease_over'])} ago with "
            f"{_count(held[0]['running'], 'recall')} still claimed",
            "Another worker should have taken them: read its log." if alive else _START_A_WORKER,
        )
    running = sum(worker["running"] for worker in workers)
    return Check("claims", "ok", f"{_count(running, 'run')} under way, every lease is good")


def _sessions(connection: Connection) -> Check:
    row = _one(
        connection,
        """
        select
            (
                select min(taken.id)
                from pgrecall.sessions as taken
                where taken.run_id is not null
                    and taken.held_until is null
                    and not exists (select from pgrecall.session_recalls as run where run.run_id = taken.run_id)
            ) as orphan,
            count(*) as waiting,
            min(waiting.defer_reason) as reason
        from pgrecall.session_recalls as waiting
        where waiting.defer_reason is not null
            and waiting.due_at is not null
        """,
    )
    if row["orphan"] is not None:
        session_id = row["orphan"].replace("'", "''")
        return Check(
            "sessions",
            "fail",
            f"session '{row['orphan']}' is taken by a run that does not exist",
            f"update pgrecall.sessions set run_id = null where id = '{session_id}'",  # noqa: S608 (for people to read)
        )
    if row["waiting"]:
        return Check("sessions", "ok", f"{_count(row['waiting'], 'recall')} deferred: {row['reason']}")
    return Check("sessions", "ok", "no recall waits for a session that is taken")


# Overdue recalls


def _overdue(connection: Connection) -> Check:
    rows = _all(
        connection,
        """
        select recall.id, pgrecall.clock() - recall.due_at as late, count(*) over () as total,
            array[recall.xmax::text, session.xmax::text] as holders
        from pgrecall.session_recalls as recall
        join pgrecall.sessions as session on session.id = recall.session_id
        where recall.due_at < (select pgrecall.clock()) - %(overdue)s
        order by recall.due_at
        limit 20
        """,
        overdue=_OVERDUE,
    )
    if not rows:
        return Check("overdue", "ok", "no recall is late")
    reason, hint = _why_overdue(connection, rows)
    oldest = rows[0]
    what = _count(oldest["total"], "recall")
    return Check(
        "overdue", "fail", f"{what} late, the oldest by {span(oldest['late'])} ({oldest['id']}): {reason}", hint
    )


def _why_overdue(connection: Connection, rows: list[dict[str, Any]]) -> tuple[str, str]:
    workers = [worker for worker in _known_workers(connection) if _is_alive(worker)]
    if not workers:
        return "no worker is running", _START_A_WORKER
    if locker := _locker(connection, rows):
        hint = "" if locker["pid"] is None else f"To end it: select pg_terminate_backend({locker['pid']})"
        return f"{locker['id']} or its session is locked by {_who(locker)}", hint or "See prepared above."
    slots = sum(worker["concurrency"] for worker in workers)
    if sum(worker["running"] for worker in workers) >= slots:
        return f"all {_count(slots, 'slot')} are busy", "Raise --concurrency, or start more workers."
    hint = "If doctor says so again, read the workers' logs (loop_error, listener_lost) and restart them."
    return f"{_count(len(workers), 'worker')} seen lately with slots free", hint


def _locker(connection: Connection, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Who has locked one of these recalls, or its session, so that claim() passes it over."""
    free: set[str] = set()
    try:
        with connection.transaction(force_rollback=True):
            probed = _all(
                connection,
                """
                select recall.id
                from pgrecall.session_recalls as recall
                join pgrecall.sessions as session on session.id = recall.session_id
                where recall.id = any(%(ids)s)
                for no key update of recall, session skip locked
                """,
                ids=[row["id"] for row in rows],
            )
            free = {row["id"] for row in probed}
    except errors.InsufficientPrivilege:
        pass  # then whoever is in the row's xmax will do
    for row in rows:
        if row["id"] in free:
            continue
        found = _all(
            connection,
            """
            select held.pid, activity.application_name, activity.state,
                clock_timestamp() - activity.xact_start as open_for
            from pg_locks as held
            left join pg_stat_activity as activity on activity.pid = held.pid
            where held.locktype = 'transactionid'
                and held.granted
                and held.transactionid::text = any(%(holders)s)
            """,
            holders=row["holders"],
        )
        if found:
            return {"id": row["id"], **found[0]}
    return None
