-- Running a recall when an operator wants it: now, before its time, or once more after it has ended.

create or replace function pgrecall._is_paused(recall pgrecall.session_recalls)
returns boolean
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
    select recall.paused_at is not null and coalesce(recall.paused_until, 'infinity') > pgrecall.clock();
$$;
comment on function pgrecall._is_paused(pgrecall.session_recalls) is
    'Whether a recall is paused now; that of its session or user counts from when it was found due. Called by run_now and run_recalls_now.';

create or replace function pgrecall._make_due(recall pgrecall.session_recalls)
returns pgrecall.session_recalls
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_now timestamptz := pgrecall.clock();
    v_recall pgrecall.session_recalls;
begin
    if recall.due_at is null or recall.due_at <= v_now then
        return null;
    elsif recall.trigger_at > v_now then
        update pgrecall.session_recalls
        set trigger_at = v_now,
            grid_at = case when recall.call_type = 'recurring' and recall.cron is null then recall.trigger_at end
        where session_recalls.id = recall.id
        returning * into v_recall;
    else
        update pgrecall.session_recalls
        -- One between two attempts that is not pending (see _give_back) is eligible by not_before alone.
        set not_before = case when recall.status = 'running' then recall.trigger_at end
        where session_recalls.id = recall.id
        returning * into v_recall;
    end if;
    return v_recall;
end;
$$;
comment on function pgrecall._make_due(pgrecall.session_recalls) is
    'Makes a recall due that waits for its time, a retry or a deferral, and returns it; null: it is due, in a run or ended, and nothing changed. Called by run_now and run_recalls_now, which hold the row lock and have seen that it is not paused. Notifies: through the trigger announce_update.';

create or replace function pgrecall.run_now(recall_id text)
returns pgrecall.session_recalls
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
    v_pause pgrecall.pauses;
    v_changed pgrecall.session_recalls;
begin
    select known.*
    into v_recall
    from pgrecall.session_recalls as known
    where known.id = run_now.recall_id
    for no key update;
    if not found then
        perform pgrecall._missing_recall(run_now.recall_id);
    elsif v_recall.status not in ('pending', 'running') then
        perform pgrecall._refuse_status(
            v_recall.id,
            'run now',
            hint => case
                when v_recall.status = 'fired' then 'Schedule a new one with schedule_recall().'
                else 'To run it once more: retry_recall().'
            end
        );
    elsif v_recall.run_id is not null then
        return v_recall;
    end if;
    select pause.*
    into v_pause
    from pgrecall.pauses as pause
    where pause.id = (
        select pgrecall._paused_by(session.id, session.user_id)
        from pgrecall.sessions as session
        where session.id = v_recall.session_id
    );
    if found or pgrecall._is_paused(v_recall) then
        raise exception 'recall % is paused, so it cannot be run now: %',
            quote_literal(v_recall.id),
            case
                when v_pause.id is not null then pgrecall._pause_text(v_pause)
                else coalesce(v_recall.pause_reason, 'no reason was given')
            end
            using
                errcode = 'PR004',
                detail = v_recall.status,
                hint = case
                    when v_pause.session_id is not null then 'End the pause of its session first: resume_session().'
                    when v_pause.user_id is not null then 'End the pause of its user first: resume_user().'
                    else 'End its pause first: resume_recall().'
                end;
    end if;
    v_changed := pgrecall._make_due(v_recall);
    return case when v_changed.id is null then v_recall else v_changed end;
end;
$$;
comment on function pgrecall.run_now(text) is
    'Makes a pending recall due at once, and returns it. One whose time is to come gets the present as its time; a recurring one goes on along its own schedule afterwards, so the occurrence that it would have had next is not replaced. One that waits for a retry or a deferral waits no longer. A session that is held, wanted quiet, or has had its runs of a day is still waited for, and so is resume_all(). One that is due or runs already is returned as it is. Called by operators. Raises: PR003 no such recall, PR004 it has ended, or it, its session or its user is paused. Notifies: through the trigger announce_update.';

create or replace function pgrecall._set_pending(recall pgrecall.session_recalls)
returns pgrecall.session_recalls
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before constant text := current_setting('lock_timeout');
    v_recall pgrecall.session_recalls;
begin
    -- Another pending recall of the session that is not committed yet would make the unique index wait for its
    -- transaction, which may take long, or wait for us.
    perform set_config('lock_timeout', '50', true);
    begin
        -- The trigger recall_update begins the occurrence anew: attempts, deferrals.
        update pgrecall.session_recalls
        set status = 'pending',
            paused_at = null,
            paused_until = null,
            pause_reason = null
        where session_recalls.id = recall.id
        returning * into v_recall;
    exception
        when unique_violation or lock_not_available or deadlock_detected then
            v_recall := null;
    end;
    perform set_config('lock_timeout', v_before, true);
    return v_recall;
end;
$$;
comment on function pgrecall._set_pending(pgrecall.session_recalls) is
    'Makes a recall pending again that has ended, and returns it; null: its session has another pending one. Called by retry_recall and retry_recalls, which hold the row lock. Notifies: through the trigger announce_update.';

create or replace function pgrecall.retry_recall(recall_id text)
returns pgrecall.session_recalls
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
begin
    select known.*
    into v_recall
    from pgrecall.session_recalls as known
    where known.id = retry_recall.recall_id
    for no key update;
    if not found then
        perform pgrecall._missing_recall(retry_recall.recall_id);
    elsif v_recall.status in ('pending', 'running') then
        return v_recall;
    elsif v_recall.status not in ('failed', 'cancelled') then
        perform pgrecall._refuse_status(
            v_recall.id, 'tried again', hint => 'Only a failed or cancelled recall can: schedule a new one instead.'
        );
    end if;
    v_recall := pgrecall._set_pending(v_recall);
    if v_recall.id is null then
        perform pgrecall._refuse_second_recall(known.session_id)
        from pgrecall.session_recalls as known
        where known.id = retry_recall.recall_id;
    end if;
    return v_recall;
end;
$$;
comment on function pgrecall.retry_recall(text) is
    'Makes a failed or cancelled recall pending again and returns it: the same occurrence, with all its attempts before it. It is due at once, unless it was cancelled before its time, which it waits for then (see run_now()). If a run that it was cancelled in has not stopped yet, it waits for that. A pause of its own is over. One that is pending or running is returned as it is. Called by operators. Raises: PR001 the session has another pending recall, PR003 no such recall, PR004 it has fired. Notifies: through the trigger announce_update.';
