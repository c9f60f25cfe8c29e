"""Checks of the schema and of what wakes a sleeping worker: triggers, wake-up lock and register.

Knows no recall and no claim.
"""

from __future__ import annotations

from datetime import timedelta

import psycopg

from pgrecall import database
from pgrecall import schema as installed
from pgrecall.doctor.finding import Check, Connection, count, every, one, one_line, span, who
from pgrecall.doctor.workers import ALIVE, is_alive, known_workers
from pgrecall.errors import SchemaError

#: Advisory key of the wake-up lock, see sql/foundation/30_wake.sql.
WAKE_UP_LOCK = 8099568234633718892
#: The register's value for "no recall is waiting".
NOTHING_WAITS = 253402300800000000
_TRIGGERS = ("announce_insert", "announce_update", "recall_delete", "recall_update", "recalls_truncate")


def schema(connection: Connection) -> Check:
    """Whether the schema is there, and the one that this package needs."""
    try:
        found = database.installed_schema_sync(connection)
        installed.check(found)
    except SchemaError as error:
        return Check("schema", "fail", str(error), error.hint)
    except psycopg.Error as error:
        return Check("schema", "fail", one_line(error), "The role needs usage on the schema pgrecall.")
    if found and found.version > installed.SCHEMA_VERSION:
        return Check("schema", "ok", f"version {found.version}, newer than this package, and works with it")
    return Check("schema", "ok", f"version {installed.SCHEMA_VERSION}, as this package needs")


def triggers(connection: Connection) -> Check:
    """Whether the triggers that announce recalls are all there and on."""
    rows = every(
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


def wake_up_lock(connection: Connection) -> Check:
    """Whether somebody keeps the lock that orders announcements."""
    rows = every(
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
    return Check("wake-up lock", "fail", f"kept by {who(rows[0])}", hint)


def register(connection: Connection) -> Check:
    """Whether the time at which workers say they look is kept up to date."""
    row = one(
        connection,
        """
        select pg_sequence_last_value('pgrecall.armed_until') as armed, pgrecall.microseconds(pgrecall.clock()) as now,
            has_sequence_privilege('pgrecall.armed_until', 'select, usage') as is_readable
        """,
    )
    armed, now = row["armed"], row["now"]
    if not row["is_readable"]:
        return Check(
            "register", "warn", "not allowed to read it", "Ask as a member of pgrecall_operator or pgrecall_observer."
        )
    if armed is None:
        return Check("register", "ok", "no worker has written it yet, so every recall is announced")
    if armed >= NOTHING_WAITS:
        return Check("register", "ok", "nothing was waiting at the last look; the next recall is announced")
    ahead = timedelta(microseconds=armed - now)
    idle = [
        worker for worker in known_workers(connection) if is_alive(worker) and worker["running"] < worker["concurrency"]
    ]
    if ahead < -ALIVE and idle:
        return Check(
            "register",
            "warn",
            f"{count(len(idle), 'idle worker')} should have looked {span(-ahead)} ago and written a later time",
            "Read their logs for loop_error; restart them if they hang.",
        )
    if ahead < timedelta():
        return Check("register", "ok", f"the last look was meant for {span(-ahead)} ago")
    return Check("register", "ok", f"every sleeping worker wakes within {span(ahead)}")
