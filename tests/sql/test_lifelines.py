"""Finding dead workers by their connections: what counts as a death, what does not, and who is told."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqltools import Doing, Ear, Row, add, claim, claim_one, finish, ledger, recall, row, session, value, wait_until

from pgrecall import schema
from pgrecall.embedded import EmbeddedPostgres

Connect = Callable[[], psycopg.Connection]


@pytest.fixture
def connect(database: str) -> Iterator[Connect]:
    """Open connections of the fresh database that are closed in the end."""
    opened: list[psycopg.Connection] = []

    def open_one() -> psycopg.Connection:
        opened.append(psycopg.connect(database, autocommit=True))
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.close()


def register(connection: psycopg.Connection, worker: str, lifeline: int | None = 1, grace: str = "100 ms") -> None:
    """Register a worker that holds a lifeline on this connection."""
    key = None if lifeline is None else secrets.randbits(63)
    lifelines = None if key is None else [key, None] if lifeline == 1 else [None, key]
    connection.execute(
        "select pgrecall.register_worker(%s, 10, reconnect_grace => %s::interval, lifelines => %s::bigint[])",
        [worker, grace, lifelines],
    )


def worker_row(db: psycopg.Connection, worker: str) -> Row | None:
    """Return a worker's row, if it has one."""
    found: Row | None = value(db, "select to_jsonb(w) from pgrecall.workers as w where id = %s", worker)
    return found


def outcome_of(db: psycopg.Connection, recall_id: str) -> list[tuple[str, str | None]]:
    """Return outcome and reason of each of the recall's ended runs."""
    return [(run["outcome"], run["reason"]) for run in ledger(db, recall_id)]


class Watcher:
    """A call of the procedure watch on a connection of its own."""

    def __init__(self, connection: psycopg.Connection, worker: str, linger: str = "1 minute") -> None:
        self.found: list[str] = []
        self.pid = connection.info.backend_pid
        connection.add_notice_handler(lambda notice: self.found.append(notice.message_detail or ""))
        self._connection = connection
        self._call = Doing(lambda: self._watch(worker, linger))
        self.returned = self._call.result

    def _watch(self, worker: str, linger: str) -> None:
        try:
            self._connection.execute("call pgrecall.watch(%s, %s::interval)", [worker, linger])
        except psycopg.Error as error:
            print(f"the watch of {worker} ended with {error!r}")  # closing its connection at the end of a test is one
            raise

    def waits(self, observer: psycopg.Connection) -> None:
        """Wait until it waits for a lifeline."""
        wait_until(
            lambda: value(observer, "select wait_event = 'advisory' from pg_stat_activity where pid = %s", self.pid),
            "the watch waits for a lifeline",
        )


@pytest.fixture
def db(connect: Connect) -> psycopg.Connection:
    """Where the tests look and write."""
    return connect()


def claimed_by(db: psycopg.Connection, worker: str, session_id: str = "s1") -> Row:
    """Let a worker claim a new recall."""
    add(db, session_id, trigger_at=value(db, "select now()"))
    return claim_one(db, worker)


def test_the_claims_of_a_worker_whose_connections_end_are_given_back_at_once(
    db: psycopg.Connection, connect: Connect
) -> None:
    life_1, life_2 = connect(), connect()
    register(connect(), "a")
    register(life_1, "b", 1)
    register(life_2, "b", 2)
    run = claimed_by(db, "b")
    watcher = Watcher(connect(), "a")
    watcher.waits(db)
    life_1.close()
    life_2.close()
    wait_until(lambda: recall(db, run["recall_id"])["status"] == "pending", "the recall is given back")
    assert outcome_of(db, run["recall_id"]) == [("lost", "its worker died")]
    assert session(db, "s1")["run_id"] is None
    assert worker_row(db, "b") is None
    assert not finish(db, run)["accepted"]
    wait_until(lambda: watcher.found, "the notice")
    assert watcher.found == [f'{{"run_ids": [{run["run_id"]}], "worker_id": "b"}}']


