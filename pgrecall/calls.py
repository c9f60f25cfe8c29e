"""The SQL surface: one pure function for each routine, giving the statement, its values and the answer's shape.

No I/O here. The async and the sync scheduler both run these, so neither can differ from the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Generic, TypeVar, cast

from pgrecall.errors import InvalidRecallError
from pgrecall.model import (
    AdoptedRecall,
    AfterStop,
    CallType,
    Change,
    ClaimRow,
    Delivery,
    DeliveryClaim,
    DeliveryStatus,
    Finished,
    FinishedTogether,
    HeldSession,
    HistoryEntry,
    IfExists,
    IfHeld,
    InstalledSchema,
    OnInterrupt,
    OnMaxDefer,
    Pause,
    PurgedHistory,
    PurgeStep,
    Recall,
    RecallRun,
    Report,
    SessionHold,
    Settings,
    UpcomingTime,
)

T = TypeVar("T")

#: A NUL in JSON text. An even number of backslashes before the u is a text that speaks of one.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call of a SQL routine.

    Attributes:
        function: The routine's name in the schema pgrecall.
        arguments: Its arguments by name.
        row: A dataclass whose fields are the columns of the answer, or None for a single value.
    """

    function: str
    arguments: Mapping[str, Any]
    row: type[T] | None = None

    @property
    def statement(self) -> str:
        """The SELECT that makes the call, with psycopg's named placeholders."""
        return _statement(self.function, tuple(self.arguments), cast("Any", self.row))


@cache
def _statement(function: str, names: tuple[str, ...], row: type[Any] | None) -> str:
    # Columns by name: a statement that was prepared before an upgrade goes on, whatever columns that adds.
    columns = "*" if row is None else ", ".join(f'"{field.name}"' for field in fields(row))
    arguments = ", ".join(f'"{name}" => %({name})s' for name in names)
    return f"select {columns} from pgrecall.{function}({arguments})"


def _given(**arguments: Any) -> dict[str, Any]:
    """Leaves out what was not given, so that the SQL default stands."""
    return {name: value for name, value in arguments.items() if value is not None}


def shown(value: object) -> str:
    """A value that was refused, short enough for a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return f"a very long {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}…"


def _aware(name: str, value: datetime | None) -> datetime | None:
    if value is not None and not isinstance(value, datetime):
        raise InvalidRecallError(
            f"{name} is {shown(value)}, which is no datetime", hint="datetime.fromisoformat() makes one from a text."
        )
    if value is not None and value.tzinfo is None:
        raise InvalidRecallError(
            f"{name} is {value.isoformat()}, which has no time zone",
            hint=f"Use an aware datetime, for example {name}=datetime.now(UTC) + timedelta(hours=1).",
        )
    return value


def _text(name: str, value: str | None) -> str | None:
    """Refuses what PostgreSQL's text cannot hold, before it becomes an error about bytes."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidRecallError(f"{name} is {shown(value)}, which is no text")
    if "\x00" in value:
        raise InvalidRecallError(f"{name} contains a NUL character, which PostgreSQL's text cannot hold")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRecallError(f"{name} contains a lone surrogate, which is not a character") from error
    return value


def _integer(name: str, value: int | None) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InvalidRecallError(f"{name} is {shown(value)}, which is no whole number")
    if value is not None and not -(2**31) <= value < 2**31:
        raise InvalidRecallError(f"{name} is {shown(value)}, which is out of range", hint="At most 2147483647.")
    return value


