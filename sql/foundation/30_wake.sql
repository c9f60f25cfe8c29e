-- Waking sleepers: the trigger functions of session_recalls.
--
-- A recall is *eligible* while its due_at is set; due_at is a generated column, so the trigger, the claim and every
-- worker's timer mean the same rows by construction. Whatever must not run for now leaves the eligible set by an
-- UPDATE (due_at becomes null or later) and comes back by one, which announces it again.
--
-- Two things make it safe to stay silent for most rows (docs/wake-up.md has the argument in full):
--   * the wake-up lock, advisory key 8099568234633718892 ('pgrecall' as a big-endian number): a producer holds it
--     shared from its decision to its commit; a worker that reads the earliest due time holds it exclusively, so it
--     sees every row whose producer decided before, and every later producer sees what that worker wrote down;
--   * the register, the sequence armed_until: microseconds since 1970 by which every sleeping worker wakes up anyway.
--     It is a sequence because a sequence is read in place, not through a snapshot: a REPEATABLE READ producer sees
--     the present.

create or replace function pgrecall._announce_due()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_due bigint;
    v_told bigint;
    v_sign text := '+';
begin
    if new.due_at is null then
        return null;
    end if;
    if tg_op = 'UPDATE' then
        if old.due_at <= new.due_at then
            return null;
        end if;
    end if;
    v_due := extract(epoch from new.due_at) * 1000000;

    -- This transaction has announced a time that is no later: one message wakes for both.
    v_told := nullif(current_setting('pgrecall.told', true), '')::bigint;
    if v_told <= v_due then
        return null;
    end if;
    -- Or it has found that nobody need be told of such a time. It keeps the lock to its commit, so that still holds; and
    -- the rows of a large insert need not find out one by one, past all rows that others are just inserting.
    if nullif(current_setting('pgrecall.untold_from', true), '')::bigint <= v_due then
        return null;
    end if;

    -- Never wait for the lock: a producer must not hang behind a worker. Refused means "decide nothing, announce".
    if pg_try_advisory_xact_lock_shared(8099568234633718892) then
        v_sign := '';
        -- The common road: every sleeper wakes up before this recall is due. (Null after a crash: announce.)
        if v_due >= pg_sequence_last_value('pgrecall.armed_until') then
            perform set_config('pgrecall.untold_from', v_due::text, true);
            return null;
        end if;
        -- An earlier eligible row has woken everybody who matters already. Only READ COMMITTED sees the present here,
        -- in a statement of its own. Strictly earlier: equal rows of one statement would silence each other. Within a
        -- second: any subset is safe, and this one never walks far over dead index entries.
        if current_setting('transaction_isolation') = 'read committed' then
            perform
            from pgrecall.session_recalls as earlier
            where earlier.due_at < new.due_at
                and earlier.due_at > new.due_at - interval '1 second'
            order by earlier.due_at desc
            limit 1;
            if found then
                perform set_config('pgrecall.untold_from', v_due::text, true);
                return null;
            end if;
        end if;
    end if;

    -- At most two messages for a transaction however many rows: the first names its time, the second says "look now".
    if v_told is not null then
        v_due := 0;
    end if;
    perform set_config('pgrecall.told', v_due::text, true);
    -- With a sign when the lock was refused: a worker that looks right now may not see this row, so what it tells the
    -- others ("next …", see claim) must not make them forget this message.
    perform pg_notify('pgrecall', 'due ' || v_sign || v_due);
    return null;
end;
$$;
comment on function pgrecall._announce_due() is
    'Wakes the workers if this row is due before they would wake by themselves. Called by the triggers announce_insert and announce_update at commit. Locks: the wake-up lock, shared, never waiting. Notifies: channel pgrecall, payload ''due <microseconds since 1970>'', or ''due +<microseconds since 1970>'' if the lock was refused; 0 means look now.';

