"""Checks of the server and of the way to it, which hold with or without the schema of pgrecall.

Knows no table of pgrecall.
"""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime, timedelta

import psycopg
from psycopg import sql

from pgrecall import database
from pgrecall.doctor.finding import Check, Connection, count, every, one, one_line, span, who

_NOTIFY_SECONDS = 3.0


def server(connection: Connection) -> Check:
    """Whether it is new enough, and can be written to."""
    began = time.perf_counter()
    row = one(
        connection,
        "select pg_is_in_recovery() as is_standby, current_setting('server_version') as server_version, "
        "pg_backend_pid() as pid",
    )
    milliseconds = (time.perf_counter() - began) * 1000
    info = connection.info
    version = row["server_version"].split()[0]
    where = f"PostgreSQL {version} at {info.host or 'localhost'}, database {info.dbname}, user {info.user}"
    if info.backend_pid != row["pid"]:
        where += ", behind a pooler"
    if info.server_version < 140000:
        return Check("server", "fail", f"{where} is too old", "pgrecall needs PostgreSQL 14 or newer.")
    if row["is_standby"]:
        return Check("server", "fail", f"{where} is a standby", "Use the primary: target_session_attrs=read-write.")
    return Check("server", "ok", f"{where}, {milliseconds:.1f} ms away")


def clock(connection: Connection) -> Check:
    """Whether this machine's clock agrees with the server's."""
    best, ahead, zone = float("inf"), 0.0, ""
    for _ in range(3):
        before = datetime.now(UTC)
        row = one(connection, "select clock_timestamp() as at, current_setting('TimeZone') as zone")
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


def notify(conninfo: str, listen: str) -> Check:
    """Whether a notification arrives where workers listen."""
    channel = f"pgrecall_doctor_{secrets.token_hex(4)}"
    try:
        listening = psycopg.connect(listen, autocommit=True)
    except psycopg.Error as error:
        return Check("notify", "fail", f"cannot LISTEN: {one_line(error)}", "Check --listen-dsn.")
    with listening, psycopg.connect(conninfo, autocommit=True) as notifying:
        elsewhere = _elsewhere(listening, notifying)
        listening.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        row = listening.execute("select pg_backend_pid()").fetchone()
        is_pooled = row is not None and row[0] != listening.info.backend_pid
        began = time.perf_counter()
        notifying.execute("select pg_notify(%s, '')", [channel])
        for _ in listening.notifies(timeout=_NOTIFY_SECONDS, stop_after=1):
            milliseconds = (time.perf_counter() - began) * 1000
            return Check("notify", "ok", f"a notification arrived after {milliseconds:.1f} ms")
    if elsewhere:
        return Check("notify", "fail", elsewhere, "Give workers, and doctor, a --listen-dsn to the same database.")
    why = ", and a pooler sits between (its server process is not the one that it announced)" if is_pooled else ""
    return Check(
        "notify",
        "fail",
        f"no notification within {_NOTIFY_SECONDS:g} s{why}",
        "LISTEN does not work through a transaction pooler: give workers a direct --listen-dsn, or --poll-interval to "
        "do without; they refuse to start otherwise.",
    )


def _elsewhere(listening: psycopg.Connection, notifying: psycopg.Connection) -> str:
    """What to say if the two connections lead to different databases; empty if they do not."""
    here, there = (connection.execute(database.PLACE.encode()).fetchone() for connection in (listening, notifying))
    if here is None or there is None or here[0] == there[0]:
        return ""
    return f"workers listen in another database ({here[1]}) than the recalls are in ({there[1]})"


def notify_queue(connection: Connection) -> Check:
    """How full the server's queue of notifications is."""
    usage = one(connection, "select pg_notification_queue_usage() as usage")["usage"]
    message = f"{usage:.0%} of the server's notification queue is used"
    if usage < 0.1:
        return Check("notify queue", "ok", message)
    hint = "A listener sits in a long transaction (see transactions); when the queue is full, COMMIT fails."
    return Check("notify queue", "fail" if usage >= 0.5 else "warn", message, hint)


def transactions(connection: Connection, patience: timedelta) -> Check:
    """Which transactions have been open for long."""
    rows = every(
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
    sees_all = one(connection, "select pg_has_role('pg_read_all_stats', 'usage') as it")["it"]
    if not rows:
        scope = "" if sees_all else " of this role; grant pg_monitor to see all"
        return Check("transactions", "ok", f"none open for longer than {span(patience)}{scope}")
    oldest = ", ".join(who(row) for row in rows[:3]) + (", …" if len(rows) > 3 else "")
    return Check(
        "transactions",
        "warn",
        f"{count(len(rows), 'transaction')} open for longer than {span(patience)}: {oldest}",
        "It may lock recalls, and keeps dead rows from being vacuumed. "
        f"To end the oldest: select pg_terminate_backend({rows[0]['pid']})",
    )


def prepared(connection: Connection, patience: timedelta) -> Check:
    """Which prepared transactions nobody has ended."""
    rows = every(
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
        f"{count(len(rows), 'prepared transaction')}, the oldest '{gid}' for {span(rows[0]['open_for'])}",
        f"It keeps its locks until somebody ends it: commit prepared '{gid}', or rollback prepared '{gid}'",
    )
