"""The verb that deletes what has ended: `purge`, by the settings or of one session, user or time.

Knows no table: the database decides what may go.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from datetime import datetime
from typing import Any

import click
import psycopg

from pgrecall.cli import tables, times
from pgrecall.cli.answers import print_json
from pgrecall.cli.app import Verb
from pgrecall.cli.errors import WrongUsage
from pgrecall.cli.target import Target
from pgrecall.client import SyncRecallScheduler

#: Seconds between two steps, so that whatever else the database does comes first.
_PAUSE = 0.05


@click.command(cls=Verb)
@click.option("--user", help="All that has ended in the sessions of this user.")
@click.option("--session", help="All that has ended in this session.")
@click.option("--before", type=times.moment, metavar="TIME", help="All that ended before: ISO 8601 with a zone.")
@click.option("--messages", is_flag=True, help="With one of these: also what was said.")
@click.option("--audit", is_flag=True, help="With one of these: also what the audit has about them.")
@click.option("--yes", is_flag=True, help="With one of these: needed, since nothing brings it back.")
@click.pass_obj
def purge(
    target: Target,
    *,
    user: str | None,
    session: str | None,
    before: datetime | None,
    messages: bool,
    audit: bool,
    yes: bool,
) -> None:
    r"""Delete what has ended: by the settings keep_..., or of one user or session.

    Without --user, --session and --before it does what the workers do by themselves, now. With several of them, all
    must be so. What is pending, running or to be delivered stays: cancel it first.
    """
    if user is None and session is None and before is None:
        if messages or audit or yes:
            raise WrongUsage(
                "--messages, --audit and --yes need one of --user, --session and --before", hint="Say whose history."
            )
        with target.open() as (scheduler, connection):
            gone: dict[str, int] = _by_settings(scheduler, connection)
    elif not yes:
        raise WrongUsage("nothing is deleted without --yes", hint="pgrecall list and show tell what there is.")
    else:
        with target.open() as (scheduler, connection):
            history = scheduler.purge_history(
                before=before,
                session_id=session,
                user_id=user,
                with_messages=messages,
                with_audit=audit,
                connection=connection,
            )
        gone = dataclasses.asdict(history)
    if target.as_json:
        print_json(gone)
    else:
        click.echo(tables.gone(gone))


def _by_settings(scheduler: SyncRecallScheduler, connection: psycopg.Connection[Any]) -> dict[str, int]:
    gone: Counter[str] = Counter()
    while True:
        step = scheduler.purge(connection=connection)
        counts = {name: value for name, value in dataclasses.asdict(step).items() if isinstance(value, int)}
        gone.update(counts)
        if step.next_at > step.now_at:
            return {name: gone[name] for name in counts}
        time.sleep(_PAUSE)
