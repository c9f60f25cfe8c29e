"""Real workers, a real server and a real network, disturbed; then an account from the database alone.

What the parts are and how to run the long version: tests/faults/README.md.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from faults import accounting, clock, network, postgres
from faults.accounting import Verdict
from faults.fleet import Fleet, Start, wait_until
from faults.network import Network
from faults.producers import Habits, Producer
from faults.proxy import Proxy
from faults.soak import Plan, as_markdown, report, soak
from servers import Server, with_database

pytestmark = pytest.mark.slow

NewFleet = Callable[..., Fleet]


@pytest.fixture
def new_fleet(database: str, tmp_path: Path) -> Iterator[NewFleet]:
    """Makes the test's fleet on its database."""
    made: list[Fleet] = []

    def make(**settings: Any) -> Fleet:
        made.append(Fleet(database, tmp_path, **settings))
        return made[0]

    try:
        yield make
    finally:
        for fleet in made:
            fleet.__exit__(None, None, None)


def in_order(verdict: Verdict) -> None:
    """Nothing is as it must not be."""
    assert not verdict.violations, str(verdict)


def seconds_since(began: float, starts: list[Start]) -> float:
    """Until the last of them."""
    return max(start.at for start in starts) - began


# Dead workers


def test_the_ten_runs_of_a_killed_worker_start_elsewhere_long_before_its_lease_ends(new_fleet: NewFleet) -> None:
    fleet = new_fleet(concurrency=10, lease=30.0)
    doomed = fleet.start()
    fleet.ready(doomed)
    recalls = fleet.ask(10, seconds=[60, 0.1])
    fleet.started(10, doomed)
    heir = fleet.start()
    fleet.ready(heir)
    began = time.monotonic()
    doomed.kill()
    again = fleet.started(10, heir)
    seconds = seconds_since(began, again)
    print(f"kill -9 to the tenth restarted elsewhere: {seconds:.3f} s")
    assert seconds < 10
    assert sorted(start.recall_id for start in again) == sorted(recalls)
    in_order(fleet.account())


def test_the_runs_of_three_of_four_workers_killed_at_once_start_in_the_fourth(new_fleet: NewFleet) -> None:
    fleet = new_fleet(concurrency=3, lease=30.0)
    doomed = [fleet.start() for _ in range(3)]
    fleet.ready()
    fleet.ask(9, seconds=[60, 0.1])
    fleet.started(9)
    heir = fleet.start()
    fleet.ready(heir)
    began = time.monotonic()
    for process in doomed:
        process.kill()
    again = fleet.started(9, heir)
    print(f"kill -9 of three to the ninth restarted: {seconds_since(began, again):.3f} s")
    assert seconds_since(began, again) < 10
    in_order(fleet.account())


def test_the_runs_of_a_worker_killed_while_nobody_else_works_start_in_the_next_one(new_fleet: NewFleet) -> None:
    fleet = new_fleet(lease=2.0)
    doomed = fleet.start()
    fleet.ready()
    fleet.ask(3, seconds=[60, 0.1])
    fleet.started(3)
    doomed.kill()
    fleet.started(3, fleet.start())
    in_order(fleet.account())


# Workers that stand still