def test_the_sleepers_are_told_of_what_is_given_back(db: psycopg.Connection, connect: Connect, database: str) -> None:
    life = connect()
    register(connect(), "a")
    register(life, "b")
    claimed_by(db, "b")
    watcher = Watcher(connect(), "a")
    watcher.waits(db)
    claim(db, "a", up_to=0)  # what every sleeper did
    ear = Ear(database)
    life.close()
    wait_until(lambda: any(said.startswith("due ") for said in ear.heard()), "the announcement")
    ear.close()


def test_a_worker_that_keeps_one_of_its_two_lifelines_lives(db: psycopg.Connection, connect: Connect) -> None:
    life_1, life_2 = connect(), connect()
    register(connect(), "a")
    register(life_1, "b", 1)
    register(life_2, "b", 2)
    run = claimed_by(db, "b")
    watcher = Watcher(connect(), "a")
    watcher.waits(db)
    life_1.close()
    watched = "select (classid::bigint << 32 | objid::bigint) from pg_locks where pid = %s and not granted"
    kept = value(db, "select lifelines[2] from pgrecall.workers where id = 'b'")
    wait_until(lambda: value(db, watched, watcher.pid) == kept, "the watch waits for the other lifeline")
    assert recall(db, run["recall_id"])["run_id"] == run["run_id"]
    life_2.close()
    wait_until(lambda: recall(db, run["recall_id"])["status"] == "pending", "the recall is given back")


def test_a_worker_that_takes_a_lifeline_again_within_its_grace_lives(db: psycopg.Connection, connect: Connect) -> None:
    life = connect()
    register(connect(), "a")
    register(life, "b", grace="2 seconds")
    run = claimed_by(db, "b")
    watcher = Watcher(connect(), "a")
    watcher.waits(db)
    life.close()
    wait_until(
        lambda: value(db, "select wait_event = 'PgSleep' from pg_stat_activity where pid = %s", watcher.pid),
        "the watch gives it time",
    )
    register(connect(), "b")
    watcher.waits(db)
    assert recall(db, run["recall_id"])["run_id"] == run["run_id"]
    assert watcher.found == []


def test_a_worker_that_came_back_during_the_grace_has_its_whole_grace_again(
    db: psycopg.Connection, connect: Connect
) -> None:
    """It was gone, was there, and is gone again: the second time has not lasted for long yet."""
    first, second = connect(), connect()
    register(first, "b")
    run = claimed_by(db, "b")
    first.close()
    ((_, lifelines, _),) = wait_for_free(db)
    register(second, "b")
    assert db.execute("select * from pgrecall._free_lifelines('a')").fetchall() == []
    second.close()
    wait_for_free(db)
    assert value(db, "select pgrecall._end_dead_worker('b', %s)", lifelines) is None
    assert recall(db, run["recall_id"])["run_id"] == run["run_id"]


def wait_for_free(db: psycopg.Connection) -> list[Any]:
    """Wait until some worker holds no lifeline, and return who."""
    found: list[Any] = []

    def is_there() -> bool:
        found[:] = db.execute("select * from pgrecall._free_lifelines('a')").fetchall()
        return bool(found)

    wait_until(is_there, "the server has noticed")
    return found


def test_giving_lifelines_up_leaves_one_that_was_taken_meanwhile(db: psycopg.Connection, connect: Connect) -> None:
    life = connect()
    life.execute("select pgrecall.register_worker('b', 1, lifelines => '{1, null}')")
    assert value(db, "select pgrecall.give_up_lifelines('b', '{7, 8}')") is False
    assert value(db, "select pgrecall.give_up_lifelines('b', '{7, 1}')") is True
    assert value(db, "select incarnation is null and lifelines is null from pgrecall.workers") is True
    assert value(db, "select pgrecall.give_up_lifelines('unknown', '{7}')") is True


