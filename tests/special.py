"""Where NaN and infinities go, of an input or of an output's gradient: as in stock PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from numerics import kinds
from torch import Tensor

# From named tensors to an output.
Run = Callable[[dict[str, Tensor]], Tensor]


def _placed(
    tensors: dict[str, Tensor], layout: torch.memory_format, device: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    placed = {name: t.detach().to(device, dtype) for name, t in tensors.items()}
    placed["x"] = placed["x"].contiguous(memory_format=layout)
    return placed


def assert_outputs_alike(
    ours: Run, stock: Run, tensors: dict[str, Tensor], layout: torch.memory_format, device: str
) -> Tensor:
    """NaN and infinities of the output, with gradients and without; they come back."""
    expected = kinds(stock({name: t.double() for name, t in tensors.items()}))
    placed = _placed(tensors, layout, device, torch.float32)
    leaves = placed | {"x": placed["x"].detach().requires_grad_()}
    for given in (placed, leaves):
        assert torch.equal(kinds(ours(given)), expected)
    return expected


def gradient_kinds(
    ours: Run,
    stock: Run,
    tensors: dict[str, Tensor],
    grad: Tensor,
    layout: torch.memory_format,
    device: str,
) -> dict[str, tuple[Tensor, Tensor]]:
    """NaN and infinities of every gradient, ours and stock's; `grad` gets one NaN."""
    grad = grad.clone()
    grad[0, 2, 2, 1] = torch.nan
    found = []
    for run, dtype, where in ((ours, torch.float32, device), (stock, torch.float64, "cpu")):
        placed = _placed(tensors, layout, where, dtype)
        leaves = {n: t.requires_grad_() for n, t in placed.items() if "running" not in n}
        grads = torch.autograd.grad(run(placed), list(leaves.values()), grad.to(where, dtype))
        found.append(dict(zip(leaves, map(kinds, grads), strict=True)))
    return {name: (found[0][name], found[1][name]) for name in found[0]}


def assert_taps_alike(ours: Tensor, stock: Tensor) -> None:
    """Taps that see NaN at padding alone may have a gradient or NaN: stock multiplies by zeros."""
    assert not ours[stock == 0].any()
    assert torch.equal(ours[..., 1, 1], stock[..., 1, 1])
