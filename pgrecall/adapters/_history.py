"""What adapters share: the rows of a session as the model should be given them, and rows that every store can hold.

A row is a message of a store: `role` and `content` for people and for other frameworks, and in `metadata` the message
as the adapter's own framework has it. Knows no framework.
"""

from __future__ import annotations

import inspect
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from pgrecall import calls
from pgrecall.agents import CurrentRecall, current_recall
from pgrecall.client import RecallScheduler
from pgrecall.errors import AgentError, SessionNotFoundError
from pgrecall.sessions import Message, PostgresSessionStore, SessionStore, put_message

#: As what a recall's text reaches the model.
InjectAs: TypeAlias = Literal["user", "system"]

#: Who says what, in the words of the frameworks that have none of the three.
_SPEAKERS = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}


def checked_inject_as(inject_as: str) -> InjectAs:
    """The value itself.

    Raises:
        AgentError: It is neither `user` nor `system`.
    """
    if inject_as not in get_args(InjectAs):
        raise AgentError(f'inject_as is {inject_as!r}, but must be "user" or "system"')
    return inject_as  # type: ignore[return-value]


def this_run(adapter: object) -> CurrentRecall:
    """The recall that the calling code runs for.

    Raises:
        AgentError: It does not run for a recall.
    """
    recall = current_recall()
    if recall is None:
        raise AgentError(
            f"{type(adapter).__name__} runs for recalls only, and there is none here",
            hint="Give it to a Worker. A live chat uses the framework's own agent, with the session's history.",
        )
    return recall


async def for_this_run(value: Any, recall: CurrentRecall) -> Any:
    """The value, or what it gives for this run if it is a function (also an async one) of the recall."""
    if callable(value):
        value = value(recall)
    return await value if inspect.isawaitable(value) else value


def as_store(store: SessionStore | RecallScheduler) -> SessionStore:
    """The store; for a scheduler the default store on its connections."""
    return PostgresSessionStore(store) if isinstance(store, RecallScheduler) else store


async def session_of(store: SessionStore, session_id: str) -> Any:
    """The session.

    Raises:
        SessionNotFoundError: The store has none of this id.
    """
    session = await store.get(session_id)
    if session is None:
        raise SessionNotFoundError(
            f"there is no session {session_id!r}",
            session_id=session_id,
            hint="PostgresSessionStore.create() makes one; a store of the host's own must know it.",
        )
    return session


def lists_of(session: Any) -> list[list[Any]]:
    """The session's lists of messages: first what people see, then what the model is given, if that is another one."""
    messages, context = part(session, "messages"), part(session, "context")
    inner = part(context, "messages")
    context = context if inner is None else inner
    return [each for each in (messages, None if context is messages else context) if isinstance(each, list)]


async def context_of(store: SessionStore, session_id: str) -> list[Message]:
    """What the session's model is given, oldest first, as rows with `id`, `role`, `content` and `metadata`.

    Raises:
        SessionNotFoundError: The store has none of this id.
    """
    lists = lists_of(await session_of(store, session_id))
    return [row(message) for message in (lists[-1] if lists else [])]


def take_out(session: Any, message: Any) -> None:
    """Takes a message out of the session's lists. Another object with the same id is the same message."""
    name = part(message, "id")
    for each in lists_of(session):
        each[:] = [other for other in each if other is not message and (name is None or part(other, "id") != name)]


async def append(store: SessionStore, session_id: str, rows: Sequence[Message]) -> None:
    """Adds rows to a session, in their order. One whose id the session has already is not added again.

    Raises:
        SessionNotFoundError: The store has none of this id.
    """
    if isinstance(store, PostgresSessionStore):
        # Without loading what is there. Also, rows keep their order across the two lists of a session.
        await store.database.run(calls.append_messages(session_id, rows))
        return
    session = await session_of(store, session_id)
    for new in rows:
        put_message(session, {"id": str(uuid.uuid4()), **new})
    await store.save(session)


def rows(key: str, shown: Sequence[tuple[str, str]], natives: Sequence[Any]) -> list[Message]:
    """Rows of role and content, each with the message as the framework has it in its metadata.

    People see what was said; calls of tools and what they answered are for the model.
    """
    return [
        {
            "role": role,
            "content": storable(content),
            "in_history": role in ("user", "assistant") and content != "",
            "metadata": {key: native},
        }
        for (role, content), native in zip(shown, natives, strict=True)
    ]


def speaker(message: Message) -> str | None:
    """Who said it: user, assistant or system; None for what is no part of a conversation, such as a tool's answer."""
    return _SPEAKERS.get(message["role"])


def is_recall(message: Message) -> bool:
    """Whether it is what a recall has put into the session."""
    return speaker(message) == "system" and "recall_id" in message["metadata"]


def storable(value: Any) -> Any:
    """JSON as PostgreSQL can hold it: no NUL, no half characters, no NaN. What a tool said must not cost the run."""
    match value:
        case str():
            return value.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {storable(str(name)): storable(each) for name, each in value.items()}
        case list() | tuple():
            return [storable(each) for each in value]
    return value


def part(whole: Any, name: str) -> Any:
    """A part of an object or of a mapping; None if it has none."""
    return whole.get(name) if isinstance(whole, Mapping) else getattr(whole, name, None)


def plain(content: Any) -> str:
    """The text in a message's content, which may be a text or a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence):
        return "".join(each if isinstance(each, str) else plain(part(each, "text")) for each in content)
    return str(content)


def row(message: Any) -> Message:
    """A store's message, whatever it is made of, as a row."""
    metadata = part(message, "metadata")
    return {
        "id": part(message, "id"),
        "role": str(part(message, "role") or ""),
        "content": plain(part(message, "content")),
        "metadata": metadata if isinstance(metadata, Mapping) else {},
    }
