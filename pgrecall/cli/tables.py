"""What people see: tables and sentences about recalls, runs and findings, in the reader's time zone.

Knows no database and no verb; what it shows is handed in, and what programs get is made elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import sys
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgrecall.doctor.finding import Check, count, span
from pgrecall.model import (
    AdoptedRecall,
    Change,
    Delivery,
    HeldSession,
    HistoryEntry,
    Pause,
    Recall,
    RecallRun,
    Settings,
)

STATUS_STYLES = {"pending": "cyan", "running": "yellow", "fired": "green", "failed": "bold red", "cancelled": "dim"}
DELIVERY_STYLES = {"pending": "cyan", "delivered": "green", "failed": "bold red"}
CHECK_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_MANY_PAUSES = 5
_WIDE = 100  # columns: the id, a session, the status and the time side by side
_LATE = timedelta(seconds=5)  # a worker starts a due recall within milliseconds
_BAD_OUTCOMES = ("error", "timeout", "lost")


def print_recalls(recalls: list[Recall], now: datetime) -> None:
    """Two lines for each recall: its whole id, to be copied, and its message; the session beside them if it fits."""
    console = _console()
    is_wide = console.width >= _WIDE
    rows = []
    for recall in recalls:
        said = recall.additional_context_message
        message = _line(said if is_wide else f"{recall.session_id}: {said}", "dim")
        status = [Text(recall.status, STATUS_STYLES[recall.status]), _line(_schedule_of(recall), "dim")]
        when = [Text(local(recall.trigger_at)), _distance(recall, now)]
        cells = [Text("\n").join([_line(recall.id), message]), Text("\n").join(status), Text("\n").join(when)]
        rows.append([cells[0], _line(recall.session_id), *cells[1:]] if is_wide else cells)
    names = (
        ["recall, message", "session", "status", "trigger_at"]
        if is_wide
        else ["recall, session", "status", "trigger_at"]
    )
    *between, when_width = (
        max(len(line) for row in rows for line in [name, *row[column].plain.splitlines()])
        for column, name in enumerate(names[1:], 1)
    )
    between = [min(width, most) for width, most in zip(between, (20, 16) if is_wide else (18,), strict=True)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    first = max(36, console.width - sum(between) - when_width - 2 * len(names) + 2)
    table.add_column(names[0], max_width=first, no_wrap=True, overflow="ellipsis")
    if is_wide:
        table.add_column(names[1], width=between[0], overflow="fold")
    table.add_column("status", width=between[-1], no_wrap=True, overflow="ellipsis")
    table.add_column("trigger_at", width=when_width, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_recall(
    recall: Recall, runs: list[RecallRun], following: list[datetime], waits: list[str], now: datetime
) -> None:
    """Everything about one recall that is so, what it waits for, its next times and its runs."""
    console = _console()
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    when = Text.assemble(local(recall.trigger_at), "  ", _distance(recall, now))
    status = Text(recall.status, STATUS_STYLES[recall.status])
    shown: list[tuple[str, object]] = [
        ("recall", recall.id),
        ("session", recall.session_id),
        ("status", status),
        ("message", recall.additional_context_message),
        ("trigger_at", when),
        ("schedule", _schedule_of(recall)),
        ("end_at", recall.end_at and local(recall.end_at)),
        ("comment", recall.internal_comment),
        ("attempts", f"{recall.attempt} of {recall.max_attempts}"),
        ("timeout", recall.timeout_seconds and span(timedelta(seconds=recall.timeout_seconds))),
        ("idle_for", recall.idle_for_seconds and span(timedelta(seconds=recall.idle_for_seconds))),
        ("not_before", recall.not_before and local(recall.not_before)),
        ("waits", "\n".join(waits)),
        ("deferred", _deferred(recall)),
        ("failures", _failures(recall)),
        ("made_by", _made_by(recall)),
        ("deliver_to", recall.deliver_to),
        ("run", recall.run_id and f"{recall.run_id} on {recall.worker_id}"),
        ("stopping", _stopping(recall)),
        ("last_error", recall.last_error),
        ("idempotency_key", recall.idempotency_key),
        ("metadata", json.dumps(recall.metadata, ensure_ascii=False) if recall.metadata else None),
        ("created_at", local(recall.created_at)),
        ("updated_at", local(recall.updated_at)),
        ("next", "\n".join(map(local, following)) if recall.call_type == "recurring" else None),
    ]
    for name, value in shown:
        if value:
            facts.add_row(name, value if isinstance(value, Text) else _text(value))
    console.print(facts)
    if runs:
        console.print()
        console.print(_table_of_runs(runs))


def print_deliveries(deliveries: list[Delivery], now: datetime) -> None:
    """One line for each, and what went wrong below it."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("delivery", justify="right", no_wrap=True)
    for name in ("session", "status", "when"):
        table.add_column(name, overflow="fold")
    table.add_column("attempts", justify="right", no_wrap=True)
    table.add_column("to", overflow="fold", ratio=1)
    for delivery in deliveries:
        if delivery.next_at is not None and delivery.next_at > now:
            when = f"again in {span(delivery.next_at - now)}"
        else:
            when = f"{span(now - (delivery.ended_at or delivery.created_at))} ago"
        to = _line(delivery.url)
        if delivery.last_error:
            to.append_text(Text.assemble("\n", _line(delivery.last_error[:200], "dim")))
        table.add_row(
            str(delivery.id),
            _line(delivery.session_id),
            Text(delivery.status, DELIVERY_STYLES[delivery.status]),
            when,
            str(delivery.attempt),
            to,
        )
    _console().print(table)


