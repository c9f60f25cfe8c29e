"""Waiting, inside a run, for somebody else to say how it ended: `report_run()`, in SQL, in Python or over HTTP."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from pgrecall import calls
from pgrecall.agents import CurrentRecall, GiveUp, RunResult
from pgrecall.model import Report

#: Seconds after which it looks all the same, in case the notification was lost.
_LOST_AFTER = 30.0


async def get_report(recall: CurrentRecall) -> RunResult | None:
    """What has been reported about this occurrence, also during an earlier try of it; None: nothing yet.

    Args:
        recall: The present run's `current_recall()`.

    Raises:
        GiveUp: That it has failed.
        psycopg.Error: The database cannot be reached.
    """
    found: list[Report] = await recall.scheduler.database.run(calls.get_report(recall.run_id))
    if not found:
        return None
    report = found[0]
    if report.error is not None:
        raise GiveUp(report.error)
    return RunResult(reply=report.reply, silent=report.silent, usage=report.usage, messages=report.messages)


async def wait_for_report(recall: CurrentRecall) -> RunResult:
    """Waits until somebody has reported how this run ended, and gives that, to be returned by the agent.

    For an agent that hands its work to somebody else. The run goes on meanwhile: its session stays taken, and its time
    limit counts.

    Args:
        recall: The present run's `current_recall()`.

    Raises:
        GiveUp: It was reported that the run has failed.
        psycopg.Error: The database cannot be reached.
    """
    state = recall._state  # noqa: SLF001 (ours)
    reported = state.reported = state.reported or asyncio.Event()
    while True:
        reported.clear()
        result = await get_report(recall)
        if result is not None:
            return result
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOST_AFTER):
                await reported.wait()
