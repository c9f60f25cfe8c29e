"""The process between a worker and a command: it ends the command's process group when the worker says so, or is gone.

    python -I -S _guard.py LIFELINE AFTER_INTERRUPT AFTER_TERMINATE command …

LIFELINE is an inherited socket whose other end only the worker has, so the kernel closes it however the worker ends::

    worker ──lifeline──> guard ──> command (leader of a process group of its own) ──> its children

To the worker it says `started PID` and `ended EXIT_CODE`, or `failed WHY`. A byte from the worker asks for the end: SIGINT, after
AFTER_INTERRUPT seconds SIGTERM, after AFTER_TERMINATE more SIGKILL, each to the whole group. The end of the lifeline is
the end of the worker: SIGKILL at once, because the recall may run elsewhere by now. When the command itself has ended,
what it leaves behind in its group is ended as well.

It is started for every run, so it imports nothing that takes time to load.
"""

import os
import select
import signal
import sys
import time

#: How often a group without its leader is looked at: its members are no children of ours, so nobody tells.
_LOOK_EVERY = 0.01

#: What this process or its Python handles in a way that a command would inherit.
_DEFAULT_AGAIN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)


def main(lifeline: int, after_interrupt: float, after_terminate: float, command: list[str]) -> None:
    """Runs the command until it, and what it has started, is gone."""
    os.set_inheritable(lifeline, False)  # noqa: FBT003 (it takes no keyword)
    wakes, woken = os.pipe()
    os.set_blocking(woken, False)  # noqa: FBT003 (likewise)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever ends the command, this process is here to the last
    try:
        child = os.posix_spawnp(command[0], command, os.environ, setpgroup=0, setsigdef=_DEFAULT_AGAIN)
    except OSError as error:
        _say(lifeline, f"failed {command[0]}: {error.strerror}")
        return
    _say(lifeline, f"started {child}")

    politely = [(signal.SIGINT, after_interrupt), (signal.SIGTERM, after_terminate), (signal.SIGKILL, 0.0)]
    plan: list[tuple[signal.Signals, float]] | None = None  # the signals to come, once there is a reason for any
    next_at = 0.0
    killed = False
    code: int | None = None
    listening = [lifeline, wakes]
    while True:
        if code is None:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
        if code is not None and (killed or not _signal(child, 0)):
            break
        if code is not None and plan is None:
            plan = politely[1:]
        if plan and time.monotonic() >= next_at:
            number, patience = plan.pop(0)
            _signal(child, number)
            next_at = time.monotonic() + patience
            killed = number == signal.SIGKILL
            continue
        pause = max(0.0, next_at - time.monotonic()) if plan else None
        if code is not None:
            pause = _LOOK_EVERY
        ready, _, _ = select.select(listening, [], [], pause)
        if wakes in ready:
            os.read(wakes, 4096)
        if lifeline in ready:
            if not _read(lifeline):
                listening.remove(lifeline)
                plan, next_at = politely[2:], 0.0
            elif plan is None:
                plan = politely[:]
    # As a shell says it: 128 and the number of the signal that has killed it.
    _say(lifeline, f"ended {code if code >= 0 else 128 - code}")


def _signal(group: int, number: int) -> bool:
    """Sends a signal to a group; False if there is nobody in it who could get it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _read(lifeline: int) -> bytes:
    """What the worker says; nothing if it is gone."""
    try:
        return os.read(lifeline, 1)
    except ConnectionResetError:
        return b""


def _say(lifeline: int, what: str) -> None:
    """Tells the worker, if it is there; if it is not, the next look finds that."""
    try:
        os.write(lifeline, f"{what}\n".encode())
    except (BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
