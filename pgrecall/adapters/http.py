"""An agent behind a URL, in any language: one signed request for a run, answered at once or by a callback.

Needs the extra `http`. docs/adapters.md says what is sent and what may be answered.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from pgrecall.adapters._described import described
from pgrecall.agents import CurrentRecall, GiveUp, Retry, RunResult, current_recall
from pgrecall.errors import AgentError, SettingsError
from pgrecall.reports import get_report, wait_for_report
from pgrecall.telemetry import logger
from pgrecall.webhooks import MOST_BYTES, Answer, Signer, read_answer, webhook_id

try:
    import httpx2

    from pgrecall._post import Answered, NotAnsweredError, new_client, post, shown
except ModuleNotFoundError as _error:
    if _error.name != "httpx2":
        raise
    raise AgentError("HTTPAgent needs httpx2", hint="Run: pip install 'pgrecall[http]'") from _error

#: The environment variable with the address at which callbacks arrive.
CALLBACK_VARIABLE = "PGRECALL_CALLBACK_URL"

#: "Not now": too slow, the same request is at work, too early, too many. Every 5xx as well.
_TRY_AGAIN = frozenset({408, 409, 425, 429})


class HTTPAgent:
    """An agent behind a URL.

    Each run POSTs one request. Every try of an occurrence has the same `webhook-id` and `idempotency-key`, so the
    receiver can tell that it knows it, and trying again is safe.

    Args:
        url: Where the agent is: http or https.
        secret: Signs the requests: one secret of Standard Webhooks or several. None: those in PGRECALL_WEBHOOK_SECRET,
            separated by spaces; if there are none, requests go unsigned, which is logged once.
        headers: Sent along, for example an Authorization.
        timeout: Seconds for the answer to the request. None: as long as the run may take.
        callback_url: Where the receiver reaches `callback_app`, without the `/runs/…`. None: PGRECALL_CALLBACK_URL; if
            there is none, an agent that answers 202 can report with `report_run()` only.
        with_context: Send the session's context, for a receiver that has no store of its own. Default False.
        client: The host's own httpx2.AsyncClient. None: a new one for each run.

    Raises:
        SettingsError: The URL, a secret or the timeout makes no sense, or there is a callback_url and no secret.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str | Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        callback_url: str | None = None,
        with_context: bool = False,
        client: httpx2.AsyncClient | None = None,
    ) -> None:
        self._url = _checked_url("url", url)
        self._shown = shown(url)
        callback_url = callback_url or os.environ.get(CALLBACK_VARIABLE) or None
        self._callback_url = callback_url and _checked_url("callback_url", callback_url).rstrip("/")
        if timeout is not None and not (timeout > 0 and math.isfinite(timeout)):
            raise SettingsError(f"timeout is {timeout}, but must be greater than 0, or None")
        self._signer = Signer(secret)
        if self._callback_url:
            self._signer.token(0)  # says what is missing, if it is
        self._headers = dict(headers or {})
        self._timeout = timeout
        self._with_context = with_context
        self._client = client
        self._warned = False

    def __repr__(self) -> str:
        return f"HTTPAgent({self._shown!r})"

    async def run(self, *, session_id: str, user_message: str) -> RunResult:
        """Asks the agent, and waits for its callback if it will call back.

        Raises:
            Retry: It could not be reached, or said that it cannot do it now.
            GiveUp: It said that the run has failed, or the endpoint is gone.
            AgentError: Its answer makes no sense or refuses the request.
        """
        recall = current_recall()
        if recall is None:
            raise AgentError("HTTPAgent.run() was called outside a run", hint="Give the agent to a Worker.")
        # An earlier try may have handed the work over, and it has been done since.
        if recall.attempt > 1 or self._callback_url:
            earlier = await get_report(recall)
            if earlier is not None:
                return earlier
        if not self._signer and not self._warned:
            self._warned = True
            logger().warning("webhooks_unsigned", url=self._shown)
        answered = await self._ask(recall, session_id, user_message)
        if answered.status == 202:
            return await wait_for_report(recall)
        return _result(_read(answered, self._shown))

    async def _ask(self, recall: CurrentRecall, session_id: str, user_message: str) -> Answered:
        body = json.dumps(await self._body(recall, session_id, user_message), ensure_ascii=False).encode()
        async with AsyncExitStack() as stack:
            client = self._client
            if client is None:
                client = await stack.enter_async_context(new_client())
            try:
                return await post(
                    client,
                    self._url,
                    message_id=webhook_id("recall", recall.message_id),
                    body=body,
                    signer=self._signer,
                    headers=self._headers,
                    seconds=self._timeout,
                )
            except NotAnsweredError as error:
                raise Retry(f"{self._shown}: {error}") from error

    async def _body(self, recall: CurrentRecall, session_id: str, user_message: str) -> dict[str, Any]:
        data = await described(recall, session_id, user_message, with_context=self._with_context)
        if self._callback_url:
            data["callback_url"] = f"{self._callback_url}/runs/{recall.run_id}"
            data["callback_token"] = self._signer.token(recall.run_id)
        return {"type": "recall.due", "timestamp": data["now"], "data": data}


def _checked_url(name: str, url: str) -> str:
    try:
        parsed = httpx2.URL(url)
        good = parsed.scheme in ("http", "https") and bool(parsed.host)
    except (httpx2.InvalidURL, TypeError):
        good = False
    if not good:
        raise SettingsError(f"{name} is {url!r}", hint="Write http:// or https:// and a host.")
    return url


def _read(answered: Answered, url: str) -> Answer:
    """What an answer means."""
    status, said = answered.status, f"{url} answered {answered.in_words}"
    if 200 <= status < 300:
        if answered.body is None:
            raise AgentError(
                f"{url} answered more than {MOST_BYTES} bytes, or compressed them",
                hint="An answer is the reply only; it is read as it is.",
            )
        return read_answer(answered.content_type, answered.body)
    if status in _TRY_AGAIN or status >= 500:
        raise Retry(said, after=answered.retry_after)
    if status == 410:
        raise GiveUp(f"the agent's endpoint is gone: {said}")
    if 300 <= status < 400:
        raise AgentError(f"{said}; redirects are not followed", hint="Give the URL that it redirects to.")
    raise AgentError(said)


def _result(answer: Answer) -> RunResult:
    if answer.error is not None:
        raise GiveUp(answer.error)
    return RunResult(reply=answer.reply, silent=answer.silent, usage=answer.usage, messages=answer.messages)
