"""Chats and runs that want one session at once, on connections of their own: who gets it, who waits, who is woken."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from functools import partial

import psycopg
import pytest
from sqltools import (
    HOUR,
    MINUTE,
    NOW,
    SECOND,
    Doing,
    Row,
    add,
    add_recurring,
    add_session,
    call,
    call_one,
    change,
    claim,
    claim_one,
    finish,
    ledger,
    outcomes,
    recall,
    session,
    set_clock,
    value,
    wait_until,
    wait_until_blocked,
)

Connect = Callable[[], psycopg.Connection]


@pytest.fixture
def connect(database: str) -> Iterator[Connect]:
    """Opens autocommit connections to the fresh database."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(psycopg.connect(database, autocommit=True))


@pytest.fixture
def db(connect: Connect) -> psycopg.Connection:
    """A connection to a database whose clock stands still, with the session s."""
    db = connect()
    set_clock(db, NOW)
    add_session(db, "s")
    return db


def hold(db: psycopg.Connection, holder: str, if_held: str = "refuse", lease: timedelta = 30 * SECOND) -> Row:
    """Ask for the session s."""
    return call_one(db, "hold_session", session_id="s", holder=holder, lease=lease, if_held=if_held)


def renew(db: psycopg.Connection, holder: str, lease: timedelta = 30 * SECOND) -> bool:
    """Prolong a hold on the session s."""
    return bool(call_one(db, "renew_hold", session_id="s", holder=holder, lease=lease)["renew_hold"])


def free(db: psycopg.Connection, holder: str | None) -> bool:
    """Let go of the session s."""
    return bool(call_one(db, "free_session", session_id="s", holder=holder)["free_session"])


def due_ids(db: psycopg.Connection) -> list[str]:
    """Return the recalls that are due by the database's clock, which are those that sleepers wake up for."""
    rows = db.execute("select id from pgrecall.session_recalls where due_at <= pgrecall.clock() order by due_at")
    return [str(recall_id) for (recall_id,) in rows.fetchall()]


def test_a_claim_passes_over_a_hold_that_is_not_committed_and_defers_afterwards(
    connect: Connect, db: psycopg.Connection
) -> None:
    late = add(db, "s")
    chat = connect()
    with chat.transaction():
        assert hold(chat, "alice")["held"]
        assert claim(db).runs == []
        assert recall(db, late)["deferrals"] == 0, "nobody knows yet who will have the session"
    (deferred,) = claim(db).deferred
    assert deferred["defer_reason"] == "session held by the chat alice"
    assert due_ids(db) == []
    free(chat, "alice")
    assert due_ids(db) == [late]
    assert claim(db).recall_ids == [late]


def test_a_hold_that_is_rolled_back_never_was(connect: Connect, db: psycopg.Connection) -> None:
    late = add(db, "s")
    chat = connect()
    with chat.transaction(force_rollback=True):
        hold(chat, "alice")
        assert claim(db).runs == []
    assert claim(db).recall_ids == [late]


def test_a_chat_waits_for_a_claim_that_is_not_committed_and_is_then_refused(
    connect: Connect, db: psycopg.Connection
) -> None:
    late = add(db, "s")
    worker, chat = connect(), connect()
    with worker.transaction():
        run = claim_one(worker)
        asking = Doing(lambda: hold(chat, "alice"))
        wait_until_blocked(db, chat.info.backend_pid)
    with pytest.raises(psycopg.Error) as caught:
        asking.result()
    assert caught.value.sqlstate == "PR006"
    assert f"run {run['run_id']} of recall {late} on worker w1" in str(caught.value)


def test_a_chat_waits_for_a_claim_that_is_rolled_back_and_then_has_the_session(
    connect: Connect, db: psycopg.Connection
) -> None:
    add(db, "s")
    worker, chat = connect(), connect()
    with worker.transaction(force_rollback=True):
        claim_one(worker)
        asking = Doing(lambda: hold(chat, "alice"))
        wait_until_blocked(db, chat.info.backend_pid)
    assert asking.result()["held"]


