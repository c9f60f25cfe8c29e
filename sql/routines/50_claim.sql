-- What a worker does while it waits for work: it takes what is due, and learns when to look again.
--
-- Lock order, kept by every routine that waits for more than one row: recall, then session, then the worker's own row;
-- only whoever expires a lease, or finds its own expired, has that worker's row before all others (48_leases.sql).
-- claim() never waits for a recall or session that is due: it skips what is locked and comes back.

create or replace function pgrecall._lock_for_peek(wait_milliseconds integer)
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before constant text := current_setting('lock_timeout');
begin
    -- Wait in line for a moment. Without a line, two busy producers that overlap would keep every worker out for ever;
    -- with it, producers that come meanwhile are refused, and announce themselves.
    perform set_config('lock_timeout', wait_milliseconds::text, true);
    begin
        perform pg_advisory_xact_lock(8099568234633718892);
    exception
        when lock_not_available or deadlock_detected then
            perform set_config('lock_timeout', v_before, true);
            return false;
    end;
    perform set_config('lock_timeout', v_before, true);
    return true;
end;
$$;
comment on function pgrecall._lock_for_peek(integer) is
    'Takes the wake-up lock, which somebody has, exclusively until the end of the transaction; false if it is not to be had in the given time. Called by claim.';

-- Plain SQL without settings of its own: it becomes part of the statement that calls it. As a function that is called
-- it would be a tenth of a claim. For the same reason it writes times in UTC and short spans itself, as time_text() and
-- span_text() do (a test holds them together).
create or replace function pgrecall._model_text(
    template text,
    recall_id text,
    session_id text,
    message text,
    time_zone text,
    nominal_at timestamptz,
    at_time timestamptz,
    attempt integer,
    max_attempts integer,
    deferrals integer,
    next_at timestamptz
)
returns text
language sql
stable
as $$
    -- The message comes last: what looks like a placeholder in it is left alone.
    select replace(replace(replace(replace(replace(replace(replace(replace(replace(replace(
        template,
        '{recall_id}', recall_id),
        '{session_id}', session_id),
        '{scheduled_for}', case
            when time_zone = 'UTC' then to_char(nominal_at at time zone 'UTC', 'Dy YYYY-MM-DD HH24:MI:SS"+00:00 (UTC)"')
            else pgrecall.time_text(nominal_at, time_zone)
        end),
        '{now}', case
            when time_zone = 'UTC' then to_char(at_time at time zone 'UTC', 'Dy YYYY-MM-DD HH24:MI:SS"+00:00 (UTC)"')
            else pgrecall.time_text(at_time, time_zone)
        end),
        '{late_by}', case
            when at_time - nominal_at < interval '1 second' then '0 s'
            else pgrecall.span_text(at_time - nominal_at)
        end),
        '{attempt}', attempt::text),
        '{max_attempts}', max_attempts::text),
        '{deferrals}', deferrals::text),
        '{next}', case when next_at is null then 'none' else pgrecall.time_text(next_at, time_zone) end),
        '{message}', message);
$$;
comment on function pgrecall._model_text(
    text, text, text, text, text, timestamptz, timestamptz, integer, integer, integer, timestamptz
) is
    'What the model is told when a recall fires: the template with its placeholders filled in. Called by claim and _assign, which pin the search_path.';

create or replace function pgrecall._skip_put_off(recall pgrecall.session_recalls)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_reason text := format('put off for %s s: %s', recall.max_defer_seconds, recall.defer_reason);
    v_next timestamptz := pgrecall._next_occurrence(recall, greatest(recall.trigger_at, pgrecall.clock()));
begin
    -- No run moves here, and yet nobody has done this by hand.
    insert into pgrecall.unaudited (reason) values ('an occurrence is left out');
    if v_next is null then
        -- The trigger recall_update records it, with this reason.
        update pgrecall.session_recalls
        set status = 'cancelled',
            last_error = v_reason
        where session_recalls.id = recall.id;
        delete from pgrecall.unaudited;
        return;
    end if;
    insert into pgrecall.recall_runs (
        recall_id, session_id, nominal_at, finished_at, deferrals, defer_reason, outcome, reason
    )
    values (
        recall.id, recall.session_id, recall.trigger_at, pgrecall.clock(), recall.deferrals, recall.defer_reason,
        'skipped', v_reason
    );
    recall.nominal_at := recall.trigger_at;
    perform pgrecall._record_missed(recall, v_next);
    update pgrecall.session_recalls
    set trigger_at = v_next
    where session_recalls.id = recall.id;
    delete from pgrecall.unaudited;
end;
$$;
comment on function pgrecall._skip_put_off(pgrecall.session_recalls) is
    'Leaves out an occurrence that was put off for its max_defer_seconds: recorded as skipped, a recurring recall goes on to its next time, any other is cancelled. Called by claim, which holds the row lock. Notifies: through the trigger announce_update.';

