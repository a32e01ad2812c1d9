"""Memory of a training step: what is kept between forward and backward, and the most at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Memory:
    """Bytes of a step.

    Attributes:
        kept: of the storages that autograd holds between forward and backward, the input among
            them, the parameters not.
        peak: the most that is allocated at a time above what was there before, from torch's
            allocator; kernels' own scratch memory of some 100 KiB a thread is not.
    """

    kept: int
    peak: int


def of_step(
    forward: Callable[[], Tensor],
    backward: Callable[[Tensor], object],
    parameters: Iterable[Tensor],
    device: str = "cpu",
) -> Memory:
    """Measure one step; the first one, which may set things up, should be over."""
    kept = _kept(forward, {_storage(p) for p in parameters})

    def step() -> None:
        backward(forward())

    return Memory(kept, peak_of(step, device))


def peak_of(step: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes that a call has allocated at a time, as in `Memory.peak`."""
    return _peak_on_cpu(step) if device == "cpu" else _peak_on_cuda(step)


def _storage(t: Tensor) -> tuple[int, int]:
    storage = t.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _kept(forward: Callable[[], Tensor], without: set[tuple[int, int]]) -> int:
    found: set[tuple[int, int]] = set()

    def pack(t: Tensor) -> Tensor:
        found.add(_storage(t))
        # An output that its own graph kept would keep that graph for ever.
        return t.detach()

    with saved_tensors_hooks(pack, lambda t: t):
        output = forward()  # in a variable, or storages would be given out twice
    kept = sum(size for _, size in found - without)
    del output
    return kept


def _peak_on_cpu(step: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return max(accumulate(e.nbytes() for e in events), default=0)


def _peak_on_cuda(step: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
