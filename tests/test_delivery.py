"""Delivery of replies, with a real receiver and real workers: what is sent, when again, and by whom."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from typing import Any

import anyio.lowlevel
import anyio.to_thread
import psycopg
import pytest
import structlog
from receiver import SECRET, Receiver, hanging, receiving
from starlette.responses import Response, StreamingResponse
from workerprocess import Start
from workertools import Sql, sql, until, working

from pgrecall import RecallScheduler, Worker
from pgrecall.webhooks import webhook_id

pytestmark = pytest.mark.anyio

OK = Response(status_code=204)


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGRECALL_WEBHOOK_SECRET", SECRET)


async def agent(*, session_id: str, user_message: str) -> str:
    return f"did {user_message}"


async def became(db: Sql, status: str, attempt: int = 0) -> Any:
    """Wait until the only delivery has this status after so many attempts; response_status and last_error."""

    async def has() -> Any:
        return await db(
            "select response_status, last_error from pgrecall.deliveries where status = %s and attempt >= %s "
            # While it is being tried its next time is the end of the lease.
            "and (status <> 'pending' or attempt = 0 or last_error is not null or response_status is not null)",
            status,
            attempt,
        )

    return (await until(has, 20))[0]


async def at_once(db: Sql) -> None:
    """Do not wait for the backoff."""
    await db("select pgrecall.retry_delivery(id) from pgrecall.deliveries")


# What is sent


async def test_a_reply_is_delivered_signed_at_once(database: str) -> None:
    async with receiving(OK) as receiver, sql(database) as db:
        await db.session("s1")
        async with working(database, agent):
            recall_id = await db.recall("s1", message="Water.", deliver_to=receiver.url)
            assert await became(db, "delivered", 1) == (204, None)
        (request,) = receiver.requests
        body = request.verified()
        run_id = (await db("select id from pgrecall.recall_runs"))[0]
        assert body["type"] == "recall.replied"
        assert (body["data"]["reply"], body["data"]["recall_id"], body["data"]["run_id"]) == (
            "did Water.",
            recall_id,
            run_id,
        )
        assert request.headers["webhook-id"] == webhook_id("reply", recall_id, run_id)
        # That the agent ran and that somebody was reached are two facts.
        assert await db("select outcome from pgrecall.recall_runs") == ["success"]


async def test_the_secret_may_be_given_to_the_worker(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGRECALL_WEBHOOK_SECRET")
    async with receiving(OK) as receiver, sql(database) as db:
        await db.session("s1")
        async with working(database, agent, webhook_secret=SECRET):
            await db.recall("s1", deliver_to=receiver.url)
            await became(db, "delivered")
        receiver.requests[0].verified()


async def test_without_a_secret_replies_go_unsigned_and_the_log_says_so_once(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGRECALL_WEBHOOK_SECRET")
    async with receiving(OK) as receiver, sql(database) as db:
        await db.session("s1", "s2")
        with structlog.testing.capture_logs() as events:
            async with working(database, agent):
                for session_id in ("s1", "s2"):
                    secret_url = receiver.url.replace("://", "://user:hidden@") + "?key=hidden#hidden"
                    await db.recall(session_id, deliver_to=secret_url)

                async def both() -> bool:
                    return await db("select count(*) from pgrecall.deliveries where status = 'delivered'") == [2]

                await until(both)
        assert "webhook-signature" not in receiver.requests[0].headers
        assert [event["event"] for event in events].count("webhooks_unsigned") == 1
        assert "hidden" not in repr(events)


async def test_every_reply_is_delivered_once_by_several_workers(database: str) -> None:
    async with receiving(OK) as receiver, sql(database) as db:
        sessions = [f"s{number}" for number in range(20)]
        await db.session(*sessions)
        async with working(database, agent), working(database, agent), working(database, agent):
            for session_id in sessions:
                await db.recall(session_id, deliver_to=receiver.url)

            async def all_of_them() -> bool:
                return await db("select count(*) from pgrecall.deliveries where status = 'delivered'") == [20]

            await until(all_of_them, 20)
        assert sorted(request.data["session_id"] for request in receiver.requests) == sorted(sessions)
        assert await db("select distinct attempt from pgrecall.deliveries") == [1]


# Again


@pytest.mark.parametrize("status", [301, 302, 400, 404, 429, 500, 503])
async def test_a_failed_attempt_is_repeated_with_the_same_id(database: str, status: int) -> None:
    refusing = Response("no", status, headers={"location": "/agent"})
    async with receiving(refusing, OK) as receiver, sql(database) as db:
        await db.session("s1")
        async with working(database, agent):
            await db.recall("s1", deliver_to=receiver.url)
            assert await became(db, "pending", 1) == (status, f"HTTP {status}: no")
            (wait,) = await db("select extract(epoch from next_at - now())::float from pgrecall.deliveries")
            assert 0 < wait < 7
            await at_once(db)
            await became(db, "delivered", 2)
        assert len(receiver.requests) == 2
        assert len(set(receiver.ids)) == 1
        assert receiver.requests[0].body == receiver.requests[1].body
        receiver.requests[1].verified()


async def test_the_next_attempt_comes_by_itself(database: str) -> None:
    async with receiving(Response(status_code=500), OK) as receiver, sql(database) as db:
        await db.session("s1")
        async with working(database, agent):
            await db.recall("s1", deliver_to=receiver.url)
            await became(db, "delivered", 2)  # after four to six seconds


async def test_retry_after_is_kept_to(database: str) -> None:
    async with receiving(Response(status_code=503, headers={"retry-after": "3600"})) as receiver, sql(database) as db:
        await db.session("s1")
        async with working(database, agent):
            await db.recall("s1", deliver_to=receiver.url)
            await became(db, "pending", 1)
        (wait,) = await db("select extract(epoch from next_at - now())::float from pgrecall.deliveries")
        assert 3500 < wait <= 3600


async def test_an_endpoint_that_is_gone_is_given_up(database: str) -> None:
    async with receiving(Response(status_code=410)) as receiver, sql(database) as db:
        await db.session("s1")
        async with working(database, agent):
            await db.recall("s1", deliver_to=receiver.url)
            assert (await became(db, "failed", 1))[0] == 410


async def test_a_receiver_that_does_not_answer_is_tried_again(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgrecall._deliver._SECONDS", 0.2)
    async with receiving(hanging, OK) as receiver, sql(database) as db:
        await db.session("s1")
        async with working(database, agent):
            await db.recall("s1", deliver_to=receiver.url)
            assert await became(db, "pending", 1) == (None, "no answer within 0.2 s")


async def test_a_huge_answer_counts_by_its_status_and_is_not_read(database: str) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while sent < 200 << 20:
            sent += 65536
            yield b"x" * 65536
            await anyio.lowlevel.checkpoint()

    async with receiving(StreamingResponse(endless())) as receiver, sql(database) as db:
        await db.session("s1")
        async with working(database, agent):
            await db.recall("s1", deliver_to=receiver.url)
            assert await became(db, "delivered", 1) == (200, None)
        assert sent < 100 << 20


async def test_a_host_that_cannot_be_reached_gets_it_when_it_is_there_again(database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with sql(database) as db:
        await db.session("s1")
        async with working(database, agent):
            await db.recall("s1", deliver_to=f"http://127.0.0.1:{port}/agent")
            status, error = await became(db, "pending", 1)
            assert status is None
            assert "ConnectError" in error
            async with receiving(OK, port=port) as receiver:
                await at_once(db)
                await became(db, "delivered", 2)
                assert len(receiver.requests) == 1


@pytest.mark.parametrize("url", ["http://[", "http://host:99999/", "http://.../", "http://ex ample", "http://\u202e/"])
async def test_a_url_that_is_none_harms_nobody(database: str, url: str) -> None:
    async with receiving(OK) as receiver, sql(database) as db:
        await db.session("s1", "s2")
        async with working(database, agent):
            try:
                await db.recall("s1", deliver_to=url)
            except psycopg.errors.CheckViolation:
                return  # better still
            _, error = await became(db, "pending", 1)
            assert error
            await db.recall("s2", deliver_to=receiver.url)
            await became(db, "delivered", 1)


# By whom


async def test_nothing_is_asked_while_nothing_is_pending(database: str) -> None:
    async with receiving(OK) as receiver, sql(database) as db:
        await db("create extension pg_stat_statements")
        await db.session("s1")

        async def calls(*routines: str) -> int:
            rows = await db(
                "select coalesce(sum(calls), 0)::integer from pg_stat_statements "
                "where toplevel and dbid = (select oid from pg_database where datname = current_database()) "
                "and query like any(%s)",
                [f"%pgrecall.{routine}(%" for routine in routines],
            )
            return int(rows[0])

        async def asked() -> int:
            return await calls("claim_deliveries", "end_delivery")

        async with working(database, agent, safety_interval=0.2):
            await db.asleep()
            before = await asked()
            await db.ended(await db.recall("s1"))  # nobody wants it delivered

            async def has_looked_often() -> bool:
                return await calls("claim") >= 8

            await until(has_looked_often)
            assert await asked() == before
            await db.recall("s1", deliver_to=receiver.url)
            await became(db, "delivered")
            assert await asked() - before <= 3


async def test_a_delivery_of_a_worker_that_was_killed_is_made_by_another(
    database: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome is recorded, its worker dies before it delivers: the reply is not lost."""
    async with receiving(hanging, OK) as receiver, sql(database) as db:
        first = await anyio.to_thread.run_sync(start)
        await db.session("s1")
        recall_id = await db.recall("s1", message="hello", deliver_to=receiver.url)

        async def trying() -> bool:
            return bool(receiver.requests)

        await until(trying, 20)
        first.send(signal.SIGKILL)
        await anyio.to_thread.run_sync(first.ended)
        await db.ended(recall_id)
        # Its lease is a minute; not to wait for that:
        await db("update pgrecall.deliveries set next_at = now()")
        await anyio.to_thread.run_sync(start)
        await became(db, "delivered", 2)
        assert [request.data["reply"] for request in receiver.requests] == ["did hello"] * 2
        assert len(set(receiver.ids)) == 1


