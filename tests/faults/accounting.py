"""The verdict, from the database alone: what was asked for, what the ledger says, and what the agents wrote down.

`prepare` makes tables of its own in a schema `faults`; `load` copies into them what was gathered outside of the
database (evidence, what was done to processes, when there was which fault); `judge` asks queries and nothing else. So
the database of a run can be kept, and looked at with psql.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row

from faults.processes import WorkerProcess

_TABLES = """
create schema faults;
create table faults.asked (
    recall_id text primary key, session_id text not null, producer integer, isolation text,
    trigger_at timestamptz not null, interval_seconds integer, occurrences integer not null default 1
);
comment on table faults.asked is 'Written by the transaction that asked for the recall: what is here was committed.';
create table faults.rolled_back (recall_id text primary key);
create table faults.evidence (
    kind text, at_ns bigint, process text, run_id bigint, attempt integer, recall_id text, session_id text,
    nominal_at timestamptz
);
comment on table faults.evidence is 'What the agents wrote down; nanoseconds are of the machine''s monotonic clock.';
create table faults.processes (
    process text primary key, started_ns bigint, was_ready boolean, died_ns bigint, killed_ns bigint,
    told_to_end boolean, exit_code integer, killed_at timestamptz
);
create table faults.pauses (process text, cause text, stopped_ns bigint, continued_ns bigint);
comment on table faults.pauses is 'When a process did not execute: SIGSTOP; starved by the machine, or held by a thread
of its own, as it noticed itself.';
create table faults.events (
    kind text, target text, begun_at timestamptz, ended_at timestamptz, begun_ns bigint, ended_ns bigint
);
comment on table faults.events is 'Each fault, from its beginning until all was well again.';
"""

_RUNS = """
drop table if exists faults.runs;
create table faults.runs as
select
    line.run_id, line.process, line.recall_id, line.session_id, line.nominal_at, line.attempt,
    min(line.at_ns) filter (where line.kind = 'start') as started_ns,
    max(line.at_ns) filter (where line.kind = 'end') as ended_ns,
    max(line.at_ns) as last_ns,
    -- A run without an end ended with its process; one that was killed while it was stopped, when it was stopped.
    coalesce(
        max(line.at_ns) filter (where line.kind = 'end'),
        (select min(pause.stopped_ns) from faults.pauses as pause
         where pause.process = line.process and pause.continued_ns is null),
        (select process.died_ns from faults.processes as process where process.process = line.process),
        9223372036854775807
    ) as until_ns
from faults.evidence as line
group by line.run_id, line.process, line.recall_id, line.session_id, line.nominal_at, line.attempt;
create index on faults.runs (session_id, started_ns);
create index on faults.runs (recall_id, nominal_at);
create index on faults.runs (process);
drop table if exists faults.overlaps;
create table faults.overlaps as
select
    old.run_id as old_run_id, new.run_id as new_run_id, old.session_id, old.process as old_process,
    new.process as new_process, (old.until_ns - new.started_ns) / 1e6 as milliseconds,
    -- A process that does not execute cannot stop its runs. What counts is what it does when it executes again.
    (
        select (old.last_ns - pause.continued_ns) / 1e6
        from faults.pauses as pause
        where pause.process = old.process
            and pause.cause <> 'held'
            and pause.stopped_ns <= new.started_ns
            and pause.continued_ns - pause.stopped_ns >= %(shortest_pause)s * 1e9
            and old.last_ns >= pause.continued_ns
            and pause.continued_ns + %(tolerance)s * 1e9 >= new.started_ns
        order by pause.stopped_ns desc
        limit 1
    ) as milliseconds_after_pause
from faults.runs as old
join faults.runs as new
    on new.session_id = old.session_id
    and new.run_id <> old.run_id
    and new.started_ns >= old.started_ns
    and new.started_ns < old.until_ns;
drop table if exists faults.stalls;
create table faults.stalls as
select stall.*
from faults.pauses as stall
where stall.cause <> 'SIGSTOP'
    and not exists (
        select from faults.pauses as told
        where told.process = stall.process
            and told.cause = 'SIGSTOP'
            and told.stopped_ns < stall.continued_ns
            and coalesce(told.continued_ns, stall.continued_ns) > stall.stopped_ns
    );
