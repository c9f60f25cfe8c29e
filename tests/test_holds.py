"""Holding a session from Python: taking it, waiting for it, interrupting a run, losing it; also between processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import psycopg
import pytest
from pgbouncer import pgbouncer
from workerprocess import DEADLINE, ROOT, WorkerProcess
from workertools import NEVER, Recorder, Sql, sql, until, working

from pgrecall import (
    CurrentRecall,
    HoldLostError,
    RecallScheduler,
    SessionHeldError,
    SessionNotFoundError,
    SyncRecallScheduler,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def scheduler(database: str) -> AsyncIterator[RecallScheduler]:
    async with RecallScheduler(database) as found:
        yield found


@pytest.fixture
async def db(database: str) -> AsyncIterator[Sql]:
    async with sql(database) as found:
        await found.session("s1")
        yield found


async def waiting(db: Sql, chats: int = 1) -> None:
    """Until so many chats wait in line."""

    async def are() -> bool:
        return bool((await db("select count(*) from pgrecall.session_waiters"))[0] == chats)

    await until(are)


async def free(db: Sql) -> None:
    async def is_free() -> bool:
        return bool((await db("select count(*) from pgrecall.sessions where holder is not null"))[0] == 0)

    await until(is_free)


async def deferred(db: Sql, recall_id: str) -> None:
    async def is_deferred() -> bool:
        return bool((await db("select deferrals from pgrecall.session_recalls where id = %s", recall_id))[0] > 0)

    await until(is_deferred)


async def test_no_run_starts_while_a_chat_holds_the_session_and_one_does_when_it_ends(
    database: str, scheduler: RecallScheduler, db: Sql
) -> None:
    agent = Recorder()
    async with working(database, agent):
        async with scheduler.hold_session("s1", holder="web-1") as hold:
            (shown,) = await scheduler.get_holds()
            assert (shown.held_session_id, shown.kind, shown.holder, shown.since) == ("s1", "chat", "web-1", hold.since)
            recall_id = await db.recall("s1")
            await deferred(db, recall_id)
            assert agent.runs == []
        await db.ended(recall_id)
    ((deferrals, reason),) = await db("select deferrals, defer_reason from pgrecall.recall_runs")
    assert (deferrals, reason) == (1, "session held by the chat web-1")
    assert await scheduler.get_holds() == []


async def test_who_is_refused_learns_who_has_the_session_since_when(scheduler: RecallScheduler, db: Sql) -> None:
    async with scheduler.hold_session("s1", holder="web-1") as first:
        with pytest.raises(SessionHeldError, match="'s1' is held by the chat web-1") as caught:
            async with scheduler.hold_session("s1", holder="web-2"):
                raise AssertionError
        error = caught.value
        assert (error.session_id, error.kind, error.holder, error.since) == ("s1", "chat", "web-1", first.since)
        assert error.until is not None


async def test_an_unknown_session_cannot_be_held(scheduler: RecallScheduler) -> None:
    with pytest.raises(SessionNotFoundError):
        async with scheduler.hold_session("unknown"):
            raise AssertionError


async def test_a_chat_in_line_gets_the_session_when_the_run_ends(
    database: str, scheduler: RecallScheduler, db: Sql
) -> None:
    go_on = anyio.Event()

    async def then(recall: CurrentRecall) -> str:
        await go_on.wait()
        return "done"

    agent = Recorder(then)
    async with working(database, agent):
        recall_id = await db.recall("s1")
        await agent.count(1)
        with pytest.raises(SessionHeldError) as caught:
            async with scheduler.hold_session("s1"):
                raise AssertionError
        assert (caught.value.kind, caught.value.recall_id) == ("run", recall_id)

        async def chat() -> None:
            async with scheduler.hold_session("s1", if_held="wait"):
                assert await db("select status from pgrecall.session_recalls") == ["fired"]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(chat)
            await waiting(db)
            go_on.set()
    await free(db)


async def test_an_interrupted_agent_is_cancelled_and_its_recall_runs_again_after_the_chat(
    database: str, scheduler: RecallScheduler, db: Sql
) -> None:
    cleaned_up: list[bool] = []

    async def then(recall: CurrentRecall) -> str:
        if recall.deferrals:
            return "done"
        try:
            await anyio.sleep(NEVER)
        finally:
            cleaned_up.append(recall.cancelled)
        return "never"

    agent = Recorder(then)
    async with working(database, agent):
        recall_id = await db.recall("s1")
        await agent.count(1)
        async with scheduler.hold_session("s1", holder="web-1", if_held="interrupt", wait=DEADLINE):
            assert cleaned_up == [True]
            assert await db("select outcome, reason from pgrecall.recall_runs") == [
                ("interrupted", "interrupted by the chat web-1")
            ]
        await db.ended(recall_id)
    assert [one.attempt for one in agent.runs] == [1, 1]


async def test_chats_get_their_turn_one_after_the_other(scheduler: RecallScheduler, db: Sql) -> None:
    turns: list[int] = []

    async def chat(number: int) -> None:
        async with scheduler.hold_session("s1", holder=f"web-{number}", if_held="wait"):
            turns.append(number)
            assert [one.holder for one in await scheduler.get_holds()] == [f"web-{number}"]

    async with anyio.create_task_group() as tasks, scheduler.hold_session("s1"):
        for number in range(5):
            tasks.start_soon(chat, number)
            await waiting(db, number + 1)
    assert turns == [0, 1, 2, 3, 4]


async def test_who_has_waited_long_enough_leaves_the_line(scheduler: RecallScheduler, db: Sql) -> None:
    async with scheduler.hold_session("s1", holder="web-1"):
        with pytest.raises(SessionHeldError, match=r"was not free within 0\.2 s: it is held by the chat web-1"):
            async with scheduler.hold_session("s1", if_held="wait", wait=0.2):
                raise AssertionError
        assert await db("select count(*) from pgrecall.session_waiters") == [0]
        assert await db("select line_until from pgrecall.sessions") == [None]


async def test_who_is_cancelled_in_line_leaves_it(scheduler: RecallScheduler, db: Sql) -> None:
    async def chat() -> None:
        async with scheduler.hold_session("s1", if_held="wait"):
            raise AssertionError

    async with scheduler.hold_session("s1"), anyio.create_task_group() as tasks:
        tasks.start_soon(chat)
        await waiting(db)
        tasks.cancel_scope.cancel()
    assert await db("select count(*) from pgrecall.session_waiters") == [0]
    await free(db)


async def test_a_hold_lasts_as_long_as_its_block_however_short_its_lease(scheduler: RecallScheduler, db: Sql) -> None:
    async with scheduler.hold_session("s1", lease=0.3) as hold:
        before = (await db("select held_until from pgrecall.sessions"))[0]

        async def renewed_twice() -> bool:
            later = (await db("select held_until from pgrecall.sessions"))[0]
            return bool((later - before).total_seconds() > 0.15)

        await until(renewed_twice)
        assert not hold.lost


async def test_a_chat_whose_hold_is_lost_is_cancelled_and_told(scheduler: RecallScheduler, db: Sql) -> None:
    hold = scheduler.hold_session("s1", lease=0.3)

    async def chat() -> None:
        async with hold:
            await db("update pgrecall.sessions set holder = 'thief', held_until = now() + interval '1 hour'")
            await anyio.sleep(NEVER)

    with pytest.raises(HoldLostError, match="'s1' was lost"):
        await chat()
    assert hold.lost
    assert await db("select holder from pgrecall.sessions") == ["thief"]


async def test_a_chat_that_cannot_renew_stops_before_its_lease_ends(
    database: str, scheduler: RecallScheduler, db: Sql
) -> None:
    async def chat() -> None:
        async with (
            scheduler.hold_session("s1", lease=1.5),
            await psycopg.AsyncConnection.connect(database) as other,
        ):
            # Whoever wants to renew waits for this lock.
            await other.execute("select from pgrecall.sessions where id = 's1' for update")
            await anyio.sleep(NEVER)

    with pytest.raises(HoldLostError, match="could not be renewed in time"):
        await chat()


async def test_an_error_in_the_block_is_the_callers_own(scheduler: RecallScheduler, db: Sql) -> None:
    with pytest.raises(KeyError):
        async with scheduler.hold_session("s1"):
            raise KeyError
    await free(db)


async def test_a_chat_that_goes_on_for_too_long_gives_way_to_a_recall(
    database: str, scheduler: RecallScheduler, db: Sql
) -> None:
    async def chat() -> None:
        async with scheduler.hold_session("s1", lease=1.5):
            await db.recall("s1", max_defer_seconds=1)
            await anyio.sleep(NEVER)

    agent = Recorder()
    async with working(database, agent):
        with pytest.raises(HoldLostError, match="max_defer_seconds"):
            await chat()
        await agent.count(1)


async def test_waiting_works_behind_a_pooler_that_delivers_no_notifications(database: str, db: Sql) -> None:
    with pgbouncer(database) as pooler:
        async with RecallScheduler(pooler.dsn(database)) as scheduler:

            async def chat() -> None:
                async with scheduler.hold_session("s1", if_held="wait"):
                    pass

            async with anyio.create_task_group() as tasks, scheduler.hold_session("s1"):
                tasks.start_soon(chat)
                await waiting(db)
    await free(db)


async def test_a_run_learns_of_a_session_that_is_paused_with_all_and_starts_when_it_is_over(
    database: str, scheduler: RecallScheduler, db: Sql
) -> None:
    agent = Recorder()
    async with working(database, agent):
        paused = await scheduler.pause_all(reason="an incident")
        assert (paused.pause_reason, paused.paused_until) == ("an incident", None)
        recall_id = await db.recall("s1")
        await db.asleep()
        assert agent.runs == []
        await scheduler.resume_all()
        await db.ended(recall_id)


# The same without an event loop


@pytest.fixture
def plain(database: str) -> Iterator[SyncRecallScheduler]:
    with psycopg.connect(database) as connection:
        connection.execute("insert into pgrecall.sessions (id) values ('s1')")
    with SyncRecallScheduler(database) as found:
        yield found


def in_a_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_thread_holds_a_session_and_others_are_refused_or_wait(plain: SyncRecallScheduler) -> None:
    turns: list[str] = []

    def chat() -> None:
        with plain.hold_session("s1", holder="second", if_held="wait"):
            turns.append("second")

    with plain.hold_session("s1", holder="first", lease=1) as hold:
        assert hold.since is not None
        with pytest.raises(SessionHeldError, match="held by the chat first"), plain.hold_session("s1"):
            raise AssertionError
        with pytest.raises(SessionHeldError, match="not free within"):  # noqa: SIM117 (what is entered is what fails)
            with plain.hold_session("s1", if_held="wait", wait=0.1):
                raise AssertionError
        thread = in_a_thread(chat)
        asyncio.run(_waits(plain.dsn))
        turns.append("first")
    thread.join(DEADLINE)
    assert turns == ["first", "second"]
    assert plain.get_holds() == []


async def _waits(dsn: str) -> None:
    async with sql(dsn) as db:
        await waiting(db)


def test_a_thread_learns_at_the_end_that_its_hold_was_lost(plain: SyncRecallScheduler) -> None:
    hold = plain.hold_session("s1", lease=0.3)

    async def lost() -> bool:
        return hold.lost

    def chat() -> None:
        with hold, psycopg.connect(plain.dsn, autocommit=True) as thief:
            thief.execute("update pgrecall.sessions set holder = 'thief', held_until = now() + interval '1 hour'")
            asyncio.run(_until(lost))

    with pytest.raises(HoldLostError):
        chat()


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    await until(condition)


# Two processes: a worker and a chat

CHAT = """
import asyncio, sys
from pgrecall import RecallScheduler, SessionHeldError

