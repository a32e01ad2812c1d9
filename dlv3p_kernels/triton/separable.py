"""Launchers of the separable convolution; arguments as in `dlv3p_kernels.reference`.

`separable_plan` decides whether the fused kernel runs. Where it does not, depthwise convolution
with its epilogue, torch's GEMM and the batch-norm kernels do the same one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..ops._separable_operators import composed
from . import launch, separable_plan
from .depthwise_geometry import Geometry
from .separable_kernels import (
    TABLE_CHANNELS,
    TABLE_EXTRA,
    separable_finish_kernel,
    separable_fwd_kernel,
    separable_table_kernel,
)
from .separable_plan import BLOCK_K, Plan

_WARPS, _STAGES = 8, 2
OPTIONS = {"num_warps": _WARPS, "num_stages": _STAGES, "enable_fp_fusion": True}
# Tile of the kernel that adds up parts.
FINISH_PIXELS, FINISH_CHANNELS = 32, 128
_INT32_ELEMENTS = 1 << 31


class _Maps(NamedTuple):
    """What is read and written, dense and channels_last."""

    source: Tensor
    residual: Tensor | None
    result: Tensor


class _End(NamedTuple):
    """What stands behind the product."""

    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    activation: int
    statistics: bool

    @property
    def vectors(self) -> tuple[Tensor | None, ...]:
        """As the kernels take them."""
        return tuple(launch.vector(v) for v in (self.bias, self.scale, self.shift))

    @property
    def constants(self) -> dict[str, Any]:
        return {"OUT_ACTIVATION": self.activation, "STATISTICS": self.statistics}


def separable_conv2d_fused(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    in_activation: int,
    mid_scale: Tensor | None,
    mid_shift: Tensor | None,
    mid_activation: int,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    out_scale: Tensor | None,
    out_shift: Tensor | None,
    out_activation: int,
    residual: Tensor | None,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Everything between input and output; the statistics are those before the last affine."""
    geometry = Geometry.of(dw_weight, stride, padding, dilation)
    shape = (x.size(0), pw_weight.size(0), *geometry.output_size(x.size(2), x.size(3)))
    nhwc = launch.is_nhwc(x)
    plan = None
    multiprocessors, capability = separable_plan.multiprocessors_of(x)
    if separable_plan.fits(x, dw_weight, shape, nhwc):
        plan = separable_plan.plan_of(geometry, x.shape, shape, x.element_size(), capability)
    if plan is None or not plan.fuses:
        return composed(
            torch.ops.dlv3p_triton, x, dw_weight, dw_bias, stride, padding, dilation,
            in_scale, in_shift, in_activation, mid_scale, mid_shift, mid_activation,
            pw_weight, pw_bias, out_scale, out_shift, out_activation, residual, statistics,
        )  # fmt: skip
    maps = _Maps(
        launch.dense(x, nhwc),
        None if residual is None else launch.dense(residual, nhwc),
        launch.empty_map(x, shape, nhwc),
    )
    end = _End(pw_bias, out_scale, out_shift, out_activation, statistics)
    with torch.cuda.device_of(x):
        table = _table(dw_weight, dw_bias, in_scale, in_shift, mid_scale, mid_shift)
        activations = {
            "PROLOGUE": in_scale is not None,
            "IN_ACTIVATION": in_activation,
            "MID_ACTIVATION": mid_activation,
        }
        partials = _run(
            geometry, plan, maps, table, pw_weight.contiguous(), end, activations, multiprocessors
        )
        if partials is None:
            empty = x.new_empty(0, dtype=torch.float32)
            return maps.result, empty, empty.clone()
        return maps.result, *launch.merged_moments(partials)


