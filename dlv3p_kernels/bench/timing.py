"""Interleaved timing: contenders take turns in one run, so drifts of the machine hit them alike.

A round times every contender once, in order; ratios are taken within a round, and medians over the
rounds. Fast calls are repeated within their turn, so that a turn outlasts the clock's jitter and
each contender runs on the cache as it leaves it itself.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

Call = Callable[[], object]

_TURN_SECONDS = 4e-3
_MOST_REPEATS = 50
_MOST_ROUNDS = 200


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarise at least two samples."""
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, lower, upper)


def interleave(calls: Mapping[str, Call], seconds: float, least: int) -> dict[str, list[float]]:
    """Time the calls in turns.

    Args:
        calls: the contenders by name, in the order of their turns.
        seconds: no round starts after this time, once there are enough of them.
        least: rounds that are timed however long they take, at least 2.

    Returns:
        For each name the milliseconds of one call, one number a round.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = perf_counter()
        for done in range(_MOST_ROUNDS):
            if done >= least and perf_counter() - start > seconds:
                break
            for name, call in calls.items():
                samples[name].append(1e3 * _turn(call, repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return samples


def ratios(of: Sequence[float], to: Sequence[float]) -> Spread:
    """The ratio of two contenders, taken round by round."""
    return Spread.of([a / b for a, b in zip(of, to, strict=True)])


def _turn(call: Call, repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - start) / repeats


def _repeats(call: Call) -> int:
    """How many calls fill a turn; finding out warms the call up."""
    call()
    return max(1, min(_MOST_REPEATS, math.ceil(_TURN_SECONDS / _turn(call, 2))))
