"""The agents in examples/ run as their first lines say, in a worker process, with the models that need no network."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from adaptertools import shown
from workerprocess import ROOT, Start
from workertools import sql

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", ["openai_agents_agent", "pydantic_ai_agent"])
async def test_an_example_runs_in_a_worker_process(
    database: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable in ("MODEL", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    source = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    command = f"--agent {name}:agent"
    assert f"pgrecall worker {command}\n" in source
    async with sql(database) as db:
        await db.session("s1")
        worker = start(*command.split())
        for _ in range(2):
            await db.ended(await db.recall("s1", message="Look after the fern."))
        assert await db("select distinct outcome from pgrecall.recall_runs") == ["success"]
    recall, reply, *again = await shown(database)
    assert recall == ("system", "[Scheduled recall] Look after the fern.")
    assert "fern" in reply[1]
    assert again == [recall, reply]
    worker.send(signal.SIGTERM)
    assert worker.ended() == 0
