-- Tables of the host: its own sessions table instead of ours, and the old recalls of a table that it had before.
--
-- The only routines with dynamic SQL: the host's tables and columns are known when they are named, not before.
--
-- pgrecall.sessions keeps one row per session in either case, since it holds what the host knows nothing of: the run,
-- the chat that has the session, the line. With a sessions table of the host its rows follow that table's:
--   * a foreign key, on delete cascade: a session that the host deletes takes its recalls, messages and runs along;
--   * triggers on the host's table that add the row and carry the owner and the time zone over;
--   * a trigger on pgrecall.sessions that refuses, with a better text than the foreign key, sessions made beside it.
-- A key that is no text is compared through the generated column sessions.host_id. Nothing else in sql/ knows of this.
--
-- SQLSTATE PR008, beside those of 40_schedule.sql: the state of a host's table does not allow it.

create or replace function pgrecall._check_host_table(host_table regclass, needed text)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_table pg_class;
begin
    if host_table is null then
        raise exception 'no table was given: host_table or old_table is null'
            using errcode = 'PR005', hint = 'Name it with its schema, for example ''public.chat_sessions''.';
    end if;
    select known.*
    into v_table
    from pg_class as known
    where known.oid = host_table;
    if not found then
        raise exception 'there is no table with the number %', host_table::oid
            using errcode = 'PR005', hint = 'Name it with its schema, for example ''public.chat_sessions''.';
    elsif v_table.relnamespace = 'pgrecall'::regnamespace then
        raise exception '% is a table of pgrecall itself', host_table
            using errcode = 'PR005', hint = 'Name the table of your own application.';
    elsif v_table.relkind not in ('r', 'p') then
        raise exception '% is not a table but %', host_table,
                case v_table.relkind
                    when 'v' then 'a view'
                    when 'm' then 'a materialized view'
                    when 'f' then 'a foreign table'
                    else 'something else'
                end
            using errcode = 'PR008', hint = 'Name the table that the rows are stored in; it must be in this database.';
    elsif v_table.relispartition then
        raise exception '% is one partition of %', host_table, (
                select inherits.inhparent::regclass
                from pg_inherits as inherits
                where inherits.inhrelid = host_table
            )
            using errcode = 'PR008', hint = 'Name the partitioned table.';
    elsif row_security_active(host_table) then
        raise exception 'row-level security hides rows of % from the role %', host_table, current_user
            using errcode = 'PR008', hint = 'Do it as the owner of the table, or as a role with BYPASSRLS.';
    elsif not has_table_privilege(host_table, needed) then
        raise exception 'the role % lacks the privilege % on %', current_user, needed, host_table
            using
                errcode = 'PR008',
                hint = format('As the owner of the table: grant %s on %s to %I;', needed, host_table, current_user);
    end if;
end;
$$;
comment on function pgrecall._check_host_table(regclass, text) is
    'Refuses what is no table that can be worked with, and a role that lacks the privilege needed. Called by use_sessions_table and adopt_recalls. Raises: PR005, PR008.';

create or replace function pgrecall._host_column_type(host_table regclass, column_name text)
returns regtype
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    with recursive base (type) as (
        select known.atttypid
        from pg_attribute as known
        where known.attrelid = host_table
            and known.attname = column_name
            and known.attnum > 0
            and not known.attisdropped
        union all
        select domain.typbasetype
        from base
        join pg_type as domain on domain.oid = base.type and domain.typtype = 'd'
    )
    select base.type::regtype
    from base
    join pg_type as plain on plain.oid = base.type and plain.typtype <> 'd';
$$;
comment on function pgrecall._host_column_type(regclass, text) is
    'The type of a column, of a domain the type beneath; null if there is no such column. Called by use_sessions_table and adopt_recalls.';

create or replace function pgrecall._check_host_column(host_table regclass, column_name text, parameter text)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_type regtype := pgrecall._host_column_type(host_table, column_name);
begin
    if v_type is null then
        raise exception '% has no column %', host_table, quote_nullable(column_name)
            using
                errcode = 'PR005',
                hint = format('%s names it, in the spelling of the table%s.', parameter,
                    case when parameter = 'id_column' then '' else '; null: there is none' end);
    elsif not exists (
        select
        from pg_type as known
        where known.oid = v_type
            and known.typnamespace = 'pg_catalog'::regnamespace
    ) then
        raise exception 'column % of % is of type %, which is not one of PostgreSQL''s own',
                quote_ident(column_name), host_table, v_type
            using errcode = 'PR008', hint = 'Name a column of type text instead, for example a generated one.';
    end if;
