"""cron_next, cron_error and time_zone_error: tables of cases, and two oracles.

The first oracle is cronsim, which states the rules of Debian cron. Where pgrecall differs from it, on purpose:

- exactly five fields: cronsim's sixth, seconds, is refused, since a wakeup every second is a bill and not a schedule;
- macros such as @daily are read, as crontab(5) has them;
- fields are separated by ASCII white space, and only ASCII letters change case (cronsim upper-cases all of Unicode);
- at most 1000 characters;
- always later than the time asked about: within the second pass of a repeated hour, cronsim answers with a job at a
  fixed time with its first pass, which is over;
- a job with a wildcard minute or hour does not run for an hour that is skipped: where that hour holds midnight
  (America/Santiago), cronsim makes up a midnight and runs there once;
- such a job misses no minute around a change by 30 minutes (Australia/Lord_Howe): cronsim walks in steps of an hour.

The second oracle tries every minute around clock changes, for the zones where the first one cannot be trusted.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from zoneinfo import ZoneInfo

import psycopg
import pytest
from cronsim import CronSim, CronSimError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

MINUTE = timedelta(minutes=1)


def instant(text: str) -> datetime:
    """Read a time with its offset."""
    return datetime.fromisoformat(text).astimezone(UTC)


def ask(db: psycopg.Connection, call: LiteralString, *arguments: object) -> Any:
    """Return what one function call answers."""
    row = db.execute(call, arguments).fetchone()
    assert row is not None
    return row[0]


def cron_next(db: psycopg.Connection, expression: str, zone: str, after: datetime) -> datetime | None:
    """Return the next time in UTC, where equality is not in doubt around clock changes."""
    found = ask(db, "select pgrecall.cron_next(%s, %s, %s)", expression, zone, after)
    return None if found is None else found.astimezone(UTC)


def runs(db: psycopg.Connection, expression: str, zone: str, after: str, count: int) -> list[str]:
    """Return the next occurrences on the zone's clock, as '25 02:30+01:00'."""
    found: list[str] = []
    at: datetime | None = instant(after)
    while at is not None and len(found) < count:
        at = cron_next(db, expression, zone, at)
        found.append("never" if at is None else at.astimezone(ZoneInfo(zone)).isoformat(" ", "minutes")[8:])
    return found


def cron_error(db: psycopg.Connection, expression: str | None) -> Any:
    """Return what is wrong with an expression, or None."""
    return ask(db, "select pgrecall.cron_error(%s)", expression)