def _big_integer(name: str, value: int) -> int:
    """The number of a run, or of what is numbered like it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRecallError(f"{name} is {shown(value)}, which is no whole number")
    if not -(2**63) <= value < 2**63:
        raise InvalidRecallError(f"{name} is {shown(value)}, which is out of range", hint="At most 2**63 - 1.")
    return value


def _number(name: str, value: float | None) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InvalidRecallError(f"{name} is {shown(value)}, which is no number")
    try:
        return None if value is None else float(value)
    except OverflowError as error:
        raise InvalidRecallError(f"{name} is {shown(value)}, which is out of range") from error


def _length(name: str, value: timedelta | None) -> timedelta | None:
    if value is not None and not isinstance(value, timedelta):
        raise InvalidRecallError(f"{name} is {shown(value)}, which is no timedelta")
    return value


def _boolean(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise InvalidRecallError(f"{name} is {shown(value)}, which is neither True nor False")
    return value


def _texts(name: str, values: object) -> list[str | None]:
    """A text is a collection of texts, too, but never the one that was meant."""
    if isinstance(values, str | bytes) or not isinstance(values, Collection):
        raise InvalidRecallError(f"{name} is {shown(values)}, which is no collection of texts")
    return [_text(name, value) for value in values]


def _object(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidRecallError(f"{name} is {shown(value)}, which is no mapping")
    return as_json(dict(value))


def _messages(messages: object) -> str:
    if isinstance(messages, str | bytes) or not isinstance(messages, Iterable):
        raise InvalidRecallError(f"messages is {shown(messages)}, which is no sequence of messages")
    return as_json(list(messages))


def as_json(value: object) -> str:
    """JSON text for a jsonb parameter; raises InvalidRecallError for what JSON or jsonb cannot hold."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRecallError(f"not JSON: {error}") from error
    if _NUL.search(text):
        raise InvalidRecallError("a JSON text contains a NUL character, which PostgreSQL cannot hold")
    return text


def schedule_recall(
    *,
    session_id: str,
    additional_context_message: str,
    call_type: CallType | None,
    trigger_at: datetime | None,
    interval_seconds: int | None,
    internal_comment: str | None,
    id: str | None,
    cron: str | None,
    time_zone: str | None,
    end_at: datetime | None,
    max_attempts: int | None,
    timeout_seconds: int | None,
    idempotency_key: str | None,
    metadata: Mapping[str, Any] | None,
    idle_for_seconds: int | None,
    max_defer_seconds: int | None,
    on_max_defer: OnMaxDefer | None,
    on_interrupt: OnInterrupt | None,
    pause_after_failures: int | None,
    deliver_to: str | None,
    if_exists: IfExists,
) -> Call[Recall]:
    """`pgrecall.schedule_recall`."""
    return Call(
        "schedule_recall",
        {"session_id": _text("session_id", session_id)}
        | {"additional_context_message": _text("additional_context_message", additional_context_message)}
        | {"if_exists": _text("if_exists", if_exists)}
        | _given(
            call_type=_text("call_type", call_type),
            trigger_at=_aware("trigger_at", trigger_at),
            interval_seconds=_integer("interval_seconds", interval_seconds),
            internal_comment=_text("internal_comment", internal_comment),
            id=_text("id", id),
            cron=_text("cron", cron),
            time_zone=_text("time_zone", time_zone),
            end_at=_aware("end_at", end_at),
            max_attempts=_integer("max_attempts", max_attempts),
            timeout_seconds=_integer("timeout_seconds", timeout_seconds),
            idempotency_key=_text("idempotency_key", idempotency_key),
            metadata=_object("metadata", metadata),
            idle_for_seconds=_integer("idle_for_seconds", idle_for_seconds),
            max_defer_seconds=_integer("max_defer_seconds", max_defer_seconds),
            on_max_defer=_text("on_max_defer", on_max_defer),
            on_interrupt=_text("on_interrupt", on_interrupt),
            pause_after_failures=_integer("pause_after_failures", pause_after_failures),
            deliver_to=_text("deliver_to", deliver_to),
        ),
        Recall,
    )


def cancel_recall(session_id: str) -> Call[bool]:
    """`pgrecall.cancel_recall`."""
    return Call("cancel_recall", {"session_id": _text("session_id", session_id)})


def skip_next_recall(session_id: str) -> Call[bool]:
    """`pgrecall.skip_next_recall`."""
    return Call("skip_next_recall", {"session_id": _text("session_id", session_id)})


def reschedule(recall_id: str, new_trigger_at: datetime) -> Call[Recall]:
    """`pgrecall.reschedule`."""
    return Call(
        "reschedule",
        {
            "recall_id": _text("recall_id", recall_id),
            "new_trigger_at": _aware("new_trigger_at", new_trigger_at),
        },
        Recall,
    )