def test_a_chat_that_asks_while_a_run_is_being_finished_has_the_session_afterwards(
    connect: Connect, db: psycopg.Connection
) -> None:
    add(db, "s")
    run = claim_one(db)
    worker, chat = connect(), connect()
    with worker.transaction():
        finish(worker, run)
        asking = Doing(lambda: hold(chat, "alice", "wait"))
        wait_until_blocked(db, chat.info.backend_pid)
    assert asking.result()["held"]


def test_a_run_that_is_finished_while_a_chat_joins_the_line_hands_the_session_to_it(
    connect: Connect, db: psycopg.Connection
) -> None:
    add(db, "s")
    run = claim_one(db)
    worker, chat, ear = connect(), connect(), connect()
    ear.execute("listen pgrecall_holds")
    with chat.transaction():
        waiting = hold(chat, "alice", "wait")
        assert not waiting["held"]
        finishing = Doing(lambda: finish(worker, run))
        wait_until_blocked(db, worker.info.backend_pid)
    assert finishing.result()["accepted"]
    assert session(db, "s")["holder"] == "alice"
    (told,) = ear.notifies(timeout=5, stop_after=1)
    assert told.payload == f"granted {waiting['waiter_id']}"
    assert hold(chat, "alice", "wait")["held"]


def test_a_recall_that_is_being_deferred_while_the_chat_frees_its_session_is_due_again(
    connect: Connect, db: psycopg.Connection
) -> None:
    late = add(db, "s")
    chat, worker = connect(), connect()
    hold(chat, "alice")
    with worker.transaction():
        assert len(claim(worker).deferred) == 1
        freeing = Doing(lambda: free(chat, "alice"))
        wait_until_blocked(db, chat.info.backend_pid)
    assert freeing.result()
    assert due_ids(db) == [late]


def test_a_claim_while_the_chat_is_freeing_its_session_leaves_the_recall_due(
    connect: Connect, db: psycopg.Connection
) -> None:
    chat = connect()
    hold(chat, "alice")
    late = add(db, "s")
    with chat.transaction():
        free(chat, "alice")
        assert claim(db).runs == []
    assert due_ids(db) == [late]
    assert claim(db).recall_ids == [late]


def test_the_line_is_served_in_the_order_of_coming(connect: Connect, db: psycopg.Connection) -> None:
    chats = [connect() for _ in range(4)]
    names = ["dave", "alice", "carol", "bob"]
    for chat, name in zip(chats, names, strict=True):
        hold(chat, name, "wait")
    # Asking again does not cost the place.
    hold(chats[1], "alice", "wait")
    served = []
    while (holder := session(db, "s")["holder"]) is not None:
        served.append(holder)
        free(db, holder)
    assert served == names
    assert value(db, "select count(*) from pgrecall.session_waiters") == 0


def test_whoever_was_granted_a_session_and_died_keeps_it_for_its_lease_only(
    connect: Connect, db: psycopg.Connection
) -> None:
    late = add(db, "s")
    hold(db, "alice")
    hold(db, "dead", "wait", lease=10 * SECOND)
    hold(db, "bob", "wait", lease=60 * SECOND)
    assert len(claim(db).deferred) == 1
    free(db, "alice")
    assert session(db, "s")["holder"] == "dead"
    set_clock(db, NOW + 9 * SECOND)
    assert not hold(db, "bob", "wait", lease=60 * SECOND)["held"]
    set_clock(db, NOW + 10 * SECOND)
    assert hold(db, "bob", "wait")["held"], "bob comes before the recall, which is due as well"
    set_clock(db, NOW + 60 * SECOND)
    free(db, "bob")
    assert claim(db).recall_ids == [late]


