"""What every driver must be able to do with plain SQL, and what its user is told when the database refuses."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from peers import DRIVERS, LANGUAGES, Peer, Refused, document, moment, peer
from sqltools import HOUR, MINUTE, Ear, add_session, claim, claim_one, due, recall
from workertools import Recorder, sql, working

MESSAGE = 'Ask O\'Hara: "50 % off?" \\n is no line break;\n$1 and :v1 and ? are no placeholders 🦉 żółw'
INSERT = """insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)
    values ($1, $2, $3) returning id, due_at"""

pytestmark = pytest.mark.timeout(120)  # the first test of a language compiles its program, or fetches the driver


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest, address: str) -> Iterator[Peer]:
    """A connection by one of the drivers."""
    with peer(request.param, address) as connected:
        yield connected


def soon(delta: timedelta) -> datetime:
    """Return a time relative to now, in whole milliseconds: JavaScript has no finer ones."""
    at = datetime.now(UTC) + delta
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


@pytest.mark.anyio
async def test_a_sleeping_worker_runs_it_when_it_is_committed_and_not_before(driver: Peer, database: str) -> None:
    agent = Recorder()
    async with sql(database) as other, working(database, agent):
        await other.session("s1", "s2")
        await other.asleep()

        def produce() -> Any:
            driver.begin()
            return driver.execute(
                """insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message, metadata)
                values ($1, $2, $3, $4) returning id""",
                "s1",
                datetime.now(UTC),
                MESSAGE,
                {"order": 17, "Größe": None, "list": [1, "two"]},
            )

        ((made,),) = await anyio.to_thread.run_sync(produce)
        seen = await other.recall("s2", message="before it")  # its worker looks, and finds this one only
        await other.ended(seen)
        assert [run.recall_id for run in agent.runs] == [seen]
        await anyio.to_thread.run_sync(driver.commit)
        await agent.count(2)
        run = agent.runs[1]
        assert (run.recall_id, run.session_id, run.additional_context_message) == (made, "s1", MESSAGE)
        assert run.metadata == {"order": 17, "Größe": None, "list": [1, "two"]}


def test_what_is_rolled_back_wakes_nobody(driver: Peer, ear: Ear) -> None:
    driver.begin()
    driver.execute(INSERT, "s1", soon(-MINUTE), "never said")
    driver.rollback()
    assert ear.heard() == []
    driver.begin()
    driver.execute("savepoint try")
    driver.execute(INSERT, "s1", soon(-MINUTE), "never said either")
    driver.execute("rollback to savepoint try")
    driver.commit()
    assert claim(ear.connection).runs == []


def test_a_transaction_of_any_level_wakes_when_it_commits(driver: Peer, ear: Ear) -> None:
    at = soon(HOUR)
    for number, level in enumerate(("repeatable read", "serializable"), 1):
        driver.begin()
        driver.execute(f"set transaction isolation level {level}")
        driver.execute(INSERT, f"s{number}", at - number * MINUTE, "hello")
        assert ear.heard() == []
        driver.commit()
        assert ear.heard() == [due(at - number * MINUTE)]
        assert claim(ear.connection).next_due_at == at - number * MINUTE


def test_a_time_arrives_and_comes_back_as_the_same_moment(driver: Peer, ear: Ear) -> None:
    for number, at in enumerate(
        (soon(HOUR), datetime(2031, 7, 1, 12, tzinfo=UTC), datetime(1999, 1, 1, tzinfo=UTC)), 1
    ):
        ((made, returned),) = driver.execute(INSERT, f"s{number}", at, "hello")
        assert moment(returned) == at
        assert recall(ear.connection, made)["trigger_at"] == at


def test_json_and_nulls_come_back(driver: Peer, ear: Ear) -> None:
    ((metadata, comment, cron),) = driver.execute(
        """insert into pgrecall.session_recalls
            (session_id, trigger_at, additional_context_message, internal_comment, idempotency_key, metadata)
        values ($1, $2, $3, $4, $5, $6) returning metadata, internal_comment, cron""",
        "s1",
        soon(HOUR),
        "hello",
        None,
        None,
        {"quote": "'", "nested": {"a": [True, None]}},
    )
    assert document(metadata) == {"quote": "'", "nested": {"a": [True, None]}}
    assert (comment, cron) == (None, None)


def test_the_same_statement_works_often_and_with_several_rows(driver: Peer, ear: Ear) -> None:
    """Drivers prepare a statement after some uses; a trigger or generated column must not break its plan."""
    at = soon(HOUR)
    ids = {driver.execute(INSERT, f"s{number}", at, "hello")[0][0] for number in range(1, 8)}
    assert len(ids) == 7
    rows = driver.execute(
        """insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)
        values ($1, $2, $3), ($4, $5, $6) returning id""",
        *("s8", at - MINUTE, "eight"),
        *("s9", at, "nine"),
    )
    assert len(rows) == 2
    assert due(at - MINUTE) in ear.heard()
    assert claim(ear.connection).next_due_at == at - MINUTE


def test_the_function_takes_its_values_and_knows_a_request_again(driver: Peer, ear: Ear) -> None:
    ask = """select id, metadata, call_type from pgrecall.schedule_recall(session_id => $1,
        additional_context_message => $2, trigger_at => $3, interval_seconds => $4, metadata => $5,
        idempotency_key => $6)"""
    values = ("s1", MESSAGE, soon(HOUR), 3600, {"a": 1}, "order-88")
    ((first, metadata, kind),) = driver.execute(ask, *values)
    assert (document(metadata), kind) == ({"a": 1}, "recurring")
    ((second, _, _),) = driver.execute(ask, *values)
    assert second == first
    assert recall(ear.connection, first)["additional_context_message"] == MESSAGE


def test_an_insert_can_be_repeated_with_a_key(driver: Peer, ear: Ear) -> None:
    ask = """insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message, idempotency_key)
        values ($1, $2, $3, $4) on conflict do nothing returning id"""
    assert len(driver.execute(ask, "s1", soon(HOUR), "hello", "order-88")) == 1
    assert driver.execute(ask, "s1", soon(HOUR), "hello", "order-88") == []


def test_it_moves_and_cancels(driver: Peer, ear: Ear) -> None:
    at = soon(HOUR)
    ((made, _),) = driver.execute(INSERT, "s1", at, "hello")
    assert claim(ear.connection).next_due_at == at
    ear.heard()
    driver.execute("update pgrecall.session_recalls set trigger_at = $1 where id = $2", at - MINUTE, made)
    assert ear.heard() == [due(at - MINUTE)]
    driver.execute("update pgrecall.session_recalls set status = 'cancelled' where id = $1", made)
    assert claim(ear.connection).next_due_at is None


@pytest.mark.parametrize("name", DRIVERS)
def test_a_delete_ends_the_run_if_the_role_may(name: str, owner: str, ear: Ear) -> None:
    with peer(name, owner) as driver:
        ((made, _),) = driver.execute(INSERT, "s1", soon(-MINUTE), "hello")
        run = claim_one(ear.connection)
        ear.heard()
        rows = driver.execute("delete from pgrecall.session_recalls where id = $1 returning status", made)
    assert rows == [("running",)]
    assert ear.heard() == [f"stop {run['run_id']}"]


#: Columns that an INSERT is refused for, with SQLSTATE and constraint.
REFUSALS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "unknown session": ({"session_id": "nobody"}, "23503", "session_of_recall_must_exist"),
    "second pending recall": ({"session_id": "taken"}, "23505", "one_pending_recall_per_session"),
    "empty message": ({"additional_context_message": " "}, "23514", "additional_context_message_must_not_be_empty"),
    "kind": ({"call_type": "sometimes"}, "23514", "call_type_must_be_once_recurring_or_immediate"),
    "no interval": ({"call_type": "recurring"}, "23514", "recurring_recall_needs_interval_seconds_or_cron"),
    "interval of 0": ({"interval_seconds": 0}, "23514", "interval_seconds_must_be_greater_than_zero"),
    "infinite": ({"trigger_at": "infinity"}, "23514", "trigger_at_must_be_a_finite_time_in_the_years_1_to_9999"),
    "empty key": ({"idempotency_key": ""}, "23514", "idempotency_key_must_have_1_to_255_characters"),
    "null message": ({"additional_context_message": None}, "23502", None),
}


def test_a_refused_insert_names_the_rule(driver: Peer, ear: Ear) -> None:
    add_session(ear.connection, "taken")
    driver.execute(INSERT, "taken", soon(HOUR), "hello")
    for case, (wrong, sqlstate, constraint) in REFUSALS.items():
        given: dict[str, Any] = {"session_id": "s1", "additional_context_message": "hello", **wrong}
        infinite = given.pop("trigger_at", None)
        places = ", ".join(f"${number}" for number in range(1, len(given) + 1))
        at = "now()" if infinite is None else f"'{infinite}'"
        statement = f"insert into pgrecall.session_recalls ({', '.join(given)}, trigger_at) values ({places}, {at})"
        with pytest.raises(Refused) as caught:
            driver.execute(statement, *given.values())
        assert (caught.value.sqlstate, caught.value.constraint) == (sqlstate, constraint), case
        assert constraint is None or constraint in (caught.value.message or ""), case


#: What schedule_recall() refuses: the arguments, and SQLSTATE, message and the beginning of the hint.
FUNCTION_REFUSALS = [
    ("'taken', 'again'", "PR001", "session 'taken' already has a pending recall", "Cancel it with"),
    ("'nobody', 'hello'", "PR002", "no session with id 'nobody'", "Insert it first"),
    ("'s1', 'hello', 'infinity'", "PR005", "trigger_at is infinity, which is not a time", "Give a finite time"),
    ("'s1', 'hello', cron => '0 9 * *', time_zone => 'UTC'", "PR005", "cron", "For example '0 9 * * mon-fri'."),
]


def test_a_refusal_of_the_function_arrives_with_its_code_message_and_hint(driver: Peer, ear: Ear) -> None:
    add_session(ear.connection, "taken")
    driver.execute(INSERT, "taken", soon(HOUR), "hello")
    for arguments, sqlstate, message, hint in FUNCTION_REFUSALS:
        with pytest.raises(Refused) as caught:
            driver.execute(f"select id from pgrecall.schedule_recall({arguments})")
        assert caught.value.sqlstate == sqlstate, arguments
        assert message in (caught.value.message or ""), arguments
        assert (caught.value.hint or "").startswith(hint), arguments


#: What a producer may not: statements, all refused with 42501.
FORBIDDEN = [
    "delete from pgrecall.session_recalls",
    "insert into pgrecall.session_recalls (session_id, additional_context_message, attempt) values ('s1', 'hello', 3)",
    "insert into pgrecall.session_recalls (session_id, additional_context_message, deliver_to) values ('s1', 'x', 'u')",
    "update pgrecall.session_recalls set session_id = 's2'",
]


def test_what_the_role_may_not_is_refused_with_one_code(driver: Peer, ear: Ear) -> None:
    for statement in FORBIDDEN:
        with pytest.raises(Refused) as caught:
            driver.execute(statement)
        assert caught.value.sqlstate == "42501", statement


def test_a_connection_goes_on_after_a_refusal(driver: Peer, ear: Ear) -> None:
    driver.begin()
    driver.execute("savepoint try")
    with pytest.raises(Refused):
        driver.execute(INSERT, "nobody", soon(HOUR), "hello")
    driver.execute("rollback to savepoint try")
    driver.execute(INSERT, "s1", soon(HOUR), "hello")
    driver.commit()
    assert claim(ear.connection).next_due_at is not None


def test_pgjdbc_sets_the_time_zone_of_its_java(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a time without an offset is read in that one: what the page warns of."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    with peer("java", address) as driver:
        assert driver.execute("show timezone") == [("Asia/Tokyo",)]


def test_all_languages_of_the_page_are_tested() -> None:
    assert {"node", "java", "go", "perl", "ruby", "php", "c"} <= set(LANGUAGES)
