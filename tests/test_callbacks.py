"""Agents that answer 202 and call back later, over HTTP, through any replica; and workers that take the callbacks."""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
import httpx2
import pytest
from receiver import SECRET, Receiver, receiving
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount
from workerprocess import Start
from workertools import Sql, sql, until, working

from pgrecall import RecallScheduler, SettingsError
from pgrecall.adapters.http import HTTPAgent
from pgrecall.callbacks import callback_app, serving
from pgrecall.webhooks import MOST_BYTES, Signer, new_secret

pytestmark = pytest.mark.anyio

ACCEPTED = Response(status_code=202)


@pytest.fixture(autouse=True)
def no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGRECALL_WEBHOOK_SECRET", "PGRECALL_CALLBACK_URL"):
        monkeypatch.delenv(name, raising=False)


class Waiting:
    """A run that waits for its callback, and a server for callbacks that is not its worker."""

    def __init__(self, db: Sql, receiver: Receiver, recall_id: str, client: httpx2.AsyncClient) -> None:
        self.db = db
        self.receiver = receiver
        self.recall_id = recall_id
        self.client = client

    @property
    def data(self) -> Any:
        return self.receiver.requests[-1].data

    async def call(self, said: Any = None, *, token: str | None = None, url: str | None = None, **more: Any) -> Any:
        """Call back as the agent would."""
        headers = {"authorization": f"Bearer {token or self.data['callback_token']}", **more.pop("headers", {})}
        if said is not None:
            more["json"] = said
        return await self.client.post(url or self.data["callback_url"], headers=headers, **more)

    async def ran(self) -> Any:
        async def ended() -> Any:
            return await self.db("select outcome, reply, error from pgrecall.recall_runs order by id desc")

        return (await until(ended))[0]


@asynccontextmanager
async def waiting(dsn: str, **columns: Any) -> AsyncIterator[Waiting]:
    app = callback_app(dsn, secret=SECRET)
    async with (
        serving(app, "127.0.0.1", 0) as port,
        receiving(ACCEPTED) as receiver,
        sql(dsn) as db,
        httpx2.AsyncClient() as client,
    ):
        await db.session("s1")
        recall_id = await db.recall("s1", **columns)
        agent = HTTPAgent(receiver.url, secret=SECRET, callback_url=f"http://127.0.0.1:{port}")
        async with working(dsn, agent):

            async def asked() -> bool:
                return bool(receiver.requests)

            await until(asked)
            yield Waiting(db, receiver, recall_id, client)


async def test_a_callback_ends_the_run_with_what_it_says(database: str) -> None:
    async with waiting(database) as run:
        answer = await run.call({"reply": "Watered.", "usage": {"output_tokens": 3}})
        assert (answer.status_code, answer.json()) == (200, {"accepted": True})
        assert await run.ran() == ("success", "Watered.", None)
        assert await run.db("select usage from pgrecall.recall_runs") == [{"output_tokens": 3}]


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        ({"json": {"silent": True}}, ("silent", None, None)),
        ({"json": {"error": "no water"}}, ("error", None, "GiveUp: no water")),
        ({"content": "plain words", "headers": {"content-type": "text/plain"}}, ("success", "plain words", None)),
        ({}, ("success", None, None)),
        (
            {"json": {"messages": [{"role": "tool", "content": "1"}, {"role": "assistant", "content": "One."}]}},
            ("success", "One.", None),
        ),
    ],
)
async def test_a_callback_may_say_all_that_an_answer_may(database: str, sent: Any, outcome: Any) -> None:
    async with waiting(database) as run:
        assert (await run.call(**sent)).status_code == 200
        assert await run.ran() == outcome