def print_holds(holds: list[HeldSession], now: datetime) -> None:
    """One line for each: who has the session, for how long, until when, and who waits."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("session", "held by"):
        table.add_column(name, overflow="fold")
    for name in ("for", "ends", "waiting"):
        table.add_column(name, no_wrap=name == "for", overflow="fold")
    for hold in holds:
        holder = _line(holder_of(hold))
        if hold.interrupted_by is not None:
            holder.append_text(Text.assemble("\n", _line(f"told to stop by the chat {hold.interrupted_by}", "yellow")))
        waiting = [(hold.chats_waiting, "chat"), (hold.recalls_waiting, "recall")]
        table.add_row(
            _line(hold.held_session_id),
            holder,
            span(now - hold.since),
            "with its run" if hold.until is None else f"in {span(hold.until - now)}, or is renewed",
            ", ".join(count(number, noun) for number, noun in waiting if number),
        )
    _console().print(table)


def holder_of(hold: HeldSession) -> str:
    """Who has a session: `the chat web`, `run 12 of recall … on worker …`."""
    if hold.kind == "chat":
        return f"the chat {hold.holder}"
    recall = "a recall that is gone" if hold.recall_id is None else f"recall {hold.recall_id}"
    return f"run {hold.run_id} of {recall} on worker {hold.holder}"


def print_settings(settings: Settings) -> None:
    """Each setting with its value; what is not set is shown as nothing."""
    console = _console()
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, datetime):
            value = local(value)
        elif isinstance(value, timedelta):
            value = span(value)
        elif isinstance(value, bool):
            value = str(value).lower()
        facts.add_row(field.name, _text("" if value is None else value))
    console.print(facts)


def print_changes(changes: list[Change]) -> None:
    """Two lines or more for each: who did what when, and below it each column with its old and new value."""
    console = _console()
    for change in changes:
        who = change.role if change.role == change.login else f"{change.role} ({change.login})"
        about = [who, change.user_id and f"for {change.user_id}", change.application_name, change.client_address]
        console.print(
            Text.assemble(
                (local(change.changed_at), "bold"),
                "  ",
                _line(f"{change.action} {change.object} {change.object_id or ''}"),
                "  ",
                _line(", ".join(str(part) for part in about if part), "dim"),
            )
        )
        old, new = change.old or {}, change.new or {}
        for name in {**old, **new}:
            was = [_value(old[name])] if name in old else []
            became = ["→", _value(new[name])] if name in new else []
            console.print(Text("    ").append_text(_line(f"{name}: {' '.join(was + became)}")), soft_wrap=True)


def print_facts(row: dict[str, Any]) -> None:
    """One row, a line for each column that says something."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in row.items():
        if value is not None:
            facts.add_row(name.replace("_", " "), _cell(value))
    _console().print(facts)


