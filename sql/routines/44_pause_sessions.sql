-- Pausing a session or a user: also recalls that are made later are not run.
--
-- A pause is one row of pgrecall.pauses, however many recalls it is about. A claim() that finds something due looks
-- whether there is any such row, hardly ever is, and pauses what is due and covered (_pause_due), so that it leaves the
-- eligible set and nobody wakes up for it again. Lock order: a row of pauses, then recalls. claim() waits for neither:
-- it shares the row of the pause that it acts on, so whoever ends or changes that pause waits for it, and sees what it
-- has paused; and if somebody is ending the pause right now, it puts the recall off for a second.

create or replace function pgrecall._paused_by(session_id text, user_id text)
returns bigint
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
    select pause.id
    from pgrecall.pauses as pause
    where (pause.session_id = _paused_by.session_id or pause.user_id = _paused_by.user_id)
        and (pause.paused_until is null or pause.paused_until > pgrecall.clock())
    order by pause.session_id nulls last
    limit 1;
$$;
comment on function pgrecall._paused_by(text, text) is
    'The pause that keeps the recalls of a session from being run, its own before that of its user; null: none does. Called by claim, _take, _pause_due, run_now and run_recalls_now.';

create or replace function pgrecall._pause_text(pause pgrecall.pauses)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
    select case when pause.session_id is null then 'user ' || pause.user_id else 'session ' || pause.session_id end
        || ' is paused' || coalesce(': ' || pause.reason, '');
$$;
comment on function pgrecall._pause_text(pgrecall.pauses) is
    'The pause_reason of the recalls that a pause of a session or user has paused.';

create or replace function pgrecall._pause_due(at_time timestamptz)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_unlocked bigint[];
    v_due text[];
begin
    -- A pause that has ended is not needed any more. Its recalls are due by their paused_until.
    delete from pgrecall.pauses
    where pauses.id in (
        select ended.id
        from pgrecall.pauses as ended
        where ended.paused_until <= at_time
        for update skip locked
    );
    v_unlocked := array(
        select pause.id
        from pgrecall.pauses as pause
        for share skip locked
    );
    -- With the sessions, so that none goes to another user before we commit. In parts, so that a look stays short
    -- however many are due: what is left is due still, and the caller looks again.
    v_due := array(
        select recall.id
        from pgrecall.session_recalls as recall
        join pgrecall.sessions as session on session.id = recall.session_id
        where recall.due_at <= at_time
            and pgrecall._paused_by(session.id, session.user_id) is not null
        order by recall.due_at
        limit 500
        for no key update of recall, session skip locked
    );
    update pgrecall.session_recalls as recall
    set paused_at = at_time,
        paused_until = case
            when pause.id = any(v_unlocked) then pause.paused_until
            else at_time + interval '1 second'
        end,
        pause_reason = pgrecall._pause_text(pause),
        pause_id = pause.id
    from pgrecall.sessions as session
    join pgrecall.pauses as pause on pause.id = pgrecall._paused_by(session.id, session.user_id)
    where recall.id = any(v_due)
        and session.id = recall.session_id;
end;
$$;
comment on function pgrecall._pause_due(timestamptz) is
    'Pauses the recalls that are due in a session that is paused, or whose user is, so that nobody looks at them again before the pause ends; forgets pauses that have ended. A pause that somebody is changing right now is taken for one of a second. Called by _take if there are pauses at all and anything is due. Locks: pauses, then recalls and sessions, skipping locked ones.';