drop table if exists faults.occurrences;
create table faults.occurrences as
select
    asked.recall_id, asked.session_id, asked.trigger_at + n * make_interval(secs => coalesce(asked.interval_seconds, 0))
        as nominal_at
from faults.asked as asked
cross join generate_series(0, asked.occurrences - 1) as n;
create unique index on faults.occurrences (recall_id, nominal_at);
analyze faults.evidence, faults.runs, faults.occurrences, pgrecall.recall_runs, pgrecall.session_messages;
"""

#: What must not be: each query returns one line of text for each case.
_MUST_NOT_BE: dict[str, str] = {
    "a committed recall that has not ended": """
        select format('%s: %s, run_id %s, due_at %s, attempt %s, last error %s', asked.recall_id,
            coalesce(recall.status, 'gone'), recall.run_id, recall.due_at, recall.attempt, recall.last_error)
        from faults.asked as asked
        left join pgrecall.session_recalls as recall on recall.id = asked.recall_id
        where recall.status is distinct from 'fired' or recall.run_id is not null or recall.due_at is not null
    """,
    "an occurrence that did not end exactly once": """
        select format('%s of %s: %s', wanted.recall_id, wanted.nominal_at,
            coalesce(string_agg(run.outcome, ', ' order by run.id), 'no row'))
        from faults.occurrences as wanted
        left join pgrecall.recall_runs as run
            on run.recall_id = wanted.recall_id and run.nominal_at = wanted.nominal_at
        group by wanted.recall_id, wanted.nominal_at
        having count(*) filter (where run.outcome in ('success', 'silent', 'missed')) <> 1
    """,
    "a row in the ledger that nobody asked for": """
        select format('run %s of %s, %s: %s', run.id, run.recall_id, run.nominal_at, run.outcome)
        from pgrecall.recall_runs as run
        where not exists (
            select from faults.occurrences as wanted
            where wanted.recall_id = run.recall_id and wanted.nominal_at = run.nominal_at
        )
    """,
    "a run that ended in a way for which there was no reason": """
        select format('run %s of %s: %s, %s, %s', run.id, run.recall_id, run.outcome, run.reason, run.error)
        from pgrecall.recall_runs as run
        where run.outcome not in ('success', 'lost', 'interrupted', 'missed')
    """,
    "a recall that was rolled back and yet is there or ran": """
        select format('%s: a row in %s', gone.recall_id, found.place)
        from faults.rolled_back as gone
        join (
            select id, 'session_recalls' from pgrecall.session_recalls
            union all select recall_id, 'recall_runs' from pgrecall.recall_runs
            union all select recall_id, 'evidence' from faults.evidence
            union all select recall_id, 'asked' from faults.asked
        ) as found (recall_id, place) on found.recall_id = gone.recall_id
    """,
    "a run that began without anybody having asked for it": """
        select format('run %s of %s', run.run_id, run.recall_id)
        from faults.runs as run
        where not exists (select from faults.asked as asked where asked.recall_id = run.recall_id)
    """,
    "a run that began and is not in the ledger": """
        select format('run %s of %s in %s', began.run_id, began.recall_id, began.process)
        from faults.runs as began
        where not exists (select from pgrecall.recall_runs as run where run.id = began.run_id)
    """,
    "a run that began twice": """
        select format('run %s: %s times', line.run_id, count(*))
        from faults.evidence as line
        where line.kind = 'start'
        group by line.run_id
        having count(*) > 1
    """,
    "a repeated start that no recorded loss explains": """
        select format('run %s of %s comes after run %s: %s', again.id, again.recall_id, before.id, before.outcome)
        from (
            select run.*, lag(run.id) over (partition by run.recall_id, run.nominal_at order by run.id) as before_id
            from pgrecall.recall_runs as run
            where run.attempt > 0
        ) as again
        join pgrecall.recall_runs as before on before.id = again.before_id
        where before.outcome not in ('lost', 'interrupted') or before.reason is null
    """,
    "a success of a run that did not end": """
        select format('run %s of %s', run.id, run.recall_id)
        from pgrecall.recall_runs as run
        left join faults.runs as began on began.run_id = run.id
        where run.outcome = 'success' and began.ended_ns is null
    """,
    "two runs of a session at once": """
        select format('runs %s (%s) and %s (%s) of %s: %s ms', pair.old_run_id, pair.old_process, pair.new_run_id,
            pair.new_process, pair.session_id, round(pair.milliseconds, 1))
        from faults.overlaps as pair
        where coalesce(pair.milliseconds_after_pause, 'infinity') > %(tolerance)s * 1000
    """,
    "an occurrence whose message is not in its session exactly once": """
        select format('%s of %s: %s', ran.recall_id, ran.nominal_at, count(message.id))
        from (
            select distinct recall_id, session_id, nominal_at from pgrecall.recall_runs where attempt > 0
        ) as ran
        left join pgrecall.session_messages as message
            on message.session_id = ran.session_id
            and message.id = pgrecall.occurrence_message_id(ran.recall_id, ran.nominal_at)
        group by ran.recall_id, ran.nominal_at
        having count(message.id) <> 1
    """,
    "a message in a session that no run has put there": """
        select format('%s: %s', message.session_id, message.id)
        from pgrecall.session_messages as message
        where not exists (
            select from pgrecall.recall_runs as run
            where run.recall_id = message.metadata ->> 'recall_id'
                and pgrecall.occurrence_message_id(run.recall_id, run.nominal_at)
                    || case message.role when 'assistant' then ':reply' else '' end = message.id
                and (message.role = 'system' or run.outcome = 'success')
        )
    """,
    "a success without its reply in the session": """
        select format('run %s of %s', run.id, run.recall_id)
        from pgrecall.recall_runs as run
        where run.outcome = 'success'
            and not exists (
                select from pgrecall.session_messages as message
                where message.session_id = run.session_id
                    and message.id = pgrecall.occurrence_message_id(run.recall_id, run.nominal_at) || ':reply'
            )
    """,
    "a session that is still taken": """
        select format('%s by run %s', session.id, session.run_id)
        from pgrecall.sessions as session
        where session.run_id is not null
    """,
    "a recall that is still claimed": """
        select format('%s by %s', recall.id, recall.worker_id)
        from pgrecall.session_recalls as recall
        where recall.run_id is not null
    """,
    "a worker that ended although nobody ended it": """
        select format('%s: exit code %s', process.process, process.exit_code)
        from faults.processes as process
        where process.killed_ns is null
            and process.was_ready
            and process.exit_code is not null
            and (process.exit_code <> 0 or not process.told_to_end)
    """,
}

_FIGURES: dict[str, str] = {
    "recalls": "select count(*) from faults.asked",
    "recalls rolled back": "select count(*) from faults.rolled_back",
    "recalls by isolation level": """
        select coalesce(jsonb_object_agg(isolation, n), '{}')
        from (select coalesce(isolation, 'any') as isolation, count(*) as n from faults.asked group by 1) as counted
    """,
    "occurrences": "select count(*) from faults.occurrences",
    "outcomes": """
        select coalesce(jsonb_object_agg(outcome, n), '{}')
        from (select outcome, count(*) as n from pgrecall.recall_runs group by outcome) as counted
    """,
    "runs begun": "select count(*) from faults.runs",
    "repeated starts": """
        select count(*) - count(distinct (recall_id, nominal_at)) from faults.runs where started_ns is not null
    """,
    "most attempts of an occurrence": "select coalesce(max(attempt), 0) from pgrecall.recall_runs",
    "losses by reason": """
        select coalesce(jsonb_object_agg(reason, n), '{}')
        from (
            select outcome || ': ' || reason as reason, count(*) as n
            from pgrecall.recall_runs
            where outcome in ('lost', 'interrupted')
            group by 1
        ) as counted
    """,
    "losses with no fault near": """
        select count(*)
        from pgrecall.recall_runs as run
        where run.outcome in ('lost', 'interrupted')
            and not exists (
                select from faults.events as event
                where event.begun_at < run.finished_at
                    and event.ended_at > run.finished_at - %(near)s * interval '1 second'
            )
    """,
    "late outcomes refused": "select count(*) from pgrecall.recall_runs where refused_at is not null",
    "faults": """
        select coalesce(jsonb_object_agg(kind, n), '{}')
        from (select kind, count(*) as n from faults.events group by kind) as counted
    """,
    "worker processes": "select count(*) from faults.processes",
    "worker processes that could not start, the server being away": """
        select count(*) from faults.processes where not was_ready and killed_ns is null and exit_code is not null
    """,
    "runs that were lost while their process did not execute, and were begun elsewhere": """
        select count(*) from faults.overlaps where milliseconds_after_pause is not null
    """,
    "the longest that such a run went on when its process executed again, ms": """
        select round(coalesce(max(milliseconds_after_pause), 0)::numeric, 1)::float from faults.overlaps
    """,
    "times that a process was given no processor for over 150 ms": """
        select count(*) from faults.stalls where cause = 'starved'
    """,
    "the longest of them, ms": """
        select coalesce(round(max(continued_ns - stopped_ns) / 1e6), 0)::integer
        from faults.stalls where cause = 'starved'
    """,
    "times that a process kept itself from executing for over 150 ms": """
        select count(*) from faults.stalls where cause = 'held'
    """,
    "the longest of those, ms": """
        select coalesce(round(max(continued_ns - stopped_ns) / 1e6), 0)::integer
        from faults.stalls where cause = 'held'
    """,
}

_RESCUES: str = """
with victims as (
    select process.process, process.killed_ns, ended.finished_at - process.killed_at as found_after, (
        select min(again.started_ns)
        from faults.runs as again
        where again.recall_id = run.recall_id and again.nominal_at = run.nominal_at and again.run_id > run.run_id
    ) as again_ns
    from faults.processes as process
    join faults.runs as run on run.process = process.process
    join pgrecall.recall_runs as ended on ended.id = run.run_id and ended.outcome = 'lost'
    where process.killed_ns is not null
        and run.started_ns < process.killed_ns
        and run.ended_ns is null
)
select
    extract(epoch from max(found_after)) as found, (max(again_ns) - min(killed_ns)) / 1e9 as seconds,
    not exists (
        select from faults.events as event
        where event.kind not like 'kill%'
            and event.begun_ns < max(again_ns)
            and event.ended_ns > min(killed_ns) - 2e9
    ) as alone
