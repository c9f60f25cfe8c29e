"""The command line: arguments in, one call of the scheduler, the schema, a worker or the doctor, and its answer out.

People get tables and sentences, programs get JSON (`--json`) and exit codes. Errors are one line, never a traceback.
"""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import importlib
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import click
import psycopg
import structlog
from psycopg.errors import InvalidSchemaName, UndefinedColumn, UndefinedFunction, UndefinedTable
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgrecall import __version__, database, doctor, schema
from pgrecall.calls import Call, list_recalls
from pgrecall.client import SyncRecallScheduler
from pgrecall.doctor import one_line, span
from pgrecall.embedded import EmbeddedPostgres, EmbeddedPostgresError
from pgrecall.errors import (
    InvalidRecallError,
    RecallError,
    RecallExistsError,
    RecallNotFoundError,
    RecallStateError,
    SchemaError,
    SessionNotFoundError,
)
from pgrecall.model import Recall, RecallRun

EPILOG = """\b
Which database: --dsn, else PGRECALL_DSN, else libpq's own PGHOST, PGDATABASE …,
or --embedded DIR for a private server. These options may stand before or
after the verb.

\b
Times: --at takes ISO 8601 with a zone, 2027-01-31T09:00:00+01:00; --in and
--every take 90s, 2h30m, 1d, 2w. --in counts from the database's clock.

\b
Exit codes:
  0  done
  1  what was asked for is not so; doctor found something wrong
  2  wrong usage or a value that makes no sense
  3  no such session or recall
  4  conflict: the session has a pending recall, or the recall has ended
  5  the database cannot be reached, or refuses
  6  the schema is missing, older or newer than this program
"""

STATUS_STYLES = {"pending": "cyan", "running": "yellow", "fired": "green", "failed": "bold red", "cancelled": "dim"}
CHECK_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_BAD_OUTCOMES = ("error", "timeout", "lost")
_EVERYTHING = 2**31 - 1


class WrongUsage(click.UsageError):
    """What was typed cannot be understood.

    Attributes:
        hint: What to type instead.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class WrongValue(click.BadParameter):
    """One option's value cannot be understood; click adds the option's name."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class NotSoError(Exception):
    """What was asked for is not so: exit code 1. Without a message everything has been said."""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


# Times as people type them

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _duration(text: str) -> timedelta:
    """`90s`, `2h30m`, `1d`: a length of time."""
    squeezed = re.sub(r"\s+", "", text)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhdw])", squeezed)
    if not parts or squeezed != "".join(number + unit for number, unit in parts):
        raise WrongValue(f"{text!r} is not a length of time", hint="Say number and unit: 90s, 2h30m, 1d or 2w.")
    try:
        return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError as error:
        raise WrongValue(f"{text!r} is too long", hint="Nothing can be kept beyond the year 9999.") from error


def _seconds(text: str) -> float:
    """A length of time in seconds; a number without a unit is taken as such."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else _duration(text).total_seconds()


def _moment(text: str) -> datetime:
    """ISO 8601 with a time zone. One without is refused, since it could mean two times."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        example = datetime.now(UTC).replace(microsecond=0).isoformat()
        raise WrongValue(f"{text!r} is not an ISO 8601 time", hint=f"For example {example}.") from error
    if moment.tzinfo is None:
        # The first and the last year may have no time in this machine's zone.
        here = moment.astimezone().isoformat() if 1 < moment.year < 9999 else f"{moment.isoformat()}+01:00"
        raise WrongValue(
            f"{text!r} has no time zone",
            hint=f"Write {here} for this machine's zone, or {moment.isoformat()}Z for UTC.",
        )
    return moment


# Which database


@dataclass(frozen=True, slots=True)
class Target:
    """The options that every verb has.

    Attributes:
        dsn: A libpq connection string or URI; None: libpq's own `PG*` variables.
        embedded: Data directory of a private server, to be started for the length of the command.
        as_json: Whether to answer in JSON.
    """

    dsn: str | None
    embedded: str | None
    as_json: bool

    @contextmanager
    def server(self, *, with_schema: bool = True) -> Iterator[str | None]:
        """The DSN to use; with `--embedded` of a server that ends with the block, and has the schema."""
        if self.embedded is None:
            yield self.dsn
            return
        postgres = EmbeddedPostgres(self.embedded)
        try:
            postgres.start()
        except OSError as error:
            raise EmbeddedPostgresError(f"no server can keep its data in {self.embedded}: {error.strerror}") from error
        with postgres:
            if with_schema:
                database.ensure(postgres.dsn)
            yield postgres.dsn

    @contextmanager
    def open(self) -> Iterator[tuple[SyncRecallScheduler, psycopg.Connection[Any]]]:
        """A scheduler and the one connection to hand to each of its calls: no pool for a command of one statement."""
        with self.server() as dsn:
            scheduler = SyncRecallScheduler(dsn)
            with psycopg.connect(scheduler.dsn, autocommit=True) as connection:
                schema.check(database.schema_version_sync(connection))
                yield scheduler, connection


