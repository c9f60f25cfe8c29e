"""SubprocessAgent with real processes: what a command gets, what its answer means, and that nothing of it stays."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from recalltools import a_recall, run
from workerprocess import ROOT, Start
from workertools import sql, until, working

from pgrecall import AgentError, PostgresSessionStore, RecallScheduler, Retry, RunResult
from pgrecall.adapters.subprocess import LARGEST_OUTPUT, CommandError, SubprocessAgent, claude_result, session_uuid
from pgrecall.agents import GiveUp
from pgrecall.cli.loading import load

pytestmark = pytest.mark.anyio


def shell(script: str, **options: Any) -> SubprocessAgent:
    return SubprocessAgent(["sh", "-c", script], **options)


def python(script: str, **options: Any) -> SubprocessAgent:
    return SubprocessAgent([sys.executable, "-c", script], **options)


def lives(pid: int) -> bool:
    """Whether there is such a process; one that waits for its parent to notice its end does not count."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


async def pids_in(file: Path, count: int = 1) -> list[int]:
    """The process ids that a command has written into a file, when there are so many."""

    async def there() -> list[str]:
        pids = await anyio.Path(file).read_text() if await anyio.Path(file).exists() else ""
        return pids.split() if len(pids.split()) >= count else []

    return [int(pid) for pid in await until(there)]


async def gone(*pids: int) -> None:
    async def all_gone() -> bool:
        return not any(lives(pid) for pid in pids)

    await until(all_gone)


#: A command with a child and a grandchild, all of which write their ids into the file `pids`.
FAMILY = "echo $$ >> pids; sh -c 'echo $$ >> pids; sleep 1000 & echo $! >> pids; wait' & wait"


# What it gets


async def test_the_command_gets_the_run_as_json_on_stdin() -> None:
    recall = a_recall(metadata={"note": "für Ada"}, user_id="ada", attempt=2)
    given = json.loads(await run(SubprocessAgent(["cat"]), recall))
    assert given.pop("now").endswith("Z")
    assert given.pop("nominal_at") == given.pop("started_at") == recall.nominal_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert given.pop("deadline") == recall.deadline.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert given == {
        "session_id": "s1",
        "user_id": "ada",
        "recall_id": "r1",
        "run_id": 1,
        "message_id": recall.message_id,
        "call_type": "once",
        "user_message": "Water the plants.",
        "text": recall.text,
        "next_at": None,
        "time_zone": "UTC",
        "attempt": 2,
        "max_attempts": 3,
        "deferrals": 0,
        "metadata": {"note": "für Ada"},
    }


async def test_or_only_the_text_for_the_model() -> None:
    assert await run(SubprocessAgent(["cat"], input="text")) == a_recall().text


async def test_a_long_text_arrives_whole_and_a_command_need_not_read_it() -> None:
    text = "long " * 100_000
    assert await run(SubprocessAgent(["wc", "-c"], input="text"), a_recall(text=text)) == str(len(text))
    assert await run(shell("echo deaf"), a_recall(text=text)) == "deaf"


async def test_it_can_get_the_sessions_context(database: str) -> None:
    async with RecallScheduler(database) as scheduler:
        store = PostgresSessionStore(scheduler)
        session = await store.create("s1")
        session.context.append({"id": "m1", "role": "user", "content": "Hello."})
        await store.save(session)
        given = json.loads(await run(SubprocessAgent(["cat"], with_context=True), a_recall(store=store)))
    assert given["context"] == [{"id": "m1", "role": "user", "content": "Hello."}]


async def test_without_a_session_there_is_no_context_and_no_run() -> None:
    async def get(session_id: str) -> None:
        return None

    with pytest.raises(GiveUp, match="no session 's1'"):
        await run(SubprocessAgent(["cat"], with_context=True), a_recall(store=SimpleNamespace(get=get)))


