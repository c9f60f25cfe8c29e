"""The SQL API against a model of docs/states.md: random histories, compared with the tables after every step.

`Model` is that page in Python: what each function, plain write, claim and outcome does to recalls, sessions, messages
and the ledger. The machine does the same to a database whose clock it moves, and expects the same rows and refusals.

``PGRECALL_TEST_HYPOTHESIS=long`` tries new random histories for minutes; otherwise a run is short and always the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from psycopg import sql
from sqltools import (
    MINUTE,
    NOW,
    SECOND,
    Row,
    add,
    call,
    call_one,
    change,
    claim,
    claim_one,
    finish,
    refused,
    row,
    rows,
    set_clock,
    value,
)
from sqltools import recall as recall_row

LONG = os.environ.get("PGRECALL_TEST_HYPOTHESIS") == "long"
SETTINGS = settings(
    max_examples=3000 if LONG else 150,
    stateful_step_count=60 if LONG else 40,
    derandomize=not LONG,
    database=None,
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    phases=[Phase.generate, Phase.shrink],  # to explain a failure takes longer than to understand it
    suppress_health_check=list(HealthCheck),
)

SESSIONS = ["s1", "s2", "s3"]
WORKERS = ["w1", "w2"]
CRONS = {"*/10 * * * *": 10 * MINUTE, "@hourly": 60 * MINUTE}  # in UTC their grid is that of an interval
ENDED = ("fired", "failed", "cancelled")
FAR = datetime.max.replace(tzinfo=UTC)
GOOD = ("success", "silent")
STOPPED = "stopped by the operator"


class Refused(Exception):
    """What the model expects the database to refuse, by SQLSTATE."""


@dataclass
class Recall:
    """A row of session_recalls, due_at and the columns of no consequence left out."""

    id: str
    session_id: str
    trigger_at: datetime
    call_type: str = "once"
    interval_seconds: int | None = None
    cron: str | None = None
    end_at: datetime | None = None
    max_attempts: int = 3
    idempotency_key: str | None = None
    status: str = "pending"
    run_id: int | None = None
    worker_id: str | None = None
    nominal_at: datetime | None = None
    attempt: int = 0
    not_before: datetime | None = None
    deferrals: int = 0
    deferred: bool = False
    last_error: str | None = None
    grid_at: datetime | None = None
    after_stop: str | None = None
    paused: bool = False  # by the pause of its session

    @property
    def due_at(self) -> datetime | None:
        """When a worker must look: the sentence under the table of states."""
        waits = self.status == "pending" or (self.status == "running" and self.not_before is not None)
        if self.run_id is not None or self.paused or not waits:
            return None
        return max(self.trigger_at, self.not_before or self.trigger_at)

    @property
    def counts_as_pending(self) -> bool:
        """Whether it is the one pending recall of its session."""
        return self.status == "pending" or (self.status == "running" and self.call_type == "recurring")

    def next_after(self, after: datetime) -> datetime | None:
        """The first point of its grid after a time."""
        if self.call_type != "recurring":
            return None
        step = timedelta(seconds=self.interval_seconds or 0) or CRONS[self.cron or ""]
        start = (self.grid_at or self.trigger_at) if self.cron is None else datetime(2000, 1, 1, tzinfo=UTC)
        at = start + step * max((after - start) // step + 1, 0 if self.grid_at else 1)
        return None if self.end_at is not None and at > self.end_at else at

    def move(self, trigger_at: datetime) -> None:
        """Another time is on a grid of its own, or on the old one."""
        if trigger_at != self.trigger_at:
            self.trigger_at, self.grid_at = trigger_at, None

    def new_occurrence(self, trigger_at: datetime) -> None:
        """Attempts, backoff and deferrals were about the old one."""
        self.move(trigger_at)
        self.trigger_at, self.attempt, self.deferrals = trigger_at, 0, 0
        self.not_before, self.deferred = None, False


@dataclass
class Session:
    """A row of sessions."""

    run_id: int | None = None
    held_until: datetime | None = None
    has_waiting: bool = False
    is_paused: bool = False

    def is_taken(self, now: datetime) -> bool:
        return self.run_id is not None and (self.held_until is None or self.held_until > now)


@dataclass(frozen=True)
class Run:
    """What a worker remembers of a claim."""

    id: int
    recall_id: str


@dataclass(frozen=True, order=True)
class Entry:
    """A row of the ledger; run_id 0: an occurrence that did not run."""

    recall_id: str
    nominal_at: datetime
    outcome: str
    attempt: int = 0
    run_id: int = 0
    session_id: str = ""


@dataclass
class Model:
    """What docs/states.md says."""

    now: datetime = NOW
    sessions: dict[str, Session] = field(default_factory=dict)
    recalls: dict[str, Recall] = field(default_factory=dict)
    leases: dict[str, datetime | None] = field(default_factory=lambda: dict.fromkeys(WORKERS))
    ledger: list[Entry] = field(default_factory=list)
    messages: set[tuple[str, str, str]] = field(default_factory=set)  # session, role, id

    # What callers do

    def insert(self, recall: Recall, *, exists: str, taken: str, missing: str) -> None:
        """Adds a recall; the SQLSTATEs differ between schedule_recall() and a plain INSERT."""
        if recall.end_at is not None and recall.end_at < recall.trigger_at:
            raise Refused("23514")
        if recall.id in self.recalls:
            raise Refused(exists)
        if self._another_pending(recall):
            raise Refused(taken)
        if recall.session_id not in self.sessions:
            raise Refused(missing)
        self.recalls[recall.id] = recall

    def update(self, recall_id: str, status: str | None = None, trigger_at: datetime | None = None) -> Recall:
        """A plain UPDATE by anybody."""
        recall = self.recalls[recall_id]
        old = recall.status
        new = status or old
        if trigger_at is not None and recall.end_at is not None and recall.end_at < trigger_at:
            raise Refused("23514")
        counts = new == "pending" or (new == "running" and recall.call_type == "recurring")
        if counts and not recall.counts_as_pending and self._another_pending(recall):
            raise Refused("23505")
        if recall.run_id is None:
            if old not in ENDED and new in ENDED:
                self._record(recall, "success" if new == "fired" else "skipped", recall.trigger_at)
            between_attempts = recall.due_at is not None and old == new == "running"
            if trigger_at not in (None, recall.trigger_at) or (old in ENDED and new == "pending"):
                self._new_occurrence(recall, trigger_at or recall.trigger_at)
            is_taken_over = old != "running" and new == "running"  # another service runs it itself: left alone
            if is_taken_over:
                recall.not_before, recall.deferred = None, False
            if between_attempts and trigger_at not in (None, recall.nominal_at) and recall.not_before is None:
                recall.not_before = trigger_at  # due at its new time all the same
        recall.status = new
        recall.move(trigger_at or recall.trigger_at)
        recall.paused = recall.paused and new not in ENDED
        return recall

    def delete(self, recall_id: str) -> None:
        recall = self.recalls.pop(recall_id)
        session = self.sessions[recall.session_id]
        if recall.run_id is not None:
            self._record(recall, "interrupted", recall.nominal_at, ran=True)
            if session.run_id == recall.run_id:
                session.held_until = self.now + 30 * SECOND
        elif recall.status not in ENDED:
            self._record(recall, "skipped", recall.trigger_at)

    def delete_session(self, session_id: str) -> None:
        del self.sessions[session_id]
        self.recalls = {name: one for name, one in self.recalls.items() if one.session_id != session_id}
        self.ledger = [entry for entry in self.ledger if entry.session_id != session_id]
        self.messages = {message for message in self.messages if message[0] != session_id}

    def cancel_recall(self, session_id: str) -> bool:
        found = [one for one in self.recalls.values() if one.session_id == session_id and one.counts_as_pending]
        for recall in found:
            self.update(recall.id, "cancelled")
        return bool(found)

    def skip_next_recall(self, session_id: str) -> bool:
        for recall in self.recalls.values():
            if (recall.session_id, recall.status, recall.call_type) == (session_id, "pending", "recurring"):
                if recall.run_id is not None:
                    return False
                following = recall.next_after(recall.trigger_at)
                if following is None:
                    self.update(recall.id, "cancelled")
                else:
                    self._record(recall, "skipped", recall.trigger_at)
                    self._new_occurrence(recall, following)
                return True
        return False

    def reschedule(self, recall_id: str, trigger_at: datetime) -> None:
        if self._known(recall_id).status in ENDED:
            raise Refused("PR004")
        self.update(recall_id, trigger_at=trigger_at)

    def mark_cancelled(self, recall_id: str) -> None:
        if self._known(recall_id).status in ("fired", "failed"):
            raise Refused("PR004")
        self.update(recall_id, "cancelled")

    def mark_fired(self, recall_id: str) -> None:
        recall = self._known(recall_id)
        if recall.status in ("failed", "cancelled"):
            raise Refused("PR004")
        following = None if recall.status == "fired" else recall.next_after(max(recall.trigger_at, self.now))
        if following is None:
            self.update(recall_id, "fired")
            return
        if recall.run_id is None or recall.trigger_at != recall.nominal_at:
            self._record(recall, "success", recall.trigger_at)
        self._record_missed(recall, recall.trigger_at, following)
        if recall.run_id is None:
            self._new_occurrence(recall, following)
        recall.move(following)
        recall.status, recall.last_error = "pending", None

    # What operators do

    def run_now(self, recall_id: str) -> None:
        recall = self._known(recall_id)
        if recall.status in ENDED:
            raise Refused("PR004")
        if recall.run_id is not None:
            return
        if recall.paused or self.sessions[recall.session_id].is_paused:
            raise Refused("PR004")
        if recall.due_at is None or recall.due_at <= self.now:
            return
        if recall.trigger_at > self.now:
            own_time = recall.trigger_at if recall.call_type == "recurring" and recall.cron is None else None
            self.update(recall_id, trigger_at=self.now)
            recall.grid_at = own_time
        else:
            recall.not_before = recall.trigger_at if recall.status == "running" else None

    def retry_recall(self, recall_id: str) -> None:
        recall = self._known(recall_id)
        if recall.status == "fired":
            raise Refused("PR004")
        if recall.status in ENDED and self._another_pending(recall):
            raise Refused("PR001")
        if recall.status in ENDED:
            self.update(recall_id, "pending")

    def stop_run(self, recall_id: str, after_stop: str) -> None:
        recall = self._known(recall_id)
        if recall.run_id is not None and recall.status == "running":
            recall.after_stop = after_stop

    def pause_session(self, session_id: str) -> None:
        if session_id not in self.sessions:
            raise Refused("PR002")
        self.sessions[session_id].is_paused = True

    def resume_session(self, session_id: str) -> bool:
        if session_id not in self.sessions:
            raise Refused("PR002")
        was_paused = self.sessions[session_id].is_paused
        self.sessions[session_id].is_paused = False
        for recall in self.recalls.values():
            recall.paused = recall.paused and recall.session_id != session_id
        return was_paused

    # What workers do

    def expire_leases(self) -> None:
        """What the first claim() after the end of a lease does."""
        if not any(lease is not None and lease <= self.now for lease in self.leases.values()):
            return
        for worker, lease in self.leases.items():
            held = self._runs_of(worker)
            for recall in held:
                if lease is not None and lease <= self.now:
                    self._end_lost_run(recall, beside_others=len(held) > 1)
            if not self._runs_of(worker):
                self.leases[worker] = None

    def claim(self, worker: str, up_to: int, lease: timedelta, claimed: list[Row], deferred: list[Row]) -> None:
        """Takes what the database took; equal times may be taken in any order, everything else is checked."""
        self._pause_due(up_to)
        apart = any(self._is_suspect(one) for one in self._runs_of(worker))
        due = {
            one.id: one.due_at
            for one in self.recalls.values()
            if one.due_at is not None and one.due_at <= self.now and not (apart and self._is_suspect(one))
        }
        answered = {one["recall_id"] for one in claimed + deferred}
        assert len(answered) == len(claimed + deferred)
        assert answered <= set(due)
        looked = list(due)
        if len(due) > up_to:
            looked = list(answered)
            if not any(self._is_suspect(self.recalls[name]) for name in due):
                assert len(looked) == up_to
                left_out = [at for name, at in due.items() if name not in answered]
                assert not looked or max(due[name] for name in looked) <= min(left_out)
        suspects = 0
        firsts: dict[str, str] = {}
        chosen, waiting = set(), set()
        for name in sorted(looked, key=lambda name: (due[name], name)):
            recall = self.recalls[name]
            suspects += self._is_suspect(recall)
            first = firsts.setdefault(recall.session_id, name)
            if self.sessions[recall.session_id].is_taken(self.now) or first in chosen:
                waiting.add(name)
            elif first == name and not (self._is_suspect(recall) and suspects > 1):
                chosen.add(name)
        assert {one["recall_id"] for one in claimed} == chosen
        assert {one["recall_id"] for one in deferred} == waiting
        for one in claimed:
            recall = self.recalls[one["recall_id"]]
            recall.status, recall.run_id, recall.worker_id = "running", one["run_id"], worker
            recall.nominal_at, recall.attempt = recall.trigger_at, recall.attempt + 1
            recall.not_before = None
            session = self.sessions[recall.session_id]
            session.run_id, session.held_until = recall.run_id, None
            self.messages.add((recall.session_id, "system", _message_id(recall)))
        for one in deferred:
            recall = self.recalls[one["recall_id"]]
            session = self.sessions[recall.session_id]
            recall.not_before, recall.deferred = min(self.now + MINUTE, session.held_until or FAR), True
            recall.deferrals += 1
            session.has_waiting = True
        if claimed:
            old = self.leases[worker]
            if old is None or old <= self.now + lease * 0.66:
                self.leases[worker] = self.now + lease

    def _pause_due(self, up_to: int) -> None:
        for recall in self.recalls.values():
            if up_to > 0 and recall.due_at is not None and recall.due_at <= self.now:
                recall.paused = self.sessions[recall.session_id].is_paused

    def next_look(self, worker: str) -> datetime | None:
        """The earliest due time, or end of another worker's lease."""
        times = [one.due_at for one in self.recalls.values()]
        times += [lease for name, lease in self.leases.items() if name != worker]
        return min((at for at in times if at is not None), default=None)

    def renew(self, worker: str, lease: timedelta) -> set[int]:
        if self.leases[worker] is not None:
            self.leases[worker] = self.now + lease
        mine = self._runs_of(worker)
        return {one.run_id for one in mine if one.run_id and one.status == "running" and one.after_stop is None}

    def finish(
        self, run: Run, outcome: str, *, retry: bool, counted: bool, retry_after: timedelta | None, error: str | None
    ) -> bool:
        """Ends a run; False: the claim is no longer the caller's, and nothing changes."""
        recall = self.recalls.get(run.recall_id)
        if recall is None or recall.run_id != run.id:
            recorded = next((entry for entry in self.ledger if entry.run_id == run.id), None)
            if recorded is not None:
                self._free_session(recorded.session_id, run.id)
            return recorded is not None and recorded.outcome != "lost"
        self._record(recall, outcome, recall.nominal_at, ran=True)
        stopped = recall.status == "running" and recall.after_stop is not None
        stopped = stopped and outcome in ("interrupted", "error", "timeout")
        if stopped:
            error, counted, retry_after = error or STOPPED, False, None
            retry = recall.after_stop == "retry"
        may_retry = outcome not in GOOD and retry and (not counted or recall.attempt < recall.max_attempts)
        if outcome == "skipped":
            recall.status, recall.last_error = "cancelled", error
            self._without_run(recall)
        elif recall.status == "running" and may_retry and recall.trigger_at == recall.nominal_at:
            backoff = min(5 * SECOND * 2 ** (recall.attempt - 1), 10 * MINUTE) if counted else None
            delay = backoff if retry_after is None else retry_after
            recall.last_error = error
            self._give_back(recall, recall.attempt - (not counted), None if delay is None else self.now + delay)
        else:
            status = "fired" if outcome in GOOD else "cancelled" if stopped else "failed"
            self._end_occurrence(recall, status, None if outcome in GOOD else error)
        self._free_session(recall.session_id, run.id)
        return True

    # What both lead to

    def _known(self, recall_id: str) -> Recall:
        if recall_id not in self.recalls:
            raise Refused("PR003")
        return self.recalls[recall_id]

    def _another_pending(self, recall: Recall) -> bool:
        return any(
            one.id != recall.id and one.session_id == recall.session_id and one.counts_as_pending
            for one in self.recalls.values()
        )

    def _new_occurrence(self, recall: Recall, trigger_at: datetime) -> None:
        """By an UPDATE, not by finish()."""
        recall.new_occurrence(trigger_at)

    def _runs_of(self, worker: str) -> list[Recall]:
        return [one for one in self.recalls.values() if one.run_id is not None and one.worker_id == worker]

    def _record(self, recall: Recall, outcome: str, nominal_at: datetime | None, *, ran: bool = False) -> None:
        assert nominal_at is not None
        attempt, run_id = (recall.attempt, recall.run_id or 0) if ran else (0, 0)
        self.ledger.append(Entry(recall.id, nominal_at, outcome, attempt, run_id, recall.session_id))

    def _record_missed(self, recall: Recall, after: datetime, before: datetime) -> None:
        at = recall.next_after(after)
        while at is not None and at < before:
            self._record(recall, "missed", at)
            at = recall.next_after(at)

    def _without_run(self, recall: Recall) -> None:
        recall.run_id, recall.worker_id, recall.not_before, recall.deferred = None, None, None, False
        recall.after_stop = None

    def _give_back(self, recall: Recall, attempt: int, not_before: datetime | None) -> None:
        self._without_run(recall)
        recall.attempt, recall.not_before = attempt, not_before
        if recall.status == "running" and not self._another_pending(recall):
            recall.status = "pending"
        elif recall.status == "running":
            recall.not_before = not_before or self.now

    def _end_occurrence(self, recall: Recall, status: str, error: str | None) -> None:
        assert recall.nominal_at is not None
        if recall.status == "running":
            recall.last_error = error
        if recall.status == "running" and recall.trigger_at != recall.nominal_at:
            recall.new_occurrence(recall.trigger_at)
            self._give_back(recall, 0, None)
            return
        following = recall.next_after(max(recall.nominal_at, self.now)) if recall.status == "running" else None
        if following is not None:
            self._record_missed(recall, recall.nominal_at, following)
            recall.status = "pending"
            recall.new_occurrence(following)
        elif recall.status == "running":
            until = min(recall.end_at or self.now, self.now) + timedelta(microseconds=1)
            self._record_missed(recall, recall.nominal_at, until)
            recall.status = status
        elif recall.status == "pending":
            recall.new_occurrence(recall.trigger_at)
        self._without_run(recall)

    def _is_suspect(self, recall: Recall) -> bool:
        """Lost at its last attempt beside others: it has one more, apart from other suspects."""
        return recall.attempt >= recall.max_attempts - 1 >= 1 and any(
            (entry.recall_id, entry.nominal_at, entry.outcome) == (recall.id, recall.trigger_at, "lost")
            and entry.attempt >= recall.max_attempts
            for entry in self.ledger
        )

    def _end_lost_run(self, recall: Recall, *, beside_others: bool) -> None:
        run_id = recall.run_id
        assert run_id is not None
        was_suspect = self._is_suspect(recall)
        self._record(recall, "lost", recall.nominal_at, ran=True)
        is_over = recall.status != "running" or recall.trigger_at != recall.nominal_at
        text = f"worker {recall.worker_id} was lost during attempt {recall.attempt}"
        if is_over:
            self._end_occurrence(recall, "failed", text)
        elif recall.after_stop == "retry":
            self._give_back(recall, recall.attempt - 1, None)
        elif recall.after_stop == "skip":
            self._end_occurrence(recall, "cancelled", STOPPED)
        elif recall.attempt < recall.max_attempts:
            self._give_back(recall, recall.attempt, None)
        elif beside_others and not was_suspect and recall.max_attempts > 1:
            self._give_back(recall, recall.attempt - 1, None)
        else:
            self._end_occurrence(recall, "failed", text)
        self._free_session(recall.session_id, run_id)

    def _free_session(self, session_id: str, run_id: int) -> None:
        session = self.sessions.get(session_id)
        if session is None or session.run_id != run_id:
            return
        self.sessions[session_id] = Session(is_paused=session.is_paused)
        for recall in self.recalls.values() if session.has_waiting else ():
            is_put_off = recall.deferred and recall.not_before is not None and recall.not_before > self.now
            if recall.session_id == session_id and is_put_off and recall.due_at is not None:
                recall.not_before = recall.trigger_at if recall.status == "running" else None


