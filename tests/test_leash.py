"""Programs of the tests end with whoever started them, so that a test run that is killed leaves none behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from leash import LEASHED
from workerprocess import DEADLINE

TESTS = Path(__file__).parent

#: Starts a program, writes a line to it, and does nothing more.
STARTER = """
import json, subprocess, sys, time
program = subprocess.Popen(json.loads(sys.argv[1]), stdin=subprocess.PIPE)
program.stdin.write(b"run\\n")
program.stdin.flush()
time.sleep(600)
"""

#: Says that it has begun, and does not end.
FOREVER = "print('begun', flush=True)\nwhile True: pass\n"


@pytest.mark.parametrize(
    "command",
    [
        (*LEASHED, "forever"),
        # Of a server that is gone, which it tries again and again.
        (sys.executable, str(TESTS / "upgrade" / "producer.py"), "host=127.0.0.1 port=1", "name"),
    ],
    ids=["leashed", "producer"],
)
def test_a_program_ends_when_its_starter_is_killed(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "forever.py").write_text(FOREVER)
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, json.dumps(command)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline()
        starter.kill()
        # The program has this pipe, too: it ends when both have.
        starter.communicate(timeout=DEADLINE)
