"""The outbox of replies, and reports about runs, on the SQL level."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqltools import (
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
    claim_one,
    finish,
    ledger,
    microseconds,
    refused,
    rows,
    set_clock,
    value,
    wait_until_blocked,
)

URL = "https://example.com/hook"


def deliveries(db: psycopg.Connection) -> list[Row]:
    return rows(db, "select * from pgrecall.deliveries order by id")


def queued(db: psycopg.Connection, session_id: str = "s1", reply: str = "hello", **columns: object) -> int:
    """Run a recall that wants its reply delivered; the delivery's id."""
    add(db, session_id, NOW, **{"deliver_to": URL, **columns})
    run = claim_one(db)
    assert finish(db, run, reply=reply)["accepted"]
    return int(run["run_id"])


def look(db: psycopg.Connection, up_to: int = 10, lease: timedelta = MINUTE) -> list[Row]:
    return call(db, "claim_deliveries", up_to=up_to, lease=lease)


def attempt(db: psycopg.Connection) -> Row:
    (row,) = look(db)
    assert row["delivery_id"] is not None
    return row


def end(db: psycopg.Connection, row: Row, status: str, **more: object) -> datetime | None:
    (answer,) = call(db, "end_delivery", delivery_id=row["delivery_id"], attempt=row["attempt"], status=status, **more)
    at: datetime | None = answer["end_delivery"]
    return at


@pytest.fixture(autouse=True)
def still(db: psycopg.Connection) -> None:
    set_clock(db, NOW)


# Queueing


def test_a_reply_is_queued_with_all_that_a_receiver_needs(db: psycopg.Connection) -> None:
    add_session(db, "s1", user_id="u1")
    add(
        db, "s1", NOW - 3 * SECOND, id="r1", deliver_to=URL, additional_context_message="Water.",
        metadata=psycopg.types.json.Jsonb({"channel": "C1"}),
    )  # fmt: skip
    run = claim_one(db)
    finish(db, run, reply="Done.", started_at=NOW)
    (row,) = deliveries(db)
    assert row == {
        "id": run["run_id"],
        "recall_id": "r1",
        "session_id": "s1",
        "url": URL,
        "payload": {
            "type": "recall.replied",
            "timestamp": "2030-01-01T12:00:00.000000Z",
            "data": {
                "session_id": "s1",
                "user_id": "u1",
                "recall_id": "r1",
                "run_id": run["run_id"],
                "message_id": "recall:r1:2030-01-01T11:59:57.000000Z",
                "call_type": "once",
                "nominal_at": "2030-01-01T11:59:57.000000Z",
                "started_at": "2030-01-01T12:00:00.000000Z",
                "finished_at": "2030-01-01T12:00:00.000000Z",
                "attempt": 1,
                "user_message": "Water.",
                "reply": "Done.",
                "metadata": {"channel": "C1"},
            },
        },
        "status": "pending",
        "attempt": 0,
        "next_at": NOW,
        "created_at": NOW,
        "ended_at": None,
        "response_status": None,
        "last_error": None,
    }


def test_a_recall_without_a_url_takes_that_of_its_session_and_its_own_comes_first(db: psycopg.Connection) -> None:
    db.execute("insert into pgrecall.sessions (id, deliver_to) values ('s1', 'https://session.example')")
    queued(db, deliver_to=None)
    queued(db, deliver_to="https://recall.example")
    assert [row["url"] for row in deliveries(db)] == ["https://session.example", "https://recall.example"]


@pytest.mark.parametrize(
    ("outcome", "reply"),
    [
        ("success", None),
        ("success", ""),
        ("success", " \n"),
        ("silent", "[SILENT]"),
        ("error", "half a reply"),
        ("timeout", "half a reply"),
        ("interrupted", "half a reply"),
    ],
)
def test_nothing_is_delivered_of_a_run_that_has_nothing_to_say(
    db: psycopg.Connection, outcome: str, reply: str | None
) -> None:
    add(db, "s1", deliver_to=URL)
    finish(db, claim_one(db), outcome, reply=reply)
    assert deliveries(db) == []


