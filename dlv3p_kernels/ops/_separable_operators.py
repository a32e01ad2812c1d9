"""The operators of the separable convolution in every namespace: schemas, fakes, derivatives.

`separable_conv2d_fused` is the kernel; `separable_conv2d` is what autograd derives. A back end that
has no kernel of its own for them composes them of its depthwise convolution and a GEMM.
"""

from __future__ import annotations

from typing import Any

import torch

from ._common import empty_in_format_of, vector_dtype
from ._composed import Operator, register_composed
from ._depthwise import output_size
from ._epilogue import Stage
from ._norm_operators import IDENTITY
from ._pointwise import pointwise
from ._separable_gradients import PW_WEIGHT, Halves, gradients

OP = "separable_conv2d"
_DEPTHWISE = (
    "Tensor input, Tensor dw_weight, Tensor? dw_bias, int[] stride, int[] padding, int[] dilation,"
    " Tensor? in_scale, Tensor? in_shift, int in_activation"
)
_STATISTICS = f"({_DEPTHWISE}) -> (Tensor mean, Tensor var)"
_FUSED = (
    f"({_DEPTHWISE}, Tensor? mid_scale, Tensor? mid_shift, int mid_activation,"
    " Tensor pw_weight, Tensor? pw_bias, Tensor? out_scale, Tensor? out_shift,"
    " int out_activation, Tensor? residual, bool statistics)"
    " -> (Tensor output, Tensor mean, Tensor var)"
)
_SEPARABLE = (
    f"({_DEPTHWISE}, Tensor? mid_mean, Tensor? mid_invstd, Tensor? mid_weight,"
    " Tensor? mid_bias, int mid_activation, bool mid_by_batch, str group,"
    " Tensor pw_weight, Tensor? pw_bias, bool statistics)"
    " -> (Tensor output, Tensor mean, Tensor var)"
)


# --- composition ----------------------------------------------------------------------------------


def _statistics(ops: Any, *arguments):  # type: ignore[no-untyped-def]
    _, mean, var = ops.depthwise_conv2d_fused(*arguments, None, None, IDENTITY, True)
    return mean, var


def composed(ops: Any, x, *arguments):  # type: ignore[no-untyped-def]
    """`separable_conv2d_fused` of the other operators of a namespace."""
    *depthwise, pw_weight, pw_bias = arguments[:13]
    maps = ops.depthwise_conv2d_fused(x, *depthwise, False)[0]
    return composed_pointwise(ops, maps, pw_weight, pw_bias, *arguments[13:])


def composed_pointwise(ops: Any, maps, pw_weight, pw_bias, *behind):  # type: ignore[no-untyped-def]
    """Its pointwise half, from the depthwise results with all that stands behind them."""
    out_scale, out_shift, out_activation, residual, statistics = behind
    output = pointwise(maps, pw_weight, pw_bias)
    empty = output.new_empty(0, dtype=vector_dtype(output))
    mean, var = ops.batch_norm_stats(output) if statistics else (empty, empty.clone())
    if out_scale is not None or out_activation != IDENTITY or residual is not None:
        zero = output.new_zeros(output.size(1), dtype=vector_dtype(output))
        scale = torch.ones_like(zero) if out_scale is None else out_scale
        norm = (zero, scale, None, out_shift)
        added = residual if out_activation == IDENTITY else None
        output = ops.batch_norm_apply(output, *norm, added, out_activation)
        if residual is not None and added is None:
            output = output + residual
    return output, mean, var


def _forward(ops: Any, x, *arguments):  # type: ignore[no-untyped-def]
    (*depthwise, mid_mean, mid_invstd, mid_weight, mid_bias, mid_activation, _by_batch, _group_name,
     pw_weight, pw_bias, statistics) = arguments  # fmt: skip
    mid = Stage(mid_mean, mid_invstd, mid_weight, mid_bias).folded
    return ops.separable_conv2d_fused(
        x, *depthwise, *mid, mid_activation, pw_weight, pw_bias, None, None, IDENTITY, None,
        statistics,
    )  # fmt: skip


# --- fake tensors ---------------------------------------------------------------------------------


def _fake_statistics(x, weight, *_):  # type: ignore[no-untyped-def]
    vector = x.new_empty(weight.size(0), dtype=vector_dtype(x))
    return vector, torch.empty_like(vector)


def _fake(x, dw_weight, _bias, stride, padding, dilation, pw_weight, statistics):  # type: ignore[no-untyped-def]
    height, width = output_size(OP, x, dw_weight, stride, padding, dilation)
    channels = pw_weight.size(0)
    vector = x.new_empty(channels if statistics else 0, dtype=vector_dtype(x))
    output = empty_in_format_of(x, (x.size(0), channels, height, width))
    return output, vector, torch.empty_like(vector)


def _fake_fused(*arguments):  # type: ignore[no-untyped-def]
    return _fake(*arguments[:6], arguments[12], arguments[-1])


def _fake_separable(*arguments):  # type: ignore[no-untyped-def]
    return _fake(*arguments[:6], arguments[PW_WEIGHT], arguments[-1])


# --- derivatives ----------------------------------------------------------------------------------


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    """Keep the input and vectors: neither the depthwise result nor the output."""
    (x, dw_weight, dw_bias, *ctx.geometry, in_scale, in_shift, ctx.in_activation,
     mid_mean, mid_invstd, mid_weight, mid_bias, ctx.mid_activation, ctx.mid_by_batch, ctx.group,
     pw_weight, _pw_bias, _statistics) = inputs  # fmt: skip
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(
        x, dw_weight, dw_bias, in_scale, in_shift, mid_mean, mid_invstd, mid_weight, mid_bias,
        pw_weight,
    )  # fmt: skip


def _backward(ops: Any, ctx, grad, *_statistics):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():
        raise RuntimeError(
            "separable_conv2d: derivatives of derivatives are not implemented by the kernels;"
            " compute them within dk.backend('reference')"
        )
    (x, dw_weight, dw_bias, in_scale, in_shift, *mid, pw_weight) = ctx.saved_tensors
    halves = Halves(
        x, dw_weight, dw_bias, tuple(ctx.geometry), (in_scale, in_shift, ctx.in_activation),
        tuple(mid), ctx.mid_activation, ctx.mid_by_batch, ctx.group, pw_weight,
    )  # fmt: skip
    return gradients(ops, grad, halves, ctx.needs_input_grad)


# --- registration ---------------------------------------------------------------------------------

register_composed(
    {
        "depthwise_conv2d_statistics": Operator(_STATISTICS, _statistics, _fake_statistics),
        "separable_conv2d_fused": Operator(_FUSED, composed, _fake_fused),
        OP: Operator(_SEPARABLE, _forward, _fake_separable, _backward, _setup_context),
    },
    derived=OP,
)