def _table(
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    mid_scale: Tensor | None,
    mid_shift: Tensor | None,
) -> Tensor:
    """All per-channel values of the first half, float32 (rows, channels rounded up)."""
    channels, taps = dw_weight.size(0), dw_weight.size(2) * dw_weight.size(3)
    programs = triton.cdiv(channels, TABLE_CHANNELS.value)
    table = dw_weight.new_empty(
        taps + TABLE_EXTRA.value, programs * TABLE_CHANNELS.value, dtype=torch.float32
    )
    vectors = [launch.vector(v) for v in (dw_bias, in_scale, in_shift, mid_scale, mid_shift)]
    separable_table_kernel[(programs,)](
        dw_weight.contiguous(), *vectors, table, channels,
        TAPS=taps, **launch.OPTIONS,
    )  # fmt: skip
    return table


def _run(
    geometry: Geometry,
    plan: Plan,
    maps: _Maps,
    table: Tensor,
    pw_weight: Tensor,
    end: _End,
    activations: dict[str, Any],
    multiprocessors: int,
) -> Tensor | None:
    """Writes the result; the workspace of the statistics comes back."""
    batch, in_channels, *source_size = maps.source.shape
    out_channels, *result_size = maps.result.shape[1:]
    out_unit, in_unit = launch.unit_of(out_channels), launch.unit_of(in_channels)
    parts, steps = plan.parts(in_channels, multiprocessors)
    grid = (*plan.tiles, parts)
    h, w = plan.blocks
    wide = _wide(geometry, plan, maps)
    sums = partials = None
    if parts > 1:
        sums = maps.result.new_empty(parts, maps.result.numel(), dtype=torch.float32)
    elif end.statistics:
        partials = launch.workspace(maps.source, grid[0], launch.MOMENT_ROWS, out_channels)
    separable_fwd_kernel[grid](
        maps.source, table, pw_weight, *end.vectors, maps.residual, maps.result, sums, partials,
        batch, in_channels // in_unit, out_channels // out_unit, *source_size, *result_size,
        *geometry.stride, *(-p for p in geometry.before), *geometry.dilation, h.step, w.step,
        h.phases, w.phases, h.segments, w.segments, steps,
        IN_UNIT=in_unit, OUT_UNIT=out_unit, KH=geometry.kernel[0], KW=geometry.kernel[1],
        EVEN=in_channels % BLOCK_K == 0, BLOCK_K=BLOCK_K, BLOCK_N=plan.block_n, WIDE=wide,
        **plan.blocks.constants, **activations, **end.constants, **OPTIONS,
    )  # fmt: skip
    return partials if sums is None else _finish(sums, maps, end, wide)


def _finish(sums: Tensor, maps: _Maps, end: _End, wide: bool) -> Tensor | None:
    """Adds up the (parts, elements) of the result, and does what stands behind."""
    channels = maps.result.size(1)
    pixels = maps.result.numel() // channels
    grid = (triton.cdiv(pixels, FINISH_PIXELS), triton.cdiv(channels, FINISH_CHANNELS))
    partials = None
    if end.statistics:
        partials = launch.workspace(maps.source, grid[0], launch.MOMENT_ROWS, channels)
    unit = launch.unit_of(channels)
    separable_finish_kernel[grid](
        sums, *end.vectors, maps.residual, maps.result, partials,
        pixels, channels // unit, sums.size(0), OUT_UNIT=unit,
        PIXELS=FINISH_PIXELS, CHANNELS=FINISH_CHANNELS, WIDE=wide,
        **end.constants, **launch.OPTIONS,
    )  # fmt: skip
    return partials


def _wide(geometry: Geometry, plan: Plan, maps: _Maps) -> bool:
    """Whether offsets need 64 bits: taps outside the map have some as well."""
    source, height = maps.source, plan.blocks.height
    row = source.size(3) * source.size(1)
    beyond = (height.last + 1) * geometry.dilation[0] + geometry.before[0]
    lanes = plan.tiles[0] * separable_plan.TILE_ROWS
    largest = max(source.numel() + beyond * row, maps.result.numel(), lanes)
    return largest >= _INT32_ELEMENTS