def _global_options() -> list[click.Option]:
    return [
        click.Option(["--dsn"], metavar="DSN", help="Connection string or URI. Default: PGRECALL_DSN, else PG*."),
        click.Option(["--embedded"], metavar="DIR", help="Start a private PostgreSQL on DIR for this command."),
        click.Option(["--json", "as_json"], is_flag=True, help="Answer in JSON; also errors, on stderr."),
        click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
    ]


class Verb(click.Command):
    """A command with the options that every verb has; its function gets them as a Target."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"epilog": "Exit codes: see pgrecall --help.", **options})
        self.params += _global_options()

    def invoke(self, ctx: click.Context) -> Any:
        """Gathers the global options, given before or after the verb, into the context's Target."""
        before: dict[str, Any] = ctx.obj or {}
        given = {name: ctx.params.pop(name) or before.get(name) for name in ("dsn", "embedded", "as_json", "debug")}
        if given["dsn"] and given["embedded"]:
            raise WrongUsage("--dsn and --embedded exclude each other", hint="Say which of the two is meant.")
        dsn = given["dsn"] or os.environ.get("PGRECALL_DSN") or None
        ctx.obj = Target(dsn=dsn, embedded=given["embedded"], as_json=bool(given["as_json"]))
        return super().invoke(ctx)


class Program(click.Group):
    """The group of all verbs; turns every expected error into its line and its exit code."""

    command_class = Verb

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """The verbs in the order in which one meets them, not by name."""
        return list(self.commands)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Runs a verb and exits."""
        args = list(sys.argv[1:] if args is None else args)
        options = args[: args.index("--")] if "--" in args else args
        extra["standalone_mode"] = False
        try:
            code = super().main(args, *rest, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except (
            click.ClickException,
            click.Abort,
            NotSoError,
            RecallError,
            EmbeddedPostgresError,
            psycopg.Error,
        ) as error:
            if "--debug" in options and not isinstance(error, click.ClickException | click.Abort | NotSoError):
                raise
            sys.exit(_report(error, as_json="--json" in options))
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception, *, as_json: bool) -> int:
    """Says on stderr what went wrong and what to do, and returns the exit code."""
    code, message, hint = _explained(error)
    message = message.removesuffix(".")
    if as_json and message:
        said = {"error": message, "hint": hint, "type": type(error).__name__, "exit_code": code}
        click.echo(json.dumps(said, ensure_ascii=False), err=True)
    elif message:
        click.echo(f"error: {message}", err=True)
        if hint:
            click.echo(f"hint: {hint}", err=True)
    return code


#: Exit code and, where this program knows better than the SQL, the hint; the first class that fits counts.
_EXPECTED: tuple[tuple[type[Exception] | tuple[type[Exception], ...], int, str], ...] = (
    (
        SessionNotFoundError,
        3,
        "pgrecall list shows whose recalls there are; schedule --create-session makes a new one.",
    ),
    (RecallNotFoundError, 3, "pgrecall list shows the ids."),
    (RecallExistsError, 4, "pgrecall list --status pending shows it: cancel or reschedule it."),
    (RecallStateError, 4, ""),
    (SchemaError, 6, ""),
    (RecallError, 2, ""),  # an argument, a setting or an agent that makes no sense
    ((InvalidSchemaName, UndefinedTable, UndefinedFunction, UndefinedColumn), 6, "Run: pgrecall migrate"),
    (psycopg.Error, 5, ""),
)


def _explained(error: Exception) -> tuple[int, str, str]:
    """Exit code, message and hint for an error."""
    hint = str(getattr(error, "hint", ""))
    if isinstance(error, click.Abort):
        return 130, "interrupted", ""
    if isinstance(error, click.ClickException):
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "pgrecall"
        message = error.format_message()
        return error.exit_code, message[:1].lower() + message[1:], hint or f"{path} --help shows what there is."
    if isinstance(error, NotSoError):
        return 1, str(error), hint
    if isinstance(error, EmbeddedPostgresError):
        message, _, log = str(error).partition("\n")
        if "in use by" in message:
            hint = "Use the DSN that the other process printed: --dsn, or PGRECALL_DSN."
        elif log:
            hint = f"The log ends with: {' '.join(log.split())[-300:]}"
        return 5, message.rstrip(":"), hint
    if isinstance(error, InvalidRecallError) and error.constraint == "session_recalls_pkey":
        return 4, one_line(error), "Leave --id out for a new one."
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        hint = "Say which database: --dsn, PGRECALL_DSN, PGHOST …, or --embedded DIR."
    code, better = next((code, better) for kinds, code, better in _EXPECTED if isinstance(error, kinds))
    return code, one_line(error), better or hint


# Answers


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, default=_plain, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, RecallRun):
        row = dataclasses.asdict(value)
        lateness = row.pop("lateness")
        return {**row, "lateness_seconds": None if lateness is None else lateness.total_seconds()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{value!r} has no JSON form")


def _console() -> Console:
    # Elsewhere than on a terminal nobody resizes the window: wide enough that nothing is cut off.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)


def _text(value: object, style: str = "") -> Text:
    """A cell of user's text: control characters could write to the reader's terminal."""
    return Text("".join(char if char.isprintable() or char == "\n" else " " for char in str(value)), style=style)


def _line(value: object, style: str = "") -> Text:
    return _text(" ".join(str(value).split()), style)


def _local(moment: datetime) -> str:
    """A time in the reader's zone, as psql shows it: `2027-01-31 09:00:00+01`."""
    try:
        here = moment.astimezone()
    except (OverflowError, ValueError):  # the first or last year there is
        here = moment
    return re.sub(r"([+-]\d\d):?00$", r"\1", here.isoformat(" ", "seconds"))


