"""How a separable convolution is computed: fused or in two halves, in which blocks and parts.

The cost model compares, per pixel of the result,

    fused = max(bytes of input and result / bandwidth,
                waste * (product / 2 + max(product / 2, tiles of output channels * stencil)))
    apart = max(bytes of input and middle / bandwidth, stencil)
            + max(bytes of middle and result / bandwidth, product)

with the times of the product on tensor cores and of the stencil's instructions. The fused kernel
makes the middle anew for every tile of output channels; half of a step's product runs while the
next step's stencil is made. `waste` counts rows and columns of the product that are not wanted.
Rates are those of an H100: bandwidth and tensor rate measured, of other kernels; instructions
counted in machine code. **No GPU has timed either way**, so the choice is unmeasured.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .depthwise_geometry import Geometry

# Rows of the product of one program.
TILE_ROWS = 128
BLOCK_K = 32
# tl.dot takes no narrower product.
_LEAST_BLOCK_N = 16
# Wider accumulators do not fit in the registers of other GPUs; these have `wgmma`, which shares the
# right operand among warps, or keep accumulators in a memory of their own.
_WIDE_BLOCK_N, _BLOCK_N = 256, 128
_WIDE_CAPABILITIES = (9, 10)
# Outputs of a lane, along height and width: four, so that a thread has four channels. With eight,
# their weights alone would take 72 registers.
BLOCKS = ((2, 2), (4, 1), (1, 4))
# With more source elements than these under way, a wide accumulator does not fit beside them.
_MOST_READS = 18
# Taps whose weights fit in the registers.
_MOST_TAPS = 9
_BANDWIDTH = 3.0e12
_TENSOR_RATE = 399e12
# Instructions of lanes a second: 132 multiprocessors, 128 lanes, 1.755 GHz.
_ISSUE_RATE = 29.6e12
# Instructions per element of the middle: for each source element read, and for everything else
# but multiply-adds.
_PER_LOAD, _PER_ELEMENT = 2.75, 12.0
# Steps along the input's channels that a part has at least.
_LEAST_STEPS = 4


class Axis(NamedTuple):
    """Blocks of outputs along one axis of the map.

    Attributes:
        outputs: of a block.
        step: from one of them to the next.
        apart: the same in taps: output r reads taps r * apart to r * apart + kernel - 1.
        phases: blocks that lie interleaved.
        segments: blocks that follow each other.
        first: of the taps that lie inside the map for any block.
        last: behind the last of them.
    """

    outputs: int
    step: int
    apart: int
    phases: int
    segments: int
    first: int
    last: int

    @classmethod
    def of(
        cls, outputs: int, result: int, source: int, kernel: int, stride: int, before: int,
        dilation: int,
    ) -> Axis:  # fmt: skip
        """The fewest blocks of `outputs` that cover an axis."""
        common = math.gcd(stride, dilation)
        step, apart = dilation // common, stride // common
        if outputs == 1:
            phases, segments = result, 1
        else:
            phases = min(step, result)
            segments = triton.cdiv(triton.cdiv(result, step), outputs)
        furthest = (phases - 1 + (segments - 1) * outputs * step) * stride
        taps = range((outputs - 1) * apart + kernel)
        live = [i for i in taps if -furthest <= i * dilation - before < source]
        return cls(
            outputs, step, apart, phases, segments, min(live, default=0), max(live, default=-1) + 1
        )

    @property
    def covered(self) -> int:
        """Outputs of all blocks, those beyond the map included."""
        return self.phases * self.segments * self.outputs

    @property
    def reads(self) -> int:
        """Taps of a block that may lie inside."""
        return self.last - self.first

    def products(self, kernel: int) -> int:
        """Taps of its outputs that may lie inside."""
        starts = range(0, self.outputs * self.apart, self.apart)
        return sum(self.first <= s + k < self.last for s in starts for k in range(kernel))


class Blocks(NamedTuple):
    """The blocks of both axes."""

    height: Axis
    width: Axis

    @property
    def lanes(self) -> int:
        """Blocks of one image."""
        h, w = self.height, self.width
        return h.phases * h.segments * w.phases * w.segments

    @property
    def tile_lanes(self) -> int:
        """Of one program."""
        return TILE_ROWS // (self.height.outputs * self.width.outputs)

    def instructions(self, kernel: tuple[int, int]) -> float:
        """Per element of the middle, as the model has it."""
        outputs = self.height.outputs * self.width.outputs
        products = self.height.products(kernel[0]) * self.width.products(kernel[1])
        reads = self.height.reads * self.width.reads
        return (products + _PER_LOAD * reads) / outputs + _PER_ELEMENT

    @property
    def constants(self) -> dict[str, Any]:
        """As the kernel takes them."""
        h, w = self.height, self.width
        return {
            "OUT_H": h.outputs, "OUT_W": w.outputs, "APART_H": h.apart, "APART_W": w.apart,
            "FIRST_H": h.first, "LAST_H": h.last, "FIRST_W": w.first, "LAST_W": w.last,
            "LANES": self.tile_lanes,
        }  # fmt: skip


class Plan(NamedTuple):
    """The fused kernel's blocks and parts, and what the model makes of them."""

    blocks: Blocks
    block_n: int
    tiles: tuple[int, int]
    fused_seconds: float
    apart_seconds: float

    @property
    def fuses(self) -> bool:
        """Whether fusing is expected to be the faster way."""
        return self.fused_seconds <= self.apart_seconds

    def parts(self, in_channels: int, multiprocessors: int) -> tuple[int, int]:
        """Into how many parts the input's channels are cut to fill a GPU, and steps of a part."""
        steps = triton.cdiv(in_channels, BLOCK_K)
        wanted = multiprocessors // (self.tiles[0] * self.tiles[1])
        parts = max(1, min(wanted, steps // _LEAST_STEPS))
        per_part = triton.cdiv(steps, parts)
        return triton.cdiv(steps, per_part), per_part


def fits(x: Tensor, dw_weight: Tensor, result: Sequence[int], nhwc: bool) -> bool:
    """Whether the fused kernel takes these at all.

    Not float32: tensor cores would round its factors, and other units are no faster than torch's.
    """
    taps = dw_weight.size(2) * dw_weight.size(3)
    return (
        nhwc
        and x.dtype != torch.float32
        and taps <= _MOST_TAPS
        and 0 not in result
        and x.numel() > 0
    )


def plan_of(
    geometry: Geometry,
    source: Sequence[int],
    result: Sequence[int],
    element: int,
    capability: tuple[int, int],
) -> Plan:
    """The best plan of the fused kernel for maps of shape `source` and `result`.

    Args:
        geometry: of the depthwise half.
        source: (N, C, H, W) of the input.
        result: (N, C', H', W').
        element: bytes of an element.
        capability: of the GPU.
    """
    sizes = (tuple(geometry.stride), tuple(geometry.padding), tuple(geometry.dilation))
    return _best(
        Geometry(geometry.kernel, *sizes), tuple(source), tuple(result), element, capability, BLOCKS
    )


# Working it out takes as long as several launches.
@functools.lru_cache(maxsize=1024)
def _best(
    geometry: Geometry,
    source: tuple[int, ...],
    result: tuple[int, ...],
    element: int,
    capability: tuple[int, int],
    blocks: tuple[tuple[int, int], ...],
) -> Plan:
    plans = (_plan(outputs, geometry, source, result, element, capability) for outputs in blocks)
    return min(plans, key=lambda plan: plan.fused_seconds)


def _plan(
    outputs: tuple[int, int],
    geometry: Geometry,
    source: Sequence[int],
    result: Sequence[int],
    element: int,
    capability: tuple[int, int],
) -> Plan:
    sizes = (geometry.kernel, geometry.stride, geometry.before, geometry.dilation)
    axes = zip(outputs, result[2:], source[2:], *sizes, strict=True)
    blocks = Blocks(*(Axis.of(*axis) for axis in axes))
    in_channels, out_channels = source[1], result[1]
    block_n = _block_n(out_channels, blocks, capability)
    n_tiles = triton.cdiv(out_channels, block_n)
    pixels = result[2] * result[3]
    waste = blocks.height.covered * blocks.width.covered / pixels
    stencil = in_channels * blocks.instructions(geometry.kernel) / _ISSUE_RATE
    half = in_channels * n_tiles * block_n / _TENSOR_RATE / 2
    read = source[2] * source[3] / pixels * in_channels
    byte = element / _BANDWIDTH
    fused = max((read + out_channels) * byte, waste * (half + max(half, n_tiles * stencil)))
    product = in_channels * out_channels / _TENSOR_RATE
    apart = max((read + in_channels) * byte, stencil)
    apart += max((in_channels + out_channels) * byte, product)
    tiles = triton.cdiv(source[0] * blocks.lanes, blocks.tile_lanes)
    return Plan(blocks, block_n, (tiles, n_tiles), fused, apart)


def _block_n(out_channels: int, blocks: Blocks, capability: tuple[int, int]) -> int:
    """Output channels of a tile."""
    few_reads = blocks.height.reads * blocks.width.reads <= _MOST_READS
    return block_n_of(out_channels, capability if few_reads else None)


def block_n_of(out_channels: int, capability: tuple[int, int] | None) -> int:
    """Output channels of a tile; without a capability none that only some GPUs have room for."""
    wide = capability is not None and capability[0] in _WIDE_CAPABILITIES
    widest = _WIDE_BLOCK_N if wide else _BLOCK_N
    return max(_LEAST_BLOCK_N, min(widest, triton.next_power_of_2(out_channels)))


def multiprocessors_of(x: Tensor) -> tuple[int, tuple[int, int]]:
    """Number of multiprocessors and capability of the GPU that `x` lies on."""
    if not x.is_cuda:
        return INTERPRETED
    properties = torch.cuda.get_device_properties(x.device)
    return properties.multi_processor_count, (properties.major, properties.minor)


# What the interpreter stands for: few programs, as each costs milliseconds.
INTERPRETED = (1, (9, 0))
