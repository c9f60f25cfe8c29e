"""Two workers, chats and recalls that hammer the same twenty sessions, with faults; and an account of what came of it.

    python -m faults.chats --seconds 60     # with tests/ on PYTHONPATH, see README.md

What must be: never a run inside a chat, never two runs or two chats at once; every message in the store once and in
order; every recall ended; every session free; every deferral with a reason; every interruption with who.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from leash import LEASHED
from psycopg.types.json import Jsonb

from faults import postgres
from faults.accounting import Verdict, summary
from faults.chatting import SESSIONS
from faults.processes import START_SECONDS, Settings, WorkerProcess
from pgrecall.embedded import EmbeddedPostgres

_ROOT = Path(__file__).resolve().parents[2]

#: Of a client's holds in seconds: long, so that nobody loses one for want of a processor; and of one that is killed.
_LEASE, _SHORT_LEASE = 10.0, 1.5

#: Seconds in which everything ends that was asked for: a retry waits for up to ten.
_DRAIN = 60.0

#: Milliseconds after the end of a hold in which a deferred recall runs, on a machine that has too much to do.
_SLOW = 3000.0


@dataclass(eq=False)
class ChatProcess:
    """A chat client in a process of its own.

    Args:
        directory: Gets its notes and its output.
        dsn: The database.
        name: Of the process.
        seed: Of what its chats do.
        lease: Of their holds, seconds.
    """

    directory: Path
    dsn: str
    name: str
    seed: int
    lease: float
    died_ns: int | None = None

    def __post_init__(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*LEASHED, "faults.chatting", self.name, self.dsn, str(self.seed), str(self.lease)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ
                | {"PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'tests'}", "FAULTS_EVIDENCE": str(self.directory)},
            )

    @property
    def _log(self) -> Path:
        return self.directory / f"{self.name}.log"

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()
        self._note_death()

    def end(self, seconds: float = 30) -> None:
        """SIGTERM, and wait until its chats have ended.

        Raises:
            RuntimeError: It ended with an error, or not at all.
        """
        self._process.terminate()
        code: int | None = None
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(seconds)
        if code is None:
            self._process.send_signal(signal.SIGUSR1)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)  # until it has said where it is
            self.kill()
        self._note_death()
        if code != 0:
            raise RuntimeError(f"the chat client {self.name} ended with {code}: {self._log.read_text()[-10000:]}")

    def close(self) -> None:
        """End it, whatever it does."""
        if self.died_ns is None:
            self.kill()

    def _note_death(self) -> None:
        self.died_ns = time.monotonic_ns()
        assert self._process.stdin is not None
        self._process.stdin.close()


@dataclass(frozen=True)
class Bereft:
    """A session whose chat was killed, by the wall clock in seconds."""

    session_id: str
    held_until: float
    killed_at: float


@dataclass
class Hammer:
    """All processes, and what happens to them.

    Args:
        dsn: The database, with the schema and the sessions.
        directory: Gets notes and logs.
        seconds: For how long chats and recalls come.
        seed: Of what is done.
        say: Gets a line for each fault.
    """

    dsn: str
    directory: Path
    seconds: float
    seed: int
    say: Callable[[str], None]
    workers: list[WorkerProcess] = field(default_factory=list)
    clients: list[ChatProcess] = field(default_factory=list)
    bereft: list[Bereft] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)

    def run(self) -> Verdict:
        """Do it all, and account for it."""
        choose = random.Random(self.seed)
        settings = Settings(self.directory, concurrency=20, lease=10, agent="faults.chatting:agent")
        try:
            self._start(choose, settings)
            with psycopg.connect(self.dsn, autocommit=True, application_name="operator") as db:
                self._hammer(db, choose, settings)
                for client in self.clients:
                    if client.died_ns is None:
                        client.end()
                drained = self._drain(db)
        finally:
            self._end()
        verdict = account(self.dsn, self.directory, self.workers, self.clients, self.bereft)
        verdict.figures |= {"faults": dict(self.faults), "recalls asked for": dict(self.asked)}
        if not drained:
            verdict.violations["it did not come to an end"] = [f"within {_DRAIN:g} s"]
        return verdict

    def _start(self, choose: random.Random, settings: Settings) -> None:
        self.workers += [WorkerProcess(settings, self.dsn) for _ in range(2)]
        deadline = time.monotonic() + START_SECONDS
        while not all(worker.ready for worker in self.workers):
            assert time.monotonic() < deadline, f"the workers have not started within {START_SECONDS:g} s"
            time.sleep(0.05)
        self._client("stable", choose, _LEASE)
        self._client("mortal", choose, _SHORT_LEASE)

    def _end(self) -> None:
        for client in self.clients:
            client.close()
        living = [worker for worker in self.workers if worker.alive]
        for worker in living:
            worker.tell_to_end()
        for worker in living:
            worker.wait(20)

    def _client(self, kind: str, choose: random.Random, lease: float) -> None:
        name = f"{kind}{len(self.clients)}"
        self.clients.append(ChatProcess(self.directory, self.dsn, name, choose.randrange(10**9), lease))

    def _hammer(self, db: psycopg.Connection, choose: random.Random, settings: Settings) -> None:
        ends = time.monotonic() + self.seconds
        faults = [self._kill_worker, self._kill_client, self._terminate]
        choose.shuffle(faults)
        # Each kind once in ten seconds, none of them in the first second and the last.
        count = max(3, round(self.seconds * 0.3))
        pause = (self.seconds - 2) / count
        next_fault = time.monotonic() + 1 + pause * choose.uniform(0.3, 1)
        number = 0
        while time.monotonic() < ends:
            self._ask(db, choose)
            if number < count and time.monotonic() > next_fault:
                fault = faults[number % 3]
                fault(db, choose, settings)
                self.faults[fault.__name__.strip("_").replace("_", " ")] += 1
                number += 1
                next_fault += pause
            time.sleep(choose.uniform(0, 0.02))

    def _ask(self, db: psycopg.Connection, choose: random.Random) -> None:
        """Ask for a recall, unless the session has one."""
        kind = choose.choice(["once", "soon", "recurring", "idle", "skip", "run", "long", "no retry", "fails"])
        wish: dict[str, Any] = {"trigger_at": "now()", "call_type": "'once'"}
        metadata: dict[str, Any] = {"kind": kind}
        match kind:
            case "soon":
                wish["trigger_at"] = "now() + interval '0.3 seconds'"
            case "recurring":
                wish |= {"call_type": "'recurring'", "interval_seconds": "1"}
                wish["end_at"] = "now() + interval '3.5 seconds'"
            case "idle":
                wish["idle_for_seconds"] = "1"
                wish["max_defer_seconds"] = choose.choice(["2", "86400"])
                wish["on_max_defer"] = choose.choice(["'run'", "'skip'"])
                metadata["idle_for"] = 1
            case "skip" | "run":
                wish |= {"max_defer_seconds": "1", "on_max_defer": f"'{kind}'"}
            case "long" | "no retry":
                metadata["seconds"] = choose.uniform(0.3, 1)
                wish["on_interrupt"] = "'retry'" if kind == "long" else "'skip'"
            case "fails":
                # Seldom: its backoff of five seconds keeps the session from asking for more.
                metadata["fails"] = choose.random() < 0.2
        columns = ", ".join(wish)
        values = ", ".join(wish.values())
        with suppress(psycopg.errors.UniqueViolation):
            db.execute(
                f"insert into pgrecall.session_recalls (session_id, additional_context_message, metadata, {columns}) "
                f"values (%s, 'go on', %s, {values})".encode(),
                [choose.choice(SESSIONS), Jsonb(metadata)],
            )
            self.asked[kind] += 1

    def _kill_worker(self, db: psycopg.Connection, choose: random.Random, settings: Settings) -> None:
        victim = choose.choice([worker for worker in self.workers if worker.alive])
        victim.kill()
        self.say(f"kill -9 of the worker {victim.name}")
        self.workers.append(WorkerProcess(settings, self.dsn))

    def _kill_client(self, db: psycopg.Connection, choose: random.Random, settings: Settings) -> None:
        victim = next(client for client in reversed(self.clients) if client.lease == _SHORT_LEASE)
        victim.kill()
        killed_at = time.time()
        held = db.execute(
            "select id, extract(epoch from held_until)::float from pgrecall.sessions "
            "where starts_with(holder, %s) and run_id is null and held_until > clock_timestamp()",
            [f"chat:{victim.name}:"],
        ).fetchall()
        self.bereft += [Bereft(name, until, killed_at) for name, until in held]
        self.say(f"kill -9 of the chat client {victim.name}, which held {len(held)} sessions")
        self._client("mortal", choose, _SHORT_LEASE)

    def _terminate(self, db: psycopg.Connection, choose: random.Random, settings: Settings) -> None:
        self.say(f"{postgres.terminate_connections(self.dsn, 0.5)} connections terminated")

    def _drain(self, db: psycopg.Connection) -> bool:
        deadline = time.monotonic() + _DRAIN
        while time.monotonic() < deadline:
            row = db.execute(
                """
                select not exists (
                    select from pgrecall.session_recalls where due_at is not null or run_id is not null
                ) and not exists (
                    select from pgrecall.sessions where run_id is not null or held_until > clock_timestamp()
                )
                """
            ).fetchone()
            if row is not None and row[0]:
                return True
            time.sleep(0.1)
        return False


@dataclass
class Stay:
    """Somebody's time in a session, monotonic nanoseconds."""

    session_id: str
    who: str
    process: str
    entered: int
    left: int
    note: dict[str, Any]