end;
$$;
comment on function pgrecall._check_host_column(regclass, text, text) is
    'Refuses a column that is not there, and one whose text would come from a cast that somebody else has written. Called by use_sessions_table. Raises: PR005, PR008.';

create or replace function pgrecall._follow_host_session()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_id text;
    v_user_id text;
    v_time_zone text;
begin
    begin
        execute format(
            'select ($1).%I::text, %s, %s',
            tg_argv[0],
            case when tg_argv[1] = '' then 'null' else format('($1).%I::text', tg_argv[1]) end,
            case when tg_argv[2] = '' then 'null' else format('($1).%I::text', tg_argv[2]) end
        )
        into v_id, v_user_id, v_time_zone
        using new;
    exception
        when undefined_column then
            raise exception 'a column of % that pgrecall follows has another name now: %', tg_relid::regclass, sqlerrm
                using errcode = 'PR008', hint = 'Call pgrecall.use_sessions_table() again, with the new name.';
    end;
    if v_id is null then
        return null;
    end if;
    -- The host's row is not refused because of a zone that this server does not know.
    if pgrecall.time_zone_error(v_time_zone) is not null then
        v_time_zone := null;
    end if;
    insert into pgrecall.sessions as known (id, user_id, time_zone)
    values (v_id, v_user_id, v_time_zone)
    on conflict (id) do update
    set user_id = case when tg_argv[1] = '' then known.user_id else excluded.user_id end,
        time_zone = case when tg_argv[2] = '' then known.time_zone else excluded.time_zone end;
    return null;
end;
$$;
comment on function pgrecall._follow_host_session() is
    'Carries a session, its owner and its time zone over to sessions; a time zone that is not known as an IANA name becomes null. Called by the triggers pgrecall_session_insert and pgrecall_session_update of the host''s table, with the rights of its own owner, so that the host''s role needs none. Locks: the row of sessions. Raises: PR008 a column was renamed.';
-- Whoever can make a trigger of it can make sessions.
revoke execute on function pgrecall._follow_host_session() from public;

create or replace function pgrecall._before_host_session_change()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_id text;
begin
    begin
        execute format('select ($1).%I::text', tg_argv[0]) into v_id using old;
    exception
        when undefined_column then
            raise exception 'a column of % that pgrecall follows has another name now: %', tg_relid::regclass, sqlerrm
                using errcode = 'PR008', hint = 'Call pgrecall.use_sessions_table() again, with the new name.';
    end;
    if tg_op = 'UPDATE' then
        raise exception 'the id of session % cannot change: its recalls, messages and runs know it by its id',
                quote_nullable(v_id)
            using errcode = 'PR008', hint = 'Insert a session with the new id, and delete this one.';
    end if;
    -- The lock order is recall, then session; the cascade comes the other way round.
    perform
    from pgrecall.session_recalls as recall
    where recall.session_id = v_id
    order by recall.id
    for update;
    return old;
end;
$$;
comment on function pgrecall._before_host_session_change() is
    'Refuses a new id for a session, and locks the recalls of one that is deleted before the cascade locks its row of sessions. Called by the triggers pgrecall_session_id and pgrecall_session_delete of the host''s table. Locks: the session''s recalls. Raises: PR008 the id would change, or its column was renamed.';
revoke execute on function pgrecall._before_host_session_change() from public;

create or replace function pgrecall._before_session_insert()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_host pgrecall.host_sessions;
begin
    -- Deeper than 1: the trigger of the host's table inserts it. A session that is there: on conflict will see to it.
    if pg_trigger_depth() = 1
        and not exists (select from pgrecall.sessions as known where known.id = new.id)
    then
        select known.*
        into v_host
        from pgrecall.host_sessions as known;
        raise exception 'session % cannot be made here: sessions are the rows of %', quote_nullable(left(new.id, 255)),
                v_host.host_table
            using
                errcode = 'PR008',
                hint = format('Insert it there (column %I); pgrecall.use_own_sessions() would end that.', v_host.id_column);
    end if;
    return new;
