-- Steering by operators, roles, row-level security, audit, retention.

insert into pgrecall.migrations (version, name) values (2, 'operations');

-- First and at once, all that is changed below and has rows: workers and producers wait from here to the commit, and who
-- has one of them locked while this waits for another, waits for no longer than lock_timeout. Not workers: each of them
-- reads that table for seconds at a time (watch), so no lock on it is to be had while they run.
do $$
declare
    v_index text;
begin
    select string_agg(format('pgrecall.%I', part.relname), ', ')
    into v_index
    from pg_index as built
    join pg_class as part on part.oid = built.indexrelid
    where part.relnamespace = 'pgrecall'::regnamespace
        and not built.indisvalid;
    if v_index is not null then
        raise exception 'not built to the end: index %', v_index
            using
                errcode = 'object_not_in_prerequisite_state',
                hint = 'Nothing has changed. Drop it, and build it again with CREATE INDEX CONCURRENTLY, or let the upgrade build it.';
    end if;
    -- In the order in which claim() and finish() come to them: then one that is under way has the others to itself.
    lock table pgrecall.settings, pgrecall.session_recalls, pgrecall.sessions, pgrecall.session_messages,
        pgrecall.recall_runs, pgrecall.deliveries in access exclusive mode;
exception
    when lock_not_available then
        raise exception 'the tables of pgrecall are in use: %', coalesce(pgrecall._lock_holders(), 'by many, for a moment each')
            using errcode = 'lock_not_available',
                hint = 'Nothing has changed. Run it again when these transactions have ended, or end them: select pg_terminate_backend(…).';
end $$;

-- Steering: pauses of a session or user, stopping a run, an occurrence out of turn

create table pgrecall.pauses (
    id bigint primary key generated always as identity,
    session_id text
        constraint session_of_pause_must_exist references pgrecall.sessions (id) on delete cascade
        constraint session_is_paused_once unique,
    user_id text
        constraint user_is_paused_once unique,
    paused_at timestamptz not null
        constraint paused_at_of_pause_must_be_a_finite_time_in_the_years_1_to_9999
            check (paused_at >= '0001-01-02 00:00:00+00' and paused_at < '9999-12-31 00:00:00+00'),
    paused_until timestamptz
        constraint paused_until_of_pause_must_be_a_finite_time_in_the_years_1_to_9999
            check (paused_until >= '0001-01-02 00:00:00+00' and paused_until < '9999-12-31 00:00:00+00'),
    reason text,
    constraint pause_is_of_a_session_or_of_a_user check (num_nonnulls(session_id, user_id) = 1)
);
comment on table pgrecall.pauses is
    'Sessions and users whose recalls are not run, also those that are made later. Few rows; written by pause_session(), pause_user() and their opposites.';
comment on column pgrecall.pauses.id is 'Its number, see session_recalls.pause_id.';
comment on column pgrecall.pauses.session_id is 'The paused session; null: it is a user who is paused.';
comment on column pgrecall.pauses.user_id is 'The paused user, see sessions.user_id; null: it is a session that is paused.';
comment on column pgrecall.pauses.paused_at is 'Since when.';
comment on column pgrecall.pauses.paused_until is 'When the pause ends by itself; null: when it is resumed.';
comment on column pgrecall.pauses.reason is 'Why, for people.';

alter table pgrecall.session_recalls
    add column pause_id bigint,
    add column grid_at timestamptz
        constraint grid_at_must_be_a_finite_time_in_the_years_1_to_9999
            check (grid_at >= '0001-01-02 00:00:00+00' and grid_at < '9999-12-31 00:00:00+00'),
    add column stopped_by text,
    add column stop_reason text,
    add column after_stop text
        constraint after_stop_must_be_retry_or_skip check (after_stop in ('retry', 'skip'));
comment on column pgrecall.session_recalls.pause_id is
    'The row of pauses because of which claim() has paused this recall: it is resumed with it. Null: paused by itself, or not at all.';
comment on column pgrecall.session_recalls.grid_at is
    'The occurrence on the recall''s own grid that trigger_at stands in for, because it was asked to run out of turn; null: trigger_at is on the grid.';
comment on column pgrecall.session_recalls.stopped_by is 'Who has asked the run to stop, see stop_run(); null: nobody. Cleared when it has.';
comment on column pgrecall.session_recalls.stop_reason is 'Why, for people.';
comment on column pgrecall.session_recalls.after_stop is
    'What becomes of the occurrence that was stopped. retry: it runs again. skip: it is left out.';

-- Roles and row-level security

alter table pgrecall.session_recalls add column scheduled_by text;
-- In a second step: rows that are there already were scheduled by nobody that we know of.
alter table pgrecall.session_recalls alter column scheduled_by set default current_user;
comment on column pgrecall.session_recalls.scheduled_by is
    'The role that asked for it; null: made before version 2. A producer may see and change what it has asked for itself.';

-- Audit

-- Retention

-- What operators look at
