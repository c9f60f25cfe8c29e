"""Telling the database how runs ended: together in one transaction where nothing else has to be done, else one by one.

An outcome counts as told when its transaction is committed, not before. Decides nothing; the database does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import anyio
import psycopg

from pgrecall import calls
from pgrecall._backoff import Backoff
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


@dataclass(slots=True, kw_only=True)
class Ending:
    """How a run ended: the arguments of `finish` but the ids."""

    outcome: str
    reply: str | None = None
    error: str | None = None
    reason: str | None = None
    retry: bool = False
    retry_after: timedelta | None = None
    counted: bool = True
    usage: Mapping[str, Any] | None = None
    messages: Sequence[Mapping[str, Any]] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is a success with a reply at most."""
        return self.outcome in ("success", "silent") and self.usage is None and self.messages is None


@dataclass(slots=True, kw_only=True)
class Ended:
    """A run that has ended.

    Attributes:
        recall_id: Its recall.
        run_id: The run.
        nominal_at: The time that its occurrence was wanted for.
        attempt: Which attempt at that it was.
        started_at: When the agent was reached, by the database's clock; None: it was not.
        is_recurring: Whether its recall goes on, which takes more than writing down how this run ended.
        ending: How it ended.
    """

    recall_id: str
    run_id: int
    nominal_at: datetime
    attempt: int
    started_at: datetime | None
    is_recurring: bool
    ending: Ending


@dataclass(slots=True)
class _Waiting:
    """An outcome that is to be told with others."""

    ended: Ended
    is_told: asyncio.Future[bool]
    tries: int = 0

    def answer(self, *, is_told: bool) -> None:
        if not self.is_told.done():  # its task may have been cancelled
            self.is_told.set_result(is_told)


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
    ) -> None:
        self._worker_id = worker_id
        self._together = together
        self._database = database
        self._append_reply = append_reply
        self._patience = patience
        self._most = most
        self._waiting: list[_Waiting] = []
        self._something = asyncio.Event()
        # Set while none are on their way together.
        self._arrived = asyncio.Event()
        self._arrived.set()
        self._is_running = False

    async def run(self) -> None:
        """Tells what `tell` was given, for as long as the worker lives; without it they are told one by one."""
        loop = asyncio.get_running_loop()
        batch: list[_Waiting] = []
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
                told = await self._tell_together([one.ended for one in batch])
                again: list[_Waiting] = []
                for one in batch:
                    accepted = None if told is None else told.get(one.ended.run_id)
                    are_passed_over = accepted is None and told is not None and len(batch) - len(told) > 1
                    if are_passed_over and one.tries < _TRIES_TOGETHER:
                        one.tries += 1
                        again.append(one)
                    else:
                        one.answer(is_told=accepted is True)
                if again:
                    loop.call_later(_PASSED_OVER * again[0].tries, self._tell_again, again)
                batch = []
                self._arrived.set()
        finally:
            self._is_running = False
            self._arrived.set()
            for one in batch + self._waiting:
                one.answer(is_told=False)

    def _tell_again(self, outcomes: Sequence[_Waiting]) -> None:
        if self._is_running:
            self._waiting += outcomes
            self._something.set()
        else:
            for one in outcomes:
                one.answer(is_told=False)

    @property
    def are_on_their_way(self) -> bool:
        """Whether some are being told together: their slots are about to become free."""
        return not self._arrived.is_set()

    async def arrived(self) -> None:
        """Returns when those that are being told together have been told, or could not be."""
        await self._arrived.wait()

    async def tell(self, ended: Ended, must_let_go: Callable[[], bool]) -> Finished | None:
        """Tells the outcome, again and again until the database has heard it.

        An outcome that the database will not have is replaced by an error that says so. If it will not have that
        either, the run ends untold: it must not keep its slot for ever. Its claim ends with the worker's lease.

        Args:
            ended: The run.
            must_let_go: Asked while the database cannot be reached: whether the claim is somebody else's by now.
        """
        if ended.ending.is_plain and not ended.is_recurring and self._is_running:
            waiting = _Waiting(ended, asyncio.get_running_loop().create_future())
            self._waiting.append(waiting)
            self._something.set()
            if await waiting.is_told:
                return Finished(
                    accepted=True, status="fired", trigger_at=ended.nominal_at, due_at=None, attempt=ended.attempt
                )
        return await self._tell_alone(ended, must_let_go)

    async def _tell_together(self, runs: Sequence[Ended]) -> dict[int, bool] | None:
        """Tells them in one transaction and says for which runs that was enough; None: it failed.

        A run that is missing in the answer is no longer the worker's, or somebody has locked its row.
        """
        call = calls.finish_unobstructed(
            [run.run_id for run in runs],
            [run.ending.outcome for run in runs],
            started_at=[run.started_at for run in runs],
            replies=[run.ending.reply for run in runs],
            append_reply=self._append_reply,
        )
        try:
            async with asyncio.timeout(self._patience):
                return {told.run_id: told.accepted for told in await self._together.run(call)}
        except (RecallError, psycopg.Error, TimeoutError) as error:
            # Told one by one they show which of them it is about, or that the database is away.
            logger().debug("outcomes_apart", worker_id=self._worker_id, error=describe(error))
            return None

    async def _tell_alone(self, ended: Ended, must_let_go: Callable[[], bool]) -> Finished | None:
        ending = ended.ending
        failing = Backoff(0.1, 5)
        complained = False
        refusals = 0
        replaced = False
        while True:
            call = calls.finish(
                ended.recall_id,
                ended.run_id,
                ending.outcome,
                started_at=ended.started_at,
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
                        recall_id=ended.recall_id,
                        run_id=ended.run_id,
                        error=describe(error),
                    )
                refusals += _is_about_the_outcome(error)
                if isinstance(error, RecallError) or refusals == _TRIES:
                    if replaced:
                        return None
                    # The database will never have this outcome (what the agent said, most likely).
                    ending = Ending(outcome="error", error=describe(error))
                    refusals, replaced = 0, True
                    failing.reset()
                    continue
                if must_let_go():
                    return None
            await anyio.sleep(failing.pause())
            with suppress(psycopg.Error):  # the next try says what is wrong
                await self._database.mend()


def _is_about_the_outcome(error: Exception) -> bool:
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in _ABOUT_THE_OUTCOME
