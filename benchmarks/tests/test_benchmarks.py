"""The harness in benchmarks/: it runs, its accounts are right, and the plans of the hot statements are as they were."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest
from click.testing import CliRunner

from benchmarks import docs, marks, plans, report, results, run
from benchmarks.__main__ import main
from benchmarks.cell import QUICK, Cell, Contestant, Sample, spread
from benchmarks.cells import every_cell
from benchmarks.marks import Mark
from benchmarks.peer import Peer, every_peer
from benchmarks.results import Record, Results
from benchmarks.server import Server
from benchmarks.stage import Account, Failed, Stage
from pgrecall import schema
from pgrecall.embedded import EmbeddedPostgresError

TINY = dataclasses.replace(
    QUICK,
    scheduled_jobs=5,
    workers=(1,),
    immediate_jobs=5,
    idle_seconds=1,
    backlog=60,
    backlog_seconds=20,
    processes=(2,),
    inserted=30,
    bulk=50,
    clients=(1,),
    scheduled_gap=0.02,
)

RIGHT = Account(made=3, begun=3, repeated=0, unknown=0, unfinished=0, complete=True, warmed=1, workers=1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    try:
        started = Server(durable=False)
    except EmbeddedPostgresError as error:
        pytest.skip(str(error))
    with started:
        yield started


def measured(server: Server, cell: str, *names: str) -> dict[tuple[str, str], Record]:
    """Runs one cell once, and checks what must be true of every record of ours and raw."""
    made = Results({})
    peers = [every_peer()[name] for name in names]
    run.measure(server, made, [every_cell()[cell]], peers, TINY, profiles=["best", "throughput"], tell=lambda *_: None)
    for record in made.records:
        assert (record.failure, record.trouble) == (None, None), record
    return {(record.contestant, record.profile): record for record in made.records}


def test_a_backlog_is_worked_off_by_two_processes_with_every_job_accounted_for(server: Server) -> None:
    found = measured(server, "throughput", "raw", "ours")
    for record in found.values():
        assert record.account is not None
        assert (record.account["made"], record.account["begun"]) == (60, 60)
        assert record.figures["rate"] > 0
    # Raw claims and completes in batches.
    assert found["raw", "throughput"].figures["statements"] < found["ours", "throughput"].figures["statements"]


def test_jobs_are_late_by_milliseconds_and_never_early_and_warm_up_is_not_among_them(server: Server) -> None:
    for record in measured(server, "scheduled", "raw", "ours").values():
        assert record.account is not None
        assert record.account["warmed"] >= 1
        assert len(record.samples) == record.account["made"] == 5
        assert 0 <= min(record.samples) <= record.figures["p50"] <= record.figures["max"] < 10_000
        assert record.figures["statements"] >= 1


def test_making_jobs_is_measured_without_running_them(server: Server) -> None:
    record = measured(server, "enqueue", "ours")["ours", "best"]
    assert record.account is not None
    assert record.account["begun"] == 0
    assert record.account["unfinished"] == record.account["made"] == 20 + 30 + 50
    assert record.figures["bulk"] > 0


def test_a_worker_has_connections_and_memory_at_the_server(server: Server) -> None:
    found = measured(server, "footprint", "raw", "ours")
    assert found["raw", "best"].figures["connections"] == 1
    ours = found["ours", "best"].figures
    assert 4 <= ours["idle_connections"] <= ours["connections"] <= 14
    assert 0.5 * ours["connections"] < ours["mib"] < 20 * ours["connections"]


@pytest.mark.parametrize(
    ("cell", "variant", "contestant"),
    [
        ("trigger", "1 clients, 8 listeners, one by one", "ours"),
        ("trigger", "1 clients, 0 listeners, in bulk", "a NOTIFY for each row"),
        ("pending", "100 pending", "ours"),
        ("fanout", "8 listeners", "NOTIFY"),
        ("snapshot", "200 fired, old snapshot open", "raw"),
    ],
)
def test_what_is_no_contest_of_peers_gives_all_its_figures(
    server: Server, cell: str, variant: str, contestant: str
) -> None:
    measuring = every_cell()[cell]
    tiny = dataclasses.replace(TINY, pgbench_seconds=1, probes=5, snapshot_jobs=200)
    sample = measuring.run(server, Contestant(contestant, ""), variant, tiny)
    assert sample.figures.keys() == {figure.key for figure in measuring.figures}
    assert all(value > 0 for value in sample.figures.values())


def test_the_database_has_the_clock_of_the_machine_by_which_lateness_is_measured(server: Server) -> None:
    before = time.time()
    told = float(server.number("select extract(epoch from clock_timestamp())"))
    assert before - 0.001 <= told <= time.time() + 0.001


def test_a_real_stage_tells_lost_and_repeated_jobs_from_right_ones(server: Server) -> None:
    peer = every_peer()["raw"]
    with Stage(server, peer, peer.profiles["best"]) as stage:
        stage.start(1)
        stage.warm_up()
        stage.bulk(0, 4)
        assert stage.all_done(10)
        right = stage.account(complete=True)
        assert (right.trouble(), right.made, right.begun, right.warmed) == (None, 4, 4, 1)
        with stage.marks_file.open("ab") as file:
            file.write(marks._RECORD.pack(2, time.time_ns(), 1))
            file.write(marks._RECORD.pack(77, time.time_ns(), 1))
        assert stage.account(complete=True).trouble() == "1 repeated, 1 unknown"


def test_a_worker_that_cannot_start_is_a_failure_with_its_last_words(server: Server) -> None:
    class Broken(type(every_peer()["raw"])):  # type: ignore[misc]
        def command(self, settings: str) -> list[str]:
            return ["sh", "-c", "echo no such option >&2; exit 3"]

    try:
        peer = Broken()
        with Stage(server, peer, peer.profiles["best"]) as stage, pytest.raises(Failed, match="no such option"):
            stage.start(1)
    finally:
        del Broken


def test_statements_of_the_harness_are_not_counted_and_those_of_others_are(server: Server) -> None:
    with server.database() as database, database.connect() as own, psycopg.connect(database.dsn) as other:
        before = database.counts()
        for _ in range(3):
            own.execute("select 1")
        other.execute("select 2")
        counted = database.counts().since(before)
        if counted.statements is None:
            pytest.skip("this server has no pg_stat_statements")
        assert counted.statements == 2  # its BEGIN is a round trip too


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        ({}, None),
        ({"begun": 2}, "1 of 3 lost"),
        ({"begun": 2, "complete": False}, None),
        ({"repeated": 2}, "2 repeated"),
        ({"unknown": 1}, "1 unknown"),
        ({"unfinished": 1}, "1 not completed"),
        ({"unfinished": 1, "complete": False}, None),
    ],
)
def test_an_account_says_what_is_wrong_with_it(change: dict[str, int], trouble: str | None) -> None:
    assert dataclasses.replace(RIGHT, **change).trouble() == trouble  # type: ignore[arg-type]


def test_a_mark_is_written_and_read_back_also_after_half_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "marks"
    path.touch()
    monkeypatch.setenv(marks.VARIABLE, str(path))
    monkeypatch.setattr(marks, "_opened", {})
    marks.mark(-1)
    marks.mark(7)
    with path.open("ab") as file:
        file.write(b"half")
    found = marks.read(path)
    assert [type(mark) for mark in found] == [Mark, Mark]
    assert [mark.number for mark in found] == [-1, 7]
    assert marks.count(path) == 2


def test_percentiles_are_values_that_were_measured() -> None:
    assert spread(range(1, 101)) == {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert spread([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0, "max": 3.0}
    assert spread([]) == {}


def test_every_peer_has_settings_for_what_it_is_measured_in_and_a_reason_for_what_not() -> None:
    peers = every_peer()
    assert {"raw", "ours", "ours-sessions"} <= peers.keys()
    assert {"procrastinate", "pgqueuer", "chancy", "oban", "absurd", "dbos", "awa", "apscheduler"} <= peers.keys()
    for peer in peers.values():
        assert peer.profiles.keys() <= {"default", "best", "throughput"}
        assert "best" in peer.profiles
        assert all(peer.not_measured.values())
        json.dumps({name: dict(settings) for name, settings in peer.profiles.items()})


def test_a_rival_that_is_not_installed_is_a_line_that_says_so(server: Server) -> None:
    class Absent(Peer):
        name = "absent"
        distributions = ("no-such-distribution-anywhere",)
        profiles: ClassVar = {"best": {}}
        unfinished = ""

    Absent.__abstractmethods__ = frozenset()
    try:
        made = Results({})
        cell = every_cell()["pickup"]
        run.measure(server, made, [cell], [Absent()], TINY, profiles=["best"], tell=lambda *_: None)  # type: ignore[abstract]
    finally:
        del Absent
    assert [record.failure for record in made.records] == ["no-such-distribution-anywhere is not installed"]
    (sheet,) = report.sheets(made, [cell])
    assert "no-such-distribution-anywhere is not installed" in report.markdown(sheet)


class Invented(Cell):
    name = "scheduled"
    title = "Invented"
    figures = every_cell()["scheduled"].figures

    def variants(self, size: object) -> list[str]:
        return ["1 worker"]

    def contestants(self, peers: object) -> list[Contestant]:
        return []

    def run(self, server: object, contestant: object, variant: str, size: object) -> Sample:
        raise NotImplementedError


def invented() -> Results:
    """Two rounds in which the machine was twice as slow the second time, and ours always three times raw."""
    made = Results({"peers": {}})
    for number, speed in enumerate((1.0, 2.0), 1):
        for name, figure in (("raw", 2.0), ("ours", 6.0)):
            figures = {"p50": figure * speed}
            made.records.append(Record("scheduled", "1 worker", name, "best", number, figures, [figure, figure + 1]))
    return made


def test_a_ratio_is_to_the_baseline_of_the_same_round() -> None:
    ratio = invented().ratio(Invented(), "1 worker", "ours", "best", "p50")
    assert ratio is not None
    assert (ratio.median, ratio.least, ratio.most, ratio.rounds) == (3.0, 3.0, 3.0, 2)


def test_a_contestant_says_once_why_several_cells_leave_it_out() -> None:
    made = invented()
    not_measured = {"pickup": "one process", "idle": "one process", "rescue": "no lease"}
    made.about["peers"] = {"a": {"version": "1", "missing": None, "remark": "best", "not_measured": not_measured}}
    assert report.versions(made).rows == [["a", "1", "best; pickup, idle: one process; rescue: no lease"]]


@pytest.mark.parametrize(("warmed", "remark"), [(2, ""), (1, "only 1 of 2 workers had run a job before"), (0, "")])
def test_a_cell_that_began_before_every_worker_was_warm_says_so(warmed: int, remark: str) -> None:
    sample = Sample({"p50": 1.0}, dataclasses.replace(RIGHT, warmed=warmed, workers=2))
    assert results.record_of(Invented(), "1 worker", Contestant("ours", "best"), 1, sample).remark == remark


def test_results_are_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    made = invented()
    made.write(tmp_path / "results.json")
    assert results.load(tmp_path / "results.json").records == made.records
    (tmp_path / "results.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="measure again"):
        results.load(tmp_path / "results.json")


def test_docs_get_tables_between_their_markers_and_nothing_else_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench: scheduled, best -->\nold\n<!-- bench: end -->\nafter\n")
    assert docs.update(page, invented(), [Invented()], []) == ["scheduled, best"]
    text = page.read_text()
    assert text.startswith("before\n<!-- bench: scheduled, best -->\n")
    assert text.endswith("<!-- bench: end -->\nafter\n")
    assert "old" not in text
    assert re.search(r"\| ours \| 1 worker \| 9\.00 \(6\.00.12\.0\) . 3\.00. \|", text)
    docs.update(page, invented(), [Invented()], [])
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<!-- bench: churn -->\n<!-- bench: end -->\n", "'churn' was not measured"),
        ("<!-- bench: scheduled, best -->\n", "has no <!-- bench: end -->"),
    ],
)
def test_docs_that_ask_for_what_there_is_not_are_refused_and_kept(tmp_path: Path, text: str, complaint: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        docs.update(page, invented(), [Invented()], [])
    assert page.read_text() == text


def test_docs_may_keep_what_this_run_has_not_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    churn = "<!-- bench: churn -->\nfrom another run\n<!-- bench: end -->\n"
    page.write_text(churn + "<!-- bench: scheduled, best -->\nold\n<!-- bench: end -->\n")
    assert docs.update(page, invented(), [Invented()], [], keep=True) == ["scheduled, best"]
    text = page.read_text()
    assert text.startswith(churn)
    assert "old" not in text


def test_the_plans_of_the_hot_statements_are_those_that_are_kept(server: Server) -> None:
    if server.connection.info.server_version // 10000 != plans.MAJOR or "auto_explain" not in server.modules:
        pytest.skip(f"the plans of PostgreSQL {plans.MAJOR} with auto_explain are kept")
    with server.database() as database:
        with psycopg.connect(database.dsn) as connection:
            schema.install(connection)
        now = plans.explained(database.dsn)
    kept = plans.kept()
    assert now.keys() == kept.keys(), "python -m benchmarks plans"
    for name, text in now.items():
        assert text == kept[name], f"{name} has another plan; if that is meant: python -m benchmarks plans"


@pytest.mark.parametrize("arguments", [["run", "--cells", "nonsense"], ["run", "--peers", "nobody"]])
def test_an_unknown_name_is_refused_with_those_there_are(arguments: list[str]) -> None:
    answer = CliRunner().invoke(main, arguments)
    assert answer.exit_code == 2
    assert "there are" in answer.output


def test_a_later_run_of_some_cells_keeps_what_was_measured_of_the_others() -> None:
    def record(cell: str, rate: float) -> Record:
        return Record(cell, "1 process", "raw", "best", 1, {"rate": rate})

    earlier = Results({"peers": {"raw": {}}, "arguments": ["first"]}, [record("idle", 1), record("pickup", 1)])
    later = Results({"peers": {"ours": {}}, "arguments": ["second"]}, [record("pickup", 2)])

    later.keep(earlier, but={"pickup"})

    assert [(each.cell, each.figures["rate"]) for each in later.records] == [("idle", 1), ("pickup", 2)]
    assert later.about == {"peers": {"raw": {}, "ours": {}}, "arguments": ["second"], "earlier": [["first"]]}
