"""pgrecall lets an AI agent be woken later: a row in Postgres becomes due, and the agent runs in its session."""

from pgrecall._version import __version__
from pgrecall.agents import Agent, AgentFactory, CurrentRecall, GiveUp, Retry, RunResult, current_recall
from pgrecall.client import RecallScheduler, SyncRecallScheduler
from pgrecall.errors import (
    AgentError,
    HoldLostError,
    HostTableError,
    InvalidRecallError,
    RecallError,
    RecallExistsError,
    RecallLimitError,
    RecallNotFoundError,
    RecallStateError,
    SchemaBusyError,
    SchemaError,
    SchemaMissingError,
    SchemaOutdatedError,
    SchemaTooNewError,
    SessionHeldError,
    SessionNotFoundError,
    SettingsError,
    TokenError,
)
from pgrecall.holds import Hold, SyncHold
from pgrecall.model import Delivery, HeldSession, Recall, RecallRun, Settings
from pgrecall.sessions import PostgresSessionStore, Session, SessionStore
from pgrecall.worker import Worker, recall_scheduler_loop

__all__ = [
    "Agent",
    "AgentError",
    "AgentFactory",
    "CurrentRecall",
    "Delivery",
    "GiveUp",
    "HeldSession",
    "Hold",
    "HoldLostError",
    "HostTableError",
    "InvalidRecallError",
    "PostgresSessionStore",
    "Recall",
    "RecallError",
    "RecallExistsError",
    "RecallLimitError",
    "RecallNotFoundError",
    "RecallRun",
    "RecallScheduler",
    "RecallStateError",
    "Retry",
    "RunResult",
    "SchemaBusyError",
    "SchemaError",
    "SchemaMissingError",
    "SchemaOutdatedError",
    "SchemaTooNewError",
    "Session",
    "SessionHeldError",
    "SessionNotFoundError",
    "SessionStore",
    "Settings",
    "SettingsError",
    "SyncHold",
    "SyncRecallScheduler",
    "TokenError",
    "Worker",
    "__version__",
    "current_recall",
    "recall_scheduler_loop",
]