async def chat(dsn, if_held):
    async with RecallScheduler(dsn) as scheduler:
        try:
            async with scheduler.hold_session("s1", holder="chat", lease=3, if_held=if_held):
                print("held", flush=True)
                await asyncio.to_thread(sys.stdin.readline)
        except SessionHeldError as error:
            print(f"refused: {error.kind} {error.run_id} {error.holder} {error.since:%Y}", flush=True)

asyncio.run(chat(*sys.argv[1:]))
"""


class Chat:
    """A chat server's process that holds s1 until it is told to end."""

    def __init__(self, dsn: str, if_held: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHAT, dsn, if_held],
            cwd=Path(ROOT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate("\n", timeout=DEADLINE)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE)


@pytest.fixture
def chat(database: str) -> Iterator[Callable[[str], Chat]]:
    chats: list[Chat] = []

    def begin(if_held: str) -> Chat:
        chats.append(Chat(database, if_held))
        return chats[-1]

    yield begin
    for one in chats:
        one.kill()


Start = Callable[..., WorkerProcess]


async def test_a_chat_process_is_refused_by_a_run_in_another_process(
    start: Start, chat: Callable[[str], Chat], db: Sql
) -> None:
    worker = start()
    await db.recall("s1", message="sleep 600")
    run_id = worker.event("recall_claimed")["run_id"]
    (year,) = await db("select to_char(now(), 'YYYY')")
    worker_id = worker.event("worker_started")["worker_id"]
    assert chat("refuse").says() == f"refused: run {run_id} {worker_id} {year}"


