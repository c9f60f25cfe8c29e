"""One signed POST and its answer, which may be of any size and take any time: shared by whatever speaks HTTP.

Needs the extra `http`. Knows neither what is sent nor what the answer means.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import httpx2

from pgrecall._version import __version__
from pgrecall.webhooks import MOST_BYTES, Signer, read_retry_after

#: Seconds in which a connection must be made.
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An HTTP answer.

    Attributes:
        status: Its status code.
        content_type: The header, or an empty text.
        retry_after: What Retry-After says, if anything.
        body: The body; None: it is larger than MOST_BYTES, or in an encoding that was not asked for.
    """

    status: int
    content_type: str
    retry_after: timedelta | None
    body: bytes | None

    @property
    def in_words(self) -> str:
        """The status and how the body begins, for an error message."""
        text = " ".join((self.body or b"")[:300].decode(errors="replace").split())
        return f"HTTP {self.status}: {text}" if text else f"HTTP {self.status}"


class NotAnsweredError(Exception):
    """There was no answer: the message says why."""


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    # Reading the certificates takes a while: once, when they are needed.
    return httpx2.create_ssl_context()


def shown(url: str) -> str:
    """A URL without its password, query and fragment, which do not belong into logs and rows."""
    try:
        return str(httpx2.URL(url).copy_with(userinfo=b"", query=None, fragment=None))
    except httpx2.InvalidURL:
        return "(not a URL)"


def new_client() -> httpx2.AsyncClient:
    """A client for this event loop; to be closed."""
    return httpx2.AsyncClient(verify=_ssl_context())


async def post(
    client: httpx2.AsyncClient,
    url: str,
    *,
    message_id: str,
    body: bytes,
    signer: Signer,
    headers: Mapping[str, str],
    seconds: float | None,
) -> Answered:
    """Sends JSON and reads the answer. Redirects are not followed.

    Args:
        client: From `new_client`, or the host's own.
        url: Where to.
        message_id: The request's name, the same for every try.
        body: JSON.
        signer: Signs it.
        headers: The host's own; they do not replace those of the signature.
        seconds: For all of it. None: no limit.

    Raises:
        NotAnsweredError: There was no answer, or not all of it, within the time.
    """
    sent = {
        "user-agent": f"pgrecall/{__version__}",
        "accept": "application/json, text/plain",
        **{name.lower(): value for name, value in headers.items()},
        "content-type": "application/json",
        # What is not compressed cannot become a thousand times as large as what was read.
        "accept-encoding": "identity",
        **signer.headers(message_id, body),
    }
    try:
        async with (
            asyncio.timeout(seconds),
            client.stream(
                "POST",
                url,
                content=body,
                headers=sent,
                follow_redirects=False,
                timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            ) as response,
        ):
            return Answered(
                status=response.status_code,
                content_type=response.headers.get("content-type", ""),
                retry_after=read_retry_after(response.headers.get("retry-after")),
                body=await _read(response),
            )
    except TimeoutError as error:
        raise NotAnsweredError(f"no answer within {seconds} s") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise NotAnsweredError(f"{type(error).__name__}: {error}".rstrip(": ")) from error


async def _read(response: httpx2.Response) -> bytes | None:
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        return None
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MOST_BYTES:
            return None
    return bytes(body)