def time_zone_error(db: psycopg.Connection, zone: str) -> Any:
    """Return what is wrong with a time zone, or None."""
    return ask(db, "select pgrecall.time_zone_error(%s)", zone)


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        # fields
        ("* * * * *", "UTC", "2026-01-01 10:00+00:00", "2026-01-01 10:01+00:00"),
        ("* * * * *", "UTC", "2026-01-01 10:00:59.999999+00:00", "2026-01-01 10:01+00:00"),
        ("*/15 * * * *", "UTC", "2026-01-01 10:45+00:00", "2026-01-01 11:00+00:00"),
        ("10-50/20 * * * *", "UTC", "2026-01-01 10:10+00:00", "2026-01-01 10:30+00:00"),
        ("5/15 * * * *", "UTC", "2026-01-01 10:50+00:00", "2026-01-01 11:05+00:00"),
        ("0 9,17 * * *", "UTC", "2026-01-01 09:00+00:00", "2026-01-01 17:00+00:00"),
        ("007 009 * * *", "UTC", "2026-01-01 09:00+00:00", "2026-01-01 09:07+00:00"),
        ("30 8 * * mon-FRI", "UTC", "2026-01-02 08:30+00:00", "2026-01-05 08:30+00:00"),
        ("0 0 1 Jan,jUL *", "UTC", "2026-01-01 00:00+00:00", "2026-07-01 00:00+00:00"),
        ("0 0 * * 0", "UTC", "2026-01-01 00:00+00:00", "2026-01-04 00:00+00:00"),
        ("0 0 * * 7", "UTC", "2026-01-01 00:00+00:00", "2026-01-04 00:00+00:00"),
        ("0 0 * * 6-7", "UTC", "2026-01-03 00:00+00:00", "2026-01-04 00:00+00:00"),
        (" 0\t9  * * * \n", "UTC", "2026-01-01 09:00+00:00", "2026-01-02 09:00+00:00"),
        # macros
        ("@hourly", "UTC", "2026-01-01 10:00+00:00", "2026-01-01 11:00+00:00"),
        ("@daily", "Asia/Kolkata", "2026-01-01 10:00+05:30", "2026-01-02 00:00+05:30"),
        ("@Midnight", "UTC", "2026-01-01 10:00+00:00", "2026-01-02 00:00+00:00"),
        ("@weekly", "UTC", "2026-01-01 10:00+00:00", "2026-01-04 00:00+00:00"),
        (" @monthly ", "UTC", "2026-01-01 10:00+00:00", "2026-02-01 00:00+00:00"),
        ("@yearly", "UTC", "2026-01-01 10:00+00:00", "2027-01-01 00:00+00:00"),
        ("@annually", "UTC", "2026-01-01 10:00+00:00", "2027-01-01 00:00+00:00"),
        # ends of months and years, leap days
        ("59 23 31 12 *", "UTC", "2026-12-31 23:59+00:00", "2027-12-31 23:59+00:00"),
        ("0 0 * * *", "Asia/Kolkata", "2026-12-31 18:29+00:00", "2027-01-01 00:00+05:30"),
        ("0 9 31 * *", "UTC", "2026-03-31 09:00+00:00", "2026-05-31 09:00+00:00"),
        ("0 0 29 2 *", "UTC", "2026-01-01 00:00+00:00", "2028-02-29 00:00+00:00"),
        ("0 0 29 2 *", "UTC", "2096-02-29 00:00+00:00", "2104-02-29 00:00+00:00"),
        ("0 0 29 2 */7", "UTC", "2088-02-29 00:00+00:00", "2128-02-29 00:00+00:00"),
        ("0 9 L * *", "UTC", "2028-02-01 00:00+00:00", "2028-02-29 09:00+00:00"),
        ("0 9 15,L * *", "UTC", "2026-04-15 09:00+00:00", "2026-04-30 09:00+00:00"),
        ("0 9 LW * *", "UTC", "2026-05-01 00:00+00:00", "2026-05-29 09:00+00:00"),
        ("0 9 LW * *", "UTC", "2026-01-01 00:00+00:00", "2026-01-30 09:00+00:00"),
        ("0 9 * * 5L", "UTC", "2026-01-01 00:00+00:00", "2026-01-30 09:00+00:00"),
        ("0 9 * * tue#2", "UTC", "2026-01-01 00:00+00:00", "2026-01-13 09:00+00:00"),
        ("0 9 * * 7#5", "UTC", "2026-01-01 00:00+00:00", "2026-03-29 09:00+00:00"),
        # both day fields: either is enough, unless one starts with a star
        ("0 0 13 * fri", "UTC", "2026-01-01 00:00+00:00", "2026-01-02 00:00+00:00"),
        ("0 0 13 * fri", "UTC", "2026-01-09 00:00+00:00", "2026-01-13 00:00+00:00"),
        ("0 0 */2 * fri", "UTC", "2026-01-01 00:00+00:00", "2026-01-09 00:00+00:00"),
        ("0 0 13 * */5", "UTC", "2026-01-01 00:00+00:00", "2026-02-13 00:00+00:00"),
        ("0 0 *,13 * fri", "UTC", "2026-01-02 00:00+00:00", "2026-01-09 00:00+00:00"),
        ("0 0 31 2 mon", "UTC", "2026-01-01 00:00+00:00", "2026-02-02 00:00+00:00"),
        # no clock change, an offset of its own
        ("30 9 * * *", "Asia/Kolkata", "2026-03-29 04:00+00:00", "2026-03-30 09:30+05:30"),
        ("0 9 * * *", "Etc/GMT+5", "2026-01-01 00:00+00:00", "2026-01-01 09:00-05:00"),
        # the same wall clock on both sides of a change
        ("0 9 * * *", "Europe/Berlin", "2026-03-28 09:00+01:00", "2026-03-29 09:00+02:00"),
        ("0 9 * * *", "America/New_York", "2026-10-31 09:00-04:00", "2026-11-01 09:00-05:00"),
        # a whole day that was skipped
        ("0 9 * * *", "Pacific/Apia", "2011-12-29 09:00-10:00", "2011-12-31 00:00+14:00"),
    ],
)
def test_the_next_time_is_the_first_that_the_expression_names(
    db: psycopg.Connection, expression: str, zone: str, after: str, expected: str
) -> None:
    assert cron_next(db, expression, zone, instant(after)) == instant(expected)


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        # spring: a fixed time in the gap runs right after it, once; a wildcard follows the clock
        ("30 2 * * *", "Europe/Berlin", "2026-03-28 12:00+01:00", ["29 03:00+02:00", "30 02:30+02:00"]),
        ("0,30 2,3 * * *", "Europe/Berlin", "2026-03-29 01:00+01:00", ["29 03:00+02:00", "29 03:30+02:00"]),
        ("0 * * * *", "Europe/Berlin", "2026-03-29 00:00+01:00", ["29 01:00+01:00", "29 03:00+02:00"]),
        ("*/30 * * * *", "Europe/Berlin", "2026-03-29 01:00+01:00", ["29 01:30+01:00", "29 03:00+02:00"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-03-29 01:00+01:00", ["30 02:00+02:00", "30 02:30+02:00"]),
        ("30 2 * * *", "America/New_York", "2026-03-07 12:00-05:00", ["08 03:00-04:00", "09 02:30-04:00"]),
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 12:00+10:30", ["04 02:30+11:00", "05 02:15+11:00"]),
        ("45 * * * *", "Australia/Lord_Howe", "2026-10-04 01:30+10:30", ["04 01:45+10:30", "04 02:45+11:00"]),
        ("30 0 * * *", "America/Santiago", "2026-09-05 12:00-04:00", ["06 01:00-03:00", "07 00:30-03:00"]),
        ("*/30 0 * * *", "America/Santiago", "2026-09-05 12:00-04:00", ["07 00:00-03:00", "07 00:30-03:00"]),
        # autumn: a fixed time that occurs twice runs the first time; a wildcard follows the clock
        ("30 2 * * *", "Europe/Berlin", "2026-10-24 12:00+02:00", ["25 02:30+02:00", "26 02:30+01:00"]),
        ("45 2 * * *", "Europe/Berlin", "2026-10-25 02:30+01:00", ["26 02:45+01:00", "27 02:45+01:00"]),
        ("0 * * * *", "Europe/Berlin", "2026-10-25 01:00+02:00", ["25 02:00+02:00", "25 02:00+01:00"]),
        ("0 * * * *", "Europe/Berlin", "2026-10-25 02:00+01:00", ["25 03:00+01:00", "25 04:00+01:00"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-10-25 02:00+02:00", ["25 02:30+02:00", "25 02:00+01:00"]),
        ("30 1 * * *", "America/New_York", "2026-10-31 12:00-04:00", ["01 01:30-04:00", "02 01:30-05:00"]),
        ("*/20 * * * *", "America/New_York", "2026-11-01 01:20-04:00", ["01 01:40-04:00", "01 01:00-05:00"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04 12:00+11:00", ["05 01:45+11:00", "06 01:45+10:30"]),
        ("*/15 * * * *", "Australia/Lord_Howe", "2026-04-05 01:30+11:00", ["05 01:45+11:00", "05 01:30+10:30"]),
        ("0 0 * * *", "America/Havana", "2026-10-31 12:00-04:00", ["01 00:00-04:00", "02 00:00-05:00"]),
    ],
)
def test_clock_changes_follow_debian_cron(
    db: psycopg.Connection, expression: str, zone: str, after: str, expected: list[str]
) -> None:
    assert runs(db, expression, zone, after, len(expected)) == expected


@pytest.mark.parametrize(
    ("expression", "after"),
    [
        ("0 0 */31 * mon#2", "2026-01-01"),
        ("0 9 * * *", "infinity"),
        ("0 9 * * *", "-infinity"),
        ("0 9 * * *", "4713-01-01 BC"),
        ("0 9 * * *", "200000-01-01"),
        ("0 9 * * *", None),
        (None, "2026-01-01"),
    ],
)
def test_there_is_no_next_time_for_days_that_never_come_nor_outside_the_years_1_to_9999(
    db: psycopg.Connection, expression: str | None, after: str | None
) -> None:
    query = "select pgrecall.cron_next(%s, 'Europe/Berlin', %s::timestamptz)"
    assert ask(db, query, expression, after) is None


def test_the_answer_does_not_depend_on_the_time_zone_of_the_session(db: psycopg.Connection) -> None:
    found = set()
    for zone in ("UTC", "America/New_York", "Australia/Lord_Howe"):
        db.execute("select set_config('timezone', %s, true)", [zone])
        found.add(cron_next(db, "30 2 * * *", "Europe/Berlin", instant("2026-10-24 12:00+02:00")))
        assert ask(db, "select current_setting('timezone')") == zone
    assert found == {instant("2026-10-25 02:30+02:00")}


@pytest.mark.parametrize(
    ("expression", "zone", "message"),
    [
        ("0 25 * * *", "UTC", "bad hour '25'"),
        ("0 9 31 2 *", "UTC", "bad day of month '31'"),
        ("0 9 * * *", "Europe/Pari", "'Europe/Pari' is not a time zone this server knows"),
        ("0 9 * * *", "Foo+3", "'Foo+3' is not an IANA time zone name"),
    ],
)
def test_cron_next_refuses_what_the_error_functions_refuse(
    db: psycopg.Connection, expression: str, zone: str, message: str
) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        cron_next(db, expression, zone, instant("2026-01-01 00:00+00:00"))
    assert caught.value.sqlstate == "22023"
    assert str(caught.value.diag.message_primary)[: len(message)] == message
    expected = "Check with pgrecall.cron_error(expression) and pgrecall.time_zone_error(time_zone)."
    assert caught.value.diag.message_hint == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("60 * * * *", "bad minute '60' in cron expression: allowed are 0-59, and *, lists"),
        ("0 9,25,26 * * *", "bad hour '25' in cron expression: allowed are 0-23, and *, lists"),
        ("0 22-6 * * *", "bad hour '22-6' in cron expression: allowed are 0-23, and *, lists"),
        ("0 0 0 * *", "bad day of month '0' in cron expression: allowed are 1-31, L (last day), LW"),
        ("0 0 1 Foo *", "bad month 'Foo' in cron expression: allowed are 1-12 or jan-dec, and *, lists"),
        ("0 0 * * 8", "bad day of week '8' in cron expression: allowed are 0-7 or sun-sat (0 and 7 are Sunday)"),
        ("0 0 * * 1#6", "bad day of week '1#6' in cron expression"),
        ("0 0 * * friL", "bad day of week 'friL' in cron expression"),
        ("L * * * *", "bad minute 'L' in cron expression"),
        ("tue * * * *", "bad minute 'tue' in cron expression"),
        ("*/0 * * * *", "bad minute '*/0' in cron expression"),
        ("1,,2 * * * *", "bad minute '' in cron expression"),
        (", * * * *", "bad minute '' in cron expression"),
        ("99999999999999999999 * * * *", "bad minute '99999999999999999999' in cron expression"),
        ("0 9 31 2,4 *", "bad day of month '31' in cron expression: month '2,4' has no such day"),
        ("0 9 30 feb */2", "bad day of month '30' in cron expression: month 'feb' has no such day"),
        ("", "a cron expression has 5 fields (minute, hour, day of month, month, day of week) as in"),
        ("0 9 * *", "a cron expression has 5 fields"),
        ("0 0 9 * * *", "a cron expression has 5 fields"),
        ("\N{ALARM CLOCK}", "a cron expression has 5 fields"),
        ("\x01\x1b[31m", "a cron expression has 5 fields"),
        ("@reboot", "unknown cron macro '@reboot': allowed are @hourly, @daily, @midnight, @weekly"),
        ("@every 5m", "unknown cron macro '@every 5m': allowed are"),
        ("1" * 10_000, "a cron expression has at most 1000 characters, this one has 10000"),
    ],
)
def test_cron_error_names_the_field_the_value_and_what_is_allowed(
    db: psycopg.Connection, expression: str, expected: str
) -> None:
    assert cron_error(db, expression)[: len(expected)] == expected


@pytest.mark.parametrize(
    "expression", ["0 9 * * 1-5", "@daily", "*/99999999999999999999 * * * *", "0 0 30 1-2 *", None]
)
def test_a_valid_expression_has_no_error(db: psycopg.Connection, expression: str | None) -> None:
    assert cron_error(db, expression) is None


def test_cron_error_can_guard_a_column(db: psycopg.Connection) -> None:
    db.execute("create temporary table guarded (cron text constraint valid check (pgrecall.cron_error(cron) is null))")
    db.execute("insert into guarded values ('0 9 * * *'), (null)")
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        db.execute("insert into guarded values ('0 9 * *')")
    assert caught.value.diag.constraint_name == "valid"


@pytest.mark.parametrize(
    "zone",
    [
        "UTC",
        "GMT",
        "Europe/Berlin",
        "America/Argentina/Buenos_Aires",
        "America/Port-au-Prince",
        "Etc/GMT-14",
        "Etc/UTC",
    ],
)
def test_an_iana_name_is_a_time_zone(db: psycopg.Connection, zone: str) -> None:
    assert time_zone_error(db, zone) is None


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("Europe/Pari", "'Europe/Pari' is not a time zone this server knows; see pg_timezone_names"),
        ("../etc/passwd", "'../etc/passwd' is not an IANA time zone name"),
        ("europe/berlin", "time zone 'europe/berlin' is spelled 'Europe/Berlin'"),
        ("utc", "time zone 'utc' is spelled 'UTC'"),
        ("CET", "'CET' is not an IANA time zone name such as 'Europe/Berlin' or 'UTC'; see pg_timezone_names"),
        ("Foo+3", "'Foo+3' is not an IANA time zone name"),
        ("Foo/Bar+3", "'Foo/Bar+3' is not an IANA time zone name"),
        ("<+03>-3", "'<+03>-3' is not an IANA time zone name"),
        ("Etc/GMT+99", "'Etc/GMT+99' is not an IANA time zone name"),
        ("+02:00", "'+02:00' is not an IANA time zone name"),
        ("", "'' is not an IANA time zone name"),
        ("UTC\n", "'UTC\n' is not an IANA time zone name"),
        ("Area/" + "x" * 10_000, "'Area/xxxxx"),
        ("\N{ALARM CLOCK}", "'\N{ALARM CLOCK}' is not an IANA time zone name"),
    ],
)
def test_anything_else_is_no_time_zone(db: psycopg.Connection, zone: str, expected: str) -> None:
    assert time_zone_error(db, zone)[: len(expected)] == expected


