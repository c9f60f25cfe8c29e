"""The long run: producers and workers at work, faults at random, and an account of it all.

    python -m faults.soak --seed 1 --output soak     # with tests/ on PYTHONPATH, see README.md

A fault comes in a round with others, at random moments of the round's first half; the second half is calm, so that
there are undisturbed recalls to be measured as well. The seed decides which faults come in which order, what they do
and for how long, and what the producers ask for. It does not decide what the operating system makes of it.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from faults import accounting, clock, network, postgres
from faults.accounting import Event, Verdict
from faults.network import Network
from faults.processes import START_SECONDS, Settings, WorkerProcess
from faults.producers import Habits, Producer
from faults.proxy import Proxy
from pgrecall.embedded import EmbeddedPostgres

#: An hour each way, and none.
_CLOCKS = (0.0, 3600.0, -3600.0)


@dataclass(frozen=True)
class Plan:
    """How much of what.

    Attributes:
        seed: See the module.
        recalls: How many are committed, at least.
        seconds: For how long they are asked for; faults may take longer.
        kills: Workers killed with SIGKILL, some of them several at once.
        restarts: Of the server: fast, immediate, and by SIGKILL of the postmaster.
        partitions: Workers cut off for a while, in one of six ways.
        others: Pauses of a worker, terminated connections, connections cut, slow networks, rolling restarts.
        round_faults: Faults in a round.
        calm: Seconds at least between the end of the faults of a round and the next round.
        workers: Worker processes at a time.
        concurrency: Slots of each.
        lease: Seconds.
        run: The longest run, seconds; the average is a quarter of it.
        producers: Threads that ask for recalls.
        drain: Seconds that everything may take to end, once nothing disturbs it any more.
    """

    seed: int
    recalls: int = 10_000
    seconds: float = 1200.0
    kills: int = 50
    restarts: int = 20
    partitions: int = 20
    others: int = 60
    round_faults: int = 4
    calm: float = 9.0
    workers: int = 5
    concurrency: int = 4
    lease: float = 3.0
    run: float = 4.0
    producers: int = 6
    drain: float = 600.0


class Slot:
    """A place for a worker: its way to the database, and the process that is there now. It is refilled when empty.

    Args:
        settings: Of its workers.
        dsn: Where the worker finds the database.
        seed: Decides clocks and pauses.
        route: What its connections go through; None: nothing.
    """

    def __init__(self, settings: Settings, dsn: str, seed: str, route: Proxy | Network | None) -> None:
        self._settings = settings
        self._dsn = dsn
        self._random = random.Random(seed)
        self.route = route
        self.busy = threading.Lock()  # one fault at a time for a route
        self.past: list[WorkerProcess] = []
        self._wanted = True
        self._mutex = threading.Lock()
        self.process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self) -> WorkerProcess:
        wrong_by = 0.0 if clock.why_not() else self._random.choice(_CLOCKS)
        prefix = self.route.prefix if isinstance(self.route, Network) else ()
        process = WorkerProcess(self._settings, self._dsn, prefix, wrong_by)
        self.past.append(process)
        return process

    def _keep(self) -> None:
        """As an init system would: start it again when it has ended."""
        while self._wanted:
            if not self.process.alive:
                if not self.process.told_to_end:
                    time.sleep(self._random.uniform(0, 2))
                with self._mutex:
                    if self._wanted:
                        self.process = self._start()
            time.sleep(0.05)

    @property
    def well(self) -> bool:
        """Whether its worker works."""
        process = self.process
        return process.alive and process.ready

    def close(self, *, gently: bool) -> None:
        """End its worker and start no other.

        Raises:
            subprocess.TimeoutExpired: It was told to end and did not.
        """
        with self._mutex:
            self._wanted = False
        self._keeper.join()
        if self.process.alive:
            self.process.thaw()
            try:
                if gently:
                    self.process.tell_to_end()
                    self.process.wait(60)
            finally:
                if self.process.alive:
                    self.process.kill()


class Chaos:
    """The faults.

    Args:
        plan: How much of what.
        server: The server.
        slots: The workers.
    """

    def __init__(self, plan: Plan, server: EmbeddedPostgres, slots: Sequence[Slot]) -> None:
        self._plan = plan
        self._server = server
        self._slots = slots
        self._random = random.Random(f"chaos {plan.seed}")
        self._server_lock = threading.Lock()
        self.events: list[Event] = []

    def rounds(self) -> list[list[Callable[[], None]]]:
        """All faults, in random order, in rounds; half of the kills among themselves, so that rescues can be timed."""
        dice, plan = self._random, self._plan
        kills: list[Callable[[], None]] = []
        left = plan.kills
        while left > 0:
            at_once = min(left, dice.choice([1, 1, 1, 1, 2, 3]), len(self._slots))
            kills.append(self._kill(dice.sample(self._slots, at_once)))
            left -= at_once
        faults = kills[::2]
        faults += [self._restart(postgres.WAYS[number % 3], dice.uniform(0, 2)) for number in range(plan.restarts)]
        routed = [slot for slot in self._slots if slot.route is not None]
        faults += [self._partition(routed[number % len(routed)]) for number in range(plan.partitions)]
        others = [self._pause_briefly, self._pause_long, self._terminate, self._terminate_all, self._cut, self._slow]
        others += [self._half_close, self._roll]
        faults += [others[number % len(others)]() for number in range(plan.others)]
        dice.shuffle(faults)
        rounds = [*_in_parts(faults, plan.round_faults), *_in_parts(kills[1::2], 2)]
        dice.shuffle(rounds)
        return rounds

    def strike(self, faults: Sequence[Callable[[], None]], seconds: float) -> None:
        """Bring about the faults at random moments of the given time, and wait until all is well again.

        Raises:
            ExceptionGroup: The faults themselves failed.
        """
        errors: list[Exception] = []

        def later(fault: Callable[[], None], pause: float) -> None:
            time.sleep(pause)
            try:
                fault()
            except Exception as error:  # noqa: BLE001 (raised below, by the main thread)
                errors.append(error)

        pauses = [self._random.uniform(0, seconds) for _ in faults]
        threads = [threading.Thread(target=later, args=pair) for pair in zip(faults, pauses, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise ExceptionGroup("faults that could not be brought about", errors)

    def all_well(self) -> bool:
        """Whether every worker works."""
        return all(slot.well for slot in self._slots)

    @contextmanager
    def _noted(self, kind: str, target: str | None = None) -> Iterator[None]:
        begun_at, begun_ns = datetime.now(UTC), time.monotonic_ns()
        yield
        # Until all is well again, but a worker that cannot start is another matter.
        deadline = time.monotonic() + START_SECONDS
        while not self.all_well() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.events.append(Event(kind, target, begun_at, datetime.now(UTC), begun_ns, time.monotonic_ns()))

    def _kill(self, slots: Sequence[Slot]) -> Callable[[], None]:
        def fault() -> None:
            with ExitStack() as stack:
                processes = [slot.process for slot in slots]
                for process in processes:
                    stack.enter_context(self._noted(f"kill -9, {len(slots)} at once", process.name))
                for process in processes:
                    if process.alive:
                        process.kill()

        return fault

    def _restart(self, way: postgres.Way, seconds: float) -> Callable[[], None]:
        def fault() -> None:
            with self._server_lock, self._noted(f"server restart, {way}"):
                try:
                    postgres.bring_down(self._server, way)
                    time.sleep(seconds)
                finally:
                    self._server.start()

        return fault

    def _partition(self, slot: Slot) -> Callable[[], None]:
        route = slot.route
        assert route is not None
        seconds = self._plan.lease * self._random.choice([0.1, 0.4, 1.0, 1.5, 2.5])
        proxy = route.proxy if isinstance(route, Network) else route
        ways: dict[str, Callable[[], None]]
        if isinstance(route, Network):
            ways = {"packets dropped": route.drop, "packets rejected": route.reject}
        else:

            def unplug() -> None:
                proxy.refuse()
                proxy.cut()

            ways = {
                "everything stalled": proxy.stall,
                "connections refused and cut": unplug,
                "connections refused": proxy.refuse,
                "connections cut on the worker's side only": proxy.abandon,
            }
        way = self._random.choice(sorted(ways))

        def fault() -> None:
            with slot.busy, self._noted(f"partition, {way}", slot.process.name):
                try:
                    ways[way]()
                    time.sleep(seconds)
                finally:
                    if isinstance(route, Network):
                        route.heal()
                    else:
                        proxy.heal()

        return fault

    def _pause(self, kind: str, least: float, most: float) -> Callable[[], None]:
        slot = self._random.choice(self._slots)
        seconds = self._plan.lease * self._random.uniform(least, most)

        def fault() -> None:
            process = slot.process
            with self._noted(kind, process.name):
                if process.alive:
                    process.freeze()
                    time.sleep(seconds)
                    process.thaw()

        return fault

    def _pause_briefly(self) -> Callable[[], None]:
        return self._pause("SIGSTOP, shorter than the lease", 0.05, 0.6)

    def _pause_long(self) -> Callable[[], None]:
        return self._pause("SIGSTOP, longer than the lease", 1.2, 2.5)

    def _terminate(self) -> Callable[[], None]:
        return self._terminated("pg_terminate_backend, some", 0.3)

    def _terminate_all(self) -> Callable[[], None]:
        return self._terminated("pg_terminate_backend, all", 1.0)

    def _terminated(self, kind: str, share: float) -> Callable[[], None]:
        def fault() -> None:
            with self._server_lock, self._noted(kind):
                postgres.terminate_connections(self._server.dsn, share)

        return fault

    def _routed(self) -> tuple[Slot, Proxy]:
        slot = self._random.choice([slot for slot in self._slots if slot.route is not None])
        return slot, slot.route.proxy if isinstance(slot.route, Network) else slot.route  # type: ignore[return-value]

    def _cut(self) -> Callable[[], None]:
        slot, proxy = self._routed()

        def fault() -> None:
            with slot.busy, self._noted("connections cut", slot.process.name):
                proxy.cut()

        return fault

    def _half_close(self) -> Callable[[], None]:
        slot, proxy = self._routed()
        towards = self._random.choice(["client", "server"])

        def fault() -> None:
            with slot.busy, self._noted(f"connections half closed towards the {towards}", slot.process.name):
                proxy.half_close(towards)  # type: ignore[arg-type]

        return fault

    def _slow(self) -> Callable[[], None]:
        slot, proxy = self._routed()
        latency = self._random.choice([0.02, 0.1, 0.4])

        def fault() -> None:
            with slot.busy, self._noted(f"{latency * 1000:g} ms of delay each way", slot.process.name):
                try:
                    proxy.delay(latency)
                    time.sleep(2)
                finally:
                    proxy.heal()

        return fault

    def _roll(self) -> Callable[[], None]:
        def fault() -> None:
            with self._noted("rolling restart by SIGTERM"):
                for slot in self._slots:
                    process = slot.process
                    if not (process.alive and process.ready) or process.told_to_end:
                        continue
                    process.tell_to_end()
                    deadline = time.monotonic() + START_SECONDS
                    while (slot.process is process or not slot.well) and time.monotonic() < deadline:
                        time.sleep(0.05)

        return fault


def _in_parts(faults: Sequence[Callable[[], None]], size: int) -> list[list[Callable[[], None]]]:
    return [list(faults[start : start + size]) for start in range(0, len(faults), size)]


class Pace:
    """Keeps producers at a steady rate, until there is enough.

    Args:
        dsn: The database, prepared by `accounting.prepare`.
        recalls: How many are enough.
        seconds: In how long.
    """

    def __init__(self, dsn: str, recalls: int, seconds: float) -> None:
        self._dsn = dsn
        self._recalls = recalls
        self._seconds = seconds
        self._began = time.monotonic()
        self._mutex = threading.Lock()
        self._count = 0
        self._counted_at = 0.0

    def pause(self) -> float | None:
        """Seconds until the next transaction; None: enough."""
        with self._mutex:
            now = time.monotonic()
            if now - self._counted_at > 0.5:
                self._counted_at = now
                try:
                    with psycopg.connect(self._dsn, application_name="producer") as connection:
                        row = connection.execute("select count(*) from faults.asked").fetchone()
                        assert row is not None
                        self._count = row[0]
                except psycopg.OperationalError:
                    return 0.2  # the server is away
            if self._count >= self._recalls:
                return None
            ahead = self._count - self._recalls * (now - self._began) / self._seconds
            return min(1.0, 0.02 + max(0.0, ahead * self._seconds / self._recalls))


def soak(plan: Plan, directory: Path, *, binaries: Path | None = None, say: Callable[[str], None]) -> Verdict:
    """Do all of it.

    Args:
        plan: How much of what.
        directory: Gets the server's data, the logs and the evidence.
        binaries: Of the server.
        say: Told about the progress.
    """
    began = time.monotonic()
    settings = Settings(directory / "workers", concurrency=plan.concurrency, lease=plan.lease, grace=3.0)
    settings.directory.mkdir()
    with ExitStack() as stack:
        server = stack.enter_context(postgres.crashable(directory / "server", binaries))
        habits = Habits(sessions=min(500, max(100, plan.recalls // 2)), run=plan.run)
        accounting.prepare(server.dsn, (f"s{number}" for number in range(habits.sessions)))
        slots: list[Slot] = []
        stack.callback(_close, slots, gently=False)
        for number in range(plan.workers):
            # The first one has no proxy, so that it sees a server that is away as such; the last one, if the machine
            # can do that, lives in a network of its own.
            route: Proxy | Network | None = None
            if number == plan.workers - 1 and network.why_not() is None:
                route = stack.enter_context(Network(server.dsn))
            elif number > 0:
                route = stack.enter_context(Proxy(server.dsn))
            dsn = server.dsn if route is None else route.dsn
            slots.append(Slot(settings, dsn, f"slot {plan.seed} {number}", route))
        chaos = Chaos(plan, server, slots)
        _wait(chaos.all_well, START_SECONDS, "the workers to start")
        pace = Pace(server.dsn, plan.recalls, plan.seconds)
        with ExitStack() as busy:
            producers = [
                busy.enter_context(Producer(server.dsn, number, plan.seed, habits, pace.pause))
                for number in range(plan.producers)
            ]
            _disturb(plan, chaos, say)
            _wait(lambda: all(producer.done for producer in producers), plan.seconds + 60, "the producers to be done")
        say(f"after {time.monotonic() - began:.0f} s nothing disturbs any more, and nothing is asked for")
        drained = _drain(server.dsn, plan.drain)
        say(f"after {time.monotonic() - began:.0f} s everything has ended" if drained else "it did not come to rest")
        _close(slots, gently=True)
        say(f"after {time.monotonic() - began:.0f} s the workers have ended; accounting")
        verdict = _account(plan, server.dsn, slots, chaos.events)
        if not drained:
            verdict.violations["it did not come to rest"] = [f"in {plan.drain:g} s"]
        return verdict


def _close(slots: Sequence[Slot], *, gently: bool) -> None:
    with ThreadPoolExecutor(len(slots) or 1) as together:
        list(together.map(lambda slot: slot.close(gently=gently), slots))


def _disturb(plan: Plan, chaos: Chaos, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    rounds = chaos.rounds()
    for number, faults in enumerate(rounds):
        length = max(plan.seconds / len(rounds), plan.calm)
        next_at = began + length * (number + 1)
        known = len(chaos.events)
        chaos.strike(faults, max(length - plan.calm, 0.5) / 2)
        seconds = round(time.monotonic() - began)
        kinds = ", ".join(sorted(event.kind for event in chaos.events[known:]))
        say(f"round {number + 1} of {len(rounds)}, ended after {seconds} s: {kinds}")
        time.sleep(max(next_at - time.monotonic(), plan.calm if number + 1 < len(rounds) else 0))


def _drain(dsn: str, seconds: float) -> bool:
    """Wait until everything that was asked for has ended; whether it has."""
    deadline = time.monotonic() + seconds
    with psycopg.connect(dsn, autocommit=True, application_name="operator") as connection:
        while time.monotonic() < deadline:
            row = connection.execute(
                "select count(*) from faults.asked as asked join pgrecall.session_recalls as recall "
                "on recall.id = asked.recall_id where recall.due_at is not null or recall.run_id is not null"
            ).fetchone()
            assert row is not None
            if row[0] == 0:
                return True
            time.sleep(0.2)
    return False


def _account(plan: Plan, dsn: str, slots: Sequence[Slot], events: Sequence[Event]) -> Verdict:
    processes = [process for slot in slots for process in slot.past]
    accounting.load(dsn, processes, events)
    verdict = accounting.judge(dsn, lease=plan.lease)
    verdict.figures["log lines of a worker process that are not about a recall, most"] = max(
        sum("recall_id" not in event for event in process.events()) for process in processes
    )
    deadline = time.monotonic() + 15
    while left := postgres.connections(dsn):
        if time.monotonic() > deadline:
            verdict.violations["connections that nobody has any more"] = [str(left)]
            break
        time.sleep(0.1)
    return verdict


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.05)


def report(plan: Plan, verdict: Verdict, seconds: float) -> dict[str, Any]:
    """The report, as JSON would have it."""
    return {
        "plan": asdict(plan),
        "seconds": round(seconds),
        "clocks": f"not tested: {clock.why_not()}" if clock.why_not() else "an hour each way",
        "network namespaces": f"not tested: {network.why_not()}" if network.why_not() else "tested",
        "figures": verdict.figures,
        "violations": verdict.violations,
    }


def as_markdown(found: dict[str, Any]) -> str:
    """The report for people."""
    rows: dict[str, Any] = {f"plan: {name}": value for name, value in found["plan"].items()}
    rows |= {name: value for name, value in found.items() if isinstance(value, str | int)}
    for name, value in found["figures"].items():
        if isinstance(value, dict):
            rows |= {f"{name}: {part}": _flat(inner) for part, inner in value.items()}
        else:
            rows[name] = value
    rows["violations"] = sum(len(cases) for cases in found["violations"].values())
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    for name, cases in found["violations"].items():
        lines += ["", f"**{name}** ({len(cases)})", "", *(f"- {case}" for case in cases[:50])]
    return "\n".join(lines) + "\n"


def _flat(value: Any) -> str:
    return ", ".join(f"{name} {inner}" for name, inner in value.items()) if isinstance(value, dict) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code is 1 if anything is not as it must be."""
    parser = argparse.ArgumentParser(prog="faults.soak", description=(__doc__ or "").partition("\n")[0])
    plan = Plan(seed=secrets.randbelow(1_000_000))
    for name, default in asdict(plan).items():
        option = f"--{name.replace('_', '-')}"
        shown = "random" if name == "seed" else f"{default:g}"
        parser.add_argument(option, type=type(default), default=default, metavar="N", help=f"default {shown}")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write FILE.json and FILE.md")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep data, logs and evidence in a new directory")
    given = vars(parser.parse_args(arguments))
    output, keep = given.pop("output"), given.pop("keep")
    plan = replace(plan, **given)
    print(f"seed {plan.seed}", flush=True)
    began = time.monotonic()
    with ExitStack() as stack:
        if keep is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgrecall-soak-")))
        else:
            keep.mkdir(parents=True)
            directory = keep
        verdict = soak(plan, directory, say=lambda line: print(line, flush=True))
    found = report(plan, verdict, time.monotonic() - began)
    print(as_markdown(found))
    if output is not None:
        Path(f"{output}.json").write_text(json.dumps(found, indent=2, default=str) + "\n")
        Path(f"{output}.md").write_text(as_markdown(found))
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
