"""Depthwise (atrous) convolution: schema, checks, fake tensors, autograd, public function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _checks, dispatch, reference
from .._checks import Ints
from .._library import LIBRARY

_OP = "depthwise_conv2d"

_SCHEMA = (
    "(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation)"
    " -> Tensor"
)
LIBRARY.define("depthwise_conv2d" + _SCHEMA)
# The same convolution with stock PyTorch's forward, where that is fast, and our gradients.
LIBRARY.define("depthwise_conv2d_onednn" + _SCHEMA)
LIBRARY.define(
    "depthwise_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, int[] stride,"
    " int[] padding, int[] dilation, bool need_input, bool need_weight) -> (Tensor, Tensor)"
)
# Compiled kernels register under CPU and CUDA and win; every other device runs the definition.
for _name in ("depthwise_conv2d", "depthwise_conv2d_onednn"):
    LIBRARY.impl(_name, reference.depthwise_conv2d, "CompositeExplicitAutograd")
LIBRARY.impl(
    "depthwise_conv2d_backward", reference.depthwise_conv2d_backward, "CompositeExplicitAutograd"
)


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
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

    Returns:
        (N, C * multiplier, H', W') with
        H' = (H + top + bottom - dilation * (kh - 1) - 1) // stride + 1.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, device or size does not fit; the message names the argument.

    Source: atrous separable convolution, Chen et al., "Encoder-Decoder with Atrous Separable
    Convolution for Semantic Image Segmentation", ECCV 2018, section 3.1.
    """
    x = _checks.tensor(_OP, "x", x, 4)
    weight = _checks.tensor(_OP, "weight", weight, 4)
    if bias is not None:
        bias = _checks.tensor(_OP, "bias", bias, 1)
    x, weight, bias = _checks.autocast(x, weight, bias)
    strides = _checks.integers(_OP, "stride", stride, (2,), 1)
    pads = _checks.padding(_OP, padding)
    rates = _checks.integers(_OP, "dilation", dilation, (2,), 1)
    _check_shapes(x, weight, bias)
    _output_size(x, weight, strides, pads, rates)
    route = dispatch.route(x, weight, pads, rates)
    operator: Callable[..., Tensor] = reference.depthwise_conv2d
    if route == "kernel":
        operator = torch.ops.dlv3p.depthwise_conv2d
    elif route == "onednn" and _wants_gradients(x, weight, bias):
        # Without gradients the operator would only add its overhead to stock.
        operator = torch.ops.dlv3p.depthwise_conv2d_onednn
    return operator(x, weight, bias, strides, pads, rates)


def _wants_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _check_shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    channels = x.size(1)
    _checks.same_kind(_OP, "weight", weight, "x", x)
    if channels == 0:
        raise ValueError(f"{_OP}: x must have at least one channel, got shape {tuple(x.shape)}")
    if weight.size(1) != 1 or weight.size(0) == 0 or weight.size(0) % channels:
        raise ValueError(
            f"{_OP}: weight must be (C * multiplier, 1, kh, kw) with C = {channels} channels of x,"
            f" got shape {tuple(weight.shape)}"
        )
    if weight.size(2) == 0 or weight.size(3) == 0:
        raise ValueError(f"{_OP}: weight must have a kernel, got shape {tuple(weight.shape)}")
    if bias is not None:
        _checks.same_kind(_OP, "bias", bias, "x", x)
        if bias.size(0) != weight.size(0):
            raise ValueError(
                f"{_OP}: bias must have {weight.size(0)} elements, one per output channel,"
                f" got {bias.size(0)}"
            )


def _output_size(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[int, int]:
    left, right, top, bottom = padding
    sizes = []
    for axis, before, after in ((0, top, bottom), (1, left, right)):
        span = dilation[axis] * (weight.size(2 + axis) - 1) + 1
        room = x.size(2 + axis) + before + after - span
        if room < 0:
            raise ValueError(
                f"{_OP}: output {('height', 'width')[axis]} would not be positive: x is"
                f" {x.size(2 + axis)} with padding ({before}, {after}), the dilated kernel spans"
                f" {span}"
            )
        sizes.append(room // stride[axis] + 1)
    return sizes[0], sizes[1]


def _empty_in_format_of(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """channels_last where the channels of `like` are adjacent in memory; contiguous otherwise."""
    nhwc = like.stride(1) == 1 and not like.is_contiguous()
    return like.new_empty(shape).to(
        memory_format=torch.channels_last if nhwc else torch.contiguous_format
    )


@torch.library.register_fake("dlv3p::depthwise_conv2d_onednn", lib=LIBRARY)
@torch.library.register_fake("dlv3p::depthwise_conv2d", lib=LIBRARY)
def _fake(x, weight, _bias, stride, padding, dilation):  # type: ignore[no-untyped-def]
    height, width = _output_size(x, weight, stride, padding, dilation)
    return _empty_in_format_of(x, (x.size(0), weight.size(0), height, width))


@torch.library.register_fake("dlv3p::depthwise_conv2d_backward", lib=LIBRARY)
def _fake_backward(grad, x, weight, stride, padding, dilation, need_input, need_weight):  # type: ignore[no-untyped-def]
    return (
        _empty_in_format_of(x, tuple(x.shape)) if need_input else x.new_empty(0),
        weight.new_empty(weight.shape) if need_weight else x.new_empty(0),
    )


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, _, ctx.stride, ctx.padding, ctx.dilation = inputs
    needs_weight, needs_input = ctx.needs_input_grad[1], ctx.needs_input_grad[0]
    ctx.save_for_backward(x if needs_weight or needs_input else None, weight)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weight = ctx.saved_tensors
    need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
    grad_input = grad_weight = None
    if need_input or need_weight:
        grad_input, grad_weight = torch.ops.dlv3p.depthwise_conv2d_backward(
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


def _double_backward(ctx, to_grad_input, to_grad_weight):  # type: ignore[no-untyped-def]
    """The input gradient is linear in (grad, weight), the weight gradient in (grad, x)."""
    grad, x, weight = ctx.saved_tensors
    geometry = (ctx.stride, ctx.padding, ctx.dilation)
    forward = torch.ops.dlv3p.depthwise_conv2d
    backward = torch.ops.dlv3p.depthwise_conv2d_backward
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


for _name in ("dlv3p::depthwise_conv2d", "dlv3p::depthwise_conv2d_onednn"):
    torch.library.register_autograd(_name, _backward, setup_context=_setup_context, lib=LIBRARY)
torch.library.register_autograd(
    "dlv3p::depthwise_conv2d_backward",
    _double_backward,
    setup_context=_setup_context_backward,
    lib=LIBRARY,
)
