"""`pgrecall demo`: a private PostgreSQL, real worker processes, a real agent, and one worker killed in the middle.

Everything it starts ends with it. What it shows is read from the ledger, `pgrecall.recall_runs`, not from the workers.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict
from json import dumps

import psycopg

from pgrecall.demo.plan import spread
from pgrecall.demo.processes import DemoError
from pgrecall.demo.story import DEMO_AGENT, perform
from pgrecall.demo.view import Screen
from pgrecall.embedded import EmbeddedPostgresError
from pgrecall.errors import RecallError, SettingsError

__all__ = ["DEMO_AGENT", "main"]

_RESERVE = 20.0  # seconds beyond the last recall after which the demo gives up


def main(
    *, workers: int = 3, recalls: int = 30, seconds: float = 15.0, json: bool = False, agent: str = DEMO_AGENT
) -> int:
    """Runs the demo and returns its exit code.

    Args:
        workers: Worker processes to start; one of them is killed.
        recalls: How many recalls to schedule.
        seconds: Over how long their times are spread; the demo takes about 8 s more.
        json: Print nothing but the figures, as one JSON object.
        agent: What the workers run, `module:attribute`; another one shows your own agent in the demo.

    Returns:
        0: every recall fired, each once. 1: something is missing, and the output says what. 130: interrupted.

    Raises:
        SettingsError: A number is too small for the demo to make sense.
    """
    for name, value, least in (("workers", workers, 2), ("recalls", recalls, 6), ("seconds", seconds, 1)):
        if value < least:
            raise SettingsError(f"{name} is {value}, but the demo needs at least {least}")
    screen = Screen(quiet=json)
    screen.introduction(workers, recalls, seconds)
    try:
        figures = perform(screen, workers, spread(recalls, seconds), agent, time.monotonic() + seconds + _RESERVE)
    except KeyboardInterrupt:
        _complain("interrupted; everything that the demo started has ended")
        return 130
    except (DemoError, EmbeddedPostgresError, RecallError, psycopg.Error, OSError, subprocess.TimeoutExpired) as error:
        _complain(f"error: {error}")
        return 1
    if json:
        sys.stdout.write(dumps(asdict(figures) | {"all_fired": figures.all_fired}) + "\n")
    else:
        screen.results(figures)
        screen.what_next()
    return 0 if figures.all_fired else 1


def _complain(message: str) -> None:
    sys.stderr.write(f"{message}\n")