end;
$$;
comment on function pgrecall._before_session_insert() is
    'Says where sessions are made while a table of the host has them. Called by the trigger session_insert, which is there only then. Raises: PR008.';

create or replace function pgrecall.use_own_sessions()
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_host pgrecall.host_sessions;
    v_owner oid;
begin
    lock table pgrecall.host_sessions in exclusive mode;
    select known.*
    into v_host
    from pgrecall.host_sessions as known;
    if not found then
        return false;
    end if;
    select known.relowner
    into v_owner
    from pg_class as known
    where known.oid = v_host.host_table;
    if found then
        if not pg_has_role(v_owner, 'usage') then
            raise exception 'only the owner of % can take its triggers away', v_host.host_table
                using
                    errcode = 'PR008',
                    hint = format('Do it as a role that is a member of %s.', v_owner::regrole);
        end if;
        execute format('drop trigger if exists pgrecall_session_insert on %s', v_host.host_table);
        execute format('drop trigger if exists pgrecall_session_update on %s', v_host.host_table);
        execute format('drop trigger if exists pgrecall_session_id on %s', v_host.host_table);
        execute format('drop trigger if exists pgrecall_session_delete on %s', v_host.host_table);
    end if;
    drop trigger if exists session_insert on pgrecall.sessions;
    alter table pgrecall.sessions
        drop constraint if exists session_must_be_a_row_of_the_host_table,
        drop column if exists host_id;
    delete from pgrecall.host_sessions;
    return true;
end;
$$;
comment on function pgrecall.use_own_sessions() is
    'Ends use_sessions_table(): sessions and their recalls stay as they are, and no longer follow the host''s table. False: there was nothing to end. Called by people, as owner of pgrecall''s tables and of the host''s. Locks: both tables, exclusively, for a moment. Raises: PR008 not the owner of the host''s table.';

create or replace function pgrecall.use_sessions_table(
    host_table regclass,
    id_column text default 'id',
    user_id_column text default 'user_id',
    time_zone_column text default null,
    orphans text default 'refuse'
)
returns integer
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_known pgrecall.host_sessions;
    v_type regtype;
    v_is_text boolean;
    v_owner oid;
    v_is_owner boolean;
    v_from text;
    v_arguments text;
    v_followed text[];
    v_trigger text;
    v_count bigint;
    v_examples text;
    v_added integer;
