"""Waking without polling: who is announced, the races that lose wake-ups elsewhere, and proof that each guard matters.

A race is a function that takes a database through a fixed order of steps and tells whether afterwards every sleeping
worker will wake in time. The same races must fail when one guard is taken out of the SQL.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import LiteralString

import psycopg
import pytest
from psycopg import IsolationLevel
from sqltools import (
    HOUR,
    MINUTE,
    SECOND,
    Claim,
    Doing,
    Ear,
    Row,
    add,
    add_session,
    call,
    change,
    claim,
    claim_one,
    due,
    finish,
    microseconds,
    recall,
    rows,
    session,
    set_clock,
    value,
    wait_until,
    wait_until_blocked,
)

from pgrecall._listener import Front

LOCK = 8099568234633718892
NOBODY_ARMED = 253402300800000000


def in_time(delta: timedelta) -> datetime:
    """Return a time relative to now; whole seconds make messages readable."""
    return datetime.now(UTC).replace(microsecond=0) + delta


@pytest.fixture
def connections(database: str) -> Iterator[Callable[[], psycopg.Connection]]:
    """Open autocommit connections that end with the test."""
    with ExitStack() as stack:

        def connect() -> psycopg.Connection:
            return stack.enter_context(psycopg.connect(database, autocommit=True))

        yield connect


@pytest.fixture
def producer(connections: Callable[[], psycopg.Connection]) -> psycopg.Connection:
    """A service that writes recalls; sessions s1 to s9 exist."""
    connection = connections()
    add_session(connection, *(f"s{number}" for number in range(1, 10)))
    return connection


@pytest.fixture
def ear(database: str) -> Iterator[Ear]:
    """Somebody who hears every message."""
    listener = Ear(database)
    yield listener
    listener.close()


def register(db: psycopg.Connection) -> int | None:
    """Return the register."""
    found: int | None = value(db, "select pg_sequence_last_value('pgrecall.armed_until')")
    return found


# Who is announced


def test_a_queue_with_nothing_in_it_leaves_the_register_at_announce_everything(producer: psycopg.Connection) -> None:
    """greatest() and least() ignore nulls: 'nothing is due' must not become 'everybody is armed already'."""
    assert claim(producer).next_due_at is None
    assert register(producer) in (None, NOBODY_ARMED)
    add(producer, "s1", at := in_time(HOUR))
    claim(producer)
    assert register(producer) == microseconds(at)
    producer.execute("delete from pgrecall.session_recalls")
    claim(producer)
    assert register(producer) == NOBODY_ARMED


def test_the_first_recall_is_announced(producer: psycopg.Connection, ear: Ear) -> None:
    assert claim(producer).settled
    add(producer, "s1", at := in_time(HOUR))
    assert ear.heard() == [due(at)]


def test_a_time_before_all_known_history_is_announced(producer: psycopg.Connection, ear: Ear) -> None:
    """Its microseconds since 1970 are negative, and the register cannot be."""
    claim(producer)
    add(producer, "s1", at := datetime(1, 1, 2, tzinfo=UTC))
    assert ear.heard() == [due(at)]
    assert claim(producer, up_to=0).settled
    add(producer, "s2", datetime(1, 1, 3, tzinfo=UTC))
    claim(producer, up_to=1)
    claim(producer, up_to=1)
    claim(producer, up_to=1)
    ear.heard()
    add(producer, "s3", at := datetime(1, 1, 2, tzinfo=UTC))
    assert ear.heard() == [due(at)]


@pytest.mark.parametrize(
    ("later_by", "announced"), [(-HOUR, True), (-timedelta(microseconds=1), True), (timedelta(0), False), (HOUR, False)]
)
def test_a_recall_is_announced_only_if_it_is_due_before_the_register(
    producer: psycopg.Connection, ear: Ear, later_by: timedelta, announced: bool
) -> None:
    add(producer, "s1", at := in_time(2 * HOUR))
    assert claim(producer).next_due_at == at
    ear.heard()
    add(producer, "s2", at + later_by)
    assert ear.heard() == ([due(at + later_by)] if announced else [])


def test_a_descending_bulk_insert_needs_at_most_two_messages(producer: psycopg.Connection, ear: Ear) -> None:
    claim(producer)
    add_session(producer, *(f"b{number}" for number in range(1, 1001)))
    at = in_time(1000 * HOUR)
    producer.execute(
        """insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)
        select 'b' || n, %s - n * interval '1 minute', 'go on' from generate_series(1, 1000) as n order by n""",
        [at],
    )
    assert ear.heard() == [due(at - MINUTE), "due 0"]


def test_a_descending_bulk_insert_at_repeatable_read_needs_at_most_two_messages(
    producer: psycopg.Connection, ear: Ear
) -> None:
    claim(producer)
    producer.isolation_level = IsolationLevel.REPEATABLE_READ
    at = in_time(100 * HOUR)
    with producer.transaction():
        for number in range(1, 10):
            add(producer, f"s{number}", at - number * MINUTE)
    assert ear.heard() == [due(at - MINUTE), "due 0"]


def test_an_ascending_bulk_insert_needs_one_message(producer: psycopg.Connection, ear: Ear) -> None:
    claim(producer)
    at = in_time(HOUR)
    with producer.transaction():
        for number in range(1, 10):
            add(producer, f"s{number}", at + number * MINUTE)
    assert ear.heard() == [due(at + MINUTE)]


def test_a_burst_within_a_second_needs_one_message(producer: psycopg.Connection, ear: Ear) -> None:
    """Separate transactions, and no worker has looked in between."""
    claim(producer)
    at = in_time(HOUR)
    for number in range(1, 10):
        add(producer, f"s{number}", at + number * timedelta(milliseconds=50))
    assert ear.heard() == [due(at + timedelta(milliseconds=50))]


def test_copy_is_announced(producer: psycopg.Connection, ear: Ear) -> None:
    claim(producer)
    at = in_time(HOUR)
    with producer.cursor().copy(
        "copy pgrecall.session_recalls (session_id, trigger_at, additional_context_message) from stdin"
    ) as copy:
        for number in range(1, 10):
            copy.write_row([f"s{number}", at + number * MINUTE, "go on"])
    assert ear.heard() == [due(at + MINUTE)]


def test_rows_of_one_statement_with_the_same_time_are_announced(producer: psycopg.Connection, ear: Ear) -> None:
    claim(producer)
    at = in_time(HOUR)
    producer.execute(
        """insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)
        values ('s1', %(at)s, 'go on'), ('s2', %(at)s, 'go on')""",
        {"at": at},
    )
    assert ear.heard() == [due(at)]


def test_an_upsert_is_announced_when_it_writes(producer: psycopg.Connection, ear: Ear) -> None:
    upsert: LiteralString = """insert into pgrecall.session_recalls (id, session_id, trigger_at,
        additional_context_message) values ('r', 's1', %s, 'go on') on conflict (id) """
    claim(producer)
    producer.execute(upsert + "do nothing", [at := in_time(2 * HOUR)])
    assert ear.heard() == [due(at)]
    claim(producer)
    producer.execute(upsert + "do nothing", [at - HOUR])
    assert ear.heard() == []
    producer.execute(upsert + "do update set trigger_at = excluded.trigger_at", [at - HOUR])
    assert ear.heard() == [due(at - HOUR)]
    producer.execute(upsert + "do update set trigger_at = excluded.trigger_at", [at + HOUR])
    assert ear.heard() == []


def test_an_update_is_announced_when_it_makes_a_recall_due_earlier(producer: psycopg.Connection, ear: Ear) -> None:
    name = add(producer, "s1", at := in_time(2 * HOUR))
    claim(producer)
    ear.heard()
    change(producer, name, trigger_at=at + HOUR)
    change(producer, name, internal_comment="just a note")
    assert ear.heard() == []
    change(producer, name, trigger_at=at - HOUR)
    assert ear.heard() == [due(at - HOUR)]


def test_a_recall_that_becomes_pending_again_is_announced(producer: psycopg.Connection, ear: Ear) -> None:
    name = add(producer, "s1", at := in_time(2 * HOUR))
    change(producer, name, status="cancelled")
    claim(producer)
    ear.heard()
    change(producer, name, status="pending")
    assert ear.heard() == [due(at)]


def test_cancel_delete_and_truncate_of_waiting_recalls_wake_nobody(producer: psycopg.Connection, ear: Ear) -> None:
    at = in_time(HOUR)
    names = [add(producer, f"s{number}", at) for number in range(1, 5)]
    ear.heard()
    change(producer, names[0], status="cancelled")
    producer.execute("delete from pgrecall.session_recalls where id = %s", [names[1]])
    producer.execute("delete from pgrecall.sessions where id = 's3'")
    assert ear.heard() == []
    producer.execute("truncate pgrecall.session_recalls")
    assert [message for message in ear.heard() if message.startswith("due")] == []


def test_cancel_delete_and_truncate_tell_runs_to_stop(producer: psycopg.Connection, ear: Ear) -> None:
    at = in_time(-MINUTE)
    names = [add(producer, f"s{number}", at) for number in range(1, 5)]
    run_ids = {run["recall_id"]: run["run_id"] for run in claim(producer).runs}
    ear.heard()
    change(producer, names[0], status="cancelled")
    assert ear.heard() == [f"stop {run_ids[names[0]]}"]
    producer.execute("delete from pgrecall.session_recalls where id = %s", [names[1]])
    assert ear.heard() == [f"stop {run_ids[names[1]]}"]
    producer.execute("delete from pgrecall.sessions where id = 's3'")
    assert ear.heard() == [f"stop {run_ids[names[2]]}"]
    producer.execute("truncate pgrecall.session_recalls")
    assert ear.heard() == ["stop all"]
    assert session(producer, "s4")["held_until"] is not None


def test_a_producer_that_is_refused_the_lock_says_so(
    producer: psycopg.Connection, connections: Callable[[], psycopg.Connection], ear: Ear
) -> None:
    """Old workers read a number with a sign, too."""
    worker = connections()
    with worker.transaction():
        assert claim(worker).settled
        add(producer, "s1", at := in_time(HOUR))
        assert ear.heard() == [f"due +{microseconds(at)}"]


def test_a_change_that_is_rolled_back_says_nothing(producer: psycopg.Connection, ear: Ear) -> None:
    claim(producer)
    with producer.transaction(force_rollback=True):
        add(producer, "s1", in_time(HOUR))
        producer.execute("set constraints all immediate")
    assert ear.heard() == []


def test_a_savepoint_that_is_rolled_back_does_not_silence_the_rest(producer: psycopg.Connection, ear: Ear) -> None:
    claim(producer)
    with producer.transaction():
        producer.execute("set constraints all immediate")
        with producer.transaction(force_rollback=True):
            add(producer, "s1", in_time(HOUR))
        add(producer, "s2", at := in_time(2 * HOUR))
    assert ear.heard() == [due(at)]


def test_a_decision_made_in_a_savepoint_that_is_rolled_back_is_made_again(
    producer: psycopg.Connection, ear: Ear
) -> None:
    claim(producer)
    with producer.transaction():
        add(producer, "s1", at := in_time(HOUR))
        with producer.transaction(force_rollback=True):
            producer.execute("set constraints all immediate")
    assert ear.heard() == [due(at)]


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_other_isolation_levels_read_the_present_register(
    producer: psycopg.Connection,
    connections: Callable[[], psycopg.Connection],
    ear: Ear,
    level: IsolationLevel,
) -> None:
    worker = connections()
    add(producer, "s1", at := in_time(2 * HOUR))
    producer.isolation_level = level
    with producer.transaction():
        producer.execute("select count(*) from pgrecall.session_recalls")
        worker.execute("delete from pgrecall.session_recalls")
        assert claim(worker).next_due_at is None
        ear.heard()
        add(producer, "s2", at + HOUR)
    assert ear.heard() == [due(at + HOUR)]
    assert claim(worker).next_due_at == at + HOUR
    with producer.transaction():
        add(producer, "s3", at + 2 * HOUR)
    assert ear.heard() == []


def test_rows_of_a_replication_session_are_announced(producer: psycopg.Connection, ear: Ear) -> None:
    claim(producer)
    producer.execute("set session_replication_role = replica")
    name = add(producer, "s1", at := in_time(2 * HOUR))
    assert ear.heard() == [due(at)]
    before = recall(producer, name)["updated_at"]
    change(producer, name, trigger_at=at - HOUR)
    assert recall(producer, name)["updated_at"] > before
    assert ear.heard() == [due(at - HOUR)]


def test_with_immediate_constraints_the_message_still_comes_with_the_commit(
    producer: psycopg.Connection, connections: Callable[[], psycopg.Connection], ear: Ear
) -> None:
    worker = connections()
    claim(worker)
    with producer.transaction():
        producer.execute("set constraints all immediate")
        add(producer, "s1", at := in_time(HOUR))
        assert ear.heard() == []
        assert not claim(worker).settled
    assert ear.heard() == [due(at)]
    assert claim(worker).settled


def test_two_transactions_of_one_connection_are_both_announced(producer: psycopg.Connection, ear: Ear) -> None:
    """What a transaction remembers having said ends with it."""
    claim(producer)
    add(producer, "s1", at := in_time(HOUR))
    claim(producer)
    producer.execute("delete from pgrecall.session_recalls")
    claim(producer)
    assert ear.heard() == [due(at)]
    add(producer, "s2", at + HOUR)
    assert ear.heard() == [due(at + HOUR)]


def test_a_producer_needs_no_right_to_read(producer: psycopg.Connection, server: object, ear: Ear) -> None:
    """The trigger looks at other rows with its owner's rights."""
    role = "recall_test_writer"
    claim(producer)
    producer.execute(
        f"""do $$ begin create role {role}; exception when duplicate_object or unique_violation then null; end $$;
        grant usage on schema pgrecall to {role};
        grant insert on pgrecall.session_recalls to {role};
        set role {role};""".encode()
    )
    producer.execute(
        """insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)
        values ('s1', %s, 'go on')""",
        [at := in_time(HOUR)],
    )
    producer.execute("reset role")
    assert ear.heard() == [due(at)]


