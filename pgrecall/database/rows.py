"""Turns rows into what a Call returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from psycopg.rows import RowMaker

from pgrecall.calls import Call

T = TypeVar("T")


def _utc(value: Any) -> Any:
    # psycopg gives times in the session's time zone; here all are UTC, whatever that is set to.
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _instances(row: type[T]) -> Callable[[Any], RowMaker[T]]:
    wanted = {field.name for field in fields(cast("Any", row))}

    def for_cursor(cursor: Any) -> RowMaker[T]:
        # A newer minor schema may have more columns than we know.
        names = [column.name for column in cursor.description or ()]
        keep = [(place, name) for place, name in enumerate(names) if name in wanted]

        def make(values: Any) -> T:
            return row(**{name: _utc(values[place]) for place, name in keep})

        return make

    return for_cursor


def _scalars(_: Any) -> RowMaker[Any]:
    return lambda values: _utc(values[0])


def row_factory(call: Call[T]) -> Any:
    """What makes psycopg give the rows as instances of the Call's class, or its only column as it is."""
    return _scalars if call.row is None else _instances(call.row)
