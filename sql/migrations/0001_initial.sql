-- The tables of the first release.

insert into pgrecall.migrations (version, name) values (1, 'initial');

create sequence pgrecall.run_ids as bigint;
comment on sequence pgrecall.run_ids is
    'Numbers runs. A later run has a higher number, so the number of a run is also the fencing token of its claim.';

-- The register of the wake-up protocol (foundation/30_wake.sql). Its start value means "nobody is armed: announce".
create sequence pgrecall.armed_until as bigint minvalue 0 maxvalue 253402300800000000 start 253402300800000000;
comment on sequence pgrecall.armed_until is
    'Microseconds since 1970 by which every sleeping worker wakes up anyway; a recall due later needs no notification. Written by workers only; never set it by hand while workers run.';

do $$
begin
    -- Not worth the write-ahead log; PostgreSQL 14 has no unlogged sequences, and there a logged one is right too.
    if current_setting('server_version_num')::integer >= 150000 then
        execute 'alter sequence pgrecall.armed_until set unlogged';
    end if;
end $$;

create table pgrecall.settings (
    timeout_seconds integer not null default 600
        constraint timeout_seconds_of_settings_must_be_greater_than_zero check (timeout_seconds > 0),
    max_runs_per_day integer
        constraint max_runs_per_day_of_settings_must_be_greater_than_zero check (max_runs_per_day > 0),
    silent_token text default '[SILENT]'
        constraint silent_token_must_have_1_to_100_characters
            check (length(silent_token) <= 100 and silent_token = btrim(silent_token, E' \t\r\n') and silent_token <> ''),
    message_template text not null default pgrecall.default_message_template()
        constraint message_template_must_be_valid check (pgrecall.message_template_error(message_template) is null),
    paused_at timestamptz
        constraint paused_at_of_settings_must_be_a_finite_time_in_the_years_1_to_9999
            check (paused_at >= '0001-01-02 00:00:00+00' and paused_at < '9999-12-31 00:00:00+00'),
    paused_until timestamptz
        constraint paused_until_of_settings_must_be_a_finite_time_in_the_years_1_to_9999
            check (paused_until >= '0001-01-02 00:00:00+00' and paused_until < '9999-12-31 00:00:00+00'),
    pause_reason text,
    agent_min_interval_seconds integer not null default 60
        constraint agent_min_interval_seconds_must_be_0_or_more check (agent_min_interval_seconds >= 0),
    agent_max_pending_per_user integer not null default 100
        constraint agent_max_pending_per_user_must_be_0_or_more check (agent_max_pending_per_user >= 0),
    agent_max_chain_depth integer not null default 25
        constraint agent_max_chain_depth_must_be_0_or_more check (agent_max_chain_depth >= 0),
    agent_recurring_days integer not null default 30
        constraint agent_recurring_days_must_be_1_to_36500 check (agent_recurring_days between 1 and 36500),
    agent_can_change_host_recalls boolean not null default true,
    constraint paused_until_of_settings_needs_paused_at check (paused_until is null or paused_at is not null)
);
create unique index settings_has_one_row on pgrecall.settings ((true));
comment on index pgrecall.settings_has_one_row is 'Keeps the table at one row.';
insert into pgrecall.settings default values;
comment on table pgrecall.settings is
    'What holds for all recalls and workers of this database, one row: update pgrecall.settings set …; a change counts from the next claim on.';
comment on column pgrecall.settings.timeout_seconds is
    'Wall-clock limit of a run in seconds, where neither its recall nor its worker has one of its own.';
comment on column pgrecall.settings.max_runs_per_day is
    'Runs that a session may have within 24 hours, unless it has a number of its own; further ones are deferred. Null: no limit.';
comment on column pgrecall.settings.silent_token is
    'A reply of just this text means: success, and nothing to say. Null: no such text.';
comment on column pgrecall.settings.message_template is
    'What the model is told when a recall fires, with placeholders such as {message}; see message_template_error() and default_message_template().';
comment on column pgrecall.settings.paused_at is 'Since when no worker starts a run; null: not paused. Set by pause_all().';
comment on column pgrecall.settings.paused_until is 'When the pause ends by itself; null: at resume_all().';
comment on column pgrecall.settings.pause_reason is 'Why, for people.';
comment on column pgrecall.settings.agent_min_interval_seconds is
    'Shortest time from now, and between the occurrences, of a recall that an agent makes.';
comment on column pgrecall.settings.agent_max_pending_per_user is
    'How many pending recalls made by agents the sessions of one user may have together; for a session without a user: that session.';
comment on column pgrecall.settings.agent_max_chain_depth is
    'How long a chain of recalls may become in which each is made by the run of the one before, with nobody speaking to the agent meanwhile.';
comment on column pgrecall.settings.agent_recurring_days is
    'A recurring recall that an agent makes ends after so many days at the latest.';
comment on column pgrecall.settings.agent_can_change_host_recalls is
    'Whether an agent may cancel, replace and skip recalls of its session that the host made. True suits reminders that the application sets for a user, who then says "cancel my reminder".';

