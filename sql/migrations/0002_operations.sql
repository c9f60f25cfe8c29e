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

-- A parameter more makes another function: with both of them there, calls would be ambiguous.
drop function if exists pgrecall.schedule_recall(
    text, text, timestamptz, text, integer, text, text, text, text, timestamptz, integer, integer, text, jsonb, integer,
    integer, text, text, integer, text
);

drop function if exists pgrecall.claim(text, integer, interval, boolean);

create type pgrecall._claimed as (
    run_id bigint,
    recall_id text,
    session_id text,
    user_id text,
    call_type text,
    nominal_at timestamptz,
    next_at timestamptz,
    attempt integer,
    max_attempts integer,
    deferrals integer,
    timeout_seconds integer,
    default_timeout_seconds integer,
    silent_token text,
    additional_context_message text,
    internal_comment text,
    metadata jsonb,
    model_text text,
    time_zone text,
    chain_depth integer,
    defer_reason text
);
comment on type pgrecall._claimed is
    'What claim() answers of one recall. Without all that a recall is beside that: to carry that along would cost more than to claim it.';

-- It takes the values that it needs now, and is called by claim() and _assign() only.
drop function if exists pgrecall._model_text(pgrecall.session_recalls, text, timestamptz, text);

-- It answers one more column now; only claim() calls it.
drop function if exists pgrecall._take(text, integer, timestamptz, boolean, pgrecall.settings);

