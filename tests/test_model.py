"""The wake-up and the rescue protocol, checked in all interleavings of a small scope by the model checker spin.

tests/model/README.md says what the models are about. Every rule of the protocol that they have has a mutation that
takes it out; without it there must be a counterexample, or the rule would be superfluous or the model blind.

PGRECALL_MODEL=full checks larger scopes too. PGRECALL_REQUIRE=model makes a missing spin an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

MODELS = Path(__file__).parent / "model"

#: Rescues are prompt only if nothing delays them, and if the window for "seen lately" is longer than the delay.
PROMPT = "PUNCTUAL SEEN=8 LEASE=12"

#: What must hold, and where: model, flags.
HOLDS = [
    ("wake", "D1=2 D2=3 TMAX=1"),
    ("wake", "TWO_ROWS D1=2 D2=2"),
    ("wake", "TWO_ROWS D1=3 D2=2"),
    ("wake", "TWO_ROWS RR1=true"),
    ("wake", "ONE_ROW RR1=true QUEUES"),
    ("wake", "ONE_ROW CANCELS=1"),
    ("wake", "ONE_ROW CUTS=1"),
    ("wake", "ONE_ROW GIVES_BACK ROLLBACKS=1"),
    ("wake", "NO_ROW DEFERRAL ROLLBACKS=1 QUEUES"),
    ("wake", "HERD ONE_ROW TMAX=1"),
    ("wake", "HERD TWO_ROWS D1=3 D2=2 TMAX=1"),
    ("wake", "HERD NO_ROW GIVES_BACK ROLLBACKS=1"),
    ("rescue", "LIFE=0 DEATHS=1 CUTS=1 RESTARTS=1 PARTITIONS=1 ANYWORKER"),
    ("rescue", "LIFE=0 NREC=2 DEATHS=1 PARTITIONS=1 ANYWORKER"),
    ("rescue", "DEATHS=1 ANYWORKER"),
    ("rescue", "CUTS=3"),
    ("rescue", "DEATHS=1 CUTS=2 MAXATT=3"),
    ("rescue", "NREC=2 DEATHS=1 CUTS=1"),
    ("rescue", "DEATHS=1 RESTARTS=1"),
    ("rescue", "DEATHS=1 PARTITIONS=1"),
    ("rescue", "PARTITIONS=1 CUTS=1"),
    ("rescue", "DEATHS=1 CUTS=1 NW=3"),
    ("rescue", f"{PROMPT} DEATHS=1 CUTS=3"),
    ("rescue", f"{PROMPT} DEATHS=1 CUTS=2 LINGER"),
    ("rescue", f"{PROMPT} DEATHS=1 LINGER JOINS ANYWORKER"),
    ("rescue", f"{PROMPT} DEATHS=2 NW=3 JOINS ANYWORKER"),
]

#: The same with PGRECALL_MODEL=full: up to minutes and gigabytes each.
HOLDS_FULL = [
    ("wake", "D1=2 D2=3"),
    ("wake", "ONE_ROW CUTS=1 QUEUES"),
    ("wake", "RR1=true RR2=true"),
    ("wake", "RR2=true D1=3 D2=2"),
    ("wake", "D1=1 D2=2 QUEUES"),
    ("wake", "D1=3 D2=2 QUEUES"),
    ("wake", "D1=2 D2=2 ROLLBACKS=1"),
    ("wake", "TWO_ROWS CANCELS=1 ROLLBACKS=1"),
    ("wake", "ONE_ROW ANYTIME=true CANCELS=1 QUEUES"),
    ("wake", "ONE_ROW DEFERRAL ROLLBACKS=1"),
    ("wake", "ONE_ROW GIVES_BACK ROLLBACKS=1 CUTS=1"),
    ("wake", "HERD ONE_ROW"),
    ("wake", "HERD ONE_ROW QUEUES"),
    ("wake", "HERD D1=2 D2=3 TMAX=1"),
    ("wake", "HERD ONE_ROW RR1=true"),
    ("wake", "HERD ONE_ROW D1=1 AT_WILL"),
    ("wake", "HERD ONE_ROW CANCELS=1 TMAX=1"),
    ("wake", "HERD ONE_ROW CUTS=1 TMAX=1"),
    ("wake", "HERD ONE_ROW ANYTIME=true TMAX=1"),
    ("wake", "HERD ONE_ROW GIVES_BACK ROLLBACKS=1 TMAX=1"),
    ("wake", "HERD NO_ROW DEFERRAL ROLLBACKS=1 TMAX=1"),
    ("wake", "HERD TWO_ROWS D1=2 D2=2"),
    ("wake", "HERD TWO_ROWS RR1=true TMAX=1"),
    ("rescue", "CUTS=2 ANYWORKER"),
    ("rescue", "CUTS=4 DEATHS=1"),
    ("rescue", "NREC=2 CUTS=2 DEATHS=1"),
    ("rescue", "PARTITIONS=1 CUTS=2"),
    ("rescue", "PARTITIONS=1 ANYWORKER"),
    ("rescue", "PARTITIONS=2 DEATHS=1"),
    ("rescue", "DEATHS=1 CUTS=2 NW=3"),
    ("rescue", "RESTARTS=1 CUTS=1"),
    ("rescue", "RESTARTS=1 DEATHS=1 CUTS=1"),
    ("rescue", f"{PROMPT} DEATHS=1 CUTS=2 NW=3"),
]

S = "a worker sleeps past a due row"
R = "a worker sleeps past the register"
TWICE = "two live runs of one session"
FENCE = "a lost run's outcome is accepted"
LEASE = "a dead worker's claim is left alone after its lease"
SOON = "a dead worker's claim waits for its lease"

#: What the assertion that must fail looks like in the text that spin makes of it.
ASSERTIONS = {
    S: r"st\[2\]==1",
    R: r">reg\)",
    TWICE: r"live\[0\]\+live\[1\]",
    FENCE: r"over&\(1<<rt",
    LEASE: r"lease\[v\]==0\)\)&&",
    SOON: r"deadfor\[v\]<=",
}

#: Mutation, the smallest scope in which it shows, and what goes wrong.
MUTATIONS = [
    ("wake", "M_NO_PRODUCER_LOCK", "ONE_ROW", S),
    ("wake", "M_EARLY_RELEASE", "ONE_ROW", S),
    ("wake", "M_SILENT_WHEN_REFUSED", "ONE_ROW", S),
    ("wake", "M_SNAPSHOT_FIRST", "ONE_ROW", S),
    ("wake", "M_NO_LATER", "TWO_ROWS D1=2 D2=2", S),
    ("wake", "M_RR_PROBES", "ONE_ROW RR1=true", S),
    ("wake", "M_TOLD_IS_ENOUGH", "TWO_ROWS D1=3 D2=2", S),
    ("wake", "M_TOLD_BEYOND", "D1=2 D2=3 TMAX=1", S),
    ("wake", "M_PRODUCER_LOWERS", "D1=2 D2=3 TMAX=1", S),
    ("wake", "M_SILENT_UPDATE", "NO_ROW DEFERRAL", S),
    ("wake", "M_NO_WORKER_LOCK", "ONE_ROW", S),
    ("wake", "M_PEEK_FIRST", "ONE_ROW", S),
    ("wake", "M_PEEK_SKIPS_LOCKED", "ONE_ROW CANCELS=1", S),
    ("wake", "M_SLEEP_UNSETTLED", "ONE_ROW", S),
    ("wake", "M_REGISTER_LATE", "ONE_ROW", S),
    ("wake", "M_REGISTER_LATE", "ONE_ROW REGISTER", R),
    ("wake", "M_LOWER_TO_UNCOMMITTED", "ONE_ROW GIVES_BACK ROLLBACKS=1", S),
    ("wake", "M_OVERWRITE", "ONE_ROW", S),
    ("wake", "M_LISTEN_LATE", "ONE_ROW CUTS=1", S),
    ("wake", "M_NOT_STICKY", "HERD ONE_ROW TMAX=1", S),
    ("wake", "M_NEXT_UNLOCKED", "HERD ONE_ROW TMAX=1", S),
    ("wake", "M_NEXT_RELEASES", "HERD ONE_ROW TMAX=1", S),
    ("wake", "M_STALE_NEXT", "HERD ONE_ROW TMAX=1", S),
    ("wake", "M_PEEK_FIRST", "HERD ONE_ROW TMAX=1", S),
    ("wake", "M_LOWER_TO_UNCOMMITTED", "HERD ONE_ROW GIVES_BACK ROLLBACKS=1", S),
    ("rescue", "M_NO_FENCING", "CUTS=2", FENCE),
    ("rescue", "M_NO_FENCING", "LIFE=0 PARTITIONS=1", FENCE),
    ("rescue", "M_NO_SESSION_HOLD", "LIFE=0 NREC=2", TWICE),
    ("rescue", "M_NO_LEASE_STOP", "LIFE=0 PARTITIONS=1", TWICE),
    ("rescue", "M_NO_MARGIN", "LIFE=0 PARTITIONS=1", TWICE),
    ("rescue", "M_LEASE_NOT_NEXT", "LIFE=0 DEATHS=1", LEASE),
    ("rescue", "M_NO_GRACE", "CUTS=2", TWICE),
    ("rescue", "M_LATE_STOP", "CUTS=2", TWICE),
    ("rescue", "M_NO_LINE_STOP", "CUTS=2", TWICE),
    ("rescue", "M_CLAIM_IN_DOUBT", "CUTS=2", TWICE),
    ("rescue", "M_START_IN_DOUBT", "CUTS=2", TWICE),
    ("rescue", "M_START_AFTER_DOUBT", "CUTS=2", TWICE),
    ("rescue", "M_ONE_LINE", "CUTS=2", TWICE),
    ("rescue", "M_NO_RECHECK", "CUTS=2", TWICE),
    ("rescue", "M_RECHECK_UNLOCKED", "CUTS=2 MAXATT=3", TWICE),
    ("rescue", "M_SAME_WORKER", "CUTS=3", TWICE),
    ("rescue", "M_BLIND_GIVE_UP", "CUTS=3", TWICE),
    ("rescue", "M_BLIND_GIVE_UP", f"{PROMPT} DEATHS=1 CUTS=3", SOON),
    ("rescue", "M_GIVE_UP_UNLESS_HELD", "PARTITIONS=1", TWICE),
    ("rescue", "M_NO_INCARNATION", "RESTARTS=1", TWICE),
    ("rescue", "M_RESCUE_UNSEEN", "PARTITIONS=1", TWICE),
    ("rescue", "M_NO_SECOND_TURN", f"{PROMPT} DEATHS=2 NW=3 ANYWORKER", SOON),
    ("rescue", "M_NO_REEVALUATION", f"{PROMPT} DEATHS=1 NW=3 JOINS ANYWORKER", SOON),
    ("rescue", "M_NO_WATCH_MESSAGE", f"{PROMPT} DEATHS=1 LINGER", SOON),
    ("rescue", "M_WATCH_FORGETS", f"{PROMPT} DEATHS=1 LINGER", SOON),
    # Not rules of the protocol but what it relies on; see "What it relies on" in the README.
    ("rescue", "M_EARLY_DROP", "PARTITIONS=1", TWICE),
    ("rescue", "M_HALF_OPEN", "CUTS=2", TWICE),
    ("rescue", "M_REFUSAL_IS_NO_PROOF", "CUTS=2", TWICE),
]

#: Rules that the models do not need; the README says why the protocol has them all the same.
HARMLESS = [
    ("wake", "M_LOWER_TO_UNCOMMITTED", "NO_ROW DEFERRAL ROLLBACKS=1"),
    ("rescue", "M_NO_REASK", "CUTS=2"),
]


@dataclass(frozen=True)
class Search:
    """What spin's verifier found."""

    errors: int
    states: int
    is_complete: bool
    output: str


