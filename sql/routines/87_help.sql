-- What to type: a page of help for whoever sits before psql, and the comments of the catalog by name.

create or replace function pgrecall.help(topic text default null)
returns table (about text, you_want text, type_this text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    with page (about, you_want, type_this) as (
        values
            ('look', 'is all well, and if not: what to look at', 'select * from pgrecall.overview;'),
            ('look', 'the id of a RECALL (what is in capitals is your own)', 'select id, status, due_at from pgrecall.list_recalls(session_id => ''SESSION'');'),
            ('look', 'why is a recall late: what is due and does not run', 'select * from pgrecall.due_recalls;'),
            ('look', 'why was a recall late', 'select * from pgrecall.late_runs where recall_id = ''RECALL'';'),
            ('look', 'all that happened to one recall', 'select * from pgrecall.history(''RECALL'');'),
            ('look', 'which runs began late, and why', 'select * from pgrecall.late_runs limit 20;'),
            ('look', 'how late runs begin, hour by hour', 'select * from pgrecall.lateness_per_hour;'),
            ('look', 'what runs now, where, and since when', 'select * from pgrecall.running_recalls;'),
            ('look', 'what comes next', 'select * from pgrecall.next_recalls limit 20;'),
            ('look', 'the next times of one recall', 'select * from pgrecall.upcoming(''RECALL'', 10);'),
            ('look', 'what failed, and with what error', 'select * from pgrecall.failed_recalls limit 20;'),
            ('look', 'what was skipped, missed or cancelled, and why', 'select * from pgrecall.left_out_occurrences limit 20;'),
            ('look', 'how a session is', 'select * from pgrecall.session_states where session_id = ''SESSION'';'),
            ('look', 'how a user''s sessions are', 'select * from pgrecall.user_states where user_id = ''USER'';'),
            ('look', 'which workers are alive, and what they do', 'select * from pgrecall.worker_states;'),
            ('look', 'how many slots the next minute wants (autoscalers ask)', 'select pgrecall.wanted_slots(within => ''1 minute'');'),
            ('look', 'who has which session (chat or run), and who waits', 'select * from pgrecall.get_holds();'),
            ('look', 'which sessions and users are paused, and until when', 'select * from pgrecall.pauses;'),
            ('look', 'the recalls of a user', 'select id, status, due_at from pgrecall.list_recalls(user_id => ''USER'');'),
            ('look', 'one recall, all columns', 'select * from pgrecall.get_recall(''RECALL'') \gx'),
            ('look', 'what the runs of one recall answered', 'select finished_at, outcome, reply, error from pgrecall.get_runs(''RECALL'');'),
            ('look', 'which replies did not reach their URL', 'select id, session_id, status, last_error from pgrecall.get_deliveries();'),
            ('look', 'what was said in a session', 'select role, content from pgrecall.session_messages where session_id = ''SESSION'';'),

            ('pause', 'pause everything for an hour', 'select paused_until from pgrecall.pause_all(''incident'', now() + ''1 hour'');'),
            ('pause', 'resume everything', 'select paused_at from pgrecall.resume_all();'),
            ('pause', 'pause a user for an hour (no time: until resumed)', 'select * from pgrecall.pause_user(''USER'', ''incident'', now() + ''1 hour'');'),
            ('pause', 'resume a user', 'select * from pgrecall.resume_user(''USER'');'),
            ('pause', 'pause a session for an hour', 'select * from pgrecall.pause_session(''SESSION'', ''incident'', now() + ''1 hour'');'),
            ('pause', 'resume a session', 'select * from pgrecall.resume_session(''SESSION'');'),
            ('pause', 'pause one recall for an hour', 'select id from pgrecall.pause_recall(''RECALL'', ''incident'', now() + ''1 hour'');'),
            ('pause', 'resume one recall', 'select id, due_at from pgrecall.resume_recall(''RECALL'');'),
            ('pause', 'pause the recalls that a user has now', 'select id from pgrecall.pause_recalls(user_id => ''USER'', reason => ''incident'');'),
            ('pause', 'resume the recalls of a user', 'select id, due_at from pgrecall.resume_recalls(user_id => ''USER'');'),

            ('cancel', 'cancel one recall; a run of it is told to stop', 'select id, status from pgrecall.mark_cancelled(''RECALL'');'),
            ('cancel', 'cancel what a session waits for', 'select pgrecall.cancel_recall(''SESSION'');'),
            ('cancel', 'cancel all recalls of a user', 'select id, status from pgrecall.cancel_recalls(user_id => ''USER'');'),
            ('cancel', 'stop a run, and keep its recall', 'select id, status from pgrecall.stop_run(''RECALL'', ''incident'');'),
            ('cancel', 'stop it, and run it again', 'select id, status from pgrecall.stop_run(''RECALL'', ''incident'', after_stop => ''retry'');'),
            ('cancel', 'stop all runs of a user', 'select id, status from pgrecall.stop_runs(user_id => ''USER'', reason => ''incident'');'),
            ('cancel', 'leave out the next time of what recurs in a session', 'select pgrecall.skip_next_recall(''SESSION'');'),
            ('cancel', 'leave out the next times of what recurs for a user', 'select id, trigger_at from pgrecall.skip_recalls(user_id => ''USER'');'),
            ('cancel', 'end the hold of a chat that hangs', 'select pgrecall.free_session(''SESSION'');'),

            ('run', 'run one recall now', 'select id, due_at from pgrecall.run_now(''RECALL'');'),
            ('run', 'run all of a session now', 'select id, due_at from pgrecall.run_recalls_now(session_id => ''SESSION'');'),
            ('run', 'retry a recall that failed or was cancelled', 'select id, status, due_at from pgrecall.retry_recall(''RECALL'');'),
            ('run', 'retry what failed today, or since any other time', 'select id from pgrecall.retry_recalls(user_id => ''USER'', failed_since => ''today'');'),
            ('run', 'move a recall to another time', 'select id, due_at from pgrecall.reschedule(''RECALL'', now() + ''1 hour'');'),
            ('run', 'move all recalls of a user by an hour', 'select id, due_at from pgrecall.reschedule_recalls(user_id => ''USER'', by => ''1 hour'');'),
            ('run', 'say that a recall was done by other means', 'select id, status from pgrecall.mark_fired(''RECALL'');'),
            ('run', 'post a reply once more', 'select id, status from pgrecall.retry_delivery(1);'),

            ('make', 'make a session', 'insert into pgrecall.sessions (id, user_id) values (''chat-1'', ''ann'');'),
            ('make', 'wake its agent in two hours', 'select id from pgrecall.schedule_recall(''SESSION'', ''Call back.'', now() + ''2 hours'');'),
            ('make', 'and replace what it waits for', 'select id from pgrecall.schedule_recall(''SESSION'', ''Call back.'', if_exists => ''replace'');'),
            ('make', 'the same by plain SQL, from any language', 'insert into pgrecall.session_recalls (session_id, trigger_at, additional_context_message)' || E'\n' || 'values (''SESSION'', now() + ''2 hours'', ''Call back.'');'),
            ('make', 'each Monday at 9', 'select id from pgrecall.schedule_recall(''SESSION'', ''Write the report.'',' || E'\n' || '    cron => ''0 9 * * mon'', time_zone => ''Europe/Paris'');'),
            ('make', 'try a cron expression', 'select pgrecall.cron_next(''0 9 * * mon'', ''Europe/Paris'', now());'),
            ('make', 'when the next recall is due', 'select pgrecall.get_next_trigger_at();'),
            ('make', 'what is pending before a time', 'select id, session_id from pgrecall.get_pending_recalls(before => now() + ''1 hour'');'),
            ('make', 'which of these sessions wait for a recall', 'select pgrecall.get_pending_session_ids(array[''SESSION'']);'),

            ('settings', 'what holds for all: limits, pause, retention', 'select * from pgrecall.settings \gx'),
            ('settings', 'change it', 'update pgrecall.settings set timeout_seconds = 300, max_runs_per_day = 48;'),
            ('settings', 'what one of them means', 'select * from pgrecall.help(''timeout_seconds'');'),
            ('settings', 'keep what failed for a year, and runs for a month', 'update pgrecall.settings set keep_failed = ''1 year'', keep_runs = ''30 days'';'),
            ('settings', 'delete one batch of what is older than that', 'select * from pgrecall.purge();'),
            ('settings', 'delete the history of a user', 'select * from pgrecall.purge_history(user_id => ''USER'');'),

            ('who', 'who changed a recall, and how', 'select changed_at, role, action, old, new from pgrecall.get_audit(recall_id => ''RECALL'');'),
            ('who', 'who changed what today', 'select changed_at, role, action, object from pgrecall.get_audit(since => ''today'');'),
            ('who', 'let a login operate (other roles: docs/roles.md)', 'grant pgrecall_operator to "LOGIN";'),
            ('who', 'which version is installed', 'select pgrecall.schema_version();'),

            ('more', 'help about a word, function, table, rule of a table', 'select * from pgrecall.help(''pause'');'),
            ('more', 'the tables and views, with comments', '\d+ pgrecall.*'),
            ('more', 'the functions, with comments', '\df+ pgrecall.*'),
            ('more', 'the text of a function', '\sf pgrecall.run_now')
    ),
    -- Only what the caller may do. Text that names nothing of the schema is for all.
    allowed as (
        select row_number() over () as place, page.*
        from page
        where not exists (
            select
            from regexp_matches(page.type_this, '(insert into |update |)pgrecall\.(\w+)(\(?)', 'g') as named (part)
            where not case
                when part[3] = '(' then exists (
                    select
                    from pg_proc as routine
                    where routine.pronamespace = 'pgrecall'::regnamespace
                        and routine.proname = part[2]
                        and has_function_privilege(routine.oid, 'execute')
                )
                else coalesce(
                    has_any_column_privilege(
                        to_regclass('pgrecall.' || part[2]),
                        case part[1] when 'insert into ' then 'insert' when 'update ' then 'update' else 'select' end
                    ),
                    to_regproc('pgrecall.' || part[2]) is not null
                )
            end
        )
    ),
    -- pgrecall.pause_all('x') and PAUSE_ALL are pause_all.
    asked as (
        select regexp_replace(lower(btrim(help.topic)), '^pgrecall\.|[ ]*\(.*$', '', 'g') as name
    ),
    words as (
        -- Singular is enough: a word is found by how it begins.
        select distinct regexp_replace(word, '(..)s$', '\1') as word
        from asked, regexp_split_to_table(asked.name, '[^[:alnum:]]+') as word
        where word <> ''
    ),
    found as (
        select allowed.*, hit.words
        from allowed
        cross join lateral (
            select count(*) as words
            from words
            where position(
                ' ' || words.word in
                ' ' || regexp_replace(lower(concat_ws(' ', allowed.about, allowed.you_want, allowed.type_this)), '[^[:alnum:]]+', ' ', 'g')
            ) > 0
        ) as hit
    ),
    defined (place, about, you_want, type_this) as (
        select 1, 'function', obj_description(routine.oid, 'pg_proc'),
            'pgrecall.' || routine.proname || '('
            || replace(regexp_replace(pg_get_function_arguments(routine.oid), '::[a-z ]+(\[\])?', '', 'g'), ' DEFAULT ', ' = ')
            || ')' || coalesce(' returns ' || pg_get_function_result(routine.oid), '')
        from pg_proc as routine
        where routine.pronamespace = 'pgrecall'::regnamespace
            and routine.proname = (select name from asked)
        union all
        select 2, case relation.relkind when 'v' then 'view' when 'S' then 'sequence' when 'i' then 'index' else 'table' end,
            obj_description(relation.oid, 'pg_class'), 'pgrecall.' || relation.relname
        from pg_class as relation
        where relation.relnamespace = 'pgrecall'::regnamespace
            and relation.relkind in ('r', 'v', 'S', 'i')
            and relation.relname = (select name from asked)
            -- What belongs to a constraint has that one's comment.
            and not exists (select from pg_constraint as rule where rule.conname = relation.relname and rule.conindid = relation.oid)
        union all
        select 2 + attribute.attnum, 'column', col_description(relation.oid, attribute.attnum),
            relation.relname || '.' || attribute.attname || ' ' || format_type(attribute.atttypid, attribute.atttypmod)
        from pg_class as relation
        join pg_attribute as attribute on attribute.attrelid = relation.oid
        where relation.relnamespace = 'pgrecall'::regnamespace
            and relation.relkind in ('r', 'v')
            and attribute.attnum > 0
            and not attribute.attisdropped
            and (select name from asked) in (relation.relname, attribute.attname, relation.relname || '.' || attribute.attname)
        union all
        select 5000, 'rule', obj_description(rule.oid, 'pg_constraint'), pg_get_constraintdef(rule.oid)
        from pg_constraint as rule
        where rule.connamespace = 'pgrecall'::regnamespace
            and rule.conname = (select name from asked)
            and rule.contype <> 't'
        union all
        select 5001, 'trigger', obj_description(change.oid, 'pg_trigger'), pg_get_triggerdef(change.oid, true)
        from pg_trigger as change
        join pg_class as relation on relation.oid = change.tgrelid
        where relation.relnamespace = 'pgrecall'::regnamespace
            and change.tgname = (select name from asked)
    ),
    answer (part, place, about, you_want, type_this) as (
        select 1, defined.place, defined.about, defined.you_want, defined.type_this
        from defined
        union all
        select 0, 0, 'nothing', 'nothing is about ' || quote_literal(left(help.topic, 40)) || '; this is all there is', null
        from asked
        where asked.name <> ''
            and not exists (select from defined)
            and not exists (select from found where found.words > 0)
        union all
        -- What has most of the words; if none has any, everything. Beside the comment of an object, what has all.
        select 2, found.place, found.about, found.you_want, found.type_this
        from found
        where found.words = (select max(best.words) from found as best)
            and (found.words = (select count(*) from words) or not exists (select from defined))
    )
    -- Long comments and signatures are broken into lines, so that psql shows them in 160 columns. The page fits as it is.
    select answer.about,
        regexp_replace(answer.you_want, '(?=.{55})(.{1,54}) ', E'\\1\n', 'g'),
        case answer.part
            when 1 then regexp_replace(answer.type_this, '(?=.{91})(.{1,90}) ', E'\\1\n', 'g')
            else answer.type_this
        end
    from answer
    order by answer.part, answer.place, answer.type_this
$$;
comment on function pgrecall.help(text) is
    'What to type in psql for what you want, as far as you may do it; with a topic what has most of its words, and for the name of a function, view, table, column, constraint or trigger its comment. Upper-case names are to be replaced. Never an empty result. Called by people.';
