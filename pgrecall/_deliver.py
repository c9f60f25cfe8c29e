"""Delivering: replies from the outbox to their URLs, by whichever workers can.

Sleeps until there is something to deliver: the listener hears of what the worker's own runs have to say, and each look
for recalls tells when the next delivery of all workers is due. Asks nothing while nothing is pending. Needs the extra
`http`; without it a worker leaves deliveries to others.
"""

from __future__ import annotations

import importlib.util
import json
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any

import anyio
import anyio.to_thread
import psycopg

from pgrecall import calls
from pgrecall._backoff import Backoff
from pgrecall._listener import Alarm
from pgrecall.agents import describe
from pgrecall.database import AsyncDatabase, answered_within
from pgrecall.errors import RecallError
from pgrecall.model import DeliveryClaim, DeliveryStatus
from pgrecall.telemetry import logger
from pgrecall.webhooks import Signer, webhook_id

#: Deliveries under way at once.
_MOST = 10

#: Seconds in which a receiver must answer.
_SECONDS = 20.0

#: Seconds within which the database must answer.
_PATIENCE = 10.0

#: For how long nobody else tries what this worker tries.
_LEASE = timedelta(seconds=60)

#: Seconds after its time after which a worker tries what another one may be about to try.
_OTHERS_AFTER = (1.0, 2.0)

#: Seconds within which any worker tries what all were told to.
_ANY_WITHIN = 0.2

#: Another attempt makes no sense.
_GONE = 410


