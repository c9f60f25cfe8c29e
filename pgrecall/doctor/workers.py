"""Checks of the workers, and of the claims that they hold.

Knows neither the server nor why a recall is late.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pgrecall.doctor.finding import Check, Connection, Row, count, every, span

ALIVE = timedelta(seconds=150)  # an idle worker speaks once a minute
START_A_WORKER = "Start one: pgrecall worker --agent module:attribute"


def known_workers(connection: Connection) -> list[dict[str, Any]]:
    """The registered workers with what they hold, the one that spoke last first."""
    return every(
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


def is_alive(worker: Row) -> bool:
    """Whether a worker has spoken lately."""
    return bool(worker["unseen"] < ALIVE)


def workers(connection: Connection) -> Check:
    """Whether there are workers, and one of them has a slot free."""
    known = known_workers(connection)
    alive = [worker for worker in known if is_alive(worker)]
    stale = [worker for worker in known if not is_alive(worker)]
    slots = sum(worker["concurrency"] for worker in alive)
    running = sum(worker["running"] for worker in alive)
    said = f"{count(len(alive), 'worker')}, {running} of {count(slots, 'slot')} busy"
    if alive:
        said += f", last seen {span(alive[0]['unseen'])} ago"
    if stale:
        quiet = f"{stale[0]['id']} was last seen {span(stale[0]['unseen'])} ago"
        return Check(
            "workers",
            "warn",
            f"{said}; {quiet}",
            "It was killed or is cut off; another worker forgets it after five minutes. "
            + ("" if alive else START_A_WORKER),
        )
    if not alive:
        return Check("workers", "warn", "no worker is running", START_A_WORKER)
    if running >= slots:
        return Check(
            "workers", "warn", said, "Due recalls wait for a slot: raise --concurrency, or start more workers."
        )
    return Check("workers", "ok", said)


def listeners(connection: Connection) -> Check:
    """Whether the workers that live also listen, and would be missed at once."""
    rows = every(
        connection,
        """
        select worker.id, life.id is not null as has_lifelines,
            pgrecall._is_held(worker.lifelines[1]) as renews, pgrecall._is_held(worker.lifelines[2]) as listens
        from pgrecall.workers as worker
        left join pgrecall.server_incarnation as life
            on life.id = worker.incarnation and life.postmaster_started_at = pg_postmaster_start_time()
        where worker.seen_at > pgrecall.clock() - %(alive)s
        order by worker.id
        """,
        alive=ALIVE,
    )
    with_lifelines = [row for row in rows if row["has_lifelines"]]
    if deaf := [row["id"] for row in with_lifelines if row["renews"] and not row["listens"]]:
        return Check(
            "listeners",
            "fail",
            f"{count(len(deaf), 'worker')} not listening, first {deaf[0]}",
            "It finds recalls at its safety look only, once a minute. If it is so again soon, see its log.",
        )
    if gone := [row["id"] for row in with_lifelines if not row["renews"] and not row["listens"]]:
        return Check(
            "listeners",
            "warn",
            f"{count(len(gone), 'worker')} without a connection, first {gone[0]}",
            "It has died or lost its connections; its recalls start elsewhere if another worker runs.",
        )
    if not rows:
        return Check("listeners", "ok", "no worker that could listen")
    said = f"{len(with_lifelines)} of {count(len(rows), 'worker')} would be missed at once"
    if len(with_lifelines) < len(rows):
        said += ", the others when their lease ends (behind a pooler, or in poll mode)"
    return Check("listeners", "ok", said)


def claims(connection: Connection) -> Check:
    """Whether every claim has a worker, and its lease is good."""
    orphans = every(
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
            f"{count(len(orphans), 'recall')} claimed by a worker that is not registered, first {first['id']}",
            f"select pgrecall.finish('{recall_id}', {first['run_id']}, 'interrupted', retry => true, counted => false)",
        )
    workers = known_workers(connection)
    late = timedelta(seconds=5)  # the next look of any other worker ends the lease
    over = [worker for worker in workers if worker["lease_over"] is not None and worker["lease_over"] > late]
    held = [worker for worker in over if worker["running"]]
    if held:
        alive = any(is_alive(worker) for worker in workers if worker not in held)
        return Check(
            "claims",
            "fail",
            f"the lease of {held[0]['id']} ended {span(held[0]['lease_over'])} ago with "
            f"{count(held[0]['running'], 'recall')} still claimed",
            "Another worker should have taken them: read its log." if alive else START_A_WORKER,
        )
    running = sum(worker["running"] for worker in workers)
    return Check("claims", "ok", f"{count(running, 'run')} under way, every lease is good")
