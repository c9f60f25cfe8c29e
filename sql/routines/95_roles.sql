-- Who may do what: group roles without a login, their rights, and row-level security. docs/roles.md is for people.
--
-- Runs last on every install and upgrade. Roles belong to the whole server, so they are made only by whoever may, and
-- everything here is skipped for roles that are not there: `pgrecall roles --print` prints what makes them by hand.
--
-- Nothing is allowed to PUBLIC, and only what stands in the lists of grant_roles() to anybody but the owner. Functions
-- that workers, chats and operators call are SECURITY DEFINER: to call them is their right, they need none on tables.
-- What producers and users call runs with their own rights, so that grants and policies decide, as with plain SQL.

do $$
declare
    v_role text;
    v_missing text;
begin
    -- Installs into several databases of one server may meet here: the second waits for the first, and then finds the
    -- role made. The same order everywhere.
    foreach v_role in array array[
        'pgrecall_chat', 'pgrecall_observer', 'pgrecall_operator', 'pgrecall_producer', 'pgrecall_user', 'pgrecall_worker'
    ] loop
        if pg_catalog.to_regrole(v_role) is null
            and exists (
                select
                from pg_catalog.pg_roles as me
                where me.rolname = current_user
                    and (me.rolsuper or me.rolcreaterole)
            )
        then
            begin
                execute pg_catalog.format('create role %I nologin', v_role);
            exception
                when duplicate_object or unique_violation or insufficient_privilege then
                    null;
            end;
        end if;
    end loop;
    select pg_catalog.string_agg(wanted.name, ', ')
    into v_missing
    from pg_catalog.unnest(array[
        'pgrecall_chat', 'pgrecall_observer', 'pgrecall_operator', 'pgrecall_producer', 'pgrecall_user', 'pgrecall_worker'
    ]) as wanted (name)
    where not exists (select from pg_catalog.pg_roles as known where known.rolname = wanted.name);
    if v_missing is not null then
        perform pg_catalog.set_config('client_min_messages', 'notice', true);
        raise notice 'pgrecall: the role % may not make roles, so there is no %', current_user, v_missing
            using hint = 'pgrecall works without; only its owner can use it then. To make them: pgrecall roles --print';
        perform pg_catalog.set_config('client_min_messages', 'warning', true);
    end if;
end $$;

create or replace function pgrecall.grant_roles()
returns setof text
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_roles text[];
    v_statement text;
    -- What a request is made of. With these a plain INSERT, an ORM and schedule_recall() work.
    v_request constant text :=
        'id, session_id, call_type, trigger_at, interval_seconds, internal_comment, additional_context_message, status, '
        'created_at, updated_at, cron, time_zone, end_at, max_attempts, timeout_seconds, idle_for_seconds, '
        'max_defer_seconds, on_max_defer, on_interrupt, pause_after_failures, deliver_to, idempotency_key, metadata';
    -- What of it can change. Not whose it is: neither session_id nor who hears the reply.
    v_change constant text :=
        'call_type, trigger_at, interval_seconds, internal_comment, additional_context_message, status, updated_at, '
        'cron, time_zone, end_at, max_attempts, timeout_seconds, idle_for_seconds, max_defer_seconds, on_max_defer, '
        'on_interrupt, pause_after_failures, metadata';
    v_message constant text :=
        'session_id, id, role, content, model_text, in_history, in_context, metadata, created_at';
    v_own_sessions constant text :=
        'session_id = any (array('
        'select mine.id from pgrecall.sessions as mine where mine.user_id = (select pgrecall.current_user_id())))';
    v_uuid constant text := '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$';
