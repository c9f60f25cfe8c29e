-- Who has a session to itself: a live chat, by hold_session(), or a run, by claim(). At most one at a time.
--
-- Everything that gives or takes a session does so under the lock of its row in sessions, so a chat that starts and a
-- run that claims cannot both succeed. A chat's hold is good for a lease and must be renewed; a run's is good as long
-- as its worker's lease. Whoever lets go hands the session to the first chat in line (session_waiters), and only if
-- none waits are deferred recalls made due.
--
-- SQLSTATE raised here: PR006 the session is held by somebody else.

create or replace function pgrecall._check_hold(holder text, lease interval)
returns void
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if holder is null or length(holder) not between 1 and 255 then
        raise exception 'holder is %, but must have 1 to 255 characters', quote_nullable(left(holder, 255))
            using errcode = 'PR005', hint = 'Name who holds the session, for example the chat server and its connection.';
    elsif lease is null or lease < interval '0.1 seconds' or lease > interval '1 day' then
        raise exception 'lease is %, but must be 0.1 seconds to 1 day', coalesce(lease::text, 'null')
            using errcode = 'PR005', hint = 'The default is 30 seconds; call again within the lease to renew.';
    end if;
end;
$$;
comment on function pgrecall._check_hold(text, interval) is
    'Refuses a holder or a lease that makes no sense. Called by hold_session and renew_hold. Raises: PR005.';

create or replace function pgrecall._wanted_from(session pgrecall.sessions)
returns timestamptz
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
    select recall.due_at
    from pgrecall.session_recalls as recall
    where recall.id = session.wanted_by
        and recall.session_id = session.id
        and recall.due_at is not null
        and (recall.paused_at is null or recall.paused_until <= pgrecall.clock())
        and recall.deferred_since + make_interval(secs => recall.max_defer_seconds) <= pgrecall.clock();
$$;
comment on function pgrecall._wanted_from(pgrecall.sessions) is
    'When the recall that wants a session, see sessions.wanted_by, is due there; null: none does, or it has been cancelled, paused or moved since. Called with the session row locked.';

create or replace function pgrecall._line_until(session_id text)
returns timestamptz
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
    select max(waiter.until)
    from pgrecall.session_waiters as waiter
    where waiter.session_id = _line_until.session_id
        and waiter.until > pgrecall.clock();
$$;
comment on function pgrecall._line_until(text) is
    'Until when somebody waits in line for a session; null: nobody does. Called with the session row locked.';

create or replace function pgrecall._give_hold(session_id text, holder text, lease interval, at_time timestamptz)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from pgrecall.session_waiters as waiter
    where waiter.session_id = _give_hold.session_id
        and (waiter.holder = _give_hold.holder or waiter.until <= at_time);
    update pgrecall.sessions
    set holder = _give_hold.holder,
        run_id = null,
        held_since = at_time,
        held_until = at_time + _give_hold.lease,
        active_at = at_time,
        interrupted_by = null,
        wanted_by = null,
        line_until = pgrecall._line_until(_give_hold.session_id)
    where sessions.id = _give_hold.session_id;
end;
$$;
comment on function pgrecall._give_hold(text, text, interval, timestamptz) is
    'Makes a session that is free the hold of a chat and takes the chat out of the line. Called by hold_session and _let_go, which hold the lock of the session row.';

