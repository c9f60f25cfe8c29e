"""The previous releases as they were: their wheels, a database that each of them left, and what their clients use.

`make_previous.py` makes the files of a release, in a folder of its version beside this module.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Previous:
    """A release of the past.

    Attributes:
        version: Of the package, such as 0.1.0.
    """

    version: str

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return HERE / self.version

    @property
    def wheel(self) -> Path:
        """Its package, which Python imports as it is."""
        return self.folder / f"pgrecall-{self.version}-py3-none-any.whl"

    @property
    def data(self) -> str:
        """SQL that fills a database with its schema; see `make_previous.fill` for what is in it."""
        return (self.folder / "data.sql").read_text(encoding="utf-8")

    @property
    def surface(self) -> dict[str, Any]:
        """What its clients use, see `surface.py`."""
        found: dict[str, Any] = json.loads((self.folder / "surface.json").read_text(encoding="utf-8"))
        return found

    @property
    def environment(self) -> dict[str, str]:
        """For a Python that shall import this release."""
        return os.environ | {"PYTHONPATH": str(self.wheel), "PYTHONUNBUFFERED": "1"}

    def python(self, code: str, *arguments: str) -> str:
        """Run Python code with this release; return what it has written."""
        done = subprocess.run(
            # -P: not the checkout, which may be the working directory.
            [sys.executable, "-P", "-c", code, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, dsn: str) -> None:
        """Install its schema into an empty database."""
        self.python("import sys; from pgrecall import database; database.install(sys.argv[1])", dsn)

    def restore(self, dsn: str) -> None:
        """Install its schema into an empty database, with its data."""
        self.install(dsn)
        with psycopg.connect(dsn) as db:
            db.execute(self.data.encode())


#: All of them, oldest first.
RELEASES = [
    Previous(folder.name)
    for folder in sorted(
        (folder for folder in HERE.iterdir() if (folder / "surface.json").is_file()),
        key=lambda folder: [int(part) for part in folder.name.split(".")],
    )
]
