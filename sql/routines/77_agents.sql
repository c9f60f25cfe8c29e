-- What an agent may do with recalls by itself: ask for one, see, cancel and skip those of its own session. Here are the
-- bounds, so that no client gets around them; tools and the MCP server hand a model's arguments over as they are, and
-- its answer back. Answers and errors are written for a model: they say what the time is, and what to do instead.
--
-- Who asks is never among a model's arguments: the client knows the session and, inside a run, the run.
--
-- SQLSTATE raised here besides those of 40_schedule.sql: PR007, the settings do not allow it.

create or replace function pgrecall._agent_settings()
returns pgrecall.settings
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_settings pgrecall.settings;
begin
    -- Without the row there would be no bounds.
    select only_row.*
    into strict v_settings
    from pgrecall.settings as only_row;
    return v_settings;
end;
$$;
comment on function pgrecall._agent_settings() is 'The settings; an error if there are none. Called by the functions of agents.';

create or replace function pgrecall._agent_zone(session_id text)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_zone text;
begin
    select session.time_zone
    into v_zone
    from pgrecall.sessions as session
    where session.id = _agent_zone.session_id;
    if not found then
        perform pgrecall._missing_session(_agent_zone.session_id);
    end if;
    return coalesce(v_zone, 'UTC');
end;
$$;
comment on function pgrecall._agent_zone(text) is
    'The time zone in which an agent is told times: its session''s, else UTC. Called by the functions of agents. Raises: PR002 no such session.';

create or replace function pgrecall._agent_run(session_id text, run_id bigint)
returns pgrecall.session_recalls
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_held_by bigint;
    v_run pgrecall.session_recalls;
begin
    select case when coalesce(session.held_until, 'infinity') > pgrecall.clock() then session.run_id end
    into v_held_by
    from pgrecall.sessions as session
    where session.id = _agent_run.session_id;
    if not found then
        perform pgrecall._missing_session(_agent_run.session_id);
    end if;
    -- A session has one run at a time, so during a run whoever asks is that run, whether it says so or not.
    if v_held_by is null and _agent_run.run_id is null then
        return null;
    end if;
    -- finish(), and whoever finds the worker dead, wait for this lock: a run that is lost cannot change anything.
    select held.*
    into v_run
    from pgrecall.session_recalls as held
    where held.run_id = coalesce(_agent_run.run_id, v_held_by)
        and held.session_id = _agent_run.session_id
        and held.status = 'running'
    for no key update;
    if found then
        return v_run;
    end if;
    -- Without a run_id it may have ended between the two looks.
    if _agent_run.run_id is null and not exists (
        select
        from pgrecall.sessions as session
        where session.id = _agent_run.session_id
            and session.run_id = v_held_by
    ) then
        return null;
    end if;
    raise exception 'this run does not have the session any more: it was told to stop, or has ended'
        using errcode = 'PR004', hint = 'Stop here: nothing was changed, and nothing more can be.';
end;
$$;
comment on function pgrecall._agent_run(text, bigint) is
    'The recall whose run asks: that of run_id or, if that is null, of the run that has the session now; null: no run has, somebody is connected. Called by the functions of agents that change something. Locks: that recall, so that calls of one run come one after another. Raises: PR002 no such session, PR004 run_id is not the run that has the session (any more).';

create or replace function pgrecall._agent_time(name text, given text, time_zone text)
returns timestamptz
language plpgsql
stable
strict
set search_path = pg_catalog, pg_temp
as $$
declare
    v_parts text[];