from victims
group by victims.process
having count(again_ns) > 0
order by seconds
"""

_LATENESS: str = """
select extract(epoch from run.started_at - due.at)::float * 1000 as milliseconds
from pgrecall.recall_runs as run
join faults.asked as asked on asked.recall_id = run.recall_id
join pgrecall.session_recalls as recall on recall.id = run.recall_id
cross join lateral (
    -- A recall cannot be seen before the transaction that asked for it has committed.
    select greatest(
        run.nominal_at,
        case when current_setting('track_commit_timestamp')::boolean then pg_xact_commit_timestamp(asked.xmin) end
    ) as at
) as due
where run.attempt = 1
    and run.outcome = 'success'
    and recall.deferrals = 0
    -- Only the first one: while an occurrence runs, the next one waits.
    and run.nominal_at = asked.trigger_at
    and not exists (
        select from faults.events as event
        where event.begun_at < run.started_at
            and event.ended_at > due.at - %(quiet)s * interval '1 second'
    )
"""


@dataclass(frozen=True)
class Event:
    """A fault, from its beginning until all was well again."""

    kind: str
    target: str | None
    begun_at: datetime
    ended_at: datetime
    begun_ns: int
    ended_ns: int


@dataclass
class Verdict:
    """What came of it.

    Attributes:
        violations: What must not be and is: examples, and under the name of what it is.
        figures: What is worth knowing besides.
    """

    violations: dict[str, list[str]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.figures.items()]
        for name, cases in self.violations.items():
            lines += [f"VIOLATION {name} ({len(cases)}):", *(f"    {case}" for case in cases[:20])]
        return "\n".join(lines)


def prepare(dsn: str, sessions: Iterable[str] = ()) -> None:
    """Make the tables of the account, and sessions."""
    with psycopg.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(_TABLES)
        cursor.executemany("insert into pgrecall.sessions (id) values (%s)", [[session] for session in sessions])


def ask(
    dsn: str, *sessions: str, seconds: float | list[float] = 0.0, after: float = 0.0, block: bool = False
) -> list[str]:
    """Ask for a recall in each session, by one transaction, and note it; returns their ids.

    Args:
        dsn: The database.
        sessions: They exist.
        seconds: How long a run takes; a list: each attempt.
        after: It is due in so many seconds.
        block: Whether the run blocks its worker's event loop.
    """
    statement = """
        with asked as (
            insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message, metadata)
            values (
                %s, now() + %s * interval '1 second', 'go on', jsonb_build_object('seconds', %s::jsonb, 'block', %s)
            )
            returning *
        )
        insert into faults.asked (recall_id, session_id, trigger_at)
        select id, session_id, trigger_at from asked
        returning recall_id
    """
    ids = []
    with psycopg.connect(dsn) as connection:
        for session in sessions:
            (row,) = connection.execute(statement, [session, after, str(seconds), block]).fetchall()
            ids.append(str(row[0]))
    return ids


def load(dsn: str, processes: Sequence[WorkerProcess], events: Iterable[Event] = ()) -> None:
    """Copy what was gathered outside into the database; again, if it has grown."""
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("truncate faults.evidence, faults.processes, faults.pauses, faults.events")
        with cursor.copy("copy faults.evidence from stdin") as copy:
            for process in processes:
                if process.evidence.exists():
                    copy.write(process.evidence.read_bytes())
        with cursor.copy("copy faults.processes from stdin") as copy:
            for process in processes:
                alive = process.alive
                copy.write_row(
                    (
                        process.name,
                        process.started_ns,
                        process.ready,
                        None if alive else process.died_ns,
                        process.killed_ns,
                        process.told_to_end,
                        process.exit_code,
                        process.killed_at,
                    )
                )
        with cursor.copy("copy faults.pauses from stdin") as copy:
            for process in processes:
                for pause in process.pauses:
                    copy.write_row((process.name, "SIGSTOP", pause.stopped_ns, pause.continued_ns))
                if process.stalls.exists():
                    copy.write(process.stalls.read_bytes())
        with cursor.copy("copy faults.events from stdin") as copy:
            for event in events:
                copy.write_row(
                    (event.kind, event.target, event.begun_at, event.ended_at, event.begun_ns, event.ended_ns)
                )


def judge(dsn: str, *, lease: float, tolerance: float = 0.5, quiet: float = 5.0) -> Verdict:
    """Look at everything.

    Args:
        dsn: The database, after `load`.
        lease: Of the workers, seconds.
        tolerance: For so many seconds a run may go on in a process that was stopped for longer than its lease and
            executes again.
        quiet: An occurrence is undisturbed if there was no fault for so many seconds before it was due.
    """
    verdict = Verdict()
    values = {
        "tolerance": tolerance,
        "quiet": quiet,
        "shortest_pause": lease / 6,
        "near": 2 * lease + 5,
    }
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_with(_RUNS, values))
        for name, query in _MUST_NOT_BE.items():
            if cases := [str(case) for (case,) in connection.execute(_with(query, values))]:
                verdict.violations[name] = cases
        for name, query in _FIGURES.items():
            row = connection.execute(_with(query, values)).fetchone()
            assert row is not None
            verdict.figures[name] = row[0]
        with connection.cursor(row_factory=dict_row) as cursor:
            rescued = cursor.execute(_with(_RESCUES, values)).fetchall()
            late = [float(row["milliseconds"]) for row in cursor.execute(_with(_LATENESS, values))]
    for name, column in (("recorded as lost", "found"), ("started elsewhere", "seconds")):
        verdict.figures[f"kill to the last of its runs {name}, s"] = {
            "all": summary([float(row[column]) for row in rescued if row[column] is not None]),
            "with no fault of another kind at the time": summary(
                [float(row[column]) for row in rescued if row[column] is not None and row["alone"]]
            ),
        }
    verdict.figures["lateness of the undisturbed, ms"] = summary(late)
    return verdict


def _with(query: str, values: dict[str, float]) -> bytes:
    """The query with its parameters, which are numbers of ours; format() in it has per cent signs of its own."""
    for name, value in values.items():
        query = query.replace(f"%({name})s", repr(value))
    return query.encode()


def summary(values: Sequence[float]) -> dict[str, float | int]:
    """How many, and where they lie."""
    if not values:
        return {"n": 0}
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "p50": round(ordered[len(ordered) // 2], 3),
        "p99": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 3),
        "max": round(ordered[-1], 3),
    }
