"""What the launchers of the decoder's depthwise convolution read, and into what they cut it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton
from torch import Tensor

from . import launch
from .depthwise_geometry import IDENTITY, Geometry
from .resize import Axis

Prologue = tuple[Tensor | None, Tensor | None, int]
# Registers of a thread for all tiles that wait in them.
_REGISTERS = 184
# Rows of the result that a program of the forward walks down: KH - 1 rows more are mixed.
_ROWS = 16
# Rows of cells that one of the backward walks down: one interval more is made.
_BAND = 8
# Neighbouring pixels of the backward that share what they load.
_MOST_COLUMNS = 4


class Part(NamedTuple):
    """One of the two maps, and its place in what both are side by side."""

    map: Tensor
    channels: slice
    prologue: Prologue
    is_encoder: bool


class Source(NamedTuple):
    """The encoder output and the low-level map, dense and in the same format."""

    encoder: Tensor
    low_level: Tensor
    align_corners: bool
    encoder_first: bool
    prologue: Prologue
    nhwc: bool

    @classmethod
    def of(
        cls, x: Tensor, low_level: Tensor, align_corners: bool, encoder_first: bool,
        scale: Tensor | None, shift: Tensor | None, activation: int,
    ) -> Source:  # fmt: skip
        """From the arguments of the operators."""
        nhwc = launch.is_nhwc(low_level)
        return cls(
            launch.dense(x, nhwc), launch.dense(low_level, nhwc), align_corners, encoder_first,
            (launch.vector(scale), launch.vector(shift), activation), nhwc,
        )  # fmt: skip

    @property
    def parts(self) -> list[Part]:
        """Both, in the order of their channels."""
        maps = [(self.encoder, True), (self.low_level, False)]
        found, first = [], 0
        for t, is_encoder in maps if self.encoder_first else maps[::-1]:
            channels = slice(first, first + t.size(1))
            prologue = (None, None, IDENTITY) if is_encoder else self.prologue
            found.append(Part(t, channels, prologue, is_encoder))
            first = channels.stop
        return found

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is read."""
        return self.low_level.size(2), self.low_level.size(3)

    def resizes(self, part: Part) -> bool:
        """Whether the part has another size than what is read."""
        return part.is_encoder and tuple(part.map.shape[2:]) != self.size

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """The resize of rows and columns."""
        rows, columns = (
            Axis.of(cells, size, self.align_corners)
            for cells, size in zip(self.encoder.shape[2:], self.size, strict=True)
        )
        return rows, columns


class Walk(NamedTuple):
    """Programs of the forward on the encoder output, each a segment of the rows of some columns."""

    grid: tuple[int, int]
    lanes: int
    channels: int
    phases: int
    segments: int
    rows: int

    @classmethod
    def of(
        cls, source: Source, geometry: Geometry, result: Sequence[int], statistics: bool
    ) -> Walk:
        """For a result of this height and width."""
        batch, channels = source.encoder.shape[:2]
        height, width = result
        phases = min(geometry.dilation[0], height)
        length = triton.cdiv(height, geometry.dilation[0])
        segments = triton.cdiv(length, _ROWS)
        per_thread = walk_per_thread(source.nhwc, *geometry.kernel, statistics)
        lanes, block = launch.block_of(
            source.nhwc, channels, batch * width, per_thread, source.encoder.element_size()
        )
        strips = triton.cdiv(batch * width, lanes) * phases * segments
        grid = (strips, triton.cdiv(channels, block))
        return cls(grid, lanes, block, phases, segments, triton.cdiv(length, segments))


class Gather(NamedTuple):
    """Programs of the backward, each a band of rows of cells of some columns of intervals."""

    grid: tuple[int, int]
    lanes: int
    channels: int
    columns: int
    bands: int
    band_rows: int

    @classmethod
    def of(cls, source: Source, geometry: Geometry) -> Gather:
        """For the gradients by the encoder output and by its weights."""
        batch, channels = source.encoder.shape[:2]
        rows, columns = source.axes
        bands = triton.cdiv(rows.cells, _BAND)
        intervals = batch * bands * (columns.cells + 1)
        across = min(_MOST_COLUMNS, max(1, round(columns.ratio)))
        per_thread = gather_per_thread(source.nhwc, geometry.taps, across)
        # As if elements were wider: with as many channels as fill a cache line lanes were few, and
        # of those of each program one is made twice.
        lanes, block = launch.block_of(source.nhwc, channels, intervals + 1, per_thread, 4)
        grid = (triton.cdiv(intervals, lanes - 1), triton.cdiv(channels, block))
        return cls(grid, lanes, block, across, bands, triton.cdiv(rows.cells, bands))


def walk_per_thread(nhwc: bool, kernel_h: int, kernel_w: int, statistics: bool) -> int:
    """Elements of a tile for each thread of the forward."""
    tiles = kernel_h * kernel_w + kernel_h + 2 * kernel_w + (9 if statistics else 5)
    tiles += 0 if nhwc else 4 * kernel_w  # cells and shares differ from element to element
    return _per_thread(tiles, launch.FORWARD_PER_THREAD)


def gather_per_thread(nhwc: bool, taps: int, columns: int) -> int:
    """The same of the backward, for this many neighbouring pixels."""
    tiles = 2 * (taps + columns) + 13
    tiles += 0 if nhwc else 3 * columns
    return _per_thread(tiles, launch.BACKWARD_PER_THREAD)


def _per_thread(tiles: int, most: int) -> int:
    """Elements of a tile for each thread, so that all tiles fit in the registers."""
    fitting = max(1, _REGISTERS // tiles)
    return min(most, 1 << fitting.bit_length() - 1)


def resize_sizes(source: Source, whole: int, output: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """The unit of channels, and the sizes in the order of the kernels' arguments.

    Args:
        source: what is read.
        whole: channels of the map that the encoder's part of the output is a range of.
        output: its height and width.
    """
    batch, channels = source.encoder.shape[:2]
    unit = launch.unit_of(channels, whole)
    rows, columns = source.axes
    return unit, (
        batch, channels // unit, whole // unit, rows.cells, columns.cells, rows.size, columns.size,
        *output,
    )  # fmt: skip
