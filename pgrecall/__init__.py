"""pgrecall lets an AI agent be woken later: a row in Postgres becomes due, and the agent runs in its session."""

from pgrecall._version import __version__
from pgrecall.agents import Agent, AgentFactory, CurrentRecall, Retry, current_recall
from pgrecall.client import RecallScheduler, SyncRecallScheduler
from pgrecall.errors import (
    AgentError,
    HostTableError,
    InvalidRecallError,
    RecallError,
    RecallExistsError,
    RecallNotFoundError,
    RecallStateError,
    SchemaError,
    SchemaMissingError,
    SchemaOutdatedError,
    SchemaTooNewError,
    SessionNotFoundError,
    SettingsError,
)
from pgrecall.model import Recall, RecallRun
from pgrecall.sessions import PostgresSessionStore, Session, SessionStore
from pgrecall.worker import Worker, recall_scheduler_loop

__all__ = [
    "Agent",
    "AgentError",
    "AgentFactory",
    "CurrentRecall",
    "HostTableError",
    "InvalidRecallError",
    "PostgresSessionStore",
    "Recall",
    "RecallError",
    "RecallExistsError",
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
    "Worker",
    "__version__",
    "current_recall",
    "recall_scheduler_loop",
]