def _message_id(recall: Recall) -> str:
    assert recall.nominal_at is not None
    return f"recall:{recall.id}:{recall.nominal_at:%Y-%m-%dT%H:%M:%S.%fZ}"


# What must hold whatever was done, told by the tables alone: each query names the rows that break it.
BROKEN: dict[str, LiteralString] = {
    "one pending recall per session": """select session_id from pgrecall.session_recalls
        where status = 'pending' group by 1 having count(*) > 1""",
    "a run has its session": """select r.id from pgrecall.session_recalls as r
        join pgrecall.sessions as s on s.id = r.session_id
        where r.run_id is not null and s.run_id is distinct from r.run_id""",
    "a session is held by a run, or for a time": """select s.id from pgrecall.sessions as s
        where s.run_id is not null and s.held_until is null
            and not exists (select from pgrecall.session_recalls as r where r.run_id = s.run_id)""",
    "a run under way has not ended": """select r.id from pgrecall.session_recalls as r
        join pgrecall.recall_runs as run on run.id = r.run_id""",
    "nothing ends without a row": """select r.id from pgrecall.session_recalls as r
        where r.status in ('fired', 'failed', 'cancelled') and r.run_id is null
            and not exists (select from pgrecall.recall_runs as run where run.recall_id = r.id)""",
    "every occurrence that ran has its message once": """select run.id from pgrecall.recall_runs as run
        where run.attempt > 0 and (select count(*) from pgrecall.session_messages as m
            where m.session_id = run.session_id
                and m.id = pgrecall.occurrence_message_id(run.recall_id, run.nominal_at)) <> 1""",
    "what was put off tells how often and since when": """select r.id from pgrecall.session_recalls as r
        where r.status in ('pending', 'running') and (r.deferrals > 0) <> (r.deferred_since is not null)""",
}
#: All of them in one round trip, since they are asked after every step.
BREACHES = sql.SQL(" union all ").join(
    sql.SQL("select {}, found.id::text from ({}) as found (id)").format(sql.Literal(name), sql.SQL(query))
    for name, query in BROKEN.items()
)


