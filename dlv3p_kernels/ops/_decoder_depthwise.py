"""The depthwise half of the decoder's convolution as operators of every namespace.

It reads the encoder output resized to the low-level map, and both side by side. A back end without
kernels for it makes both, by stock PyTorch, in front of its own depthwise convolution. On the CPU
the kernels of the whole convolution (`_decoder_operators`) leave nothing to do for these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ._common import empty_in_format_of, like_map, vector_dtype
from ._composed import Operator, register_composed
from ._depthwise import output_size
from ._norm_operators import IDENTITY

OP = "decoder_conv2d"
SOURCE = (
    "Tensor input, Tensor low_level, bool align_corners, bool encoder_first,"
    " Tensor? low_scale, Tensor? low_shift, int low_activation"
)
DEPTHWISE = f"{SOURCE}, Tensor dw_weight, Tensor? dw_bias, int[] padding, int[] dilation"
_STATISTICS = f"({DEPTHWISE}) -> (Tensor mean, Tensor var)"
_FORWARD = f"({DEPTHWISE}, Tensor? out_scale, Tensor? out_shift, int out_activation) -> Tensor"
_BACKWARD = (
    f"(Tensor grad, {SOURCE}, Tensor dw_weight, int[] padding, int[] dilation, bool need_input,"
    " bool need_low_level, bool need_weight)"
    " -> (Tensor grad_input, Tensor grad_low_level, Tensor grad_dw_weight,"
    " Tensor grad_low_scale, Tensor grad_low_shift)"
)
# Numbers of arguments: of the source, with those of the depthwise half.
SOURCE_END, DEPTHWISE_END = 7, 11
_STRIDE = [1, 1]


# --- composition ----------------------------------------------------------------------------------


def _convolution(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments as `depthwise_conv2d_fused` and its like take them."""
    source = reference.decoder_source(*arguments[:SOURCE_END])
    dw_weight, dw_bias, padding, dilation = arguments[SOURCE_END:]
    return source, dw_weight, dw_bias, _STRIDE, padding, dilation, None, None, IDENTITY


def _statistics(ops: Any, *arguments):  # type: ignore[no-untyped-def]
    return ops.depthwise_conv2d_statistics(*_convolution(arguments))


def _forward(ops: Any, *arguments):  # type: ignore[no-untyped-def]
    convolution = _convolution(arguments[:DEPTHWISE_END])
    return ops.depthwise_conv2d_fused(*convolution, *arguments[DEPTHWISE_END:], False)[0]


def _backward(ops: Any, grad, *arguments):  # type: ignore[no-untyped-def]
    x, low_level, align_corners, encoder_first, *low_affine = arguments[:SOURCE_END]
    dw_weight, padding, dilation, need_input, need_low_level, need_weight = arguments[SOURCE_END:]
    source = reference.decoder_source(*arguments[:SOURCE_END])
    need_source = need_input or need_low_level
    by_source, by_weight = ops.depthwise_conv2d_backward(
        grad, source, dw_weight, _STRIDE, padding, dilation, need_source, need_weight
    )
    vector = x.new_empty(0, dtype=vector_dtype(x))
    by_input, by_low_level = x.new_empty(0), x.new_empty(0)
    by_scale, by_shift = vector, vector.clone()
    sizes = [x.size(1), low_level.size(1)]
    parts = by_source.split(sizes if encoder_first else sizes[::-1], 1) if need_source else ()
    if need_input:
        by_input = _to_encoder(parts[0 if encoder_first else 1], x, align_corners)
    if need_low_level:
        by_low_level, by_scale, by_shift = _to_low_level(
            ops, parts[1 if encoder_first else 0], low_level, *low_affine
        )
    return by_input, by_low_level, by_weight, by_scale, by_shift


def _to_encoder(grad: Tensor, x: Tensor, align_corners: bool) -> Tensor:
    """The gradient by the encoder output from that by the resized one."""
    if x.shape[2:] == grad.shape[2:]:
        return like_map(x, grad)
    return like_map(
        x,
        torch.ops.aten.upsample_bilinear2d_backward(
            grad.contiguous(memory_format=_format(grad)), list(grad.shape[2:]), list(x.shape),
            align_corners,
        ),
    )  # fmt: skip


def _to_low_level(
    ops: Any, grad: Tensor, low_level: Tensor, scale: Tensor | None, shift: Tensor | None, code: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by the low-level map, and by scale and shift of what stands behind it."""
    vector = grad.new_empty(0, dtype=vector_dtype(grad))
    if scale is None and code == IDENTITY:
        return like_map(low_level, grad), vector, vector.clone()
    zero = low_level.new_zeros(low_level.size(1), dtype=vector_dtype(low_level))
    norm = (low_level, zero, torch.ones_like(zero), scale, shift, None, code)
    grad = like_map(low_level, grad)
    by_shift, by_scale = ops.batch_norm_backward_reduce(grad, *norm)
    by_low_level, _ = ops.batch_norm_backward_apply(grad, *norm, None, None, 1, False)
    if scale is None:
        by_scale, by_shift = vector, vector.clone()
    return by_low_level, by_scale, by_shift


def _format(t: Tensor) -> torch.memory_format:
    nhwc = t.stride(1) == 1 and not t.is_contiguous()
    return torch.channels_last if nhwc else torch.contiguous_format


# --- fake tensors ---------------------------------------------------------------------------------


def fake_vector(like: Tensor, size: int) -> Tensor:
    """A per-channel vector without values."""
    return like.new_empty(size, dtype=vector_dtype(like))


def fake_output(arguments: tuple[Any, ...], channels: int) -> Tensor:
    """A map of the convolution's size, in the format of the low-level map."""
    low_level = arguments[1]
    dw_weight, _, padding, dilation = arguments[SOURCE_END:DEPTHWISE_END]
    size = output_size(OP, low_level, dw_weight, _STRIDE, padding, dilation)
    return empty_in_format_of(low_level, (low_level.size(0), channels, *size))


def _fake_statistics(*arguments):  # type: ignore[no-untyped-def]
    channels = arguments[SOURCE_END].size(0)
    return fake_vector(arguments[0], channels), fake_vector(arguments[0], channels)


def _fake_forward(*arguments):  # type: ignore[no-untyped-def]
    return fake_output(arguments, arguments[SOURCE_END].size(0))


def fake_backward(_grad, *arguments):  # type: ignore[no-untyped-def]
    """The gradients without values; the wishes for them come last."""
    x, low_level, _, _, low_scale = arguments[:5]
    dw_weight = arguments[SOURCE_END]
    need_input, need_low_level, need_weight = arguments[-3:]
    affine = low_level.size(1) if need_low_level and low_scale is not None else 0
    return (
        empty_in_format_of(x, tuple(x.shape)) if need_input else x.new_empty(0),
        empty_in_format_of(low_level, tuple(low_level.shape))
        if need_low_level
        else low_level.new_empty(0),
        dw_weight.new_empty(dw_weight.shape if need_weight else 0),
        fake_vector(x, affine),
        fake_vector(x, affine),
    )


# --- registration ---------------------------------------------------------------------------------

register_composed(
    {
        "decoder_conv2d_statistics": Operator(_STATISTICS, _statistics, _fake_statistics),
        "decoder_depthwise": Operator(_FORWARD, _forward, _fake_forward),
        "decoder_depthwise_backward": Operator(_BACKWARD, _backward, fake_backward),
    },
    derived=OP,
)
