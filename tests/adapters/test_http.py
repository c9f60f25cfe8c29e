"""Agents behind a URL, with a real server, real workers and the reference implementation of Standard Webhooks."""

from __future__ import annotations

import asyncio
import base64
import gzip
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from receiver import SECRET, hanging, receiving, replied
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from workerprocess import ROOT
from workertools import Sql, sql, until, working

from pgrecall import SettingsError, SyncRecallScheduler
from pgrecall.adapters.http import HTTPAgent
from pgrecall.webhooks import MOST_BYTES, Signer, new_secret, read_answer, read_retry_after, webhook_id

pytestmark = pytest.mark.anyio

OTHER = "whsec_" + base64.b64encode(b"another secret of 24 bytes or more").decode()


@pytest.fixture(autouse=True)
def no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGRECALL_WEBHOOK_SECRET", "PGRECALL_CALLBACK_URL"):
        monkeypatch.delenv(name, raising=False)


async def ran(db: Sql, recall_id: str, runs: int = 1) -> tuple[Any, ...]:
    """Wait for so many runs; outcome, reply and error of the last."""

    async def ended() -> Any:
        found = await db(
            "select outcome, reply, error from pgrecall.recall_runs where recall_id = %s order by id", recall_id
        )
        return found if len(found) >= runs else None

    last: tuple[Any, ...] = (await until(ended, 20))[-1]
    return last


# What is sent


async def test_a_run_posts_one_signed_request_with_all_that_the_agent_needs(database: str) -> None:
    async with receiving(replied("I did.", usage={"input_tokens": 7})) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1", message="Grüße", metadata='{"tone": "kind"}')
        async with working(database, HTTPAgent(receiver.url, secret=SECRET, headers={"x-api-key": "k"})):
            await db.ended(recall_id)
        (run,) = await db("select outcome, reply, usage, id from pgrecall.recall_runs")
        (request,) = receiver.requests
        assert run[:3] == ("success", "I did.", {"input_tokens": 7})
        body = request.verified()
        assert body["type"] == "recall.due"
        data = body["data"]
        assert (data["session_id"], data["user_id"], data["recall_id"], data["run_id"]) == (
            "s1", "user of s1", recall_id, run[3],
        )  # fmt: skip
        assert (data["user_message"], data["metadata"], data["attempt"]) == ("Grüße", {"tone": "kind"}, 1)
        assert data["text"].startswith("[Scheduled recall] Grüße\n")
        assert datetime.fromisoformat(data["nominal_at"]) <= datetime.fromisoformat(data["now"])
        assert datetime.fromisoformat(data["deadline"]) - datetime.fromisoformat(data["started_at"]) == timedelta(
            minutes=10
        )
        assert request.headers["webhook-id"] == request.headers["idempotency-key"]
        assert (request.headers["x-api-key"], request.headers["content-type"]) == ("k", "application/json")
        assert "callback_url" not in data
        assert "context" not in data
        said = await db("select content from pgrecall.session_messages order by position")
        assert said == ["[Scheduled recall] Grüße", "I did."]


async def test_the_context_is_sent_if_asked_for(database: str) -> None:
    async with receiving(replied()) as receiver, sql(database) as db:
        await db.session("s1")
        await db("insert into pgrecall.session_messages (session_id, role, content) values ('s1', 'user', 'Hello.')")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(receiver.url, with_context=True)):
            await db.ended(recall_id)
        data = receiver.requests[0].data
        assert [message["role"] for message in data["context"]] == ["user", "system"]
        assert data["context"][-1]["content"] == data["text"]
        assert data["context"][-1]["id"] == data["message_id"]


async def test_secret_and_callback_address_may_come_from_the_environment(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGRECALL_WEBHOOK_SECRET", f"{OTHER} {SECRET}")
    monkeypatch.setenv("PGRECALL_CALLBACK_URL", "https://recalls.example/hooks/")
    async with receiving(replied()) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(receiver.url)):
            await db.ended(recall_id)
        (request,) = receiver.requests
        request.verified(SECRET)
        request.verified(OTHER)  # each of them is enough, while one is being replaced
        assert request.data["callback_url"] == f"https://recalls.example/hooks/runs/{request.data['run_id']}"


def test_the_signature_is_that_of_the_reference_implementation() -> None:
    from standardwebhooks import Webhook

    now = datetime(2026, 11, 23, 12, tzinfo=UTC)
    headers = Signer(SECRET).headers("recall_1", b'{"a": "\xc3\xbc"}', now)
    assert headers["webhook-signature"] == Webhook(SECRET).sign("recall_1", now, '{"a": "ü"}')


