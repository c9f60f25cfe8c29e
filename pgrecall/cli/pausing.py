"""The verbs that hold recalls back without cancelling them: `pause` and `resume`, for one or for all.

Knows no SQL: the scheduler decides what can be paused.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import click

from pgrecall.cli import tables, times
from pgrecall.cli.answers import answer, print_json
from pgrecall.cli.app import Verb, exclusive
from pgrecall.cli.target import Target, clock, later


@click.command(cls=Verb)
@click.argument("recall_id", required=False)
@click.option("--all", "everything", is_flag=True, help="No worker starts any run.")
@click.option("--reason", metavar="TEXT", help="For people: show, list and doctor tell it.")
@click.option("--until", type=times.moment, metavar="TIME", help="When the pause ends by itself: ISO 8601 with a zone.")
@click.option("--for", "length", type=times.duration, metavar="TIME", help="So long from now, by the database's clock.")
@click.pass_obj
def pause(
    target: Target,
    *,
    recall_id: str | None,
    everything: bool,
    reason: str | None,
    until: datetime | None,
    length: timedelta | None,
) -> None:
    """Pause one recall, or all of them. Runs under way go on.

    Without --until and --for the pause lasts until pgrecall resume.
    """
    exclusive({"RECALL_ID": recall_id, "--all": everything or None}, one_needed=True)
    exclusive({"--until": until, "--for": length})
    with target.open() as (scheduler, connection):
        end = until if length is None else later(connection, length)
        if recall_id is not None:
            recall = scheduler.pause_recall(recall_id, reason=reason, paused_until=end, connection=connection)
            answer(target, recall, clock(connection), "paused")
            return
        settings = scheduler.pause_all(reason=reason, paused_until=end, connection=connection)
    if target.as_json:
        print_json(settings)
    else:
        click.echo(tables.pause_of(settings))


@click.command(cls=Verb)
@click.argument("recall_id", required=False)
@click.option("--all", "everything", is_flag=True, help="End the pause of everything; recalls paused by id stay so.")
@click.pass_obj
def resume(target: Target, *, recall_id: str | None, everything: bool) -> None:
    """End the pause of one recall, or the one of all.

    What became due meanwhile runs once, now. Exit code 0 also if nothing was paused.
    """
    exclusive({"RECALL_ID": recall_id, "--all": everything or None}, one_needed=True)
    with target.open() as (scheduler, connection):
        if recall_id is not None:
            recall = scheduler.resume_recall(recall_id, connection=connection)
            answer(target, recall, clock(connection), "resumed")
            return
        settings = scheduler.resume_all(connection=connection)
    if target.as_json:
        print_json(settings)
    else:
        click.echo("workers start runs")
