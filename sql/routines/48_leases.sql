-- What keeps a worker's claims its own, and what becomes of them when they are not: leases, given-back and lost runs.
-- The lock order is in 50_claim.sql.

create or replace function pgrecall._give_back(recall_id text, new_attempt integer, new_not_before timestamptz)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before constant text := current_setting('lock_timeout');
begin
    -- Back to pending, unless the session got another pending recall meanwhile (an agent may schedule one from inside
    -- its run): then it stays running with nobody running it, and is due all the same. Another pending recall that is
    -- not committed yet would make the unique index wait for its transaction, which may take long.
    perform set_config('lock_timeout', '50', true);
    begin
        update pgrecall.session_recalls
        set status = case when status = 'running' then 'pending' else status end,
            run_id = null,
            worker_id = null,
            claimed_at = null,
            attempt = new_attempt,
            not_before = new_not_before,
            defer_reason = null
        where session_recalls.id = _give_back.recall_id;
    exception
        when unique_violation or lock_not_available or deadlock_detected then
            update pgrecall.session_recalls
            set run_id = null,
                worker_id = null,
                claimed_at = null,
                attempt = new_attempt,
                not_before = coalesce(new_not_before, pgrecall.clock()),
                defer_reason = null
            where session_recalls.id = _give_back.recall_id;
    end;
    perform set_config('lock_timeout', v_before, true);
end;
$$;
comment on function pgrecall._give_back(text, integer, timestamptz) is
    'Makes a claimed recall eligible again from new_not_before on (null: at once), with the given count of attempts. Called by finish and _expire_leases, which hold its row lock. Notifies: through the trigger announce_update.';

create or replace function pgrecall._retry_delay(attempt integer)
returns interval
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select least(interval '5 seconds' * (2 ^ least(attempt - 1, 16)), interval '10 minutes');
$$;
comment on function pgrecall._retry_delay(integer) is
    'The backoff after the given attempt: 5, 10, 20 … seconds, at most 10 minutes. Called by finish when the caller names none.';

create or replace function pgrecall._check_lease(lease interval)
returns void
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if lease is null or lease < interval '1 millisecond' or lease > interval '1 day' then
        raise exception 'lease is %, but must be 1 millisecond to 1 day', coalesce(lease::text, 'null')
            using errcode = 'PR005', hint = 'The default is 30 seconds; it has nothing to do with how long runs take.';
    end if;
end;
$$;
comment on function pgrecall._check_lease(interval) is 'Refuses a lease that makes no sense. Called by claim and renew. Raises: PR005.';

create or replace function pgrecall._is_about_a_row(sqlstate text)
returns boolean
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select left(sqlstate, 2) in ('21', '22', '23', '27', '38', '39', '44', '54', 'P0', 'XX');
$$;
comment on function pgrecall._is_about_a_row(text) is
    'Whether an error is about the row being written, and not about the state of the server, a conflict or a lock. Called by claim and _expire_leases.';

create or replace function pgrecall._is_suspect(recall pgrecall.session_recalls)
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    -- The guard comes first: almost no recall is at its last attempt, and the others need no look at the ledger.
    select recall.max_attempts > 1
        and recall.attempt >= recall.max_attempts - 1
        and exists (
            select
            from pgrecall.recall_runs as run
            where run.recall_id = recall.id
                and run.nominal_at = recall.trigger_at
                and run.outcome = 'lost'
                and run.attempt >= recall.max_attempts
        );
$$;
comment on function pgrecall._is_suspect(pgrecall.session_recalls) is
    'Whether a recall was lost at its last attempt beside others: either it kills its workers, or one of the others does. Suspects keep apart: a worker has one at a time. Called by _take and _end_lost_run.';

create or replace function pgrecall._end_lost_run(recall pgrecall.session_recalls, reason text, beside_others boolean)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_error text;
    v_was_suspect boolean;