create table pgrecall.sessions (
    id text primary key
        constraint session_id_must_have_1_to_255_characters check (length(id) between 1 and 255),
    user_id text,
    created_at timestamptz not null default now(),
    metadata jsonb not null default '{}',
    time_zone text
        constraint time_zone_of_session_must_be_an_iana_name
            check (time_zone is null or pgrecall.time_zone_error(time_zone) is null),
    max_runs_per_day integer
        constraint max_runs_per_day_must_be_greater_than_zero check (max_runs_per_day > 0),
    deliver_to text
        constraint deliver_to_of_session_must_be_an_http_url
            check (deliver_to ~ '^https?://[^/\s]+\S*$' and length(deliver_to) <= 2048),
    active_at timestamptz
        constraint active_at_must_be_a_finite_time_in_the_years_1_to_9999
            check (active_at >= '0001-01-02 00:00:00+00' and active_at < '9999-12-31 00:00:00+00'),
    run_id bigint,
    holder text
        constraint holder_must_have_1_to_255_characters check (length(holder) between 1 and 255),
    held_since timestamptz,
    held_until timestamptz,
    line_until timestamptz,
    interrupted_by text,
    wanted_by text,
    has_waiting boolean not null default false,
    constraint session_is_held_by_a_run_or_until_a_time
        check (holder is null and run_id is null or run_id is not null or held_until is not null)
) with (fillfactor = 80);
comment on table pgrecall.sessions is
    'Conversations: the unit that an agent works in. At most one run has a session at a time.';
comment on column pgrecall.sessions.user_id is
    'The owner: list_recalls(user_id => …) shows the recalls of the sessions that carry this value.';
comment on column pgrecall.sessions.metadata is 'For the host; pgrecall does not read it.';
comment on column pgrecall.sessions.time_zone is
    'IANA name: the zone in which the agent of this session is told times, and in which it schedules by cron. Null: UTC.';
comment on column pgrecall.sessions.max_runs_per_day is
    'Runs that this session may have within 24 hours; further ones are deferred. Null: settings.max_runs_per_day.';
comment on column pgrecall.sessions.deliver_to is
    'URL that the replies of runs in this session are posted to, unless the recall has one of its own. Null: nowhere.';
comment on column pgrecall.sessions.active_at is
    'When somebody last spoke with the agent, for recalls with idle_for_seconds: the end of the last hold by a chat, a message added with role user, touch_session().';
comment on column pgrecall.sessions.run_id is
    'The run that has the session to itself now; null: no run has. Set by claim(), cleared by finish() or when the run''s worker is found dead.';
comment on column pgrecall.sessions.holder is
    'Who has the session to itself: the name that a chat gave to hold_session(), or the worker of run_id. Null: nobody.';
comment on column pgrecall.sessions.held_since is 'Since when holder has it.';
comment on column pgrecall.sessions.held_until is
    'When the hold ends by itself unless it is renewed. Null for a run: its worker''s lease decides; set if its recall was deleted, so that nobody is left to end it.';
comment on column pgrecall.sessions.line_until is
    'Chats wait in line (session_waiters), and until this time no run may take the session before them.';
comment on column pgrecall.sessions.interrupted_by is 'The chat that wants run_id to stop; null: none.';
comment on column pgrecall.sessions.wanted_by is
    'A recall that was put off for its max_defer_seconds and waits for this session: the hold of a chat is not renewed any more, and for a moment after it the recall comes before any other chat.';
comment on column pgrecall.sessions.has_waiting is
    'A recall was deferred because the session was taken; whoever frees the session makes it due again.';
create index sessions_of_user on pgrecall.sessions (user_id) where user_id is not null;
comment on index pgrecall.sessions_of_user is
    'Serves list_recalls() by user, and counting the recalls that a user''s agents have made.';
comment on constraint session_is_held_by_a_run_or_until_a_time on pgrecall.sessions is
    'A chat''s hold ends by itself: a chat server that died cannot keep a session.';

-- Of held_until and not of holder: a run leaves that one null, so claims and outcomes stay updates in place.
create index sessions_held_until on pgrecall.sessions (held_until) where held_until is not null;
comment on index pgrecall.sessions_held_until is 'Serves get_holds(): the sessions that chats hold.';

create table pgrecall.host_sessions (
    is_only_row boolean primary key default true
        constraint host_sessions_has_one_row check (is_only_row),
    host_table regclass not null,
    id_column text not null,
    user_id_column text,
    time_zone_column text
);
comment on table pgrecall.host_sessions is
    'The table whose rows the sessions are; empty: sessions has its own. Written by use_sessions_table() and use_own_sessions() only.';
comment on column pgrecall.host_sessions.is_only_row is 'Keeps the table at one row.';
comment on column pgrecall.host_sessions.host_table is 'The host''s table.';
comment on column pgrecall.host_sessions.id_column is 'Its column that sessions.id is the text of.';
comment on column pgrecall.host_sessions.user_id_column is
    'Its column that sessions.user_id follows. Null: none, sessions.user_id is free.';
comment on column pgrecall.host_sessions.time_zone_column is
    'Its column that sessions.time_zone follows. Null: none, sessions.time_zone is free.';

