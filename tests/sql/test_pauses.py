"""Pauses of sessions and users: what they cover never runs, wakes nobody, and comes back when they end."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta

import psycopg
import pytest
from psycopg import IsolationLevel
from sqltools import (
    DEADLINE,
    HOUR,
    MINUTE,
    NOW,
    SECOND,
    Doing,
    Ear,
    Row,
    add,
    add_recurring,
    add_session,
    call,
    call_one,
    change,
    claim,
    claim_one,
    due,
    finish,
    outcomes,
    recall,
    refused,
    rows,
    set_clock,
    value,
    wait_until,
    wait_until_blocked,
)

Connect = Callable[[], psycopg.Connection]

PAUSES: list[tuple[str, Row]] = [("session", {"session_id": "s"}), ("user", {"user_id": "ada"})]
either = pytest.mark.parametrize(("kind", "whose"), PAUSES, ids=["session", "user"])


@pytest.fixture
def db(db: psycopg.Connection) -> psycopg.Connection:
    """A connection whose clock stands still, with a session s of Ada."""
    set_clock(db, NOW)
    add_session(db, "s", user_id="ada")
    return db


@pytest.fixture
def connect(database: str) -> Iterator[Connect]:
    """Opens autocommit connections to a fresh database whose clock stands still, with a session s of Ada."""
    with ExitStack() as stack:

        def one() -> psycopg.Connection:
            return stack.enter_context(psycopg.connect(database, autocommit=True))

        first = one()
        set_clock(first, NOW)
        add_session(first, "s", user_id="ada")
        yield one


def pause(db: psycopg.Connection, kind: str, whose: Row, **more: object) -> Row:
    """Pause a session or user."""
    return call_one(db, f"pause_{kind}", **whose, **more)


def resume(db: psycopg.Connection, kind: str, whose: Row) -> list[Row]:
    """End the pause of a session or user."""
    return call(db, f"resume_{kind}", **whose)


@either
def test_what_is_due_is_paused_and_leaves_the_eligible_rows(db: psycopg.Connection, kind: str, whose: Row) -> None:
    late = add(db, "s")
    made = pause(db, kind, whose, reason="an incident")
    found = claim(db)
    assert (found.runs, found.deferred, found.next_due_at, found.settled) == ([], [], None, True)
    paused = recall(db, late)
    assert (paused["paused_at"], paused["paused_until"], paused["pause_id"]) == (NOW, None, made["id"])
    named = "session s" if kind == "session" else "user ada"
    assert paused["pause_reason"] == f"{named} is paused: an incident"
    assert (paused["due_at"], paused["status"], paused["deferrals"]) == (None, "pending", 0)


@either
def test_a_recall_that_is_made_later_is_not_run_either(db: psycopg.Connection, kind: str, whose: Row) -> None:
    pause(db, kind, whose)
    late = add(db, "s")
    other = add(db, "t")
    assert claim(db).recall_ids == [other]
    assert recall(db, late)["pause_reason"] == ("session s is paused" if kind == "session" else "user ada is paused")


def test_a_session_that_is_made_later_for_a_paused_user_does_not_run(db: psycopg.Connection) -> None:
    pause(db, "user", {"user_id": "new"})
    add_session(db, "n", user_id="new")
    late = add(db, "n")
    assert claim(db).runs == []
    resume(db, "user", {"user_id": "new"})
    assert claim(db).recall_ids == [late]


@either
def test_resuming_makes_what_is_overdue_due_once(db: psycopg.Connection, kind: str, whose: Row) -> None:
    late = add_recurring(db, "s")
    made = pause(db, kind, whose)
    claim(db)
    set_clock(db, NOW + 10 * MINUTE + SECOND)
    assert resume(db, kind, whose) == [made]
    back = recall(db, late)
    assert (back["due_at"], back["paused_at"], back["pause_reason"], back["pause_id"]) == (NOW, None, None, None)
    finish(db, claim_one(db))
    assert recall(db, late)["trigger_at"] == NOW + 11 * MINUTE
    assert outcomes(db, late) == ["success"] + ["missed"] * 10
    assert value(db, "select count(*) from pgrecall.pauses") == 0


@either
def test_resuming_twice_or_what_was_not_paused_answers_no_row(db: psycopg.Connection, kind: str, whose: Row) -> None:
    assert resume(db, kind, whose) == []
    pause(db, kind, whose)
    assert len(resume(db, kind, whose)) == 1
    assert resume(db, kind, whose) == []


@either
def test_a_pause_ends_by_itself_and_is_forgotten(db: psycopg.Connection, kind: str, whose: Row) -> None:
    late = add(db, "s")
    pause(db, kind, whose, paused_until=NOW + HOUR)
    assert claim(db).next_due_at == NOW + HOUR
    assert recall(db, late)["paused_until"] == NOW + HOUR
    set_clock(db, NOW + HOUR)
    run = claim_one(db)
    assert run["recall_id"] == late
    running = recall(db, late)
    assert (running["paused_at"], running["pause_id"], running["pause_reason"]) == (None, None, None)
    assert value(db, "select count(*) from pgrecall.pauses") == 0


@either
def test_resuming_a_pause_that_has_ended_by_itself_ends_nothing(db: psycopg.Connection, kind: str, whose: Row) -> None:
    pause(db, kind, whose, paused_until=NOW + HOUR)
    set_clock(db, NOW + HOUR)
    assert resume(db, kind, whose) == []
    assert value(db, "select count(*) from pgrecall.pauses") == 0


@either
def test_pausing_again_changes_the_end_and_the_reason_also_of_what_it_has_paused(
    db: psycopg.Connection, kind: str, whose: Row
) -> None:
    late = add(db, "s")
    first = pause(db, kind, whose, reason="an incident", paused_until=NOW + 2 * HOUR)
    claim(db)
    set_clock(db, NOW + MINUTE)
    second = pause(db, kind, whose, paused_until=NOW + HOUR)
    assert second == first | {"paused_until": NOW + HOUR}, "the reason and the beginning stay"
    assert recall(db, late)["due_at"] == NOW + HOUR
    third = pause(db, kind, whose, reason="worse")
    assert third == first | {"paused_until": None, "reason": "worse"}
    assert recall(db, late)["due_at"] is None
    assert "worse" in recall(db, late)["pause_reason"]


@either
def test_pausing_after_a_pause_has_ended_begins_a_new_one(db: psycopg.Connection, kind: str, whose: Row) -> None:
    pause(db, kind, whose, reason="an incident", paused_until=NOW + MINUTE)
    set_clock(db, NOW + HOUR)
    again = pause(db, kind, whose)
    assert (again["paused_at"], again["reason"]) == (NOW + HOUR, None)


def test_what_its_session_and_its_user_have_paused_waits_for_both(db: psycopg.Connection) -> None:
    late = add(db, "s")
    pause(db, "session", {"session_id": "s"}, paused_until=NOW + MINUTE)
    pause(db, "user", {"user_id": "ada"}, paused_until=NOW + HOUR)
    claim(db)
    assert recall(db, late)["pause_reason"] == "session s is paused"
    set_clock(db, NOW + MINUTE)
    assert claim(db).runs == []
    assert recall(db, late)["pause_reason"] == "user ada is paused"
    set_clock(db, NOW + HOUR)
    assert claim(db).recall_ids == [late]


def test_a_recall_that_is_resumed_by_itself_is_paused_again(db: psycopg.Connection) -> None:
    late = add(db, "s")
    pause(db, "session", {"session_id": "s"})
    claim(db)
    assert call_one(db, "resume_recall", recall_id=late)["due_at"] == NOW
    assert claim(db).runs == []
    assert recall(db, late)["due_at"] is None


def test_a_recall_that_is_paused_by_itself_meanwhile_stays_paused(db: psycopg.Connection) -> None:
    late = add(db, "s")
    pause(db, "session", {"session_id": "s"}, reason="an incident")
    claim(db)
    call_one(db, "pause_recall", recall_id=late, reason="too dear")
    resume(db, "session", {"session_id": "s"})
    paused = recall(db, late)
    assert (paused["due_at"], paused["pause_reason"], paused["pause_id"]) == (None, "too dear", None)


def test_resuming_by_hand_with_an_update_forgets_the_pause(db: psycopg.Connection) -> None:
    late = add(db, "s")
    pause(db, "session", {"session_id": "s"})
    claim(db)
    change(db, late, paused_at=None)
    assert recall(db, late)["pause_id"] is None


def test_a_recall_that_is_cancelled_while_its_session_is_paused_is_not_paused_any_more(db: psycopg.Connection) -> None:
    late = add(db, "s")
    pause(db, "session", {"session_id": "s"})
    claim(db)
    call_one(db, "mark_cancelled", recall_id=late)
    gone = recall(db, late)
    assert (gone["paused_at"], gone["pause_reason"], gone["pause_id"]) == (None, None, None)
    resume(db, "session", {"session_id": "s"})
    change(db, late, status="pending")
    assert claim(db).recall_ids == [late]


@either
def test_a_run_under_way_goes_on_and_its_next_occurrence_is_paused(db: psycopg.Connection, kind: str, whose: Row) -> None:
    late = add_recurring(db, "s")
    run = claim_one(db)
    pause(db, kind, whose)
    assert len(call(db, "renew", worker_id="w1")) == 1
    finish(db, run)
    set_clock(db, NOW + MINUTE)
    assert claim(db).runs == []
    assert outcomes(db, late) == ["success"]


def test_a_session_that_goes_to_another_user_is_not_paused_any_more(db: psycopg.Connection) -> None:
    late = add(db, "s")
    pause(db, "user", {"user_id": "ada"})
    claim(db)
    db.execute("update pgrecall.sessions set user_id = 'ben' where id = 's'")
    assert recall(db, late)["due_at"] == NOW
    assert claim(db).recall_ids == [late]


def test_a_session_that_goes_to_a_paused_user_is_paused(db: psycopg.Connection) -> None:
    late = add(db, "s")
    pause(db, "user", {"user_id": "ben"})
    db.execute("update pgrecall.sessions set user_id = 'ben' where id = 's'")
    assert claim(db).runs == []
    assert recall(db, late)["pause_reason"] == "user ben is paused"


def test_a_paused_session_that_goes_to_another_user_stays_paused(db: psycopg.Connection) -> None:
    late = add(db, "s")
    pause(db, "session", {"session_id": "s"})
    claim(db)
    db.execute("update pgrecall.sessions set user_id = 'ben' where id = 's'")
    assert recall(db, late)["due_at"] is None


def test_the_pause_of_a_session_goes_with_it(db: psycopg.Connection) -> None:
    pause(db, "session", {"session_id": "s"})
    db.execute("delete from pgrecall.sessions where id = 's'")
    assert value(db, "select count(*) from pgrecall.pauses") == 0


def test_more_recalls_than_a_look_pauses_at_once_are_paused_by_the_next_ones(db: psycopg.Connection) -> None:
    pause(db, "user", {"user_id": "many"})
    db.execute("insert into pgrecall.sessions (id, user_id) select 'm' || n, 'many' from generate_series(1, 1100) as n")
    db.execute(
        """insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)
        select 'm' || n, pgrecall.clock(), 'go on' from generate_series(1, 1100) as n"""
    )
    other = add(db, "t", NOW + timedelta(microseconds=1))
    set_clock(db, NOW + SECOND)
    found = claim(db, up_to=3)
    assert found.recall_ids == [other], "what is covered does not take the places of what is not"
    assert found.next_due_at == NOW, "it looks again at once"
    claim(db)
    assert claim(db).next_due_at is None
    assert value(db, "select count(*) from pgrecall.session_recalls where paused_at is not null") == 1100


def test_one_that_cannot_be_claimed_is_put_off_in_place_of_one_that_is_paused(connect: Connect) -> None:
    """What is covered and not yet paused, since it came in this very moment, is passed over by every way of taking."""
    db = connect()
    covered = add(db, "s", NOW - HOUR)
    bad = add(db, "t")
    pause(db, "session", {"session_id": "s"})
    db.execute(
        """create or replace function pgrecall._pause_due(at_time timestamptz) returns boolean
        language sql as 'select false'"""
    )
    db.execute("create function public.refuse() returns trigger language plpgsql as $$ begin raise 'no'; end $$")
    db.execute(
        """create trigger refuse before update on pgrecall.session_recalls for each row
        when (new.run_id is not null) execute function public.refuse()"""
    )
    claim(db)
    assert (recall(db, bad)["last_error"] or "").startswith("it cannot be claimed")
    assert recall(db, covered)["last_error"] is None
    assert recall(db, covered)["not_before"] is None


# bad input


def test_an_unknown_session_is_refused(db: psycopg.Connection) -> None:
    for unknown in ("nobody", None, "x" * 300, "y" * 100000):
        with refused(db, "PR002"):
            pause(db, "session", {"session_id": unknown})
        with refused(db, "PR002"):
            resume(db, "session", {"session_id": unknown})


@pytest.mark.parametrize("user_id", [None, "", "x" * 601])
def test_a_user_id_that_is_none_is_refused(db: psycopg.Connection, user_id: str | None) -> None:
    with refused(db, "PR005"):
        pause(db, "user", {"user_id": user_id})


def test_the_longest_user_id_can_be_paused(db: psycopg.Connection) -> None:
    chance = random.Random(1)
    longest = "".join(chr(chance.randrange(0x10000, 0x10FFFF)) for _ in range(600))
    assert pause(db, "user", {"user_id": longest})["user_id"] == longest


@either
@pytest.mark.parametrize("until", [NOW, NOW - SECOND, "infinity"])
def test_an_end_that_is_no_time_to_come_is_refused(
    db: psycopg.Connection, kind: str, whose: Row, until: datetime | str
) -> None:
    with refused(db, "PR005"):
        pause(db, kind, whose, paused_until=until)


@either
@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_a_transaction_with_one_snapshot_is_refused(
    connect: Connect, kind: str, whose: Row, level: IsolationLevel
) -> None:
    db = connect()
    db.isolation_level = level
    for work in (lambda: pause(db, kind, whose), lambda: resume(db, kind, whose)):
        with pytest.raises(psycopg.Error) as caught, db.transaction():
            work()
        assert caught.value.sqlstate == "PR005"
        assert "read committed" in str(caught.value)


# races


@either
def test_resuming_waits_for_a_claim_that_is_pausing_and_undoes_it(connect: Connect, kind: str, whose: Row) -> None:
    db, worker, operator = connect(), connect(), connect()
    late = add(db, "s")
    pause(db, kind, whose)
    with worker.transaction():
        assert claim(worker).runs == []
        resuming = Doing(lambda: resume(operator, kind, whose))
        wait_until_blocked(db, operator.info.backend_pid)
    assert len(resuming.result()) == 1
    assert recall(db, late)["due_at"] == NOW
    assert claim(db).recall_ids == [late]


@either
def test_a_claim_while_the_pause_is_being_ended_pauses_for_a_second_only(
    connect: Connect, kind: str, whose: Row
) -> None:
    db, operator = connect(), connect()
    late = add(db, "s")
    pause(db, kind, whose)
    with operator.transaction():
        resume(operator, kind, whose)
        found = claim(db)
        assert (found.runs, found.next_due_at) == ([], NOW + SECOND)
    assert recall(db, late)["paused_until"] == NOW + SECOND
    set_clock(db, NOW + SECOND)
    assert claim(db).recall_ids == [late]


@either
def test_or_again_and_again_if_the_pause_goes_on(connect: Connect, kind: str, whose: Row) -> None:
    db, operator = connect(), connect()
    late = add(db, "s")
    pause(db, kind, whose)
    with operator.transaction(force_rollback=True):
        resume(operator, kind, whose)
        claim(db)
    set_clock(db, NOW + SECOND)
    assert claim(db).next_due_at is None
    assert recall(db, late)["paused_until"] is None


@either
def test_pausing_again_waits_for_a_claim_that_is_pausing(connect: Connect, kind: str, whose: Row) -> None:
    db, worker, operator = connect(), connect(), connect()
    late = add(db, "s")
    pause(db, kind, whose, paused_until=NOW + HOUR)
    with worker.transaction():
        claim(worker)
        again = Doing(lambda: pause(operator, kind, whose, paused_until=NOW + MINUTE))
        wait_until_blocked(db, operator.info.backend_pid)
    again.result()
    assert recall(db, late)["due_at"] == NOW + MINUTE


def test_many_claims_share_a_pause(connect: Connect) -> None:
    db, first, second = connect(), connect(), connect()
    add_session(db, "t", user_id="ada")
    one, other = add(db, "s"), add(db, "t")
    pause(db, "user", {"user_id": "ada"})
    with first.transaction():
        db.execute("update pgrecall.session_recalls set metadata = '{}' where false")
        with second.transaction():
            second.execute("select from pgrecall.session_recalls where id = %s for update", [other])
            claim(first)
        claim(second)
    assert {recall(db, one)["paused_until"], recall(db, other)["paused_until"]} == {None}


def test_a_session_that_is_given_away_while_its_recall_is_being_paused_is_not_stuck(connect: Connect) -> None:
    db, worker, host = connect(), connect(), connect()
    late = add(db, "s")
    pause(db, "user", {"user_id": "ada"})
    give: Callable[[], object] = lambda: host.execute("update pgrecall.sessions set user_id = 'ben' where id = 's'")  # noqa: E731
    with worker.transaction():
        claim(worker)
        giving = Doing(give)
        wait_until_blocked(db, host.info.backend_pid)
    giving.result()
    assert claim(db).recall_ids == [late]


def test_a_claim_passes_over_a_session_that_is_being_given_away(connect: Connect) -> None:
    db, host = connect(), connect()
    late = add(db, "s")
    pause(db, "user", {"user_id": "ada"})
    with host.transaction():
        host.execute("update pgrecall.sessions set user_id = 'ben' where id = 's'")
        assert claim(db).runs == []
    assert recall(db, late)["paused_at"] is None
    assert claim(db).recall_ids == [late]


def test_one_pauses_while_another_one_ends_the_pause(connect: Connect) -> None:
    db, first, second = connect(), connect(), connect()
    old = pause(db, "session", {"session_id": "s"})
    with first.transaction():
        resume(first, "session", {"session_id": "s"})
        pausing = Doing(lambda: pause(second, "session", {"session_id": "s"}))
        wait_until_blocked(db, second.info.backend_pid)
    assert pausing.result()["id"] != old["id"]
    assert value(db, "select count(*) from pgrecall.pauses") == 1


def test_the_end_of_a_pause_wakes_sleepers_and_a_pause_does_not(database: str, connect: Connect) -> None:
    db = connect()
    add(db, "s")
    pause(db, "session", {"session_id": "s"})
    claim(db)
    ear = Ear(database)
    ear.heard()
    pause(db, "session", {"session_id": "s"}, reason="longer")
    assert ear.heard() == []
    pause(db, "session", {"session_id": "s"}, paused_until=NOW + HOUR)
    assert ear.heard() == [due(NOW + HOUR)]
    claim(db)
    resume(db, "session", {"session_id": "s"})
    assert ear.heard() == [due(NOW)]
    ear.close()


def test_random_pauses_beside_claims_lose_nothing_and_run_nothing_that_is_paused(database: str) -> None:
    """Sleepers look only when a timer or a message says so; nobody oversleeps, whatever is paused, resumed or moved."""
    users = ["u1", "u2", "u3"]
    names = [f"s{number}" for number in range(9)]
    ends = time.monotonic() + 4
    with psycopg.connect(database, autocommit=True) as db:
        for place, name in enumerate(names):
            add_session(db, name, user_id=users[place % 3])
        sleepers = [Doing(lambda name=name: sleep_and_run(database, name)) for name in ("w1", "w2")]  # type: ignore[misc]

        def steer(seed: int) -> int:
            chance = random.Random(seed)
            steps = 0
            with psycopg.connect(database, autocommit=True) as operator:
                while time.monotonic() < ends:
                    kind, whose = chance.choice(
                        [("session", {"session_id": chance.choice(names)}), ("user", {"user_id": chance.choice(users)})]
                    )
                    with operator.transaction(force_rollback=chance.random() < 0.2):
                        if chance.random() < 0.6:
                            until = value(operator, "select now() + %s", timedelta(seconds=chance.random()))
                            pause(operator, kind, whose, paused_until=chance.choice([None, until]))
                        else:
                            resume(operator, kind, whose)
                        time.sleep(chance.random() / 100)
                    if chance.random() < 0.2:
                        operator.execute(
                            "update pgrecall.sessions set user_id = %s where id = %s",
                            [chance.choice(users), chance.choice(names)],
                        )
                    steps += 1
            return steps

        def produce() -> int:
            chance = random.Random(9)
            made = 0
            with psycopg.connect(database, autocommit=True) as producer:
                while time.monotonic() < ends:
                    producer.execute(
                        """insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)
                        values (%s, clock_timestamp() + %s, 'go on') on conflict do nothing""",
                        [chance.choice(names), timedelta(seconds=chance.random() / 5)],
                    )
                    made += 1
                    time.sleep(0.002)
            return made

        steering = [Doing(lambda seed=seed: steer(seed)) for seed in (1, 2)]  # type: ignore[misc]
        producing = Doing(produce)
        assert min(one.result() for one in steering) > 20
        producing.result()
        for user in users:
            resume(db, "user", {"user_id": user})
        for name in names:
            resume(db, "session", {"session_id": name})
        wait_until(
            lambda: value(db, "select count(*) from pgrecall.session_recalls where status <> 'fired'") == 0,
            "all recalls have run",
        )
        late = rows(
            db,
            """select recall_id from pgrecall.recall_runs as run
            where run.started_at > (select max(recall.created_at) from pgrecall.session_recalls as recall)
                + interval '3 seconds'""",
        )
        assert late == [], "nobody had to be woken by anything but the end of a pause"
        db.execute("select pg_notify('pgrecall', 'test is over')")
        looks = sum(one.result() for one in sleepers)
        made = value(db, "select count(*) from pgrecall.recall_runs")
    assert made > 50
    assert looks < 100 * made


def sleep_and_run(dsn: str, name: str) -> int:
    """Be a worker that only ever looks when its timer or a message says so; return how often it looked."""
    looks = 0
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("listen pgrecall")
        while True:
            looks += 1
            found = claim(db, name, up_to=2)
            for run in found.runs:
                finish(db, run)
            if found.runs or found.deferred:
                continue
            if not found.settled:
                wait = 0.01
            elif found.next_due_at is None:
                wait = DEADLINE
            else:
                wait = max((found.next_due_at - found.now_at).total_seconds(), 0.005)
            for message in db.notifies(timeout=wait, stop_after=1):
                if message.payload == "test is over":
                    return looks
