"""Batch norm and activation in front of a convolution that applies them while it reads its input.

The normalised map does not exist. The convolution's op gives the gradients by its input and by the
scale and the shift that it applied; what is left is the way back through the batch's statistics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import dispatch
from . import _group
from ._common import wants_gradients
from ._epilogue import Stage
from ._norm_operators import IDENTITY, values_per_channel


def measured(name: str, raw: Tensor, stage: Stage) -> Stage:
    """With the statistics of the map, where they are asked for; `name` is that of a back end."""
    if not stage.by_batch:
        return stage
    ops = dispatch.operators(name)
    with torch.no_grad():
        mean, var = ops.batch_norm_stats(raw)
    return stage.measured(ops, mean, var, values_per_channel(raw))


def applied_on_load(
    name: str, raw: Tensor, stage: Stage
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The map to read, the scale and the shift to apply to it; the stage has been measured."""
    if stage.by_batch and wants_gradients(raw, stage.weight, stage.bias):
        read, scale, shift = _NormPrologue.apply(name, stage.group, raw, *stage.vectors)
        return read, scale, shift
    return raw, *stage.folded


class _NormPrologue(torch.autograd.Function):
    """A map as it came, with scale and shift that normalise it by statistics of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        group: str,
        raw: Tensor,
        mean: Tensor,
        invstd: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keeps the map itself, which the convolution keeps anyway."""
        ctx.backend, ctx.group = backend, group
        ctx.save_for_backward(raw, mean, invstd, weight)
        scale, shift = Stage(mean, invstd, weight, bias).folded
        assert scale is not None and shift is not None
        return raw.view_as(raw), scale.clone(), shift

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, by_scale: Tensor, by_shift: Tensor) -> tuple[Any, ...]:
        """`grad` is scale * g with g the gradient behind the norm; the sums are those of g."""
        raw, mean, invstd, weight = ctx.saved_tensors
        ops = dispatch.operators(ctx.backend)
        by_weight = (by_scale - mean * by_shift) * invstd
        by_raw = None
        if ctx.needs_input_grad[2]:
            level, slope = _group.means(by_shift, by_weight, values_per_channel(raw), ctx.group)
            scale = invstd if weight is None else invstd * weight
            # grad - scale * (level + slope * normalised), as a norm of deviation 1 and weight 1.
            by_raw, _ = ops.batch_norm_backward_apply(
                grad, raw, mean, torch.ones_like(mean), None, None, None, IDENTITY,
                scale * level, scale * slope * invstd, 1, False,
            )  # fmt: skip
        need = ctx.needs_input_grad
        return (
            None, None, by_raw, None, None,
            by_weight if need[5] else None, by_shift if need[6] else None,
        )  # fmt: skip
