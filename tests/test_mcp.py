"""The MCP server as its clients meet it: a process over stdio, replicas over HTTP, the SDK's own client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx2
import psycopg
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from workertools import Sql, sql, until

import pgrecall
from pgrecall import RecallScheduler, SettingsError, TokenError, mcp, tokens

pytestmark = pytest.mark.anyio

ROOT = Path(pgrecall.__file__).parent.parent
SECRET = "k" * 40
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGRECALL_TOKEN_SECRET", SECRET)
    monkeypatch.delenv("PGRECALL_SESSION_TOKEN", raising=False)


@pytest.fixture
async def db(database: str) -> AsyncIterator[Sql]:
    """A connection to a database with the sessions s1 and s2."""
    async with sql(database) as connection:
        await connection.session("s1", "s2")
        yield connection


def token(session_id: str = "s1", **options: Any) -> str:
    """A token that is good for an hour."""
    return tokens.session_token(session_id, **{"expires_in": HOUR, **options})


def environment(dsn: str, **more: str) -> dict[str, str]:
    """What a process of ours needs."""
    return {"PYTHONPATH": str(ROOT), "PGRECALL_DSN": dsn, "PGRECALL_TOKEN_SECRET": SECRET, **more}


def over_stdio(dsn: str, *arguments: str, **more: str) -> Client:
    """A client of a process of its own."""
    command = ["-m", "pgrecall", "mcp", *arguments]
    return Client(StdioServerParameters(command=sys.executable, args=command, env=environment(dsn, **more)))


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool that does what it is asked."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    answer = result.structured_content
    assert isinstance(answer, dict)
    assert json.loads(result.content[0].text) == answer  # type: ignore[union-attr]
    return answer


async def error(client: Client, tool: str, **arguments: Any) -> str:
    """Call a tool that refuses; what the model reads."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    text: str = result.content[0].text  # type: ignore[union-attr]
    assert "Traceback" not in text
    return text


