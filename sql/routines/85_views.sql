-- What operators look at: views in the order of their questions, each at most 160 columns wide in psql.
--
-- `create or replace view` cannot take columns away or change them: a release that does so drops the view first, in its
-- migration. Views run with their owner's rights, but the functions in them with the reader's: only such as everybody
-- may call are used. None shows what was said to an agent or by it, so that observers may read them all.
--
-- Where an index is searched, the clock is asked by _now(): its answer can be searched for, and the planner asks it, too,
-- and so knows how few rows that are. Elsewhere by a subselect, which is evaluated once and not for each row.

create or replace function pgrecall._now()
returns timestamptz
language sql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select pgrecall.clock();
$$;
comment on function pgrecall._now() is
    'The time of clock(), for conditions that an index serves. Called by views, and so by whoever may read them.';

create or replace view pgrecall.worker_states as
select
    worker.id as worker,
    worker.died_at is null and worker.seen_at > known.now_at - interval '150 seconds' as alive,
    date_trunc('second', known.now_at - worker.seen_at) as seen_ago,
    coalesce(held.runs, 0)::integer as running,
    worker.concurrency as slots,
    date_trunc('second', held.oldest_for) as oldest_run,
    case when held.runs > 0 then date_trunc('second', worker.lease_until - known.now_at) end as lease_left,
    worker.version,
    worker.host || ':' || worker.pid as process
from (select pgrecall.clock() as now_at) as known
cross join pgrecall.workers as worker
left join (
    select
        recall.worker_id,
        count(*) as runs,
        (select pgrecall.clock()) - min(recall.claimed_at) as oldest_for
    from pgrecall.session_recalls as recall
    where recall.run_id is not null
    group by recall.worker_id
) as held on held.worker_id = worker.id
order by worker.id;
comment on view pgrecall.worker_states is 'The workers, and how much each has to do.';
comment on column pgrecall.worker_states.worker is 'Its id, as in running_recalls and in the ledger.';
comment on column pgrecall.worker_states.alive is
    'Whether it has spoken within 150 seconds; an idle one speaks once a minute. False: killed or cut off, and forgotten soon.';
comment on column pgrecall.worker_states.seen_ago is 'Since when it has not spoken.';
comment on column pgrecall.worker_states.running is 'How many of its slots are taken.';
comment on column pgrecall.worker_states.slots is 'How many runs it does at once.';
comment on column pgrecall.worker_states.oldest_run is 'For how long its longest run has been under way; null: none is.';
comment on column pgrecall.worker_states.lease_left is
    'For how long its runs are its own unless it renews; below zero: another worker gives them back. Null: it has none.';
comment on column pgrecall.worker_states.version is 'Its release of pgrecall.';
comment on column pgrecall.worker_states.process is 'Host and process id.';

create or replace view pgrecall.failed_recalls as
select
    date_trunc('second', failed.ended_at) as failed_at, failed.recall_id, failed.session_id, failed.attempts, failed.error
-- Each part in its order: read from two indexes, as far as it is asked for.
from (
    (select
        recall.updated_at as ended_at,
        recall.id as recall_id,
        recall.session_id,
        recall.attempt || ' of ' || recall.max_attempts as attempts,
        left(regexp_replace(recall.last_error, '\s+', ' ', 'g'), 38) as error
    from pgrecall.session_recalls as recall
    where recall.status = 'failed'
        and recall.run_id is null
    order by recall.updated_at desc)
    union all
    (select
        recall.updated_at,
        recall.id,
        recall.session_id,
        recall.failures || ' in a row',
        left(regexp_replace(recall.last_error, '\s+', ' ', 'g'), 38)
    from pgrecall.session_recalls as recall
    where recall.failures > 0
        and recall.status in ('pending', 'running')
    order by recall.updated_at desc)
) as failed
order by failed.ended_at desc;
comment on view pgrecall.failed_recalls is
    'What failed, the latest first: recalls that are given up, and recurring ones that go on but whose last occurrence has failed. To try again: retry_recall().';
comment on column pgrecall.failed_recalls.failed_at is
    'When it was given up; of a recurring one that goes on: when it was last touched since.';
comment on column pgrecall.failed_recalls.recall_id is 'The recall; history() tells all about it.';
comment on column pgrecall.failed_recalls.session_id is 'Its session.';
comment on column pgrecall.failed_recalls.attempts is
    'How many attempts of how many it took; of a recurring one that goes on: how many occurrences in a row have failed.';
comment on column pgrecall.failed_recalls.error is 'The beginning of its last error; all of it is in session_recalls.last_error.';

