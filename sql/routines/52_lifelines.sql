-- Finding out at once that a worker is dead, by its connections, without asking anybody anything.
--
-- A worker holds two session-level advisory locks, its lifelines, on the connection that renews its lease (1) and on
-- the one that listens (2), which are idle most of the time. When its process dies the kernel closes both, and the server
-- releases both. The next worker of the ring (all that hold lifelines, in the order of their ids) waits for them to be
-- released: no timer, no heartbeat, no statement.
--
-- A lifeline that is free is not yet a death:
--   * one of the two may be gone for a moment, while its connection is replaced: both must be;
--   * both may be gone while the worker lives (somebody ended all its connections): it has reconnect_grace to take one
--     again, and stops its runs by itself well before that is over (pgrecall/_lease.py);
--   * after a restart, a crash or a failover of the server all locks are gone: they count only in the life of the server
--     in which they were taken;
--   * a worker that fell silent before its connections ended (cut off, its machine paused) is not dead for sure: its
--     lease decides, which it knows itself.

create or replace function pgrecall._incarnation()
returns uuid
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_started_at constant timestamptz := pg_postmaster_start_time();
    v_id uuid;
begin
    loop
        select life.id
        into v_id
        from pgrecall.server_incarnation as life
        where life.postmaster_started_at = v_started_at;
        if found then
            return v_id;
        end if;
        insert into pgrecall.server_incarnation (postmaster_started_at)
        values (v_started_at)
        on conflict do nothing;
        delete from pgrecall.server_incarnation
        where postmaster_started_at <> v_started_at;
    end loop;
end;
$$;
comment on function pgrecall._incarnation() is
    'The present life of the server; a new one after every restart, crash and failover. Called by register_worker and watch.';

create or replace function pgrecall._is_held(lifeline bigint)
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Taken and let go within this statement: kept to the end of the transaction it would look held to others.
    if pg_try_advisory_lock_shared(lifeline) then
        perform pg_advisory_unlock_shared(lifeline);
        return false;
    end if;
    return lifeline is not null;
end;
$$;
comment on function pgrecall._is_held(bigint) is
    'Whether some connection holds this lifeline now; false for null. Called by watch.';

create or replace function pgrecall.register_worker(
    worker_id text,
    concurrency integer,
    host text default null,
    pid integer default null,
    version text default null,
    reconnect_grace interval default '0.5 seconds',
    lifelines bigint[] default null
)
returns timestamptz
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_incarnation uuid;
    v_joins boolean;
begin
    if lifelines is not null then
        -- First the lock, then the row that says it counts.
        perform pg_advisory_lock(key) from unnest(register_worker.lifelines) as key where key is not null;
        v_incarnation := pgrecall._incarnation();
        v_joins := not exists (
            select
            from pgrecall.workers as known
            where known.id = register_worker.worker_id
                and known.incarnation = v_incarnation
                and known.died_at is null
        );
    end if;
    insert into pgrecall.workers as w (id, concurrency, host, pid, version, reconnect_grace, incarnation, lifelines)
    values (
        register_worker.worker_id, register_worker.concurrency, register_worker.host, register_worker.pid,
        register_worker.version, register_worker.reconnect_grace, v_incarnation,
        array[register_worker.lifelines[1], register_worker.lifelines[2]]
    )
    on conflict (id) do update
    set seen_at = pgrecall.clock(),
        concurrency = excluded.concurrency,
        host = excluded.host,
        pid = excluded.pid,
        version = excluded.version,
        reconnect_grace = excluded.reconnect_grace,
        incarnation = excluded.incarnation,
        lifelines = case
            when w.incarnation = excluded.incarnation then array[
                coalesce(excluded.lifelines[1], w.lifelines[1]),
                coalesce(excluded.lifelines[2], w.lifelines[2])
            ]
            else excluded.lifelines
        end,
        died_at = null;
    if v_joins then
        -- It comes between two workers of the ring: the one before it has to watch it from now on.
        perform pg_notify('pgrecall', 'watch ' || neighbour.id)
        from (
            select w.id
            from pgrecall.workers as w
            where w.id <> register_worker.worker_id
                and w.incarnation = v_incarnation
            order by w.id > register_worker.worker_id, w.id desc
            limit 1
        ) as neighbour;
    end if;
    return pgrecall.clock();
