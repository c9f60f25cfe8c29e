"""The verbs that change recalls that are there: `cancel`, `skip` and `reschedule`.

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
from pgrecall.cli.errors import NotSoError, WrongUsage
from pgrecall.cli.many import must_be_sure, print_changed, yes_option
from pgrecall.cli.target import EVERYTHING, Target, clock, later, session_must_exist
from pgrecall.client import SyncRecallScheduler
from pgrecall.model import Recall


@click.command(cls=Verb)
@click.argument("recall_id", required=False)
@click.option("--session", help="Cancel the pending recall of this session.")
@click.option("--user", help="Cancel all pending and running recalls in sessions of this user.")
@yes_option
@click.pass_obj
def cancel(target: Target, *, recall_id: str | None, session: str | None, user: str | None, yes: bool) -> None:
    """Cancel one recall, the pending recall of a session, or all of a user. Runs under way are told to stop.

    Exit code 0 also if there was nothing left to cancel.
    """
    exclusive({"RECALL_ID": recall_id, "--session": session, "--user": user}, one_needed=True)
    with target.open() as (scheduler, connection):
        if user is not None:
            must_be_sure(target, connection, "cancel", statuses=["pending", "running"], user=user, yes=yes)
            changed = scheduler.cancel_recalls(user_id=user, connection=connection)
            now = clock(connection)
            print_changed(
                target, connection, changed, now, done="cancelled", nothing="no recall left to cancel", user=user
            )
            return
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
@click.argument("session", required=False)
@click.option("--user", help="Of all pending recurring recalls in sessions of this user.")
@yes_option
@click.pass_obj
def skip(target: Target, *, session: str | None, user: str | None, yes: bool) -> None:
    """Leave out the next occurrence of SESSION's recurring recall, or of all those of a user."""
    exclusive({"SESSION": session, "--user": user}, one_needed=True)
    if user is not None:
        _skip_all(target, user, yes=yes)
        return
    assert session is not None  # noqa: S101 (one of the two is given)
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


def _skip_all(target: Target, user: str, *, yes: bool) -> None:
    with target.open() as (scheduler, connection):
        must_be_sure(target, connection, "skip one occurrence of up to", statuses=["pending"], user=user, yes=yes)
        changed = scheduler.skip_recalls(user_id=user, connection=connection)
        print_changed(
            target,
            connection,
            changed,
            clock(connection),
            done="skipped one occurrence of",
            nothing="no pending recurring recall",
            user=user,
        )


def _pending_recurring(
    scheduler: SyncRecallScheduler, connection: psycopg.Connection[Any], session: str
) -> Recall | None:
    known = scheduler.list_recalls(session_id=session, limit=EVERYTHING, connection=connection)
    return next((one for one in known if one.status == "pending" and one.call_type == "recurring"), None)


@click.command(cls=Verb)
@click.argument("recall_id", required=False)
@click.option("--user", help="Move all pending and running recalls in sessions of this user.")
@click.option("--in", "after", type=times.duration, metavar="TIME", help="So long from now, by the database's clock.")
@click.option("--at", type=times.moment, metavar="TIME", help="ISO 8601 with a zone.")
@click.option("--by", type=times.shift, metavar="TIME", help="So long after its own time; -1h: before it.")
@yes_option
@click.pass_obj
def reschedule(
    target: Target,
    *,
    recall_id: str | None,
    user: str | None,
    after: timedelta | None,
    at: datetime | None,
    by: timedelta | None,
    yes: bool,
) -> None:
    """Move a pending recall, or all of a user, to another time.

    A running one runs again then. Of a user's, one that would come after its end stays where it is.
    """
    exclusive({"RECALL_ID": recall_id, "--user": user}, one_needed=True)
    exclusive({"--in": after, "--at": at, "--by": by}, one_needed=True)
    with target.open() as (scheduler, connection):
        moment = at if after is None else later(connection, after)
        if user is not None:
            must_be_sure(target, connection, "move", statuses=["pending", "running"], user=user, yes=yes)
            changed = scheduler.reschedule_recalls(user_id=user, new_trigger_at=moment, by=by, connection=connection)
            now = clock(connection)
            print_changed(
                target, connection, changed, now, done="moved", nothing="no recall that can be moved so", user=user
            )
            return
        assert recall_id is not None  # noqa: S101 (one of the two is given)
        if by is not None:
            moment = _moved(scheduler.get_recall(recall_id, connection=connection).trigger_at, by)
        assert moment is not None  # noqa: S101 (one of the three is given)
        recall = scheduler.reschedule(recall_id, moment, connection=connection)
        now = clock(connection)
    answer(target, recall, now, "moved")


def _moved(moment: datetime, by: timedelta) -> datetime:
    try:
        return moment + by
    except OverflowError as error:
        raise WrongUsage("--by leads to no date", hint="A recall fires in the years 1 to 9999.") from error
