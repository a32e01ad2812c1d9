"""Depthwise convolution with its neighbours fused in: prologue, epilogue, channel statistics."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import dispatch, reference
from .._checks import Ints
from .._library import LIBRARY, for_each
from ..fusion import ChannelAffine
from ._common import channel_affine, empty_in_format_of, vector_dtype
from ._depthwise import Geometry, output_size, tensors, unfit
from ._depthwise_fused_autograd import backward, setup_context

_OP = "depthwise_conv2d_fused"
_SCHEMA = (
    "depthwise_conv2d_fused(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding,"
    " int[] dilation, Tensor? in_scale, Tensor? in_shift, int in_activation, Tensor? out_scale,"
    " Tensor? out_shift, int out_activation, bool statistics) -> (Tensor, Tensor, Tensor)"
)
_BACKWARD_SCHEMA = (
    "depthwise_conv2d_fused_backward(Tensor grad_output, Tensor input, Tensor weight, int[] stride,"
    " int[] padding, int[] dilation, Tensor? in_scale, Tensor? in_shift, int in_activation,"
    " bool need_input, bool need_weight) -> (Tensor, Tensor, Tensor, Tensor)"
)


def depthwise_conv2d_fused(
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
    """`depthwise_conv2d` with a prologue or an epilogue; documented there."""
    call, arguments = _prepare(
        "depthwise_conv2d", x, weight, bias, stride, padding, dilation, prologue, epilogue
    )
    output: Tensor = _operator(call)(*arguments, False)[0]
    return output


def depthwise_conv2d_with_statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    *,
    prologue: ChannelAffine | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Depthwise convolution, and the mean and variance of its result for the next batch norm.

    The statistics are gathered while the result is made, not by reading it again. Equivalent to

        y = depthwise_conv2d(x, weight, bias, stride, padding, dilation, prologue=prologue)
        var, mean = torch.var_mean(y.float(), (0, 2, 3), correction=0)

    They are formed from differences to a value of the channel and stay right where the mean is far
    larger than the standard deviation. Works under autograd, through the statistics too.

    Args:
        x: input (N, C, H, W).
        weight: as for `depthwise_conv2d`.
        bias: the same.
        stride: the same.
        padding: the same.
        dilation: the same.
        prologue: the same.

    Returns:
        The result (N, C, H', W'), its mean and its biased variance over N, H' and W', both (C,)
        float32 (float64 for float64). To merge those of several processes, use Chan et al.,
        "Algorithms for computing the sample variance", 1983, formula 2.1.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, device or size does not fit; the message names the argument.

    Source: batch norm, Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training
    by Reducing Internal Covariate Shift", ICML 2015, algorithm 1.
    """
    call, arguments = _prepare(
        "depthwise_conv2d_with_statistics",
        x, weight, bias, stride, padding, dilation, prologue, None,
    )  # fmt: skip
    output, mean, var = _operator(call)(*arguments, True)
    return output, mean, var


def _prepare(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    prologue: ChannelAffine | None,
    epilogue: ChannelAffine | None,
) -> tuple[dispatch.Call, tuple[Any, ...]]:
    """The call, and its arguments as the operator takes them up to `statistics`."""
    x, weight, bias = tensors(op, x, weight, bias)
    geometry = Geometry(op, x, weight, stride, padding, dilation)
    before = channel_affine(op, "prologue", prologue, x.size(1), x)
    behind = channel_affine(op, "epilogue", epilogue, weight.size(0), x)
    call = dispatch.Call(op, x, unfit(x, weight), dispatch.no_gpu_record(x))
    sizes = (geometry.stride, geometry.padding, geometry.dilation)
    return call, (x, weight, bias, *sizes, *before, *behind)


def _operator(call: dispatch.Call) -> Any:
    name = dispatch.choose(call)
    if name == dispatch.REFERENCE:
        return reference.depthwise_conv2d_fused
    return dispatch.operators(name).depthwise_conv2d_fused


def call_of(
    prologue: ChannelAffine | None, epilogue: ChannelAffine | None = None, **arguments: Any
) -> dispatch.Call:
    """What the choice of a back end depends on."""
    return _prepare("depthwise_conv2d", prologue=prologue, epilogue=epilogue, **arguments)[0]


dispatch.CALLS[depthwise_conv2d_with_statistics] = call_of


def _fake(x, weight, _bias, stride, padding, dilation, *affines_and_statistics):  # type: ignore[no-untyped-def]
    height, width = output_size(_OP, x, weight, stride, padding, dilation)
    vector = weight.size(0) if affines_and_statistics[-1] else 0
    return (
        empty_in_format_of(x, (x.size(0), weight.size(0), height, width)),
        x.new_empty(vector, dtype=vector_dtype(x)),
        x.new_empty(vector, dtype=vector_dtype(x)),
    )


def _fake_backward(  # type: ignore[no-untyped-def]
    _grad,
    x,
    weight,
    _stride,
    _padding,
    _dilation,
    in_scale,
    _in_shift,
    _act,
    need_input,
    need_weight,
):
    vector = x.size(1) if need_input and in_scale is not None else 0
    return (
        empty_in_format_of(x, tuple(x.shape)) if need_input else x.new_empty(0),
        weight.new_empty(weight.shape) if need_weight else x.new_empty(0),
        x.new_empty(vector, dtype=vector_dtype(x)),
        x.new_empty(vector, dtype=vector_dtype(x)),
    )


@for_each
def _register(library: torch.library.Library) -> None:
    library.define(_SCHEMA)
    library.define(_BACKWARD_SCHEMA)
    for name, fake in ((_OP, _fake), (f"{_OP}_backward", _fake_backward)):
        torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)
    torch.library.register_autograd(
        f"{library.ns}::{_OP}",
        partial(backward, getattr(torch.ops, library.ns)),
        setup_context=setup_context,
        lib=library,
    )


LIBRARY.impl(_OP, reference.depthwise_conv2d_fused, "CompositeExplicitAutograd")
LIBRARY.impl(
    f"{_OP}_backward", reference.depthwise_conv2d_fused_backward, "CompositeExplicitAutograd"
)