create table pgrecall.session_waiters (
    id bigint primary key generated always as identity,
    session_id text not null
        constraint session_of_waiter_must_exist references pgrecall.sessions (id) on delete cascade,
    holder text not null,
    since timestamptz not null,
    until timestamptz not null,
    lease interval not null,
    constraint waits_once_for_a_session unique (session_id, holder)
);
comment on table pgrecall.session_waiters is
    'Chats that wait for a session, first come, first served: whoever frees it hands it to the first of them.';
comment on column pgrecall.session_waiters.id is 'Told on channel pgrecall_holds, as ''granted <id>'', when the session becomes its own.';
comment on column pgrecall.session_waiters.until is 'Forgotten after this time, unless it asks again.';
comment on column pgrecall.session_waiters.lease is 'How long its hold will be good.';

create type pgrecall.session_hold as (
    session_id text,
    held boolean,
    kind text,
    holder text,
    since timestamptz,
    until timestamptz,
    run_id bigint,
    recall_id text,
    waiter_id bigint,
    place integer,
    now_at timestamptz
);
comment on type pgrecall.session_hold is
    'Who has a session. held: the caller of hold_session() has it. kind: chat, run, or line (it is free, but another chat, or the recall recall_id, waits for it and comes first). holder, since, until: who, since when, and when it ends by itself unless renewed (null: a run, for which its worker''s lease decides). run_id, recall_id: the run and its recall. waiter_id: told as ''granted <waiter_id>'' on channel pgrecall_holds when the session is the caller''s; place: its place in the line. now_at: the server''s time.';

create table pgrecall.session_messages (
    session_id text not null
        constraint session_messages_session_exists references pgrecall.sessions (id) on delete cascade,
    position bigint generated always as identity,
    id text not null default pgrecall.new_id()
        constraint message_id_must_have_1_to_512_characters check (length(id) between 1 and 512),
    role text not null
        constraint message_role_must_not_be_empty check (role <> ''),
    content text not null,
    model_text text,
    in_history boolean not null default true,
    in_context boolean not null default true,
    metadata jsonb not null default '{}',
    created_at timestamptz not null default now()
        constraint created_at_of_message_must_be_a_finite_time_in_the_years_1_to_9999
            check (created_at >= '0001-01-02 00:00:00+00' and created_at < '9999-12-31 00:00:00+00'),
    primary key (session_id, position),
    constraint message_id_is_unique_in_its_session unique (session_id, id)
);
comment on table pgrecall.session_messages is
    'The default history store: what was said in a session (in_history) and what its model is given (in_context), in the order of position. Rows are only ever added by pgrecall, so concurrent writers lose nothing.';
comment on column pgrecall.session_messages.position is 'Order within the session. Numbers are not consecutive.';
comment on column pgrecall.session_messages.id is
    'The message''s name within its session. A writer that tries again with the same id adds nothing: the message of an occurrence is recall:<recall id>:<nominal time>.';
comment on column pgrecall.session_messages.role is 'system, user, assistant, tool, or what the host''s framework calls it.';
comment on column pgrecall.session_messages.model_text is
    'What the model is given in place of content; null: content.';
comment on column pgrecall.session_messages.in_history is 'Shown to people as part of the conversation.';
comment on column pgrecall.session_messages.in_context is
    'Given to the model. A host that summarises sets it to false on old messages and adds a summary with in_history = false.';
comment on column pgrecall.session_messages.metadata is
    'Free for the host; pgrecall writes {"recall_id", "run_id"} on the messages it adds.';

