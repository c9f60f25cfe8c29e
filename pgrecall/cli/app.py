"""The program around the verbs: the group, the options that all verbs have, and what becomes of an error.

Knows no verb: these are made of Verb, and added to the group by the package.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click
import psycopg

from pgrecall import __version__
from pgrecall.cli.errors import NotSoError, WrongUsage, report
from pgrecall.cli.target import Target
from pgrecall.embedded import EmbeddedPostgresError
from pgrecall.errors import RecallError

EPILOG = """\b
Which database: --dsn, else PGRECALL_DSN, else libpq's own PGHOST, PGDATABASE …,
or --embedded DIR for a private server. These options may stand before or
after the verb.

\b
Times: --at takes ISO 8601 with a zone, 2027-01-31T09:00:00+01:00; --in, --for,
--by and --every take 90s, 2h30m, 1d, 2w. --in and --for count from the
database's clock.

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
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _global_options() -> list[click.Option]:
    return [
        click.Option(["--dsn"], metavar="DSN", help="Connection string or URI. Default: PGRECALL_DSN, else PG*."),
        click.Option(["--embedded"], metavar="DIR", help="Start a private PostgreSQL on DIR for this command."),
        click.Option(["--json", "as_json"], is_flag=True, help="Answer in JSON; also errors, on stderr."),
        click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
    ]


def exclusive(options: dict[str, object], *, one_needed: bool = False) -> None:
    """Refuses more than one of these options, and with one_needed also none."""
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise WrongUsage(f"{' and '.join(given)} exclude each other", hint="Say which one is meant.")
    if one_needed and not given:
        raise WrongUsage(f"one of {', '.join(list(options)[:-1])} and {list(options)[-1]} is needed", hint="")


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
            sys.exit(report(error, as_json="--json" in options))
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=Program, epilog=EPILOG, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="pgrecall")
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> None:
    """Wake AI agents later: recalls are rows in PostgreSQL, workers sleep until one is due."""
    ctx.obj = options


cli.params += _global_options()
