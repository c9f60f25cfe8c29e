-- What a migration needs to get the tables to itself.

create or replace function pgrecall._lock_holders()
returns text
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
    -- Who came later than this transaction waits for it, and does not stand in its way. Who may not see the times of
    -- others is told about all.
    select string_agg(distinct concat_ws(
        ' ', coalesce('process ' || held.pid, 'a prepared transaction'), '(' || nullif(concat_ws(
            ', ', nullif(other.application_name, ''), other.state, 'since ' || other.xact_start::timestamptz(0)
        ), '') || ')'
    ), '; ')
    from pg_locks as held
    join pg_class as place on place.oid = held.relation
    left join pg_stat_activity as other on other.pid = held.pid
    where held.database = (select oid from pg_database where datname = current_database())
        and place.relnamespace = 'pgrecall'::regnamespace
        and place.relkind in ('r', 'i')
        and held.granted
        and held.pid is distinct from pg_backend_pid()
        and coalesce(
            other.xact_start < (select own.xact_start from pg_stat_activity as own where own.pid = pg_backend_pid()),
            true
        );
$$;
comment on function pgrecall._lock_holders() is
    'The transactions older than the present one that use tables of pgrecall, for people; null: none. Called by migrations that could not lock a table in time.';