class Deliverer:
    """Delivers replies, at least once each, with the same webhook-id at every attempt.

    Args:
        worker_id: Whose.
        database: Where the outbox is.
        monotonic: Maps the server's seconds since 1970 to this process's monotonic clock.
        signer: Signs the requests.
    """

    def __init__(
        self,
        worker_id: str,
        database: AsyncDatabase,
        monotonic: Callable[[float], float],
        signer: Signer,
    ) -> None:
        self._worker_id = worker_id
        self._database = database
        self._monotonic = monotonic
        self._signer = signer
        self._can = importlib.util.find_spec("httpx2") is not None
        self._alarm = Alarm()
        self._under_way = 0
        self._ended = anyio.Event()
        self._draining = False
        self._warned = False
        self._complained = False
        self._failing = Backoff(0.5, 30)

    def heard(self, microseconds: int, worker_id: str | None) -> None:
        """A run has queued a delivery, or an operator wants one tried, at that time since 1970.

        worker_id: Whose it is; None: that of any of them.
        """
        at = self._monotonic(microseconds / 1e6)
        if worker_id == self._worker_id:
            self._alarm.no_later_than(at)
        elif worker_id is None:
            self._alarm.no_later_than(at + random.uniform(0, _ANY_WITHIN))  # noqa: S311

    def told(self, next_at: datetime | None) -> None:
        """A look has told when the next delivery of all workers is due."""
        if next_at is not None:
            # Its own worker first: the others are there in case that one cannot. And not all at once.
            at = max(self._monotonic(next_at.timestamp()), time.monotonic())
            self._alarm.no_later_than(at + random.uniform(*_OTHERS_AFTER))  # noqa: S311

    async def run(self) -> None:
        """Delivers until cancelled."""
        if self._can:
            await self._deliver()
        else:
            await self._leave()

    async def drain(self) -> None:
        """Starts nothing more, and returns when what is under way has ended."""
        self._draining = True
        while self._under_way:
            await self._one_has_ended()

    async def _one_has_ended(self) -> None:
        if self._ended.is_set():
            self._ended = anyio.Event()
        await self._ended.wait()

    async def _deliver(self) -> None:
        client: Any = None
        async with AsyncExitStack() as stack, anyio.create_task_group() as attempts:
            while True:
                await self._alarm.wait()
                free = _MOST - self._under_way
                if free <= 0 or self._draining:
                    await self._one_has_ended()
                    continue
                self._alarm.clear()
                rows = await self._ask(calls.claim_deliveries(free, _LEASE))
                if rows is None:
                    continue
                claimed = [row for row in rows if row.delivery_id is not None]
                if claimed and client is None:
                    # Takes a while, and most workers never need it.
                    client = await stack.enter_async_context(await anyio.to_thread.run_sync(_new_client))
                for row in claimed:
                    self._under_way += 1
                    attempts.start_soon(self._attempt, client, row)
                if len(claimed) == free:
                    self._alarm.no_later_than(time.monotonic())
                self.told(rows[0].next_at)

    async def _ask(self, call: calls.Call[Any]) -> list[Any] | None:
        """The answer; None if there was none: then it looks again later."""
        try:
            async with answered_within(_PATIENCE, f"{call.function}()"):
                rows = await self._database.run(call)
        except (RecallError, psycopg.Error, TimeoutError) as error:
            if not self._complained:
                self._complained = True
                logger().error("loop_error", worker_id=self._worker_id, error=describe(error))
            self._alarm.no_later_than(time.monotonic() + self._failing.pause())
            return None
        self._complained = False
        self._failing.reset()
        return rows

    async def _attempt(self, client: Any, row: DeliveryClaim) -> None:
        try:
            if not self._signer and not self._warned:
                from pgrecall._post import shown

                self._warned = True
                logger().warning("webhooks_unsigned", url=shown(row.url or ""))
            await self._tell(row, *await self._send(client, row))
        finally:
            self._under_way -= 1
            self._ended.set()

    async def _send(
        self, client: Any, row: DeliveryClaim
    ) -> tuple[DeliveryStatus, int | None, str | None, timedelta | None]:
        """One attempt: what becomes of the delivery, the answer's status, the error, and for how long to wait."""
        from pgrecall._post import NotAnsweredError, post

        try:
            answered = await post(
                client,
                row.url,
                message_id=webhook_id("reply", row.recall_id, row.delivery_id),
                body=json.dumps(row.payload, ensure_ascii=False).encode(),
                signer=self._signer,
                headers={},
                seconds=_SECONDS,
            )
        except NotAnsweredError as error:
            return "pending", None, str(error), None
        except Exception as error:  # noqa: BLE001 (one row that cannot be sent must not end the worker)
            return "pending", None, describe(error), None
        if 200 <= answered.status < 300:
            return "delivered", answered.status, None, None
        return (
            "failed" if answered.status == _GONE else "pending",
            answered.status,
            answered.in_words,
            answered.retry_after,
        )

    async def _tell(
        self,
        row: DeliveryClaim,
        status: DeliveryStatus,
        response_status: int | None,
        error: str | None,
        retry_after: timedelta | None,
    ) -> None:
        assert row.delivery_id is not None  # noqa: S101 (the caller looked)
        answer = await self._ask(
            calls.end_delivery(
                row.delivery_id,
                row.attempt,
                status,
                response_status=response_status,
                error=error,
                retry_after=retry_after,
            )
        )
        if answer is None:
            return  # it is tried again when the lease ends, with the same id
        next_at: datetime | None = answer[0]
        if next_at is not None:
            self._alarm.no_later_than(self._monotonic(next_at.timestamp()))
        log = logger().bind(
            delivery_id=row.delivery_id, recall_id=row.recall_id, session_id=row.session_id, attempt=row.attempt
        )
        if status == "delivered":
            log.info("reply_delivered", response_status=response_status)
        else:
            log.warning(
                "delivery_failed",
                response_status=response_status,
                error=error,
                next_at=next_at and next_at.isoformat(),
            )

    async def _leave(self) -> None:
        """Says once that there is something to deliver, and that this worker cannot."""
        await self._alarm.wait()
        logger().warning(
            "deliveries_left_to_others",
            worker_id=self._worker_id,
            reason="this worker cannot deliver: httpx2 is not installed; pip install 'pgrecall[http]'",
        )


def _new_client() -> Any:
    from pgrecall._post import new_client

    return new_client()
