"""Depthwise convolution, plain and with its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import ACTIVATION_BY_CODE, channel_affine, per_channel, through_activation, wide


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Depthwise convolution: (N, C, H, W) and (C * multiplier, 1, kh, kw)."""
    x, symmetric = _split_padding(x, padding)
    return F.conv2d(x, weight, bias, stride, symmetric, dilation, groups=x.size(1))


def depthwise_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `depthwise_conv2d` by input and weight; an empty tensor where not needed."""
    padded, symmetric = _split_padding(x, padding)
    grad_padded, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, padded, weight, None, stride, symmetric, dilation, False, [0, 0],
        x.size(1), [need_input, need_weight, False],
    )  # fmt: skip
    if grad_padded is not None and padded is not x:
        left, _, top, _ = padding
        grad_padded = grad_padded[..., top : top + x.size(2), left : left + x.size(3)]
    return (
        grad_padded if grad_padded is not None else x.new_empty(0),
        grad_weight if grad_weight is not None else x.new_empty(0),
    )


def depthwise_conv2d_fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    in_activation: int,
    out_scale: Tensor | None,
    out_shift: Tensor | None,
    out_activation: int,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Affine and activation, depthwise convolution, affine and activation or channel statistics."""
    z = channel_affine(x, in_scale, in_shift, in_activation)
    raw = depthwise_conv2d(z, weight, bias, stride, padding, dilation)
    output = channel_affine(raw, out_scale, out_shift, out_activation)
    vector_dtype = torch.promote_types(x.dtype, torch.float32)
    if not statistics:
        return output, x.new_empty(0, dtype=vector_dtype), x.new_empty(0, dtype=vector_dtype)
    var, mean = torch.var_mean(output.to(vector_dtype), (0, 2, 3), correction=0)
    return output, mean, var


def depthwise_conv2d_fused_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    in_activation: int,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the convolution of `channel_affine(x, ...)` by x, weight, scale and shift."""
    exact = wide(x)
    argument = exact
    if in_scale is not None and in_shift is not None:
        argument = exact * per_channel(in_scale) + per_channel(in_shift)
    z = ACTIVATION_BY_CODE[in_activation](argument).to(x.dtype)
    grad_z, grad_weight = depthwise_conv2d_backward(
        grad, z, weight, stride, padding, dilation, need_input, need_weight
    )
    empty = exact.new_empty(0)
    if not need_input:
        return x.new_empty(0), grad_weight, empty, empty
    grad_argument = through_activation(wide(grad_z), argument, in_activation)
    if in_scale is None:
        return grad_argument.to(x.dtype), grad_weight, empty, empty
    grad_input = (grad_argument * per_channel(in_scale)).to(x.dtype)
    sums = ((grad_argument * exact).sum((0, 2, 3)), grad_argument.sum((0, 2, 3)))
    return grad_input, grad_weight, *sums


def _split_padding(x: Tensor, padding: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Convolutions take symmetric padding only; anything else is padded beforehand."""
    left, right, top, bottom = padding
    if left == right and top == bottom:
        return x, [top, left]
    return F.pad(x, list(padding)), [0, 0]
