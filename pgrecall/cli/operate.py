"""The verbs about the database as a whole: `migrate` and `doctor`.

Knows neither what the schema holds nor what the doctor looks at.
"""

from __future__ import annotations

from datetime import timedelta

import click
import psycopg

from pgrecall import database, schema
from pgrecall.cli import tables, times
from pgrecall.cli.answers import print_json
from pgrecall.cli.app import Verb
from pgrecall.cli.errors import NotSoError
from pgrecall.cli.target import Target
from pgrecall.doctor import examine


@click.command(cls=Verb)
@click.option("--print", "only_print", is_flag=True, help="Print the SQL of a first installation; touch no database.")
@click.option(
    "--lock-timeout",
    type=times.duration,
    metavar="TIME",
    default="500ms",
    show_default=True,
    help="How long to wait, and have others wait, for a table in use.",
)
@click.option(
    "--patience",
    type=times.duration,
    metavar="TIME",
    default="60s",
    show_default=True,
    help="How long to try again and again if tables are in use.",
)
@click.pass_obj
def migrate(target: Target, *, only_print: bool, lock_timeout: timedelta, patience: timedelta) -> None:
    """Install the schema, or upgrade it. Safe to run again, and by several at once.

    Workers and producers may go on meanwhile.
    """
    if only_print:
        script = schema.script()
        if target.as_json:
            print_json({"schema_version": schema.SCHEMA_VERSION, "script": script})
        else:
            click.echo(script)
        return
    with (
        target.server(with_schema=False) as dsn,
        psycopg.connect(database.conninfo(dsn), autocommit=True) as connection,
    ):
        # The only notice of an installation: that it could not make the group roles.
        connection.add_notice_handler(
            lambda notice: click.echo(f"{notice.message_primary}. {notice.message_hint}", err=True)
        )
        found = database.installed_schema_sync(connection)
        before = found.version if found else None
        applied = schema.install(connection, lock_timeout=lock_timeout, patience=patience)
        name = connection.info.dbname
    if target.as_json:
        print_json(
            {"schema_version": schema.SCHEMA_VERSION, "schema_version_before": before, "migrations_applied": applied}
        )
        return
    done = "installed" if before is None else "upgraded" if before != schema.SCHEMA_VERSION else "up to date"
    click.echo(f"schema pgrecall in database {name}: {done}, version {schema.SCHEMA_VERSION}")


@click.command(cls=Verb)
@click.option("--listen-dsn", metavar="DSN", help="Where workers LISTEN, if --dsn is a transaction pooler.")
@click.option(
    "--patience",
    type=times.duration,
    metavar="TIME",
    default="60s",
    show_default=True,
    help="How long a transaction may stay open unreported.",
)
@click.pass_obj
def doctor(target: Target, *, listen_dsn: str | None, patience: timedelta) -> None:
    """Check database, schema, wake-up path and workers.

    Exit code 1 if something fails; a warning alone is not a failure.
    """
    found = []
    with target.server() as dsn:
        for check in examine(dsn, listen_dsn=listen_dsn, patience=patience):
            found.append(check)
            if not target.as_json:
                tables.print_check(check)
    failed = [check.name for check in found if check.status == "fail"]
    warned = [check.name for check in found if check.status == "warn"]
    if target.as_json:
        print_json({"ok": not failed, "checks": found})
    elif failed:
        click.echo(f"\nwrong: {', '.join(failed)}")
    else:
        click.echo(f"\nall is well{'; worth a look: ' if warned else ''}{', '.join(warned)}")
    if failed:
        raise NotSoError