create or replace function pgrecall._check_isolation(what text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception '%() needs the isolation level read committed, this transaction is %',
            what, current_setting('transaction_isolation')
            using
                errcode = 'PR005',
                hint = 'With one snapshot for all its statements it could overlook a recall that was just paused.';
    end if;
end;
$$;
comment on function pgrecall._check_isolation(text) is
    'Refuses a transaction that cannot see what was committed since it began. Called by what pauses and resumes sessions and users. Raises: PR005.';

create or replace function pgrecall._spread_pause(pause pgrecall.pauses)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgrecall.session_recalls as recall
    set paused_until = pause.paused_until,
        pause_reason = pgrecall._pause_text(pause)
    where recall.id in (
        select paused.id
        from pgrecall.session_recalls as paused
        where paused.pause_id = pause.id
        order by paused.id
        for no key update
    );
end;
$$;
comment on function pgrecall._spread_pause(pgrecall.pauses) is
    'Gives the recalls that a pause has paused its new end and reason. Called by pause_session and pause_user, which have its row locked. Notifies: through the trigger announce_update.';

create or replace function pgrecall.pause_session(
    session_id text,
    reason text default null,
    paused_until timestamptz default null
)
returns pgrecall.pauses
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_now timestamptz;
    v_pause pgrecall.pauses;
begin
    perform pgrecall._check_isolation('pause_session');
    perform pgrecall._check_pause(pause_session.paused_until);
    perform
    from pgrecall.sessions as known
    where known.id = pause_session.session_id
    for key share;
    if not found then
        perform pgrecall._missing_session(pause_session.session_id);
    end if;
    v_now := pgrecall.clock();
    insert into pgrecall.pauses as pause (session_id, paused_at, paused_until, reason)
    values (pause_session.session_id, v_now, pause_session.paused_until, pause_session.reason)
    on conflict on constraint session_is_paused_once do update
    set paused_at = case when pause.paused_until <= v_now then v_now else pause.paused_at end,
        paused_until = excluded.paused_until,
        reason = case
            when pause.paused_until <= v_now then excluded.reason
            else coalesce(excluded.reason, pause.reason)
        end
    returning pause.* into v_pause;
    perform pgrecall._spread_pause(v_pause);
    return v_pause;
end;
$$;
comment on function pgrecall.pause_session(text, text, timestamptz) is
    'No worker starts a run in this session until paused_until (null: until resume_session()), also of recalls that are made later. A run under way goes on. Returns the pause. Pausing again changes the end and the reason. Called by operators. Raises: PR002 no such session, PR005 the end is not a time to come, or the isolation level is not read committed. Locks: the pause, then the recalls that it has paused.';

create or replace function pgrecall.pause_user(
    user_id text,
    reason text default null,
    paused_until timestamptz default null
)
returns pgrecall.pauses
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_now timestamptz;
    v_pause pgrecall.pauses;
begin
    perform pgrecall._check_isolation('pause_user');
    perform pgrecall._check_pause(pause_user.paused_until);
    if pause_user.user_id is null or length(pause_user.user_id) not between 1 and 600 then
        raise exception 'user_id is %, but must have 1 to 600 characters', quote_nullable(left(pause_user.user_id, 100))
            using errcode = 'PR005', hint = 'It is sessions.user_id; for everybody: pause_all().';
    end if;
    v_now := pgrecall.clock();
    insert into pgrecall.pauses as pause (user_id, paused_at, paused_until, reason)
    values (pause_user.user_id, v_now, pause_user.paused_until, pause_user.reason)
    on conflict on constraint user_is_paused_once do update
    set paused_at = case when pause.paused_until <= v_now then v_now else pause.paused_at end,
        paused_until = excluded.paused_until,
        reason = case
            when pause.paused_until <= v_now then excluded.reason
            else coalesce(excluded.reason, pause.reason)
        end
    returning pause.* into v_pause;
    perform pgrecall._spread_pause(v_pause);
    return v_pause;
end;
$$;
comment on function pgrecall.pause_user(text, text, timestamptz) is
    'No worker starts a run in a session of this user until paused_until (null: until resume_user()), also in sessions and of recalls that are made later. Runs under way go on. Returns the pause. Pausing again changes the end and the reason. Called by operators. Raises: PR005 the end is not a time to come, user_id is nobody, or the isolation level is not read committed. Locks: the pause, then the recalls that it has paused.';

create or replace function pgrecall._resume_paused(pause_id bigint)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgrecall.session_recalls as recall
    set paused_at = null,
        paused_until = null,
        pause_reason = null
    where recall.id in (
        select paused.id
        from pgrecall.session_recalls as paused
        where paused.pause_id = _resume_paused.pause_id
        order by paused.id
        for no key update
    );
end;
$$;
comment on function pgrecall._resume_paused(bigint) is
    'Resumes the recalls that a pause of a session or user has paused. Called by resume_session and resume_user, which have deleted its row in a statement before: whoever has paused a recall because of it has committed. Notifies: through the trigger announce_update.';

create or replace function pgrecall.resume_session(session_id text)
returns setof pgrecall.pauses
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_pause pgrecall.pauses;
begin
    perform pgrecall._check_isolation('resume_session');
    if not exists (select from pgrecall.sessions as known where known.id = resume_session.session_id) then
        perform pgrecall._missing_session(resume_session.session_id);
    end if;
    delete from pgrecall.pauses as pause
    where pause.session_id = resume_session.session_id
    returning pause.* into v_pause;
    if not found then
        return;
    end if;
    perform pgrecall._resume_paused(v_pause.id);
    if v_pause.paused_until is null or v_pause.paused_until > pgrecall.clock() then
        return next v_pause;
    end if;
end;
$$;
comment on function pgrecall.resume_session(text) is
    'Ends the pause of a session, and with it those of the recalls that it has paused: what is overdue starts at once, once. Recalls that are paused by themselves or by the pause of their user stay so. Returns the pause that ended; no row: it was not paused. Called by operators. Raises: PR002 no such session, PR005 the isolation level is not read committed. Locks: the pause, then those recalls. Notifies: through the trigger announce_update.';

create or replace function pgrecall.resume_user(user_id text)
returns setof pgrecall.pauses
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_pause pgrecall.pauses;
begin
    perform pgrecall._check_isolation('resume_user');
    delete from pgrecall.pauses as pause
    where pause.user_id = resume_user.user_id
    returning pause.* into v_pause;
    if not found then
        return;
    end if;
    perform pgrecall._resume_paused(v_pause.id);
    if v_pause.paused_until is null or v_pause.paused_until > pgrecall.clock() then
        return next v_pause;
    end if;
end;
$$;
comment on function pgrecall.resume_user(text) is
    'Ends the pause of a user, and with it those of the recalls that it has paused: what is overdue starts at once, once. Recalls that are paused by themselves or by the pause of their session stay so. Returns the pause that ended; no row: the user was not paused. Called by operators. Raises: PR005 the isolation level is not read committed. Locks: the pause, then those recalls. Notifies: through the trigger announce_update.';
