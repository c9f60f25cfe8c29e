"""The command line: arguments in, one call of the scheduler, the schema, a worker or the doctor, and its answer out.

People get tables and sentences, programs get JSON (`--json`) and exit codes. Errors are one line, never a traceback.
Here is only which verbs there are; it must not know what one of them does.
"""

from __future__ import annotations

from pgrecall.cli import (
    again,
    auditing,
    change,
    deliver,
    hold,
    host,
    look,
    operate,
    pausing,
    retention,
    roles,
    run,
    schedule,
    setting,
    tools,
    views,
)
from pgrecall.cli.app import cli

for _verb in (  # the order in which one meets them is the order of --help
    run.demo,
    operate.migrate,
    roles.roles,
    run.worker,
    schedule.schedule,
    views.status,
    look.list_,
    look.show,
    views.history,
    deliver.deliveries,
    change.cancel,
    change.skip,
    change.reschedule,
    again.run_now,
    again.retry,
    again.stop,
    pausing.pause,
    pausing.resume,
    hold.holds,
    hold.free,
    setting.settings,
    auditing.audit,
    retention.purge,
    tools.mcp,
    tools.token,
    host.use_sessions_table,
    host.use_own_sessions,
    host.adopt,
    operate.doctor,
):
    cli.add_command(_verb)


def main() -> None:
    """Runs the program on the arguments of this process."""
    cli(prog_name="pgrecall")
