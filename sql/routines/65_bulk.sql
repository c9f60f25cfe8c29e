-- The same for many recalls at once: those with these ids, of this session, of this user; what is given is ANDed.
--
-- All of them lock what they are about in the order of the ids, before they change anything, so two of them never wait
-- for each other. Each returns the recalls that it has changed, as they are now, in that order; those that it cannot
-- change (ended, in a run, paused …, as the function for one recall says) it leaves out.

create or replace function pgrecall._select_recalls(
    what text,
    statuses text[],
    recall_ids text[],
    session_id text,
    user_id text
)
returns setof pgrecall.session_recalls
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if recall_ids is null and session_id is null and user_id is null then
        raise exception '%() needs recall_ids, a session_id or a user_id', what
            using
                errcode = 'PR005',
                hint = 'For every recall: recall_ids => array(select id from pgrecall.session_recalls).';
    end if;
    return query
    select recall.*
    from pgrecall.session_recalls as recall
    where recall.status = any(statuses)
        and (_select_recalls.recall_ids is null or recall.id = any(_select_recalls.recall_ids))
        and (_select_recalls.session_id is null or recall.session_id = _select_recalls.session_id)
        and (
            _select_recalls.user_id is null
            or recall.session_id in (
                select owned.id
                from pgrecall.sessions as owned
                where owned.user_id = _select_recalls.user_id
            )
        )
    order by recall.id
    for no key update of recall;
end;
$$;
comment on function pgrecall._select_recalls(text, text[], text[], text, text) is
    'The recalls that a function for many is about, locked in the order of their ids. Raises: PR005 if nothing says which. Called by all of them. Locks: these recalls.';

create or replace function pgrecall.cancel_recalls(
    recall_ids text[] default null,
    session_id text default null,
    user_id text default null
)
returns setof pgrecall.session_recalls
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
begin
    for v_recall in
        select chosen.*
        from pgrecall._select_recalls(
            'cancel_recalls', array['pending', 'running'],
            cancel_recalls.recall_ids, cancel_recalls.session_id, cancel_recalls.user_id
        ) as chosen
    loop
        update pgrecall.session_recalls
        set status = 'cancelled'
        where session_recalls.id = v_recall.id
        returning * into v_recall;
        return next v_recall;
    end loop;
end;
$$;
comment on function pgrecall.cancel_recalls(text[], text, text) is
    'Cancels the pending and running recalls with these ids, of this session, of this user, and returns them; runs under way are told to stop. Called by operators. Raises: PR005 if none of the three is given. Locks: these recalls. Notifies: stop, for those that run.';

create or replace function pgrecall.pause_recalls(
    recall_ids text[] default null,
    session_id text default null,
    user_id text default null,
    reason text default null,
    paused_until timestamptz default null
)
returns setof pgrecall.session_recalls
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
begin
    perform pgrecall._check_pause(pause_recalls.paused_until);
    for v_recall in
        select chosen.*
        from pgrecall._select_recalls(
            'pause_recalls', array['pending', 'running'],
            pause_recalls.recall_ids, pause_recalls.session_id, pause_recalls.user_id
        ) as chosen
    loop
        v_recall := pgrecall._pause(v_recall, pause_recalls.reason, pause_recalls.paused_until);
        if v_recall.id is not null then
            return next v_recall;
        end if;
    end loop;
end;
$$;
comment on function pgrecall.pause_recalls(text[], text, text, text, timestamptz) is
    'Pauses the pending and running recalls with these ids, of this session, of this user, as pause_recall() does, and returns those that it changed. Recalls that are made later are not paused: for that pause_session() and pause_user(). Called by operators. Raises: PR005 if none of the three is given, or the end is not a time to come. Locks: these recalls.';

create or replace function pgrecall.resume_recalls(
    recall_ids text[] default null,
    session_id text default null,
    user_id text default null
)
returns setof pgrecall.session_recalls
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
begin
    for v_recall in
        select chosen.*
        from pgrecall._select_recalls(
            'resume_recalls', array['pending', 'running'],
            resume_recalls.recall_ids, resume_recalls.session_id, resume_recalls.user_id
        ) as chosen
    loop
        if v_recall.paused_at is not null then
            return next pgrecall.resume_recall(v_recall.id);
        end if;
    end loop;
