"""Asserts the accuracy rule of `dlv3p_kernels.bench.accuracy`, where its floor is derived."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from cases import NAMES, DepthwiseCase, exact, stock
from torch import Tensor

from dlv3p_kernels.bench import accuracy


def assert_parity(
    case: DepthwiseCase,
    dtype: torch.dtype,
    results: Sequence[Tensor],
    stock_layout: torch.memory_format = torch.contiguous_format,
) -> None:
    """Output and gradients, in the order of `NAMES`, are as exact as stock PyTorch's.

    Stock PyTorch runs contiguous by default, where it is the more exact.
    """
    reference = exact(case, dtype)
    expected = stock(case, dtype, stock_layout)
    assert len(results) == len(expected) == len(reference.values)
    for name, ours, theirs, value, magnitude in zip(
        NAMES, results, expected, *reference, strict=False
    ):
        assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)}, {tuple(theirs.shape)}"
        assert ours.dtype == dtype, f"{name}: {ours.dtype}"
        assert_accurate(name, dtype, ours, theirs, value, magnitude)


def assert_accurate(
    name: str,
    dtype: torch.dtype,
    ours: Tensor,
    theirs: Tensor,
    value: np.ndarray,
    magnitude: np.ndarray,
) -> None:
    """One result is as exact as stock PyTorch's; `dtype` is the one it was rounded to."""
    got, stocks = accuracy.error(ours, value), accuracy.error(theirs, value)
    limit = accuracy.allowed(stocks, accuracy.floor(dtype, value, magnitude))
    assert got <= limit, f"{name}: error {got:.3g}, stock {stocks:.3g}, allowed {limit:.3g}"


def kinds(t: Tensor) -> Tensor:
    """0 where finite, 1 where NaN, 2 where infinity, 3 where minus infinity."""
    return (t.isnan() + 2 * t.isposinf() + 3 * t.isneginf()).cpu()