def test_every_area_and_city_of_the_server_is_a_time_zone(db: psycopg.Connection) -> None:
    query = """
        select name
        from pg_timezone_names
        where name like '%/%' and name not like 'posix/%' and pgrecall.time_zone_error(name) is not null
    """
    assert db.execute(query).fetchall() == []


def test_time_zone_error_leaves_the_time_zone_of_the_session_alone(db: psycopg.Connection) -> None:
    db.execute("set local timezone = 'Asia/Kolkata'")
    db.execute("select pgrecall.time_zone_error('Europe/Berlin'), pgrecall.time_zone_error('Europe/Pari')")
    assert ask(db, "select current_setting('timezone')") == "Asia/Kolkata"


def property_of(examples: int) -> settings:
    """Return the settings of a property; hypothesis itself derandomizes them where the variable CI is set."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@st.composite
def fields(draw: st.DrawFn, low: int, high: int, names: str = "", extra: st.SearchStrategy[str] | None = None) -> str:
    """Draw a valid field, a star more often than not."""
    named = dict(enumerate(names.split(), low))

    def value(number: int) -> str:
        forms = [str(number), f"{number:02}", *([named[number], named[number].upper()] if number in named else [])]
        return draw(st.sampled_from(forms))

    def term() -> str:
        kind = draw(st.sampled_from(["star", "value", "value", "range", "extra"]))
        if kind == "extra" and extra is not None:
            return draw(extra)
        if kind == "star":
            text = "*"
        else:
            first, last = sorted(draw(st.tuples(st.integers(low, high), st.integers(low, high))))
            text = value(first) if kind == "value" else f"{value(first)}-{value(last)}"
        return text + draw(st.sampled_from(["", "", f"/{draw(st.integers(1, high + 5))}"]))

    if draw(st.integers(0, 2)) == 0:
        return "*"
    return ",".join(term() for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))))


MINUTES, HOURS = fields(0, 59), fields(0, 23)
FIXED = st.lists(st.integers(0, 59).map(str), min_size=1, max_size=3).map(",".join)
DAYS = fields(1, 31, extra=st.sampled_from(["L", "LW", "l/3"]))
MONTHS = fields(1, 12, "jan feb mar apr may jun jul aug sep oct nov dec")
WEEKDAYS = fields(
    0,
    7,
    "sun mon tue wed thu fri sat",
    st.one_of(
        st.builds("{}#{}".format, st.sampled_from(["0", "1", "5", "7", "tue", "SAT"]), st.integers(1, 5)),
        st.builds("{}L".format, st.integers(0, 7)),
    ),
)
EXPRESSIONS = st.tuples(MINUTES, HOURS, DAYS, MONTHS, WEEKDAYS).map(" ".join)
INSTANTS = st.integers(0, 20 * 365 * 86_400).map(lambda s: instant("2015-01-01 00:00+00:00") + timedelta(seconds=s))

CHANGES = [
    ("Europe/Berlin", "2026-03-29 01:00+00:00"),
    ("Europe/Berlin", "2026-10-25 01:00+00:00"),
    ("America/New_York", "2026-03-08 07:00+00:00"),
    ("America/New_York", "2026-11-01 06:00+00:00"),
    ("Australia/Lord_Howe", "2026-04-04 15:00+00:00"),
    ("Australia/Lord_Howe", "2026-10-03 15:30+00:00"),
    ("America/Santiago", "2026-04-05 03:00+00:00"),
    ("America/Santiago", "2026-09-06 04:00+00:00"),
    ("America/Havana", "2026-03-08 05:00+00:00"),
    ("America/Havana", "2026-11-01 05:00+00:00"),
    ("Pacific/Apia", "2011-12-30 10:00+00:00"),
]


def follows_clock(expression: str) -> bool:
    """Tell a job that follows the clock from one at fixed times."""
    minute, hour, *_ = expression.split()
    return minute.startswith("*") or hour.startswith("*")


def accepted_by_cronsim(expression: str) -> bool:
    """Tell whether cronsim reads an expression."""
    try:
        CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError:
        return False
    return True


def by_cronsim(expression: str, zone: str, after: datetime) -> datetime | None:
    """Return cronsim's first answer that is later than the time asked about."""
    answers = (at.astimezone(UTC) for at in CronSim(expression, after.astimezone(ZoneInfo(zone))))
    return next((at for at in answers if at > after), None)


