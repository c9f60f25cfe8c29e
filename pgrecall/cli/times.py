"""Times as people type them: `90s`, `2h30m`, ISO 8601 with a zone.

Knows neither the options that take them nor how times are shown, and no clock but for its examples.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from pgrecall.cli.errors import WrongUsage, WrongValue

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def duration(text: str) -> timedelta:
    """`90s`, `2h30m`, `1d`: a length of time."""
    squeezed = re.sub(r"\s+", "", text)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhdw])", squeezed)
    if not parts or squeezed != "".join(number + unit for number, unit in parts):
        raise WrongValue(f"{text!r} is not a length of time", hint="Say number and unit: 90s, 2h30m, 1d or 2w.")
    try:
        return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError as error:
        raise WrongValue(f"{text!r} is too long", hint="Nothing can be kept beyond the year 9999.") from error


def seconds(text: str) -> float:
    """A length of time in seconds; a number without a unit is taken as such."""
    return duration(f"{text}s" if re.fullmatch(r"\d+(\.\d+)?", text) else text).total_seconds()


def moment(text: str) -> datetime:
    """ISO 8601 with a time zone. One without is refused, since it could mean two times."""
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError as error:
        example = datetime.now(UTC).replace(microsecond=0).isoformat()
        raise WrongValue(f"{text!r} is not an ISO 8601 time", hint=f"For example {example}.") from error
    if at.tzinfo is None:
        # The first and the last year may have no time in this machine's zone.
        here = at.astimezone().isoformat() if 1 < at.year < 9999 else f"{at.isoformat()}+01:00"
        raise WrongValue(
            f"{text!r} has no time zone",
            hint=f"Write {here} for this machine's zone, or {at.isoformat()}Z for UTC.",
        )
    return at


def shift(text: str) -> timedelta:
    """A length of time, forwards or, with a minus before it, backwards."""
    text = text.strip()
    return -duration(text[1:]) if text.startswith("-") else duration(text.removeprefix("+"))


def since(text: str) -> datetime | timedelta:
    """ISO 8601 with a time zone, or a length of time: so long ago."""
    return duration(text) if re.fullmatch(r"\s*(\d+(\.\d+)?\s*[a-z]+\s*)+", text) else moment(text)


def whole_seconds(name: str, length: timedelta | None) -> int | None:
    """A length of time as the database keeps it; name is the option's, for the error."""
    if length is None:
        return None
    if length % timedelta(seconds=1):
        raise WrongUsage(f"{name} is {length.total_seconds():g} seconds", hint="Only whole seconds can be kept.")
    return length // timedelta(seconds=1)
