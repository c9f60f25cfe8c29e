"""The verbs about tables that the host had before: `use-sessions-table`, `use-own-sessions` and `adopt`.

Knows no rule about such tables: the SQL refuses what cannot be used.
"""

from __future__ import annotations

from typing import Any

import click
import psycopg

from pgrecall import calls, database
from pgrecall.cli import tables
from pgrecall.cli.answers import print_json
from pgrecall.cli.app import Verb
from pgrecall.cli.errors import NotSoError, WrongUsage
from pgrecall.cli.target import Target


@click.command(cls=Verb)
@click.argument("table")
@click.option("--id-column", metavar="NAME", default="id", show_default=True, help="The session's id, unique.")
@click.option("--user-id-column", metavar="NAME", default="user_id", show_default=True, help="The session's owner.")
@click.option("--no-user-id-column", is_flag=True, help="The table names no owner.")
@click.option("--time-zone-column", metavar="NAME", help="The zone in which the session's agent is told times.")
@click.option("--delete-orphans", is_flag=True, help="Delete sessions that TABLE does not have, and their recalls.")
@click.pass_obj
def use_sessions_table(
    target: Target,
    *,
    table: str,
    id_column: str,
    user_id_column: str,
    no_user_id_column: bool,
    time_zone_column: str | None,
    delete_orphans: bool,
) -> None:
    """Make the rows of TABLE, such as public.chat_sessions, the sessions.

    Its triggers keep them in step, and a foreign key deletes recalls with their session. Safe to run again. Writers of
    the table wait while it works.
    """
    with target.open() as (_, connection):
        name = _table(connection, table)
        (added,) = database.run_sync(
            connection,
            calls.use_sessions_table(
                name,
                id_column,
                None if no_user_id_column else user_id_column,
                time_zone_column,
                "delete" if delete_orphans else "refuse",
            ),
        )
    if target.as_json:
        print_json({"table": name, "sessions_added": added})
    else:
        click.echo(f"sessions are the rows of {name}; {added} added")


@click.command(cls=Verb)
@click.pass_obj
def use_own_sessions(target: Target) -> None:
    """End use-sessions-table.

    Sessions and recalls stay as they are, and no longer follow the other table.
    """
    with target.open() as (_, connection):
        (is_changed,) = database.run_sync(connection, calls.use_own_sessions())
    if target.as_json:
        print_json({"changed": is_changed})
    else:
        click.echo("sessions are pgrecall's own now" if is_changed else "sessions were pgrecall's own already")


@click.command(cls=Verb)
@click.argument("table")
@click.option(
    "--mark-as",
    metavar="STATUS",
    default="cancelled",
    show_default=True,
    help="What TABLE says of an adopted row from now on.",
)
@click.option("--naive-times-in", metavar="ZONE", help="The zone of times in TABLE that have none, such as UTC.")
@click.option("--dry-run", is_flag=True, help="Do it, show what came of it, and take it back.")
@click.pass_obj
def adopt(target: Target, *, table: str, mark_as: str, naive_times_in: str | None, dry_run: bool) -> None:
    """Take over the pending recalls of TABLE, such as public.session_recalls.

    Those that are overdue fire at once. Run it again for what has come since: nothing is taken twice. Exit code 1 if
    some cannot be taken; they stay as they are in TABLE.
    """
    with target.open() as (_, connection), connection.transaction(force_rollback=dry_run):
        name = _table(connection, table)
        found = database.run_sync(connection, calls.adopt_recalls(name, mark_as, naive_times_in))
    left = [one for one in found if not one.adopted]
    adopted = len(found) - len(left)
    if target.as_json:
        print_json({"table": name, "dry_run": dry_run, "adopted": adopted, "left": len(left), "recalls": found})
    else:
        tables.print_left(left)
        click.echo(f"{'would adopt' if dry_run else 'adopted'} {_count(adopted)} of {name}, {len(left)} left there")
    if left:
        raise NotSoError


def _count(number: int) -> str:
    return f"{number} pending recall{'' if number == 1 else 's'}"


def _table(connection: psycopg.Connection[Any], name: str) -> str:
    """The table's whole name, quoted where it needs to be."""
    try:
        row = connection.execute(
            """
            select format('%%I.%%I', nspname, relname)
            from pg_class
            join pg_namespace on pg_namespace.oid = relnamespace
            where pg_class.oid = to_regclass(%s)
            """,
            [name],
        ).fetchone()
    except (psycopg.ProgrammingError, psycopg.DataError, psycopg.NotSupportedError, UnicodeError):
        row = None  # a text that cannot be the name of a table
    if row is None:
        raise WrongUsage(
            f"there is no table {name!r}",
            hint="Name it as in SQL: public.chat_sessions, or '\"Chat Sessions\"' if it needs double quotes.",
        )
    return str(row[0])
