"""The operators of the decoder's convolution in every namespace: schemas, fakes, compositions.

They read the encoder output resized to the low-level map, and both side by side, without making
that map. A back end that has no kernels for them composes them of its depthwise half
(`_decoder_depthwise`), norm and GEMM.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import _decoder_gradients
from ._composed import Operator, register_composed
from ._decoder_depthwise import (
    DEPTHWISE,
    DEPTHWISE_END,
    SOURCE_END,
    fake_backward,
    fake_output,
    fake_vector,
)
from ._decoder_depthwise import (
    OP as OP,
)
from ._epilogue import Stage
from ._norm_operators import IDENTITY
from ._pointwise import pointwise_input_gradient
from ._separable_operators import composed_pointwise
from ._two_passes import composed_first, fake_first, norm_arguments

_MIDDLE = (
    "Tensor? mid_mean, Tensor? mid_invstd, Tensor? mid_weight, Tensor? mid_bias, int mid_activation"
)
_RESULTS = "(Tensor output, Tensor mean, Tensor var)"
_FUSED = (
    f"({DEPTHWISE}, Tensor? mid_scale, Tensor? mid_shift, int mid_activation,"
    " Tensor pw_weight, Tensor? pw_bias, Tensor? out_scale, Tensor? out_shift,"
    f" int out_activation, bool statistics) -> {_RESULTS}"
)
_DECODER = (
    f"({DEPTHWISE}, {_MIDDLE}, bool mid_by_batch, str group,"
    f" Tensor pw_weight, Tensor? pw_bias, bool statistics) -> {_RESULTS}"
)
# Gradients by the pointwise weight and by bias and weight of the norm between the halves: all
# that has to be known before anything goes further back through that norm.
_REDUCE = (
    f"(Tensor grad, {DEPTHWISE}, {_MIDDLE}, Tensor pw_weight, bool need_weight,"
    " bool need_middle) -> (Tensor grad_pw_weight, Tensor grad_mid_bias,"
    " Tensor grad_mid_weight)"
)
# The means are those of the gradient behind the norm, and of it times the normalised result;
# without them the norm's statistics are constants.
_APPLY = (
    f"(Tensor grad, {DEPTHWISE}, {_MIDDLE}, Tensor pw_weight, Tensor? mean_grad,"
    " Tensor? mean_product, bool need_input, bool need_low_level, bool need_weight)"
    " -> (Tensor grad_input, Tensor grad_low_level, Tensor grad_dw_weight,"
    " Tensor grad_low_scale, Tensor grad_low_shift)"
)
# Number of arguments with those of the norm between the halves.
_MIDDLE_END = 16


# --- composition ----------------------------------------------------------------------------------


def _fused(ops: Any, *arguments):  # type: ignore[no-untyped-def]
    *rest, statistics = arguments
    halves = DEPTHWISE_END + 3
    maps = ops.decoder_depthwise(*rest[:halves])
    return composed_pointwise(ops, maps, *rest[halves:], None, statistics)


def _forward(ops: Any, *arguments):  # type: ignore[no-untyped-def]
    mean, invstd, weight, bias, activation = arguments[DEPTHWISE_END:_MIDDLE_END]
    _by_batch, _group, pw_weight, pw_bias, statistics = arguments[_MIDDLE_END:]
    middle = Stage(mean, invstd, weight, bias).folded
    return ops.decoder_conv2d_fused(
        *arguments[:DEPTHWISE_END], *middle, activation, pw_weight, pw_bias, None, None, IDENTITY,
        statistics,
    )  # fmt: skip


def _middle(ops: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The depthwise result and all that stands behind it, as a norm takes them."""
    raw = ops.decoder_depthwise(*arguments[:DEPTHWISE_END], None, None, IDENTITY)
    return norm_arguments(raw, *arguments[DEPTHWISE_END:_MIDDLE_END])


def _backward_reduce(ops: Any, grad, *arguments):  # type: ignore[no-untyped-def]
    return composed_first(ops, grad, _middle(ops, arguments), *arguments[_MIDDLE_END:])


def _backward_apply(ops: Any, grad, *arguments):  # type: ignore[no-untyped-def]
    dw_weight, _, padding, dilation = arguments[SOURCE_END:DEPTHWISE_END]
    pw_weight, *means, need_input, need_low_level, need_weight = arguments[_MIDDLE_END:]
    middle = _middle(ops, arguments)
    grad = pointwise_input_gradient(grad, pw_weight)
    grad, _ = ops.batch_norm_backward_apply(grad, *middle, *means, 1, False)
    del middle
    return ops.decoder_depthwise_backward(
        grad, *arguments[:SOURCE_END], dw_weight, padding, dilation, need_input, need_low_level,
        need_weight,
    )  # fmt: skip


# --- fake tensors ---------------------------------------------------------------------------------


def _fake_results(arguments: tuple[Any, ...], pw_weight: Tensor, statistics: bool):  # type: ignore[no-untyped-def]
    low_level = arguments[1]
    kept = pw_weight.size(0) if statistics else 0
    output = fake_output(arguments, pw_weight.size(0))
    return output, fake_vector(low_level, kept), fake_vector(low_level, kept)


def _fake_fused(*arguments):  # type: ignore[no-untyped-def]
    return _fake_results(arguments, arguments[DEPTHWISE_END + 3], arguments[-1])


def _fake_forward(*arguments):  # type: ignore[no-untyped-def]
    return _fake_results(arguments, arguments[_MIDDLE_END + 2], arguments[-1])


def _fake_reduce(_grad, *arguments):  # type: ignore[no-untyped-def]
    return fake_first(*arguments[_MIDDLE_END:])


# --- registration ---------------------------------------------------------------------------------

_DERIVED = (_decoder_gradients.backward, _decoder_gradients.setup_context)
register_composed(
    {
        "decoder_conv2d_fused": Operator(_FUSED, _fused, _fake_fused),
        OP: Operator(_DECODER, _forward, _fake_forward, *_DERIVED),
        "decoder_conv2d_backward_reduce": Operator(_REDUCE, _backward_reduce, _fake_reduce),
        "decoder_conv2d_backward_apply": Operator(_APPLY, _backward_apply, fake_backward),
    },
    derived=OP,
)
