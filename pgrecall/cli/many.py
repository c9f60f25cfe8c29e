"""Verbs about many recalls: whether somebody at a terminal is sure, and what has changed.

Knows no verb, and nothing about when a recall may be changed.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from datetime import datetime
from typing import Any

import click
import psycopg

from pgrecall.cli import tables
from pgrecall.cli.answers import print_json
from pgrecall.cli.errors import NotSoError
from pgrecall.cli.target import Target, count_recalls, session_must_exist, user_must_have_sessions
from pgrecall.doctor.finding import count

#: Recalls that are changed without a question, and shown without being asked for.
MANY = 20

yes_option = click.option("--yes", is_flag=True, help=f"Do not ask, also about more than {MANY} recalls.")


def whose(session: str | None, user: str | None) -> str:
    """`session s1`, `user ada`."""
    return f"session {session}" if session is not None else f"user {user}"


def must_be_sure(
    target: Target,
    connection: psycopg.Connection[Any],
    verb: str,
    *,
    statuses: Collection[str],
    user: str,
    yes: bool,
) -> None:
    """Asks before more than MANY recalls of a user are changed; never where nobody could answer.

    Raises:
        NotSoError: The answer was no.
    """
    if yes or target.as_json or not _is_at_terminal():
        return
    number = count_recalls(connection, user, statuses)
    if number > MANY and not click.confirm(f"{verb} {number} recalls of user {user}?"):
        raise NotSoError("not confirmed, so nothing was changed", hint="--yes answers beforehand.")


def _is_at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def print_changed(
    target: Target,
    connection: psycopg.Connection[Any],
    changed: list[Any],
    now: datetime,
    *,
    done: str,
    nothing: str,
    session: str | None = None,
    user: str | None = None,
) -> None:
    """Says how many recalls were changed, and which.

    Raises:
        SessionNotFoundError: None was, and there is no such session, or none of this user.
    """
    if not changed and session is not None:
        session_must_exist(connection, session)
    if not changed and user is not None:
        user_must_have_sessions(connection, user)
    if target.as_json:
        print_json(changed)
    elif not changed:
        click.echo(f"{whose(session, user)} has {nothing}")
    else:
        click.echo(f"{done} {count(len(changed), 'recall')} of {whose(session, user)}\n")
        tables.print_recalls(changed[:MANY], now)
        if len(changed) > MANY:
            click.echo(f"and {len(changed) - MANY} more; --json lists all")
