-- The outbox: replies on their way to a URL.
--
-- The worker of a run hears that its reply is to be delivered, and does so at once. All others learn of what is pending
-- from their looks for recalls: claim() tells when the next delivery is due. So an attempt comes also if the worker of
-- the last one is gone, and nobody asks while nothing is pending.

create or replace function pgrecall._queue_delivery(
    recall pgrecall.session_recalls, run_id bigint, reply text, outcome text, started_at timestamptz
)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_iso constant text := 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"';
    v_now timestamptz := pgrecall.clock();
begin
    if outcome <> 'success' or coalesce(btrim(reply, E' \t\r\n'), '') = '' then
        return;
    end if;
    insert into pgrecall.deliveries (id, recall_id, session_id, url, payload, next_at, created_at)
    select
        _queue_delivery.run_id,
        recall.id,
        recall.session_id,
        coalesce(recall.deliver_to, owner.deliver_to),
        jsonb_build_object(
            'type', 'recall.replied',
            'timestamp', to_char(v_now at time zone 'UTC', v_iso),
            'data', jsonb_build_object(
                'session_id', recall.session_id,
                'user_id', owner.user_id,
                'recall_id', recall.id,
                'run_id', _queue_delivery.run_id,
                'message_id', pgrecall.occurrence_message_id(recall.id, recall.nominal_at),
                'call_type', recall.call_type,
                'nominal_at', to_char(recall.nominal_at at time zone 'UTC', v_iso),
                'started_at', to_char(
                    coalesce(_queue_delivery.started_at, recall.claimed_at) at time zone 'UTC', v_iso
                ),
                'finished_at', to_char(v_now at time zone 'UTC', v_iso),
                'attempt', recall.attempt,
                'user_message', recall.additional_context_message,
                'reply', _queue_delivery.reply,
                'metadata', recall.metadata
            )
        ),
        v_now,
        v_now
    from pgrecall.sessions as owner
    where owner.id = recall.session_id
        and coalesce(recall.deliver_to, owner.deliver_to) is not null;
    if found then
        perform pg_notify('pgrecall', 'deliver ' || pgrecall.microseconds(v_now) || ' ' || recall.worker_id);
    end if;
end;
$$;
comment on function pgrecall._queue_delivery(pgrecall.session_recalls, bigint, text, text, timestamptz) is
    'Puts a reply into the outbox if its recall, or else its session, has a deliver_to: of a run with outcome success that has something to say. Errors are not delivered: they are for whoever runs the service. Called by finish, in the transaction of the outcome. Notifies: channel pgrecall, payload ''deliver <microseconds since 1970> <worker_id>'': the worker of the run delivers at once; the others know from their next look.';

create or replace function pgrecall._delivery_delay(attempt integer)
returns interval
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
    -- The schedule of Standard Webhooks: ten attempts in about three days.
    select (array[
        '5 seconds', '5 minutes', '30 minutes', '2 hours', '5 hours', '10 hours', '14 hours', '20 hours', '24 hours'
    ]::interval[])[attempt] * (0.8 + 0.4 * random());
$$;
comment on function pgrecall._delivery_delay(integer) is
    'How long to wait after this attempt of a delivery, give or take a fifth, so that what failed together does not come back together; null: there is no further attempt. Called by end_delivery.';