create table pgrecall.pauses (
    id bigint primary key generated always as identity,
    session_id text
        constraint session_of_pause_must_exist references pgrecall.sessions (id) on delete cascade
        constraint session_is_paused_once unique,
    user_id text
        constraint user_is_paused_once unique,
    paused_at timestamptz not null
        constraint paused_at_of_pause_must_be_a_time_in_the_years_1_to_9999
            check (paused_at >= '0001-01-02 00:00:00+00' and paused_at < '9999-12-31 00:00:00+00'),
    paused_until timestamptz
        constraint paused_until_of_pause_must_be_a_time_in_the_years_1_to_9999
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

create index recalls_of_pause on pgrecall.session_recalls (pause_id) where pause_id is not null;
comment on index pgrecall.recalls_of_pause is 'Serves resuming what a pause of a session or user has paused.';

create trigger session_owner_update
after update of user_id on pgrecall.sessions
for each row
when (old.user_id is distinct from new.user_id)
execute function pgrecall._after_session_owner_update();
comment on trigger session_owner_update on pgrecall.sessions is
    'The pause of a user ends for a session that goes to another user.';

-- Roles and row-level security

alter table pgrecall.session_recalls add column scheduled_by text;
-- In a second step: rows that are there already were scheduled by nobody that we know of.
alter table pgrecall.session_recalls alter column scheduled_by set default current_user;
comment on column pgrecall.session_recalls.scheduled_by is
    'The role that asked for it; null: made before version 2. A producer may see and change what it has asked for itself.';

alter table pgrecall.sessions add column made_by text;
alter table pgrecall.sessions alter column made_by set default current_user;
comment on column pgrecall.sessions.made_by is
    'The role that has inserted it; null: made before version 2. A producer may see the sessions that it has made itself.';

-- Always on, also where there are no roles: then nobody but the owner sees a row, whatever was granted. Policies are in
-- routines/95_roles.sql, since those for roles wait for the roles.
alter table pgrecall.sessions enable row level security;
alter table pgrecall.session_recalls enable row level security;
alter table pgrecall.session_messages enable row level security;
alter table pgrecall.recall_runs enable row level security;
alter table pgrecall.deliveries enable row level security;
alter table pgrecall.pauses enable row level security;

-- What is wrong with a cron expression, a time zone or a template is told by the error itself

alter table pgrecall.session_recalls
    drop constraint cron_must_be_a_valid_expression,
    drop constraint time_zone_must_be_an_iana_name,
    add constraint cron_must_be_a_valid_expression check (
        cron is null
        or pgrecall._is_right(
            pgrecall.cron_error(cron), 'cron_must_be_a_valid_expression', 'For example ''0 9 * * mon-fri''.'
        )
    ) not valid,
    add constraint time_zone_must_be_an_iana_name check (
        time_zone is null
        or pgrecall._is_right(
            pgrecall.time_zone_error(time_zone),
            'time_zone_must_be_an_iana_name',
            'Use an IANA name such as ''Europe/Paris'', or ''UTC''.'
        )
    ) not valid;
alter table pgrecall.sessions
    drop constraint time_zone_of_session_must_be_an_iana_name,
    add constraint time_zone_of_session_must_be_an_iana_name check (
        time_zone is null
        or pgrecall._is_right(
            pgrecall.time_zone_error(time_zone),
            'time_zone_of_session_must_be_an_iana_name',
            'Use an IANA name such as ''Europe/Paris'', or ''UTC''.'
        )
    ) not valid;
alter table pgrecall.settings
    drop constraint message_template_must_be_valid,
    add constraint message_template_must_be_valid check (
        pgrecall._is_right(
            pgrecall.message_template_error(message_template),
            'message_template_must_be_valid',
            'For example ''[Scheduled recall] {message}''; default_message_template() gives the first one back.'
        )
    );
do $$
declare
    v_statement text;
begin
    -- The rows keep these rules already, by their older text, and to read many of them again would hold everybody up:
    -- then a constraint stays NOT VALID, which counts for every new row.
    foreach v_statement in array array(
        select format('alter table pgrecall.%I validate constraint %I', rule.place, rule.name)
        from (values
            ('session_recalls', 'cron_must_be_a_valid_expression',
                (select count(*) from (select from pgrecall.session_recalls where cron is not null limit 10001) as first)),
            ('session_recalls', 'time_zone_must_be_an_iana_name',
                (select count(*) from (select from pgrecall.session_recalls where time_zone is not null limit 10001) as first)),
            ('sessions', 'time_zone_of_session_must_be_an_iana_name',
                (select count(*) from (select from pgrecall.sessions where time_zone is not null limit 10001) as first))
        ) as rule (place, name, rows)
        where rule.rows <= 10000
    ) loop
        begin
            execute v_statement;
        exception
            when check_violation then
                -- A zone that the server has dropped since: its rows stay, as they did under the rule before.
                raise warning '% stays NOT VALID: %', v_statement, sqlerrm
                    using hint = 'Correct the rows, then do that.';
        end;
    end loop;
end $$;

-- Audit

create table pgrecall.audit (
    id bigint primary key generated always as identity,
    changed_at timestamptz not null,
    role text not null,
    login text not null,
    user_id text,
    application_name text,
    client_address inet,
    action text not null
        constraint action_of_audit_is_known check (action in ('insert', 'update', 'delete', 'truncate', 'free', 'retry', 'purge')),
    object text not null,
    object_id text,
    session_id text,
    owner_id text,
    old jsonb,
    new jsonb
);
comment on table pgrecall.audit is
    'Who changed what by hand, see docs/audit.md: one row for each row that was changed other than by a worker. Rows are only added, by triggers and functions; purge() deletes them after settings.keep_audit. Read it with get_audit().';
comment on column pgrecall.audit.id is 'Later changes have higher numbers.';
comment on column pgrecall.audit.changed_at is 'When, by the database''s clock.';
comment on column pgrecall.audit.role is 'The role that did it: by SET ROLE, else by its login.';
comment on column pgrecall.audit.login is 'The role that had logged in.';
comment on column pgrecall.audit.user_id is 'For whom the connection spoke, see current_user_id(); null: for nobody that we know of.';
comment on column pgrecall.audit.application_name is 'What the client calls itself: anything it likes.';
comment on column pgrecall.audit.client_address is 'Where it came from, as the server saw it; null: through a socket of the same machine.';
comment on column pgrecall.audit.action is
    'insert, update, delete, truncate: what was done to a row. free: a hold was ended by an operator. retry: a delivery is to be tried now. purge: purge_history() was called.';
comment on column pgrecall.audit.object is 'The table: session_recalls, sessions, settings, pauses, deliveries; history for purge_history().';
comment on column pgrecall.audit.object_id is 'Which row of it; null: the only one, or all.';
comment on column pgrecall.audit.session_id is 'The session that it is about; null: none.';
comment on column pgrecall.audit.owner_id is 'The user whose session that was then, see sessions.user_id; null: nobody''s.';
comment on column pgrecall.audit.old is
    'The changed columns as they were; of a deleted row all that were not null. Of the words of people it has the length only.';
comment on column pgrecall.audit.new is 'The changed columns as they became; of purge_history() how many rows of each kind are gone.';
create index audit_of_object on pgrecall.audit (object_id, id) where object_id is not null;
comment on index pgrecall.audit_of_object is 'Serves get_audit() by recall.';
create index audit_of_session on pgrecall.audit (session_id, id) where session_id is not null;
comment on index pgrecall.audit_of_session is 'Serves get_audit() by session.';
create index audit_of_owner on pgrecall.audit (owner_id, id) where owner_id is not null;
comment on index pgrecall.audit_of_owner is 'Serves get_audit() by user, and purge_history().';
create index audit_by_user on pgrecall.audit (user_id, id) where user_id is not null;
comment on index pgrecall.audit_by_user is 'Serves get_audit() by user, and purge_history().';

alter table pgrecall.audit enable row level security;

create unlogged table pgrecall.unaudited (
    reason text not null
);
comment on table pgrecall.unaudited is
    'Always empty for everybody else: a function of pgrecall has a row here while it changes rows that need no audit, and takes it away before its transaction ends. Nobody but the owner may write it.';
comment on column pgrecall.unaudited.reason is 'What is being done.';

create trigger recall_delete_audit
after delete on pgrecall.session_recalls
for each row
execute function pgrecall._after_change_by_hand();
comment on trigger recall_delete_audit on pgrecall.session_recalls is
    'Writes a recall that is deleted by hand into the audit. Changes are written by recall_update, which comes by anyway.';

-- Of these columns only, without a WHEN: the updates of every claim and finish, which name others, do not stop here.
create trigger session_update_audit
after update of id, user_id, time_zone, max_runs_per_day, deliver_to on pgrecall.sessions
for each row
execute function pgrecall._after_change_by_hand();
comment on trigger session_update_audit on pgrecall.sessions is
    'Writes changes of what a session may and belongs to into the audit; holds and runs are not.';

create trigger session_delete_audit
after delete on pgrecall.sessions
for each row
execute function pgrecall._after_change_by_hand();
comment on trigger session_delete_audit on pgrecall.sessions is
    'Writes the end of a session into the audit: one row, also for the recalls that it takes along.';

create trigger settings_update_audit
after update on pgrecall.settings
for each row
execute function pgrecall._after_change_by_hand();
comment on trigger settings_update_audit on pgrecall.settings is 'Writes changed settings into the audit.';

create trigger pause_audit
after insert or update or delete on pgrecall.pauses
for each row
execute function pgrecall._after_change_by_hand();
comment on trigger pause_audit on pgrecall.pauses is
    'Writes pauses of sessions and users into the audit, and their ends unless they have ended by themselves.';

create trigger delivery_update_audit
after update of url, status on pgrecall.deliveries
for each row
execute function pgrecall._after_change_by_hand();
comment on trigger delivery_update_audit on pgrecall.deliveries is
    'Writes into the audit that a delivery goes to another URL, or is tried again after its end.';

alter table pgrecall.session_recalls enable always trigger recall_delete_audit;
alter table pgrecall.sessions
    enable always trigger session_update_audit,
    enable always trigger session_delete_audit;
alter table pgrecall.settings enable always trigger settings_update_audit;
alter table pgrecall.pauses enable always trigger pause_audit;
alter table pgrecall.deliveries enable always trigger delivery_update_audit;

-- Retention

-- At most 1000 years: the present minus more than that may be no date. Whoever means for ever says null.
alter table pgrecall.settings
    add column keep_fired interval default '30 days'
        constraint keep_fired_must_be_0_to_1000_years
            check (keep_fired between interval '0' and interval '1000 years'),
    add column keep_failed interval default '90 days'
        constraint keep_failed_must_be_0_to_1000_years
            check (keep_failed between interval '0' and interval '1000 years'),
    add column keep_cancelled interval default '30 days'
        constraint keep_cancelled_must_be_0_to_1000_years
            check (keep_cancelled between interval '0' and interval '1000 years'),
    add column keep_runs interval default '90 days'
        constraint keep_runs_must_be_2_days_to_1000_years
            check (keep_runs between interval '2 days' and interval '1000 years'),
    add column keep_messages interval
        constraint keep_messages_must_be_2_days_to_1000_years
            check (keep_messages between interval '2 days' and interval '1000 years'),
    add column keep_deliveries interval default '30 days'
        constraint keep_deliveries_must_be_0_to_1000_years
            check (keep_deliveries between interval '0' and interval '1000 years'),
    add column keep_audit interval default '1 year'
        constraint keep_audit_must_be_0_to_1000_years
            check (keep_audit between interval '0' and interval '1000 years');
-- Who has a history from before this upgrade has not been asked whether it may go.
update pgrecall.settings
set keep_fired = null,
    keep_failed = null,
    keep_cancelled = null,
    keep_runs = null,
    keep_deliveries = null
where exists (select from pgrecall.session_recalls)
    or exists (select from pgrecall.recall_runs);
comment on column pgrecall.settings.keep_fired is
    'How long recalls that have fired stay after their last change; null: for ever. See purge().';
comment on column pgrecall.settings.keep_failed is 'The same for failed recalls.';
comment on column pgrecall.settings.keep_cancelled is 'The same for cancelled recalls.';
comment on column pgrecall.settings.keep_runs is
    'How long rows of recall_runs stay after the end of the run; null: for ever. The runs of the last 24 hours are counted for max_runs_per_day, and a worker that comes back late is recognised by them: hence at least 2 days.';
comment on column pgrecall.settings.keep_messages is
    'How long messages of sessions stay; null: for ever. The oldest of a session go first, so a conversation loses its beginning and never its middle. At least 2 days, so that none goes while its run is under way.';
comment on column pgrecall.settings.keep_deliveries is
    'How long deliveries stay after they have ended; null: for ever. One that is pending stays.';
comment on column pgrecall.settings.keep_audit is 'How long rows of audit stay; null: for ever.';

-- A pending or running row is in none of these: what a claim touches stays as small as what is pending. A row comes in
-- when it ends and is not looked at before it expires. updated_at in an index forbids updates in place, which nearly
-- no update of a recall is anyway: due_at, run_id and status are in indexes, too.
create index if not exists recalls_ended on pgrecall.session_recalls (status, updated_at)
    where status in ('fired', 'failed', 'cancelled') and run_id is null;
comment on index pgrecall.recalls_ended is 'Serves purge(): what has ended, by status, oldest first.';
create index if not exists deliveries_ended on pgrecall.deliveries (ended_at) where ended_at is not null;
comment on index pgrecall.deliveries_ended is 'Serves purge(): what has ended, oldest first.';

create table pgrecall.purges (
    is_only_row boolean primary key default true
        constraint purges_has_one_row check (is_only_row),
    worker_id text,
    walked_at timestamptz,
    begun_at timestamptz,
    fired_from timestamptz not null default '0001-01-02 00:00:00+00',
    failed_from timestamptz not null default '0001-01-02 00:00:00+00',
    cancelled_from timestamptz not null default '0001-01-02 00:00:00+00',
    run_from bigint not null default 0,
    message_from text not null default '',
    delivery_from timestamptz not null default '0001-01-02 00:00:00+00',
    audit_from bigint not null default 0
) with (fillfactor = 50);
insert into pgrecall.purges default values;
comment on table pgrecall.purges is
    'How far purge() has come, one row. It deletes from old to new in many small steps, and a step that began at the oldest row would walk over everything that the steps before it have deleted and that is not vacuumed yet.';
comment on column pgrecall.purges.is_only_row is 'Keeps the table at one row.';
comment on column pgrecall.purges.worker_id is 'The worker that does it now: the others leave it to that one.';
comment on column pgrecall.purges.walked_at is 'When the last step was made; if that is a minute ago, any worker may go on. Null: nothing is left to delete.';
comment on column pgrecall.purges.begun_at is
    'When the walk has begun at the oldest rows. It does so again after a day, for what was locked or had a reply on its way.';
comment on column pgrecall.purges.fired_from is 'Where the next step goes on: all that is older is gone, or is left to the next walk.';
comment on column pgrecall.purges.failed_from is 'The same for failed recalls.';
comment on column pgrecall.purges.cancelled_from is 'The same for cancelled recalls.';
comment on column pgrecall.purges.run_from is 'The same for recall_runs, by id: ids grow with time, so that there is no index for this.';
comment on column pgrecall.purges.message_from is
    'The same for session_messages, by session: only the oldest message of each is looked at, so that there is no index for this.';
comment on column pgrecall.purges.delivery_from is 'The same for deliveries, by ended_at.';
comment on column pgrecall.purges.audit_from is 'The same for audit, by id.';

-- By default a table is vacuumed when a fifth of it is dead. Of 50 million recalls that would be 10 million, while those
-- that move, and leave dead versions of themselves in the small indexes that every claim reads, are a few thousand.
-- A fiftieth is late enough: below that the server does not even open the large indexes of a vacuumed table.
-- The rows of sessions and workers move in place (fillfactor, and their hot columns are in no index).
alter table pgrecall.session_recalls set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
alter table pgrecall.sessions set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
-- These only grow, and purge() cuts off their oldest part: its place is free again before a fifth is gone.
alter table pgrecall.recall_runs set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000);
alter table pgrecall.session_messages set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000);
alter table pgrecall.deliveries set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
alter table pgrecall.audit set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000);

