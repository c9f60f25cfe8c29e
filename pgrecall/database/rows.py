"""Turns rows into what a Call returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar, cast

import psycopg
from psycopg.rows import RowMaker

from pgrecall.calls import Call

T = TypeVar("T")


_TIMESTAMPTZ = psycopg.adapters.types["timestamptz"].oid


def _utc(value: Any) -> Any:
    # psycopg gives times in the session's time zone; here all are UTC, whatever that is set to.
    return value.astimezone(UTC) if isinstance(value, datetime) else value


@cache
def _instances(row: type[T]) -> Callable[[Any], RowMaker[T]]:
    wanted = {field.name for field in fields(cast("Any", row))}

    @cache
    def maker(columns: tuple[tuple[bytes, int], ...]) -> RowMaker[T]:
        # A newer minor schema may have more columns than we know.
        keep = [(place, name.decode()) for place, (name, _) in enumerate(columns) if name.decode() in wanted]
        times = [(place, name) for place, name in keep if columns[place][1] == _TIMESTAMPTZ]

        def make(values: Any) -> T:
            named = {name: values[place] for place, name in keep}
            for place, name in times:
                named[name] = _utc(values[place])
            return row(**named)

        return make

    def for_cursor(cursor: Any) -> RowMaker[T]:
        # Not cursor.description, which makes an object of each column for each answer.
        answer = cursor.pgresult
        count = 0 if answer is None else answer.nfields
        return maker(tuple((answer.fname(place), answer.ftype(place)) for place in range(count)))

    return for_cursor


def _scalars(_: Any) -> RowMaker[Any]:
    return lambda values: _utc(values[0])


def row_factory(call: Call[T]) -> Any:
    """What makes psycopg give the rows as instances of the Call's class, or its only column as it is."""
    return _scalars if call.row is None else _instances(cast("Any", call.row))