def test_nothing_is_delivered_if_nobody_wants_it(db: psycopg.Connection) -> None:
    add(db, "s1")
    finish(db, claim_one(db), reply="hello")
    assert deliveries(db) == []


def test_an_outcome_that_is_refused_queues_nothing(db: psycopg.Connection) -> None:
    add(db, "s1", deliver_to=URL)
    run = claim_one(db)
    assert not finish(db, run | {"run_id": run["run_id"] + 1000}, reply="hello")["accepted"]
    assert deliveries(db) == []


def test_saying_the_same_outcome_again_queues_nothing_more(db: psycopg.Connection) -> None:
    add(db, "s1", deliver_to=URL)
    run = claim_one(db)
    finish(db, run, reply="hello")
    finish(db, run, reply="hello")
    assert len(deliveries(db)) == 1


def test_the_outcome_and_its_delivery_are_one_transaction(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        add(db, "s1", trigger_at=datetime.fromisoformat("2020-01-01T00:00:00Z"), deliver_to=URL)
        run = claim_one(db)
        with db.transaction(force_rollback=True):
            finish(db, run, reply="hello")
            assert len(deliveries(db)) == 1
        assert deliveries(db) == []
        assert ledger(db, run["recall_id"]) == []


def test_workers_are_told_of_a_new_delivery_and_whose_it_is(database: str) -> None:
    ear = Ear(database)
    with psycopg.connect(database, autocommit=True) as db:
        set_clock(db, NOW)
        add(db, "s1", deliver_to=URL)
        run = claim_one(db, "w7")
        ear.heard()
        finish(db, run, reply="hello")
        assert ear.heard() == [f"deliver {microseconds(NOW)} w7"]
        call(db, "retry_delivery", delivery_id=run["run_id"])
        assert ear.heard() == [f"deliver {microseconds(NOW)} "]
    ear.close()


# Trying


def test_a_claimed_delivery_is_nobody_elses_until_its_lease_ends(db: psycopg.Connection) -> None:
    delivery_id = queued(db)
    row = attempt(db)
    assert (row["delivery_id"], row["attempt"], row["url"]) == (delivery_id, 1, URL)
    assert row["payload"]["data"]["reply"] == "hello"
    assert row["next_at"] is None
    (other,) = look(db)
    assert (other["delivery_id"], other["next_at"]) == (None, NOW + MINUTE)
    set_clock(db, NOW + MINUTE)
    assert attempt(db)["attempt"] == 2


def test_only_so_many_are_claimed_as_were_asked_for_the_earliest_first(db: psycopg.Connection) -> None:
    first, second, third = (queued(db, f"s{number}") for number in range(3))
    db.execute("update pgrecall.deliveries set next_at = next_at - interval '1 s' where id = %s", [third])
    assert [row["delivery_id"] for row in look(db, 2)] == [first, third]
    assert [row["delivery_id"] for row in look(db, 0)] == [None]
    assert [row["delivery_id"] for row in look(db, 2)] == [second]


def test_two_workers_never_claim_the_same(database: str) -> None:
    with psycopg.connect(database) as one, psycopg.connect(database, autocommit=True) as two:
        add(two, "s1", trigger_at=datetime.fromisoformat("2020-01-01T00:00:00Z"), deliver_to=URL)
        finish(two, claim_one(two), reply="hello")
        assert look(one)[0]["delivery_id"] is not None
        (left,) = look(two)  # does not wait
        assert left["delivery_id"] is None
        assert left["next_at"] is not None  # so that it looks again, should the other one fail


def test_a_delivered_reply_is_never_due_again(db: psycopg.Connection) -> None:
    queued(db)
    row = attempt(db)
    assert end(db, row, "delivered", response_status=204) is None
    (now,) = deliveries(db)
    assert (now["status"], now["ended_at"], now["next_at"], now["response_status"]) == ("delivered", NOW, None, 204)
    (nothing,) = look(db)
    assert (nothing["delivery_id"], nothing["next_at"]) == (None, None)


def test_attempts_are_spread_over_three_days_and_then_it_has_failed(db: psycopg.Connection) -> None:
    queued(db)
    now = NOW
    waits = []
    for count in itertools.count(1):
        row = attempt(db)
        assert row["attempt"] == count
        again = end(db, row, "pending", response_status=500, error="HTTP 500")
        if again is None:
            break
        waits.append((again - now).total_seconds())
        now = again
        set_clock(db, now)
    expected = [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]
    assert len(waits) == len(expected)
    for wait, middle in zip(waits, expected, strict=True):
        assert middle * 0.8 <= wait <= middle * 1.2
    (ended,) = deliveries(db)
    assert (ended["status"], ended["attempt"], ended["last_error"], ended["ended_at"]) == (
        "failed",
        10,
        "HTTP 500",
        now,
    )


def test_the_waiting_times_differ(db: psycopg.Connection) -> None:
    assert len({value(db, "select pgrecall._delivery_delay(1)") for _ in range(20)}) > 10


@pytest.mark.parametrize(
    ("asked", "shortest", "longest"),
    [(timedelta(seconds=1), 4, 6), (timedelta(hours=1), 3600, 3600), (timedelta(days=30), 86400, 86400)],
)
def test_a_receiver_may_ask_for_a_longer_wait_of_a_day_at_most(
    db: psycopg.Connection, asked: timedelta, shortest: int, longest: int
) -> None:
    queued(db)
    again = end(db, attempt(db), "pending", retry_after=asked)
    assert again is not None
    assert shortest <= (again - NOW).total_seconds() <= longest


def test_asking_for_a_longer_wait_gives_no_further_attempt(db: psycopg.Connection) -> None:
    queued(db)
    db.execute("update pgrecall.deliveries set attempt = 9")
    assert end(db, attempt(db), "pending", retry_after=timedelta(hours=1)) is None
    assert deliveries(db)[0]["status"] == "failed"


def test_an_endpoint_that_is_gone_is_given_up_at_once(db: psycopg.Connection) -> None:
    queued(db)
    assert end(db, attempt(db), "failed", response_status=410, error="HTTP 410") is None
    assert deliveries(db)[0]["status"] == "failed"


def test_a_late_failure_does_not_disturb_the_attempt_of_another_worker_but_a_late_success_counts(
    db: psycopg.Connection,
) -> None:
    queued(db)
    late = attempt(db)
    set_clock(db, NOW + MINUTE)
    attempt(db)
    assert end(db, late, "pending", error="too late") is None
    assert deliveries(db)[0]["next_at"] == NOW + 2 * MINUTE
    end(db, late, "failed", error="too late")
    assert deliveries(db)[0]["status"] == "pending"
    end(db, late, "delivered", response_status=200)
    assert deliveries(db)[0]["status"] == "delivered"


def test_an_attempt_ends_in_one_of_three_ways(db: psycopg.Connection) -> None:
    with refused(db, "PR005") as caught:
        call(db, "end_delivery", delivery_id=1, attempt=1, status="lost")
    assert "'lost'" in str(caught.value)


# Operating


@pytest.mark.parametrize("ended", ["delivered", "failed"])
def test_a_delivery_that_has_ended_can_be_tried_again_with_all_its_attempts(db: psycopg.Connection, ended: str) -> None:
    delivery_id = queued(db)
    end(db, attempt(db), ended)
    again = call_one(db, "retry_delivery", delivery_id=delivery_id)
    assert (again["status"], again["attempt"], again["next_at"], again["ended_at"]) == ("pending", 0, NOW, None)
    assert attempt(db)["attempt"] == 1


def test_trying_a_pending_delivery_now_keeps_its_count(db: psycopg.Connection) -> None:
    delivery_id = queued(db)
    end(db, attempt(db), "pending")
    call(db, "retry_delivery", delivery_id=delivery_id)
    assert attempt(db)["attempt"] == 2


def test_trying_an_unknown_delivery_is_refused(db: psycopg.Connection) -> None:
    with refused(db, "PR003") as caught:
        call(db, "retry_delivery", delivery_id=4711)
    assert "4711" in str(caught.value)


def test_deliveries_are_listed_newest_first_by_session_recall_and_status(db: psycopg.Connection) -> None:
    first = queued(db, "s1", id="r1")
    end(db, attempt(db), "failed")
    second = queued(db, "s2", id="r2")

    def ids(**options: Any) -> list[int]:
        return [row["id"] for row in call(db, "get_deliveries", **options)]

    assert ids() == [second, first]
    assert ids(session_id="s1") == ids(recall_id="r1") == ids(status="failed") == [first]
    assert ids(session_id="s1", status="pending") == []
    assert ids(limit=1) == [second]
    for wrong in ({"status": "lost"}, {"limit": -1}):
        with refused(db, "PR005"):
            ids(**wrong)


def test_deliveries_are_deleted_with_their_session(db: psycopg.Connection) -> None:
    queued(db)
    db.execute("delete from pgrecall.sessions where id = 's1'")
    assert deliveries(db) == []


# Reports


def report(db: psycopg.Connection, run: Row, **options: object) -> bool:
    return bool(call_one(db, "report_run", run_id=run["run_id"], **options)["report_run"])


def reported(db: psycopg.Connection, run: Row) -> list[Row]:
    return call(db, "get_report", run_id=run["run_id"])


def test_a_report_is_kept_for_the_worker_that_waits_for_it(db: psycopg.Connection) -> None:
    add(db, "s1")
    run = claim_one(db)
    assert reported(db, run) == []
    assert report(db, run, reply="done", usage={"input_tokens": 3})
    (found,) = reported(db, run)
    assert (found["reply"], found["silent"], found["error"], found["usage"]) == (
        "done",
        False,
        None,
        {"input_tokens": 3},
    )


def test_the_first_report_counts(db: psycopg.Connection) -> None:
    add(db, "s1")
    run = claim_one(db)
    assert report(db, run, reply="one")
    assert not report(db, run, error="two")
    assert reported(db, run)[0]["reply"] == "one"


def test_a_report_about_a_run_that_never_was_is_refused(db: psycopg.Connection) -> None:
    with refused(db, "PR003") as caught:
        report(db, {"run_id": 4711}, reply="hello")
    assert "4711" in str(caught.value)


@pytest.mark.parametrize("outcome", ["success", "timeout", "error"])
def test_a_report_about_a_run_that_has_ended_is_refused_and_not_kept(db: psycopg.Connection, outcome: str) -> None:
    add(db, "s1")
    run = claim_one(db)
    finish(db, run, outcome, reply="mine")
    with refused(db, "PR004") as caught:
        report(db, run, reply="late")
    assert outcome in str(caught.value)
    assert value(db, "select count(*) from pgrecall.run_reports") == 0


def test_a_report_about_a_cancelled_run_is_refused(db: psycopg.Connection) -> None:
    recall_id = add(db, "s1")
    run = claim_one(db)
    change(db, recall_id, status="cancelled")
    with refused(db, "PR004") as caught:
        report(db, run, reply="late")
    assert "cancelled" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "other", "ending"),
    [
        ({"reply": "done"}, {"reply": "another"}, {"outcome": "success", "reply": "done"}),
        ({"silent": True}, {"reply": "another"}, {"outcome": "silent"}),
        ({"error": "broken"}, {"error": "another"}, {"outcome": "error", "error": "GiveUp: broken"}),
    ],
)
def test_repeating_a_report_is_harmless_also_after_the_run_has_ended_so(
    db: psycopg.Connection, given: Row, other: Row, ending: Row
) -> None:
    add(db, "s1")
    run = claim_one(db)
    assert report(db, run, **given)
    assert not report(db, run, **given)
    finish(db, run, **ending)
    assert not report(db, run, **given)
    with refused(db, "PR004"):
        report(db, run, **other)