def _missing() -> str | None:
    programs = [program for program in ("spin", "gcc", "cc") if shutil.which(program) is None]
    return f"the models need {' and '.join(programs)} (Debian: spin, gcc, libc6-dev)" if programs else None


def search(folder: Path, model: str, flags: str, *, optimize: str, memory: int = 1800) -> Search:
    """Builds the verifier of a model with these flags and lets it visit every state."""
    if missing := _missing():
        if "model" in os.environ.get("PGRECALL_REQUIRE", ""):
            pytest.fail(missing)
        pytest.skip(missing)

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        return output

    shutil.copy(MODELS / f"{model}.pml", folder)
    run("spin", "-a", *(f"-D{flag}" for flag in flags.split()), f"{model}.pml")
    # Every state is kept whole (collapsed, not hashed), so nothing is taken for visited that was not.
    options = (optimize, "-w", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=2048", f"-DMEMLIM={memory}")
    run("cc", *options, "-o", "pan", "pan.c")
    output = run("./pan", "-m100000")
    found = re.search(r"errors: (\d+)", output)
    states = re.search(r"(\d+) states, stored", output)
    assert found is not None, output
    assert states is not None, output
    truncated = ("not completed", "search depth too small", "out of memory", "memory limit", "aborted")
    is_complete = not any(sign in output.lower() for sign in truncated)
    return Search(int(found[1]), int(states[1]), is_complete, output)


def _holds(folder: Path, model: str, flags: str, memory: int = 1800) -> None:
    result = search(folder, model, flags, optimize="-O1" if memory == 1800 else "-O2", memory=memory)
    assert result.is_complete, result.output
    assert result.errors == 0, result.output
    print(f"{model} {flags}: {result.states} states")  # for the README


@pytest.mark.parametrize(("model", "flags"), HOLDS)
def test_the_protocol_holds_in_every_interleaving(tmp_path: Path, model: str, flags: str) -> None:
    _holds(tmp_path, model, f"{flags} REGISTER" if model == "wake" else flags)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.environ.get("PGRECALL_MODEL") != "full", reason="larger scopes: PGRECALL_MODEL=full")
