-- What is reported about a run by somebody else than its worker: an agent that was handed its work and calls back.

create or replace function pgrecall._is_open(recall pgrecall.session_recalls)
returns boolean
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when recall.run_id is not null then recall.status = 'running'
        -- Between two tries: a recurring recall whose occurrence has ended is at another time.
        else recall.status in ('pending', 'running') and recall.trigger_at = recall.nominal_at
    end;
$$;
comment on function pgrecall._is_open(pgrecall.session_recalls) is
    'Whether the occurrence of nominal_at is in a run, or will be tried again. Called by report_run and _forget_reports.';

create or replace function pgrecall._forget_reports(recall_id text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Hardly any recall has one, and each that ends comes here.
    if not exists (
        select
        from pgrecall.run_reports as report
        where _forget_reports.recall_id is null
            or report.recall_id = _forget_reports.recall_id
    ) then
        return;
    end if;
    delete from pgrecall.run_reports
    where (run_reports.recall_id, run_reports.nominal_at) in (
        select report.recall_id, report.nominal_at
        from pgrecall.run_reports as report
        where (_forget_reports.recall_id is null or report.recall_id = _forget_reports.recall_id)
            and not exists (
                select
                from pgrecall.session_recalls as recall
                where recall.id = report.recall_id
                    and recall.nominal_at = report.nominal_at
                    and pgrecall._is_open(recall)
            )
        -- What somebody else is forgetting right now need not be waited for.
        for update skip locked
    );
end;
$$;
comment on function pgrecall._forget_reports(text) is
    'Deletes the reports about occurrences of this recall that have ended; null: of all recalls, a table of a few rows. Called by finish, and by report_run for those whose worker died.';

create or replace function pgrecall.report_run(
    run_id bigint,
    reply text default null,
    silent boolean default false,
    error text default null,
    usage jsonb default null,
    messages jsonb default null
)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_recall pgrecall.session_recalls;
    v_run pgrecall.recall_runs;
    v_reply text;
    v_is_new boolean;
begin
    if run_id is null then
        raise exception 'run_id is null'
            using errcode = 'PR005', hint = 'It is in what the agent was told: current_recall(), or the request.';
    elsif jsonb_typeof(usage) <> 'object' then
        raise exception 'usage is not an object: %', left(usage::text, 100)
            using errcode = 'PR005', hint = 'For example {"input_tokens": 1200, "output_tokens": 85}.';
    elsif jsonb_typeof(messages) <> 'array'
        or jsonb_path_exists(messages, 'strict $[*] ? (@.type() <> "object")')
    then
        raise exception 'messages is not an array of objects: %', left(messages::text, 100)
            using errcode = 'PR005', hint = 'For example [{"role": "assistant", "content": "Done."}].';
    elsif error is not null and (reply is not null or messages is not null or silent) then
        raise exception 'a report has an error and an answer'
            using errcode = 'PR005', hint = 'Give error alone, or any of reply, silent and messages.';
    end if;
    select held.*
    into v_recall
    from pgrecall.session_recalls as held
    where held.run_id = report_run.run_id
    for share;
    if not found then
        select known.*
        into v_run
        from pgrecall.recall_runs as known
        where known.id = report_run.run_id;
        if not found then
            raise exception 'there is no run %', report_run.run_id
                using errcode = 'PR003', hint = 'Report with the run_id that the agent was given.';
        end if;
        -- A try that ended without the agent's word (its worker died or stopped, the answer got lost): what the agent
        -- says about it counts for the occurrence, which is tried again.
        select held.*
        into v_recall
        from pgrecall.session_recalls as held
        where held.id = v_run.recall_id
            and held.nominal_at = v_run.nominal_at
        for share;
    end if;
    if not found or not pgrecall._is_open(v_recall) then
        v_reply := coalesce(
            reply,
            (
                select message.value ->> 'content'
                from jsonb_array_elements(messages) with ordinality as message (value, place)
                where message.value ->> 'role' = 'assistant'
                order by message.place desc
                limit 1
            )
        );
        -- The same call again, because its answer got lost.
        if (v_run.outcome in ('success', 'silent') and error is null and v_run.reply is not distinct from v_reply)
            or (v_run.outcome = 'error' and strpos(v_run.error, error) > 0)
        then
            return false;
        end if;
        raise exception 'run % has ended: %', report_run.run_id,
            coalesce(v_run.outcome, 'its recall is ' || v_recall.status)
            using errcode = 'PR004', hint = 'Nobody waits for the report any more; what was reported is not stored.';
    end if;

    perform pgrecall._forget_reports(null);
    insert into pgrecall.run_reports (
        recall_id, nominal_at, run_id, reply, silent, error, usage, messages, created_at
    )
    values (
        v_recall.id, v_recall.nominal_at, report_run.run_id, report_run.reply, coalesce(report_run.silent, false),
        report_run.error, report_run.usage, report_run.messages, pgrecall.clock()
    )
    on conflict do nothing;
    v_is_new := found;
    -- Also if it is there already: the first message may have got lost.
    if v_recall.run_id is not null then
        perform pg_notify('pgrecall', 'report ' || v_recall.run_id);
    end if;
    return v_is_new;
end;
$$;
comment on function pgrecall.report_run(bigint, text, boolean, text, jsonb, jsonb) is
    'Says how a run ended whose agent handed its work to somebody else: its reply, or that there is nothing to say (silent), or an error; what it used, and the messages that the session gets in place of the reply. The worker that waits for it ends the run so. A report about an earlier try of the same occurrence counts for the one under way. The first report counts; false says that this one was not the first, and making the same call again is harmless. Called by callback_app and by whoever has the run_id and the right to call it. Raises: PR003 no such run, PR004 it has ended, PR005 a value that makes no sense. Locks: the recall, shared. Notifies: channel pgrecall, payload ''report <run_id>''.';

create or replace function pgrecall.get_report(run_id bigint)
returns setof pgrecall.run_reports
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
    select report.*
    from pgrecall.session_recalls as recall
    join pgrecall.run_reports as report on report.recall_id = recall.id and report.nominal_at = recall.nominal_at
    where recall.run_id = get_report.run_id;
$$;
comment on function pgrecall.get_report(bigint) is
    'What was reported about the occurrence that this run tries, with report_run(); no row: nothing yet, or the run has ended. Called by the worker that waits for it.';
