-- What a worker says when a run has ended, and what becomes of the recall.

create or replace function pgrecall._record_missed(recall pgrecall.session_recalls, next_at timestamptz)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    -- Beyond this many one row stands for the rest, so that a year's outage of a job by the second stays affordable.
    v_most constant integer := 1000;
    v_now timestamptz := pgrecall.clock();
    -- Without a next time: up to the last one, which has passed.
    v_until timestamptz := coalesce(next_at, least(recall.end_at, v_now) + interval '1 microsecond');
    v_reason text := 'its time passed while the occurrence of '
        || to_char(recall.nominal_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"') || ' was late or running';
    v_at timestamptz := recall.nominal_at;
    v_first timestamptz;
    v_rest integer;
begin
    for v_count in 1..v_most loop
        v_at := pgrecall._next_occurrence(recall, v_at);
        exit when v_at is null or v_at >= v_until;
        insert into pgrecall.recall_runs (recall_id, session_id, nominal_at, finished_at, outcome, reason)
        values (recall.id, recall.session_id, v_at, v_now, 'missed', v_reason);
    end loop;
    if v_at is null or v_at >= v_until then
        return;
    end if;
    v_first := pgrecall._next_occurrence(recall, v_at);
    if recall.cron is null then
        -- At most what the column can hold: a job by the second that was wanted in the year 1 has missed more.
        v_rest := least(ceil(extract(epoch from v_until - v_at) / recall.interval_seconds) - 1, 2147483647);
    else
        v_rest := 0;
        v_at := v_first;
        -- A worker is waiting for the answer, perhaps with a short lease.
        while v_at < v_until and v_rest < 10 * v_most and pgrecall.clock() < v_now + interval '0.3 seconds' loop
            v_rest := v_rest + 1;
            v_at := pgrecall._next_occurrence(recall, v_at);
        end loop;
    end if;
    if v_rest > 0 then
        insert into pgrecall.recall_runs (
            recall_id, session_id, nominal_at, finished_at, outcome, reason, occurrences
        )
        values (
            recall.id, recall.session_id, v_first, v_now, 'missed',
            v_reason || format('; this row stands for %s more occurrences', v_rest), v_rest
        );
    end if;
end;
$$;
comment on function pgrecall._record_missed(pgrecall.session_recalls, timestamptz) is
    'Writes a row with outcome missed for each occurrence between the one that ended and the next one, or the end of the schedule if next_at is null; from the 1001st on one row, with the time of the first of them, stands for all the others (a cron expression is counted up to 10,000 more, or for 0.3 seconds). Called by _end_occurrence and mark_fired.';

create or replace function pgrecall._record_deleted(recall pgrecall.session_recalls)
returns void
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
    insert into pgrecall.recall_runs (
        id, recall_id, session_id, nominal_at, started_at, finished_at, worker_id, attempt, outcome, reason
    )
    select
        coalesce(recall.run_id, nextval('pgrecall.run_ids')),
        recall.id,
        recall.session_id,
        case when recall.run_id is null then recall.trigger_at else recall.nominal_at end,
        recall.claimed_at,
        pgrecall.clock(),
        recall.worker_id,
        case when recall.run_id is null then 0 else recall.attempt end,
        case when recall.run_id is null then 'skipped' else 'interrupted' end,
        'recall deleted'
    -- Not if the session was deleted, and the recall with it.
    from pgrecall.sessions
    where sessions.id = recall.session_id;
$$;
comment on function pgrecall._record_deleted(pgrecall.session_recalls) is
    'Records the occurrence that a recall is deleted with. Called by _after_recall_delete and _before_recalls_truncate.';

create or replace function pgrecall._end_occurrence(recall pgrecall.session_recalls, new_status text, error text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_next timestamptz;
begin
    if recall.status = 'running' and recall.trigger_at is distinct from recall.nominal_at then
        -- Rescheduled while it ran: the new time is a new occurrence.
        perform pgrecall._give_back(recall.id, 0, null);
        update pgrecall.session_recalls
        set deferrals = 0,
            last_error = _end_occurrence.error
        where session_recalls.id = recall.id;
        return;
    end if;
    if recall.status = 'running' then
        v_next := pgrecall._next_occurrence(recall, greatest(recall.nominal_at, pgrecall.clock()));
        perform pgrecall._record_missed(recall, v_next);
    end if;
    -- Ended by somebody else while it ran (cancelled, set back to pending): their word stands.
    update pgrecall.session_recalls
    set status = case
            when recall.status <> 'running' then recall.status
            when v_next is not null then 'pending'
            else new_status
        end,
        trigger_at = coalesce(v_next, recall.trigger_at),
        attempt = case when v_next is not null or recall.status = 'pending' then 0 else recall.attempt end,
        deferrals = case when v_next is not null or recall.status = 'pending' then 0 else recall.deferrals end,
        not_before = null,
        defer_reason = null,
        run_id = null,
        worker_id = null,
        claimed_at = null,
        last_error = case when recall.status = 'running' then _end_occurrence.error else recall.last_error end
    where session_recalls.id = recall.id;
end;
$$;
comment on function pgrecall._end_occurrence(pgrecall.session_recalls, text, text) is
    'Ends the occurrence that a recall is running: a recurring recall is pending again at its next time on its own schedule, with the times that passed meanwhile recorded as missed; any other gets new_status. Called by finish and _end_lost_run, which hold the row lock. Notifies: through the trigger announce_update.';

create or replace function pgrecall.finish(
    recall_id text,
    run_id bigint,
    outcome text,
    started_at timestamptz default null,
    reply text default null,
    error text default null,
    reason text default null,
    usage jsonb default null,
    retry boolean default false,
    retry_after interval default null,
    counted boolean default true,
    append_reply boolean default false
)
returns table (
    accepted boolean,
    status text,
    trigger_at timestamptz,
    due_at timestamptz,
    attempt integer
)
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_recall pgrecall.session_recalls;
    v_now timestamptz := pgrecall.clock();
    v_attempt integer;
begin
    if finish.outcome is null
        or finish.outcome not in ('success', 'silent', 'error', 'timeout', 'interrupted', 'skipped')
    then
        raise exception 'outcome is %, which is not how a run ends', quote_nullable(left(finish.outcome, 100))
            using errcode = 'PR005', hint = 'It is success, silent, error, timeout, interrupted or skipped.';
    end if;
    select held.*
    into v_recall
    from pgrecall.session_recalls as held
    where held.id = finish.recall_id
        and held.run_id = finish.run_id
    for no key update;
    if not found then
        -- The claim is no longer the caller's: another worker has the recall, it was deleted, or this very call was
        -- made before and its answer got lost. Nothing of the recall changes.
        update pgrecall.recall_runs
        set refused_at = v_now
        where recall_runs.id = finish.run_id
            and recall_runs.outcome = 'lost'
            and recall_runs.refused_at is null;
        perform pgrecall._free_session(taken.id, finish.run_id)
        from pgrecall.sessions as taken
        where taken.id = (
            select run.session_id
            from pgrecall.recall_runs as run
            where run.id = finish.run_id
        );
        perform pgrecall._forget_reports(finish.recall_id);
        return query
        select
            exists (select from pgrecall.recall_runs as run where run.id = finish.run_id and run.outcome <> 'lost'),
            known.status,
            known.trigger_at,
            known.due_at,
            known.attempt
        from (select 1) as always
        left join pgrecall.session_recalls as known on known.id = finish.recall_id;
        return;
    end if;

    insert into pgrecall.recall_runs (
        id, recall_id, session_id, nominal_at, started_at, finished_at, worker_id, attempt, outcome, reason, reply,
        error, usage
    )
    values (
        finish.run_id, v_recall.id, v_recall.session_id, v_recall.nominal_at,
        -- Its worker may be a little off about the database's clock, or far.
        greatest(least(coalesce(finish.started_at, v_recall.claimed_at), v_now), v_recall.claimed_at),
        v_now, v_recall.worker_id, v_recall.attempt, finish.outcome, finish.reason, finish.reply, finish.error,
        finish.usage
    );
    perform pgrecall._queue_delivery(v_recall, finish.run_id, finish.reply, finish.outcome, finish.started_at);
    if finish.append_reply and btrim(finish.reply, E' \t\r\n') <> '' then
        insert into pgrecall.session_messages (session_id, id, role, content, metadata)
        values (
            v_recall.session_id,
            pgrecall.occurrence_message_id(v_recall.id, v_recall.nominal_at) || ':reply',
            'assistant',
            finish.reply,
            jsonb_build_object('recall_id', v_recall.id, 'run_id', finish.run_id)
        )
        on conflict do nothing;
    end if;

    if finish.outcome = 'skipped' then
        -- There is nothing left to run it in.
        update pgrecall.session_recalls
        set status = 'cancelled',
            run_id = null,
            worker_id = null,
            claimed_at = null,
            last_error = finish.reason
        where session_recalls.id = v_recall.id;
    elsif v_recall.status = 'running'
        and finish.outcome not in ('success', 'silent')
        and finish.retry
        and v_recall.trigger_at = v_recall.nominal_at
        and (not finish.counted or v_recall.attempt < v_recall.max_attempts)
    then
        v_attempt := v_recall.attempt - case when finish.counted then 0 else 1 end;
        perform pgrecall._give_back(
            v_recall.id,
            v_attempt,
            case
                when finish.retry_after is not null
                    then v_now + greatest(least(finish.retry_after, interval '1 year'), interval '0')
                when finish.counted then v_now + pgrecall._retry_delay(v_recall.attempt)
            end
        );
        update pgrecall.session_recalls
        set last_error = coalesce(finish.error, finish.reason)
        where session_recalls.id = v_recall.id;
    else
        perform pgrecall._end_occurrence(
            v_recall,
            case when finish.outcome in ('success', 'silent') then 'fired' else 'failed' end,
            case when finish.outcome not in ('success', 'silent') then coalesce(finish.error, finish.reason) end
        );
    end if;
    perform pgrecall._free_session(v_recall.session_id, finish.run_id);
    perform pgrecall._forget_reports(v_recall.id);

    return query
    select true, ended.status, ended.trigger_at, ended.due_at, ended.attempt
    from pgrecall.session_recalls as ended
    where ended.id = v_recall.id;
end;
$$;
comment on function pgrecall.finish(text, bigint, text, timestamptz, text, text, text, jsonb, boolean, interval, boolean, boolean) is
    'Ends a run: records it in recall_runs (started_at: when the agent was reached, by the database''s clock; null: when it was claimed), adds the reply to the session (append_reply), frees the session, and decides what becomes of the recall. A success makes it fired, a recurring one pending at its next time. A failure is tried again after retry_after (at most a year; null: _retry_delay) if retry is true and attempts are left; otherwise a recurring recall is pending at its next time and any other is failed. counted = false does not count the attempt and needs no backoff: for a worker that stops. outcome skipped cancels the recall. accepted is false, and nothing but recall_runs.refused_at changes, if run_id was lost to another worker; making the same call again is harmless. Called by workers. Raises: PR005 outcome is not how a run ends. Locks: recall, then session.';
