"""What can go wrong: the exceptions of the command line, and the exit code, the line and the hint for every error.

Knows no verb, no option and no answer that is not an error.
"""

from __future__ import annotations

import json

import click
import psycopg
from psycopg.errors import InvalidSchemaName, UndefinedColumn, UndefinedFunction, UndefinedTable

from pgrecall.doctor.finding import one_line
from pgrecall.embedded import EmbeddedPostgresError
from pgrecall.errors import (
    InvalidRecallError,
    RecallError,
    RecallExistsError,
    RecallNotFoundError,
    RecallStateError,
    SchemaError,
    SessionNotFoundError,
    TokenError,
)


class WrongUsage(click.UsageError):
    """What was typed cannot be understood.

    Attributes:
        hint: What to type instead.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class WrongValue(click.BadParameter):
    """One option's value cannot be understood; click adds the option's name."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class NotSoError(Exception):
    """What was asked for is not so: exit code 1. Without a message everything has been said."""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


#: Exit code and, where this program knows better than the SQL, the hint; the first class that fits counts.
_EXPECTED: tuple[tuple[type[Exception] | tuple[type[Exception], ...], int, str], ...] = (
    (
        SessionNotFoundError,
        3,
        "pgrecall list shows whose recalls there are; schedule --create-session makes a new one.",
    ),
    (RecallNotFoundError, 3, "pgrecall list shows the ids."),
    (
        RecallExistsError,
        4,
        "pgrecall list --status pending shows it: cancel it, reschedule it, or say --if-exists replace.",
    ),
    (RecallStateError, 4, ""),
    (SchemaError, 6, ""),
    (TokenError, 1, ""),
    (RecallError, 2, ""),  # an argument, a setting or an agent that makes no sense
    ((InvalidSchemaName, UndefinedTable, UndefinedFunction, UndefinedColumn), 6, "Run: pgrecall migrate"),
    (psycopg.Error, 5, ""),
)


#: Characters of a message that quotes what was typed.
_LONGEST = 500


def report(error: Exception, *, as_json: bool) -> int:
    """Says on stderr what went wrong and what to do, and returns the exit code."""
    code, message, hint = _explained(error)
    message = " ".join(message.split()).removesuffix(".")
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}…"
    if as_json and message:
        said = {"error": message, "hint": hint, "type": type(error).__name__, "exit_code": code}
        click.echo(json.dumps(said, ensure_ascii=False), err=True)
    elif message:
        click.echo(f"error: {message}", err=True)
        if hint:
            click.echo(f"hint: {hint}", err=True)
    return code


def _explained(error: Exception) -> tuple[int, str, str]:
    """Exit code, message and hint for an error."""
    hint = str(getattr(error, "hint", ""))
    if isinstance(error, click.Abort):
        return 130, "interrupted", ""
    if isinstance(error, click.ClickException):
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "pgrecall"
        message = error.format_message()
        return error.exit_code, message[:1].lower() + message[1:], hint or f"{path} --help shows what there is."
    if isinstance(error, NotSoError):
        return 1, str(error), hint
    if isinstance(error, EmbeddedPostgresError):
        message, _, log = str(error).partition("\n")
        if "in use by" in message:
            hint = "Use the DSN that the other process printed: --dsn, or PGRECALL_DSN."
        elif log:
            hint = f"The log ends with: {' '.join(log.split())[-300:]}"
        return 5, message.rstrip(":"), hint
    if isinstance(error, InvalidRecallError) and error.constraint == "session_recalls_pkey":
        return 4, one_line(error), "Leave --id out for a new one."
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        hint = "Say which database: --dsn, PGRECALL_DSN, PGHOST …, or --embedded DIR."
    code, better = next((code, better) for kinds, code, better in _EXPECTED if isinstance(error, kinds))
    return code, one_line(error), better or hint