begin
    if orphans is null or orphans not in ('refuse', 'delete') then
        raise exception 'orphans is %, but must be refuse or delete', quote_nullable(left(orphans, 100))
            using errcode = 'PR005', hint = 'It says what becomes of sessions that the table does not have.';
    end if;
    perform pgrecall._check_host_table(use_sessions_table.host_table, 'select');
    perform pgrecall._check_host_table(use_sessions_table.host_table, 'trigger');
    perform pgrecall._check_host_table(use_sessions_table.host_table, 'references');

    -- The same again: nothing to do, and no lock that anybody would wait for.
    for v_attempt in 1..2 loop
        select known.*
        into v_known
        from pgrecall.host_sessions as known;
        if (v_known.host_table, v_known.id_column, v_known.user_id_column, v_known.time_zone_column)
            is not distinct from (
                use_sessions_table.host_table, use_sessions_table.id_column, use_sessions_table.user_id_column,
                use_sessions_table.time_zone_column
            )
        then
            return 0;
        end if;
        lock table pgrecall.host_sessions in exclusive mode;
    end loop;

    perform pgrecall._check_host_column(use_sessions_table.host_table, use_sessions_table.id_column, 'id_column');
    if use_sessions_table.user_id_column is not null then
        perform pgrecall._check_host_column(
            use_sessions_table.host_table, use_sessions_table.user_id_column, 'user_id_column'
        );
    end if;
    if use_sessions_table.time_zone_column is not null then
        perform pgrecall._check_host_column(
            use_sessions_table.host_table, use_sessions_table.time_zone_column, 'time_zone_column'
        );
    end if;
    v_type := pgrecall._host_column_type(use_sessions_table.host_table, use_sessions_table.id_column);
    if v_type not in (
        'text'::regtype, 'varchar'::regtype, 'uuid'::regtype, 'bigint'::regtype, 'integer'::regtype, 'smallint'::regtype
    ) then
        raise exception 'column % of % is of type %, which cannot be the id of a session',
                quote_ident(use_sessions_table.id_column), use_sessions_table.host_table, v_type
            using errcode = 'PR008', hint = 'It can be text, varchar, uuid, bigint, integer or smallint.';
    end if;
    v_is_text := v_type in ('text'::regtype, 'varchar'::regtype);
    if not exists (
        select
        from pg_index as index
        join pg_attribute as key on key.attrelid = index.indrelid and key.attnum = index.indkey[0]
        where index.indrelid = use_sessions_table.host_table
            and key.attname = use_sessions_table.id_column
            and index.indnkeyatts = 1
            and index.indisunique
            and index.indimmediate
            and index.indisvalid
            and index.indpred is null
    ) then
        raise exception 'column % of % is not unique', quote_ident(use_sessions_table.id_column), use_sessions_table.host_table
            using
                errcode = 'PR008',
                hint = format(
                    'First: alter table %s add unique (%I); (of a partitioned table: if it is partitioned by that column).',
                    use_sessions_table.host_table, use_sessions_table.id_column
                );
    end if;
    if exists (
        select from pg_class as known where known.oid = use_sessions_table.host_table and known.relpersistence <> 'p'
    ) then
        raise exception '% is temporary or unlogged, so recalls would outlive its rows', use_sessions_table.host_table
            using errcode = 'PR008', hint = format('For an unlogged table: alter table %s set logged;', use_sessions_table.host_table);
    end if;
    select known.relowner
    into v_owner
    from pg_class as known
    where known.oid = 'pgrecall.sessions'::regclass;
    if not pg_has_role(v_owner, 'usage') then
        raise exception 'only the owner of pgrecall''s tables can let them follow another one'
            using errcode = 'PR008', hint = format('Do it as a role that is a member of %s.', v_owner::regrole);
    end if;

    if v_known.host_table is not null then
        if v_known.host_table <> use_sessions_table.host_table
            and exists (select from pg_class as known where known.oid = v_known.host_table)
        then
            raise exception 'sessions are the rows of % already', v_known.host_table
                using errcode = 'PR008', hint = 'pgrecall.use_own_sessions() ends that; recalls stay.';
        end if;
        perform pgrecall.use_own_sessions();
    end if;

    -- The triggers first: making one takes the lock that keeps the host's writers out until we are through.
    v_arguments := format(
        '(%L, %L, %L)',
        use_sessions_table.id_column,
        coalesce(use_sessions_table.user_id_column, ''),
        coalesce(use_sessions_table.time_zone_column, '')
    );
    select array_agg(format('old.%1$I is distinct from new.%1$I', followed.name))
    into v_followed
    from unnest(array[use_sessions_table.user_id_column, use_sessions_table.time_zone_column]) as followed (name)
    where followed.name is not null;
    execute format(
        'create trigger pgrecall_session_insert after insert on %s for each row '
        'execute function pgrecall._follow_host_session%s',
        use_sessions_table.host_table, v_arguments
    );
    if v_followed is not null then
        execute format(
            'create trigger pgrecall_session_update after update on %s for each row when (%s) '
            'execute function pgrecall._follow_host_session%s',
            use_sessions_table.host_table, array_to_string(v_followed, ' or '), v_arguments
        );
    end if;
    execute format(
        'create trigger pgrecall_session_id before update on %s for each row '
        'when (old.%2$I is distinct from new.%2$I) execute function pgrecall._before_host_session_change(%2$L)',
        use_sessions_table.host_table, use_sessions_table.id_column
    );
    execute format(
        'create trigger pgrecall_session_delete before delete on %s for each row '
        'execute function pgrecall._before_host_session_change(%L)',
        use_sessions_table.host_table, use_sessions_table.id_column
    );
    select pg_has_role(known.relowner, 'usage')
    into v_is_owner
    from pg_class as known
    where known.oid = use_sessions_table.host_table;
    if v_is_owner then
        -- Also rows that come by logical replication are sessions.
        for v_trigger in
            select made.tgname
            from pg_trigger as made
            where made.tgrelid = use_sessions_table.host_table
                and made.tgname in ('pgrecall_session_insert', 'pgrecall_session_update')
        loop
            execute format('alter table %s enable always trigger %I', use_sessions_table.host_table, v_trigger);
        end loop;
    end if;
    if v_is_text then
        lock table pgrecall.sessions in share row exclusive mode;
    else
        lock table pgrecall.sessions in access exclusive mode;
    end if;

    -- As the foreign key sees it: without the rows of tables that inherit from this one.
    select format('%s %s as host', case when known.relkind = 'r' then 'only' end, use_sessions_table.host_table)
    into v_from
    from pg_class as known
    where known.oid = use_sessions_table.host_table;
    if orphans = 'delete' then
        execute format(
            'delete from pgrecall.sessions as known where not exists (select from %s where host.%I::text = known.id)',
            v_from, use_sessions_table.id_column
        );
    else
        execute format(
            'select count(*), '
            'string_agg(quote_literal(orphan.id), '', '' order by orphan.id) filter (where orphan.place <= 5) from ('
            'select known.id, row_number() over (order by known.id) as place from pgrecall.sessions as known '
            'where not exists (select from %s where host.%I::text = known.id)) as orphan',
            v_from, use_sessions_table.id_column
        )
        into v_count, v_examples;
        if v_count > 0 then
            raise exception '% session(s) of pgrecall are not in %: %', v_count, use_sessions_table.host_table,
                    v_examples || case when v_count > 5 then ' …' else '' end
                using
                    errcode = 'PR008',
                    hint = 'Insert them there first, or say orphans => ''delete'': they go with their recalls and history.';
        end if;
    end if;

    execute format(
        'insert into pgrecall.sessions (id) select host.%1$I::text from %2$s where host.%1$I is not null '
        'on conflict (id) do nothing',
        use_sessions_table.id_column, v_from
    );
    get diagnostics v_added = row_count;
    if use_sessions_table.user_id_column is not null then
        execute format(
            'update pgrecall.sessions as known set user_id = host.%1$I::text from %2$s '
            'where known.id = host.%3$I::text and known.user_id is distinct from host.%1$I::text',
            use_sessions_table.user_id_column, v_from, use_sessions_table.id_column
        );
    end if;
    if use_sessions_table.time_zone_column is not null then
        -- Each zone is looked at once, not each session.
        execute format(
            'with zone as materialized ('
            'select named.name, case when pgrecall.time_zone_error(named.name) is null then named.name end as valid '
            'from (select distinct host.%1$I::text as name from %2$s) as named) '
            'update pgrecall.sessions as known set time_zone = zone.valid '
            'from %2$s join zone on zone.name is not distinct from host.%1$I::text '
            'where known.id = host.%3$I::text and known.time_zone is distinct from zone.valid',
            use_sessions_table.time_zone_column, v_from, use_sessions_table.id_column
        );
    end if;

    if not v_is_text then
        -- An integer may become a bigint one day; the other way round nothing fits.
        execute format(
            'alter table pgrecall.sessions add column host_id %1$s generated always as (id::%1$s) stored '
            'constraint id_must_be_written_as_the_host_table_writes_it check (id = host_id::text)',
            case when v_type = 'uuid'::regtype then 'uuid' else 'bigint' end
        );
        comment on column pgrecall.sessions.host_id is
            'The id as the host''s table has it, for the foreign key; see use_sessions_table().';
        create unique index session_of_the_host on pgrecall.sessions (host_id);
        comment on index pgrecall.session_of_the_host is 'Serves the cascade from the host''s table.';
    end if;
    execute format(
        'alter table pgrecall.sessions add constraint session_must_be_a_row_of_the_host_table '
        'foreign key (%I) references %s (%I) on delete cascade',
        case when v_is_text then 'id' else 'host_id' end, use_sessions_table.host_table, use_sessions_table.id_column
    );
    create trigger session_insert
    before insert on pgrecall.sessions
    for each row
    execute function pgrecall._before_session_insert();
    comment on trigger session_insert on pgrecall.sessions is 'Says where sessions are made: in the host''s table.';
    insert into pgrecall.host_sessions (host_table, id_column, user_id_column, time_zone_column)
    values (
        use_sessions_table.host_table, use_sessions_table.id_column, use_sessions_table.user_id_column,
        use_sessions_table.time_zone_column
    );
    return v_added;