def test_a_waiter_that_died_is_passed_over(db: psycopg.Connection) -> None:
    hold(db, "alice", lease=HOUR)
    hold(db, "dead", "wait", lease=10 * SECOND)
    hold(db, "bob", "wait", lease=60 * SECOND)
    set_clock(db, NOW + 11 * SECOND)
    free(db, "alice")
    assert session(db, "s")["holder"] == "bob"


def test_a_recall_deferred_for_a_line_that_died_out_is_due_when_the_last_place_ends(db: psycopg.Connection) -> None:
    late = add(db, "s")
    hold(db, "alice", lease=5 * SECOND)
    hold(db, "dead", "wait", lease=20 * SECOND)
    set_clock(db, NOW + 5 * SECOND)
    (deferred,) = claim(db).deferred
    assert deferred["defer_reason"] == "a chat waits for the session"
    set_clock(db, NOW + 20 * SECOND)
    assert claim(db).recall_ids == [late]


def test_a_chat_that_leaves_the_line_of_a_free_session_wakes_the_recall(db: psycopg.Connection) -> None:
    late = add(db, "s", idle_for_seconds=1)
    hold(db, "killed", lease=5 * SECOND)
    hold(db, "bob", "wait", lease=20 * SECOND)
    set_clock(db, NOW + 7 * SECOND)
    assert claim(db).deferred[0]["defer_reason"] == "a chat waits for the session"
    assert due_ids(db) == []
    assert free(db, "bob")
    assert session(db, "s")["active_at"] == NOW + 5 * SECOND, "bob has not spoken with the agent"
    assert due_ids(db) == [late]
    assert claim(db).recall_ids == [late]


def test_a_chat_that_leaves_the_line_of_a_free_session_makes_room_for_the_next(db: psycopg.Connection) -> None:
    hold(db, "killed", lease=5 * SECOND)
    hold(db, "bob", "wait", lease=20 * SECOND)
    hold(db, "carol", "wait", lease=20 * SECOND)
    set_clock(db, NOW + 6 * SECOND)
    free(db, "bob")
    assert session(db, "s")["holder"] == "carol"


def test_a_chat_that_leaves_the_line_takes_nothing_from_who_has_the_session(db: psycopg.Connection) -> None:
    late = add(db, "s")
    hold(db, "alice")
    hold(db, "bob", "wait")
    assert len(claim(db).deferred) == 1
    assert free(db, "bob")
    assert session(db, "s")["holder"] == "alice"
    assert due_ids(db) == []
    free(db, "alice")
    run = claim_one(db)
    hold(db, "carol", "wait")
    assert free(db, "carol")
    assert session(db, "s")["run_id"] == run["run_id"]
    assert finish(db, run)["status"] == "fired"
    assert recall(db, late)["status"] == "fired"


def test_a_hold_that_is_renewed_goes_on_and_the_recall_stays_out_of_the_eligible_set(db: psycopg.Connection) -> None:
    late = add(db, "s")
    hold(db, "alice")
    for seconds in range(10, 300, 10):
        set_clock(db, NOW + seconds * SECOND)
        assert renew(db, "alice")
        claim(db)
        assert due_ids(db) == []
    assert free(db, "alice")
    assert claim(db).recall_ids == [late]


def test_a_recall_that_was_put_off_for_long_enough_has_the_session_within_the_lease(db: psycopg.Connection) -> None:
    late = add(db, "s", max_defer_seconds=60)
    hold(db, "alice")
    for seconds in (0, 20, 40):
        set_clock(db, NOW + seconds * SECOND)
        assert renew(db, "alice")
        claim(db)
    set_clock(db, NOW + MINUTE)
    assert claim(db).deferred[0]["defer_reason"] == "session held by the chat alice"
    assert not renew(db, "alice")
    assert due_ids(db) == []
    set_clock(db, NOW + 70 * SECOND)
    assert claim(db).recall_ids == [late]