create table pgrecall.session_recalls (
    id text primary key default pgrecall.new_id()
        constraint recall_id_must_have_1_to_255_characters check (length(id) between 1 and 255),
    session_id text not null
        constraint session_of_recall_must_exist references pgrecall.sessions (id) on delete cascade,
    call_type text not null default 'once'
        constraint call_type_must_be_once_recurring_or_immediate check (call_type in ('once', 'recurring', 'immediate')),
    trigger_at timestamptz not null default now()
        constraint trigger_at_must_be_a_finite_time_in_the_years_1_to_9999
            check (trigger_at >= '0001-01-02 00:00:00+00' and trigger_at < '9999-12-31 00:00:00+00'),
    interval_seconds integer
        constraint interval_seconds_must_be_greater_than_zero check (interval_seconds > 0),
    internal_comment text,
    additional_context_message text not null
        constraint additional_context_message_must_not_be_empty
            check (btrim(additional_context_message, E' \t\r\n') <> '')
        constraint additional_context_message_must_be_at_most_65536_characters
            check (length(additional_context_message) <= 65536),
    status text not null default 'pending'
        constraint status_must_be_pending_running_fired_failed_or_cancelled
            check (status in ('pending', 'running', 'fired', 'failed', 'cancelled')),
    created_at timestamptz not null default now()
        constraint created_at_must_be_a_finite_time_in_the_years_1_to_9999
            check (created_at >= '0001-01-02 00:00:00+00' and created_at < '9999-12-31 00:00:00+00'),
    updated_at timestamptz not null default now()
        constraint updated_at_must_be_a_finite_time_in_the_years_1_to_9999
            check (updated_at >= '0001-01-02 00:00:00+00' and updated_at < '9999-12-31 00:00:00+00'),

    cron text
        constraint cron_must_be_a_valid_expression check (cron is null or pgrecall.cron_error(cron) is null),
    time_zone text
        constraint time_zone_must_be_an_iana_name
            check (time_zone is null or pgrecall.time_zone_error(time_zone) is null),
    end_at timestamptz
        constraint end_at_must_be_a_finite_time_in_the_years_1_to_9999
            check (end_at >= '0001-01-02 00:00:00+00' and end_at < '9999-12-31 00:00:00+00'),
    max_attempts integer not null default 3
        constraint max_attempts_must_be_greater_than_zero check (max_attempts > 0),
    timeout_seconds integer
        constraint timeout_seconds_must_be_greater_than_zero check (timeout_seconds > 0),
    idle_for_seconds integer
        constraint idle_for_seconds_must_be_greater_than_zero check (idle_for_seconds > 0),
    max_defer_seconds integer not null default 86400
        constraint max_defer_seconds_must_be_greater_than_zero check (max_defer_seconds > 0),
    on_max_defer text not null default 'run'
        constraint on_max_defer_must_be_run_or_skip check (on_max_defer in ('run', 'skip')),
    on_interrupt text not null default 'retry'
        constraint on_interrupt_must_be_retry_or_skip check (on_interrupt in ('retry', 'skip')),
    pause_after_failures integer
        constraint pause_after_failures_must_be_greater_than_zero check (pause_after_failures > 0),
    deliver_to text
        constraint deliver_to_must_be_an_http_url
            check (deliver_to ~ '^https?://[^/\s]+\S*$' and length(deliver_to) <= 2048),
    created_by text not null default 'host'
        constraint created_by_must_be_host_or_agent check (created_by in ('host', 'agent')),
    created_by_run_id bigint,
    chain_depth integer not null default 0
        constraint chain_depth_must_be_0_to_1000000 check (chain_depth between 0 and 1000000),
    idempotency_key text
        constraint idempotency_key_must_have_1_to_255_characters check (length(idempotency_key) between 1 and 255),
    metadata jsonb not null default '{}',

    nominal_at timestamptz
        constraint nominal_at_must_be_a_finite_time_in_the_years_1_to_9999
            check (nominal_at >= '0001-01-02 00:00:00+00' and nominal_at < '9999-12-31 00:00:00+00'),
    attempt integer not null default 0
        constraint attempt_must_be_0_to_1000000 check (attempt between 0 and 1000000),
    not_before timestamptz
        constraint not_before_must_be_a_finite_time_in_the_years_1_to_9999
            check (not_before >= '0001-01-02 00:00:00+00' and not_before < '9999-12-31 00:00:00+00'),
    deferrals integer not null default 0
        constraint deferrals_must_be_0_to_1000000000 check (deferrals between 0 and 1000000000),
    defer_reason text,
    deferred_since timestamptz
        constraint deferred_since_must_be_a_finite_time_in_the_years_1_to_9999
            check (deferred_since >= '0001-01-02 00:00:00+00' and deferred_since < '9999-12-31 00:00:00+00'),
    failures integer not null default 0
        constraint failures_must_be_0_to_1000000000 check (failures between 0 and 1000000000),
    paused_at timestamptz
        constraint paused_at_must_be_a_finite_time_in_the_years_1_to_9999
            check (paused_at >= '0001-01-02 00:00:00+00' and paused_at < '9999-12-31 00:00:00+00'),
    paused_until timestamptz
        constraint paused_until_must_be_a_finite_time_in_the_years_1_to_9999
            check (paused_until >= '0001-01-02 00:00:00+00' and paused_until < '9999-12-31 00:00:00+00'),
    pause_reason text,
    run_id bigint,
    worker_id text,
    claimed_at timestamptz
        constraint claimed_at_must_be_a_finite_time_in_the_years_1_to_9999
            check (claimed_at >= '0001-01-02 00:00:00+00' and claimed_at < '9999-12-31 00:00:00+00'),
    last_error text,
    due_at timestamptz generated always as (
        case
            when run_id is not null then null
            when paused_at is not null and paused_until is null then null
            when status = 'pending' then greatest(trigger_at, not_before, paused_until)
            when status = 'running' and not_before is not null then greatest(trigger_at, not_before, paused_until)
        end
    ) stored,

    constraint recurring_recall_needs_interval_seconds_or_cron
        check (call_type <> 'recurring' or interval_seconds is not null or cron is not null),
    constraint interval_seconds_and_cron_exclude_each_other
        check (interval_seconds is null or cron is null),
    constraint cron_needs_a_time_zone
        check (cron is null or time_zone is not null),
    constraint paused_until_needs_paused_at
        check (paused_until is null or paused_at is not null),
    constraint end_at_must_not_be_before_trigger_at
        check (end_at >= trigger_at),
    constraint run_id_is_set_by_claim_with_worker_id_and_times
        check (run_id is null or (worker_id is not null and nominal_at is not null and claimed_at is not null))
) with (fillfactor = 80);
comment on table pgrecall.session_recalls is
    'Recalls: at trigger_at, put additional_context_message into the session and run its agent. A plain INSERT of session_id, trigger_at and additional_context_message is a complete request; UPDATE and DELETE work at any time.';
