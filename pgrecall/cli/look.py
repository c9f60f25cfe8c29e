"""The verbs that only look at recalls: `list` and `show`.

Changes nothing, and does not know how a recall is shown.
"""

from __future__ import annotations

import click

from pgrecall import database
from pgrecall.calls import Call, list_recalls
from pgrecall.cli import tables
from pgrecall.cli.answers import print_json
from pgrecall.cli.app import Verb, exclusive
from pgrecall.cli.target import EVERYTHING, Target, clock, current_pauses, current_settings, session_must_exist
from pgrecall.model import Recall


@click.command("list", cls=Verb)
@click.option("--session", help="Only this session's.")
@click.option("--user", help="Only recalls of sessions that this user owns.")
@click.option("--all", "everything", is_flag=True, help="Everything: the default.")
@click.option(
    "--status", multiple=True, type=click.Choice(list(tables.STATUS_STYLES)), help="Only these; may be repeated."
)
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
    exclusive({"--all": everything or None, "--user": user})
    exclusive({"--all": everything or None, "--session": session})
    with target.open() as (_, connection):
        call = list_recalls(
            session_id=session,
            user_id=user,
            is_admin=session is None and user is None,
            limit=EVERYTHING if status else limit,
            offset=0 if status else offset,
        )
        if status:
            outer = {"only_status": list(status), "only_limit": limit, "only_offset": offset}
            call = _RecallsByStatus(call.function, {**call.arguments, **outer}, Recall)
        recalls = database.run_sync(connection, call)
        if session is not None and not recalls:
            session_must_exist(connection, session)
        now = clock(connection)
        settings = current_settings(connection)
        pauses = current_pauses(connection, session=session, user=user)
    if target.as_json:
        print_json(recalls)
        return
    tables.print_pauses(settings, pauses, now)
    if recalls:
        tables.print_recalls(recalls, now)
        if len(recalls) == limit:
            click.echo(f"{limit} shown; for more: --offset {offset + limit}")
    else:
        click.echo("no recalls")


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


@click.command(cls=Verb)
@click.argument("recall_id")
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="At most so many runs.")
@click.pass_obj
def show(target: Target, *, recall_id: str, limit: int) -> None:
    """Show a recall, why it waits, and its runs.

    Also its next times, and where the replies went.
    """
    with target.open() as (scheduler, connection):
        recall = scheduler.get_recall(recall_id, connection=connection)
        runs = scheduler.get_runs(recall_id, limit=limit, connection=connection)
        deliveries = scheduler.get_deliveries(recall_id=recall_id, limit=limit, connection=connection)
        now = clock(connection)
        following = (
            [time.occurs_at for time in scheduler.upcoming(recall_id, connection=connection)]
            if recall.call_type == "recurring"
            else []
        )
        holds = scheduler.get_holds(recall.session_id, connection=connection)
        pauses = current_pauses(connection, session=recall.session_id)
        waits = tables.waits_for(recall, holds, current_settings(connection), pauses, now)
    if target.as_json:
        print_json({"recall": recall, "waits": waits, "next": following, "runs": runs, "deliveries": deliveries})
    else:
        tables.print_recall(recall, runs, following, waits, now)
        if deliveries:
            click.echo()
            tables.print_deliveries(deliveries, now)
