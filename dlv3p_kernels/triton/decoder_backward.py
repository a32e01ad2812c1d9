"""Launchers of the gradients of the decoder's depthwise convolution; see `decoder`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops._common import like_map
from . import launch
from .decoder_gather import decoder_depthwise_bwd_kernel
from .decoder_source import Gather, Part, Source, resize_sizes
from .depthwise_backward import Convolution, Gradients, backward
from .depthwise_geometry import Geometry


def decoder_depthwise_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Gradients by both maps, the weight, and scale and shift in front of the low-level map."""
    grad, *given, weight, padding, dilation, need_input, need_low_level, need_weight = arguments
    source = Source.of(*given)
    geometry = Geometry.of(weight, (1, 1), padding, dilation)
    grad = launch.dense(grad, source.nhwc)
    by_weight = weight.new_empty(weight.shape if need_weight else 0)
    found = {}
    for part in source.parts:
        needed = need_input if part.is_encoder else need_low_level
        by_part = by_weight[part.channels] if need_weight else by_weight
        results = _empty_gradients(source, part, needed, by_part)
        found[part.is_encoder] = results
        if not (needed or need_weight):
            continue
        by_output, taps = grad[:, part.channels], weight[part.channels]
        with torch.cuda.device_of(grad):
            if source.resizes(part):
                _resized(source, geometry, by_output, taps, results)
            else:
                scale, shift, code = part.prologue
                convolution = Convolution(
                    geometry, by_output, part.map, taps, (scale, shift), code, source.nhwc
                )
                backward(convolution, results)
    encoder, low_level = found[True], found[False]
    by_maps = (
        like_map(t, by_map) if need and by_map.stride() != t.stride() else by_map
        for t, by_map, need in (
            (given[0], encoder.by_input, need_input),
            (given[1], low_level.by_input, need_low_level),
        )
    )
    by_scale, by_shift = (row.clone() for row in low_level.by_affine)
    return *by_maps, by_weight, by_scale, by_shift


def _empty_gradients(source: Source, part: Part, needed: bool, by_weight: Tensor) -> Gradients:
    """What the gradients of a part are written to, by its map and its prologue only if needed."""
    x = part.map
    affine = x.size(1) if needed and part.prologue[0] is not None else 0
    return Gradients(
        launch.empty_map(x, tuple(x.shape), source.nhwc) if needed else x.new_empty(0),
        by_weight,
        x.new_empty(2, affine, dtype=torch.float32),
    )


def _resized(
    source: Source, geometry: Geometry, grad: Tensor, weight: Tensor, results: Gradients
) -> None:
    """Both gradients of the channels of the encoder output in one pass."""
    x, nhwc = source.encoder, source.nhwc
    gather = Gather.of(source, geometry)
    unit, sizes = resize_sizes(source, launch.whole_channels(grad, nhwc), grad.shape[2:])
    rows, columns = source.axes
    partials = launch.workspace(x, gather.grid[0], geometry.taps, x.size(1))
    lanes = gather.grid[0] * gather.lanes
    decoder_depthwise_bwd_kernel[gather.grid](
        grad, x, weight.contiguous(), results.by_input, partials,
        *sizes, rows.scale, rows.inverse, columns.scale, columns.inverse, *geometry.before,
        geometry.dilation[0], gather.bands, gather.band_rows,
        UNIT=unit, KH=geometry.kernel[0], KW=geometry.kernel[1], DILATION_W=geometry.dilation[1],
        COLUMNS=gather.columns, NEED_INPUT=bool(results.by_input.numel()),
        NEED_WEIGHT=bool(results.by_weight.numel()), ALIGN=source.align_corners, NHWC=nhwc,
        LANES=gather.lanes, CHANNELS=gather.channels, WIDE=launch.is_wide(lanes, x, grad),
        **launch.OPTIONS,
    )  # fmt: skip
    if results.by_weight.numel():
        launch.summed(partials, 0, results.by_weight.view(x.size(1), -1).t())