end;
$$;
comment on function pgrecall.resume_recalls(text[], text, text) is
    'Ends the pauses of the pending and running recalls with these ids, of this session, of this user, as resume_recall() does, and returns those that it changed. What the pause of a session or user has paused is paused again at once: for that resume_session() and resume_user(). Called by operators. Raises: PR005 if none of the three is given. Locks: these recalls. Notifies: through the trigger announce_update.';

create or replace function pgrecall.skip_recalls(
    recall_ids text[] default null,
    session_id text default null,
    user_id text default null
)
returns setof pgrecall.session_recalls
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
begin
    for v_recall in
        select chosen.*
        from pgrecall._select_recalls(
            'skip_recalls', array['pending'], skip_recalls.recall_ids, skip_recalls.session_id, skip_recalls.user_id
        ) as chosen
    loop
        if v_recall.call_type = 'recurring' and v_recall.run_id is null then
            return next pgrecall._skip_occurrence(v_recall);
        end if;
    end loop;
end;
$$;
comment on function pgrecall.skip_recalls(text[], text, text) is
    'Moves the pending recurring recalls with these ids, of this session, of this user one occurrence on, as skip_next_recall() does, and returns them. Called by operators. Raises: PR005 if none of the three is given. Locks: these recalls.';

create or replace function pgrecall.reschedule_recalls(
    recall_ids text[] default null,
    session_id text default null,
    user_id text default null,
    new_trigger_at timestamptz default null,
    by interval default null
)
returns setof pgrecall.session_recalls
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
    v_at timestamptz;
begin
    if num_nonnulls(reschedule_recalls.new_trigger_at, reschedule_recalls.by) <> 1 then
        raise exception 'reschedule_recalls() needs either new_trigger_at or by'
            using
                errcode = 'PR005',
                hint = 'new_trigger_at is the time for all of them; by moves each, for example by => ''1 hour''.';
    elsif not isfinite(reschedule_recalls.new_trigger_at)
        or reschedule_recalls.new_trigger_at >= '9999-12-31 00:00:00+00'
        or reschedule_recalls.new_trigger_at < '0001-01-02 00:00:00+00'
    then
        raise exception 'new_trigger_at is %, which is not a time in the years 1 to 9999', reschedule_recalls.new_trigger_at
            using errcode = 'PR005', hint = 'Give a finite time, for example now() + interval ''1 hour''.';
    elsif reschedule_recalls.by not between interval '-1000 years' and interval '1000 years' then
        raise exception 'by is %, but must be at most 1000 years', reschedule_recalls.by
            using errcode = 'PR005', hint = 'For example by => ''1 hour'', or ''-1 hour''.';
    end if;
    for v_recall in
        select chosen.*
        from pgrecall._select_recalls(
            'reschedule_recalls', array['pending', 'running'],
            reschedule_recalls.recall_ids, reschedule_recalls.session_id, reschedule_recalls.user_id
        ) as chosen
    loop
        v_at := coalesce(reschedule_recalls.new_trigger_at, v_recall.trigger_at + reschedule_recalls.by);
        continue when v_at = v_recall.trigger_at
            or v_at > v_recall.end_at
            or v_at >= '9999-12-31 00:00:00+00'
            or v_at < '0001-01-02 00:00:00+00';
        update pgrecall.session_recalls
        set trigger_at = v_at
        where session_recalls.id = v_recall.id
        returning * into v_recall;
        return next v_recall;
    end loop;
end;
$$;
comment on function pgrecall.reschedule_recalls(text[], text, text, timestamptz, interval) is
    'Moves the pending and running recalls with these ids, of this session, of this user to new_trigger_at, or each of them by so much from its own time, as reschedule() does, and returns those that it moved. One that would come after its end_at is left where it is. Called by operators. Raises: PR005 if none of the three is given, or not exactly one of new_trigger_at and by. Locks: these recalls. Notifies: through the trigger announce_update.';

