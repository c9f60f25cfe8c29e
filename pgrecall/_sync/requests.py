# Made by `make sync` of pgrecall/_async/requests.py: change that, not this.
"""What producers and chats ask of a scheduler: one method for each SQL function of the same name.

Each is one line over `calls`. What operators do is in `administration`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg

from pgrecall import calls
from pgrecall.database import SyncDatabase
from pgrecall.holds import SyncHold, SyncLine
from pgrecall.model import CallType, HeldSession, IfExists, IfHeld, OnInterrupt, OnMaxDefer, Recall, RecallRun


class SyncRequests:
    """The methods of a scheduler that producers and chats need."""

    database: SyncDatabase
    _line: SyncLine

    def schedule_recall(
        self,
        *,
        session_id: str,
        additional_context_message: str,
        call_type: CallType | None = None,
        trigger_at: datetime | None = None,
        interval_seconds: int | None = None,
        internal_comment: str | None = None,
        id: str | None = None,
        cron: str | None = None,
        time_zone: str | None = None,
        end_at: datetime | None = None,
        max_attempts: int | None = None,
        timeout_seconds: int | None = None,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idle_for_seconds: int | None = None,
        max_defer_seconds: int | None = None,
        on_max_defer: OnMaxDefer | None = None,
        on_interrupt: OnInterrupt | None = None,
        pause_after_failures: int | None = None,
        deliver_to: str | None = None,
        if_exists: IfExists = "raise",
        connection: psycopg.Connection[Any] | None = None,
    ) -> Recall:
        """Asks for an agent run in a session at trigger_at.

        Args:
            session_id: The session to wake the agent in; it must exist.
            additional_context_message: What the agent is told, 1 to 65,536 characters.
            call_type: None: `recurring` if interval_seconds or cron is given, else `once`.
            trigger_at: An aware datetime. None: now, or the first time of cron.
            interval_seconds: For a recurring recall: seconds between its occurrences, counted on its own grid.
            internal_comment: For people; never shown to the model.
            id: The recall's id. None: a new time-ordered uuid.
            cron: For a recurring recall: a five-field expression, read in time_zone.
            time_zone: IANA name such as `Europe/Paris`; required with cron.
            end_at: No occurrence after this time. None: no end.
            max_attempts: Runs that an occurrence may take. Default 3.
            timeout_seconds: Wall-clock limit of one run. None: the worker's, else that of the settings (600).
            idempotency_key: A second call with the same key and session returns the first one's recall.
            metadata: JSON for the host; the run sees it in `current_recall()`.
            idle_for_seconds: Not before nobody has spoken with the agent for so long. None: at once.
            max_defer_seconds: The longest that an occurrence is put off, from its first deferral. Default 86400.
            on_max_defer: What happens then. `run` (the default): as soon as the chat's present lease ends. `skip`.
            on_interrupt: When a chat interrupts the run: `retry` (the default) when the chat has ended, or `skip`.
            pause_after_failures: Pause a recurring recall after so many failures in a row. None: never.
            deliver_to: URL that the reply is posted to. None: that of the session, if it has one.
            if_exists: If the session has a pending recall: `raise` (the default), `keep` and return it, or `replace` it
                by this one. A recurring one that runs is not stopped: this run is its last.
            connection: The caller's own psycopg connection: the recall joins its transaction.

        Returns:
            The new recall, or the one that has the idempotency_key or is kept.

        Raises:
            RecallExistsError: The session has a pending recall, and if_exists is `raise`.
            SessionNotFoundError: There is no such session.
            InvalidRecallError: An argument makes no sense.
        """
        call = calls.schedule_recall(
            session_id=session_id,
            additional_context_message=additional_context_message,
            call_type=call_type,
            trigger_at=trigger_at,
            interval_seconds=interval_seconds,
            internal_comment=internal_comment,
            id=id,
            cron=cron,
            time_zone=time_zone,
            end_at=end_at,
            max_attempts=max_attempts,
            timeout_seconds=timeout_seconds,
            idempotency_key=idempotency_key,
            metadata=metadata,
            idle_for_seconds=idle_for_seconds,
            max_defer_seconds=max_defer_seconds,
            on_max_defer=on_max_defer,
            on_interrupt=on_interrupt,
            pause_after_failures=pause_after_failures,
            deliver_to=deliver_to,
            if_exists=if_exists,
        )
        return self.database.one(call, connection)

    def cancel_recall(self, session_id: str, *, connection: psycopg.Connection[Any] | None = None) -> bool:
        """Cancels the pending recall of a session; False if it has none.

        A recurring recall counts as pending while it runs: its run is told to stop.
        """
        return self.database.one(calls.cancel_recall(session_id), connection)

    def skip_next_recall(self, session_id: str, *, connection: psycopg.Connection[Any] | None = None) -> bool:
        """Moves the pending recurring recall of a session one occurrence on along its own schedule.

        Returns:
            False if the session has no pending recurring recall. The one left out is recorded as `skipped`.
        """
        return self.database.one(calls.skip_next_recall(session_id), connection)

    def reschedule(
        self,
        recall_id: str,
        new_trigger_at: datetime,
        *,
        connection: psycopg.Connection[Any] | None = None,
    ) -> Recall:
        """Moves a pending recall to another time; a running one runs again at that time.

        Raises:
            RecallNotFoundError: There is no such recall.
            RecallStateError: It has ended.
            InvalidRecallError: The time is not finite or has no time zone.
        """
        return self.database.one(calls.reschedule(recall_id, new_trigger_at), connection)

    def mark_fired(self, recall_id: str, *, connection: psycopg.Connection[Any] | None = None) -> Recall:
        """Records that the caller took care of a recall itself: fired, a recurring one goes on to its next time.

        Raises:
            RecallNotFoundError: There is no such recall.
            RecallStateError: It is failed or cancelled.
        """
        return self.database.one(calls.mark_fired(recall_id), connection)

    def mark_cancelled(self, recall_id: str, *, connection: psycopg.Connection[Any] | None = None) -> Recall:
        """Cancels one recall by its id, pending or running; a run under way is told to stop.

        Raises:
            RecallNotFoundError: There is no such recall.
            RecallStateError: It is fired or failed.
        """
        return self.database.one(calls.mark_cancelled(recall_id), connection)

    def list_recalls(
        self,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        is_admin: bool = False,
        limit: int = 50,
        offset: int = 0,
        connection: psycopg.Connection[Any] | None = None,
    ) -> list[Recall]:
        """Lists recalls, newest trigger_at first.

        Args:
            session_id: Only this session's; allowed alone.
            user_id: Who asks: only recalls of sessions this user owns.
            is_admin: Who asks sees everything.
            limit: At most so many.
            offset: Leave out so many first.
            connection: The caller's own psycopg connection.

        Raises:
            InvalidRecallError: None of session_id, user_id and is_admin was given.
        """
        call = calls.list_recalls(session_id=session_id, user_id=user_id, is_admin=is_admin, limit=limit, offset=offset)
        return self.database.run(call, connection)

    def get_pending_recalls(
        self, before: datetime, *, connection: psycopg.Connection[Any] | None = None
    ) -> list[Recall]:
        """Pending recalls due at or before an aware datetime, earliest first. Looking claims nothing."""
        return self.database.run(calls.get_pending_recalls(before), connection)

    def get_next_trigger_at(self, *, connection: psycopg.Connection[Any] | None = None) -> datetime | None:
        """When the next pending recall is due, in UTC; None: none is pending."""
        return self.database.one(calls.get_next_trigger_at(), connection)

    def get_pending_session_ids(
        self, session_ids: Collection[str], *, connection: psycopg.Connection[Any] | None = None
    ) -> set[str]:
        """Those of the given sessions that have a pending recall."""
        return set(self.database.run(calls.get_pending_session_ids(session_ids), connection))

    def get_recall(self, recall_id: str, *, connection: psycopg.Connection[Any] | None = None) -> Recall:
        """One recall by its id.

        Raises:
            RecallNotFoundError: There is no such recall.
        """
        return self.database.one(calls.get_recall(recall_id), connection)

    def get_runs(
        self, recall_id: str, *, limit: int = 50, connection: psycopg.Connection[Any] | None = None
    ) -> list[RecallRun]:
        """What happened to a recall: its runs and the occurrences that did not run, newest first."""
        return self.database.run(calls.get_runs(recall_id, limit), connection)

    def hold_session(
        self,
        session_id: str,
        *,
        holder: str | None = None,
        lease: float = 30.0,
        if_held: IfHeld = "refuse",
        wait: float | None = None,
    ) -> SyncHold:
        """Holds a session for a live chat, as a context manager: inside the block no run starts in it.

        The hold is renewed in the background, ends with the block, and after a crash with its lease. Recalls that came
        due meanwhile run when it ends.

        Args:
            session_id: The session.
            holder: Who holds it, for others to see, 1 to 255 characters. None: a name made of host and process.
            lease: Seconds for which the hold is good without a renewal, 0.1 to 86400.
            if_held: If somebody else has the session: `refuse` raises, `wait` waits in line, `interrupt` waits too and,
                if it is a run, tells the run to stop.
            wait: Seconds to wait in line. None: as long as it takes.

        Raises:
            SessionHeldError: On entering: somebody else has the session (and had it for the whole of `wait`).
            HoldLostError: On leaving: the hold ended before, because it could not be renewed or a recall that was put
                off for its max_defer_seconds wants the session.
            SessionNotFoundError: On entering: there is no such session.
            SettingsError: lease or wait makes no sense.
        """
        return SyncHold(self.database, self._line, session_id, holder=holder, lease=lease, if_held=if_held, wait=wait)

    def free_session(
        self, session_id: str, *, holder: str | None = None, connection: psycopg.Connection[Any] | None = None
    ) -> bool:
        """Ends a chat's hold on a session, or its waiting for one; True if there was something to end.

        Args:
            session_id: The session.
            holder: Whose hold. None is for operators: whoever's it is; a run that is alive is not ended.
            connection: The caller's own psycopg connection.
        """
        return self.database.one(calls.free_session(session_id, holder), connection)

    def touch_session(self, session_id: str, *, connection: psycopg.Connection[Any] | None = None) -> bool:
        """Records that somebody has just spoken with the agent, for recalls with idle_for_seconds.

        Returns:
            False if there is no such session.
        """
        return self.database.one(calls.touch_session(session_id), connection)

    def get_holds(
        self, session_id: str | None = None, *, connection: psycopg.Connection[Any] | None = None
    ) -> list[HeldSession]:
        """Who has which session since when, oldest first; of one session or of all."""
        return self.database.run(calls.get_holds(session_id), connection)

    def report_run(
        self,
        run_id: int,
        *,
        reply: str | None = None,
        silent: bool = False,
        error: str | None = None,
        usage: Mapping[str, Any] | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        connection: psycopg.Connection[Any] | None = None,
    ) -> bool:
        """Says how a run ended whose agent handed its work to the caller and waits, see `wait_for_report`.

        A report about an earlier try of the same occurrence counts for the one under way.

        Args:
            run_id: The run, as its agent knows it.
            reply: What the agent answers. None or empty: nothing.
            silent: There is nothing to say, and that is a success.
            error: Why it has failed; excludes the others. The occurrence is not tried again.
            usage: What the run has used, as in RunResult.
            messages: What the session gets in place of the reply, as in RunResult.
            connection: The caller's own psycopg connection: the report joins its transaction.

        Returns:
            False if there was a report before, which counts; making the same call again is harmless.

        Raises:
            RecallNotFoundError: There is no such run.
            RecallStateError: It has ended.
            InvalidRecallError: An argument makes no sense.
        """
        call = calls.report_run(run_id, reply=reply, silent=silent, error=error, usage=usage, messages=messages)
        return self.database.one(call, connection)
