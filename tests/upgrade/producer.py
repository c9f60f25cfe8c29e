"""A producer in a process of its own, with whatever release of pgrecall it can import: argv are the DSN and its name.

It says what it is, and then does what it is told by lines on stdin, answering each with a line of JSON: `run` uses the
methods of a scheduler again and again until the next line; the end of stdin ends it, whatever it is at.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pgrecall


def once(scheduler: pgrecall.SyncRecallScheduler, session_id: str) -> str:
    """Use what a producer uses; return the id of the recall that shall fire."""
    now = datetime.now(UTC)
    scheduler.schedule_recall(
        session_id=session_id, additional_context_message="another day", trigger_at=now + timedelta(days=1)
    )
    assert [one.status for one in scheduler.list_recalls(session_id=session_id, limit=1)] == ["pending"]
    assert scheduler.get_pending_session_ids([session_id]) == {session_id}
    assert scheduler.cancel_recall(session_id)
    scheduler.schedule_recall(
        session_id=session_id, additional_context_message="hourly", trigger_at=now + timedelta(days=1),
        interval_seconds=3600, metadata={"from": pgrecall.__version__},
    )  # fmt: skip
    assert scheduler.skip_next_recall(session_id)
    all_pending = scheduler.get_pending_recalls(before=now + timedelta(days=2))
    assert [one.call_type for one in all_pending if one.session_id == session_id] == ["recurring"]
    assert scheduler.cancel_recall(session_id)
    wanted = scheduler.schedule_recall(
        session_id=session_id, additional_context_message="now", trigger_at=now + timedelta(days=1)
    )
    scheduler.reschedule(wanted.id, now)
    return wanted.id


def main(dsn: str, name: str) -> None:
    """Do what stdin says."""
    ids: list[str] = []
    errors: list[str] = []
    with pgrecall.SyncRecallScheduler(dsn) as scheduler:
        stop = threading.Event()

        def use(number: int) -> None:
            try:
                ids.append(once(scheduler, f"{name}-{number}"))
            except Exception as error:  # noqa: BLE001 (the test wants to see every one)
                errors.append(f"{type(error).__name__}: {error}")
                stop.wait(0.1)  # a server that is gone is gone for a while

        def answer(**more: Any) -> None:
            print(json.dumps({"version": pgrecall.__version__, "ids": ids, "errors": errors, **more}), flush=True)

        number = 0
        answer()

        def again_and_again() -> None:
            nonlocal number
            while not stop.is_set():
                number += 1
                use(number)

        thread: threading.Thread | None = None
        for line in sys.stdin:
            if thread is not None:
                stop.set()
                thread.join()
                thread = None
            if line.strip() == "run":
                stop.clear()
                thread = threading.Thread(target=again_and_again, daemon=True)
                thread.start()
            answer()
        # Nobody reads the answers any more: what it is at needs no end, and may wait for a server that is gone.
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
