"""Checks of the recalls: which wait for a session, which are late, and why.

Knows neither the server nor how workers are woken.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from psycopg import errors

from pgrecall.doctor.finding import Check, Connection, count, every, one, span, who
from pgrecall.doctor.workers import START_A_WORKER, is_alive, known_workers

_OVERDUE = timedelta(seconds=5)  # a worker starts a due recall within milliseconds


def sessions(connection: Connection) -> Check:
    """Whether a session is taken by a run that does not exist, and which recalls wait for one."""
    row = one(
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
        return Check("sessions", "ok", f"{count(row['waiting'], 'recall')} deferred: {row['reason']}")
    return Check("sessions", "ok", "no recall waits for a session that is taken")


def overdue(connection: Connection) -> Check:
    """Whether a recall should have run by now, and why it has not."""
    rows = every(
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
    what = count(oldest["total"], "recall")
    return Check(
        "overdue", "fail", f"{what} late, the oldest by {span(oldest['late'])} ({oldest['id']}): {reason}", hint
    )


def _why_overdue(connection: Connection, rows: list[dict[str, Any]]) -> tuple[str, str]:
    workers = [worker for worker in known_workers(connection) if is_alive(worker)]
    if not workers:
        return "no worker is running", START_A_WORKER
    if locker := _locker(connection, rows):
        hint = "" if locker["pid"] is None else f"To end it: select pg_terminate_backend({locker['pid']})"
        return f"{locker['id']} or its session is locked by {who(locker)}", hint or "See prepared above."
    slots = sum(worker["concurrency"] for worker in workers)
    if sum(worker["running"] for worker in workers) >= slots:
        return f"all {count(slots, 'slot')} are busy", "Raise --concurrency, or start more workers."
    hint = "If doctor says so again, read the workers' logs (loop_error, listener_lost) and restart them."
    return f"{count(len(workers), 'worker')} seen lately with slots free", hint


def _locker(connection: Connection, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Who has locked one of these recalls, or its session, so that claim() passes it over."""
    free: set[str] = set()
    try:
        with connection.transaction(force_rollback=True):
            probed = every(
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
        found = every(
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
