"""Turns rows into what a Call returns."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar, cast

from psycopg.rows import RowMaker

from pgrecall.calls import Call

T = TypeVar("T")


def _utc(value: Any) -> Any:
    # psycopg gives times in the session's time zone; here all are UTC, whatever that is set to.
    return value.astimezone(UTC) if isinstance(value, datetime) and value.tzinfo is not UTC else value


@cache
def _instances(row: type[T]) -> RowMaker[T]:
    # The statement of a Call names the columns in the order of the fields, so nothing has to be asked of the answer.
    columns = fields(cast("Any", row))
    names = [field.name for field in columns]
    times = [place for place, field in enumerate(columns) if "datetime" in str(field.type)]
    is_by_name = any(field.kw_only for field in columns)

    def make(values: Any) -> T:
        converted = list(values)
        for place in times:
            converted[place] = _utc(converted[place])
        return row(**dict(zip(names, converted, strict=True))) if is_by_name else row(*converted)

    return make


def row_factory(call: Call[T]) -> Any:
    """What makes psycopg give the rows as instances of the Call's class, or its only column as it is."""
    if call.row is None:
        return lambda _: lambda values: _utc(values[0])
    return lambda _: _instances(cast("Any", call.row))
