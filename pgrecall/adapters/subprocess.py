"""A command as an agent: one process group for each run, which never outlives its worker.

Knows no agent's command line but the result that Claude Code prints; when a run has to end is the runner's business.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import anyio

from pgrecall.adapters._described import described, iso
from pgrecall.agents import CurrentRecall, GiveUp, Retry, RunResult, current_recall
from pgrecall.errors import AgentError, RecallError

#: Exit codes of a command that knows what it wants, from BSD's sysexits.h: mail systems and `pipe` commands have used
#: them so for decades, and no shell or interpreter ends with them by accident.
EX_TEMPFAIL = 75
EX_UNAVAILABLE = 69

#: Bytes of stdout that a reply may have.
LARGEST_OUTPUT = 1024 * 1024

#: Bytes of stderr that are kept: the last ones.
_KEPT_OF_STDERR = 4000

#: Seconds for what takes milliseconds after the last process of a group has gone.
_AFTERWARDS = 5.0

#: Variables by which a worker reaches its database; a command gets them only if it is told to.
_DATABASE = frozenset({"PGRECALL_DSN", "PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSERVICEFILE"})

_SESSIONS = uuid.UUID("5f0fc2f4-1a8b-5d0e-9b7c-3c9b0a6d7e11")

_GUARD = Path(__file__).with_name("_guard.py")


class CommandError(RecallError):
    """The command failed; the message says how and ends with the last it wrote to stderr.

    Attributes:
        exit_code: Its exit code; 128 and the signal's number if a signal ended it; None if it has none.
    """

    def __init__(self, message: str, *, exit_code: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


class SubprocessAgent:
    """Runs a command for each run: the run on stdin, the reply on stdout.

    Exit code 0 is success, 75 (EX_TEMPFAIL) asks for a retry later, 69 (EX_UNAVAILABLE) gives up, anything else is an
    error. A run that is stopped, for its time limit as well, ends the command and its children: SIGINT, then SIGTERM,
    then SIGKILL to its process group. A worker that dies takes them with it.

    Args:
        command: The program and its arguments. No shell, unless it is one: `["sh", "-c", "…"]`.
        cwd: Its directory; None: the worker's.
        env: Variables to add; a value of None takes one away. The rest is the worker's environment without its
            PGRECALL_ variables and database passwords.
        input: `json`: stdin is one JSON object about the run. `text`: it is the text for the model and nothing else.
        output: `text`: stdout without surrounding white space is the reply. `json`: it is one object with any of
            `reply`, `silent`, `usage`, `messages`, `error` and `retry_after`. Or a function that gets stdout and
            returns, or raises, what an agent may.
        with_context: Whether the JSON object has the session's `context` as well: the messages for a model, oldest
            first, with `id`, `role` and `content`. The last one is the recall's.
        pass_database: Whether the command gets the variables with which the worker finds its database.
        grace: Seconds after SIGINT and after SIGTERM. Together they are less than the 5 s by which a worker stops its
            runs before its lease ends; with more, a run elsewhere could begin before this one is over.

    Raises:
        AgentError: The command is empty, or an argument makes no sense, or this system is not POSIX.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str | None] | None = None,
        input: Literal["json", "text"] = "json",
        output: Literal["json", "text"] | Callable[[str], Any] = "text",
        with_context: bool = False,
        pass_database: bool = False,
        grace: tuple[float, float] = (2.0, 2.0),
    ) -> None:
        if os.name != "posix":
            raise AgentError("SubprocessAgent needs a POSIX system", hint="Put the command behind a URL: HTTPAgent.")
        if isinstance(command, str) or not command:
            raise AgentError(
                f"command is {command!r}, but must be a list of words",
                hint="Write ['claude', '-p'], or SubprocessAgent.from_command_line('claude -p').",
            )
        if input not in {"json", "text"}:
            raise AgentError(f"input is {input!r}", hint="Write input='json' or input='text'.")
        readers: dict[str, Callable[[str], Any]] = {"json": _json_result, "text": str.strip}
        read = output if callable(output) else readers.get(output)
        if read is None:
            raise AgentError(f"output is {output!r}", hint="Write output='json', output='text' or give a function.")
        if [seconds >= 0 for seconds in grace] != [True, True]:
            raise AgentError(f"grace is {grace!r}", hint="Give two numbers of seconds: after SIGINT and after SIGTERM.")
        if with_context and input != "json":
            raise AgentError("with_context=True is about the JSON object", hint="Leave input at 'json'.")
        self._command = [os.fspath(word) for word in command]
        self._cwd = cwd
        self._env = dict(env or {})
        self._input = input
        self._read = read
        self._with_context = with_context
        self._pass_database = pass_database
        self._grace = grace

    @classmethod
    def from_command_line(cls, line: str, **options: Any) -> SubprocessAgent:
        """The agent for one line as a shell would take it, without a shell: quotes, but no pipes and no variables.

        Args:
            line: The command, after `exec:` (JSON on stdin) or `exec+text:` (the text for the model on stdin), or
                without either.
            options: As for the class.

        Raises:
            AgentError: It cannot be split into words, or there is no such program.
        """
        scheme, colon, rest = line.partition(":")
        if colon and scheme in {"exec", "exec+text"}:
            line = rest
            if scheme == "exec+text":
                options.setdefault("input", "text")
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise AgentError(f"{line!r} is no command line: {error}", hint="Quote it as for a shell.") from error
        if not words:
            raise AgentError("the command is empty", hint="Write exec:command, for example 'exec:./agent.sh --fast'.")
        if shutil.which(words[0], path=(options.get("env") or {}).get("PATH")) is None:
            raise AgentError(
                f"there is no program {words[0]!r}",
                hint="Give its path, or put its directory into PATH. It is not run by a shell: for that, sh -c '…'.",
            )
        return cls(words, **options)

    async def run(self, *, session_id: str, user_message: str) -> Any:
        """Runs the command for the current recall.

        Args:
            session_id: The session.
            user_message: The recall's additional_context_message.

        Returns:
            The reply, or what the output was read as.

        Raises:
            AgentError: It is not called by a worker.
            CommandError: The command failed, or its output is not what was agreed.
            Retry: It asked for it, or could not be started.
            GiveUp: It gave up.
        """
        recall = current_recall()
        if recall is None:
            raise AgentError("SubprocessAgent.run() was called outside a run", hint="Give the agent to a Worker.")
        given = recall.text if self._input == "text" else await self._object(recall, session_id, user_message)
        environment = self._environment(recall)
        with anyio.CancelScope(shield=True):  # a process that nobody knows of could not be ended
            process = await _Process.start(self._command, given, self._grace, self._cwd, environment)
        try:
            code = await process.ended()
        finally:
            with anyio.CancelScope(shield=True):
                await process.close(sum(self._grace) + _AFTERWARDS)
        if process.stdout.overflowing:
            raise CommandError(f"the command wrote more than {LARGEST_OUTPUT:,} bytes to stdout and was stopped")
        return self._result(code, bytes(process.stdout.kept), bytes(process.stderr.kept))

    def _result(self, code: int, stdout: bytes, stderr: bytes) -> Any:
        said = _readable(stderr) or _readable(stdout[-_KEPT_OF_STDERR:])
        if code == EX_TEMPFAIL:
            raise Retry(said or "the command asked for a retry")
        if code == EX_UNAVAILABLE:
            raise GiveUp(said or "the command gave up")
        if code != 0:
            raise CommandError(f"{_ending(code)}: {said}" if said else _ending(code), exit_code=code)
        try:
            text = stdout.decode()
        except UnicodeDecodeError as error:
            raise CommandError(
                f"the command wrote something to stdout that is no UTF-8 text (at byte {error.start})", exit_code=0
            ) from error
        if "\0" in text:
            raise CommandError(
                f"the command wrote something to stdout that is no text (a zero at byte {stdout.index(0)})", exit_code=0
            )
        return self._read(text)

    async def _object(self, recall: CurrentRecall, session_id: str, user_message: str) -> str:
        told = await described(recall, session_id, user_message, with_context=self._with_context)
        return json.dumps(told, ensure_ascii=False)

    def _environment(self, recall: CurrentRecall) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if (name in _DATABASE and self._pass_database)
            or (name not in _DATABASE and not name.startswith("PGRECALL_"))
        }
        kept |= {
            "PGRECALL_SESSION_ID": recall.session_id,
            "PGRECALL_SESSION_UUID": str(session_uuid(recall.session_id)),
            "PGRECALL_RECALL_ID": recall.recall_id,
            "PGRECALL_RUN_ID": str(recall.run_id),
            "PGRECALL_MESSAGE_ID": recall.message_id,
            "PGRECALL_ATTEMPT": str(recall.attempt),
            "PGRECALL_DEADLINE": iso(recall.deadline),
        }
        changed: dict[str, str | None] = {**kept, **self._env}
        return {name: value for name, value in changed.items() if value is not None}