async def test_the_environment_names_the_run_and_keeps_the_workers_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGRECALL_DSN", "postgresql://secret")
    monkeypatch.setenv("PGRECALL_TOKEN_SECRET", "secret")
    monkeypatch.setenv("PGPASSWORD", "secret")
    monkeypatch.setenv("PGHOST", "db")
    monkeypatch.setenv("MY_KEY", "mine")
    show = "import json, os; print(json.dumps(dict(os.environ)))"

    seen = json.loads(await run(python(show, env={"ADDED": "yes", "MY_KEY": None})))
    assert {name: value for name, value in seen.items() if name.startswith("PGRECALL_")} == {
        "PGRECALL_SESSION_ID": "s1",
        "PGRECALL_SESSION_UUID": str(session_uuid("s1")),
        "PGRECALL_RECALL_ID": "r1",
        "PGRECALL_RUN_ID": "1",
        "PGRECALL_MESSAGE_ID": a_recall().message_id,
        "PGRECALL_ATTEMPT": "1",
        "PGRECALL_DEADLINE": seen["PGRECALL_DEADLINE"],
    }
    assert (seen["PGHOST"], seen["ADDED"]) == ("db", "yes")
    assert not {"PGPASSWORD", "MY_KEY"} & set(seen)

    seen = json.loads(await run(python(show, pass_database=True)))
    assert (seen["PGRECALL_DSN"], seen["PGPASSWORD"]) == ("postgresql://secret", "secret")
    assert "PGRECALL_TOKEN_SECRET" not in seen


def test_a_session_has_the_same_uuid_each_time() -> None:
    own = uuid.uuid4()
    assert session_uuid(str(own)) == own
    assert session_uuid("chat-1") == session_uuid("chat-1") != session_uuid("chat-2")


async def test_it_runs_in_its_own_directory(tmp_path: Path) -> None:
    assert await run(SubprocessAgent(["pwd"], cwd=tmp_path)) == str(tmp_path)


async def test_it_has_the_signals_and_the_files_that_any_command_has() -> None:
    """Nothing of the guard is inherited: neither what it ignores nor its lifeline."""
    script = """
import os, signal
kept = [number.name for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD)
        if signal.getsignal(number) is signal.SIG_IGN]
files = [number for number in range(3, 64) if os.path.exists(f"/proc/self/fd/{number}")]
print(kept, [f for f in files if "/fd" not in os.readlink(f"/proc/self/fd/{f}")], os.getpid() == os.getpgrp())
"""
    # SIGPIPE is ignored by Python itself.
    assert await run(python(script)) == "['SIGPIPE'] [] True"


# What its answer means


@pytest.mark.parametrize(("output", "reply"), [("  hi there \\n\\n", "hi there"), ("", ""), (" \\n", "")])
async def test_stdout_is_the_reply(output: str, reply: str) -> None:
    assert await run(shell(f"printf '{output}'; echo noise >&2")) == reply


async def test_exit_codes_say_what_to_do() -> None:
    with pytest.raises(Retry, match="the mail server is busy") as asked:
        await run(shell("echo lost; echo the mail server is busy >&2; exit 75"))
    assert asked.value.after is None
    with pytest.raises(GiveUp, match="there is no such plant"):
        await run(shell("echo there is no such plant >&2; exit 69"))
    with pytest.raises(CommandError, match="exit code 3: broken") as failed:
        await run(shell("echo broken >&2; exit 3"))
    assert failed.value.exit_code == 3
    with pytest.raises(CommandError, match=r"exit code 1: \{.is_error.: true\}"):
        await run(shell("""echo '{"is_error": true}'; exit 1"""))
    with pytest.raises(CommandError, match="ended by SIGSEGV"):
        await run(shell("kill -SEGV $$"))


async def test_an_error_ends_with_the_last_that_was_said() -> None:
    with pytest.raises(CommandError) as failed:
        await run(python("import sys; sys.stderr.write('x' * 100_000 + '\\0 the end'); sys.exit(1)"))
    assert str(failed.value).endswith("x� the end")
    assert len(str(failed.value)) < 4200


@pytest.mark.parametrize(
    ("printed", "meaning"),
    [
        ({"reply": "done"}, RunResult(reply="done")),
        ({}, RunResult()),
        (
            {"reply": "ok", "silent": True, "usage": {"cost_usd": 0.5}},
            RunResult(reply="ok", silent=True, usage={"cost_usd": 0.5}),
        ),
        (
            {"messages": [{"role": "assistant", "content": "one"}], "error": None},
            RunResult(messages=[{"role": "assistant", "content": "one"}]),
        ),
    ],
)
async def test_a_json_result_says_more(printed: dict[str, Any], meaning: RunResult) -> None:
    assert await run(shell(f"echo {shlex.quote(json.dumps(printed))}", output="json")) == meaning