def test_the_waiting_recalls_of_a_session_are_announced_when_it_is_freed(
    producer: psycopg.Connection, ear: Ear
) -> None:
    add(producer, "s1", in_time(-MINUTE))
    run = claim_one(producer)
    add(producer, "s1", at := in_time(-SECOND))
    assert len(claim(producer).deferred) == 1
    ear.heard()
    finish(producer, run)
    assert ear.heard() == [due(at)]


def test_a_plain_insert_holds_the_lock_only_while_it_commits(
    producer: psycopg.Connection, connections: Callable[[], psycopg.Connection]
) -> None:
    worker = connections()
    with producer.transaction():
        add(producer, "s1", in_time(HOUR))
        assert claim(worker).settled


# Who is told what is next


def others(db: psycopg.Connection, *names: str) -> None:
    """Add workers."""
    for name in names:
        call(db, "register_worker", worker_id=name, concurrency=1)


def told(messages: list[str]) -> list[tuple[int, str]]:
    """Return what workers have told the others: when, and who looks first."""
    words = [message.split() for message in messages if message.startswith("next ")]
    return [(int(when), name) for _, when, _, name in words]


def test_a_worker_alone_tells_nobody(producer: psycopg.Connection, ear: Ear) -> None:
    others(producer, "w1")
    add(producer, "s1", in_time(-SECOND))
    assert len(claim(producer, "w1").runs) == 1
    assert told(ear.heard()) == []


