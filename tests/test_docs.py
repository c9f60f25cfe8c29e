"""Runs the examples of README.md and docs/: what a reader can copy works.

How to write an example. The fenced blocks of a page run from top to bottom, on one fresh database with the schema.

sql, psql     Statement by statement, each committed on its own. A ``psql`` block may have lines that begin with a
              backslash; they are left out. Show results in a ``text`` block, which is not compared.
python        In one namespace for the page; ``await`` works at the top level, and all blocks share one event loop.
              ``if __name__ == "__main__":`` is false. A block whose first line is ``# name.py`` is also saved under
              that name, where ``pgrecall worker --agent name:attribute`` finds it. A block that runs a worker must come
              to an end by itself: call ``worker.stop()`` when it has done enough, or put it in
              ``with anyio.move_on_after(5):``. Close what you open (``async with RecallScheduler() as recalls``).
bash          Lines that begin with ``pgrecall`` (or ``$ pgrecall``) run, up to a pipe; ``pgrecall worker`` and a line
              ending in ``&`` run until the page ends, and must then stop cleanly. ``pgrecall demo`` is only asked for
              its help. ``make x`` must be a target, ``pip install pgrecall[x]`` an extra; other lines are for people.
The database  ``PGRECALL_DSN`` and the ``PG*`` variables lead to it, and so does the address ``postgresql://localhost/app``
              wherever it is written.
Not to run    Say ``no-run`` after the language, and why in a comment on the line before:

                  <!-- not run: needs a key for the model -->
                  ```python no-run
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import textwrap
import tomllib
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pglast
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ADDRESS = "postgresql://localhost/app"
SECONDS = 30  # for one block or command
KINDS = {"py": "python", "python3": "python", "sh": "bash", "shell": "bash", "console": "bash", "psql": "sql"}
LIBPQ = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of text, `before` the last line with text above the fence."""

    language: str
    options: tuple[str, ...]
    text: str
    line: int
    before: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    found: list[Block] = []
    fence = re.compile(r"^(?P<indent>[ ]*)(?P<mark>`{3,}|~{3,})(?P<info>.*)$")
    lines = page.splitlines()
    place = 0
    while place < len(lines):
        opening = fence.match(lines[place])
        place += 1
        if opening is None:
            continue
        begin = place
        while place < len(lines) and lines[place].strip() != opening["mark"]:
            place += 1
        text = "\n".join(line.removeprefix(opening["indent"]) for line in lines[begin:place])
        above = [line.strip() for line in lines[: begin - 1] if line.strip()]
        language, *options = opening["info"].split() or [""]
        found.append(Block(language, tuple(options), text, begin + 1, above[-1] if above else ""))
        place += 1
    return found


