"""The operators that derive a separable convolution piece by piece, in every namespace.

Only the CPU has kernels for them, and only they are called (`serve`): composed of other operators,
as the definitions below are, the two passes would compute the depthwise half once more than
`_separable_gradients` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._library import LIBRARY
from ._common import empty_in_format_of, vector_dtype
from ._composed import Operator, register_composed
from ._norm_operators import IDENTITY
from ._pointwise import pointwise_input_gradient
from ._two_passes import composed_first, fake_first, norm_arguments

_ARGUMENTS = (
    "Tensor grad, Tensor input, Tensor dw_weight, Tensor? dw_bias, int[] stride, int[] padding,"
    " int[] dilation, Tensor? in_scale, Tensor? in_shift, int in_activation, Tensor? mid_mean,"
    " Tensor? mid_invstd, Tensor? mid_weight, Tensor? mid_bias, int mid_activation,"
    " Tensor pw_weight"
)
_REDUCE = (
    f"({_ARGUMENTS}, bool need_weight, bool need_middle, bool keep)"
    " -> (Tensor grad_pw_weight, Tensor grad_mid_bias, Tensor grad_mid_weight, Tensor kept)"
)
_APPLY = (
    f"({_ARGUMENTS}, Tensor? kept, Tensor? mean_grad, Tensor? mean_product, bool need_input,"
    " bool need_weight) -> (Tensor grad_input, Tensor grad_dw_weight, Tensor grad_in_scale,"
    " Tensor grad_in_shift)"
)
# Rows of gradients that neighbouring pieces share: with more of them whole maps are cheaper.
_MOST_SHARED_ROWS = 4


def serve(ops: Any, x: Tensor, dw_weight: Tensor, geometry: Sequence[Any]) -> bool:
    """Whether the kernels are there and take the convolution."""
    stride, _, dilation = geometry
    native = ops.name == LIBRARY.ns and x.device.type == "cpu"
    shared = (dw_weight.size(2) - 1) * dilation[0]
    return bool(native and list(stride) == [1, 1] and shared <= _MOST_SHARED_ROWS)


def _middle(ops: Any, x, dw_weight, dw_bias, *arguments):  # type: ignore[no-untyped-def]
    """The depthwise result and all that stands behind it, as a norm takes them."""
    *convolution, mean, invstd, weight, bias, activation, _ = arguments
    raw = ops.depthwise_conv2d_fused(
        x, dw_weight, dw_bias, *convolution, None, None, IDENTITY, False
    )[0]
    return norm_arguments(raw, mean, invstd, weight, bias, activation)


def _reduce(ops: Any, grad, *all_arguments):  # type: ignore[no-untyped-def]
    *arguments, need_weight, need_middle, keep = all_arguments
    pw_weight = arguments[-1]
    found = composed_first(ops, grad, _middle(ops, *arguments), pw_weight, need_weight, need_middle)
    if not (need_middle and keep):
        return *found, grad.new_empty(0)
    return *found, pointwise_input_gradient(grad, pw_weight).permute(0, 2, 3, 1).flatten()


def _apply(ops: Any, grad, *all_arguments):  # type: ignore[no-untyped-def]
    *arguments, kept, mean_grad, mean_product, need_input, need_weight = all_arguments
    x, dw_weight, _, *convolution = arguments[:9]
    middle = _middle(ops, *arguments)
    if kept is None:
        grad = pointwise_input_gradient(grad, arguments[-1])
    else:
        batch, _, height, width = grad.shape
        grad = kept.view(batch, height, width, -1).permute(0, 3, 1, 2)
    grad, _ = ops.batch_norm_backward_apply(grad, *middle, mean_grad, mean_product, 1, False)
    return ops.depthwise_conv2d_fused_backward(
        grad, x, dw_weight, *convolution, need_input, need_weight
    )


def _fake_reduce(grad, *arguments):  # type: ignore[no-untyped-def]
    *_, pw_weight, need_weight, need_middle, keep = arguments
    kept = grad.numel() // grad.size(1) * pw_weight.size(1) if need_middle and keep else 0
    return *fake_first(pw_weight, need_weight, need_middle), grad.new_empty(kept)


def _fake_apply(_grad, x, dw_weight, *arguments):  # type: ignore[no-untyped-def]
    need_input, need_weight = arguments[-2:]
    in_scale = arguments[4]
    affine = need_input and in_scale is not None
    vector = x.new_empty(x.size(1) if affine else 0, dtype=vector_dtype(x))
    return (
        empty_in_format_of(x, tuple(x.shape)) if need_input else x.new_empty(0),
        dw_weight.new_empty(dw_weight.shape if need_weight else 0),
        vector,
        torch.empty_like(vector),
    )


register_composed(
    {
        "separable_conv2d_backward_reduce": Operator(_REDUCE, _reduce, _fake_reduce),
        "separable_conv2d_backward_apply": Operator(_APPLY, _apply, _fake_apply),
    },
    derived="separable_conv2d",
)