create or replace function pgrecall._before_recall_update()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    new.updated_at := pgrecall.clock();
    -- A time out of turn is forgotten with that time: whoever names another one begins a grid there, or is on it.
    if new.trigger_at is distinct from old.trigger_at and new.grid_at is not distinct from old.grid_at then
        new.grid_at := null;
    end if;
    -- Whoever asked for a stop meant this run.
    if new.run_id is distinct from old.run_id or new.run_id is null then
        new.stopped_by := null;
        new.stop_reason := null;
        new.after_stop := null;
    end if;
    if new.paused_at is null then
        new.pause_id := null;
    elsif new.pause_id is not null and new.status not in ('pending', 'running') then
        -- The pause of its session or user was about what is still to run.
        new.paused_at := null;
        new.paused_until := null;
        new.pause_reason := null;
        new.pause_id := null;
    end if;
    if old.run_id is null then
        -- A new time, or a finished recall set back to pending, asks for a new occurrence: earlier attempts, backoff
        -- and deferral were about the old one. finish() moves recurring recalls itself, and they hold a run until then.
        if new.trigger_at is distinct from old.trigger_at
            or (new.status = 'pending' and old.status in ('fired', 'failed', 'cancelled'))
        then
            new.attempt := 0;
            new.deferrals := 0;
            new.deferred_since := null;
            -- One that is between two attempts without being pending (see _give_back) stays eligible by not_before.
            new.not_before := case
                when old.status = 'running' and new.status = 'running' and old.not_before is not null then new.trigger_at
            end;
            new.defer_reason := null;
            -- Whoever says so without skip_next_recall() has a move of its own recall recorded as what it is, too.
            if new.status = 'pending'
                and old.status = 'pending'
                and old.call_type = 'recurring'
                and new.trigger_at > old.trigger_at
                and current_setting('pgrecall.skips', true) = old.id
            then
                insert into pgrecall.recall_runs (recall_id, session_id, nominal_at, finished_at, outcome, reason)
                values (old.id, old.session_id, old.trigger_at, new.updated_at, 'skipped', 'skipped by request');
            end if;
        elsif new.defer_reason is not null
            and (new.idle_for_seconds, new.max_defer_seconds, new.on_max_defer)
                is distinct from (old.idle_for_seconds, old.max_defer_seconds, old.on_max_defer)
        then
            -- It was put off by the old terms: the next look weighs it by the new ones.
            new.not_before := case when new.status = 'running' then new.trigger_at end;
        elsif old.status <> 'running' and new.status = 'running' and new.run_id is null then
            -- Another service takes it to run it itself.
            new.not_before := null;
            new.defer_reason := null;
        end if;
        -- Ended without a run, by a function or by a plain UPDATE: the occurrence leaves a row all the same.
        if old.status in ('pending', 'running') and new.status in ('fired', 'failed', 'cancelled') then
            if new.status = 'cancelled' and current_setting('pgrecall.reason', true) <> '' then
                new.last_error := left(current_setting('pgrecall.reason'), 500);
            end if;
            insert into pgrecall.recall_runs (
                recall_id, session_id, nominal_at, finished_at, deferrals, defer_reason, outcome, reason
            )
            values (
                old.id, old.session_id, old.trigger_at, new.updated_at, old.deferrals, old.defer_reason,
                case when new.status = 'fired' then 'success' else 'skipped' end,
                case
                    when new.status = 'fired' then 'marked as fired'
                    when new.last_error is distinct from old.last_error then coalesce(new.last_error, new.status)
                    else new.status
                end
            );
        end if;
    elsif new.session_id is distinct from old.session_id then
        raise exception 'recall % is in a run, so it cannot move to another session', quote_literal(old.id)
            using errcode = 'PR004', detail = old.status, hint = 'Cancel it, and schedule a new one there.';
    elsif new.run_id = old.run_id and old.status = 'running' and new.status <> 'running' then
        -- Somebody other than the run's own worker ended it (finish() clears run_id in the same statement). The worker
        -- keeps the session until it says that the agent has stopped, so that nothing else runs there meanwhile.
        perform pg_notify('pgrecall', 'stop ' || old.run_id);
    end if;
    -- By hand? Whatever moves run_id is the engine, and so is what moves pause_id (the pause itself is in the audit);
    -- what else the engine does changes none of these columns. Here, because a trigger more would cost every claim.
    if new.run_id is not distinct from old.run_id
        and (
            (
                new.id, new.session_id, new.call_type, new.trigger_at, new.interval_seconds, new.internal_comment,
                new.additional_context_message, new.status, new.cron, new.time_zone, new.end_at, new.max_attempts,
                new.timeout_seconds, new.idle_for_seconds, new.max_defer_seconds, new.on_max_defer, new.on_interrupt,
                new.pause_after_failures, new.deliver_to, new.created_by, new.idempotency_key, new.metadata,
                new.scheduled_by, new.grid_at, new.stopped_by, new.stop_reason, new.after_stop
            ) is distinct from (
                old.id, old.session_id, old.call_type, old.trigger_at, old.interval_seconds, old.internal_comment,
                old.additional_context_message, old.status, old.cron, old.time_zone, old.end_at, old.max_attempts,
                old.timeout_seconds, old.idle_for_seconds, old.max_defer_seconds, old.on_max_defer, old.on_interrupt,
                old.pause_after_failures, old.deliver_to, old.created_by, old.idempotency_key, old.metadata,
                old.scheduled_by, old.grid_at, old.stopped_by, old.stop_reason, old.after_stop
            )
            or new.pause_id is not distinct from old.pause_id
            and (new.paused_at, new.paused_until, new.pause_reason)
                is distinct from (old.paused_at, old.paused_until, old.pause_reason)
        )
    then
        perform pgrecall._audit('update', 'session_recalls', old.id, old.session_id, to_jsonb(old), to_jsonb(new));
    end if;
    return new;
