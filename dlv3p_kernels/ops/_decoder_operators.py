"""The operators of the decoder's convolution in every namespace: schemas, fakes, compositions.

They read the encoder output resized to the low-level map, and both side by side, without making
that map. A back end that has no kernels for them makes it and composes them of stock PyTorch's
interpolation and its own depthwise convolution, norm and GEMM.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _decoder_gradients
from ._common import empty_in_format_of, like_map, vector_dtype
from ._composed import Operator, register_composed
from ._depthwise import output_size
from ._epilogue import Stage
from ._norm_operators import IDENTITY
from ._pointwise import pointwise_input_gradient
from ._two_passes import composed_first, fake_first, norm_arguments

OP = "decoder_conv2d"
_SOURCE = (
    "Tensor input, Tensor low_level, bool align_corners, bool encoder_first,"
    " Tensor? low_scale, Tensor? low_shift, int low_activation"
)
_DEPTHWISE = f"{_SOURCE}, Tensor dw_weight, Tensor? dw_bias, int[] padding, int[] dilation"
_MIDDLE = (
    "Tensor? mid_mean, Tensor? mid_invstd, Tensor? mid_weight, Tensor? mid_bias, int mid_activation"
)
_RESULTS = "(Tensor output, Tensor mean, Tensor var)"
_STATISTICS = f"({_DEPTHWISE}) -> (Tensor mean, Tensor var)"
_FUSED = (
    f"({_DEPTHWISE}, Tensor? mid_scale, Tensor? mid_shift, int mid_activation,"
    " Tensor pw_weight, Tensor? pw_bias, Tensor? out_scale, Tensor? out_shift,"
    f" int out_activation, bool statistics) -> {_RESULTS}"
)
_DECODER = (
    f"({_DEPTHWISE}, {_MIDDLE}, bool mid_by_batch, str group,"
    f" Tensor pw_weight, Tensor? pw_bias, bool statistics) -> {_RESULTS}"
)
# Gradients by the pointwise weight and by bias and weight of the norm between the halves: all
# that has to be known before anything goes further back through that norm.
_REDUCE = (
    f"(Tensor grad, {_DEPTHWISE}, {_MIDDLE}, Tensor pw_weight, bool need_weight,"
    " bool need_middle) -> (Tensor grad_pw_weight, Tensor grad_mid_bias,"
    " Tensor grad_mid_weight)"
)
# The means are those of the gradient behind the norm, and of it times the normalised result;
# without them the norm's statistics are constants.
_APPLY = (
    f"(Tensor grad, {_DEPTHWISE}, {_MIDDLE}, Tensor pw_weight, Tensor? mean_grad,"
    " Tensor? mean_product, bool need_input, bool need_low_level, bool need_weight)"
    " -> (Tensor grad_input, Tensor grad_low_level, Tensor grad_dw_weight,"
    " Tensor grad_low_scale, Tensor grad_low_shift)"
)
# Numbers of arguments: of the source, with those of the depthwise half, with those of the norm.
_SOURCE_END, _DEPTHWISE_END, _MIDDLE_END = 7, 11, 16


def _convolution(ops: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of the depthwise half as `separable_conv2d` and its like take them."""
    source = reference.decoder_source(*arguments[:_SOURCE_END])
    dw_weight, dw_bias, padding, dilation = arguments[_SOURCE_END:_DEPTHWISE_END]
    return source, dw_weight, dw_bias, [1, 1], padding, dilation, None, None, IDENTITY


# --- composition ----------------------------------------------------------------------------------


def _statistics(ops: Any, *arguments):  # type: ignore[no-untyped-def]
    return ops.depthwise_conv2d_statistics(*_convolution(ops, arguments))


def _fused(ops: Any, *arguments):  # type: ignore[no-untyped-def]
    *rest, statistics = arguments[_DEPTHWISE_END:]
    return ops.separable_conv2d_fused(*_convolution(ops, arguments), *rest, None, statistics)


def _forward(ops: Any, *arguments):  # type: ignore[no-untyped-def]
    mean, invstd, weight, bias, activation = arguments[_DEPTHWISE_END:_MIDDLE_END]
    _by_batch, _group, pw_weight, pw_bias, statistics = arguments[_MIDDLE_END:]
    middle = Stage(mean, invstd, weight, bias).folded
    return ops.decoder_conv2d_fused(
        *arguments[:_DEPTHWISE_END], *middle, activation, pw_weight, pw_bias, None, None, IDENTITY,
        statistics,
    )  # fmt: skip


