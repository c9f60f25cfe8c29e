"""What goes over HTTP, without the HTTP: Standard Webhooks signatures, the tokens of callbacks, the form of an answer.

Requests are signed as https://www.standardwebhooks.com says, with the standard library alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from pgrecall.errors import AgentError, SettingsError

#: The environment variable with the secret, or several separated by spaces, the one to sign with first.
SECRET_VARIABLE = "PGRECALL_WEBHOOK_SECRET"  # noqa: S105 (its name)

_PREFIX = "whsec_"
_SHORTEST_KEY = 24

#: The most bytes that are read of an answer or a callback.
MOST_BYTES = 1 << 20


def new_secret() -> str:
    """A new random secret in the form of Standard Webhooks: `whsec_` and 32 bytes in base64."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def webhook_id(kind: str, *names: object) -> str:
    """A name for what a request is about, the same for every try of it: safe in a header, and without a full stop.

    Args:
        kind: What it begins with.
        names: What it is about; the same names give the same id.
    """
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    return f"{kind}_{digest[:32]}"


class Signer:
    """Signs requests, and makes and checks the tokens of callbacks.

    Args:
        secret: One secret or several (`whsec_` and base64 of at least 24 bytes): while a secret is being replaced, a
            request carries a signature by each, and a token of any is good. None: those in PGRECALL_WEBHOOK_SECRET,
            separated by spaces; if there are none, requests go unsigned.

    Raises:
        SettingsError: A secret is not of this form. The message does not show it.
    """

    def __init__(self, secret: str | Sequence[str] | None = None) -> None:
        if secret is None:
            given: Sequence[str] = os.environ.get(SECRET_VARIABLE, "").split()
        else:
            given = secret.split() if isinstance(secret, str) else secret
            if not given:
                raise SettingsError("the webhook secret is empty", hint=_HINT)
        self._keys = [_key(one, place) for place, one in enumerate(given, start=1)]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def headers(self, message_id: str, body: bytes, now: datetime | None = None) -> dict[str, str]:
        """The headers of a request: its id, which is its idempotency key as well, the time, and the signatures.

        Args:
            message_id: From `webhook_id`.
            body: What is sent, byte for byte.
            now: The time to sign with. None: this machine's.
        """
        timestamp = str(math.floor((now or datetime.now(UTC)).timestamp()))
        headers = {"webhook-id": message_id, "webhook-timestamp": timestamp, "idempotency-key": message_id}
        content = b".".join([message_id.encode(), timestamp.encode(), body])
        if self._keys:
            headers["webhook-signature"] = " ".join(
                "v1," + base64.b64encode(_mac(key, content)).decode() for key in self._keys
            )
        return headers

    def token(self, run_id: int) -> str:
        """What whoever may report about this run has to show.

        Raises:
            SettingsError: There is no secret.
        """
        if not self._keys:
            raise SettingsError("callbacks need a webhook secret, and there is none", hint=_HINT)
        return _token(self._keys[0], run_id)

    def is_token(self, run_id: int, token: str) -> bool:
        """Whether this token is for this run. How long it takes says nothing about the token."""
        given = token.encode(errors="replace")
        return any(hmac.compare_digest(_token(key, run_id).encode(), given) for key in self._keys)


_HINT = (
    f"Set {SECRET_VARIABLE} to a secret made by: "
    'python -c "from pgrecall.webhooks import new_secret; print(new_secret())"'
)


def _key(secret: str, place: int) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_PREFIX) or len(key) < _SHORTEST_KEY:
        raise SettingsError(
            f"webhook secret number {place} is not {_PREFIX} and base64 of at least {_SHORTEST_KEY} bytes", hint=_HINT
        )
    return key


def _mac(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, "sha256")


def _token(key: bytes, run_id: int) -> str:
    # What is signed for a request has full stops and this has none, so neither can pass for the other.
    return base64.urlsafe_b64encode(_mac(key, b"pgrecall callback %d" % run_id)).decode().rstrip("=")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a run ended, as an agent elsewhere says it: in its answer to the request, or in a callback.

    Attributes:
        reply: What the agent answers; None or empty: nothing.
        silent: There is nothing to say, and that is a success.
        error: Why it has failed; None: it has not.
        usage: What the run has used, as in RunResult.
        messages: What the session gets in place of the reply, as in RunResult.
    """

    reply: str | None = None
    silent: bool = False
    error: str | None = None
    usage: dict[str, Any] | None = None
    messages: list[dict[str, Any]] | None = None


_FIELDS = ("reply", "silent", "error", "usage", "messages")
_FORM = f"It may be empty, text/plain, or a JSON object with any of {', '.join(_FIELDS)}."


def read_answer(content_type: str, body: bytes) -> Answer:
    """What an agent elsewhere has said.

    Args:
        content_type: The header.
        body: The body: empty; `text/plain` in UTF-8, the reply; or JSON: an object with any of `reply`, `silent`,
            `error`, `usage` and `messages`, or null.

    Raises:
        AgentError: It is none of these; the message names what is wrong.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if not body.strip():
        return Answer()
    if kind == "text/plain":
        return Answer(reply=_decoded(body))
    if kind != "application/json" and not kind.endswith("+json"):
        raise AgentError(f"the answer is of type {kind[:100] or 'nothing'!r}", hint=_FORM)
    try:
        said = json.loads(_decoded(body))
    except (ValueError, RecursionError) as error:
        raise AgentError(f"the answer is not JSON: {str(error)[:200]}", hint=_FORM) from error
    if said is None:
        return Answer()
    if not isinstance(said, Mapping):
        raise AgentError(f"the answer is a JSON {type(said).__name__}", hint=_FORM)
    if said and not set(said) & set(_FIELDS):
        raise AgentError(f"the answer has none of the fields {', '.join(_FIELDS)}", hint=_FORM)
    return _checked(said)


def _decoded(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise AgentError(f"the answer is not UTF-8: {error}", hint=_FORM) from error


def _checked(said: Mapping[str, Any]) -> Answer:
    for name, kind, what in (
        ("reply", str, "a text"),
        ("silent", bool, "true or false"),
        ("error", str, "a text"),
        ("usage", dict, "an object"),
        ("messages", list, "an array"),
    ):
        value = said.get(name)
        if value is not None and not isinstance(value, kind):
            raise AgentError(f"{name} in the answer is {json.dumps(value)[:100]}, but must be {what}", hint=_FORM)
    for place, message in enumerate(said.get("messages") or [], start=1):
        if not isinstance(message, dict) or not all(isinstance(message.get(name), str) for name in ("role", "content")):
            raise AgentError(
                f"message {place} in the answer is {json.dumps(message)[:100]}",
                hint='A message is an object with texts role and content: {"role": "assistant", "content": "Done."}',
            )
    answer = Answer(**{name: said[name] for name in _FIELDS if said.get(name) is not None})
    if answer.error is not None and (answer.reply is not None or answer.messages is not None or answer.silent):
        raise AgentError("the answer has an error and a reply", hint="Give error alone, or the others.")
    return answer


def read_retry_after(value: str | None, now: datetime | None = None) -> timedelta | None:
    """How long to wait, by a Retry-After header: seconds or a date; None if there is none that makes sense.

    Args:
        value: The header.
        now: What a date is compared with. None: this machine's time.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return timedelta(seconds=min(int(value[:12]), 365 * 86400))
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(at - (now or datetime.now(UTC)), timedelta())
