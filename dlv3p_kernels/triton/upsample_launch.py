"""What the launchers of the ops on resized logits work out from their arguments.

The sizes follow from the machine code (docs/triton.md); no GPU has timed them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import triton
from torch import Tensor

from . import launch
from .resize import Axis

# One lane a thread. Interpreted, a program costs milliseconds, whatever its size.
FORWARD_WARPS = 4
BACKWARD_WARPS = 1
INTERPRETED_LANES = 1 << 13
# Classes of a block, whose logits above and below wait in registers for the rows of an interval.
# Each block costs one more exponential a pixel; but the time that Triton takes grows with their
# square.
_FORWARD_CLASSES = 8
# Classes of a program of the backward, 12 registers for each: with 8 some compilers spill.
# Interpreted, what the classes of a program share costs most.
GPU_CLASSES = 7
BACKWARD_CLASSES = 32 if launch.INTERPRETED else GPU_CLASSES
# Rows of cells that a program of the backward walks down, if there is enough to do for all: one
# interval more is made than rows are.
_BANDS = (8, 4, 2, 1)
LANES_OF_A_GPU = 1 << 14
# Rows of an interval that share them.
_MOST_ROWS = 8
# Of the rows, this part may go to a second group rather than widen all groups.
_LEFT_OVER = 0.25


class Resize(NamedTuple):
    """A resize of logits, and the sizes as the kernels take them."""

    images: int
    classes: int
    rows: Axis
    columns: Axis
    align_corners: bool
    nhwc: bool

    @classmethod
    def of(cls, logits: Tensor, size: tuple[int, int], align_corners: bool) -> Resize:
        """Of (N, K, h, w) logits to (H, W)."""
        images, classes, height, width = logits.shape
        rows, columns = (
            Axis.of(cells, pixels, align_corners)
            for cells, pixels in zip((height, width), size, strict=True)
        )
        return cls(images, classes, rows, columns, align_corners, launch.is_nhwc(logits))

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Images, cells and pixels."""
        return (
            self.images, self.rows.cells, self.columns.cells, self.rows.size, self.columns.size
        )  # fmt: skip

    @property
    def pixels(self) -> int:
        """Pixels of the result."""
        return self.images * self.rows.size * self.columns.size

    def forward(self, *maps: Tensor) -> tuple[tuple[int], dict[str, Any]]:
        """Grid and constants of the kernels whose lanes are columns of intervals of rows."""
        lanes = self.images * (self.rows.cells + 1) * self.columns.size
        block = lanes_of_program(FORWARD_WARPS, lanes)
        return (triton.cdiv(lanes, block),), {
            "CLASSES": self.classes, "BLOCK": forward_classes(self.classes),
            "ROWS": rows_at_once(self.rows.ratio), "ALIGN": self.align_corners,
            "NHWC": self.nhwc, "LANES": block, "WIDE": is_wide(lanes, *maps),
            **options(FORWARD_WARPS),
        }  # fmt: skip

    def backward(self, *maps: Tensor) -> tuple[tuple[int, int], tuple[int, int], dict[str, Any]]:
        """Grid, bands of rows of cells with the rows of each, and constants of the backward."""
        count = backward_classes(self.classes)
        blocks = triton.cdiv(self.classes, count)
        columns = self.images * (self.columns.cells + 1)
        band = next(
            (b for b in _BANDS if self.rows.cells // b * columns * blocks >= LANES_OF_A_GPU),
            _BANDS[-1],
        )  # fmt: skip
        bands = triton.cdiv(self.rows.cells, band)
        lanes = bands * columns
        block = lanes_of_program(BACKWARD_WARPS, lanes + 1)
        return (triton.cdiv(lanes, block - 1), blocks), (bands, band), {
            "CLASSES": self.classes, "COUNT": count, "PADDED": triton.next_power_of_2(count),
            "ALIGN": self.align_corners, "NHWC": self.nhwc, "LANES": block,
            "WIDE": is_wide(lanes, *maps), **options(BACKWARD_WARPS),
        }  # fmt: skip


def forward_classes(classes: int) -> int:
    """Classes of a block of the forward and of the prediction."""
    return _even(classes, _FORWARD_CLASSES)


def backward_classes(classes: int) -> int:
    """Classes of a program of the backward."""
    return _even(classes, BACKWARD_CLASSES)


def _even(classes: int, most: int) -> int:
    """Classes of each of as few parts as can be, as even as they come."""
    return triton.cdiv(classes, triton.cdiv(classes, most))


def rows_at_once(ratio: float) -> int:
    """Rows of a group, for intervals of `ratio` rows on average."""
    rows = max(math.ceil(ratio - _LEFT_OVER), 1)
    return math.ceil(rows / math.ceil(rows / _MOST_ROWS))


def lanes_of_program(warps: int, lanes: int) -> int:
    """Lanes of a program when there are `lanes` in all."""
    if not launch.INTERPRETED:
        return 32 * warps
    return min(INTERPRETED_LANES, triton.next_power_of_2(lanes))


def is_wide(lanes: int, *maps: Tensor) -> bool:
    """Whether offsets need 64 bits, those of lanes behind the last included."""
    return launch.is_wide(lanes + INTERPRETED_LANES, *maps)


def options(warps: int) -> dict[str, Any]:
    """As every kernel of the package is compiled, with this many warps."""
    return {**launch.OPTIONS, "num_warps": warps}