async def test_a_json_result_can_ask_for_a_retry_or_give_up() -> None:
    with pytest.raises(Retry, match="busy") as asked:
        await run(shell("""echo '{"error": "busy", "retry_after": 90}'""", output="json"))
    assert asked.value.after == timedelta(seconds=90)
    with pytest.raises(GiveUp, match="no such plant"):
        await run(shell("""echo '{"error": "no such plant"}'""", output="json"))


@pytest.mark.parametrize(
    ("printed", "complaint"),
    [
        ("hello", "no JSON"),
        ("[1]", "no JSON object"),
        ('{"replay": "x"}', "has 'replay'"),
        ('{"reply": 4}', "reply in the command's result is 4, but must be str"),
        ('{"silent": "no"}', "silent in the command's result is 'no'"),
        ('{"retry_after": -1}', "must not be negative"),
        ('{"retry_after": true}', "retry_after in the command's result is True"),
    ],
)
async def test_a_json_result_that_is_none_is_an_error(printed: str, complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        await run(shell(f"echo {shlex.quote(printed)}", output="json"))


async def test_a_function_can_read_the_output() -> None:
    assert await run(shell("echo 20", output=lambda text: RunResult(reply=str(int(text) * 2)))) == RunResult(reply="40")


async def test_what_is_no_text_is_an_error() -> None:
    with pytest.raises(CommandError, match=r"no UTF-8 text \(at byte 3\)"):
        await run(shell(r"printf 'abc\377'"))
    with pytest.raises(CommandError, match=r"a zero at byte 3"):
        await run(shell(r"printf 'abc\0'"))


async def test_too_much_output_stops_the_command(tmp_path: Path) -> None:
    assert len(await run(shell(f"head -c {LARGEST_OUTPUT} /dev/zero | tr '\\0' x"))) == LARGEST_OUTPUT
    with pytest.raises(CommandError, match="more than 1,048,576 bytes"):
        await run(shell("echo $$ > pids; yes", cwd=tmp_path))
    await gone(*await pids_in(tmp_path / "pids"))


async def test_much_on_stderr_stops_nothing() -> None:
    assert await run(shell("head -c 3000000 /dev/zero >&2; echo fine")) == "fine"


@pytest.mark.parametrize("command", [["no-such-program"], ["./not_executable"]])
async def test_what_cannot_be_started_is_tried_again(command: list[str], tmp_path: Path) -> None:
    """Nothing has run, and a deployment may be under way."""
    (tmp_path / "not_executable").touch()
    with pytest.raises(Retry, match=f"could not be started: {command[0]}"):
        await run(SubprocessAgent(command, cwd=tmp_path))


async def test_nor_can_it_be_in_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Retry, match=r"could not be started: .*nowhere"):
        await run(SubprocessAgent(["pwd"], cwd=tmp_path / "nowhere"))


# Its end


async def cancelled(agent: SubprocessAgent, ready: Callable[[], Any]) -> float:
    """Cancels a run when it is ready; how many seconds its end took."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, agent)
        await ready()
        began = time.monotonic()
        tasks.cancel_scope.cancel()
    return time.monotonic() - began


async def test_a_stopped_run_takes_children_and_grandchildren_with_it(tmp_path: Path) -> None:
    pids: list[int] = []

    async def ready() -> None:
        pids.extend(await pids_in(tmp_path / "pids", 3))

    # A shell lets SIGINT be ignored by what it puts into the background.
    await cancelled(shell(FAMILY, cwd=tmp_path, grace=(0.1, 0.1)), ready)
    assert len(pids) == 3
    await gone(*pids)


SIGNALS = """
import os, signal, sys, time
def note(number, frame):
    with open("signals", "a") as notes:
        notes.write(signal.Signals(number).name + "\\n")
    if sys.argv[1] == signal.Signals(number).name:
        sys.exit(0)
