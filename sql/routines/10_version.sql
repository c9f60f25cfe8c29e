create or replace function pgrecall.schema_version()
returns integer
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select 2;
$$;
comment on function pgrecall.schema_version() is
    'The version of everything in sql/, raised by every release that changes any of it. A client that was made for another version says which command to run.';

create or replace function pgrecall.get_schema()
returns table (version integer, oldest_client integer)
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select pgrecall.schema_version(), 1;
$$;
comment on function pgrecall.get_schema() is
    'The version of the schema, and that of the oldest clients and workers that work with it: an upgrade may run while they do. Asked by every client once. See docs/upgrades.md for what a release may change.';