def test_a_webhook_id_has_no_full_stop_and_nothing_that_a_header_cannot_hold() -> None:
    hostile = webhook_id("recall", "recall:\r\nx.y: ü:2026-11-23T12:00:00.000000Z")
    assert hostile.isascii()
    assert "." not in hostile
    assert hostile.replace("_", "").isalnum()
    assert hostile != webhook_id("recall", "another")


# What is answered


@pytest.mark.parametrize(
    ("answer", "outcome", "reply"),
    [
        (replied("hello"), "success", "hello"),
        (JSONResponse({"reply": "hello"}, 201), "success", "hello"),
        (JSONResponse({}), "success", None),
        (JSONResponse({"reply": "[quiet]", "silent": True}), "silent", "[quiet]"),
        (JSONResponse({"reply": "[SILENT]"}), "silent", "[SILENT]"),
        (PlainTextResponse("just text: ü"), "success", "just text: ü"),
        (Response(status_code=204), "success", None),
        (Response(status_code=200), "success", None),
    ],
)
async def test_an_answer_of_2xx_ends_the_run(database: str, answer: Response, outcome: str, reply: str | None) -> None:
    async with receiving(answer) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(receiver.url)):
            assert await ran(db, recall_id) == (outcome, reply, None)


async def test_messages_in_the_answer_go_into_the_session_and_the_last_one_is_the_reply(database: str) -> None:
    messages = [
        {"role": "tool", "content": "21 °C", "in_history": False},
        {"role": "assistant", "content": "It is warm."},
    ]
    async with receiving(JSONResponse({"messages": messages})) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(receiver.url)):
            assert await ran(db, recall_id) == ("success", "It is warm.", None)
        said = await db("select role, content, in_history from pgrecall.session_messages order by position offset 1")
        assert said == [("tool", "21 °C", False), ("assistant", "It is warm.", True)]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (JSONResponse({"error": "no such plant"}), "GiveUp: no such plant"),
        (JSONResponse({"answer": "hello"}), "none of the fields reply, silent, error, usage, messages"),
        (JSONResponse({"reply": 7}), "reply in the answer is 7, but must be a text"),
        (JSONResponse({"silent": "yes"}), "silent in the answer"),
        (JSONResponse({"messages": [{"role": "assistant"}]}), "message 1 in the answer"),
        (JSONResponse(["hello"]), "JSON list"),
        (JSONResponse({"reply": "done", "error": "broken"}), "an error and a reply"),
        (Response("{", media_type="application/json"), "not JSON"),
        (Response("<p>hello</p>", media_type="text/html"), "'text/html'"),
        (Response(b"\xff", media_type="text/plain"), "not UTF-8"),
        (Response("bad", 400), "HTTP 400: bad"),
        (Response("who?", 401), "HTTP 401: who?"),
        (Response(status_code=404), "HTTP 404"),
        (Response("moved away", 410), "the agent's endpoint is gone"),
        (RedirectResponse("/elsewhere"), "redirects are not followed"),
        (RedirectResponse("/agent", 303), "redirects are not followed"),
        (Response(b"x" * (MOST_BYTES + 1), media_type="text/plain"), f"more than {MOST_BYTES} bytes"),
        (
            Response(gzip.compress(b"x" * 1000), media_type="text/plain", headers={"content-encoding": "gzip"}),
            "compressed",
        ),
    ],
)
async def test_any_other_answer_is_an_error_that_is_not_tried_again(
    database: str, answer: Response, complaint: str
) -> None:
    async with receiving(answer) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(receiver.url)):
            outcome, _, error = await ran(db, recall_id)
            await db.ended(recall_id, "failed")
        assert outcome == "error"
        assert complaint in error
        assert len(receiver.requests) == 1


async def test_an_endless_answer_is_cut_off(database: str) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while sent < 200 * MOST_BYTES:
            sent += 65536
            yield b"x" * 65536
            await asyncio.sleep(0)

    async with receiving(StreamingResponse(endless(), media_type="text/plain")) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(receiver.url)):
            outcome, _, error = await ran(db, recall_id)
        assert outcome == "error"
        assert "more than" in error
        assert sent < 100 * MOST_BYTES


# Trying again


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
async def test_not_now_is_tried_again_with_the_same_id(database: str, status: int) -> None:
    later = Response("later", status, headers={"retry-after": "0"})
    async with receiving(later, later, replied()) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(receiver.url, secret=SECRET)):
            assert await ran(db, recall_id, 3) == ("success", "done", None)
        assert len(set(receiver.ids)) == 1
        assert [request.verified()["data"]["attempt"] for request in receiver.requests] == [1, 2, 3]
        errors = await db("select error from pgrecall.recall_runs where error is not null")
        assert all(f"HTTP {status}: later" in error for error in errors)


