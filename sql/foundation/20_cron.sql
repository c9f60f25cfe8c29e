-- Cron in SQL: when does an expression name the next minute, in which time zone, across which clock changes.
--
-- cron_next() and cron_error() share one reading of the text: _cron_fields() splits it, _cron_field() turns one field
-- into bits. _cron_next_local() then works on wall-clock time alone; only cron_next() knows that zones exist.
--
-- The reading is that of Debian cron as the Python package cronsim states it (and tests/sql/test_cron.py compares).
-- The bits of a field: bit n stands for the value n. Two fields carry more than that:
--     day of month  bit 32 is L (last day), bit 33 is LW (last day from Monday to Friday)
--     day of week   bit 7 * (n - 1) + d is the n-th weekday d of a month, n from 1 to 5, so that a plain weekday sets
--                   five bits; bit 35 + d is the last weekday d of a month

create or replace function pgrecall._cron_fields(expression text)
returns text[]
language sql
immutable
strict
parallel safe
set search_path = pg_catalog, pg_temp
begin atomic
    -- Collation "C" keeps the result immutable: a Turkish locale would not turn 'fri' into 'FRI'.
    select
        case upper(btrim(spaced.line))
            when '@HOURLY' then array['0', '*', '*', '*', '*']
            when '@DAILY' then array['0', '0', '*', '*', '*']
            when '@MIDNIGHT' then array['0', '0', '*', '*', '*']
            when '@WEEKLY' then array['0', '0', '*', '*', '0']
            when '@MONTHLY' then array['0', '0', '1', '*', '*']
            when '@YEARLY' then array['0', '0', '1', '1', '*']
            when '@ANNUALLY' then array['0', '0', '1', '1', '*']
            else array_remove(string_to_array(spaced.line, ' '), '')
        end
    from (select translate(expression, E'\t\n\f\r\x0B', '     ') collate "C" as line) as spaced;
end;

comment on function pgrecall._cron_fields(text) is
'Splits a cron expression into its fields, with a macro such as @daily written out.
Called by: cron_error, cron_next. Raises: nothing.';


create or replace function pgrecall._cron_field(place integer, field text)
returns bigint
language plpgsql
immutable
strict
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    v_low constant integer := (array[0, 0, 1, 1, 0])[place];
    v_high constant integer := (array[59, 23, 31, 12, 7])[place];
    v_names constant text[] collate "C" := case place
        when 4 then array['JAN', 'FEB', 'MAR', 'APR', 'MAY', 'JUN', 'JUL', 'AUG', 'SEP', 'OCT', 'NOV', 'DEC']
        when 5 then array['SUN', 'MON', 'TUE', 'WED', 'THU', 'FRI', 'SAT']
    end;
    -- One bit at the same weekday of each of the five weeks: 2^0 + 2^7 + 2^14 + 2^21 + 2^28.
    v_every_week constant bigint := 270549121;
    v_term text collate "C";
    v_part text[] collate "C";
    v_token text collate "C";
    v_number integer;
    v_range integer[];
    v_step integer;
    v_bits bigint := 0;
begin
    foreach v_term in array string_to_array(upper(field collate "C"), ',') loop
        -- 1 star, 2 L or LW, 3 from, 4 to, 5 nth weekday, 6 last weekday, 7 step
        v_part := regexp_match(
            v_term,
            '^(?:([*])|(LW?)|([0-9]+|[A-Z]{3})(?:-([0-9]+|[A-Z]{3})|#([0-9]+)|(?<=[0-9])(L))?)(?:/([0-9]+))?$'
        );
        if v_part is null
            or (v_part[2] is not null and place <> 3)
            or (coalesce(v_part[5], v_part[6]) is not null and (place <> 5 or v_part[7] is not null))
        then
            return null;
        end if;

        -- Digits are counted before they are cast: no number in the text may overflow an integer.
        v_step := case
            when v_part[7] is null then 1
            when length(ltrim(v_part[7], '0')) <= 2 then v_part[7]::integer
            else 100
        end;
        if v_step = 0 then
            return null;
        end if;

        v_range := array[v_low, v_high];
        if v_part[3] is not null then
            v_range := null;
            foreach v_token in array array[v_part[3], coalesce(v_part[4], v_part[3])] loop
                v_number := case
                    when v_token !~ '^[0-9]' then v_low - 1 + array_position(v_names, v_token)
                    when length(ltrim(v_token, '0')) <= 2 then v_token::integer
                end;
                if v_number is null or v_number not between v_low and v_high then
                    return null;
                end if;
                v_range := v_range || v_number;
            end loop;
            if v_range[1] > v_range[2] then
                return null;
            end if;
        end if;

        if v_part[2] is not null then
            v_bits := v_bits | (1::bigint << case v_part[2] when 'L' then 32 else 33 end);
        elsif v_part[5] is not null then
            v_number := case when length(ltrim(v_part[5], '0')) = 1 then v_part[5]::integer end;
            if v_number is null or v_number > 5 then
                return null;
            end if;
            v_bits := v_bits | (1::bigint << (7 * (v_number - 1) + v_range[1] % 7));
        elsif v_part[6] is not null then
            v_bits := v_bits | (1::bigint << (35 + v_range[1] % 7));
        else
            -- "5/15" is the range from 5 to the end in steps of 15; so is "5-5/15".
            if v_part[7] is not null and v_range[1] = v_range[2] then
                v_range[2] := v_high;
            end if;
            for v_value in v_range[1]..v_range[2] by v_step loop
                v_bits := v_bits | case place
                    when 5 then v_every_week << (v_value % 7)
                    else 1::bigint << v_value
                end;
            end loop;
        end if;
    end loop;
    return nullif(v_bits, 0);