comment on column pgrecall.session_recalls.call_type is
    'once; recurring (again and again, by interval_seconds or cron); immediate (a once that is wanted now).';
comment on column pgrecall.session_recalls.trigger_at is
    'The nominal time of the next occurrence. Changing it reschedules, also while the recall runs. Retries and deferrals do not change it.';
comment on column pgrecall.session_recalls.interval_seconds is
    'Seconds between the occurrences of a recurring recall, counted on its own grid: a late run does not move the next one.';
comment on column pgrecall.session_recalls.internal_comment is 'For people; never shown to the model.';
comment on column pgrecall.session_recalls.additional_context_message is 'What the agent is told, 1 to 65,536 characters.';
comment on column pgrecall.session_recalls.status is
    'pending: waits for its time. running: started and not ended (without a run_id but with not_before: between two attempts; without either: set by another service that runs it itself, and left alone). fired: ended well. failed: given up, see last_error. cancelled: by request; a run that is under way is told to stop.';
comment on column pgrecall.session_recalls.updated_at is 'Set on every UPDATE, whoever makes it.';
comment on column pgrecall.session_recalls.cron is
    'Five-field cron expression for a recurring recall, read in time_zone; see cron_next().';
comment on column pgrecall.session_recalls.time_zone is 'IANA name, for example Europe/Paris; required with cron.';
comment on column pgrecall.session_recalls.end_at is 'No occurrence of a recurring recall after this time; null: no end.';
comment on column pgrecall.session_recalls.max_attempts is
    'How many runs an occurrence may take, counting those whose worker died.';
comment on column pgrecall.session_recalls.timeout_seconds is
    'Wall-clock limit of one run in seconds; null: the worker''s own, else settings.timeout_seconds.';
comment on column pgrecall.session_recalls.idle_for_seconds is
    'No run before nobody has spoken with the agent for so long, see sessions.active_at; null: at once.';
comment on column pgrecall.session_recalls.max_defer_seconds is
    'The longest that an occurrence is put off, in seconds from its first deferral; then on_max_defer decides. A limit of runs a day is kept all the same.';
comment on column pgrecall.session_recalls.on_max_defer is
    'run: idle_for_seconds and chats in line no longer count, and a chat''s hold is not renewed any more, so that it ends within its lease. skip: the occurrence is left out.';
comment on column pgrecall.session_recalls.on_interrupt is
    'What becomes of an occurrence whose run a chat has interrupted. retry: it runs again when the chat has ended, and the attempt is not counted. skip: it is left out.';
comment on column pgrecall.session_recalls.pause_after_failures is
    'A recurring recall is paused after so many failed occurrences in a row; null: it never is.';
comment on column pgrecall.session_recalls.deliver_to is
    'URL that the reply is posted to, see deliveries. Null: that of the session, if it has one.';
comment on column pgrecall.session_recalls.created_by is 'host, or agent: made by the agent of the session with a tool.';
comment on column pgrecall.session_recalls.created_by_run_id is 'The run in which the agent made it; null: it was not made in a run.';
comment on column pgrecall.session_recalls.chain_depth is
    'How many recalls before it were each made by the run of the one before. 0: somebody was connected, or the host made it.';
comment on column pgrecall.session_recalls.idempotency_key is
    'Caller''s name for the request, unique within the session: schedule_recall() with a known key returns the recall that has it.';
comment on column pgrecall.session_recalls.metadata is 'For the host; the run sees it in current_recall().';
comment on column pgrecall.session_recalls.nominal_at is 'The nominal time of the occurrence that runs now or ran last.';
comment on column pgrecall.session_recalls.attempt is
    'Runs started for the present occurrence; 0 before the first and after it has ended.';
comment on column pgrecall.session_recalls.not_before is
    'No run before this time although trigger_at has come: a retry''s backoff or a deferral. Null: trigger_at decides.';
comment on column pgrecall.session_recalls.deferrals is 'How often the present occurrence was put off, see defer_reason.';
comment on column pgrecall.session_recalls.defer_reason is
    'Why the present occurrence was put off the last time; null: it was not, or it waits for the backoff of a retry.';
comment on column pgrecall.session_recalls.deferred_since is
    'When the present occurrence was put off first; null: it was not.';
comment on column pgrecall.session_recalls.failures is 'How many occurrences in a row have failed up to now.';
comment on column pgrecall.session_recalls.paused_at is
    'Since when the recall is paused; null: it is not. A paused recall is never due; its status stays what it was.';
comment on column pgrecall.session_recalls.paused_until is 'When the pause ends by itself; null: at resume_recall().';
comment on column pgrecall.session_recalls.pause_reason is 'Why it was paused, for people.';
comment on column pgrecall.session_recalls.run_id is
    'The run that has this recall now, and its fencing token: finish() with any other number changes nothing. Null: nobody has it. A cancelled recall keeps it until its run has stopped.';