-- Cheaper claims and outcomes

-- Whoever names another run and the time of the change itself is claim() or finish_unobstructed(), and has done all that
-- this trigger is for: of hundreds of rows at once it would be the larger part of their work.
create or replace trigger recall_update
before update on pgrecall.session_recalls
for each row
when (old.run_id is not distinct from new.run_id or old.updated_at is not distinct from new.updated_at)
execute function pgrecall._before_recall_update();
comment on trigger recall_update on pgrecall.session_recalls is
    'Keeps updated_at, starts a new occurrence when trigger_at changes, tells a run to stop when its recall is cancelled, writes changes by hand into the audit.';
alter table pgrecall.session_recalls enable always trigger recall_update;

-- A recall that is claimed or has ended is due no more: of that nobody need be told.
drop trigger announce_update on pgrecall.session_recalls;
create constraint trigger announce_update
after update on pgrecall.session_recalls
deferrable initially deferred
for each row
when (new.due_at is not null)
execute function pgrecall._announce_due();
comment on trigger announce_update on pgrecall.session_recalls is
    'Wakes the workers if the recall has become due, or due earlier than before.';
alter table pgrecall.session_recalls enable always trigger announce_update;

-- What operators look at

-- Small, and nothing is written into them by a recall that is claimed in time and ends well.
create index if not exists recalls_held_back on pgrecall.session_recalls (trigger_at)
    where (not_before is not null or paused_at is not null) and run_id is null and status in ('pending', 'running');