create or replace function pgrecall.run_recalls_now(
    recall_ids text[] default null,
    session_id text default null,
    user_id text default null
)
returns setof pgrecall.session_recalls
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
begin
    for v_recall in
        select chosen.*
        from pgrecall._select_recalls(
            'run_recalls_now', array['pending', 'running'],
            run_recalls_now.recall_ids, run_recalls_now.session_id, run_recalls_now.user_id
        ) as chosen
    loop
        continue when pgrecall._is_paused(v_recall)
            or exists (
                select
                from pgrecall.sessions as session
                where session.id = v_recall.session_id
                    and pgrecall._paused_by(session.id, session.user_id) is not null
            );
        v_recall := pgrecall._make_due(v_recall);
        if v_recall.id is not null then
            return next v_recall;
        end if;
    end loop;
end;
$$;
comment on function pgrecall.run_recalls_now(text[], text, text) is
    'Makes the pending recalls with these ids, of this session, of this user due at once, as run_now() does, and returns those that it changed; paused ones are left out. Called by operators. Raises: PR005 if none of the three is given. Locks: these recalls. Notifies: through the trigger announce_update.';

create or replace function pgrecall._ended_at(recall pgrecall.session_recalls)
returns timestamptz
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
    -- The ledger of a recall may have been purged, or it was inserted with its end.
    select coalesce(
        (
            select run.finished_at
            from pgrecall.recall_runs as run
            where run.recall_id = recall.id
            order by run.id desc
            limit 1
        ),
        recall.updated_at
    );
$$;
comment on function pgrecall._ended_at(pgrecall.session_recalls) is
    'When a recall that has ended did so. Called by retry_recalls.';

create or replace function pgrecall.retry_recalls(
    recall_ids text[] default null,
    session_id text default null,
    user_id text default null,
    failed_since timestamptz default null
)
returns setof pgrecall.session_recalls
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_ended pgrecall.session_recalls[];
    v_recall pgrecall.session_recalls;
begin
    v_ended := array(
        select chosen
        from pgrecall._select_recalls(
            'retry_recalls',
            case
                when retry_recalls.recall_ids is not null and retry_recalls.failed_since is null
                    then array['failed', 'cancelled']
                else array['failed']
            end,
            retry_recalls.recall_ids, retry_recalls.session_id, retry_recalls.user_id
        ) as chosen
    );
    -- Of several of one session the last that ended comes first: it has but one place for a pending recall.
    foreach v_recall in array array(
        select one
        from (select one, pgrecall._ended_at(one) as ended_at from unnest(v_ended) as one) as ended
        where failed_since is null
            or ended.ended_at >= failed_since
        order by ended.ended_at desc, (ended.one).id desc
    )
    loop
        continue when exists (
            select
            from pgrecall.session_recalls as pending
            where pending.session_id = v_recall.session_id
                and (pending.status = 'pending' or (pending.status = 'running' and pending.call_type = 'recurring'))
        );
        v_recall := pgrecall._set_pending(v_recall);
        if v_recall.id is not null then
            return next v_recall;
        end if;
    end loop;
end;
$$;
comment on function pgrecall.retry_recalls(text[], text, text, timestamptz) is
    'Makes the failed recalls with these ids, of this session, of this user, that ended at failed_since or later, pending again, as retry_recall() does, and returns them, the last that ended first. Recalls that were cancelled only if recall_ids names them and failed_since is null. Left out are those whose session has another pending one; of several of one session it is the last that runs again. Called by operators. Raises: PR005 if none of the three is given. Locks: these recalls. Notifies: through the trigger announce_update.';

create or replace function pgrecall.stop_runs(
    recall_ids text[] default null,
    session_id text default null,
    user_id text default null,
    reason text default null,
    after_stop text default 'skip'
)
returns setof pgrecall.session_recalls
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
begin
    perform pgrecall._check_after_stop(stop_runs.after_stop);
    for v_recall in
        select chosen.*
        from pgrecall._select_recalls(
            'stop_runs', array['running'], stop_runs.recall_ids, stop_runs.session_id, stop_runs.user_id
        ) as chosen
    loop
        v_recall := pgrecall._stop(v_recall, stop_runs.reason, stop_runs.after_stop);
        if v_recall.id is not null then
            return next v_recall;
        end if;
    end loop;
end;
$$;
comment on function pgrecall.stop_runs(text[], text, text, text, text) is
    'Tells the runs of the recalls with these ids, of this session, of this user to stop, as stop_run() does, and returns the recalls. Called by operators. Raises: PR005 if none of the three is given, or after_stop. Locks: these recalls. Notifies: channel pgrecall, payload ''stop <run_id>''.';