def _notes(directory: Path) -> list[dict[str, Any]]:
    lines = [line for path in directory.glob("*.notes") for line in path.read_text().splitlines(keepends=True)]
    return sorted((json.loads(line) for line in lines if line.endswith("}\n")), key=lambda note: int(note["at"]))


def _stays(notes: Iterable[dict[str, Any]], deaths: dict[str, int]) -> list[Stay]:
    """Everybody's times in sessions; without a leave they end with the process."""
    open_stays: dict[str, Stay] = {}
    stays = []
    for note in notes:
        if note["kind"] == "enter":
            left = deaths.get(note["process"], sys.maxsize)
            stay = Stay(note["session"], note["who"], note["process"], note["at"], left, note)
            open_stays[note["who"]] = stay
            stays.append(stay)
        elif note["kind"] == "leave":
            open_stays.pop(note["who"]).left = note["at"]
    return stays


def account(
    dsn: str,
    directory: Path,
    workers: Sequence[WorkerProcess],
    clients: Sequence[ChatProcess],
    bereft: Sequence[Bereft] = (),
) -> Verdict:
    """Look at everything, when it has ended.

    Args:
        dsn: The database.
        directory: Has the notes.
        workers: All that there were.
        clients: All that there were.
        bereft: The sessions whose chats were killed.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    notes = _notes(directory)
    deaths = {worker.name: worker.died_ns for worker in workers if worker.died_ns is not None}
    deaths |= {client.name: client.died_ns for client in clients if client.died_ns is not None}
    stays = _stays(notes, deaths)

    for worker in workers:
        if worker.killed_ns is None and worker.exit_code != 0:
            found["a worker that ended by itself"].append(f"{worker.name}: {worker.exit_code}\n{worker.log_tail()}")
    found["an error that nobody expects"] += [str(note) for note in notes if note["kind"] == "wrong"]

    by_session: defaultdict[str, list[Stay]] = defaultdict(list)
    for stay in stays:
        by_session[stay.session_id].append(stay)
    for session_stays in by_session.values():
        for before, after in itertools.pairwise(session_stays):
            if after.entered < before.left:
                found["two in one session at once"].append(
                    f"{before.session_id}: {before.who} and {after.who}, {(before.left - after.entered) / 1e6:.1f} ms"
                )

    with psycopg.connect(dsn, autocommit=True, application_name="operator") as db:
        _account_messages(db, notes, found)
        _account_recalls(db, stays, found)
        outcomes: dict[str, int] = dict(
            db.execute("select outcome, count(*) from pgrecall.recall_runs group by 1").fetchall()
        )
        interrupted = db.execute(
            "select count(*) from pgrecall.recall_runs where reason like 'interrupted by the chat %'"
        ).fetchone()
        deferrals: dict[str, int] = dict(
            db.execute(
                "select regexp_replace(defer_reason, '(run|chat) .*|for .*', '\\1'), count(*) "
                "from pgrecall.recall_runs where defer_reason is not null group by 1"
            ).fetchall()
        )
        messages = db.execute("select count(*) from pgrecall.session_messages").fetchone()
    verdict = Verdict(violations={name: cases for name, cases in found.items() if cases})
    verdict.figures = {
        "chats": sum(stay.who.startswith("chat:") for stay in stays),
        "runs": sum(stay.who.startswith("run:") for stay in stays),
        "chats refused": sum(note["kind"] == "refused" for note in notes),
        "holds lost": sum(note["kind"] == "lost" for note in notes),
        "chats cut off": sum(note["kind"] == "cut off" for note in notes),
        "messages": messages and messages[0],
        "outcomes": outcomes,
        "runs interrupted by chats": interrupted and interrupted[0],
        "deferred because": deferrals,
    }
    freed, bequeathed = _wakes(by_session, bereft)
    slow = [took for took in (*freed, *bequeathed) if took > _SLOW]
    if slow:
        verdict.violations["a recall that nobody woke when its session was free"] = [f"{took:.0f} ms" for took in slow]
    verdict.figures["end of a hold to the agent's first line, ms"] = summary(freed)
    verdict.figures["end of a killed chat's lease to the agent's first line, ms"] = summary(bequeathed)
    return verdict


def _account_messages(
    db: psycopg.Connection, notes: Sequence[dict[str, Any]], found: defaultdict[str, list[str]]
) -> None:
    """Everything that was said is in the store once, in the order in which it was said, and nothing else is."""
    stored: defaultdict[str, list[str]] = defaultdict(list)
    for session_id, message_id in db.execute("select session_id, id from pgrecall.session_messages order by position"):
        stored[session_id].append(message_id)
    said = _said(db, notes, stored, found)
    injected: dict[str, str] = dict(
        db.execute(
            "select pgrecall.occurrence_message_id(recall_id, nominal_at), session_id from pgrecall.recall_runs "
            "where attempt > 0 group by 1, 2"
        ).fetchall()
    )
    for session_id, ids in stored.items():
        found["a message twice"] += [f"{session_id}: {name}" for name, count in Counter(ids).items() if count > 1]
        others = [name for name in ids if name not in injected]
        if others != said[session_id]:
            pairs = itertools.zip_longest(others, said[session_id])
            first = next(pair for pair in pairs if pair[0] != pair[1])
            found["messages out of order, or of nobody"].append(f"{session_id}: {first}")
        places = {name: place for place, name in enumerate(ids)}
        found["an answer before its recall"] += [
            f"{session_id}: {name}" for name in others if places.get(name.rpartition(":")[0], -1) > places[name]
        ]
    found["a recall's message that is missing"] += [
        f"{session_id}: {message_id}"
        for message_id, session_id in injected.items()
        if message_id not in stored[session_id]
    ]


def _said(
    db: psycopg.Connection,
    notes: Sequence[dict[str, Any]],
    stored: dict[str, list[str]],
    found: defaultdict[str, list[str]],
) -> defaultdict[str, list[str]]:
    """What is to be in the store, in order: without what a run said whose outcome did not count.

    Who was killed or cut off may or may not have said what it was about to say.
    """
    succeeded = {
        f"run:{run_id}"
        for (run_id,) in db.execute("select id from pgrecall.recall_runs where outcome in ('success', 'silent')")
    }
    ended = {note["who"] for note in notes if note["kind"] == "leave"}
    ended -= {note["who"] for note in notes if note["kind"] in ("cut off", "lost")}
    said: defaultdict[str, list[str]] = defaultdict(list)
    for note in notes:
        if note["kind"] != "says" or (note["who"].startswith("run:") and note["who"] not in succeeded):
            continue
        there = set(stored[note["session"]])
        said[note["session"]] += [message_id for message_id in note["ids"] if message_id in there]
        if note["who"] in ended:
            found["a message that is missing"] += [
                f"{note['session']}: {message_id} of {note['who']}"
                for message_id in note["ids"]
                if message_id not in there
            ]
    return said


#: Each answers the cases of what must not be.
_MUST_NOT_BE = {
    "a recall that has not ended": """
        select id from pgrecall.session_recalls
        where status not in ('fired', 'failed', 'cancelled') or run_id is not null
    """,
    "an occurrence that succeeded twice": """
        select recall_id from pgrecall.recall_runs
        where outcome in ('success', 'silent') group by recall_id, nominal_at having count(*) > 1
    """,
    "a recall that fired without a success": """
        select id from pgrecall.session_recalls as recall
        where status = 'fired' and call_type = 'once' and not exists (
            select from pgrecall.recall_runs as run
            where run.recall_id = recall.id and run.outcome in ('success', 'silent')
        )
    """,
    "a session that is not free": """
        select id from pgrecall.sessions
        where run_id is not null or held_until > clock_timestamp() or line_until > clock_timestamp()
    """,
    "somebody who still waits in line": """
        select session_id || ' ' || holder from pgrecall.session_waiters where until > clock_timestamp()
    """,
    "a deferral without a reason": """
        select recall_id from pgrecall.recall_runs group by recall_id, nominal_at
        having max(deferrals) > 0 and max(defer_reason) is null
    """,
    "a deferred occurrence that was left out without saying so": """
        select recall_id from pgrecall.recall_runs where outcome = 'skipped' and reason not like 'put off for % s: %'
    """,
    "an interruption of nobody": """
        select recall_id from pgrecall.recall_runs
        where outcome = 'interrupted'
            and reason not like 'interrupted by the chat chat:%'
            and coalesce(reason, '') not in (
                'lease lost', 'worker stopping', 'connections lost while claiming',
                'its worker never heard of the claim'
            )
    """,
    "a deadlock": """
        select deadlocks::text from pg_stat_database where datname = current_database() and deadlocks > 0
    """,
}


def _account_recalls(db: psycopg.Connection, stays: Sequence[Stay], found: defaultdict[str, list[str]]) -> None:
    for name, query in _MUST_NOT_BE.items():
        found[name] += [str(case) for (case,) in db.execute(query.encode())]
    known = {f"run:{run_id}" for (run_id,) in db.execute("select id from pgrecall.recall_runs")}
    found["a run that the ledger does not know"] += [
        stay.who for stay in stays if stay.who.startswith("run:") and stay.who not in known
    ]


def _wakes(by_session: dict[str, list[Stay]], bereft: Sequence[Bereft]) -> tuple[list[float], list[float]]:
    """Milliseconds to the first line of a deferred recall's agent: from the end of a hold, and of a dead chat's lease.

    Not of recalls that wait for more than that: for quiet, or for the backoff after a failure.
    """
    freed, bequeathed = [], []
    for session_id, stays in by_session.items():
        for before, after in itertools.pairwise(stays):
            note = after.note
            if not after.who.startswith("run:") or note["deferrals"] == 0 or note["waits"]:
                continue
            left_at = note["wall"] - (after.entered - before.left) / 1e9
            if not before.who.startswith("chat:") or note["nominal"] > left_at:
                continue
            lost = [
                one
                for one in bereft
                # A run that was over before the chat came is another story.
                if one.session_id == session_id and abs(one.killed_at - left_at) < 0.5 and note["wall"] > one.killed_at
            ]
            if lost:
                bequeathed.append((note["wall"] - lost[0].held_until) * 1000)
            else:
                freed.append((after.entered - before.left) / 1e6)
    return freed, bequeathed


def hammer(dsn: str, directory: Path, seconds: float, seed: int, say: Callable[[str], None] = print) -> Verdict:
    """Make the sessions, hammer them for so many seconds, and account for it."""
    with psycopg.connect(dsn, autocommit=True) as db, db.cursor() as cursor:
        cursor.executemany("insert into pgrecall.sessions (id) values (%s)", [[name] for name in SESSIONS])
    return Hammer(dsn, directory, seconds, seed, say).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code is 1 if anything is not as it must be."""
    parser = argparse.ArgumentParser(prog="faults.chats", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, metavar="N", help="default 60")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), metavar="N", help="default random")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep data, logs and notes in a new directory")
    given = parser.parse_args(arguments)
    began = datetime.now().astimezone()
    with tempfile.TemporaryDirectory(prefix="pgrecall-chats-") as temporary:
        directory = given.keep or Path(temporary)
        evidence = directory / "evidence"
        evidence.mkdir(parents=True)
        print(f"seed {given.seed}, {began:%H:%M:%S}", flush=True)
        with postgres.crashable(directory / "data") as server:
            assert isinstance(server, EmbeddedPostgres)
            verdict = hammer(server.dsn, evidence, given.seconds, given.seed, say=lambda line: print(line, flush=True))
    print(verdict)
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
