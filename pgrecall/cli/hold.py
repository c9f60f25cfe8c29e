"""The verbs about who has a session: `holds` and `free`.

Knows no rule about holds: the SQL decides what may be ended.
"""

from __future__ import annotations

import click

from pgrecall.cli import tables
from pgrecall.cli.answers import print_json
from pgrecall.cli.app import Verb
from pgrecall.cli.errors import NotSoError
from pgrecall.cli.target import Target, clock, session_must_exist


@click.command(cls=Verb)
@click.option("--session", help="Only this session.")
@click.pass_obj
def holds(target: Target, *, session: str | None) -> None:
    """List who has which session, and who waits.

    A chat or a run has a session to itself; recalls and other chats wait for it.
    """
    with target.open() as (scheduler, connection):
        found = scheduler.get_holds(session, connection=connection)
        if session is not None and not found:
            session_must_exist(connection, session)
        now = clock(connection)
    if target.as_json:
        print_json(found)
    elif found:
        tables.print_holds(found, now)
    else:
        click.echo("no session is held")


@click.command(cls=Verb)
@click.argument("session")
@click.pass_obj
def free(target: Target, *, session: str) -> None:
    """End a chat's hold on SESSION.

    For chats that hang. Whoever waits gets the session, and the chat is told that it has lost it when it renews. Exit
    code 1 if a run has the session, 0 if nobody has it.
    """
    with target.open() as (scheduler, connection):
        before = scheduler.get_holds(session, connection=connection)
        session_must_exist(connection, session)
        is_changed = scheduler.free_session(session, connection=connection)
        left = [] if is_changed else scheduler.get_holds(session, connection=connection)
    if left and left[0].kind == "run":
        raise NotSoError(
            f"session '{session}' is held by {tables.holder_of(left[0])}",
            hint=f"pgrecall cancel {left[0].recall_id} tells the run to stop.",
        )
    if target.as_json:
        print_json({"freed": is_changed, "session_id": session, "holder": before[0].holder if before else None})
    elif is_changed:
        click.echo(f"freed session {session}" + (f", held by {tables.holder_of(before[0])}" if before else ""))
    else:
        click.echo(f"nobody holds session {session}: nothing to end")