def test_a_worker_that_takes_what_was_due_tells_the_others_what_is_next(producer: psycopg.Connection, ear: Ear) -> None:
    others(producer, "w1", "w2")
    add(producer, "s1", in_time(-SECOND))
    add(producer, "s2", at := in_time(10 * SECOND))
    assert len(claim(producer, "w1").runs) == 1
    assert told(ear.heard()) == [(microseconds(at), "w1")]


def test_the_others_wake_for_the_lease_of_the_one_that_tells_them(producer: psycopg.Connection, ear: Ear) -> None:
    others(producer, "w1", "w2")
    add(producer, "s1", in_time(-SECOND))
    found = claim(producer, "w1")
    assert found.next_due_at is None
    until = value(producer, "select lease_until from pgrecall.workers where id = 'w1'")
    assert told(ear.heard()) == [(microseconds(until), "w1")]


def test_with_no_lease_and_nothing_due_the_others_may_sleep_for_ever(producer: psycopg.Connection, ear: Ear) -> None:
    others(producer, "w1", "w2")
    name = add(producer, "s1", in_time(-SECOND))
    claim(producer, "w1", up_to=0)
    change(producer, name, status="cancelled")
    claim(producer, "w1")
    assert told(ear.heard()) == [(NOBODY_ARMED, "w1")]


def test_nobody_is_told_while_something_is_due(producer: psycopg.Connection, ear: Ear) -> None:
    others(producer, "w1", "w2")
    add(producer, "s1", in_time(-SECOND))
    add(producer, "s2", in_time(-SECOND))
    claim(producer, "w1", up_to=1)
    assert told(ear.heard()) == []


def test_a_look_that_only_asks_tells_nobody(producer: psycopg.Connection, ear: Ear) -> None:
    others(producer, "w1", "w2")
    name = add(producer, "s1", in_time(-SECOND))
    claim(producer, "w1", up_to=0)
    change(producer, name, status="cancelled")
    claim(producer, "by hand", up_to=0)
    assert told(ear.heard()) == []


def test_when_the_one_that_takes_it_is_full_the_next_to_look_tells_and_nobody_else(
    producer: psycopg.Connection, ear: Ear
) -> None:
    others(producer, "w1", "w2", "w3")
    claim(producer, "w1")
    add(producer, "s2", at := in_time(10 * SECOND))
    claim(producer, "w1")
    add(producer, "s1", in_time(-SECOND))
    assert len(claim(producer, "w1", up_to=1).runs) == 1
    assert told(ear.heard()) == []
    claim(producer, "w2")
    claim(producer, "w3")
    assert told(ear.heard()) == [(microseconds(at), "w2")]