comment on index pgrecall.recalls_held_back is
    'Serves due_recalls and overview: what is deferred, between two attempts or paused, and so is not found by due_at.';
create index if not exists recalls_failing on pgrecall.session_recalls (updated_at)
    where failures > 0 and status in ('pending', 'running');
comment on index pgrecall.recalls_failing is
    'Serves failed_recalls: recurring recalls that go on after a failure. Those that are given up are in recalls_ended.';
create index if not exists runs_late on pgrecall.recall_runs (started_at) where lateness > interval '1 second';
comment on index pgrecall.runs_late is 'Serves late_runs.';
create index if not exists runs_left_out on pgrecall.recall_runs (id) where outcome in ('skipped', 'missed');
comment on index pgrecall.runs_left_out is 'Serves left_out_occurrences.';
-- The ledger grows at its end, so a few pages of this tell where a time is. Rows that purge() has made room for come
-- in order, too; a range that has both old and new rows is read for the new ones only, since nothing asks for old ones.
create index if not exists runs_by_time on pgrecall.recall_runs using brin (finished_at) with (autosummarize = on);
comment on index pgrecall.runs_by_time is 'Serves lateness_per_hour.';
create index if not exists audit_of_settings on pgrecall.audit (id) where object = 'settings';
comment on index pgrecall.audit_of_settings is 'Serves late_runs: when all was paused.';

