"""What an installation has made of a database, for a comparison with another one."""

from __future__ import annotations

from typing import LiteralString

import psycopg
from sqltools import Row, rows

_QUERIES: dict[str, LiteralString] = {
    "functions": """select pg_get_functiondef(p.oid) as source, obj_description(p.oid, 'pg_proc') as comment,
            array(
                select format('%s %s', coalesce(nullif(a.grantee, 0)::regrole::text, 'public'), a.privilege_type)
                from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a
                where a.grantee <> p.proowner
                order by 1
            ) as grants
        from pg_proc as p where p.pronamespace = 'pgrecall'::regnamespace order by 1""",
    "relations": """select c.relname, c.relkind, c.relpersistence, c.reloptions, c.relrowsecurity,
            c.relforcerowsecurity, obj_description(c.oid, 'pg_class') as comment,
            case c.relkind when 'i' then pg_get_indexdef(c.oid) when 'v' then pg_get_viewdef(c.oid) end as definition,
            case when c.relkind <> 'i' then array(
                select format('%s %s', coalesce(nullif(a.grantee, 0)::regrole::text, 'public'), a.privilege_type)
                from aclexplode(c.relacl) as a
                where a.grantee <> c.relowner
                order by 1
            ) end as grants
        from pg_class as c where c.relnamespace = 'pgrecall'::regnamespace order by 1""",
    "columns": """select c.relname, a.attname, format_type(a.atttypid, a.atttypmod) as type, a.attnotnull,
            pg_get_expr(d.adbin, d.adrelid) as expression, a.attgenerated, a.attidentity, a.attstorage,
            col_description(c.oid, a.attnum) as comment,
            array(
                select format('%s %s', coalesce(nullif(x.grantee, 0)::regrole::text, 'public'), x.privilege_type)
                from aclexplode(a.attacl) as x
                where x.grantee <> c.relowner
                order by 1
            ) as grants
        from pg_class as c join pg_attribute as a on a.attrelid = c.oid
        left join pg_attrdef as d on d.adrelid = c.oid and d.adnum = a.attnum
        where c.relnamespace = 'pgrecall'::regnamespace and c.relkind in ('r', 'v', 'c') and a.attnum > 0
            and not a.attisdropped
        order by c.relname, a.attname""",
    "constraints": """select conrelid::regclass::text as place, conname, convalidated,
            pg_get_constraintdef(oid) as definition, obj_description(oid, 'pg_constraint') as comment
        from pg_constraint where connamespace = 'pgrecall'::regnamespace order by 1, 2""",
    "triggers": """select pg_get_triggerdef(t.oid) as definition, t.tgenabled, t.tgdeferrable, t.tginitdeferred,
            obj_description(t.oid, 'pg_trigger') as comment
        from pg_trigger as t join pg_class as c on c.oid = t.tgrelid
        where c.relnamespace = 'pgrecall'::regnamespace and not t.tgisinternal order by 1""",
    "policies": "select * from pg_policies where schemaname = 'pgrecall' order by tablename, policyname",
    "sequences": """select sequencename, data_type, start_value, min_value, max_value, increment_by, cycle, cache_size
        from pg_sequences where schemaname = 'pgrecall' order by 1""",
    "schema": """select obj_description(n.oid, 'pg_namespace') as comment, array(
            select format('%s %s', coalesce(nullif(a.grantee, 0)::regrole::text, 'public'), a.privilege_type)
            from aclexplode(n.nspacl) as a
            where a.grantee <> n.nspowner
            order by 1
        ) as grants
        from pg_namespace as n where n.nspname = 'pgrecall'""",
    "migrations": "select version, name from pgrecall.migrations order by 1",
}


def catalog(dsn: str) -> dict[str, list[Row]]:
    """Describe everything in the schema that an installation makes; where a column stands in its table is left out."""
    with psycopg.connect(dsn) as db:
        return {kind: rows(db, query) for kind, query in _QUERIES.items()}
