"""Derivatives of the decoder's convolution, by the operators of a back end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._two_passes import Middle, Wanted, gradients

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
    (x, low_level, low_scale, low_shift, dw_weight, dw_bias, *vectors, pw_weight) = (
        ctx.saved_tensors
    )
    middle = Middle(tuple(vectors), ctx.mid_activation, ctx.mid_by_batch, ctx.group)
    arguments = (
        grad, x, low_level, *ctx.order, low_scale, low_shift, ctx.low_activation, dw_weight,
        dw_bias, ctx.padding, ctx.dilation, *vectors, ctx.mid_activation, pw_weight,
    )  # fmt: skip
    need = ctx.needs_input_grad
    need_low = need[_LOW_LEVEL] or need[_LOW_SCALE] or need[_LOW_SHIFT]
    wanted = Wanted(
        need[_X] or need_low or need[_DW_WEIGHT], need[_DW_BIAS], need[_MID_WEIGHT],
        need[_MID_BIAS], need[_PW_WEIGHT], need[_PW_BIAS],
    )  # fmt: skip
    found = gradients(
        lambda *needs: ops.decoder_conv2d_backward_reduce(*arguments, *needs),
        lambda *means: ops.decoder_conv2d_backward_apply(
            *arguments, *means, need[_X], need_low, need[_DW_WEIGHT]
        ),
        grad, middle, dw_bias, pw_weight, wanted,
    )  # fmt: skip
    grads: list[Tensor | None] = [None] * len(need)
    if found.further is not None:
        (grads[_X], grads[_LOW_LEVEL], grads[_DW_WEIGHT], grads[_LOW_SCALE],
         grads[_LOW_SHIFT]) = found.further  # fmt: skip
    for position, value in zip(
        (_DW_BIAS, _MID_WEIGHT, _MID_BIAS, _PW_WEIGHT, _PW_BIAS), found[1:], strict=True
    ):
        grads[position] = value
    return tuple(g if wanted else None for g, wanted in zip(grads, need, strict=True))