create or replace view pgrecall.overview as
select
    (select count(*) from pgrecall.worker_states as worker where worker.alive)::integer as workers,
    slots.total as slots,
    slots.free as free_slots,
    (select count(*) from pgrecall.session_recalls as recall where recall.run_id is not null)::integer as running,
    (
        select count(*)
        from (
            select
            from pgrecall.session_recalls as recall
            where recall.due_at <= pgrecall._now()
            limit 100000
        ) as counted
    )::integer as due,
    (
        select count(*)
        from (
            select
            from pgrecall.session_recalls as recall
            where recall.due_at <= pgrecall._now() - interval '5 seconds'
            limit 100000
        ) as counted
    )::integer as late,
    (
        select count(*)
        from (
            select
            from pgrecall.session_recalls as recall
            where (recall.not_before is not null or recall.paused_at is not null)
                and recall.run_id is null
                and recall.status in ('pending', 'running')
                and recall.trigger_at <= pgrecall._now()
                and recall.not_before > (select pgrecall.clock())
            limit 100000
        ) as counted
    )::integer as put_off,
    (
        select count(*)
        from (
            select
            from pgrecall.session_recalls as recall
            where (recall.not_before is not null or recall.paused_at is not null)
                and recall.run_id is null
                and recall.status in ('pending', 'running')
                and recall.paused_at is not null
                and coalesce(recall.paused_until, 'infinity') > (select pgrecall.clock())
            limit 100000
        ) as counted
    )::integer as paused,
    (
        select count(*)
        from (
            select
            from pgrecall.session_recalls as recall
            where recall.due_at > pgrecall._now()
            limit 100000
        ) as counted
    )::integer as waiting,
    (
        select count(*)
        from (
            select
            from pgrecall.session_recalls as recall
            where recall.status = 'failed'
                and recall.run_id is null
                and recall.updated_at > pgrecall._now() - interval '24 hours'
            union all
            select
            from pgrecall.session_recalls as recall
            where recall.failures > 0
                and recall.status in ('pending', 'running')
                and recall.updated_at > pgrecall._now() - interval '24 hours'
            limit 100000
        ) as counted
    )::integer as failed_24h,
    (
        select date_trunc('second', min(recall.due_at) - (select pgrecall.clock()))
        from pgrecall.session_recalls as recall
        where recall.due_at > pgrecall._now()
    ) as next_due_in,
    (
        select left(
            coalesce(
                'for ' || pgrecall.span_text(settings.paused_until - (select pgrecall.clock())) || ' more',
                'until resume_all()'
            ) || coalesce(': ' || settings.pause_reason, ''),
            38
        )
        from pgrecall.settings
        where settings.paused_at <= (select pgrecall.clock())
            and coalesce(settings.paused_until, 'infinity') > (select pgrecall.clock())
    ) as all_paused
from (
    select
        coalesce(sum(worker.slots), 0)::integer as total,
        coalesce(sum(greatest(worker.slots - worker.running, 0)), 0)::integer as free
    from pgrecall.worker_states as worker
    where worker.alive
) as slots;
comment on view pgrecall.overview is
    'How it goes, in one row. Numbers of recalls are counted up to 100,000 only, so that it stays fast.';
comment on column pgrecall.overview.workers is 'Workers that are alive, see worker_states.';
comment on column pgrecall.overview.slots is 'How many runs they can do at once.';
comment on column pgrecall.overview.free_slots is 'How many more they could take now.';
comment on column pgrecall.overview.running is 'Runs under way, see running_recalls.';
comment on column pgrecall.overview.due is 'Recalls that a worker should take now; why it does not: due_recalls.';
comment on column pgrecall.overview.late is 'Those of them that have been due for more than 5 seconds.';
comment on column pgrecall.overview.put_off is
    'Recalls whose time has come, and which are deferred or wait before their next attempt, see due_recalls.';
comment on column pgrecall.overview.paused is
    'Recalls that are paused. Those of a paused session or user are among them from the time when they are due.';
comment on column pgrecall.overview.waiting is 'Recalls whose time is still to come, or that are put off, see next_recalls.';
comment on column pgrecall.overview.failed_24h is 'What has failed within 24 hours, see failed_recalls.';
comment on column pgrecall.overview.next_due_in is 'When the next of those that wait is due.';
comment on column pgrecall.overview.all_paused is 'For how long everything is paused, and why; null: it is not.';

create or replace view pgrecall.due_recalls as
with late as (
    select recall.*, recall.xmax as locker
    from pgrecall.session_recalls as recall
    where recall.due_at <= pgrecall._now()
    union all
    select recall.*, recall.xmax
    from pgrecall.session_recalls as recall
    where (recall.not_before is not null or recall.paused_at is not null)
        and recall.run_id is null
        and recall.status in ('pending', 'running')
        and (recall.status = 'pending' or recall.not_before is not null)
        and recall.trigger_at <= pgrecall._now()
        and (recall.due_at is null or recall.due_at > pgrecall._now())
)
select
    date_trunc('second', known.now_at - late.trigger_at) as late_by,
    left(
        case
            when known.paused_at <= known.now_at and coalesce(known.paused_until, 'infinity') > known.now_at then
                'all is paused' || known.all_resume || coalesce(': ' || known.pause_reason, '')
            when coalesce(late.paused_until > known.now_at, late.paused_at is not null) then
                case
                    when cause.session_id is not null then 'its session is paused'
                    when cause.user_id is not null then 'its user is paused'
                    else 'paused'
                end
                || coalesce(
                    ' for ' || pgrecall.span_text(late.paused_until - known.now_at) || ' more', ' until resumed'
                )
                || coalesce(': ' || case when cause.id is null then late.pause_reason else cause.reason end, '')
            when cause.id is not null then
                case when cause.session_id is not null then 'its session is paused' else 'its user is paused' end
                || coalesce(
                    ' for ' || pgrecall.span_text(cause.paused_until - known.now_at) || ' more', ' until resumed'
                )
                || coalesce(': ' || cause.reason, '')
            when late.not_before > known.now_at and late.defer_reason is not null then
                'deferred, again in ' || pgrecall.span_text(late.not_before - known.now_at) || ': ' || late.defer_reason
            when late.not_before > known.now_at and late.attempt > 0 then
                'attempt ' || late.attempt || ' of ' || late.max_attempts || ' failed, again in '
                || pgrecall.span_text(late.not_before - known.now_at) || coalesce(': ' || late.last_error, '')
            when late.not_before > known.now_at then
                'again in ' || pgrecall.span_text(late.not_before - known.now_at) || coalesce(': ' || late.last_error, '')
            when recall_lock.pid is not null then 'locked by ' || recall_lock.who
            when known.workers = 0 then 'no worker is alive'
            when known.free <= 0 then
                'all ' || known.slots || ' slots of ' || known.workers
                || case known.workers when 1 then ' worker' else ' workers' end || ' are taken'
            when session_lock.pid is not null then 'its session is in a transaction of ' || session_lock.who
            else 'about to start'
        end,
        60
    ) as why,
    late.id as recall_id,
    late.session_id