create or replace function pgrecall._full_until(session_id text, max_runs_per_day integer)
returns timestamptz
language sql
volatile -- so that it sees what was committed before the session was locked
set search_path = pg_catalog, pg_temp
as $$
    select run.started_at + interval '24 hours'
    from pgrecall.recall_runs as run
    where run.session_id = _full_until.session_id
        and run.started_at is not null
    order by run.id desc
    offset max_runs_per_day - 1
    limit 1;
$$;
comment on function pgrecall._full_until(text, integer) is
    'When a session that may have so many runs in 24 hours may have its next one; null: it has had fewer. Called by _assign, with the session locked.';

create or replace function pgrecall._full_reason()
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select 'session has had its runs of a day';
$$;
comment on function pgrecall._full_reason() is
    'The defer_reason of a recall whose session has reached its limit. Called by _assign and _weigh_again.';

create or replace function pgrecall._weigh_again(session_id text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    -- A recall that somebody is changing right now is left alone: waiting for it could deadlock.
    update pgrecall.session_recalls as recall
    set not_before = case when recall.status = 'running' then recall.trigger_at end
    where recall.id in (
        select full_up.id
        from pgrecall.session_recalls as full_up
        join pgrecall.sessions as session on session.id = full_up.session_id
        where (full_up.session_id = _weigh_again.session_id
            or _weigh_again.session_id is null and session.max_runs_per_day is null)
            and full_up.due_at > pgrecall.clock()
            and full_up.not_before > pgrecall.clock()
            and full_up.defer_reason = pgrecall._full_reason()
        for no key update of full_up skip locked
    );
end;
$$;
comment on function pgrecall._weigh_again(text) is
    'Makes recalls due that the limit of runs a day has put off, those of a session or (null) of all sessions without a limit of their own: the next claim weighs them by the limit of then. Called by the triggers settings_update and session_limit_update. Locks: these recalls, skipping locked ones. Notifies: through the trigger announce_update.';

create or replace function pgrecall._assign(
    worker_id text,
    at_time timestamptz,
    inject boolean,
    settings pgrecall.settings,
    recalls pgrecall.session_recalls[],
    sessions pgrecall.sessions[],
    suspects boolean[],
    out taken pgrecall.session_recalls[],
    out texts text[],
    out put_off pgrecall.session_recalls[]
)
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
-- Planning it costs more than doing it, and it is a few rows by their keys whatever the arguments are.
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    with due as materialized (
        select
            _assign.recalls[locked.place] as recall,
            _assign.sessions[locked.place] as session,
            locked.is_suspect
        from unnest(_assign.suspects) with ordinality as locked (is_suspect, place)
    ),
    -- What stands in the way, and until when. A run and a chat have the session; a chat in line comes before any run;
    -- then the recall's own wish for quiet, and the session's limit. Who was put off for long enough, and is not to be
    -- left out for it, passes over the line and the wish, but never over a hold.
    ranked as materialized (
        select
            (due.recall).id,
            (due.recall).session_id,
            patience.is_over,
            (due.session).run_id,
            (due.session).holder,
            (due.session).held_until,
            (due.session).line_until,
            quiet.from_at as quiet_from,
            full_session.until as full_until,
            case
                when (due.session).run_id is not null
                    and coalesce((due.session).held_until, 'infinity') > _assign.at_time then 'run'
                when (due.session).run_id is null and (due.session).held_until > _assign.at_time then 'chat'
                when (due.session).line_until > _assign.at_time and not patience.passes then 'line'
                when quiet.from_at > _assign.at_time and not patience.passes then 'quiet'
                when full_session.until > _assign.at_time then 'full'
            end as obstacle,
            row_number() over (
                partition by (due.recall).session_id order by (due.recall).due_at, (due.recall).id
            ) as place,
            due.is_suspect
                and row_number() over (partition by due.is_suspect order by (due.recall).due_at, (due.recall).id) > 1
                as keeps_apart
        from due
        cross join lateral (
            select coalesce(
                (due.recall).deferred_since + make_interval(secs => (due.recall).max_defer_seconds) <= _assign.at_time,
                false
            ) as is_over
        ) as bound
        cross join lateral (
            select bound.is_over, bound.is_over and (due.recall).on_max_defer = 'run' as passes
        ) as patience
        cross join lateral (
            select (due.session).active_at + make_interval(secs => (due.recall).idle_for_seconds) as from_at
        ) as quiet
        cross join lateral (
            select case
                when coalesce((due.session).max_runs_per_day, (_assign.settings).max_runs_per_day) is not null
                    then pgrecall._full_until(
                        (due.recall).session_id,
                        coalesce((due.session).max_runs_per_day, (_assign.settings).max_runs_per_day)
                    )
            end as until
        ) as full_session
    ),
    chosen as materialized (
        select
            ranked.id,
            ranked.session_id,
            nextval('pgrecall.run_ids') as run_id
        from ranked
        where ranked.obstacle is null
            and ranked.place = 1
            and not ranked.keeps_apart
    ),
    claimed as (
        update pgrecall.session_recalls as recall
        set status = 'running',
            run_id = chosen.run_id,
            worker_id = _assign.worker_id,
            claimed_at = _assign.at_time,
            nominal_at = recall.trigger_at,
            attempt = recall.attempt + 1,
            not_before = null,
            paused_at = null,
            paused_until = null,
            pause_reason = null
        from chosen
        where recall.id = chosen.id
        returning recall
    ),
    deferred as (
        update pgrecall.session_recalls as recall
        set not_before = least(
                case ranked.obstacle
                    when 'quiet' then ranked.quiet_from
                    when 'full' then ranked.full_until
                    else least(
                        _assign.at_time + interval '60 seconds',
                        case ranked.obstacle
                            when 'run' then ranked.held_until
                            when 'chat' then ranked.held_until
                            when 'line' then ranked.line_until
                        end
                    )
                end,
                case
                    when not ranked.is_over
                        then coalesce(recall.deferred_since, _assign.at_time)
                            + make_interval(secs => recall.max_defer_seconds)
                end
            ),
            deferrals = least(recall.deferrals + 1, 1000000000),
            deferred_since = coalesce(recall.deferred_since, _assign.at_time),
            defer_reason = case ranked.obstacle
                when 'run' then 'session held by run ' || ranked.run_id
                when 'chat' then 'session held by the chat ' || ranked.holder
                when 'line' then 'a chat waits for the session'
                when 'quiet' then format('session not quiet for %s s', recall.idle_for_seconds)
                when 'full' then pgrecall._full_reason()
                else 'session held by run ' || mate.run_id
            end
        from ranked
        left join chosen as mate on mate.session_id = ranked.session_id
        where recall.id = ranked.id
            and (ranked.obstacle is not null or (ranked.place > 1 and mate.run_id is not null))
        returning recall, ranked.obstacle, ranked.is_over
    ),
    taken as (
        update pgrecall.sessions as session
        set run_id = coalesce(chosen.run_id, session.run_id),
            holder = case when chosen.run_id is null then session.holder else _assign.worker_id end,
            held_since = case when chosen.run_id is null then session.held_since else _assign.at_time end,
            held_until = case when chosen.run_id is null then session.held_until end,
            interrupted_by = case when chosen.run_id is null then session.interrupted_by end,
            wanted_by = case when chosen.run_id is null then coalesce(deferred.wanted_by, session.wanted_by) end,
            has_waiting = session.has_waiting or coalesce(deferred.waits, false)
        from (select distinct ranked.session_id from ranked) as touched
        left join chosen on chosen.session_id = touched.session_id
        left join (
            select
                (deferred.recall).session_id,
                bool_or(deferred.obstacle is distinct from 'quiet' and deferred.obstacle is distinct from 'full')
                    as waits,
                -- The first of them; there is hardly ever a second.
                min((deferred.recall).id) filter (
                    where deferred.obstacle = 'chat'
                        and deferred.is_over
                        and (deferred.recall).on_max_defer = 'run'
                ) as wanted_by
            from deferred
            group by (deferred.recall).session_id
        ) as deferred on deferred.session_id = touched.session_id
        where session.id = touched.session_id
    ),
    told as materialized (
        select
            claimed.recall,
            pgrecall._model_text(
                (_assign.settings).message_template,
                (claimed.recall).id,
                (claimed.recall).session_id,
                (claimed.recall).additional_context_message,
                coalesce((claimed.recall).time_zone, (due.session).time_zone, 'UTC'),
                (claimed.recall).nominal_at,
                _assign.at_time,
                (claimed.recall).attempt,
                (claimed.recall).max_attempts,
                (claimed.recall).deferrals,
                pgrecall._next_occurrence(claimed.recall, greatest((claimed.recall).nominal_at, _assign.at_time))
            ) as model_text
        from claimed
        join due on (due.recall).id = (claimed.recall).id
    ),
    injected as (
        insert into pgrecall.session_messages as message (session_id, id, role, content, model_text, metadata)
        select
            (told.recall).session_id,
            pgrecall.occurrence_message_id((told.recall).id, (told.recall).nominal_at),
            'system',
            '[Scheduled recall] ' || (told.recall).additional_context_message,
            told.model_text,
            jsonb_build_object('recall_id', (told.recall).id, 'run_id', (told.recall).run_id)
        from told
        where _assign.inject
        -- A further attempt finds it there, and the model is told the attempt and the time of this one.
        on conflict on constraint message_id_is_unique_in_its_session do update
        set model_text = excluded.model_text
    )
    select
        coalesce(fired.recalls, array[]::pgrecall.session_recalls[]),
        coalesce(fired.texts, array[]::text[]),
        coalesce((select array_agg(deferred.recall) from deferred), array[]::pgrecall.session_recalls[])
    into taken, texts, put_off
    from (
        select
            array_agg(told.recall order by (told.recall).nominal_at, (told.recall).id) as recalls,
            array_agg(told.model_text order by (told.recall).nominal_at, (told.recall).id) as texts
        from told
    ) as fired;
end;
$$;
comment on function pgrecall._assign(text, timestamptz, boolean, pgrecall.settings, pgrecall.session_recalls[], pgrecall.sessions[], boolean[]) is
    'Gives due recalls and their sessions to a worker, defers those that something stands in the way of, and puts in the messages; texts are what the model is told, in the order of taken. Called by _take, which has locked them.';

create or replace function pgrecall._take(
    worker_id text,
    up_to integer,
    at_time timestamptz,
    inject boolean,
    settings pgrecall.settings,
    out looked integer,
    out has_paused boolean,
    out taken pgrecall.session_recalls[],
    out texts text[],
    out put_off pgrecall.session_recalls[]
)
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recalls pgrecall.session_recalls[];
    v_sessions pgrecall.sessions[];
    v_suspects boolean[];
begin
    has_paused := false;
    loop
        select
            array_agg(due.recall),
            array_agg(due.session),
            coalesce(array_agg(due.is_suspect), array[]::boolean[])
        into v_recalls, v_sessions, v_suspects
        from (
            select
                recall,
                session,
                recall.attempt > 0 and pgrecall._is_suspect(recall) as is_suspect
            from pgrecall.session_recalls as recall
            join pgrecall.sessions as session on session.id = recall.session_id
            where recall.due_at <= _take.at_time
                -- Suspects keep apart, so that none of them is failed by another one.
                and not (
                    recall.attempt > 0
                    and pgrecall._is_suspect(recall)
                    and exists (
                        select
                        from pgrecall.session_recalls as held
                        where held.run_id is not null
                            and held.worker_id = _take.worker_id
                            and pgrecall._is_suspect(held)
                    )
                )
            order by recall.due_at
            limit _take.up_to
            for no key update of recall, session skip locked
        ) as due;
        looked := cardinality(v_suspects);
        -- Hardly ever is anybody paused: this is one look at an empty table, and none while nothing is due.
        exit when looked = 0 or has_paused or not exists (select from pgrecall.pauses);
        perform pgrecall._pause_due(_take.at_time);
        has_paused := true;
    end loop;
    if has_paused then
        -- What _pause_due() has left, or what came since, stays due and is paused by the next look.
        select
            array_agg(v_recalls[locked.place]),
            array_agg(v_sessions[locked.place]),
            coalesce(array_agg(v_suspects[locked.place]), array[]::boolean[])
        into v_recalls, v_sessions, v_suspects
        from generate_subscripts(v_suspects, 1) as locked (place)
        where pgrecall._paused_by(v_recalls[locked.place].session_id, v_sessions[locked.place].user_id) is null;
    end if;
    if cardinality(v_suspects) = 0 then
        taken := array[]::pgrecall.session_recalls[];
        texts := array[]::text[];
        put_off := array[]::pgrecall.session_recalls[];
        return;
    end if;
    select assigned.taken, assigned.texts, assigned.put_off
    into taken, texts, put_off
    from pgrecall._assign(
        _take.worker_id, _take.at_time, _take.inject, _take.settings, v_recalls, v_sessions, v_suspects
    ) as assigned;
end;
$$;
comment on function pgrecall._take(text, integer, timestamptz, boolean, pgrecall.settings) is
    'Takes due recalls and their sessions for a worker as _assign says; those whose session or user is paused are paused in place of taken (has_paused: perhaps some were). looked is how many others were due. Called by claim. Locks: due recalls and their sessions, then pauses, skipping locked ones.';

create or replace function pgrecall._wait_until(moment timestamptz)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    -- pg_sleep() is up to a millisecond late.
    if moment - clock_timestamp() > interval '1 millisecond' then
        perform pg_sleep(extract(epoch from moment - clock_timestamp()) - 0.001);
    end if;
    loop
        exit when clock_timestamp() >= moment;
    end loop;
end;
$$;
comment on function pgrecall._wait_until(timestamptz) is
    'Waits for a moment by the machine''s clock, to some ten microseconds: it sleeps, and looks at the clock for the last millisecond. Called by claim.';

create or replace function pgrecall._refuse_claim(worker_id text, up_to integer, lease interval)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if up_to is null or up_to < 0 then
        raise exception 'up_to is %, but must be 0 or more', coalesce(up_to::text, 'null')
            using errcode = 'PR005', hint = 'Give the number of free slots; with 0 claim() only tells when to look again.';
    elsif worker_id is null or length(worker_id) not between 1 and 255 then
        raise exception 'worker_id has % characters, but must have 1 to 255', coalesce(length(worker_id)::text, 'no')
            using errcode = 'PR005', hint = 'It names the worker, for example by its host and process.';
    end if;
    perform pgrecall._check_lease(lease);
    raise exception 'claim() needs the isolation level read committed, this transaction is %',
        current_setting('transaction_isolation')
        using errcode = 'PR005', hint = 'With one snapshot for all its statements it could overlook a recall.';
end;
$$;
comment on function pgrecall._refuse_claim(text, integer, interval) is
    'Says what is wrong with the arguments of claim(), or with the isolation level. Called by claim. Raises: PR005.';

create or replace function pgrecall.claim(
    worker_id text,
    up_to integer,
    lease interval default interval '30 seconds',
    inject boolean default true,
    due_from timestamptz default '-infinity'
)
returns table (
    now_at timestamptz,
    next_due_at timestamptz,
    settled boolean,
    next_delivery_at timestamptz,
    run_id bigint,
    recall_id text,
    session_id text,
    user_id text,
    call_type text,
    nominal_at timestamptz,
    next_at timestamptz,
    attempt integer,
    max_attempts integer,
    deferrals integer,
    timeout_seconds integer,
    default_timeout_seconds integer,
    silent_token text,
    additional_context_message text,
    internal_comment text,
    metadata jsonb,
    model_text text,
    time_zone text,
    chain_depth integer,
    defer_reason text
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- Planning costs more than doing here, and all is a few rows by their keys, or the front of an index, whatever the
-- arguments and the statistics are. An estimate of how many are due would tempt the planner to read whole tables.
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
    v_now timestamptz := pgrecall.clock();
    v_from timestamptz;
    v_until timestamptz;
    v_paused_until timestamptz;
    v_max_runs_per_day integer;
    v_template text;
    v_timeout_seconds integer;
    v_silent_token text;
    v_settings pgrecall.settings;
    v_is_paused boolean;
    v_has_expired boolean;
    v_has_due boolean;
    v_is_clear boolean;
    v_ids text[];
    v_owners text[];
    v_zones text[];
    v_answer pgrecall._claimed[];
    v_is_covered boolean;
    v_claimed pgrecall.session_recalls[];
    v_texts text[];
    v_deferred pgrecall.session_recalls[];
    v_one record;
    v_looked integer;
    v_made_due boolean;
    v_has_paused boolean;
    v_settled boolean;
    v_next timestamptz;
    v_next_lease timestamptz;
    v_next_delivery timestamptz;
    v_next_of_others timestamptz;
    v_has_others boolean;
    v_is_stale boolean;
    v_has_news boolean;
    v_armed bigint;
    v_register bigint;
    v_is_untold boolean;
    v_recall pgrecall.session_recalls;
begin
    if (
        claim.up_to >= 0
        and length(claim.worker_id) between 1 and 255
        and claim.lease between interval '1 millisecond' and interval '1 day'
        and current_setting('transaction_isolation') = 'read committed'
    ) is not true then
        perform pgrecall._refuse_claim(claim.worker_id, claim.up_to, claim.lease);
    end if;
    if claim.up_to > 0 and claim.due_from > v_now and claim.due_from <= v_now + interval '50 milliseconds' then
        -- A worker that comes a moment early. The claims are made as of the time when they are due, in the last moment
        -- before it, and are committed after it: only the commit and the answer are late.
        v_until := clock_timestamp() + (claim.due_from - v_now);
        perform pg_sleep(extract(epoch from claim.due_from - v_now) - 0.0025);
        v_now := claim.due_from;
    end if;
    -- As few statements as there can be, and as few expressions outside of them: a worker that wakes up finds none of this
    -- in the processor's caches, and each of them costs more than what it does. So the first statement sets variables.
    select
        coalesce(known.paused_at <= v_now and coalesce(known.paused_until, 'infinity') > v_now, false),
        known.paused_until,
        known.max_runs_per_day,
        known.message_template,
        known.timeout_seconds,
        known.silent_token,
        front.due_from,
        exists (select from pgrecall.workers as w where w.lease_until <= v_now),
        exists (
            select
            from pgrecall.session_recalls as due
            where due.due_at <= v_now
                and due.due_at >= front.due_from
        ),
        0,
        false,
        false
    into strict
        v_is_paused, v_paused_until, v_max_runs_per_day, v_template, v_timeout_seconds, v_silent_token, v_from,
        v_has_expired, v_has_due, v_looked, v_made_due, v_settled
    from pgrecall.settings as known
    cross join lateral (
        -- What became due while all was paused is still there, and nobody was told of it.
        select case when known.paused_at is null then coalesce(claim.due_from, '-infinity') else '-infinity' end as due_from
    ) as front;

    if v_has_expired then
        if v_until is not null then
            perform pgrecall._wait_until(v_until);
        end if;
        -- A worker that comes back after its lease has passed has lost its claims like any other: also those that it
        -- does not know of, because the answer of an earlier claim() got lost. If another worker is giving them back
        -- right now it waits here, where it holds nothing that the other one may want.
        perform
        from pgrecall.workers as w
        where w.id = claim.worker_id
            and w.lease_until <= v_now
        for update;
        perform pgrecall._expire_leases();
        v_made_due := true;
        v_has_due := true;
        v_from := '-infinity';
    end if;

    -- 1. Take what is due. Both rows are locked or the pair is passed over, so that the session's state is the latest
    --    and cannot change before we commit. A session that is taken makes the recall wait, out of the eligible set.
    if claim.up_to > 0 and v_has_due and not v_is_paused then
        begin
            select
                count(*),
                array_agg(due.id),
                array_agg(due.user_id),
                array_agg(due.time_zone),
                bool_and(due.is_clear) and not exists (select from pgrecall.pauses)
            into v_looked, v_ids, v_owners, v_zones, v_is_clear
            from (
                select
                    recall.id,
                    session.user_id,
                    session.time_zone,
                    -- A session has one pending recall at most, so there is no other one for it among them.
                    recall.status = 'pending'
                        and recall.idle_for_seconds is null
                        -- No suspect, see _is_suspect.
                        and (recall.attempt < recall.max_attempts - 1 or recall.max_attempts = 1)
                        and session.run_id is null
                        and session.holder is null
                        and session.line_until is null
                        and session.wanted_by is null
                        and coalesce(session.max_runs_per_day, v_max_runs_per_day) is null
                        as is_clear
                from pgrecall.session_recalls as recall
                join pgrecall.sessions as session on session.id = recall.session_id
                where recall.due_at <= v_now
                    and recall.due_at >= v_from
                order by recall.due_at
                limit claim.up_to
                for no key update of recall, session skip locked
            ) as due;
            if v_is_clear then
                -- The short way: nothing stands in the way of any of them, as is nearly always so. It does to a recall
                -- and its session exactly what _assign does.
                with claimed as (
                    update pgrecall.session_recalls as recall
                    set status = 'running',
                        run_id = nextval('pgrecall.run_ids'),
                        worker_id = claim.worker_id,
                        claimed_at = v_now,
                        nominal_at = recall.trigger_at,
                        attempt = recall.attempt + 1,
                        not_before = null,
                        paused_at = null,
                        paused_until = null,
                        pause_reason = null,
                        pause_id = null,
                        stopped_by = null,
                        stop_reason = null,
                        after_stop = null,
                        updated_at = v_now
                    from unnest(v_ids, v_owners, v_zones) as due (id, user_id, time_zone)
                    where recall.id = due.id
                    returning
                        recall.run_id,
                        recall.id,
                        recall.session_id,
                        due.user_id,
                        recall.call_type,
                        recall.nominal_at,
                        case
                            when recall.call_type = 'recurring'
                                then pgrecall._next_occurrence(recall, greatest(recall.nominal_at, v_now))
                        end as next_at,
                        recall.attempt,
                        recall.max_attempts,
                        recall.deferrals,
                        recall.timeout_seconds,
                        recall.additional_context_message,
                        recall.internal_comment,
                        recall.metadata,
                        coalesce(recall.time_zone, due.time_zone, 'UTC') as time_zone,
                        recall.chain_depth
                ),
                taken as (
                    update pgrecall.sessions as session
                    set run_id = claimed.run_id,
                        holder = claim.worker_id,
                        held_since = v_now,
                        held_until = null,
                        interrupted_by = null
                    from claimed
                    where session.id = claimed.session_id
                ),
                -- Locked, so that nobody ends the lease before they are committed.
                covering as (
                    select
                    from pgrecall.workers as w
                    where w.id = claim.worker_id
                        and w.lease_until > v_now + claim.lease * 0.66
                        and w.seen_at > v_now - interval '5 seconds'
                    for key share
                )
                select
                    array_agg(
                        row(
                            claimed.run_id,
                            claimed.id,
                            claimed.session_id,
                            claimed.user_id,
                            claimed.call_type,
                            claimed.nominal_at,
                            claimed.next_at,
                            claimed.attempt,
                            claimed.max_attempts,
                            claimed.deferrals,
                            claimed.timeout_seconds,
                            v_timeout_seconds,
                            v_silent_token,
                            claimed.additional_context_message,
                            claimed.internal_comment,
                            claimed.metadata,
                            pgrecall._model_text(
                                v_template,
                                claimed.id,
                                claimed.session_id,
                                claimed.additional_context_message,
                                claimed.time_zone,
                                claimed.nominal_at,
                                v_now,
                                claimed.attempt,
                                claimed.max_attempts,
                                claimed.deferrals,
                                claimed.next_at
                            ),
                            claimed.time_zone,
                            claimed.chain_depth,
                            null
                        )::pgrecall._claimed
                    ),
                    exists (select from covering)
                into v_answer, v_is_covered
                from claimed;
                if claim.inject then
                    insert into pgrecall.session_messages as message (session_id, id, role, content, model_text, metadata)
                    select
                        told.session_id,
                        pgrecall.occurrence_message_id(told.recall_id, told.nominal_at),
                        'system',
                        '[Scheduled recall] ' || told.additional_context_message,
                        told.model_text,
                        jsonb_build_object('recall_id', told.recall_id, 'run_id', told.run_id)
                    from unnest(v_answer) as told
                    -- A further attempt finds it there, and the model is told the attempt and the time of this one.
                    on conflict on constraint message_id_is_unique_in_its_session do update
                    set model_text = excluded.model_text;
                end if;
            elsif v_looked > 0 then
                v_settings := (select known from pgrecall.settings as known);
                select took.looked, took.has_paused, took.taken, took.texts, took.put_off
                into v_looked, v_has_paused, v_claimed, v_texts, v_deferred
                from pgrecall._take(claim.worker_id, claim.up_to, v_now, claim.inject, v_settings) as took;
            end if;
        exception
            when others then
                if not pgrecall._is_about_a_row(sqlstate) then
                    raise;
                end if;
                v_settings := (select known from pgrecall.settings as known);
                v_looked := 0;
                v_has_paused := false;
                v_is_clear := false;
                v_answer := null;
                -- One of them cannot be taken: take them one by one, and put off the one that fails.
                for v_place in 1..claim.up_to loop
                    begin
                        select took.looked, took.has_paused, took.taken, took.texts, took.put_off
                        into v_one
                        from pgrecall._take(claim.worker_id, 1, v_now, claim.inject, v_settings) as took;
                        v_looked := v_looked + v_one.looked;
                        v_has_paused := v_has_paused or v_one.has_paused;
                        v_claimed := v_claimed || v_one.taken;
                        v_texts := v_texts || v_one.texts;
                        v_deferred := v_deferred || v_one.put_off;
                        exit when v_one.looked = 0;
                    exception
                        when others then
                            if not pgrecall._is_about_a_row(sqlstate) then
                                raise;
                            end if;
                            update pgrecall.session_recalls
                            set not_before = v_now + interval '60 seconds',
                                defer_reason = null,
                                last_error = 'it cannot be claimed: ' || sqlerrm
                            where session_recalls.id = (
                                select recall.id
                                from pgrecall.session_recalls as recall
                                join pgrecall.sessions as session on session.id = recall.session_id
                                where recall.due_at <= v_now
                                    and pgrecall._paused_by(recall.session_id, session.user_id) is null
                                order by recall.due_at
                                limit 1
                                for no key update of recall, session skip locked
                            );
                            v_looked := v_looked + 1;
                            v_made_due := true;
                    end;
                end loop;
        end;
        if not v_is_clear then
            -- Paused perhaps until a time, which is not committed.
            v_made_due := v_made_due or v_has_paused or coalesce(cardinality(v_deferred), 0) > 0;
            for v_recall in
                select late.*
                from unnest(v_deferred) as late
                where late.on_max_defer = 'skip'
                    and late.deferred_since + make_interval(secs => late.max_defer_seconds) <= v_now
            loop
                begin
                    perform pgrecall._skip_put_off(v_recall);
                exception
                    when others then
                        if not pgrecall._is_about_a_row(sqlstate) then
                            raise;
                        end if;
                        -- It stays put off, and is tried again then; the others go on.
                        raise warning 'recall % cannot be left out: %', v_recall.id, sqlerrm;
                end;
            end loop;
            select
                count(*) filter (where recall.run_id is not null) = 0,
                array_agg(
                    row(
                        recall.run_id,
                        recall.id,
                        recall.session_id,
                        session.user_id,
                        recall.call_type,
                        recall.nominal_at,
                        case
                            when recall.call_type = 'recurring'
                                then pgrecall._next_occurrence(
                                    whole.recalls[recall.ordinality], greatest(recall.nominal_at, v_now)
                                )
                        end,
                        recall.attempt,
                        recall.max_attempts,
                        recall.deferrals,
                        recall.timeout_seconds,
                        v_timeout_seconds,
                        v_silent_token,
                        recall.additional_context_message,
                        recall.internal_comment,
                        recall.metadata,
                        v_texts[recall.ordinality],
                        coalesce(recall.time_zone, session.time_zone, 'UTC'),
                        recall.chain_depth,
                        case when recall.run_id is null then recall.defer_reason end
                    )::pgrecall._claimed
                )
            into v_is_covered, v_answer
            from (select v_claimed || v_deferred as recalls) as whole
            cross join unnest(whole.recalls) with ordinality as recall
            left join pgrecall.sessions as session on session.id = recall.session_id;
        end if;
    end if;

    -- 2. The claims stand on the worker's lease: written once in a third of it, however many claims there are.
    if not v_is_covered then
        update pgrecall.workers as w
        set seen_at = v_now,
            lease_until = case
                when w.lease_until > v_now + claim.lease * 0.66 then w.lease_until
                else v_now + claim.lease
            end
        where w.id = claim.worker_id
            and w.lease_until is not null;
        if not found then
            -- It begins: the others are told, so that somebody watches over its lifelines (52_lifelines.sql).
            perform pg_notify('pgrecall', 'watch')
            where exists (
                select
                from pgrecall.workers as w
                where w.id <> claim.worker_id
                    and w.incarnation is not null
            );
            insert into pgrecall.workers (id, lease_until, concurrency)
            values (claim.worker_id, v_now + claim.lease, claim.up_to)
            on conflict (id) do update
            set seen_at = v_now,
                lease_until = excluded.lease_until;
        end if;
    end if;

    -- Also if somebody else has locked what will be due then: before, this worker would come back at once.
    if v_until is not null and v_has_due then
        perform pgrecall._wait_until(v_until);
    end if;

    -- 3. Unless there may be more to take: when is the next one due? Only a look under the wake-up lock, in a
    --    statement of its own, is sure to have seen everything ("settled"); otherwise the caller looks again soon.
    --    A worker that has work does not wait for the lock.
    if v_is_paused then
        -- Nothing that is due can run, so nobody waits for it; the end of the pause is announced (settings_update), or
        -- comes at paused_until. The register stays as it is: everybody looks again then, before it counts.
        v_settled := true;
    elsif v_looked < claim.up_to or claim.up_to = 0 then
        v_settled := pg_try_advisory_xact_lock(8099568234633718892)
            or v_looked = 0 and pgrecall._lock_for_peek(25);
    end if;
    select
        (
            select min(recall.due_at)
            from pgrecall.session_recalls as recall
            where recall.due_at >= v_from
                and (v_looked < claim.up_to or claim.up_to = 0)
        ),
        (select min(pending.next_at) from pgrecall.deliveries as pending where pending.next_at is not null),
        min(w.lease_until) filter (where w.id <> claim.worker_id and w.lease_until < v_now + interval '1 day'),
        min(w.lease_until),
        bool_or(w.id <> claim.worker_id),
        max(w.seen_at) filter (where w.id = claim.worker_id) < v_now - interval '30 seconds',
        pg_sequence_last_value('pgrecall.armed_until'),
        pg_sequence_last_value('pgrecall.untold') is not distinct from 1
    into v_next, v_next_delivery, v_next_lease, v_next_of_others, v_has_others, v_is_stale, v_register, v_is_untold
    from pgrecall.workers as w;
    if v_is_paused then
        v_next := v_paused_until;
    elsif v_settled then
        v_armed := case
            when v_next is null then 253402300800000000
            else greatest(pgrecall.microseconds(v_next), 0)
        end;
        -- The register may be lowered only to a time that is committed. Recalls that this transaction made due
        -- later (deferred, given back) are not; those it claimed are out of the eligible set and do no harm.
        if v_armed > v_register or (not v_made_due and v_armed is distinct from v_register) then
            perform setval('pgrecall.armed_until', v_armed);
        end if;
        -- The others wake up for what was due, unless they hear that there is no need to. With up_to 0 the caller
        -- does not wait for what is next.
        v_has_news := claim.up_to > 0
            and (v_looked > 0 or v_made_due or v_register <= pgrecall.microseconds(v_now) or v_is_untold)
            and coalesce(current_setting('pgrecall.told', true), '') = '';
    end if;
    if v_settled or v_looked < claim.up_to or claim.up_to = 0 then
        -- Whoever hears it forgets what it was armed for (docs/wake-up.md, "The herd"): so it is said with the lock held
        -- until it is out, and of what this transaction says it is the last. (Its triggers say what is due no earlier.)
        if v_has_news and v_has_others and coalesce(least(v_next, v_next_of_others), 'infinity') > v_now then
            perform pg_notify(
                'pgrecall',
                format(
                    'next %s %s %s',
                    coalesce(pgrecall.microseconds(least(v_next, v_next_of_others)), 253402300800000000),
                    pgrecall.microseconds(v_now),
                    claim.worker_id
                )
            );
            if v_is_untold then
                perform setval('pgrecall.untold', 0);
            end if;
            v_is_untold := true; -- as it need not be noted again
        end if;
        v_next := least(v_next, v_next_lease);
    end if;
    if v_looked > 0 and not v_is_untold then
        perform setval('pgrecall.untold', 1);
    end if;

    if v_is_stale then
        update pgrecall.workers
        set seen_at = v_now
        where workers.id = claim.worker_id;
    end if;

    return query
    select pgrecall.clock(), v_next, v_settled, v_next_delivery, answer.*
    -- One row of nulls if there is nothing to answer.
    from unnest(coalesce(v_answer, array[null::pgrecall._claimed])) as answer;
end;
$$;
comment on function pgrecall.claim(text, integer, interval, boolean, timestamptz) is
    'Takes up to so many due recalls for a worker, in due order, and tells when to look again. Always returns at least one row: now_at is the server''s time, next_due_at the earliest time at which something may be due (null: nothing is waiting), settled whether that is certain, next_delivery_at when the next delivery is due (null: none is pending); run_id is null if nothing was taken, and in the rows of recalls that were deferred, which have a defer_reason. model_text is what the model is told, by settings.message_template. due_from spares it the entries that a long open snapshot keeps in the index: nothing that was due before it is left, says a worker whose last look was settled and who has heard of nothing earlier since. If it is at most 50 ms ahead, claim() waits for it. With inject the recall''s message is put into session_messages, once for an occurrence however many attempts it takes. While all is paused (settings.paused_at) nothing is taken; what is due in a session that is paused, or whose user is, is paused in place of taken. Called by workers, outside any transaction of theirs. Locks: due recalls and their sessions, skipping locked ones; the wake-up lock. Notifies: channel pgrecall, payload ''watch'' when the worker''s lease begins, ''next <when> <now> <worker_id>'' (both microseconds since 1970) when other workers need not look before that time at which this one will, and ''due …'' through the trigger announce_update.';

create or replace function pgrecall.occurrence_message_id(recall_id text, nominal_at timestamptz)
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select 'recall:' || recall_id || ':'
        || to_char(nominal_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
$$;
comment on function pgrecall.occurrence_message_id(text, timestamptz) is
    'The id of the message that an occurrence puts into its session: recall:<recall id>:<nominal time in UTC>. The same for every attempt, so that no retry adds it twice.';