async def test_the_session_stays_taken_until_the_callback(database: str) -> None:
    async with waiting(database) as run, RecallScheduler(database) as recalls:
        (hold,) = await recalls.get_holds("s1")
        assert (hold.kind, hold.run_id) == ("run", run.data["run_id"])
        await run.call({"reply": "done"})
        await run.ran()
        assert await recalls.get_holds("s1") == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer ünïcode".encode("latin-1")},
        {"authorization": "Basic {token}"},
    ],
)
async def test_without_the_token_of_the_run_nothing_is_taken(database: str, headers: Any) -> None:
    async with waiting(database) as run:
        url = run.data["callback_url"]
        given = {
            name: value.replace("{token}", run.data["callback_token"]) if isinstance(value, str) else value
            for name, value in headers.items()
        }
        answer = await run.client.post(url, json={"reply": "not mine"}, headers=given)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "token" in answer.json()["error"]
        assert await run.db("select count(*) from pgrecall.run_reports") == [0]


async def test_the_token_of_one_run_is_not_good_for_another_and_that_of_another_secret_for_none(database: str) -> None:
    async with waiting(database) as run:
        run_id = run.data["run_id"]
        for token in (Signer(SECRET).token(run_id + 1), Signer(new_secret()).token(run_id)):
            assert (await run.call({"reply": "not mine"}, token=token)).status_code == 401


async def test_a_token_of_the_old_secret_is_good_while_the_secret_is_being_replaced() -> None:
    old, new = new_secret(), new_secret()
    assert Signer([new, old]).is_token(7, Signer(old).token(7))
    assert Signer([new, old]).is_token(7, Signer(new).token(7))


async def test_a_repeated_callback_is_harmless_and_a_different_one_too_late(database: str) -> None:
    async with waiting(database) as run:
        assert (await run.call({"reply": "one"})).json() == {"accepted": True}
        await run.ran()
        again = await run.call({"reply": "one"})
        assert (again.status_code, again.json()) == (200, {"accepted": False})
        other = await run.call({"reply": "two"})
        assert other.status_code == 409
        assert "has ended: success" in other.json()["error"]
        assert await run.db("select reply from pgrecall.recall_runs") == ["one"]


async def test_a_callback_after_the_time_limit_is_refused(database: str) -> None:
    async with waiting(database, timeout_seconds=1) as run:
        assert (await run.ran())[0] == "timeout"
        answer = await run.call({"reply": "late"})
        assert answer.status_code == 409
        assert "timeout" in answer.json()["error"]
        assert answer.json()["hint"]


async def test_a_callback_about_a_run_that_never_was_is_refused(database: str) -> None:
    async with waiting(database) as run:
        url = run.data["callback_url"].rpartition("/")[0] + "/987654321"
        answer = await run.call({"reply": "hello"}, token=Signer(SECRET).token(987654321), url=url)
        assert answer.status_code == 404
        assert "987654321" in answer.json()["error"]


@pytest.mark.parametrize(
    ("sent", "status", "complaint"),
    [
        ({"json": {"answer": "hello"}}, 422, "none of the fields"),
        ({"json": {"reply": 7}}, 422, "reply in the answer is 7"),
        ({"json": {"reply": "a\u0000b"}}, 422, "NUL"),
        ({"content": "{", "headers": {"content-type": "application/json"}}, 422, "not JSON"),
        ({"content": "<p>", "headers": {"content-type": "text/html"}}, 422, "text/html"),
        ({"content": b"x" * (MOST_BYTES + 1), "headers": {"content-type": "text/plain"}}, 413, "larger than"),
    ],
)
async def test_a_callback_that_makes_no_sense_is_refused_and_the_run_goes_on(
    database: str, sent: Any, status: int, complaint: str
) -> None:
    async with waiting(database) as run:
        answer = await run.call(**sent)
        assert answer.status_code == status
        assert complaint in answer.json()["error"]
        assert (await run.call({"reply": "now right"})).status_code == 200
        assert (await run.ran())[1] == "now right"