def test_lifelines_of_an_earlier_life_of_the_server_say_nothing(db: psycopg.Connection, connect: Connect) -> None:
    life = connect()
    register(connect(), "a")
    register(life, "b")
    run = claimed_by(db, "b")
    db.execute("update pgrecall.server_incarnation set id = gen_random_uuid()")
    life.close()
    Watcher(connect(), "a").returned()  # there is nobody to watch
    assert recall(db, run["recall_id"])["run_id"] == run["run_id"]


def test_a_worker_that_was_silent_before_its_connections_ended_is_left_to_its_lease(
    db: psycopg.Connection, connect: Connect
) -> None:
    life = connect()
    register(connect(), "a")
    register(life, "b")
    run = claimed_by(db, "b")
    db.execute("update pgrecall.workers set seen_at = seen_at - interval '21 seconds' where id = 'b'")
    watcher = Watcher(connect(), "a")
    watcher.waits(db)
    life.close()
    watcher.returned()  # nobody is left to watch
    assert watcher.found == []
    assert recall(db, run["recall_id"])["run_id"] == run["run_id"]
    left = worker_row(db, "b")
    assert left is not None
    assert (left["incarnation"], left["died_at"]) == (None, None)


def test_a_worker_without_lifelines_is_left_to_its_lease(db: psycopg.Connection, connect: Connect) -> None:
    register(connect(), "a")
    register(db, "b", lifeline=None)
    claimed_by(db, "b")
    Watcher(connect(), "a").returned()
    left = worker_row(db, "b")
    assert left is not None
    assert (left["incarnation"], left["lifelines"]) == (None, [None, None])


def test_several_that_die_at_once_are_all_found_by_one_that_lives(db: psycopg.Connection, connect: Connect) -> None:
    lives = [connect() for _ in range(4)]
    register(connect(), "c")
    for worker, life in zip("abde", lives, strict=True):
        register(life, worker, grace="1 second")
    runs = [claimed_by(db, worker, session_id=f"s {worker}") for worker in "abe"]
    watcher = Watcher(connect(), "c")
    watcher.waits(db)
    began = time.monotonic()
    for life in lives:
        life.close()
    wait_until(
        lambda: value(db, "select count(*) from pgrecall.session_recalls where status = 'pending'") == len(runs),
        "all are given back",
    )
    # One grace for all of them together, and not one for each.
    assert time.monotonic() - began < 2.5
    assert value(db, "select array_agg(id) from pgrecall.workers") == ["c"]


def test_an_idle_worker_that_dies_is_forgotten(db: psycopg.Connection, connect: Connect) -> None:
    life = connect()
    register(connect(), "a")
    register(life, "b")
    watcher = Watcher(connect(), "a")
    watcher.waits(db)
    life.close()
    wait_until(lambda: worker_row(db, "b") is None, "its row is gone")
    watcher.returned()


def test_a_worker_that_died_before_anybody_watched_is_found_by_the_first_that_does(
    db: psycopg.Connection, connect: Connect
) -> None:
    life = connect()
    register(life, "b")
    run = claimed_by(db, "b")
    life.close()
    register(connect(), "a")
    Watcher(connect(), "a").returned()
    assert outcome_of(db, run["recall_id"]) == [("lost", "its worker died")]


def test_what_somebody_has_locked_is_looked_for_again(db: psycopg.Connection, connect: Connect, database: str) -> None:
    life, other = connect(), connect()
    register(connect(), "a")
    register(life, "b")
    run = claimed_by(db, "b")
    ear = Ear(database)
    with other.transaction():
        other.execute("select from pgrecall.session_recalls for update")
        watcher = Watcher(connect(), "a")
        watcher.waits(db)
        life.close()
        wait_until(lambda: "due 0" in ear.heard(), "all are told to look")
        assert claim(db, "a").next_due_at is not None
        assert recall(db, run["recall_id"])["run_id"] == run["run_id"]
    assert claim_one(db, "a")["recall_id"] == run["recall_id"]
    ear.close()


