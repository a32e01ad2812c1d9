"""Separable convolution: depthwise, then pointwise, each with what stands behind it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..fusion import ChannelAffine, Epilogue
from ._common import ACTIVATIONS, channel_affine, per_channel
from .depthwise import depthwise_conv2d, depthwise_conv2d_fused
from .norm import batch_norm_act, batch_norm_stats


def depthwise_conv2d_statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    in_activation: int,
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of a depthwise convolution's result."""
    before = (in_scale, in_shift, in_activation)
    _, mean, var = depthwise_conv2d_fused(
        x, weight, bias, stride, padding, dilation, *before, None, None, 0, True
    )
    return mean, var


def separable_conv2d_fused(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    in_activation: int,
    mid_scale: Tensor | None,
    mid_shift: Tensor | None,
    mid_activation: int,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    out_scale: Tensor | None,
    out_shift: Tensor | None,
    out_activation: int,
    residual: Tensor | None,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Everything between input and output; the statistics are those before the last affine."""
    before = (in_scale, in_shift, in_activation)
    between = (mid_scale, mid_shift, mid_activation)
    depthwise, empty, _ = depthwise_conv2d_fused(
        x, dw_weight, dw_bias, stride, padding, dilation, *before, *between, False
    )
    raw = F.conv2d(depthwise, pw_weight, pw_bias)
    mean, var = batch_norm_stats(raw) if statistics else (empty, empty.clone())
    output = channel_affine(raw, out_scale, out_shift, out_activation)
    return output if residual is None else output + residual, mean, var


def separable_conv2d(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    prologue: ChannelAffine | None,
    dw_epilogue: Epilogue | None,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    pw_epilogue: Epilogue | None,
    residual: Tensor | None,
) -> Tensor:
    """The whole of stock layers; updates the running statistics in place."""
    x = behind(x, prologue)
    x = behind(depthwise_conv2d(x, dw_weight, dw_bias, stride, padding, dilation), dw_epilogue)
    x = behind(F.conv2d(x, pw_weight, pw_bias), pw_epilogue)
    return x if residual is None else x + residual


def behind(x: Tensor, epilogue: Epilogue | None) -> Tensor:
    """What stands behind a convolution, or in front of one."""
    if epilogue is None:
        return x
    if isinstance(epilogue, ChannelAffine):
        activate = ACTIVATIONS[epilogue.activation]
        if epilogue.scale is None or epilogue.shift is None:
            return activate(x)
        z = x * per_channel(epilogue.scale) + per_channel(epilogue.shift)
        return activate(z).to(x.dtype)
    return batch_norm_act(x, epilogue)