async def test_different_occurrences_have_different_ids(database: str) -> None:
    async with receiving(replied()) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1", call_type="recurring", interval_seconds=1)
        async with working(database, HTTPAgent(receiver.url)):
            await ran(db, recall_id, 2)
        assert len(set(receiver.ids)) == len(receiver.ids) >= 2


async def test_retry_after_decides_when(database: str) -> None:
    async with receiving(Response(status_code=429, headers={"retry-after": "1800"})) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(receiver.url)):
            await ran(db, recall_id)
        (wait,) = await db("select extract(epoch from not_before - now())::float from pgrecall.session_recalls")
        assert 1700 < wait < 1801


async def test_an_agent_that_cannot_be_reached_is_tried_again_until_it_can(database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(f"http://127.0.0.1:{port}/agent")):
            outcome, _, error = await ran(db, recall_id)
            assert outcome == "error"
            assert "ConnectError" in error
            async with receiving(replied(), port=port):
                await db("update pgrecall.session_recalls set not_before = now()")
                assert (await ran(db, recall_id, 2))[0] == "success"


async def test_an_answer_that_takes_too_long_is_tried_again(database: str) -> None:
    async with receiving(hanging, replied()) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(receiver.url, timeout=0.2)):
            outcome, _, error = await ran(db, recall_id)
            assert (outcome, "no answer within 0.2 s" in error) == ("error", True)
            await db("update pgrecall.session_recalls set not_before = now()")
            assert (await ran(db, recall_id, 2))[0] == "success"
        assert len(set(receiver.ids)) == 1


async def test_without_a_timeout_of_its_own_the_answer_may_take_as_long_as_the_run(database: str) -> None:
    async with receiving(hanging) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1", timeout_seconds=1)
        async with working(database, HTTPAgent(receiver.url)):
            assert (await ran(db, recall_id))[0] == "timeout"


async def test_a_run_that_is_cancelled_hangs_up(database: str) -> None:
    async with receiving(hanging) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(receiver.url)):
            await until_requests(receiver, 1)
            await db("select pgrecall.mark_cancelled(%s)", recall_id)
            assert (await ran(db, recall_id))[0] == "interrupted"


async def test_the_hosts_own_client_is_used_and_left_open(database: str) -> None:
    async with (
        receiving(replied()) as receiver,
        sql(database) as db,
        httpx2.AsyncClient(headers={"x-from": "the host"}) as client,
    ):
        await db.session("s1")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(receiver.url, client=client)):
            await db.ended(recall_id)
        assert receiver.requests[0].headers["x-from"] == "the host"
        assert not client.is_closed


# 202: work that is reported later, here with SQL; over HTTP see test_callbacks


async def test_a_run_whose_agent_answers_202_waits_for_the_report(database: str) -> None:
    async with receiving(Response(status_code=202)) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(receiver.url)):
            await until_requests(receiver, 1)
            run_id = receiver.requests[0].data["run_id"]
            assert await db("select run_id from pgrecall.sessions") == [run_id]
            await db("select pgrecall.report_run(%s, 'worked on it', usage => '{\"cost_usd\": 0.02}')", run_id)
            assert await ran(db, recall_id) == ("success", "worked on it", None)
            await db.ended(recall_id)
        assert await db("select usage from pgrecall.recall_runs") == [{"cost_usd": 0.02}]
        assert await db("select count(*) from pgrecall.run_reports") == [0]
        assert (await db("select content from pgrecall.session_messages order by position"))[-1] == "worked on it"


async def until_requests(receiver: Any, count: int) -> None:
    async def there() -> bool:
        return len(receiver.requests) >= count

    await until(there)


async def test_an_error_that_is_reported_ends_the_run_and_is_not_tried_again(database: str) -> None:
    async with receiving(Response(status_code=202)) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(receiver.url)):
            await until_requests(receiver, 1)
            with SyncRecallScheduler(database) as recalls:
                assert recalls.report_run(receiver.requests[0].data["run_id"], error="no such plant")
            assert await ran(db, recall_id) == ("error", None, "GiveUp: no such plant")
            await db.ended(recall_id, "failed")


async def test_a_run_that_nobody_reports_about_ends_with_its_time_limit(database: str) -> None:
    async with receiving(Response(status_code=202)) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1", timeout_seconds=1)
        async with working(database, HTTPAgent(receiver.url)):
            assert (await ran(db, recall_id))[0] == "timeout"


