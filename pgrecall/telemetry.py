"""The closed list of log events. The event name is the message; values are fields, never parts of a sentence.

event                fields
worker_started       worker_id, concurrency, lease_seconds, timeout_seconds, mode (listen, poll)
poll_mode            worker_id, poll_seconds, effect (what is worse than with LISTEN; once, at the start)
worker_stopped       worker_id, runs_given_back
recall_claimed       recall_id, run_id, session_id, nominal_at, lateness_ms, attempt
recall_deferred      recall_id, session_id, deferrals, reason
session_missing      recall_id, run_id, session_id
recall_fired         recall_id, run_id, session_id, seconds, status, next_trigger_at
recall_failed        recall_id, run_id, session_id, seconds, outcome, error, status, next_due_at
recall_rescheduled   recall_id, run_id, session_id, outcome, status, next_due_at (a run that ended without counting)
run_stopped          recall_id, run_id, session_id, reason (told to stop: cancelled, deleted, worker stopping)
lease_lost           worker_id, run_ids, reason
worker_died          worker_id, dead_worker_id, run_ids (found by this worker; the runs are due again)
lease_connection_lost      worker_id, error (debug without runs; they are stopped before the lease ends)
lease_connection_restored  worker_id, seconds
watch_lost           worker_id, error (debug: nobody is told at once if its neighbour dies)
watch_restored       worker_id, seconds
claim_unheard        worker_id, run_ids (claims whose answer was lost; given back)
outcome_refused      recall_id, run_id, session_id, outcome
reply_delivered      delivery_id, recall_id, session_id, attempt, response_status
delivery_failed      delivery_id, recall_id, session_id, attempt, response_status, error, next_at (null: given up)
deliveries_left_to_others  worker_id, reason (once; replies are waiting, and this worker cannot deliver)
webhooks_unsigned    url (once for each agent and worker that has no secret)
part_failed          recall_id, part, error (an optional part of an agent could not be opened)
tool_failed          session_id, run_id, error (a tool of the agent could not reach the database)
listener_lost        worker_id, error
listener_restored    worker_id, seconds
purged               worker_id, rows, seconds (deleted after the settings keep_…; once for all steps together)
purge_failed         worker_id, error (a warning, once an outage; tried again)
loop_error           worker_id, error (a look or an outcome failed; looks are tried again, and logged once an outage)
loop_restored        worker_id, seconds
"""

from __future__ import annotations

from typing import cast

import structlog


def logger() -> structlog.stdlib.BoundLogger:
    """The logger of the package, named `pgrecall`; configure structlog to shape or silence it."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger("pgrecall"))