async def test_a_callback_while_the_database_is_away_may_be_tried_again() -> None:
    app = callback_app(RecallScheduler("host=127.0.0.1 port=1 connect_timeout=1", patience=1), secret=SECRET)
    async with serving(app, "127.0.0.1", 0) as port, httpx2.AsyncClient() as client:
        answer = await client.post(
            f"http://127.0.0.1:{port}/runs/1", headers={"authorization": f"Bearer {Signer(SECRET).token(1)}"}
        )
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"


async def test_a_callback_that_comes_after_its_worker_stopped_ends_the_run_of_the_next(database: str) -> None:
    async with waiting(database) as run:
        first = dict(run.data)
        # The run is taken away from its worker, as if it had died.
        await run.db(
            "select pgrecall.finish(id, run_id, 'interrupted', retry => true, counted => false) "
            "from pgrecall.session_recalls"
        )

        async def asked_again() -> bool:
            return len(run.receiver.requests) == 2

        await until(asked_again)
        assert run.receiver.ids[0] == run.receiver.ids[1]
        assert first["run_id"] != run.data["run_id"]
        answer = await run.call(
            {"reply": "done for the first"}, token=first["callback_token"], url=first["callback_url"]
        )
        assert answer.json() == {"accepted": True}
        await run.db.ended(run.recall_id)
        assert await run.ran() == ("success", "done for the first", None)


async def test_the_app_can_be_mounted_in_the_hosts_own(database: str) -> None:
    async with RecallScheduler(database) as recalls:
        app = Starlette(routes=[Mount("/hooks", callback_app(recalls, secret=SECRET))])
        async with serving(app, "127.0.0.1", 0) as port, httpx2.AsyncClient() as client:
            answer = await client.post(
                f"http://127.0.0.1:{port}/hooks/runs/5", headers={"authorization": f"Bearer {Signer(SECRET).token(5)}"}
            )
            assert answer.status_code == 404
            assert (await client.get(f"http://127.0.0.1:{port}/hooks/runs/5")).status_code == 405


def test_callbacks_need_a_secret() -> None:
    with pytest.raises(SettingsError, match="callbacks need a webhook secret") as caught:
        callback_app("")
    assert "PGRECALL_WEBHOOK_SECRET" in caught.value.hint


async def test_an_address_that_is_taken_is_named() -> None:
    async with serving(callback_app("", secret=SECRET), "127.0.0.1", 0) as port:
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1 port {port}"):
            async with serving(callback_app("", secret=SECRET), "127.0.0.1", port):
                pass


AGENT = """
from pgrecall.adapters.http import HTTPAgent
agent = HTTPAgent({url!r})
"""


async def test_a_worker_process_takes_callbacks_for_the_runs_of_another(
    database: str, start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGRECALL_WEBHOOK_SECRET", SECRET)
    async with receiving(ACCEPTED) as receiver, sql(database) as db, httpx2.AsyncClient() as client:
        (tmp_path / "http_agent.py").write_text(AGENT.format(url=receiver.url))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        listen = f"127.0.0.1:{port}"
        options = ("--agent", "http_agent:agent", "--callback-url", f"http://{listen}")
        working_one = await anyio.to_thread.run_sync(lambda: start(*options))
        await db.session("s1")
        recall_id = await db.recall("s1")

        async def asked() -> bool:
            return bool(receiver.requests)

        await until(asked, 20)
        taking = await anyio.to_thread.run_sync(lambda: start(*options, "--callback-listen", listen))
        data = receiver.requests[0].verified()["data"]
        answer = await client.post(
            data["callback_url"],
            json={"reply": "over there"},
            headers={"authorization": f"Bearer {data['callback_token']}"},
        )
        assert answer.status_code == 200
        await db.ended(recall_id)
        assert await db("select reply, worker_id from pgrecall.recall_runs") == [
            ("over there", working_one.event("worker_started")["worker_id"])
        ]
        taking.send(signal.SIGTERM)
        assert await anyio.to_thread.run_sync(taking.ended) == 0