end;
$$;

comment on function pgrecall._cron_field(integer, text) is
'Turns the field at a place (1 minute, 2 hour, 3 day of month, 4 month, 5 day of week) into bits, null if it is invalid.
The bits are explained at the top of 20_cron.sql. Called by: cron_error, cron_next. Raises: nothing.';


create or replace function pgrecall.cron_error(expression text)
returns text
language plpgsql
immutable
strict
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    v_names constant text[] := array['minute', 'hour', 'day of month', 'month', 'day of week'];
    v_allowed constant text[] := array[
        '0-59',
        '0-23',
        '1-31, L (last day), LW (last day from Monday to Friday)',
        '1-12 or jan-dec',
        '0-7 or sun-sat (0 and 7 are Sunday), 5#2 (second Friday), 5L (last Friday)'
    ];
    -- Collation "C" also because a column may have one that patterns do not work with.
    v_fields text[] collate "C";
    v_term text collate "C";
    v_days bigint;
    v_months bigint;
begin
    -- The length bounds the work on text from outside and lets a message quote it.
    if length(expression) > 1000 then
        return format('a cron expression has at most 1000 characters, this one has %s', length(expression));
    end if;

    v_fields := pgrecall._cron_fields(expression);
    if v_fields[1] like '@%' then
        return format(
            'unknown cron macro ''%s'': '
            'allowed are @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually',
            left(array_to_string(v_fields, ' '), 60)
        );
    end if;
    if cardinality(v_fields) <> 5 then
        return format(
            'a cron expression has 5 fields (minute, hour, day of month, month, day of week) as in ''0 9 * * 1-5'', '
            'or is a macro such as @daily; this one has %s: ''%s''',
            cardinality(v_fields),
            left(array_to_string(v_fields, ' '), 60)
        );
    end if;

    for v_place in 1..5 loop
        if pgrecall._cron_field(v_place, v_fields[v_place]) is null then
            -- Name the first bad term of a list; a list may also end in a comma, and then its bad term is empty.
            foreach v_term in array string_to_array(v_fields[v_place], ',') loop
                exit when pgrecall._cron_field(v_place, v_term) is null;
            end loop;
            return format(
                'bad %s ''%s'' in cron expression: allowed are %s, and *, lists (1,2), ranges from low to high (1-5) '
                'and steps (*/2, 1-5/2)',
                v_names[v_place],
                left(v_term, 60),
                v_allowed[v_place]
            );
        end if;
    end loop;

    -- '0 9 31 2 *' names no day. Where either day field is enough, the day of week still finds one.
    if v_fields[3] like '*%' or v_fields[5] like '*%' then
        v_days := pgrecall._cron_field(3, v_fields[3]);
        v_months := pgrecall._cron_field(4, v_fields[4]);
        if v_days & ((1::bigint << 30) - 1) = 0 and v_days >> 32 = 0
            -- 30 or 31 and only February; 31 and only February, April, June, September, November
            and (v_months = 1 << 2 or (v_days = 1::bigint << 31 and v_months & ~2644 = 0))
        then
            return format(
                'bad day of month ''%s'' in cron expression: month ''%s'' has no such day',
                left(v_fields[3], 60),
                left(v_fields[4], 60)
            );
        end if;
    end if;
    return null;
end;
$$;

comment on function pgrecall.cron_error(text) is
'Says what is wrong with a cron expression and what is allowed there, null if it is valid (or null).
Valid are the five fields of Debian cron, any case: minute 0-59, hour 0-23, day of month 1-31, month 1-12 or jan-dec,
day of week 0-7 or sun-sat (0 and 7 are Sunday), each with *, lists, ranges and steps; L and LW as day of month, 5#2 and
5L as day of week; and @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually. A day that none of the months
has, as in ''0 9 31 2 *'', is an error. Called by: check constraints, cron_next, and clients before they schedule.
Raises: nothing, whatever the text.';


