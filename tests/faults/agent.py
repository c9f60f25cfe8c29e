"""The agent in the worker processes: it does what the recall's metadata says and writes down what it does.

The evidence is a file of its own for each process, with the machine-wide monotonic clock, so it depends neither on the
database nor on anybody's wall clock. A line is one write to a file opened for appending: a process that is killed has
written it or not.

A second file tells of times in which no thread of Python's executed in the process: because the machine gave it no time
("starved"; nobody can stop a run in a process that does not execute), or because one thread kept all the others from it
("held": a call that blocks and does not let go of the interpreter's lock; no excuse, that). While it is stopped by
SIGSTOP it looks like one of the two.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import anyio

from pgrecall import current_recall

#: Seconds between two signs of life of a run.
STEP = 0.05
#: Seconds between two signs of life of the process, what counts as none, and how old the last look at the scheduler's
#: account may be.
_BEAT, _STALL, _LOOK = 0.02, 0.15, 0.2


def _waited() -> dict[str, int]:
    """For how many nanoseconds each thread of this process has waited for a processor; empty if nobody counts."""
    found = {}
    for task in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # it has just ended, or this is no Linux
            found[task.name] = int((task / "schedstat").read_text().split()[1])
    return found


class _Pulse:
    """Notes when no thread of this process could execute: a thread of its own that wakes up again and again."""

    def __init__(self, path: Path, process: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._process = process
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def _beat(self) -> None:
        last = looked = time.monotonic_ns()
        waited = _waited()
        while True:
            time.sleep(_BEAT)
            now = time.monotonic_ns()
            if now - last > _STALL * 1e9 or now - looked > _LOOK * 1e9:
                waited_now = _waited()
                longest = max((waited_now[task] - waited.get(task, 0) for task in waited_now), default=0)
                if now - last > _STALL * 1e9:
                    cause = "starved" if longest > (now - last) / 2 else "held"
                    os.write(self._file, f"{self._process}\t{cause}\t{last}\t{now}\n".encode())
                looked, waited = now, waited_now
            last = now


class Witness:
    """Runs for as long as `metadata.seconds` says: a number, or a list with one for each attempt.

    With `metadata.block` it blocks the event loop all the while.
    """

    def __init__(self) -> None:
        self._process = os.environ["FAULTS_PROCESS"]
        path = Path(os.environ["FAULTS_EVIDENCE"], f"{self._process}.evidence")
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        _Pulse(path.with_suffix(".stalls"), self._process)

    def _write(self, kind: str, *identity: object) -> None:
        fields = (kind, time.monotonic_ns(), self._process, *identity)
        os.write(self._file, ("\t".join(map(str, fields)) + "\n").encode())

    async def run(self, *, session_id: str, user_message: str) -> str:
        """Do what the metadata says."""
        recall = current_recall()
        assert recall is not None
        identity = (recall.run_id, recall.attempt, recall.recall_id, session_id, recall.nominal_at.isoformat())
        seconds = recall.metadata.get("seconds", 0)
        if isinstance(seconds, list):
            seconds = seconds[min(recall.attempt, len(seconds)) - 1]
        self._write("start", *identity)
        ends = time.monotonic() + seconds
        try:
            while (left := ends - time.monotonic()) > 0:
                if recall.metadata.get("block"):
                    time.sleep(min(STEP, left))  # noqa: ASYNC251 (that is the point)
                else:
                    await anyio.sleep(min(STEP, left))
                self._write("step", *identity)
        finally:
            self._write("end", *identity)
        return f"did {user_message}"


agent = Witness()