@contextmanager
def replicas(dsn: str, number: int = 1, **more: str) -> Iterator[list[str]]:
    """Real servers over HTTP; their URLs. They must end cleanly when they are told to."""
    urls, processes = [], []
    with ExitStack() as stack:
        for _ in range(number):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            process = subprocess.Popen(
                [sys.executable, "-m", "pgrecall", "mcp", "--http", address],
                env=os.environ | environment(dsn, **more),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            processes.append(process)
            urls.append(f"http://{address}/mcp")
        yield urls
        for process in processes:
            process.send_signal(signal.SIGTERM)
            said, log = process.communicate(timeout=20)
            assert (process.returncode, said) == (0, ""), log


async def up(url: str) -> None:
    """Wait until a server answers."""

    async def answers() -> bool:
        try:
            async with httpx2.AsyncClient() as http:
                return (await http.get(url)).status_code == 401
        except httpx2.TransportError:
            return False

    await until(answers, deadline=30)


@asynccontextmanager
async def over_http(url: str, bearer: str) -> AsyncIterator[Client]:
    """A client with a token."""
    await up(url)
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {bearer}"}) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


async def post(url: str, bearer: str | None) -> httpx2.Response:
    """A request of any client, without the SDK."""
    headers = {"Accept": "application/json, text/event-stream"}
    if bearer is not None:
        headers["Authorization"] = bearer
    async with httpx2.AsyncClient() as http:
        return await http.post(
            url, headers=headers, json={"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        )


# What the tools look like


async def test_no_tool_takes_an_identity_and_each_says_what_it_does(database: str) -> None:
    async with RecallScheduler(database) as scheduler, Client(mcp.session_server(scheduler, "s1")) as client:
        found = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(found) == {"schedule_recall", "list_recalls", "cancel_recall", "skip_next_recall"}
    parameters = {name: set(tool.input_schema["properties"]) for name, tool in found.items()}
    assert parameters == {
        "schedule_recall": {
            "message",
            "in_seconds",
            "trigger_at",
            "interval_seconds",
            "cron",
            "time_zone",
            "end_at",
            "if_exists",
        },
        "list_recalls": set(),
        "cancel_recall": {"recall_id"},
        "skip_next_recall": {"recall_id"},
    }
    assert found["schedule_recall"].input_schema["required"] == ["message"]
    for tool in found.values():
        assert "session_id" not in json.dumps(tool.model_dump(mode="json"))
        assert tool.description is not None
        assert all(f"{name}:" in tool.description for name in parameters[tool.name])
    hints = {
        name: (tool.annotations.read_only_hint, tool.annotations.destructive_hint, tool.annotations.idempotent_hint)
        for name, tool in found.items()
        if tool.annotations is not None
    }
    assert hints["list_recalls"][0] is True
    assert hints["cancel_recall"] == (False, True, True)
    assert hints["schedule_recall"] == (False, True, False)


# stdio


async def test_a_process_over_stdio_serves_the_session_of_its_token(database: str, db: Sql) -> None:
    async with over_stdio(database, PGRECALL_SESSION_TOKEN=token("s1")) as client:
        made = await call(client, "schedule_recall", message="look", in_seconds=3600)
        assert made["recall"]["next_times"][0].endswith("(UTC)")
        assert (await call(client, "list_recalls"))["recalls"][0]["message"] == "look"
        assert "at least 60 s" in await error(client, "schedule_recall", message="now", in_seconds=1)
        assert "once and pending" in await error(client, "skip_next_recall", recall_id=made["recall"]["recall_id"])
        assert (await call(client, "cancel_recall"))["result"] == "cancelled"
    assert await db("select session_id, status, created_by from pgrecall.session_recalls") == [
        ("s1", "cancelled", "agent")
    ]


async def test_a_host_on_the_command_line_names_the_session_itself(database: str, db: Sql) -> None:
    async with over_stdio(database, "--session", "s2") as client:
        await call(client, "schedule_recall", message="look", in_seconds=3600)
    assert await db("select session_id from pgrecall.session_recalls") == ["s2"]


@pytest.mark.parametrize(
    ("arguments", "more", "complaint"),
    [
        ([], {}, "PGRECALL_SESSION_TOKEN is not set"),
        ([], {"PGRECALL_SESSION_TOKEN": "x.y.z"}, "the session token is not valid"),
        ([], {"PGRECALL_SESSION_TOKEN": "x.y.z", "PGRECALL_TOKEN_SECRET": ""}, "PGRECALL_TOKEN_SECRET is not set"),
        (["--http", "127.0.0.1:1"], {"PGRECALL_TOKEN_SECRET": "short"}, "has 5 bytes"),
        (["--http", "127.0.0.1:1", "--session", "s1"], {}, "exclude each other"),
        (["--http", "8701"], {}, "is not HOST:PORT"),
        (["--http", "127.0.0.1:99999"], {}, "is not HOST:PORT"),
    ],
)
def test_a_server_that_does_not_know_for_whom_does_not_start(
    database: str, arguments: list[str], more: dict[str, str], complaint: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pgrecall", "mcp", *arguments],
        env=os.environ | environment(database, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_token_is_checked_at_each_call(database: str, db: Sql) -> None:
    good = token("s1", expires_in=timedelta(seconds=1.5))
    async with RecallScheduler(database) as scheduler, Client(mcp.token_server(scheduler, good)) as client:

        async def expired() -> bool:
            return (await client.call_tool("list_recalls", {})).is_error

        await until(expired)
        assert "the session token has expired" in await error(client, "schedule_recall", message="x", in_seconds=100)
    assert await db("select from pgrecall.session_recalls") == []


async def test_a_token_for_another_use_is_refused(database: str) -> None:
    async with RecallScheduler(database) as scheduler:
        with pytest.raises(TokenError, match="not for the recall tools"):
            mcp.token_server(scheduler, token("s1", scopes=["history"]))


# HTTP


async def test_two_tokens_see_only_their_own_on_any_replica(database: str, db: Sql) -> None:
    with replicas(database, 2) as (first, second):
        async with over_http(first, token("s1")) as one, over_http(second, token("s2")) as two:
            mine = (await call(one, "schedule_recall", message="of one", in_seconds=3600))["recall"]["recall_id"]
            theirs = (await call(two, "schedule_recall", message="of two", in_seconds=3600))["recall"]["recall_id"]
            assert [found["message"] for found in (await call(one, "list_recalls"))["recalls"]] == ["of one"]
            assert [found["message"] for found in (await call(two, "list_recalls"))["recalls"]] == ["of two"]

            unknown = mine[:-1] + ("0" if mine[-1] != "0" else "1")
            refusals = [await error(one, "cancel_recall", recall_id=asked) for asked in (theirs, unknown)]
            assert refusals[0].replace(theirs, "…") == refusals[1].replace(unknown, "…")
            assert "no recall with id" in refusals[0]
            for name in ("session_id", "sub", "user_id"):
                await call(one, "schedule_recall", message="again", in_seconds=3600, **{name: "s2"})
                await call(one, "cancel_recall", **{name: "s2"})
            assert await db("select status from pgrecall.session_recalls where id = %s", theirs) == ["pending"]

            # Many at once: the identity is the request's, not the process's.
            async def looks(client: Client, expected: str) -> None:
                for _ in range(10):
                    answer = await call(client, "schedule_recall", message=expected, in_seconds=3600)
                    assert answer["recall"]["message"] == expected

            async with over_http(first, token("s2")) as beside, anyio.create_task_group() as tasks:
                tasks.start_soon(looks, one, "of one")
                tasks.start_soon(looks, beside, "of two")
        async with over_http(second, token("s1")) as elsewhere:
            assert (await call(elsewhere, "cancel_recall"))["result"] == "cancelled"
    assert await db(
        "select session_id, additional_context_message from pgrecall.session_recalls where status = 'pending'"
    ) == [("s2", "of two")]


async def test_an_address_that_is_taken_is_named(database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with RecallScheduler(database) as scheduler:
            with pytest.raises(SettingsError, match=f"cannot serve on 127.0.0.1 port {port}"):
                await mcp.serve_http(mcp.http_server(scheduler), "127.0.0.1", port)


async def test_without_a_good_token_the_answer_is_401(database: str, db: Sql) -> None:
    good = token("s1")
    head, said, signature = good.split(".")
    other = token("s2").split(".")[1]
    with replicas(database) as (url,):
        await up(url)
        for bearer in (
            None,
            "Bearer",
            "Bearer x",
            f"Basic {good}",
            f"Bearer {head}.{other}.{signature}",
            f"Bearer {head}.{said}.{signature[:-6]}AAAAAA",
            f"Bearer {good[:-1]}",
            f"Bearer {token('s1', expires_in=timedelta(microseconds=1))}",
            f"Bearer {token('s1', secret='z' * 40)}",
            f"Bearer {'x' * 7000}",
        ):
            answer = await post(url, bearer)
            assert answer.status_code == 401, bearer
            assert "pgrecall.invalid" not in f"{answer.headers} {answer.text}"
        assert (await post(url, f"Bearer {token('s1', scopes=['history'])}")).status_code == 403
        assert (await post(url, f"Bearer {good}")).status_code == 200


async def test_old_clients_with_a_handshake_are_served_too(database: str, db: Sql) -> None:
    with replicas(database) as (url,):
        await up(url)
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {token('s1')}"}) as http,
            Client(streamable_http_client(url, http_client=http), mode="legacy") as client,
        ):
            await call(client, "schedule_recall", message="look", in_seconds=3600)
    assert await db("select session_id from pgrecall.session_recalls") == ["s1"]


async def test_a_second_secret_keeps_the_tokens_of_the_first_good(database: str, db: Sql) -> None:
    with replicas(database, PGRECALL_TOKEN_SECRET=f"{'n' * 40},{SECRET}") as (url,):
        for bearer in (token("s1"), token("s1", secret="n" * 40)):
            async with over_http(url, bearer) as client:
                await call(client, "list_recalls")


async def test_a_token_of_a_run_is_good_as_long_as_the_run(database: str, db: Sql) -> None:
    recall_id = await db.recall("s1")
    (run_id,) = await db("select run_id from pgrecall.claim('w1', 1) where run_id is not null")
    with replicas(database) as (url,):
        async with over_http(url, token("s1", run_id=run_id)) as client:
            made = await call(client, "schedule_recall", message="next", in_seconds=3600)
            assert await db(
                "select created_by_run_id, chain_depth from pgrecall.session_recalls where id = %s",
                made["recall"]["recall_id"],
            ) == [(run_id, 1)]
            await db("select pgrecall.finish(%s, %s, 'success')", recall_id, run_id)
            for tool, arguments in (("schedule_recall", {"message": "x", "in_seconds": 100}), ("cancel_recall", {})):
                assert "this run does not have the session any more" in await error(client, tool, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"message": "NUL \x00", "in_seconds": 100},
        {"message": "surrogate \ud800", "in_seconds": 100},
        {"message": "x" * 65537, "in_seconds": 100},
        {"message": "  ", "in_seconds": 100},
        {"message": "x", "in_seconds": "'; drop schema pgrecall cascade; --"},
        {"message": "x", "in_seconds": 1e308},
        {"message": "x", "interval_seconds": 10**12},
        {"message": "x", "cron": "x" * 100_000},
        {"message": "x", "trigger_at": "y" * 100_000},
        {"message": "x", "in_seconds": 100, "time_zone": "../../etc/passwd"},
        {"message": "x", "in_seconds": 100, "if_exists": "drop"},
        {"in_seconds": 100},
        {"message": ["x"], "in_seconds": 100},
    ],
    ids=lambda arguments: str(arguments)[:40].encode("ascii", "replace").decode(),
)
async def test_arguments_that_no_tool_takes_are_an_answer_not_a_crash(
    database: str, db: Sql, arguments: dict[str, Any]
) -> None:
    async with RecallScheduler(database) as scheduler, Client(mcp.session_server(scheduler, "s1")) as client:
        text = await error(client, "schedule_recall", **arguments)
        assert len(text) < 2000
        assert (await call(client, "list_recalls"))["recalls"] == []


async def test_a_session_that_is_gone_and_a_database_that_is_away_are_answers(database: str, db: Sql) -> None:
    async with (
        RecallScheduler(database) as scheduler,
        Client(mcp.session_server(scheduler, "nobody")) as client,
    ):
        text = await error(client, "schedule_recall", message="x", in_seconds=100)
        assert "this conversation has no session" in text
        assert "insert into" not in text
    async with (
        RecallScheduler("postgresql://user:hunter2@127.0.0.1:1/x", patience=0.5) as scheduler,
        Client(mcp.session_server(scheduler, "s1")) as client,
    ):
        text = await error(client, "schedule_recall", message="x", in_seconds=100)
    assert "could not be reached" in text
    assert "hunter2" not in text
    assert "127.0.0.1" not in text


@pytest.mark.parametrize("verb", [["mcp", "--session", "s1"], ["token", "s1"]])
def test_without_its_packages_a_verb_says_what_to_install(database: str, verb: list[str]) -> None:
    code = "import sys; sys.modules['mcp'] = sys.modules['jwt'] = None; from pgrecall.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *verb],
        env=os.environ | environment(database),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert "hint: pip install 'pgrecall[mcp]'" in done.stderr


# The verb that makes tokens


def test_the_verb_token_makes_a_token_without_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from pgrecall.cli.app import cli

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli, ["token", *arguments])

    made = run("s1", "--expires", "2h", "--run", "9")
    assert made.exit_code == 0, made.output
    said = tokens.read_token(made.stdout.strip())
    assert (said.session_id, said.run_id) == ("s1", 9)
    answer = json.loads(run("s1", "--json").stdout)
    assert tokens.read_token(answer["token"]).expires_at.isoformat() == answer["expires_at"]
    assert run("s1", "--expires", "soon").exit_code == 2
    monkeypatch.delenv("PGRECALL_TOKEN_SECRET")
    without = run("s1")
    assert without.exit_code == 2
    assert "PGRECALL_TOKEN_SECRET is not set" in without.stderr


async def test_psql_reaches_what_a_tool_has_made(database: str, db: Sql) -> None:
    async with RecallScheduler(database) as scheduler, Client(mcp.session_server(scheduler, "s1")) as client:
        made = await call(client, "schedule_recall", message="$$; drop", cron="0 9 * * mon", time_zone="Europe/Paris")
    assert len(made["recall"]["next_times"]) == 3
    with psycopg.connect(database) as connection:
        row = connection.execute("select pgrecall.agent_cancel_recall('s1')").fetchone()
    assert row is not None
    assert row[0]["cancelled"]["message"] == "$$; drop"