begin
    -- As an installation: two that write the same rights would fail.
    perform pg_advisory_xact_lock(8099568234633718893);
    select coalesce(array_agg(known.rolname::text order by known.rolname), '{}')
    into v_roles
    from pg_roles as known
    where known.rolname in (
        'pgrecall_chat', 'pgrecall_observer', 'pgrecall_operator', 'pgrecall_producer', 'pgrecall_user', 'pgrecall_worker'
    );
    for v_statement in
        select format(place.statement, array_to_string('public'::text || v_roles, ', '))
        from (values
            ('revoke all on schema pgrecall from %s'),
            ('revoke all on all routines in schema pgrecall from %s'),
            ('revoke all on all tables in schema pgrecall from %s'),
            ('revoke all on all sequences in schema pgrecall from %s')
        ) as place (statement)
    loop
        execute v_statement;
    end loop;
    -- REVOKE on a table takes its columns' rights along.

    -- 1. Routines: one line each. One that is not here is its owner's.
    for v_statement in
        select format('grant execute on routine %s to %s', routine.oid::regprocedure, string_agg(role.name, ', '))
        from (values
            -- For everybody: what rules, defaults and policies compute with, so that a grant on a table is enough for
            -- plain SQL, also to roles of the host's own. They read no table.
            ('schema_version', 'public'),
            ('get_schema', 'public'),
            ('help', 'public'),
            ('clock', 'public'),
            ('new_id', 'public'),
            ('microseconds', 'public'),
            ('current_user_id', 'public'),
            ('_is_right', 'public'),
            ('_cron_fields', 'public'),
            ('_cron_field', 'public'),
            ('_cron_next_local', 'public'),
            ('cron_error', 'public'),
            ('cron_next', 'public'),
            ('time_zone_error', 'public'),
            ('time_text', 'public'),
            ('span_text', 'public'),
            ('default_message_template', 'public'),
            ('message_template_error', 'public'),
            ('occurrence_message_id', 'public'),
            -- Recalls, with the rights of the caller.
            ('schedule_recall', 'producer operator user'),
            ('cancel_recall', 'producer operator user'),
            ('skip_next_recall', 'producer operator user'),
            ('reschedule', 'producer operator user'),
            ('mark_cancelled', 'producer operator user'),
            ('list_recalls', 'producer operator user'),
            ('get_recall', 'producer operator user'),
            ('get_pending_recalls', 'producer operator user'),
            ('get_next_trigger_at', 'producer operator observer user'),
            ('get_pending_session_ids', 'producer operator observer user'),
            ('get_runs', 'operator user'),
            ('_next_occurrence', 'producer operator user'),
            ('_missing_recall', 'producer operator user'),
            ('_missing_session', 'producer operator user'),
            ('_refuse_status', 'producer operator user'),
            ('_refuse_second_recall', 'producer operator user'),
            ('_make_way', 'producer operator user'),
            ('_skip_occurrence', 'producer operator user'),
            -- Live chats, and the tools of agents, which chats and runs have.
            ('hold_session', 'chat'),
            ('renew_hold', 'chat'),
            ('free_session', 'chat operator'),
            ('touch_session', 'chat'),
            ('get_holds', 'chat operator observer'),
            ('append_messages', 'chat worker'),
            ('agent_schedule_recall', 'chat worker'),
            ('agent_list_recalls', 'chat worker'),
            ('agent_cancel_recall', 'chat worker'),
            ('agent_skip_next_recall', 'chat worker'),
            -- Workers.
            ('register_worker', 'worker'),
            ('unregister_worker', 'worker'),
            ('claim', 'worker'),
            ('renew', 'worker'),
            ('release', 'worker'),
            ('finish', 'worker'),
            ('finish_unobstructed', 'worker'),
            ('give_up_lifelines', 'worker'),
            ('watch', 'worker'),
            ('_watch_next', 'worker'),
            ('_free_lifelines', 'worker'),
            ('_end_dead_worker', 'worker'),
            ('get_report', 'worker'),
            ('report_run', 'worker'),
            ('claim_deliveries', 'worker'),
            ('end_delivery', 'worker'),
            ('purge', 'worker operator'),
            -- Operators.
            ('mark_fired', 'worker operator'),
            ('run_now', 'operator'),
            ('retry_recall', 'operator'),
            ('stop_run', 'operator'),
            ('pause_session', 'operator'),
            ('resume_session', 'operator'),
            ('pause_user', 'operator'),
            ('resume_user', 'operator'),
            ('cancel_recalls', 'operator'),
            ('pause_recalls', 'operator'),
            ('resume_recalls', 'operator'),
            ('skip_recalls', 'operator'),
            ('reschedule_recalls', 'operator'),
            ('run_recalls_now', 'operator'),
            ('retry_recalls', 'operator'),
            ('stop_runs', 'operator'),
            ('pause_recall', 'operator'),
            ('resume_recall', 'operator'),
            ('pause_all', 'operator'),
            ('resume_all', 'operator'),
            ('retry_delivery', 'operator'),
            ('get_deliveries', 'operator'),
            ('get_audit', 'operator'),
            ('purge_history', 'operator'),
            ('history', 'operator'),
            ('upcoming', 'operator observer'),
            ('_now', 'operator observer'),
            ('_is_held', 'operator observer')
        ) as listed (name, roles)
        join pg_proc as routine on routine.proname = listed.name and routine.pronamespace = 'pgrecall'::regnamespace
        join unnest('public'::text || v_roles) as role (name)
            on replace(role.name, 'pgrecall_', '') = any (string_to_array(listed.roles, ' '))
        group by routine.oid
    loop
        execute v_statement;
    end loop;

    -- 2. Tables, views and sequences. Observers get no column that holds words of people or agents, or an address.
    --    Whoever has UPDATE or DELETE on a whole table may lock it, and nothing is claimed then. So only operators have:
    --    producers and users cancel.
    for v_statement in
        select format('grant %s to pgrecall_%s', listed.what, listed.role)
        from (values
            ('producer', 'usage on schema pgrecall'),
            ('producer', 'select on pgrecall.session_recalls'),
            ('producer', 'insert (' || v_request || ') on pgrecall.session_recalls'),
            ('producer', 'update (' || v_change || ') on pgrecall.session_recalls'),
            ('producer', 'select (id, user_id, created_at, metadata, time_zone, made_by) on pgrecall.sessions'),
            ('producer', 'insert (id, user_id, time_zone, metadata) on pgrecall.sessions'),

            ('user', 'usage on schema pgrecall'),
            ('user', 'select on pgrecall.session_recalls'),
            ('user', 'insert (' || v_request || ') on pgrecall.session_recalls'),
            ('user', 'update (' || v_change || ') on pgrecall.session_recalls'),
            ('user', 'select (id, user_id, created_at, metadata, time_zone, max_runs_per_day, active_at) on pgrecall.sessions'),
            ('user', 'select (session_id, position, id, role, content, in_history, metadata, created_at) on pgrecall.session_messages'),
            ('user', 'select on pgrecall.recall_runs'),

            ('chat', 'usage on schema pgrecall'),
            ('chat', 'select (id, user_id, created_at, metadata, time_zone, active_at) on pgrecall.sessions'),
            ('chat', 'insert (id, user_id, time_zone, metadata) on pgrecall.sessions'),
            ('chat', 'select on pgrecall.session_messages'),
            ('chat', 'insert (' || v_message || ') on pgrecall.session_messages'),

            ('worker', 'usage on schema pgrecall'),
            ('worker', 'select (id, user_id) on pgrecall.sessions'),
            ('worker', 'insert (id, user_id) on pgrecall.sessions'),
            ('worker', 'select on pgrecall.session_messages'),

            ('operator', 'usage on schema pgrecall'),
            ('operator', 'select on all tables in schema pgrecall'),
            ('operator', 'select on all sequences in schema pgrecall'),
            ('operator', 'delete on pgrecall.session_recalls, pgrecall.sessions'),
            ('operator', 'insert (' || v_request || ') on pgrecall.session_recalls'),
            ('operator', 'update (' || v_change || ', session_id, deliver_to, idempotency_key) on pgrecall.session_recalls'),
            ('operator', 'insert (id, user_id, time_zone, metadata, max_runs_per_day, deliver_to) on pgrecall.sessions'),
            ('operator', 'update (user_id, time_zone, metadata, max_runs_per_day, deliver_to) on pgrecall.sessions'),
            ('operator', 'update on pgrecall.settings'),
            ('operator', 'update (url) on pgrecall.deliveries'),

            ('observer', 'usage on schema pgrecall'),
            ('observer', 'select on all sequences in schema pgrecall'),
            ('observer', 'select on pgrecall.migrations, pgrecall.settings, pgrecall.pauses, pgrecall.workers, pgrecall.purges'),
            ('observer', 'select on pgrecall.server_incarnation, pgrecall.host_sessions, pgrecall.session_waiters'),
            ('observer', 'select on pgrecall.overview, pgrecall.due_recalls, pgrecall.running_recalls, pgrecall.next_recalls'),
            ('observer', 'select on pgrecall.failed_recalls, pgrecall.left_out_occurrences, pgrecall.late_runs'),
            ('observer', 'select on pgrecall.session_states, pgrecall.user_states, pgrecall.worker_states'),
            ('observer', 'select on pgrecall.lateness_per_hour')
        ) as listed (role, what)
        where 'pgrecall_' || listed.role = any (v_roles)
        union all
        -- All columns but these: what a later release adds is seen, unless it is added here.
        select format(
            'grant select (%s) on pgrecall.%I to pgrecall_observer',
            string_agg(quote_ident(seen.attname), ', ' order by seen.attnum), hidden.relation
        )
        from (values
            ('sessions', '{metadata, deliver_to}'::text[]),
            ('session_recalls', '{additional_context_message, internal_comment, metadata, deliver_to}'),
            ('recall_runs', '{reply}'),
            ('deliveries', '{url, payload}'),
            ('run_reports', '{reply, error, usage, messages}'),
            ('audit', '{client_address, old, new}')
        ) as hidden (relation, columns)
        join pg_attribute as seen on seen.attrelid = ('pgrecall.' || hidden.relation)::regclass
        where 'pgrecall_observer' = any (v_roles)
            and (seen.attnum > 0 or seen.attname = 'xmax')
            and not seen.attisdropped
            and seen.attname <> all (hidden.columns)
        group by hidden.relation
    loop
        execute v_statement;
    end loop;

    -- 3. Row-level security. Its owner sees all, and so do the functions that run with the owner's rights. A policy is
    --    made once: to make it again would lock out the workers. One that changes gets another name, and a migration
    --    drops the old one. The restrictive ones are named for what they refuse: the error shows it.
    for v_statement in
        select format('create policy %I on pgrecall.%I %s', listed.name, listed.relation, listed.what)
        from (values
            ('public', 'sessions', 'whoever_may_makes_sessions',
                'for insert to public with check (made_by = current_user)'),
            ('public', 'sessions', 'whoever_made_it_sees_a_session',
                'for select to public using (made_by = current_user)'),
            ('pgrecall_user', 'sessions', 'users_see_their_own_sessions',
                'for select to pgrecall_user using (user_id = (select pgrecall.current_user_id()))'),
            ('pgrecall_user', 'sessions', 'users_keep_to_their_own_sessions',
                'as restrictive to pgrecall_user using (user_id = (select pgrecall.current_user_id()))'),
            ('pgrecall_worker', 'sessions', 'workers_see_all_sessions', 'for select to pgrecall_worker using (true)'),
            ('pgrecall_chat', 'sessions', 'chats_see_all_sessions', 'for select to pgrecall_chat using (true)'),
            ('pgrecall_observer', 'sessions', 'observers_see_all_sessions',
                'for select to pgrecall_observer using (true)'),
            ('pgrecall_operator', 'sessions', 'operators_change_all_sessions', 'to pgrecall_operator using (true)'),

            ('public', 'session_recalls', 'whoever_scheduled_it_changes_a_recall',
                'to public using (scheduled_by = current_user)'),
            ('pgrecall_producer', 'session_recalls', 'producers_give_no_deliver_to',
                'as restrictive for insert to pgrecall_producer with check (deliver_to is null)'),
            ('pgrecall_user', 'session_recalls', 'users_change_recalls_of_their_own_sessions',
                'to pgrecall_user using (' || v_own_sessions || ')'),
            ('pgrecall_user', 'session_recalls', 'users_keep_to_recalls_of_their_own_sessions',
                'as restrictive to pgrecall_user using (' || v_own_sessions || ')'),
            ('pgrecall_user', 'session_recalls', 'users_give_no_deliver_to',
                'as restrictive for insert to pgrecall_user with check (deliver_to is null)'),
            ('pgrecall_user', 'session_recalls', 'users_give_only_uuids_as_ids',
                'as restrictive for insert to pgrecall_user with check (id ~ ' || quote_literal(v_uuid) || ')'),
            ('pgrecall_observer', 'session_recalls', 'observers_see_all_recalls',
                'for select to pgrecall_observer using (true)'),
            ('pgrecall_operator', 'session_recalls', 'operators_change_all_recalls',
                'to pgrecall_operator using (true)'),

            ('pgrecall_user', 'session_messages', 'users_see_what_was_said_in_their_own_sessions',
                'for select to pgrecall_user using (in_history and ' || v_own_sessions || ')'),
            ('pgrecall_user', 'session_messages', 'users_keep_to_what_was_said_in_their_own_sessions',
                'as restrictive to pgrecall_user using (in_history and ' || v_own_sessions || ')'),
            ('pgrecall_worker', 'session_messages', 'workers_see_all_messages',
                'for select to pgrecall_worker using (true)'),
            ('pgrecall_chat', 'session_messages', 'chats_see_all_messages', 'for select to pgrecall_chat using (true)'),
            ('pgrecall_chat', 'session_messages', 'chats_add_messages', 'for insert to pgrecall_chat with check (true)'),
            ('pgrecall_operator', 'session_messages', 'operators_see_all_messages',
                'for select to pgrecall_operator using (true)'),

            ('pgrecall_user', 'recall_runs', 'users_see_runs_of_their_own_sessions',
                'for select to pgrecall_user using (' || v_own_sessions || ')'),
            ('pgrecall_user', 'recall_runs', 'users_keep_to_runs_of_their_own_sessions',
                'as restrictive to pgrecall_user using (' || v_own_sessions || ')'),
            ('pgrecall_observer', 'recall_runs', 'observers_see_all_runs', 'for select to pgrecall_observer using (true)'),
            ('pgrecall_operator', 'recall_runs', 'operators_see_all_runs', 'for select to pgrecall_operator using (true)'),

            ('pgrecall_observer', 'deliveries', 'observers_see_all_deliveries',
                'for select to pgrecall_observer using (true)'),
            ('pgrecall_operator', 'deliveries', 'operators_change_all_deliveries', 'to pgrecall_operator using (true)'),

            ('pgrecall_observer', 'pauses', 'observers_see_all_pauses', 'for select to pgrecall_observer using (true)'),
            ('pgrecall_operator', 'pauses', 'operators_see_all_pauses', 'for select to pgrecall_operator using (true)'),

            ('pgrecall_observer', 'audit', 'observers_see_all_of_the_audit',
                'for select to pgrecall_observer using (true)'),
            ('pgrecall_operator', 'audit', 'operators_see_all_of_the_audit',
                'for select to pgrecall_operator using (true)')
        ) as listed (role, relation, name, what)
        where listed.role = any ('public'::text || v_roles)
            and not exists (
                select
                from pg_policy as known
                where known.polrelid = ('pgrecall.' || listed.relation)::regclass
                    and known.polname = listed.name
            )
    loop
        execute v_statement;
    end loop;
    return query select role.name from unnest(v_roles) as role (name);
