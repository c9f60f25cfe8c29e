"""Where log events go: to structlog if the host has configured it, to `logging` if not."""

from __future__ import annotations

import subprocess
import sys

import pytest

_EVENT = """
from pgrecall.telemetry import logger
logger().info("recall_fired", recall_id="r1", run_id=7)
logger().bind(recall_id="r2").error("recall_failed", error="it said: \\"no\\"\\nand left")
"""


def _said(script: str) -> tuple[str, str]:
    """What a process says that has configured nothing but what the script configures: stdout and stderr."""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return ended.stdout, ended.stderr


def test_a_host_that_has_configured_no_logging_sees_warnings_and_errors_only() -> None:
    stdout, stderr = _said(_EVENT)
    assert stdout == ""
    assert stderr == 'recall_failed recall_id=r2 error="it said: \\"no\\"\\nand left"\n'


def test_a_host_that_uses_logging_gets_the_events_there_at_the_level_it_has_set() -> None:
    set_up = "import logging; logging.basicConfig(level=logging.INFO, format='%(levelname)s %(name)s %(message)s')"
    _, stderr = _said(set_up + _EVENT)
    assert stderr.splitlines()[0] == "INFO pgrecall recall_fired recall_id=r1 run_id=7"


@pytest.mark.parametrize(("level", "lines"), [("5", 2), ("15", 2), ("25", 1), ("'ERROR'", 1), ("99", 0)])
def test_any_level_of_logging_is_kept_to(level: str, lines: int) -> None:
    set_up = f"import logging; logging.basicConfig(level=1); logging.getLogger('pgrecall').setLevel({level})"
    assert len(_said(set_up + _EVENT)[1].splitlines()) == lines


def test_a_level_that_changes_while_the_worker_runs_counts_from_then_on() -> None:
    turns_on = "import logging; logging.basicConfig(format='%(message)s'); logging.getLogger().setLevel('INFO')"
    assert len(_said(_EVENT + turns_on + _EVENT)[1].splitlines()) == 3


def test_the_fields_are_attributes_of_the_record() -> None:
    set_up = "import logging; logging.basicConfig(level=logging.INFO, format='%(recall_id)s')"
    assert _said(set_up + _EVENT)[1] == "r1\nr2\n"


def test_a_host_that_has_configured_structlog_gets_the_events_there() -> None:
    set_up = "import structlog; structlog.configure(processors=[structlog.processors.JSONRenderer()])"
    stdout, stderr = _said(set_up + _EVENT)
    assert stderr == ""
    assert stdout.splitlines()[0] == '{"recall_id": "r1", "run_id": 7, "event": "recall_fired"}'


def test_structlogs_own_test_tool_captures_the_events() -> None:
    captures = "\nfrom structlog.testing import capture_logs\nwith capture_logs() as logs:"
    script = captures + _EVENT.replace("\n", "\n    ") + "\nprint([entry['event'] for entry in logs])"
    assert _said(script)[0] == "['recall_fired', 'recall_failed']\n"


@pytest.mark.parametrize(
    ("set_up", "heard"),
    [
        ("", False),
        ("logging.getLogger('pgrecall').setLevel('INFO')", True),
        ("structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))", False),
        ("structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))", True),
        # Loggers that know no levels, one that takes any name for an event, and one whose processors hear everything.
        ("structlog.configure(wrapper_class=structlog.BoundLogger)", True),
        (
            (
                "structlog.configure(wrapper_class=structlog.BoundLogger,"
                " logger_factory=structlog.testing.CapturingLoggerFactory())"
            ),
            True,
        ),
        (
            (
                "structlog.configure(wrapper_class=structlog.stdlib.BoundLogger,"
                " logger_factory=structlog.stdlib.LoggerFactory())"
            ),
            True,
        ),
    ],
)
def test_fields_of_an_event_are_made_wherever_somebody_may_hear_it(set_up: str, heard: bool) -> None:
    script = (
        f"import logging, structlog, structlog.testing; {set_up}\n"
        "from pgrecall.telemetry import is_heard, logger; print(is_heard(logger().bind(), logging.INFO))"
    )
    assert _said(script)[0] == f"{heard}\n"
