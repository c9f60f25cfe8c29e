"""The verb about what holds for all recalls of a database: `settings`.

Knows no setting and no bound: the columns of the row say what there is, and its constraints what it may be.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import click
import psycopg
from psycopg import sql

from pgrecall import database
from pgrecall.cli import tables
from pgrecall.cli.answers import print_json
from pgrecall.cli.app import Verb
from pgrecall.cli.errors import WrongUsage
from pgrecall.cli.target import Target, current_settings
from pgrecall.doctor.finding import one_line
from pgrecall.errors import InvalidRecallError
from pgrecall.model import Settings

_PAUSE = ("paused_at", "paused_until", "pause_reason")
_EXPLAINED = "What {} means: \\d+ pgrecall.settings in psql."
_NAMES = [field.name for field in dataclasses.fields(Settings) if field.name not in _PAUSE]


@click.command(cls=Verb)
@click.argument("change", metavar="[NAME=VALUE]...", nargs=-1)
@click.option("--reset", metavar="NAME", multiple=True, help="Back to the default; may be repeated.")
@click.pass_obj
def settings(target: Target, *, change: tuple[str, ...], reset: tuple[str, ...]) -> None:
    r"""Show or change what holds for all recalls.

    Several are changed together or not at all. NAME= with nothing behind it takes a limit away. A change counts from
    the next claim on. What each means: \d+ pgrecall.settings in psql. To pause everything: pgrecall pause --all.
    """
    with target.open() as (_, connection):
        with connection.transaction():
            for name, value in (*map(_parted, change), *((name, None) for name in reset)):
                _set(connection, _known(name), value)
        now = current_settings(connection)
    if target.as_json:
        print_json(now)
    else:
        tables.print_settings(now)


def _parted(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise WrongUsage(f"{text!r} is not NAME=VALUE", hint=f"For example {_NAMES[0]}=900.")
    return name, value


def _known(name: str) -> str:
    if name in _PAUSE:
        raise WrongUsage(f"{name} is not set here", hint="Use pgrecall pause --all, and pgrecall resume --all.")
    if name not in _NAMES:
        near = difflib.get_close_matches(name, _NAMES, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(_NAMES)}."
        raise WrongUsage(f"there is no setting {name!r}", hint=hint)
    return name


def _set(connection: psycopg.Connection[Any], name: str, value: str | None) -> None:
    """Sets one column, or with None sets it back to its default; the server reads the text as the column's type."""
    new = sql.DEFAULT if value is None else sql.Placeholder()
    statement = sql.SQL("update pgrecall.settings set {} = {}").format(sql.Identifier(name), new)
    try:
        with database.translated():
            connection.execute(statement, [] if value is None else [value or None])
    except InvalidRecallError as error:
        raise WrongUsage(f"{name} cannot be {value!r}: {one_line(error)}", hint=_EXPLAINED.format(name)) from error