signal.signal(signal.SIGINT, note)
signal.signal(signal.SIGTERM, note)
with open("pids", "w") as pids:
    pids.write(f"{os.getpid()}\\n")
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize(
    ("honours", "got", "grace"),
    [
        ("SIGINT", ["SIGINT"], (20, 20)),
        ("SIGTERM", ["SIGINT", "SIGTERM"], (0.1, 20)),
        ("nothing", ["SIGINT", "SIGTERM"], (0.1, 0.1)),
    ],
)
async def test_it_is_asked_before_it_is_killed(
    honours: str, got: list[str], grace: tuple[float, float], tmp_path: Path
) -> None:
    agent = SubprocessAgent([sys.executable, "-c", SIGNALS, honours], cwd=tmp_path, grace=grace)
    seconds = await cancelled(agent, lambda: pids_in(tmp_path / "pids"))
    assert (tmp_path / "signals").read_text().split() == got
    assert seconds < 10
    await gone(*await pids_in(tmp_path / "pids"))


async def test_what_the_command_leaves_behind_is_ended_with_it(tmp_path: Path) -> None:
    agent = shell("sleep 1000 & echo $! > pids; echo done", cwd=tmp_path, grace=(0.1, 0.1))
    assert await run(agent) == "done"
    await gone(*await pids_in(tmp_path / "pids"))


async def test_who_has_left_the_group_and_holds_stdout_open_does_not_hold_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgrecall.adapters.subprocess._AFTERWARDS", 0.1)
    leave = "import os, time; os.setsid(); open('pids', 'w').write(f'{os.getpid()}\\n'); time.sleep(1000)"
    agent = shell(f'{sys.executable} -c "{leave}" & until [ -s pids ]; do sleep 0.01; done; echo done', cwd=tmp_path)
    assert await run(agent) == "done"
    (pid,) = await pids_in(tmp_path / "pids")
    assert lives(pid)  # as documented
    os.kill(pid, signal.SIGKILL)


async def test_no_run_leaves_a_process_or_a_file_behind() -> None:
    def left() -> tuple[int, list[str]]:
        command = ["ps", "-o", "args=", "--ppid", str(os.getpid())]
        children = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        files = len(list(Path("/proc/self/fd").iterdir()))
        return files, [child for child in children if "_guard.py" in child or "defunct" in child]

    await run(shell("true"))
    files, _ = left()
    for _ in range(5):
        await run(shell("true"))
    with anyio.move_on_after(0.2):
        await run(shell("sleep 1000"))
    with pytest.raises(Retry):
        await run(SubprocessAgent(["no-such-program"]))
    assert left() == (files, [])


async def test_a_killed_guard_takes_the_command_with_it(tmp_path: Path) -> None:
    # Once it sleeps, it has told the worker whom it guards.
    asleep = '[ "$(ps -o stat= -p $PPID | cut -c 1)" = S ]'
    agent = shell(f"echo $$ > pids; until {asleep}; do :; done; kill -9 $PPID; sleep 1000", cwd=tmp_path)
    with pytest.raises(CommandError, match="guards the command was killed"):
        await run(agent)
    await gone(*await pids_in(tmp_path / "pids"))


