"""Runs in float64 that store maps in a lower precision, as one more measure of what that may do.

On small maps one run of stock PyTorch says little about how far rounding goes: a norm takes away
most of what comes before it, and what is left may be right by luck.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dlv3p_kernels.bench.accuracy import rounding_unit


class Disturbed(TorchDispatchMode):
    """Every map that an operator makes, forward and backward, is off by at most the rounding unit
    of `dtype`."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        self._unit = rounding_unit(dtype)
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = function(*args, **(kwargs or {}))
        given = {_memory(t) for t in args if isinstance(t, Tensor)}
        if isinstance(found, tuple):
            return tuple(self._stored(t, given) for t in found)
        return self._stored(found, given)

    def _stored(self, t: Any, given: set[int]) -> Any:
        if not isinstance(t, Tensor) or t.dim() != 4 or _memory(t) in given:
            return t
        noise = 2 * torch.rand(t.shape, generator=self._generator, dtype=t.dtype) - 1
        return t * (1 + self._unit * noise)


def _memory(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()