def _distance(recall: Recall, now: datetime) -> Text:
    """How far off a recall is: `in 4m 10s`, `2m late`, `for 12s`, `3h ago`."""
    if recall.run_id is not None and recall.claimed_at is not None:
        return Text(f"for {span(now - recall.claimed_at)}", style="yellow")
    if recall.due_at is not None:
        left = recall.due_at - now
        if left > timedelta():
            return Text(f"in {span(left + timedelta(milliseconds=999))}")
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


def _print_recalls(recalls: list[Recall], now: datetime) -> None:
    """Two lines for each recall, so that its whole id, to be copied, and its message fit into 100 columns."""
    console = _console()
    rows = [
        (
            Text("\n").join([_line(recall.id), _line(recall.additional_context_message, "dim")]),
            _line(recall.session_id),
            Text("\n").join([Text(recall.status, STATUS_STYLES[recall.status]), _line(_schedule_of(recall), "dim")]),
            Text("\n").join([Text(_local(recall.trigger_at)), _distance(recall, now)]),
        )
        for recall in recalls
    ]
    session, status, when = (
        max(len(line) for row in rows for line in [name, *row[column].plain.splitlines()])
        for column, name in ((1, "session"), (2, "status"), (3, "trigger_at"))
    )
    session, status = min(session, 20), min(status, 16)  # with the id and the time: 100 columns
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    first = max(36, console.width - session - status - when - 6)
    table.add_column("recall, message", max_width=first, no_wrap=True, overflow="ellipsis")
    table.add_column("session", width=session, overflow="fold")
    table.add_column("status", width=status, no_wrap=True, overflow="ellipsis")
    table.add_column("trigger_at", width=when, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _print_recall(recall: Recall, runs: list[RecallRun], following: list[datetime], now: datetime) -> None:
    console = _console()
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    when = Text.assemble(_local(recall.trigger_at), "  ", _distance(recall, now))
    status = Text(recall.status, STATUS_STYLES[recall.status])
    shown: list[tuple[str, object]] = [
        ("recall", recall.id),
        ("session", recall.session_id),
        ("status", status),
        ("message", recall.additional_context_message),
        ("trigger_at", when),
        ("schedule", _schedule_of(recall)),
        ("end_at", recall.end_at and _local(recall.end_at)),
        ("comment", recall.internal_comment),
        ("attempts", f"{recall.attempt} of {recall.max_attempts}"),
        ("timeout", recall.timeout_seconds and span(timedelta(seconds=recall.timeout_seconds))),
        ("not_before", recall.not_before and _local(recall.not_before)),
        ("deferred", recall.defer_reason and f"{recall.deferrals} times, {recall.defer_reason}"),
        ("run", recall.run_id and f"{recall.run_id} on {recall.worker_id}"),
        ("last_error", recall.last_error),
        ("idempotency_key", recall.idempotency_key),
        ("metadata", json.dumps(recall.metadata, ensure_ascii=False) if recall.metadata else None),
        ("created_at", _local(recall.created_at)),
        ("updated_at", _local(recall.updated_at)),
        ("next", "\n".join(map(_local, following)) if recall.call_type == "recurring" else None),
    ]
    for name, value in shown:
        if value:
            facts.add_row(name, value if isinstance(value, Text) else _text(value))
    console.print(facts)
    if runs:
        console.print()
        console.print(_table_of_runs(runs))


def _table_of_runs(runs: list[RecallRun]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, justify in (("run", "right"), ("nominal_at", "left"), ("lateness", "right"), ("took", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("attempt", justify="right", no_wrap=True)
    table.add_column("what", overflow="fold", ratio=1)
    for run in runs:
        said = ": ".join(filter(None, [run.reason, run.error or run.reply]))
        bad = run.outcome in _BAD_OUTCOMES
        style = "bold red" if bad else "green" if run.outcome == "success" else "yellow"
        table.add_row(
            str(run.id),
            _local(run.nominal_at),
            _milliseconds(run.lateness),
            _milliseconds(run.finished_at - run.started_at if run.started_at else None),
            Text(run.outcome, style),
            str(run.attempt or ""),
            _line(said if len(said) <= 200 else said[:199] + "…"),
        )
    return table


# The verbs

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=Program, epilog=EPILOG, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="pgrecall")
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> None:
    """Wake AI agents later: recalls are rows in PostgreSQL, workers sleep until one is due."""
    ctx.obj = options


cli.params += _global_options()


def _now(connection: psycopg.Connection[Any]) -> datetime:
    """The database's time: the only clock that recalls follow."""
    call: Call[datetime] = Call("clock", {})
    return database.run_sync(connection, call)[0]


def _later(connection: psycopg.Connection[Any], after: timedelta) -> datetime:
    try:
        return _now(connection) + after
    except OverflowError as error:
        raise WrongUsage(f"{span(after)} from now is no date", hint="A recall fires before the year 9999.") from error


def _session_must_exist(connection: psycopg.Connection[Any], session_id: str) -> None:
    if connection.execute("select from pgrecall.sessions where id = %s", [session_id]).rowcount == 0:
        raise SessionNotFoundError(f"no session with id '{session_id}'", session_id=session_id)


class _RecallsByStatus(Call[Recall]):
    """`list_recalls`, of certain statuses only; its limit and offset count these."""

    @property
    def statement(self) -> str:
        """The function's answer, filtered where the data is."""
        inner = Call(self.function, {name: None for name in self.arguments if not name.startswith("only_")}, Recall)
        return (
            f"select recall.* from ({inner.statement}) as recall where recall.status = any(%(only_status)s)"  # noqa: S608 (names only)
            " order by recall.trigger_at desc, recall.id desc limit %(only_limit)s offset %(only_offset)s"
        )


def _pending_recurring(
    scheduler: SyncRecallScheduler, connection: psycopg.Connection[Any], session: str
) -> Recall | None:
    known = scheduler.list_recalls(session_id=session, limit=_EVERYTHING, connection=connection)
    return next((one for one in known if one.status == "pending" and one.call_type == "recurring"), None)


def _following(connection: psycopg.Connection[Any], recall: Recall, now: datetime, most: int = 5) -> list[datetime]:
    """The next nominal times of a recurring recall that has not ended, the one under way left out."""
    if recall.call_type != "recurring" or recall.status not in ("pending", "running"):
        return []
    times = [] if recall.run_id is not None else [recall.trigger_at]
    after = max(recall.trigger_at, now)
    while len(times) < most:
        if recall.cron is not None:
            arguments = {"expression": recall.cron, "time_zone": recall.time_zone, "after": after}
            call: Call[datetime | None] = Call("cron_next", arguments)
            following = database.run_sync(connection, call)[0]
        else:
            step = timedelta(seconds=recall.interval_seconds or 1)
            passed = (after - recall.trigger_at) // step
            try:
                following = recall.trigger_at + step * (passed + 1)
            except OverflowError:
                following = None
        if following is None or (recall.end_at is not None and following > recall.end_at):
            break
        times.append(following)
        after = following
    return times


@cli.command()
@click.option("--workers", type=int, default=3, show_default=True, help="Worker processes; one of them is killed.")
@click.option("--recalls", type=int, default=30, show_default=True, help="How many recalls to schedule.")
@click.option("--seconds", type=float, default=15, show_default=True, help="Over how long their times are spread.")
@click.option("--agent", metavar="MODULE:ATTRIBUTE", help="What the workers run. Default: an agent made for the demo.")
@click.pass_obj
def demo(target: Target, *, workers: int, recalls: int, seconds: float, agent: str | None) -> None:
    """Show pgrecall at work, and one worker killed.

    It starts a private PostgreSQL and real workers, so --dsn and --embedded mean nothing here.
    """
    from pgrecall import demo as shown

    code = shown.main(
        workers=workers, recalls=recalls, seconds=seconds, json=target.as_json, agent=agent or shown.DEMO_AGENT
    )
    if code:
        raise click.exceptions.Exit(code)


@cli.command()
@click.option("--print", "only_print", is_flag=True, help="Print the SQL of a first installation; touch no database.")
@click.pass_obj
def migrate(target: Target, *, only_print: bool) -> None:
    """Install the schema, or upgrade it. Safe to run again, and by several at once."""
    if only_print:
        script = schema.script()
        if target.as_json:
            _print_json({"schema_version": schema.SCHEMA_VERSION, "script": script})
        else:
            click.echo(script)
        return
    with (
        target.server(with_schema=False) as dsn,
        psycopg.connect(database.conninfo(dsn), autocommit=True) as connection,
    ):
        before = database.schema_version_sync(connection)
        applied = schema.install(connection)
        name = connection.info.dbname
    if target.as_json:
        _print_json(
            {"schema_version": schema.SCHEMA_VERSION, "schema_version_before": before, "migrations_applied": applied}
        )
        return
    done = "installed" if before is None else "upgraded" if before != schema.SCHEMA_VERSION else "up to date"
    click.echo(f"schema pgrecall in database {name}: {done}, version {schema.SCHEMA_VERSION}")


@cli.command()
@click.option(
    "--agent", required=True, metavar="MODULE:ATTRIBUTE", help="An agent, or a factory that makes one per run."
)
@click.option("--concurrency", type=int, default=3, show_default=True, help="Slots: how many runs at once.")
@click.option(
    "--lease", type=_seconds, metavar="TIME", default="30s", show_default=True, help="How long a claim is good."
)
@click.option("--timeout", type=_seconds, metavar="TIME", default="10m", show_default=True, help="Limit of one run.")
@click.option(
    "--grace", type=_seconds, metavar="TIME", default="30s", show_default=True, help="For runs, when stopping."
)
@click.option(
    "--safety-interval", type=_seconds, metavar="TIME", default="60s", show_default=True, help="Between looks."
)
@click.option("--listen-dsn", metavar="DSN", help="Where to LISTEN, if --dsn is a transaction pooler.")
@click.pass_obj
def worker(target: Target, /, *, agent: str, **settings: Any) -> None:
    """Run agents when their recalls are due.

    It runs until SIGTERM or Ctrl-C: the first signal lets runs finish within --grace, the second gives them back to
    other workers at once. The agent is found from the current directory.
    """
    _log_to_stdout(as_json=target.as_json or not sys.stdout.isatty())
    loaded = _load(agent)
    from pgrecall.worker import Worker

    with target.server() as dsn:
        if target.embedded is not None:
            _say_where(target, str(dsn))
        made = Worker(dsn, agent=loaded, **settings)

        async def run_until_told() -> None:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, made.stop)
            await made.run()

        asyncio.run(run_until_told())


def _say_where(target: Target, dsn: str) -> None:
    """Tells how other terminals reach the private server."""
    if target.as_json:
        _print_json({"event": "embedded_postgres_started", "dsn": dsn})
    else:
        click.echo(f"PostgreSQL runs on {target.embedded} as long as this worker. In other terminals:", err=True)
        click.echo(f"export PGRECALL_DSN='{dsn}'", err=True)


def _log_to_stdout(*, as_json: bool) -> None:
    """Makes log events readable: lines of JSON for programs, coloured ones for people."""
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # the worker says it itself, once
    renderer: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if as_json
        else [structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ, pad_event_to=20)]
    )
    stamp = structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S.%f", utc=as_json)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, stamp, *renderer],
        logger_factory=structlog.PrintLoggerFactory(),
    )


