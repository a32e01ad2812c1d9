"""Launching: memory formats, sizes of tiles, number of programs, workspaces.

The sizes are a fixed table, not tuned at run time: shapes and dilations vary too much for that. No
GPU has timed them; they follow from the machine code (docs/triton.md).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .. import backends
from .moments import MOMENTS, merge_moments_kernel, sum_parts_kernel

WARPS = 4
_THREADS = 32 * WARPS
INTERPRETED = backends.triton_interpreted()
# A few waves of programs on the largest GPUs. Interpreted, every program costs milliseconds.
_PROGRAMS = 2 if INTERPRETED else 2048
_INTERPRETED_TILE = 1 << 15
_INTERPRETED_CHANNELS = 256
# Blocks of lanes per program; few values, as each is compiled anew.
_BLOCKS = (16, 4)
_LINE_BYTES = 128
# Elements of a tile per thread: forward 16 bytes of halves; backward, with the sums of both
# gradients, what fits in the registers.
FORWARD_PER_THREAD = 8
BACKWARD_PER_THREAD = 4
_NCHW_CHANNELS = 4
_INT32_ELEMENTS = 1 << 31
MOMENT_ROWS = MOMENTS.value
# Tiles of partial sums that fit in the registers.
PARTS = 128
PART_CHANNELS = 16
# What the default of Triton becomes with 3.10 would make each multiply-add two instructions.
OPTIONS = {"num_warps": WARPS, "enable_fp_fusion": True}


def is_nhwc(x: Tensor) -> bool:
    """The format of results made from `x`: channels_last where its channels are adjacent."""
    return x.stride(1) == 1 and not x.is_contiguous()


def dense(x: Tensor, nhwc: bool) -> Tensor:
    """`x`, or a copy of it where it is not dense in this format."""
    return x.contiguous(memory_format=_format(nhwc))


def channel_range(t: Tensor, nhwc: bool) -> Tensor:
    """`t` as it lies, if it is a range of the channels of a dense map; a dense copy otherwise."""
    _, channels, height, width = t.shape
    whole = whole_channels(t, nhwc)
    plane = height * width
    if nhwc:
        strides = (plane * whole, 1, width * whole, whole)
    else:
        strides = (plane * whole, plane, width, 1)
    return t if t.stride() == strides and whole >= channels else dense(t, nhwc)


def whole_channels(t: Tensor, nhwc: bool) -> int:
    """Channels of the dense map that `t` is a range of."""
    if t.is_contiguous(memory_format=_format(nhwc)):
        return t.size(1)
    return t.stride(3) if nhwc else t.stride(0) // (t.size(2) * t.size(3))


def empty_map(like: Tensor, shape: tuple[int, ...], nhwc: bool) -> Tensor:
    """A map to be written."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=_format(nhwc))


def _format(nhwc: bool) -> torch.memory_format:
    return torch.channels_last if nhwc else torch.contiguous_format


class Tile(NamedTuple):
    """Lanes and channels of one block, blocks of a program, and the grid."""

    nhwc: bool
    lanes: int
    channels: int
    blocks: int
    programs: int
    channel_programs: int
    wide: bool

    @property
    def constants(self) -> dict[str, Any]:
        """As the kernels take them."""
        return {
            "NHWC": self.nhwc, "LANES": self.lanes, "CHANNELS": self.channels,
            "BLOCKS": self.blocks, "WIDE": self.wide,
        }  # fmt: skip

    @property
    def grid(self) -> tuple[int, int]:
        """Programs along the lanes and along the channels."""
        return self.programs, self.channel_programs


def tile_of(nhwc: bool, channels: int, lanes: int, per_thread: int, *maps: Tensor) -> Tile:
    """The tile for `lanes` lanes of `channels` channels.

    Args:
        nhwc: whether channels are the fastest axis.
        channels: of the maps.
        lanes: in all.
        per_thread: elements of a tile that each thread holds.
        maps: what is accessed; their sizes decide whether offsets need 64 bits.
    """
    block = block_of(nhwc, channels, lanes, per_thread, maps[0].element_size())
    return _tile(nhwc, channels, *block, triton.cdiv(lanes, block[0]), *maps)