def mark_fired(recall_id: str) -> Call[Recall]:
    """`pgrecall.mark_fired`."""
    return Call("mark_fired", {"recall_id": _text("recall_id", recall_id)}, Recall)


def mark_cancelled(recall_id: str) -> Call[Recall]:
    """`pgrecall.mark_cancelled`."""
    return Call("mark_cancelled", {"recall_id": _text("recall_id", recall_id)}, Recall)


def list_recalls(
    *, session_id: str | None, user_id: str | None, is_admin: bool, limit: int, offset: int
) -> Call[Recall]:
    """`pgrecall.list_recalls`."""
    return Call(
        "list_recalls",
        {
            "session_id": _text("session_id", session_id),
            "user_id": _text("user_id", user_id),
            "is_admin": _boolean("is_admin", is_admin),
            "limit": _integer("limit", limit),
            "offset": _integer("offset", offset),
        },
        Recall,
    )


def get_pending_recalls(before: datetime) -> Call[Recall]:
    """`pgrecall.get_pending_recalls`."""
    return Call("get_pending_recalls", {"before": _aware("before", before)}, Recall)


def get_next_trigger_at() -> Call[datetime]:
    """`pgrecall.get_next_trigger_at`."""
    return Call("get_next_trigger_at", {})


def get_pending_session_ids(session_ids: Collection[str]) -> Call[str]:
    """`pgrecall.get_pending_session_ids`."""
    return Call("get_pending_session_ids", {"session_ids": _texts("session_ids", session_ids)})


def get_recall(recall_id: str) -> Call[Recall]:
    """`pgrecall.get_recall`."""
    return Call("get_recall", {"recall_id": _text("recall_id", recall_id)}, Recall)


def get_runs(recall_id: str, limit: int) -> Call[RecallRun]:
    """`pgrecall.get_runs`."""
    return Call("get_runs", {"recall_id": _text("recall_id", recall_id), "limit": _integer("limit", limit)}, RecallRun)


def pause_recall(recall_id: str, reason: str | None, paused_until: datetime | None) -> Call[Recall]:
    """`pgrecall.pause_recall`."""
    return Call(
        "pause_recall",
        {"recall_id": _text("recall_id", recall_id)}
        | _given(reason=_text("reason", reason), paused_until=_aware("paused_until", paused_until)),
        Recall,
    )


def resume_recall(recall_id: str) -> Call[Recall]:
    """`pgrecall.resume_recall`."""
    return Call("resume_recall", {"recall_id": _text("recall_id", recall_id)}, Recall)


def pause_all(reason: str | None, paused_until: datetime | None) -> Call[Settings]:
    """`pgrecall.pause_all`."""
    return Call(
        "pause_all",
        _given(reason=_text("reason", reason), paused_until=_aware("paused_until", paused_until)),
        Settings,
    )


def resume_all() -> Call[Settings]:
    """`pgrecall.resume_all`."""
    return Call("resume_all", {}, Settings)


def run_now(recall_id: str) -> Call[Recall]:
    """`pgrecall.run_now`."""
    return Call("run_now", {"recall_id": _text("recall_id", recall_id)}, Recall)


def retry_recall(recall_id: str) -> Call[Recall]:
    """`pgrecall.retry_recall`."""
    return Call("retry_recall", {"recall_id": _text("recall_id", recall_id)}, Recall)


def stop_run(recall_id: str, reason: str | None, after_stop: AfterStop) -> Call[Recall]:
    """`pgrecall.stop_run`."""
    return Call(
        "stop_run",
        {"recall_id": _text("recall_id", recall_id), "after_stop": _text("after_stop", after_stop)}
        | _given(reason=_text("reason", reason)),
        Recall,
    )


def pause_session(session_id: str, reason: str | None, paused_until: datetime | None) -> Call[Pause]:
    """`pgrecall.pause_session`."""
    return Call(
        "pause_session",
        {"session_id": _text("session_id", session_id)}
        | _given(reason=_text("reason", reason), paused_until=_aware("paused_until", paused_until)),
        Pause,
    )


def resume_session(session_id: str) -> Call[Pause]:
    """`pgrecall.resume_session`."""
    return Call("resume_session", {"session_id": _text("session_id", session_id)}, Pause)


