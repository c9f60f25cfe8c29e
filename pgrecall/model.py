"""The shapes of rows: what SQL returns, as frozen dataclasses. No I/O, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any, Literal

CallType = Literal["once", "recurring", "immediate"]
Status = Literal["pending", "running", "fired", "failed", "cancelled"]
DeliveryStatus = Literal["pending", "delivered", "failed"]
OnMaxDefer = Literal["run", "skip"]
OnInterrupt = Literal["retry", "skip"]
AfterStop = Literal["retry", "skip"]
IfExists = Literal["raise", "replace", "keep"]
IfHeld = Literal["refuse", "wait", "interrupt"]
Outcome = Literal["success", "silent", "error", "timeout", "interrupted", "lost", "skipped", "missed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """One row of `pgrecall.session_recalls`; the comments of its columns say what each means.

    All times are aware datetimes in UTC.
    """

    id: str
    session_id: str
    call_type: CallType
    trigger_at: datetime
    interval_seconds: int | None
    internal_comment: str | None
    additional_context_message: str
    status: Status
    created_at: datetime
    updated_at: datetime
    cron: str | None = None
    time_zone: str | None = None
    end_at: datetime | None = None
    max_attempts: int = 3
    timeout_seconds: int | None = None
    idle_for_seconds: int | None = None
    max_defer_seconds: int = 86400
    on_max_defer: OnMaxDefer = "run"
    on_interrupt: OnInterrupt = "retry"
    pause_after_failures: int | None = None
    deliver_to: str | None = None
    created_by: Literal["host", "agent"] = "host"
    created_by_run_id: int | None = None
    chain_depth: int = 0
    idempotency_key: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    nominal_at: datetime | None = None
    attempt: int = 0
    not_before: datetime | None = None
    deferrals: int = 0
    defer_reason: str | None = None
    deferred_since: datetime | None = None
    failures: int = 0
    paused_at: datetime | None = None
    paused_until: datetime | None = None
    pause_reason: str | None = None
    run_id: int | None = None
    worker_id: str | None = None
    claimed_at: datetime | None = None
    last_error: str | None = None
    due_at: datetime | None = None
    pause_id: int | None = None
    grid_at: datetime | None = None
    stopped_by: str | None = None
    stop_reason: str | None = None
    after_stop: AfterStop | None = None
    scheduled_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallRun:
    """One row of `pgrecall.recall_runs`: a run that ended, or an occurrence that did not run."""

    id: int
    recall_id: str
    session_id: str
    nominal_at: datetime
    started_at: datetime | None
    finished_at: datetime
    lateness: timedelta | None
    worker_id: str | None
    attempt: int
    outcome: Outcome
    reason: str | None
    reply: str | None
    error: str | None
    usage: dict[str, Any] | None
    deferrals: int
    defer_reason: str | None
    occurrences: int
    refused_at: datetime | None


# Neither frozen nor by name: a worker with much to do makes thousands a second, in a tenth of the time.
@dataclass(slots=True)
class ClaimRow:
    """One row of `pgrecall.claim()`: when to look again, and a claimed or deferred recall if there is one."""

    now_at: datetime
    next_due_at: datetime | None
    settled: bool
    next_delivery_at: datetime | None
    run_id: int | None
    recall_id: str | None
    session_id: str
    user_id: str | None
    call_type: CallType
    nominal_at: datetime
    next_at: datetime | None
    attempt: int
    max_attempts: int
    deferrals: int
    timeout_seconds: int | None
    default_timeout_seconds: int
    silent_token: str | None
    additional_context_message: str
    internal_comment: str | None
    metadata: dict[str, Any]
    model_text: str | None
    time_zone: str
    chain_depth: int
    defer_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedRecall:
    """One row of `pgrecall.adopt_recalls()`: a pending recall of the old table, and if it was not taken, why."""

    recall_id: str | None
    session_id: str | None
    trigger_at: datetime | None
    adopted: bool
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What `pgrecall.finish()` answers: whether the outcome was taken, and what became of the recall."""

    accepted: bool
    status: Status | None
    trigger_at: datetime | None
    due_at: datetime | None
    attempt: int | None


