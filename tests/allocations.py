"""What a call allocates, and what autograd keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


class Allocated(NamedTuple):
    """Bytes beyond what was there before: at most at once, and in the largest single piece."""

    peak: int
    largest: int


def allocated_by(function: Callable[[], object], device: str) -> Allocated:
    """What a call allocates, its second one, when caches of plans are warm."""
    function()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = function()
        del kept
        peak = torch.cuda.max_memory_allocated() - before
        return Allocated(peak, peak)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = function()
    del kept
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    assert sizes, "the profiler has seen no memory"
    peak = now = 0
    for size in sizes:
        now += size
        peak = max(peak, now)
    return Allocated(peak, max(sizes))


def kept_by(forward: Callable[[], Tensor]) -> dict[int, int]:
    """Bytes of every storage that autograd keeps for backward, by address."""
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        # An output that its own graph kept would keep that graph for ever.
        return t.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        output = forward()  # in a variable, or storages would be given out twice
    del output
    return kept