-- What a rule asks for, in the words of docs/errors.md: whoever meets one finds it with help('<its name>') or in \d+.
comment on constraint session_is_held_by_a_run_or_until_a_time on pgrecall.sessions is
    'An end of each chat''s hold: use hold_session(). A chat server that died cannot keep a session.';
comment on index pgrecall.settings_has_one_row is 'That there is one row: update it.';
comment on index pgrecall.one_pending_recall_per_session is
    'No second pending recall: cancel or move the first, or schedule_recall(…, if_exists => ''replace''). A running recurring one will come back, so it counts; a running one-shot does not, so that an agent can schedule its next recall from inside its run.';
comment on index pgrecall.idempotency_key_is_unique_in_its_session is
    'A key that no recall of the session has: schedule_recall() returns the recall that has it.';
comment on index pgrecall.one_run_per_recall_and_token is
    'A run that no other recall is in. Serves looking up what runs now; small, since it holds running rows only.';
comment on constraint action_of_audit_is_known on pgrecall.audit is
    'action: one of the actions that the column''s comment explains; only triggers and functions write here.';
comment on constraint pending_delivery_has_a_next_time on pgrecall.deliveries is
    'A time for the next attempt as long as it is pending: use retry_delivery().';
comment on constraint session_of_delivery_must_exist on pgrecall.deliveries is
    'An existing session; one that is deleted takes its deliveries along.';
comment on constraint status_of_delivery_must_be_pending_delivered_or_failed on pgrecall.deliveries is
    'status: one of the three.';
