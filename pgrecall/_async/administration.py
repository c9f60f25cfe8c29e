"""What operators ask of a scheduler, and producers do not need: one method for each SQL function of the same name.

Recalls, runs and pauses; deliveries; what was done by hand; and how long all of it is kept.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

import psycopg

from pgrecall import calls
from pgrecall.database import AsyncDatabase
from pgrecall.model import (
    AfterStop,
    Change,
    Delivery,
    DeliveryStatus,
    HistoryEntry,
    Pause,
    PurgedHistory,
    PurgeStep,
    Recall,
    Settings,
    UpcomingTime,
)


class AsyncAdministration:
    """The methods of a scheduler that operators need.

    Those for many recalls take recall_ids, session_id and user_id, of which at least one must be given; what is given
    is ANDed. They return the recalls that they have changed, and leave out those that cannot be changed.
    """

    database: AsyncDatabase

    async def run_now(self, recall_id: str, *, connection: psycopg.AsyncConnection[Any] | None = None) -> Recall:
        """Makes a pending recall due at once; one that is due or runs already is returned as it is.

        A recurring one goes on along its own schedule afterwards. A session that is held is still waited for.

        Raises:
            RecallNotFoundError: There is no such recall.
            RecallStateError: It has ended, or it, its session or its user is paused.
        """
        return await self.database.one(calls.run_now(recall_id), connection)

    async def retry_recall(self, recall_id: str, *, connection: psycopg.AsyncConnection[Any] | None = None) -> Recall:
        """Makes a failed or cancelled recall pending again: the same occurrence, with all its attempts before it.

        It is due at once, unless it was cancelled before its time. One that is pending or running is returned as it is.

        Raises:
            RecallExistsError: The session has another pending recall.
            RecallNotFoundError: There is no such recall.
            RecallStateError: It has fired.
        """
        return await self.database.one(calls.retry_recall(recall_id), connection)

    async def stop_run(
        self,
        recall_id: str,
        *,
        reason: str | None = None,
        after_stop: AfterStop = "skip",
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> Recall:
        """Tells the run of a recall to stop; the recall comes back at once, maybe before the run has stopped.

        Args:
            recall_id: The recall; one that does not run is returned as it is.
            reason: Why, for people.
            after_stop: What becomes of the occurrence. `skip` (the default): it is left out, and a recall that is not
                recurring is cancelled. `retry`: it runs again, and the attempt is not counted.
            connection: The caller's own psycopg connection.

        Raises:
            RecallNotFoundError: There is no such recall.
            InvalidRecallError: after_stop is neither.
        """
        return await self.database.one(calls.stop_run(recall_id, reason, after_stop), connection)

    async def pause_recall(
        self,
        recall_id: str,
        *,
        reason: str | None = None,
        paused_until: datetime | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> Recall:
        """Pauses a recall: it is not run until an aware datetime (None: until `resume_recall`).

        Raises:
            RecallNotFoundError: There is no such recall.
            RecallStateError: It has ended.
            InvalidRecallError: The end is not a time to come.
        """
        return await self.database.one(calls.pause_recall(recall_id, reason, paused_until), connection)

    async def resume_recall(self, recall_id: str, *, connection: psycopg.AsyncConnection[Any] | None = None) -> Recall:
        """Ends the pause of a recall and forgets its failures; if its time has passed it is due at once, once.

        Raises:
            RecallNotFoundError: There is no such recall.
        """
        return await self.database.one(calls.resume_recall(recall_id), connection)

    async def pause_all(
        self,
        *,
        reason: str | None = None,
        paused_until: datetime | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> Settings:
        """Makes all workers start no run until an aware datetime (None: until `resume_all`); runs under way go on.

        Raises:
            InvalidRecallError: The end is not a time to come.
        """
        return await self.database.one(calls.pause_all(reason, paused_until), connection)

    async def resume_all(self, *, connection: psycopg.AsyncConnection[Any] | None = None) -> Settings:
        """Ends the pause of everything."""
        return await self.database.one(calls.resume_all(), connection)

    async def pause_session(
        self,
        session_id: str,
        *,
        reason: str | None = None,
        paused_until: datetime | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> Pause:
        """Makes no run start in a session until an aware datetime (None: until `resume_session`).

        Recalls that are made later wait, too; a run under way goes on. Pausing again changes the end and the reason.

        Raises:
            SessionNotFoundError: There is no such session.
            InvalidRecallError: The end is not a time to come, or the isolation level is not READ COMMITTED.
        """
        return await self.database.one(calls.pause_session(session_id, reason, paused_until), connection)

    async def resume_session(
        self, session_id: str, *, connection: psycopg.AsyncConnection[Any] | None = None
    ) -> list[Pause]:
        """Ends the pause of a session: what is overdue starts at once, once.

        Recalls that are paused by themselves, or by the pause of their user, stay so.

        Returns:
            The pause that ended, or nothing.

        Raises:
            SessionNotFoundError: There is no such session.
            InvalidRecallError: The isolation level is not READ COMMITTED.
        """
        return await self.database.run(calls.resume_session(session_id), connection)

    async def pause_user(
        self,
        user_id: str,
        *,
        reason: str | None = None,
        paused_until: datetime | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> Pause:
        """Makes no run start in the sessions of a user until an aware datetime (None: until `resume_user`).

        Sessions and recalls that are made later wait, too; runs under way go on. Pausing again changes the end and the
        reason.

        Raises:
            InvalidRecallError: The end is not a time to come, user_id is nobody, or the isolation level is not READ
                COMMITTED.
        """
        return await self.database.one(calls.pause_user(user_id, reason, paused_until), connection)

    async def resume_user(self, user_id: str, *, connection: psycopg.AsyncConnection[Any] | None = None) -> list[Pause]:
        """Ends the pause of a user: what is overdue starts at once, once.

        Recalls that are paused by themselves, or by the pause of their session, stay so.

        Returns:
            The pause that ended, or nothing.

        Raises:
            InvalidRecallError: The isolation level is not READ COMMITTED.
        """
        return await self.database.run(calls.resume_user(user_id), connection)

    async def cancel_recalls(
        self,
        *,
        recall_ids: Collection[str] | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> list[Recall]:
        """Cancels pending and running recalls; runs under way are told to stop.

        Raises:
            InvalidRecallError: None of recall_ids, session_id and user_id was given.
        """
        call = calls.cancel_recalls(recall_ids=recall_ids, session_id=session_id, user_id=user_id)
        return await self.database.run(call, connection)

    async def pause_recalls(
        self,
        *,
        recall_ids: Collection[str] | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        reason: str | None = None,
        paused_until: datetime | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> list[Recall]:
        """Pauses pending and running recalls, not those that are made later: see `pause_session`, `pause_user`.

        Args:
            recall_ids: Only those with these ids.
            session_id: Only those of this session.
            user_id: Only those in sessions of this user.
            reason: Why, for people.
            paused_until: An aware datetime; None: until they are resumed.
            connection: The caller's own psycopg connection.

        Raises:
            InvalidRecallError: None of the three was given, or the end is not a time to come.
        """
        call = calls.pause_recalls(
            recall_ids=recall_ids, session_id=session_id, user_id=user_id, reason=reason, paused_until=paused_until
        )
        return await self.database.run(call, connection)

    async def resume_recalls(
        self,
        *,
        recall_ids: Collection[str] | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> list[Recall]:
        """Ends the pauses of recalls.

        What the pause of a session or user has paused is paused again at once: see `resume_session`, `resume_user`.

        Raises:
            InvalidRecallError: None of recall_ids, session_id and user_id was given.
        """
        call = calls.resume_recalls(recall_ids=recall_ids, session_id=session_id, user_id=user_id)
        return await self.database.run(call, connection)

    async def skip_recalls(
        self,
        *,
        recall_ids: Collection[str] | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> list[Recall]:
        """Moves pending recurring recalls one occurrence on, as `skip_next_recall` does.

        Raises:
            InvalidRecallError: None of recall_ids, session_id and user_id was given.
        """
        call = calls.skip_recalls(recall_ids=recall_ids, session_id=session_id, user_id=user_id)
        return await self.database.run(call, connection)

    async def reschedule_recalls(
        self,
        *,
        recall_ids: Collection[str] | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        new_trigger_at: datetime | None = None,
        by: timedelta | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> list[Recall]:
        """Moves pending and running recalls; one that would come after its end_at is left where it is.

        Args:
            recall_ids: Only those with these ids.
            session_id: Only those of this session.
            user_id: Only those in sessions of this user.
            new_trigger_at: The time for all of them, an aware datetime.
            by: Or how far each is moved from its own time.
            connection: The caller's own psycopg connection.

        Raises:
            InvalidRecallError: None of the three was given, or not exactly one of new_trigger_at and by.
        """
        call = calls.reschedule_recalls(
            recall_ids=recall_ids, session_id=session_id, user_id=user_id, new_trigger_at=new_trigger_at, by=by
        )
        return await self.database.run(call, connection)

    async def run_recalls_now(
        self,
        *,
        recall_ids: Collection[str] | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> list[Recall]:
        """Makes pending recalls due at once, as `run_now` does; paused ones are left out.

        Raises:
            InvalidRecallError: None of recall_ids, session_id and user_id was given.
        """
        call = calls.run_recalls_now(recall_ids=recall_ids, session_id=session_id, user_id=user_id)
        return await self.database.run(call, connection)

    async def retry_recalls(
        self,
        *,
        recall_ids: Collection[str] | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        failed_since: datetime | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> list[Recall]:
        """Makes failed recalls pending again, as `retry_recall` does, the last that ended first.

        Cancelled ones only if recall_ids names them and failed_since is None. Those are left out whose session has
        another pending recall.

        Args:
            recall_ids: Only those with these ids.
            session_id: Only those of this session.
            user_id: Only those in sessions of this user.
            failed_since: Only those that ended then or later, an aware datetime.
            connection: The caller's own psycopg connection.

        Raises:
            InvalidRecallError: None of recall_ids, session_id and user_id was given.
        """
        call = calls.retry_recalls(
            recall_ids=recall_ids, session_id=session_id, user_id=user_id, failed_since=failed_since
        )
        return await self.database.run(call, connection)

    async def stop_runs(
        self,
        *,
        recall_ids: Collection[str] | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        reason: str | None = None,
        after_stop: AfterStop = "skip",
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> list[Recall]:
        """Tells runs to stop, as `stop_run` does.

        Args:
            recall_ids: Only those with these ids.
            session_id: Only those of this session.
            user_id: Only those in sessions of this user.
            reason: Why, for people.
            after_stop: What becomes of the occurrences: `skip` (the default) or `retry`.
            connection: The caller's own psycopg connection.

        Raises:
            InvalidRecallError: None of the three was given, or after_stop makes no sense.
        """
        call = calls.stop_runs(
            recall_ids=recall_ids, session_id=session_id, user_id=user_id, reason=reason, after_stop=after_stop
        )
        return await self.database.run(call, connection)

    async def history(
        self, recall_id: str, *, connection: psycopg.AsyncConnection[Any] | None = None
    ) -> list[HistoryEntry]:
        """All that is known of a recall in the order of time, without what was said; also of one that was deleted.

        Raises:
            RecallNotFoundError: Nothing is known of such a recall.
        """
        return await self.database.run(calls.history(recall_id), connection)

    async def upcoming(
        self, recall_id: str, *, limit: int = 5, connection: psycopg.AsyncConnection[Any] | None = None
    ) -> list[UpcomingTime]:
        """The next occurrences of a recall; none if it has ended.

        Args:
            recall_id: The recall.
            limit: At most so many, 0 to 1000.
            connection: The caller's own psycopg connection.

        Raises:
            RecallNotFoundError: There is no such recall.
            InvalidRecallError: The limit is not 0 to 1000.
        """
        return await self.database.run(calls.upcoming(recall_id, limit=limit), connection)

    async def get_deliveries(
        self,
        *,
        session_id: str | None = None,
        recall_id: str | None = None,
        status: DeliveryStatus | None = None,
        limit: int = 50,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> list[Delivery]:
        """Replies that were delivered, are on their way, or could not be delivered, newest first.

        Args:
            session_id: Only this session's.
            recall_id: Only this recall's.
            status: Only `pending`, `delivered` or `failed` ones.
            limit: At most so many.
            connection: The caller's own psycopg connection.

        Raises:
            InvalidRecallError: There is no such status, or the limit is below 0.
        """
        call = calls.get_deliveries(session_id=session_id, recall_id=recall_id, status=status, limit=limit)
        return await self.database.run(call, connection)

    async def retry_delivery(
        self, delivery_id: int, *, connection: psycopg.AsyncConnection[Any] | None = None
    ) -> Delivery:
        """Has a delivery tried now, also one that has failed or was delivered before.

        Raises:
            RecallNotFoundError: There is no such delivery.
        """
        return await self.database.one(calls.retry_delivery(delivery_id), connection)

    async def purge(self, *, batch: int = 1000, connection: psycopg.AsyncConnection[Any] | None = None) -> PurgeStep:
        """Deletes what is older than the settings keep_… allow, at most `batch` rows of each kind.

        Workers do this by themselves, see docs/retention.md.

        Args:
            batch: 1 to 100000.
            connection: The caller's own psycopg connection.

        Returns:
            How many rows of each kind are gone, and when to call it again.

        Raises:
            InvalidRecallError: The batch is out of range.
        """
        return await self.database.one(calls.purge(batch=batch), connection)

    async def purge_history(
        self,
        *,
        before: datetime | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        with_messages: bool = False,
        with_audit: bool = False,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> PurgedHistory:
        """Deletes at once what has ended, of a session, of all sessions of a user, or from before a time.

        Recalls that have ended, their runs, and deliveries that have ended. What is pending, running, to be tried again
        or to be delivered stays: cancel it first. The sessions stay.

        Args:
            before: Only what has ended before this time.
            session_id: Only this session's.
            user_id: Only of sessions of this user.
            with_messages: Also what was said in these sessions.
            with_audit: Also what the audit has about them, and about what this user did.
            connection: The caller's own psycopg connection: the deletion joins its transaction.

        Returns:
            How many rows of each kind are gone.

        Raises:
            InvalidRecallError: None of before, session_id and user_id is given.
        """
        call = calls.purge_history(
            before=before, session_id=session_id, user_id=user_id, with_messages=with_messages, with_audit=with_audit
        )
        return await self.database.one(call, connection)

    async def get_audit(
        self,
        recall_id: str | None = None,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        since: datetime | None = None,
        limit: int = 50,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> list[Change]:
        """Who changed what by hand, newest first.

        Args:
            recall_id: Only what was done to this recall.
            session_id: Only in this session.
            user_id: Only to what belongs to this user, and by this user.
            since: Only from this time on.
            limit: At most so many.
            connection: The caller's own psycopg connection.

        Raises:
            InvalidRecallError: The limit is below 0.
        """
        call = calls.get_audit(recall_id=recall_id, session_id=session_id, user_id=user_id, since=since, limit=limit)
        return await self.database.run(call, connection)
