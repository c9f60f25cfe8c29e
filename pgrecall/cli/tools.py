"""The verbs for agents that schedule themselves from outside: `mcp`, and `token` that says whom it acts for.

Knows neither what the tools do nor what a token is made of.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from datetime import datetime, timedelta

import click
import structlog

from pgrecall import RecallScheduler, tokens
from pgrecall.cli import times
from pgrecall.cli.answers import print_json
from pgrecall.cli.app import Verb, exclusive
from pgrecall.cli.errors import WrongUsage, WrongValue
from pgrecall.cli.target import Target

#: Whose recalls a server over stdio serves.
TOKEN_VARIABLE = "PGRECALL_SESSION_TOKEN"  # noqa: S105 (its name)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise WrongValue(f"{text!r} is not HOST:PORT", hint="For example 127.0.0.1:8701.")
    return host.removeprefix("[").removesuffix("]"), int(port)


@click.command(cls=Verb)
@click.option("--http", type=_address, metavar="HOST:PORT", help="Serve over HTTP, at /mcp, for bearers of tokens.")
@click.option("--session", metavar="SESSION", help="Serve this session over stdio, without a token.")
@click.pass_obj
def mcp(target: Target, /, *, http: tuple[str, int] | None, session: str | None) -> None:
    """Serve the recall tools to agents, by the Model Context Protocol.

    Over stdio for one session: that of the token in PGRECALL_SESSION_TOKEN, or --session. Over HTTP for any: each
    request brings its token as Authorization: Bearer. Tokens are checked with PGRECALL_TOKEN_SECRET, and made by
    pgrecall token.
    """
    exclusive({"--http": http, "--session": session})
    given = os.environ.get(TOKEN_VARIABLE)
    if http is None and session is None and not given:
        raise WrongUsage(
            f"whose recalls? {TOKEN_VARIABLE} is not set",
            hint="Set it to a token from pgrecall token, or give --session, or --http for many sessions.",
        )
    _log_to_stderr()
    from pgrecall import mcp as servers

    async def serve(dsn: str | None) -> None:
        async with RecallScheduler(dsn) as scheduler:
            if http is not None:
                server = servers.http_server(scheduler)
                # It shuts down by itself, then raises the signal again for whoever else wants it: nobody does.
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, lambda *_: None)
                click.echo(f"recall tools on http://{_shown(http)}{servers.PATH}", err=True)
                await servers.serve_http(server, *http)
            elif session is not None:
                await servers.session_server(scheduler, session).run_stdio_async()
            else:
                await servers.token_server(scheduler, str(given)).run_stdio_async()

    with target.server() as dsn:
        asyncio.run(serve(dsn))


def _shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _log_to_stderr() -> None:
    """Keeps stdout for the protocol."""
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(default=str),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


@click.command(cls=Verb)
@click.argument("session")
@click.option(
    "--expires", type=times.duration, metavar="TIME", default="1h", show_default=True, help="How long it is good."
)
@click.option("--run", "run_id", type=int, metavar="RUN_ID", help="Good only while this run has the session.")
@click.pass_obj
def token(target: Target, /, *, session: str, expires: timedelta, run_id: int | None) -> None:
    """Make a token for the recall tools of SESSION.

    It is signed with PGRECALL_TOKEN_SECRET and asks no database. Whoever has it can see and change the recalls of that
    session, and nothing else, until it expires.
    """
    made = tokens.session_token(session, expires_in=expires, run_id=run_id)
    if target.as_json:
        said = tokens.read_token(made)
        expires_at: datetime = said.expires_at
        print_json({"token": made, "session_id": said.session_id, "run_id": said.run_id, "expires_at": expires_at})
    else:
        click.echo(made)