from (
    select
        pgrecall.clock() as now_at,
        settings.paused_at,
        settings.paused_until,
        settings.pause_reason,
        coalesce(
            ' for ' || pgrecall.span_text(settings.paused_until - pgrecall.clock()) || ' more', ' until resume_all()'
        ) as all_resume,
        seen.workers,
        seen.slots,
        seen.free
    from pgrecall.settings
    cross join (
        select
            count(*) filter (where worker.alive) as workers,
            coalesce(sum(worker.slots) filter (where worker.alive), 0) as slots,
            coalesce(sum(worker.slots - worker.running) filter (where worker.alive), 0) as free
        from pgrecall.worker_states as worker
    ) as seen
) as known
cross join late
join pgrecall.sessions as session on session.id = late.session_id
left join lateral (
    select pause.*
    from pgrecall.pauses as pause
    where pause.id = late.pause_id
        or late.due_at <= known.now_at
        and (pause.session_id = late.session_id or pause.user_id = session.user_id)
        and coalesce(pause.paused_until, 'infinity') > known.now_at
    order by pause.id = late.pause_id desc, pause.session_id nulls last
    limit 1
) as cause on true
left join (
    select
        held.transactionid,
        held.pid,
        'pid ' || held.pid || ' (' || coalesce(backend.usename::text, 'unknown')
        || coalesce(', ' || backend.state, '') || ')'
        || coalesce(' for ' || pgrecall.span_text((select pgrecall.clock()) - backend.xact_start), '') as who
    from pg_catalog.pg_locks as held
    left join pg_catalog.pg_stat_activity as backend on backend.pid = held.pid
    where held.locktype = 'transactionid'
        and held.mode = 'ExclusiveLock'
        and held.granted
        and held.pid <> pg_backend_pid()
) as recall_lock on recall_lock.transactionid = late.locker
left join (
    select
        held.transactionid,
        held.pid,
        'pid ' || held.pid || ' (' || coalesce(backend.usename::text, 'unknown') || ')' as who
    from pg_catalog.pg_locks as held
    left join pg_catalog.pg_stat_activity as backend on backend.pid = held.pid
    where held.locktype = 'transactionid'
        and held.mode = 'ExclusiveLock'
        and held.granted
        and held.pid <> pg_backend_pid()
) as session_lock on session_lock.transactionid = session.xmax
order by late.trigger_at;
comment on view pgrecall.due_recalls is
    'Recalls whose time has come and that do not run, the latest of them first, each with the one reason that is in the way first. A lock can only be told while one transaction alone has it, and is not told apart from a reference (by a message, for example), which is in nobody''s way; what a session without the role pg_read_all_stats may not see of another one (its state, since when) is left out.';
comment on column pgrecall.due_recalls.late_by is 'How long ago its time was.';
comment on column pgrecall.due_recalls.why is
    'Why it does not run: paused (all, the session, the user, or itself), deferred, between two attempts, locked, no worker, no free slot; cut to 60 characters.';
comment on column pgrecall.due_recalls.recall_id is 'The recall; history() tells all about it.';
comment on column pgrecall.due_recalls.session_id is 'Its session; session_states tells who has it.';

create or replace view pgrecall.running_recalls as
select
    date_trunc('second', known.now_at - recall.claimed_at) as runs_for,
    recall.id as recall_id,
    recall.session_id,
    left(recall.worker_id, 28) as worker,
    recall.attempt || '/' || recall.max_attempts as try,
    date_trunc(
        'second',
        recall.claimed_at + make_interval(secs => coalesce(recall.timeout_seconds, settings.timeout_seconds))
            - known.now_at
    ) as time_left,
    date_trunc('second', worker.lease_until - known.now_at) as lease,
    left(
        case
            when recall.stopped_by is not null then 'by ' || recall.stopped_by
            when recall.status <> 'running' then recall.status
            when session.interrupted_by is not null then 'by chat ' || session.interrupted_by
        end,
        12
    ) as stopping