def _load(path: str) -> Any:
    """Imports `module:attribute`, looking in the current directory first."""
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise WrongUsage(f"--agent is {path!r}", hint="Write --agent module:attribute, for example myapp.agents:agent.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise _import_failed(module_name, error) from error
        raise WrongUsage(
            f"--agent: there is no module {error.name!r}", hint=f"Looked in {Path.cwd()} and in Python's own path."
        ) from error
    except Exception as error:
        raise _import_failed(module_name, error) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, dir(found), n=1)
            public = ", ".join(known for known in dir(found) if not known.startswith("_"))
            hint = f"Did you mean {near[0]}?" if near else f"It has {public[:200] or 'nothing public'}."
            raise WrongUsage(f"--agent: {module_name} has no attribute {name!r}", hint=hint)
        found = getattr(found, name)
    return found


def _import_failed(module_name: str, error: Exception) -> RecallError:
    from pgrecall.errors import AgentError

    message = f"--agent: importing {module_name} failed: {type(error).__name__}: {one_line(error)}"
    return AgentError(message, hint="--debug shows the traceback.")


@cli.command()
@click.argument("session")
@click.argument("message")
@click.option("--in", "after", type=_duration, metavar="TIME", help="So long from now, by the database's clock.")
@click.option("--at", type=_moment, metavar="TIME", help="ISO 8601 with a zone.")
@click.option("--every", type=_duration, metavar="TIME", help="Repeat so often, in whole seconds.")
@click.option("--cron", metavar="EXPR", help="Repeat by a five-field cron expression, read in --time-zone.")
@click.option("--time-zone", metavar="NAME", help="IANA name for --cron, such as Europe/Paris.")
@click.option("--until", "end_at", type=_moment, metavar="TIME", help="No occurrence after this time.")
@click.option("--comment", "internal_comment", help="For people; never shown to the model.")
@click.option("--create-session", is_flag=True, help="Make the session if there is none.")
@click.option("--user-id", help="Owner of the session that --create-session makes.")
@click.option("--idempotency-key", metavar="KEY", help="If the session knows the key, nothing is added.")
@click.option("--max-attempts", type=int, help="Runs that an occurrence may take. Default: 3.")
@click.option("--timeout", type=_seconds, metavar="TIME", help="Limit of one run. Default: the worker's.")
@click.option("--metadata", metavar="JSON", help="A JSON object for the agent.")
@click.option("--id", help="The recall's id. Default: a new uuid.")
@click.pass_obj
def schedule(
    target: Target,
    /,
    *,
    session: str,
    message: str,
    after: timedelta | None,
    at: datetime | None,
    every: timedelta | None,
    create_session: bool,
    user_id: str | None,
    timeout: float | None,
    metadata: str | None,
    **given: Any,
) -> None:
    """Ask for a run of the agent in SESSION, which is told MESSAGE.

    Neither --in nor --at: now, or the first time of --cron.
    """
    _exclusive({"--in": after, "--at": at})
    _exclusive({"--every": every, "--cron": given["cron"]})
    if (given["cron"] is None) != (given["time_zone"] is None):
        example = "For example --cron '0 9 * * mon-fri' --time-zone Europe/Paris."
        raise WrongUsage("--cron and --time-zone belong together", hint=example)
    if user_id is not None and not create_session:
        raise WrongUsage("--user-id is for a new session", hint="Add --create-session.")
    given["interval_seconds"] = _whole_seconds("--every", every)
    given["timeout_seconds"] = _whole_seconds("--timeout", None if timeout is None else timedelta(seconds=timeout))
    given["metadata"] = _json_object(metadata)
    with target.open() as (scheduler, connection), connection.transaction():
        if create_session:
            connection.execute(
                "insert into pgrecall.sessions (id, user_id) values (%s, %s) on conflict (id) do nothing",
                [session, user_id],
            )
        recall = scheduler.schedule_recall(
            session_id=session,
            additional_context_message=message,
            trigger_at=at if after is None else _later(connection, after),
            connection=connection,
            **given,
        )
        now = _now(connection)
    _answer(target, recall, now, "scheduled")


