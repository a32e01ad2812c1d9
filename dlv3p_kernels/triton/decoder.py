"""Launchers of the depthwise half of the decoder's convolution, as `ops._decoder_depthwise` has it.

The result has the channels of both maps. Those of the low-level map, and those of an encoder output
that needs no resize, are an ordinary depthwise convolution that writes a range of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import depthwise, launch
from .decoder_source import Source, Walk, resize_sizes
from .decoder_walk import decoder_depthwise_fwd_kernel
from .depthwise_geometry import IDENTITY, Geometry

_STRIDE = (1, 1)


def decoder_depthwise(*arguments: Any) -> Tensor:
    """The depthwise result with all that stands behind it."""
    *source, weight, bias, padding, dilation, scale, shift, activation = arguments
    maps = Source.of(*source)
    geometry = Geometry.of(weight, _STRIDE, padding, dilation)
    shape = (maps.low_level.size(0), weight.size(0), *geometry.output_size(*maps.size))
    result = launch.empty_map(maps.low_level, shape, maps.nhwc)
    _forward(maps, geometry, weight, result, [bias, scale, shift], activation)
    return result


def decoder_conv2d_statistics(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Statistics of the depthwise result, which is not stored."""
    *source, weight, bias, padding, dilation = arguments
    geometry = Geometry.of(weight, _STRIDE, padding, dilation)
    parts = _forward(Source.of(*source), geometry, weight, None, [bias, None, None], IDENTITY)
    with torch.cuda.device_of(weight):
        means, variances = zip(*map(launch.merged_moments, parts), strict=True)
    return torch.cat(means), torch.cat(variances)


def _forward(
    source: Source,
    geometry: Geometry,
    weight: Tensor,
    result: Tensor | None,
    vectors: list[Tensor | None],
    activation: int,
) -> list[Any]:
    """Writes `result`; without it the workspaces of the statistics come back, part by part."""
    partials = []
    for part in source.parts:
        channels = part.channels
        bias, *affine = (None if v is None else v[channels].contiguous() for v in vectors)
        to = None if result is None else result[:, channels]
        with torch.cuda.device_of(part.map):
            if source.resizes(part):
                made = _resized(source, geometry, weight[channels], to, [bias, *affine], activation)
            else:
                *before, code = part.prologue
                activations = {"IN_ACTIVATION": code, "OUT_ACTIVATION": activation}
                made = depthwise.forward(
                    geometry, part.map, weight[channels], to, [bias, *before, *affine], activations,
                    result is None, source.nhwc,
                )  # fmt: skip
        partials.append(made)
    return partials


def _resized(
    source: Source,
    geometry: Geometry,
    weight: Tensor,
    result: Tensor | None,
    vectors: list[Tensor | None],
    activation: int,
) -> Tensor | None:
    """The channels of the encoder output."""
    x, nhwc = source.encoder, source.nhwc
    size = geometry.output_size(*source.size)
    walk = Walk.of(source, geometry, size, result is None)
    whole = x.size(1) if result is None else launch.whole_channels(result, nhwc)
    unit, sizes = resize_sizes(source, whole, size)
    partials = None
    if result is None:
        partials = launch.workspace(x, walk.grid[0], launch.MOMENT_ROWS, x.size(1))
    bias, scale, shift = vectors
    lanes = walk.grid[0] * walk.lanes
    decoder_depthwise_fwd_kernel[walk.grid](
        x, weight.contiguous(), bias, result, scale, shift, partials,
        *sizes, *(axis.scale for axis in source.axes), *(-p for p in geometry.before),
        *geometry.dilation, walk.phases, walk.segments, walk.rows,
        UNIT=unit, KH=geometry.kernel[0], KW=geometry.kernel[1], OUT_ACTIVATION=activation,
        STATISTICS=result is None, ALIGN=source.align_corners, NHWC=nhwc, LANES=walk.lanes,
        CHANNELS=walk.channels, WIDE=launch.is_wide(lanes, x, x if result is None else result),
        **launch.OPTIONS,
    )  # fmt: skip
    return partials
