"""The verbs that run until something ends them: `worker` and `demo`; signals, and where the log goes.

Knows neither when a recall is due nor what the demo shows. What they run is imported when they are.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from typing import Any

import click
import structlog

from pgrecall.cli import times
from pgrecall.cli.answers import print_json
from pgrecall.cli.app import Verb
from pgrecall.cli.loading import load
from pgrecall.cli.target import Target

#: Seconds that a stopping worker gets beyond its grace period before the process is ended.
_LAST_RESORT = 5


@click.command(cls=Verb)
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


@click.command(cls=Verb)
@click.option(
    "--agent", required=True, metavar="MODULE:ATTRIBUTE", help="An agent, or a factory that makes one per run."
)
@click.option("--concurrency", type=int, default=3, show_default=True, help="Slots: how many runs at once.")
@click.option(
    "--lease", type=times.seconds, metavar="TIME", default="30s", show_default=True, help="How long a claim is good."
)
@click.option(
    "--timeout", type=times.seconds, metavar="TIME", help="Limit of one run. Default: that of the settings, 10m."
)
@click.option(
    "--grace", type=times.seconds, metavar="TIME", default="30s", show_default=True, help="For runs, when stopping."
)
@click.option(
    "--safety-interval", type=times.seconds, metavar="TIME", default="60s", show_default=True, help="Between looks."
)
@click.option(
    "--reconnect-grace",
    type=times.seconds,
    metavar="TIME",
    default="0.5s",
    show_default=True,
    callback=lambda _context, _option, given: given or None,
    help="Without connections for so long, it counts as dead; 0s: only when its lease ends.",
)
@click.option("--listen-dsn", metavar="DSN", help="Where to LISTEN, if --dsn is a transaction pooler.")
@click.option(
    "--poll-interval", type=times.seconds, metavar="TIME", help="Look so often, and do not LISTEN at all: second best."
)
@click.pass_obj
def worker(target: Target, /, *, agent: str, **settings: Any) -> None:
    """Run agents when their recalls are due.

    It runs until SIGTERM or Ctrl-C: the first signal lets runs finish within --grace, the second gives them back to
    other workers at once. The agent is found from the current directory.
    """
    _log_to_stdout(as_json=target.as_json or not sys.stdout.isatty())
    loaded = load(agent)
    from pgrecall.worker import Worker

    with target.server() as dsn:
        if target.embedded is not None:
            _say_where(target, str(dsn))
        made = Worker(dsn, agent=loaded, **settings)

        def stop() -> None:
            made.stop()
            # An agent that blocks cannot be stopped; past the grace period the process ends all the same, and what it
            # still has is run again elsewhere when its lease ends.
            last_resort = threading.Timer(settings["grace"] + _LAST_RESORT, os._exit, (1,))
            last_resort.daemon = True
            last_resort.start()

        async def run_until_told() -> None:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop)
            await made.run()

        asyncio.run(run_until_told())


def _say_where(target: Target, dsn: str) -> None:
    """Tells how other terminals reach the private server."""
    if target.as_json:
        print_json({"event": "embedded_postgres_started", "dsn": dsn})
    else:
        click.echo(f"PostgreSQL runs on {target.embedded} as long as this worker. In other terminals:", err=True)
        click.echo(f"export PGRECALL_DSN='{dsn}'", err=True)


def _log_to_stdout(*, as_json: bool) -> None:
    """Makes log events readable: lines of JSON for programs, coloured ones for people."""
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # the worker says it itself, once
    renderer: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if as_json
        else [structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ, pad_event_to=20)]
    )
    stamp = structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S.%f", utc=as_json)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, stamp, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(),
    )
