"""How a separable convolution is computed: fused or in two halves, in which blocks and parts.

The cost model compares, per pixel of the result,

    fused = max(bytes of input and result / bandwidth,
                waste * (product / tensor rate + tiles of output channels * stencil / issue rate))
    apart = max(bytes of input and middle / bandwidth, stencil / issue rate)
            + max(bytes of middle and result / bandwidth, product / tensor rate)

The fused kernel makes the middle anew for every tile of output channels, and its stencil and its
product take turns. `waste` counts rows of the product that are no pixels. Rates are those of an
H100 (bandwidth and tensor rate measured, of other kernels; the rest counted in machine code). **No
GPU has timed either way**, so the choice is unmeasured.
"""

from __future__ import annotations

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
# Accumulators of more columns do not fit in the registers of other GPUs; these have `wgmma`, or
# keep them in a memory of their own.
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
_PER_LOAD, _PER_ELEMENT = 2.8, 8.0
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
    geometry: Geometry, source: Sequence[int], result: Sequence[int], element: int,
    capability: tuple[int, int],
) -> Plan:  # fmt: skip
    """The best plan of the fused kernel for maps of shape `source` and `result`.

    Args:
        geometry: of the depthwise half.
        source: (N, C, H, W) of the input.
        result: (N, C', H', W').
        element: bytes of an element.
        capability: of the GPU.
    """
    batch, in_channels, *source_size = source
    out_channels, *result_size = result[1:]
    widest = _WIDE_BLOCK_N if capability[0] in _WIDE_CAPABILITIES else _BLOCK_N
    block_n = max(_LEAST_BLOCK_N, min(widest, triton.next_power_of_2(out_channels)))
    n_tiles = triton.cdiv(out_channels, block_n)
    pixels = result_size[0] * result_size[1]
    product = in_channels * n_tiles * block_n / _TENSOR_RATE
    best: tuple[float, Blocks] | None = None
    for outputs in BLOCKS:
        blocks = Blocks(*(
            Axis.of(*sizes) for sizes in zip(
                outputs, result_size, source_size, geometry.kernel, geometry.stride,
                geometry.before, geometry.dilation, strict=True,
            )
        ))  # fmt: skip
        waste = blocks.height.covered * blocks.width.covered / pixels
        stencil = in_channels * blocks.instructions(geometry.kernel) / _ISSUE_RATE
        seconds = waste * (product + n_tiles * stencil)
        if best is None or seconds < best[0]:
            best = seconds, blocks
    assert best is not None
    seconds, blocks = best
    read = source_size[0] * source_size[1] / pixels * in_channels
    moved = [element * e / _BANDWIDTH for e in (read, in_channels, out_channels)]
    stencil = in_channels * blocks.instructions(geometry.kernel) / _ISSUE_RATE
    product = in_channels * out_channels / _TENSOR_RATE
    return Plan(
        blocks, block_n, (triton.cdiv(batch * blocks.lanes, blocks.tile_lanes), n_tiles),
        max(moved[0] + moved[2], seconds),
        max(moved[0] + moved[1], stencil) + max(moved[1] + moved[2], product),
    )  # fmt: skip


def multiprocessors_of(x: Tensor) -> tuple[int, tuple[int, int]]:
    """Number of multiprocessors and capability of the GPU that `x` lies on."""
    if not x.is_cuda:
        return INTERPRETED
    properties = torch.cuda.get_device_properties(x.device)
    return properties.multi_processor_count, (properties.major, properties.minor)


# What the interpreter stands for: few programs, as each costs milliseconds.
INTERPRETED = (1, (9, 0))
