"""The verb that tells who changed what by hand: `audit`.

Does not know how it is shown.
"""

from __future__ import annotations

from datetime import datetime

import click

from pgrecall.cli import tables, times
from pgrecall.cli.answers import print_json
from pgrecall.cli.app import Verb
from pgrecall.cli.target import Target


@click.command(cls=Verb)
@click.argument("recall_id", required=False)
@click.option("--session", help="Only in this session.")
@click.option("--user", help="Only what was done to this user's sessions, or by this user.")
@click.option("--since", type=times.moment, metavar="TIME", help="Only from this time on: ISO 8601 with a zone.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True)
@click.pass_obj
def audit(
    target: Target,
    *,
    recall_id: str | None,
    session: str | None,
    user: str | None,
    since: datetime | None,
    limit: int,
) -> None:
    """Tell who changed what by hand, newest first."""
    with target.open() as (scheduler, connection):
        changes = scheduler.get_audit(
            recall_id, session_id=session, user_id=user, since=since, limit=limit, connection=connection
        )
    if target.as_json:
        print_json(changes)
    elif changes:
        tables.print_changes(changes)
    else:
        click.echo("no changes by hand")