def _exclusive(options: dict[str, object], *, one_needed: bool = False) -> None:
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise WrongUsage(f"{' and '.join(given)} exclude each other", hint="Say which one is meant.")
    if one_needed and not given:
        raise WrongUsage(f"one of {' and '.join(options)} is needed", hint="")


def _whole_seconds(name: str, length: timedelta | None) -> int | None:
    if length is None:
        return None
    if length % timedelta(seconds=1):
        raise WrongUsage(f"{name} is {length.total_seconds():g} seconds", hint="Only whole seconds can be kept.")
    return length // timedelta(seconds=1)


def _json_object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise WrongUsage(
            f"--metadata is not JSON: {error}", hint="""For example --metadata '{"ticket": 12}'."""
        ) from error
    if not isinstance(value, dict):
        raise WrongUsage("--metadata is not a JSON object", hint="""For example --metadata '{"ticket": 12}'.""")
    return value


def _answer(target: Target, recall: Recall, now: datetime, done: str) -> None:
    """What became of a recall: one sentence, or the recall as JSON."""
    if target.as_json:
        _print_json(recall)
        return
    said = Text.assemble(
        f"{done} ",
        _line(recall.id, "bold"),
        " in session ",
        _line(recall.session_id, "bold"),
        ", ",
        (recall.status, STATUS_STYLES[recall.status]),
    )
    if recall.status in ("pending", "running"):
        said += Text.assemble(", ", _local(recall.trigger_at), ", ", _distance(recall, now))
        if recall.call_type == "recurring":
            said += Text.assemble(", ", _schedule_of(recall))
    _console().print(said, soft_wrap=True)


