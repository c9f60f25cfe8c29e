"""The exceptions of pgrecall: one tree, one class for each SQLSTATE that the SQL raises on purpose.

Errors of the driver that are none of these (a server that cannot be reached, a lost connection) stay `psycopg.Error`.
"""

from __future__ import annotations

from datetime import datetime


class RecallError(Exception):
    """Base of all errors that pgrecall raises.

    Attributes:
        hint: What to do about it; an empty string if there is nothing to say.
    """

    sqlstate: str | None = None

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # tracebacks show it


class RecallExistsError(RecallError):
    """The session already has a pending recall.

    Attributes:
        session_id: The session.
    """

    sqlstate = "PR001"

    def __init__(self, message: str, *, session_id: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.session_id = session_id


class SessionNotFoundError(RecallError):
    """There is no session with this id.

    Attributes:
        session_id: The id that was asked for.
    """

    sqlstate = "PR002"

    def __init__(self, message: str, *, session_id: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.session_id = session_id


class RecallNotFoundError(RecallError):
    """There is no recall with this id."""

    sqlstate = "PR003"


class RecallStateError(RecallError):
    """The recall's status does not allow what was asked (it has ended, for example)."""

    sqlstate = "PR004"


class InvalidRecallError(RecallError):
    """An argument makes no sense: the message names it and its value.

    Attributes:
        constraint: Name of the CHECK that refused it, if one did.
    """

    sqlstate = "PR005"

    def __init__(self, message: str, *, constraint: str | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.constraint = constraint


class SessionHeldError(RecallError):
    """Somebody else has the session: another chat, or a run.

    Attributes:
        session_id: The session.
        kind: `chat`, `run`, or `line`: nobody has it, but another chat, or a recall, waits for it and comes first.
        holder: The chat's name, or the worker of the run.
        since: Since when, in UTC.
        until: When the hold ends by itself unless it is renewed, in UTC; None for a run.
        run_id: The run, or None.
        recall_id: The run's recall, or the one that comes first, or None.
    """

    sqlstate = "PR006"

    def __init__(
        self,
        message: str,
        *,
        session_id: str = "",
        kind: str = "",
        holder: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        run_id: int | None = None,
        recall_id: str | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.session_id = session_id
        self.kind = kind
        self.holder = holder
        self.since = since
        self.until = until
        self.run_id = run_id
        self.recall_id = recall_id


class HoldLostError(RecallError):
    """A hold on a session ended before its holder let go: it could not be renewed, or a recall waited for too long.

    Attributes:
        session_id: The session.
    """

    def __init__(self, message: str, *, session_id: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.session_id = session_id


class RecallLimitError(RecallError):
    """The settings do not allow an agent to do this: the message says what is too much, the hint what to do instead."""

    sqlstate = "PR007"


class HostTableError(RecallError):
    """A table of the host's own (its sessions, its former recalls) cannot be used, or is used, in the way asked for."""

    sqlstate = "PR008"


class SchemaError(RecallError):
    """The schema in the database is not the one this package was made for."""


class SchemaMissingError(SchemaError):
    """The database has no pgrecall schema; run `pgrecall migrate`."""


class SchemaOutdatedError(SchemaError):
    """The schema in the database is older than this package; run `pgrecall migrate`."""


class SchemaTooNewError(SchemaError):
    """The schema in the database is newer than this package; upgrade the package."""


class SchemaBusyError(SchemaError):
    """An upgrade could not have the tables to itself in time: the message tells which transactions use them."""


class SettingsError(RecallError):
    """A setting makes no sense: the message names it and its value."""


class AgentError(RecallError):
    """What was given as the agent cannot be used as one."""


class TokenError(RecallError):
    """A session token is not valid: it was changed, has expired, or was made with another secret or for another use."""


for _error in list(globals().values()):
    if isinstance(_error, type) and issubclass(_error, RecallError):
        _error.__module__ = "pgrecall"
