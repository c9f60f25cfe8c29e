"""Telling the database how runs ended: together in one transaction where nothing else has to be done, else one by one.

An outcome counts as told when its transaction is committed, not before. Decides nothing; the database does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import anyio
import psycopg

from pgrecall import calls
from pgrecall._backoff import Backoff
from pgrecall._run import Ending, Run
from pgrecall.agents import describe
from pgrecall.database import AsyncDatabase, OwnConnection
from pgrecall.errors import RecallError
from pgrecall.model import Finished
from pgrecall.telemetry import logger

#: SQLSTATE classes that are about what is being stored and not about the state of the server or the way to it.
_ABOUT_THE_OUTCOME = frozenset({"21", "22", "23", "27", "38", "39", "44", "54", "P0", "XX"})

#: How often such an error is waited out; it may come from a trigger of the host that is mended meanwhile.
_TRIES = 5

#: When several are passed over at once, another worker's claim has come upon their rows and has locked them until its
#: commit. One by one they would wait for that, each at ten times the cost: so they are told together again, so often,
#: and first after so many seconds.
_TRIES_TOGETHER = 3
_PASSED_OVER = 0.005

#: What becomes of a recall that runs once when its plain success is told together with others.
_FIRED = Finished(accepted=True, status="fired", trigger_at=None, due_at=None, attempt=None)


class Outcomes:
    """Tells outcomes.

    Plain ones that come while others are on their way go together in the next transaction. So a worker with little to
    do tells each at once, and one with much to do pays for one commit in place of hundreds.

    Args:
        worker_id: For the log.
        together: Where plain ones are told.
        database: Where the others are, and those that nobody has heard there.
        append_reply: Add the reply, or the messages of a run, to the session in the default store.
        patience: Seconds after which a statement is taken for lost.
        most: The most outcomes that go together. Their slots become free together, too, so with less than all of a
            worker's slots the agents of some run while the others' outcomes are written.
        keep: Runs a coroutine in a task of the worker.
        must_let_go: Asked while the database cannot be reached: whether the worker's claims are somebody else's by now.
        on_told: Called with each run once, when its outcome has been told, or never can be (`run.finished` says which),
            and with a logger.
    """

    def __init__(
        self,
        worker_id: str,
        together: OwnConnection,
        database: AsyncDatabase,
        *,
        append_reply: bool,
        patience: float,
        most: int,
        keep: Callable[[Coroutine[Any, Any, None]], None],
        must_let_go: Callable[[], bool],
        on_told: Callable[[Run, Any], None],
    ) -> None:
        self._worker_id = worker_id
        self._together = together
        self._database = database
        self._append_reply = append_reply
        self._patience = patience
        self._most = most
        self._keep = keep
        self._must_let_go = must_let_go
        self._on_told = on_told
        self._waiting: list[Run] = []
        self._something = asyncio.Event()
        # Set while none are on their way together.
        self._arrived = asyncio.Event()
        self._arrived.set()
        self._is_running = False

    async def run(self) -> None:
        """Tells what `tell` was given, for as long as the worker lives; without it they are told one by one."""
        loop = asyncio.get_running_loop()
        batch: list[Run] = []
        self._is_running = True
        try:
            while True:
                if not self._waiting:
                    self._something.clear()
                    await self._something.wait()
                    # What ends in the same turn of the event loop comes along.
                    await asyncio.sleep(0)
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                self._arrived.clear()
                told = await self._tell_together(batch)
                log = logger().bind()
                ended, batch = batch, []
                self._arrived.set()
                again: list[Run] = []
                for run in ended:
                    accepted = None if told is None else told.get(run.run_id)
                    are_passed_over = accepted is None and told is not None and len(ended) - len(told) > 1
                    if accepted:
                        self._told(run, _FIRED, log)
                    elif are_passed_over and run.tries < _TRIES_TOGETHER:
                        run.tries += 1
                        again.append(run)
                    else:
                        self._keep(self._tell_alone(run))
                if again:
                    loop.call_later(_PASSED_OVER * again[0].tries, self._tell_again, again)
        finally:
            self._is_running = False
            self._arrived.set()
            untold, self._waiting = batch + self._waiting, []
            self._tell_again(untold)

    def _tell_again(self, runs: Sequence[Run]) -> None:
        if self._is_running:
            self._waiting += runs
            self._something.set()
        else:
            for run in runs:
                self._keep(self._tell_alone(run))

    @property
    def are_on_their_way(self) -> bool:
        """Whether some are being told together: their slots are about to become free."""
        return not self._arrived.is_set()

    async def arrived(self) -> None:
        """Returns when those that are being told together have been told, or could not be."""
        await self._arrived.wait()

    def tell(self, run: Run) -> None:
        """Tells the outcome of a run that has ended, again and again until the database has heard it.

        It takes no task to wait for that: the run's own ends here. (Of thousands a second each costs its worker as much
        as a small agent.)

        An outcome that the database will not have is replaced by an error that says so. If it will not have that
        either, the run ends untold: it must not keep its slot for ever. Its claim ends with the worker's lease.
        """
        if _ending(run).is_plain and run.claim.call_type != "recurring" and self._is_running:
            self._waiting.append(run)
            self._something.set()
        else:
            self._keep(self._tell_alone(run))

    def _told(self, run: Run, finished: Finished | None, log: Any) -> None:
        run.finished = finished
        try:
            self._on_told(run, log)
        except Exception as error:  # noqa: BLE001 (what one run's log cannot take must not keep the other outcomes)
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"run {run.run_id} has ended, but could not be logged", "exception": error}
            )

    async def _tell_together(self, runs: Sequence[Run]) -> dict[int, bool] | None:
        """Tells them in one transaction and says for which runs that was enough; None: it failed.

        A run that is missing in the answer is no longer the worker's, or somebody has locked its row.
        """
        endings = [_ending(run) for run in runs]
        call = calls.finish_unobstructed(
            [run.run_id for run in runs],
            [ending.outcome for ending in endings],
            started_at=[run.reached_agent_at for run in runs],
            replies=[ending.reply for ending in endings],
            append_reply=self._append_reply,
        )
        try:
            async with asyncio.timeout(self._patience):
                return {told.run_id: told.accepted for told in await self._together.run(call)}
        except (RecallError, psycopg.Error, TimeoutError) as error:
            # Told one by one they show which of them it is about, or that the database is away.
            logger().debug("outcomes_apart", worker_id=self._worker_id, error=describe(error))
            return None

    async def _tell_alone(self, run: Run) -> None:
        finished: Finished | None = None
        try:
            finished = await self._finish(run)
        except Exception as error:  # noqa: BLE001 (one run that cannot end must not end the others)
            logger().error("loop_error", worker_id=self._worker_id, run_id=run.run_id, error=describe(error))
        finally:
            self._told(run, finished, logger())

    async def _finish(self, run: Run) -> Finished | None:
        failing = Backoff(0.1, 5)
        complained = False
        refusals = 0
        replaced = False
        while True:
            ending = _ending(run)
            call = calls.finish(
                run.recall_id,
                run.run_id,
                ending.outcome,
                started_at=run.reached_agent_at,
                reply=ending.reply,
                error=ending.error,
                reason=ending.reason,
                retry=ending.retry,
                retry_after=ending.retry_after,
                counted=ending.counted,
                usage=ending.usage,
                append_reply=self._append_reply,
                messages=ending.messages if self._append_reply else None,
            )
            try:
                async with asyncio.timeout(self._patience):
                    return await self._database.one(call)
            except (RecallError, psycopg.Error, TimeoutError) as error:
                if not complained:
                    complained = True
                    logger().error(
                        "loop_error",
                        worker_id=self._worker_id,
                        recall_id=run.recall_id,
                        run_id=run.run_id,
                        error=describe(error),
                    )
                refusals += _is_about_the_outcome(error)
                if isinstance(error, RecallError) or refusals == _TRIES:
                    if replaced:
                        return None
                    # The database will never have this outcome (what the agent said, most likely).
                    run.ending = Ending(outcome="error", error=describe(error))
                    refusals, replaced = 0, True
                    failing.reset()
                    continue
                if self._must_let_go():
                    return None
            await anyio.sleep(failing.pause())
            with suppress(psycopg.Error):  # the next try says what is wrong
                await self._database.mend()


def _ending(run: Run) -> Ending:
    assert run.ending is not None  # noqa: S101 (only runs that have ended come here)
    return run.ending


def _is_about_the_outcome(error: Exception) -> bool:
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in _ABOUT_THE_OUTCOME