moments = st.sampled_from([-600, -60, 0, 0, 5, 60, 3600]).map(lambda seconds: seconds * SECOND)
sessions = st.sampled_from([*SESSIONS, "s1", "s1"])
picks = st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 99])
leases = st.sampled_from([30 * SECOND, MINUTE])


class Api(RuleBasedStateMachine):
    """Does the same to the database and to the model."""

    connect: Callable[[], psycopg.Connection]

    def __init__(self) -> None:
        super().__init__()
        self.db = self.connect()
        self.db.execute("set constraints all immediate")
        self.model = Model()
        self.count = 0
        # Of all times. No Bundle: which of two recalls due at once was taken must not steer what is drawn next.
        self.runs: list[Run] = []
        self._tick()

    def teardown(self) -> None:
        self.db.rollback()

    def _tick(self) -> None:
        self.db.execute("select set_config('test.now', %s, true)", [self.model.now.isoformat()])

    def _both(self, expected: Callable[[], Any], done: Callable[[], Any]) -> tuple[Any, Any]:
        """Does it in the model and in the database; both answer, or both refuse with the same SQLSTATE."""
        try:
            answer = expected()
        except Refused as error:
            with refused(self.db, str(error)):
                done()
            return None, None
        return answer, done()

    def _call(self, function: str, *arguments: object) -> Any:
        """A function of one value."""
        marks = ", ".join(["%s"] * len(arguments))
        found = self.db.execute(f"select * from pgrecall.{function}({marks})".encode(), arguments).fetchone()
        return None if found is None else found[0]

    def _some(self, pick: int, *, in_a_run: bool | None = None) -> str:
        """One of the recalls there are (the newest is number 0), or one that there is not."""
        found = [one.id for one in self.model.recalls.values() if in_a_run in (None, one.run_id is not None)]
        return found[-1 - pick] if pick < len(found) else "none"

    def _some_run(self, pick: int) -> Run:
        """One that a worker was given, whatever became of it (the latest is number 0), or one that never was."""
        return self.runs[-1 - pick] if pick < len(self.runs) else Run(-1, "none")

    # Callers

    @initialize(schedules=st.lists(st.sampled_from([None, 60, "@hourly"]), min_size=1, max_size=3))
    def begin(self, schedules: list[int | str | None]) -> None:
        for name in SESSIONS[:2]:
            self._create_session(name)
        for session_id, schedule in zip(["s1", "s2", "s1"], schedules, strict=False):
            self._add(session_id, schedule=schedule)

    def _create_session(self, name: str) -> None:
        self.model.sessions[name] = Session()
        self.db.execute("insert into pgrecall.sessions (id) values (%s)", [name])

    @rule(name=st.sampled_from(SESSIONS), dice=st.integers(0, 4))
    def create_or_delete_session(self, name: str, dice: int) -> None:
        if name not in self.model.sessions:
            self._create_session(name)
        elif dice == 4:
            self.model.delete_session(name)
            self.db.execute("delete from pgrecall.sessions where id = %s", [name])

    def _add(
        self,
        session_id: str,
        *,
        after: timedelta = timedelta(0),
        schedule: int | str | None = None,
        call_type: str | None = None,
        last: int | None = None,
        max_attempts: int = 2,
        key: str | None = None,
        function: bool = True,
        again: str | None = None,
    ) -> None:
        self.count += 1
        name = again or f"r{self.count}"
        trigger_at = self.model.now + after
        given: Row = {"id": name, "session_id": session_id, "trigger_at": trigger_at, "max_attempts": max_attempts}
        given |= {"idempotency_key": key} if key else {}
        if isinstance(schedule, int):
            given |= {"interval_seconds": schedule, "call_type": "recurring"}
        elif schedule is not None:
            given |= {"cron": schedule, "call_type": "recurring"}
        elif call_type is not None:
            given |= {"call_type": call_type}
        if last is not None:
            given["end_at"] = trigger_at + last * (CRONS.get(str(schedule)) or 90 * SECOND)
        recall = Recall(**given)
        if "cron" in given:
            given["time_zone"] = "UTC"
        given["additional_context_message"] = "go on"
        if function:
            for one in self.model.recalls.values():
                if key and (one.session_id, one.idempotency_key) == (session_id, key):
                    found = call_one(self.db, "schedule_recall", **given)
                    assert (found["id"], found["trigger_at"]) == (one.id, one.trigger_at)
                    return
            if schedule is not None:
                del given["call_type"]
            self._both(
                lambda: self.model.insert(recall, exists="PR005", taken="PR001", missing="PR002"),
                lambda: call_one(self.db, "schedule_recall", **given),
            )
        else:
            given.pop("idempotency_key", None)
            recall.idempotency_key = None
            columns, marks = ", ".join(given), ", ".join(f"%({column})s" for column in given)
            statement = f"insert into pgrecall.session_recalls ({columns}) values ({marks})".encode()
            self._both(
                lambda: self.model.insert(recall, exists="23505", taken="23505", missing="23503"),
                lambda: self.db.execute(statement, given),
            )

    @rule(
        session_id=sessions,
        after=moments,
        schedule=st.sampled_from([None, None, 60, 90, *CRONS]),
        call_type=st.sampled_from([None, "immediate"]),
        last=st.sampled_from([None, None, -1, 1, 2]),
        max_attempts=st.integers(1, 3),
        key=st.sampled_from([None, None, "k1", "k2"]),
        function=st.booleans(),
        again=st.sampled_from([None, None, None, "r1"]),
    )
    def add(self, session_id: str, **given: Any) -> None:
        self._add(session_id, **given)

    @rule(
        session_id=sessions,
        schedule=st.sampled_from([None, None, 60, "@hourly"]),
        last=st.sampled_from([None, 1]),
        max_attempts=st.integers(1, 3),
    )
    def add_one_that_is_due(self, session_id: str, **given: Any) -> None:
        self._add(session_id, function=False, **given)

    @rule(
        pick=picks,
        in_a_run=st.sampled_from([None, False, True]),
        status=st.sampled_from([None, "pending", "pending", "running", *ENDED]),
        after=st.none() | moments,
    )
    def update(self, pick: int, in_a_run: bool | None, status: str | None, after: timedelta | None) -> None:
        recall_id = self._some(pick, in_a_run=in_a_run)
        if recall_id not in self.model.recalls or (status is None and after is None):
            return
        trigger_at = None if after is None else self.model.now + after
        columns: Row = {"status": status} if status else {}
        columns |= {"trigger_at": trigger_at} if trigger_at else {}
        self._both(
            lambda: self.model.update(recall_id, status, trigger_at), lambda: change(self.db, recall_id, **columns)
        )

    @rule(pick=picks, status=st.sampled_from(["pending", "running", *ENDED]))
    def set_status(self, pick: int, status: str) -> None:
        self.update(pick, None, status, None)

    @rule(pick=picks, in_a_run=st.sampled_from([None, True]))
    def delete(self, pick: int, in_a_run: bool | None) -> None:
        recall_id = self._some(pick, in_a_run=in_a_run)
        if recall_id in self.model.recalls:
            self.model.delete(recall_id)
            self.db.execute("delete from pgrecall.session_recalls where id = %s", [recall_id])

    @rule(session_id=sessions)
    def cancel_recall(self, session_id: str) -> None:
        assert self.model.cancel_recall(session_id) == self._call("cancel_recall", session_id)

    @rule(session_id=sessions)
    def skip_next_recall(self, session_id: str) -> None:
        assert self.model.skip_next_recall(session_id) == self._call("skip_next_recall", session_id)

    @rule(pick=picks, after=moments)
    def reschedule(self, pick: int, after: timedelta) -> None:
        recall_id = self._some(pick)
        at = self.model.now + after
        self._both(
            lambda: self.model.reschedule(recall_id, at),
            lambda: call_one(self.db, "reschedule", recall_id=recall_id, new_trigger_at=at),
        )

    @rule(pick=picks, function=st.sampled_from(["mark_fired", "mark_cancelled"]))
    def mark(self, pick: int, function: str) -> None:
        recall_id = self._some(pick)
        self._both(
            lambda: getattr(self.model, function)(recall_id),
            lambda: call_one(self.db, function, recall_id=recall_id),
        )

    # Operators

    @rule(pick=picks, function=st.sampled_from(["run_now", "retry_recall"]))
    def steer(self, pick: int, function: str) -> None:
        recall_id = self._some(pick)
        self._both(
            lambda: getattr(self.model, function)(recall_id),
            lambda: call_one(self.db, function, recall_id=recall_id),
        )

    @rule(pick=picks, in_a_run=st.sampled_from([None, True]), after_stop=st.sampled_from(["skip", "retry"]))
    def stop_run(self, pick: int, in_a_run: bool | None, after_stop: str) -> None:
        recall_id = self._some(pick, in_a_run=in_a_run)
        self._both(
            lambda: self.model.stop_run(recall_id, after_stop),
            lambda: call_one(self.db, "stop_run", recall_id=recall_id, after_stop=after_stop),
        )

    @rule(session_id=sessions, dice=st.integers(0, 2))
    def pause_or_resume_session(self, session_id: str, dice: int) -> None:
        if dice == 0:
            self._both(
                lambda: self.model.pause_session(session_id),
                lambda: call_one(self.db, "pause_session", session_id=session_id),
            )
        else:
            expected, found = self._both(
                lambda: self.model.resume_session(session_id),
                lambda: call(self.db, "resume_session", session_id=session_id),
            )
            assert bool(expected) == bool(found)

    # Workers and time

    @rule(by=st.sampled_from([1, 5, 5, 30, 31, 60, 600, 3600]))
    def time_passes(self, by: int) -> None:
        """Long enough, this is also the death of a worker."""
        self.model.now += by * SECOND
        self._tick()

    def _claim(self, worker: str, up_to: int, lease: timedelta) -> None:
        self.model.expire_leases()
        found = claim(self.db, worker, up_to, lease)
        self.model.claim(worker, up_to, lease, found.runs, found.deferred)
        suspects = any(self.model._is_suspect(one) for one in self.model.recalls.values())
        if (len(found.runs) + len(found.deferred) < up_to or up_to == 0) and not suspects:
            assert found.settled
            assert found.next_due_at == self.model.next_look(worker)
        self.runs += [Run(one["run_id"], one["recall_id"]) for one in found.runs]

    @rule(worker=st.sampled_from(WORKERS), lease=leases)
    def claim_one(self, worker: str, lease: timedelta) -> None:
        self._claim(worker, 1, lease)

    @rule(worker=st.sampled_from(WORKERS), up_to=st.sampled_from([0, 2, 9]), lease=leases)
    def claim_several(self, worker: str, up_to: int, lease: timedelta) -> None:
        self._claim(worker, up_to, lease)

    @rule(worker=st.sampled_from(WORKERS), up_to=st.integers(1, 3), lease=leases)
    def the_alarm_of_a_worker_rings(self, worker: str, up_to: int, lease: timedelta) -> None:
        """Exactly when it has been told to look."""
        self.model.now = max(self.model.now, self.model.next_look(worker) or self.model.now)
        self._tick()
        self._claim(worker, up_to, lease)

    @rule(worker=st.sampled_from(WORKERS), up_to=st.integers(0, 2), lease=leases)
    def the_other_worker_has_died(self, worker: str, up_to: int, lease: timedelta) -> None:
        """The end of its lease, to the microsecond."""
        ends = [at for name, at in self.model.leases.items() if name != worker and at is not None]
        self.model.now = max(self.model.now, *ends, self.model.now)
        self._tick()
        self._claim(worker, up_to, lease)

    @rule(worker=st.sampled_from(WORKERS), lease=leases)
    def renew(self, worker: str, lease: timedelta) -> None:
        runs = {one["renew"] for one in call(self.db, "renew", worker_id=worker, lease=lease)}
        assert self.model.renew(worker, lease) == runs

    @rule(worker=st.sampled_from(WORKERS), pick=picks)
    def release(self, worker: str, pick: int) -> None:
        run = self._some_run(pick)
        mine = any(one.run_id == run.id for one in self.model._runs_of(worker))
        if mine:
            text = "its worker never heard of the claim"
            self.model.finish(run, "interrupted", retry=True, counted=False, retry_after=None, error=text)
        assert self._call("release", worker, [run.id]) == int(mine)

    outcomes = st.sampled_from(["success", "silent", "error", "error", "timeout", "interrupted", "skipped"])
    options = st.fixed_dictionaries(
        {
            "retry": st.sampled_from([True, True, False]),
            "counted": st.sampled_from([True, True, False]),
            "retry_after": st.sampled_from([None, None, 0 * SECOND, 30 * SECOND]),
            "error": st.sampled_from([None, "it broke"]),
        }
    )

    def _finish(self, run: Run, outcome: str, **options: Any) -> None:
        accepted = self.model.finish(run, outcome, **options)
        if outcome == "skipped":
            options["reason"] = options.pop("error")
        found = finish(self.db, {"recall_id": run.recall_id, "run_id": run.id}, outcome, **options)
        assert accepted == found["accepted"]

    @rule(pick=picks, outcome=outcomes, options=options)
    def finish_a_run(self, pick: int, outcome: str, options: Row) -> None:
        """Any run that there ever was: most are stale."""
        self._finish(self._some_run(pick), outcome, **options)

    @rule(pick=picks, outcome=outcomes, options=options)
    def finish_a_live_run(self, pick: int, outcome: str, options: Row) -> None:
        recall = self.model.recalls.get(self._some(pick, in_a_run=True))
        if recall is not None and recall.run_id is not None:
            self._finish(Run(recall.run_id, recall.id), outcome, **options)

    @rule(pick=picks, after=moments)
    def an_agent_schedules_its_next_recall(self, pick: int, after: timedelta) -> None:
        recall = self.model.recalls.get(self._some(pick, in_a_run=True))
        if recall is not None:
            self._add(recall.session_id, after=after)

    # After every step

    @invariant()
    def the_tables_are_as_the_model_says(self) -> None:
        model = self.model
        shown = rows(
            self.db,
            """select id, session_id, trigger_at, call_type, status, run_id, worker_id, nominal_at, attempt, not_before,
                deferrals, defer_reason is not null as deferred, last_error, due_at, grid_at, after_stop,
                paused_at is not null as paused
            from pgrecall.session_recalls""",
        )
        expected = [{name: getattr(one, name) for name in shown[0]} for one in model.recalls.values()] if shown else []
        assert sorted(shown, key=lambda one: one["id"]) == sorted(expected, key=lambda one: one["id"])
        assert len(shown) == len(model.recalls)
        sessions = {
            one.pop("id"): Session(**one)
            for one in rows(
                self.db,
                """select s.id, s.run_id, s.held_until, s.has_waiting, p.id is not null as is_paused
                from pgrecall.sessions as s left join pgrecall.pauses as p on p.session_id = s.id""",
            )
        }
        assert sessions == model.sessions
        recorded = rows(
            self.db,
            """select recall_id, nominal_at, outcome, attempt, case when attempt > 0 then id else 0 end as run_id,
                session_id
            from pgrecall.recall_runs""",
        )
        assert sorted(Entry(**one) for one in recorded) == sorted(model.ledger)
        messages = self.db.execute("select session_id, role, id from pgrecall.session_messages").fetchall()
        assert sorted(messages) == sorted(model.messages)

    @invariant()
    def the_functions_that_look_agree(self) -> None:
        pending = [one for one in self.model.recalls.values() if one.status == "pending"]
        due = [one.due_at for one in pending if one.due_at is not None]
        found = row(
            self.db,
            """select pgrecall.get_next_trigger_at() as next_at,
                array(select pgrecall.get_pending_session_ids(%s)) as sessions,
                array(select id from pgrecall.get_pending_recalls(%s)) as due""",
            SESSIONS,
            self.model.now,
        )
        assert found["next_at"] == min(due, default=None)
        assert sorted(found["sessions"]) == sorted(one.session_id for one in pending)
        assert set(found["due"]) == {one.id for one in pending if one.due_at and one.due_at <= self.model.now}

    @invariant()
    def the_tables_agree_with_each_other(self) -> None:
        assert self.db.execute(BREACHES).fetchall() == []


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    """A connection to a database whose clock shows the setting test.now."""
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(
            """create or replace function pgrecall.clock() returns timestamptz language sql volatile parallel safe
            set search_path = '' as $$ select pg_catalog.current_setting('test.now')::timestamptz $$"""
        )
        admin.execute(
            """create or replace function pgrecall._caller() returns text language sql stable
            as $$ select 'the operator' $$"""
        )
    connected = psycopg.connect(database)
    try:
        yield connected
    finally:
        connected.close()