end;
$$;
comment on function pgrecall.use_sessions_table(regclass, text, text, text, text) is
    'Makes the rows of a table of the host the sessions: those that are there and, by triggers and a foreign key, those that come, change their owner or time zone, or are deleted. Returns how many sessions it added. The same call again changes nothing; other columns of the same table replace the former ones; another table needs use_own_sessions() first. Sessions that the table does not have: orphans => refuse or delete. Called by people, as owner of pgrecall''s tables with select, trigger and references on the host''s. Locks: until the end of the transaction, writers of both tables wait; with a key that is no text also readers of pgrecall.sessions, whose rows are written anew. Raises: PR005 a bad argument, PR008 the table cannot be used as it is (no unique id, a view, lacking rights, orphans), or is not the one in use.';

create or replace function pgrecall._time_expression(host_table regclass, column_name text, naive_times_in text)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    case pgrecall._host_column_type(host_table, column_name)
        when 'timestamptz'::regtype then
            return format('old.%I', column_name);
        when 'timestamp'::regtype then
            if naive_times_in is null then
                raise exception 'column % of % has no time zone', column_name, host_table
                    using
                        errcode = 'PR008',
                        hint = 'Say in which zone its times are, for example naive_times_in => ''UTC''.';
            end if;
            return format('old.%I at time zone %L', column_name, naive_times_in);
        else
            raise exception 'column % of % is of type %, which is not a time', column_name, host_table,
                    pgrecall._host_column_type(host_table, column_name)
                using errcode = 'PR008', hint = 'It must be timestamp with or without time zone.';
    end case;
