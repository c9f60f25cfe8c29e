"""The verbs that show what operators look at: `status`, from the views, and `history` of one recall.

Does not know what the views are made of, nor how a row is shown.
"""

from __future__ import annotations

from typing import Any

import click
import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from pgrecall.cli import tables
from pgrecall.cli.answers import print_json
from pgrecall.cli.app import Verb
from pgrecall.cli.target import Target

_VIEWS = ("due_recalls", "running_recalls", "next_recalls")


@click.command(cls=Verb)
@click.option(
    "--limit", type=click.IntRange(min=0), default=10, show_default=True, help="At most so many of each kind."
)
@click.pass_obj
def status(target: Target, *, limit: int) -> None:
    """Show how it goes.

    Workers and numbers, what is due and late and
    why, what runs, what comes next.
    """
    with target.open() as (_, connection):
        overview = _rows(connection, "overview", 1)[0]
        seen = {view: _rows(connection, view, limit) for view in _VIEWS}
    if target.as_json:
        print_json({"overview": overview, **seen})
        return
    tables.print_facts(overview)
    for view, found in seen.items():
        tables.print_rows(view.replace("_", " "), found)


@click.command(cls=Verb)
@click.argument("recall_id")
@click.pass_obj
def history(target: Target, *, recall_id: str) -> None:
    """Tell all that happened to a recall.

    In the order of time; also of one that was
    deleted.
    """
    with target.open() as (scheduler, connection):
        events = scheduler.history(recall_id, connection=connection)
    if target.as_json:
        print_json(events)
    else:
        tables.print_history(events)


def _rows(connection: psycopg.Connection[Any], view: str, limit: int) -> list[dict[str, Any]]:
    query = sql.SQL("select * from pgrecall.{} limit {}").format(sql.Identifier(view), sql.Literal(limit))
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query).fetchall()