def _middle(ops: Any, arguments: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
    """The source, and the depthwise result with all that stands behind it as a norm takes it."""
    convolution = _convolution(ops, arguments)
    raw = ops.depthwise_conv2d_fused(*convolution, None, None, IDENTITY, False)[0]
    return convolution[0], norm_arguments(raw, *arguments[_DEPTHWISE_END:_MIDDLE_END])


def _backward_reduce(ops: Any, grad, *arguments):  # type: ignore[no-untyped-def]
    _, middle = _middle(ops, arguments)
    return composed_first(ops, grad, middle, *arguments[_MIDDLE_END:])


def _backward_apply(ops: Any, grad, *arguments):  # type: ignore[no-untyped-def]
    (x, low_level, align_corners, encoder_first, *low_affine, dw_weight, _, padding,
     dilation) = arguments[:_DEPTHWISE_END]  # fmt: skip
    pw_weight, *means, need_input, need_low_level, need_weight = arguments[_MIDDLE_END:]
    source, middle = _middle(ops, arguments)
    grad = pointwise_input_gradient(grad, pw_weight)
    grad, _ = ops.batch_norm_backward_apply(grad, *middle, *means, 1, False)
    del middle
    need_source = need_input or need_low_level
    by_source, by_weight = ops.depthwise_conv2d_backward(
        grad, source, dw_weight, [1, 1], padding, dilation, need_source, need_weight
    )
    vector = x.new_empty(0, dtype=vector_dtype(x))
    by_input, by_low_level, by_scale, by_shift = (
        x.new_empty(0),
        x.new_empty(0),
        vector,
        vector.clone(),
    )
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


def _vector(like: Tensor, size: int) -> Tensor:
    return like.new_empty(size, dtype=vector_dtype(like))


def _fake_statistics(*arguments):  # type: ignore[no-untyped-def]
    channels = arguments[_SOURCE_END].size(0)
    return _vector(arguments[0], channels), _vector(arguments[0], channels)


def _fake_results(arguments: tuple[Any, ...], pw_weight: Tensor, statistics: bool):  # type: ignore[no-untyped-def]
    low_level = arguments[1]
    dw_weight, _, padding, dilation = arguments[_SOURCE_END:_DEPTHWISE_END]
    size = output_size(OP, low_level, dw_weight, [1, 1], padding, dilation)
    output = empty_in_format_of(low_level, (low_level.size(0), pw_weight.size(0), *size))
    kept = pw_weight.size(0) if statistics else 0
    return output, _vector(low_level, kept), _vector(low_level, kept)


def _fake_fused(*arguments):  # type: ignore[no-untyped-def]
    return _fake_results(arguments, arguments[_DEPTHWISE_END + 3], arguments[-1])


def _fake_forward(*arguments):  # type: ignore[no-untyped-def]
    return _fake_results(arguments, arguments[_MIDDLE_END + 2], arguments[-1])


def _fake_reduce(_grad, *arguments):  # type: ignore[no-untyped-def]
    return fake_first(*arguments[_MIDDLE_END:])


def _fake_apply(_grad, *arguments):  # type: ignore[no-untyped-def]
    x, low_level, _, _, low_scale = arguments[:5]
    dw_weight = arguments[_SOURCE_END]
    need_input, need_low_level, need_weight = arguments[-3:]
    affine = low_level.size(1) if need_low_level and low_scale is not None else 0
    return (
        empty_in_format_of(x, tuple(x.shape)) if need_input else x.new_empty(0),
        empty_in_format_of(low_level, tuple(low_level.shape))
        if need_low_level
        else low_level.new_empty(0),
        dw_weight.new_empty(dw_weight.shape if need_weight else 0),
        _vector(x, affine),
        _vector(x, affine),
    )


# --- registration ---------------------------------------------------------------------------------

_DERIVED = (_decoder_gradients.backward, _decoder_gradients.setup_context)
register_composed(
    {
        "decoder_conv2d_statistics": Operator(_STATISTICS, _statistics, _fake_statistics),
        "decoder_conv2d_fused": Operator(_FUSED, _fused, _fake_fused),
        OP: Operator(_DECODER, _forward, _fake_forward, *_DERIVED),
        "decoder_conv2d_backward_reduce": Operator(_REDUCE, _backward_reduce, _fake_reduce),
        "decoder_conv2d_backward_apply": Operator(_APPLY, _backward_apply, _fake_apply),
    },
    derived=OP,
)