async def test_a_chat_process_in_line_is_woken_when_the_run_in_another_process_ends(
    start: Start, chat: Callable[[str], Chat], db: Sql
) -> None:
    worker = start()
    await db.recall("s1", message="sleep 2")
    worker.event("recall_claimed")
    one = chat("wait")
    assert one.says() == "held"
    assert await db("select outcome from pgrecall.recall_runs") == ["success"]
    one.end()
    await free(db)


async def test_a_chat_process_interrupts_a_run_in_another_process(
    start: Start, chat: Callable[[str], Chat], db: Sql
) -> None:
    worker = start()
    recall_id = await db.recall("s1", message="sleep 600", on_interrupt="skip")
    worker.event("recall_claimed")
    one = chat("interrupt")
    assert one.says() == "held"
    assert worker.event("run_stopped")["reason"] == "told to stop"
    assert await db("select outcome, reason from pgrecall.recall_runs") == [
        ("interrupted", "interrupted by the chat chat")
    ]
    assert await db("select status from pgrecall.session_recalls where id = %s", recall_id) == ["cancelled"]
    one.end()
    await free(db)


async def test_the_hold_of_a_chat_process_that_was_killed_ends_with_its_lease(
    start: Start, chat: Callable[[str], Chat], db: Sql
) -> None:
    start()
    one = chat("refuse")
    assert one.says() == "held"
    recall_id = await db.recall("s1")
    await deferred(db, recall_id)
    one.kill()
    await db.ended(recall_id)