comment on constraint host_sessions_has_one_row on pgrecall.host_sessions is
    'is_only_row: there is one row: use use_sessions_table().';
comment on constraint pause_is_of_a_session_or_of_a_user on pgrecall.pauses is
    'Exactly one of the two: use pause_session() or pause_user().';
comment on constraint paused_at_of_pause_must_be_a_time_in_the_years_1_to_9999 on pgrecall.pauses is
    'paused_at: a finite time, years 1 to 9999.';
comment on constraint paused_until_of_pause_must_be_a_time_in_the_years_1_to_9999 on pgrecall.pauses is
    'paused_until: a finite time, years 1 to 9999; null: until it is resumed.';
comment on constraint session_is_paused_once on pgrecall.pauses is
    'No second pause of the session: pause_session() changes the one that is there.';
comment on constraint session_of_pause_must_exist on pgrecall.pauses is
    'An existing session; one that is deleted takes its pause along.';
comment on constraint user_is_paused_once on pgrecall.pauses is
    'No second pause of the user: pause_user() changes the one that is there.';
comment on constraint purges_has_one_row on pgrecall.purges is
    'is_only_row: there is one row; only purge() writes it.';
comment on constraint finished_at_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.recall_runs is
    'finished_at: a finite time, years 1 to 9999.';
comment on constraint nominal_at_of_run_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.recall_runs is
    'nominal_at: a finite time, years 1 to 9999.';
comment on constraint occurrences_is_positive on pgrecall.recall_runs is
    'occurrences: 1 or more: a row stands for at least one occurrence.';
comment on constraint outcome_is_known on pgrecall.recall_runs is
    'outcome: one of the outcomes of docs/states.md; workers write them by finish().';
comment on constraint refused_at_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.recall_runs is
    'refused_at: a finite time, years 1 to 9999.';
comment on constraint session_of_run_must_exist on pgrecall.recall_runs is
    'An existing session; one that is deleted takes its runs along.';
comment on constraint started_at_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.recall_runs is
    'started_at: a finite time, years 1 to 9999.';
comment on constraint created_at_of_message_must_be_a_finite_time_in_the_years_1_to_9 on pgrecall.session_messages is
    'created_at: a finite time, years 1 to 9999.';
comment on constraint message_id_is_unique_in_its_session on pgrecall.session_messages is
    'An id that no message of the session has: append_messages() leaves the first.';
comment on constraint message_id_must_have_1_to_512_characters on pgrecall.session_messages is
    'id: 1 to 512 characters.';
comment on constraint message_role_must_not_be_empty on pgrecall.session_messages is
    'role: user, assistant, system ….';
comment on constraint session_messages_session_exists on pgrecall.session_messages is
    'An existing session.';
comment on constraint session_messages_pkey on pgrecall.session_messages is
    'Nothing from a producer: the server numbers messages.';
comment on constraint additional_context_message_must_be_at_most_65536_characters on pgrecall.session_recalls is
    'additional_context_message: at most so many; put more into metadata, or where the agent can read it.';
comment on constraint additional_context_message_must_not_be_empty on pgrecall.session_recalls is
    'additional_context_message: more than white space.';
comment on constraint after_stop_must_be_retry_or_skip on pgrecall.session_recalls is
    'after_stop: one of the two, see stop_run().';
comment on constraint attempt_must_be_0_to_1000000 on pgrecall.session_recalls is
    'attempt: 0 to 1,000,000.';
comment on constraint call_type_must_be_once_recurring_or_immediate on pgrecall.session_recalls is
    'call_type: one of the three.';
comment on constraint chain_depth_must_be_0_to_1000000 on pgrecall.session_recalls is
    'chain_depth: 0 to 1,000,000.';
comment on constraint claimed_at_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.session_recalls is
    'claimed_at: a finite time, years 1 to 9999.';
comment on constraint created_at_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.session_recalls is
    'created_at: a finite time, years 1 to 9999.';
comment on constraint created_by_must_be_host_or_agent on pgrecall.session_recalls is
    'created_by: one of the two; left out: host.';
comment on constraint cron_must_be_a_valid_expression on pgrecall.session_recalls is
    'cron: what cron_error() finds nothing wrong with; the error says what it is.';
comment on constraint cron_needs_a_time_zone on pgrecall.session_recalls is
    'Time_zone with cron.';
comment on constraint deferrals_must_be_0_to_1000000000 on pgrecall.session_recalls is
    'deferrals: 0 to 1,000,000,000.';
