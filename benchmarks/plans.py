"""The plans of what the hot functions do inside: kept in `plans/`, so that a change of plan is seen before it is felt.

auto_explain tells the plan of every statement, also of those inside functions and triggers, as they really ran. What
is kept has node types, tables and indexes, but no costs and no numbers of rows: those differ from machine to machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

DIRECTORY = Path(__file__).parent / "plans"

#: The major version whose plans are kept.
MAJOR = 18

#: Few enough that ANALYZE reads every row: the statistics, and so the plans, are the same every time.
_PENDING, _FINISHED = 15_000, 10_000

#: Calls before the one that is told: a worker's statements have been planned for good by then.
_SETTLED = 12

_FILL = """
    insert into pgrecall.sessions (id) select 's' || n from generate_series(1, {all}) as n;
    insert into pgrecall.session_recalls (id, session_id, trigger_at, additional_context_message, status)
    select
        'r' || n,
        's' || n,
        date_trunc('hour', now()) + interval '3 hours' + n * interval '1 second',
        'hello',
        case when n <= {pending} then 'pending' else 'fired' end
    from generate_series(1, {all}) as n;
    insert into pgrecall.recall_runs (recall_id, session_id, nominal_at, started_at, finished_at, attempt, outcome)
    select id, session_id, trigger_at, trigger_at, trigger_at, 1, 'success'
    from pgrecall.session_recalls
    where status = 'fired';
    insert into pgrecall.sessions (id) select 'free' || n from generate_series(1, 100) as n
"""

#: Which of the free sessions a recall is for, so that no session gets two.
_PLACES = {"later": 0, "now": 30, "together": 60}

_SETTINGS = {
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_format": "json",
    "auto_explain.log_level": "notice",
    "client_min_messages": "notice",
    "jit": "off",
    "synchronous_commit": "off",
    # What is in memory is the machine's affair.
    "effective_cache_size": "4GB",
    "random_page_cost": "4",
}


def explained(dsn: str) -> dict[str, str]:
    """The plans by the name of what was done, as kept in files.

    Args:
        dsn: A database with the schema and nothing in it, as a superuser.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_FILL.format(pending=_PENDING, all=_PENDING + _FINISHED).encode())
        connection.execute("vacuum analyze")
        for number in range(1, _SETTLED + 1):
            _round(connection, number)
        connection.execute("load 'auto_explain'")
        for name, value in _SETTINGS.items():
            connection.execute("select set_config(%s, %s, false)", [name, value])
        heard: list[str] = []
        connection.add_notice_handler(lambda notice: heard.append(notice.message_primary or ""))
        return {name: _told(plans) for name, plans in _by_step(connection, heard) if name}


def _by_step(connection: psycopg.Connection[Any], heard: list[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for step in _steps(connection, _SETTLED + 1):
        heard_by_step = [message for message in heard if message.startswith("duration: ")]
        heard.clear()
        yield step, [json.loads(message[message.index("{") :]) for message in heard_by_step]


def _round(connection: psycopg.Connection[Any], number: int) -> None:
    for _ in _steps(connection, number):
        pass


def _steps(connection: psycopg.Connection[Any], number: int) -> Iterator[str]:
    """Does one thing after the other, and names what it has just done."""
    insert = sql.SQL(
        "insert into pgrecall.session_recalls (id, session_id, trigger_at, additional_context_message) "
        "values ({id}, {session}, now() + {ahead}::interval, 'hello')"
    )

    def inserted(prefix: str, ahead: str) -> None:
        values = {"id": f"{prefix}{number}", "session": f"free{number + _PLACES[prefix]}"}
        connection.execute(insert.format(**{name: sql.Literal(value) for name, value in values.items()}, ahead=ahead))

    connection.execute("select * from pgrecall.claim('plans', 10)")
    yield "look"
    inserted("later", "2 days")
    yield "insert_later"
    inserted("now", "0")
    yield "insert_now"
    claimed = connection.execute("select recall_id, run_id from pgrecall.claim('plans', 10)").fetchall()
    yield "claim"
    (recall,) = [row for row in claimed if row[1] is not None]
    connection.execute(
        "select * from pgrecall.finish(%s, %s, 'success', append_reply => true, reply => 'done')", recall
    )
    yield "finish"
    inserted("together", "0")
    (recall,) = connection.execute("select run_id from pgrecall.claim('plans', 1)").fetchall()
    yield ""  # as above
    connection.execute(
        "select * from pgrecall.finish_unobstructed(array[%s]::bigint[], '{success}', '{null}', '{done}', true)", recall
    )
    yield "finish_together"
    connection.execute("select pgrecall.renew('plans', '30 seconds')")
    yield "renew"


def _told(plans: list[dict[str, Any]]) -> str:
    """What is kept of plans: those that read or write a table, in the order in which they ended, repeated ones once."""
    told = []
    for plan in plans:
        lines = list(_lines(plan["Plan"], 1))
        if any(" on " in line or " using " in line for line in lines):
            statement = re.sub(r"\s+", " ", plan["Query Text"]).strip()
            told.append("\n".join([statement[:100], *lines]))
    return "\n\n".join(dict.fromkeys(told)) + "\n"


def _lines(plan: dict[str, Any], depth: int) -> Iterator[str]:
    parts = [plan["Node Type"] if plan["Node Type"] != "ModifyTable" else plan["Operation"]]
    if "Index Name" in plan:
        parts.append(f"using {plan['Index Name']}")
    if "Relation Name" in plan:
        parts.append(f"on {plan['Relation Name']}")
    if "Subplan Name" in plan:
        parts.append(f"({plan['Subplan Name']})")
    yield "  " * depth + " ".join(parts)
    for below in plan.get("Plans", ()):
        yield from _lines(below, depth + 1)


def write(plans: dict[str, str]) -> list[Path]:
    """Keeps them."""
    paths = []
    for name, text in plans.items():
        path = DIRECTORY / f"{name}.txt"
        path.write_text(text)
        paths.append(path)
    return paths


def kept() -> dict[str, str]:
    """Those that are kept."""
    return {path.stem: path.read_text() for path in sorted(DIRECTORY.glob("*.txt"))}
