"""pgrecall lets an AI agent be woken later: a row in Postgres becomes due, and the agent runs in its session."""

from pgrecall._version import __version__
from pgrecall.agents import Agent, AgentFactory, CurrentRecall, Retry, current_recall
from pgrecall.client import RecallScheduler, SyncRecallScheduler
from pgrecall.errors import (
    AgentError,
    InvalidRecallError,
    RecallError,
    RecallExistsError,
    RecallLimitError,
    RecallNotFoundError,
    RecallStateError,
    SchemaError,
    SchemaMissingError,
    SchemaOutdatedError,
    SchemaTooNewError,
    SessionNotFoundError,
    SettingsError,
    TokenError,
)
from pgrecall.model import Recall, RecallRun
from pgrecall.sessions import PostgresSessionStore, Session, SessionStore
from pgrecall.worker import Worker, recall_scheduler_loop

__all__ = [
    "Agent",
    "AgentError",
    "AgentFactory",
    "CurrentRecall",
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
    "SchemaError",
    "SchemaMissingError",
    "SchemaOutdatedError",
    "SchemaTooNewError",
    "Session",
    "SessionNotFoundError",
    "SessionStore",
    "SettingsError",
    "SyncRecallScheduler",
    "TokenError",
    "Worker",
    "__version__",
    "current_recall",
    "recall_scheduler_loop",
]