comment on constraint deferred_since_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.session_recalls is
    'deferred_since: a finite time, years 1 to 9999.';
comment on constraint deliver_to_must_be_an_http_url on pgrecall.session_recalls is
    'deliver_to: http://… or https://…, at most 2048 characters.';
comment on constraint end_at_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.session_recalls is
    'end_at: a finite time, years 1 to 9999.';
comment on constraint end_at_must_not_be_before_trigger_at on pgrecall.session_recalls is
    'A series that ends after it begins; also after a move.';
comment on constraint failures_must_be_0_to_1000000000 on pgrecall.session_recalls is
    'failures: 0 to 1,000,000,000.';
comment on constraint grid_at_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.session_recalls is
    'grid_at: a finite time, years 1 to 9999.';
comment on constraint idempotency_key_must_have_1_to_255_characters on pgrecall.session_recalls is
    'idempotency_key: 1 to 255 characters.';
comment on constraint idle_for_seconds_must_be_greater_than_zero on pgrecall.session_recalls is
    'idle_for_seconds: 1 or more; null: at once.';
comment on constraint interval_seconds_and_cron_exclude_each_other on pgrecall.session_recalls is
    'Only one of the two.';
comment on constraint interval_seconds_must_be_greater_than_zero on pgrecall.session_recalls is
    'interval_seconds: 1 or more.';
comment on constraint max_attempts_must_be_greater_than_zero on pgrecall.session_recalls is
    'max_attempts: 1 or more.';
comment on constraint max_defer_seconds_must_be_greater_than_zero on pgrecall.session_recalls is
    'max_defer_seconds: 1 or more.';
comment on constraint nominal_at_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.session_recalls is
    'nominal_at: a finite time, years 1 to 9999.';
comment on constraint not_before_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.session_recalls is
    'not_before: a finite time, years 1 to 9999.';
comment on constraint on_interrupt_must_be_retry_or_skip on pgrecall.session_recalls is
    'on_interrupt: one of the two.';
comment on constraint on_max_defer_must_be_run_or_skip on pgrecall.session_recalls is
    'on_max_defer: one of the two.';
comment on constraint pause_after_failures_must_be_greater_than_zero on pgrecall.session_recalls is
    'pause_after_failures: 1 or more; null: never.';
comment on constraint paused_at_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.session_recalls is
    'paused_at: a finite time, years 1 to 9999.';
comment on constraint paused_until_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.session_recalls is
    'paused_until: a finite time, years 1 to 9999.';
comment on constraint paused_until_needs_paused_at on pgrecall.session_recalls is
    'A beginning for a pause with an end: use pause_recall().';
comment on constraint recall_id_must_have_1_to_255_characters on pgrecall.session_recalls is
    'id: 1 to 255 characters.';
comment on constraint recurring_recall_needs_interval_seconds_or_cron on pgrecall.session_recalls is
    'One of the two for recurring.';
comment on constraint run_id_is_set_by_claim_with_worker_id_and_times on pgrecall.session_recalls is
    'Nothing from a producer: only workers take recalls.';
comment on constraint session_of_recall_must_exist on pgrecall.session_recalls is
    'An existing session: insert it first.';
comment on constraint status_must_be_pending_running_fired_failed_or_cancelled on pgrecall.session_recalls is
    'status: one of the five.';
comment on constraint time_zone_must_be_an_iana_name on pgrecall.session_recalls is
    'time_zone: what time_zone_error() finds nothing wrong with; the error says what it is.';
comment on constraint timeout_seconds_must_be_greater_than_zero on pgrecall.session_recalls is
    'timeout_seconds: 1 or more; null: no limit of its own.';
comment on constraint trigger_at_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.session_recalls is
    'trigger_at: a finite time, years 1 to 9999.';
comment on constraint updated_at_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.session_recalls is
    'updated_at: a finite time, years 1 to 9999.';
comment on constraint session_recalls_pkey on pgrecall.session_recalls is
    'An id that no recall has: leave it out for a new one.';
comment on constraint session_of_waiter_must_exist on pgrecall.session_waiters is
    'An existing session; one that is deleted takes its waiters along.';
comment on constraint waits_once_for_a_session on pgrecall.session_waiters is
    'One place in the line for each holder: use hold_session().';
comment on constraint active_at_must_be_a_finite_time_in_the_years_1_to_9999 on pgrecall.sessions is
    'active_at: a finite time, years 1 to 9999.';