@pytest.mark.parametrize(("model", "flags"), HOLDS_FULL)
def test_the_protocol_holds_in_larger_scopes(tmp_path: Path, model: str, flags: str) -> None:
    _holds(tmp_path, model, f"{flags} REGISTER" if model == "wake" else flags, memory=12000)


@pytest.mark.parametrize(("model", "mutation", "flags", "harm"), MUTATIONS)
def test_without_this_rule_there_is_a_counterexample(
    tmp_path: Path, model: str, mutation: str, flags: str, harm: str
) -> None:
    result = search(tmp_path, model, f"{mutation} {flags}", optimize="-O0")
    assert result.errors == 1, result.output
    violated = re.search(r"assertion violated (.*) \(at depth", result.output)
    assert violated, result.output
    assert re.search(ASSERTIONS[harm], violated[1]), result.output


@pytest.mark.parametrize(("model", "mutation", "flags"), HARMLESS)
def test_this_rule_is_a_second_line_of_defence(tmp_path: Path, model: str, mutation: str, flags: str) -> None:
    _holds(tmp_path, model, f"{mutation} {flags}")


def test_every_mutation_is_tried_and_explained() -> None:
    tried = {(model, mutation) for model, mutation, *_ in [*MUTATIONS, *HARMLESS]}
    written = {(model, mutation) for model in ("wake", "rescue") for mutation in re.findall(r"\bM_\w+", _source(model))}
    assert tried == {(model, mutation) for model, mutation in written if mutation != "M_"}
    readme = (MODELS / "README.md").read_text()
    explained = re.findall(r"^\| `(M_\w+)` \|", readme, re.MULTILINE)
    assert sorted(explained) == sorted({mutation for _, mutation in tried})


def _source(model: str) -> str:
    return (MODELS / f"{model}.pml").read_text()
