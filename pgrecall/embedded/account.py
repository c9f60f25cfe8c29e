"""Whom the server's processes run as, and where that account can go: PostgreSQL refuses to be root."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from pgrecall.embedded.errors import EmbeddedPostgresError

__all__ = ["Account", "account_for", "short_directory"]

_LONGEST_SOCKET_PATH = 100  # bytes; the kernel's limit is 103 on macOS and 107 on Linux


class Account(NamedTuple):
    """Whom the server's processes run as; PostgreSQL refuses to be root."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    def options(self) -> dict[str, Any]:
        """What ``subprocess`` needs to start a process as this account, without the caller's PG* variables."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        options: dict[str, Any] = {"cwd": "/", "env": environment | {"LC_ALL": "C", "TZ": "UTC"}}
        if self.uid is not None:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return options

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a short command to its end; its exit status is the caller's to look at."""
        line = [*self.prefix, *map(str, command)]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        try:
            return subprocess.run(line, check=False, **pipes, **self.options())
        except PermissionError as error:  # the account cannot reach the program
            return subprocess.CompletedProcess(line, 126, "", str(error))

    def own(self, tree: Path) -> None:
        """Hand a tree that we made over to this account."""
        if self.uid is not None and self.gid is not None:
            for path in (tree, *tree.rglob("*")):
                os.chown(path, self.uid, self.gid, follow_symlinks=False)


def account_for(cluster: Path | None) -> Account:
    """Choose the account: ourselves, or what root can become without touching the machine's users or file modes."""
    if os.geteuid() != 0:
        return Account()
    if cluster and cluster.exists() and (owner := cluster.stat()).st_uid != 0:
        return Account(uid=owner.st_uid, gid=owner.st_gid)
    account = _service_account()
    mapping = ("unshare", "-U", f"--map-user={account.pw_uid}", f"--map-group={account.pw_gid}", "--")
    if _can_run(mapping):  # the server sees the other uid, its files stay root's, and 0700 parents are no obstacle
        return Account(prefix=mapping)
    return Account(uid=account.pw_uid, gid=account.pw_gid)


def _service_account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedPostgresError("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")


@functools.cache
def _can_run(prefix: tuple[str, ...]) -> bool:
    return bool(shutil.which(prefix[0])) and Account(prefix).run("true").returncode == 0


def short_directory(account: Account) -> str:
    """Choose where the scratch directory goes: the socket's path has a limit, and the account must get there."""
    for place in (tempfile.gettempdir(), "/tmp"):
        fits = len(os.fsencode(f"{place}/pgrecall-12345678/.s.PGSQL.65535")) < _LONGEST_SOCKET_PATH
        if fits and account.run("/bin/sh", "-c", 'test -x "$1"', "sh", place).returncode == 0:
            return place
    raise EmbeddedPostgresError("no temporary directory that the server can enter: set TMPDIR to a short path")
