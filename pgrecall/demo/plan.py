"""What the demo schedules, for when, and who asks for it: Python code, a command line, a plain INSERT.

It knows neither the database nor a process.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from psycopg import sql

__all__ = ["Source", "Wanted", "plain_insert", "spread"]

Source = Literal["Python", "CLI", "SQL"]

_THINK = 1.5  # seconds that the agent takes for the recalls during which a worker is killed
_LEAD = 1.0  # seconds from the first request to the first recall

_PEOPLE = ("Ada", "Ben", "Chloe", "Dev", "Elif", "Finn", "Grace", "Hugo", "Ines", "Jun")
_TOPICS = ("the nightly backup", "the invoice run", "the DNS change", "the flaky test", "the visa form", "the release")
_TASKS = ("has it finished?", "still on track?", "look again tomorrow?", "who signs it off?")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A recall that the demo schedules."""

    session_id: str
    source: Source
    after: timedelta
    message: str
    history: str
    think_seconds: float = 0


def spread(recalls: int, seconds: float) -> list[Wanted]:
    """Spreads the recalls over the time: most quick ones evenly, the slow ones all at one moment, for the kill."""
    slow, cli, by_sql = max(2, recalls // 5), max(1, recalls // 10), max(1, recalls // 3)
    quick = recalls - slow
    sources: list[Source] = ["SQL" if place < by_sql else "Python" for place in range(quick - cli)]
    random.Random(7).shuffle(sources)  # noqa: S311 (the same mixture every time)
    for count in range(cli):  # the command line takes a moment to start: its recalls are for the end
        sources.insert(len(sources) - count, "CLI")
    times = [seconds * place / max(quick - 1, 1) for place in range(quick)]
    wanted = [(source, at, 0.0) for source, at in zip(sources, times, strict=True)]
    wanted += [("Python", seconds * 0.3, _THINK)] * slow
    wanted.sort(key=lambda one: one[1])
    return [_describe(number, *one) for number, one in enumerate(wanted)]


def _describe(number: int, source: Source, at: float, think_seconds: float) -> Wanted:
    person, topic = _PEOPLE[number % len(_PEOPLE)], _TOPICS[number % len(_TOPICS)]
    return Wanted(
        session_id=f"{person.lower()}-{number + 1}",
        source=source,
        after=timedelta(seconds=round(_LEAD + at, 3)),
        message=f"Ask: {_TASKS[number % len(_TASKS)]}",
        history=f"I am {person}. Come back to me about {topic}.",
        think_seconds=think_seconds,
    )


def plain_insert(wanted: Sequence[Wanted], start: datetime) -> str:
    """One INSERT that names only what must be named, with a row on each line from the third on."""
    rows = [
        sql.SQL("    ({}, {}, {})")
        .format(one.session_id, (start + one.after).isoformat(" ", "milliseconds"), one.message)
        .as_string()
        for one in wanted
    ]
    columns = "session_id, trigger_at, additional_context_message"
    return f"insert into pgrecall.session_recalls ({columns})\nvalues\n" + ",\n".join(rows)
