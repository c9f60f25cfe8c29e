-- How what has ended goes: bit by bit by the workers after the times in settings, or at once by hand.
--
-- A step of purge() is small, waits for nobody, and looks only at rows that are old enough; docs/retention.md.

create or replace function pgrecall._purge_recalls(
    status text,
    older_than timestamptz,
    batch integer,
    inout walked_to timestamptz,
    out deleted integer
)
language sql
volatile
-- The planner must see the status, or it cannot know that the partial index has these rows.
set plan_cache_mode = force_custom_plan
set search_path = pg_catalog, pg_temp
as $$
    with old as (
        select recall.id, recall.updated_at
        from pgrecall.session_recalls as recall
        where recall.status = _purge_recalls.status
            and recall.status in ('fired', 'failed', 'cancelled')
            and recall.run_id is null
            and recall.updated_at >= _purge_recalls.walked_to
            and recall.updated_at < _purge_recalls.older_than
            -- Its reply is still on the way, perhaps for days.
            and not exists (
                select
                from pgrecall.deliveries as pending
                where pending.next_at is not null
                    and pending.recall_id = recall.id
            )
        order by recall.updated_at
        limit _purge_recalls.batch
        for update skip locked
    ),
    gone as (
        delete from pgrecall.session_recalls
        where session_recalls.id in (select old.id from old)
        returning session_recalls.updated_at
    )
    select coalesce(max(gone.updated_at), _purge_recalls.walked_to), count(*)::integer
    from gone;
$$;
comment on function pgrecall._purge_recalls(text, timestamptz, integer, timestamptz) is
    'Deletes the oldest recalls with this status that ended before a time, and says how many, and when the last of them was changed; nothing if older_than is null. Called by purge. Locks: these recalls, skipping locked ones.';

create or replace function pgrecall._purge_runs(
    older_than timestamptz,
    batch integer,
    inout walked_to bigint,
    out deleted integer
)
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_window_ends bigint;
begin
    deleted := 0;
    if older_than is null then
        return;
    end if;
    -- In the order of their ids, which is that of their beginnings. The window bounds the look at those that are too
    -- young: with nothing to delete it is all that is read.
    select max(near.id)
    into v_window_ends
    from (
        select run.id
        from pgrecall.recall_runs as run
        where run.id > _purge_runs.walked_to
        order by run.id
        limit greatest(_purge_runs.batch, 1000)
    ) as near;
    with old as (
        select run.id
        from pgrecall.recall_runs as run
        where run.id > _purge_runs.walked_to
            and run.id <= v_window_ends
            and run.finished_at < _purge_runs.older_than
            and not exists (
                select
                from pgrecall.deliveries as pending
                where pending.id = run.id
                    and pending.next_at is not null
            )
        order by run.id
        limit _purge_runs.batch
        for update of run skip locked
    ),
    gone as (
        delete from pgrecall.recall_runs
        where recall_runs.id in (select old.id from old)
        returning recall_runs.id
    )
    select count(*)::integer, coalesce(max(gone.id), _purge_runs.walked_to)
    into deleted, walked_to
    from gone;
end;
$$;
comment on function pgrecall._purge_runs(timestamptz, integer, bigint) is
    'Deletes the oldest rows of recall_runs that ended before a time, and says how many and how far it came; nothing if older_than is null. Called by purge. Locks: these rows, skipping locked ones.';

create or replace function pgrecall._purge_audit(
    older_than timestamptz,
    batch integer,
    inout walked_to bigint,
    out deleted integer
)
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
    with near as (
        select change.id, change.changed_at
        from pgrecall.audit as change
        where change.id > _purge_audit.walked_to
        order by change.id
        limit _purge_audit.batch
    ),
    gone as (
        delete from pgrecall.audit
        where audit.id in (
            select near.id
            from near
            where near.changed_at < _purge_audit.older_than
        )
        returning audit.id
    )
    select coalesce(max(gone.id), _purge_audit.walked_to), count(*)::integer
    from gone;
$$;
comment on function pgrecall._purge_audit(timestamptz, integer, bigint) is
    'Deletes the oldest rows of the audit that are from before a time, and says how many, and the last of them; nothing if older_than is null. Called by purge. Nobody else locks these rows but purge_history.';

