-- Reading the audit; 35_audit.sql writes it.

create or replace function pgrecall.get_audit(
    recall_id text default null,
    session_id text default null,
    user_id text default null,
    since timestamptz default null,
    "limit" integer default 50
)
returns setof pgrecall.audit
language plpgsql
stable
security definer
-- Planned for the filters that are given: each has an index of its own.
set plan_cache_mode = force_custom_plan
set search_path = pg_catalog, pg_temp
as $$
begin
    if "limit" is null or "limit" < 0 then
        raise exception 'limit is %, but must be 0 or more', coalesce("limit"::text, 'null')
            using errcode = 'PR005', hint = 'The default is 50.';
    end if;
    return query
    select change.*
    from pgrecall.audit as change
    where (
            get_audit.recall_id is null
            or change.object = 'session_recalls' and change.object_id = get_audit.recall_id
        )
        and (get_audit.session_id is null or change.session_id = get_audit.session_id)
        and (
            get_audit.user_id is null
            or change.owner_id = get_audit.user_id
            or change.user_id = get_audit.user_id
        )
        and (get_audit.since is null or change.changed_at >= get_audit.since)
    order by change.id desc
    limit "limit";
end;
$$;
comment on function pgrecall.get_audit(text, text, text, timestamptz, integer) is
    'Who changed what by hand, newest first: all, or what was done to one recall, in one session, or to what belongs to one user and by that user. Called by operators. Raises: PR005 for a limit below 0.';