@pytest.mark.parametrize("ending", ["freed", "not freed"])
@pytest.mark.parametrize("rival", ["alice", "bob", "carol"])
@pytest.mark.parametrize("if_held", ["refuse", "wait", "interrupt"])
def test_no_chat_slips_in_before_a_recall_that_was_put_off_for_long_enough(
    db: psycopg.Connection, ending: str, rival: str, if_held: str
) -> None:
    late = add(db, "s", max_defer_seconds=60)
    hold(db, "alice", lease=70 * SECOND)
    claim(db)
    set_clock(db, NOW + MINUTE)
    hold(db, "bob", "wait")
    claim(db)
    if ending == "freed":
        free(db, "alice")
    else:
        set_clock(db, NOW + 70 * SECOND)
    # The one that had it, the one in line, and one that has just come.
    if if_held == "refuse":
        with pytest.raises(psycopg.Error, match=f"recall {late}") as caught:
            hold(db, rival, if_held)
        assert caught.value.sqlstate == "PR006"
    else:
        assert not hold(db, rival, if_held)["held"]
    run = claim_one(db)
    assert run["recall_id"] == late
    finish(db, run)
    assert session(db, "s")["holder"] == "bob", "whoever waits in line is next"


def test_without_a_worker_a_recall_that_wants_a_session_keeps_chats_away_for_a_moment_only(
    db: psycopg.Connection,
) -> None:
    add(db, "s", max_defer_seconds=60)
    hold(db, "alice", lease=70 * SECOND)
    claim(db)
    set_clock(db, NOW + MINUTE)
    claim(db)
    free(db, "alice")
    assert not hold(db, "bob", "wait")["held"]
    set_clock(db, NOW + MINUTE + 5 * SECOND)
    assert hold(db, "bob", "wait")["held"]


@pytest.mark.parametrize("ending", ["cancel", "pause", "delete", "reschedule"])
def test_a_recall_that_wants_the_session_no_more_does_not_end_the_chat(db: psycopg.Connection, ending: str) -> None:
    late = add(db, "s", max_defer_seconds=60)
    hold(db, "alice", lease=90 * SECOND)
    claim(db)
    set_clock(db, NOW + MINUTE)
    claim(db)
    assert not renew(db, "alice")
    if ending == "cancel":
        assert call_one(db, "cancel_recall", session_id="s")["cancel_recall"]
    elif ending == "pause":
        call(db, "pause_recall", recall_id=late)
    elif ending == "delete":
        db.execute("delete from pgrecall.session_recalls")
    else:
        change(db, late, trigger_at=NOW + HOUR)
    assert renew(db, "alice")
    assert free(db, "alice")
    assert hold(db, "bob")["held"]


@pytest.mark.parametrize("obstacle", ["chat", "quiet", "line", "run"])
def test_an_occurrence_that_was_put_off_for_long_enough_is_left_out_whatever_it_was_put_off_for(
    db: psycopg.Connection, obstacle: str
) -> None:
    if obstacle == "run":
        add(db, "s", trigger_at=NOW - SECOND)
        claim_one(db, lease=HOUR)
    late = add(db, "s", max_defer_seconds=60, on_max_defer="skip", idle_for_seconds=30)
    if obstacle == "chat":
        hold(db, "alice", lease=HOUR)
    elif obstacle == "line":
        hold(db, "alice", lease=SECOND)
        hold(db, "bob", "wait", lease=HOUR)
        set_clock(db, NOW + SECOND)
    elif obstacle == "quiet":
        call(db, "touch_session", session_id="s")
    assert len(claim(db).deferred) == 1
    if obstacle == "quiet":
        set_clock(db, NOW + 30 * SECOND - SECOND)
        call(db, "touch_session", session_id="s")
        set_clock(db, NOW + 30 * SECOND)
        assert len(claim(db).deferred) == 1
        set_clock(db, NOW + 45 * SECOND)
        call(db, "touch_session", session_id="s")
    set_clock(db, NOW + 61 * SECOND)
    assert claim(db).recall_ids == []
    assert recall(db, late)["status"] == "cancelled"
    (skipped,) = ledger(db, late)
    assert skipped["outcome"] == "skipped"
    assert skipped["reason"].startswith("put off for 60 s: ")


