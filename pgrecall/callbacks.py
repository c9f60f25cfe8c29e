"""Where agents elsewhere call back: a small ASGI app that any replica can serve, for any run.

Needs the extra `http`. Knows nothing of workers: what it is told goes to `report_run()`, and the database tells the
worker that waits.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import psycopg

from pgrecall.client import RecallScheduler
from pgrecall.errors import AgentError, InvalidRecallError, RecallNotFoundError, RecallStateError, SettingsError
from pgrecall.webhooks import MOST_BYTES, Signer, read_answer

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ModuleNotFoundError as _error:
    if _error.name not in ("starlette", "uvicorn"):
        raise
    raise SettingsError(f"callbacks need {_error.name}", hint="Run: pip install 'pgrecall[http]'") from _error

if TYPE_CHECKING:
    from collections.abc import Iterator


def callback_app(
    scheduler: RecallScheduler | str | None = None, *, secret: str | Sequence[str] | None = None
) -> Starlette:
    """An ASGI app with one route, `POST /runs/{run_id}`, to be served or mounted wherever agents can reach it.

    Args:
        scheduler: The host's own, or the DSN of the database; None: libpq's own `PG*` variables. One that is made from
            a DSN is closed when the app is shut down.
        secret: The one that the workers have. None: PGRECALL_WEBHOOK_SECRET.

    Raises:
        SettingsError: There is no secret, or it is not one.
    """
    signer = Signer(secret)
    signer.token(0)  # says what is missing, if it is
    recalls = scheduler if isinstance(scheduler, RecallScheduler) else RecallScheduler(scheduler)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        if recalls is not scheduler:
            await recalls.aclose()

    async def report(request: Request) -> Response:
        run_id: int = request.path_params["run_id"]
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not signer.is_token(run_id, token.strip()):
            return _refused(401, "the token is not for this run", "Send: Authorization: Bearer <callback_token>", _ASK)
        body = await _read(request)
        if body is None:
            return _refused(413, f"the report is larger than {MOST_BYTES} bytes", "Shorten it.")
        return await _report(recalls, run_id, request.headers.get("content-type", ""), body)

    return Starlette(routes=[Route("/runs/{run_id:int}", report, methods=["POST"])], lifespan=lifespan)


_ASK = {"www-authenticate": "Bearer"}
_LATER = {"retry-after": "5"}


async def _report(recalls: RecallScheduler, run_id: int, content_type: str, body: bytes) -> Response:
    try:
        said = read_answer(content_type, body)
        is_new = await recalls.report_run(
            run_id,
            reply=said.reply,
            silent=said.silent,
            error=said.error,
            usage=said.usage,
            messages=said.messages,
        )
    except (AgentError, InvalidRecallError) as error:
        return _refused(422, str(error), error.hint)
    except RecallNotFoundError as error:
        return _refused(404, str(error), error.hint)
    except RecallStateError as error:
        return _refused(409, str(error), error.hint)
    except psycopg.Error:
        return _refused(503, "the database cannot be reached", "Try again.", _LATER)
    return JSONResponse({"accepted": is_new})


def _refused(status: int, error: str, hint: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": error, "hint": hint}, status_code=status, headers=headers)


async def _read(request: Request) -> bytes | None:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            return None
    return bytes(body)


class _Server(uvicorn.Server):
    """Leaves signals to the program around it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: Any, host: str, port: int) -> AsyncIterator[int]:
    """Serves an ASGI app inside the block, in the running event loop. Gives the port.

    Args:
        app: From `callback_app`.
        host: The address to listen on.
        port: The port; 0: any that is free.

    Raises:
        SettingsError: It cannot listen there.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise SettingsError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    server = _Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
    with listening:
        # No task group: what is raised inside the block must leave it as it is.
        served = asyncio.create_task(server.serve([listening]))
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            with anyio.CancelScope(shield=True):
                await served
