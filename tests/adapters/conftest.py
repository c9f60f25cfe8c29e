"""Fixtures of the adapters' tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from pgrecall import PostgresSessionStore, RecallScheduler


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresSessionStore]:
    """The default store on a fresh database, with a session s1."""
    async with RecallScheduler(database) as scheduler:
        store = PostgresSessionStore(scheduler)
        await store.create("s1")
        yield store