class Page:
    """Runs the blocks of one page."""

    def __init__(self, name: str, dsn: str, folder: Path) -> None:
        self.name = name
        self.dsn = dsn
        self.folder = folder
        self.module = types.ModuleType("the_page")
        self.processes: list[tuple[str, subprocess.Popen[str]]] = []
        self.loop = asyncio.Runner()

    def run(self, page: str) -> None:
        """Run all blocks, then stop what they left running."""
        with self._environment():
            for block in blocks(page):
                if "no-run" in block.options:
                    assert re.fullmatch(r"<!-- not run: \S.* -->", block.before), (
                        f"{self.name}:{block.line}: say why on the line before: <!-- not run: needs your agent -->"
                    )
                    continue
                try:
                    self._run_block(block)
                except Exception as error:
                    error.add_note(f"in the {block.language} block at {self.name}:{block.line}")
                    raise
            self._end_processes()

    def _run_block(self, block: Block) -> None:
        text = block.text.replace(ADDRESS, self.dsn)
        match KINDS.get(block.language, block.language):
            case "sql":
                self._sql(text, psql=block.language == "psql")
            case "python":
                self._python(text, block.line)
            case "bash":
                for line in text.replace("\\\n", " ").splitlines():
                    self._command(line.strip().removeprefix("$ "))

    def _sql(self, text: str, *, psql: bool) -> None:
        if psql:
            text = "\n".join(line for line in text.splitlines() if not line.startswith("\\"))
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in pglast.split(text):
                connection.execute(statement.encode())

    def _python(self, text: str, line: int) -> None:
        if title := re.match(r"# (\w+\.py)$", text, flags=re.MULTILINE):
            (self.folder / title[1]).write_text(text + "\n", encoding="utf-8")
        code = compile("\n" * (line - 1) + text, self.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if not code.co_flags & inspect.CO_COROUTINE:
            exec(code, vars(self.module))
            return

        async def limited() -> None:
            async with asyncio.timeout(SECONDS):
                await eval(code, vars(self.module))

        self.loop.run(limited())

    def _command(self, line: str) -> None:
        if target := re.match(r"make ([\w-]+)", line):
            assert re.search(rf"^{target[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), line
        elif install := re.search(r"\bpgrecall\[([\w,-]+)\]", line):
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert set(install[1].split(",")) <= set(project["optional-dependencies"]), line
        elif re.match(r"pgrecall\s", line):
            self._cli(line)

    def _cli(self, line: str) -> None:
        words = shlex.split(re.split(r"\s\|\s", line)[0], comments=True)
        stays = words[-1] == "&" or words[1] == "worker"
        if words[-1] == "&":
            words.pop()
        if words[1] == "demo":
            words = ["pgrecall", "demo", "--help"]
        script = Path(sysconfig.get_path("scripts"), "pgrecall")
        program = [str(script)] if script.exists() else [sys.executable, "-m", "pgrecall"]
        process = subprocess.Popen(
            [*program, *map(os.path.expandvars, words[1:])],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append((line, process))
        if not stays:
            self._end(line, process)

    def _end_processes(self) -> None:
        for line, process in self.processes:
            if process.stdout is not None and not process.stdout.closed:
                if line.startswith("pgrecall worker"):
                    process.stdout.readline()  # it has started, and hears the signal
                process.send_signal(signal.SIGTERM)
                self._end(line, process)

    def _end(self, line: str, process: subprocess.Popen[str]) -> None:
        output, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, f"{line}\n{output}"

    @contextmanager
    def _environment(self) -> Iterator[None]:
        with ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setenv("PGRECALL_DSN", self.dsn)
            for name, value in conninfo_to_dict(self.dsn).items():
                if value is not None and name in LIBPQ:
                    patch.setenv(LIBPQ[name], str(value))
            patch.chdir(self.folder)
            patch.syspath_prepend(self.folder)
            patch.setitem(sys.modules, self.module.__name__, self.module)
            stack.enter_context(self.loop)
            try:
                yield
            finally:
                for _, process in self.processes:  # those that a failed block left behind
                    if process.poll() is None:
                        process.kill()
                        process.communicate()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_work(page: Path, database: str, tmp_path: Path) -> None:
    Page(str(page.relative_to(ROOT)), database, tmp_path).run(page.read_text(encoding="utf-8"))


def _page(text: str) -> str:
    return textwrap.dedent(text)


def test_blocks_of_all_kinds_share_one_database(database: str, tmp_path: Path) -> None:
    page = Page("page.md", database, tmp_path)
    page.run(
        _page("""
        ```sql
        create table seen (by text);
        insert into seen values ('sql; still sql');
        ```

        1. In a list:

           ```python
           import os, psycopg
           async with await psycopg.AsyncConnection.connect(os.environ["PGRECALL_DSN"]) as connection:
               await connection.execute("insert into seen values ('python')")
           ```

        ```python
        # second.py
        with psycopg.connect("postgresql://localhost/app") as connection:
            rows = connection.execute("select by from seen").fetchall()
        ```

        ```text
        not run
        ```
        """)
    )
    assert page.module.rows == [("sql; still sql",), ("python",)]
    assert (tmp_path / "second.py").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```sql\nselect 1;\nselect no_such_column;\n```", "no_such_column"),
        ("```python\n1 / 0\n```", "division by zero"),
        ("```py\nimport asyncio\nawait asyncio.sleep(0)\nassert False, 'reached'\n```", "reached"),
        ("```bash\nmake no-such-target\n```", "no-such-target"),
        ("```bash\npip install 'pgrecall[no_such_extra]'\n```", "no_such_extra"),
        ("```console\n$ pgrecall no-such-command\n```", "no-such-command"),
        ("```python no-run\nnever()\n```", "say why on the line before"),
    ],
)
def test_a_wrong_example_fails(text: str, complaint: str, database: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=complaint) as caught:
        Page("page.md", database, tmp_path).run(f"# Title\n\n{text}\n")
    assert "page.md:4" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


def test_a_block_that_says_why_is_not_run(database: str, tmp_path: Path) -> None:
    text = "<!-- not run: it never ends -->\n```python no-run\nraise SystemExit\n```\n"
    Page("page.md", database, tmp_path).run(text)
