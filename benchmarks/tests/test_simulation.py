"""The simulation of a fleet: it obeys what is known of queues, and counts what must come out by hand."""

from __future__ import annotations

import dataclasses
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

simpy = pytest.importorskip("simpy", reason="pip install simpy")

from benchmarks import docs, fleets  # noqa: E402 (it needs simpy)
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.costs import Costs, costs_of  # noqa: E402
from benchmarks.results import Record, Results  # noqa: E402
from benchmarks.simulation import Fleet, Processor, Waking, simulated  # noqa: E402

#: Nothing waits for the disk, so that all time is that of processors.
COSTS = Costs(commit=0, network=0)
QUIET = Fleet(workers=1, rate=1, rows=50, even=True)


@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.8])
def test_a_processor_keeps_its_customers_waiting_as_long_as_an_m_d_1_queue(utilisation: float) -> None:
    env = simpy.Environment()
    processor = Processor(env, 1)
    chance = random.Random(7)
    service = 1.0  # milliseconds
    waited = []

    def customer() -> Any:
        came = env.now
        yield from processor.run(service)
        waited.append((env.now - came) * 1e3 - service)

    def arrivals() -> Any:
        for _ in range(30_000):
            yield env.timeout(chance.expovariate(utilisation / service) / 1e3)
            env.process(customer())

    env.process(arrivals())
    env.run()
    expected = utilisation * service / (2 * (1 - utilisation))
    assert statistics.mean(waited) == pytest.approx(expected, rel=0.08)
    assert processor.busy == pytest.approx(30.0)


def test_two_cores_do_two_things_at_once_and_the_third_waits() -> None:
    env = simpy.Environment()
    processor = Processor(env, 2)
    ended = []

    def customer() -> Any:
        yield from processor.run(10)
        ended.append(round(env.now * 1e3))

    for _ in range(3):
        env.process(customer())
    env.run()
    assert ended == [10, 10, 20]


def test_one_worker_with_nothing_else_to_do_is_late_by_what_its_steps_take() -> None:
    costs = Costs()
    came = simulated(QUIET, costs)
    steps = costs.wake + costs.network + costs.claim + costs.commit + costs.network + costs.answer
    assert [came.late["p50"], came.late["max"]] == pytest.approx([steps, steps])
    assert came.statements == pytest.approx(2)


@pytest.mark.parametrize("waking", Waking)
def test_the_server_is_busy_for_what_its_statements_and_messages_take(waking: Waking) -> None:
    """The utilisation law: throughput times service time, divided by the cores."""
    fleet = dataclasses.replace(QUIET, workers=4, cores=2, rows=400, waking=waking)
    came = simulated(fleet, COSTS)
    looks = came.statements - 2
    per_fire = COSTS.claim + COSTS.finish + looks * COSTS.look
    if waking is Waking.HAND_OVER:
        per_fire += (fleet.workers - 1) * COSTS.notify
    assert came.utilisation == pytest.approx(came.fires * per_fire / 1e3 / fleet.cores, rel=0.02)


def test_in_a_herd_every_worker_looks_for_every_row() -> None:
    came = simulated(dataclasses.replace(QUIET, workers=10, cores=10), COSTS)
    assert 11 <= came.statements < 22  # each looks once, some of them twice because a claim was not yet committed


def test_by_hand_over_one_worker_looks_whatever_the_size_of_the_fleet() -> None:
    few = simulated(dataclasses.replace(QUIET, workers=2, waking=Waking.HAND_OVER), COSTS)
    many = simulated(dataclasses.replace(QUIET, workers=200, waking=Waking.HAND_OVER), COSTS)
    assert few.statements == many.statements == pytest.approx(2, rel=0.05)
    assert few.late["p50"] == many.late["p50"]
    assert many.utilisation > few.utilisation  # for they are told


def test_a_longer_head_start_spares_a_large_fleet_its_looks() -> None:
    fleet = Fleet(workers=300, rate=50, cores=4, rows=60, waking=Waking.HAND_OVER)
    hurried = simulated(fleet, Costs())
    patient = simulated(dataclasses.replace(fleet, head_start=0.1), Costs())
    assert patient.statements < 3 < hurried.statements / 3


def test_the_next_in_line_takes_over_when_the_first_has_no_free_slot() -> None:
    fleet = Fleet(workers=3, rate=10, slots=1, run=0.15, rows=40, even=True, waking=Waking.HAND_OVER)
    came = simulated(fleet, Costs())
    assert came.late["p99"] < 100
    assert came.fires == pytest.approx(10, rel=0.1)


