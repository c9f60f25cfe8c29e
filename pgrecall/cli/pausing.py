"""The verbs that hold recalls back without cancelling them: `pause` and `resume`, of one, a session, a user or all.

Knows no SQL: the scheduler decides what can be paused.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import click

from pgrecall.cli import tables, times
from pgrecall.cli.answers import answer, print_json
from pgrecall.cli.app import Verb, exclusive
from pgrecall.cli.many import whose
from pgrecall.cli.target import Target, clock, later


@click.command(cls=Verb)
@click.argument("recall_id", required=False)
@click.option("--session", help="No run starts in this session, also of recalls that are made later.")
@click.option("--user", help="No run starts in sessions of this user, also in those that are made later.")
@click.option("--all", "everything", is_flag=True, help="No worker starts any run.")
@click.option("--reason", metavar="TEXT", help="For people: show, list and doctor tell it.")
@click.option("--until", type=times.moment, metavar="TIME", help="When the pause ends by itself: ISO 8601 with a zone.")
@click.option("--for", "length", type=times.duration, metavar="TIME", help="So long from now, by the database's clock.")
@click.pass_obj
def pause(
    target: Target,
    *,
    recall_id: str | None,
    session: str | None,
    user: str | None,
    everything: bool,
    reason: str | None,
    until: datetime | None,
    length: timedelta | None,
) -> None:
    """Pause one recall, a session, a user, or everything. Runs under way go on.

    Without --until and --for the pause lasts until pgrecall resume. Pausing again changes its end and its reason.
    """
    _one_of(recall_id, session, user, everything=everything)
    exclusive({"--until": until, "--for": length})
    with target.open() as (scheduler, connection):
        end = until if length is None else later(connection, length)
        if recall_id is not None:
            recall = scheduler.pause_recall(recall_id, reason=reason, paused_until=end, connection=connection)
            answer(target, recall, clock(connection), "paused")
            return
        if everything:
            settings = scheduler.pause_all(reason=reason, paused_until=end, connection=connection)
            if target.as_json:
                print_json(settings)
            else:
                click.echo(tables.pause_of(settings))
            return
        if session is not None:
            made = scheduler.pause_session(session, reason=reason, paused_until=end, connection=connection)
        else:
            assert user is not None  # noqa: S101 (one of the four is given)
            made = scheduler.pause_user(user, reason=reason, paused_until=end, connection=connection)
    if target.as_json:
        print_json(made)
    else:
        click.echo(tables.pause_line(made))


@click.command(cls=Verb)
@click.argument("recall_id", required=False)
@click.option("--session", help="End the pause of this session.")
@click.option("--user", help="End the pause of this user.")
@click.option("--all", "everything", is_flag=True, help="End the pause of everything, and no other pause.")
@click.pass_obj
def resume(target: Target, *, recall_id: str | None, session: str | None, user: str | None, everything: bool) -> None:
    """End the pause of one recall, of a session, of a user, or the one of everything.

    What became due meanwhile runs once, now. Each ends by the name that it was begun with: a recall that was paused by
    its id stays paused when its session is resumed. Exit code 0 also if nothing was paused.
    """
    _one_of(recall_id, session, user, everything=everything)
    with target.open() as (scheduler, connection):
        if recall_id is not None:
            recall = scheduler.resume_recall(recall_id, connection=connection)
            answer(target, recall, clock(connection), "resumed")
            return
        if everything:
            settings = scheduler.resume_all(connection=connection)
            if target.as_json:
                print_json(settings)
            else:
                click.echo("workers start runs")
            return
        if session is not None:
            ended = scheduler.resume_session(session, connection=connection)
        else:
            assert user is not None  # noqa: S101 (one of the four is given)
            ended = scheduler.resume_user(user, connection=connection)
    if target.as_json:
        print_json(ended)
    else:
        click.echo(f"resumed {whose(session, user)}" if ended else f"{whose(session, user)} was not paused")


def _one_of(recall_id: str | None, session: str | None, user: str | None, *, everything: bool) -> None:
    exclusive(
        {"RECALL_ID": recall_id, "--session": session, "--user": user, "--all": everything or None}, one_needed=True
    )
