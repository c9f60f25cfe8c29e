-- Stopping a run by hand. Its recall stays: after_stop says whether the occurrence is left out or runs again.

create or replace function pgrecall._stop_text(recall pgrecall.session_recalls)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
    select 'stopped by ' || recall.stopped_by || coalesce(': ' || recall.stop_reason, '');
$$;
comment on function pgrecall._stop_text(pgrecall.session_recalls) is
    'The reason that a run which was told to stop is recorded with. Called by finish and _end_lost_run.';

create or replace function pgrecall._runs_again(recall pgrecall.session_recalls)
returns boolean
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
    select recall.after_stop is not distinct from 'retry';
$$;
comment on function pgrecall._runs_again(pgrecall.session_recalls) is
    'Whether the occurrence of a run that was told to stop runs again. Called by finish and _end_lost_run.';

create or replace function pgrecall._check_after_stop(after_stop text)
returns void
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if after_stop is null or after_stop not in ('skip', 'retry') then
        raise exception 'after_stop is %, but must be skip or retry', quote_nullable(left(after_stop, 100))
            using errcode = 'PR005', hint = 'The default is skip: the occurrence is left out.';
    end if;
end;
$$;
comment on function pgrecall._check_after_stop(text) is
    'Refuses what cannot become of a run that is stopped. Called by stop_run and stop_runs. Raises: PR005.';

create or replace function pgrecall._stop(recall pgrecall.session_recalls, reason text, after_stop text)
returns pgrecall.session_recalls
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
begin
    if recall.run_id is null or recall.status <> 'running' then
        return null;
    end if;
    -- Told again each time that it is asked, in case a worker's listener was away.
    perform pg_notify('pgrecall', 'stop ' || recall.run_id);
    update pgrecall.session_recalls as known
    set stopped_by = pgrecall._caller(),
        stop_reason = coalesce(_stop.reason, known.stop_reason),
        after_stop = _stop.after_stop
    where known.id = recall.id
        and (known.stopped_by, known.stop_reason, known.after_stop)
            is distinct from (pgrecall._caller(), coalesce(_stop.reason, known.stop_reason), _stop.after_stop)
    returning known.* into v_recall;
    return v_recall;
end;
$$;
comment on function pgrecall._stop(pgrecall.session_recalls, text, text) is
    'Tells the run of a recall to stop, and returns the recall; null: it is in no run, its run has been told by its end, or by the same words before. Called by stop_run and stop_runs, which hold the row lock. Notifies: channel pgrecall, payload ''stop <run_id>''.';

create or replace function pgrecall.stop_run(recall_id text, reason text default null, after_stop text default 'skip')
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
    perform pgrecall._check_after_stop(stop_run.after_stop);
    select known.*
    into v_recall
    from pgrecall.session_recalls as known
    where known.id = stop_run.recall_id
    for no key update;
    if not found then
        perform pgrecall._missing_recall(stop_run.recall_id);
    end if;
    v_changed := pgrecall._stop(v_recall, stop_run.reason, stop_run.after_stop);
    return case when v_changed.id is null then v_recall else v_changed end;
end;
$$;
comment on function pgrecall.stop_run(text, text, text) is
    'Tells the run of a recall to stop, and returns the recall at once; the run is recorded as interrupted when its agent has stopped. after_stop skip: the occurrence is left out, a recurring recall goes on to its next time and any other is cancelled. retry: it runs again, and the attempt is not counted. A run that ends with success all the same has succeeded; one whose worker is dead ends the same way when that is found out. A recall that does not run is returned as it is. Stopping again changes the reason and after_stop. Called by operators. Raises: PR003 no such recall, PR005 after_stop. Notifies: channel pgrecall, payload ''stop <run_id>''.';
