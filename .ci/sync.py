"""Makes each `_sync` of the `_async` beside it: the same code for threads. With --check: says which are not current."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

ROOT = Path(__file__).parent.parent

#: Beside what unasync knows by itself: __aenter__, AsyncIterator and the like, and AsyncName, which becomes SyncName.
NAMES = {
    "AsyncConnection": "Connection",
    "AsyncConnectionPool": "ConnectionPool",
    "AsyncExitStack": "ExitStack",
    "AsyncPipeline": "Pipeline",
    "Hold": "SyncHold",
    "Line": "SyncLine",
    "enter_async_context": "enter_context",
    "installed_schema_async": "installed_schema_sync",
    "run_async": "run_sync",
    "set_up_async": "set_up_sync",
}
RULES = [unasync.Rule("/_async/", "/_sync/", NAMES), unasync.Rule("/_async.py", "/_sync.py", NAMES)]


def synced(root: Path) -> dict[Path, str]:
    """What the modules for threads say, by their places in a tree."""
    paths = (path for path in (root / "pgrecall").rglob("*.py") if "_sync" in (path.parent.name, path.stem))
    return {path.relative_to(root): path.read_text() for path in paths}


def made() -> dict[Path, str]:
    """What they have to say."""
    with tempfile.TemporaryDirectory() as place:
        unmade = shutil.ignore_patterns("_sync", "_sync.py", "__pycache__")
        shutil.copytree(ROOT / "pgrecall", Path(place, "pgrecall"), ignore=unmade)
        unasync.unasync_files([str(path) for path in Path(place).rglob("*.py")], RULES)
        return {path: finished(path, text) for path, text in synced(Path(place)).items()}


def finished(path: Path, text: str) -> str:
    """With a first line that says where it comes from, and formatted."""
    origin = path.as_posix().replace("_sync", "_async")
    first = f"# Made by `make sync` of {origin}: change that, not this."
    command = (sys.executable, "-m", "ruff", "format", "--stdin-filename", ROOT / path, "-")
    done = subprocess.run(command, input=f"{first}\n{text}", stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def main() -> None:
    """Writes what is not current, or says it."""
    wanted, found = made(), synced(ROOT)
    stale = sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
    if "--check" in sys.argv[1:]:
        sys.exit(f"not what _async says, run `make sync`: {', '.join(map(str, stale))}" if stale else None)
    for path in stale:
        (ROOT / path).unlink(missing_ok=True)
        if path in wanted:
            (ROOT / path).parent.mkdir(exist_ok=True)
            (ROOT / path).write_text(wanted[path])


if __name__ == "__main__":
    main()