async def test_what_its_own_worker_does_not_deliver_others_do_within_seconds(database: str) -> None:
    """A worker that dies right after the outcome has told the others about the delivery."""
    async with receiving(OK) as receiver, sql(database) as db:
        await db.session("s1")
        async with working(database, agent):
            await db.asleep()
            # Another worker claims and finishes by hand, and is gone.
            await db("begin")
            await db.recall("s1", deliver_to=receiver.url)
            rows = await db("select recall_id, run_id from pgrecall.claim('gone', 1)")
            await db("select pgrecall.finish(%s, %s, 'success', reply => 'hello')", *rows[0])
            await db("commit")
            await became(db, "delivered", 1)
        assert receiver.requests[0].data["reply"] == "hello"


async def test_a_worker_that_starts_delivers_what_it_finds(database: str) -> None:
    async with receiving(OK) as receiver, sql(database) as db:
        await db.session("s1")
        await db.recall("s1", deliver_to=receiver.url)
        rows = await db("select recall_id, run_id from pgrecall.claim('gone', 1)")
        await db("select pgrecall.finish(%s, %s, 'success', reply => 'hello')", *rows[0])
        async with working(database, agent):
            await became(db, "delivered", 1)


async def test_a_worker_that_polls_delivers_too(database: str) -> None:
    async with receiving(OK) as receiver, sql(database) as db:
        await db.session("s1")
        async with working(database, agent, poll_interval=0.2):
            await db.recall("s1", deliver_to=receiver.url)
            await became(db, "delivered", 1)


