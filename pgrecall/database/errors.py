"""Turns what the server refuses into our exceptions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg

from pgrecall.errors import (
    HostTableError,
    InvalidRecallError,
    RecallError,
    RecallExistsError,
    RecallLimitError,
    RecallNotFoundError,
    RecallStateError,
    SessionHeldError,
    SessionNotFoundError,
)

#: An upgrade was committed while the call was under way: its function now gives more columns than it was planned for.
#: The call has done nothing.
UPGRADED = (psycopg.errors.DatatypeMismatch, psycopg.errors.InvalidFunctionDefinition)


@contextmanager
def translated() -> Iterator[None]:
    """Turns the SQLSTATEs that mean something here into our exceptions; the driver's error is chained."""
    try:
        yield
    except (psycopg.DatabaseError, psycopg.DataError) as error:
        ours = translate(error)
        if ours is None:
            raise
        raise ours from error


def translate(error: psycopg.Error) -> RecallError | None:
    """Our exception for an error of the server; None if it is none of ours."""
    message = error.diag.message_primary or str(error).strip()
    hint = error.diag.message_hint or ""
    detail = error.diag.message_detail or ""
    match error.sqlstate:
        case "PR001":
            return RecallExistsError(message, session_id=detail, hint=hint)
        case "PR002":
            return SessionNotFoundError(message, session_id=detail, hint=hint)
        case "PR003":
            return RecallNotFoundError(message, hint=hint)
        case "PR004":
            return RecallStateError(message, hint=hint)
        case "PR005":
            return InvalidRecallError(message, constraint=error.diag.constraint_name, hint=hint)
        case "PR006":
            return _held(message, detail, hint)
        case "PR007":
            return RecallLimitError(message, hint=hint)
        case "PR008":
            return HostTableError(message, hint=hint)
        case "23514" if error.diag.schema_name == "pgrecall" and error.diag.constraint_name:
            # The constraints are named as sentences. Those that have a hint have a message of their own, too.
            name = error.diag.constraint_name
            return InvalidRecallError(message if hint else name.replace("_", " "), constraint=name, hint=hint)
        case "23502" if error.diag.schema_name == "pgrecall":
            return InvalidRecallError(f"{error.diag.column_name} must be given", constraint=error.diag.column_name)
        case state if state and state.startswith("22"):
            return InvalidRecallError(message, hint=hint)
    return None


def _held(message: str, detail: str, hint: str) -> SessionHeldError:
    told = json.loads(detail)
    since, until = (told[name] and datetime.fromisoformat(told[name]).astimezone(UTC) for name in ("since", "until"))
    return SessionHeldError(
        message,
        session_id=told["session_id"],
        kind=told["kind"],
        holder=told["holder"],
        since=since,
        until=until,
        run_id=told["run_id"],
        recall_id=told["recall_id"],
        hint=hint,
    )
