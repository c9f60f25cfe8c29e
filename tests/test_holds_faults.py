"""Holds in trouble: cancelled while they ask, lost while they end, cut off; chats and recalls that hammer sessions."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from faults.chats import hammer
from faults.proxy import Proxy
from sqltools import add_session, session, value, wait_until
from workertools import sql, until

from pgrecall import HoldLostError, RecallScheduler, SessionHeldError, SyncRecallScheduler, holds
from pgrecall import database as database_module

pytestmark = pytest.mark.anyio

#: As if it had been for a minute.
_PUT_OFF = "update pgrecall.session_recalls set deferred_since = now() - interval '1 minute', not_before = now()"


async def test_a_chat_that_is_cancelled_while_it_asks_leaves_the_session_free(database: str) -> None:
    async with sql(database) as query, RecallScheduler(database) as scheduler:
        await query.session("s")
        await scheduler.get_holds()  # connected
        other = psycopg.connect(database)
        other.execute("select from pgrecall.sessions for update")

        async def chat() -> None:
            async with scheduler.hold_session("s", holder="alice"):
                raise AssertionError("it cannot have the session")

        asking = asyncio.create_task(chat())

        async def asks() -> bool:
            waits = "select from pg_stat_activity where query like '%%hold_session(%%' and wait_event_type = 'Lock'"
            return bool(await query(waits))

        await until(asks)
        # The answer is on its way when the chat hears that it is not wanted any more.
        other.close()
        time.sleep(0.3)  # noqa: ASYNC251 (nobody may read the answer)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await query("select holder from pgrecall.sessions") == [None]


async def test_a_chat_that_is_cancelled_while_it_leaves_frees_the_session_all_the_same(database: str) -> None:
    async with (
        sql(database) as query,
        await psycopg.AsyncConnection.connect(database) as other,
        RecallScheduler(database) as scheduler,
    ):
        await query.session("s")
        entered, leave = asyncio.Event(), asyncio.Event()

        async def chat() -> None:
            async with scheduler.hold_session("s", holder="alice"):
                entered.set()
                await leave.wait()

        chatting = asyncio.create_task(chat())
        await entered.wait()
        await other.execute("select from pgrecall.sessions for update")
        leave.set()

        async def leaves() -> bool:
            waits = "select from pg_stat_activity where query like '%%free_session(%%' and wait_event_type = 'Lock'"
            return bool(await query(waits))

        await until(leaves)
        chatting.cancel()
        await asyncio.sleep(0.05)
        assert not chatting.done()
        await other.commit()
        with pytest.raises(asyncio.CancelledError):
            await chatting
        assert await query("select holder from pgrecall.sessions") == [None]


async def test_a_chat_that_ends_while_it_learns_that_its_hold_is_lost_is_told_so(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sql(database) as query, RecallScheduler(database) as scheduler:
        await query.session("s")
        hold = scheduler.hold_session("s", holder="alice", lease=1)
        lost = asyncio.Event()
        lose = hold._lose

        def lose_and_tell(reason: str) -> None:
            lose(reason)
            lost.set()  # the block goes on before it can be cancelled

        monkeypatch.setattr(hold, "_lose", lose_and_tell)
        with pytest.raises(HoldLostError):  # noqa: PT012 (the end of the block raises it)
            async with hold:
                await query("update pgrecall.sessions set holder = 'somebody else'")
                await lost.wait()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # no cancellation is left over


async def test_a_chat_that_ends_while_its_renewal_gets_a_connection_ends(database: str) -> None:
    async with sql(database) as query, RecallScheduler(database, pool_size=1) as scheduler:
        await query.session("s")
        async with asyncio.timeout(10), scheduler.hold_session("s", holder="alice", lease=0.6):  # noqa: SIM117
            async with scheduler.database._borrowed():
                await asyncio.sleep(0.3)
            # The renewal, which waited for this connection, has it now and does not hear that it is cancelled: so it is
            # with psycopg_pool on Python 3.11, see its asyncio.wait_for.
        assert await query("select holder from pgrecall.sessions") == [None]


async def test_a_chat_in_line_that_is_served_by_a_deaf_listener_goes_on(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = database_module.connect_async

    async def connect_uncancelled(dsn: str) -> Any:
        try:
            connection = await connect(dsn)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await connection.close()
            raise psycopg.OperationalError("the connection ended just then") from None

    monkeypatch.setattr(holds, "connect_async", connect_uncancelled)
    async with sql(database) as query, RecallScheduler(database) as scheduler:
        await query.session("s")
        await query("select pgrecall.hold_session('s', 'alice', '0.5 seconds')")
        async with asyncio.timeout(10), scheduler.hold_session("s", holder="bob", if_held="wait"):
            assert await query("select holder from pgrecall.sessions") == ["bob"]


async def test_a_chat_waits_no_longer_than_it_said_though_the_word_was_lost(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deaf(*_: object) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.7)

    monkeypatch.setattr(holds.Place, "turn", deaf)
    async with sql(database) as query, RecallScheduler(database) as scheduler:
        await query.session("s")
        await query("select pgrecall.hold_session('s', 'alice')")
        async with asyncio.timeout(10):
            with pytest.raises(SessionHeldError):
                async with scheduler.hold_session("s", holder="bob", if_held="wait", wait=0.5):
                    raise AssertionError("alice has it")
        assert await query("select count(*) from pgrecall.session_waiters") == [0]


async def test_a_lost_hold_is_freed_at_once(database: str) -> None:
    async with sql(database) as query, RecallScheduler(database) as scheduler:
        await query.session("s")
        with pytest.raises(HoldLostError):  # noqa: PT012 (the end of the block raises it)
            async with scheduler.hold_session("s", holder="alice", lease=3):
                late = await query.recall("s", max_defer_seconds=1)
                await query("select from pgrecall.claim('w1', 1)")
                await query(_PUT_OFF)
                await query("select from pgrecall.claim('w1', 1)")
                await asyncio.sleep(60)
        assert await query("select holder from pgrecall.sessions") == [None]
        assert await query("select recall_id from pgrecall.claim('w1', 1)") == [late]


async def test_a_hold_that_was_granted_and_could_not_be_renewed_counts_from_the_grant(database: str) -> None:
    async with sql(database) as query, RecallScheduler(database) as scheduler:
        await query.session("s")
        late = await query.recall("s", max_defer_seconds=1)
        # Handed over a while ago, to a chat that asks again only now; a recall wants the session meanwhile.
        await query("select pgrecall.hold_session('s', 'alice', '3 seconds')")
        await query("select from pgrecall.claim('w1', 1)")
        await query(_PUT_OFF)
        await query("select from pgrecall.claim('w1', 1)")
        assert await query("select wanted_by from pgrecall.sessions") == [late]
        await query("update pgrecall.sessions set held_until = pgrecall.clock() + interval '0.5 seconds'")
        hold = scheduler.hold_session("s", holder="alice", lease=3)
        with pytest.raises(HoldLostError):  # noqa: PT012 (the end of the block raises it)
            async with hold:
                begun = time.monotonic()
                await asyncio.sleep(60)
        assert time.monotonic() - begun < 0.6, "it went on after the database had ended it"


def test_a_thread_sees_that_its_hold_is_lost_while_the_server_does_not_answer(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as db, Proxy(database) as proxy:
        add_session(db, "s")
        scheduler = SyncRecallScheduler(proxy.dsn)
        try:
            with pytest.raises(HoldLostError), scheduler.hold_session("s", holder="alice", lease=1) as hold:  # noqa: PT012
                assert not hold.lost
                proxy.stall()
                begun = time.monotonic()
                wait_until(lambda: hold.lost, "the hold to be lost")
                took = time.monotonic() - begun
                # The answer comes now, and says that the database has renewed it.
                proxy.heal()
                wait_until(lambda: not hold._renewing.is_alive(), "the answer to be heard")
                assert hold.lost, "whoever has seen that it is lost has stopped"
            assert took < 1, "by then somebody else may have the session"
            wait_until(lambda: session(db, "s")["holder"] is None, "the session to be free")
        finally:
            scheduler.close()


def _terminate_listeners(db: psycopg.Connection) -> int:
    return int(
        value(
            db,
            """select count(pg_terminate_backend(pid)) from pg_stat_activity
            where query ilike 'listen pgrecall_holds%%' and datname = current_database()""",
        )
    )


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_chat_in_line_whose_connection_ends_waits_on(database: str, kind: str) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        add_session(db, "s")
        db.execute("select pgrecall.hold_session('s', 'alice')")
        held: list[Any] = []
        let_go = threading.Event()

        def wait_in_thread() -> None:
            with SyncRecallScheduler(database) as scheduler, scheduler.hold_session("s", holder="bob", if_held="wait"):
                held.append("bob")
                let_go.wait(15)

        async def wait_in_task() -> None:
            async with (
                RecallScheduler(database) as scheduler,
                scheduler.hold_session("s", holder="bob", if_held="wait"),
            ):
                held.append("bob")
                await asyncio.to_thread(let_go.wait, 15)

        target = wait_in_thread if kind == "sync" else lambda: asyncio.run(wait_in_task())
        thread = threading.Thread(target=target)
        thread.start()
        try:
            wait_until(lambda: _terminate_listeners(db), "the one in line to listen")
            db.execute("select pgrecall.free_session('s', 'alice')")
            wait_until(lambda: held, "bob to have the session")
        finally:
            let_go.set()
            thread.join()


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_chats_and_recalls_that_hammer_the_same_sessions_never_meet(database: str, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")
    verdict = hammer(database, tmp_path, seconds=8, seed=seed)
    print(verdict)
    assert verdict.violations == {}
    assert min(verdict.figures[name] for name in ("chats", "runs", "runs interrupted by chats")) > 0
    assert verdict.figures["deferred because"]["session held by the chat"] > 0