end;
$$;
comment on function pgrecall.register_worker(text, integer, text, integer, text, interval, bigint[]) is
    'Makes a worker visible in the table workers and returns the server''s time. lifelines: the keys of the lifelines that this connection takes, for as long as it lives: {key, null} for the one that renews the lease, {null, key} for the one that listens; a key is a random number, new for every connection, because the connection before may still be held by a server process that does not know yet that its client is gone. The connection must be a direct one, not through a pooler. With null the worker has only its lease. Called when a worker starts or has reconnected. Locks: the keys, for the session. Notifies: channel pgrecall, payload ''watch <id>'' for the worker before it in the ring when it joins.';

create or replace function pgrecall.give_up_lifelines(worker_id text, lifelines bigint[])
returns boolean
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
    -- Only those that the worker knows to be lost: one that it has taken meanwhile on another connection stays.
    with given_up as (
        update pgrecall.workers as w
        set incarnation = null,
            lifelines = null
        where w.id = give_up_lifelines.worker_id
            and (w.lifelines is null or array_remove(w.lifelines, null) <@ give_up_lifelines.lifelines)
        returning w.id
    )
    select exists (select from given_up)
        or not exists (select from pgrecall.workers as w where w.id = give_up_lifelines.worker_id);
$$;
comment on function pgrecall.give_up_lifelines(text, bigint[]) is
    'Says that a worker has lost these lifelines and lives by its lease from now on, until it takes one again; false: it has others. Called by a worker that has lost its direct connections and can still reach the database, before it claims anything more.';

create or replace function pgrecall._end_dead_worker(worker_id text, lifelines bigint[])
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_now constant timestamptz := pgrecall.clock();
    v_worker pgrecall.workers;
    v_run_ids bigint[];
begin
    -- A worker that comes back right now waits for this row in register_worker, and then learns what it has lost.
    select w.*
    into v_worker
    from pgrecall.workers as w
    where w.id = _end_dead_worker.worker_id
        and w.incarnation = pgrecall._incarnation()
        -- Not others, and be they free as well: it has lived meanwhile, and has its whole grace from then on.
        and w.lifelines is not distinct from _end_dead_worker.lifelines
        and w.died_at is null
    for update skip locked;
    if not found or pgrecall._is_held(v_worker.lifelines[1]) or pgrecall._is_held(v_worker.lifelines[2]) then
        return null;
    end if;
    if v_worker.lease_until > v_now and v_worker.seen_at < v_now - interval '15 seconds' then
        -- It has missed a renewal before its connections ended, so it was cut off or stood still, and may run on.
        update pgrecall.workers
        set incarnation = null
        where workers.id = v_worker.id;
        return null;
    end if;
    select coalesce(array_agg(held.run_id order by held.run_id), '{}')
    into v_run_ids
    from pgrecall.session_recalls as held
    where held.worker_id = v_worker.id
        and held.run_id is not null;
    update pgrecall.workers
    set died_at = v_now,
        lease_until = case when cardinality(v_run_ids) > 0 then v_now end
    where workers.id = v_worker.id;
    perform pgrecall._expire_leases();
    if exists (
        select
        from pgrecall.session_recalls as held
        where held.worker_id = v_worker.id
            and held.run_id is not null
    ) then
        -- Somebody has its recall or session locked: all look again until it can be had.
        perform pg_notify('pgrecall', 'due 0');
    end if;
    return jsonb_build_object('worker_id', v_worker.id, 'run_ids', v_run_ids);
end;
$$;
comment on function pgrecall._end_dead_worker(text, bigint[]) is
    'Gives back the claims of a worker that holds these lifelines, if both are free and were taken in this life of the server, and says what it did; null: nothing, because the worker is back, or its lease decides. Called by watch after reconnect_grace. Locks: the worker''s row, skipping a locked one, then its recalls and sessions, skipping locked ones. Notifies: channel pgrecall, payload ''due 0'' if something could not be had, and ''due …'' through the trigger announce_update.';

create or replace function pgrecall._watch_next(worker_id text)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_incarnation constant uuid := pgrecall._incarnation();
    v_lifelines bigint[];
    v_lifeline bigint;