begin
    v_error := format('worker %s was lost during attempt %s', recall.worker_id, recall.attempt);
    v_was_suspect := pgrecall._is_suspect(recall);
    insert into pgrecall.recall_runs (
        id, recall_id, session_id, nominal_at, started_at, finished_at, worker_id, attempt, deferrals, defer_reason,
        outcome, reason
    )
    values (
        recall.run_id, recall.id, recall.session_id, recall.nominal_at, recall.claimed_at, pgrecall.clock(),
        recall.worker_id, recall.attempt, recall.deferrals, recall.defer_reason, 'lost', _end_lost_run.reason
    )
    on conflict (id) do nothing;
    if recall.status <> 'running' or recall.trigger_at <> recall.nominal_at then
        -- Ended or moved by somebody else while it ran: that stands, as after any other run.
        perform pgrecall._end_occurrence(recall, 'failed', v_error);
    elsif recall.stopped_by is not null then
        if pgrecall._runs_again(recall) then
            perform pgrecall._give_back(recall.id, recall.attempt - 1, null);
        else
            perform pgrecall._end_occurrence(recall, 'cancelled', pgrecall._stop_text(recall));
        end if;
    elsif recall.attempt < recall.max_attempts then
        perform pgrecall._give_back(recall.id, recall.attempt, null);
    elsif beside_others and not v_was_suspect and recall.max_attempts > 1 then
        -- Whatever kills its worker takes the runs beside it along each time, and all are at their last attempt
        -- together. None is failed for what another one did: the last attempt is repeated, apart from the others.
        perform pgrecall._give_back(recall.id, recall.attempt - 1, null);
    else
        perform pgrecall._end_occurrence(recall, 'failed', v_error);
    end if;
    perform pgrecall._free_session(recall.session_id, recall.run_id);
end;
$$;
comment on function pgrecall._end_lost_run(pgrecall.session_recalls, text, boolean) is
    'Ends a run whose worker is dead or has lost its lease: recorded as lost, then due again at once while attempts are left, and once more if it was lost at its last attempt beside other runs; one that was told to stop ends as stop_run() has asked. Called by _expire_leases, which holds the row lock.';

create or replace function pgrecall._expire_leases()
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_now timestamptz := pgrecall.clock();
    v_expired text[];
    v_lost record;
begin
    -- A worker's row is locked first and its claims are looked up by a later statement: a claim that it is committing
    -- right now is then either seen, or holds this lock and is skipped.
    select array_agg(worker.id)
    into v_expired
    from (
        select w.id
        from pgrecall.workers as w
        where w.lease_until <= v_now
            or w.seen_at < v_now - interval '5 minutes'
            or w.died_at is not null
        for update skip locked
    ) as worker;

    for v_lost in
        select
            claimed as recall,
            case when w.died_at is null then 'its worker''s lease ended' else 'its worker died' end as reason,
            exists (
                select
                from pgrecall.session_recalls as other
                where other.run_id is not null
                    and other.worker_id = w.id
                    and other.id <> claimed.id
            ) as beside_others
        from pgrecall.session_recalls as claimed
        join pgrecall.sessions as session on session.id = claimed.session_id
        join pgrecall.workers as w on w.id = claimed.worker_id
        where claimed.run_id is not null
            and w.id = any(v_expired)
            and w.lease_until <= v_now
        -- What somebody has locked is left for the next look: claim() never waits.
        for no key update of claimed, session skip locked
    loop
        begin
            perform pgrecall._end_lost_run(v_lost.recall, v_lost.reason, v_lost.beside_others);
        exception
            when others then
                if not pgrecall._is_about_a_row(sqlstate) then
                    raise;
                end if;
                -- It cannot be ended as it should (something in it is out of range, a trigger of the host refuses it):
                -- it is given up, and the others go on.
                raise warning 'the lost run of recall % cannot be recorded: %', (v_lost.recall).id, sqlerrm;
                update pgrecall.session_recalls
                set status = case when status = 'running' then 'failed' else status end,
                    run_id = null,
                    worker_id = null,
                    claimed_at = null,
                    last_error = 'its lost run cannot be recorded: ' || sqlerrm
                where session_recalls.id = (v_lost.recall).id;
                perform pgrecall._free_session((v_lost.recall).session_id, (v_lost.recall).run_id);
        end;
    end loop;

    -- Leases that cover nothing any more end too, so that nobody wakes up for them one by one. Their rows are locked
    -- only now that no other row is waited for: a live worker may hold a session while it waits for its own row here.
    select v_expired || array_agg(worker.id)
    into v_expired
    from (
        select w.id
        from pgrecall.workers as w
        where w.lease_until is not null
        for update skip locked
    ) as worker;
    update pgrecall.workers
    set lease_until = null
    where workers.id = any(v_expired)
        and workers.lease_until is not null
        and not exists (
            select
            from pgrecall.session_recalls as claimed
            where claimed.run_id is not null
                and claimed.worker_id = workers.id
        );
    delete from pgrecall.workers
    where workers.id = any(v_expired)
        and workers.lease_until is null
        and (workers.seen_at < v_now - interval '5 minutes' or workers.died_at is not null);
