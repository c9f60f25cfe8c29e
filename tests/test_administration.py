"""What operators do from Python: both faces of every method, and what is refused before the database."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import psycopg
import pytest

from pgrecall import (
    InvalidRecallError,
    Pause,
    Recall,
    RecallExistsError,
    RecallNotFoundError,
    RecallScheduler,
    RecallStateError,
    SessionNotFoundError,
    SyncRecallScheduler,
)

pytestmark = pytest.mark.anyio

LATER = datetime(2035, 6, 1, 9, 0, tzinfo=UTC)
NOBODY = "nobody"


class Face:
    """One of the two schedulers, called the same way, and a connection that looks and works."""

    def __init__(self, kind: type[Any], dsn: str, db: psycopg.Connection) -> None:
        self.scheduler = kind(dsn)
        self.db = db

    async def __call__(self, method: str, *arguments: Any, **named: Any) -> Any:
        function: Callable[..., Any] = getattr(self.scheduler, method)
        if inspect.iscoroutinefunction(function):
            return await function(*arguments, **named)
        return await anyio.to_thread.run_sync(lambda: function(*arguments, **named))

    async def schedule(self, session_id: str = "s1", **named: Any) -> Recall:
        given = {"additional_context_message": "hello", "trigger_at": LATER, **named}
        recall = await self("schedule_recall", session_id=session_id, **given)
        assert isinstance(recall, Recall)
        return recall

    def claim(self) -> list[str]:
        """A worker claims what is due; returns the ids."""
        self.db.execute("select pgrecall.register_worker('w1', 3)")
        found = self.db.execute("select recall_id from pgrecall.claim('w1', 5) where run_id is not null")
        return [recall_id for (recall_id,) in found.fetchall()]

    def fail(self, recall: Recall) -> None:
        """The recall has failed."""
        self.db.execute("update pgrecall.session_recalls set status = 'failed' where id = %s", [recall.id])


@pytest.fixture(params=[RecallScheduler, SyncRecallScheduler])
async def face(request: pytest.FixtureRequest, database: str) -> Any:
    """Each scheduler in turn, on a database with the sessions s1 and s2 of the user u1 and s3 of u2."""
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("insert into pgrecall.sessions (id, user_id) values ('s1', 'u1'), ('s2', 'u1'), ('s3', 'u2')")
        face = Face(request.param, database, db)
        yield face
        await face("aclose" if request.param is RecallScheduler else "close")


async def test_run_now_makes_a_recall_due(face: Face) -> None:
    recall = await face.schedule()
    made_due = await face("run_now", recall.id)
    assert made_due.trigger_at < LATER
    assert face.claim() == [recall.id]
    assert (await face("run_now", recall.id)).status == "running"


async def test_what_cannot_run_now_is_refused(face: Face) -> None:
    recall = await face.schedule()
    await face("pause_session", "s1", reason="holidays")
    with pytest.raises(RecallStateError, match="session s1 is paused: holidays"):
        await face("run_now", recall.id)
    with pytest.raises(RecallNotFoundError):
        await face("run_now", NOBODY)


async def test_retry_recall_makes_a_failed_one_pending_again(face: Face) -> None:
    recall = await face.schedule()
    face.fail(recall)
    assert (await face("retry_recall", recall.id)).status == "pending"
    face.fail(recall)
    await face.schedule()
    with pytest.raises(RecallExistsError) as raised:
        await face("retry_recall", recall.id)
    assert raised.value.session_id == "s1"


async def test_stop_run_tells_why_and_what_then(face: Face) -> None:
    recall = await face.schedule(trigger_at=None)
    assert face.claim() == [recall.id]
    stopped = await face("stop_run", recall.id, reason="too costly", after_stop="retry")
    assert (stopped.stop_reason, stopped.after_stop) == ("too costly", "retry")
    assert stopped.stopped_by
    with pytest.raises(InvalidRecallError, match="after_stop is 'again'"):
        await face("stop_run", recall.id, after_stop="again")


async def test_a_session_and_a_user_are_paused_and_resumed(face: Face) -> None:
    recall = await face.schedule(trigger_at=None)
    of_session = await face("pause_session", "s1", reason="holidays", paused_until=LATER)
    of_user = await face("pause_user", "u1")
    assert isinstance(of_session, Pause)
    assert (of_session.session_id, of_session.user_id, of_session.reason) == ("s1", None, "holidays")
    assert (of_session.paused_until, of_session.paused_at.tzinfo) == (LATER, UTC)
    assert (of_user.session_id, of_user.user_id, of_user.paused_until) == (None, "u1", None)
    assert await face("resume_session", "s1") == [of_session]
    assert face.claim() == []
    assert await face("resume_user", "u1") == [of_user]
    assert face.claim() == [recall.id]
    assert (await face("resume_session", "s1"), await face("resume_user", "u1")) == ([], [])


async def test_a_pause_that_makes_no_sense_is_refused(face: Face) -> None:
    for method in ("pause_session", "resume_session"):
        with pytest.raises(SessionNotFoundError):
            await face(method, NOBODY)
    with pytest.raises(InvalidRecallError, match="which has no time zone"):
        await face("pause_user", "u1", paused_until=datetime(2035, 6, 1))  # noqa: DTZ001
    with pytest.raises(InvalidRecallError, match="must have 1 to 600 characters"):
        await face("pause_user", "")


async def test_many_recalls_are_changed_at_once_by_user_session_or_id(face: Face) -> None:
    one, two = await face.schedule("s1"), await face.schedule("s2", interval_seconds=60)
    theirs = await face.schedule("s3")

    def ids(recalls: list[Recall]) -> set[str]:
        return {recall.id for recall in recalls}

    paused = await face("pause_recalls", user_id="u1", reason="holidays", paused_until=LATER)
    assert ids(paused) == {one.id, two.id}
    assert {recall.pause_reason for recall in paused} == {"holidays"}
    assert ids(await face("resume_recalls", user_id="u1")) == {one.id, two.id}
    moved = await face("reschedule_recalls", recall_ids=[one.id, theirs.id], by=timedelta(hours=1))
    assert ids(moved) == {one.id, theirs.id}
    assert {recall.trigger_at for recall in moved} == {LATER + timedelta(hours=1)}
    assert ids(await face("reschedule_recalls", session_id="s1", new_trigger_at=LATER)) == {one.id}
    (skipped,) = await face("skip_recalls", user_id="u1")
    assert (skipped.id, skipped.trigger_at) == (two.id, LATER + timedelta(seconds=60))
    assert ids(await face("run_recalls_now", user_id="u1", session_id="s1")) == {one.id}
    assert face.claim() == [one.id]
    (stopped,) = await face("stop_runs", user_id="u1", after_stop="retry")
    assert (stopped.id, stopped.after_stop) == (one.id, "retry")
    face.fail(theirs)
    assert await face("retry_recalls", user_id="u2", failed_since=LATER) == []
    assert ids(await face("retry_recalls", user_id="u2", failed_since=datetime(2020, 1, 1, tzinfo=UTC))) == {theirs.id}
    assert ids(await face("cancel_recalls", recall_ids={one.id, two.id})) == {one.id, two.id}
    assert await face("cancel_recalls", user_id="u1") == []


@pytest.mark.parametrize(
    "method",
    [
        "cancel_recalls", "pause_recalls", "resume_recalls", "skip_recalls", "run_recalls_now", "retry_recalls",
        "stop_runs",
    ],
)  # fmt: skip
async def test_nothing_is_changed_if_nobody_says_which(face: Face, method: str) -> None:
    await face.schedule()
    with pytest.raises(InvalidRecallError, match="needs recall_ids, a session_id or a user_id"):
        await face(method)
    with pytest.raises(InvalidRecallError, match="recall_ids is 's1', which is no collection of texts"):
        await face(method, recall_ids="s1")
    assert await face(method, recall_ids=[]) == []


async def test_a_move_needs_one_measure(face: Face) -> None:
    await face.schedule()
    for named in ({}, {"by": timedelta(hours=1), "new_trigger_at": LATER}):
        with pytest.raises(InvalidRecallError, match="either new_trigger_at or by"):
            await face("reschedule_recalls", session_id="s1", **named)
    with pytest.raises(InvalidRecallError, match="by is 60, which is no timedelta"):
        await face("reschedule_recalls", session_id="s1", by=60)


async def test_administration_joins_the_callers_transaction(database: str, face: Face) -> None:
    await face.schedule()
    is_async = isinstance(face.scheduler, RecallScheduler)
    if is_async:
        async with await psycopg.AsyncConnection.connect(database) as connection:
            assert len(await face("cancel_recalls", session_id="s1", connection=connection)) == 1
            await connection.rollback()
    else:
        with psycopg.connect(database) as connection:
            assert len(await face("cancel_recalls", session_id="s1", connection=connection)) == 1
            connection.rollback()
    assert await face("get_pending_session_ids", ["s1"]) == {"s1"}


async def test_wanted_slots_counts_what_is_due_and_runs(face: Face) -> None:
    await face.schedule(trigger_at=datetime(2020, 1, 1, tzinfo=UTC))
    face.claim()
    await face.schedule("s2", trigger_at=datetime.now(UTC) + timedelta(minutes=5))
    assert await face("wanted_slots") == 1
    assert await face("wanted_slots", within=timedelta(minutes=10)) == 2
    assert await face("wanted_slots", within=timedelta(minutes=10), up_to=1) == 1
    with pytest.raises(InvalidRecallError, match="within"):
        await face("wanted_slots", within=timedelta(days=2))