def test_nobody_is_told_by_a_transaction_that_has_announced_something_itself(
    producer: psycopg.Connection, ear: Ear
) -> None:
    """What it announces after that may be taken for told."""
    others(producer, "w1", "w2")
    add(producer, "s1", in_time(-SECOND))
    claim(producer, "w2", up_to=0)
    with producer.transaction():
        producer.execute("set constraints all immediate")
        name = add(producer, "s2", in_time(-MINUTE))
        change(producer, name, status="cancelled")
        claim(producer, "w1")
    assert told(ear.heard()) == []


# Sleepers: a model of what a worker does between two looks


class Timer:
    """When a worker wakes up after a settled look, and what it makes of the messages that it hears then."""

    def __init__(self, name: str, found: Claim) -> None:
        self._name = name
        self._looked_at = microseconds(found.now_at)
        self._due = NOBODY_ARMED if found.next_due_at is None else microseconds(found.next_due_at)
        self._sticky = NOBODY_ARMED

    @property
    def at(self) -> int:
        """The time, in microseconds since 1970."""
        return min(self._due, self._sticky)

    def hear(self, message: str) -> None:
        """Note a message."""
        kind, _, argument = message.partition(" ")
        if kind == "next":
            when, now, name = argument.split()
            if name != self._name and int(now) > self._looked_at:
                self._due = int(when)
        elif kind == "due" and argument[0] in "+0":
            self._sticky = min(self._sticky, int(argument))
        elif kind == "due":
            self._due = min(self._due, int(argument))


def note(front: Front, message: str) -> None:
    """Let it know of what is due, as a worker does."""
    if message.startswith("due "):
        front.heard(int(message.removeprefix("due ")))


class Sleeper:
    """A sleeping worker: armed by a settled claim, and by the messages that came since the claim began."""

    def __init__(self, dsn: str, name: str) -> None:
        self.name = name
        self.ear = Ear(dsn)
        self.db = self.ear.connection
        call(self.db, "register_worker", worker_id=name, concurrency=10)
        self._timer: Timer | None = None
        self._front = Front()

    def look(self, up_to: int = 10) -> list[Row]:
        """Claim once and, if the answer is certain, fall asleep until the time it names."""
        self._hear()
        found = claim(self.db, self.name, up_to, due_from=self._front.look())
        self.arm(found)
        return found.runs

    def arm(self, found: Claim) -> None:
        """Fall asleep with a known answer; stay awake if it was not certain."""
        self._timer = Timer(self.name, found) if found.settled else None
        if found.settled and (found.next_due_at is None or found.next_due_at > found.now_at):
            self._front.looked(found.next_due_at)

    def _hear(self) -> None:
        for message in self.ear.heard():
            note(self._front, message)
            if self._timer is not None:
                self._timer.hear(message)

    def wakes_at(self) -> int:
        """Return when it wakes, in microseconds since 1970, after all messages so far."""
        self._hear()
        return 0 if self._timer is None else self._timer.at

    def looks_from(self) -> int:
        """Return from when on its next look will look, in microseconds since 1970."""
        self._hear()
        at = self._front.look()
        return 0 if at is None else microseconds(at)


def is_covered(db: psycopg.Connection, sleepers: list[Sleeper]) -> bool:
    """Tell whether every sleeper wakes no later than each committed eligible recall is due."""
    eligible = rows(db, "select due_at from pgrecall.session_recalls where due_at is not null")
    return all(
        max(sleeper.wakes_at(), sleeper.looks_from()) <= microseconds(one["due_at"])
        for sleeper in sleepers
        for one in eligible
    )


class Scene:
    """The actors of a race. Nothing here waits for time to pass."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stack = ExitStack()
        self.sleepers: list[Sleeper] = []
        self.db = self.connect()
        add_session(self.db, *(f"s{number}" for number in range(1, 10)))

    def connect(self, level: IsolationLevel | None = None) -> psycopg.Connection:
        """Open an autocommit connection."""
        connection = self._stack.enter_context(psycopg.connect(self._dsn, autocommit=True))
        connection.isolation_level = level
        return connection

    def sleeper(self) -> Sleeper:
        """Add a worker that has not looked yet."""
        one = Sleeper(self._dsn, f"w{len(self.sleepers) + 1}")
        self._stack.callback(one.ear.close)
        self.sleepers.append(one)
        return one

    def covered(self) -> bool:
        """Tell whether nobody oversleeps."""
        return is_covered(self.db, self.sleepers)

    def close(self) -> None:
        """End all connections."""
        self._stack.close()


def mutate(db: psycopg.Connection, function: str, changes: list[tuple[str, str]]) -> None:
    """Replace lines of a routine in this database; each must be there exactly once."""
    source: str = value(db, "select pg_get_functiondef(%s::regprocedure)", function)
    for old, new in changes:
        assert source.count(old) == 1, f"the source has changed: {old}"
        source = source.replace(old, new)
    db.execute(source.encode())


def be_patient(db: psycopg.Connection) -> None:
    """Let workers wait for the lock for as long as a test needs, instead of 25 milliseconds."""
    mutate(db, CLAIM, [("_lock_for_peek(25)", "_lock_for_peek(9999)")])


CLAIM = "pgrecall.claim(text, integer, interval, boolean, timestamptz)"
ANNOUNCE = "pgrecall._announce_due()"

# Races


def claims_the_earliest_while_a_decided_insert_is_open(scene: Scene) -> bool:
    """The worker takes X and looks for the next one while Y, for which nobody was told, is not visible yet."""
    producer, worker = scene.connect(), scene.sleeper()
    x = in_time(-SECOND)
    add(scene.db, "s1", x)
    worker.look(up_to=0)
    with producer.transaction():
        producer.execute("set constraints all immediate")
        add(producer, "s2", x + HOUR)
        assert len(worker.look()) == 1
        worker.look()
    return scene.covered()


def inserts_while_the_claim_of_the_earliest_is_open(scene: Scene) -> bool:
    """PEERS.md T2: the producer still sees X as the earliest, the worker already looks past it."""
    worker, x = scene.sleeper(), in_time(-SECOND)
    add(scene.db, "s1", x)
    worker.look(up_to=0)
    with worker.db.transaction():
        found = claim(worker.db, worker.name)
        assert len(found.runs) == 1
        add(scene.db, "s2", x + timedelta(milliseconds=500))
    worker.arm(found)
    return scene.covered()


def looks_while_a_producer_commits(scene: Scene) -> bool:
    """The worker waits in line for the lock and must read after it has it, not before."""
    canceller, producer, worker, bystander = scene.connect(), scene.connect(), scene.sleeper(), scene.sleeper()
    be_patient(scene.db)
    x = add(scene.db, "s1", in_time(HOUR))
    bystander.look()
    with producer.transaction():
        producer.execute("set constraints all immediate")
        add(producer, "s2", in_time(2 * HOUR))
        change(canceller, x, status="cancelled")
        looking = Doing(worker.look)
        wait_until_blocked(scene.db, worker.db.info.backend_pid)
    looking.result()
    return scene.covered()


def inserts_at_repeatable_read_with_an_old_snapshot(scene: Scene) -> bool:
    """In the producer's snapshot an earlier row is still there; in the present it is gone and all are armed late."""
    producer, worker, at = scene.connect(IsolationLevel.REPEATABLE_READ), scene.sleeper(), in_time(HOUR)
    x = add(scene.db, "s1", at)
    worker.look()
    with producer.transaction():
        producer.execute("select count(*) from pgrecall.session_recalls")
        change(scene.db, x, status="cancelled")
        worker.look()
        add(producer, "s2", at + timedelta(milliseconds=500))
    return scene.covered()