def test_a_worker_that_stood_still_for_longer_than_its_lease_does_nothing_more_for_its_runs(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(lease=2.0)
    frozen = fleet.start()
    fleet.ready()
    fleet.ask(4, seconds=[60, 0.5])
    fleet.started(4)
    heir = fleet.start()
    fleet.ready()
    frozen.freeze()
    fleet.started(4, heir)
    frozen.thaw()
    verdict = fleet.account()
    in_order(verdict)
    assert verdict.figures["outcomes"] == {"lost": 4, "success": 4}
    print(verdict)


def test_a_worker_that_stood_still_for_a_moment_keeps_its_runs(new_fleet: NewFleet) -> None:
    fleet = new_fleet(lease=5.0)
    frozen = fleet.start()
    fleet.ready()
    fleet.ask(4, seconds=3)
    fleet.started(4)
    fleet.start()
    fleet.ready()
    frozen.freeze()
    time.sleep(1)  # a fifth of the lease
    frozen.thaw()
    verdict = fleet.account()
    in_order(verdict)
    assert verdict.figures["outcomes"] == {"success": 4}


def test_an_agent_that_blocks_its_worker_for_longer_than_the_lease_keeps_its_claim(new_fleet: NewFleet) -> None:
    fleet = new_fleet(lease=1.5)
    blocked = fleet.start()
    fleet.ready()
    fleet.ask(1, seconds=3, block=True)
    fleet.started(1, blocked)
    fleet.start()
    verdict = fleet.account()
    in_order(verdict)
    assert verdict.figures["outcomes"] == {"success": 1}


# Broken connections


@pytest.mark.parametrize("seconds", [0.1, 3.0])
def test_a_worker_without_connections_for_a_while_never_runs_beside_another(
    new_fleet: NewFleet, database: str, seconds: float
) -> None:
    fleet = new_fleet(lease=3.0)
    with Proxy(database) as proxy:
        cut_off = fleet.start(proxy.dsn)
        fleet.ready()
        fleet.ask(4, seconds=[4, 0.2])
        fleet.started(4, cut_off)
        fleet.start()
        fleet.ready()
        proxy.refuse()
        proxy.cut()
        time.sleep(seconds)
        proxy.heal()
        verdict = fleet.account()
    in_order(verdict)
    print(f"cut for {seconds:g} s: {verdict.figures['outcomes']}")


def test_a_worker_whose_connections_are_replaced_at_once_keeps_its_runs(new_fleet: NewFleet, database: str) -> None:
    fleet = new_fleet(lease=6.0)
    reconnecting = fleet.start()
    fleet.ready()
    fleet.ask(4, seconds=4)
    fleet.started(4, reconnecting)
    fleet.start()
    fleet.ready()
    for _ in range(2):
        assert postgres.terminate_connections(database) > 0
        time.sleep(0.7)
    verdict = fleet.account()
    in_order(verdict)
    print(f"terminated twice: {verdict.figures['outcomes']}")


@pytest.mark.parametrize("way", ["stall", "abandon"])
def test_a_worker_cut_off_in_silence_for_longer_than_its_lease_never_runs_beside_another(
    new_fleet: NewFleet, database: str, way: str
) -> None:
    fleet = new_fleet(lease=2.0)
    with Proxy(database) as proxy:
        cut_off = fleet.start(proxy.dsn)
        fleet.ready()
        fleet.ask(4, seconds=[60, 0.5])
        fleet.started(4, cut_off)
        heir = fleet.start()
        fleet.ready()
        if way == "abandon":
            proxy.refuse()
        getattr(proxy, way)()
        fleet.started(4, heir)
        proxy.heal()
        in_order(fleet.account())


@pytest.mark.parametrize("way", ["drop", "reject"])
def test_a_worker_behind_a_firewall_for_longer_than_its_lease_never_runs_beside_another(
    new_fleet: NewFleet, database: str, way: str
) -> None:
    if reason := network.why_not():
        pytest.skip(reason)
    fleet = new_fleet(lease=2.0)
    with Network(database) as firewall:
        cut_off = fleet.start(firewall.dsn, prefix=firewall.prefix)
        fleet.ready()
        fleet.ask(4, seconds=[60, 0.5])
        fleet.started(4, cut_off)
        heir = fleet.start()
        fleet.ready()
        getattr(firewall, way)()
        fleet.started(4, heir)
        firewall.heal()
        in_order(fleet.account())
        assert cut_off.exit_code == 0


def test_a_worker_that_gets_no_answer_when_it_reconnects_stops_its_runs_before_others_start_them(
    server: Server, tmp_path: Path
) -> None:
    ours = "select pid from pg_stat_activity where application_name = 'pgrecall'"
    watching = "select count(*) from pg_stat_activity where state = 'active' and query like 'call pgrecall.watch%%'"
    with (
        postgres.crashable(tmp_path / "server", postgres.binaries_of(server)) as crashable,
        Fleet(crashable.dsn, tmp_path, lease=10.0) as fleet,
        psycopg.connect(crashable.dsn, autocommit=True, application_name="operator") as operator,
    ):
        cut_off = fleet.start()
        fleet.ready()
        fleet.ask(4, seconds=[60, 0.5])
        fleet.started(4, cut_off)
        connections = [pid for (pid,) in operator.execute(ours.encode())]
        heir = fleet.start()
        fleet.ready()
        wait_until(lambda: fleet.value(watching) == 2, "each to watch the other")
        with postgres.accepting_nobody(crashable):
            operator.execute("select pg_terminate_backend(pid) from unnest(%s) as pid", [connections])
            fleet.started(4, heir)
            wait_until(lambda: cut_off.evidence.read_text().count("end\t") == 4, "the runs to be stopped")
        in_order(fleet.account())


def test_runs_outlive_a_server_that_goes_away_in_any_way_and_comes_back(server: Server, tmp_path: Path) -> None:
    with postgres.crashable(tmp_path / "server", postgres.binaries_of(server)) as crashable:
        with Fleet(crashable.dsn, tmp_path, lease=5.0) as fleet:
            for _ in range(3):
                fleet.start()
            fleet.ready()
            for number, way in enumerate(postgres.WAYS):
                fleet.ask(8, seconds=1.0)
                fleet.started(8 * (number + 1))
                postgres.bring_down(crashable, way)
                crashable.start()
                wait_until(
                    lambda: not fleet.value("select count(*) from pgrecall.session_recalls where status = 'running'"),
                    "the runs to end",
                )
            verdict = fleet.account()
        in_order(verdict)
        print(f"restarted in three ways: {verdict.figures['outcomes']}")


# Clocks


def test_workers_an_hour_ahead_and_an_hour_behind_are_on_time_and_keep_their_leases(new_fleet: NewFleet) -> None:
    if reason := clock.why_not():
        pytest.skip(reason)
    fleet = new_fleet(lease=2.0, concurrency=4)
    wrong = [fleet.start(wrong_by=offset) for offset in (3600.0, -3600.0)]
    fleet.ready()
    fleet.ask(8, seconds=3, after=1)
    fleet.started(8)
    assert {start.process for start in fleet.starts()} == {process.name for process in wrong}
    shown = [process.events()[0]["timestamp"][11:13] for process in wrong]
    assert len(set(shown)) == 2, "the clocks are not wrong at all"
    verdict = fleet.account()
    in_order(verdict)
    assert verdict.figures["outcomes"] == {"success": 8}
    lateness = fleet.value("select extract(epoch from max(lateness)) from pgrecall.recall_runs")
    earliness = fleet.value("select extract(epoch from min(lateness)) from pgrecall.recall_runs")
    assert 0 <= earliness <= lateness < 5


# Graceful stop


def test_a_rolling_restart_under_load_loses_and_repeats_nothing(new_fleet: NewFleet, database: str) -> None:
    fleet = new_fleet(grace=10.0)
    old = [fleet.start() for _ in range(2)]
    fleet.ready()
    habits = Habits(sessions=40, run=1.0, ahead=2.0, recurring=0.0)
    with Producer(database, 1, 1, habits, lambda: 0.02), Producer(database, 2, 1, habits, lambda: 0.02):
        for process in old:
            fleet.started(len(fleet.starts()) + 3)
            process.tell_to_end()
            fleet.ready(fleet.start())
            process.wait(20)
    verdict = fleet.account()
    in_order(verdict)
    assert [process.exit_code for process in old] == [0, 0]
    assert set(verdict.figures["outcomes"]) <= {"success", "missed"}
    assert verdict.figures["repeated starts"] == 0


# All at once


def test_a_short_soak(server: Server, tmp_path: Path) -> None:
    plan = Plan(
        seed=3, recalls=200, seconds=14, kills=4, restarts=3, partitions=2, others=7, round_faults=8, calm=3.0,
        workers=4, lease=2.0, run=1.5, producers=6, drain=25.0,
    )  # fmt: skip
    began = time.monotonic()
    verdict = soak(plan, tmp_path, binaries=postgres.binaries_of(server), say=print)
    print(as_markdown(report(plan, verdict, time.monotonic() - began)))
    in_order(verdict)
    assert verdict.figures["recalls"] >= 200
    assert verdict.figures["recalls rolled back"] > 0
    assert set(verdict.figures["recalls by isolation level"]) == {
        "read committed", "repeatable read", "serializable",
    }  # fmt: skip


# The parts themselves: what cannot find a fault proves nothing


class Story:
    """A database with the account of a recall that was asked for and ran well, to be spoiled."""

    def __init__(self, dsn: str, connection: psycopg.Connection) -> None:
        self.dsn = dsn
        self._connection = connection
        self.ask("drop schema if exists faults cascade; truncate pgrecall.sessions, pgrecall.workers cascade")
        self.ask("select setval('pgrecall.run_ids', 100)")
        accounting.prepare(dsn, ["s1"])
        (self.recall_id,) = accounting.ask(dsn, "s1")
        self.run_id = int(self.ask("select run_id from pgrecall.claim('w', 5) where run_id is not null"))
        self.evidence("start", 1.0)
        self.evidence("end", 2.0)
        self.ask(f"select accepted from pgrecall.finish('{self.recall_id}', {self.run_id}, 'success', "
                 "reply => 'well', append_reply => true)")  # fmt: skip

    def evidence(self, kind: str, at: float, run_id: int | None = None, process: str = "w") -> None:
        self.ask(
            f"insert into faults.evidence select '{kind}', {at} * 1e9, '{process}', {run_id or self.run_id}, 1, "
            f"'{self.recall_id}', 's1', trigger_at from faults.asked"
        )

    def ask(self, statement: str) -> Any:
        """Do something to it; the first value of an answer."""
        cursor = self._connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]

    def verdict(self) -> Verdict:
        return accounting.judge(self.dsn, lease=3.0)


