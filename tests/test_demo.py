"""The demo, as a visitor starts it: what it answers, what it leaves behind, what it says when something is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import pgrecall
from pgrecall import SettingsError, demo
from pgrecall.demo.agent import answer

DEADLINE = 60.0  # seconds; the demo itself gives up earlier, also on a slow machine
SOURCES = str(Path(next(iter(pgrecall.__path__))).parent)
# A shell starts what it puts into the background with SIGINT ignored, and so would be everything below it.
START = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pgrecall.demo import main
sys.exit(main(**json.loads(sys.argv[1])))
"""
FAILING_AGENT = """
async def agent(*, session_id: str, user_message: str) -> str:
    if session_id == "chloe-3":
        raise RuntimeError("out of tokens")
    return "done"
"""

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="the embedded PostgreSQL is for POSIX systems"),
    pytest.mark.timeout(4 * DEADLINE),  # a test waits for a demo, for its processes, and again after a failure
]


@dataclass(frozen=True)
class Place:
    """Where a demo runs: everything it makes goes into one directory, whose name its processes carry."""

    directory: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, **arguments: Any) -> subprocess.Popen[str]:
        path = os.pathsep.join([SOURCES, str(self.directory)])
        process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.directory,
            env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(self.directory)},
        )
        self.started.append(process)
        return process

    def run(self, **arguments: Any) -> tuple[int, str, str]:
        process = self.start(**arguments)
        output, errors = process.communicate(timeout=DEADLINE)
        return process.returncode, output, errors

    def processes(self) -> list[str]:
        """The command lines of all processes that name the directory: the server and, by its DSN, each worker."""
        return [line for line in command_lines() if str(self.directory) in line]

    def workers(self) -> list[str]:
        return [line for line in self.processes() if " worker " in line]

    def assert_clean(self) -> None:
        # The server's supervisor, which removes the server's directory, may outlive the demo by a moment.
        wait_until(lambda: not self.processes(), lambda: f"still running: {self.processes()}")
        assert [path.name for path in self.directory.iterdir() if path.name.startswith("pgrecall-")] == []


def command_lines() -> list[str]:
    """The command lines of all processes: from /proc, because a bare Linux has no ps; elsewhere ps is always there."""
    if sys.platform != "linux":
        listed = subprocess.run(["ps", "-A", "-ww", "-o", "command="], capture_output=True, text=True, check=True)
        return listed.stdout.splitlines()
    lines = []
    for place in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # no process, or one that has ended meanwhile
            lines.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return lines


def wait_until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


@pytest.fixture
def place() -> Iterator[Place]:
    # Not tmp_path: the path of the server's socket must be short, and the server's account must get there.
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        place = Place(Path(directory))
        yield place
        for process in place.started:  # after a failed test: let it clean up
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=DEADLINE)


def test_the_demo_agent_answers_to_the_message_and_not_to_what_stands_below_it() -> None:
    told = "[Scheduled recall] Ask: has it finished?\n\nThis message comes from a schedule.\nAttempt: 1 of 3"
    history = [
        {"role": "user", "content": "I am Ada. Come back to me about the nightly backup."},
        {"role": "system", "content": told},
    ]
    assert answer(history) == "Ada, about the nightly backup: has it finished?"


def test_every_recall_fires_although_a_worker_is_killed(place: Place) -> None:
    code, output, errors = place.run(workers=2, recalls=8, seconds=4, json=True)

    assert (code, errors) == (0, "")
    figures = json.loads(output)
    assert figures["all_fired"]
    assert (figures["scheduled"], figures["fired"], figures["failed"]) == (8, 8, 0)
    assert (figures["lost"], figures["fired_twice"], figures["missing"]) == (0, 0, [])
    # The rescued runs stand apart, and each was restarted on another worker.
    assert figures["killed_runs"] == len(figures["rescued"]) >= 1
    assert all(rescue["lost_on"] == figures["killed_worker"] for rescue in figures["rescued"])
    assert all(rescue["restarted_on"] != figures["killed_worker"] for rescue in figures["rescued"])
    assert figures["lateness_runs"] == 8 - len(figures["rescued"])
    assert figures["lateness_p50_ms"] <= figures["lateness_p99_ms"] <= figures["lateness_max_ms"]
    # Outcomes that come together are told together.
    sent = figures["worker_statements"]
    assert 1 <= sent.get("finish_unobstructed", 0) + sent.get("finish", 0) <= 2 * 8
    assert figures["statements_per_fired"] > 0
    place.assert_clean()


def test_a_recall_that_does_not_fire_is_named_and_changes_the_exit_code(place: Place) -> None:
    (place.directory / "failing.py").write_text(FAILING_AGENT)

    code, output, errors = place.run(workers=2, recalls=6, seconds=1, agent="failing:agent")

    assert (code, errors) == (1, "")
    assert "chloe-3 error on w" in output
    assert "RuntimeError: out of tokens" in output
    assert "Did not fire: chloe-3" in output
    assert "\x1b" not in output, "a pipe gets no colours and no cursor movements"
    assert max(map(len, output.splitlines())) <= 100
    place.assert_clean()


def test_an_agent_that_cannot_be_loaded_ends_the_demo_with_the_reason(place: Place) -> None:
    code, _, errors = place.run(workers=2, recalls=6, seconds=1, agent="nowhere:agent")

    assert code == 1
    assert "ended by itself" in errors
    assert "nowhere" in errors
    place.assert_clean()


def test_an_interrupted_demo_leaves_nothing_running(place: Place) -> None:
    process = place.start(workers=2, recalls=6, seconds=30)
    wait_until(lambda: len(place.workers()) == 2, lambda: f"running: {place.processes()}")

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE)

    assert process.returncode == 130
    assert "interrupted" in errors
    place.assert_clean()


@pytest.mark.parametrize(("name", "value"), [("workers", 1), ("recalls", 5), ("seconds", 0.5)])
def test_numbers_too_small_to_show_anything_are_refused(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"{name} is {value}, but the demo needs at least"):
        demo.main(**{name: value})  # type: ignore[arg-type]
