"""Makes pgrecall/_sync of pgrecall/_async: the same code without async. With --check: only says what is not current."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "pgrecall" / "_async"
TARGET = ROOT / "pgrecall" / "_sync"

#: Beside what unasync knows by itself: __aenter__, AsyncIterator and the like, and AsyncName, which becomes SyncName.
NAMES = {"AsyncConnection": "Connection", "Hold": "SyncHold", "Line": "SyncLine"}


def wanted() -> dict[str, str]:
    """What the files in TARGET have to say, by their names."""
    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copytree(SOURCE, Path(place, SOURCE.name), ignore=shutil.ignore_patterns("__pycache__"))
        rule = unasync.Rule(f"/{SOURCE.name}/", f"/{TARGET.name}/", additional_replacements=NAMES)
        unasync.unasync_files([str(path) for path in copy.glob("*.py")], [rule])
        return {path.name: _finished(path) for path in Path(place, TARGET.name).iterdir()}


def _finished(path: Path) -> str:
    origin = (SOURCE / path.name).relative_to(ROOT)
    text = f"# Made by `make sync` of {origin}: change that file, not this one.\n{path.read_text()}"
    command = (sys.executable, "-m", "ruff", "format", "--stdin-filename", TARGET / path.name, "-")
    return subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    """Writes TARGET, or compares it."""
    made = wanted()
    found = {path.name: path.read_text() for path in TARGET.glob("*.py")}
    stale = sorted(name for name in made.keys() | found.keys() if made.get(name) != found.get(name))
    if "--check" in sys.argv[1:]:
        sys.exit(f"not what pgrecall/_async says, run `make sync`: {', '.join(stale)}" if stale else None)
    TARGET.mkdir(exist_ok=True)
    for name in stale:
        (TARGET / name).unlink(missing_ok=True)
        if name in made:
            (TARGET / name).write_text(made[name])


if __name__ == "__main__":
    main()
