"""The verb about replies on their way to a URL: `deliveries`.

Does not know how they are shown.
"""

from __future__ import annotations

import click

from pgrecall.cli import tables
from pgrecall.cli.answers import print_json
from pgrecall.cli.app import Verb, exclusive
from pgrecall.cli.target import Target, clock
from pgrecall.model import DeliveryStatus


@click.command(cls=Verb)
@click.option("--session", help="Only this session's.")
@click.option("--recall", help="Only this recall's.")
@click.option("--status", type=click.Choice(list(tables.DELIVERY_STYLES)), help="Only these.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True)
@click.option("--retry", type=int, metavar="ID", help="Have this one tried now, whatever became of it.")
@click.pass_obj
def deliveries(
    target: Target,
    *,
    session: str | None,
    recall: str | None,
    status: DeliveryStatus | None,
    limit: int,
    retry: int | None,
) -> None:
    """List replies that were delivered, are on their way, or could not be delivered, newest first."""
    for name, given in (("--session", session), ("--recall", recall), ("--status", status)):
        exclusive({"--retry": retry, name: given})
    with target.open() as (scheduler, connection):
        if retry is None:
            found = scheduler.get_deliveries(
                session_id=session, recall_id=recall, status=status, limit=limit, connection=connection
            )
        else:
            found = [scheduler.retry_delivery(retry, connection=connection)]
        now = clock(connection)
    if target.as_json:
        print_json(found if retry is None else found[0])
    elif found:
        tables.print_deliveries(found, now)
    else:
        click.echo("no deliveries")
