"""How long to pause before trying again."""

from __future__ import annotations

import random


class Backoff:
    """Growing pauses with jitter, so that a fleet does not come back in step.

    Args:
        first: The first pause, seconds.
        most: The longest pause, seconds.
    """

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self._next = first

    def reset(self) -> None:
        """Starts again with the first pause."""
        self._next = self._first

    def pause(self) -> float:
        """The next pause, seconds: between half of it and all of it."""
        pause, self._next = self._next, min(self._next * 2, self._most)
        return pause * random.uniform(0.5, 1)  # noqa: S311 (jitter, not a secret)
