"""When to write a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.05
"""Largest share of the time to spend on checkpoints when no interval is given."""


class SaveTimer:
    """Decides after each step whether to save.

    Args:
        every: steps between checkpoints; 0 = whenever the last one took at most 5 % of the time
            since the one before, so that small models save every step and large ones do not wait
            for the disk.
        clock: seconds, rising.
    """

    def __init__(self, every: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.every = every
        self.clock = clock
        self.cost = 0.0
        self.saved = -float("inf")

    def due(self, step: int) -> bool:
        """Return whether to save after `step`."""
        if self.every:
            return step % self.every == 0
        return self.cost <= SHARE * (self.clock() - self.saved)

    def time(self, save: Callable[[], None]) -> None:
        """Call `save` and note what it cost."""
        start = self.clock()
        save()
        self.cost = self.clock() - start
        self.saved = start