@pytest.mark.timeout(0 if LONG else 300)
def test_any_history_ends_as_the_documentation_says(connection: psycopg.Connection) -> None:
    # A transaction for each history, rolled back: the deferred triggers are immediate in it, and there is no other.
    machine = type("Machine", (Api,), {"connect": lambda self: connection})
    run_state_machine_as_test(machine, settings=SETTINGS)
    assert value(connection, "select count(*) from pgrecall.session_recalls") == 0


# What the state machine found


@pytest.fixture
def db(db: psycopg.Connection) -> psycopg.Connection:
    """A connection in a transaction, at NOW."""
    set_clock(db, NOW)
    return db


def test_a_recall_moved_while_it_ran_begins_at_its_first_attempt_also_if_the_run_is_lost(
    db: psycopg.Connection,
) -> None:
    name = add(db, "s1")
    claim(db, "w1", lease=SECOND)
    change(db, name, trigger_at=NOW + 5 * SECOND)
    set_clock(db, NOW + MINUTE)
    claim(db, "w2", up_to=0)
    assert recall_row(db, name)["attempt"] == 0


def test_a_recall_set_back_while_it_ran_begins_at_its_first_attempt_also_if_the_run_is_lost(
    db: psycopg.Connection,
) -> None:
    name = add(db, "s1")
    claim(db, "w1", lease=SECOND)
    change(db, name, status="pending")
    set_clock(db, NOW + MINUTE)
    claim(db, "w2", up_to=0)
    assert recall_row(db, name)["attempt"] == 0


def test_a_recall_that_was_moved_has_not_been_deferred(db: psycopg.Connection) -> None:
    add(db, "s1")
    claim(db, up_to=1)
    name = add(db, "s1")
    claim(db, up_to=1)
    change(db, name, trigger_at=NOW + MINUTE)
    assert recall_row(db, name)["deferrals"] == 0


def test_a_recall_that_another_service_takes_is_left_alone_also_if_it_had_ended(db: psycopg.Connection) -> None:
    name = add(db, "s1")
    finish(db, claim_one(db), "error", retry=True)
    change(db, name, status="cancelled")
    change(db, name, status="running")
    assert recall_row(db, name)["due_at"] is None
