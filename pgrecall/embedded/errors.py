"""The one error of the private PostgreSQL."""

from __future__ import annotations

__all__ = ["EmbeddedPostgresError"]


class EmbeddedPostgresError(RuntimeError):
    """The private PostgreSQL cannot be found, started or stopped: the message says why and what to do."""
