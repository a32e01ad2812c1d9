"""Launchers of the depthwise convolution; arguments as in `dlv3p_kernels.reference`.

Stride 1 with up to 9 taps runs the kernels of `depthwise_lines`, everything else those of
`depthwise_taps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import launch
from .depthwise_geometry import IDENTITY, Geometry, Lines, map_sizes, tap_major
from .depthwise_lines import depthwise_lines_fwd_kernel
from .depthwise_taps import depthwise_taps_kernel


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
        None, None, IDENTITY, None, None, IDENTITY, False,
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
    geometry = Geometry.of(weight, stride, padding, dilation)
    nhwc = launch.is_nhwc(x)
    batch, channels, height, width = x.shape
    result = launch.empty_map(x, (batch, channels, *geometry.output_size(height, width)), nhwc)
    empty = x.new_empty(0, dtype=torch.float32)
    if not result.numel():
        nothing = empty.new_full((channels,), torch.nan) if statistics else empty
        return result, nothing, nothing.clone()
    vectors = [launch.vector(v) for v in (bias, in_scale, in_shift, out_scale, out_shift)]
    with torch.cuda.device_of(x):
        partials = forward(
            geometry, launch.dense(x, nhwc), weight, result, vectors,
            {"IN_ACTIVATION": in_activation, "OUT_ACTIVATION": out_activation},
            statistics, nhwc,
        )  # fmt: skip
        if partials is None:
            return result, empty, empty.clone()
        return result, *launch.merged_moments(partials)


def depthwise_conv2d_statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    in_activation: int,
) -> tuple[Tensor, Tensor]:
    """Statistics of the convolution's result, which is not stored."""
    geometry = Geometry.of(weight, stride, padding, dilation)
    if not x.size(0):
        nothing = x.new_full((x.size(1),), torch.nan, dtype=torch.float32)
        return nothing, nothing.clone()
    nhwc = launch.is_nhwc(x)
    vectors = [launch.vector(v) for v in (bias, in_scale, in_shift)]
    activations = {"IN_ACTIVATION": in_activation, "OUT_ACTIVATION": IDENTITY}
    with torch.cuda.device_of(x):
        partials = forward(
            geometry, launch.dense(x, nhwc), weight, None, [*vectors, None, None], activations,
            True, nhwc,
        )  # fmt: skip
        assert partials is not None
        return launch.merged_moments(partials)


def forward(
    geometry: Geometry,
    x: Tensor,
    weight: Tensor,
    result: Tensor | None,
    vectors: list[Tensor | None],
    activations: dict[str, int],
    statistics: bool,
    nhwc: bool,
) -> Tensor | None:
    """Writes `result`, where there is one; the workspace of the statistics comes back.

    It may be a range of the channels of a dense map.
    """
    batch, channels = x.shape[:2]
    height, width = geometry.output_size(x.size(2), x.size(3))
    lines = Lines.of(height, geometry.dilation[0]) if geometry.in_lines else None
    lanes = batch * width * (lines.phases * lines.segments if lines else height)
    written = () if result is None else (result,)
    tile = launch.tile_of(nhwc, channels, lanes, launch.FORWARD_PER_THREAD, x, *written)
    partials = (
        launch.workspace(x, tile.programs, launch.MOMENT_ROWS, channels) if statistics else None
    )
    bias, *affines = vectors
    whole = channels if result is None else launch.whole_channels(result, nhwc)
    unit, sizes = map_sizes(x, (height, width), whole)
    constants: dict[str, Any] = {
        "UNIT": unit, "KH": geometry.kernel[0], "KW": geometry.kernel[1],
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
            x, tap_major(weight), bias, result, *affines, None, partials,
            *sizes, *geometry.stride, *offsets, *geometry.dilation,
            DOWN_H=1, DOWN_W=1, BACKWARD=False, **constants,
        )  # fmt: skip
    return partials