def test_a_claim_of_a_worker_that_was_taken_for_dead_goes_by_its_lease_until_it_registers(
    db: psycopg.Connection, connect: Connect
) -> None:
    life = connect()
    register(connect(), "a")
    register(life, "b")
    life.close()
    Watcher(connect(), "a").returned()
    assert worker_row(db, "b") is None
    run = claimed_by(db, "b")
    back = worker_row(db, "b")
    assert back is not None
    assert back["incarnation"] is None
    register(connect(), "b")
    Watcher(connect(), "a", linger="0").waits(db)
    assert recall(db, run["recall_id"])["run_id"] == run["run_id"]


def test_a_worker_that_joins_is_announced_to_the_one_before_it(
    db: psycopg.Connection, connect: Connect, database: str
) -> None:
    ear = Ear(database)
    register(connect(), "a")
    assert ear.heard() == []  # it is alone
    register(connect(), "c")
    assert ear.heard() == ["watch a"]
    register(connect(), "b")
    assert ear.heard() == ["watch a"]
    register(connect(), "b", 2)
    assert ear.heard() == []  # it has joined already
    register(connect(), "0")
    assert ear.heard() == ["watch c"]  # a ring
    ear.close()


def test_the_others_are_told_when_a_lease_begins_and_not_at_every_claim(
    db: psycopg.Connection, connect: Connect, database: str
) -> None:
    register(connect(), "a")
    ear = Ear(database)
    claimed_by(db, "a", "s1")
    assert "watch" not in ear.heard()  # there is nobody else
    register(connect(), "b")
    claimed_by(db, "b", "s2")
    assert "watch" in ear.heard()
    claimed_by(db, "b", "s3")
    assert "watch" not in ear.heard()
    ear.close()


def test_a_watch_ends_when_nobody_had_a_lease_for_a_while(db: psycopg.Connection, connect: Connect) -> None:
    register(connect(), "a")
    register(connect(), "b")
    watcher = Watcher(connect(), "a", linger="0")
    watcher.waits(db)
    watcher.returned()


def test_a_watch_keeps_no_snapshot_for_long(db: psycopg.Connection, connect: Connect) -> None:
    register(connect(), "a")
    register(connect(), "b")
    claimed_by(db, "b")
    watcher = Watcher(connect(), "a")
    watcher.waits(db)
    begun = "select xact_start from pg_stat_activity where pid = %s"
    first = value(db, begun, watcher.pid)
    wait_until(lambda: value(db, begun, watcher.pid) not in {first, None}, "it has begun another transaction")


@pytest.mark.parametrize("way", ["restart", "crash"])
def test_a_server_that_comes_back_begins_another_life(way: str) -> None:
    def life(dsn: str) -> Any:
        with psycopg.connect(dsn, autocommit=True) as connection:
            schema.install(connection)
            told = {value(connection, "select pgrecall._incarnation()") for _ in range(2)}
            assert value(connection, "select count(*) from pgrecall.server_incarnation") == 1
        (only,) = told
        return only

    with EmbeddedPostgres() as postgres:
        before = life(postgres.dsn)
        if way == "restart":
            postgres.stop()
            postgres.start()
        else:
            # One backend that is killed makes the server restart all of them, without a new postmaster.
            with psycopg.connect(postgres.dsn, autocommit=True) as connection, pytest.raises(psycopg.OperationalError):
                connection.execute(f"copy (select) to program 'kill -9 {connection.info.backend_pid}'".encode())

        def has_another() -> bool:
            try:
                return bool(life(postgres.dsn) != before)
            except psycopg.OperationalError:  # it is still recovering
                return False

        wait_until(has_another, "another life of the server")


def test_registering_says_what_a_worker_is(db: psycopg.Connection) -> None:
    register(db, "a", lifeline=2)
    found = row(db, "select * from pgrecall.workers")
    assert found["incarnation"] == value(db, "select pgrecall._incarnation()")
    assert found["lifelines"][0] is None
    assert value(
        db,
        "select pid = pg_backend_pid() from pg_locks where locktype = 'advisory' and mode = 'ExclusiveLock' "
        "and (classid::bigint << 32 | objid::bigint) = %s",
        found["lifelines"][1],
    )