async def test_work_that_was_handed_over_is_not_asked_for_again_if_it_was_done_between_two_tries(
    database: str,
) -> None:
    async with receiving(Response(status_code=202)) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1")
        agent = HTTPAgent(receiver.url, callback_url="http://127.0.0.1:1", secret=SECRET)
        async with working(database, agent) as worker:
            await until_requests(receiver, 1)
            worker.stop()
            worker.stop()  # gives the run back
            await ran(db, recall_id)
        await db("select pgrecall.report_run(%s, 'done meanwhile')", receiver.requests[0].data["run_id"])
        async with working(database, agent):
            assert await ran(db, recall_id, 2) == ("success", "done meanwhile", None)
        assert len(receiver.requests) == 1


async def test_a_report_is_found_also_if_its_notification_was_lost(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving(Response(status_code=202)) as receiver, sql(database) as db:
        await db.session("s1")
        recall_id = await db.recall("s1")
        async with working(database, HTTPAgent(receiver.url)):
            await until_requests(receiver, 1)
            # Reported with nobody to hear it, and the listener's connection breaks.
            await db(
                "insert into pgrecall.run_reports (recall_id, nominal_at, run_id, reply, silent, created_at) "
                "select id, nominal_at, run_id, 'unheard', false, now() from pgrecall.session_recalls"
            )
            await db(
                "select pg_terminate_backend(held.pid) from pg_locks as held join pgrecall.workers as worker "
                "on (held.classid::bigint << 32) + held.objid::bigint = worker.lifelines[2] "
                "where held.locktype = 'advisory'"
            )
            assert await ran(db, recall_id) == ("success", "unheard", None)


# The example


async def test_the_example_does_each_occurrence_once(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGRECALL_WEBHOOK_SECRET", SECRET)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "uvicorn", "--app-dir", "examples", "--port", str(port), "http_agent:app"]
    process = subprocess.Popen(program, cwd=ROOT, stderr=subprocess.DEVNULL)  # noqa: ASYNC220 (it returns at once)
    try:
        async with sql(database) as db, httpx2.AsyncClient() as client:

            async def listens() -> bool:
                with suppress(httpx2.ConnectError):
                    return (await client.get(f"http://127.0.0.1:{port}/")).status_code == 405
                return False

            await until(listens, 20)
            await db.session("s1")
            recall_id = await db.recall("s1", message="Water the fern.")
            async with working(database, HTTPAgent(f"http://127.0.0.1:{port}/")):
                assert await ran(db, recall_id) == ("success", "I have done it: Water the fern.", None)
            replies = []
            for message in ("first", "again"):
                body = b'{"data": {"user_message": "%s"}}' % message.encode()
                headers = Signer(SECRET).headers("recall_x", body)
                answer = await client.post(f"http://127.0.0.1:{port}/", content=body, headers=headers)
                replies.append(answer.json()["reply"])
            assert replies == ["I have done it: first"] * 2
            forged = await client.post(f"http://127.0.0.1:{port}/", content=b"[]", headers=headers)
            assert forged.status_code == 401
    finally:
        process.terminate()
        process.wait()


# Settings


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"url": "ftp://host/x"}, "url is 'ftp://host/x'"),
        ({"url": "host/x"}, "url is 'host/x'"),
        ({"url": "http://"}, "url is 'http://'"),
        ({"url": "http://h", "timeout": 0}, "timeout is 0"),
        ({"url": "http://h", "secret": "secret"}, "number 1 is not whsec_"),
        ({"url": "http://h", "secret": [SECRET, "whsec_c2hvcnQ="]}, "number 2 is not whsec_"),
        ({"url": "http://h", "secret": ""}, "secret is empty"),
        ({"url": "http://h", "callback_url": "nowhere", "secret": SECRET}, "callback_url is 'nowhere'"),
        ({"url": "http://h", "callback_url": "http://here"}, "callbacks need a webhook secret"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as caught:
        HTTPAgent(**given)
    assert caught.value.hint or "timeout" in complaint
    assert "c2hvcnQ" not in str(caught.value)


def test_passwords_in_the_url_are_not_shown() -> None:
    assert repr(HTTPAgent("https://me:hidden@host/agent?key=hidden")) == "HTTPAgent('https://host/agent')"


def test_a_new_secret_is_one() -> None:
    assert Signer(new_secret())
    assert new_secret() != new_secret()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("120", 120),
        ("Mon, 23 Nov 2026 12:01:00 GMT", 60),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0),
        ("soon", None),
        ("-5", None),
        ("9" * 400, 365 * 86400),
    ],
)
def test_retry_after_is_read_in_both_forms(header: str | None, seconds: int | None) -> None:
    wait = read_retry_after(header, datetime(2026, 11, 23, 12, tzinfo=UTC))
    assert wait == (None if seconds is None else timedelta(seconds=seconds))


def test_a_deeply_nested_answer_is_an_error_and_no_crash() -> None:
    from pgrecall import AgentError

    with pytest.raises(AgentError):
        read_answer("application/json", b"[" * 100_000)
