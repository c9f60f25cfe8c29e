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
        id, recall_id, session_id, nominal_at, started_at, finished_at, worker_id, attempt, deferrals, defer_reason,
        outcome, reason
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
        recall.deferrals,
        recall.defer_reason,
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
    v_failures integer := recall.failures;
    v_pauses boolean;
begin
    if recall.status = 'running' and recall.trigger_at is distinct from recall.nominal_at then
        -- Rescheduled while it ran: the new time is a new occurrence.
        perform pgrecall._give_back(recall.id, 0, null);
        update pgrecall.session_recalls
        set deferrals = 0,
            deferred_since = null,
            last_error = _end_occurrence.error
        where session_recalls.id = recall.id;
        return;
    end if;
    if recall.status = 'running' then
        v_next := pgrecall._next_occurrence(recall, greatest(recall.nominal_at, pgrecall.clock()));
        perform pgrecall._record_missed(recall, v_next);
        v_failures := case new_status when 'failed' then least(recall.failures + 1, 1000000000) when 'fired' then 0 else recall.failures end;
    end if;
    v_pauses := v_next is not null and v_failures > recall.failures and v_failures >= recall.pause_after_failures;
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
        deferred_since = null,
        not_before = null,
        defer_reason = null,
        failures = v_failures,
        paused_at = case when v_pauses then pgrecall.clock() else recall.paused_at end,
        paused_until = case when v_pauses then null else recall.paused_until end,
        pause_reason = case
            when v_pauses then format('%s failures in a row, the last: %s', v_failures, left(_end_occurrence.error, 500))
            else recall.pause_reason
        end,
        pause_id = case when v_pauses then null else recall.pause_id end,
        run_id = null,
        worker_id = null,
        claimed_at = null,
        last_error = case when recall.status = 'running' then _end_occurrence.error else recall.last_error end
    where session_recalls.id = recall.id;
end;
$$;
comment on function pgrecall._end_occurrence(pgrecall.session_recalls, text, text) is
    'Ends the occurrence that a recall is running: a recurring recall is pending again at its next time on its own schedule, with the times that passed meanwhile recorded as missed; any other gets new_status. new_status failed counts as a failure, and after pause_after_failures of them in a row a recurring recall is paused; fired ends the row. Called by finish and _end_lost_run, which hold the row lock. Notifies: through the trigger announce_update.';

create or replace function pgrecall._append_outcome(
    recall pgrecall.session_recalls,
    messages jsonb,
    in_history boolean
)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_id text;
    v_reply bigint;
begin
    if jsonb_typeof(messages) <> 'array' or jsonb_path_exists(messages, 'strict $[*] ? (@.type() <> "object")') then
        raise exception 'messages is not an array of objects: %', left(messages::text, 100)
            using errcode = 'PR005', hint = 'For example ''[{"role": "assistant", "content": "Done."}]''.';
    elsif jsonb_path_exists(
        messages,
        '$[*] ? (exists(@.in_history) && @.in_history.type() != "boolean" || exists(@.in_context) && @.in_context.type() != "boolean")'
    ) then
        raise exception 'in_history or in_context of a message is not true or false: %', left(messages::text, 100)
            using errcode = 'PR005', hint = 'Leave them out for a message that people and the model see.';
    end if;
    v_id := pgrecall.occurrence_message_id(recall.id, recall.nominal_at);
    v_reply := (
        select max(message.place)
        from jsonb_array_elements(messages) with ordinality as message (value, place)
        where message.value ->> 'role' = 'assistant'
    );
    insert into pgrecall.session_messages (session_id, id, role, content, in_history, in_context, metadata)
    select
        recall.session_id,
        v_id || case when message.place = v_reply then ':reply' else ':' || message.place end,
        message.value ->> 'role',
        coalesce(message.value ->> 'content', ''),
        _append_outcome.in_history and coalesce((message.value ->> 'in_history')::boolean, true),
        coalesce((message.value ->> 'in_context')::boolean, true),
        coalesce(message.value -> 'metadata', '{}')
            || jsonb_build_object('recall_id', recall.id, 'run_id', recall.run_id)
    from jsonb_array_elements(messages) with ordinality as message (value, place)
    order by message.place
    on conflict do nothing;