def print_rows(title: str, found: list[dict[str, Any]]) -> None:
    """A table of any rows below a title; nothing if there are none."""
    if not found:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in found[0]:
        table.add_column(name, overflow="fold")
    for row in found:
        table.add_row(*map(_cell, row.values()))
    console = _console(wide=160)
    console.print(Text(f"\n{title}", style="bold"))
    console.print(table)


def print_history(events: list[HistoryEntry]) -> None:
    """A line for each event, and what is to be said about it below."""
    console = _console()
    for event in events:
        console.print(Text.assemble((local(event.happened_at), "dim"), "  ", _line(event.what, "bold")), soft_wrap=True)
        for said in (event.details or "").splitlines():
            console.print(Text("    ").append_text(_line(said)), soft_wrap=True)


def _cell(value: object) -> Text:
    if isinstance(value, timedelta):
        return Text(f"-{span(-value)}" if value < timedelta() else span(value))
    if isinstance(value, datetime):
        return Text(local(value))
    return _line("" if value is None else value)


def _value(value: object) -> str:
    return "null" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def gone(counts: dict[str, int]) -> str:
    """What was deleted: `12 recalls, 40 runs`; `nothing to delete`."""
    shown = [f"{number} {name.replace('_', ' ')}" for name, number in counts.items() if number]
    return f"deleted: {', '.join(shown)}" if shown else "nothing to delete"


def pause_of(settings: Settings) -> str:
    """That all is paused, until when, and why."""
    return f"all recalls are paused {_until(settings.paused_until)}{_because(settings.pause_reason)}"


def pause_line(pause: Pause) -> str:
    """That a session or user is paused, until when, and why."""
    whom, option, name = ("session", "--session", pause.session_id)
    if name is None:
        whom, option, name = ("user", "--user", pause.user_id)
    end = f"until pgrecall resume {option} {shlex.quote(name or '')}"
    if pause.paused_until is not None:
        end = _until(pause.paused_until)
    return _line(f"{whom} {name} is paused {end}{_because(pause.reason)}").plain


def print_pauses(settings: Settings, pauses: list[Pause], now: datetime) -> None:
    """A line for each pause that holds now, and an empty one below; nothing if there is none."""
    lines = [pause_of(settings)] if is_paused(settings, now) else []
    lines += [pause_line(pause) for pause in pauses[:_MANY_PAUSES]]
    if len(pauses) > _MANY_PAUSES:
        lines.append(f"and {count(len(pauses) - _MANY_PAUSES, 'pause')} more, see pgrecall.pauses")
    if lines:
        _console().print(Text("\n".join([*lines, ""])), soft_wrap=True)


def _until(moment: datetime | None) -> str:
    return "until pgrecall resume" if moment is None else f"until {local(moment)}"


def _because(reason: str | None) -> str:
    return f": {' '.join(reason.split())}" if reason else ""