end;
$$;
comment on function pgrecall._before_recall_update() is
    'Keeps updated_at, starts a new occurrence when trigger_at is changed, records an occurrence that is ended without a run (for the reason in the setting pgrecall.reason) or skipped (the setting pgrecall.skips names the recall), forgets what no longer holds (grid_at, the stop of another run, pause_id), tells a running agent to stop when its recall is no longer running, and writes a change by hand into the audit. Called by the trigger recall_update. Notifies: channel pgrecall, payload ''stop <run_id>''.';

create or replace function pgrecall._after_recall_delete()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if old.run_id is not null then
        -- The run is told to stop; until it has, or for the length of a usual lease, its session stays taken.
        perform pg_notify('pgrecall', 'stop ' || old.run_id);
        update pgrecall.sessions
        set held_until = pgrecall.clock() + interval '30 seconds'
        where sessions.id = old.session_id
            and sessions.run_id = old.run_id;
    end if;
    perform pgrecall._record_deleted(old);
    return null;
end;
$$;
comment on function pgrecall._after_recall_delete() is
    'Records the occurrence of a recall that is deleted before it ended, and stops its run if it has one. Called by the trigger recall_delete. Notifies: channel pgrecall, payload ''stop <run_id>''.';

create or replace function pgrecall._before_recalls_truncate()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_notify('pgrecall', 'stop all');
    update pgrecall.sessions
    set held_until = pgrecall.clock() + interval '30 seconds'
    where sessions.run_id is not null;
    perform pgrecall._record_deleted(recall)
    from pgrecall.session_recalls as recall
    where recall.run_id is not null
        or recall.status in ('pending', 'running');
    perform pgrecall._audit('truncate', 'session_recalls', null, null, null, null);
    return null;
end;
$$;
comment on function pgrecall._before_recalls_truncate() is
    'Stops all runs when session_recalls is truncated, and records every occurrence that had not ended. Called by the trigger recalls_truncate. Notifies: channel pgrecall, payload ''stop all''.';

create or replace function pgrecall._after_user_message()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_at constant timestamptz := least(new.created_at, pgrecall.clock());
begin
    update pgrecall.sessions
    set active_at = v_at
    where sessions.id = new.session_id
        and (sessions.active_at is null or sessions.active_at < v_at);
    return null;
end;
$$;
comment on function pgrecall._after_user_message() is
    'Records that somebody has spoken in a session. Called by the trigger message_of_user at commit: whoever adds a message and then changes a recall keeps to the lock order, recall before session. Locks: the session row.';

create or replace function pgrecall._after_settings_update()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if new.max_runs_per_day is distinct from old.max_runs_per_day then
        perform pgrecall._weigh_again(null);
    end if;
    -- While all is paused the workers do not wait for what is due (see claim): they must hear of the end.
    perform pg_notify('pgrecall', 'due 0');
    return null;
end;
$$;
comment on function pgrecall._after_settings_update() is
    'Makes every worker look now, also at the recalls that a changed limit of runs a day has put off. Called by the trigger settings_update. Notifies: channel pgrecall, payload ''due 0''.';

create or replace function pgrecall._after_session_limit_update()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgrecall._weigh_again(new.id);
    return null;
end;
$$;
comment on function pgrecall._after_session_limit_update() is
    'Has the recalls looked at again that the session''s limit of runs a day has put off. Called by the trigger session_limit_update. Notifies: through the trigger announce_update.';

create or replace function pgrecall._after_session_owner_update()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (
        select
        from pgrecall.pauses as pause
        where pause.user_id = old.user_id
    ) then
        return null;
    end if;
    -- Against the usual order this waits for a recall while it has the session; but who has a paused recall locked
    -- hardly ever wants its session. If the new owner is paused, too, claim() finds that out.
    update pgrecall.session_recalls as recall
    set paused_at = null,
        paused_until = null,
        pause_reason = null
    where recall.session_id = new.id
        and recall.pause_id in (
            select pause.id
            from pgrecall.pauses as pause
            where pause.user_id = old.user_id
        );
    return null;
end;
$$;
comment on function pgrecall._after_session_owner_update() is
    'Resumes the recalls of a session that its former owner''s pause has paused. Called by the trigger session_owner_update. Locks: these recalls. Notifies: through the trigger announce_update.';

create or replace function pgrecall._before_settings_removal()
returns trigger
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'the row of pgrecall.settings cannot be removed'
        using errcode = 'PR005', hint = 'Change it: update pgrecall.settings set …; to stop everything: pgrecall.pause_all().';
end;
$$;
comment on function pgrecall._before_settings_removal() is
    'Refuses to remove the settings. Called by the trigger settings_stay. Raises: PR005.';
