-- What the model is told when a recall fires: a template with placeholders, which the host can replace in settings.

create or replace function pgrecall.default_message_template()
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select '[Scheduled recall] {message}

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: {scheduled_for}
Now: {now}
Late by: {late_by}
Attempt: {attempt} of {max_attempts}
Put off before: {deferrals} times
Next time: {next}';
$$;
comment on function pgrecall.default_message_template() is
    'The text that settings.message_template has unless the host changes it.';

create or replace function pgrecall.message_template_error(template text)
returns text
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    v_unknown text;
begin
    if template is null or position('{message}' in template) = 0 then
        return 'the template does not contain {message}';
    elsif length(template) > 20000 then
        return format('the template has %s characters, but at most 20000 are allowed', length(template));
    end if;
    select string_agg(distinct used.parts[1], ', ')
    into v_unknown
    from regexp_matches(template, '\{[a-z_]+\}', 'g') as used (parts)
    where used.parts[1] not in (
        '{message}', '{recall_id}', '{session_id}', '{scheduled_for}', '{now}', '{late_by}', '{attempt}',
        '{max_attempts}', '{deferrals}', '{next}'
    );
    if v_unknown is not null then
        return format(
            'the template has unknown placeholders: %s. Known are {message}, {recall_id}, {session_id}, '
            '{scheduled_for}, {now}, {late_by}, {attempt}, {max_attempts}, {deferrals} and {next}', v_unknown
        );
    end if;
    return null;
end;
$$;
comment on function pgrecall.message_template_error(text) is
    'What is wrong with a template of the text that the model is told; null: nothing. It must contain {message}, and may contain {recall_id}, {session_id}, {scheduled_for} and {now} (with offset and zone), {late_by}, {attempt}, {max_attempts}, {deferrals} and {next} (the next occurrence, or none).';

create or replace function pgrecall.time_text(moment timestamptz, time_zone text default 'UTC')
returns text
language plpgsql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    v_zone text := coalesce(time_text.time_zone, 'UTC');
    v_local timestamp;
    v_offset interval;
begin
    if not isfinite(moment) then
        return moment::text;
    end if;
    begin
        v_local := moment at time zone v_zone;
    exception
        when invalid_parameter_value or datetime_field_overflow then
            -- A zone that a server upgrade has dropped.
            v_zone := 'UTC';
            v_local := moment at time zone v_zone;
    end;
    v_offset := v_local - (moment at time zone 'UTC');
    return to_char(v_local, 'Dy YYYY-MM-DD HH24:MI:SS')
        || case when v_offset < interval '0' then '-' else '+' end
        || to_char(case when v_offset < interval '0' then -v_offset else v_offset end, 'HH24:MI')
        || ' (' || v_zone || ')';
end;
$$;
comment on function pgrecall.time_text(timestamptz, text) is
    'A time for a model or a person: weekday, date, time, offset and zone, as in Mon 2026-11-23 09:00:00+01:00 (Europe/Paris). A zone that the server does not know is replaced by UTC.';

create or replace function pgrecall.span_text(span interval)
returns text
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    v_seconds bigint;
begin
    if not isfinite(span) then
        return span::text;
    end if;
    v_seconds := floor(extract(epoch from span));
    return case
        when v_seconds < 1 then '0 s'
        when v_seconds < 60 then v_seconds || ' s'
        when v_seconds < 3600 then v_seconds / 60 || ' min ' || v_seconds % 60 || ' s'
        when v_seconds < 86400 then v_seconds / 3600 || ' h ' || v_seconds % 3600 / 60 || ' min'
        else v_seconds / 86400 || ' days ' || v_seconds % 86400 / 3600 || ' h'
    end;
end;
$$;
comment on function pgrecall.span_text(interval) is
    'A length of time for a model or a person, in its two largest units: 12 s, 4 min 10 s, 2 h 5 min, 3 days 4 h. Less than a second, and below zero, is 0 s.';