from (select pgrecall.clock() as now_at) as known
cross join pgrecall.settings
cross join pgrecall.session_recalls as recall
join pgrecall.sessions as session on session.id = recall.session_id
left join pgrecall.workers as worker on worker.id = recall.worker_id
where recall.run_id is not null
order by recall.claimed_at;
comment on view pgrecall.running_recalls is 'What runs now, the longest first. To stop one: stop_run().';
comment on column pgrecall.running_recalls.runs_for is 'For how long.';
comment on column pgrecall.running_recalls.recall_id is 'The recall; history() tells all about it.';
comment on column pgrecall.running_recalls.session_id is 'Its session.';
comment on column pgrecall.running_recalls.worker is 'The worker that has it, cut to 28 characters; see worker_states.';
comment on column pgrecall.running_recalls.try is 'Which attempt of how many at most.';
comment on column pgrecall.running_recalls.time_left is
    'Until the run is ended by its time limit; that of its worker, if it has one, is not known here.';
comment on column pgrecall.running_recalls.lease is
    'How much of its worker''s lease is left; below zero: it is given to another worker soon.';
comment on column pgrecall.running_recalls.stopping is
    'Who has asked it to stop, or what has become of the recall meanwhile; null: it goes on. Cut to 12 characters; the reason is in session_recalls.stop_reason.';

create or replace view pgrecall.next_recalls as
select
    date_trunc('second', recall.due_at - (select pgrecall.clock())) as due_in,
    date_trunc('second', recall.trigger_at) as trigger_at,
    recall.id as recall_id,
    recall.session_id,
    left(
        case
            when recall.call_type <> 'recurring' then 'once'
            when recall.cron is not null then recall.cron || ' ' || recall.time_zone
            else 'every ' || pgrecall.span_text(make_interval(secs => recall.interval_seconds))
        end,
        36
    ) as schedule
from pgrecall.session_recalls as recall
where recall.due_at > pgrecall._now()
order by recall.due_at;
comment on view pgrecall.next_recalls is
    'What comes next, the first of them first: … limit 20. Paused ones without an end are not here. More times of one: upcoming().';
comment on column pgrecall.next_recalls.due_in is 'When a worker will take it; later than trigger_at if it is put off or paused.';
comment on column pgrecall.next_recalls.trigger_at is 'The time that it is wanted for.';
comment on column pgrecall.next_recalls.recall_id is 'The recall.';
comment on column pgrecall.next_recalls.session_id is 'Its session.';
comment on column pgrecall.next_recalls.schedule is 'once, every so often, or its cron expression with the zone; cut to 36 characters.';

create or replace view pgrecall.left_out_occurrences as
select
    date_trunc('second', run.nominal_at) as nominal_at,
    run.outcome,
    run.recall_id,
    run.session_id,
    left(regexp_replace(run.reason, '\s+', ' ', 'g'), 44) as reason
from pgrecall.recall_runs as run
where run.outcome in ('skipped', 'missed')
order by run.id desc;
comment on view pgrecall.left_out_occurrences is
    'Occurrences that did not run, the latest recorded first: cancelled, skipped, or missed while an earlier one was late.';
comment on column pgrecall.left_out_occurrences.nominal_at is 'The time that it was wanted for.';
comment on column pgrecall.left_out_occurrences.outcome is 'skipped: by request or by its own rules. missed: its time passed, see recall_runs.outcome.';
comment on column pgrecall.left_out_occurrences.recall_id is 'The recall; it may have been deleted since.';
comment on column pgrecall.left_out_occurrences.session_id is 'Its session.';
comment on column pgrecall.left_out_occurrences.reason is 'The beginning of the reason; all of it is in recall_runs.reason.';

create or replace view pgrecall.late_runs as
select
    date_trunc('second', run.started_at) as started_at,
    date_trunc('milliseconds', run.lateness) as late_by,
    left(
        case
            when run.attempt > 1 then
                'attempt ' || run.attempt || ', the one before: ' || coalesce(before.said, 'not in the ledger any more')
            when run.defer_reason is not null then
                'deferred ' || run.deferrals || case run.deferrals when 1 then ' time: ' else ' times: ' end
                || run.defer_reason
            when moved.at > run.nominal_at then
                'asked for ' || pgrecall.span_text(moved.at - run.nominal_at) || ' after its time'
            when recall.created_at > run.nominal_at then
                'scheduled ' || pgrecall.span_text(recall.created_at - run.nominal_at) || ' after its time'
            when pause.whose is not null then pause.whose || ' paused' || coalesce(': ' || pause.reason, '')
            when before.said is not null and before.nominal_at = run.nominal_at then 'runs again, before: ' || before.said
            when run.deferrals > 0 then 'deferred ' || run.deferrals || ' times'
            when fleet.slots is null and fleet.has_own then 'no worker was alive'
            when busy.slots >= 0.8 * fleet.slots then 'no slot was free'
            -- A false cause would be worse than none: of these nothing is written down.
            when fleet.slots is null then 'not known: no slot free, no worker alive, a lock or a late commit'
            else 'not known: its row was locked, or its transaction committed late'
        end,
        70
    ) as why,
    run.recall_id