@cli.command("list")
@click.option("--session", help="Only this session's.")
@click.option("--user", help="Only recalls of sessions that this user owns.")
@click.option("--all", "everything", is_flag=True, help="Everything: the default.")
@click.option("--status", multiple=True, type=click.Choice(list(STATUS_STYLES)), help="Only these; may be repeated.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True)
@click.option("--offset", type=click.IntRange(min=0), default=0, show_default=True)
@click.pass_obj
def list_(
    target: Target,
    *,
    session: str | None,
    user: str | None,
    everything: bool,
    status: tuple[str, ...],
    limit: int,
    offset: int,
) -> None:
    """List recalls, newest trigger_at first.

    Without --session and --user: all, since
    whoever has a DSN is an operator.
    """
    _exclusive({"--all": everything or None, "--user": user})
    _exclusive({"--all": everything or None, "--session": session})
    with target.open() as (_, connection):
        call = list_recalls(
            session_id=session,
            user_id=user,
            is_admin=session is None and user is None,
            limit=_EVERYTHING if status else limit,
            offset=0 if status else offset,
        )
        if status:
            outer = {"only_status": list(status), "only_limit": limit, "only_offset": offset}
            call = _RecallsByStatus(call.function, {**call.arguments, **outer}, Recall)
        recalls = database.run_sync(connection, call)
        if session is not None and not recalls:
            _session_must_exist(connection, session)
        now = _now(connection)
    if target.as_json:
        _print_json(recalls)
    elif recalls:
        _print_recalls(recalls, now)
        if len(recalls) == limit:
            click.echo(f"{limit} shown; for more: --offset {offset + limit}")
    else:
        click.echo("no recalls")


@cli.command()
@click.argument("recall_id")
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="At most so many runs.")
@click.pass_obj
def show(target: Target, *, recall_id: str, limit: int) -> None:
    """Show a recall, its next times and its runs."""
    with target.open() as (scheduler, connection):
        recall = scheduler.get_recall(recall_id, connection=connection)
        runs = scheduler.get_runs(recall_id, limit=limit, connection=connection)
        now = _now(connection)
        following = _following(connection, recall, now)
    if target.as_json:
        _print_json({"recall": recall, "next": following, "runs": runs})
    else:
        _print_recall(recall, runs, following, now)


