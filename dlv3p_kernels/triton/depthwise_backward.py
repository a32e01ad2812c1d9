"""Launchers of the gradients of the depthwise convolution; see `depthwise`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import launch
from .depthwise_geometry import IDENTITY, Geometry, Lines, map_sizes, tap_major
from .depthwise_lines import depthwise_lines_bwd_kernel
from .depthwise_taps import depthwise_taps_kernel, depthwise_taps_wgrad_kernel

_TAPS_AT_ONCE = 8


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
    """Gradients by input and weight; an empty tensor where not needed."""
    return depthwise_conv2d_fused_backward(
        grad, x, weight, stride, padding, dilation, None, None, IDENTITY, need_input, need_weight
    )[:2]


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
    """Gradients by input, weight, and scale and shift of the prologue."""
    nhwc = launch.is_nhwc(x)
    channels = x.size(1)
    results = Gradients(
        launch.empty_map(x, tuple(x.shape), nhwc) if need_input else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format)
        if need_weight
        else weight.new_empty(0),
        x.new_empty(2 if need_input and in_scale is not None else 0, channels, dtype=torch.float32),
    )
    if not x.numel():
        results.by_weight.zero_()
        results.by_affine.zero_()
    elif need_input or need_weight:
        geometry = Geometry.of(weight, stride, padding, dilation)
        prologue = (launch.vector(in_scale), launch.vector(in_shift))
        with torch.cuda.device_of(x):
            backward(
                geometry, launch.channel_range(grad, nhwc), launch.dense(x, nhwc), weight, prologue,
                in_activation, results, nhwc,
            )  # fmt: skip
    if not results.by_affine.numel():
        empty = x.new_empty(0, dtype=torch.float32)
        return results.by_input, results.by_weight, empty, empty.clone()
    by_scale, by_shift = (row.clone() for row in results.by_affine)
    return results.by_input, results.by_weight, by_scale, by_shift


class Gradients(NamedTuple):
    """What backward fills; without elements where it is not wanted."""

    by_input: Tensor
    by_weight: Tensor
    by_affine: Tensor  # (2, channels): scale, shift


def backward(
    geometry: Geometry,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    prologue: tuple[Tensor | None, Tensor | None],
    activation: int,
    results: Gradients,
    nhwc: bool,
) -> None:
    """Fills `results`. `grad` may be a range of the channels of a dense map; `x` is dense."""
    run = _backward_in_lines if geometry.in_lines else _backward_by_taps
    run(geometry, grad, x, weight, prologue, activation, results, nhwc)


def _backward_in_lines(
    geometry: Geometry,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    prologue: tuple[Tensor | None, Tensor | None],
    activation: int,
    results: Gradients,
    nhwc: bool,
) -> None:
    """All gradients in one pass over the output's gradient and the input."""
    batch, channels, height, width = x.shape
    lines = Lines.of(height, geometry.dilation[0])
    lanes = batch * width * lines.phases * lines.segments
    tile = launch.tile_of(nhwc, channels, lanes, launch.BACKWARD_PER_THREAD, x, grad)
    partials = launch.workspace(x, tile.programs, geometry.taps + 2, channels)
    # The walk goes down from the first row that sees a pixel, whose tap is the last one.
    offsets = [
        p - d * (k - 1)
        for p, d, k in zip(geometry.before, geometry.dilation, geometry.kernel, strict=True)
    ]
    unit, sizes = map_sizes(grad, x.shape[2:], launch.whole_channels(grad, nhwc))
    depthwise_lines_bwd_kernel[tile.grid](
        grad, weight.contiguous(), x, results.by_input, *prologue, partials,
        *sizes, *offsets, *geometry.dilation, lines.phases, lines.segments,
        UNIT=unit, KH=geometry.kernel[0], KW=geometry.kernel[1],
        ROWS=lines.rows, IN_ACTIVATION=activation,
        NEED_INPUT=bool(results.by_input.numel()), NEED_WEIGHT=bool(results.by_weight.numel()),
        **tile.constants, **launch.OPTIONS,
    )  # fmt: skip
    if results.by_weight.numel():
        launch.summed(partials, 0, results.by_weight.view(channels, -1).t())
    if results.by_affine.numel():
        launch.summed(partials, geometry.taps, results.by_affine)


def _backward_by_taps(
    geometry: Geometry,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    prologue: tuple[Tensor | None, Tensor | None],
    activation: int,
    results: Gradients,
    nhwc: bool,
) -> None:
    """One pass for each gradient."""
    if results.by_input.numel():
        _input_gradient(geometry, grad, x, weight, prologue, activation, results, nhwc)
    if results.by_weight.numel():
        _weight_gradient(geometry, grad, x, prologue, activation, results.by_weight, nhwc)


def _input_gradient(
    geometry: Geometry,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    prologue: tuple[Tensor | None, Tensor | None],
    activation: int,
    results: Gradients,
    nhwc: bool,
) -> None:
    batch, channels, height, width = x.shape
    lanes = batch * height * width
    tile = launch.tile_of(nhwc, channels, lanes, launch.FORWARD_PER_THREAD, x, grad)
    partials = launch.workspace(x, tile.programs, 2, channels)
    unit, sizes = map_sizes(grad, x.shape[2:], launch.whole_channels(grad, nhwc))
    depthwise_taps_kernel[tile.grid](
        grad, tap_major(weight), None, results.by_input, *prologue, None, None, x, partials,
        *sizes, 1, 1, *geometry.before, *(-d for d in geometry.dilation),
        DOWN_H=geometry.stride[0], DOWN_W=geometry.stride[1], BACKWARD=True,
        UNIT=unit, KH=geometry.kernel[0], KW=geometry.kernel[1],
        IN_ACTIVATION=activation, OUT_ACTIVATION=IDENTITY, STATISTICS=False,
        **tile.constants, **launch.OPTIONS,
    )  # fmt: skip
    if results.by_affine.numel():
        launch.summed(partials, 0, results.by_affine)


def _weight_gradient(
    geometry: Geometry,
    grad: Tensor,
    x: Tensor,
    prologue: tuple[Tensor | None, Tensor | None],
    activation: int,
    by_weight: Tensor,
    nhwc: bool,
) -> None:
    batch, channels, height, width = grad.shape
    lanes = batch * height * width
    tile = launch.tile_of(nhwc, channels, lanes, launch.BACKWARD_PER_THREAD, x, grad)
    taps = min(geometry.kernel[1], _TAPS_AT_ONCE)
    groups = triton.cdiv(geometry.taps, taps)
    grid = (*tile.grid, groups)
    partials = launch.workspace(x, tile.programs, groups * taps, channels)
    unit, sizes = map_sizes(x, grad.shape[2:], launch.whole_channels(grad, nhwc))
    depthwise_taps_wgrad_kernel[grid](
        x, grad, *prologue, partials, *sizes,
        *geometry.stride, *(-p for p in geometry.before), *geometry.dilation,
        UNIT=unit, KH=geometry.kernel[0], KW=geometry.kernel[1], TAPS=taps,
        IN_ACTIVATION=activation, **tile.constants, **launch.OPTIONS,
    )  # fmt: skip
    launch.summed(partials, 0, by_weight.view(channels, -1).t())