comment on column pgrecall.session_recalls.worker_id is 'The worker that has run_id, see workers; its lease covers the claim.';
comment on column pgrecall.session_recalls.claimed_at is 'When run_id began.';
comment on column pgrecall.session_recalls.last_error is 'The error of the latest run that failed; null after a success.';
comment on column pgrecall.session_recalls.due_at is
    'When a worker must look at this recall: null while it is ended or in a run. This column alone decides who is eligible: for the trigger, the claim and every worker''s timer.';

create index recalls_due on pgrecall.session_recalls (due_at) where due_at is not null;
comment on index pgrecall.recalls_due is 'Serves claim() and the earliest due time: eligible rows only.';
create unique index one_pending_recall_per_session on pgrecall.session_recalls (session_id)
    where status = 'pending' or (status = 'running' and call_type = 'recurring');
comment on index pgrecall.one_pending_recall_per_session is
    'One pending recall for a session. A running recurring one will come back, so it counts; a running one-shot does not, so that an agent can schedule its next recall from inside its run.';
create unique index one_run_per_recall_and_token on pgrecall.session_recalls (run_id) where run_id is not null;
comment on index pgrecall.one_run_per_recall_and_token is 'Serves looking up what runs now; small, since it holds running rows only.';
create index recalls_of_session on pgrecall.session_recalls (session_id, trigger_at);
comment on index pgrecall.recalls_of_session is 'Serves list_recalls() by session and the cascade from sessions.';
create unique index idempotency_key_is_unique_in_its_session on pgrecall.session_recalls (session_id, idempotency_key)
    where idempotency_key is not null;
comment on index pgrecall.idempotency_key_is_unique_in_its_session is 'Makes a repeated request find the recall of the first.';

create table pgrecall.recall_runs (
    id bigint primary key default nextval('pgrecall.run_ids'),
    recall_id text not null,
    session_id text not null
        constraint session_of_run_must_exist references pgrecall.sessions (id) on delete cascade,
    nominal_at timestamptz not null
        constraint nominal_at_of_run_must_be_a_finite_time_in_the_years_1_to_9999
            check (nominal_at >= '0001-01-02 00:00:00+00' and nominal_at < '9999-12-31 00:00:00+00'),
    started_at timestamptz
        constraint started_at_must_be_a_finite_time_in_the_years_1_to_9999
            check (started_at >= '0001-01-02 00:00:00+00' and started_at < '9999-12-31 00:00:00+00'),
    finished_at timestamptz not null
        constraint finished_at_must_be_a_finite_time_in_the_years_1_to_9999
            check (finished_at >= '0001-01-02 00:00:00+00' and finished_at < '9999-12-31 00:00:00+00'),
    lateness interval generated always as (started_at - nominal_at) stored,
    worker_id text,
    attempt integer not null default 0,
    outcome text not null
        constraint outcome_is_known check (
            outcome in ('success', 'silent', 'error', 'timeout', 'interrupted', 'lost', 'skipped', 'missed')
        ),
    reason text,
    reply text,
    error text,
    usage jsonb,
    deferrals integer not null default 0,
    defer_reason text,
    occurrences integer not null default 1
        constraint occurrences_is_positive check (occurrences > 0),
    refused_at timestamptz
        constraint refused_at_must_be_a_finite_time_in_the_years_1_to_9999
            check (refused_at >= '0001-01-02 00:00:00+00' and refused_at < '9999-12-31 00:00:00+00')
);
comment on table pgrecall.recall_runs is
    'The ledger: one row for each run that ended, and one for each occurrence that did not run, with its reason. A run under way is a row of session_recalls with a run_id. Kept when the recall is deleted, deleted with the session.';
comment on column pgrecall.recall_runs.id is 'The run_id of the claim.';
comment on column pgrecall.recall_runs.recall_id is 'The recall; it may have been deleted since.';
comment on column pgrecall.recall_runs.nominal_at is 'The time that the occurrence was wanted for.';
comment on column pgrecall.recall_runs.started_at is 'When the agent was reached (if it never was: when the claim was made); null: it did not run.';
comment on column pgrecall.recall_runs.lateness is 'started_at minus nominal_at; for a retry this includes the backoff.';
comment on column pgrecall.recall_runs.attempt is '1 for the first run of an occurrence; 0: it did not run.';
comment on column pgrecall.recall_runs.outcome is
    'success; silent (success with nothing to say); error; timeout; interrupted (told to stop: cancelled, deleted, by a chat, worker shut down); lost (its worker died or lost its lease); skipped (by request, put off for max_defer_seconds, or its session was gone); missed (its time passed while the occurrence before it was late or still running).';
comment on column pgrecall.recall_runs.reason is 'Why, for outcomes that need one.';
comment on column pgrecall.recall_runs.reply is 'What the agent answered; null or empty: nothing.';
comment on column pgrecall.recall_runs.usage is 'Tokens, cost, turns: what the agent reported.';
comment on column pgrecall.recall_runs.deferrals is 'How often the occurrence had been put off until then.';
comment on column pgrecall.recall_runs.defer_reason is
    'Why it was put off the last time; null: it was not, or has waited for the backoff of a retry since.';
