"""What a finding is, how a check asks the database for rows, and how it words what it found.

Knows no check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import psycopg

Row: TypeAlias = Mapping[str, Any]
Connection: TypeAlias = psycopg.Connection[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        status: `fail`: recalls do not run as they should, or soon will not. `warn`: worth a look.
        message: What is so.
        hint: What to do about it; empty if it is well.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    message: str
    hint: str = ""


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, and without libpq's indented guesses at the reason."""
    lines = [line for line in str(error).splitlines() if not line.startswith("\t")]
    return " ".join(" ".join(lines).split()) or type(error).__name__


def span(length: timedelta) -> str:
    """A length of time for people, in its two largest units: `4m 10s`."""
    left = max(int(length.total_seconds()), 0)
    parts = []
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if count := left // seconds:
            parts.append(f"{count}{unit}")
        elif parts:
            break  # 2d 5s says less than 2d
        left %= seconds
    return " ".join(parts[:2]) or "0s"


def count(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def who(row: Row) -> str:
    """A backend, for people: `pid 12 (psql, idle in transaction, open for 5m)`."""
    if row["pid"] is None:
        return "a prepared transaction"
    about = [row["application_name"], row["state"], row["open_for"] and f"open for {span(row['open_for'])}"]
    return f"pid {row['pid']} ({', '.join(filter(None, about))})"


def one(connection: Connection, statement: str, **values: Any) -> dict[str, Any]:
    """The row of a SELECT that has exactly one."""
    row = connection.execute(statement.encode(), values).fetchone()
    assert row is not None  # noqa: S101 (a SELECT of expressions has one row)
    return row


def every(connection: Connection, statement: str, **values: Any) -> list[dict[str, Any]]:
    """The rows of a SELECT."""
    return connection.execute(statement.encode(), values).fetchall()
