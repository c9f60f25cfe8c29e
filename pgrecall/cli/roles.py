"""The verb `roles`: which group roles there are and who is in them, and a script that makes them by hand.

Knows no right of theirs: that is in the SQL.
"""

from __future__ import annotations

import click

from pgrecall import schema
from pgrecall.cli.answers import print_json
from pgrecall.cli.app import Verb
from pgrecall.cli.target import Target


@click.command(cls=Verb)
@click.option("--print", "only_print", is_flag=True, help="Print SQL that makes them by hand; touch no database.")
@click.pass_obj
def roles(target: Target, *, only_print: bool) -> None:
    """Show the group roles and who is in them.

    migrate makes them where it may. Elsewhere, as on some managed servers: pgrecall roles --print.
    """
    if only_print:
        script = schema.roles_script()
        if target.as_json:
            print_json({"script": script})
        else:
            click.echo(script, nl=False)
        return
    with target.open() as (_, connection):
        known = dict(
            connection.execute(
                """
                select role.rolname,
                    array(
                        select member.rolname::text
                        from pg_auth_members as belongs
                        join pg_roles as member on member.oid = belongs.member
                        where belongs.roleid = role.oid
                            and member.rolname <> current_user
                        order by member.rolname
                    )
                from pg_roles as role
                where role.rolname = any(%s)
                """,
                [list(schema.GROUP_ROLES)],
            ).fetchall()
        )
    if target.as_json:
        print_json({name: {"exists": name in known, "members": known.get(name, [])} for name in schema.GROUP_ROLES})
        return
    for name in schema.GROUP_ROLES:
        click.echo(f"{name:<18} {', '.join(known[name]) or '(nobody)' if name in known else 'is missing'}")
    if len(known) < len(schema.GROUP_ROLES):
        click.echo("\nTo make what is missing: pgrecall roles --print")