def inserts_two_rows_with_the_same_time(scene: Scene) -> bool:
    worker, at = scene.sleeper(), in_time(HOUR)
    worker.look()
    with scene.db.transaction():
        add(scene.db, "s1", at)
        add(scene.db, "s2", at)
    return scene.covered()


def inserts_while_a_worker_has_looked_and_not_ended(scene: Scene) -> bool:
    """The producer is refused the lock: it can know nothing, so it must speak."""
    worker = scene.sleeper()
    worker.look()
    with worker.db.transaction():
        found = claim(worker.db, worker.name)
        add(scene.db, "s1", in_time(HOUR))
    worker.arm(found)
    return scene.covered()


def inserts_early_after_the_register_was_raised(scene: Scene) -> bool:
    """Two transactions of one connection; the second must not remember what the first has said."""
    worker, at = scene.sleeper(), in_time(HOUR)
    worker.look()
    add(scene.db, "s1", at)
    scene.db.execute("delete from pgrecall.session_recalls")
    worker.look()
    add(scene.db, "s2", at + HOUR)
    return scene.covered()


def looks_while_somebody_has_the_earliest_row_locked(scene: Scene) -> bool:
    editor, worker = scene.connect(), scene.sleeper()
    x = add(scene.db, "s1", in_time(-SECOND))
    with editor.transaction():
        editor.execute("select from pgrecall.session_recalls where id = %s for update", [x])
        assert worker.look() == []
    return scene.covered()


def looks_during_a_long_transaction(scene: Scene) -> bool:
    """Nothing is decided before the commit, so the look in between is certain and later turns out to be too late."""
    producer, worker = scene.connect(), scene.sleeper()
    with producer.transaction():
        add(producer, "s1", in_time(HOUR))
        worker.look()
        assert worker.wakes_at() == NOBODY_ARMED
    return scene.covered()


def moves_a_recall_earlier_while_the_claim_of_the_earliest_is_open(scene: Scene) -> bool:
    worker, x = scene.sleeper(), in_time(-SECOND)
    add(scene.db, "s1", x)
    y = add(scene.db, "s2", x + HOUR)
    worker.look(up_to=0)
    with worker.db.transaction():
        found = claim(worker.db, worker.name)
        change(scene.db, y, trigger_at=x + timedelta(milliseconds=500))
    worker.arm(found)
    return scene.covered()


def rolls_back_a_claim_that_raised_the_register(scene: Scene) -> bool:
    worker, other = scene.sleeper(), scene.sleeper()
    add(scene.db, "s1", in_time(-SECOND))
    worker.look(up_to=0)
    other.look(up_to=0)
    with worker.db.transaction(force_rollback=True):
        assert len(claim(worker.db, worker.name).runs) == 1
    add(scene.db, "s2", in_time(HOUR))
    return scene.covered()


def rolls_back_a_claim_that_gave_a_lost_run_back(scene: Scene) -> bool:
    """The lost run's recall was due in a transaction that never was; its time must not have reached the register."""
    worker, sleeper = scene.sleeper(), scene.sleeper()
    x = add(scene.db, "s1", in_time(-MINUTE))
    assert claim(scene.db, "lost", lease=HOUR).recall_ids == [x]
    sleeper.look()
    scene.db.execute("update pgrecall.workers set lease_until = now() - interval '1 second' where id = 'lost'")
    with worker.db.transaction(force_rollback=True):
        assert claim(worker.db, worker.name, up_to=0).next_due_at == recall(scene.db, x)["trigger_at"]
    add(scene.db, "s2", in_time(HOUR / 2))
    return is_covered(scene.db, [sleeper])


def frees_a_session_while_a_look_is_open(scene: Scene) -> bool:
    """A deferred recall becomes due by an update of the finishing worker."""
    worker, other = scene.sleeper(), scene.sleeper()
    add(scene.db, "s1", in_time(-MINUTE))
    (run,) = worker.look()
    add(scene.db, "s1", in_time(-SECOND))
    other.look()
    other.look()
    with other.db.transaction():
        found = claim(other.db, other.name)
        finish(worker.db, run)
    other.arm(found)
    return is_covered(scene.db, [other])


#: The others wake when the lease of the one that told them ends.
BEFORE_THE_LEASE_ENDS = 10 * SECOND


def inserts_while_a_worker_tells_the_others(scene: Scene) -> bool:
    """The look that tells does not see the new recall, and what it tells comes behind the announcement."""
    worker, sleeper = scene.sleeper(), scene.sleeper()
    add(scene.db, "s1", in_time(-SECOND))
    sleeper.look(up_to=0)
    with worker.db.transaction():
        found = claim(worker.db, worker.name)
        add(scene.db, "s2", in_time(BEFORE_THE_LEASE_ENDS))
    worker.arm(found)
    return scene.covered()


