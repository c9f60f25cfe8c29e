"""The public API as its users' type checkers see it: checked by mypy, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import psycopg

from pgrecall import (
    Agent,
    AgentFactory,
    CurrentRecall,
    InvalidRecallError,
    PostgresSessionStore,
    Recall,
    RecallError,
    RecallExistsError,
    RecallRun,
    RecallScheduler,
    Retry,
    Session,
    SessionStore,
    SyncRecallScheduler,
    Worker,
    __version__,
    current_recall,
    recall_scheduler_loop,
)
from pgrecall.embedded import EmbeddedPostgres


class Assistant:
    """An agent as a class."""

    async def run(self, *, session_id: str, user_message: str) -> str | None:
        """Answer, or ask for another try."""
        recall = assert_type(current_recall(), CurrentRecall | None)
        if recall is not None and recall.lateness > timedelta(minutes=5):
            raise Retry("too late for today", after=timedelta(hours=1))
        return None if recall is not None and recall.cancelled else f"{session_id}: {user_message}"


class Store:
    """A host's own session store."""

    async def get(self, session_id: str) -> Session | None:
        """Find nothing."""

    async def save(self, session: Session) -> None:
        """Forget it."""


@asynccontextmanager
async def build(store: Store, **parts: Any) -> AsyncIterator[Agent]:
    """Build an agent from parts."""
    yield Assistant()


agent: Agent = Assistant()
store: SessionStore = Store()
factory = AgentFactory(build, store=Store(), tools=lambda: [1, 2], optional=["tools"])
version: str = __version__


async def schedule(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
    """What callers do, async."""
    async with RecallScheduler("postgresql://localhost/app", pool_size=2) as recalls:
        await recalls.ensure_tables()
        assert_type(recalls, RecallScheduler)
        recall = await recalls.schedule_recall(
            session_id="s1",
            additional_context_message="look again",
            call_type="recurring",
            trigger_at=datetime.now(UTC),
            cron="0 9 * * *",
            time_zone="Europe/Paris",
            metadata={"ticket": 7},
            connection=connection,
        )
        assert_type(recall, Recall)
        assert_type(recall.trigger_at, datetime)
        assert_type(await recalls.cancel_recall("s1"), bool)
        assert_type(await recalls.skip_next_recall("s1"), bool)
        assert_type(await recalls.reschedule(recall.id, datetime.now(UTC)), Recall)
        assert_type(await recalls.list_recalls(is_admin=True, limit=5), list[Recall])
        assert_type(await recalls.get_next_trigger_at(), datetime | None)
        assert_type(await recalls.get_pending_session_ids(["s1"]), set[str])
        assert_type(await recalls.get_runs(recall.id), list[RecallRun])
        sessions = PostgresSessionStore(recalls)
        assert_type(await sessions.create("s1", user_id="u1"), Session)
        assert_type(await sessions.get("s1"), Session | None)
        await recall_scheduler_loop(recalls, sessions, agent=factory, concurrency=5)


def schedule_from_a_thread(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """What callers do, sync."""
    with SyncRecallScheduler() as recalls:
        try:
            recall = recalls.schedule_recall(session_id="s1", additional_context_message="hi", connection=connection)
        except RecallExistsError as error:
            assert_type(error.session_id, str)
        except InvalidRecallError as error:
            assert_type(error.constraint, str | None)
        except RecallError as error:
            assert_type(error.hint, str)
        else:
            assert_type(recall.call_type == "once", bool)


async def work() -> None:
    """What a worker's process does."""
    with EmbeddedPostgres(database="app") as postgres:
        worker = Worker(postgres.dsn, agent=Assistant(), store=Store(), concurrency=2, lease=10)
        assert_type(worker.worker_id, str)
        assert_type(worker.stop(), None)
        await worker.run()
