"""Operators with nothing but SQL beside real workers: stopping a run, running one now, pausing a session or user."""

from __future__ import annotations

import time
from datetime import timedelta

import psycopg
import pytest
from sqltools import add, add_session, call, call_one, ledger, outcomes, recall, value, wait_until
from workerprocess import Start, now
from workertools import NEVER, Recorder, sql, until, working

#: Seconds within which something has to happen that takes milliseconds on an idle machine.
AT_ONCE = 3.0


def begun(db: psycopg.Connection, recall_id: str) -> None:
    """Wait until a recall runs."""
    wait_until(lambda: recall(db, recall_id)["run_id"] is not None, "it runs")


@pytest.mark.parametrize(("after_stop", "status"), [("skip", "cancelled"), ("retry", "running")])
def test_a_worker_process_stops_the_run_that_it_is_told_to_stop(
    database: str, start: Start, after_stop: str, status: str
) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        worker = start()
        late = add(db, "s", now(), additional_context_message="sleep 600")
        other = add(db, "t", now(), additional_context_message="sleep 600")
        worker.event("recall_claimed", count=2)
        at = time.monotonic()
        call_one(db, "stop_run", recall_id=late, reason="too dear", after_stop=after_stop)
        stopped = worker.event("run_stopped")
        assert stopped["at"] - at < AT_ONCE
        assert stopped["recall_id"] == late
        if after_stop == "retry":
            worker.event("recall_claimed", count=3)
        assert recall(db, late)["status"] == status
        assert recall(db, late)["stopped_by"] is None
        (run,) = ledger(db, late)
        assert (run["outcome"], run["reason"]) == ("interrupted", f"stopped by {value(db, 'select user')}: too dear")
        assert outcomes(db, other) == []
        assert recall(db, other)["run_id"] is not None, "the others go on"


def test_the_runs_of_a_user_stop_and_those_of_others_go_on(database: str, start: Start) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        worker = start("--concurrency", "6")
        ids = []
        for user in ("ada", "ben"):
            for number in range(3):
                name = f"{user}{number}"
                add_session(db, name, user_id=user)
                ids.append(add(db, name, now(), id=name, additional_context_message="sleep 600"))
        worker.event("recall_claimed", count=6)
        assert len(call(db, "stop_runs", user_id="ada", reason="an incident")) == 3
        worker.event("run_stopped", count=3)
        assert [recall(db, name)["status"] for name in ids] == ["cancelled"] * 3 + ["running"] * 3


def test_a_recall_of_tomorrow_runs_now_on_a_worker_that_sleeps(database: str, start: Start) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        worker = start()
        early = add(db, "s", now() + timedelta(days=1))
        at = time.monotonic()
        call_one(db, "run_now", recall_id=early)
        assert worker.event("recall_fired")["at"] - at < AT_ONCE
        assert recall(db, early)["status"] == "fired"


@pytest.mark.anyio
async def test_a_paused_users_recalls_neither_run_nor_wake_anybody_and_start_when_it_ends(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db:
        await db("create extension pg_stat_statements")
        await db("insert into pgrecall.sessions (id, user_id) select 's' || n, 'ada' from generate_series(1, 20) as n")
        await db("insert into pgrecall.sessions (id, user_id) values ('other', 'ben')")

        async def looks() -> int:
            (found,) = await db(
                "select coalesce(sum(calls), 0)::integer from pg_stat_statements where toplevel "
                "and dbid = (select oid from pg_database where datname = current_database()) "
                "and query like 'select%%pgrecall.claim(%%'"
            )
            return int(found)

        async with working(database, agent, safety_interval=NEVER), working(database, agent, safety_interval=NEVER):
            await db.asleep(2)
            await db("select pgrecall.pause_user('ada', 'an incident')")
            await db(
                "insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message) "
                "select 's' || n, clock_timestamp() + n * interval '50 ms', 'hello' from generate_series(1, 20) as n"
            )

            async def all_paused() -> bool:
                return await db("select count(*) from pgrecall.session_recalls where paused_at is not null") == [20]

            await until(all_paused)
            await db.asleep(2)
            before = await looks()
            # What is overdue wakes nobody any more; a recall of somebody else, a moment later, costs its few looks.
            await db.ended(await db.recall("other", "clock_timestamp() + interval '0.6 s'"))
            await db.asleep(2)
            assert await looks() - before <= 6
            assert [run.session_id for run in agent.runs] == ["other"]
            await db("select pgrecall.resume_user('ada')")
            await agent.count(21)


@pytest.mark.anyio
async def test_a_pause_that_ends_by_itself_starts_what_it_covered_in_that_moment(database: str) -> None:
    agent = Recorder()
    async with sql(database) as db, working(database, agent, safety_interval=NEVER):
        await db.session("s")
        await db.asleep()
        (ends,) = await db("select paused_until from pgrecall.pause_session('s', 'a moment', now() + interval '1 s')")
        late = await db.recall("s")
        await db.ended(late)
        (started,) = await db("select started_at from pgrecall.recall_runs")
        assert timedelta(0) <= started - ends < timedelta(seconds=AT_ONCE)
