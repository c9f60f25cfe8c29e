-- Runs first on every install and upgrade, and is safe to run again.
--
-- The lock makes a second installer wait until the first has committed; after that the second finds nothing left to
-- do. It is released with the transaction, so it cannot be left behind. (The key spells 'pgrecall', plus one: the key
-- itself is the wake-up lock of foundation/30_wake.sql.)

set local client_min_messages = warning;
-- Every name of ours is written with its schema; nobody else's now() or text may come before PostgreSQL's own.
set local search_path = '';

do $$
begin
    perform pg_catalog.pg_advisory_xact_lock(8099568234633718893);
end $$;

do $$
begin
    if pg_catalog.current_setting('server_version_num')::integer < 140000 then
        raise exception 'pgrecall needs PostgreSQL 14 or newer, this server is %', pg_catalog.current_setting('server_version')
            using errcode = 'feature_not_supported';
    end if;
    if pg_catalog.current_setting('server_encoding') = 'SQL_ASCII' then
        raise exception 'pgrecall needs a database whose encoding says what its bytes mean, this one has SQL_ASCII'
            using errcode = 'feature_not_supported', hint = 'create database … encoding ''UTF8'' template template0';
    end if;
end $$;

create schema if not exists pgrecall;
comment on schema pgrecall is
    'Recalls: rows that ask for an agent run later. Start with: select * from pgrecall.help();';

create table if not exists pgrecall.migrations (
    version integer primary key,
    name text not null,
    applied_at timestamptz not null default now()
);
comment on table pgrecall.migrations is
    'Which run-once files of sql/migrations this database has; the highest version is the version of the tables.';
comment on column pgrecall.migrations.applied_at is 'When the migration''s transaction began.';