async def test_a_worker_without_the_extra_says_so_once_and_leaves_deliveries_to_others(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving(OK) as receiver, sql(database) as db:
        await db.session("s1", "s2")
        with structlog.testing.capture_logs() as events, monkeypatch.context() as without:
            without.setattr("importlib.util.find_spec", lambda name: None)
            async with working(database, agent):

                async def complained() -> bool:
                    return any(event["event"] == "deliveries_left_to_others" for event in events)

                await db.recall("s1", deliver_to=receiver.url)
                await until(complained)
                await db.ended(await db.recall("s2", deliver_to=receiver.url))
        (complaint,) = [event for event in events if event["event"] == "deliveries_left_to_others"]
        assert "pgrecall[http]" in complaint["reason"]
        assert await db("select status, attempt from pgrecall.deliveries") == [("pending", 0)] * 2
        assert receiver.requests == []


async def test_a_stopping_worker_ends_the_delivery_under_way(database: str) -> None:
    released = anyio.Event()

    async def slow(receiver: Receiver) -> Response:
        await released.wait()
        return OK

    async with receiving(slow) as receiver, sql(database) as db, anyio.create_task_group() as tasks:
        await db.session("s1")
        worker = Worker(database, agent=agent)
        tasks.start_soon(worker.run)
        await db.recall("s1", deliver_to=receiver.url)

        async def trying() -> bool:
            return bool(receiver.requests)

        await until(trying)
        worker.stop()
        await anyio.sleep(0.1)
        released.set()
        await became(db, "delivered", 1)


# Reading


async def test_deliveries_are_listed_and_tried_again_from_python(database: str) -> None:
    async with receiving(Response(status_code=410), OK) as receiver, sql(database) as db:
        await db.session("s1")
        async with RecallScheduler(database) as recalls, working(database, agent):
            recall_id = await db.recall("s1", deliver_to=receiver.url)
            await became(db, "failed")
            (delivery,) = await recalls.get_deliveries(session_id="s1", status="failed")
            assert (delivery.recall_id, delivery.response_status, delivery.url) == (recall_id, 410, receiver.url)
            assert delivery.payload["data"]["reply"] == "did hello"
            again = await recalls.retry_delivery(delivery.id)
            assert again.status == "pending"
            await became(db, "delivered")
            assert await recalls.get_deliveries(status="failed") == []


def test_nothing_of_http_is_imported_unless_it_is_needed() -> None:
    program = "import sys, pgrecall, pgrecall.cli.run; print({'httpx2', 'starlette', 'uvicorn'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