@cli.command()
@click.argument("recall_id", required=False)
@click.option("--session", help="Cancel the pending recall of this session.")
@click.pass_obj
def cancel(target: Target, *, recall_id: str | None, session: str | None) -> None:
    """Cancel one recall, or the pending recall of a session. A run under way is told to stop.

    Exit code 0 also if there was nothing left to cancel.
    """
    _exclusive({"RECALL_ID": recall_id, "--session": session}, one_needed=True)
    with target.open() as (scheduler, connection):
        if recall_id is not None:
            before = scheduler.get_recall(recall_id, connection=connection)
            recall = scheduler.mark_cancelled(recall_id, connection=connection)
            is_changed = before.status != "cancelled"
            answer = {"cancelled": is_changed, "session_id": recall.session_id, "recall_id": recall.id}
            said = f"cancelled {recall.id}" if is_changed else f"recall {recall.id} was cancelled already"
        else:
            assert session is not None  # noqa: S101 (one of the two is given)
            is_changed = scheduler.cancel_recall(session, connection=connection)
            if not is_changed:
                _session_must_exist(connection, session)
            answer = {"cancelled": is_changed, "session_id": session}
            said = f"cancelled the recall of session {session}"
            said = said if is_changed else f"session {session} has no pending recall: nothing to cancel"
    if target.as_json:
        _print_json(answer)
    else:
        click.echo(said)


