-- What callers do with recalls: ask for one, look at them, change them. Each function has a method of the same name
-- and parameters in Python, and each is what a plain INSERT, UPDATE or SELECT would do, with kinder errors.
--
-- SQLSTATEs raised here, one exception class each in Python:
--   PR001 the session has a pending recall    PR002 no such session    PR003 no such recall
--   PR004 the recall's status does not allow it                        PR005 an argument makes no sense
-- and in 45_holds.sql PR006, in 77_agents.sql PR007, in 90_host.sql PR008.

create or replace function pgrecall._next_occurrence(recall pgrecall.session_recalls, after timestamptz)
returns timestamptz
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_next timestamptz;
    v_step interval;
begin
    if recall.call_type <> 'recurring' then
        return null;
    end if;
    begin
        if recall.cron is not null then
            v_next := pgrecall.cron_next(recall.cron, recall.time_zone, after);
        else
            v_step := make_interval(secs => recall.interval_seconds);
            -- Grid points are trigger_at + n * step; the first one strictly after `after`, and never trigger_at itself.
            -- One that runs out of turn has its grid from grid_at, which may be still to come and then is the next one.
            v_next := coalesce(recall.grid_at, recall.trigger_at) + v_step * greatest(
                floor(
                    extract(epoch from after - coalesce(recall.grid_at, recall.trigger_at)) / recall.interval_seconds
                ) + 1,
                case when recall.grid_at is null then 1 else 0 end
            )::double precision;
        end if;
    exception
        when data_exception then
            -- A zone that a server upgrade has dropped, or a value that came past its rule. One such recall must not
            -- stop a worker's batch: it has no further occurrence, and the log says why.
            raise warning 'recall % has no next occurrence: %', recall.id, sqlerrm;
    end;
    if v_next > recall.end_at or v_next >= '9999-12-31 00:00:00+00' then
        return null;
    end if;
    return v_next;
end;
$$;
comment on function pgrecall._next_occurrence(pgrecall.session_recalls, timestamptz) is
    'The first occurrence strictly after the given time on the recall''s own schedule; null if it has none (not recurring, or past its end_at). Called by finish, skip_next_recall and mark_fired. Changing trigger_at clears grid_at (trigger recall_update).';