def inserts_silently_while_a_worker_takes_the_earliest(scene: Scene) -> bool:
    """The producer has decided, the others wake for X anyway: who takes X cannot know better, so it tells nothing."""
    worker, sleeper, producer = scene.sleeper(), scene.sleeper(), scene.connect()
    x = in_time(-SECOND)
    add(scene.db, "s1", x)
    sleeper.look(up_to=0)
    with producer.transaction():
        producer.execute("set constraints all immediate")
        add(producer, "s2", x + BEFORE_THE_LEASE_ENDS)
        worker.look()
    return is_covered(scene.db, [sleeper])


def hears_late_what_an_older_look_has_told(scene: Scene) -> bool:
    """Its own look has seen what the older one had missed, and its announcement has been heard before."""
    worker, sleeper = scene.sleeper(), scene.sleeper()
    add(scene.db, "s1", in_time(-SECOND))
    sleeper.look(up_to=0)
    with worker.db.transaction():
        claim(worker.db, worker.name)
        add(scene.db, "s2", in_time(BEFORE_THE_LEASE_ENDS))
        sleeper.ear.heard()
    found = claim(sleeper.db, sleeper.name, up_to=0)
    sleeper.arm(found)
    return is_covered(scene.db, [sleeper])


Race = Callable[[Scene], bool]
RACES: list[Race] = [
    claims_the_earliest_while_a_decided_insert_is_open,
    inserts_while_the_claim_of_the_earliest_is_open,
    looks_while_a_producer_commits,
    inserts_at_repeatable_read_with_an_old_snapshot,
    inserts_two_rows_with_the_same_time,
    inserts_while_a_worker_has_looked_and_not_ended,
    inserts_early_after_the_register_was_raised,
    looks_while_somebody_has_the_earliest_row_locked,
    looks_during_a_long_transaction,
    moves_a_recall_earlier_while_the_claim_of_the_earliest_is_open,
    rolls_back_a_claim_that_raised_the_register,
    rolls_back_a_claim_that_gave_a_lost_run_back,
    frees_a_session_while_a_look_is_open,
    inserts_while_a_worker_tells_the_others,
    inserts_silently_while_a_worker_takes_the_earliest,
    hears_late_what_an_older_look_has_told,
]


@pytest.fixture
def scene(database: str) -> Iterator[Scene]:
    """A database with workers and producers for one race."""
    actors = Scene(database)
    yield actors
    actors.close()


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.__name__)
def test_nobody_oversleeps_when_a_worker_or_producer(scene: Scene, race: Race) -> None:
    assert race(scene) is True


def test_a_claim_does_not_lower_the_register_to_a_deferral_that_may_roll_back(scene: Scene) -> None:
    worker = scene.sleeper()
    add(scene.db, "s1", in_time(-MINUTE))
    worker.look()
    worker.look()
    assert register(scene.db) == NOBODY_ARMED
    add(scene.db, "s1", in_time(-SECOND))
    with worker.db.transaction(force_rollback=True):
        found = claim(worker.db, worker.name)
        assert (len(found.deferred), found.settled) == (1, True)
        assert register(scene.db) == NOBODY_ARMED
    assert register(scene.db) == NOBODY_ARMED
    worker.look()
    assert scene.covered()


def test_a_producer_never_waits_for_a_worker_that_is_frozen_while_it_looks(scene: Scene) -> None:
    worker = scene.connect()
    scene.db.execute("set statement_timeout = '5s'")
    with worker.transaction():
        assert claim(worker).settled
        add(scene.db, "s1", in_time(HOUR))
    assert value(scene.db, "select count(*) from pgrecall.session_recalls") == 1


def test_a_worker_that_is_kept_from_the_lock_says_so_and_succeeds_later(scene: Scene) -> None:
    producer = scene.connect()
    with producer.transaction():
        producer.execute("select pg_advisory_xact_lock_shared(%s)", [LOCK])
        assert claim(scene.db).settled is False
    assert claim(scene.db).settled is True


def test_a_worker_waits_in_line_for_the_lock_when_it_has_nothing_else_to_do(scene: Scene) -> None:
    """Otherwise two busy producers would keep it out for ever."""
    be_patient(scene.db)
    producer, worker, observer = scene.connect(), scene.connect(), scene.connect()
    with producer.transaction():
        producer.execute("select pg_advisory_xact_lock_shared(%s)", [LOCK])
        looking = Doing(lambda: claim(worker).settled)
        wait_until_blocked(observer, worker.info.backend_pid)
    assert looking.result() is True


# Each guard is needed: without it a race is lost

TRY_LOCK = f"if pg_try_advisory_xact_lock_shared({LOCK}) then"
SETTLE = f"""v_settled := pg_try_advisory_xact_lock({LOCK})
            or v_looked = 0 and pgrecall._lock_for_peek(25);"""
PEEK = """select min(recall.due_at)
            from pgrecall.session_recalls as recall
            where recall.due_at >= v_from
                and (v_looked < claim.up_to or claim.up_to = 0)"""
TELL = "if v_has_news and v_has_others and"
LOOKED = "v_next := least(v_next, v_next_lease);"
REGISTER = "if v_due >= pg_sequence_last_value('pgrecall.armed_until') then"
WINDOW = "and earlier.due_at > new.due_at - interval '1 second'"
READ_COMMITTED = "if current_setting('transaction_isolation') = 'read committed' then"

