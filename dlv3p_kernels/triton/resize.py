"""The index rule of a bilinear resize along one axis, and the intervals it cuts the result into.

Pixel i of `size` pixels lies at u(i) on the axis of `cells` source cells, in float32:

    u(i) = fma(i + 0.5, scale, -0.5)  with scale = cells / size
    u(i) = i * scale                  with scale = (cells - 1) / (size - 1)   (align_corners)

as PyTorch computes it (aten/src/ATen/native/UpSample.h, `area_pixel_compute_source_index`;
compilers fuse it there). It reads cells floor(max(u, 0)) and the next one, at most the last.
Interval r holds the pixels with floor(u) = r, for r from -1 (in front of the first cell) to cells -
1: all pixels of an interval read the same two cells. u never falls, so an interval is a range of
pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import triton
import triton.language as tl

# Stands for the inverse of a scale of 0: beyond every size.
_FAR = 1e30


class Axis(NamedTuple):
    """One axis of a resize, as the kernels take it."""

    cells: int
    size: int
    scale: float
    inverse: float

    @classmethod
    def of(cls, cells: int, size: int, align_corners: bool) -> Axis:
        """From `cells` to `size`; the scale is divided in float32."""
        spans = (cells - 1, size - 1) if align_corners else (cells, size)
        scale = float(np.float32(spans[0]) / np.float32(spans[1])) if spans[1] > 0 else 0.0
        return cls(cells, size, scale, 1 / scale if scale else _FAR)

    @property
    def ratio(self) -> float:
        """Pixels of an interval, on average."""
        return min(self.inverse, float(self.size))


@triton.jit
def source_of(pixel, scale, ALIGN: tl.constexpr):
    """u(pixel). Fused explicitly: were it rounded in two ways, intervals could miss a pixel."""
    if ALIGN:
        return pixel.to(tl.float32) * scale
    else:
        return tl.fma(pixel.to(tl.float32) + 0.5, scale, -0.5)


@triton.jit
def interval_of(pixel, scale, ALIGN: tl.constexpr):
    """The interval that a pixel lies in."""
    return tl.floor(source_of(pixel, scale, ALIGN)).to(tl.int32)


@triton.jit
def first_pixel(interval, cells, size, scale, inverse, ALIGN: tl.constexpr):
    """First pixel of an interval; `size` for those behind the last cell.

    The inverse of the rule is right to a pixel; the rule itself then settles it.
    """
    shift: tl.constexpr = 0.0 if ALIGN else 0.5
    guess = (interval.to(tl.float32) + shift) * inverse - shift
    guess = tl.floor(tl.minimum(tl.maximum(guess, 0.0), size * 1.0)).to(tl.int32)
    first = tl.maximum(guess - 1, 0)
    start = first
    for t in tl.static_range(3):
        first += tl.where(interval_of(start + t, scale, ALIGN) < interval, 1, 0)
    return tl.where(interval < cells, tl.minimum(first, size), size)


@triton.jit
def shares_of(pixel, interval, scale, ALIGN: tl.constexpr):
    """Weights of the two cells that a pixel of this interval reads."""
    source = tl.maximum(source_of(pixel, scale, ALIGN), 0.0)
    second = source - tl.maximum(interval, 0).to(tl.float32)
    return 1.0 - second, second


@triton.jit
def cells_of(interval, cells):
    """The two cells that the pixels of an interval read."""
    first = tl.maximum(interval, 0)
    return first, tl.minimum(first + 1, cells - 1)