create or replace function pgrecall._missing_recall(recall_id text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'no recall with id %', quote_nullable(left(recall_id, 255))
        using errcode = 'PR003', hint = 'list_recalls() shows the ids.';
end;
$$;
comment on function pgrecall._missing_recall(text) is 'Raises PR003 for an unknown recall id.';

create or replace function pgrecall._refuse_status(
    recall_id text,
    what text,
    hint text default 'Only a pending or running recall can.'
)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_status text;
begin
    select known.status
    into v_status
    from pgrecall.session_recalls as known
    where known.id = _refuse_status.recall_id;
    if not found then
        perform pgrecall._missing_recall(recall_id);
    end if;
    raise exception 'recall % is %, so it cannot be %', quote_literal(recall_id), v_status, what
        using errcode = 'PR004', detail = v_status, hint = _refuse_status.hint;
end;
$$;
comment on function pgrecall._refuse_status(text, text, text) is
    'Raises PR003 for an unknown recall id, else PR004: its status does not allow what was asked. Called by reschedule, mark_fired, mark_cancelled and pause_recall.';

create or replace function pgrecall._missing_session(session_id text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_host_table regclass;
begin
    select known.host_table
    into v_host_table
    from pgrecall.host_sessions as known;
    raise exception 'no session with id %', quote_nullable(left(session_id, 255))
        using
            errcode = 'PR002',
            detail = coalesce(left(session_id, 255), ''),
            hint = case
                when v_host_table is null then 'Insert it first: insert into pgrecall.sessions (id) values (…).'
                else format('Sessions are the rows of %s: insert it there first.', v_host_table)
            end;
end;
$$;
comment on function pgrecall._missing_session(text) is 'Raises PR002 for an unknown session id.';

create or replace function pgrecall._refuse_second_recall(
    session_id text,
    hint text default 'Cancel it with cancel_recall(), or move it with reschedule().'
)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'session % already has a pending recall', quote_literal(session_id)
        using
            errcode = 'PR001',
            constraint = 'one_pending_recall_per_session',
            detail = session_id,
            hint = _refuse_second_recall.hint;
end;
$$;
comment on function pgrecall._refuse_second_recall(text, text) is
    'Raises PR001 for a session that has a pending recall. Called by schedule_recall and retry_recall.';

create or replace function pgrecall._make_way(recall pgrecall.session_recalls, reason text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if recall.status = 'running' and recall.run_id is not null then
        -- Cancelling would stop the run, maybe the very one that asks. It goes on to its end and is the last, also if
        -- it was moved meanwhile; a running recall that is not recurring does not stand in the way of a new one.
        update pgrecall.session_recalls
        set call_type = 'once',
            trigger_at = nominal_at
        where session_recalls.id = recall.id;
    else
        -- The caller may have no right to write last_error: the trigger recall_update does.
        perform set_config('pgrecall.reason', coalesce(_make_way.reason, ''), true);
        update pgrecall.session_recalls
        set status = 'cancelled'
        where session_recalls.id = recall.id;
        perform set_config('pgrecall.reason', '', true);
    end if;
end;
$$;
comment on function pgrecall._make_way(pgrecall.session_recalls, text) is
    'Takes the pending recall of a session out of the way of a new one: cancelled, with the reason in its ledger; a recurring one that runs becomes a once instead, so that its run is not stopped. Called by schedule_recall and _agent_end, which have locked it.';

create or replace function pgrecall.schedule_recall(
    session_id text,
    additional_context_message text,
    trigger_at timestamptz default null,
    call_type text default null,
    interval_seconds integer default null,
    internal_comment text default null,
    id text default null,
    cron text default null,
    time_zone text default null,
    end_at timestamptz default null,
    max_attempts integer default null,
    timeout_seconds integer default null,
    idempotency_key text default null,
    metadata jsonb default null,
    idle_for_seconds integer default null,
    max_defer_seconds integer default null,
    on_max_defer text default null,
    on_interrupt text default null,
    pause_after_failures integer default null,
    deliver_to text default null,
    if_exists text default 'raise'
)
returns pgrecall.session_recalls
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_id constant text := coalesce(schedule_recall.id, pgrecall.new_id());
    v_call_type text;
    v_trigger_at timestamptz := schedule_recall.trigger_at;
    v_recall pgrecall.session_recalls;
    v_constraint text;
    v_detail text;
    v_message text;
begin
    if if_exists is null or if_exists not in ('raise', 'replace', 'keep') then
        raise exception 'if_exists is %, but must be raise, replace or keep', quote_nullable(left(if_exists, 100))
            using errcode = 'PR005', hint = 'The default is raise.';
    end if;
    v_call_type := coalesce(
        schedule_recall.call_type,
        case
            when schedule_recall.interval_seconds is not null or schedule_recall.cron is not null then 'recurring'
            else 'once'
        end
    );
    if schedule_recall.cron is not null then
        if pgrecall.cron_error(schedule_recall.cron) is not null then
            raise exception '%', pgrecall.cron_error(schedule_recall.cron)
                using errcode = 'PR005', hint = 'For example ''0 9 * * mon-fri''.';
        elsif schedule_recall.time_zone is null then
            raise exception 'cron % needs a time_zone', quote_literal(left(schedule_recall.cron, 100))
                using errcode = 'PR005', hint = 'For example time_zone => ''Europe/Paris'', or ''UTC''.';
        elsif pgrecall.time_zone_error(schedule_recall.time_zone) is not null then
            raise exception '%', pgrecall.time_zone_error(schedule_recall.time_zone)
                using errcode = 'PR005', hint = 'Use an IANA name such as ''Europe/Paris''.';
        end if;
        v_trigger_at := coalesce(
            v_trigger_at,
            pgrecall.cron_next(schedule_recall.cron, schedule_recall.time_zone, pgrecall.clock())
        );
        if v_trigger_at is null then
            raise exception 'cron % names no time in the coming years', quote_literal(left(schedule_recall.cron, 100))
                using errcode = 'PR005', hint = 'Its day and month never meet, as in ''0 9 31 2 *''.';
        end if;
    end if;
    v_trigger_at := coalesce(v_trigger_at, pgrecall.clock());
    if not isfinite(v_trigger_at) then
        raise exception 'trigger_at is %, which is not a time', v_trigger_at
            using errcode = 'PR005', hint = 'Give a finite time, or nothing for now.';
    end if;

    for v_try in 1..100 loop
        if schedule_recall.idempotency_key is not null then
            select known.*
            into v_recall
            from pgrecall.session_recalls as known
            where known.session_id = schedule_recall.session_id
                and known.idempotency_key = schedule_recall.idempotency_key;
            if found then
                return v_recall;
            end if;
        end if;
        if if_exists = 'keep' then
            -- Without a lock, since that would hide the recall from a worker that is about to claim it.
            select pending.*
            into v_recall
            from pgrecall.session_recalls as pending
            where pending.session_id = schedule_recall.session_id
                and (pending.status = 'pending' or (pending.status = 'running' and pending.call_type = 'recurring'));
            if found then
                return v_recall;
            end if;
        end if;

        begin
            if if_exists = 'replace' then
                -- A new row and not an update in place: the ledger and the messages of the old recall are by its id,
                -- a run that it has goes on under it, and the caller sees by the id that the recall is new.
                select pending.*
                into v_recall
                from pgrecall.session_recalls as pending
                where pending.session_id = schedule_recall.session_id
                    and (
                        pending.status = 'pending'
                        or (pending.status = 'running' and pending.call_type = 'recurring')
                    )
                for update;
                if found then
                    perform pgrecall._make_way(v_recall, format('replaced by recall %s', v_id));
                end if;
            end if;
            -- Waits for a transaction that has inserted another one and is not committed.
            insert into pgrecall.session_recalls (
                id, session_id, call_type, trigger_at, interval_seconds, internal_comment, additional_context_message,
                cron, time_zone, end_at, max_attempts, timeout_seconds, idempotency_key, metadata, idle_for_seconds,
                max_defer_seconds, on_max_defer, on_interrupt, pause_after_failures, deliver_to
            )
            values (
                v_id,
                schedule_recall.session_id,
                v_call_type,
                v_trigger_at,
                schedule_recall.interval_seconds,
                schedule_recall.internal_comment,
                schedule_recall.additional_context_message,
                schedule_recall.cron,
                schedule_recall.time_zone,
                schedule_recall.end_at,
                coalesce(schedule_recall.max_attempts, 3),
                schedule_recall.timeout_seconds,
                schedule_recall.idempotency_key,
                coalesce(schedule_recall.metadata, '{}'),
                schedule_recall.idle_for_seconds,
                coalesce(schedule_recall.max_defer_seconds, 86400),
                coalesce(schedule_recall.on_max_defer, 'run'),
                coalesce(schedule_recall.on_interrupt, 'retry'),
                schedule_recall.pause_after_failures,
                schedule_recall.deliver_to
            )
            returning * into v_recall;
            return v_recall;
        exception
            when unique_violation then
                get stacked diagnostics v_constraint = constraint_name, v_detail = pg_exception_detail;
                -- Somebody else's request with this key may have been committed after we looked. Which of its two
                -- unique indexes we met first says nothing.
                select known.*
                into v_recall
                from pgrecall.session_recalls as known
                where known.session_id = schedule_recall.session_id
                    and known.idempotency_key = schedule_recall.idempotency_key;
                if found then
                    return v_recall;
                elsif v_constraint = 'idempotency_key_is_unique_in_its_session' then
                    -- The snapshot of the caller's transaction is older than that request.
                    raise;
                elsif v_constraint <> 'one_pending_recall_per_session' then
                    raise exception 'a recall with id % exists already', quote_literal(schedule_recall.id)
                        using
                            errcode = 'PR005',
                            constraint = v_constraint,
                            detail = v_detail,
                            hint = 'Leave id out for a new one.';
                elsif if_exists = 'raise' then
                    perform pgrecall._refuse_second_recall(
                        schedule_recall.session_id,
                        'Cancel it with cancel_recall(), move it with reschedule(), or say if_exists => ''replace'' or ''keep''.'
                    );
                elsif current_setting('transaction_isolation') <> 'read committed' then
                    raise exception 'session % got a pending recall after this transaction began', quote_literal(schedule_recall.session_id)
                        using
                            errcode = 'serialization_failure',
                            constraint = v_constraint,
                            detail = schedule_recall.session_id,
                            hint = 'Run the whole transaction again, or use READ COMMITTED.';
                end if;
                -- Committed after we looked: look again.
            when foreign_key_violation or program_limit_exceeded then
                -- Or an id that is too long for an index, which no session has either.
                perform pgrecall._missing_session(schedule_recall.session_id);
            when insufficient_privilege then
                -- To a user somebody else's session is none. The policy's name is in the message in any language.
                get stacked diagnostics v_message = message_text;
                if strpos(v_message, 'users_keep_to_recalls_of_their_own_sessions') > 0 then
                    perform pgrecall._missing_session(schedule_recall.session_id);
                end if;
                raise;
        end;
    end loop;
    -- Who replaces waits his turn and then finds what the one before has put there; only a crowd comes this far. So
    -- does a role that may not see the pending recall, at once.
    perform pgrecall._refuse_second_recall(
        schedule_recall.session_id,
        'It is not yours to see, or others schedule recalls in this session right now: try again.'
    );
end;
$$;
comment on function pgrecall.schedule_recall(text, text, timestamptz, text, integer, text, text, text, text, timestamptz, integer, integer, text, jsonb, integer, integer, text, text, integer, text, text) is
    'Asks for an agent run in a session at trigger_at (null: now, or the first time of cron) and returns the new recall. call_type null: recurring if interval_seconds or cron is given, else once. Joins the caller''s transaction. A known idempotency_key returns the recall that has it. if_exists, for a session that has a pending recall: raise; keep it and return it as it is; or replace it, which cancels it, or lets a run that it has be its last. Raises: PR001 the session has a pending recall, PR002 no such session, PR005 or a named CHECK for a bad argument, 40001 for keep and replace in REPEATABLE READ if the pending recall is newer than the transaction. Locks: the replaced recall. Notifies: at commit, if this is due before the workers would wake.';

create or replace function pgrecall.cancel_recall(session_id text)
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
begin
    select pending.*
    into v_recall
    from pgrecall.session_recalls as pending
    where pending.session_id = cancel_recall.session_id
        and (pending.status = 'pending' or (pending.status = 'running' and pending.call_type = 'recurring'))
    for update;
    if not found then
        return false;
    end if;
    update pgrecall.session_recalls
    set status = 'cancelled'
    where session_recalls.id = v_recall.id;
    return true;
end;
$$;
comment on function pgrecall.cancel_recall(text) is
    'Cancels the pending recall of a session; false if it has none. A recurring recall counts as pending while it runs: its run is told to stop. Called by anyone. Notifies: stop, if it runs.';

create or replace function pgrecall._skip_occurrence(recall pgrecall.session_recalls)
returns pgrecall.session_recalls
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
    v_next timestamptz := pgrecall._next_occurrence(recall, recall.trigger_at);
begin
    if v_next is null then
        update pgrecall.session_recalls
        set status = 'cancelled'
        where session_recalls.id = recall.id
        returning * into v_recall;
        return v_recall;
    end if;
    -- The caller may have no right to write the ledger: the trigger recall_update does, and is told that this is a skip.
    perform set_config('pgrecall.skips', recall.id, true);
    update pgrecall.session_recalls
    set trigger_at = v_next
    where session_recalls.id = recall.id
    returning * into v_recall;
    perform set_config('pgrecall.skips', '', true);
    return v_recall;
end;
$$;
comment on function pgrecall._skip_occurrence(pgrecall.session_recalls) is
    'Moves a pending recurring recall one occurrence on and records the one left out; one that has no other is cancelled. Called by skip_next_recall and skip_recalls, which hold the row lock.';

create or replace function pgrecall.skip_next_recall(session_id text)
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
begin
    select pending.*
    into v_recall
    from pgrecall.session_recalls as pending
    where pending.session_id = skip_next_recall.session_id
        and pending.status = 'pending'
        and pending.call_type = 'recurring'
        and pending.run_id is null
    for update;
    if not found then
        return false;
    end if;
    perform pgrecall._skip_occurrence(v_recall);
    return true;
end;
$$;
comment on function pgrecall.skip_next_recall(text) is
    'Moves the pending recurring recall of a session one occurrence on along its own schedule and records the one left out; false if the session has no such recall. A recall whose last occurrence is skipped is cancelled.';

create or replace function pgrecall.reschedule(recall_id text, new_trigger_at timestamptz)
returns pgrecall.session_recalls
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
begin
    if new_trigger_at is null or not isfinite(new_trigger_at) then
        raise exception 'new_trigger_at is %, which is not a time', coalesce(new_trigger_at::text, 'null')
            using errcode = 'PR005', hint = 'Give a finite time, for example now() + interval ''1 hour''.';
    end if;
    update pgrecall.session_recalls
    set trigger_at = new_trigger_at
    where session_recalls.id = reschedule.recall_id
        and session_recalls.status in ('pending', 'running')
    returning * into v_recall;
    if not found then
        perform pgrecall._refuse_status(
            reschedule.recall_id,
            'rescheduled',
            hint => 'Only a pending or running recall can: schedule a new one instead.'
        );
    end if;
    return v_recall;
end;
$$;
comment on function pgrecall.reschedule(text, timestamptz) is
    'Moves a pending recall to another time and returns it; a recurring one goes on from there. A running one runs again at that time. Raises: PR003 no such recall, PR004 it has ended, PR005 not a finite time. Notifies: at commit, if it became due before the workers would wake.';

create or replace function pgrecall.mark_fired(recall_id text)
returns pgrecall.session_recalls
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
    v_next timestamptz;
begin
    select known.*
    into v_recall
    from pgrecall.session_recalls as known
    where known.id = mark_fired.recall_id
    for update;
    if not found then
        perform pgrecall._missing_recall(mark_fired.recall_id);
    elsif v_recall.status = 'fired' then
        return v_recall;
    elsif v_recall.status not in ('pending', 'running') then
        perform pgrecall._refuse_status(v_recall.id, 'marked as fired');
    end if;
    v_next := pgrecall._next_occurrence(v_recall, greatest(v_recall.trigger_at, pgrecall.clock()));
    if v_next is null then
        update pgrecall.session_recalls
        set status = 'fired'
        where session_recalls.id = v_recall.id
        returning * into v_recall;
        return v_recall;
    end if;
    -- The occurrence that a run has is recorded when the run ends.
    if v_recall.run_id is null or v_recall.trigger_at <> v_recall.nominal_at then
        insert into pgrecall.recall_runs (recall_id, session_id, nominal_at, finished_at, outcome, reason)
        values (v_recall.id, v_recall.session_id, v_recall.trigger_at, pgrecall.clock(), 'success', 'marked as fired');
        v_recall.nominal_at := v_recall.trigger_at;
    end if;
    perform pgrecall._record_missed(v_recall, v_next);
    update pgrecall.session_recalls
    set trigger_at = v_next,
        status = 'pending',
        last_error = null
    where session_recalls.id = v_recall.id
    returning * into v_recall;
    return v_recall;
end;
$$;
comment on function pgrecall.mark_fired(text) is
    'Records that the caller took care of a pending recall itself: it becomes fired, a recurring one goes on to its next time, with the times that passed meanwhile recorded as missed. A run under way is told to stop. Marking a fired recall again changes nothing. Raises: PR003 no such recall, PR004 it is failed or cancelled.';

create or replace function pgrecall.mark_cancelled(recall_id text)
returns pgrecall.session_recalls
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
begin
    select known.*
    into v_recall
    from pgrecall.session_recalls as known
    where known.id = mark_cancelled.recall_id
    for update;
    if not found then
        perform pgrecall._missing_recall(mark_cancelled.recall_id);
    elsif v_recall.status = 'cancelled' then
        return v_recall;
    elsif v_recall.status not in ('pending', 'running') then
        perform pgrecall._refuse_status(v_recall.id, 'cancelled');
    end if;
    update pgrecall.session_recalls
    set status = 'cancelled'
    where session_recalls.id = v_recall.id
    returning * into v_recall;
    return v_recall;
end;
$$;
comment on function pgrecall.mark_cancelled(text) is
    'Cancels one recall by its id, pending or running; a run under way is told to stop. Cancelling a cancelled recall changes nothing. Raises: PR003 no such recall, PR004 it is fired or failed. Notifies: stop, if it runs.';

create or replace function pgrecall.list_recalls(
    session_id text default null,
    user_id text default null,
    is_admin boolean default false,
    "limit" integer default 50,
    "offset" integer default 0
)
returns setof pgrecall.session_recalls
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if list_recalls.session_id is null and list_recalls.user_id is null and is_admin is not true then
        raise exception 'list_recalls needs a session_id, a user_id or is_admin'
            using errcode = 'PR005', hint = 'For everything: list_recalls(is_admin => true).';
    elsif "limit" is null or "limit" < 0 or "offset" is null or "offset" < 0 then
        raise exception 'limit is % and offset is %, but both must be 0 or more',
            coalesce("limit"::text, 'null'), coalesce("offset"::text, 'null')
            using errcode = 'PR005', hint = 'The defaults are 50 and 0.';
    end if;
    return query
    select recall.*
    from pgrecall.session_recalls as recall
    where (list_recalls.session_id is null or recall.session_id = list_recalls.session_id)
        and (
            is_admin is true
            or list_recalls.user_id is null
            or recall.session_id in (
                select owned.id
                from pgrecall.sessions as owned
                where owned.user_id = list_recalls.user_id
            )
        )
    order by recall.trigger_at desc, recall.id desc
    limit "limit"
    offset "offset";
end;
$$;
comment on function pgrecall.list_recalls(text, text, boolean, integer, integer) is
    'Recalls, newest trigger_at first: with user_id those of the sessions that user owns, with is_admin all, with session_id alone that session''s; session_id narrows either. Raises: PR005 if none of the three is given.';

create or replace function pgrecall.get_pending_recalls(before timestamptz)
returns setof pgrecall.session_recalls
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select recall.*
    from pgrecall.session_recalls as recall
    where recall.status = 'pending'
        and recall.due_at <= before
    order by recall.due_at, recall.id;
$$;
comment on function pgrecall.get_pending_recalls(timestamptz) is
    'Pending recalls that are due at or before the given time (see session_recalls.due_at), earliest first. Looking claims nothing.';

create or replace function pgrecall.get_next_trigger_at()
returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select min(recall.due_at)
    from pgrecall.session_recalls as recall
    where recall.status = 'pending'
        and recall.due_at is not null;
$$;
comment on function pgrecall.get_next_trigger_at() is
    'When the next pending recall is due (its trigger_at, or later if it waits for a retry or a taken session); null: none is pending.';

create or replace function pgrecall.get_pending_session_ids(session_ids text[])
returns setof text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select distinct recall.session_id
    from pgrecall.session_recalls as recall
    where recall.session_id = any(session_ids)
        and recall.status = 'pending';
$$;
comment on function pgrecall.get_pending_session_ids(text[]) is
    'Those of the given sessions that have a pending recall.';
