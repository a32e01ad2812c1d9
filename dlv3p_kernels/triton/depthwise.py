"""Launchers of the depthwise ops; arguments as in `dlv3p_kernels.reference`.

Stride 1 with up to 9 taps runs the kernels of `depthwise_lines`, everything else those of
`depthwise_taps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import launch
from .depthwise_lines import depthwise_lines_bwd_kernel, depthwise_lines_fwd_kernel
from .depthwise_taps import depthwise_taps_kernel, depthwise_taps_wgrad_kernel

# More weights than these do not fit in the registers beside everything else.
_MOST_LINE_TAPS = 9
# Rows of a line that are made in one walk: ROWS + KH - 1 are read.
_MOST_LINE_ROWS = 4
_TAPS_AT_ONCE = 8
_BACKWARD_PER_THREAD = 4
_IDENTITY = 0


class Geometry(NamedTuple):
    """Arguments of a convolution; `padding` is (left, right, top, bottom)."""

    kernel: tuple[int, int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]

    @property
    def taps(self) -> int:
        """Taps of the kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def in_lines(self) -> bool:
        """Whether the kernels of `depthwise_lines` serve."""
        return tuple(self.stride) == (1, 1) and self.taps <= _MOST_LINE_TAPS

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output."""
        left, right, top, bottom = self.padding
        room = (height + top + bottom, width + left + right)
        rows, columns = (
            (r - d * (k - 1) - 1) // s + 1
            for r, d, k, s in zip(room, self.dilation, self.kernel, self.stride, strict=True)
        )
        return rows, columns

    @property
    def before(self) -> tuple[int, int]:
        """Padding on top and left."""
        return self.padding[2], self.padding[0]


def _geometry(weight: Tensor, *sizes: Sequence[int]) -> Geometry:
    return Geometry((weight.size(2), weight.size(3)), *sizes)


def _sizes(batch: int, channels: int, source: Tensor, result: Tensor) -> tuple[int, ...]:
    return (
        batch, channels // launch.unit_of(channels),
        source.size(2), source.size(3), result.size(2), result.size(3),
    )  # fmt: skip


class Lines(NamedTuple):
    """How the rows of a map are cut into segments of lines."""

    rows: int
    phases: int
    segments: int

    @classmethod
    def of(cls, height: int, dilation: int) -> Lines:
        """The fewest segments of nearly equal length."""
        phases = min(dilation, height)
        length = triton.cdiv(height, dilation)
        segments = triton.cdiv(length, _MOST_LINE_ROWS)
        return cls(triton.cdiv(length, segments), phases, segments)


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Depthwise convolution."""
    return depthwise_conv2d_fused(
        x, weight, bias, stride, padding, dilation,
        None, None, _IDENTITY, None, None, _IDENTITY, False,
    )[0]  # fmt: skip


