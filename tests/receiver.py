"""A real HTTP server for tests: notes what it gets and answers what it is told to, one answer after the other."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from standardwebhooks import Webhook
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pgrecall.callbacks import serving

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

Answering = Callable[["Receiver"], Awaitable[Response]]


@dataclass
class Received:
    """One request: its headers and its body, as it came and read."""

    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def data(self) -> Any:
        return self.json["data"]

    def verified(self, secret: str = SECRET) -> Any:
        """The body if the reference implementation accepts the signature."""
        return Webhook(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """A server whose last answer is the one to all further requests."""

    url: str = ""
    requests: list[Received] = field(default_factory=list)
    answers: list[Response | Answering] = field(default_factory=list)
    closing: anyio.Event = field(default_factory=anyio.Event)

    async def answer(self, request: Request) -> Response:
        received = Received(dict(request.headers), await request.body())
        self.requests.append(received)
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        return answer if isinstance(answer, Response) else await answer(self)

    @property
    def ids(self) -> list[str]:
        return [request.headers["webhook-id"] for request in self.requests]


def replied(reply: str = "done", **more: Any) -> Response:
    return JSONResponse({"reply": reply, **more})


@asynccontextmanager
async def receiving(*answers: Response | Answering, port: int = 0) -> AsyncIterator[Receiver]:
    """A server on a free port for the length of the block."""
    receiver = Receiver(answers=list(answers))
    app = Starlette(routes=[Route("/agent", receiver.answer, methods=["POST", "GET"])])
    async with serving(app, "127.0.0.1", port) as bound:
        receiver.url = f"http://127.0.0.1:{bound}/agent"
        try:
            yield receiver
        finally:
            receiver.closing.set()


async def hanging(receiver: Receiver) -> Response:
    """No answer while the server lives."""
    await receiver.closing.wait()
    return Response(status_code=500)
