"""What users install: the wheel holds the SQL, says its version, and works without the checkout."""

from __future__ import annotations

import email.message
import email.parser
import importlib
import inspect
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import psycopg
import pytest

import pgrecall

ROOT = Path(__file__).parent.parent


def _run(*command: str | Path, cwd: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def files(wheel: Path) -> list[str]:
    """The names of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    """The wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.BytesParser().parsebytes(archive.read(name))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a venv with the wheel, and its dependencies borrowed from the environment of the tests."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    _run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"),
        *("--disable-pip-version-check", "--no-cache-dir", wheel),
        cwd=home,
    )
    # A line in a .pth file adds a directory without its own .pth files, so an editable pgrecall is not found by it.
    borrowed = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    place = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip()
    Path(place, "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return home / "bin"


def test_the_wheel_holds_exactly_the_sql_of_the_repository(files: list[str]) -> None:
    listed = subprocess.run(["git", "ls-files", "sql"], cwd=ROOT, capture_output=True, text=True, check=False)
    expected = listed.stdout.split() or [str(path.relative_to(ROOT)) for path in (ROOT / "sql").rglob("*.sql")]
    assert {name for name in files if name.startswith("pgrecall/sql/")} == {f"pgrecall/{name}" for name in expected}


def test_the_wheel_says_that_it_is_typed(files: list[str]) -> None:
    assert "pgrecall/py.typed" in files


def test_the_wheel_holds_nothing_else(files: list[str]) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "pgrecall").rglob("*.py")} | {"pgrecall/py.typed"}
    assert {name for name in files if not name.startswith("pgrecall/sql/") and ".dist-info/" not in name} == modules


def test_the_licence_is_in_the_wheel(files: list[str], metadata: email.message.Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)


def test_the_version_is_the_packages(metadata: email.message.Message) -> None:
    assert metadata["Version"] == pgrecall.__version__


def test_an_installed_wheel_works_without_the_checkout(installed: Path, empty_database: str, tmp_path: Path) -> None:
    code = "import pgrecall.schema; print(pgrecall.__file__); print(pgrecall.schema.sql_root())"
    places = _run(installed / "python", "-c", code, cwd=tmp_path).split("\n")[:2]
    assert all(Path(place).is_relative_to(installed.parent) for place in places)

    _run(installed / "pgrecall", "migrate", cwd=tmp_path, PGRECALL_DSN=empty_database)
    with psycopg.connect(empty_database) as connection:
        version = connection.execute("select pgrecall.schema_version()").fetchone()
    assert version == (pgrecall.schema.SCHEMA_VERSION,)


PUBLIC = [name for name in pgrecall.__all__ if name != "__version__"]


def test_every_public_name_is_there_once() -> None:
    assert sorted(set(pgrecall.__all__)) == sorted(pgrecall.__all__)
    assert [name for name in pgrecall.__all__ if not hasattr(pgrecall, name)] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented(name: str) -> None:
    thing = getattr(pgrecall, name)
    text = thing.__doc__ or ""
    # A dataclass without a docstring gets its signature for one.
    assert text
    assert not text.startswith(f"{name}(")
    if inspect.isclass(thing):
        methods = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
        silent = [
            key
            for key, value in methods.items()
            if (inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod))
            and not inspect.getdoc(value)
        ]
        assert silent == []


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_says_where_to_import_it_from(name: str) -> None:
    thing = getattr(pgrecall, name)
    parts = thing.__module__.split(".")
    assert parts[0] == "pgrecall"
    assert not any(part.startswith("_") for part in parts)
    assert getattr(importlib.import_module(thing.__module__), name) is thing
