-- Installs pgrecall into the current database, or upgrades it. Safe to run again, and by two at once.
--
--     psql -v ON_ERROR_STOP=1 -f sql/install.sql
--
-- It waits for no table for longer than half a second, because everybody else would wait behind it, and then fails
-- without a change. For more patience: -v lock_timeout=5s. See docs/upgrades.md.
--
-- One transaction: all of it happens or nothing. foundation/ and routines/ hold the one current definition of each
-- function and are replaced on every run; a file of migrations/ runs once. `pgrecall migrate` runs the same files.

\set QUIET on
\set ON_ERROR_STOP on
begin;
\ir migrations/0000_bookkeeping.sql
\if :{?lock_timeout}
\else
    \set lock_timeout 500ms
\endif
set local lock_timeout = :'lock_timeout';
do $$
declare
    v_newer integer := (select max(version) from pgrecall.migrations where version > 2);
begin
    if v_newer is not null then
        raise exception 'the pgrecall schema in the database is version %, these files were made for 2', v_newer
            using hint = 'Take the files of the newer release.';
    end if;
end $$;
\ir foundation/10_base.sql
\ir foundation/20_cron.sql
\ir foundation/25_text.sql
\ir foundation/30_wake.sql
\ir foundation/35_audit.sql
\ir foundation/35_upgrade.sql
select not exists (select from pgrecall.migrations where version = 1) as needed \gset
\if :needed
    \ir migrations/0001_initial.sql
\endif
select not exists (select from pgrecall.migrations where version = 2) as needed \gset
\if :needed
    \ir migrations/0002_operations.sql
\endif
\ir routines/10_version.sql
\ir routines/40_schedule.sql
\ir routines/42_run_again.sql
\ir routines/43_pause.sql
\ir routines/44_pause_sessions.sql
\ir routines/45_holds.sql
\ir routines/46_stop.sql
\ir routines/48_leases.sql
\ir routines/50_claim.sql
\ir routines/52_lifelines.sql
\ir routines/60_outcome.sql
\ir routines/65_bulk.sql
\ir routines/70_messages.sql
\ir routines/72_reports.sql
\ir routines/75_deliveries.sql
\ir routines/77_agents.sql
\ir routines/78_audit.sql
\ir routines/79_retention.sql
\ir routines/80_read.sql
\ir routines/85_views.sql
\ir routines/87_help.sql
\ir routines/90_host.sql
\ir routines/95_roles.sql
commit;
\echo 'pgrecall is installed: select pgrecall.schema_version();'