# what is taken out, of which function, old and new text, and the race that is lost without it
MUTATIONS: list[tuple[str, str, list[tuple[str, str]], Race]] = [
    ("no lock", ANNOUNCE, [(TRY_LOCK, "if true then")], claims_the_earliest_while_a_decided_insert_is_open),
    ("no lock, other order", ANNOUNCE, [(TRY_LOCK, "if true then")], inserts_while_the_claim_of_the_earliest_is_open),
    (
        "no lock for updates",
        ANNOUNCE,
        [(TRY_LOCK, "if true then")],
        moves_a_recall_earlier_while_the_claim_of_the_earliest_is_open,
    ),
    (
        "naive rule: speak if mine is the earliest",
        ANNOUNCE,
        [(TRY_LOCK, "if true then"), (REGISTER, "if false then"), (WINDOW, "")],
        claims_the_earliest_while_a_decided_insert_is_open,
    ),
    (
        "naive rule, other order",
        ANNOUNCE,
        [(TRY_LOCK, "if true then"), (REGISTER, "if false then"), (WINDOW, "")],
        inserts_while_the_claim_of_the_earliest_is_open,
    ),
    (
        "lock released before the commit",
        ANNOUNCE,
        [(TRY_LOCK, f"if pg_try_advisory_lock_shared({LOCK}) and pg_advisory_unlock_shared({LOCK}) then")],
        claims_the_earliest_while_a_decided_insert_is_open,
    ),
    (
        "silent when refused the lock",
        ANNOUNCE,
        [("    -- At most two messages", "    if not found then return null; end if;\n    -- At most two messages")],
        inserts_while_a_worker_has_looked_and_not_ended,
    ),
    (
        "silent by an old snapshot",
        ANNOUNCE,
        [(READ_COMMITTED, "if true then")],
        inserts_at_repeatable_read_with_an_old_snapshot,
    ),
    (
        "equal rows silence each other",
        ANNOUNCE,
        [("earlier.due_at < new.due_at", "earlier.due_at <= new.due_at and earlier.id <> new.id")],
        inserts_two_rows_with_the_same_time,
    ),
    (
        "what was said is remembered beyond the transaction",
        ANNOUNCE,
        [("v_due::text, true);\n    -- With", "v_due::text, false);\n    -- With")],
        inserts_early_after_the_register_was_raised,
    ),
    (
        "look without the lock",
        CLAIM,
        [(SETTLE, "v_settled := true;")],
        claims_the_earliest_while_a_decided_insert_is_open,
    ),
    (
        "read before the lock",
        CLAIM,
        [(PEEK, "v_next"), (SETTLE, f"v_next := ({PEEK}); {SETTLE}")],
        looks_while_a_producer_commits,
    ),
    (
        "locked rows are not waited for",
        CLAIM,
        [
            (
                PEEK,
                """select min(free.due_at)
                from (select recall.due_at from pgrecall.session_recalls as recall
                    where recall.due_at is not null for no key update skip locked) as free""",
            )
        ],
        looks_while_somebody_has_the_earliest_row_locked,
    ),
    (
        "the register lowered to what may roll back",
        CLAIM,
        [("not v_made_due and ", "")],
        rolls_back_a_claim_that_gave_a_lost_run_back,
    ),
    (
        "updates are silent",
        ANNOUNCE,
        [("if tg_op = 'UPDATE' then", "if tg_op = 'UPDATE' then return null;")],
        moves_a_recall_earlier_while_the_claim_of_the_earliest_is_open,
    ),
    (
        "the look that tells the others cancels what it has overlooked",
        ANNOUNCE,
        [("'due ' || v_sign || v_due", "'due ' || v_due")],
        inserts_while_a_worker_tells_the_others,
    ),
    (
        "the others are told before the lock is had",
        CLAIM,
        [(TELL, "if v_looked > 0 and")],
        inserts_silently_while_a_worker_takes_the_earliest,
    ),
    (
        "the lock is released before the others hear",
        CLAIM,
        [
            (SETTLE, f"v_settled := pg_try_advisory_lock({LOCK});"),
            (LOOKED, f"{LOOKED} perform pg_advisory_unlock({LOCK}) where v_settled;"),
        ],
        inserts_while_a_worker_tells_the_others,
    ),
    (
        "an older look counts as much as a newer one",
        CLAIM,
        [
            (
                "pgrecall.microseconds(v_now),\n                    claim.worker_id",
                "pgrecall.microseconds(v_now + interval '1 hour'), claim.worker_id",
            )
        ],
        hears_late_what_an_older_look_has_told,
    ),
    (
        "nothing due means register zero",
        CLAIM,
        [("perform setval('pgrecall.armed_until', v_armed);", "perform setval('pgrecall.armed_until', 0);")],
        looks_during_a_long_transaction,
    ),
]


@pytest.mark.parametrize(
    ("function", "changes", "race"),
    [pytest.param(*mutation[1:], id=mutation[0].replace(" ", "-")) for mutation in MUTATIONS],
)
def test_somebody_oversleeps_without_the_guard(
    scene: Scene, function: str, changes: list[tuple[str, str]], race: Race
) -> None:
    mutate(scene.db, function, changes)
    assert race(scene) is False


# Everything at once


def produce(dsn: str, seed: int, until: float, committed: dict[str, datetime]) -> None:
    """Write recalls in transactions of random shape; note when each was committed for certain."""
    chance = random.Random(seed)
    levels = [None, IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]
    with psycopg.connect(dsn, autocommit=True) as db:
        while time.monotonic() < until:
            db.isolation_level = chance.choice(levels)
            written: list[str] = []
            try:
                with db.transaction(force_rollback=chance.random() < 0.15):
                    if chance.random() < 0.3:
                        db.execute("set constraints all immediate")
                    for _ in range(chance.choice([1, 1, 1, 2, 5])):
                        at = datetime.now(UTC) + timedelta(seconds=chance.uniform(-0.1, 1.0))
                        dropped = chance.random() < 0.15
                        with db.transaction(force_rollback=dropped):
                            name = add(db, f"p{seed}-{chance.getrandbits(60)}", at)
                        if not dropped:
                            written.append(name)
                    # How long the transaction stays open is what is random here; nothing is waited for.
                    db.execute("select pg_sleep(%s)", [chance.choice([0, 0, 0.01, 0.05, 0.2])])
            except psycopg.errors.SerializationFailure:
                continue
            committed |= dict.fromkeys(written, datetime.now(UTC))
            db.execute("select pg_sleep(%s)", [chance.choice([0, 0.02, 0.1])])