from pgrecall.recall_runs as run
left join pgrecall.session_recalls as recall on recall.id = run.recall_id
left join pgrecall.sessions as session on session.id = run.session_id
left join lateral (
    select
        earlier.nominal_at,
        earlier.outcome || coalesce(': ' || coalesce(earlier.error, earlier.reason), '') as said
    from pgrecall.recall_runs as earlier
    where earlier.recall_id = run.recall_id
        and earlier.id < run.id
    order by earlier.id desc
    limit 1
) as before on before.nominal_at = run.nominal_at
left join lateral (
    select change.changed_at as at
    from pgrecall.audit as change
    where change.object = 'session_recalls'
        and change.object_id = run.recall_id
        and change.changed_at <= run.started_at
        and (change.new ->> 'trigger_at')::timestamptz = run.nominal_at
    order by change.id desc
    limit 1
) as moved on true
-- A pause that has ended between its time and its start: by hand, which left its old value, or at its paused_until.
left join lateral (
    select ended.whose, ended.reason
    from (
        select 'all was' as whose, change.old, change.new, change.changed_at
        from pgrecall.audit as change
        where change.object = 'settings'
        union all
        select 'it was', change.old, change.new, change.changed_at
        from pgrecall.audit as change
        where change.object = 'session_recalls'
            and change.object_id = run.recall_id
        union all
        select 'its session was', change.old, change.new, change.changed_at
        from pgrecall.audit as change
        where change.object = 'pauses'
            and change.session_id = run.session_id
        union all
        select 'its user was', change.old, change.new, change.changed_at
        from pgrecall.audit as change
        where change.object = 'pauses'
            and change.session_id is null
            and change.owner_id = session.user_id
    ) as change
    cross join lateral (
        select
            change.whose,
            coalesce(change.old ->> 'pause_reason', change.old ->> 'reason') as reason,
            change.changed_at as at
        where change.old ->> 'paused_at' is not null
        union all
        select
            change.whose,
            coalesce(change.new ->> 'pause_reason', change.new ->> 'reason'),
            (change.new ->> 'paused_until')::timestamptz
        where change.new ->> 'paused_until' is not null
            and change.changed_at <= run.started_at
    ) as ended
    where ended.at > run.nominal_at
        and ended.at <= run.started_at
    order by ended.at desc
    limit 1
) as pause on true
-- The workers that lived through it, as far as they are known now.
cross join lateral (
    select
        sum(worker.concurrency) filter (
            where worker.started_at <= run.nominal_at
                and worker.seen_at >= run.nominal_at
        ) as slots,
        bool_or(worker.id = run.worker_id) as has_own
    from pgrecall.workers as worker
) as fleet
cross join lateral (
    select greatest(run.nominal_at, run.started_at - interval '5 seconds') as since
) as waited
-- How many of their slots were taken, on average, while it waited: in the last seconds of that, so that a thousand runs
-- before it in the ledger tell it.
cross join lateral (
    select
        coalesce(sum(greatest(
            extract(epoch from least(other.until, run.started_at) - greatest(other.since, waited.since)), 0
        )), 0) / nullif(extract(epoch from run.started_at - waited.since), 0) as slots
    from (
        select ended.started_at as since, ended.finished_at as until
        from pgrecall.recall_runs as ended
        where ended.id between run.id - 1000 and run.id - 1
            and ended.started_at is not null
        union all
        select running.claimed_at, 'infinity'
        from pgrecall.session_recalls as running
        where running.run_id < run.id
    ) as other
) as busy
where run.lateness > interval '1 second'
    and run.started_at > pgrecall._now() - interval '7 days'
order by run.started_at desc, run.id desc;
comment on view pgrecall.late_runs is
    'Runs of the last 7 days that started more than a second after their time, the latest first, each with its first cause. That no slot was free, or no worker alive, is concluded from the workers that are known now and the runs before it; what nobody has written down is called not known.';
comment on column pgrecall.late_runs.started_at is 'When it started.';
comment on column pgrecall.late_runs.late_by is 'How long after its time that was.';
comment on column pgrecall.late_runs.why is
    'A retry, deferred, scheduled too late, paused, no worker, no free slot, or not known; cut to 70 characters.';
comment on column pgrecall.late_runs.recall_id is 'The recall; history() tells all about it.';

create or replace view pgrecall.session_states as
select
    session.id as session_id,
    session.user_id,
    left(
        case
            when pause.id is not null then
                case when pause.session_id is null then 'user paused' else 'paused' end
                || coalesce(': ' || pause.reason, '')
            when session.run_id is not null then 'in run ' || session.run_id
            when session.held_until > known.now_at then 'held by chat ' || session.holder
            else 'free'
        end,
        24
    ) as state,
    date_trunc('second', pending.due_at - known.now_at) as due_in,
    latest.outcome || ' ' || pgrecall.span_text(known.now_at - latest.finished_at) as last_run,
    counted.runs || coalesce('/' || coalesce(session.max_runs_per_day, settings.max_runs_per_day), '') as runs_24h
from (select pgrecall.clock() as now_at) as known
cross join pgrecall.settings
cross join pgrecall.sessions as session
left join lateral (
    select pause.*
    from pgrecall.pauses as pause
    where (pause.session_id = session.id or pause.user_id = session.user_id)
        and coalesce(pause.paused_until, 'infinity') > known.now_at
    order by pause.session_id nulls last
    limit 1
) as pause on true
left join lateral (
    select min(recall.due_at) as due_at
    from pgrecall.session_recalls as recall
    where recall.session_id = session.id
        and recall.due_at is not null
        and recall.status in ('pending', 'running')
) as pending on true
left join lateral (
    select run.outcome, run.finished_at
    from pgrecall.recall_runs as run
    where run.session_id = session.id
        and run.started_at is not null
    order by run.id desc
    limit 1
) as latest on true
left join lateral (
    select count(*) as runs
    from (
        select run.started_at
        from pgrecall.recall_runs as run
        where run.session_id = session.id
            and run.started_at is not null
        order by run.id desc
        limit 1000
    ) as recent
    where recent.started_at > known.now_at - interval '24 hours'
) as counted on true;
comment on view pgrecall.session_states is
    'Sessions: who has each, what comes next, what was last. Ask for one session, or for those of one user.';