def plane_tile_of(
    nhwc: bool, channels: int, images: int, plane: int, x: Tensor
) -> tuple[Tile, int]:
    """The tile for planes, whose blocks never cross from one to the next, and blocks of a plane."""
    lanes, block_channels = block_of(nhwc, channels, plane, vector_elements(x), x.element_size())
    chunks = triton.cdiv(plane, lanes)
    return _tile(nhwc, channels, lanes, block_channels, images * chunks, x), chunks


def block_of(
    nhwc: bool, channels: int, lanes: int, per_thread: int, element_size: int
) -> tuple[int, int]:
    """Lanes and channels of a block."""
    block_lanes, block_channels = tile_shape(nhwc, element_size, per_thread)
    if INTERPRETED:
        block_channels = _INTERPRETED_CHANNELS
        block_lanes = _INTERPRETED_TILE // block_channels
    block_channels = min(block_channels, triton.next_power_of_2(channels))
    return min(block_lanes, triton.next_power_of_2(lanes)), block_channels


def _tile(
    nhwc: bool, channels: int, lanes: int, block_channels: int, count: int, *maps: Tensor
) -> Tile:
    across = triton.cdiv(channels, block_channels)
    blocks = next((b for b in _BLOCKS if count // b * across >= _PROGRAMS), 1)
    programs = triton.cdiv(count, blocks)
    wide = is_wide(programs * blocks * lanes, *maps)
    return Tile(nhwc, lanes, block_channels, blocks, programs, across, wide)


def is_wide(lanes: int, *maps: Tensor) -> bool:
    """Whether numbers of lanes, or offsets into maps or dense copies of them, need 64 bits."""
    return max(lanes, *map(extent, maps)) >= _INT32_ELEMENTS


def extent(t: Tensor) -> int:
    """Elements that offsets into `t`, or into a dense copy of it, reach over."""
    reach = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return max(reach, t.numel())


def tile_shape(nhwc: bool, element_size: int, per_thread: int) -> tuple[int, int]:
    """Lanes and channels of a full tile: the fastest axis covers a cache line or more."""
    channels = _LINE_BYTES // element_size if nhwc else _NCHW_CHANNELS
    return _THREADS * per_thread // channels, channels


def vector(values: Tensor | None) -> Tensor | None:
    """A per-channel vector without gaps."""
    return None if values is None else values.contiguous()


def vector_elements(x: Tensor) -> int:
    """Elements of an access of 16 bytes."""
    return 16 // x.element_size()


def unit_of(*channels: int) -> int:
    """Largest power of two up to 8 that divides these numbers of channels.

    Kernels get them in these units: the compiler then knows the alignment of every pixel.
    """
    return math.gcd(8, *channels)


def workspace(like: Tensor, programs: int, rows: int, channels: int) -> Tensor:
    """Partial sums of every program, float32."""
    return like.new_empty(programs, rows, channels, dtype=torch.float32)


def merged_moments(partials: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance from the (programs, MOMENT_ROWS, channels) of the kernels."""
    parts, _, channels = partials.shape
    mean, var = partials.new_empty(channels), partials.new_empty(channels)
    merge_moments_kernel[(triton.cdiv(channels, PART_CHANNELS),)](
        partials, mean, var, parts, channels, **_parts(parts), **OPTIONS
    )
    return mean, var


def summed(partials: Tensor, first: int, result: Tensor) -> Tensor:
    """Rows from `first` of (programs, rows, channels), summed over the programs into `result`.

    `result` is (rows wanted, channels), of any strides.
    """
    parts, rows, channels = partials.shape
    sum_parts_kernel[(triton.cdiv(channels, PART_CHANNELS), result.size(0))](
        partials, result, first, parts, rows, channels, *result.stride(), **_parts(parts), **OPTIONS
    )
    return result


def _parts(parts: int) -> dict[str, int]:
    """Powers of two alone, as each is compiled anew."""
    block = min(triton.next_power_of_2(parts), PARTS)
    chunks = triton.next_power_of_2(triton.cdiv(parts, block))
    return {"CHUNKS": chunks, "PARTS": block, "CHANNELS": PART_CHANNELS}