def test_a_chat_that_interrupts_and_gives_up_leaves_the_recall_due(db: psycopg.Connection) -> None:
    late = add(db, "s")
    run = claim_one(db)
    hold(db, "alice", "interrupt")
    assert free(db, "alice")
    finish(db, run, "interrupted", reason="told to stop")
    assert [ledger(db, late)[0][name] for name in ("outcome", "reason")] == [
        "interrupted",
        "interrupted by the chat alice",
    ]
    assert due_ids(db) == [late]


def test_a_run_whose_worker_died_while_a_chat_interrupts_it_hands_the_session_over(db: psycopg.Connection) -> None:
    late = add(db, "s")
    claim_one(db, lease=5 * SECOND)
    hold(db, "alice", "interrupt")
    set_clock(db, NOW + 6 * SECOND)
    assert claim(db, "w2").runs == []
    assert session(db, "s")["holder"] == "alice"
    assert outcomes(db, late) == ["lost"]
    free(db, "alice")
    assert claim(db, "w2").recall_ids == [late]


@pytest.mark.parametrize("on_interrupt", ["retry", "skip"])
def test_an_interrupted_recurring_recall_is_as_configured_when_the_chat_has_ended(
    db: psycopg.Connection, on_interrupt: str
) -> None:
    late = add_recurring(db, "s", on_interrupt=on_interrupt)
    run = claim_one(db)
    hold(db, "alice", "interrupt")
    finish(db, run, "interrupted", reason="told to stop")
    assert session(db, "s")["holder"] == "alice"
    assert due_ids(db) == []
    free(db, "alice")
    assert due_ids(db) == ([late] if on_interrupt == "retry" else [])
    assert recall(db, late)["trigger_at"] == NOW + (timedelta() if on_interrupt == "retry" else MINUTE)