# As ClaimRow.
@dataclass(slots=True)
class FinishedTogether:
    """One row of `pgrecall.finish_unobstructed()`: a run, and whether it has ended by that or needs `finish()`."""

    run_id: int
    accepted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One row of `pgrecall.deliveries`: a reply on its way to a URL. All times are aware datetimes in UTC."""

    id: int
    recall_id: str
    session_id: str
    url: str
    payload: dict[str, Any]
    status: DeliveryStatus
    attempt: int
    next_at: datetime | None
    created_at: datetime
    ended_at: datetime | None
    response_status: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryClaim:
    """One row of `pgrecall.claim_deliveries()`: when to look again, and a delivery to try if there is one."""

    now_at: datetime
    next_at: datetime | None
    delivery_id: int | None
    recall_id: str
    session_id: str
    url: str
    payload: dict[str, Any]
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One row of `pgrecall.run_reports`: how a run ended, told by whoever its agent handed the work to."""

    recall_id: str
    nominal_at: datetime
    run_id: int
    reply: str | None
    silent: bool
    error: str | None
    usage: dict[str, Any] | None
    messages: list[dict[str, Any]] | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHold:
    """What `pgrecall.hold_session()` answers: who has the session; the type's comment says what each field means."""

    session_id: str
    held: bool
    kind: Literal["chat", "run", "line"]
    holder: str
    since: datetime
    until: datetime | None
    run_id: int | None
    recall_id: str | None
    waiter_id: int | None
    place: int | None
    now_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSession:
    """One row of `pgrecall.get_holds()`.

    Attributes:
        held_session_id: The session.
        kind: `chat` or `run`.
        holder: The chat's name, or the run's worker.
        since: Since when.
        until: When it ends by itself unless it is renewed; None for a run.
        run_id: The run.
        recall_id: The run's recall.
        interrupted_by: The chat that wants the run to stop.
        chats_waiting: How many chats wait in line.
        recalls_waiting: How many recalls were put off.
    """

    held_session_id: str
    kind: Literal["chat", "run"]
    holder: str
    since: datetime
    until: datetime | None
    run_id: int | None
    recall_id: str | None
    interrupted_by: str | None
    chats_waiting: int
    recalls_waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """One row of `pgrecall.pauses`: a session or a user whose recalls are not run, also those that are made later.

    Attributes:
        id: Its number.
        session_id: The session; None: it is a user who is paused.
        user_id: The user; None: it is a session that is paused.
        paused_at: Since when, in UTC.
        paused_until: When it ends by itself, in UTC; None: when it is resumed.
        reason: Why, for people.
    """

    id: int
    session_id: str | None
    user_id: str | None
    paused_at: datetime
    paused_until: datetime | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledSchema:
    """The schema of a database.

    Attributes:
        version: Its version.
        oldest_client: The oldest version whose clients and workers work with it.
    """

    version: int
    oldest_client: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The row of `pgrecall.settings`; the comments of its columns say what each means."""

    timeout_seconds: int
    max_runs_per_day: int | None
    silent_token: str | None
    message_template: str
    paused_at: datetime | None
    paused_until: datetime | None
    pause_reason: str | None
    agent_min_interval_seconds: int
    agent_max_pending_per_user: int
    agent_max_chain_depth: int
    agent_recurring_days: int
    agent_can_change_host_recalls: bool
    keep_fired: timedelta | None
    keep_failed: timedelta | None
    keep_cancelled: timedelta | None
    keep_runs: timedelta | None
    keep_messages: timedelta | None
    keep_deliveries: timedelta | None
    keep_audit: timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeStep:
    """What one call of `pgrecall.purge()` has deleted, and when to call it again.

    Attributes:
        now_at: The database's time.
        next_at: When to call it again; `now_at`: at once, more may be left.
        fired: How many fired recalls are gone.
        failed: How many failed recalls.
        cancelled: How many cancelled recalls.
        runs: How many rows of the ledger.
        messages: How many messages of sessions.
        deliveries: How many deliveries that had ended.
        audit_rows: How many rows of the audit.
    """

    now_at: datetime
    next_at: datetime
    fired: int
    failed: int
    cancelled: int
    runs: int
    messages: int
    deliveries: int
    audit_rows: int

    @property
    def rows(self) -> int:
        """How many rows are gone, of all kinds."""
        return self.fired + self.failed + self.cancelled + self.runs + self.messages + self.deliveries + self.audit_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgedHistory:
    """How many rows of each kind `pgrecall.purge_history()` has deleted."""

    recalls: int
    runs: int
    deliveries: int
    messages: int
    audit_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row of `pgrecall.audit`: a change by hand; the comments of its columns say what each means."""

    id: int
    changed_at: datetime
    role: str
    login: str
    user_id: str | None
    application_name: str | None
    client_address: IPv4Address | IPv6Address | IPv4Interface | IPv6Interface | None
    action: Literal["insert", "update", "delete", "truncate", "free", "retry", "purge"]
    object: str
    object_id: str | None
    session_id: str | None
    owner_id: str | None
    old: dict[str, Any] | None
    new: dict[str, Any] | None


@dataclass(frozen=True)
class HistoryEntry:
    """One row of `pgrecall.history`: something that has happened to a recall, or is to come.

    Attributes:
        happened_at: When.
        what: What, in a few words.
        details: More about it; None if there is nothing to say.
    """

    happened_at: datetime
    what: str
    details: str | None


@dataclass(frozen=True)
class UpcomingTime:
    """One row of `pgrecall.upcoming`: an occurrence that is to come.

    Attributes:
        due_in: How far off it is; below zero if it is late.
        occurs_at: When.
        local_text: The same in the recall's zone, with the day of the week.
    """

    due_in: timedelta
    occurs_at: datetime
    local_text: str
