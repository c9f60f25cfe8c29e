"""What clients of a release use of the schema, and what is wrong with a newer schema in their eyes.

docs/upgrades.md tells the rule in words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg

from pgrecall import errors

Surface = dict[str, Any]

_ROUTINES = """
    select p.proname as name, p.prokind as kind,
        case when p.proretset then 'setof ' else '' end || format_type(p.prorettype, null) as answer,
        p.pronargdefaults as defaults,
        coalesce(p.proargnames, '{}') as names,
        coalesce(p.proargmodes::text[], array_fill('i'::text, array[p.pronargs::integer])) as modes,
        (
            select array_agg(format_type(type, null) order by place)
            from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) with ordinality as t (type, place)
        ) as types
    from pg_proc as p
    where p.pronamespace = 'pgrecall'::regnamespace
        and p.prorettype <> 'trigger'::regtype
        and not starts_with(p.proname, '_')
    order by p.proname, p.pronargs
"""

_COLUMNS = """
    select c.relname as place, a.attname as name, format_type(a.atttypid, a.atttypmod) as type,
        a.attnotnull and d.oid is null and a.attidentity = '' as must_be_given
    from pg_class as c
    join pg_attribute as a on a.attrelid = c.oid
    left join pg_attrdef as d on d.adrelid = c.oid and d.adnum = a.attnum
    where c.relnamespace = 'pgrecall'::regnamespace
        and c.relkind in ('r', 'v', 'c')
        and a.attnum > 0
        and not a.attisdropped
    order by c.relname, a.attname
"""

_SOURCES = "select prosrc from pg_proc where pronamespace = 'pgrecall'::regnamespace order by proname"

_NAMED = """
    select conname from pg_constraint where connamespace = 'pgrecall'::regnamespace and contype = 'c'
    union select relname from pg_class where relnamespace = 'pgrecall'::regnamespace and relkind = 'i'
    order by 1
"""


def surface(db: psycopg.Connection) -> Surface:
    """Describe what the clients of this package and schema use."""
    routines = []
    for name, kind, answer, defaults, names, modes, types in db.execute(_ROUTINES.encode()).fetchall():
        both = list(zip(names, modes, types or [], strict=True))
        given = [(argument, type_) for argument, mode, type_ in both if mode == "i"]
        routines.append(
            {
                "name": name,
                "kind": kind,
                "answer": answer,
                "columns": [[column, type_] for column, mode, type_ in both if mode == "t"],
                "parameters": [
                    [argument, type_, place >= len(given) - defaults] for place, (argument, type_) in enumerate(given)
                ],
            }
        )
    columns: dict[str, Any] = {}
    for place, name, type_, must_be_given in db.execute(_COLUMNS.encode()).fetchall():
        columns.setdefault(place, {})[name] = [type_, must_be_given]
    sources = [source for (source,) in db.execute(_SOURCES.encode()).fetchall()]
    said = {found for source in sources for found in re.findall(r"pg_notify\('(\w+)', '(\w+(?: 0| all)?)", source)}
    raised = {found for source in sources for found in re.findall(r"errcode = '(PR\d\d\d)'", source)}
    return {
        "routines": routines,
        "columns": columns,
        "notifications": sorted(" ".join(found) for found in said),
        "errors": {
            error.sqlstate: name
            for name, error in sorted(vars(errors).items())
            if getattr(error, "sqlstate", None) in raised
        },
        "constraints": [name for (name,) in db.execute(_NAMED.encode()).fetchall()],
    }


def _takes(routine: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether a call that the old one took, by name or by place, with or without its defaults, may mean this one."""
    known, new = old["parameters"], routine["parameters"]
    same = len(new) >= len(known) and all(
        was[:2] == is_[:2] and (is_[2] or not was[2]) for was, is_ in zip(known, new, strict=False)
    )
    return bool(routine["name"] == old["name"] and same and all(parameter[2] for parameter in new[len(known) :]))


def _signature(routine: dict[str, Any]) -> str:
    inside = ", ".join(f"{name} {type_}{' default …' * free}" for name, type_, free in routine["parameters"])
    return f"{routine['name']}({inside})"


def incompatible(old: Surface, new: Surface) -> list[str]:
    """What clients of the old surface miss in the new one, a sentence for each; empty: nothing."""
    found = [sentence for routine in old["routines"] for sentence in _routine(routine, new["routines"])]
    for place, columns in old["columns"].items():
        found += _columns(place, columns, new["columns"].get(place, {}))
    for what in ("notifications", "constraints"):
        gone = sorted(set(old[what]) - set(new[what]))
        found += [f"{what[:-1]} {name} means something to older clients, and is gone" for name in gone]
    for sqlstate, name in old["errors"].items():
        now = new["errors"].get(sqlstate, "nothing")
        found += [f"SQLSTATE {sqlstate} means {name} to older clients, and now {now}"] * (now != name)
    return found


def _routine(old: dict[str, Any], routines: list[dict[str, Any]]) -> Iterator[str]:
    same_name = [each for each in routines if each["name"] == old["name"]]
    fitting = [each for each in same_name if _takes(each, old)]
    now = "; ".join(map(_signature, same_name)) or "gone"
    if not fitting:
        yield f"function {_signature(old)} is called by older clients, and is now: {now}"
    elif len(same_name) > 1:
        yield f"a call of {_signature(old)} by an older client is ambiguous: {now}"
    elif any(fitting[0][what] != old[what] for what in ("kind", "answer", "columns")):
        was, is_ = (f"{each['answer']} {each['columns'] or ''}".strip() for each in (old, fitting[0]))
        yield f"function {_signature(old)} answered {was} to older clients, and now {is_}"


def _columns(place: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name, (type_, must_be_given) in old.items():
        if name not in new:
            yield f"column {place}.{name} is read by older clients, and is gone"
        elif new[name][0] != type_:
            yield f"column {place}.{name} was {type_} for older clients, and is now {new[name][0]}"
        elif new[name][1] and not must_be_given:
            yield f"column {place}.{name} had a default for older clients, and must now be given"
    for name, (_, must_be_given) in new.items():
        if name not in old and must_be_given:
            yield f"column {place}.{name} is not known to older clients, and must be given"