def session_uuid(session_id: str) -> uuid.UUID:
    """The session's id if it is a UUID, else one that is always the same for this id; some agents' sessions need one.

    A command gets it as PGRECALL_SESSION_UUID.
    """
    try:
        return uuid.UUID(session_id)
    except ValueError:
        return uuid.uuid5(_SESSIONS, session_id)


def claude_result(stdout: str) -> RunResult:
    """Reads what `claude -p --output-format json` prints: for `SubprocessAgent(…, output=claude_result)`.

    Returns:
        The reply with the run's usage: tokens (those read from and written to the cache are input too), `cost_usd` and
        `turns`.

    Raises:
        CommandError: It is something else, or says that the turn failed.
    """
    result = _one_object(stdout)
    if not isinstance(result.get("result"), str) or result.get("is_error"):
        kind = result.get("subtype", "no result")
        raise CommandError(f"claude did not finish its turn: {kind}: {result.get('result', '')}".rstrip(": "))
    used = result.get("usage") or {}
    cached = sum(used.get(f"cache_{way}_input_tokens") or 0 for way in ("creation", "read"))
    usage = {
        "input_tokens": (used.get("input_tokens") or 0) + cached,
        "output_tokens": used.get("output_tokens") or 0,
        "cost_usd": result.get("total_cost_usd") or 0,
        "turns": result.get("num_turns") or 0,
    }
    return RunResult(reply=result["result"], usage=usage)


