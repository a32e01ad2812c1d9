"""Launcher of the projection of a pyramid; arguments as in `ops._aspp_projection`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..ops._aspp_projection import composed
from . import launch
from .projection_kernel import MOST_MAPS, aspp_projection_fwd_kernel
from .separable_plan import block_n_of, multiprocessors_of

# Pixels of a program; half of them where programs would be fewer than multiprocessors.
BLOCK_M, BLOCK_K = 128, 64
OPTIONS = {**launch.OPTIONS, "num_warps": 8, "num_stages": 3}


def aspp_projection_fused(
    maps: list[Tensor],
    scale: Tensor | None,
    shift: Tensor | None,
    activation: int,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
) -> Tensor:
    """The pointwise convolution of all channels of `maps` behind norm and activation."""
    first = maps[0]
    if not fits(maps):
        return composed(torch.ops.dlv3p_triton, maps, scale, shift, activation, pw_weight, pw_bias)
    batch, channels, height, width = first.shape
    out_channels = pw_weight.size(0)
    result = launch.empty_map(first, (batch, out_channels, height, width), True)
    pixels = batch * height * width
    multiprocessors, capability = multiprocessors_of(first)
    block_n = block_n_of(out_channels, capability)
    n_tiles = triton.cdiv(out_channels, block_n)
    full = triton.cdiv(pixels, BLOCK_M) * n_tiles >= multiprocessors
    block_m = BLOCK_M if full else BLOCK_M // 2
    unit, out_unit = launch.unit_of(channels), launch.unit_of(out_channels)
    dense = [launch.dense(t, True) for t in maps]
    with torch.cuda.device_of(first):
        aspp_projection_fwd_kernel[(n_tiles, triton.cdiv(pixels, block_m))](
            *dense, *[None] * (MOST_MAPS - len(maps)), launch.vector(scale), launch.vector(shift),
            pw_weight.contiguous(), pw_bias, result, pixels, channels // unit,
            out_channels // out_unit,
            UNIT=unit, OUT_UNIT=out_unit, MAPS=len(maps), ACTIVATION=activation,
            EVEN=channels % BLOCK_K == 0, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=BLOCK_K,
            WIDE=launch.is_wide(pixels + block_m, result, *dense), **OPTIONS,
        )  # fmt: skip
    return result


def fits(maps: list[Tensor]) -> bool:
    """Whether the kernel takes these maps.

    Not float32: tensor cores would round its factors, and other units are no faster than torch's.
    """
    first = maps[0]
    return (
        len(maps) <= MOST_MAPS
        and all(launch.is_nhwc(t) and t.shape == first.shape for t in maps)
        and first.dtype != torch.float32
        and first.numel() > 0
    )