def test_a_report_is_forgotten_when_its_run_has_ended(db: psycopg.Connection) -> None:
    add_recurring(db, "s1")
    run = claim_one(db)
    report(db, run, reply="done")
    finish(db, run, reply="done")
    assert value(db, "select count(*) from pgrecall.run_reports") == 0
    set_clock(db, NOW + MINUTE)
    assert reported(db, claim_one(db)) == []


def test_a_report_about_an_earlier_try_counts_for_the_one_under_way(db: psycopg.Connection) -> None:
    add(db, "s1")
    first = claim_one(db)
    finish(db, first, "interrupted", retry=True, counted=False)
    second = claim_one(db)
    assert second["run_id"] != first["run_id"]
    assert report(db, first, reply="done meanwhile")
    assert reported(db, second)[0]["reply"] == "done meanwhile"


def test_a_report_between_two_tries_waits_for_the_next(db: psycopg.Connection) -> None:
    add(db, "s1")
    first = claim_one(db)
    finish(db, first, "error", retry=True)
    assert report(db, first, reply="done meanwhile")
    set_clock(db, NOW + 10 * SECOND)
    assert reported(db, claim_one(db))[0]["reply"] == "done meanwhile"


def test_a_report_about_an_earlier_occurrence_is_refused(db: psycopg.Connection) -> None:
    add_recurring(db, "s1")
    first = claim_one(db)
    finish(db, first, "timeout")
    set_clock(db, NOW + MINUTE)
    second = claim_one(db)
    with refused(db, "PR004"):
        report(db, first, reply="late")
    assert reported(db, second) == []