class Crowd:
    """Connections that do anything at random in three sessions, and remember what went wrong."""

    SESSIONS = ("a", "b", "c")
    CHATS = ("alice", "bob", "carol", "dave")

    def __init__(self, database: str, seconds: float) -> None:
        self.database = database
        self.ends = time.monotonic() + seconds
        self.errors: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self._lock = threading.Lock()

    def member(self, seed: int) -> None:
        """Do things until the time is over."""
        choose = random.Random(seed)
        worker = f"w{seed}"
        runs: list[Row] = []
        often = [self.hold, self.free, self.schedule] * 2
        seldom = [self.renew, self.cancel, self.touch, self.say, self.delete, self.change]
        with psycopg.connect(self.database, autocommit=True) as db:
            while time.monotonic() < self.ends:
                action = choose.choice(often + seldom)
                kind = choose.choice([action.__name__, "claim", "finish"])
                try:
                    if kind == "claim":
                        runs += claim(db, worker, up_to=choose.randint(1, 3), lease=2 * SECOND).runs
                    elif kind == "finish" and runs:
                        self.finish(db, choose, runs.pop(choose.randrange(len(runs))))
                    elif choose.random() < 0.2:
                        # A host that does several things in one transaction, in a session of its own.
                        with db.transaction():
                            chosen = choose.choice(self.SESSIONS)
                            action(db, choose, chosen)
                            choose.choice([self.say, self.free, self.hold])(db, choose, chosen)
                    else:
                        action(db, choose, choose.choice(self.SESSIONS))
                except psycopg.Error as error:
                    if error.sqlstate not in ("PR001", "PR006"):  # a pending recall, held
                        with self._lock:
                            self.errors[f"{error.sqlstate} {kind}: {error}"] += 1
                with self._lock:
                    self.done[kind] += 1
            for run in runs:
                finish(db, run)

    def hold(self, db: psycopg.Connection, choose: random.Random, name: str) -> None:
        call(
            db,
            "hold_session",
            session_id=name,
            holder=choose.choice(self.CHATS),
            lease=choose.choice([0.1, 0.2, 0.5]) * SECOND,
            if_held=choose.choice(["refuse", "wait", "interrupt"]),
        )

    def renew(self, db: psycopg.Connection, choose: random.Random, name: str) -> None:
        call(db, "renew_hold", session_id=name, holder=choose.choice(self.CHATS), lease=SECOND / 2)

    def free(self, db: psycopg.Connection, choose: random.Random, name: str) -> None:
        call(db, "free_session", session_id=name, holder=choose.choice([*self.CHATS, None]))

    def schedule(self, db: psycopg.Connection, choose: random.Random, name: str) -> None:
        call(
            db,
            "schedule_recall",
            session_id=name,
            additional_context_message="go on",
            interval_seconds=choose.choice([None, 1]),
            idle_for_seconds=choose.choice([None, None, 1]),
            max_defer_seconds=1,
            on_max_defer=choose.choice(["run", "skip"]),
            on_interrupt=choose.choice(["retry", "skip"]),
        )

    def cancel(self, db: psycopg.Connection, choose: random.Random, name: str) -> None:
        call(db, choose.choice(["cancel_recall", "skip_next_recall"]), session_id=name)

    def touch(self, db: psycopg.Connection, choose: random.Random, name: str) -> None:
        call(db, "touch_session", session_id=name)

    def say(self, db: psycopg.Connection, choose: random.Random, name: str) -> None:
        db.execute("select pgrecall.append_messages(%s, %s)", [name, '[{"role": "user", "content": "hello"}]'])

    def delete(self, db: psycopg.Connection, choose: random.Random, name: str) -> None:
        if choose.random() < 0.1:
            db.execute("delete from pgrecall.session_recalls where session_id = %s", [name])

    def change(self, db: psycopg.Connection, choose: random.Random, name: str) -> None:
        db.execute(
            "update pgrecall.session_recalls set trigger_at = now() where session_id = %s and status = 'pending'",
            [name],
        )

    def finish(self, db: psycopg.Connection, choose: random.Random, run: Row) -> None:
        finish(
            db,
            run,
            choose.choice(["success", "error", "interrupted", "timeout"]),
            reply="done",
            append_reply=True,
            retry=choose.random() < 0.5,
            retry_after=timedelta(),
        )


def test_a_crowd_that_does_anything_at_once_meets_no_deadlock_and_leaves_no_session_taken(
    connect: Connect, database: str
) -> None:
    db = connect()
    add_session(db, *Crowd.SESSIONS)
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")
    crowd = Crowd(database, seconds=5)
    for member in [Doing(partial(crowd.member, seed + number)) for number in range(8)]:
        member.result()
    assert crowd.errors == Counter()
    assert min(crowd.done[kind] for kind in ("hold", "renew", "free", "claim", "finish")) > 20, crowd.done

    def is_quiet() -> bool:
        # What the last ones left is over after their leases, with one worker that goes on.
        for run in claim(db, "last").runs:
            finish(db, run)
        return bool(
            value(
                db,
                """select not exists (
                select from pgrecall.sessions
                where run_id is not null or held_until > pgrecall.clock() or line_until > pgrecall.clock()
            ) and not exists (
                select from pgrecall.session_recalls
                where run_id is not null or (call_type = 'once' and status in ('pending', 'running'))
            )""",
            )
        )

    wait_until(is_quiet, "everything to come to an end")
    assert value(db, "select count(*) from pgrecall.get_holds()") == 0
    # A retry's own row has no reason: since the deferral it has waited for its backoff.
    assert not value(
        db,
        """select array_agg(recall_id) from (
            select recall_id from pgrecall.recall_runs group by recall_id, nominal_at
            having max(deferrals) > 0 and max(defer_reason) is null
        ) as without_reason""",
    )
