"""What `--agent` takes: module:attribute, a URL, or a command; and what it says to anything else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from workerprocess import Start
from workertools import sql

from pgrecall.adapters.subprocess import SubprocessAgent
from pgrecall.cli.app import cli
from pgrecall.cli.errors import WrongUsage
from pgrecall.cli.loading import load


def failure(agent: str) -> str:
    result = CliRunner().invoke(cli, ["worker", "--agent", agent, "--dsn", "host=127.0.0.1 port=1"])
    assert result.exit_code == 2, result.output
    return result.stderr


def test_help_names_the_ways_to_name_an_agent() -> None:
    said = " ".join(CliRunner().invoke(cli, ["worker", "--help"]).stdout.split())
    assert "MODULE:ATTRIBUTE|URL|exec:COMMAND" in said


@pytest.mark.parametrize(
    ("agent", "complaint"),
    [
        ("my_agent", "--agent is 'my_agent'"),
        ("./agent.sh", "--agent is './agent.sh'"),
        ("ftp://example.com/agent", "--agent is 'ftp://example.com/agent'"),
        ("", "--agent is ''"),
        ("exec:", "--agent: the command is empty"),
        ("exec:no-such-program --fast", "--agent: there is no program 'no-such-program'"),
        ("exec:sh -c 'oops", "No closing quotation"),
    ],
)
def test_what_is_no_agent_is_refused_with_the_right_way(agent: str, complaint: str) -> None:
    said = failure(agent)
    assert complaint in said
    assert "hint: " in said


def test_what_is_no_way_at_all_is_told_all_three() -> None:
    said = failure("my_agent")
    assert all(way in said for way in ("module:attribute", "https://", "exec:"))


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs.py").write_text(
        "from pgrecall import AgentError\nraise AgentError('needs it', hint=\"Run: pip install 'pgrecall[it]'\")\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert "hint: Run: pip install 'pgrecall[it]'" in failure("needs:agent")


def test_a_framework_that_the_agents_own_module_misses_is_named_by_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "framed.py").write_text("from pydantic_ai import Agent\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "pydantic_ai", None)
    assert "pip install 'pgrecall[pydantic-ai]'" in failure("framed:agent")


@pytest.mark.parametrize("url", ["", "example.com/callbacks", "https://a b", "https://\udc80"])
def test_a_callback_url_that_is_none_is_refused(url: str) -> None:
    told = ["worker", "--agent", "exec:cat", f"--callback-url={url}", "--dsn", "host=127.0.0.1 port=1"]
    result = CliRunner().invoke(cli, told)
    assert result.exit_code == 2, result.output
    assert "is no URL" in result.stderr


def test_a_command_is_an_agent() -> None:
    assert isinstance(load("exec:cat"), SubprocessAgent)
    assert isinstance(load("exec+text:cat"), SubprocessAgent)


def test_a_url_is_an_agent() -> None:
    from pgrecall.adapters.http import HTTPAgent

    assert isinstance(load("https://example.com/agent"), HTTPAgent)
    assert isinstance(load("http://localhost:8000/agent"), HTTPAgent)


def test_an_agent_is_looked_for_only_where_it_was_said_to_be() -> None:
    with pytest.raises(WrongUsage, match="there is no module 'exec_'"):
        load("exec_:cat")


@pytest.mark.anyio
async def test_a_worker_runs_the_command(database: str, start: Start, tmp_path: Path) -> None:
    script = tmp_path / "agent.sh"
    script.write_text('#!/bin/sh\nread -r first; echo "$1 $first"\n')
    script.chmod(0o755)
    start("--agent", "exec+text:./agent.sh 'I heard:'")
    async with sql(database) as ask:
        await ask.session("s1")
        await ask.ended(await ask.recall("s1", message="Water the plants."))
        assert await ask("select reply from pgrecall.recall_runs") == ["I heard: [Scheduled recall] Water the plants."]