create or replace function pgrecall.claim_deliveries(up_to integer, lease interval default interval '60 seconds')
returns table (
    now_at timestamptz,
    next_at timestamptz,
    delivery_id bigint,
    recall_id text,
    session_id text,
    url text,
    payload jsonb,
    attempt integer
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_now timestamptz := pgrecall.clock();
    v_ids bigint[];
    v_next timestamptz;
begin
    perform pgrecall._check_lease(claim_deliveries.lease);
    with taken as (
        update pgrecall.deliveries as tried
        set attempt = tried.attempt + 1,
            next_at = v_now + claim_deliveries.lease
        where tried.id in (
            select due.id
            from pgrecall.deliveries as due
            where due.next_at <= v_now
            order by due.next_at, due.id
            limit greatest(claim_deliveries.up_to, 0)
            for no key update skip locked
        )
        returning tried.id
    )
    select coalesce(array_agg(taken.id), '{}')
    into v_ids
    from taken;
    select min(other.next_at)
    into v_next
    from pgrecall.deliveries as other
    where other.next_at is not null
        and other.id <> all(v_ids);
    return query
    select pgrecall.clock(), v_next, one.id, one.recall_id, one.session_id, one.url, one.payload, one.attempt
    from (select 1) as always
    left join pgrecall.deliveries as one on one.id = any(v_ids)
    order by one.id;
end;
$$;
comment on function pgrecall.claim_deliveries(integer, interval) is
    'Takes up to so many due deliveries to try them now: nobody else does for the length of the lease. Always returns at least one row: now_at is the server''s time, next_at the earliest time of all others that are pending (null: none is); delivery_id is null if there was nothing to take. Called by workers, outside any transaction of theirs. Locks: due deliveries, skipping locked ones. Raises: PR005 lease out of range.';

create or replace function pgrecall.end_delivery(
    delivery_id bigint,
    attempt integer,
    status text,
    response_status integer default null,
    error text default null,
    retry_after interval default null
)
returns timestamptz
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_now timestamptz := pgrecall.clock();
    v_delay interval := pgrecall._delivery_delay(end_delivery.attempt);
    v_again timestamptz;
begin
    if end_delivery.status is null or end_delivery.status not in ('pending', 'delivered', 'failed') then
        raise exception 'status is %, which is not how an attempt ends', quote_nullable(left(end_delivery.status, 100))
            using errcode = 'PR005', hint = 'It is delivered, failed, or pending for another attempt.';
    end if;
    if end_delivery.status = 'pending' and v_delay is not null then
        v_again := v_now + v_delay;
        if end_delivery.retry_after is not null then
            v_again := greatest(v_again, v_now + least(end_delivery.retry_after, interval '1 day'));
        end if;
    end if;
    update pgrecall.deliveries as tried
    set status = case
            when end_delivery.status = 'pending' and v_again is null then 'failed'
            else end_delivery.status
        end,
        next_at = v_again,
        ended_at = case when v_again is null then v_now end,
        response_status = end_delivery.response_status,
        last_error = end_delivery.error
    where tried.id = end_delivery.delivery_id
        and tried.status = 'pending'
        -- Whoever comes late with a failure is not asked: somebody else is trying already.
        and (tried.attempt = end_delivery.attempt or end_delivery.status = 'delivered');
    return case when found then v_again end;
end;
$$;
comment on function pgrecall.end_delivery(bigint, integer, text, integer, text, interval) is
    'Records how an attempt of a delivery ended: delivered; failed for good; or pending, to be tried again after _delivery_delay or after retry_after (at most a day) if that is longer, and failed after the tenth attempt. Returns when it will be tried again; null: it will not, or the attempt was not the latest. Called by workers. Raises: PR005 for another status.';

create or replace function pgrecall.retry_delivery(delivery_id bigint)
returns pgrecall.deliveries
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_delivery pgrecall.deliveries;
    v_before text;
    v_now timestamptz := pgrecall.clock();
begin
    select known.status
    into v_before
    from pgrecall.deliveries as known
    where known.id = retry_delivery.delivery_id
    for no key update;
    update pgrecall.deliveries
    set status = 'pending',
        -- One that had ended gets all its attempts again.
        attempt = case when status = 'pending' then attempt else 0 end,
        next_at = v_now,
        ended_at = null
    where id = retry_delivery.delivery_id
    returning *
    into v_delivery;
    if not found then
        raise exception 'there is no delivery %', coalesce(retry_delivery.delivery_id::text, 'null')
            using errcode = 'PR003', hint = 'get_deliveries() lists them; the id is that of the run.';
    end if;
    if v_before = 'pending' then
        -- The trigger delivery_update_audit cannot tell this from a worker's own next attempt.
        perform pgrecall._audit('retry', 'deliveries', v_delivery.id::text, v_delivery.session_id, null, null);
    end if;
    perform pg_notify('pgrecall', 'deliver ' || pgrecall.microseconds(v_now) || ' ');
    return v_delivery;
end;
$$;
comment on function pgrecall.retry_delivery(bigint) is
    'Has a delivery tried now, also one that has failed or was delivered before; the receiver gets the same webhook-id and so can tell that it knows it. Called by operators. Raises: PR003 no such delivery. Notifies: channel pgrecall, payload ''deliver <microseconds since 1970> ''.';

create or replace function pgrecall.get_deliveries(
    session_id text default null,
    recall_id text default null,
    status text default null,
    "limit" integer default 50
)
returns setof pgrecall.deliveries
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if "limit" is null or "limit" < 0 then
        raise exception 'limit is %, but must be 0 or more', coalesce("limit"::text, 'null')
            using errcode = 'PR005', hint = 'The default is 50.';
    elsif status not in ('pending', 'delivered', 'failed') then
        raise exception 'status is %, which no delivery has', quote_literal(left(status, 100))
            using errcode = 'PR005', hint = 'It is pending, delivered or failed; null: all.';
    end if;
    return query
    select delivery.*
    from pgrecall.deliveries as delivery
    where (get_deliveries.session_id is null or delivery.session_id = get_deliveries.session_id)
        and (
            get_deliveries.recall_id is null
            or delivery.id in (
                select run.id
                from pgrecall.recall_runs as run
                where run.recall_id = get_deliveries.recall_id
            )
        )
        and (get_deliveries.status is null or delivery.status = get_deliveries.status)
    order by delivery.id desc
    limit "limit";
end;
$$;
comment on function pgrecall.get_deliveries(text, text, text, integer) is
    'Replies that were delivered, are on their way, or could not be delivered, newest first: all, or those of one session, one recall, or one status. Raises: PR005 for a limit below 0 or a status that there is not.';