def waits_for(
    recall: Recall, holds: list[HeldSession], settings: Settings, pauses: list[Pause], now: datetime
) -> list[str]:
    """Why a recall that has not ended does not run now, although its time has come or will have come; a line each."""
    if recall.status not in ("pending", "running") or recall.run_id is not None:
        return []
    said = []
    if is_paused(settings, now):
        said.append(f"{pause_of(settings)} (pgrecall resume --all)")
    said += [pause_line(pause) for pause in pauses]
    # One that is paused because of its session or user says so by itself.
    if is_paused(recall, now) and recall.pause_id not in [pause.id for pause in pauses]:
        said.append(f"it is paused {_until(recall.paused_until)}{_because(recall.pause_reason)}")
    if recall.trigger_at > now:
        return said
    said += [f"the session is held by {holder_of(hold)} since {local(hold.since)}" for hold in holds]
    # The reason stays when what stood in the way has gone; then nothing puts the recall off any more.
    if not holds and recall.defer_reason is not None and recall.not_before is not None and recall.not_before > now:
        said.append(recall.defer_reason)
    if not said and recall.due_at is not None and recall.due_at < now - _LATE:
        said.append("nothing stands in its way: pgrecall doctor looks at the workers")
    return said


def is_paused(paused: Recall | Settings, now: datetime) -> bool:
    """Whether a recall, or everything, is paused now."""
    return paused.paused_at is not None and (paused.paused_until is None or paused.paused_until > now)


def print_sentence(recall: Recall, now: datetime, done: str) -> None:
    """What became of a recall, on one line."""
    said = Text.assemble(
        f"{done} ",
        _line(recall.id, "bold"),
        " in session ",
        _line(recall.session_id, "bold"),
        ", ",
        (recall.status, STATUS_STYLES[recall.status]),
    )
    if recall.status in ("pending", "running"):
        said += Text.assemble(", ", local(recall.trigger_at), ", ", _distance(recall, now))
        if recall.call_type == "recurring":
            said += Text.assemble(", ", _schedule_of(recall))
    _console().print(said, soft_wrap=True)


def print_left(recalls: list[AdoptedRecall]) -> None:
    """The recalls that could not be adopted, a line each."""
    console = _console()
    for recall in recalls:
        said = Text.assemble(
            ("left ", "yellow"),
            _line(recall.recall_id, "bold"),
            " of session ",
            _line(recall.session_id, "bold"),
            ": ",
            _line(recall.reason),
        )
        console.print(said, soft_wrap=True)


def print_check(check: Check) -> None:
    """One finding of the doctor, and below it what to do."""
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=4)
    row.add_column(width=12)
    row.add_column(overflow="fold")
    said = _line(check.message)
    if check.hint:
        said.append_text(Text.assemble("\n", ("do: ", "bold"), _line(check.hint)))
    row.add_row(Text(check.status, CHECK_STYLES[check.status]), check.name, said)
    _console().print(row)


def local(moment: datetime) -> str:
    """A time in the reader's zone, as psql shows it: `2027-01-31 09:00:00+01`."""
    try:
        here = moment.astimezone()
    except (OverflowError, ValueError):  # the first or last year there is
        here = moment
    return re.sub(r"([+-]\d\d):?00$", r"\1", here.isoformat(" ", "seconds"))


def _deferred(recall: Recall) -> str | None:
    if not recall.deferrals or recall.deferred_since is None:
        return None
    limit = recall.deferred_since + timedelta(seconds=recall.max_defer_seconds)
    then = "is left out" if recall.on_max_defer == "skip" else "comes before chats"
    reason = f", last: {recall.defer_reason}" if recall.defer_reason else ""
    times = count(recall.deferrals, "time")
    return f"{times} since {local(recall.deferred_since)}{reason}; {then} after {local(limit)}"


def _stopping(recall: Recall) -> str | None:
    if recall.stopped_by is None:
        return None
    then = "runs again" if recall.after_stop == "retry" else "is left out"
    return f"told so by {recall.stopped_by}{_because(recall.stop_reason)}; then the occurrence {then}"


def _failures(recall: Recall) -> str | None:
    if not recall.failures:
        return None
    pause = f"; paused after {recall.pause_after_failures}" if recall.pause_after_failures else ""
    return f"{recall.failures} in a row{pause}"


