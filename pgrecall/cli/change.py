"""The verbs that change a recall that is there: `cancel`, `skip` and `reschedule`.

Knows no SQL: the scheduler decides what may still be changed.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import click
import psycopg

from pgrecall.cli import tables, times
from pgrecall.cli.answers import answer, print_json
from pgrecall.cli.app import Verb, exclusive
from pgrecall.cli.errors import NotSoError
from pgrecall.cli.target import EVERYTHING, Target, clock, later, session_must_exist
from pgrecall.client import SyncRecallScheduler
from pgrecall.model import Recall


@click.command(cls=Verb)
@click.argument("recall_id", required=False)
@click.option("--session", help="Cancel the pending recall of this session.")
@click.pass_obj
def cancel(target: Target, *, recall_id: str | None, session: str | None) -> None:
    """Cancel one recall, or the pending recall of a session. A run under way is told to stop.

    Exit code 0 also if there was nothing left to cancel.
    """
    exclusive({"RECALL_ID": recall_id, "--session": session}, one_needed=True)
    with target.open() as (scheduler, connection):
        if recall_id is not None:
            before = scheduler.get_recall(recall_id, connection=connection)
            recall = scheduler.mark_cancelled(recall_id, connection=connection)
            is_changed = before.status != "cancelled"
            outcome = {"cancelled": is_changed, "session_id": recall.session_id, "recall_id": recall.id}
            said = f"cancelled {recall.id}" if is_changed else f"recall {recall.id} was cancelled already"
        else:
            assert session is not None  # noqa: S101 (one of the two is given)
            is_changed = scheduler.cancel_recall(session, connection=connection)
            if not is_changed:
                session_must_exist(connection, session)
            outcome = {"cancelled": is_changed, "session_id": session}
            said = f"cancelled the recall of session {session}"
            if not is_changed:
                said = f"session {session} has no pending recall: nothing to cancel"
                for hold in scheduler.get_holds(session, connection=connection):
                    if hold.recall_id is not None:
                        said += f"; to stop its run: pgrecall cancel {hold.recall_id}"
    if target.as_json:
        print_json(outcome)
    else:
        click.echo(said)


@click.command(cls=Verb)
@click.argument("session")
@click.pass_obj
def skip(target: Target, *, session: str) -> None:
    """Leave out the next occurrence of SESSION's recurring recall."""
    with target.open() as (scheduler, connection), connection.transaction():
        before = _pending_recurring(scheduler, connection, session)
        if not scheduler.skip_next_recall(session, connection=connection) or before is None:
            session_must_exist(connection, session)
            raise NotSoError(
                f"session '{session}' has no pending recurring recall", hint="A recall that runs now cannot be skipped."
            )
        after = scheduler.get_recall(before.id, connection=connection)
        now = clock(connection)
    if target.as_json:
        print_json({"skipped": before.trigger_at, "recall": after})
    elif after.status == "cancelled":
        click.echo(f"skipped {tables.local(before.trigger_at)}, the last occurrence: recall {after.id} is cancelled")
    else:
        answer(target, after, now, f"skipped {tables.local(before.trigger_at)} of")


def _pending_recurring(
    scheduler: SyncRecallScheduler, connection: psycopg.Connection[Any], session: str
) -> Recall | None:
    known = scheduler.list_recalls(session_id=session, limit=EVERYTHING, connection=connection)
    return next((one for one in known if one.status == "pending" and one.call_type == "recurring"), None)


@click.command(cls=Verb)
@click.argument("recall_id")
@click.option("--in", "after", type=times.duration, metavar="TIME", help="So long from now, by the database's clock.")
@click.option("--at", type=times.moment, metavar="TIME", help="ISO 8601 with a zone.")
@click.pass_obj
def reschedule(target: Target, *, recall_id: str, after: timedelta | None, at: datetime | None) -> None:
    """Move a pending recall to another time.

    A running one runs again then.
    """
    exclusive({"--in": after, "--at": at}, one_needed=True)
    with target.open() as (scheduler, connection):
        moment = at if after is None else later(connection, after)
        assert moment is not None  # noqa: S101 (one of the two is given)
        recall = scheduler.reschedule(recall_id, moment, connection=connection)
        now = clock(connection)
    answer(target, recall, now, "moved")