comment on column pgrecall.session_states.session_id is 'The session.';
comment on column pgrecall.session_states.user_id is 'Its owner; null: nobody that we know of.';
comment on column pgrecall.session_states.state is
    'free, in a run, held by a chat, or paused and why (also through its user); cut to 24 characters.';
comment on column pgrecall.session_states.due_in is 'When its pending recall is due; below zero: it is late. Null: none is to come.';
comment on column pgrecall.session_states.last_run is 'How its last run has ended, and how long ago.';
comment on column pgrecall.session_states.runs_24h is 'Its runs within 24 hours, counted up to 1,000, and how many it may have if there is a limit.';

create or replace view pgrecall.user_states as
select
    owner.user_id,
    owner.sessions,
    (
        select count(*)
        from pgrecall.sessions as session
        join pgrecall.session_recalls as recall on recall.session_id = session.id
        where session.user_id = owner.user_id
            and recall.status = 'pending'
    )::integer as pending,
    (
        select count(*)
        from pgrecall.sessions as session
        where session.user_id = owner.user_id
            and session.run_id is not null
    )::integer as running,
    (
        select left(
            coalesce(
                'for ' || pgrecall.span_text(pause.paused_until - (select pgrecall.clock())) || ' more', 'until resumed'
            ) || coalesce(': ' || pause.reason, ''),
            32
        )
        from pgrecall.pauses as pause
        where pause.user_id = owner.user_id
            and coalesce(pause.paused_until, 'infinity') > (select pgrecall.clock())
    ) as paused,
    (
        select date_trunc('second', min(recall.due_at) - (select pgrecall.clock()))
        from pgrecall.sessions as session
        join pgrecall.session_recalls as recall on recall.session_id = session.id
        where session.user_id = owner.user_id
            and recall.due_at is not null
    ) as due_in,
    latest.outcome || ' ' || pgrecall.span_text((select pgrecall.clock()) - latest.finished_at) as last_run,
    (
        select count(*)
        from pgrecall.sessions as session
        join pgrecall.recall_runs as run on run.session_id = session.id
        where session.user_id = owner.user_id
            and run.started_at > (select pgrecall.clock() - interval '24 hours')
    )::integer as runs_24h
from (
    select session.user_id, count(*)::integer as sessions
    from pgrecall.sessions as session
    where session.user_id is not null
    group by session.user_id
) as owner
left join lateral (
    select run.outcome, run.finished_at
    from pgrecall.sessions as session
    cross join lateral (
        select newest.outcome, newest.finished_at
        from pgrecall.recall_runs as newest
        where newest.session_id = session.id
            and newest.started_at is not null
        order by newest.id desc
        limit 1
    ) as run
    where session.user_id = owner.user_id
    order by run.finished_at desc
    limit 1
) as latest on true;
comment on view pgrecall.user_states is 'Users, as sessions.user_id names them: what is to come, what runs, what was last. Ask for one user.';
comment on column pgrecall.user_states.user_id is 'The user.';
comment on column pgrecall.user_states.sessions is 'How many sessions the user has.';
comment on column pgrecall.user_states.pending is 'Recalls that are to come, in all of them.';
comment on column pgrecall.user_states.running is 'Runs under way.';
comment on column pgrecall.user_states.paused is
    'For how long the user is paused, and why; null: not paused. Single sessions and recalls may be, all the same.';
comment on column pgrecall.user_states.due_in is 'When the next recall is due; below zero: it is late.';
comment on column pgrecall.user_states.last_run is 'How the last run has ended, and how long ago.';
comment on column pgrecall.user_states.runs_24h is 'Runs within 24 hours.';

create or replace view pgrecall.lateness_per_hour as
select
    date_trunc('hour', run.started_at) as hour,
    count(*) as runs,
    round(1000 * percentile_cont(0.5) within group (order by extract(epoch from run.lateness))::numeric, 1) as p50_ms,
    round(1000 * percentile_cont(0.95) within group (order by extract(epoch from run.lateness))::numeric, 1) as p95_ms,
    round(1000 * percentile_cont(0.99) within group (order by extract(epoch from run.lateness))::numeric, 1) as p99_ms,
    round(1000 * max(extract(epoch from run.lateness)), 1) as max_ms
from pgrecall.recall_runs as run
where run.attempt = 1
    and run.started_at > (select pgrecall.clock() - interval '7 days')
    -- As every run ends after its start: this is what there is an index for.
    and run.finished_at > pgrecall._now() - interval '7 days'
group by date_trunc('hour', run.started_at)
order by date_trunc('hour', run.started_at) desc;
comment on view pgrecall.lateness_per_hour is
    'How late runs started in the last 7 days, by the hour, the latest first. First attempts only: what is tried again is late on purpose. Why: late_runs.';
