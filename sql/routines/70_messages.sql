-- The default history store.

create or replace function pgrecall.append_messages(session_id text, messages jsonb)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_added integer;
begin
    if jsonb_typeof(messages) <> 'array' or jsonb_path_exists(messages, 'strict $[*] ? (@.type() <> "object")') then
        raise exception 'messages is not an array of objects: %', left(messages::text, 100)
            using errcode = 'PR005', hint = 'For example ''[{"role": "user", "content": "Hello."}]''.';
    end if;
    insert into pgrecall.session_messages (
        session_id, id, role, content, model_text, in_history, in_context, metadata, created_at
    )
    select
        append_messages.session_id,
        coalesce(message.value ->> 'id', pgrecall.new_id()),
        message.value ->> 'role',
        coalesce(message.value ->> 'content', ''),
        message.value ->> 'model_text',
        coalesce((message.value ->> 'in_history')::boolean, true),
        coalesce((message.value ->> 'in_context')::boolean, true),
        coalesce(message.value -> 'metadata', '{}'),
        coalesce((message.value ->> 'created_at')::timestamptz, pgrecall.clock())
    from jsonb_array_elements(messages) with ordinality as message (value, place)
    order by message.place
    on conflict on constraint message_id_is_unique_in_its_session do update
    set content = excluded.content,
        model_text = excluded.model_text,
        role = excluded.role,
        in_history = excluded.in_history,
        in_context = excluded.in_context,
        metadata = excluded.metadata;
    get diagnostics v_added = row_count;
    return v_added;
exception
    when foreign_key_violation then
        perform pgrecall._missing_session(append_messages.session_id);
    when cardinality_violation then
        raise exception 'messages has the same id twice'
            using errcode = 'PR005', hint = 'Leave the ids out for new ones.';
    when data_exception then
        raise exception 'messages has a value that is not of its type: %', left(sqlerrm, 500)
            using
                errcode = 'PR005',
                hint = 'in_history and in_context are true or false, created_at is a time with a zone.';
    when program_limit_exceeded then
        raise exception 'session_id %, or an id in messages, is too long', quote_literal(left(session_id, 255))
            using errcode = 'PR005', hint = 'They have at most 255 and 512 characters.';
end;
$$;
comment on function pgrecall.append_messages(text, jsonb) is
    'Adds messages to a session in the order given and returns how many were written. Each is an object with role and content, and optionally id, model_text, in_history, in_context, metadata and created_at. A message whose id the session has already is replaced in its place, so that the same call can be made again. Raises: PR002 no such session, PR005 not an array of such objects, or one id twice, or a named CHECK.';
