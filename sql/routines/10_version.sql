create or replace function pgrecall.schema_version()
returns integer
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select 1;
$$;
comment on function pgrecall.schema_version() is
    'The version of everything in sql/, raised by every release that changes any of it. A client that was made for another version says which command to run.';
