"""Derivatives of the decoder's convolution, by the operators of a back end.

The source, the depthwise result and what its norm made of it are computed anew, twice: once for the
sums that the way back through the norm needs, once to go that way. None of them has been kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _group
from ._norm_operators import IDENTITY, values_per_channel

# Positions among the inputs of the operator.
_X, _LOW_LEVEL, _LOW_SCALE, _LOW_SHIFT, _DW_WEIGHT, _DW_BIAS = 0, 1, 4, 5, 7, 8
_MID_WEIGHT, _MID_BIAS, _PW_WEIGHT, _PW_BIAS = 13, 14, 18, 19


def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    """Keep the two maps as they came and vectors, nothing of the size of the source."""
    (x, low_level, *ctx.order, low_scale, low_shift, ctx.low_activation, dw_weight, dw_bias,
     ctx.padding, ctx.dilation, mid_mean, mid_invstd, mid_weight, mid_bias, ctx.mid_activation,
     ctx.mid_by_batch, ctx.group, pw_weight, _pw_bias, _statistics) = inputs  # fmt: skip
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(
        x, low_level, low_scale, low_shift, dw_weight, dw_bias, mid_mean, mid_invstd, mid_weight,
        mid_bias, pw_weight,
    )  # fmt: skip


def backward(ops: Any, ctx, grad, *_statistics):  # type: ignore[no-untyped-def]
    """Gradients by the inputs of the operator."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "decoder_conv2d: derivatives of derivatives are not implemented by the kernels;"
            " compute them within dk.backend('reference')"
        )
    (x, low_level, low_scale, low_shift, dw_weight, dw_bias, *middle, pw_weight) = ctx.saved_tensors
    low_affine = (low_scale, low_shift, ctx.low_activation)
    arguments = (
        x, low_level, *ctx.order, *low_affine, dw_weight, dw_bias, ctx.padding, ctx.dilation,
        *middle, ctx.mid_activation, pw_weight,
    )  # fmt: skip
    need = ctx.needs_input_grad
    need_low = need[_LOW_LEVEL] or need[_LOW_SCALE] or need[_LOW_SHIFT]
    further = need[_X] or need_low or need[_DW_WEIGHT]
    is_plain = middle[0] is None and ctx.mid_activation == IDENTITY
    # The gradient by the depthwise bias is the norm's, scaled, or nothing at all.
    need_middle = not is_plain and (
        need[_MID_WEIGHT] or need[_MID_BIAS] or need[_DW_BIAS] or (further and ctx.mid_by_batch)
    )
    grads: list[Tensor | None] = [None] * len(need)
    if need[_PW_BIAS]:
        grads[_PW_BIAS] = grad.sum((0, 2, 3))
    if need[_PW_WEIGHT] or need_middle:
        grads[_PW_WEIGHT], grads[_MID_BIAS], grads[_MID_WEIGHT] = (
            ops.decoder_conv2d_backward_reduce(grad, *arguments, need[_PW_WEIGHT], need_middle)
        )
    if need[_DW_BIAS]:
        grads[_DW_BIAS] = _by_depthwise_bias(
            grad, grads[_MID_BIAS] if need_middle else None, dw_bias, middle, ctx.mid_by_batch,
            pw_weight,
        )  # fmt: skip
    if further:
        means: tuple[Tensor | None, Tensor | None] = (None, None)
        if ctx.mid_by_batch:
            by_bias, by_weight = grads[_MID_BIAS], grads[_MID_WEIGHT]
            assert by_bias is not None and by_weight is not None
            means = _group.means(by_bias, by_weight, values_per_channel(grad), ctx.group)
        (grads[_X], grads[_LOW_LEVEL], grads[_DW_WEIGHT], grads[_LOW_SCALE], grads[_LOW_SHIFT]) = (
            ops.decoder_conv2d_backward_apply(
                grad, *arguments, *means, need[_X], need_low, need[_DW_WEIGHT]
            )
        )
    return tuple(g if wanted else None for g, wanted in zip(grads, need, strict=True))


def _by_depthwise_bias(
    grad: Tensor,
    by_mid_bias: Tensor | None,
    dw_bias: Tensor,
    middle: list[Tensor | None],
    mid_by_batch: bool,
    pw_weight: Tensor,
) -> Tensor:
    """The sum over all pixels of the gradient by the depthwise result.

    A norm by the statistics of the batch takes the bias away again. (Where several processes share
    a batch the sum over them is 0, and only that is of use.)
    """
    if mid_by_batch:
        return torch.zeros_like(dw_bias)
    if by_mid_bias is None:  # nothing stands between the halves
        totals = grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32))
        return (totals @ pw_weight.flatten(1).to(totals.dtype)).to(dw_bias.dtype)
    _, invstd, weight, _ = middle
    for factor in (invstd, weight):
        by_mid_bias = by_mid_bias if factor is None else by_mid_bias * factor
    return by_mid_bias.to(dw_bias.dtype)