def by_trying_every_minute(expression: str, zone: str, after: datetime) -> datetime | None:
    """Apply the rule of the COMMENT on cron_next to each minute of four days; cronsim only parses."""
    place, parsed = ZoneInfo(zone), CronSim(expression, after)

    def named(local: datetime) -> bool:
        return local.minute in parsed.minutes and local.hour in parsed.hours and parsed.match_day(local.date())

    if follows_clock(expression):
        start = after.replace(second=0, microsecond=0)
        minutes = (start + number * MINUTE for number in range(1, 4 * 1440))
        return next((at for at in minutes if named(at.astimezone(place))), None)

    start = after.astimezone(place).replace(tzinfo=None, second=0, microsecond=0) - timedelta(days=1)
    due: datetime | None = None
    for number in range(5 * 1440):
        local = start + number * MINUTE
        at = local.replace(tzinfo=place, fold=0).astimezone(UTC)
        pending = named(local) or due is not None
        if pending and at.astimezone(place).replace(tzinfo=None) != local:
            due = local  # skipped by the clock: still to run when it goes on
        elif pending:
            due = None
            if at > after:
                return at
    return None


@property_of(500)
@given(
    expression=EXPRESSIONS.filter(accepted_by_cronsim),
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Europe/London", "Pacific/Auckland"]
    ),
    odd_zone=st.sampled_from(["Australia/Lord_Howe", "America/Santiago", "America/Havana"]),
    after=INSTANTS,
)
@example("30 2 * * *", "Europe/Berlin", "Australia/Lord_Howe", instant("2026-10-25 02:40+01:00"))
def test_any_expression_has_the_next_time_that_cronsim_finds(
    db: psycopg.Connection, expression: str, zone: str, odd_zone: str, after: datetime
) -> None:
    zones = [zone] if follows_clock(expression) else [zone, odd_zone]
    expected = [by_cronsim(expression, each, after) for each in zones]
    assert [cron_next(db, expression, each, after) for each in zones] == expected