def pause_user(user_id: str, reason: str | None, paused_until: datetime | None) -> Call[Pause]:
    """`pgrecall.pause_user`."""
    return Call(
        "pause_user",
        {"user_id": _text("user_id", user_id)}
        | _given(reason=_text("reason", reason), paused_until=_aware("paused_until", paused_until)),
        Pause,
    )


def resume_user(user_id: str) -> Call[Pause]:
    """`pgrecall.resume_user`."""
    return Call("resume_user", {"user_id": _text("user_id", user_id)}, Pause)


def _many(recall_ids: Collection[str] | None, session_id: str | None, user_id: str | None) -> dict[str, Any]:
    """Which recalls are meant; the SQL refuses nothing at all."""
    return _given(
        recall_ids=None if recall_ids is None else _texts("recall_ids", recall_ids),
        session_id=_text("session_id", session_id),
        user_id=_text("user_id", user_id),
    )


def cancel_recalls(*, recall_ids: Collection[str] | None, session_id: str | None, user_id: str | None) -> Call[Recall]:
    """`pgrecall.cancel_recalls`."""
    return Call("cancel_recalls", _many(recall_ids, session_id, user_id), Recall)


def pause_recalls(
    *,
    recall_ids: Collection[str] | None,
    session_id: str | None,
    user_id: str | None,
    reason: str | None,
    paused_until: datetime | None,
) -> Call[Recall]:
    """`pgrecall.pause_recalls`."""
    return Call(
        "pause_recalls",
        _many(recall_ids, session_id, user_id)
        | _given(reason=_text("reason", reason), paused_until=_aware("paused_until", paused_until)),
        Recall,
    )


def resume_recalls(*, recall_ids: Collection[str] | None, session_id: str | None, user_id: str | None) -> Call[Recall]:
    """`pgrecall.resume_recalls`."""
    return Call("resume_recalls", _many(recall_ids, session_id, user_id), Recall)


def skip_recalls(*, recall_ids: Collection[str] | None, session_id: str | None, user_id: str | None) -> Call[Recall]:
    """`pgrecall.skip_recalls`."""
    return Call("skip_recalls", _many(recall_ids, session_id, user_id), Recall)


def reschedule_recalls(
    *,
    recall_ids: Collection[str] | None,
    session_id: str | None,
    user_id: str | None,
    new_trigger_at: datetime | None,
    by: timedelta | None,
) -> Call[Recall]:
    """`pgrecall.reschedule_recalls`."""
    return Call(
        "reschedule_recalls",
        _many(recall_ids, session_id, user_id)
        | _given(new_trigger_at=_aware("new_trigger_at", new_trigger_at), by=_length("by", by)),
        Recall,
    )


def run_recalls_now(*, recall_ids: Collection[str] | None, session_id: str | None, user_id: str | None) -> Call[Recall]:
    """`pgrecall.run_recalls_now`."""
    return Call("run_recalls_now", _many(recall_ids, session_id, user_id), Recall)


def retry_recalls(
    *, recall_ids: Collection[str] | None, session_id: str | None, user_id: str | None, failed_since: datetime | None
) -> Call[Recall]:
    """`pgrecall.retry_recalls`."""
    return Call(
        "retry_recalls",
        _many(recall_ids, session_id, user_id) | _given(failed_since=_aware("failed_since", failed_since)),
        Recall,
    )


def stop_runs(
    *,
    recall_ids: Collection[str] | None,
    session_id: str | None,
    user_id: str | None,
    reason: str | None,
    after_stop: AfterStop,
) -> Call[Recall]:
    """`pgrecall.stop_runs`."""
    return Call(
        "stop_runs",
        _many(recall_ids, session_id, user_id)
        | {"after_stop": _text("after_stop", after_stop)}
        | _given(reason=_text("reason", reason)),
        Recall,
    )


def hold_session(session_id: str, holder: str, lease: timedelta, if_held: IfHeld) -> Call[SessionHold]:
    """`pgrecall.hold_session`."""
    return Call(
        "hold_session",
        {
            "session_id": _text("session_id", session_id),
            "holder": _text("holder", holder),
            "lease": lease,
            "if_held": _text("if_held", if_held),
        },
        SessionHold,
    )