@pytest.fixture(scope="module")
def storybook(server: Server, template: str, name_database: Iterator[str]) -> Iterator[str]:
    """One database for all stories, which are short."""
    name = next(name_database)
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"create database {name} template {template}".encode())
        yield with_database(server.dsn, name)
        admin.execute(f"drop database {name} with (force)".encode())


@pytest.fixture
def story(storybook: str) -> Iterator[Story]:
    with psycopg.connect(storybook, autocommit=True) as connection:
        yield Story(storybook, connection)


def test_an_account_in_order_is_found_in_order(story: Story) -> None:
    verdict = story.verdict()
    in_order(verdict)
    assert verdict.figures["outcomes"] == {"success": 1}
    assert verdict.figures["recalls"] == verdict.figures["runs begun"] == 1


_ANOTHER_RUN = """
    insert into pgrecall.recall_runs
        (id, recall_id, session_id, nominal_at, started_at, finished_at, attempt, outcome, reason)
    select {id}, recall_id, session_id, nominal_at, started_at, finished_at, {attempt}, '{outcome}', {reason}
    from pgrecall.recall_runs
"""


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        ("update pgrecall.session_recalls set status = 'pending'", "a committed recall that has not ended"),
        ("delete from pgrecall.session_recalls", "a committed recall that has not ended"),
        ("delete from pgrecall.recall_runs", "an occurrence that did not end exactly once"),
        (
            _ANOTHER_RUN.format(id=1000, attempt=2, outcome="success", reason="null"),
            "an occurrence that did not end exactly once",
        ),
        (
            _ANOTHER_RUN.format(id=1000, attempt=2, outcome="success", reason="null"),
            "a repeated start that no recorded loss explains",
        ),
        (
            _ANOTHER_RUN.format(id=50, attempt=1, outcome="error", reason="'why'"),
            "a run that ended in a way for which there was no reason",
        ),
        ("update pgrecall.recall_runs set nominal_at = nominal_at + interval '1 s'",
         "a row in the ledger that nobody asked for"),
        ("insert into faults.rolled_back select id from pgrecall.session_recalls",
         "a recall that was rolled back and yet is there or ran"),
        ("delete from faults.asked", "a run that began without anybody having asked for it"),
        ("update faults.evidence set run_id = 1000", "a run that began and is not in the ledger"),
        ("insert into faults.evidence select * from faults.evidence", "a run that began twice"),
        ("delete from faults.evidence where kind = 'end'", "a success of a run that did not end"),
        ("delete from pgrecall.session_messages where role = 'system'",
         "an occurrence whose message is not in its session exactly once"),
        ("update pgrecall.session_messages set id = 'twice' where role = 'system'",
         "a message in a session that no run has put there"),
        ("delete from pgrecall.session_messages where role = 'assistant'",
         "a success without its reply in the session"),
        ("update pgrecall.sessions set run_id = 7", "a session that is still taken"),
        ("update pgrecall.session_recalls set run_id = 7, worker_id = 'w', claimed_at = now(), nominal_at = now()",
         "a recall that is still claimed"),
        ("insert into faults.processes values ('w', 0, true, 5, null, false, 0)",
         "a worker that ended although nobody ended it"),
    ],
)  # fmt: skip
def test_the_account_finds(story: Story, spoil: str, found: str) -> None:
    story.ask(spoil)
    assert found in story.verdict().violations