async def test_a_worker_may_have_thousands_of_files_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip(f"no more than {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    with ExitStack() as files:
        for _ in range(1200):
            files.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        assert await run(shell("echo fine")) == "fine"
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# With workers


async def test_the_time_limit_ends_it(database: str, tmp_path: Path) -> None:
    agent = shell(FAMILY, cwd=tmp_path, grace=(0.1, 0.1))
    async with sql(database) as ask, working(database, agent, timeout=1):
        await ask.session("s1")
        await ask.ended(await ask.recall("s1"), "failed")
        assert await ask("select outcome, error from pgrecall.recall_runs") == [("timeout", "still running after 1 s")]
    await gone(*await pids_in(tmp_path / "pids"))


async def test_cancelling_the_recall_ends_it(database: str, tmp_path: Path) -> None:
    agent = shell(FAMILY, cwd=tmp_path, grace=(0.1, 0.1))
    async with sql(database) as ask, working(database, agent):
        await ask.session("s1")
        recall_id = await ask.recall("s1")
        pids = await pids_in(tmp_path / "pids", 3)
        await ask("select pgrecall.mark_cancelled(%s)", recall_id)
        await until(lambda: ask("select from pgrecall.recall_runs where outcome = 'interrupted'"))
        assert [pid for pid in pids if lives(pid)] == []


async def test_a_chat_that_interrupts_gets_the_session_when_the_command_has_ended(
    database: str, tmp_path: Path
) -> None:
    agent = shell(FAMILY, cwd=tmp_path, grace=(0.1, 0.1))
    async with sql(database) as ask, working(database, agent), RecallScheduler(database) as scheduler:
        await ask.session("s1")
        await ask.recall("s1")
        pids = await pids_in(tmp_path / "pids", 3)
        async with scheduler.hold_session("s1", if_held="interrupt", wait=10):
            assert [pid for pid in pids if lives(pid)] == []


async def test_the_ledger_has_what_it_said(database: str) -> None:
    printed = json.dumps({"reply": "done", "usage": {"input_tokens": 7}})
    agent = shell(f"echo {shlex.quote(printed)}", output="json")
    async with sql(database) as ask, working(database, agent):
        await ask.session("s1")
        await ask.ended(await ask.recall("s1"))
        assert await ask("select outcome, reply, usage from pgrecall.recall_runs") == [
            ("success", "done", {"input_tokens": 7})
        ]


async def test_it_tries_again_when_asked(database: str, tmp_path: Path) -> None:
    agent = shell("echo x >> tries; [ $PGRECALL_ATTEMPT = 2 ] || exit 75; echo done", cwd=tmp_path)
    async with sql(database) as ask, working(database, agent):
        await ask.session("s1")
        await ask.ended(await ask.recall("s1"))
        assert await ask("select outcome, attempt from pgrecall.recall_runs order by id") == [
            ("error", 1),
            ("success", 2),
        ]
    assert (tmp_path / "tries").read_text().split() == ["x", "x"]


async def test_a_killed_worker_takes_its_command_with_it_before_it_runs_elsewhere(
    database: str, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "agent.sh").write_text(
        "trap '' INT TERM; if [ $PGRECALL_ATTEMPT = 1 ]; then " + FAMILY + "; fi; "
        "for pid in $(cat pids); do ps -o stat= -p $pid | grep -v Z; done; echo second"
    )
    start_one = ["--agent", "exec:sh agent.sh"]
    workers = [start(*start_one), start(*start_one)]
    async with sql(database) as ask:
        await ask.session("s1")
        recall_id = await ask.recall("s1")
        pids = await pids_in(tmp_path / "pids", 3)
        (first,) = [worker for worker in workers if worker.all("recall_claimed")]
        first.send(signal.SIGKILL)
        await ask.ended(recall_id)
        assert await ask("select outcome, reply from pgrecall.recall_runs order by id") == [
            ("lost", None),
            ("success", "second"),
        ]
    await gone(*pids)


async def test_a_stopping_worker_ends_its_command_and_gives_the_recall_back(
    database: str, start: Start, tmp_path: Path
) -> None:
    worker = start("--agent", f"exec:sh -c {shlex.quote(FAMILY)}", "--grace", "0.1s")
    async with sql(database) as ask:
        await ask.session("s1")
        await ask.recall("s1")
        pids = await pids_in(tmp_path / "pids", 3)
        worker.send(signal.SIGTERM)
        assert worker.ended() == 0
        assert [pid for pid in pids if lives(pid)] == []
        assert await ask("select status, run_id from pgrecall.session_recalls") == [("pending", None)]


async def test_the_example_runs(database: str, start: Start) -> None:
    start("--agent", f"exec:{ROOT / 'examples' / 'command_agent.sh'}")
    async with sql(database) as ask:
        await ask.session("s1")
        await ask.ended(await ask.recall("s1", message="Water the plants."))
        assert await ask("select reply from pgrecall.recall_runs") == ["session s1: Water the plants."]


# Claude Code

CLAUDE = """#!/bin/sh
# As measured: the prompt comes from stdin; --resume of an unknown session says so on stderr only and ends with 1.
[ "$1" = -p ] || exit 2
prompt=$(cat)
while [ $# -gt 1 ]; do
    case $1 in --resume|--session-id) how=$1 session=$2 ;; esac
    shift
done
echo "$how" >> "$HOME/calls"
case $how in
    --resume) [ -e "$HOME/$session" ] || { echo "No conversation found with session ID: $session" >&2; exit 1; } ;;
    --session-id) touch "$HOME/$session" ;;
esac
case $prompt in
    *limit*) echo '{"is_error": true, "subtype": "error_max_turns", "num_turns": 30}'; exit 1 ;;
    *wait*) echo $$ > "$HOME/pids"; trap 'exit 143' TERM; while :; do sleep 0.05; done ;;
esac
line=$(printf '%s' "$prompt" | head -n 1)
printf '{"type": "result", "subtype": "success", "is_error": false, "result": "heard %s", "num_turns": 2,' "$line"
echo '"total_cost_usd": 0.25, "usage": {"input_tokens": 3, "cache_read_input_tokens": 40, "output_tokens": 5}}'
"""


def recipe() -> Any:
    return load("claude_agent:agent")


@pytest.fixture
def claude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of this name at the head of PATH, and the agent of the example; its home directory."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "claude").write_text(CLAUDE)
    (programs / "claude").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.syspath_prepend(ROOT / "examples")
    return tmp_path


async def test_the_recipe_for_claude_makes_a_session_and_resumes_it(claude: Path) -> None:
    agent = recipe()
    for message in ("One.", "Two."):
        result = await run(agent, a_recall(message=message))
        assert result == RunResult(
            reply=f"heard [Scheduled recall] {message}",
            usage={"input_tokens": 43, "output_tokens": 5, "cost_usd": 0.25, "turns": 2},
        )
    assert (claude / "calls").read_text().split() == ["--resume", "--session-id", "--resume"]
    assert (claude / str(session_uuid("s1"))).exists()


async def test_a_turn_of_claude_that_failed_is_not_begun_again_in_a_new_session(claude: Path) -> None:
    agent = recipe()
    await run(agent, a_recall(message="One."))
    with pytest.raises(CommandError, match=r"exit code 1: .*error_max_turns"):
        await run(agent, a_recall(message="Reach the limit."))
    assert (claude / "calls").read_text().split()[-1] == "--resume"


async def test_a_turn_of_claude_that_is_stopped_is_over(claude: Path) -> None:
    agent = recipe()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, agent, a_recall(message="Please wait."))
        (pid,) = await pids_in(claude / "pids")
        tasks.cancel_scope.cancel()
    await gone(pid)


