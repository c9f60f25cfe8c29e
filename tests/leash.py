"""Keeps a program on a leash: it ends with whoever started it, also if that was killed and could end nothing.

    python leash.py MODULE [ARGUMENT …]     # as python -m MODULE; ends when its standard input does

The starter keeps the other end of the pipe, and the system closes that when the starter is gone.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from pathlib import Path

#: Begins the command of a program on a leash. Its stdin must be a pipe.
LEASHED = (sys.executable, str(Path(__file__).resolve()))


def hold() -> None:
    """End this process, whatever it does, when its standard input ends."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="leash", daemon=True).start()


if __name__ == "__main__":
    hold()
    del sys.argv[0]
    sys.path[0] = str(Path.cwd())
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