def overlapping(story: Story, *, second_starts: float) -> None:
    story.ask(_ANOTHER_RUN.format(id=story.run_id - 1, attempt=1, outcome="lost", reason="'its worker died'"))
    story.evidence("start", 0.0, run_id=story.run_id - 1, process="v")
    story.evidence("step", second_starts, run_id=story.run_id - 1, process="v")
    story.evidence("end", second_starts, run_id=story.run_id - 1, process="v")


@pytest.mark.parametrize(("end_of_the_first", "overlap"), [(0.9, False), (1.1, True), (3.0, True)])
def test_the_account_finds_runs_of_a_session_at_once(story: Story, end_of_the_first: float, overlap: bool) -> None:
    overlapping(story, second_starts=end_of_the_first)
    assert ("two runs of a session at once" in story.verdict().violations) == overlap


@pytest.mark.parametrize(
    ("cause", "stopped", "continued", "excused"),
    [
        (
            "SIGSTOP",
            0.1,
            2.9,
            True,
        ),  # its process stood still when the other one began, and it ended at once after that
        ("starved", 0.1, 2.9, True),
        ("held", 0.1, 2.9, False),  # by itself
        ("SIGSTOP", 0.1, 2.0, False),  # it went on for a second
        ("SIGSTOP", 1.5, 2.9, False),  # the other one had begun before
        ("SIGSTOP", 0.1, 0.4, False),  # it executed again long before the other one began
    ],
)
def test_a_run_in_a_process_that_stood_still_is_judged_by_what_it_does_afterwards(
    story: Story, cause: str, stopped: float, continued: float, excused: bool
) -> None:
    overlapping(story, second_starts=3.0)
    story.ask(f"insert into faults.pauses values ('v', '{cause}', {stopped} * 1e9, {continued} * 1e9)")
    assert ("two runs of a session at once" not in story.verdict().violations) == excused