def depthwise_conv2d_fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    in_activation: int,
    out_scale: Tensor | None,
    out_shift: Tensor | None,
    out_activation: int,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Prologue, depthwise convolution, epilogue or statistics of the result."""
    geometry = _geometry(weight, stride, padding, dilation)
    nhwc = launch.is_nhwc(x)
    batch, channels, height, width = x.shape
    result = launch.empty_map(x, (batch, channels, *geometry.output_size(height, width)), nhwc)
    empty = x.new_empty(0, dtype=torch.float32)
    if not result.numel():
        nothing = empty.new_full((channels,), torch.nan) if statistics else empty
        return result, nothing, nothing.clone()
    vectors = [launch.vector(v) for v in (bias, in_scale, in_shift, out_scale, out_shift)]
    with torch.cuda.device_of(x):
        partials = _forward(
            geometry, launch.dense(x, nhwc), weight, result, vectors,
            {"IN_ACTIVATION": in_activation, "OUT_ACTIVATION": out_activation},
            statistics, nhwc,
        )  # fmt: skip
        if partials is None:
            return result, empty, empty.clone()
        return result, *launch.merged_moments(partials)


def _forward(
    geometry: Geometry,
    x: Tensor,
    weight: Tensor,
    result: Tensor,
    vectors: list[Tensor | None],
    activations: dict[str, int],
    statistics: bool,
    nhwc: bool,
) -> Tensor | None:
    """Writes `result`; the workspace of the statistics comes back."""
    batch, channels, height, width = result.shape
    lines = Lines.of(height, geometry.dilation[0]) if geometry.in_lines else None
    lanes = batch * width * (lines.phases * lines.segments if lines else height)
    tile = launch.tile_of(nhwc, channels, lanes, launch.vector_elements(x), x, result)
    partials = (
        launch.workspace(x, tile.programs, launch.MOMENT_ROWS, channels) if statistics else None
    )
    bias, *affines = vectors
    sizes = _sizes(batch, channels, x, result)
    constants: dict[str, Any] = {
        "UNIT": launch.unit_of(channels), "KH": geometry.kernel[0], "KW": geometry.kernel[1],
        "STATISTICS": statistics, **activations, **tile.constants, **launch.OPTIONS,
    }  # fmt: skip
    offsets = [-p for p in geometry.before]
    if lines:
        depthwise_lines_fwd_kernel[tile.grid](
            x, weight.contiguous(), bias, result, *affines, partials,
            *sizes, *offsets, *geometry.dilation, lines.phases, lines.segments,
            ROWS=lines.rows, **constants,
        )  # fmt: skip
    else:
        depthwise_taps_kernel[tile.grid](
            x, _tap_major(weight), bias, result, *affines, None, partials,
            *sizes, *geometry.stride, *offsets, *geometry.dilation,
            DOWN_H=1, DOWN_W=1, BACKWARD=False, **constants,
        )  # fmt: skip
    return partials


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
        grad, x, weight, stride, padding, dilation, None, None, _IDENTITY, need_input, need_weight
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
    results = _Gradients(
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
        geometry = _geometry(weight, stride, padding, dilation)
        prologue = (launch.vector(in_scale), launch.vector(in_shift))
        run = _backward_in_lines if geometry.in_lines else _backward_by_taps
        with torch.cuda.device_of(x):
            run(
                geometry, launch.dense(grad, nhwc), launch.dense(x, nhwc), weight, prologue,
                in_activation, results, nhwc,
            )  # fmt: skip
    if not results.by_affine.numel():
        empty = x.new_empty(0, dtype=torch.float32)
        return results.by_input, results.by_weight, empty, empty.clone()
    by_scale, by_shift = (row.clone() for row in results.by_affine)
    return results.by_input, results.by_weight, by_scale, by_shift


class _Gradients(NamedTuple):
    """What backward fills; without elements where it is not wanted."""

    by_input: Tensor
    by_weight: Tensor
    by_affine: Tensor  # (2, channels): scale, shift


def _backward_in_lines(
    geometry: Geometry,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    prologue: tuple[Tensor | None, Tensor | None],
    activation: int,
    results: _Gradients,
    nhwc: bool,
) -> None:
    """All gradients in one pass over the output's gradient and the input."""
    batch, channels, height, width = x.shape
    lines = Lines.of(height, geometry.dilation[0])
    lanes = batch * width * lines.phases * lines.segments
    tile = launch.tile_of(nhwc, channels, lanes, _BACKWARD_PER_THREAD, x, grad)
    partials = launch.workspace(x, tile.programs, geometry.taps + 2, channels)
    # The walk goes down from the first row that sees a pixel, whose tap is the last one.
    offsets = [
        p - d * (k - 1)
        for p, d, k in zip(geometry.before, geometry.dilation, geometry.kernel, strict=True)
    ]
    depthwise_lines_bwd_kernel[tile.grid](
        grad, weight.contiguous(), x, results.by_input, *prologue, partials,
        *_sizes(batch, channels, grad, x), *offsets, *geometry.dilation,
        lines.phases, lines.segments,
        UNIT=launch.unit_of(channels), KH=geometry.kernel[0], KW=geometry.kernel[1],
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
    results: _Gradients,
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
    results: _Gradients,
    nhwc: bool,
) -> None:
    batch, channels, height, width = x.shape
    lanes = batch * height * width
    tile = launch.tile_of(nhwc, channels, lanes, launch.vector_elements(x), x, grad)
    partials = launch.workspace(x, tile.programs, 2, channels)
    depthwise_taps_kernel[tile.grid](
        grad, _tap_major(weight), None, results.by_input, *prologue, None, None, x, partials,
        *_sizes(batch, channels, grad, x), 1, 1, *geometry.before, *(-d for d in geometry.dilation),
        DOWN_H=geometry.stride[0], DOWN_W=geometry.stride[1], BACKWARD=True,
        UNIT=launch.unit_of(channels), KH=geometry.kernel[0], KW=geometry.kernel[1],
        IN_ACTIVATION=activation, OUT_ACTIVATION=_IDENTITY, STATISTICS=False,
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
    tile = launch.tile_of(nhwc, channels, lanes, _BACKWARD_PER_THREAD, x, grad)
    taps = min(geometry.kernel[1], _TAPS_AT_ONCE)
    groups = triton.cdiv(geometry.taps, taps)
    partials = launch.workspace(x, tile.programs, groups * taps, channels)
    depthwise_taps_wgrad_kernel[(*tile.grid, groups)](
        x, grad, *prologue, partials,
        *_sizes(batch, channels, x, grad),
        *geometry.stride, *(-p for p in geometry.before), *geometry.dilation,
        UNIT=launch.unit_of(channels), KH=geometry.kernel[0], KW=geometry.kernel[1], TAPS=taps,
        IN_ACTIVATION=activation, **tile.constants, **launch.OPTIONS,
    )  # fmt: skip
    launch.summed(partials, 0, by_weight.view(channels, -1).t())


def _tap_major(weight: Tensor) -> Tensor:
    """(KH * KW, channels), so that the weights of neighbouring channels are adjacent."""
    return weight.reshape(weight.size(0), -1).t().contiguous()
