"""Values that break programs, by the name of their SQL type: all of them valid for the type, few of them sensible.

What PostgreSQL's types cannot hold (NUL, lone surrogates, naive times) is for Python and the command line to refuse:
`UNSTORABLE`.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import psycopg
from psycopg import sql


def _noise(length: int) -> str:
    """Text that does not compress, so that an index entry is as long as it looks."""
    blocks = (hashlib.sha256(str(number).encode()).hexdigest() for number in range(length // 64 + 1))
    return "".join(blocks)[:length]


TEXTS = [
    "",
    " ",
    " \t\r\n",
    "\u00a0\u2003",
    "'",
    '"; drop schema pgrecall cascade; --',
    "\\",
    "%",
    "%s %(id)s %% {} {0} $1 :1 ?",
    "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f",
    "a\u0301\u0302\u0303" * 40,
    "\u202eright to left\u202c \u05d0\u0628",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "\ufeff\ufffe\uffff\U0010ffff",
    "null",
    "infinity",
    "-1",
    "{}",
    "once",
    "pending",
    "success",
    "Europe/Paris",
    "0 9 * * mon-fri",
    "0 0 30 2 *",
    "*/0 * * * *",
    ",".join(["1"] * 400) + " * * * *",
    "x" * 255,
    "x" * 256,
    "\U0001f600" * 255,
    _noise(255),
    _noise(10_000),
    "\n" * 10_000,
    "x" * 65_536,
    _noise(1_000_000),
]

TIMES = [
    "infinity",
    "-infinity",
    "4713-11-24 00:00:00+00 BC",
    "0001-01-01 00:00:00+00",
    "0001-01-02 00:00:00+00",
    "1900-01-01 00:00:00+00",
    "1969-12-31 23:59:59.999999+00",
    "2026-03-29 01:30:00+00",
    "9999-12-30 23:59:59.999999+00",
    "9999-12-31 00:00:00+00",
    "10000-01-01 00:00:00+00",
    "294276-12-31 23:59:59.999999+00",
]

#: Literals by type; None (null) comes with every type.
VALUES: dict[str, list[Any]] = {
    "text": [*TEXTS],
    "timestamp with time zone": TIMES,
    "integer": [0, -1, 1, 2**31 - 1, -(2**31)],
    "bigint": [0, -1, 1, 2**63 - 1, -(2**63)],
    "boolean": [True, False],
    "double precision": ["0", "-1", "0.5", "NaN", "Infinity", "-Infinity", "1e308", "1e-308", "3e8"],
    "regclass": ["0", "4294967295", "pg_class", "pgrecall.sessions", "pgrecall.run_ids", "pgrecall.recalls_due"],
    "interval": [
        "0",
        "-1 second",
        "1 microsecond",
        "1 month -30 days",
        "178000000 years",
        "-178000000 years",
        "2147483647 months 2147483647 days 9223372036854775807 microseconds",
        "-2147483648 months -2147483648 days",
        # from PostgreSQL 17 on also: infinity, -infinity (see values_of)
    ],
    "jsonb": [
        "null",
        "true",
        "1e1000",
        '"text"',
        "[]",
        "{}",
        "[null]",
        "[[]]",
        "[{}]",
        '[{"role": "user"}]',
        '[{"role": null, "content": null}]',
        '[{"role": "", "content": ""}]',
        '[{"role": 1, "content": {"a": [1]}, "id": {}, "metadata": null}]',
        '[{"role": "user", "in_history": "perhaps"}]',
        '[{"role": "user", "in_context": [true]}]',
        '[{"role": "user", "created_at": "yesterday at noon"}]',
        '[{"role": "user", "created_at": 5}]',
        '[{"role": "user", "id": ""}]',
        '[{"role": "user", "id": "same", "content": "1"}, {"role": "user", "id": "same", "content": "2"}]',
        '[{"role": "user", "content": "good"}, {"role": null}]',
        json.dumps([{"role": "user", "id": _noise(512)}]),
        json.dumps([{"role": "user", "id": _noise(513)}]),
        json.dumps([{"role": _noise(10_000), "content": _noise(1_000_000)}]),
        json.dumps({"": {"'": "\\ % 😀 \u202e"}}, ensure_ascii=False),
        "[" * 1000 + "]" * 1000,
        json.dumps({_noise(300_000): _noise(300_000)}),
    ],
    "text[]": ["{}", "{null}", '{"",null,"NULL"}', "{{s1},{s2}}", "{" + ",".join(map(str, range(20_000))) + "}"],
    "timestamp with time zone[]": [
        "{}",
        "{null}",
        "{2026-11-23 00:00:00+00}",
        "{infinity,-infinity}",
        "{0001-01-01 00:00:00+00 BC}",
    ],
    "bigint[]": ["{}", "{null}", "{{1},{2}}", "{9223372036854775807,-9223372036854775808,0}"],
    "uuid": ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
}


def _deep() -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(100_000):
        value = {"a": value}
    return value


#: Python values of no type that any parameter takes, and some that only look right.
STRANGE: list[Any] = [
    True,
    object(),
    b"bytes",
    [],
    (),
    {1: object()},
    {"a": float("nan")},
    {"a": b"bytes"},
    {"\x00": 1},
    {"a": "\ud800"},
    {(1, 2): 3},
    {"a": 10**5000},
    _deep(),
    float("nan"),
    float("inf"),
    1.5,
    2**31,
    -(2**63),
    10**400,
    10**5000,
    datetime(2030, 1, 1),  # noqa: DTZ001 (on purpose)
    datetime.min.replace(tzinfo=UTC),
    datetime.max.replace(tzinfo=UTC),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=23))),
    datetime.max.replace(tzinfo=timezone(-timedelta(hours=23))),
    date(2030, 1, 1),
    timedelta.max,
    int,
    Ellipsis,
]

#: Texts that PostgreSQL cannot hold: a NUL, and what Python makes of bytes that are no UTF-8.
UNSTORABLE = ["\x00", "before\x00after", "\ud800", "a\udcff", "\x00\udfff" * 1000]


def values_of(db: psycopg.Connection, type_name: str) -> list[Any]:
    """The values to try for a type, null first; a KeyError says that a type has none here yet."""
    more = ["infinity", "-infinity"] if type_name == "interval" and db.info.server_version >= 170000 else []
    return [None, *VALUES[type_name], *more]


def shown(value: object) -> str:
    """A value, short enough for a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a very long {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"


def fingerprint(db: psycopg.Connection, tables: list[str]) -> dict[str, str]:
    """One number for the whole content of each table, all asked for at once."""
    each = [
        sql.SQL("select {}, count(*), sum(hashtextextended(t::text, 0)::numeric) from pgrecall.{} t").format(
            sql.Literal(table), sql.Identifier(table)
        )
        for table in tables
    ]
    return {table: str(content) for table, *content in db.execute(sql.SQL(" union all ").join(each))}