@property_of(250)
@given(
    expression=st.tuples(st.one_of(MINUTES, FIXED), HOURS, st.sampled_from(["* * *", "* * 0-7"])).map(" ".join),
    change=st.sampled_from(CHANGES),
    shift=st.integers(-30 * 60, 6 * 60),
    seconds=st.sampled_from([0, 0, 1, 59.5]),
)
def test_around_clock_changes_the_next_time_is_that_of_the_rule_applied_to_every_minute(
    db: psycopg.Connection, expression: str, change: tuple[str, str], shift: int, seconds: float
) -> None:
    zone, at = change
    after = instant(at) + timedelta(minutes=shift, seconds=seconds)
    assert cron_next(db, expression, zone, after) == by_trying_every_minute(expression, zone, after)


def near(field: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Draw a field that is valid, or nearly, or not at all."""
    noise = st.text("0123456789*/,-#LW", min_size=1, max_size=5)
    spliced = st.builds(lambda text, more, at: text[:at] + more + text[at:], field, noise, st.integers(0, 6))
    words = st.sampled_from(["fri", "jan-mar", "sat-sun", "5l", "tues", "1-2-3"])
    return st.one_of(field, field, field, spliced, noise, words)


@property_of(600)
@given(
    expression=st.one_of(
        st.tuples(*map(near, (MINUTES, HOURS, DAYS, MONTHS, WEEKDAYS))).map(" ".join),
        st.tuples(near(WEEKDAYS), st.just("* * *"), near(WEEKDAYS)).map(" ".join),
        st.lists(st.sampled_from(["*", "1", "\t", "  "]), max_size=5).map(" ".join),
        st.builds(
            "0 0 {} {} {}".format, st.sampled_from(["30", "31", "29-31", "*/31", "30,31", "L"]), MONTHS, WEEKDAYS
        ),
    )
)
def test_an_expression_is_valid_where_cronsim_accepts_it(db: psycopg.Connection, expression: str) -> None:
    assert (cron_error(db, expression) is None) == accepted_by_cronsim(expression)


@property_of(300)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
@example("%s %n {} \\ ' \" $$ --")
def test_the_error_functions_never_raise(db: psycopg.Connection, text: str) -> None:
    assert [type(cron_error(db, text)), type(time_zone_error(db, text))] == [str, str]