comment on column pgrecall.lateness_per_hour.hour is 'Runs that have started in this hour, and have ended.';
comment on column pgrecall.lateness_per_hour.runs is 'How many.';
comment on column pgrecall.lateness_per_hour.p50_ms is 'Half of them started at most so many milliseconds after their time.';
comment on column pgrecall.lateness_per_hour.p95_ms is 'The same of 95 in a hundred.';
comment on column pgrecall.lateness_per_hour.p99_ms is 'The same of 99 in a hundred.';
comment on column pgrecall.lateness_per_hour.max_ms is 'The latest of them.';

create or replace function pgrecall.upcoming(recall_id text, "limit" integer default 5)
returns table (
    due_in interval,
    occurs_at timestamptz,
    local_text text
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
    v_zone text;
    v_now constant timestamptz := pgrecall.clock();
    v_at timestamptz;
begin
    if "limit" is null or "limit" not between 0 and 1000 then
        raise exception 'limit is %, but must be 0 to 1000', coalesce("limit"::text, 'null')
            using errcode = 'PR005', hint = 'The default is 5.';
    end if;
    select known.*
    into v_recall
    from pgrecall.session_recalls as known
    where known.id = upcoming.recall_id;
    if not found then
        perform pgrecall._missing_recall(upcoming.recall_id);
    elsif v_recall.status not in ('pending', 'running') then
        return;
    end if;
    select coalesce(v_recall.time_zone, session.time_zone, 'UTC')
    into v_zone
    from pgrecall.sessions as session
    where session.id = v_recall.session_id;
    -- The occurrence that runs now has come.
    v_at := case
        when v_recall.run_id is null or v_recall.trigger_at > v_recall.nominal_at then v_recall.trigger_at
        else pgrecall._next_occurrence(v_recall, greatest(v_recall.trigger_at, v_now))
    end;
    for v_count in 1.."limit" loop
        exit when v_at is null;
        due_in := date_trunc('second', v_at - v_now);
        occurs_at := v_at;
        local_text := pgrecall.time_text(v_at, v_zone);
        return next;
        -- What passes while one is late is missed.
        v_at := pgrecall._next_occurrence(v_recall, greatest(v_at, v_now));
    end loop;
end;
$$;
comment on function pgrecall.upcoming(text, integer) is
    'The next occurrences of a recall, with the time in its own zone, else its session''s, else UTC; one that is late comes first. None if it has ended. Called by operators and observers. Raises: PR003 no such recall, PR005 for a limit that is not 0 to 1000.';

create or replace function pgrecall.wanted_slots(within interval default '1 minute', up_to integer default 10000)
returns integer
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_now constant timestamptz := pgrecall.clock();
    v_until timestamptz;
    v_due integer := 0;
    v_running integer;
    v_has_delivery boolean;
begin
    if wanted_slots.within is null or wanted_slots.within not between interval '0' and interval '1 day' then
        raise exception 'within is %, but must be 0 to 1 day', coalesce(wanted_slots.within::text, 'null')
            using errcode = 'PR005', hint = 'How long it takes until a new worker is ready; the default is 1 minute.';
    end if;
    if wanted_slots.up_to is null or wanted_slots.up_to not between 1 and 1000000 then
        raise exception 'up_to is %, but must be 1 to 1000000', coalesce(wanted_slots.up_to::text, 'null')
            using errcode = 'PR005', hint = 'As many slots as the largest fleet has; the default is 10000.';
    end if;
    v_until := v_now + wanted_slots.within;
    -- While everything is paused nothing starts, so what is due wants no slot yet.
    if not exists (
        select
        from pgrecall.settings
        where settings.paused_at <= v_now
            and coalesce(settings.paused_until, 'infinity') > v_until
    ) then
        -- In due order: so the index serves it whatever the planner thinks of v_until.
        select count(*)
        into v_due
        from (
            select
            from pgrecall.session_recalls as recall
            where recall.due_at <= v_until
            order by recall.due_at
            limit wanted_slots.up_to
        ) as counted;
    end if;
    -- Also the runs of a worker that died: somebody must be there to find it.
    select count(*)
    into v_running
    from (
        select
        from pgrecall.session_recalls as recall
        where recall.run_id is not null
        limit wanted_slots.up_to
    ) as counted;
    -- Replies are posted by workers, beside their runs.
    v_has_delivery := exists (
        select
        from pgrecall.deliveries as delivery
        where delivery.next_at <= v_until
    );
    return greatest(least(v_due + v_running, wanted_slots.up_to), v_has_delivery::integer);
end;
$$;
comment on function pgrecall.wanted_slots(interval, integer) is
    'How many slots the workers should have together: runs under way, recalls that are due or will be within this time, and one if a reply is to be posted. Counted up to up_to, so it answers at once. 0: no worker is needed for so long. While all is paused what is due does not count. Called by autoscalers, as observers. Raises: PR005 for a time that is not 0 to 1 day, or a number that is not 1 to 1000000.';

create or replace function pgrecall.history(recall_id text)
returns table (
    happened_at timestamptz,
    what text,
    details text
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := pgrecall.clock();
begin
    if not exists (select from pgrecall.session_recalls as known where known.id = history.recall_id)
        and not exists (select from pgrecall.recall_runs as run where run.recall_id = history.recall_id)
        and not exists (
            select
            from pgrecall.audit as change
            where change.object = 'session_recalls'
                and change.object_id = history.recall_id
        )
    then
        perform pgrecall._missing_recall(history.recall_id);
    end if;
    return query
    with events as (
        select
            recall.created_at as at,
            0 as place,
            'scheduled by ' || case
                when recall.created_by = 'agent' then 'the agent' || coalesce(' in run ' || recall.created_by_run_id, '')
                else coalesce(recall.scheduled_by, recall.created_by)
            end as what,
            recall.call_type || coalesce(' ' || recall.cron || ' ' || recall.time_zone, '')
                || coalesce(' every ' || recall.interval_seconds || ' s', '') || ', session ' || recall.session_id
                as details
        from pgrecall.session_recalls as recall
        where recall.id = history.recall_id
        union all
        select
            change.changed_at,
            case change.action when 'delete' then 4 else 1 end,
            case change.action when 'delete' then 'deleted' else 'changed' end || ' by ' || change.role,
            case when change.action = 'delete' then 'trigger_at: ' || coalesce(change.old ->> 'trigger_at', 'null') else (
                select string_agg(
                    column_.name || ': ' || coalesce(change.old ->> column_.name, 'null') || ' → '
                    || coalesce(change.new ->> column_.name, 'null'),
                    E'\n' order by column_.name
                )
                from jsonb_object_keys(coalesce(change.new, change.old)) as column_ (name)
            ) end
        from pgrecall.audit as change
        where change.object = 'session_recalls'
            and change.object_id = history.recall_id
        union all
        select
            coalesce(run.started_at, run.finished_at),
            2,
            case
                when run.started_at is null then run.outcome
                else 'run ' || run.id || ' attempt ' || run.attempt || ': ' || run.outcome
            end,
            case
                when run.started_at is null then
                    'for ' || run.nominal_at || case when run.occurrences > 1 then ' and later ones' else '' end
                else
                    'late by ' || pgrecall.span_text(run.lateness)
                    || ', took ' || pgrecall.span_text(run.finished_at - run.started_at)
                    || coalesce(' on ' || run.worker_id, '')
            end
            || case
                when run.deferrals > 0 then
                    ', put off ' || run.deferrals || ' times' || coalesce(' (' || run.defer_reason || ')', '')
                else ''
            end
            || coalesce(': ' || coalesce(run.error, run.reason), '')
        from pgrecall.recall_runs as run
        where run.recall_id = history.recall_id
        union all
        select
            coalesce(delivery.ended_at, delivery.next_at, delivery.created_at),
            3,
            case delivery.status
                when 'delivered' then 'reply delivered'
                when 'failed' then 'reply not delivered'
                else 'reply on its way'
            end,
            'of run ' || delivery.id || ' to ' || delivery.url || ', tried ' || delivery.attempt || ' times'
            || coalesce(', answer ' || delivery.response_status, '') || coalesce(': ' || delivery.last_error, '')
        from pgrecall.recall_runs as run
        join pgrecall.deliveries as delivery on delivery.id = run.id
        where run.recall_id = history.recall_id
        union all
        select
            recall.deferred_since,
            4,
            'put off',
            recall.deferrals || ' times since, the last time: ' || coalesce(recall.defer_reason, 'no longer')
        from pgrecall.session_recalls as recall
        where recall.id = history.recall_id
            and recall.deferred_since is not null
            and recall.status in ('pending', 'running')
        union all
        select
            recall.paused_at,
            5,
            'paused',
            coalesce('until ' || recall.paused_until, 'until resumed') || coalesce(': ' || recall.pause_reason, '')
        from pgrecall.session_recalls as recall
        where recall.id = history.recall_id
            and recall.paused_at is not null
        union all
        select
            recall.claimed_at,
            6,
            'run ' || recall.run_id || ' attempt ' || recall.attempt || ': under way',
            'late by ' || pgrecall.span_text(recall.claimed_at - recall.nominal_at) || ', on ' || recall.worker_id
            || coalesce(', told to stop by ' || recall.stopped_by, '')
        from pgrecall.session_recalls as recall
        where recall.id = history.recall_id
            and recall.run_id is not null
        union all
        select
            recall.due_at,
            7,
            case when recall.due_at <= v_now then 'due since then' else 'next due' end,
            coalesce(late.why, 'for ' || recall.trigger_at)
        from pgrecall.session_recalls as recall
        left join lateral (
            select due.why
            from pgrecall.due_recalls as due
            where due.recall_id = recall.id
        ) as late on true
        where recall.id = history.recall_id
            and recall.due_at is not null
    )
    select
        date_trunc('milliseconds', event.at),
        event.what,
        -- In lines, so that psql needs no \x.
        rtrim(regexp_replace(event.details, '([^\n]{1,90})(?: +|\n|$)', E'\\1\n', 'g'), E'\n')
    from events as event
    order by event.at, event.place;
end;
$$;
comment on function pgrecall.history(text) is
    'All that is known of a recall, in the order of time, with what is still to come last: by whom it was scheduled and changed by hand, its runs and the occurrences that were left out, where its replies went, and why it waits. Also of one that was deleted. No texts: neither what the agent was told nor what it answered. details has lines of about 90 characters. Called by operators. Raises: PR003 no such recall, and none that the ledger or the audit remembers.';