create or replace function pgrecall._let_go(session_id text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_now timestamptz := pgrecall.clock();
    v_session pgrecall.sessions;
    v_next pgrecall.session_waiters;
    v_is_wanted boolean;
begin
    select held.*
    into v_session
    from pgrecall.sessions as held
    where held.id = _let_go.session_id;
    v_is_wanted := pgrecall._wanted_from(v_session) is not null;

    -- A recall that was put off for as long as may be comes before the line, which asks again by itself.
    if v_session.line_until > v_now and not v_is_wanted then
        select waiter.*
        into v_next
        from pgrecall.session_waiters as waiter
        where waiter.session_id = _let_go.session_id
            and waiter.until > v_now
        order by waiter.id
        limit 1;
        if found then
            perform pgrecall._give_hold(_let_go.session_id, v_next.holder, v_next.lease, v_now);
            perform pg_notify('pgrecall_holds', 'granted ' || v_next.id);
            -- The chat may have died in the line. What was put off because of a run is to be tried when this hold ends
            -- by itself, and not a minute after its deferral.
            update pgrecall.session_recalls as recall
            set not_before = v_now + v_next.lease
            where recall.id in (
                select deferred.id
                from pgrecall.session_recalls as deferred
                where deferred.session_id = _let_go.session_id
                    and deferred.defer_reason <> pgrecall._full_reason()
                    and deferred.idle_for_seconds is null
                    and deferred.not_before > v_now + v_next.lease
                    and deferred.due_at is not null
                for no key update skip locked
            );
            return;
        end if;
    end if;

    update pgrecall.sessions
    set run_id = null,
        holder = null,
        held_since = null,
        held_until = null,
        active_at = case
            when v_session.run_id is null and v_session.holder is not null
                then greatest(v_session.active_at, least(v_session.held_until, v_now))
            else v_session.active_at
        end,
        interrupted_by = null,
        wanted_by = case when v_is_wanted then v_session.wanted_by end,
        line_until = case when v_session.line_until > v_now then v_session.line_until end,
        has_waiting = false
    where sessions.id = _let_go.session_id
    returning sessions.* into v_session;

    -- A recall that somebody is changing right now is left alone: waiting for it could deadlock, and it is tried again
    -- at not_before anyway.
    update pgrecall.session_recalls as recall
    set not_before = case
            -- Of that one it must show since when it waits for a worker only, see hold_session.
            when recall.id = v_session.wanted_by then v_now
            when v_session.active_at + make_interval(secs => recall.idle_for_seconds) > v_now
                and not coalesce(recall.deferred_since + make_interval(secs => recall.max_defer_seconds) <= v_now, false)
                then least(
                    v_session.active_at + make_interval(secs => recall.idle_for_seconds),
                    recall.deferred_since + make_interval(secs => recall.max_defer_seconds)
                )
            when recall.status = 'running' then recall.trigger_at
        end
    where recall.id in (
        select deferred.id
        from pgrecall.session_recalls as deferred
        where deferred.session_id = _let_go.session_id
            and deferred.defer_reason is not null
            and deferred.not_before > v_now
            and deferred.due_at is not null
        for no key update skip locked
    );
end;
$$;
comment on function pgrecall._let_go(text) is
    'Ends the hold on a session, whoever has it: the first chat in line gets it, or recalls that were deferred because of it are due at once. Called by _free_session and free_session, which hold the lock of the session row. Notifies: channel pgrecall_holds, payload ''granted <waiter_id>''; and through the deferred recalls.';

create or replace function pgrecall._free_session(session_id text, run_id bigint)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_session pgrecall.sessions;
begin
    select taken.*
    into v_session
    from pgrecall.sessions as taken
    where taken.id = _free_session.session_id
        and taken.run_id = _free_session.run_id
    for no key update;
    if not found then
        return;
    elsif v_session.has_waiting or v_session.line_until is not null then
        perform pgrecall._let_go(_free_session.session_id);
    else
        update pgrecall.sessions
        set run_id = null,
            holder = null,
            held_since = null,
            held_until = null,
            interrupted_by = null,
            wanted_by = null
        where sessions.id = _free_session.session_id;
    end if;
end;
$$;
comment on function pgrecall._free_session(text, bigint) is
    'Ends the hold that a run has on its session; nothing happens if it has none. Called by finish and _expire_leases. Locks: the session row. Notifies: as _let_go.';

create or replace function pgrecall.hold_session(
    session_id text,
    holder text,
    lease interval default interval '30 seconds',
    if_held text default 'refuse'
)
returns pgrecall.session_hold
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    -- For so long a recall that was put off for its max_defer_seconds comes before any chat, once the session is free:
    -- a worker needs milliseconds to take it, but there may be none.
    v_precedence constant interval := '5 seconds';
    v_now timestamptz;
    v_session pgrecall.sessions;
    v_wanted_from timestamptz;
    v_first pgrecall.session_waiters;
    v_hold pgrecall.session_hold;
begin
    perform pgrecall._check_hold(hold_session.holder, hold_session.lease);
    if if_held is null or if_held not in ('refuse', 'wait', 'interrupt') then
        raise exception 'if_held is %, but must be refuse, wait or interrupt', quote_nullable(left(if_held, 100))
            using errcode = 'PR005', hint = 'The default is refuse.';
    end if;
    select known.*
    into v_session
    from pgrecall.sessions as known
    where known.id = hold_session.session_id
    for no key update;
    if not found then
        perform pgrecall._missing_session(hold_session.session_id);
    end if;
    v_now := pgrecall.clock();
    v_hold.session_id := v_session.id;
    v_hold.now_at := v_now;
    v_wanted_from := pgrecall._wanted_from(v_session);

    if v_session.run_id is not null and coalesce(v_session.held_until, 'infinity') > v_now then
        v_hold.kind := 'run';
        v_hold.run_id := v_session.run_id;
        v_hold.recall_id := (
            select running.id from pgrecall.session_recalls as running where running.run_id = v_session.run_id
        );
    elsif v_session.run_id is null and v_session.held_until > v_now then
        v_hold.kind := 'chat';
    elsif v_wanted_from > v_now - v_precedence and v_wanted_from <= v_now then
        v_hold.kind := 'line';
        v_hold.recall_id := v_session.wanted_by;
        v_first.holder := 'recall ' || v_session.wanted_by;
        v_first.since := v_wanted_from;
        v_first.until := v_wanted_from + v_precedence;
    elsif v_session.line_until > v_now then
        select waiter.*
        into v_first
        from pgrecall.session_waiters as waiter
        where waiter.session_id = v_session.id
            and waiter.until > v_now
        order by waiter.id
        limit 1;
        if v_first.holder <> hold_session.holder then
            v_hold.kind := 'line';
        end if;
    end if;

    if v_hold.kind is null then
        perform pgrecall._give_hold(v_session.id, hold_session.holder, hold_session.lease, v_now);
        v_hold.kind := 'chat';
        v_hold.held := true;
        v_hold.holder := hold_session.holder;
        v_hold.since := v_now;
        v_hold.until := v_now + hold_session.lease;
        return v_hold;
    elsif v_hold.kind = 'chat' and v_session.holder = hold_session.holder then
        -- The holder itself, once more: a renewal.
        perform pgrecall.renew_hold(v_session.id, hold_session.holder, hold_session.lease);
        v_hold.held := true;
        v_hold.holder := hold_session.holder;
        v_hold.since := v_session.held_since;
        v_hold.until := (select known.held_until from pgrecall.sessions as known where known.id = v_session.id);
        return v_hold;
    end if;

    v_hold.held := false;
    v_hold.holder := coalesce(v_first.holder, v_session.holder);
    v_hold.since := coalesce(v_first.since, v_session.held_since);
    v_hold.until := coalesce(v_first.until, v_session.held_until);
    if if_held = 'refuse' then
        raise exception 'session % is held by % since %',
            quote_literal(v_session.id),
            case v_hold.kind
                when 'run' then format('run %s of recall %s on worker %s', v_hold.run_id, v_hold.recall_id, v_hold.holder)
                when 'chat' then format('the chat %s', v_hold.holder)
                else format(
                    'nobody, but %s comes first', coalesce('recall ' || v_hold.recall_id, 'the chat ' || v_hold.holder)
                )
            end,
            pgrecall.time_text(v_hold.since)
            using
                errcode = 'PR006',
                detail = to_jsonb(v_hold)::text,
                hint = 'Wait in line with if_held => ''wait'', or stop a run with if_held => ''interrupt''.';
    end if;

    insert into pgrecall.session_waiters as waiter (session_id, holder, since, until, lease)
    values (v_session.id, hold_session.holder, v_now, v_now + hold_session.lease, hold_session.lease)
    on conflict on constraint waits_once_for_a_session do update
    set until = excluded.until,
        lease = excluded.lease
    returning waiter.id into v_hold.waiter_id;
    v_hold.place := (
        select count(*)
        from pgrecall.session_waiters as waiter
        where waiter.session_id = v_session.id
            and waiter.until > v_now
            and waiter.id <= v_hold.waiter_id
    );
    update pgrecall.sessions
    set line_until = greatest(line_until, v_now + hold_session.lease),
        interrupted_by = case
            when if_held = 'interrupt' and v_hold.kind = 'run' then coalesce(interrupted_by, hold_session.holder)
            else interrupted_by
        end
    where sessions.id = v_session.id;
    if if_held = 'interrupt' and v_hold.kind = 'run' then
        -- Told again each time that it is asked, in case a worker's listener was away.
        perform pg_notify('pgrecall', 'stop ' || v_hold.run_id);
    end if;
    return v_hold;
end;
$$;
comment on function pgrecall.hold_session(text, text, interval, text) is
    'Gives a session to a live chat for the length of the lease, so that no run starts in it; the same holder asking again renews. If somebody else has it, if_held decides. refuse: raises PR006, with the hold as JSON in the error''s detail. wait: the caller is in line for the length of the lease, and held is false; it asks again within the lease, or when it hears ''granted <waiter_id>'' on channel pgrecall_holds, until held is true. interrupt: the same, and if it is a run, the run is told to stop, recorded as interrupted, and comes back or not by its recall''s on_interrupt. Another chat is never interrupted. Called by chat servers. Raises: PR002 no such session, PR005, PR006. Locks: the session row. Notifies: channel pgrecall, payload ''stop <run_id>''.';

create or replace function pgrecall.renew_hold(
    session_id text,
    holder text,
    lease interval default interval '30 seconds'
)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_now timestamptz;
    v_session pgrecall.sessions;
begin
    perform pgrecall._check_hold(renew_hold.holder, renew_hold.lease);
    select held.*
    into v_session
    from pgrecall.sessions as held
    where held.id = renew_hold.session_id
        and held.holder = renew_hold.holder
        and held.run_id is null
    for no key update;
    v_now := pgrecall.clock();
    if v_session.id is null or pgrecall._wanted_from(v_session) is not null then
        return false;
    end if;
    -- Also if it has passed: nobody has taken the session since.
    update pgrecall.sessions
    set held_until = v_now + renew_hold.lease,
        active_at = v_now
    where sessions.id = renew_hold.session_id;
    return true;
end;
$$;
comment on function pgrecall.renew_hold(text, text, interval) is
    'Prolongs a chat''s hold by the lease from now. False: it is not the holder''s any more, or a recall that was put off for its max_defer_seconds wants the session, so that the hold ends: the chat must let go. Called by chat servers, every third of the lease. Raises: PR005. Locks: the session row.';

create or replace function pgrecall._is_operator()
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
    select exists (
        select
        from pg_roles as role
        join pg_namespace as place on place.nspname = 'pgrecall'
        where (role.oid = place.nspowner or role.rolname = 'pgrecall_operator')
            and pg_has_role(pgrecall._caller(), role.oid, 'usage')
    );
$$;
comment on function pgrecall._is_operator() is
    'Whether the client''s role has the rights of an operator or of the owner, also inside functions that run with their owner''s rights. Called by free_session.';

create or replace function pgrecall.free_session(session_id text, holder text default null)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_session pgrecall.sessions;
    v_left boolean;
    v_ends boolean;
begin
    if free_session.holder is null and not pgrecall._is_operator() then
        raise exception 'only an operator frees a session without naming its holder'
            using errcode = 'insufficient_privilege', hint = 'Give the holder, or ask a member of pgrecall_operator.';
    end if;
    select known.*
    into v_session
    from pgrecall.sessions as known
    where known.id = free_session.session_id
    for no key update;
    if not found then
        return false;
    end if;
    delete from pgrecall.session_waiters as waiter
    where waiter.session_id = v_session.id
        and waiter.holder = free_session.holder;
    v_left := found;
    if v_left then
        update pgrecall.sessions
        set line_until = pgrecall._line_until(v_session.id)
        where sessions.id = v_session.id;
    end if;
    v_ends := case
        when v_session.run_id is null and v_session.holder = coalesce(free_session.holder, v_session.holder) then true
        when v_session.run_id is not null and free_session.holder is null then not exists (
            select from pgrecall.session_recalls as running where running.run_id = v_session.run_id
        )
        -- Nobody has it, and who left the line was perhaps all that the others waited for.
        else v_left and (v_session.holder is null or coalesce(v_session.held_until, 'infinity') <= pgrecall.clock())
    end;
    if not v_ends then
        return v_left;
    end if;
    if free_session.holder is null then
        perform pgrecall._audit(
            'free', 'sessions', v_session.id, v_session.id,
            jsonb_build_object('holder', v_session.holder, 'held_since', v_session.held_since, 'run_id', v_session.run_id),
            null
        );
    end if;
    perform pgrecall._let_go(v_session.id);
    return true;
end;
$$;
comment on function pgrecall.free_session(text, text) is
    'Ends a chat''s hold on a session, or its waiting for one; whoever waits is woken. True if there was something to end. holder null is for operators and the owner only: whichever chat it is, or the rest of a run whose recall is gone; a run that is alive is stopped by cancelling its recall instead. Called by chat servers. Raises: 42501 no holder, and not an operator. Locks: the session row. Notifies: channel pgrecall_holds, and through the deferred recalls.';

create or replace function pgrecall.touch_session(session_id text)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgrecall.sessions
    set active_at = pgrecall.clock()
    where sessions.id = touch_session.session_id;
    return found;
end;
$$;
comment on function pgrecall.touch_session(text) is
    'Records that somebody has just spoken with the agent of this session, for recalls with idle_for_seconds; false if there is no such session. Called by hosts that do not hold sessions. Locks: the session row.';

create or replace function pgrecall.get_holds(session_id text default null)
returns table (
    held_session_id text,
    kind text,
    holder text,
    since timestamptz,
    until timestamptz,
    run_id bigint,
    recall_id text,
    interrupted_by text,
    chats_waiting integer,
    recalls_waiting integer
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
    select
        session.id,
        case when session.run_id is null then 'chat' else 'run' end,
        session.holder,
        session.held_since,
        session.held_until,
        session.run_id,
        (select running.id from pgrecall.session_recalls as running where running.run_id = session.run_id),
        session.interrupted_by,
        (
            select count(*)::integer
            from pgrecall.session_waiters as waiter
            where waiter.session_id = session.id
                and waiter.until > pgrecall.clock()
        ),
        (
            select count(*)::integer
            from pgrecall.session_recalls as deferred
            where deferred.session_id = session.id
                and deferred.defer_reason is not null
                and deferred.due_at is not null
        )
    from (
        select running.session_id as id
        from pgrecall.session_recalls as running
        where running.run_id is not null
        union
        select chat.id
        from pgrecall.sessions as chat
        where chat.held_until > pgrecall.clock()
    ) as taken
    join pgrecall.sessions as session using (id)
    where session.holder is not null
        and (get_holds.session_id is null or session.id = get_holds.session_id)
        and (session.held_until is null or session.held_until > pgrecall.clock())
    order by session.held_since, session.id;
$$;
comment on function pgrecall.get_holds(text) is
    'Who has which session since when, oldest first; with a session_id that one only. kind is chat or run; until is when it ends by itself unless it is renewed (null for a run: its worker''s lease decides).';