create or replace function pgrecall._purge_deliveries(
    older_than timestamptz,
    batch integer,
    inout walked_to timestamptz,
    out deleted integer
)
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
    with old as (
        select delivery.id
        from pgrecall.deliveries as delivery
        where delivery.ended_at >= _purge_deliveries.walked_to
            and delivery.ended_at < _purge_deliveries.older_than
            and delivery.status in ('delivered', 'failed')
        order by delivery.ended_at
        limit _purge_deliveries.batch
        for update skip locked
    ),
    gone as (
        delete from pgrecall.deliveries
        where deliveries.id in (select old.id from old)
        returning deliveries.ended_at
    )
    select coalesce(max(gone.ended_at), _purge_deliveries.walked_to), count(*)::integer
    from gone;
$$;
comment on function pgrecall._purge_deliveries(timestamptz, integer, timestamptz) is
    'Deletes the oldest deliveries that ended before a time, and says how many, and when the last of them ended; nothing if older_than is null. Called by purge. Locks: these deliveries, skipping locked ones.';

create or replace function pgrecall._purge_messages(
    older_than timestamptz,
    batch integer,
    inout walked_to text,
    out deleted integer,
    out is_through boolean
)
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_sessions text[];
    v_last text;
begin
    deleted := 0;
    is_through := true;
    if older_than is null then
        return;
    end if;
    select array_agg(near.id order by near.id)
    into v_sessions
    from (
        select session.id
        from pgrecall.sessions as session
        where session.id >= _purge_messages.walked_to
        order by session.id
        limit greatest(_purge_messages.batch, 1000)
    ) as near;
    -- Of each session what comes before its first message that is young enough: of most that is nothing, which costs
    -- a look at one message.
    with old as (
        select expired.session_id, expired.position
        from unnest(v_sessions) with ordinality as near (id, place)
        cross join lateral (
            select message.session_id, message.position
            from pgrecall.session_messages as message
            where message.session_id = near.id
                and message.position < coalesce(
                    (
                        select young.position
                        from pgrecall.session_messages as young
                        where young.session_id = near.id
                            and young.created_at >= _purge_messages.older_than
                        order by young.position
                        limit 1
                    ),
                    9223372036854775807
                )
            order by message.position
            limit _purge_messages.batch
            for update skip locked
        ) as expired
        limit _purge_messages.batch
    ),
    gone as (
        delete from pgrecall.session_messages as message
        using old
        where message.session_id = old.session_id
            and message.position = old.position
        returning message.session_id
    )
    select count(*)::integer, max(gone.session_id)
    into deleted, v_last
    from gone;
    if deleted = batch then
        -- It may have more.
        walked_to := v_last;
        is_through := false;
    elsif cardinality(v_sessions) >= greatest(batch, 1000) then
        walked_to := v_sessions[cardinality(v_sessions)];
        is_through := false;
    end if;
end;
$$;
comment on function pgrecall._purge_messages(timestamptz, integer, text) is
    'Deletes the oldest messages of some sessions, and says how many, how far it came, and whether that was the last session; nothing if older_than is null. Called by purge. Locks: these messages, skipping locked ones.';

