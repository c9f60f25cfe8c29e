"""Those who speak in sessions, and the notes they take: the agent in the workers, and the chats of a chat client.

    python -m faults.chatting NAME DSN SEED LEASE    # a chat client; ends at SIGTERM, when its chats have ended

Everybody notes when they entered a session and when they left it, and what they are about to say there, before they say
it. A note is one write to a file that is opened for appending, with the machine-wide monotonic clock.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import psycopg
from psycopg.types.json import Jsonb

from pgrecall import (
    HoldLostError,
    PostgresSessionStore,
    RecallScheduler,
    RunResult,
    SessionHeldError,
    SyncRecallScheduler,
    current_recall,
)
from pgrecall.model import IfHeld

SESSIONS = tuple(f"s{number}" for number in range(20))

#: How many chats of each kind a client has.
TASKS, THREADS, PLAIN = 6, 1, 1

_MODES: tuple[IfHeld, ...] = ("refuse", "wait", "interrupt")


class Notes:
    """A file of notes.

    Args:
        process: Whose.
    """

    def __init__(self, process: str) -> None:
        path = Path(os.environ["FAULTS_EVIDENCE"], f"{process}.notes")
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._process = process

    def __call__(self, kind: str, who: str, session_id: str, **more: Any) -> None:
        """Note something, now."""
        note = {"kind": kind, "at": time.monotonic_ns(), "process": self._process, "who": who, "session": session_id}
        os.write(self._file, (json.dumps(note | more) + "\n").encode())


class Agent:
    """Says two to four messages, in a tenth of a second or as long as `metadata.seconds` says.

    With `metadata.fails` its first attempt fails.
    """

    def __init__(self) -> None:
        self._note = Notes(os.environ["FAULTS_PROCESS"])

    async def run(self, *, session_id: str, user_message: str) -> RunResult:
        """Note, wait, note."""
        recall = current_recall()
        assert recall is not None
        who = f"run:{recall.run_id}"
        self._note(
            "enter",
            who,
            session_id,
            recall=recall.recall_id,
            message=recall.message_id,
            deferrals=recall.deferrals,
            waits=bool(recall.metadata.get("idle_for") or recall.metadata.get("fails")),
            nominal=recall.nominal_at.timestamp(),
            wall=time.time(),
        )
        try:
            await anyio.sleep(recall.metadata.get("seconds", random.uniform(0, 0.1)))
            if recall.metadata.get("fails") and recall.attempt == 1:
                raise RuntimeError("as asked for")
            count = random.randint(1, 3)
            messages = [{"role": "tool", "content": f"{user_message} {place}"} for place in range(count)]
            messages.append({"role": "assistant", "content": "done"})
            names = [*map(str, range(1, count + 1)), "reply"]
            self._note("says", who, session_id, ids=[f"{recall.message_id}:{name}" for name in names])
            return RunResult(reply="done", messages=messages)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)  # cleaning up takes a moment, also when it is told to stop
            self._note("leave", who, session_id)


class Client:
    """A chat server: chats that come and go, each in a session that it holds.

    Args:
        name: Of the process.
        dsn: The database.
        seed: Of what the chats do.
        lease: Of their holds, seconds.
    """

    def __init__(self, name: str, dsn: str, seed: int, lease: float) -> None:
        self._name = name
        self._dsn = dsn
        self._seed = seed
        self._lease = lease
        self._note = Notes(name)
        self._numbers = iter(range(sys.maxsize))
        self._ending = threading.Event()

    async def run(self) -> None:
        """Chat until SIGTERM."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ending.set)
        loop.add_signal_handler(signal.SIGUSR1, _tell_where)
        threads = [threading.Thread(target=self._sync, args=[place], daemon=True) for place in range(THREADS)]
        threads += [threading.Thread(target=self._plain, args=[place], daemon=True) for place in range(PLAIN)]
        for thread in threads:
            thread.start()
        async with RecallScheduler(self._dsn, pool_size=TASKS) as scheduler, anyio.create_task_group() as tasks:
            for place in range(TASKS):
                tasks.start_soon(self._async, scheduler, place)
        for thread in threads:
            await asyncio.to_thread(thread.join)

    def _wish(self, choose: random.Random) -> tuple[str, str, IfHeld, int]:
        """A session, a holder, what to do if it is held, and how much there is to say."""
        who = f"chat:{self._name}:{next(self._numbers)}"
        much = choose.choice([1, 1, 2, 2, 3, 20])
        return choose.choice(SESSIONS), who, choose.choice(_MODES), much

    def _words(self, who: str, session_id: str, role: str) -> dict[str, Any]:
        message_id = uuid.uuid4().hex
        self._note("says", who, session_id, ids=[message_id])
        return {"id": message_id, "role": role, "content": "well"}

    def _failed(self, who: str, session_id: str, error: Exception) -> None:
        match error:
            case SessionHeldError():
                kind = "refused"
            case HoldLostError():
                kind = "lost"
            case psycopg.OperationalError():
                kind = "cut off"
            case _:
                kind = "wrong"
        self._note(kind, who, session_id, error=f"{type(error).__name__}: {error}")

    # With the async scheduler

    async def _async(self, scheduler: RecallScheduler, place: int) -> None:
        choose = random.Random(f"{self._seed} task {place}")
        store = PostgresSessionStore(scheduler)
        while not self._ending.is_set():
            session_id, who, mode, much = self._wish(choose)
            try:
                async with scheduler.hold_session(
                    session_id, holder=who, lease=self._lease, if_held=mode, wait=choose.choice([1, 3])
                ):
                    self._note("enter", who, session_id)
                    try:
                        for _ in range(much):
                            for role in ("user", "assistant"):
                                await self._speak(store, session_id, self._words(who, session_id, role))
                                await asyncio.sleep(choose.uniform(0, 0.05))
                    finally:
                        self._note("leave", who, session_id)
            except Exception as error:  # noqa: BLE001 (noted, and judged)
                self._failed(who, session_id, error)
            await asyncio.sleep(choose.uniform(0, 0.5))

    async def _speak(self, store: PostgresSessionStore, session_id: str, message: dict[str, Any]) -> None:
        while True:
            with suppress(psycopg.OperationalError):  # again, with the same id
                session = await store.get(session_id)
                assert session is not None
                if all(known["id"] != message["id"] for known in session.messages):
                    session.messages.append(message)
                    session.context.append(message)
                    await store.save(session)
                return
            await asyncio.sleep(0.05)

    # With the sync scheduler

    def _sync(self, place: int) -> None:
        choose = random.Random(f"{self._seed} thread {place}")
        with SyncRecallScheduler(self._dsn, pool_size=1) as scheduler:
            while not self._ending.is_set():
                session_id, who, mode, much = self._wish(choose)
                try:
                    with scheduler.hold_session(
                        session_id, holder=who, lease=self._lease, if_held=mode, wait=choose.choice([1, 3])
                    ) as hold:
                        self._note("enter", who, session_id)
                        try:
                            with psycopg.connect(self._dsn, autocommit=True) as db:
                                for _ in range(much):
                                    if hold.lost:
                                        break
                                    self._say(db, session_id, self._words(who, session_id, "user"))
                                    time.sleep(choose.uniform(0, 0.05))
                        finally:
                            self._note("leave", who, session_id)
                except Exception as error:  # noqa: BLE001 (noted, and judged)
                    self._failed(who, session_id, error)
                time.sleep(choose.uniform(0, 0.5))

    # With plain SQL

    def _plain(self, place: int) -> None:
        choose = random.Random(f"{self._seed} plain {place}")
        while not self._ending.is_set():
            session_id, who, mode, much = self._wish(choose)
            try:
                with psycopg.connect(self._dsn, autocommit=True) as db:
                    if self._hold(db, session_id, who, mode):
                        self._chat(db, choose, session_id, who, much)
            except psycopg.Error as error:
                self._failed(who, session_id, error)
                with suppress(psycopg.Error), psycopg.connect(self._dsn, autocommit=True) as db:
                    db.execute("select pgrecall.free_session(%s, %s)", [session_id, who])
            time.sleep(choose.uniform(0, 0.5))

    def _hold(self, db: psycopg.Connection, session_id: str, who: str, mode: str) -> bool:
        give_up_at = time.monotonic() + 3
        while True:
            try:
                row = db.execute(
                    "select held from pgrecall.hold_session(%s, %s, %s * interval '1 second', %s)",
                    [session_id, who, self._lease, mode],
                ).fetchone()
            except psycopg.Error as error:
                if error.sqlstate != "PR006":
                    raise
                self._note("refused", who, session_id, error=str(error))
                return False
            assert row is not None
            if row[0]:
                return True
            if time.monotonic() > give_up_at:
                db.execute("select pgrecall.free_session(%s, %s)", [session_id, who])
                self._note("refused", who, session_id, error="gave up")
                return False
            time.sleep(0.1)

    def _chat(self, db: psycopg.Connection, choose: random.Random, session_id: str, who: str, much: int) -> None:
        entered = False
        try:
            for _ in range(much):
                asked_at = time.monotonic()
                renewed = db.execute(
                    "select pgrecall.renew_hold(%s, %s, %s * interval '1 second')", [session_id, who, self._lease]
                ).fetchone()
                if renewed is None or not renewed[0] or time.monotonic() > asked_at + self._lease * 0.9:
                    self._note("lost", who, session_id, error="not renewed")
                    break
                if not entered:
                    entered = True
                    self._note("enter", who, session_id)
                self._say(db, session_id, self._words(who, session_id, "user"))
                time.sleep(choose.uniform(0, 0.05))
        finally:
            if entered:
                self._note("leave", who, session_id)
        db.execute("select pgrecall.free_session(%s, %s)", [session_id, who])

    @staticmethod
    def _say(db: psycopg.Connection, session_id: str, message: dict[str, Any]) -> None:
        db.execute("select pgrecall.append_messages(%s, %s)", [session_id, Jsonb([message])])


def _tell_where() -> None:
    """Say where every task and thread is, for one that does not end."""
    for task in asyncio.all_tasks():
        task.print_stack()
    faulthandler.dump_traceback()


def __getattr__(name: str) -> Agent:
    """The agent, for the process that asks for it."""
    if name != "agent":
        raise AttributeError(name)
    return Agent()


if __name__ == "__main__":
    asyncio.run(Client(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])).run())