def meddle(dsn: str, seed: int, until: float) -> None:
    """Cancel, move and delete recalls that wait, sometimes only nearly."""
    chance = random.Random(seed)
    pick: LiteralString = """(select id from pgrecall.session_recalls where status = 'pending'
        order by random() limit 1 for update skip locked)"""
    statements: list[LiteralString] = [
        "update pgrecall.session_recalls set status = 'cancelled' where id = ",
        "update pgrecall.session_recalls set trigger_at = trigger_at + interval '0.3 seconds' where id = ",
        "update pgrecall.session_recalls set trigger_at = trigger_at - interval '0.3 seconds' where id = ",
        "delete from pgrecall.session_recalls where id = ",
    ]
    with psycopg.connect(dsn, autocommit=True) as db:
        while time.monotonic() < until:
            with db.transaction(force_rollback=chance.random() < 0.3):
                db.execute(chance.choice(statements) + pick)
                db.execute("select pg_sleep(%s)", [chance.choice([0.01, 0.05])])


def sleep_and_run(dsn: str, name: str, done: threading.Event) -> int:
    """Be a worker that only ever looks when its timer says so; return how often it looked."""
    looks = 0
    with psycopg.connect(dsn, autocommit=True) as db, psycopg.connect(dsn, autocommit=True) as ear:
        call(db, "register_worker", worker_id=name, concurrency=2)
        ear.execute("listen pgrecall")
        front = Front()
        while not done.is_set():
            looks += 1
            for message in ear.notifies(timeout=0):
                note(front, message.payload)
            found = claim(db, name, up_to=2, due_from=front.look())
            for run in found.runs:
                finish(db, run)
            if found.runs or found.deferred:
                continue
            now = microseconds(found.now_at)
            timer = Timer(name, found)
            if found.settled and timer.at > now:
                front.looked(found.next_due_at)
            soon = now + (5_000 if found.settled else 10_000)
            is_certain = found.settled and timer.at > now
            while (left := (timer.at if is_certain else soon) - microseconds(datetime.now(UTC))) > 0:
                for message in ear.notifies(timeout=min(left / 1e6, 3600), stop_after=1):
                    if message.payload == "test is over":
                        return looks
                    note(front, message.payload)
                    timer.hear(message.payload)
    return looks


def test_random_traffic_leaves_nothing_overdue(database: str, connections: Callable[[], psycopg.Connection]) -> None:
    observer = connections()
    until = time.monotonic() + 4.0
    committed: dict[str, datetime] = {}
    done = threading.Event()
    sleepers = [Doing(lambda name=name: sleep_and_run(database, name, done)) for name in ("w1", "w2", "w3")]  # type: ignore[misc]
    writers = [Doing(lambda seed=seed: produce(database, seed, until, committed)) for seed in (1, 2, 3)]  # type: ignore[misc]
    for writer in [*writers, Doing(lambda: meddle(database, 4, until))]:
        writer.result()
    left: LiteralString = "select count(*) from pgrecall.session_recalls where due_at is not null or run_id is not null"
    wait_until(lambda: value(observer, left) == 0, "all recalls have run")
    done.set()
    observer.execute("select pg_notify('pgrecall', 'test is over')")
    looks = [sleeper.result() for sleeper in sleepers]
    ran = rows(
        observer,
        """select run.recall_id, run.started_at, recall.trigger_at, recall.updated_at, run.nominal_at
        from pgrecall.recall_runs as run join pgrecall.session_recalls as recall on recall.id = run.recall_id
        where run.started_at is not null""",
    )
    late = [
        (one["started_at"] - max(one["nominal_at"], committed[one["recall_id"]])).total_seconds()
        for one in ran
        if one["recall_id"] in committed
    ]
    assert len(late) > 50
    assert max(late) < 1.0
    assert rows(observer, "select distinct outcome from pgrecall.recall_runs where started_at is not null") == [
        {"outcome": "success"}
    ]
    assert sum(looks) < 100 * len(late)


# Where a look begins


def test_a_look_leaves_out_what_is_due_before_the_time_that_it_begins_at(db: psycopg.Connection) -> None:
    now = datetime.now(UTC)
    add(db, "s1", now - 2 * HOUR)
    add(db, "s2", now - HOUR)

    found = claim(db, due_from=now - 2 * HOUR + SECOND)

    assert [run["session_id"] for run in found.runs] == ["s2"]
    assert found.next_due_at is None
    assert [run["session_id"] for run in claim(db).runs] == ["s1"]


def test_what_became_due_while_all_was_paused_is_found_wherever_a_look_begins(db: psycopg.Connection) -> None:
    add(db, "s1", datetime.now(UTC) - HOUR)
    db.execute("select pgrecall.pause_all('an incident', pgrecall.clock() + interval '1 minute')")
    paused = claim(db)
    assert (paused.settled, paused.runs) == (True, [])
    set_clock(db, datetime.now(UTC) + HOUR)

    assert len(claim(db, due_from=paused.next_due_at).runs) == 1


def test_what_a_dead_worker_had_is_found_wherever_a_look_begins(db: psycopg.Connection) -> None:
    now = datetime.now(UTC)
    add(db, "s1", now - HOUR)
    assert len(claim(db, "w1", lease=SECOND).runs) == 1
    set_clock(db, now + MINUTE)

    assert len(claim(db, "w2", due_from=now + SECOND).runs) == 1
    assert claim(db, "w3", due_from=now + SECOND).next_due_at is not None  # the lease of w2


def test_the_front_is_where_the_last_look_has_seen_everything_before() -> None:
    front, at = Front(), datetime(2030, 1, 1, 12, 0, 0, 1, tzinfo=UTC)
    assert front.look() is None
    front.looked(at)
    assert front.look() == at
    front.looked(None)
    assert front.look() == datetime.max.replace(tzinfo=UTC)


def test_the_front_moves_back_to_what_is_heard_also_during_a_look() -> None:
    front, at = Front(), datetime(2030, 1, 1, 12, 0, 0, 1, tzinfo=UTC)
    front.look()
    front.heard(microseconds(at))
    front.looked(at + HOUR)
    assert front.look() == at
    front.heard(microseconds(at - HOUR))
    assert front.look() == at - HOUR


@pytest.mark.parametrize("heard", [0, -5])
def test_the_front_is_everywhere_when_something_is_due_at_an_unknown_time(heard: int) -> None:
    front = Front()
    front.looked(datetime.now(UTC))
    front.heard(heard)
    assert front.look() is None


def test_the_front_is_everywhere_when_messages_may_be_lost() -> None:
    front = Front()
    front.look()
    front.forget()
    front.looked(datetime.now(UTC))
    assert front.look() is None