begin
    select w.lifelines
    into v_lifelines
    from pgrecall.workers as w
    where w.id <> _watch_next.worker_id
        and w.incarnation = v_incarnation
        and w.died_at is null
    order by w.id < _watch_next.worker_id, w.id
    limit 1;
    if not found then
        return 'alone';
    end if;
    v_lifeline := case
        when pgrecall._is_held(v_lifelines[1]) then v_lifelines[1]
        when pgrecall._is_held(v_lifelines[2]) then v_lifelines[2]
    end;
    if v_lifeline is null then
        return 'free';
    end if;
    -- A wait holds a snapshot, and so keeps vacuum and the claims' index scans from forgetting dead rows: none is longer
    -- than this. Where the server logs long waits, fewer lines matter more.
    perform set_config(
        'lock_timeout', case when current_setting('log_lock_waits')::boolean then '30s' else '5s' end, true
    );
    begin
        perform pg_advisory_xact_lock_shared(v_lifeline);
        return 'released';
    exception
        when lock_not_available then
            null;
    end;
    if exists (select from pgrecall.workers as w where w.lease_until is not null) then
        return 'held';
    end if;
    return 'idle';
end;
$$;
comment on function pgrecall._watch_next(text) is
    'Waits, for a few seconds at most, until the next worker of the ring lets go of a lifeline. Answers alone (there is no other worker), free (it holds none), released (it has just let go of one), held, or idle (held, and no worker has a lease). Called by watch. Locks: a lifeline, shared, to the end of the transaction.';

create or replace function pgrecall._free_lifelines(worker_id text)
returns table (id text, lifelines bigint[], reconnect_grace interval)
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
    select w.id, w.lifelines, w.reconnect_grace
    from pgrecall.workers as w
    where w.id <> _free_lifelines.worker_id
        and w.incarnation = pgrecall._incarnation()
        and w.died_at is null
        and not pgrecall._is_held(w.lifelines[1])
        and not pgrecall._is_held(w.lifelines[2]);
$$;
comment on function pgrecall._free_lifelines(text) is
    'The other workers that took lifelines in this life of the server and hold none now. Called by watch.';

create or replace procedure pgrecall.watch(worker_id text, linger interval default '10 minutes')
language plpgsql
as $$
-- A procedure that commits cannot pin its search_path; so whatever touches data is in functions that do.
declare
    v_active_at timestamptz := pgrecall.clock();
    v_found text;
    v_suspects text[];
    v_first bigint[];
    v_second bigint[];
    v_grace interval;
    v_ended jsonb;
begin
    loop
        v_found := pgrecall._watch_next(worker_id);
        commit;
        if v_found = 'free' then
            -- Several may have died at once; all get the same time to prove that they live.
            select array_agg(w.id), array_agg(w.lifelines[1]), array_agg(w.lifelines[2]), max(w.reconnect_grace)
            into v_suspects, v_first, v_second, v_grace
            from pgrecall._free_lifelines(worker_id) as w;
            commit;
            -- Never less, so that a row that cannot be had (somebody has it locked) does not make this loop spin.
            perform pg_catalog.pg_sleep_for(greatest(v_grace, '0.1 seconds'));
            commit;
            for v_place in 1..coalesce(pg_catalog.cardinality(v_suspects), 0) loop
                v_ended := pgrecall._end_dead_worker(v_suspects[v_place], array[v_first[v_place], v_second[v_place]]);
                commit;
                if v_ended is not null then
                    raise notice 'pgrecall: worker % is dead', v_suspects[v_place] using detail = v_ended::text;
                end if;
            end loop;
        end if;
        exit when v_found = 'alone'
            or (v_found = 'idle' and v_active_at < pgrecall.clock() - linger);
        if v_found <> 'idle' then
            v_active_at := pgrecall.clock();
        end if;
    end loop;
end;
$$;
comment on procedure pgrecall.watch(text, interval) is
    'Watches over the next worker of the ring and gives back the claims of workers that die, until there is no other worker or none has had a lease for so long (linger). Runs on the server, with a commit at every turn, so it must be called outside a transaction; nothing goes over the network meanwhile but a notice for each worker found dead. Called by workers. Notifies: through what it gives back.';
