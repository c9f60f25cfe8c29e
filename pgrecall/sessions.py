"""Session history: the two-method store that a host may bring, and the default one in Postgres.

Knows nothing of recalls but the message that a run puts into a session.
"""

from __future__ import annotations

import copy
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from pgrecall import calls
from pgrecall.client import RecallScheduler
from pgrecall.errors import AgentError

#: A message: `role` and `content`, and optionally `id`, `metadata` and `created_at`.
Message: TypeAlias = dict[str, Any]


class HostSession(Protocol):
    """What a store's session must offer: lists that messages can be appended to, as attributes or as keys of a mapping.

    `context`, if the session has it, is the model's context: a list, or an object with a list `messages`.
    """

    @property
    def messages(self) -> list[Any]:
        """The conversation as people see it, oldest first."""
        ...


class SessionStore(Protocol):
    """Where a host keeps its sessions. Any object with these two coroutine methods."""

    async def get(self, session_id: str) -> Any:
        """The session (a HostSession), or None if there is none."""
        ...

    async def save(self, session: Any) -> None:
        """Stores what was appended to the session."""
        ...


@dataclass(slots=True)
class Session:
    """A session of the default store.

    Attributes:
        id: The session's id.
        user_id: Its owner, or None.
        messages: The conversation as people see it, oldest first; append to add.
        context: What the model is given. A message in both lists is one object, unless the model is given another
            content than people see, as with the message of a recall.
    """

    id: str
    user_id: str | None = None
    messages: list[Message] = field(default_factory=list)
    context: list[Message] = field(default_factory=list)
    _loaded: dict[str, Message] = field(default_factory=dict, repr=False)


def put_message(session: HostSession | Mapping[str, Any], message: Message, *, model_text: str | None = None) -> bool:
    """Appends a message to a host's session and to its model context, where it is not there yet.

    Args:
        session: The host's session.
        message: A message with an `id`; `in_history` or `in_context` false leaves it out there.
        model_text: What the model is given in place of the message's content. One that is there already is replaced: it
            tells the attempt and the time.

    Returns:
        Whether anything was changed. False: an earlier attempt had put it there.

    Raises:
        AgentError: The session has no list of messages.
    """
    context = _part(session, "context")
    inner = _part(context, "messages")
    history = _part(session, "messages")
    if not isinstance(history, list):
        raise AgentError(f"the host's session {type(session).__name__} has no list of messages")
    kept = {name: value for name, value in message.items() if name not in ("in_history", "in_context")}
    target = context if inner is None else inner
    if target is history:
        # People and the model read the same list: what people see comes first. The agent can ask for the rest.
        return _put(history, kept, replace=False)
    told = kept if model_text is None else {**kept, "content": model_text}
    changed = False
    if message.get("in_history", True):
        changed = _put(history, kept, replace=False)
    if isinstance(target, list) and message.get("in_context", True):
        changed |= _put(target, told, replace=model_text is not None)
    return changed


def _put(target: list[Any], message: Message, *, replace: bool) -> bool:
    for place, known in enumerate(target):
        if _part(known, "id") == message["id"]:
            if replace and isinstance(known, dict) and known.get("content") != message["content"]:
                target[place] = message
                return True
            return False
    target.append(message)
    return True


def _merged(history: dict[str, Message], context: dict[str, Message]) -> dict[str, Message]:
    """The messages of both by id, in an order that keeps the order of each: a tool's answer stays before the reply."""
    merged: dict[str, Message] = {}
    ahead = deque(context)
    for name, message in history.items():
        while name in context and ahead and (known := ahead.popleft()) != name:
            if known not in history:
                merged[known] = context[known]
        merged[name] = message
    return merged | {name: context[name] for name in ahead if name not in history}


def _part(whole: Any, name: str) -> Any:
    """A part of an object or of a mapping; None if it has none."""
    # Most mappings are dicts: to ask whether something is any other takes as long as all the rest here.
    if isinstance(whole, dict) or (whole is not None and isinstance(whole, Mapping)):
        return whole.get(name)
    return getattr(whole, name, None)


class PostgresSessionStore:
    """The default store: `pgrecall.sessions` and `pgrecall.session_messages`.

    `save` writes only what was added or changed since `get`, so two writers of one session lose nothing of each other.

    Args:
        scheduler: Whose connections to use.
    """

    def __init__(self, scheduler: RecallScheduler) -> None:
        self.database = scheduler.database

    async def create(self, session_id: str, *, user_id: str | None = None) -> Session:
        """Makes the session if there is none, and returns it as it is now.

        Args:
            session_id: 1 to 255 characters.
            user_id: The owner, for a new session; an existing one keeps its own.
        """
        await self.database.query(
            "insert into pgrecall.sessions (id, user_id) values (%(id)s, %(user_id)s) on conflict (id) do nothing "
            "returning id",
            {"id": session_id, "user_id": user_id},
        )
        session = await self.get(session_id)
        assert session is not None  # noqa: S101 (we have just made it)
        return session

    async def get(self, session_id: str) -> Session | None:
        """Loads a session with all its messages, in order; None if there is none."""
        rows = await self.database.query(
            """
            select
                session.user_id,
                message.id,
                message.role,
                message.content,
                message.model_text,
                message.metadata,
                message.created_at,
                message.in_history,
                message.in_context
            from pgrecall.sessions as session
            left join pgrecall.session_messages as message on message.session_id = session.id
            where session.id = %(id)s
            order by message.position
            """,
            {"id": session_id},
        )
        if not rows:
            return None
        session = Session(id=session_id, user_id=rows[0]["user_id"])
        for row in rows:
            if row["id"] is None:
                continue
            message = {name: row[name] for name in ("id", "role", "content", "metadata", "created_at")}
            if row["in_history"]:
                session.messages.append(message)
            if row["in_context"] and row["model_text"] is not None:
                session.context.append({**message, "content": row["model_text"]})
            elif row["in_context"]:
                session.context.append(message)
        session._loaded = {row["id"]: row for row in self._rows(session)}
        return session

    async def save(self, session: Session) -> None:
        """Writes the messages that were added or changed since the session was loaded.

        A message without an `id` gets one. One taken out of `context` stays in the history, and the other way round.

        Raises:
            SessionNotFoundError: The session is gone.
            InvalidRecallError: A message is not JSON.
        """
        rows = self._rows(session)
        changed = [row for row in rows if session._loaded.get(row["id"]) != row]
        kept = {row["id"] for row in rows}
        changed += [
            {**row, "in_history": False, "in_context": False}
            for message_id, row in session._loaded.items()
            if message_id not in kept and (row["in_history"] or row["in_context"])
        ]
        if changed:
            await self.database.run(calls.append_messages(session.id, changed))
            session._loaded |= {row["id"]: row for row in changed}

    @staticmethod
    def _rows(session: Session) -> list[Message]:
        """Every message of the session once, in order, as `append_messages` takes it."""
        for message in [*session.messages, *session.context]:
            if "id" not in message:
                message["id"] = str(uuid.uuid4())
        history = {message["id"]: message for message in session.messages}
        context = {message["id"]: message for message in session.context}
        rows = []
        for message_id, message in _merged(history, context).items():
            row: Message = {name: message[name] for name in ("id", "role", "content") if name in message}
            row["metadata"] = copy.deepcopy(message.get("metadata") or {})
            row["in_history"] = message_id in history
            row["in_context"] = message_id in context
            told = context.get(message_id, message).get("content")
            if told != message.get("content"):
                row["model_text"] = told
            rows.append(row)
        return rows