end;
$$;
comment on function pgrecall._time_expression(regclass, text, text) is
    'SQL for the time in a column of a host''s table. Called by adopt_recalls. Raises: PR008 it is no time, or has no zone.';

create or replace function pgrecall.adopt_recalls(
    old_table regclass,
    mark_as text default 'cancelled',
    naive_times_in text default null
)
returns table (
    recall_id text,
    session_id text,
    trigger_at timestamptz,
    adopted boolean,
    reason text
)
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_missing text;
    v_columns text;
    v_old record;
    v_constraint text;
    v_column text;
    v_taken text[] := '{}';
    v_marked bigint;
begin
    if mark_as is null or mark_as = 'pending' then
        raise exception 'mark_as is %, with which the old scheduler would fire what was adopted', quote_nullable(mark_as)
            using errcode = 'PR005', hint = 'It is the status that adopted rows get in the old table; the default is cancelled.';
    elsif pgrecall.time_zone_error(naive_times_in) is not null then
        raise exception 'naive_times_in: %', pgrecall.time_zone_error(naive_times_in)
            using errcode = 'PR005', hint = 'Use an IANA name such as ''UTC'' or ''Europe/Paris''.';
    end if;
    perform pgrecall._check_host_table(old_table, 'select');
    perform pgrecall._check_host_table(old_table, 'update');
    select string_agg(required.name, ', ' order by required.place)
    into v_missing
    from unnest(array['id', 'session_id', 'trigger_at', 'status', 'additional_context_message'])
        with ordinality as required (name, place)
    where pgrecall._host_column_type(old_table, required.name) is null;
    if v_missing is not null then
        raise exception '% has no column %', old_table, v_missing
            using
                errcode = 'PR008',
                hint = 'Needed are id, session_id, trigger_at, status and additional_context_message; taken too if there: call_type, interval_seconds, internal_comment, created_at.';
    end if;
    -- As text, so that a value that does not fit is that row's own error.
    select
        'old.id::text as id, old.session_id::text as session_id, old.additional_context_message::text as message, '
        || pgrecall._time_expression(old_table, 'trigger_at', naive_times_in) || ' as trigger_at, '
        || case
            when pgrecall._host_column_type(old_table, 'created_at') is null then 'null::timestamptz'
            else pgrecall._time_expression(old_table, 'created_at', naive_times_in)
        end || ' as created_at, '
        || string_agg(
            format(
                case when pgrecall._host_column_type(old_table, optional.name) is null
                    then 'null::text as %I' else 'old.%1$I::text as %1$I' end,
                optional.name
            ), ', '
        )
    into v_columns
    from unnest(array['call_type', 'interval_seconds', 'internal_comment']) as optional (name);

    -- Exclusive also keeps out SELECT … FOR UPDATE: a scheduler that is firing a row has ended its transaction before
    -- we look, and finds the row gone when it looks again.
    execute format('lock table %s in exclusive mode', old_table);
    for v_old in
        execute format(
            'select %s from %s as old where old.status = ''pending'' order by old.trigger_at, old.id', v_columns, old_table
        )
    loop
        recall_id := v_old.id;
        session_id := v_old.session_id;
        -- Null for what a driver may not be able to read: the reason names it.
        trigger_at := case
            when v_old.trigger_at >= '0001-01-02 00:00:00+00' and v_old.trigger_at < '9999-12-31 00:00:00+00'
                then v_old.trigger_at
        end;
        adopted := false;
        reason := null;
        begin
            insert into pgrecall.sessions (id)
            values (v_old.session_id)
            on conflict (id) do nothing;
            insert into pgrecall.session_recalls (
                id, session_id, call_type, trigger_at, interval_seconds, internal_comment, additional_context_message,
                created_at, metadata
            )
            values (
                v_old.id,
                v_old.session_id,
                coalesce(v_old.call_type, 'once'),
                v_old.trigger_at,
                v_old.interval_seconds::integer,
                v_old.internal_comment,
                v_old.message,
                coalesce(v_old.created_at, pgrecall.clock()),
                jsonb_build_object('adopted_from', old_table::text)
            );
            adopted := true;
            v_taken := v_taken || v_old.id;
        exception
            when others then
                -- What is about the row is reported with it; what is about the server ends all of it.
                if not (pgrecall._is_about_a_row(sqlstate) or sqlstate = 'PR008') then
                    raise;
                end if;
                get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
                reason := case
                    when v_old.session_id is null then 'session_id is null'
                    when v_constraint = 'one_pending_recall_per_session' then 'its session has a pending recall already'
                    when v_constraint = 'session_recalls_pkey' then 'there is a recall with this id already'
                    when sqlstate = '23514' then replace(v_constraint, '_', ' ')
                    when sqlstate = '23502' then v_column || ' is null'
                    else sqlerrm
                end;
        end;
        return next;
    end loop;

    begin
        execute format(
            'update %s as old set status = %L where old.status = ''pending'' and old.id::text = any($1)', old_table, mark_as
        )
        using v_taken;
        get diagnostics v_marked = row_count;
    exception
        when others then
            if not pgrecall._is_about_a_row(sqlstate) then
                raise;
            end if;
            raise exception '% refuses to mark what was adopted as %: %', old_table, quote_literal(mark_as), sqlerrm
                using errcode = 'PR008', hint = 'Nothing was adopted. Say mark_as => a status that the table allows.';
    end;
    if v_marked = cardinality(v_taken) then
        -- A trigger of the table may have put the status back.
        execute format(
            'select $2 - count(*) from %s as old where old.status = ''pending'' and old.id::text = any($1)', old_table
        )
        into v_marked
        using v_taken, v_marked;
    end if;
    if v_marked <> cardinality(v_taken) then
        raise exception 'of % rows to adopt, % could be marked as % in %',
                cardinality(v_taken), v_marked, quote_literal(mark_as), old_table
            using
                errcode = 'PR008',
                hint = 'Nothing was adopted. A trigger of the table keeps its rows as they are, or its ids are not unique.';
    end if;
end;
$$;
comment on function pgrecall.adopt_recalls(regclass, text, text) is
    'Takes over the pending recalls of another table with the columns of session_recalls: same id (as text), same trigger_at, so that those that are overdue fire at once; the session is made if there is none. In the old table they are marked as mark_as, so that nobody else fires them. Returns one row for each pending recall found; those that cannot be taken stay as they are, with the reason. All or nothing otherwise; call it again for what has come since. naive_times_in: the zone of times that have none. Called by people, with select and update on the old table. Locks: the old table, exclusively, until the end of the transaction: readers go on, writers and FOR UPDATE wait. Raises: PR005 a bad argument, PR008 the table has not what it takes. Notifies: at commit, as any new recall.';
