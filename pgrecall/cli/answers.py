"""How a verb answers programs, in JSON, and whether it is a program that asks.

Knows no verb and no database; what people see instead is made in tables.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any

import click

from pgrecall.cli import tables
from pgrecall.cli.target import Target
from pgrecall.model import Recall, RecallRun


def answer(target: Target, recall: Recall, now: datetime, done: str) -> None:
    """What became of a recall: one sentence, or the recall as JSON."""
    if target.as_json:
        print_json(recall)
    else:
        tables.print_sentence(recall, now, done)


def print_json(value: Any) -> None:
    """An answer as JSON: indented on a terminal, one line elsewhere."""
    click.echo(json.dumps(value, default=_plain, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, IPv4Address | IPv6Address | IPv4Interface | IPv6Interface):
        return str(value)
    if isinstance(value, RecallRun):
        row = dataclasses.asdict(value)
        lateness = row.pop("lateness")
        return {**row, "lateness_seconds": None if lateness is None else lateness.total_seconds()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{value!r} has no JSON form")
