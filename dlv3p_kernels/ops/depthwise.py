"""Depthwise (atrous) convolution: schema, fake tensors, autograd, public function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import dispatch, reference
from .._checks import Ints
from .._library import LIBRARY, for_each
from ..fusion import ChannelAffine
from . import depthwise_fused
from ._common import empty_in_format_of, wants_gradients
from ._depthwise import Geometry, onednn_is_ahead, output_size, tensors, unfit

_OP = "depthwise_conv2d"
_SCHEMA = (
    "(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation)"
    " -> Tensor"
)
_BACKWARD = (
    "depthwise_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, int[] stride,"
    " int[] padding, int[] dilation, bool need_input, bool need_weight) -> (Tensor, Tensor)"
)
ONEDNN = "onednn"
_ONEDNN_IS_AHEAD = "stock PyTorch's oneDNN forward is recorded ahead here; gradients are ours"


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    *,
    prologue: ChannelAffine | None = None,
    epilogue: ChannelAffine | None = None,
) -> Tensor:
    """Depthwise (atrous) convolution: every channel is convolved with its own kernel.

    Equivalent to `F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.size(1))`, with
    padding that may differ on each side. Works under autograd (to any order), autocast,
    `torch.compile(fullgraph=True)` and `torch.export`. The result has the memory format of `x`;
    no copy of `x` is made in either format.

    Args:
        x: input (N, C, H, W), channels_last (fastest) or contiguous; float32, bfloat16, float16,
            float64 on CPU. Sums are formed in float32 at least.
        weight: (C * multiplier, 1, kh, kw), same dtype and device as `x`.
        bias: (C * multiplier,) or None.
        stride: int or (height, width).
        padding: zeros around the input: int, (height, width), or (left, right, top, bottom) in
            the order of `F.pad`, as TensorFlow's SAME needs.
        dilation: atrous rate, int or (height, width).
        prologue: applied to `x` while it is read, such as the batch norm and the activation of the
            layer before: the result is that of `depthwise_conv2d(prologue(x), ...)`, with the
            padding still zeros, but `prologue(x)` never exists in memory.
        epilogue: applied to the result before it is written.

    Returns:
        (N, C * multiplier, H', W') with
        H' = (H + top + bottom - dilation * (kh - 1) - 1) // stride + 1.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, device or size does not fit; the message names the argument.

    Source: atrous separable convolution, Chen et al., "Encoder-Decoder with Atrous Separable
    Convolution for Semantic Image Segmentation", ECCV 2018, section 3.1.
    """
    if prologue is not None or epilogue is not None:
        return depthwise_fused.depthwise_conv2d_fused(
            x, weight, bias, stride, padding, dilation, prologue=prologue, epilogue=epilogue
        )
    call, arguments = _prepare(x, weight, bias, stride, padding, dilation)
    name = served_by(call)
    operator: Callable[..., Tensor] = reference.depthwise_conv2d
    if name == ONEDNN:
        # Without gradients the operator would only add its overhead to stock.
        if wants_gradients(*arguments[:3]):
            operator = torch.ops.dlv3p.depthwise_conv2d_onednn
    elif name != dispatch.REFERENCE:
        operator = dispatch.operators(name).depthwise_conv2d
    return operator(*arguments)


def _prepare(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints
) -> tuple[dispatch.Call, tuple[Any, ...]]:
    """The call, and its arguments as the operator takes them."""
    x, weight, bias = tensors(_OP, x, weight, bias)
    geometry = Geometry(_OP, x, weight, stride, padding, dilation)
    call = call_of(x, weight, geometry.padding, geometry.dilation)
    return call, (x, weight, bias, geometry.stride, geometry.padding, geometry.dilation)


def call_of(
    x: Tensor, weight: Tensor, padding: Sequence[int], dilation: Sequence[int]
) -> dispatch.Call:
    """What the choice of a back end depends on."""
    ahead = dispatch.no_gpu_record(x)
    if onednn_is_ahead(x, padding, dilation):
        ahead = _ONEDNN_IS_AHEAD
    return dispatch.Call(_OP, x, unfit(x, weight), ahead)


def served_by(call: dispatch.Call) -> str:
    """The back end of a call; ONEDNN where that is stock's forward with our gradients."""
    name = dispatch.choose(call)
    if name != dispatch.REFERENCE or dispatch.current() != "auto":
        return name
    is_onednn = call.stock_is_ahead == _ONEDNN_IS_AHEAD and not dispatch.why_not("cpu", call)
    return ONEDNN if is_onednn else name