end;
$$;
comment on function pgrecall.grant_roles() is
    'Takes all rights on the schema from PUBLIC and from the group roles, and gives these theirs, with the policies of row-level security; rights of other roles stay. Returns the group roles that there are. Called by every installation, and by the owner after making roles by hand. Locks: that of an installation; the tables, for a moment, if a policy is missing.';

-- A newer release may be installed by somebody else than the older one, for example a superuser. What runs with its
-- owner's rights must not get that one's; and triggers and foreign keys need one owner of all.
do $$
declare
    v_owner regrole;
    v_change text;
begin
    select known.nspowner
    into v_owner
    from pg_catalog.pg_namespace as known
    where known.nspname = 'pgrecall';
    for v_change in
        select pg_catalog.format('alter routine %s owner to %s', routine.oid::regprocedure, v_owner)
        from pg_catalog.pg_proc as routine
        where routine.pronamespace = 'pgrecall'::regnamespace
            and routine.proowner <> v_owner
        union all
        select pg_catalog.format(
            'alter %s %s owner to %s',
            case relation.relkind when 'S' then 'sequence' when 'v' then 'view' when 'c' then 'type' else 'table' end,
            relation.oid::regclass, v_owner
        )
        from pg_catalog.pg_class as relation
        where relation.relnamespace = 'pgrecall'::regnamespace
            and relation.relkind in ('r', 'v', 'c', 'S')
            and relation.relowner <> v_owner
            -- The sequence of an identity column goes with its table.
            and (relation.relkind <> 'S' or not exists (
                select
                from pg_catalog.pg_depend as part
                where part.classid = 'pg_catalog.pg_class'::regclass
                    and part.objid = relation.oid
                    and part.deptype in ('a', 'i')
            ))
    loop
        execute v_change;
    end loop;
end $$;

do $$
begin
    perform pgrecall.grant_roles();
end $$;
