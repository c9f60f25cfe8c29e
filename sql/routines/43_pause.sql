-- Pausing: one recall, or everything (a session or user: 44_pause_sessions.sql). What is paused keeps its times, and is
-- never run.

create or replace function pgrecall._check_pause(paused_until timestamptz)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if paused_until is not null and (not isfinite(paused_until) or paused_until <= pgrecall.clock()) then
        raise exception 'paused_until is %, which is not a time to come', paused_until
            using errcode = 'PR005', hint = 'Give a finite time in the future, or nothing for a pause without an end.';
    end if;
end;
$$;
comment on function pgrecall._check_pause(timestamptz) is
    'Refuses a pause that would end before it begins. Called by everything that pauses. Raises: PR005.';

create or replace function pgrecall._pause(recall pgrecall.session_recalls, reason text, paused_until timestamptz)
returns pgrecall.session_recalls
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
begin
    update pgrecall.session_recalls as known
    set paused_at = coalesce(known.paused_at, pgrecall.clock()),
        paused_until = _pause.paused_until,
        pause_reason = coalesce(_pause.reason, known.pause_reason),
        -- Its own from here on, whatever becomes of the pause of its session or user.
        pause_id = null
    where known.id = recall.id
        and (
            known.paused_at is null
            or known.pause_id is not null
            or known.paused_until is distinct from _pause.paused_until
            or known.pause_reason is distinct from coalesce(_pause.reason, known.pause_reason)
        )
    returning * into v_recall;
    return v_recall;
end;
$$;
comment on function pgrecall._pause(pgrecall.session_recalls, text, timestamptz) is
    'Pauses a recall that has not ended, and returns it; null: it is paused so already. Called by pause_recall and pause_recalls, which hold the row lock.';

create or replace function pgrecall.pause_recall(
    recall_id text,
    reason text default null,
    paused_until timestamptz default null
)
returns pgrecall.session_recalls
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
    v_changed pgrecall.session_recalls;
begin
    perform pgrecall._check_pause(pause_recall.paused_until);
    select known.*
    into v_recall
    from pgrecall.session_recalls as known
    where known.id = pause_recall.recall_id
        and known.status in ('pending', 'running')
    for no key update;
    if not found then
        perform pgrecall._refuse_status(pause_recall.recall_id, 'paused');
    end if;
    v_changed := pgrecall._pause(v_recall, pause_recall.reason, pause_recall.paused_until);
    return case when v_changed.id is null then v_recall else v_changed end;
end;
$$;
comment on function pgrecall.pause_recall(text, text, timestamptz) is
    'Pauses a recall and returns it: it is not run until paused_until (null: until resume_recall()). A run under way goes on; if its recall is recurring, the next occurrence is paused. Pausing a paused recall changes its end and reason. Raises: PR003 no such recall, PR004 it has ended, PR005 the end is not a time to come.';

create or replace function pgrecall.resume_recall(recall_id text)
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
    where known.id = resume_recall.recall_id
    for update;
    if not found then
        perform pgrecall._missing_recall(resume_recall.recall_id);
    elsif v_recall.paused_at is null then
        return v_recall;
    end if;
    update pgrecall.session_recalls
    set paused_at = null,
        paused_until = null,
        pause_reason = null,
        failures = 0
    where session_recalls.id = v_recall.id
    returning * into v_recall;
    return v_recall;
end;
$$;
comment on function pgrecall.resume_recall(text) is
    'Ends the pause of a recall, forgets its failures, and returns it. If its session or user is paused, it is paused again at once. If its time has passed it is due at once, once; a recurring one then goes on along its own schedule. Resuming one that is not paused changes nothing. Raises: PR003 no such recall. Notifies: through the trigger announce_update.';

create or replace function pgrecall.pause_all(reason text default null, paused_until timestamptz default null)
returns pgrecall.settings
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_settings pgrecall.settings;
begin
    perform pgrecall._check_pause(pause_all.paused_until);
    update pgrecall.settings as known
    set paused_at = case
            when known.paused_until <= pgrecall.clock() then pgrecall.clock()
            else coalesce(known.paused_at, pgrecall.clock())
        end,
        paused_until = pause_all.paused_until,
        pause_reason = coalesce(pause_all.reason, known.pause_reason)
    returning * into v_settings;
    return v_settings;
end;
$$;
comment on function pgrecall.pause_all(text, timestamptz) is
    'No worker starts a run until paused_until (null: until resume_all()); runs under way go on. Returns the settings. Pausing again changes the end and the reason. Raises: PR005 the end is not a time to come. Notifies: through the trigger settings_update.';

create or replace function pgrecall.resume_all()
returns pgrecall.settings
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_settings pgrecall.settings;
begin
    update pgrecall.settings
    set paused_at = null,
        paused_until = null,
        pause_reason = null
    returning * into v_settings;
    return v_settings;
end;
$$;
comment on function pgrecall.resume_all() is
    'Ends the pause of everything; what is due starts at once, as fast as there are slots. Returns the settings. Notifies: through the trigger settings_update.';
