-- The default history store.

create or replace function pgrecall.append_messages(session_id text, messages jsonb)
returns integer
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_added integer;
begin
    insert into pgrecall.session_messages (session_id, id, role, content, in_history, in_context, metadata, created_at)
    select
        append_messages.session_id,
        coalesce(message.value ->> 'id', pgrecall.new_id()),
        message.value ->> 'role',
        coalesce(message.value ->> 'content', ''),
        coalesce((message.value ->> 'in_history')::boolean, true),
        coalesce((message.value ->> 'in_context')::boolean, true),
        coalesce(message.value -> 'metadata', '{}'),
        coalesce((message.value ->> 'created_at')::timestamptz, pgrecall.clock())
    from jsonb_array_elements(messages) with ordinality as message (value, place)
    order by message.place
    on conflict on constraint message_id_is_unique_in_its_session do update
    set content = excluded.content,
        role = excluded.role,
        in_history = excluded.in_history,
        in_context = excluded.in_context,
        metadata = excluded.metadata;
    get diagnostics v_added = row_count;
    return v_added;
exception
    when foreign_key_violation then
        raise exception 'no session with id %', quote_literal(append_messages.session_id)
            using
                errcode = 'PR002',
                detail = append_messages.session_id,
                hint = 'Insert it first: insert into pgrecall.sessions (id) values (…).';
end;
$$;
comment on function pgrecall.append_messages(text, jsonb) is
    'Adds messages to a session in the order given and returns how many were written. Each is an object with role and content, and optionally id, in_history, in_context, metadata and created_at. A message whose id the session has already is replaced in its place, so that the same call can be made again. Raises: PR002 no such session.';