def renew_hold(session_id: str, holder: str, lease: timedelta) -> Call[bool]:
    """`pgrecall.renew_hold`."""
    return Call("renew_hold", {"session_id": session_id, "holder": holder, "lease": lease})


def free_session(session_id: str, holder: str | None) -> Call[bool]:
    """`pgrecall.free_session`."""
    return Call(
        "free_session", {"session_id": _text("session_id", session_id)} | _given(holder=_text("holder", holder))
    )


def touch_session(session_id: str) -> Call[bool]:
    """`pgrecall.touch_session`."""
    return Call("touch_session", {"session_id": _text("session_id", session_id)})


def get_holds(session_id: str | None) -> Call[HeldSession]:
    """`pgrecall.get_holds`."""
    return Call("get_holds", _given(session_id=_text("session_id", session_id)), HeldSession)


def agent_schedule_recall(
    session_id: str,
    additional_context_message: str,
    *,
    run_id: int | None,
    trigger_at: str | None,
    in_seconds: float | None,
    interval_seconds: int | None,
    cron: str | None,
    time_zone: str | None,
    end_at: str | None,
    if_exists: str | None,
    idempotency_key: str | None,
) -> Call[dict[str, Any]]:
    """`pgrecall.agent_schedule_recall`."""
    return Call(
        "agent_schedule_recall",
        {"session_id": _text("session_id", session_id)}
        | {"additional_context_message": _text("additional_context_message", additional_context_message)}
        | _given(
            run_id=run_id,
            trigger_at=_text("trigger_at", trigger_at),
            in_seconds=_number("in_seconds", in_seconds),
            interval_seconds=_integer("interval_seconds", interval_seconds),
            cron=_text("cron", cron),
            time_zone=_text("time_zone", time_zone),
            end_at=_text("end_at", end_at),
            if_exists=_text("if_exists", if_exists),
            idempotency_key=_text("idempotency_key", idempotency_key),
        ),
    )


def agent_list_recalls(session_id: str) -> Call[dict[str, Any]]:
    """`pgrecall.agent_list_recalls`."""
    return Call("agent_list_recalls", {"session_id": _text("session_id", session_id)})


def agent_cancel_recall(session_id: str, recall_id: str | None, run_id: int | None) -> Call[dict[str, Any]]:
    """`pgrecall.agent_cancel_recall`."""
    return Call(
        "agent_cancel_recall",
        {"session_id": _text("session_id", session_id)}
        | _given(recall_id=_text("recall_id", recall_id), run_id=run_id),
    )


def agent_skip_next_recall(session_id: str, recall_id: str | None, run_id: int | None) -> Call[dict[str, Any]]:
    """`pgrecall.agent_skip_next_recall`."""
    return Call(
        "agent_skip_next_recall",
        {"session_id": _text("session_id", session_id)}
        | _given(recall_id=_text("recall_id", recall_id), run_id=run_id),
    )


def claim(
    worker_id: str, up_to: int, lease: timedelta, inject: bool, *, due_from: datetime | None = None
) -> Call[ClaimRow]:
    """`pgrecall.claim`."""
    return Call(
        "claim",
        {"worker_id": worker_id, "up_to": up_to, "lease": lease, "inject": inject, "due_from": due_from},
        ClaimRow,
    )


def finish(
    recall_id: str,
    run_id: int,
    outcome: str,
    *,
    started_at: datetime | None = None,
    reply: str | None = None,
    error: str | None = None,
    reason: str | None = None,
    usage: Mapping[str, Any] | None = None,
    retry: bool = False,
    retry_after: timedelta | None = None,
    counted: bool = True,
    append_reply: bool = False,
    messages: Sequence[Mapping[str, Any]] | None = None,
) -> Call[Finished]:
    """`pgrecall.finish`."""
    return Call(
        "finish",
        {"recall_id": recall_id, "run_id": run_id, "outcome": outcome}
        | _given(
            started_at=started_at,
            reply=_printable(reply),
            error=_printable(error),
            reason=_printable(reason),
            usage=None if usage is None else as_json(dict(usage)),
            retry=retry,
            retry_after=retry_after,
            counted=counted,
            append_reply=append_reply,
            messages=None if messages is None else as_json(list(messages)),
        ),
        Finished,
    )