def test_a_run_without_an_end_ended_with_its_process(story: Story) -> None:
    overlapping(story, second_starts=0.5)
    story.ask("delete from faults.evidence where process = 'v' and kind = 'end'")
    story.ask("insert into faults.processes values ('v', 0, true, 0.9 * 1e9, 0.9 * 1e9, false, -9)")
    in_order(story.verdict())


def test_the_account_knows_how_long_a_rescue_took(story: Story) -> None:
    overlapping(story, second_starts=0.5)
    story.ask("delete from faults.evidence where process = 'v' and kind = 'end'")
    story.ask("insert into faults.processes values ('v', 0, true, 0.9 * 1e9, 0.75 * 1e9, false, -9, null)")
    rescues = story.verdict().figures["kill to the last of its runs started elsewhere, s"]
    assert rescues["with no fault of another kind at the time"] == {"n": 1, "p50": 0.25, "p99": 0.25, "max": 0.25}


class Echo:
    """A server that answers with what it is told, and ends a connection when it is told to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        host, port = self._listener.getsockname()
        self.dsn = f"host={host} port={port}"
        self.ends: list[str] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._answer, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1000):
                    connection.sendall(data)
                self.ends.append("closed")
                connection.sendall(b"bye")
            except OSError as error:
                self.ends.append(type(error).__name__)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.close()


def call(proxy: Proxy) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=0.5)
    client.sendall(b"one")
    return client


def test_the_proxy_forwards_both_ways_and_the_end_of_a_connection(echo: Echo) -> None:
    with Proxy(echo.dsn) as proxy, call(proxy) as client:
        assert client.recv(100) == b"one"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b"bye"
        wait_until(lambda: echo.ends == ["closed"] and not proxy.connections, "the end of the connection")


def test_the_proxy_cuts_at_both_ends_and_accepts_again(echo: Echo) -> None:
    with Proxy(echo.dsn) as proxy, call(proxy) as client:
        assert client.recv(100) == b"one"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(100)
        wait_until(lambda: echo.ends == ["ConnectionResetError"], "the server's end")
        with call(proxy) as again:
            assert again.recv(100) == b"one"


def test_the_proxy_stalls_and_delivers_later(echo: Echo) -> None:
    with Proxy(echo.dsn) as proxy, call(proxy) as client:
        assert client.recv(100) == b"one"
        proxy.stall()
        client.sendall(b"two")
        with pytest.raises(TimeoutError):
            client.recv(100)
        with call(proxy) as late:
            with pytest.raises(TimeoutError):
                late.recv(100)
            proxy.heal()
            assert late.recv(100) == b"one"
        assert client.recv(100) == b"two"


def test_the_proxy_refuses_and_accepts_again_at_the_same_port(echo: Echo) -> None:
    with Proxy(echo.dsn) as proxy, call(proxy) as client:
        assert client.recv(100) == b"one"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            call(proxy)
        client.sendall(b"two")
        assert client.recv(100) == b"two"
        proxy.heal()
        with call(proxy) as again:
            assert again.recv(100) == b"one"


def test_the_proxy_tells_the_server_nothing_of_connections_that_it_abandons(echo: Echo) -> None:
    with Proxy(echo.dsn) as proxy, call(proxy) as client:
        assert client.recv(100) == b"one"
        proxy.abandon()
        with pytest.raises(ConnectionResetError):
            client.recv(100)
        time.sleep(0.3)
        assert echo.ends == []
        proxy.heal()
        wait_until(lambda: echo.ends, "the server's end")


def test_the_proxy_half_closes(echo: Echo) -> None:
    with Proxy(echo.dsn) as proxy, call(proxy) as client:
        assert client.recv(100) == b"one"
        proxy.half_close("server")
        assert client.recv(100) == b"bye"
        assert echo.ends == ["closed"]


def test_the_proxy_delays(echo: Echo) -> None:
    with Proxy(echo.dsn) as proxy, call(proxy) as client:
        assert client.recv(100) == b"one"
        proxy.delay(0.1)
        began = time.monotonic()
        client.sendall(b"two")
        assert client.recv(100) == b"two"
        assert time.monotonic() - began > 0.19
