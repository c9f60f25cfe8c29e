"""A wrong time of day for a process: a library of a few lines, preloaded, that adds to what the system's clock says.

It is not libfaketime, because that (0.9.10) also translates the waits on the monotonic clock, and wrongly: with
FAKETIME_DONT_FAKE_MONOTONIC a threaded Python gets EINVAL from time.sleep() and stands still for up to two seconds now
and then; without, a lock's timeout never comes.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("wrong_clock.c")


@functools.cache
def why_not() -> str | None:
    """Why no process can have a wrong clock here; None if one can."""
    if sys.platform != "linux":
        return "preloading is for Linux"
    if shutil.which("cc") is None:
        return "no C compiler (cc) is installed"
    try:
        _library()
    except subprocess.CalledProcessError as error:
        return f"the C compiler refuses: {error.stderr.strip()}"
    return None


@functools.cache
def _library() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="pgrecall-clock-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    library = directory / "wrong_clock.so"
    command = ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def environment(seconds: float) -> dict[str, str]:
    """What a process must find in its environment to see the time of day so many seconds later; 0: nothing."""
    if not seconds:
        return {}
    return {"LD_PRELOAD": str(_library()), "WRONG_CLOCK": f"{seconds:.0f}"}
