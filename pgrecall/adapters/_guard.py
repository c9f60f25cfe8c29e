"""The process between a worker and a command: it ends the command's process group when the worker says so, or is gone.

    python -I -S _guard.py LIFELINE AFTER_INTERRUPT AFTER_TERMINATE command …

LIFELINE is an inherited socket. Only the worker has its other end: the kernel closes it however the worker ends::

    worker ──lifeline──> guard ──> command (leader of a process group of its own) ──> its children

To the worker it says `started PID` and `ended EXIT_CODE`, or `failed WHY`. A byte from the worker asks for the end:
SIGINT, after AFTER_INTERRUPT seconds SIGTERM, after AFTER_TERMINATE more SIGKILL, each to the whole group. The end of
the lifeline is the end of the worker: SIGKILL at once, because the recall may run elsewhere by now. When the command
itself has ended, what it leaves behind in its group is ended as well.

It is started for every run, so it imports nothing that takes time to load.
"""

import math
import os
import select
import signal
import sys
import time

#: How often a group without its leader is looked at: its members are no children of ours, so nobody tells.
_LOOK_EVERY = 0.01

#: What this process or its Python handles in a way that a command would inherit.
_DEFAULT_AGAIN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)


class Guard:
    """Watches over a command until it, and what it has started in its group, is gone.

    Args:
        child: The command's process id, which is its group's too.
        lifeline: The socket to the worker.
        wakes: Readable when a child has ended.
        after_interrupt: Seconds between SIGINT and SIGTERM.
        after_terminate: Seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, child: int, lifeline: int, wakes: int, after_interrupt: float, after_terminate: float) -> None:
        self._child = child
        self._lifeline = lifeline
        self._wakes = wakes
        self._politely = [(signal.SIGINT, after_interrupt), (signal.SIGTERM, after_terminate), (signal.SIGKILL, 0.0)]
        self._plan: list[tuple[signal.Signals, float]] | None = None  # signals to come, once there is a reason for any
        self._next_at = 0.0
        self._killed = False
        self._code: int | None = None
        self._news = select.poll()  # select() takes no socket beyond 1024, and the worker may have more than that
        self._news.register(lifeline, select.POLLIN)
        self._news.register(wakes, select.POLLIN)

    def watch(self) -> int:
        """Returns when all is over; the exit code as a shell says it: 128 and the number of the signal that killed."""
        while (code := self._ended_with()) is None:
            if self._plan and time.monotonic() >= self._next_at:
                number, patience = self._plan.pop(0)
                _signal(self._child, number)
                self._killed = number == signal.SIGKILL
                self._next_at = time.monotonic() + patience
            else:
                self._listen()
        return code if code >= 0 else 128 - code

    def _ended_with(self) -> int | None:
        """The command's exit code, when nothing is left in its group either."""
        if self._code is None:
            ended, status = os.waitpid(self._child, os.WNOHANG)
            if not ended:
                return None
            self._code = os.waitstatus_to_exitcode(status)
        # Once killed, what is still to be seen are zombies whose new parent is slow.
        if self._killed or not _signal(self._child, 0):
            return self._code
        if self._plan is None:
            self._plan = self._politely[1:]
        return None

    def _listen(self) -> None:
        """Waits for the next signal's time, a child's end or the worker, and does what the worker wants."""
        pause = max(0.0, self._next_at - time.monotonic()) if self._plan else None
        if self._code is not None:
            pause = _LOOK_EVERY
        ready = [number for number, _ in self._news.poll(None if pause is None else math.ceil(pause * 1000))]
        if self._wakes in ready:
            os.read(self._wakes, 4096)
        if self._lifeline in ready:
            if not _read(self._lifeline):
                self._news.unregister(self._lifeline)
                self._plan, self._next_at = self._politely[2:], 0.0
            elif self._plan is None:
                self._plan = self._politely[:]


def main(lifeline: int, after_interrupt: float, after_terminate: float, command: list[str]) -> None:
    """Runs the command and tells the worker."""
    os.set_inheritable(lifeline, False)  # noqa: FBT003 (it takes no keyword)
    wakes, woken = os.pipe()
    os.set_blocking(woken, False)
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
    _say(lifeline, f"ended {Guard(child, lifeline, wakes, after_interrupt, after_terminate).watch()}")


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
