"""claim() and the outcomes have a short way for what is nearly always so; it must do exactly what the long way does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqltools import NOW, add, call, claim, finish, outcomes, recall, refused, rows, set_clock, value

#: What may be so when recalls are due: about one of them, its session, or everything. Each is a statement; r1 is the
#: recall that it is about, and s1 its session.
BEFORE_THE_CLAIM = {
    "an attempt before": "update pgrecall.session_recalls set attempt = 1 where id = 'r1'",
    "its last attempt": "update pgrecall.session_recalls set attempt = 2 where id = 'r1'",
    "one attempt only": "update pgrecall.session_recalls set max_attempts = 1 where id = 'r1'",
    "a backoff that is over": (
        "update pgrecall.session_recalls set not_before = trigger_at + interval '1 second' where id = 'r1'"
    ),
    "a pause that is over": (
        "update pgrecall.session_recalls set paused_at = trigger_at, paused_until = trigger_at + interval '1 second', "
        "pause_reason = 'lunch' where id = 'r1'"
    ),
    "put off before": (
        "update pgrecall.session_recalls set deferrals = 2, deferred_since = trigger_at, defer_reason = 'a chat' "
        "where id = 'r1'"
    ),
    "a wish for quiet": "update pgrecall.session_recalls set idle_for_seconds = 60 where id = 'r1'",
    "its own time zone": "update pgrecall.session_recalls set time_zone = 'Asia/Tokyo' where id = 'r1'",
    "recurring": (
        "update pgrecall.session_recalls set call_type = 'recurring', interval_seconds = 3600 where id = 'r1'"
    ),
    "somewhere to deliver to": "update pgrecall.session_recalls set deliver_to = 'https://example.org' where id = 'r1'",
    "another pending recall's place": (
        "update pgrecall.session_recalls set status = 'running', not_before = trigger_at where id = 'r1'"
    ),
    "the session's time zone": "update pgrecall.sessions set time_zone = 'Europe/Paris' where id = 's1'",
    "a session that delivers": "update pgrecall.sessions set deliver_to = 'https://example.org' where id = 's1'",
    "an owner": "update pgrecall.sessions set user_id = 'ada' where id = 's1'",
    "a chat": "select pgrecall.hold_session('s1', 'chat')",
    "a chat whose hold is over": (
        "update pgrecall.sessions set holder = 'chat', held_since = '2020-01-01', held_until = '2020-01-02' "
        "where id = 's1'"
    ),
    "somebody who has just spoken": "select pgrecall.touch_session('s1')",
    "a limit of the session": "update pgrecall.sessions set max_runs_per_day = 1 where id = 's1'",
    "a limit for all": "update pgrecall.settings set max_runs_per_day = 1",
    "a paused session": "select pgrecall.pause_session('s2', 'lunch')",
    "a paused user": "select pgrecall.pause_user('ada', 'lunch')",
    "a template": "update pgrecall.settings set message_template = '{message} at {now} in {session_id}'",
    "its message there already": (
        "insert into pgrecall.session_messages (session_id, id, role, content) "
        "select session_id, pgrecall.occurrence_message_id(id, trigger_at), 'system', 'before' "
        "from pgrecall.session_recalls where id = 'r1'"
    ),
    "two recalls of one session": (
        "update pgrecall.session_recalls set session_id = 's1', status = 'running', not_before = trigger_at "
        "where id = 'r2'"
    ),
}

#: What may happen while they run.
DURING_THE_RUN = {
    "cancelled": "select pgrecall.mark_cancelled('r1')",
    "moved": "select pgrecall.reschedule('r1', pgrecall.clock() + interval '1 hour')",
    "marked as fired": "update pgrecall.session_recalls set status = 'fired' where id = 'r1'",
    "told to stop": "select pgrecall.stop_run('r1', 'enough')",
    "paused": "select pgrecall.pause_recall('r1', 'lunch')",
    "deleted": "delete from pgrecall.session_recalls where id = 'r1'",
    "a chat that waits": "select pgrecall.hold_session('s1', 'chat', if_held => 'wait')",
    "a chat that interrupts": "select pgrecall.hold_session('s1', 'chat', if_held => 'interrupt')",
    "the next recall of the session": (
        "insert into pgrecall.session_recalls (id, session_id, additional_context_message) values ('n1', 's1', 'next')"
    ),
    "the next one has been put off": (
        "insert into pgrecall.session_recalls (id, session_id, additional_context_message) "
        "values ('n1', 's1', 'next'); select pgrecall.claim('w2', 10)"
    ),
    "somebody speaks": "select pgrecall.touch_session('s1')",
    "a report": ("select pgrecall.report_run(run_id, 'from outside') from pgrecall.session_recalls where id = 'r1'"),
    "delivers from now on": "update pgrecall.sessions set deliver_to = 'https://example.org' where id = 's1'",
    "another token": "update pgrecall.settings set silent_token = 'did it'",
}

REPLIES = [None, "", " \n", "did it", " [SILENT] "]

TABLES = [
    "session_recalls",
    "sessions",
    "session_messages",
    "recall_runs",
    "deliveries",
    "run_reports",
    "workers",
    "audit",
]

Story = Callable[[], object]


@pytest.fixture
def db(db: psycopg.Connection) -> psycopg.Connection:
    """A connection in a transaction, at NOW."""
    set_clock(db, NOW)
    return db


def number_from(db: psycopg.Connection, first: int) -> None:
    """Number runs, messages and the audit from here on; a rollback does not undo that."""
    for sequence in ("run_ids", "session_messages_position_seq", "audit_id_seq"):
        db.execute("select setval(%s, %s)", [f"pgrecall.{sequence}", first])


def named(it: Any, of: Mapping[int, str]) -> Any:
    """The same with the numbers of runs replaced by whose they are: which gets which is of no account either."""
    match it:
        case dict():
            return {name: named(value, of) for name, value in it.items()}
        case list() | tuple():
            return [named(value, of) for value in it]
        case int() if not isinstance(it, bool) and it in of:
            return f"run of {of[it]}"
        case str():
            return re.sub(r"\brun (\d+)", lambda found: f"run of {of.get(int(found[1]))}", it)
    return it


def told(db: psycopg.Connection, story: Story) -> object:
    """What a story answers and leaves in the tables; everything is as before afterwards."""
    with db.transaction(force_rollback=True):
        number_from(db, 2000)
        answer = story()
        # In which order messages of different sessions were written is of no account.
        left: dict[str, list[Any]] = {
            table: [
                found["row"]
                for found in rows(
                    db,
                    "select it.row - 'position' as row "
                    f"from (select to_jsonb({table}) as row from pgrecall.{table}) as it "
                    "order by it.row ->> 'session_id', it.row -> 'position', it.row",
                )
            ]
            for table in TABLES
        }
        of = {row["run_id"]: row["id"] for row in left["session_recalls"]}
        of |= {row["id"]: row["recall_id"] for row in left["recall_runs"]}
        return named((answer, left), of)


def the_long_way(db: psycopg.Connection) -> None:
    """From here on claim() finds that something stands in the way, whatever is due."""
    found = value(db, "select pg_get_functiondef(oid) from pg_proc where oid = 'pgrecall.claim'::regproc")
    assert found.count("if v_is_clear then") == 1
    db.execute(
        found.replace("if v_is_clear then", "v_is_clear := nullif(v_looked, 0) < 0; if v_is_clear then").encode()
    )


def two_due(db: psycopg.Connection, *also: str) -> None:
    """Two recalls of two sessions that are due, and what else is so."""
    number_from(db, 1000)
    for number in (1, 2):
        add(db, f"s{number}", NOW - timedelta(minutes=number), id=f"r{number}")
    for what in also:
        db.execute({**BEFORE_THE_CLAIM, **DURING_THE_RUN}[what])


@pytest.mark.parametrize("inject", [True, False])
@pytest.mark.parametrize("what", BEFORE_THE_CLAIM)
def test_a_claim_does_the_same_the_short_and_the_long_way(db: psycopg.Connection, what: str, inject: bool) -> None:
    two_due(db, what)

    def short() -> object:
        return call(db, "claim", worker_id="w1", up_to=10, inject=inject)

    def long() -> object:
        the_long_way(db)
        return short()

    assert told(db, short) == told(db, long)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_claim_does_the_same_both_ways_whatever_comes_together(db: psycopg.Connection, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(sorted(BEFORE_THE_CLAIM)), unique=True, max_size=4))
    up_to = data.draw(st.sampled_from([1, 2, 10]))
    with db.transaction(force_rollback=True):
        try:
            with db.transaction():
                two_due(db, *chosen)
        except psycopg.Error:
            return  # these do not go together

        def short() -> object:
            return call(db, "claim", worker_id="w1", up_to=up_to)

        def long() -> object:
            the_long_way(db)
            return short()

        assert told(db, short) == told(db, long)


def endings(
    db: psycopg.Connection, runs: list[dict[str, object]], reply: str | None, append: bool
) -> tuple[Story, Story]:
    """Two stories of how the runs end: told together, the rest one by one; and all one by one."""
    started_at = NOW + timedelta(seconds=1)

    def alone(run: Any) -> None:
        finish(db, run, reply=reply, started_at=started_at, append_reply=append)

    def together() -> set[object]:
        answer = call(
            db,
            "finish_unobstructed",
            run_ids=[run["run_id"] for run in runs],
            outcomes=["success"] * len(runs),
            started_at=[started_at] * len(runs),
            replies=[reply] * len(runs),
            append_reply=append,
        )
        done = {row["run_id"] for row in answer if row["accepted"]}
        for run in runs:
            if run["run_id"] not in done:
                alone(run)
        return set()

    def one_by_one() -> set[object]:
        for run in runs:
            alone(run)
        return set()

    return together, one_by_one


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("what", [None, *DURING_THE_RUN])
def test_outcomes_come_to_the_same_together_and_alone(
    db: psycopg.Connection, what: str | None, reply: str | None
) -> None:
    two_due(db)
    runs = claim(db).runs
    assert len(runs) == 2
    if what is not None:
        db.execute(DURING_THE_RUN[what])
    set_clock(db, NOW + timedelta(seconds=9))
    together, one_by_one = endings(db, runs, reply, append=True)

    assert told(db, together) == told(db, one_by_one)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_outcomes_come_to_the_same_whatever_was_before(db: psycopg.Connection, data: st.DataObject) -> None:
    before = data.draw(st.lists(st.sampled_from(sorted(BEFORE_THE_CLAIM)), unique=True, max_size=2))
    during = data.draw(st.lists(st.sampled_from(sorted(DURING_THE_RUN)), unique=True, max_size=2))
    reply, append = data.draw(st.sampled_from(REPLIES)), data.draw(st.booleans())
    with db.transaction(force_rollback=True):
        set_clock(db, NOW)
        try:
            with db.transaction():
                two_due(db, *before)
                runs = claim(db).runs
                for what in during:
                    db.execute(DURING_THE_RUN[what])
        except psycopg.Error:
            return  # these do not go together
        set_clock(db, NOW + timedelta(seconds=9))
        together, one_by_one = endings(db, runs, reply, append)
        assert told(db, together) == told(db, one_by_one)


def test_most_outcomes_need_no_more_than_the_short_way(db: psycopg.Connection) -> None:
    two_due(db)
    runs = claim(db).runs

    answer = call(
        db,
        "finish_unobstructed",
        run_ids=[run["run_id"] for run in runs] + [987654321],
        outcomes=["success", "silent", "success"],
        started_at=[NOW, None, None],
        replies=["done", None, None],
        append_reply=True,
    )

    assert {row["run_id"]: row["accepted"] for row in answer} == {run["run_id"]: True for run in runs}
    assert sorted(outcomes(db, "r1") + outcomes(db, "r2")) == ["silent", "success"]
    assert recall(db, "r1")["status"] == recall(db, "r2")["status"] == "fired"
    assert value(db, "select count(*) from pgrecall.sessions where run_id is not null") == 0


def succeed(db: psycopg.Connection, run_ids: Iterable[object]) -> list[Any]:
    """What the short way answers to successes without a reply."""
    given = [*run_ids]
    none = [None] * len(given)
    outcomes = ["success"] * len(given)
    return call(db, "finish_unobstructed", run_ids=given, outcomes=outcomes, started_at=none, replies=none)


def test_who_needs_the_longer_way_is_told_from_who_is_locked(db: psycopg.Connection) -> None:
    two_due(db)
    runs = {run["recall_id"]: run["run_id"] for run in claim(db).runs}
    db.execute("update pgrecall.session_recalls set deliver_to = 'https://example.com/' where id = 'r1'")

    answer = succeed(db, runs.values())

    assert {row["run_id"]: row["accepted"] for row in answer} == {runs["r1"]: False, runs["r2"]: True}
    assert recall(db, "r1")["status"] == "running"
    assert outcomes(db, "r1") == []


def test_outcomes_told_together_twice_count_once(db: psycopg.Connection) -> None:
    two_due(db)
    given = {
        "run_ids": [run["run_id"] for run in claim(db).runs],
        "outcomes": ["success", "success"],
        "started_at": [None, None],
        "replies": ["a", "b"],
    }

    first, second = (call(db, "finish_unobstructed", **given) for _ in range(2))

    assert len(first) == 2
    assert second == []
    assert outcomes(db, "r1") == outcomes(db, "r2") == ["success"]


@pytest.mark.parametrize("outcome", ["error", "lost", None])
def test_other_outcomes_are_refused_and_nothing_is_ended(db: psycopg.Connection, outcome: str | None) -> None:
    two_due(db)
    runs = claim(db).runs

    with refused(db, "PR005"):
        call(
            db,
            "finish_unobstructed",
            run_ids=[run["run_id"] for run in runs],
            outcomes=["success", outcome],
            started_at=[None, None],
            replies=[None, None],
        )

    assert recall(db, "r1")["status"] == recall(db, "r2")["status"] == "running"


def test_who_has_a_row_locked_does_not_keep_the_other_outcomes_waiting(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as db, psycopg.connect(database) as person:
        set_clock(db, NOW)
        two_due(db)
        runs = {run["recall_id"]: run["run_id"] for run in claim(db).runs}
        person.execute("select from pgrecall.session_recalls where id = 'r1' for update")

        answer = succeed(db, runs.values())

        assert answer == [{"run_id": runs["r2"], "accepted": True}]
        assert recall(db, "r1")["status"] == "running"