def test_what_was_reported_about_runs_that_nobody_ended_is_forgotten_by_the_next_report(
    db: psycopg.Connection,
) -> None:
    recall_id = add(db, "s1")
    report(db, claim_one(db), reply="done")
    db.execute("delete from pgrecall.session_recalls where id = %s", [recall_id])
    add(db, "s2")
    report(db, claim_one(db), reply="done")
    assert value(db, "select count(*) from pgrecall.run_reports") == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"error": "broken", "reply": "done"},
        {"error": "broken", "silent": True},
        {"messages": {"role": "assistant"}},
        {"run_id": None},
    ],
)
def test_a_report_that_makes_no_sense_is_refused(db: psycopg.Connection, wrong: Row) -> None:
    add(db, "s1")
    run = claim_one(db)
    with refused(db, "PR005"):
        call(db, "report_run", **{"run_id": run["run_id"], **wrong})


def test_the_worker_is_told_also_when_the_report_is_repeated(database: str) -> None:
    ear = Ear(database)
    with psycopg.connect(database, autocommit=True) as db:
        add(db, "s1", trigger_at=datetime.fromisoformat("2020-01-01T00:00:00Z"))
        run = claim_one(db)
        ear.heard()
        for _ in range(2):
            report(db, run, reply="done")
            assert ear.heard() == [f"report {run['run_id']}"]
    ear.close()


def test_a_report_in_an_open_transaction_keeps_the_run_from_ending_without_it(database: str) -> None:
    with psycopg.connect(database) as host, psycopg.connect(database, autocommit=True) as db:
        add(db, "s1", trigger_at=datetime.fromisoformat("2020-01-01T00:00:00Z"))
        run = claim_one(db)
        report(host, run, reply="done")
        with psycopg.connect(database, autocommit=True) as worker:
            ending = Doing(lambda: finish(worker, run, "timeout"))
            wait_until_blocked(db, worker.info.backend_pid)
            host.commit()
            assert ending.result()["accepted"]
        assert value(db, "select count(*) from pgrecall.run_reports") == 0