def finish_unobstructed(
    run_ids: Sequence[int],
    outcomes: Sequence[str],
    *,
    started_at: Sequence[datetime | None],
    replies: Sequence[str | None],
    append_reply: bool,
) -> Call[FinishedTogether]:
    """`pgrecall.finish_unobstructed`."""
    return Call(
        "finish_unobstructed",
        {
            "run_ids": _array(str(run_id) for run_id in run_ids),
            "outcomes": _array(outcomes),
            "started_at": _array("null" if at is None else f'"{at.isoformat()}"' for at in started_at),
            "replies": (
                _array(["null"] * len(replies))
                if replies.count(None) == len(replies)
                else [_printable(reply) for reply in replies]
            ),
            "append_reply": append_reply,
        },
        FinishedTogether,
    )


def _array(elements: Iterable[str]) -> str:
    """An array as the server reads it, of elements that need no more quotes: psycopg takes ten times as long."""
    return "{" + ",".join(elements) + "}"


def _printable(text: str | None) -> str | None:
    """What an agent said, made storable: an outcome must not be lost because of one character in it."""
    if text is None:
        return None
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def renew(worker_id: str, lease: timedelta) -> Call[int]:
    """`pgrecall.renew`."""
    return Call("renew", {"worker_id": worker_id, "lease": lease})


def release(worker_id: str, run_ids: Collection[int]) -> Call[int]:
    """`pgrecall.release`."""
    return Call("release", {"worker_id": worker_id, "run_ids": list(run_ids)})


def register_worker(
    worker_id: str,
    concurrency: int,
    *,
    host: str,
    pid: int,
    version: str,
    reconnect_grace: timedelta,
    lifelines: Sequence[int | None] | None,
) -> Call[datetime]:
    """`pgrecall.register_worker`."""
    return Call(
        "register_worker",
        {"worker_id": worker_id, "concurrency": concurrency, "host": host, "pid": pid, "version": version}
        | _given(reconnect_grace=reconnect_grace, lifelines=None if lifelines is None else list(lifelines)),
    )


def give_up_lifelines(worker_id: str, lifelines: Collection[int]) -> Call[bool]:
    """`pgrecall.give_up_lifelines`."""
    return Call("give_up_lifelines", {"worker_id": worker_id, "lifelines": list(lifelines)})


def unregister_worker(worker_id: str) -> Call[None]:
    """`pgrecall.unregister_worker`."""
    return Call("unregister_worker", {"worker_id": worker_id})


def append_messages(session_id: str, messages: Sequence[Mapping[str, Any]]) -> Call[int]:
    """`pgrecall.append_messages`."""
    return Call("append_messages", {"session_id": _text("session_id", session_id), "messages": as_json(list(messages))})


def report_run(
    run_id: int,
    *,
    reply: str | None,
    silent: bool,
    error: str | None,
    usage: Mapping[str, Any] | None,
    messages: Sequence[Mapping[str, Any]] | None,
) -> Call[bool]:
    """`pgrecall.report_run`."""
    return Call(
        "report_run",
        {"run_id": _big_integer("run_id", run_id), "silent": _boolean("silent", silent)}
        | _given(
            reply=_text("reply", reply),
            error=_text("error", error),
            usage=_object("usage", usage),
            messages=None if messages is None else _messages(messages),
        ),
    )


def get_report(run_id: int) -> Call[Report]:
    """`pgrecall.get_report`."""
    return Call("get_report", {"run_id": run_id}, Report)


def claim_deliveries(up_to: int, lease: timedelta) -> Call[DeliveryClaim]:
    """`pgrecall.claim_deliveries`."""
    return Call("claim_deliveries", {"up_to": up_to, "lease": lease}, DeliveryClaim)


def end_delivery(
    delivery_id: int,
    attempt: int,
    status: DeliveryStatus,
    *,
    response_status: int | None = None,
    error: str | None = None,
    retry_after: timedelta | None = None,
) -> Call[datetime | None]:
    """`pgrecall.end_delivery`."""
    return Call(
        "end_delivery",
        {"delivery_id": delivery_id, "attempt": attempt, "status": status}
        | _given(response_status=response_status, error=_printable(error), retry_after=retry_after),
    )


