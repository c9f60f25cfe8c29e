"""Session tokens: who a tool server acts for, signed, so that every replica can tell without asking anybody.

A token is a JWT (HS256) whose subject is the session. Knows neither the database nor what a session may do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pgrecall.errors import SettingsError, TokenError

if TYPE_CHECKING:
    from types import ModuleType

#: Where the secrets are: one, or several with commas between.
SECRET_VARIABLE = "PGRECALL_TOKEN_SECRET"  # noqa: S105 (its name)
#: The scope that the tools need.
RECALLS = "recalls"

_ALGORITHM = "HS256"
#: Another program may sign tokens for other uses with the same secret.
_AUDIENCE = "pgrecall"
#: Bytes; RFC 7518 wants a key at least as long as the hash.
_SHORTEST = 32
#: Characters; one with a session id and a run id has less than a thousand.
_LONGEST = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionToken:
    """What a valid token says.

    Attributes:
        session_id: The session whose recalls its bearer may see and change.
        run_id: The run that it was made for: it is good for nothing after that run. None: it was not made for a run.
        scopes: What it may be used for.
        expires_at: Until when it is good, aware, UTC.
    """

    session_id: str
    run_id: int | None
    scopes: tuple[str, ...]
    expires_at: datetime


def session_token(
    session_id: str,
    *,
    expires_in: timedelta,
    run_id: int | None = None,
    secret: str | None = None,
    scopes: Sequence[str] = (RECALLS,),
) -> str:
    """Makes a token for one session.

    Args:
        session_id: The session; it need not exist yet.
        expires_in: How long it is good, more than zero. Keep it short: a token cannot be taken back.
        run_id: Makes it good only while this run has the session: `current_recall().run_id`.
        secret: What to sign with, at least 32 bytes; of several with commas between, the first signs. None: the
            environment's PGRECALL_TOKEN_SECRET.
        scopes: What it may be used for. Default: the recall tools.

    Raises:
        SettingsError: There is no secret, or it is too short; expires_in or session_id makes no sense; or the extra
            `pgrecall[mcp]` is not installed.
    """
    if not 1 <= len(session_id) <= 255:
        raise SettingsError(f"the id of a session has 1 to 255 characters, this one has {len(session_id)}")
    if expires_in <= timedelta(0):
        raise SettingsError(f"expires_in is {expires_in}, but must be more than zero")
    now = datetime.now(UTC)
    try:
        expires_at = now + expires_in
    except OverflowError as error:
        raise SettingsError(f"expires_in is {expires_in}, which ends after the year 9999") from error
    claims: dict[str, Any] = {
        "sub": session_id,
        "aud": _AUDIENCE,
        "iat": int(now.timestamp()),
        "exp": int(expires_at.timestamp()),
        "scopes": list(scopes),
    }
    if run_id is not None:
        claims["run_id"] = run_id
    return str(_jwt().encode(claims, secrets(secret)[0], algorithm=_ALGORITHM))


def read_token(token: str, *, secret: str | None = None) -> SessionToken:
    """Checks a token and says what is in it.

    Args:
        token: From `session_token`.
        secret: As for `session_token`; a token made with any of several is valid.

    Raises:
        TokenError: It was changed, has expired, or was made with another secret or for another use.
        SettingsError: There is no secret, or it is too short; or the extra `pgrecall[mcp]` is not installed.
    """
    jwt = _jwt()
    keys = secrets(secret)
    if len(token) > _LONGEST:
        raise TokenError("the session token is not valid: it is too long")
    for key in keys:
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                options={"require": ["sub", "aud", "exp"]},
            )
        except jwt.InvalidSignatureError:
            continue
        except jwt.ExpiredSignatureError as error:
            raise TokenError("the session token has expired", hint="Ask the application for a new one.") from error
        except (jwt.PyJWTError, ValueError) as error:
            raise TokenError(f"the session token is not valid: {error}") from error
        return _said(claims)
    raise TokenError("the session token is not valid: no secret of ours has signed it")


def secrets(given: str | None = None) -> list[str]:
    """The secrets, the one that signs first.

    Raises:
        SettingsError: There is none, or one of them is too short.
    """
    text = os.environ.get(SECRET_VARIABLE, "") if given is None else given
    found = [one.strip() for one in text.split(",") if one.strip()]
    hint = (
        f"For example: export {SECRET_VARIABLE}=$(openssl rand -hex 32); several with commas between, the first signs."
    )
    if not found:
        raise SettingsError(f"session tokens need a secret: {SECRET_VARIABLE} is not set", hint=hint)
    for place, one in enumerate(found, 1):
        length = len(one.encode())
        if length < _SHORTEST:
            raise SettingsError(
                f"secret {place} of {SECRET_VARIABLE} has {length} bytes, but at least {_SHORTEST} are needed",
                hint=hint,
            )
    return found


def _said(claims: dict[str, Any]) -> SessionToken:
    run_id, scopes = claims.get("run_id"), claims.get("scopes", [])
    if not claims["sub"] or (run_id is not None and type(run_id) is not int) or not isinstance(scopes, list):
        raise TokenError("the session token is not valid: it was not made by pgrecall")
    return SessionToken(
        session_id=claims["sub"],
        run_id=run_id,
        scopes=tuple(str(scope) for scope in scopes),
        expires_at=datetime.fromtimestamp(claims["exp"], UTC),
    )


def _jwt() -> ModuleType:
    try:
        import jwt
    except ImportError as error:
        raise SettingsError(
            "session tokens need the package PyJWT, which is not installed", hint="pip install 'pgrecall[mcp]'"
        ) from error
    return jwt
