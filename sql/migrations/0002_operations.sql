-- Steering by operators, roles, row-level security, audit, retention.

insert into pgrecall.migrations (version, name) values (2, 'operations');

-- Steering: pauses of a session or user, stopping a run, an occurrence out of turn

-- A parameter more makes another function: with both of them there, calls would be ambiguous.
drop function if exists pgrecall.schedule_recall(
    text, text, timestamptz, text, integer, text, text, text, text, timestamptz, integer, integer, text, jsonb, integer,
    integer, text, text, integer, text
);

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

-- Names that say all of it: these were longer than 63 bytes, and cut

alter table pgrecall.settings
    rename constraint paused_at_of_settings_must_be_a_finite_time_in_the_years_1_to_9
    to paused_at_of_settings_must_be_a_time_in_the_years_1_to_9999;
alter table pgrecall.settings
    rename constraint paused_until_of_settings_must_be_a_finite_time_in_the_years_1_t
    to paused_until_of_settings_must_be_a_time_in_the_years_1_to_9999;
alter table pgrecall.session_messages
    rename constraint created_at_of_message_must_be_a_finite_time_in_the_years_1_to_9
    to created_at_of_message_must_be_a_time_in_the_years_1_to_9999;

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
    v_rule record;
begin
    for v_rule in
        values
            ('session_recalls', 'cron_must_be_a_valid_expression'),
            ('session_recalls', 'time_zone_must_be_an_iana_name'),
            ('sessions', 'time_zone_of_session_must_be_an_iana_name')
    loop
        begin
            execute format('alter table pgrecall.%I validate constraint %I', v_rule.column1, v_rule.column2);
        exception
            when check_violation then
                -- A zone that the server has dropped since: its rows stay, as they did under the rule before.
                raise warning 'constraint % stays NOT VALID: %', v_rule.column2, sqlerrm
                    using hint = 'Correct the rows, then: alter table … validate constraint ….';
        end;
    end loop;
end $$;

-- Audit

-- Retention

-- What operators look at
