"""Installing: by psql and by the package, again, two at once, on old and new servers, without a superuser."""

from __future__ import annotations

import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from servers import Server, ServerUnavailable, old_server
from sqltools import NOW, Doing, Ear, Row, add, call_one, claim_one, due, finish, rows, set_clock, value

from pgrecall import schema
from pgrecall.errors import SchemaTooNewError

PSQL = shutil.which("psql")
needs_psql = pytest.mark.skipif(PSQL is None, reason="no psql in PATH")


def run_psql(dsn: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run install.sql as its first lines say, or what the options say."""
    assert PSQL is not None
    given = options or ("-v", "ON_ERROR_STOP=1", "-f", str(Path(str(schema.sql_root())) / "install.sql"))
    return subprocess.run([PSQL, "-X", "-d", dsn, *given], capture_output=True, text=True, timeout=30, check=False)


def catalog(dsn: str) -> dict[str, list[Row]]:
    """Describe everything in the schema that an installation makes."""
    with psycopg.connect(dsn) as db:
        return {
            "functions": rows(
                db,
                """select pg_get_functiondef(p.oid) as source, obj_description(p.oid, 'pg_proc') as comment
                from pg_proc as p where p.pronamespace = 'pgrecall'::regnamespace order by 1""",
            ),
            "relations": rows(
                db,
                """select c.relname, c.relkind, c.relpersistence, c.reloptions, c.relrowsecurity,
                    obj_description(c.oid, 'pg_class') as comment,
                    case when c.relkind = 'i' then pg_get_indexdef(c.oid) end as definition
                from pg_class as c where c.relnamespace = 'pgrecall'::regnamespace order by 1""",
            ),
            "columns": rows(
                db,
                """select c.relname, a.attname, format_type(a.atttypid, a.atttypmod) as type, a.attnotnull,
                    pg_get_expr(d.adbin, d.adrelid) as expression, a.attgenerated, a.attidentity,
                    col_description(c.oid, a.attnum) as comment
                from pg_class as c join pg_attribute as a on a.attrelid = c.oid
                left join pg_attrdef as d on d.adrelid = c.oid and d.adnum = a.attnum
                where c.relnamespace = 'pgrecall'::regnamespace and c.relkind in ('r', 'v') and a.attnum > 0
                order by c.relname, a.attnum""",
            ),
            "constraints": rows(
                db,
                """select conrelid::regclass::text as place, conname, pg_get_constraintdef(oid) as definition
                from pg_constraint where connamespace = 'pgrecall'::regnamespace order by 1, 2""",
            ),
            "triggers": rows(
                db,
                """select pg_get_triggerdef(t.oid) as definition, t.tgenabled, t.tgdeferrable, t.tginitdeferred,
                    obj_description(t.oid, 'pg_trigger') as comment
                from pg_trigger as t join pg_class as c on c.oid = t.tgrelid
                where c.relnamespace = 'pgrecall'::regnamespace and not t.tgisinternal order by 1""",
            ),
            "sequences": rows(
                db,
                """select sequencename, data_type, start_value, min_value, max_value, increment_by, cycle, cache_size
                from pg_sequences where schemaname = 'pgrecall' order by 1""",
            ),
            "migrations": rows(db, "select version, name from pgrecall.migrations order by 1"),
        }


def install(dsn: str) -> int:
    """Install by the package."""
    with psycopg.connect(dsn) as connection:
        return schema.install(connection)


def wake_fire_and_finish(dsn: str) -> None:
    """Use every part of a fresh installation once."""
    ear = Ear(dsn)
    db = ear.connection
    set_clock(db, NOW)
    name = add(db, "s1", NOW, call_type="recurring", cron="0 9 * * *", time_zone="Europe/Berlin")
    assert ear.heard() == [due(NOW)]
    assert finish(db, claim_one(db))["status"] == "pending"
    assert call_one(db, "mark_cancelled", recall_id=name)["status"] == "cancelled"
    assert value(db, "select pgrecall.schema_version()") == schema.SCHEMA_VERSION
    ear.close()


def test_install_sql_names_the_files_that_the_package_runs() -> None:
    text = (schema.sql_root() / "install.sql").read_text(encoding="utf-8")
    assert re.findall(r"^\s*\\ir\s+(\S+)", text, flags=re.MULTILINE) == schema.script_files()


def test_install_sql_knows_the_version_of_its_files() -> None:
    text = (schema.sql_root() / "install.sql").read_text(encoding="utf-8")
    assert f"where version > {schema.SCHEMA_VERSION}" in text
    assert f"these files were made for {schema.SCHEMA_VERSION}'" in text


def test_install_sql_runs_each_migration_only_if_it_is_needed() -> None:
    text = (schema.sql_root() / "install.sql").read_text(encoding="utf-8")
    for version, name in schema.migrations().items():
        guarded = f"where version = {version}) as needed \\gset\n\\if :needed\n    \\ir {name}\n\\endif"
        assert guarded in text


def test_the_version_is_the_newest_migration(db: psycopg.Connection) -> None:
    assert max(schema.migrations()) == schema.SCHEMA_VERSION
    assert value(db, "select pgrecall.schema_version()") == schema.SCHEMA_VERSION
    assert value(db, "select max(version) from pgrecall.migrations") == schema.SCHEMA_VERSION


@needs_psql
def test_psql_installs_the_same_as_the_package(empty_database: str, database: str) -> None:
    done = run_psql(empty_database)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "pgrecall is installed: select pgrecall.schema_version();\n"
    assert catalog(empty_database) == catalog(database)
    wake_fire_and_finish(empty_database)


@needs_psql
def test_psql_installs_again_without_a_change_or_a_word(database: str) -> None:
    before = catalog(database)
    with psycopg.connect(database) as db:
        add(db, "s1", NOW, id="kept")
    done = run_psql(database)
    assert (done.returncode, done.stderr) == (0, "")
    assert catalog(database) == before
    with psycopg.connect(database) as db:
        assert value(db, "select id from pgrecall.session_recalls") == "kept"


@needs_psql
def test_two_psql_at_once_both_succeed(empty_database: str, database: str) -> None:
    both = [Doing(lambda: run_psql(empty_database)) for _ in range(2)]
    assert [(done.result().returncode, done.result().stderr) for done in both] == [(0, ""), (0, "")]
    assert catalog(empty_database) == catalog(database)


@needs_psql
def test_psql_leaves_a_database_of_a_newer_package_alone(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("insert into pgrecall.migrations (version, name) values (999, 'from the future')")
        set_clock(db, NOW)
    before = catalog(database)
    done = run_psql(database)
    assert done.returncode == 3
    assert (
        f"the pgrecall schema in the database is version 999, these files were made for {schema.SCHEMA_VERSION}"
        in done.stderr
    )
    assert catalog(database) == before


@needs_psql
def test_psql_leaves_nothing_behind_when_it_fails(empty_database: str) -> None:
    with psycopg.connect(empty_database) as db:
        db.execute("create schema pgrecall")
        db.execute("create table pgrecall.workers (mine integer)")
    assert run_psql(empty_database).returncode == 3
    with psycopg.connect(empty_database) as db:
        found = rows(db, "select relname from pg_class where relnamespace = 'pgrecall'::regnamespace")
    assert found == [{"relname": "workers"}]


def test_the_package_installs_once_and_then_finds_nothing_to_do(empty_database: str) -> None:
    assert install(empty_database) == len(schema.migrations())
    before = catalog(empty_database)
    assert install(empty_database) == 0
    assert catalog(empty_database) == before
    wake_fire_and_finish(empty_database)


def test_two_packages_at_once_apply_each_migration_once(empty_database: str, database: str) -> None:
    several = [Doing(lambda: install(empty_database)) for _ in range(3)]
    assert sorted(done.result() for done in several) == [0, 0, len(schema.migrations())]
    assert catalog(empty_database) == catalog(database)


def test_the_script_is_one_text_for_any_client(empty_database: str, database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        db.execute(schema.script().encode())
    assert catalog(empty_database) == catalog(database)


def test_installing_brings_a_changed_routine_back(database: str) -> None:
    before = catalog(database)
    with psycopg.connect(database, autocommit=True) as db:
        set_clock(db, NOW)
    assert catalog(database) != before
    install(database)
    assert catalog(database) == before


def test_a_database_of_a_newer_package_is_left_alone(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("insert into pgrecall.migrations (version, name) values (999, 'from the future')")
        set_clock(db, NOW)
    before = catalog(database)
    with pytest.raises(SchemaTooNewError) as caught:
        install(database)
    assert "version 999" in str(caught.value)
    assert caught.value.hint == "Upgrade the package: pip install -U pgrecall"
    assert catalog(database) == before


def test_a_search_path_of_the_installer_does_not_matter(empty_database: str, database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        db.execute("create schema trap")
        db.execute("create function trap.now() returns timestamptz language sql as 'select null::timestamptz'")
        db.execute("set search_path = trap, pg_catalog")
        schema.install(db)
        assert value(db, "select count(*) from pg_class where relnamespace = 'trap'::regnamespace") == 0
    wake_fire_and_finish(empty_database)


@pytest.fixture
def owner(empty_database: str) -> Iterator[str]:
    """A role without any right but to own the empty database."""
    name = f"recall_owner_{uuid.uuid4().hex[:8]}"
    role = sql.Identifier(name)
    with psycopg.connect(empty_database, autocommit=True) as admin:
        place = sql.Identifier(admin.info.dbname)
        admin.execute(sql.SQL("create role {}").format(role))
        admin.execute(sql.SQL("alter database {} owner to {}").format(place, role))
        yield name
        admin.execute(sql.SQL("alter database {} owner to current_user").format(place))
        admin.execute(sql.SQL("drop owned by {} cascade").format(role))
        admin.execute(sql.SQL("drop role {}").format(role))


def test_the_owner_of_a_database_can_install_and_use_it(empty_database: str, owner: str) -> None:
    ear = Ear(empty_database)
    db = ear.connection
    db.execute(sql.SQL("set session authorization {}").format(sql.Identifier(owner)))
    assert value(db, "select current_setting('is_superuser')") == "off"
    assert schema.install(db) == len(schema.migrations())
    assert schema.install(db) == 0
    add(db, "s1", NOW)
    assert ear.heard() == [due(NOW)]
    set_clock(db, NOW)
    assert finish(db, claim_one(db))["status"] == "fired"
    ear.close()


@pytest.mark.servers
@pytest.mark.parametrize("major", [14, 18])
def test_it_installs_and_works_on(major: int) -> None:
    with ExitStack() as stack:
        try:
            server: Server = stack.enter_context(old_server(major))
        except ServerUnavailable as why:
            pytest.skip(str(why))
        assert server.version // 10000 == major
        assert install(server.dsn) == len(schema.migrations())
        before = catalog(server.dsn)
        assert install(server.dsn) == 0
        assert catalog(server.dsn) == before
        if PSQL is not None:
            done = run_psql(server.dsn)
            assert (done.returncode, done.stderr) == (0, "")
            assert catalog(server.dsn) == before
        wake_fire_and_finish(server.dsn)