create or replace function pgrecall.purge(batch integer default 1000, worker_id text default null)
returns table (
    now_at timestamptz,
    next_at timestamptz,
    fired integer,
    failed integer,
    cancelled integer,
    runs integer,
    messages integer,
    deliveries integer,
    audit_rows integer
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_soonest constant interval := interval '10 minutes';
    v_latest constant interval := interval '1 hour';
    -- A worker that has made no step for so long is dead, or has lost the database.
    v_patience constant interval := interval '1 minute';
    v_now timestamptz := pgrecall.clock();
    v_keep pgrecall.settings;
    v_at pgrecall.purges;
    v_messages_are_through boolean;
begin
    if purge.batch is null or purge.batch not between 1 and 100000 then
        raise exception 'batch is %, but must be 1 to 100000', coalesce(purge.batch::text, 'null')
            using errcode = 'PR005', hint = 'The default is 1000: so many rows of each kind in one call.';
    end if;
    now_at := v_now;
    fired := 0;
    failed := 0;
    cancelled := 0;
    runs := 0;
    messages := 0;
    deliveries := 0;
    audit_rows := 0;
    -- One at a time, over all workers. Who finds it locked has no reason to wait.
    select walk.*
    into v_at
    from pgrecall.purges as walk
    for update skip locked;
    if not found or v_at.worker_id <> purge.worker_id and v_at.walked_at > v_now - v_patience then
        next_at := coalesce(v_at.walked_at, v_now) + v_patience;
        return next;
        return;
    end if;
    select known.*
    into strict v_keep
    from pgrecall.settings as known;
    if v_at.walked_at is null
        and (purge.worker_id is null or v_at.begun_at is null or v_at.begun_at <= v_now - interval '1 day')
    then
        -- From the start again, for what was locked or had a reply on its way. Not each time: that is a walk over all
        -- that was deleted and is not vacuumed yet.
        delete from pgrecall.purges;
        insert into pgrecall.purges (begun_at) values (v_now)
        returning * into v_at;
    end if;
    insert into pgrecall.unaudited (reason) values ('purge()');

    select step.walked_to, step.deleted
    into v_at.fired_from, fired
    from pgrecall._purge_recalls('fired', v_now - v_keep.keep_fired, purge.batch, v_at.fired_from) as step;
    select step.walked_to, step.deleted
    into v_at.failed_from, failed
    from pgrecall._purge_recalls('failed', v_now - v_keep.keep_failed, purge.batch, v_at.failed_from) as step;
    select step.walked_to, step.deleted
    into v_at.cancelled_from, cancelled
    from pgrecall._purge_recalls('cancelled', v_now - v_keep.keep_cancelled, purge.batch, v_at.cancelled_from) as step;
    select step.walked_to, step.deleted
    into v_at.run_from, runs
    from pgrecall._purge_runs(v_now - v_keep.keep_runs, purge.batch, v_at.run_from) as step;
    select step.walked_to, step.deleted, step.is_through
    into v_at.message_from, messages, v_messages_are_through
    from pgrecall._purge_messages(v_now - v_keep.keep_messages, purge.batch, v_at.message_from) as step;
    select step.walked_to, step.deleted
    into v_at.delivery_from, deliveries
    from pgrecall._purge_deliveries(v_now - v_keep.keep_deliveries, purge.batch, v_at.delivery_from) as step;
    select step.walked_to, step.deleted
    into v_at.audit_from, audit_rows
    from pgrecall._purge_audit(v_now - v_keep.keep_audit, purge.batch, v_at.audit_from) as step;
    perform pgrecall._forget_reports(null);

    delete from pgrecall.unaudited;
    -- Of runs a step may find fewer than it may delete, and yet there are more behind them.
    if runs > 0
        or not v_messages_are_through
        or greatest(fired, failed, cancelled, deliveries, audit_rows) = purge.batch
    then
        next_at := v_now;
        update pgrecall.purges
        set worker_id = purge.worker_id,
            walked_at = v_now,
            fired_from = v_at.fired_from,
            failed_from = v_at.failed_from,
            cancelled_from = v_at.cancelled_from,
            run_from = v_at.run_from,
            message_from = v_at.message_from,
            delivery_from = v_at.delivery_from,
            audit_from = v_at.audit_from;
        return next;
        return;
    end if;
    update pgrecall.purges
    set worker_id = null,
        walked_at = null
    where purges.walked_at is not null;
    select greatest(
        v_now + v_soonest,
        least(
            v_now + v_latest,
            v_keep.keep_fired + (
                select min(recall.updated_at)
                from pgrecall.session_recalls as recall
                where recall.status = 'fired'
                    and recall.run_id is null
                    and recall.updated_at >= v_now - v_keep.keep_fired
            ),
            v_keep.keep_failed + (
                select min(recall.updated_at)
                from pgrecall.session_recalls as recall
                where recall.status = 'failed'
                    and recall.run_id is null
                    and recall.updated_at >= v_now - v_keep.keep_failed
            ),
            v_keep.keep_cancelled + (
                select min(recall.updated_at)
                from pgrecall.session_recalls as recall
                where recall.status = 'cancelled'
                    and recall.run_id is null
                    and recall.updated_at >= v_now - v_keep.keep_cancelled
            ),
            v_keep.keep_deliveries + (
                select min(delivery.ended_at)
                from pgrecall.deliveries as delivery
                where delivery.ended_at >= v_now - v_keep.keep_deliveries
            )
        )
    )
    into next_at;
    return next;
end;
$$;
comment on function pgrecall.purge(integer, text) is
    'Deletes what is older than settings.keep_… allows, at most batch rows of each kind, and says how many of each, and when to call it again: next_at is now_at if more may be left, else 10 minutes to an hour later. Never a recall that is pending, running or in a run, and nothing whose reply is still to be delivered. Waits for nobody: what is locked stays for the next walk, which begins a day later or by hand. worker_id: the worker that does this in the background; while one of them is at it, the others are told to come back in a minute. Null: by hand, whoever else is at it. Called by workers, and by operators. Locks: the row of purges; then what it deletes, skipping locked rows. Raises: PR005 batch out of range.';

create or replace function pgrecall.purge_history(
    before timestamptz default null,
    session_id text default null,
    user_id text default null,
    with_messages boolean default false,
    with_audit boolean default false
)
returns table (
    recalls bigint,
    runs bigint,
    deliveries bigint,
    messages bigint,
    audit_rows bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- Planned for the selection that is given.
set plan_cache_mode = force_custom_plan
as $$
declare
    v_before timestamptz := coalesce(purge_history.before, 'infinity');
    v_sessions text[];
begin
    if num_nonnulls(purge_history.before, purge_history.session_id, purge_history.user_id) = 0 then
        raise exception 'session_id, user_id and before are all null: that would be the history of everybody'
            using errcode = 'PR005', hint = 'Give one of them, or several: all that are given must be so.';
    end if;
    if purge_history.session_id is not null or purge_history.user_id is not null then
        v_sessions := array(
            select known.id
            from pgrecall.sessions as known
            where (purge_history.session_id is null or known.id = purge_history.session_id)
                and (purge_history.user_id is null or known.user_id = purge_history.user_id)
        );
    end if;
    insert into pgrecall.unaudited (reason) values ('purge_history()');
    delete from pgrecall.session_recalls as recall
    where (v_sessions is null or recall.session_id = any(v_sessions))
        and recall.status in ('fired', 'failed', 'cancelled')
        and recall.run_id is null
        and recall.updated_at < v_before
        and not exists (
            select
            from pgrecall.deliveries as pending
            where pending.next_at is not null
                and pending.recall_id = recall.id
        );
    get diagnostics recalls = row_count;
    delete from pgrecall.recall_runs as run
    where (v_sessions is null or run.session_id = any(v_sessions))
        and run.finished_at < v_before
        and not exists (
            select
            from pgrecall.deliveries as pending
            where pending.id = run.id
                and pending.next_at is not null
        )
        -- The earlier tries of an occurrence that will be tried again belong to what has not ended.
        and not exists (
            select
            from pgrecall.session_recalls as recall
            where recall.id = run.recall_id
                and recall.nominal_at = run.nominal_at
                and pgrecall._is_open(recall)
        );
    get diagnostics runs = row_count;
    delete from pgrecall.deliveries as delivery
    where (v_sessions is null or delivery.session_id = any(v_sessions))
        and delivery.next_at is null
        and delivery.ended_at < v_before;
    get diagnostics deliveries = row_count;
    messages := 0;
    if with_messages then
        delete from pgrecall.session_messages as message
        where (v_sessions is null or message.session_id = any(v_sessions))
            and message.created_at < v_before;
        get diagnostics messages = row_count;
    end if;
    audit_rows := 0;
    if with_audit then
        -- Also of sessions that are gone by now.
        delete from pgrecall.audit as change
        where (purge_history.session_id is null or change.session_id = purge_history.session_id)
            and (
                purge_history.user_id is null
                or change.owner_id = purge_history.user_id
                or change.user_id = purge_history.user_id
            )
            and change.changed_at < v_before;
        get diagnostics audit_rows = row_count;
    end if;
    perform pgrecall._forget_reports(null);
    delete from pgrecall.unaudited;
    if recalls + runs + deliveries + messages + audit_rows > 0 then
        perform pgrecall._audit(
            'purge', 'history', null, purge_history.session_id, null,
            jsonb_build_object(
                'before', purge_history.before,
                'recalls', recalls,
                'runs', runs,
                'deliveries', deliveries,
                'messages', messages,
                'audit_rows', audit_rows
            ),
            purge_history.user_id
        );
    end if;
    return next;
end;
$$;
comment on function pgrecall.purge_history(timestamptz, text, text, boolean, boolean) is
    'Deletes at once what has ended, of a session, of all sessions of a user, or from before a time (all that are given must be so), and says how many rows of each kind: recalls that have ended, their runs, and deliveries that have ended; with_messages also what was said in these sessions, with_audit also what the audit has about them and about what that user did. What is pending, running, to be tried again or to be delivered stays: cancel it first. The sessions stay; deleting those takes everything along. Is itself written into the audit. Called by operators. Raises: PR005 nothing is given. Locks: what it deletes.';