def retry_delivery(delivery_id: int) -> Call[Delivery]:
    """`pgrecall.retry_delivery`."""
    return Call("retry_delivery", {"delivery_id": _big_integer("delivery_id", delivery_id)}, Delivery)


def get_deliveries(
    *, session_id: str | None, recall_id: str | None, status: DeliveryStatus | None, limit: int
) -> Call[Delivery]:
    """`pgrecall.get_deliveries`."""
    return Call(
        "get_deliveries",
        {
            "session_id": _text("session_id", session_id),
            "recall_id": _text("recall_id", recall_id),
            "status": _text("status", status),
            "limit": _integer("limit", limit),
        },
        Delivery,
    )


def use_sessions_table(
    host_table: str, id_column: str, user_id_column: str | None, time_zone_column: str | None, orphans: str
) -> Call[int]:
    """`pgrecall.use_sessions_table`."""
    return Call(
        "use_sessions_table",
        {
            "host_table": _text("host_table", host_table),
            "id_column": _text("id_column", id_column),
            "user_id_column": _text("user_id_column", user_id_column),
            "time_zone_column": _text("time_zone_column", time_zone_column),
            "orphans": _text("orphans", orphans),
        },
    )


def use_own_sessions() -> Call[bool]:
    """`pgrecall.use_own_sessions`."""
    return Call("use_own_sessions", {})


def adopt_recalls(old_table: str, mark_as: str, naive_times_in: str | None) -> Call[AdoptedRecall]:
    """`pgrecall.adopt_recalls`."""
    return Call(
        "adopt_recalls",
        {
            "old_table": _text("old_table", old_table),
            "mark_as": _text("mark_as", mark_as),
            "naive_times_in": _text("naive_times_in", naive_times_in),
        },
        AdoptedRecall,
    )


def get_schema() -> Call[InstalledSchema]:
    """`pgrecall.get_schema`."""
    return Call("get_schema", {}, InstalledSchema)


def purge(*, batch: int | None = None, worker_id: str | None = None) -> Call[PurgeStep]:
    """`pgrecall.purge`."""
    return Call(
        "purge",
        {"batch": _integer("batch", 1000 if batch is None else batch), "worker_id": _text("worker_id", worker_id)},
        PurgeStep,
    )


def purge_history(
    *, before: datetime | None, session_id: str | None, user_id: str | None, with_messages: bool, with_audit: bool
) -> Call[PurgedHistory]:
    """`pgrecall.purge_history`."""
    return Call(
        "purge_history",
        {
            "before": _aware("before", before),
            "session_id": _text("session_id", session_id),
            "user_id": _text("user_id", user_id),
            "with_messages": _boolean("with_messages", with_messages),
            "with_audit": _boolean("with_audit", with_audit),
        },
        PurgedHistory,
    )


def get_audit(
    *, recall_id: str | None, session_id: str | None, user_id: str | None, since: datetime | None, limit: int
) -> Call[Change]:
    """`pgrecall.get_audit`."""
    return Call(
        "get_audit",
        {
            "recall_id": _text("recall_id", recall_id),
            "session_id": _text("session_id", session_id),
            "user_id": _text("user_id", user_id),
            "since": _aware("since", since),
            "limit": _integer("limit", limit),
        },
        Change,
    )


def history(recall_id: str) -> Call[HistoryEntry]:
    """`pgrecall.history`."""
    return Call("history", {"recall_id": _text("recall_id", recall_id)}, HistoryEntry)


def upcoming(recall_id: str, *, limit: int) -> Call[UpcomingTime]:
    """`pgrecall.upcoming`."""
    return Call(
        "upcoming", {"recall_id": _text("recall_id", recall_id), "limit": _integer("limit", limit)}, UpcomingTime
    )


def wanted_slots(within: timedelta, up_to: int) -> Call[int]:
    """`pgrecall.wanted_slots`."""
    return Call("wanted_slots", {"within": _length("within", within), "up_to": _integer("up_to", up_to)}, None)
