"""The verb `schedule`: a new recall.

Knows no SQL of recalls and no rule about their values: the scheduler refuses what makes no sense.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import click

from pgrecall import database
from pgrecall.calls import Call
from pgrecall.cli import times
from pgrecall.cli.answers import answer
from pgrecall.cli.app import Verb, exclusive
from pgrecall.cli.errors import WrongUsage
from pgrecall.cli.target import Target, clock, later


@click.command(cls=Verb)
@click.argument("session")
@click.argument("message")
@click.option("--in", "after", type=times.duration, metavar="TIME", help="So long from now, by the database's clock.")
@click.option("--at", type=times.moment, metavar="TIME", help="ISO 8601 with a zone.")
@click.option("--every", type=times.duration, metavar="TIME", help="Repeat so often, in whole seconds.")
@click.option("--cron", metavar="EXPR", help="Repeat by a five-field cron expression, read in --time-zone.")
@click.option("--time-zone", metavar="NAME", help="IANA name for --cron, such as Europe/Paris.")
@click.option("--until", "end_at", type=times.moment, metavar="TIME", help="No occurrence after this time.")
@click.option("--comment", "internal_comment", help="For people; never shown to the model.")
@click.option("--create-session", is_flag=True, help="Make the session if there is none.")
@click.option("--user-id", help="Owner of the session that --create-session makes.")
@click.option("--idempotency-key", metavar="KEY", help="If the session knows the key, nothing is added.")
@click.option(
    "--if-exists",
    type=click.Choice(["raise", "replace", "keep"]),
    default="raise",
    show_default=True,
    help="If the session has a pending recall.",
)
@click.option("--max-attempts", type=int, help="Runs that an occurrence may take. Default: 3.")
@click.option("--timeout", type=times.seconds, metavar="TIME", help="Limit of one run. Default: the worker's.")
@click.option("--idle-for", type=times.duration, metavar="TIME", help="Not before nobody has spoken for so long.")
@click.option("--max-defer", type=times.duration, metavar="TIME", help="Put off for so long at most. Default: 1d.")
@click.option("--on-max-defer", type=click.Choice(["run", "skip"]), help="What then. Default: run.")
@click.option("--on-interrupt", type=click.Choice(["retry", "skip"]), help="After a chat came. Default: retry.")
@click.option("--pause-after-failures", type=int, metavar="N", help="Pause it after so many failures in a row.")
@click.option("--deliver-to", metavar="URL", help="Where the reply is posted. Default: the session's.")
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
    idle_for: timedelta | None,
    max_defer: timedelta | None,
    metadata: str | None,
    **given: Any,
) -> None:
    """Ask for a run of the agent in SESSION, which is told MESSAGE.

    Neither --in nor --at: now, or the first time of --cron.
    """
    exclusive({"--in": after, "--at": at})
    exclusive({"--every": every, "--cron": given["cron"]})
    if (given["cron"] is None) != (given["time_zone"] is None):
        example = "For example --cron '0 9 * * mon-fri' --time-zone Europe/Paris."
        raise WrongUsage("--cron and --time-zone belong together", hint=example)
    if user_id is not None and not create_session:
        raise WrongUsage("--user-id is for a new session", hint="Add --create-session.")
    given["interval_seconds"] = times.whole_seconds("--every", every)
    given["timeout_seconds"] = times.whole_seconds("--timeout", None if timeout is None else timedelta(seconds=timeout))
    given["idle_for_seconds"] = times.whole_seconds("--idle-for", idle_for)
    given["max_defer_seconds"] = times.whole_seconds("--max-defer", max_defer)
    given["metadata"] = _json_object(metadata)
    with target.open() as (scheduler, connection), connection.transaction():
        if given["id"] is None:
            given["id"] = database.run_sync(connection, Call[str]("new_id", {}))[0]
        if create_session:
            with database.translated():
                connection.execute(
                    "insert into pgrecall.sessions (id, user_id) values (%s, %s) on conflict (id) do nothing",
                    [session, user_id],
                )
        recall = scheduler.schedule_recall(
            session_id=session,
            additional_context_message=message,
            trigger_at=at if after is None else later(connection, after),
            connection=connection,
            **given,
        )
        now = clock(connection)
    answer(target, recall, now, "scheduled" if recall.id == given["id"] else "kept")


def _json_object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WrongUsage(
            f"--metadata is not JSON: {error}", hint="""For example --metadata '{"ticket": 12}'."""
        ) from error
    if not isinstance(value, dict):
        raise WrongUsage("--metadata is not a JSON object", hint="""For example --metadata '{"ticket": 12}'.""")
    return value
