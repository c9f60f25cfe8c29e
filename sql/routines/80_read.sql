-- Single look-ups for people and programs.

create or replace function pgrecall.get_recall(recall_id text)
returns pgrecall.session_recalls
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
begin
    select known.*
    into v_recall
    from pgrecall.session_recalls as known
    where known.id = get_recall.recall_id;
    if not found then
        perform pgrecall._missing_recall(get_recall.recall_id);
    end if;
    return v_recall;
end;
$$;
comment on function pgrecall.get_recall(text) is 'One recall by its id. Raises: PR003 no such recall.';

create or replace function pgrecall.get_runs(recall_id text, "limit" integer default 50)
returns setof pgrecall.recall_runs
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if "limit" is null or "limit" < 0 then
        raise exception 'limit is %, but must be 0 or more', coalesce("limit"::text, 'null')
            using errcode = 'PR005', hint = 'The default is 50.';
    end if;
    return query
    select run.*
    from pgrecall.recall_runs as run
    where run.recall_id = get_runs.recall_id
    order by run.id desc
    limit "limit";
end;
$$;
comment on function pgrecall.get_runs(text, integer) is
    'What happened to a recall: its runs and the occurrences that did not run, newest first. Raises: PR005 for a limit below 0.';