def _made_by(recall: Recall) -> str | None:
    if recall.created_by == "host":
        return None
    run = f" in run {recall.created_by_run_id}" if recall.created_by_run_id is not None else ""
    return f"the agent{run}, {recall.chain_depth} deep"


def _distance(recall: Recall, now: datetime) -> Text:
    """How far off a recall is: `in 4m 10s`, `2m late`, `for 12s`, `3h ago`, `paused`, `deferred, in 20s`."""
    if recall.run_id is not None and recall.claimed_at is not None:
        stopping = "stopping, " if recall.stopped_by is not None or recall.status != "running" else ""
        return Text(f"{stopping}for {span(now - recall.claimed_at)}", style="yellow")
    is_waiting = recall.status in ("pending", "running")
    if is_waiting and is_paused(recall, now):
        end = "" if recall.due_at is None else f", in {span(recall.due_at - now + timedelta(milliseconds=999))}"
        return Text(f"paused{end}", style="yellow")
    if recall.due_at is not None:
        left = recall.due_at - now
        if left > timedelta():
            why = "deferred, " if recall.defer_reason is not None and recall.not_before is not None else ""
            return Text(f"{why}in {span(left + timedelta(milliseconds=999))}")
        return Text("now" if left > timedelta(seconds=-1) else f"{span(-left)} late", style="bold red")
    return Text(f"{span(now - recall.trigger_at)} ago" if recall.trigger_at < now else "", style="dim")


def _schedule_of(recall: Recall) -> str:
    if recall.call_type != "recurring":
        return recall.call_type
    return (
        f"{recall.cron} {recall.time_zone}"
        if recall.cron
        else f"every {span(timedelta(seconds=recall.interval_seconds or 0))}"
    )


def _milliseconds(length: timedelta | None) -> str:
    if length is None:
        return ""
    seconds = length.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else span(length)


def _used(usage: dict[str, Any]) -> str:
    """Tokens in and out, and cost, as far as the agent reported them: `1200 > 85, $0.0042`."""
    tokens = [usage.get("input_tokens"), usage.get("output_tokens")]
    parts = [" > ".join("?" if one is None else str(one) for one in tokens)] if any(tokens) else []
    cost = usage.get("cost_usd")
    if isinstance(cost, int | float):
        parts.append(f"${cost:.4f}")
    return _line(", ".join(parts)).plain


def _table_of_runs(runs: list[RecallRun]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, justify in (("run", "right"), ("nominal_at", "left"), ("lateness", "right"), ("took", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("attempt", justify="right", no_wrap=True)
    is_metered = any(run.usage for run in runs)
    if is_metered:
        table.add_column("used", no_wrap=True)
    table.add_column("what", overflow="fold", ratio=1)
    for run in runs:
        said = ": ".join(filter(None, [run.reason, run.error or run.reply]))
        if not said.strip() and run.outcome == "success":
            said = "(empty reply)"
        bad = run.outcome in _BAD_OUTCOMES
        style = "bold red" if bad else "green" if run.outcome == "success" else "yellow"
        table.add_row(
            str(run.id),
            local(run.nominal_at),
            _milliseconds(run.lateness),
            _milliseconds(run.finished_at - run.started_at if run.started_at else None),
            Text(run.outcome, style),
            str(run.attempt or ""),
            *([_used(run.usage or {})] if is_metered else []),
            _line(said if len(said) <= 200 else said[:199] + "…"),
        )
    return table


def _console(wide: int = 100) -> Console:
    # Elsewhere than on a terminal nobody resizes the window: wide enough that nothing is cut off.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else wide
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)


def _text(value: object, style: str = "") -> Text:
    """A cell of user's text: control characters could write to the reader's terminal."""
    return Text("".join(char if char.isprintable() or char == "\n" else " " for char in str(value)), style=style)


def _line(value: object, style: str = "") -> Text:
    return _text(" ".join(str(value).split()), style)
