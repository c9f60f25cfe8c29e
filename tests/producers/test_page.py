"""The programs of docs/producers.md do what the page says, as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import peers
import pglast
import psycopg
import pytest
from producerpage import BLOCKS, PAGE, PROGRAMS
from psycopg.conninfo import conninfo_to_dict
from sqltools import Ear, recall, value
from test_docs import ADDRESS

pytestmark = pytest.mark.timeout(120)  # the first test of a language may fetch its driver


@dataclass(frozen=True)
class Program:
    """A program of the page in its own folder, ready to run."""

    command: tuple[str, ...]
    variables: dict[str, str]

    def __call__(self, order: str) -> subprocess.CompletedProcess[str]:
        """Run it for an order."""
        return subprocess.run(
            [*self.command, order],
            env=os.environ | self.variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def _node(program: Path) -> list[str]:
    (program.parent / "node_modules").symlink_to(peers.node_modules() / "node_modules")
    return [*peers.tool("node"), str(program)]


def _java(program: Path) -> list[str]:
    # A file is compiled and run by one command.
    return [*peers.tool("java"), "-cp", peers.pgjdbc(), str(program)]


def _go(program: Path) -> list[str]:
    built = program.with_suffix("")
    peers.build(*peers.tool("go"), "build", "-o", built, program, **peers.go_variables())
    return [str(built)]


def _c(program: Path) -> list[str]:
    built = program.with_suffix("")
    compiling, linking = peers.libpq_flags()
    peers.build(*peers.tool("cc"), "-Wall", "-Werror", *compiling, "-o", built, program, *linking)
    return [str(built)]


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    ".py": lambda program: [sys.executable, str(program)],
    ".mjs": _node,
    ".java": _java,
    ".go": _go,
    ".pl": lambda program: [*peers.perl(), str(program)],
    ".rb": lambda program: [*peers.ruby(), str(program)],
    ".php": lambda program: [*peers.php(), str(program)],
    ".c": _c,
}


def prepared(name: str, text: str, address: str, folder: Path) -> Program:
    """Save a program and find out how to run it; addresses that stand in it lead to the database."""
    parts = {key: str(part) for key, part in conninfo_to_dict(address).items()}
    place = f"{parts['host']}:{parts['port']}/{quote(parts['dbname'])}"
    jdbc = f"jdbc:{ADDRESS}", f"jdbc:postgresql://{place}?user={parts['user']}&password={parts['password']}"
    uri = ADDRESS, f"postgresql://{parts['user']}:{parts['password']}@{place}"
    program = folder / name
    program.write_text(text.replace(*jdbc).replace(*uri), encoding="utf-8")
    return Program(tuple(COMMANDS[program.suffix](program)), peers.environment(address))


def ready(ear: Ear) -> None:
    """Make the table of the page; session s1 is there."""
    ear.connection.execute("create table orders (id text primary key)")
    ear.connection.execute("grant insert on orders to public")


def check(ear: Ear, program: Program) -> None:
    """It writes both rows, and neither if the session has a pending recall."""
    done = program("o'88")
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.split()
    assert "recall" in words or len(words) == 1
    made = recall(ear.connection, words[-1])
    assert made["additional_context_message"] == "Ask whether order o'88 arrived."
    assert 3 * 86400 - 3700 < (made["due_at"] - made["created_at"]).total_seconds() < 3 * 86400 + 3700
    assert made["metadata"] in ({"order": "o'88"}, {})
    assert made["scheduled_by"].startswith("shop_")
    again = program("89")
    assert again.returncode != 0
    assert "one_pending_recall_per_session" in again.stderr
    assert [order for (order,) in ear.connection.execute("select id from orders").fetchall()] == ["o'88"]
    assert value(ear.connection, "select count(*) from pgrecall.session_recalls") == 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_of_the_page_writes_both_rows_or_none(name: str, address: str, ear: Ear, tmp_path: Path) -> None:
    ready(ear)
    check(ear, prepared(name, PROGRAMS[name], address, tmp_path))


def test_the_shell_of_the_page_writes_both_rows_or_none(address: str, ear: Ear, tmp_path: Path) -> None:
    (shell,) = (block.text for block in BLOCKS if block.text.startswith("psql "))
    ready(ear)
    script = tmp_path / "remind.sh"
    script.write_text(
        shell.replace("order=88", 'order="$1"').replace("psql ", f"{shlex.quote(*peers.tool('psql'))} -XAtq ", 1)
    )
    check(ear, Program(("sh", str(script)), peers.environment(address)))


def test_the_page_has_programs_for_all_languages() -> None:
    assert {Path(name).suffix for name in PROGRAMS} == set(COMMANDS)


def test_the_statements_of_the_page_work_for_a_producer(address: str, database: str) -> None:
    """tests/test_docs.py runs them as the owner."""
    setting, *statements = [block.text for block in BLOCKS if block.language == "sql" and not block.options]
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(setting.encode())
    with psycopg.connect(address, autocommit=True) as producer:
        for statement in (one for text in statements for one in pglast.split(text)):
            producer.execute(statement.encode())
        found = producer.execute("select session_id, status from pgrecall.session_recalls order by 1")
        assert found.fetchall() == [("s1", "cancelled"), *((f"s{number}", "pending") for number in (2, 3, 4))]


def test_the_page_lists_exactly_the_columns_that_a_producer_may_not_write(ear: Ear) -> None:
    told = PAGE[PAGE.index("**Not to be written.**") : PAGE.index("## The role")]
    found = ear.connection.execute(
        """select attname from pg_attribute where attrelid = 'pgrecall.session_recalls'::regclass and attnum > 0
            and not attisdropped
            and not has_column_privilege('pgrecall_producer', 'pgrecall.session_recalls', attname, 'insert')"""
    )
    columns = {name for (name,) in found.fetchall()}
    every = {name for (name,) in ear.connection.execute(
        "select attname from pg_attribute where attrelid = 'pgrecall.session_recalls'::regclass and attnum > 0"
    ).fetchall()}  # fmt: skip
    assert set(re.findall(r"`(\w+)`", told)) & every == columns


def test_each_error_that_the_page_names_exists(ear: Ear) -> None:
    rules = re.findall(r"`\d{5}`, `(\w+)`", PAGE)
    known = ear.connection.execute(
        "select conname::text from pg_constraint union select relname::text from pg_class where relkind = 'i'"
    )
    assert rules
    assert set(rules) <= {name for (name,) in known.fetchall()}
