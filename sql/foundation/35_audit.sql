-- The audit: who changed what by hand. What writes it; get_audit() reads it.
--
-- A worker's own changes are told apart by columns that nobody else may write: every claim and every end of a run moves
-- session_recalls.run_id, and all that the engine does between them leaves the request, the status and the pause of a
-- recall alone (30_wake.sql, _before_recall_update). For the few changes of which neither is true a function has a row
-- in unaudited while it makes them. No setting of a connection has a part in it: those can be set by anybody.

create or replace function pgrecall._audit_shown(columns jsonb)
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(
        jsonb_object_agg(
            shown.key,
            case
                when shown.key not in ('additional_context_message', 'internal_comment', 'last_error', 'metadata', 'payload')
                    then shown.value
                when jsonb_typeof(shown.value) = 'null' then shown.value
                when shown.key in ('metadata', 'payload') then to_jsonb('not kept'::text)
                else to_jsonb(length(shown.value #>> '{}') || ' characters')
            end
        ),
        '{}'
    )
    from jsonb_each(columns) as shown;
$$;
comment on function pgrecall._audit_shown(jsonb) is
    'What the audit keeps of some columns: of the words of people their length, of JSON that the host has put there nothing. The audit must be able to outlive what was said. Called by _audit.';

create or replace function pgrecall._audit(
    action text,
    object text,
    object_id text,
    session_id text,
    old jsonb,
    new jsonb,
    owner_id text default null
)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    -- What follows from another change, from a hold or from the passing of time is nobody's doing.
    v_derived constant text[] := array[
        'updated_at', 'due_at', 'attempt', 'not_before', 'deferrals', 'defer_reason', 'deferred_since', 'failures',
        'active_at', 'run_id', 'holder', 'held_since', 'held_until', 'line_until', 'interrupted_by', 'wanted_by',
        'has_waiting', 'next_at', 'ended_at', 'response_status'
    ];
    v_old jsonb := _audit.old;
    v_new jsonb := _audit.new;
begin
    if exists (select from pgrecall.unaudited) then
        return;
    elsif action = 'update' then
        select jsonb_object_agg(was.key, was.value), jsonb_object_agg(was.key, _audit.new -> was.key)
        into v_old, v_new
        from jsonb_each(_audit.old) as was
        where was.value is distinct from _audit.new -> was.key
            and was.key <> all(v_derived);
        if v_old is null then
            return;
        end if;
    elsif action in ('insert', 'delete') then
        v_old := jsonb_strip_nulls(v_old);
        v_new := jsonb_strip_nulls(v_new);
    end if;
    insert into pgrecall.audit (
        changed_at, role, login, user_id, application_name, client_address, action, object, object_id, session_id,
        owner_id, old, new
    )
    values (
        pgrecall.clock(), pgrecall._caller(), session_user, pgrecall.current_user_id(),
        nullif(current_setting('application_name'), ''), inet_client_addr(), _audit.action, _audit.object,
        _audit.object_id, _audit.session_id,
        coalesce(
            _audit.owner_id,
            (select owned.user_id from pgrecall.sessions as owned where owned.id = _audit.session_id)
        ),
        case when v_old is not null then pgrecall._audit_shown(v_old) end,
        case when v_new is not null then pgrecall._audit_shown(v_new) end
    );
end;
$$;
comment on function pgrecall._audit(text, text, text, text, jsonb, jsonb, text) is
    'Writes one row into the audit; of an update the columns that differ, and nothing if none does. Called by trigger functions, and by functions that run with their owner''s rights: nobody else can write there.';

create or replace function pgrecall._after_change_by_hand()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_old jsonb;
    v_new jsonb;
    v_row jsonb;
    v_session_id text;
begin
    if tg_op <> 'INSERT' then
        v_old := to_jsonb(old);
    end if;
    if tg_op <> 'DELETE' then
        v_new := to_jsonb(new);
    end if;
    v_row := coalesce(v_old, v_new);
    v_session_id := case tg_table_name when 'sessions' then v_row ->> 'id' else v_row ->> 'session_id' end;
    if tg_table_name = 'deliveries' then
        -- A worker ends a delivery; it neither sends it elsewhere nor begins anew.
        if v_old -> 'url' = v_new -> 'url' and not (v_old ->> 'status' <> 'pending' and v_new ->> 'status' = 'pending') then
            return null;
        end if;
    elsif tg_op = 'DELETE' and tg_table_name in ('session_recalls', 'pauses') then
        -- Gone with its session, which has a row of its own here; or the pause was over.
        if (v_row ->> 'paused_until')::timestamptz <= pgrecall.clock() and tg_table_name = 'pauses'
            or v_session_id is not null
            and not exists (select from pgrecall.sessions as known where known.id = v_session_id)
        then
            return null;
        end if;
    end if;
    perform pgrecall._audit(
        lower(tg_op), tg_table_name, v_row ->> 'id', v_session_id, v_old, v_new,
        case when tg_table_name in ('sessions', 'pauses') then v_row ->> 'user_id' end
    );
    return null;
end;
$$;
comment on function pgrecall._after_change_by_hand() is
    'Writes a change into the audit unless it is a worker''s. Called by the triggers of the audit, at the end of the statement: what a host''s trigger has vetoed has not been changed.';
