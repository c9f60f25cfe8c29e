"""The first quarter of an hour of a new user, with the wheel and nothing of the checkout.

Run by the Python of a venv that has the wheel with its extra `embedded`, in an empty directory: migrate, schedule,
list, a worker that fires, and its clean end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Any

import pgrecall
from pgrecall.embedded import EmbeddedPostgres

PROGRAM = Path(sysconfig.get_path("scripts"), "pgrecall")
AGENT = """
async def agent(*, session_id, user_message):
    return f"woken in {session_id}: {user_message}"
"""


def answer(*arguments: str) -> Any:
    """Run the program and return its JSON."""
    done = subprocess.run([PROGRAM, *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=True, timeout=30)
    return json.loads(done.stdout)


def only(recalls: list[dict[str, Any]], session_id: str) -> dict[str, Any]:
    """The recall of a session, out of a listing."""
    (found,) = (recall for recall in recalls if recall["session_id"] == session_id)
    return found


def main() -> None:
    """Try everything once; an AssertionError or CalledProcessError says what is broken."""
    installed = Path(pgrecall.__file__)
    assert installed.is_relative_to(sysconfig.get_path("purelib")), f"{installed} is not the wheel's"
    Path("my_agent.py").write_text(AGENT)
    with EmbeddedPostgres() as postgres:
        os.environ["PGRECALL_DSN"] = postgres.dsn
        answer("migrate")
        answer("schedule", "tea", "the tea is ready", "--in", "1s", "--create-session")
        answer("schedule", "later", "not yet", "--in", "1d", "--create-session")
        assert only(answer("list"), "tea")["status"] == "pending"
        worker = subprocess.Popen([PROGRAM, "worker", "--agent", "my_agent:agent"])
        try:
            deadline = time.monotonic() + 30
            while (recall := only(answer("list"), "tea"))["status"] != "fired":
                assert worker.poll() is None, f"the worker ended with {worker.returncode}"
                assert time.monotonic() < deadline, recall
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(40)
        assert worker.returncode == 0, f"the worker ended with {worker.returncode}"
        assert only(answer("list"), "later")["status"] == "pending"
    print("the wheel works: migrated, scheduled, listed, fired")


if __name__ == "__main__":
    main()