comment on column pgrecall.recall_runs.occurrences is
    'How many nominal times this row stands for: more than 1 only for a row that sums up the tail of a long outage.';
comment on column pgrecall.recall_runs.refused_at is
    'When the worker of a lost run came back with an outcome and was refused; null: it never did.';
create index runs_of_recall on pgrecall.recall_runs (recall_id, id);
comment on index pgrecall.runs_of_recall is 'Serves the history of one recall.';
create index runs_of_session on pgrecall.recall_runs (session_id, id);
comment on index pgrecall.runs_of_session is 'Serves the history of one session and the cascade from sessions.';

create table pgrecall.deliveries (
    id bigint primary key,
    recall_id text not null,
    session_id text not null
        constraint session_of_delivery_must_exist references pgrecall.sessions (id) on delete cascade,
    url text not null,
    payload jsonb not null,
    status text not null default 'pending'
        constraint status_of_delivery_must_be_pending_delivered_or_failed
            check (status in ('pending', 'delivered', 'failed')),
    attempt integer not null default 0,
    next_at timestamptz,
    created_at timestamptz not null,
    ended_at timestamptz,
    response_status integer,
    last_error text,
    constraint pending_delivery_has_a_next_time check ((status = 'pending') = (next_at is not null))
);
comment on table pgrecall.deliveries is
    'The outbox: replies on their way to a URL. A row is written in the transaction that records the run, so that no reply is forgotten; that the agent ran and that somebody was reached are two facts.';
comment on column pgrecall.deliveries.id is 'The run whose reply it is.';
comment on column pgrecall.deliveries.recall_id is 'The recall; it may have been deleted since.';
comment on column pgrecall.deliveries.session_id is 'The session that it was said in.';
comment on column pgrecall.deliveries.url is 'Where to. An operator may change it before retry_delivery().';
comment on column pgrecall.deliveries.payload is 'The body that is posted.';
comment on column pgrecall.deliveries.status is
    'pending: will be tried at next_at. delivered: answered with 2xx. failed: given up, see last_error.';
comment on column pgrecall.deliveries.attempt is 'How often it was tried.';
comment on column pgrecall.deliveries.next_at is
    'When it is tried next. While a worker tries it: when another one may, should this one have died.';
comment on column pgrecall.deliveries.created_at is 'When the run ended.';
comment on column pgrecall.deliveries.ended_at is 'When it was delivered or given up.';
comment on column pgrecall.deliveries.response_status is 'The HTTP status of the last answer; null: there was none.';
comment on column pgrecall.deliveries.last_error is 'Why the last attempt failed; null: it did not.';
create index deliveries_due on pgrecall.deliveries (next_at) where next_at is not null;
comment on index pgrecall.deliveries_due is 'Serves claim_deliveries() and the time of the next one.';
create index deliveries_of_session on pgrecall.deliveries (session_id);
comment on index pgrecall.deliveries_of_session is 'Serves the cascade from sessions.';

create table pgrecall.run_reports (
    recall_id text not null,
    nominal_at timestamptz not null,
    run_id bigint not null,
    reply text,
    silent boolean not null,
    error text,
    usage jsonb,
    messages jsonb,
    created_at timestamptz not null,
    primary key (recall_id, nominal_at)
);
comment on table pgrecall.run_reports is
    'What was reported with report_run() about occurrences whose agent handed its work to somebody else, until the waiting run ends so. Few rows, and short-lived.';
comment on column pgrecall.run_reports.recall_id is 'The recall, and nominal_at which of its occurrences.';
comment on column pgrecall.run_reports.nominal_at is 'The time that the occurrence was wanted for.';
comment on column pgrecall.run_reports.run_id is 'The run that the report was made about; a later try of the occurrence takes it as well.';
comment on column pgrecall.run_reports.reply is 'What the agent answers; null or empty: nothing.';
comment on column pgrecall.run_reports.silent is 'There is nothing to say, and that is a success.';
comment on column pgrecall.run_reports.error is 'Why the run has failed; null: it has not.';
comment on column pgrecall.run_reports.usage is 'Tokens, cost, turns: what the agent used.';
comment on column pgrecall.run_reports.messages is 'What the session gets in place of the reply; null: the reply.';
comment on column pgrecall.run_reports.created_at is 'When it was reported.';

create table pgrecall.workers (
    id text primary key
        constraint worker_id_must_have_1_to_255_characters check (length(id) between 1 and 255),
    started_at timestamptz not null default now(),
    seen_at timestamptz not null default now(),
    lease_until timestamptz,
    incarnation uuid,
    lifelines bigint[],
    reconnect_grace interval not null default '0.5 seconds'
        constraint reconnect_grace_must_be_0_to_60_seconds
            check (reconnect_grace between interval '0' and interval '60 seconds'),
    died_at timestamptz,
    concurrency integer not null,
    host text,
    pid integer,
    version text
) with (fillfactor = 50);
comment on table pgrecall.workers is
    'Worker processes. A worker''s lease covers all its claims: one row to renew however many runs. Rows of workers that ended without saying so disappear by themselves.';
