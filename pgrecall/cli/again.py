"""The verbs about runs: `run-now` and `retry` start one, `stop` ends one.

Knows no SQL: the scheduler decides what may run, and when.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

import click

from pgrecall.cli import times
from pgrecall.cli.answers import answer, print_json
from pgrecall.cli.app import Verb, exclusive
from pgrecall.cli.errors import WrongUsage
from pgrecall.cli.many import must_be_sure, print_changed, yes_option
from pgrecall.cli.target import Target, clock, earlier

_AFTERWARDS = {"skip": "its occurrence is left out", "retry": "its occurrence runs again"}


@click.command("run-now", cls=Verb)
@click.argument("recall_id")
@click.pass_obj
def run_now(target: Target, *, recall_id: str) -> None:
    """Run a pending recall now, before its time or without waiting for its retry.

    A recurring one goes on along its own schedule afterwards. A session that is held is waited for. Exit code 0 also
    if it is due or runs already.
    """
    with target.open() as (scheduler, connection):
        before = scheduler.get_recall(recall_id, connection=connection)
        recall = scheduler.run_now(recall_id, connection=connection)
        now = clock(connection)
    done = "made due" if recall != before else "was due already:" if recall.run_id is None else "runs already:"
    answer(target, recall, now, done)


@click.command(cls=Verb)
@click.argument("recall_id", required=False)
@click.option("--session", help="The failed recall of this session that ended last.")
@click.option("--user", help="The failed recalls in sessions of this user.")
@click.option(
    "--failed-since",
    type=times.since,
    metavar="TIME",
    help="Of a session or user: only those that ended since then. ISO 8601 with a zone, or so long ago: 2h.",
)
@yes_option
@click.pass_obj
def retry(
    target: Target,
    *,
    recall_id: str | None,
    session: str | None,
    user: str | None,
    failed_since: datetime | timedelta | None,
    yes: bool,
) -> None:
    """Try a failed or cancelled recall again, or the failed ones of a session or user.

    The same occurrence, with all its attempts before it. Left out are recalls whose session has another pending one.
    Exit code 0 also if nothing had failed.
    """
    exclusive({"RECALL_ID": recall_id, "--session": session, "--user": user}, one_needed=True)
    if recall_id is not None and failed_since is not None:
        raise WrongUsage("--failed-since is for --session and --user", hint="Leave it out: one recall is named.")
    with target.open() as (scheduler, connection):
        if recall_id is not None:
            before = scheduler.get_recall(recall_id, connection=connection)
            recall = scheduler.retry_recall(recall_id, connection=connection)
            done = "tries again" if recall != before else "has not ended:"
            answer(target, recall, clock(connection), done)
            return
        if user is not None:
            must_be_sure(target, connection, "retry", statuses=["failed"], user=user, yes=yes)
        since = earlier(connection, failed_since) if isinstance(failed_since, timedelta) else failed_since
        changed = scheduler.retry_recalls(session_id=session, user_id=user, failed_since=since, connection=connection)
        print_changed(
            target,
            connection,
            changed,
            clock(connection),
            done="tries again:",
            nothing="no failed recall that can be tried again",
            session=session,
            user=user,
        )


@click.command(cls=Verb)
@click.argument("recall_id", required=False)
@click.option("--session", help="The run in this session.")
@click.option("--user", help="The runs in sessions of this user.")
@click.option("--reason", metavar="TEXT", help="For people: the recall's ledger tells it.")
@click.option(
    "--then",
    "after_stop",
    type=click.Choice(["skip", "retry"]),
    default="skip",
    show_default=True,
    help="Leave the occurrence out, or run it again.",
)
@yes_option
@click.pass_obj
def stop(
    target: Target,
    *,
    recall_id: str | None,
    session: str | None,
    user: str | None,
    reason: str | None,
    after_stop: Literal["skip", "retry"],
    yes: bool,
) -> None:
    """Stop the run of a recall, or those in a session or of a user. The recalls stay.

    Does not wait until the agent has stopped. With --then skip a recurring recall goes on to its next time, and any
    other is cancelled. Exit code 0 also if nothing runs.
    """
    exclusive({"RECALL_ID": recall_id, "--session": session, "--user": user}, one_needed=True)
    with target.open() as (scheduler, connection):
        if recall_id is not None:
            recall = scheduler.stop_run(recall_id, reason=reason, after_stop=after_stop, connection=connection)
            if target.as_json:
                print_json(recall)
            elif recall.run_id is None or recall.status != "running":
                click.echo(f"recall {recall.id} does not run: nothing to stop")
            else:
                said = f"told run {recall.run_id} of recall {recall.id} in session {recall.session_id} to stop"
                click.echo(f"{said}: {_AFTERWARDS[after_stop]}")
            return
        if user is not None:
            must_be_sure(target, connection, "stop", statuses=["running"], user=user, yes=yes)
        changed = scheduler.stop_runs(
            session_id=session, user_id=user, reason=reason, after_stop=after_stop, connection=connection
        )
        print_changed(
            target,
            connection,
            changed,
            clock(connection),
            done="told to stop:",
            nothing="no run that was not told so already",
            session=session,
            user=user,
        )
