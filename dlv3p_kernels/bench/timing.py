"""Interleaved timing: contenders take turns in one run, so drifts of the machine hit them alike.

A round times every contender once, in order; ratios are taken within a round, and medians over the
rounds. Fast calls are repeated within their turn, so that a turn outlasts the clock's jitter and
each contender runs on the cache as it leaves it itself.

On a GPU a turn is timed by `CudaClock`: by events on the stream, and with the launches queued up
ahead, so that the time of Python is not in it.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

Call = Callable[[], object]
# Runs a call so many times in a row and returns the seconds that one took.
Clock = Callable[[Call, int], float]

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


def cpu_clock(call: Call, repeats: int) -> float:
    """Wall-clock time."""
    start = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - start) / repeats


class CudaClock:
    """Time on the current CUDA stream, without that of the launching program.

    A turn begins with a kernel that only waits, so that the launches are queued before the first of
    them starts. Where the wait turns out too short it is lengthened and the turn repeated.
    """

    _MOST_WAIT_SECONDS = 0.2
    # At least that of any GPU: it only makes the wait longer.
    _CYCLES_PER_SECOND = 2.5e9

    def __init__(self) -> None:
        self._wait_seconds = 1e-3

    def __call__(self, call: Call, repeats: int) -> float:
        """Seconds of one call."""
        while True:
            seconds, was_ahead = self._turn(call, repeats)
            if was_ahead or self._wait_seconds >= self._MOST_WAIT_SECONDS:
                return seconds
            self._wait_seconds *= 2

    def _turn(self, call: Call, repeats: int) -> tuple[float, bool]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(self._wait_seconds * self._CYCLES_PER_SECOND))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        was_ahead = not start.query()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end) / repeats, was_ahead


def interleave(
    calls: Mapping[str, Call], seconds: float, least: int, clock: Clock = cpu_clock
) -> dict[str, list[float]]:
    """Time the calls in turns.

    Args:
        calls: the contenders by name, in the order of their turns.
        seconds: no round starts after this time, once there are enough of them.
        least: rounds that are timed however long they take, at least 2.
        clock: times one turn.

    Returns:
        For each name the milliseconds of one call, one number a round.
    """
    repeats = {name: _repeats(call, clock) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = perf_counter()
        for done in range(_MOST_ROUNDS):
            if done >= least and perf_counter() - start > seconds:
                break
            for name, call in calls.items():
                samples[name].append(1e3 * clock(call, repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return samples


def ratios(of: Sequence[float], to: Sequence[float]) -> Spread:
    """The ratio of two contenders, taken round by round."""
    return Spread.of([a / b for a, b in zip(of, to, strict=True)])


def _repeats(call: Call, clock: Clock) -> int:
    """How many calls fill a turn; finding out warms the call up."""
    call()
    return max(1, min(_MOST_REPEATS, math.ceil(_TURN_SECONDS / clock(call, 1))))
