"""The way back through the halves of a separable convolution in two passes over its pieces.

The first pass gathers the sums that the way back through the norm between the halves needs, the
second goes that way. Each computes the depthwise result anew, and also the gradient by what the
pointwise half has read, a product of matrices, unless the first pass keeps it for the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _group
from ._common import vector_dtype
from ._norm_operators import IDENTITY, values_per_channel
from ._pointwise import pointwise_input_gradient, pointwise_weight_gradient

_Means = tuple[Tensor | None, Tensor | None]


class Middle(NamedTuple):
    """The norm between the halves, as a forward has kept it.

    Attributes:
        vectors: mean, invstd, weight and bias.
        activation: behind it.
        by_batch: whether mean and invstd are those of the batch.
        group: name of the processes that share the batch.
    """

    vectors: tuple[Tensor | None, ...]
    activation: int
    by_batch: bool
    group: str


class Wanted(NamedTuple):
    """Which gradients are wanted; `further` stands for all that the second pass gives."""

    further: bool
    dw_bias: bool
    mid_weight: bool
    mid_bias: bool
    pw_weight: bool
    pw_bias: bool


class Found(NamedTuple):
    """The gradients; some that are not wanted may have come along with others."""

    further: tuple[Any, ...] | None
    dw_bias: Tensor | None
    mid_weight: Tensor | None
    mid_bias: Tensor | None
    pw_weight: Tensor | None
    pw_bias: Tensor | None


def gradients(
    first: Callable[..., tuple[Tensor, ...]],
    second: Callable[..., tuple[Any, ...]],
    grad: Tensor,
    middle: Middle,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    wanted: Wanted,
    *,
    keeps: bool = False,
) -> Found:
    """All gradients from that by the pointwise result.

    Args:
        first: the first pass; from whether the gradients by the pointwise weight and by the norm
            are needed to these: by the weight, by the norm's bias, by its weight.
        second: the second one; from the means of the gradient behind the norm and of it times the
            normalised result, None for a norm by other statistics.
        grad: by the pointwise result.
        middle: the norm.
        dw_bias: of the depthwise half.
        pw_weight: of the pointwise half.
        wanted: what is.
        keeps: whether the passes can hand over the gradient by what the pointwise half has read:
            the first one takes as its last argument whether to, and gives it last; the second one
            takes it, or None, before the means.
    """
    is_plain = middle.vectors[0] is None and middle.activation == IDENTITY
    need_middle = not is_plain and (
        wanted.mid_weight
        or wanted.mid_bias
        or wanted.dw_bias
        or (wanted.further and middle.by_batch)
    )
    by_weight = by_mid_bias = by_mid_weight = None
    keep = need_middle and wanted.further
    kept: list[Tensor | None] = [None] * keeps
    if wanted.pw_weight or need_middle:
        by_weight, by_mid_bias, by_mid_weight, *given = first(
            wanted.pw_weight, need_middle, *[keep] * keeps
        )
        kept = [t if keep else None for t in given]
    by_dw_bias, further = None, None
    if wanted.dw_bias and dw_bias is not None:
        sums = by_mid_bias if need_middle else None
        by_dw_bias = _by_depthwise_bias(grad, sums, dw_bias, middle, pw_weight)
    if wanted.further:
        means: _Means = (None, None)
        if middle.by_batch:
            assert by_mid_bias is not None and by_mid_weight is not None
            count = values_per_channel(grad)
            means = _group.means(by_mid_bias, by_mid_weight, count, middle.group)
        further = second(*kept, *means)
    by_pw_bias = grad.sum((0, 2, 3)) if wanted.pw_bias else None
    return Found(further, by_dw_bias, by_mid_weight, by_mid_bias, by_weight, by_pw_bias)


def _by_depthwise_bias(
    grad: Tensor, by_mid_bias: Tensor | None, dw_bias: Tensor, middle: Middle, pw_weight: Tensor
) -> Tensor:
    """The sum over all pixels of the gradient by the depthwise result.

    A norm by the statistics of the batch takes the bias away again. (Where several processes share
    a batch the sum over them is 0, and only that is of use.)
    """
    if middle.by_batch:
        return torch.zeros_like(dw_bias)
    if by_mid_bias is None:  # nothing stands between the halves
        totals = grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32))
        return (totals @ pw_weight.flatten(1).to(totals.dtype)).to(dw_bias.dtype)
    _, invstd, weight, _ = middle.vectors
    for factor in (invstd, weight):
        by_mid_bias = by_mid_bias if factor is None else by_mid_bias * factor
    return by_mid_bias.to(dw_bias.dtype)


# --- the passes of a back end that has no kernels for them ----------------------------------------


def norm_arguments(
    raw: Tensor,
    mean: Tensor | None,
    invstd: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: int,
) -> tuple[Any, ...]:
    """The depthwise result and all that stands behind it, as a norm takes them."""
    if mean is None:
        mean = raw.new_zeros(raw.size(1), dtype=vector_dtype(raw))
        invstd = torch.ones_like(mean)
    return raw, mean, invstd, weight, bias, None, activation


def composed_first(
    ops: Any,
    grad: Tensor,
    norm: tuple[Any, ...],
    pw_weight: Tensor,
    need_weight: bool,
    need_middle: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by the pointwise weight and by bias and weight of the norm in front of it."""
    by_weight, vector = pw_weight.new_empty(0), grad.new_empty(0, dtype=vector_dtype(grad))
    if need_weight:
        by_weight = pointwise_weight_gradient(grad, ops.batch_norm_apply(*norm), pw_weight)
    if not need_middle:
        return by_weight, vector, vector.clone()
    grad = pointwise_input_gradient(grad, pw_weight)
    return by_weight, *ops.batch_norm_backward_reduce(grad, *norm)


def fake_first(
    pw_weight: Tensor, need_weight: bool, need_middle: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What the first pass gives, without values."""
    size = pw_weight.size(1) if need_middle else 0
    vector = pw_weight.new_empty(size, dtype=vector_dtype(pw_weight))
    by_weight = pw_weight.new_empty(pw_weight.shape if need_weight else 0)
    return by_weight, vector, torch.empty_like(vector)