def _json_result(stdout: str) -> RunResult:
    """Reads the object that a command with output='json' has printed."""
    result = _one_object(stdout)
    kinds: dict[str, tuple[type, ...]] = {
        "reply": (str,),
        "silent": (bool,),
        "usage": (dict,),
        "messages": (list,),
        "error": (str,),
        "retry_after": (int, float),
    }
    for name, value in result.items():
        if name not in kinds:
            raise CommandError(f"the command's result has {name!r}", hint=f"It may have {', '.join(kinds)}.")
        if value is not None and type(value) not in kinds[name]:
            raise CommandError(f"{name} in the command's result is {value!r}, but must be {kinds[name][0].__name__}")
    error, after = result.pop("error", None), result.pop("retry_after", None)
    if after is not None:
        if after < 0:
            raise CommandError(f"retry_after in the command's result is {after!r}, but must not be negative")
        raise Retry(error or "the command asked for a retry", after=after)
    if error is not None:
        raise GiveUp(error)
    return RunResult(**{**result, "silent": bool(result.get("silent"))})


def _one_object(stdout: str) -> dict[str, Any]:
    try:
        result = json.loads(stdout)
    except ValueError as error:
        raise CommandError(f"stdout is no JSON: {error}; it begins with {stdout[:80]!r}") from error
    if not isinstance(result, dict):
        raise CommandError(f"stdout is no JSON object; it begins with {stdout[:80]!r}")
    return result


def _readable(tail: bytes) -> str:
    """The end of what a command has written, as far as it is text that Postgres takes."""
    return tail.decode(errors="replace").replace("\0", "�").strip()


def _ending(code: int) -> str:
    if code > 128:
        with suppress(ValueError):
            return f"the command was ended by {signal.Signals(code - 128).name} (exit code {code})"
    return f"the command ended with exit code {code}"