def _explain(
    prologue: ChannelAffine | None, epilogue: ChannelAffine | None, **arguments: Any
) -> dispatch.Call:
    if prologue is not None or epilogue is not None:
        return depthwise_fused.call_of(prologue=prologue, epilogue=epilogue, **arguments)
    return _prepare(**arguments)[0]


dispatch.CALLS[depthwise_conv2d] = _explain


def _fake(x, weight, _bias, stride, padding, dilation):  # type: ignore[no-untyped-def]
    height, width = output_size(_OP, x, weight, stride, padding, dilation)
    return empty_in_format_of(x, (x.size(0), weight.size(0), height, width))


def _fake_backward(grad, x, weight, stride, padding, dilation, need_input, need_weight):  # type: ignore[no-untyped-def]
    return (
        empty_in_format_of(x, tuple(x.shape)) if need_input else x.new_empty(0),
        weight.new_empty(weight.shape) if need_weight else x.new_empty(0),
    )


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, _, ctx.stride, ctx.padding, ctx.dilation = inputs
    needs_weight, needs_input = ctx.needs_input_grad[1], ctx.needs_input_grad[0]
    ctx.save_for_backward(x if needs_weight or needs_input else None, weight)


def _backward(ops: Any, ctx, grad):  # type: ignore[no-untyped-def]
    x, weight = ctx.saved_tensors
    need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
    grad_input = grad_weight = None
    if need_input or need_weight:
        grad_input, grad_weight = ops.depthwise_conv2d_backward(
            grad, x, weight, ctx.stride, ctx.padding, ctx.dilation, need_input, need_weight
        )
    return (
        grad_input if need_input else None,
        grad_weight if need_weight else None,
        grad.sum((0, 2, 3)) if need_bias else None,
        None,
        None,
        None,
    )


def _setup_context_backward(ctx, inputs, output):  # type: ignore[no-untyped-def]
    grad, x, weight, ctx.stride, ctx.padding, ctx.dilation, ctx.gave_input, ctx.gave_weight = inputs
    ctx.save_for_backward(grad, x, weight)


def _double_backward(ops: Any, ctx, to_grad_input, to_grad_weight):  # type: ignore[no-untyped-def]
    """The input gradient is linear in (grad, weight), the weight gradient in (grad, x)."""
    grad, x, weight = ctx.saved_tensors
    geometry = (ctx.stride, ctx.padding, ctx.dilation)
    forward = ops.depthwise_conv2d
    backward = ops.depthwise_conv2d_backward
    need_grad, need_x, need_weight = ctx.needs_input_grad[:3]
    by_grad = by_x = by_weight = None
    if ctx.gave_input:
        if need_grad:
            by_grad = forward(to_grad_input, weight, None, *geometry)
        if need_weight:
            by_weight = backward(grad, to_grad_input, weight, *geometry, False, True)[1]
    if ctx.gave_weight:
        if need_grad:
            from_weight = forward(x, to_grad_weight, None, *geometry)
            by_grad = from_weight if by_grad is None else by_grad + from_weight
        if need_x:
            by_x = backward(grad, x, to_grad_weight, *geometry, True, False)[0]
    return by_grad, by_x, by_weight, None, None, None, None, None


def _register_forward(library: torch.library.Library, name: str) -> None:
    library.define(name + _SCHEMA)
    qualified = f"{library.ns}::{name}"
    torch.library.register_fake(qualified, _fake, lib=library)
    backward = partial(_backward, getattr(torch.ops, library.ns))
    torch.library.register_autograd(qualified, backward, setup_context=_setup_context, lib=library)


@for_each
def _register(library: torch.library.Library) -> None:
    _register_forward(library, _OP)
    library.define(_BACKWARD)
    qualified = f"{library.ns}::depthwise_conv2d_backward"
    torch.library.register_fake(qualified, _fake_backward, lib=library)
    torch.library.register_autograd(
        qualified,
        partial(_double_backward, getattr(torch.ops, library.ns)),
        setup_context=_setup_context_backward,
        lib=library,
    )


# The same convolution with stock PyTorch's forward, where that is fast, and our gradients.
_register_forward(LIBRARY, "depthwise_conv2d_onednn")

# Compiled kernels register under CPU and CUDA and win; every other device runs the definition.
for _name in ("depthwise_conv2d", "depthwise_conv2d_onednn"):
    LIBRARY.impl(_name, reference.depthwise_conv2d, "CompositeExplicitAutograd")
LIBRARY.impl(
    "depthwise_conv2d_backward", reference.depthwise_conv2d_backward, "CompositeExplicitAutograd"
)
