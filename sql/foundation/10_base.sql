-- What the tables stand on: defaults and small computations that name no table.

create or replace function pgrecall.clock()
returns timestamptz
language sql
volatile
parallel safe
as $$
    -- No search_path is set, so that it becomes part of what calls it; hence the full names, here and below.
    select pg_catalog.clock_timestamp();
$$;
comment on function pgrecall.clock() is
    'The only clock that pgrecall reads: the time of the database server. Called by every routine that compares with, or records, the present. A test replaces it to move time.';

create or replace function pgrecall.new_id()
returns text
language plpgsql
volatile
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    -- A random uuid (version 4) whose first six bytes become the milliseconds since 1970, and whose version nibble
    -- goes from 0100 to 0111: that is a version 7 uuid (RFC 9562), made without an extension on any server.
    return encode(
        set_bit(set_bit(
            overlay(
                uuid_send(gen_random_uuid())
                placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                from 1 for 6
            ),
            52, 1), 53, 1),
        'hex'
    )::uuid::text;
end;
$$;
comment on function pgrecall.new_id() is
    'A new time-ordered uuid (version 7) as text: the default id of recalls and messages.';

create or replace function pgrecall.microseconds(moment timestamptz)
returns bigint
language sql
immutable
strict
parallel safe
as $$
    -- extract() gives numeric, so nothing is rounded; and with a local time it depends on no setting.
    select (extract(epoch from moment at time zone 'UTC') operator(pg_catalog.*) 1000000)::pg_catalog.int8;
$$;
comment on function pgrecall.microseconds(timestamptz) is
    'Microseconds since 1970-01-01 00:00 UTC, exact: the form in which times travel in notifications and in the register armed_until.';

create or replace function pgrecall.current_user_id()
returns text
language sql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- What a gateway has said stands alone: claims without a user name nobody, whatever else is set. Only a text counts;
    -- an empty one is what a setting of an earlier transaction leaves behind.
    select case
        when nullif(current_setting('request.jwt.claims', true), '') is not null then (
            select case when jsonb_typeof(token.claims -> 'sub') = 'string' then nullif(token.claims ->> 'sub', '') end
            from (select current_setting('request.jwt.claims', true)::jsonb as claims) as token
        )
        else coalesce(
            nullif(current_setting('request.jwt.claim.sub', true), ''),
            nullif(current_setting('pgrecall.user_id', true), '')
        )
    end;
$$;
comment on function pgrecall.current_user_id() is
    'The user for whom this connection speaks: the claim sub of the JWT that PostgREST and Supabase hand on, else the setting pgrecall.user_id; null: none. Claims that name nobody, or are no JSON (an error), are not replaced by another setting. Called by the policies of row-level security and by the audit.';

create or replace function pgrecall._caller()
returns text
language sql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(nullif(current_setting('role', true), 'none'), session_user)::text;
$$;
comment on function pgrecall._caller() is
    'The role that the client has now: by SET ROLE, else by its login; also inside functions that run with their owner''s rights. Called by the audit and by stop_run.';

create or replace function pgrecall._is_right(complaint text, rule text, hint text)
returns boolean
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    if complaint is not null then
        raise exception '%', complaint
            using errcode = 'check_violation', schema = 'pgrecall', constraint = _is_right.rule, hint = _is_right.hint;
    end if;
    return true;
end;
$$;
comment on function pgrecall._is_right(text, text, text) is
    'True if there is no complaint. Otherwise the violation of the check constraint that calls it, named rule, with the complaint as its message: a plain INSERT is told what is wrong, and not only the name of the constraint. Called by check constraints, so whoever may write their table must be allowed to call it. Raises: 23514.';