end;
$$;
comment on function pgrecall._append_outcome(pgrecall.session_recalls, jsonb, boolean) is
    'Adds what a run has said to its session, with ids that are made of the occurrence''s. Called by finish. Raises: PR005 not an array of objects, or a named CHECK.';

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
    append_reply boolean default false,
    messages jsonb default null
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
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_recall pgrecall.session_recalls;
    v_now timestamptz := pgrecall.clock();
    v_outcome text := finish.outcome;
    v_reason text := finish.reason;
    v_retry boolean := finish.retry;
    v_counted boolean := finish.counted;
    v_interrupted_by text;
    v_is_stopped boolean := false;
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

    if v_outcome = 'success'
        and btrim(finish.reply, E' \t\r\n') = (select known.silent_token from pgrecall.settings as known)
    then
        v_outcome := 'silent';
    elsif v_recall.stopped_by is not null and v_recall.status = 'running' and v_outcome <> 'success' then
        -- Also if the agent has answered the stop with an error: that is no reason to run it again, nor a failure.
        v_is_stopped := v_outcome in ('interrupted', 'error', 'timeout');
        if v_is_stopped then
            v_reason := pgrecall._stop_text(v_recall);
            v_retry := pgrecall._runs_again(v_recall);
            v_counted := false;
        end if;
    elsif v_outcome = 'interrupted' and v_recall.status = 'running' then
        select taken.interrupted_by
        into v_interrupted_by
        from pgrecall.sessions as taken
        where taken.id = v_recall.session_id
            and taken.run_id = finish.run_id
        for no key update;
        if v_interrupted_by is not null then
            v_reason := 'interrupted by the chat ' || v_interrupted_by;
            v_retry := v_recall.on_interrupt = 'retry';
            v_counted := false;
        end if;
    end if;

    insert into pgrecall.recall_runs (
        id, recall_id, session_id, nominal_at, started_at, finished_at, worker_id, attempt, deferrals, defer_reason,
        outcome, reason, reply, error, usage
    )
    values (
        finish.run_id, v_recall.id, v_recall.session_id, v_recall.nominal_at,
        -- Its worker may be a little off about the database's clock, or far.
        greatest(least(coalesce(finish.started_at, v_recall.claimed_at), v_now), v_recall.claimed_at),
        v_now, v_recall.worker_id, v_recall.attempt, v_recall.deferrals, v_recall.defer_reason, v_outcome, v_reason,
        finish.reply, finish.error, finish.usage
    );
    perform pgrecall._queue_delivery(v_recall, finish.run_id, finish.reply, v_outcome, finish.started_at);
    if v_outcome in ('success', 'silent') and finish.messages is not null then
        perform pgrecall._append_outcome(v_recall, finish.messages, v_outcome = 'success');
    elsif finish.append_reply and v_outcome = 'success' and btrim(finish.reply, E' \t\r\n') <> '' then
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

    if v_outcome = 'skipped' then
        -- There is nothing left to run it in.
        update pgrecall.session_recalls
        set status = 'cancelled',
            run_id = null,
            worker_id = null,
            claimed_at = null,
            last_error = v_reason
        where session_recalls.id = v_recall.id;
    elsif v_recall.status = 'running'
        and v_outcome not in ('success', 'silent')
        and v_retry
        and v_recall.trigger_at = v_recall.nominal_at
        and (not v_counted or v_recall.attempt < v_recall.max_attempts)
    then
        perform pgrecall._give_back(
            v_recall.id,
            v_recall.attempt - case when v_counted then 0 else 1 end,
            case
                when v_interrupted_by is not null then v_now + interval '60 seconds'
                when v_is_stopped then null
                when finish.retry_after is not null
                    then v_now + greatest(least(finish.retry_after, interval '1 year'), interval '0')
                when v_counted then v_now + pgrecall._retry_delay(v_recall.attempt)
            end
        );
        update pgrecall.session_recalls
        set last_error = coalesce(finish.error, v_reason),
            -- Put off for a chat, like one whose session was taken: due again when the chat has ended.
            deferrals = case
                when v_interrupted_by is null then session_recalls.deferrals
                else least(session_recalls.deferrals + 1, 1000000000)
            end,
            deferred_since = case
                when v_interrupted_by is null then session_recalls.deferred_since
                else coalesce(session_recalls.deferred_since, v_now)
            end,
            defer_reason = case when v_interrupted_by is not null then v_reason end
        where session_recalls.id = v_recall.id;
        if v_interrupted_by is not null then
            update pgrecall.sessions
            set has_waiting = true
            where sessions.id = v_recall.session_id;
        end if;
    else
        perform pgrecall._end_occurrence(
            v_recall,
            case
                when v_outcome in ('success', 'silent') then 'fired'
                when v_interrupted_by is not null or v_is_stopped then 'cancelled'
                else 'failed'
            end,
            case when v_outcome not in ('success', 'silent') then coalesce(finish.error, v_reason) end
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
comment on function pgrecall.finish(text, bigint, text, timestamptz, text, text, text, jsonb, boolean, interval, boolean, boolean, jsonb) is
    'Ends a run: records it in recall_runs (started_at: when the agent was reached, by the database''s clock; null: when it was claimed), adds messages to the session, or the reply if there are none (append_reply), frees the session, and decides what becomes of the recall. A success makes it fired, a recurring one pending at its next time. A failure is tried again after retry_after (at most a year; null: _retry_delay) if retry is true and attempts are left; otherwise a recurring recall is pending at its next time and any other is failed. counted = false does not count the attempt and needs no backoff: for a worker that stops. outcome skipped cancels the recall. A success whose reply is settings.silent_token is recorded as silent, and its messages are for the model only. interrupted, while a chat has asked for that, runs again when the chat has ended, or is left out, by the recall''s on_interrupt. A run that stop_run() has told to stop, and that has no success, is not counted and ends as was asked there. accepted is false, and nothing but recall_runs.refused_at changes, if run_id was lost to another worker; making the same call again is harmless. Called by workers. Raises: PR005 outcome is not how a run ends. Locks: recall, then session.';

create or replace function pgrecall.finish_unobstructed(
    run_ids bigint[],
    outcomes text[],
    started_at timestamptz[],
    replies text[],
    append_reply boolean default false
)
returns table (
    run_id bigint,
    accepted boolean
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- Planning it costs more than doing it, and it is a few rows by their keys whatever the arguments are.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
-- Before PostgreSQL 18 a table that can be read in no other way, as the one row of settings, then counts as so dear that
-- the plan would be compiled each time: 0.1 s.
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    v_blank constant text := E' \t\r\n';
    v_now timestamptz := pgrecall.clock();
begin
    if not finish_unobstructed.outcomes <@ array['success', 'silent'] then
        raise exception 'outcomes is %, but each of them must be success or silent', left(finish_unobstructed.outcomes::text, 100)
            using errcode = 'PR005', hint = 'finish() takes the others, one by one.';
    end if;
    return query
    with weighed as materialized (
        select
            running.*,
            given.started_at,
            given.reply,
            case when btrim(given.reply, v_blank) = known.silent_token then 'silent' else given.outcome end as outcome
        from unnest(
            finish_unobstructed.run_ids,
            finish_unobstructed.outcomes,
            finish_unobstructed.started_at,
            finish_unobstructed.replies
        ) as given (run_id, outcome, started_at, reply)
        cross join pgrecall.settings as known
        -- Lateral, so that each run is looked up by its number, and not each number in all runs that there are.
        cross join lateral (
            select
                recall.id,
                recall.session_id,
                recall.nominal_at,
                recall.claimed_at,
                recall.worker_id,
                recall.attempt,
                recall.deferrals,
                recall.defer_reason,
                recall.run_id,
                (
                    recall.status = 'running'
                    and recall.call_type <> 'recurring'
                    and recall.trigger_at = recall.nominal_at
                    and recall.stopped_by is null
                    and recall.paused_at is null
                    and recall.deliver_to is null
                    and session.deliver_to is null
                    and session.run_id = recall.run_id
                    and session.line_until is null
                    and not session.has_waiting
                    and not exists (
                        select
                        from pgrecall.run_reports as report
                        where report.recall_id = recall.id
                    )
                ) is true as is_unobstructed
            from pgrecall.session_recalls as recall
            join pgrecall.sessions as session on session.id = recall.session_id
            where recall.run_id = given.run_id
            for no key update of recall, session skip locked
        ) as running
    ),
    fired as (
        update pgrecall.session_recalls as recall
        set status = 'fired',
            deferred_since = null,
            not_before = null,
            defer_reason = null,
            failures = 0,
            run_id = null,
            worker_id = null,
            claimed_at = null,
            last_error = null,
            updated_at = v_now
        from weighed
        where weighed.is_unobstructed
            and recall.id = weighed.id
    ),
    freed as (
        update pgrecall.sessions as session
        set run_id = null,
            holder = null,
            held_since = null,
            held_until = null,
            interrupted_by = null,
            wanted_by = null
        from weighed
        where weighed.is_unobstructed
            and session.id = weighed.session_id
    ),
    recorded as (
        insert into pgrecall.recall_runs (
            id, recall_id, session_id, nominal_at, started_at, finished_at, worker_id, attempt, deferrals,
            defer_reason, outcome, reply
        )
        select
            ended.run_id,
            ended.id,
            ended.session_id,
            ended.nominal_at,
            greatest(least(coalesce(ended.started_at, ended.claimed_at), v_now), ended.claimed_at),
            v_now,
            ended.worker_id,
            ended.attempt,
            ended.deferrals,
            ended.defer_reason,
            ended.outcome,
            ended.reply
        from weighed as ended
        where ended.is_unobstructed
    ),
    added as (
        insert into pgrecall.session_messages (session_id, id, role, content, metadata)
        select
            ended.session_id,
            pgrecall.occurrence_message_id(ended.id, ended.nominal_at) || ':reply',
            'assistant',
            ended.reply,
            jsonb_build_object('recall_id', ended.id, 'run_id', ended.run_id)
        from weighed as ended
        where ended.is_unobstructed
            and finish_unobstructed.append_reply
            and ended.outcome = 'success'
            and btrim(ended.reply, v_blank) <> ''
        order by ended.run_id
        on conflict do nothing
    )
    select weighed.run_id, weighed.is_unobstructed
    from weighed;
end;
$$;
comment on function pgrecall.finish_unobstructed(bigint[], text[], timestamptz[], text[], boolean) is
    'The short way of finish() for many runs in one transaction, for what is nearly always so: a success (or silent) of a recall that runs once, with a reply at most, and nothing that has to be done about it: nobody waits for the session, nothing is delivered, the recall was not cancelled, moved or stopped meanwhile. Ends these runs exactly as finish() does: accepted. The others are left as they are, for finish(): not accepted. Not in the answer is who is not, or no more, in that run, and whose row somebody has locked, such as a claim() that has come upon it, for a moment. Called by workers. Raises: PR005 another outcome. Locks: recalls and sessions, skipping locked ones.';