@pytest.mark.parametrize(
    ("printed", "complaint"),
    [
        ('{"is_error": true, "result": "Credit balance is too low", "subtype": "success"}', "Credit balance"),
        ('{"is_error": false, "subtype": "error_during_execution"}', "error_during_execution"),
        ("not json", "no JSON"),
    ],
)
def test_a_result_of_claude_that_says_it_failed_is_an_error(printed: str, complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        claude_result(printed)


# Wrong arguments


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: SubprocessAgent("claude -p"), "list of words"),
        (lambda: SubprocessAgent([]), "list of words"),
        (lambda: SubprocessAgent(["cat"], input="xml"), "input is 'xml'"),  # type: ignore[arg-type]
        (lambda: SubprocessAgent(["cat"], output="xml"), "output is 'xml'"),  # type: ignore[arg-type]
        (lambda: SubprocessAgent(["cat"], grace=(1, -1)), r"grace is \(1, -1\)"),
        (lambda: SubprocessAgent(["cat"], input="text", with_context=True), "with_context"),
        (lambda: SubprocessAgent.from_command_line("exec:"), "empty"),
        (lambda: SubprocessAgent.from_command_line("exec:sh -c 'x"), "No closing quotation"),
        (lambda: SubprocessAgent.from_command_line("exec:no-such-program -p"), "no program 'no-such-program'"),
    ],
)
def test_wrong_arguments_are_refused_with_a_hint(make: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(AgentError, match=complaint) as refused:
        make()
    assert refused.value.hint


async def test_outside_a_worker_there_is_no_run() -> None:
    with pytest.raises(AgentError, match="outside a run"):
        await SubprocessAgent(["cat"]).run(session_id="s1", user_message="hello")


async def test_a_command_line_is_split_as_a_shell_would() -> None:
    agent = SubprocessAgent.from_command_line("exec+text:sh -c 'cat; echo \"$1\"' sh 'two words'")
    assert (await run(agent, a_recall(text="text"))) == "texttwo words"
