"""Gradients of the separable convolution, composed of the operators of a back end.

The result of the depthwise half is computed anew, and with it what its norm and activation made of
it: none of them has been kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _group, _separable_pieces, _two_passes
from ._common import vector_dtype
from ._norm_operators import IDENTITY, values_per_channel
from ._pointwise import pointwise_input_gradient, pointwise_weight_gradient

# Positions among the inputs of the operator `separable_conv2d`.
X, DW_WEIGHT, DW_BIAS, IN_SCALE, IN_SHIFT = 0, 1, 2, 6, 7
MID_WEIGHT, MID_BIAS, PW_WEIGHT, PW_BIAS = 11, 12, 16, 17


class Halves(NamedTuple):
    """What a forward has kept.

    Attributes:
        x: the input.
        dw_weight: of the depthwise half.
        dw_bias: the same.
        geometry: stride, padding and dilation.
        prologue: scale, shift and activation.
        middle: mean, invstd, weight and bias of the norm between the halves.
        mid_activation: behind that norm.
        mid_by_batch: whether its mean and invstd are those of the batch.
        group: name of the processes that share the batch.
        pw_weight: of the pointwise half.
    """

    x: Tensor
    dw_weight: Tensor
    dw_bias: Tensor | None
    geometry: tuple[Any, ...]
    prologue: tuple[Tensor | None, Tensor | None, int]
    middle: tuple[Tensor | None, ...]
    mid_activation: int
    mid_by_batch: bool
    group: str
    pw_weight: Tensor

    @property
    def is_plain(self) -> bool:
        """Whether nothing stands between the halves."""
        return self.middle[0] is None and self.mid_activation == IDENTITY


def gradients(
    ops: Any, grad: Tensor, halves: Halves, need: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients by the inputs of the operator; `need` says which are wanted."""
    h = halves
    if _separable_pieces.serve(ops, h.x, h.dw_weight, h.geometry):
        return _by_pieces(ops, grad, halves, need)
    grads: list[Tensor | None] = [None] * len(need)
    if need[PW_BIAS]:
        grads[PW_BIAS] = grad.sum((0, 2, 3))
    need_input = need[X] or need[IN_SCALE] or need[IN_SHIFT]
    below = need_input or any(need[i] for i in (DW_WEIGHT, DW_BIAS, MID_WEIGHT, MID_BIAS))
    middle = None
    if need[PW_WEIGHT] or (below and not h.is_plain):
        middle = _Middle(ops, h)
    if need[PW_WEIGHT] and middle is not None:
        grads[PW_WEIGHT] = pointwise_weight_gradient(grad, middle.output(), h.pw_weight)
    if below:
        grad = pointwise_input_gradient(grad, h.pw_weight)
        if middle is not None and not h.is_plain:
            grad, grads[MID_WEIGHT], grads[MID_BIAS] = middle.backward(grad)
    del middle
    if need[DW_BIAS]:
        grads[DW_BIAS] = grad.sum((0, 2, 3))
    if need_input or need[DW_WEIGHT]:
        grads[X], grads[DW_WEIGHT], grads[IN_SCALE], grads[IN_SHIFT] = (
            ops.depthwise_conv2d_fused_backward(
                grad, h.x, h.dw_weight, *h.geometry, *h.prologue, need_input, need[DW_WEIGHT]
            )
        )
    return tuple(g if wanted else None for g, wanted in zip(grads, need, strict=True))


def _by_pieces(
    ops: Any, grad: Tensor, halves: Halves, need: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    h = halves
    arguments = (
        grad, h.x, h.dw_weight, h.dw_bias, *h.geometry, *h.prologue, *h.middle, h.mid_activation,
        h.pw_weight,
    )  # fmt: skip
    need_input = need[X] or need[IN_SCALE] or need[IN_SHIFT]
    further = need_input or need[DW_WEIGHT]
    found = _two_passes.gradients(
        lambda *needs: ops.separable_conv2d_backward_reduce(*arguments, *needs),
        lambda *kept_and_means: ops.separable_conv2d_backward_apply(
            *arguments, *kept_and_means, need_input, need[DW_WEIGHT]
        ),
        grad,
        _two_passes.Middle(h.middle, h.mid_activation, h.mid_by_batch, h.group),
        h.dw_bias,
        h.pw_weight,
        _two_passes.Wanted(
            further, *(need[i] for i in (DW_BIAS, MID_WEIGHT, MID_BIAS, PW_WEIGHT, PW_BIAS))
        ),
        keeps=True,
    )
    grads: list[Tensor | None] = [None] * len(need)
    if found.further is not None:
        grads[X], grads[DW_WEIGHT], grads[IN_SCALE], grads[IN_SHIFT] = found.further
    (grads[DW_BIAS], grads[MID_WEIGHT], grads[MID_BIAS], grads[PW_WEIGHT], grads[PW_BIAS]) = found[
        1:
    ]
    return tuple(g if wanted else None for g, wanted in zip(grads, need, strict=True))


class _Middle:
    """The norm and the activation between the halves, both ways."""

    def __init__(self, ops: Any, halves: Halves) -> None:
        h = halves
        raw = ops.depthwise_conv2d_fused(
            h.x, h.dw_weight, h.dw_bias, *h.geometry, *h.prologue, None, None, IDENTITY, False
        )[0]
        self._ops = ops
        self._halves = h
        mean, invstd, weight, bias = h.middle
        if mean is None:
            mean = raw.new_zeros(raw.size(1), dtype=vector_dtype(raw))
            invstd = torch.ones_like(mean)
        self._arguments = (raw, mean, invstd, weight, bias, None, h.mid_activation)

    def output(self) -> Tensor:
        """What the pointwise half has read."""
        if self._halves.is_plain:
            return self._arguments[0]
        output: Tensor = self._ops.batch_norm_apply(*self._arguments)
        return output

    def backward(self, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients by the depthwise result, the weight and the bias of the norm."""
        ops, arguments = self._ops, self._arguments
        by_bias, by_weight = ops.batch_norm_backward_reduce(grad, *arguments)
        sums: tuple[Tensor | None, Tensor | None] = (None, None)
        if self._halves.mid_by_batch:
            count = values_per_channel(arguments[0])
            sums = _group.means(by_bias, by_weight, count, self._halves.group)
        grad, _ = ops.batch_norm_backward_apply(grad, *arguments, *sums, 1, False)
        return grad, by_weight, by_bias