class _Output(asyncio.Protocol):
    """Keeps the first bytes of a pipe, or the last, and says when there are more than it keeps."""

    def __init__(self, limit: int, *, last: bool = False, full: Callable[[], None] | None = None) -> None:
        self.kept = bytearray()
        self.overflowing = False
        self.ended = anyio.Event()
        self._limit = limit
        self._last = last
        self._full = full

    def data_received(self, data: bytes) -> None:
        if self.overflowing and not self._last:
            return
        self.kept += data
        if len(self.kept) > self._limit:
            del self.kept[: -self._limit if self._last else None]
            if not self.overflowing and self._full is not None:
                self._full()
            self.overflowing = True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's)
        self.ended.set()


class _Process:
    """A command under its guard, see _guard.py."""

    def __init__(self, guard: subprocess.Popen[bytes], lifeline: asyncio.Transport, said: _Output) -> None:
        self.stdout = _Output(LARGEST_OUTPUT, full=self._stop)
        self.stderr = _Output(_KEPT_OF_STDERR, last=True)
        self._guard = guard
        self._lifeline = lifeline
        self._said = said
        self._transports: list[asyncio.BaseTransport] = [lifeline]

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        given: str,
        grace: tuple[float, float],
        cwd: str | os.PathLike[str] | None,
        environment: Mapping[str, str],
    ) -> _Process:
        """Starts it.

        Raises:
            Retry: It could not be started.
        """
        ours, theirs = socket.socketpair()
        arguments = [str(theirs.fileno()), *(str(seconds) for seconds in grace), *command]
        # stdin is a file, so that a command that does not read it has nobody waiting for it.
        with theirs, tempfile.TemporaryFile() as stdin:
            stdin.write(given.encode())
            stdin.seek(0)
            try:
                guard = subprocess.Popen(  # noqa: ASYNC220 (asyncio's own way blocks as long)
                    [sys.executable, "-I", "-S", str(_GUARD), *arguments],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=cwd,
                    env=environment,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C in a terminal is for the worker
                )
            except OSError as error:
                ours.close()
                raise Retry(f"the command could not be started: {error}") from error
        loop = asyncio.get_running_loop()
        said = _Output(_KEPT_OF_STDERR)
        lifeline, _ = await loop.create_connection(lambda: said, sock=ours)
        process = cls(guard, lifeline, said)
        out, _ = await loop.connect_read_pipe(lambda: process.stdout, guard.stdout)
        err, _ = await loop.connect_read_pipe(lambda: process.stderr, guard.stderr)
        process._transports += [out, err]
        return process

    async def ended(self) -> int:
        """Waits until the command and what it has started are gone; its exit code.

        Raises:
            Retry: It could not be started.
            CommandError: The guard is gone, and so is the command.
        """
        await self._said.ended.wait()
        told = self._told()
        if "failed" in told:
            raise Retry(f"the command could not be started: {told['failed']}")
        if "ended" not in told:
            raise CommandError("the process that guards the command was killed, and the command with it")
        # All is in the pipes already; only who has left the process group can hold them open.
        with anyio.move_on_after(_AFTERWARDS):
            await self.stdout.ended.wait()
            await self.stderr.ended.wait()
        return int(told["ended"])

    async def close(self, patience: float) -> None:
        """Ends it if it runs; there is nothing left of it afterwards.

        Args:
            patience: Seconds after which the guard is taken for stuck.
        """
        self._stop()
        with anyio.move_on_after(patience) as late:
            await self._said.ended.wait()
        if late.cancelled_caught:
            self._guard.kill()
        told = self._told()
        if "started" in told and "ended" not in told:
            with suppress(ProcessLookupError):
                os.killpg(int(told["started"]), signal.SIGKILL)
        for transport in self._transports:
            transport.close()
        for output in (self._said, self.stdout, self.stderr):
            await output.ended.wait()  # the loop closes them in its next round only
        self._guard.wait()

    def _stop(self) -> None:
        if not self._said.ended.is_set():
            self._lifeline.write(b"!")

    def _told(self) -> dict[str, str]:
        """What the guard has said, by its first word."""
        lines = self._said.kept.decode().splitlines()
        return {word: value for word, _, value in (line.partition(" ") for line in lines)}
