"""Days of churn compressed: how large the tables are after very many jobs have fired, with autovacuum as it is.

Jobs are made by the thousand and worked off by two workers. Ours keeps a row for each recall and each run, so its
tables grow; what counts is the bytes per fired job, and that the part that claims read does not grow with them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from benchmarks.cell import Cell, Contestant, Figure, Sample, Size, with_profiles
from benchmarks.peer import Peer
from benchmarks.server import Server
from benchmarks.stage import Stage

#: How much is made before it is worked off.
_WAVE = 1000

#: Seconds for a wave.
_PATIENCE = 60.0

_SIZES = """
    select coalesce(sum(pg_table_size(oid)), 0)::bigint, coalesce(sum(pg_indexes_size(oid)), 0)::bigint
    from pg_class
    where relkind = 'r' and relnamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
"""

#: The index that claims read: that of what is due.
_DUE = {"raw": "public.jobs_due"}


class Churn(Cell):
    name = "churn"
    title = "Tables after very many jobs: bytes per fired job, and the index that claims read"
    figures = (
        Figure("table", "table bytes per job"),
        Figure("index", "index bytes per job"),
        Figure("due_index", "index of what is due, MiB"),
        Figure("slowdown", "time of the last tenth of the waves, of the first", better=None),
    )

    def variants(self, size: Size) -> list[str]:
        return [f"{size.churned:,} jobs"]

    def contestants(self, peers: Iterable[Peer]) -> list[Contestant]:
        return with_profiles((peer for peer in peers if not peer.distributions), "throughput")

    def run(self, server: Server, contestant: Contestant, variant: str, size: Size) -> Sample:
        assert contestant.peer is not None
        waves = max(size.churned // _WAVE, 1)
        with Stage(server, contestant.peer, contestant.peer.profiles[contestant.profile]) as stage:
            stage.start(2)
            stage.warm_up()
            seconds: list[float] = []
            before = stage.connection.execute(_SIZES.encode()).fetchone()
            complete = True
            for wave in range(waves):
                stage.prepare(_WAVE, wave * _WAVE)
                seconds.append(self._wave(stage, wave * _WAVE))
                if not (complete := stage.unfinished() == 0):
                    break
            after = stage.connection.execute(_SIZES.encode()).fetchone()
            assert before is not None and after is not None  # noqa: PT018 (sums)
            fired = len(seconds) * _WAVE
            index = _DUE.get(contestant.name, "pgrecall.recalls_due")
            row = stage.connection.execute("select pg_relation_size(%s::regclass)", [index]).fetchone()
            assert row is not None
            tenth = max(len(seconds) // 10, 1)
            figures = {
                "table": (after[0] - before[0]) / fired,
                "index": (after[1] - before[1]) / fired,
                "due_index": row[0] / 2**20,
                "slowdown": sum(seconds[-tenth:]) / sum(seconds[:tenth]),
            }
            return Sample(figures, stage.account(complete=complete))

    @staticmethod
    def _wave(stage: Stage, first: int) -> float:
        """Seconds until the last has begun. To look whether all are completed takes the longer the larger the table."""
        began = time.monotonic()
        stage.bulk(first, _WAVE)
        stage.all_begun(_PATIENCE)
        seconds = time.monotonic() - began
        stage.all_done(_PATIENCE)
        return seconds
