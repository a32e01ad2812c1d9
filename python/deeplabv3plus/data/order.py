"""The order of the training data: a function of seed and step, so that a run can be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

Key = tuple[int, int]
"""One training example: index of the pair, seed of its augmentation."""


def batch_keys(size: int, batch_size: int, seed: int, start: int, stop: int) -> Iterator[list[Key]]:
    """Yield the batches of steps `start` to `stop - 1`, each `batch_size` keys (index, seed).

    The stream is one shuffled pass over `0..size-1` after another, cut into batches with no regard
    to the end of a pass. Every key has a seed of its own, so augmentation does not depend on which
    worker makes it, nor on where the run was interrupted.

    Raises:
        ValueError: `size` or `batch_size` below 1.
    """
    if size < 1 or batch_size < 1:
        raise ValueError(f"size and batch_size: expected at least 1, got {size} and {batch_size}")
    stream = _keys(size, seed, start * batch_size)
    for _ in range(start, stop):
        yield list(islice(stream, batch_size))


def _keys(size: int, seed: int, position: int) -> Iterator[Key]:
    while True:
        epoch, offset = divmod(position, size)
        order = np.random.default_rng([seed, epoch]).permutation(size)
        for index in order[offset:]:
            yield int(index), position
            position += 1
