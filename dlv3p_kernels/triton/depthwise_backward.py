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
        convolution = Convolution(
            Geometry.of(weight, stride, padding, dilation), launch.channel_range(grad, nhwc),
            launch.dense(x, nhwc), weight, (launch.vector(in_scale), launch.vector(in_shift)),
            in_activation, nhwc,
        )  # fmt: skip
        with torch.cuda.device_of(x):
            backward(convolution, results)
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


class Convolution(NamedTuple):
    """What backward reads.

    Attributes:
        geometry: of the convolution.
        grad: by its output; may be a range of the channels of a dense map.
        x: its input, dense.
        weight: (channels, 1, kh, kw).
        prologue: scale and shift in front of it.
        activation: behind these.
        nhwc: the format of both maps.
    """

    geometry: Geometry
    grad: Tensor
    x: Tensor
    weight: Tensor
    prologue: tuple[Tensor | None, Tensor | None]
    activation: int
    nhwc: bool

    def tile(self, lanes: int, per_thread: int) -> launch.Tile:
        """The tile for `lanes` lanes."""
        return launch.tile_of(self.nhwc, self.x.size(1), lanes, per_thread, self.x, self.grad)

    def sizes(self, source: Tensor, result: Tensor) -> tuple[int, tuple[int, ...]]:
        """The unit of channels, and the sizes as the kernels take them."""
        return map_sizes(source, result.shape[2:], launch.whole_channels(self.grad, self.nhwc))


def backward(c: Convolution, results: Gradients) -> None:
    """All gradients that `results` has room for."""
    if c.geometry.in_lines:
        _in_lines(c, results)
        return
    if results.by_input.numel():
        _input_by_taps(c, results)
    if results.by_weight.numel():
        _weight_by_taps(c, results.by_weight)


def _in_lines(c: Convolution, results: Gradients) -> None:
    """All gradients in one pass over the output's gradient and the input."""
    batch, channels, height, width = c.x.shape
    lines = Lines.of(height, c.geometry.dilation[0])
    lanes = batch * width * lines.phases * lines.segments
    tile = c.tile(lanes, launch.BACKWARD_PER_THREAD)
    partials = launch.workspace(c.x, tile.programs, c.geometry.taps + 2, channels)
    # The walk goes down from the first row that sees a pixel, whose tap is the last one.
    offsets = [
        p - d * (k - 1)
        for p, d, k in zip(c.geometry.before, c.geometry.dilation, c.geometry.kernel, strict=True)
    ]
    unit, sizes = c.sizes(c.grad, c.x)
    depthwise_lines_bwd_kernel[tile.grid](
        c.grad, c.weight.contiguous(), c.x, results.by_input, *c.prologue, partials,
        *sizes, *offsets, *c.geometry.dilation, lines.phases, lines.segments,
        UNIT=unit, KH=c.geometry.kernel[0], KW=c.geometry.kernel[1],
        ROWS=lines.rows, IN_ACTIVATION=c.activation,
        NEED_INPUT=bool(results.by_input.numel()), NEED_WEIGHT=bool(results.by_weight.numel()),
        **tile.constants, **launch.OPTIONS,
    )  # fmt: skip
    if results.by_weight.numel():
        launch.summed(partials, 0, results.by_weight.view(channels, -1).t())
    if results.by_affine.numel():
        launch.summed(partials, c.geometry.taps, results.by_affine)


def _input_by_taps(c: Convolution, results: Gradients) -> None:
    batch, channels, height, width = c.x.shape
    tile = c.tile(batch * height * width, launch.FORWARD_PER_THREAD)
    partials = launch.workspace(c.x, tile.programs, 2, channels)
    unit, sizes = c.sizes(c.grad, c.x)
    depthwise_taps_kernel[tile.grid](
        c.grad, tap_major(c.weight), None, results.by_input, *c.prologue, None, None, c.x, partials,
        *sizes, 1, 1, *c.geometry.before, *(-d for d in c.geometry.dilation),
        DOWN_H=c.geometry.stride[0], DOWN_W=c.geometry.stride[1], BACKWARD=True,
        UNIT=unit, KH=c.geometry.kernel[0], KW=c.geometry.kernel[1],
        IN_ACTIVATION=c.activation, OUT_ACTIVATION=IDENTITY, STATISTICS=False,
        **tile.constants, **launch.OPTIONS,
    )  # fmt: skip
    if results.by_affine.numel():
        launch.summed(partials, 0, results.by_affine)


def _weight_by_taps(c: Convolution, by_weight: Tensor) -> None:
    batch, channels, height, width = c.grad.shape
    tile = c.tile(batch * height * width, launch.BACKWARD_PER_THREAD)
    taps = min(c.geometry.kernel[1], _TAPS_AT_ONCE)
    groups = triton.cdiv(c.geometry.taps, taps)
    grid = (*tile.grid, groups)
    partials = launch.workspace(c.x, tile.programs, groups * taps, channels)
    unit, sizes = c.sizes(c.x, c.grad)
    depthwise_taps_wgrad_kernel[grid](
        c.x, c.grad, *c.prologue, partials, *sizes,
        *c.geometry.stride, *(-p for p in c.geometry.before), *c.geometry.dilation,
        UNIT=unit, KH=c.geometry.kernel[0], KW=c.geometry.kernel[1], TAPS=taps,
        IN_ACTIVATION=c.activation, **tile.constants, **launch.OPTIONS,
    )  # fmt: skip
    launch.summed(partials, 0, by_weight.view(channels, -1).t())