begin
    -- Stricter than the server's own reading, which takes 'tomorrow' and 01/02/2030, too.
    v_parts := regexp_match(
        btrim(given), '^(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?) ?(Z|[+-]\d\d(?::?\d\d)?)?$', 'i'
    );
    if v_parts is not null then
        begin
            if v_parts[3] is null then
                return (v_parts[1] || ' ' || v_parts[2])::timestamp at time zone _agent_time.time_zone;
            end if;
            return (v_parts[1] || ' ' || v_parts[2] || v_parts[3])::timestamptz;
        exception
            when data_exception then
                null;  -- 30 February
        end;
    end if;
    raise exception '% is %, which is not an ISO 8601 date with a time of day', name, quote_literal(left(given, 100))
        using
            errcode = 'PR005',
            hint = format(
                'For example %s (read in the time zone %s), or with an offset as in %s.',
                to_char((pgrecall.clock() + interval '1 day') at time zone _agent_time.time_zone, 'YYYY-MM-DD"T"HH24:MI'),
                _agent_time.time_zone,
                to_char((pgrecall.clock() + interval '1 day') at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI"+00:00"')
            );
end;
$$;
comment on function pgrecall._agent_time(text, text, text) is
    'A model''s time: ISO 8601, read in time_zone unless it has an offset. Called by agent_schedule_recall. Raises: PR005.';

create or replace function pgrecall._cron_gap_seconds(cron text)
returns integer
language sql
immutable
strict
parallel safe
set search_path = pg_catalog, pg_temp
as $$
    with named as (
        select hour.value * 60 + minute.value as minute_of_day
        from generate_series(0, 23) as hour (value)
        cross join generate_series(0, 59) as minute (value)
        where (pgrecall._cron_field(2, (pgrecall._cron_fields(cron))[2]) >> hour.value) & 1 = 1
            and (pgrecall._cron_field(1, (pgrecall._cron_fields(cron))[1]) >> minute.value) & 1 = 1
    ),
    gaps as (
        select
            lead(named.minute_of_day, 1, (select min(first.minute_of_day) + 1440 from named as first))
                over (order by named.minute_of_day) - named.minute_of_day as minutes
        from named
    )
    select min(gaps.minutes) * 60 from gaps;
$$;
comment on function pgrecall._cron_gap_seconds(text) is
    'The shortest time between two occurrences of a valid cron expression, in seconds by the clock on the wall, as if every day were one of its days. Called by agent_schedule_recall.';

create or replace function pgrecall._agent_view(recall pgrecall.session_recalls, time_zone text)
returns jsonb
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_zone constant text := coalesce(recall.time_zone, _agent_view.time_zone);
    v_now constant timestamptz := pgrecall.clock();
    v_at timestamptz;
    v_first timestamptz;
    v_times jsonb := '[]';
begin
    v_at := case
        when recall.status = 'running' and recall.run_id is not null and recall.trigger_at = recall.nominal_at
            then pgrecall._next_occurrence(recall, greatest(recall.nominal_at, v_now))
        when recall.status in ('pending', 'running') then recall.trigger_at
    end;
    v_first := v_at;
    while v_at is not null and jsonb_array_length(v_times) < 3 loop
        v_times := v_times || to_jsonb(pgrecall.time_text(v_at, v_zone));
        v_at := pgrecall._next_occurrence(recall, v_at);
    end loop;
    return jsonb_strip_nulls(jsonb_build_object(
        'recall_id', recall.id,
        'message', case
            when length(recall.additional_context_message) > 500
                then left(recall.additional_context_message, 500) || '…'
            else recall.additional_context_message
        end,
        'status', case when recall.paused_at is null then recall.status else recall.status || ', paused' end,
        'next_times', v_times,
        'first_in', pgrecall.span_text(v_first - v_now),
        'interval_seconds', case when recall.call_type = 'recurring' then recall.interval_seconds end,
        'cron', case when recall.call_type = 'recurring' then recall.cron end,
        'ends_at', case when recall.call_type = 'recurring' then pgrecall.time_text(recall.end_at, v_zone) end,
        'made_by', case recall.created_by when 'agent' then 'you' else 'the application' end
    ));
end;
$$;
comment on function pgrecall._agent_view(pgrecall.session_recalls, text) is
    'A recall as its agent sees it: times with offset and zone, at most three of them, and nothing that is for people only. Called by the functions of agents.';

create or replace function pgrecall._agent_end(recall pgrecall.session_recalls, run pgrecall.session_recalls)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_settings constant pgrecall.settings := pgrecall._agent_settings();
begin
    if recall.created_by = 'host' and not v_settings.agent_can_change_host_recalls then
        raise exception 'recall % was made by the application, so it is not yours to change', quote_literal(recall.id)
            using errcode = 'PR007', hint = 'Leave it, and say that it has to be changed in the application.';
    end if;
    if recall.id = run.id then
        -- Its run has to be able to say a word about it.
        perform pgrecall._make_way(recall, null);
    else
        update pgrecall.session_recalls
        set status = 'cancelled'
        where session_recalls.id = recall.id;
    end if;
end;
$$;
comment on function pgrecall._agent_end(pgrecall.session_recalls, pgrecall.session_recalls) is
    'Cancels a recall for the agent; the recurring one whose run asks becomes a once instead, so that its run is not told to stop. Called by agent_schedule_recall and agent_cancel_recall, which have locked it. Raises: PR007 the host made it and settings.agent_can_change_host_recalls is false.';

create or replace function pgrecall.agent_schedule_recall(
    session_id text,
    additional_context_message text,
    run_id bigint default null,
    trigger_at text default null,
    in_seconds double precision default null,
    interval_seconds integer default null,
    cron text default null,
    time_zone text default null,
    end_at text default null,
    if_exists text default 'replace',
    idempotency_key text default null
)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_settings constant pgrecall.settings := pgrecall._agent_settings();
    v_now constant timestamptz := pgrecall.clock();
    v_zone text := pgrecall._agent_zone(session_id);
    v_run constant pgrecall.session_recalls := pgrecall._agent_run(session_id, run_id);
    v_least constant interval := make_interval(secs => v_settings.agent_min_interval_seconds);
    v_latest_end constant timestamptz := v_now + make_interval(days => v_settings.agent_recurring_days);
    v_is_recurring constant boolean := cron is not null or interval_seconds is not null;
    v_depth constant integer := case when v_run.id is null then 0 else v_run.chain_depth + 1 end;
    v_gap integer := interval_seconds;
    v_at timestamptz;
    v_end timestamptz;
    v_notes text[] := array[]::text[];
    v_existing pgrecall.session_recalls;
    v_replaced jsonb;
    v_recall pgrecall.session_recalls;
    v_result text;
    v_count bigint;
begin
    -- 1. Which times are meant.
    if if_exists is null or if_exists not in ('replace', 'raise', 'keep') then
        raise exception 'if_exists is %, but must be replace, raise or keep', quote_nullable(left(if_exists, 100))
            using errcode = 'PR005', hint = 'The default is replace.';
    elsif trigger_at is not null and in_seconds is not null then
        raise exception 'trigger_at and in_seconds exclude each other'
            using errcode = 'PR005', hint = 'in_seconds for "in two hours", trigger_at for "tomorrow at nine".';
    elsif cron is not null and (trigger_at is not null or in_seconds is not null or interval_seconds is not null) then
        raise exception 'cron says all the times, so trigger_at, in_seconds and interval_seconds exclude it'
            using errcode = 'PR005', hint = 'Give cron alone, with time_zone and end_at if need be.';
    elsif trigger_at is null and in_seconds is null and not v_is_recurring then
        raise exception 'no time was given: trigger_at, in_seconds, interval_seconds and cron are all missing'
            using
                errcode = 'PR005',
                hint = 'Give in_seconds or trigger_at for once, interval_seconds or cron for again and again.';
    elsif end_at is not null and not v_is_recurring then
        raise exception 'end_at is for recurring recalls'
            using errcode = 'PR005', hint = 'Leave it out, or give interval_seconds or cron.';
    elsif in_seconds is not null and not in_seconds between 0 and 3155760000 then
        raise exception 'in_seconds is %, but must be 0 to 3155760000', in_seconds
            using errcode = 'PR005', hint = 'It counts from now.';
    end if;
    if agent_schedule_recall.time_zone is not null then
        if pgrecall.time_zone_error(agent_schedule_recall.time_zone) is not null then
            raise exception '%', pgrecall.time_zone_error(agent_schedule_recall.time_zone)
                using errcode = 'PR005', hint = format('Use an IANA name, or leave it out for %s.', v_zone);
        end if;
        v_zone := agent_schedule_recall.time_zone;
    end if;
    if cron is not null then
        if pgrecall.cron_error(cron) is not null then
            raise exception '%', pgrecall.cron_error(cron)
                using errcode = 'PR005', hint = 'For example ''0 9 * * mon-fri''.';
        end if;
        v_gap := pgrecall._cron_gap_seconds(cron);
        -- The first time that is far enough away: a daily recall made a moment before its time begins tomorrow.
        v_at := pgrecall.cron_next(cron, v_zone, v_now + v_least - interval '1 microsecond');
        if v_at is null then
            raise exception 'cron % names no time in the coming years', quote_literal(left(cron, 100))
                using errcode = 'PR005', hint = 'Its day and month never meet, as in ''0 9 31 2 *''.';
        end if;
    elsif trigger_at is not null then
        v_at := pgrecall._agent_time('trigger_at', trigger_at, v_zone);
    else
        v_at := v_now + make_interval(secs => coalesce(in_seconds, interval_seconds));
    end if;

    -- 2. The bounds.
    if v_depth > v_settings.agent_max_chain_depth then
        raise exception 'this run cannot schedule a further one: % runs in a row were each scheduled by the one before, and nobody has spoken to you meanwhile',
            v_depth
            using errcode = 'PR007', hint = 'Finish here. When the user speaks to you again, you can schedule again.';
    elsif v_gap < v_settings.agent_min_interval_seconds then
        raise exception '% would come every % s, but at least % s must lie between two times',
            case when cron is null then 'interval_seconds' else 'cron ' || quote_literal(left(cron, 100)) end,
            v_gap, v_settings.agent_min_interval_seconds
            using errcode = 'PR007', hint = 'Ask for fewer times.';
    elsif v_at < v_now + v_least then
        raise exception '%: % is %: it is % now, and a recall must be at least % s from now',
            case when in_seconds is null then 'trigger_at' else 'in_seconds' end,
            pgrecall.time_text(v_at, v_zone),
            case when v_at < v_now then 'in the past' else 'too soon' end,
            pgrecall.time_text(v_now, v_zone),
            v_settings.agent_min_interval_seconds
            using
                errcode = 'PR007',
                hint = format('Take a later time, or in_seconds of %s or more.', v_settings.agent_min_interval_seconds);
    end if;
    if v_is_recurring then
        v_end := coalesce(pgrecall._agent_time('end_at', end_at, v_zone), v_latest_end);
        if v_end > v_latest_end then
            v_end := v_latest_end;
            v_notes := v_notes || format('end_at was moved to %s.', pgrecall.time_text(v_end, v_zone));
        end if;
        if end_at is null or cardinality(v_notes) > 0 then
            v_notes := v_notes || format(
                'A recurring recall ends after %s days at the latest; schedule it anew to go on.',
                v_settings.agent_recurring_days
            );
        end if;
        if v_at > v_latest_end then
            raise exception 'the first time would be %, but a recurring recall must end by %',
                pgrecall.time_text(v_at, v_zone), pgrecall.time_text(v_latest_end, v_zone)
                using errcode = 'PR007', hint = 'Schedule it for that one time, without cron or interval_seconds.';
        elsif v_at > v_end then
            raise exception 'end_at is %, before the first time, %',
                pgrecall.time_text(v_end, v_zone), pgrecall.time_text(v_at, v_zone)
                using errcode = 'PR005', hint = 'Take a later end_at, or leave it out.';
        end if;
    end if;

    -- 3. Put it in the place of the present one. Somebody else may be faster; then that one is the present one.
    for v_try in 1..5 loop
        v_replaced := null;
        v_result := 'scheduled';
        select known.*
        into v_recall
        from pgrecall.session_recalls as known
        where known.session_id = agent_schedule_recall.session_id
            and known.idempotency_key = agent_schedule_recall.idempotency_key;
        if found then
            v_result := 'scheduled before';
            exit;
        end if;
        begin
            select pending.*
            into v_existing
            from pgrecall.session_recalls as pending
            where pending.session_id = agent_schedule_recall.session_id
                and (pending.status = 'pending' or (pending.status = 'running' and pending.call_type = 'recurring'))
            for no key update;
            if found then
                if if_exists = 'keep' then
                    v_recall := v_existing;
                    v_result := 'kept';
                    exit;
                elsif if_exists = 'raise' then
                    raise exception 'this session has a recall already: %', quote_literal(v_existing.id)
                        using
                            errcode = 'PR001',
                            detail = v_existing.session_id,
                            hint = 'A session has one at a time: cancel it, or say replace for if_exists.';
                end if;
                v_replaced := pgrecall._agent_view(v_existing, v_zone);
                perform pgrecall._agent_end(v_existing, v_run);
            end if;
            insert into pgrecall.session_recalls (
                session_id, call_type, trigger_at, interval_seconds, additional_context_message, cron, time_zone,
                end_at, pause_after_failures, created_by, created_by_run_id, chain_depth, idempotency_key, scheduled_by
            )
            values (
                agent_schedule_recall.session_id,
                case when v_is_recurring then 'recurring' else 'once' end,
                v_at,
                agent_schedule_recall.interval_seconds,
                agent_schedule_recall.additional_context_message,
                agent_schedule_recall.cron,
                v_zone,
                v_end,
                case when v_is_recurring then 3 end,
                'agent',
                v_run.run_id,
                v_depth,
                agent_schedule_recall.idempotency_key,
                pgrecall._caller()
            )
            returning * into v_recall;
            exit;
        exception
            when unique_violation then
                if v_try = 5 then
                    raise exception 'somebody else schedules recalls in this session right now'
                        using
                            errcode = 'PR001',
                            detail = agent_schedule_recall.session_id,
                            hint = 'Look with list_recalls, then try again.';
                end if;
            when foreign_key_violation then
                perform pgrecall._missing_session(agent_schedule_recall.session_id);
        end;
    end loop;

    -- 4. The number of pending ones, last: whoever has this lock waits for nothing more, and counts all that were
    --    committed before it.
    if v_result = 'scheduled' then
        perform pg_advisory_xact_lock(hashtextextended(
            coalesce(
                (
                    select 'pgrecall user ' || owned.user_id
                    from pgrecall.sessions as owned
                    where owned.id = v_recall.session_id
                ),
                'pgrecall session ' || v_recall.session_id
            ),
            0
        ));
        select count(*)
        into v_count
        from pgrecall.session_recalls as pending
        where pending.created_by = 'agent'
            and (pending.status = 'pending' or (pending.status = 'running' and pending.call_type = 'recurring'))
            and (
                pending.session_id = v_recall.session_id
                or pending.session_id in (
                    select mate.id
                    from pgrecall.sessions as mate
                    join pgrecall.sessions as owned on owned.user_id = mate.user_id
                    where owned.id = v_recall.session_id
                )
            );
        if v_count > v_settings.agent_max_pending_per_user then
            raise exception 'this user has % recalls made by agents already, and no more are allowed', v_count - 1
                using
                    errcode = 'PR007',
                    hint = 'Nothing was scheduled. The user can cancel one in another conversation.';
        end if;
    end if;
    return jsonb_strip_nulls(jsonb_build_object(
        'result', v_result,
        'now', pgrecall.time_text(pgrecall.clock(), v_zone),
        'time_zone', v_zone,
        'recall', pgrecall._agent_view(v_recall, v_zone),
        'replaced', v_replaced,
        'notes', case when v_result = 'scheduled' and cardinality(v_notes) > 0 then to_jsonb(v_notes) end
    ));
end;
$$;
comment on function pgrecall.agent_schedule_recall(text, text, bigint, text, double precision, integer, text, text, text, text, text) is
    'An agent asks for a recall in its own session. When: trigger_at (ISO 8601, read in time_zone unless it has an offset) or in_seconds from now, either also as the first of every interval_seconds; interval_seconds alone begins one interval from now; or cron, read in time_zone. time_zone null: the session''s, else UTC. if_exists: replace the session''s pending recall, raise, or keep it. run_id: the run that asks; null: the one that has the session, else nobody''s (a live chat). Returns {result: scheduled, kept or scheduled before (a known idempotency_key), now, time_zone, recall, replaced, notes}, times with offset and zone, the next three of a recurring one. Replacing the recurring recall whose run asks makes that run its last one. A recurring one ends after settings.agent_recurring_days at the latest and is paused after three failures. Raises: PR001 (if_exists raise), PR002 no such session, PR004 the run does not have the session any more, PR005 or a named CHECK for a bad argument, PR007 a bound of pgrecall.settings. Locks: the recall of the run, the pending one, then an advisory lock for the user, until the transaction ends. Notifies: as schedule_recall.';

create or replace function pgrecall.agent_list_recalls(session_id text)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_zone constant text := pgrecall._agent_zone(session_id);
begin
    return jsonb_build_object(
        'now', pgrecall.time_text(pgrecall.clock(), v_zone),
        'time_zone', v_zone,
        'recalls', coalesce(
            (
                select jsonb_agg(pgrecall._agent_view(live, v_zone) order by live.trigger_at, live.id)
                from pgrecall.session_recalls as live
                where live.session_id = agent_list_recalls.session_id
                    and live.status in ('pending', 'running')
            ),
            '[]'
        )
    );
end;
$$;
comment on function pgrecall.agent_list_recalls(text) is
    'What is scheduled in an agent''s own session, as {now, time_zone, recalls}, each as agent_schedule_recall returns it. Raises: PR002 no such session.';

create or replace function pgrecall.agent_cancel_recall(
    session_id text,
    recall_id text default null,
    run_id bigint default null
)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_zone constant text := pgrecall._agent_zone(session_id);
    v_run constant pgrecall.session_recalls := pgrecall._agent_run(session_id, run_id);
    v_recall pgrecall.session_recalls;
    v_view jsonb;
    v_result text;
begin
    select known.*
    into v_recall
    from pgrecall.session_recalls as known
    where known.session_id = agent_cancel_recall.session_id
        and case
            when agent_cancel_recall.recall_id is not null then known.id = agent_cancel_recall.recall_id
            else known.status = 'pending' or (known.status = 'running' and known.call_type = 'recurring')
        end
    for no key update;
    if not found and agent_cancel_recall.recall_id is not null then
        -- Also if there is one in another session.
        perform pgrecall._missing_recall(agent_cancel_recall.recall_id);
    elsif v_recall.id is null then
        v_result := 'nothing to cancel';
    elsif v_recall.status = 'cancelled' then
        v_result := 'cancelled before';
    elsif v_recall.id = v_run.id and v_recall.call_type <> 'recurring' then
        raise exception 'recall % is the one that you run for now', quote_literal(v_recall.id)
            using errcode = 'PR004', detail = v_recall.status, hint = 'It will not come again: just finish.';
    elsif v_recall.status not in ('pending', 'running') then
        raise exception 'recall % is %, so it cannot be cancelled', quote_literal(v_recall.id), v_recall.status
            using errcode = 'PR004', detail = v_recall.status, hint = 'It has ended: there is nothing to do.';
    else
        v_result := case
            when v_recall.id = v_run.id then 'cancelled: this run is its last'
            else 'cancelled'
        end;
        v_view := pgrecall._agent_view(v_recall, v_zone);
        perform pgrecall._agent_end(v_recall, v_run);
    end if;
    return jsonb_strip_nulls(jsonb_build_object(
        'result', v_result,
        'now', pgrecall.time_text(pgrecall.clock(), v_zone),
        'time_zone', v_zone,
        'cancelled', v_view
    ));
end;
$$;
comment on function pgrecall.agent_cancel_recall(text, text, bigint) is
    'An agent cancels a recall of its own session: recall_id, or the pending one if that is null. Returns {result: cancelled, cancelled: this run is its last, cancelled before or nothing to cancel, now, time_zone, cancelled: as it was}. The recurring recall whose run asks is not stopped: it runs to its end and does not come again. run_id: as for agent_schedule_recall. Raises: PR002 no such session, PR003 no such recall in this session, PR004 it has ended, or the run does not have the session any more, PR007 the host made it and settings.agent_can_change_host_recalls is false. Locks: the recall of the run, then the other one. Notifies: stop, if another run has it.';

create or replace function pgrecall.agent_skip_next_recall(
    session_id text,
    recall_id text default null,
    run_id bigint default null
)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_settings constant pgrecall.settings := pgrecall._agent_settings();
    v_zone constant text := pgrecall._agent_zone(session_id);
    v_run constant pgrecall.session_recalls := pgrecall._agent_run(session_id, run_id);
    v_recall pgrecall.session_recalls;
    v_skipped text;
begin
    select known.*
    into v_recall
    from pgrecall.session_recalls as known
    where known.session_id = agent_skip_next_recall.session_id
        and case
            when agent_skip_next_recall.recall_id is not null then known.id = agent_skip_next_recall.recall_id
            else known.status in ('pending', 'running') and known.call_type = 'recurring'
        end
    for no key update;
    if not found and agent_skip_next_recall.recall_id is not null then
        perform pgrecall._missing_recall(agent_skip_next_recall.recall_id);
    elsif v_recall.id is null then
        return jsonb_build_object(
            'result', 'nothing to skip: this session has no recurring recall',
            'now', pgrecall.time_text(pgrecall.clock(), v_zone),
            'time_zone', v_zone
        );
    elsif v_recall.call_type <> 'recurring' or v_recall.status not in ('pending', 'running') then
        raise exception 'recall % is % and %, so nothing of it can be skipped',
            quote_literal(v_recall.id), v_recall.call_type, v_recall.status
            using errcode = 'PR004', detail = v_recall.status, hint = 'Only a pending recurring one can; a single one can be cancelled.';
    elsif v_recall.status = 'running' then
        raise exception 'recall % runs now, and its next time is not fixed before it has ended', quote_literal(v_recall.id)
            using
                errcode = 'PR004',
                detail = v_recall.status,
                hint = 'To leave its next time out, schedule it anew with a later first time: trigger_at with interval_seconds.';
    elsif v_recall.created_by = 'host' and not v_settings.agent_can_change_host_recalls then
        raise exception 'recall % was made by the application, so it is not yours to change', quote_literal(v_recall.id)
            using errcode = 'PR007', hint = 'Leave it, and say that it has to be changed in the application.';
    end if;
    v_skipped := pgrecall.time_text(v_recall.trigger_at, coalesce(v_recall.time_zone, v_zone));
    perform pgrecall.skip_next_recall(v_recall.session_id);
    select known.*
    into v_recall
    from pgrecall.session_recalls as known
    where known.id = v_recall.id;
    return jsonb_build_object(
        'result', case v_recall.status
            when 'cancelled' then 'skipped: that was the last time, so nothing is left'
            else 'skipped'
        end,
        'now', pgrecall.time_text(pgrecall.clock(), v_zone),
        'time_zone', v_zone,
        'skipped', v_skipped,
        'recall', pgrecall._agent_view(v_recall, v_zone)
    );
end;
$$;
comment on function pgrecall.agent_skip_next_recall(text, text, bigint) is
    'An agent leaves out the next time of a recurring recall of its own session: recall_id, or the pending one if that is null. Returns {result, now, time_zone, skipped: the time left out, recall: as it is now}. run_id: as for agent_schedule_recall. Raises: PR002 no such session, PR003 no such recall in this session, PR004 it is not recurring, has ended or runs now, or the run does not have the session any more, PR007 the host made it and settings.agent_can_change_host_recalls is false. Locks: the recall of the run, then the other one.';
