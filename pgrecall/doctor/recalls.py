"""Checks of the recalls: which wait for a session, which are paused, which are late, and why.

Knows neither the server nor how workers are woken.
"""

from __future__ import annotations

import shlex
from datetime import timedelta
from typing import Any, Literal

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
            coalesce(sum(waiting.number), 0)::bigint as waiting,
            string_agg(
                format('%%s (%%s)', waiting.defer_reason, waiting.number), ', ' order by waiting.number desc
            ) filter (where waiting.place <= 3)
            || case when max(waiting.place) > 3 then ' …' else '' end as reasons
        from (
            select deferred.defer_reason, count(*) as number, row_number() over (order by count(*) desc) as place
            from pgrecall.session_recalls as deferred
            where deferred.defer_reason is not null
                and deferred.due_at > pgrecall.clock()
            group by deferred.defer_reason
        ) as waiting
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
    stuck = every(
        connection,
        """
        select deferred.id, session.id as session_id, session.holder,
            pgrecall.clock() - deferred.deferred_since as put_off
        from pgrecall.session_recalls as deferred
        join pgrecall.sessions as session on session.id = deferred.session_id
        where deferred.due_at is not null
            and deferred.on_max_defer = 'run'
            and deferred.deferred_since + make_interval(secs => deferred.max_defer_seconds)
                < pgrecall.clock() - %(patience)s
            and session.run_id is null
            and session.held_until > pgrecall.clock()
        order by deferred.deferred_since
        """,
        patience=_OVERDUE,
    )
    if stuck:
        return Check(
            "sessions",
            "warn",
            f"{count(len(stuck), 'recall')} put off for longer than max_defer_seconds, {stuck[0]['id']} for "
            f"{span(stuck[0]['put_off'])} by the chat {stuck[0]['holder']}",
            f"The chat's hold ends with its lease; to end it now: pgrecall free {shlex.quote(stuck[0]['session_id'])}",
        )
    if row["waiting"]:
        return Check("sessions", "ok", f"{count(row['waiting'], 'recall')} deferred: {row['reasons']}")
    return Check("sessions", "ok", "no recall waits for a session that is taken")


def pauses(connection: Connection) -> Check:
    """Whether everything is paused, and which recalls are."""
    row = one(
        connection,
        """
        with of_some as (
            select pause.session_id, pause.user_id
            from pgrecall.pauses as pause
            where coalesce(pause.paused_until, 'infinity') > pgrecall.clock()
        )
        select
            coalesce(all_of.paused_at <= clock.now and coalesce(all_of.paused_until, 'infinity') > clock.now, false)
                as is_all,
            clock.now - all_of.paused_at as since,
            all_of.paused_until - clock.now as left,
            all_of.pause_reason as reason,
            (select count(*) from of_some where of_some.session_id is not null) as sessions,
            (select count(*) from of_some where of_some.user_id is not null) as users,
            single.number,
            single.first_id,
            single.first_reason
        from pgrecall.settings as all_of
        cross join (select pgrecall.clock() as now) as clock
        cross join lateral (
            select
                count(*) as number,
                (array_agg(recall.id order by recall.paused_at))[1] as first_id,
                (array_agg(recall.pause_reason order by recall.paused_at))[1] as first_reason
            from pgrecall.session_recalls as recall
            where recall.paused_at is not null
                and coalesce(recall.paused_until, 'infinity') > clock.now
                and recall.status in ('pending', 'running')
                and recall.run_id is null
        ) as single
        """,
    )
    if row["is_all"]:
        end = "without an end" if row["left"] is None else f"for another {span(row['left'])}"
        reason = f": {row['reason']}" if row["reason"] else ""
        return Check(
            "pauses",
            "warn",
            f"everything is paused, since {span(row['since'])}, {end}{reason}",
            "No worker starts a run. To go on: pgrecall resume --all",
        )
    said = [count(row[f"{noun}s"], noun) for noun in ("session", "user") if row[f"{noun}s"]]
    if row["number"]:
        reason = f": {row['first_reason']}" if row["first_reason"] else ""
        said.append(f"{count(row['number'], 'recall')} paused, first {row['first_id']}{reason}")
    elif said:
        said[-1] += " paused"
    if said:
        return Check("pauses", "ok", ", ".join(said))
    return Check("pauses", "ok", "nothing is paused")


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
    pause = pauses(connection)
    is_intended = pause.status == "warn"  # somebody has paused everything, and is told so
    reason, hint = (pause.message, pause.hint) if is_intended else _why_overdue(connection, rows)
    oldest = rows[0]
    what = count(oldest["total"], "recall")
    status: Literal["warn", "fail"] = "warn" if is_intended else "fail"
    return Check(
        "overdue", status, f"{what} late, the oldest by {span(oldest['late'])} ({oldest['id']}): {reason}", hint
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