end;
$$;
comment on function pgrecall._expire_leases() is
    'Gives back the claims of workers whose lease has passed, and forgets workers that died or were not seen for five minutes. Called by claim when some lease has passed, and by _end_dead_worker. Locks: the workers'' rows, skipping locked ones, then their recalls and sessions.';

create or replace function pgrecall.renew(worker_id text, lease interval default interval '30 seconds')
returns setof bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgrecall._check_lease(renew.lease);
    update pgrecall.workers
    set seen_at = pgrecall.clock(),
        lease_until = pgrecall.clock() + renew.lease
    where workers.id = renew.worker_id
        and workers.lease_until is not null;
    return query
    select held.run_id
    from pgrecall.session_recalls as held
    where held.worker_id = renew.worker_id
        and held.run_id is not null
        and held.status = 'running'
        -- One that somebody stops, or a chat wants to interrupt, must stop as well; its worker may have missed the message.
        and held.stopped_by is null
        and not exists (
            select
            from pgrecall.sessions as session
            where session.id = held.session_id
                and session.run_id = held.run_id
                and session.interrupted_by is not null
        );
end;
$$;
comment on function pgrecall.renew(text, interval) is
    'Prolongs a worker''s lease and returns the runs that are still its own; any other run it thinks it has must stop. Called by a worker that has runs, every third of its lease. Locks: its row in workers, so that it either comes before an expiry or finds its runs gone.';

create or replace function pgrecall.release(worker_id text, run_ids bigint[])
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
    v_released integer := 0;
begin
    for v_recall in
        select held.*
        from pgrecall.session_recalls as held
        join pgrecall.sessions as session on session.id = held.session_id
        where held.run_id = any(run_ids)
            and held.worker_id = release.worker_id
        for no key update of held, session skip locked
    loop
        perform pgrecall.finish(
            v_recall.id, v_recall.run_id, 'interrupted',
            reason => 'its worker never heard of the claim', retry => true, counted => false
        );
        v_released := v_released + 1;
    end loop;
    return v_released;
end;
$$;
comment on function pgrecall.release(text, bigint[]) is
    'Gives back claims whose answer never reached their worker, without counting an attempt, and returns how many. Called by a worker when renew() names runs that it does not have. Locks: recalls and sessions, skipping locked ones.';

create or replace function pgrecall.unregister_worker(worker_id text)
returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
    delete from pgrecall.workers
    where workers.id = unregister_worker.worker_id
        and not exists (
            select
            from pgrecall.session_recalls as claimed
            where claimed.run_id is not null
                and claimed.worker_id = unregister_worker.worker_id
        );
$$;
comment on function pgrecall.unregister_worker(text) is
    'Forgets a worker that has stopped. One that still has claims is kept until its lease ends, so that they are given back.';