comment on column pgrecall.workers.seen_at is 'When the worker last spoke; an idle one speaks once a minute.';
comment on column pgrecall.workers.lease_until is
    'Until when its claims are its own. Null: it has none. Passed: the next worker to look gives its claims back. It begins only in a transaction that claims a due recall and only ever moves later, so it never becomes the earliest time of all unannounced.';
comment on column pgrecall.workers.incarnation is
    'The life of the server (table server_incarnation) in which this worker took its lifelines. Null, or another life than the present one: it has none, and only its lease tells whether it lives.';
comment on column pgrecall.workers.lifelines is
    'The keys of two session-level advisory locks, on the connection that renews its lease and on the one that listens. They end with the connections, so when both are free the worker is dead, or stops its runs within reconnect_grace.';
comment on column pgrecall.workers.reconnect_grace is
    'For how long both lifelines may be gone before the worker counts as dead. It has stopped its runs by then itself if it lives.';
comment on column pgrecall.workers.died_at is 'When it was found dead by its lifelines; null: it was not.';
comment on column pgrecall.workers.concurrency is 'Its slots: how many runs it does at once.';

-- Unlogged, so that it is empty after a crash, and on a standby that was promoted: all locks are gone then, and a
-- lifeline that is free means nothing until its worker has taken it again.
create unlogged table pgrecall.server_incarnation (
    postmaster_started_at timestamptz primary key,
    id uuid not null default gen_random_uuid()
);
comment on table pgrecall.server_incarnation is
    'The present life of the server, one row: locks taken in an earlier one are gone, which says nothing about who held them. A crash empties the table, a restart is told by the time.';
comment on column pgrecall.server_incarnation.postmaster_started_at is 'pg_postmaster_start_time() of that life.';
comment on column pgrecall.server_incarnation.id is 'Its name in workers.incarnation.';

-- Deferred to the commit: the wake-up lock is then held for the commit only, however long the transaction was.
create constraint trigger announce_insert
after insert on pgrecall.session_recalls
deferrable initially deferred
for each row
execute function pgrecall._announce_due();
comment on trigger announce_insert on pgrecall.session_recalls is
    'Wakes the workers if the new recall is due before they would wake by themselves.';

create constraint trigger announce_update
after update on pgrecall.session_recalls
deferrable initially deferred
for each row
execute function pgrecall._announce_due();
comment on trigger announce_update on pgrecall.session_recalls is
    'Wakes the workers if the recall has become due, or due earlier than before.';

create trigger recall_update
before update on pgrecall.session_recalls
for each row
execute function pgrecall._before_recall_update();
comment on trigger recall_update on pgrecall.session_recalls is
    'Keeps updated_at, starts a new occurrence when trigger_at changes, tells a run to stop when its recall is cancelled.';

create constraint trigger message_of_user
after insert on pgrecall.session_messages
deferrable initially deferred
for each row
-- What a run has said has its number, whatever the role.
when (new.role = 'user' and not new.metadata ? 'run_id')
execute function pgrecall._after_user_message();
comment on trigger message_of_user on pgrecall.session_messages is
    'Somebody has spoken: recalls with idle_for_seconds count from here.';

create trigger settings_update
after update on pgrecall.settings
for each row
when (
    old.paused_at is distinct from new.paused_at
    or old.paused_until is distinct from new.paused_until
    or old.max_runs_per_day is distinct from new.max_runs_per_day
)
execute function pgrecall._after_settings_update();
comment on trigger settings_update on pgrecall.settings is 'Makes every worker look when a pause or a limit changes.';

create trigger session_limit_update
after update of max_runs_per_day on pgrecall.sessions
for each row
when (old.max_runs_per_day is distinct from new.max_runs_per_day)
execute function pgrecall._after_session_limit_update();
comment on trigger session_limit_update on pgrecall.sessions is
    'Makes the workers look again at what the session''s limit has put off.';

create trigger settings_stay
before delete or truncate on pgrecall.settings
for each statement
execute function pgrecall._before_settings_removal();
comment on trigger settings_stay on pgrecall.settings is 'Keeps the row: nothing runs without it.';

create trigger recall_delete
after delete on pgrecall.session_recalls
for each row
when (old.run_id is not null or old.status in ('pending', 'running'))
execute function pgrecall._after_recall_delete();
comment on trigger recall_delete on pgrecall.session_recalls is 'Records the occurrence of a recall deleted before it ended; stops its run.';

create trigger recalls_truncate
before truncate on pgrecall.session_recalls
for each statement
execute function pgrecall._before_recalls_truncate();
comment on trigger recalls_truncate on pgrecall.session_recalls is 'Stops all runs when the table is truncated, and records them.';

-- Also rows that come by logical replication, or from a session with session_replication_role = replica, are due.
alter table pgrecall.session_recalls
    enable always trigger announce_insert,
    enable always trigger announce_update,
    enable always trigger recall_update,
    enable always trigger recall_delete,
    enable always trigger recalls_truncate;
