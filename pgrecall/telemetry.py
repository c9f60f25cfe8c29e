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

import logging
from functools import cache
from typing import Any, cast

import structlog

_NAME = "pgrecall"
_LEVELS = (logging.NOTSET, logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)


def logger() -> structlog.stdlib.BoundLogger:
    """The logger of the package, named `pgrecall`.

    A host that has configured structlog gets the events there. Another one gets them from `logging`, at the level and
    with the handlers that it has set there, as from any library: nobody wants two lines a run on stdout who has not
    asked for them.
    """
    if structlog.is_configured():
        return cast("structlog.stdlib.BoundLogger", structlog.get_logger(_NAME))
    return _for_logging(logging.getLogger(_NAME).getEffectiveLevel())


def is_heard(log: Any, level: int) -> bool:
    """Whether events of this level go anywhere from there; True where that cannot be told.

    For what happens thousands of times a second: making the fields of an event costs more than not logging it.

    Args:
        log: A bound logger.
        level: As in `logging`.
    """
    # Only of a logger that drops events before anybody sees them. One for `logging` shows them to its processors first,
    # and some loggers take any name for an event, so the class is asked.
    asks = None if isinstance(log, structlog.stdlib.BoundLogger) else getattr(type(log), "is_enabled_for", None)
    return asks is None or bool(asks(log, level))


@cache
def _for_logging(level: int) -> structlog.stdlib.BoundLogger:
    return cast(
        "structlog.stdlib.BoundLogger",
        structlog.wrap_logger(
            logging.getLogger(_NAME),
            processors=[_as_record],
            wrapper_class=structlog.make_filtering_bound_logger(
                # structlog knows no levels between these. What passes here `logging` still looks at.
                min((known for known in _LEVELS if known >= level), default=logging.CRITICAL)
            ),
        ).bind(),
    )


_fields = structlog.processors.LogfmtRenderer(bool_as_flag=False)


def _as_record(
    _logger: Any, _name: str, event_dict: structlog.typing.EventDict
) -> tuple[tuple[str], dict[str, dict[str, Any]]]:
    """The event's name and its fields as a text, and the fields as attributes of the record."""
    event = event_dict.pop("event")
    return (f"{event} {_fields(_logger, _name, event_dict)}".rstrip(),), {"extra": {**event_dict}}
