"""The verbs that run until something ends them: `worker` and `demo`; signals, and where the log goes.

Knows neither when a recall is due nor what the demo shows. What they run is imported when they are.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import click
import structlog

from pgrecall.cli import times
from pgrecall.cli.answers import print_json
from pgrecall.cli.app import Verb
from pgrecall.cli.errors import WrongValue
from pgrecall.cli.loading import AGENT, load
from pgrecall.cli.target import Target

#: Seconds that a stopping worker gets beyond its grace period before the process is ended.
_LAST_RESORT = 5


@click.command(cls=Verb)
@click.option("--workers", type=int, default=3, show_default=True, help="Worker processes; one of them is killed.")
@click.option("--recalls", type=int, default=30, show_default=True, help="How many recalls to schedule.")
@click.option("--seconds", type=float, default=15, show_default=True, help="Over how long their times are spread.")
@click.option("--agent", metavar=AGENT, help="What the workers run. Default: an agent made for the demo.")
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


def _address(_context: click.Context, _option: click.Parameter, given: str | None) -> tuple[str, int] | None:
    if given is None:
        return None
    host, _, port = given.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise WrongValue(f"{given!r} is not an address to listen on", hint="For example 127.0.0.1:8700 or [::]:8700.")
    return host.strip("[]"), int(port)


def _url(_context: click.Context, _option: click.Parameter, given: str | None) -> str | None:
    if given is not None and not re.fullmatch(r"https?://[!-~]+", given):
        raise WrongValue(f"{given!r} is no URL", hint="For example https://recalls.example.com/callbacks.")
    return given


@click.command(cls=Verb)
@click.option(
    "--agent",
    required=True,
    metavar=AGENT,
    help="An agent in Python, or a factory that makes one per run; an agent behind a URL; or a command, which gets the "
    "run as JSON on stdin (with exec+text: the text for the model) and prints the reply.",
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
@click.option(
    "--callback-url",
    metavar="URL",
    callback=_url,
    help="Where an HTTP agent that answers 202 calls back. Default: PGRECALL_CALLBACK_URL.",
)
@click.option("--callback-listen", metavar="HOST:PORT", callback=_address, help="Take callbacks of HTTP agents here.")
@click.pass_obj
def worker(
    target: Target,
    /,
    *,
    agent: str,
    callback_url: str | None,
    callback_listen: tuple[str, int] | None,
    **settings: Any,
) -> None:
    """Run agents when their recalls are due.

    It runs until SIGTERM or Ctrl-C: the first signal lets runs finish within --grace, the second gives them back to
    other workers at once. A module, and a command's path, are found from the current directory.
    """
    _log_to_stdout(as_json=target.as_json or not sys.stdout.isatty())
    if callback_url is not None:
        os.environ["PGRECALL_CALLBACK_URL"] = callback_url  # HTTP agents read it, wherever they are made
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
            async with _taking_callbacks(dsn, callback_listen):
                await made.run()

        # What is loaded by now stays: the garbage collector need not go through it again and again.
        gc.freeze()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run_until_told())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Makes loops of uvloop where it is installed; None: asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@asynccontextmanager
async def _taking_callbacks(dsn: str | None, address: tuple[str, int] | None) -> AsyncIterator[None]:
    if address is None:
        yield
        return
    from pgrecall.callbacks import callback_app, serving

    async with serving(callback_app(dsn), *address):
        yield


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
