"""What the launchers of the depthwise ops work out from their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton
from torch import Tensor

from . import launch

IDENTITY = 0
# More weights than these do not fit in the registers beside everything else.
_MOST_LINE_TAPS = 9
# Rows of a line that are made in one walk: ROWS + KH - 1 are read.
_MOST_LINE_ROWS = 4


class Geometry(NamedTuple):
    """Arguments of a convolution; `padding` is (left, right, top, bottom)."""

    kernel: tuple[int, int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]

    @classmethod
    def of(cls, weight: Tensor, *sizes: Sequence[int]) -> Geometry:
        """From the weight (C, 1, kh, kw), stride, padding and dilation."""
        return cls((weight.size(2), weight.size(3)), *sizes)

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


def map_sizes(source: Tensor, result: Sequence[int], whole: int) -> tuple[int, tuple[int, ...]]:
    """The unit of channels, and sizes in the order of the kernels' arguments.

    Args:
        source: what is read.
        result: height and width of what is made.
        whole: channels of the map that the convolution's output is a range of.
    """
    batch, channels, height, width = source.shape
    unit = launch.unit_of(channels, whole)
    return unit, (batch, channels // unit, whole // unit, height, width, *result)


def tap_major(weight: Tensor) -> Tensor:
    """(KH * KW, channels), so that the weights of neighbouring channels are adjacent."""
    return weight.reshape(weight.size(0), -1).t().contiguous()