create or replace function pgrecall.time_zone_error(time_zone text)
returns text
language plpgsql
stable
strict
set search_path = pg_catalog, pg_temp
-- Takes back, when this function returns, what set_config() does below.
set timezone = 'UTC'
as $$
declare
    v_zone constant text collate "C" := time_zone;
begin
    -- Without a slash a name may be an abbreviation, which PostgreSQL takes for a fixed offset (CET without summer).
    -- With a number it may be a POSIX zone, which PostgreSQL accepts for any name and with the sign reversed: Foo/Bar+3
    -- lies west of Greenwich. Names that can be neither are safe to hand to the server.
    if v_zone !~* '^(utc|gmt|etc/gmt(0|[+-][0-9]|[+-]1[0-2]|-1[34])|[a-z_]+(/[a-z_]+(-[a-z_]+)*)+)$' then
        return format(
            '''%s'' is not an IANA time zone name such as ''Europe/Berlin'' or ''UTC''; see pg_timezone_names',
            left(v_zone, 60)
        );
    end if;

    -- Cheaper than pg_timezone_names, which reads every zone file: this reads one, once in a session.
    begin
        perform set_config('timezone', v_zone, true);
    exception
        when invalid_parameter_value then
            return format('''%s'' is not a time zone this server knows; see pg_timezone_names', left(v_zone, 60));
    end;

    -- The server ignores case, clients (Python's zoneinfo on Linux) do not: keep the one spelling that all can read.
    if current_setting('timezone') <> v_zone then
        return format('time zone ''%s'' is spelled ''%s''', v_zone, current_setting('timezone'));
    end if;
    return null;
end;
$$;

comment on function pgrecall.time_zone_error(text) is
'Says why a text is not the name of a time zone, null if this server knows it as an IANA name (or if it is null).
Valid are Area/City and Etc/ names, UTC and GMT, in the spelling of pg_timezone_names. One-word names (CET, EST, Japan)
are refused because PostgreSQL may read them as a fixed offset, POSIX strings (Foo+3) because it accepts any.
Called by: cron_next, and the routines that store a time zone. Raises: nothing, whatever the text.';


create or replace function pgrecall._cron_next_local(fields bigint[], both_days boolean, after timestamp)
returns timestamp
language plpgsql
immutable
strict
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    v_minutes constant bigint := fields[1];
    v_hours constant bigint := fields[2];
    v_days constant bigint := fields[3];
    v_months constant bigint := fields[4];
    v_weekdays constant bigint := fields[5];
    v_from constant timestamp := date_trunc('minute', after) + interval '1 minute';
    v_minute integer := extract(minute from v_from);
    v_hour integer := extract(hour from v_from);
    v_day integer := extract(day from v_from);
    v_month timestamp := date_trunc('month', v_from);
    v_last_day integer;
    v_first_weekday integer;
    v_weekday integer;
    v_is_day boolean;
    v_is_weekday boolean;
    v_later bigint;
begin
    -- 29 February falls on a given weekday every 28 years, across 2100 every 40: what 50 years do not hold never is.
    for v_tried in 0..50 * 12 loop
        if (v_months >> extract(month from v_month)::integer) & 1 = 1 then
            v_last_day := extract(day from v_month + interval '1 month' - interval '1 day');
            v_first_weekday := extract(dow from v_month);
            while v_day <= v_last_day loop
                v_weekday := (v_first_weekday + v_day - 1) % 7;
                v_is_day := (v_days >> v_day) & 1 = 1
                    or ((v_days >> 32) & 1 = 1 and v_day = v_last_day)
                    or (
                        (v_days >> 33) & 1 = 1
                        and v_weekday between 1 and 5
                        and (v_day = v_last_day or (v_weekday = 5 and v_day + 2 >= v_last_day))
                    );
                v_is_weekday := (v_weekdays >> ((v_day - 1) / 7 * 7 + v_weekday)) & 1 = 1
                    or ((v_weekdays >> (35 + v_weekday)) & 1 = 1 and v_day + 7 > v_last_day);

                if (v_is_day and v_is_weekday) or (not both_days and (v_is_day or v_is_weekday)) then
                    -- The lowest bit that is set is the next allowed value; bit_count() counts the zeros under it.
                    v_later := v_minutes >> v_minute;
                    if (v_hours >> v_hour) & 1 = 0 or v_later = 0 then
                        v_later := v_hours >> (v_hour + 1);
                        v_hour := case
                            when v_later <> 0 then v_hour + 1 + bit_count(((v_later & -v_later) - 1)::bit(64))
                        end;
                        v_minute := 0;
                        v_later := v_minutes;
                    end if;
                    if v_hour is not null then
                        v_minute := v_minute + bit_count(((v_later & -v_later) - 1)::bit(64));
                        return v_month + make_interval(days => v_day - 1, hours => v_hour, mins => v_minute);
                    end if;
                end if;
                v_day := v_day + 1;
                v_hour := 0;
                v_minute := 0;
            end loop;
        end if;
        v_month := v_month + interval '1 month';
        v_day := 1;
        v_hour := 0;
        v_minute := 0;
    end loop;
    return null;
end;
$$;

comment on function pgrecall._cron_next_local(bigint[], boolean, timestamp) is
'Finds the first wall-clock minute after a wall-clock time that five fields name, null if there is none in 50 years.
Knows no time zone. Called by: cron_next. Raises: nothing.';


create or replace function pgrecall.cron_next(expression text, time_zone text, after timestamptz)
returns timestamptz
language plpgsql
stable
strict
set search_path = pg_catalog, pg_temp
-- A difference of wall clocks may be a whole day (where a date was repeated): a day must mean 24 hours here.
set timezone = 'UTC'
as $$
declare
    v_error constant text := coalesce(pgrecall.cron_error(expression), pgrecall.time_zone_error(time_zone));
    v_fields text[] collate "C";
    v_bits bigint[];
    v_both_days boolean;
    v_follows_clock boolean;
    v_here timestamp;
    v_start timestamp;
    v_local timestamp;
    v_first timestamptz;
    v_second timestamptz;
    v_run timestamptz;
    v_next timestamptz;
begin
    if v_error is not null then
        raise exception '%', v_error
            using
                errcode = 'invalid_parameter_value',
                hint = 'Check with pgrecall.cron_error(expression) and pgrecall.time_zone_error(time_zone).';
    end if;
    -- Keeps clear of the ends of the type, and of infinity, where the arithmetic below would raise.
    if after not between timestamptz '0001-01-02 00:00:00+00' and timestamptz '9999-12-31 00:00:00+00' then
        return null;
    end if;

    v_fields := pgrecall._cron_fields(expression);
    for v_place in 1..5 loop
        v_bits := v_bits || pgrecall._cron_field(v_place, v_fields[v_place]);
    end loop;
    -- Debian's rule looks at the first character only: '*/2' in a day field joins with "and", a list without a star
    -- with "or"; '*/5' minutes make a job that follows the clock, '0-59/5' do not.
    v_both_days := v_fields[3] like '*%' or v_fields[5] like '*%';
    v_follows_clock := v_fields[1] like '*%' or v_fields[2] like '*%';

    -- PostgreSQL reads a wall-clock time that occurs twice as its second occurrence. So these differ while the clock is
    -- about to be put back: then times up to v_here come again, and a job that follows the clock may be due at one.
    v_here := after at time zone time_zone;
    v_second := v_here at time zone time_zone;
    foreach v_start in array case
        when v_follows_clock and v_second > after then array[v_here, v_here - (v_second - after)]
        else array[v_here]
    end loop
        v_local := v_start;
        loop
            v_local := pgrecall._cron_next_local(v_bits, v_both_days, v_local);
            exit when v_local is null;

            v_second := v_local at time zone time_zone;
            v_run := null;
            if v_second at time zone time_zone = v_local then
                -- If the clock was put back within 24 hours, by so much, then this time may have been there before.
                v_first := v_second
                    - (((v_second - interval '24 hours') at time zone time_zone) - (v_local - interval '24 hours'));
                if v_first > v_second or v_first at time zone time_zone <> v_local then
                    v_first := v_second;
                end if;
                v_run := case
                    when v_follows_clock and v_first <= after then v_second
                    else v_first
                end;
            elsif not v_follows_clock then
                -- The clock is put forward over this time: it runs at the first minute after the gap.
                while v_second at time zone time_zone <> v_local loop
                    v_local := v_local + interval '1 minute';
                    v_second := v_local at time zone time_zone;
                end loop;
                v_run := v_second;
            end if;
            exit when v_run > after;
        end loop;
        if v_local is not null then
            v_next := least(v_next, v_run);
        end if;
    end loop;
    return v_next;
end;
$$;

comment on function pgrecall.cron_next(text, text, timestamptz) is
'Finds the first time strictly after a given one that a cron expression names in a time zone, null if there is none.
Days: where day of month and day of week are both restricted (neither starts with *), either is enough; otherwise both
must match. Clock changes, as in Debian cron: a job at fixed times (neither minute nor hour starts with *) runs once
when its time occurs twice, at the first of them, and right after the gap when its time is skipped; a job with a
wildcard minute or hour follows the real clock, twice through a repeated hour and not at all for a skipped one.
The search ends after 50 years; null also outside the years 1 to 9999, at infinity and for a null argument.
Called by: the routines that schedule a next occurrence, and anyone for a preview. Raises: 22023 (with the text of
cron_error or time_zone_error).';