@cli.command()
@click.argument("session")
@click.pass_obj
def skip(target: Target, *, session: str) -> None:
    """Leave out the next occurrence of SESSION's recurring recall."""
    with target.open() as (scheduler, connection), connection.transaction():
        before = _pending_recurring(scheduler, connection, session)
        if not scheduler.skip_next_recall(session, connection=connection) or before is None:
            _session_must_exist(connection, session)
            raise NotSoError(
                f"session '{session}' has no pending recurring recall", hint="A recall that runs now cannot be skipped."
            )
        after = scheduler.get_recall(before.id, connection=connection)
        now = _now(connection)
    if target.as_json:
        _print_json({"skipped": before.trigger_at, "recall": after})
    elif after.status == "cancelled":
        click.echo(f"skipped {_local(before.trigger_at)}, the last occurrence: recall {after.id} is cancelled")
    else:
        _answer(target, after, now, f"skipped {_local(before.trigger_at)} of")


@cli.command()
@click.argument("recall_id")
@click.option("--in", "after", type=_duration, metavar="TIME", help="So long from now, by the database's clock.")
@click.option("--at", type=_moment, metavar="TIME", help="ISO 8601 with a zone.")
@click.pass_obj
def reschedule(target: Target, *, recall_id: str, after: timedelta | None, at: datetime | None) -> None:
    """Move a pending recall to another time.

    A running one runs again then.
    """
    _exclusive({"--in": after, "--at": at}, one_needed=True)
    with target.open() as (scheduler, connection):
        moment = at if after is None else _later(connection, after)
        assert moment is not None  # noqa: S101 (one of the two is given)
        recall = scheduler.reschedule(recall_id, moment, connection=connection)
        now = _now(connection)
    _answer(target, recall, now, "moved")


@cli.command("doctor")
@click.option("--listen-dsn", metavar="DSN", help="Where workers LISTEN, if --dsn is a transaction pooler.")
@click.option(
    "--patience",
    type=_duration,
    metavar="TIME",
    default="60s",
    show_default=True,
    help="How long a transaction may stay open unreported.",
)
@click.pass_obj
def doctor_(target: Target, *, listen_dsn: str | None, patience: timedelta) -> None:
    """Check database, schema, wake-up path and workers.

    Exit code 1 if something fails; a warning alone is not a failure.
    """
    found = []
    with target.server() as dsn:
        console = _console()
        for check in doctor.examine(dsn, listen_dsn=listen_dsn, patience=patience):
            found.append(check)
            if not target.as_json:
                row = Table.grid(padding=(0, 2, 0, 0))
                row.add_column(width=4)
                row.add_column(width=12)
                row.add_column(overflow="fold")
                said = _line(check.message)
                if check.hint:
                    said.append_text(Text.assemble("\n", ("do: ", "bold"), _line(check.hint)))
                row.add_row(Text(check.status, CHECK_STYLES[check.status]), check.name, said)
                console.print(row)
    failed = [check.name for check in found if check.status == "fail"]
    warned = [check.name for check in found if check.status == "warn"]
    if target.as_json:
        _print_json({"ok": not failed, "checks": found})
    elif failed:
        click.echo(f"\nwrong: {', '.join(failed)}")
    else:
        click.echo(f"\nall is well{'; worth a look: ' if warned else ''}{', '.join(warned)}")
    if failed:
        raise NotSoError


def main() -> None:
    """Runs the program on the arguments of this process."""
    cli(prog_name="pgrecall")