def test_runs_longer_than_there_are_slots_for_are_late() -> None:
    enough = simulated(Fleet(workers=2, rate=10, slots=4, run=0.5, rows=100, even=True), Costs())
    scarce = simulated(Fleet(workers=2, rate=10, slots=2, run=0.5, rows=100, even=True), Costs())
    assert enough.late["p99"] < 300
    assert scarce.late["p99"] > 1000
    assert scarce.fires == pytest.approx(8, rel=0.1)  # four slots, two runs a second each


def test_a_server_that_cannot_keep_up_is_fully_used() -> None:
    came = simulated(Fleet(workers=20, rate=2000, cores=1, rows=400, slots=1), COSTS)
    assert came.utilisation > 0.95
    assert came.fires < 2000 / 2


def test_the_same_seed_gives_the_same_figures_and_another_one_others() -> None:
    fleet = Fleet(workers=5, rate=50, rows=60)
    assert simulated(fleet, Costs()) == simulated(fleet, Costs())
    assert simulated(fleet, Costs()) != simulated(dataclasses.replace(fleet, seed=2), Costs())


# Costs and tables


def measured() -> Results:
    """A run with what the costs are taken from."""
    made = Results({"machine": {"processors": 2}, "size": {"scheduled_gap": 0.1, "scheduled_jobs": 20}})
    for variant, statements, late in (("1 worker", 2.0, 6.0), ("4 workers", 7.0, 7.0)):
        figures = {"statements": statements, "server_ms": 3.0, "worker_ms": 2.0, "p50": late, "p99": late}
        made.records.append(Record("scheduled", variant, "ours", "best", 1, figures))
    made.records.append(
        Record("pending", "10,000 pending", "ours", "", 1, {"look": 0.5, "claim": 1.0, "finish": 0.5, "insert": 0.2})
    )
    for listeners, spent in ((0, 0.1), (10, 0.5), (20, 0.9)):
        figures = {"server_ms": spent} | ({"listener_us": 30.0} if listeners else {})
        made.records.append(Record("fanout", f"{listeners} listeners", "NOTIFY", "", 1, figures))
    made.records.append(Record("fanout", "20 listeners in another database", "NOTIFY", "", 1, {"server_ms": 0.1}))
    made.records.append(Record("throughput", "1 process", "ours", "throughput", 1, {"server_ms": 0.5}))
    return made


def test_costs_are_what_was_measured_and_say_so() -> None:
    costs = costs_of(measured(), {"network": 0.2})
    assert {name: round(cost.value, 3) for name, cost in costs.items()} == {
        "look": 0.5,
        "claim": 2.0,
        "finish": 1.0,
        "locked": 0.15,
        "commit": 2.6,  # of 6: without 0.5 + 2 * 0.2 + 2 + 0.5
        "notify": 0.04,
        "wake": 0.5,
        "answer": 0.5,
        "told": 0.03,
        "network": 0.2,
    }
    assert [name for name, cost in costs_of(measured(), {}).items() if cost.source == "default"] == ["network"]
    assert costs["network"].source == "given"


def test_without_a_run_all_costs_are_defaults_and_say_so() -> None:
    assert {cost.source for cost in costs_of(None, {}).values()} == {"default"}
    assert costs_of(Results({}), {}) == costs_of(None, {})


def test_the_docs_get_the_tables_that_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "WORKERS", (1, 2))
    monkeypatch.setattr(fleets, "RATES", (10,))
    wanted = ["costs", "capacity", "simulation", "simulation check"]
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- bench: {name} -->\n<!-- bench: end -->\n" for name in wanted))
    assert docs.update(page, measured(), [], []) == wanted
    text = page.read_text()
    # 7 tenths of 2 cores at half a millisecond.
    assert "| a backlog, without history | 0.50 | 2,800 | 11,200 |" in text
    assert "| 4 workers | 7.00 |" in text
    assert "| 2 | 10.0 | hand-over |" in text
    assert "| network | 0.050 | default |" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cost", "luck=1"], "no such cost; there are look"),
        (["--cost", "look=much"], "could not convert"),
        (["--workers", "0"], "must be greater than 0"),
        (["--check"], "measure first"),
    ],
)
def test_a_simulation_of_what_there_is_not_is_refused(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    answer = CliRunner().invoke(main, ["simulate", "--results", str(tmp_path / "none.json"), *arguments])
    assert answer.exit_code == 1
    assert complaint in answer.output


def test_the_command_shows_costs_and_fleets(tmp_path: Path) -> None:
    made = measured()
    made.write(tmp_path / "results.json")
    answer = CliRunner().invoke(
        main, ["simulate", "--results", str(tmp_path / "results.json"), "--workers", "3", "--rows", "10"]
    )
    assert answer.exit_code == 0, answer.output
    assert "cell pending" in answer.output
    assert "hand-over" in answer.output
