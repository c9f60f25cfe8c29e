"""A network of two namespaces: a worker lives in one, a proxy to the server listens in the other, iptables between.

Everything is inside the namespaces, also the interfaces, and goes away with them; the machine's own network is never
touched. It takes root on Linux.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from faults import proxy

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of <sched.h>
_TOOLS = ("ip", "iptables")
_numbers = itertools.count(1)


class NetworkUnavailable(RuntimeError):
    """This machine or user cannot have a network of its own; the message says why."""


def _command(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkUnavailable(f"{' '.join(words)}: {done.stderr.strip() or f'exit code {done.returncode}'}")


@functools.cache
def why_not() -> str | None:
    """Why there can be no such network here; None if there can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces take root"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"not installed: {', '.join(missing)}"
    try:
        with Network("postgresql:///?host=/nowhere") as probed:
            probed.drop()
            probed.heal()
            probed.reject()
    except NetworkUnavailable as error:
        return str(error)
    return None


def _enter(namespace: str) -> None:
    """Move the thread, and nothing but it, to another network namespace."""
    libc: Any = ctypes.CDLL(None, use_errno=True)  # os.setns() is of Python 3.12
    with Path("/run/netns", namespace).open() as handle:
        if libc.setns(handle.fileno(), _NEW_NETWORK) != 0:
            raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")


class Network:
    """The two namespaces, and the proxy in between; a context manager.

    Args:
        dsn: The server.

    Raises:
        NetworkUnavailable: On entering.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        name = f"pgrecall-{os.getpid()}-{next(_numbers)}"
        self._here, self._there = f"{name}-s", f"{name}-w"
        self.proxy: proxy.Proxy

    @property
    def dsn(self) -> str:
        """The server, for a worker that lives here."""
        return self.proxy.dsn

    @property
    def prefix(self) -> list[str]:
        """The words before a command that make it live here; the process is the command's own."""
        return ["ip", "netns", "exec", self._there]

    def drop(self) -> None:
        """Lose every packet, both ways, and say nothing."""
        for chain in ("INPUT", "OUTPUT"):
            self._rule("-A", chain, "-j", "DROP")

    def reject(self) -> None:
        """Answer every packet of the worker's with a reset."""
        self._rule("-A", "OUTPUT", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")

    def heal(self) -> None:
        """Let everything through again."""
        self._rule("-F")

    def _rule(self, *words: str) -> None:
        _command(*self.prefix, "iptables", "-w", *words)

    def __enter__(self) -> Self:
        try:
            for namespace in (self._here, self._there):
                _command("ip", "netns", "add", namespace)
                _command("ip", "-n", namespace, "link", "set", "lo", "up")
            pair = ("link", "add", "way", "type", "veth", "peer", "name", "way", "netns", self._there)
            _command("ip", "-n", self._here, *pair)
            for namespace, address in ((self._here, "192.0.2.1/30"), (self._there, "192.0.2.2/30")):
                _command("ip", "-n", namespace, "address", "add", address, "dev", "way")
                _command("ip", "-n", namespace, "link", "set", "way", "up")
            self.proxy = proxy.Proxy(self._dsn, self._bound, "192.0.2.1").__enter__()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.proxy.__exit__(None, None, None)
        self._remove()

    def _remove(self) -> None:
        for namespace in (self._here, self._there):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)

    def _bound(self, host: str, port: int) -> socket.socket:
        """A socket in the proxy's namespace: it stays there, whoever uses it."""
        made: list[socket.socket | BaseException] = []

        def make() -> None:
            try:
                _enter(self._here)
                made.append(proxy.bound(host, port))
            except OSError as error:
                made.append(error)

        # A namespace is a property of a thread, and this one ends with its visit.
        visit = threading.Thread(target=make)
        visit.start()
        visit.join()
        if isinstance(made[0], BaseException):
            raise NetworkUnavailable(f"no socket in the namespace: {made[0]}") from made[0]
        return made[0]