comment on constraint deliver_to_of_session_must_be_an_http_url on pgrecall.sessions is
    'deliver_to: http://… or https://…, at most 2048 characters.';
comment on constraint holder_must_have_1_to_255_characters on pgrecall.sessions is
    'holder: 1 to 255 characters: use hold_session().';
comment on constraint max_runs_per_day_must_be_greater_than_zero on pgrecall.sessions is
    'max_runs_per_day: 1 or more; null: that of the settings.';
comment on constraint session_id_must_have_1_to_255_characters on pgrecall.sessions is
    'id: 1 to 255 characters.';
comment on constraint time_zone_of_session_must_be_an_iana_name on pgrecall.sessions is
    'time_zone: what time_zone_error() finds nothing wrong with; the error says what it is.';
comment on constraint sessions_pkey on pgrecall.sessions is
    'An id that no session has: on conflict (id) do nothing leaves the first.';
comment on constraint agent_max_chain_depth_must_be_0_or_more on pgrecall.settings is
    'agent_max_chain_depth: 0 or more.';
comment on constraint agent_max_pending_per_user_must_be_0_or_more on pgrecall.settings is
    'agent_max_pending_per_user: 0 or more.';
comment on constraint agent_min_interval_seconds_must_be_0_or_more on pgrecall.settings is
    'agent_min_interval_seconds: 0 or more.';
comment on constraint agent_recurring_days_must_be_1_to_36500 on pgrecall.settings is
    'agent_recurring_days: 1 to 36500.';
comment on constraint keep_audit_must_be_0_to_1000_years on pgrecall.settings is
    'keep_audit: 0 to 1000 years; null: for ever.';
comment on constraint keep_cancelled_must_be_0_to_1000_years on pgrecall.settings is
    'keep_cancelled: 0 to 1000 years; null: for ever.';
comment on constraint keep_deliveries_must_be_0_to_1000_years on pgrecall.settings is
    'keep_deliveries: 0 to 1000 years; null: for ever.';
comment on constraint keep_failed_must_be_0_to_1000_years on pgrecall.settings is
    'keep_failed: 0 to 1000 years; null: for ever.';
comment on constraint keep_fired_must_be_0_to_1000_years on pgrecall.settings is
    'keep_fired: 0 to 1000 years; null: for ever.';
comment on constraint keep_messages_must_be_2_days_to_1000_years on pgrecall.settings is
    'keep_messages: 2 days to 1000 years; null: for ever.';
comment on constraint keep_runs_must_be_2_days_to_1000_years on pgrecall.settings is
    'keep_runs: 2 days to 1000 years; null: for ever.';
comment on constraint max_runs_per_day_of_settings_must_be_greater_than_zero on pgrecall.settings is
    'max_runs_per_day: 1 or more; null: no limit.';
comment on constraint message_template_must_be_valid on pgrecall.settings is
    'message_template: what message_template_error() finds nothing wrong with; the error says what it is.';
comment on constraint paused_at_of_settings_must_be_a_finite_time_in_the_years_1_to_9 on pgrecall.settings is
    'paused_at: a finite time, years 1 to 9999.';
comment on constraint paused_until_of_settings_must_be_a_finite_time_in_the_years_1_t on pgrecall.settings is
    'paused_until: a finite time, years 1 to 9999.';
comment on constraint paused_until_of_settings_needs_paused_at on pgrecall.settings is
    'A beginning for a pause with an end: use pause_all().';
comment on constraint silent_token_must_have_1_to_100_characters on pgrecall.settings is
    'silent_token: 1 to 100 characters, no white space around them; null: none.';
comment on constraint timeout_seconds_of_settings_must_be_greater_than_zero on pgrecall.settings is
    'timeout_seconds: 1 or more.';
comment on constraint reconnect_grace_must_be_0_to_60_seconds on pgrecall.workers is
    'reconnect_grace: 0 to 60 seconds.';
comment on constraint worker_id_must_have_1_to_255_characters on pgrecall.workers is
    'id: 1 to 255 characters.';

-- Whether the herd has to be told something (claim() in routines/50_claim.sql). Like armed_until not worth the log.
create sequence pgrecall.untold as bigint minvalue 0 maxvalue 1 start 0;
comment on sequence pgrecall.untold is
    '1: a worker has taken something that the others still wake up for; the next one that can tells them so. Written by workers only.';
do $$
begin
    if current_setting('server_version_num')::integer >= 150000 then
        execute 'alter sequence pgrecall.untold set unlogged';
    end if;
end $$;
