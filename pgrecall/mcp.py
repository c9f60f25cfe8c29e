"""The recall tools as an MCP server, for agents that do not run in Python, or not in this process.

Every request says by a signed token whom it acts for, so any replica can answer it; no tool takes a session. What the
tools do is in `tools`, what is allowed in the database.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from pgrecall import tokens
from pgrecall._version import __version__
from pgrecall.client import RecallScheduler
from pgrecall.errors import SettingsError, TokenError
from pgrecall.tools import Answer, BoundTools, Identity

try:
    from mcp.server.auth.middleware.auth_context import get_access_token
    from mcp.server.auth.provider import AccessToken, TokenVerifier
    from mcp.server.auth.settings import AuthSettings
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations
except ImportError as _error:
    raise SettingsError(
        f"the MCP server needs the package mcp, version 2, which cannot be imported: {_error}",
        hint="pip install 'pgrecall[mcp]'",
    ) from _error

#: Where the tools are served over HTTP.
PATH = "/mcp"

_INSTRUCTIONS = (
    "Wakes you later in this conversation, also when nobody is connected. It has its own clock: give relative times as "
    "in_seconds, and believe the times in its answers."
)

_ANNOTATIONS = {
    "schedule_recall": ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=False),
    "list_recalls": ToolAnnotations(read_only_hint=True, idempotent_hint=True),
    "cancel_recall": ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True),
    "skip_next_recall": ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=False),
}


def session_server(scheduler: RecallScheduler, session_id: str) -> MCPServer[Any]:
    """A server for one session, over stdio: whoever starts the process has said which.

    Args:
        scheduler: On which database.
        session_id: Whose recalls.
    """
    return _server(lambda: Identity(scheduler, session_id))


def token_server(scheduler: RecallScheduler, token: str, *, secret: str | None = None) -> MCPServer[Any]:
    """A server for the session of one token, over stdio. The token is checked at each call, so it ends when that ends.

    Args:
        scheduler: On which database.
        token: From `tokens.session_token`.
        secret: As for `tokens.read_token`.

    Raises:
        TokenError: The token is not valid now.
        SettingsError: There is no secret.
    """

    def identity() -> Identity:
        said = tokens.read_token(token, secret=secret)
        if tokens.RECALLS not in said.scopes:
            raise TokenError(f"the session token is not for the recall tools: its scopes are {list(said.scopes)}")
        return Identity(scheduler, said.session_id, said.run_id)

    identity()
    return _server(identity)


def http_server(scheduler: RecallScheduler, *, secret: str | None = None) -> MCPServer[Any]:
    """A server for every session, over HTTP: each request acts for the session of its bearer token.

    `streamable_http_app(stateless_http=True, json_response=True)` of the answer is an ASGI app for the host's own
    server; `serve_http` runs it.

    Args:
        scheduler: On which database.
        secret: As for `tokens.read_token`.

    Raises:
        SettingsError: There is no secret.
    """
    tokens.secrets(secret)

    def identity() -> Identity:
        access = get_access_token()
        if access is None or access.subject is None:
            raise TokenError("no session token came with this call")
        return Identity(scheduler, access.subject, (access.claims or {}).get("run_id"))

    # The SDK wants to know who issues tokens; nobody does over the network, and nothing advertises it.
    auth = AuthSettings.model_validate(
        {
            "issuer_url": "https://pgrecall.invalid",
            "resource_server_url": None,
            "required_scopes": [tokens.RECALLS],
        }
    )
    return _server(identity, auth=auth, token_verifier=_Verifier(secret))


async def serve_http(server: MCPServer[Any], host: str, port: int) -> None:
    """Serves over HTTP, at `/mcp`, until the task is cancelled or the process is told to end.

    Every request stands for itself, so replicas need nothing in common but the secret.

    Args:
        server: From `http_server`.
        host: Where to listen. On a name of this machine only, requests by other names are refused.
        port: Where to listen.

    Raises:
        SettingsError: It cannot listen there; the log says why.
    """
    try:
        await server.run_streamable_http_async(
            host=host, port=port, streamable_http_path=PATH, stateless_http=True, json_response=True
        )
    except SystemExit as error:  # so uvicorn says that it could not start
        raise SettingsError(
            f"cannot serve on {host} port {port}", hint="Does another program listen there? The log above says more."
        ) from error


class _Verifier(TokenVerifier):
    """What the SDK asks about a bearer token; None is 401 to it."""

    def __init__(self, secret: str | None) -> None:
        self._secret = secret

    async def verify_token(self, token: str) -> AccessToken | None:
        try:
            said = tokens.read_token(token, secret=self._secret)
        except TokenError:
            return None
        return AccessToken(
            token=token,
            client_id=said.session_id,
            scopes=list(said.scopes),
            expires_at=int(said.expires_at.timestamp()),
            subject=said.session_id,
            claims={"run_id": said.run_id},
        )


def _server(identity: Callable[[], Identity], **options: Any) -> MCPServer[Any]:
    server: MCPServer[Any] = MCPServer(
        "pgrecall",
        instructions=_INSTRUCTIONS,
        version=__version__,
        log_level="WARNING",
        subscriptions=False,
        **options,
    )
    for function in BoundTools(identity).functions:
        server.add_tool(
            _tool(function), description=inspect.getdoc(function), annotations=_ANNOTATIONS[function.__name__]
        )
    return server


def _tool(function: Callable[..., Awaitable[Answer]]) -> Callable[..., Awaitable[Answer]]:
    """The tool as MCP wants it: an error is marked as one."""

    @functools.wraps(function)
    async def tool(*arguments: Any, **named: Any) -> Answer:
        try:
            answer = await function(*arguments, **named)
        except TokenError as error:
            raise ToolError(str(error)) from error
        if "error" in answer:
            raise ToolError(answer["error"])
        return answer

    return tool
