"""Mean and variance of every channel while a tensor is made or read, in two kernels.

Each lane sums differences to its own first value, so that a mean far larger than the standard
deviation cancels nothing. Lanes, and then programs, are merged by Chan's formula in its form for
many parts: with the common mean known, M2 = sum of (M2_i + n_i * (mean_i - mean)^2).

Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", The American
Statistician 37, 1983, formulas 1.5 and 2.1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import along_lanes, nearest_to_zero, sum_lanes, zero_tiles

# Rows of a program's partial results.
MOMENTS: tl.constexpr = tl.constexpr(4)


@triton.jit
def no_moments(USED: tl.constexpr, LANES: tl.constexpr, CHANNELS: tl.constexpr, NHWC: tl.constexpr):
    """Shift, sum and sum of squares, and the count of every lane; empty where not used."""
    if USED:
        tiles = zero_tiles(3, LANES, CHANNELS, NHWC)
        return tiles + (along_lanes(tl.zeros([LANES], tl.float32), NHWC),)
    else:
        return ()


@triton.jit
def add_moments(moments, y, ok):
    """The moments with one more value per lane, where `ok`."""
    if len(moments) == 4:
        shift, total, squares, count = moments
        shift = tl.where(ok & (count == 0.0), y, shift)
        distance = tl.where(ok, y - shift, 0.0)
        count = count + tl.where(ok, 1.0, 0.0)
        return shift, total + distance, squares + distance * distance, count
    else:
        return moments


@triton.jit
def store_moments(moments, partials, channel, channel_ok, channels, NHWC: tl.constexpr):
    """Count, level, mean beyond it, and M2 of this program: its rows of (., MOMENTS, channels).

    The level lies among the values, at zero if they are on both sides of it: neither the difference
    of two means far from zero nor a mean near zero loses digits.
    """
    if len(moments) == 4:
        shift, total, squares, count = moments
        per_lane = tl.maximum(count, 1.0)
        squares = squares - total * total / per_lane
        counts = sum_lanes(count, NHWC)
        level = nearest_to_zero(shift, count > 0.0, NHWC)
        mean = tl.where(count > 0.0, shift - level + total / per_lane, 0.0)
        common = sum_lanes(count * mean, NHWC) / tl.maximum(counts, 1.0)
        distance = mean - common
        squares = sum_lanes(squares + count * distance * distance, NHWC)
        _store_row(counts, level, common, squares, partials, channel, channel_ok, channels)


@triton.jit
def store_tile_moments(tile, ok, partials, channel, channel_ok, channels):
    """The same of one tile (lanes, channels), each lane a single value; `ok` is (lanes, 1).

    The level is the mean, as it comes out at first; what it lacks is the mean beyond it.
    """
    counts = sum_lanes(tl.where(ok, 1.0, 0.0), True)
    level = sum_lanes(tl.where(ok, tile, 0.0), True) / tl.maximum(counts, 1.0)
    distance = tl.where(ok, tile - level, 0.0)
    common = sum_lanes(distance, True) / tl.maximum(counts, 1.0)
    squares = sum_lanes(distance * distance, True) - counts * common * common
    _store_row(counts, level, common, squares, partials, channel, channel_ok, channels)


@triton.jit
def _store_row(counts, level, common, squares, partials, channel, channel_ok, channels):
    row = partials + tl.program_id(0).to(tl.int64) * MOMENTS * channels + channel
    tl.store(row, counts + tl.zeros_like(common), mask=channel_ok)
    tl.store(row + channels, level, mask=channel_ok)
    tl.store(row + 2 * channels, common, mask=channel_ok)
    tl.store(row + 3 * channels, squares, mask=channel_ok)


@triton.jit(do_not_specialize=["parts", "channels"])
def merge_moments_kernel(
    partials, mean, var, parts, channels,
    CHUNKS: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """(parts, MOMENTS, channels) to mean and biased variance; CHUNKS of PARTS parts at a time."""
    channel = (tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    channel_ok = channel < channels
    # The first program always has values.
    level = tl.load(partials + channels + channel, mask=channel_ok, other=0.0)
    count = tl.zeros([1, CHANNELS], tl.float32)
    total = tl.zeros([1, CHANNELS], tl.float32)
    for chunk in range(CHUNKS):
        row, ok = _parts_of(partials, chunk, parts, channels, channel, channel_ok, PARTS)
        n, part_mean = _load_means(row, ok, channels, level)
        count += sum_lanes(n, True)
        total += sum_lanes(n * part_mean, True)
    count = tl.maximum(count, 1.0)
    common = total / count
    squares = tl.zeros([1, CHANNELS], tl.float32)
    for chunk in range(CHUNKS):
        row, ok = _parts_of(partials, chunk, parts, channels, channel, channel_ok, PARTS)
        n, part_mean = _load_means(row, ok, channels, level)
        distance = part_mean - common
        part_squares = tl.load(row + 3 * channels, mask=ok, other=0.0)
        squares += sum_lanes(part_squares + n * distance * distance, True)
    tl.store(mean + channel, level + common, mask=channel_ok)
    tl.store(var + channel, squares / count, mask=channel_ok)


@triton.jit
def _parts_of(partials, chunk, parts, channels, channel, channel_ok, PARTS: tl.constexpr):
    """Where the rows of a chunk of parts begin, and which of them exist."""
    part = (chunk * PARTS + tl.arange(0, PARTS))[:, None]
    return partials + part.to(tl.int64) * MOMENTS * channels + channel, (part < parts) & channel_ok


@triton.jit
def _load_means(row, ok, channels, level):
    """Counts, and means beyond `level`; both 0 for parts without values."""
    n = tl.load(row, mask=ok, other=0.0)
    part_level = tl.load(row + channels, mask=ok, other=0.0)
    part_mean = tl.load(row + 2 * channels, mask=ok, other=0.0)
    return n, tl.where(n > 0.0, part_level - level + part_mean, 0.0)


@triton.jit(do_not_specialize=["parts", "rows", "channels"])
def sum_parts_kernel(
    partials, result, first, parts, rows, channels, row_stride, channel_stride,
    CHUNKS: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums row `first` + program of (parts, rows, channels) over the parts, in a fixed order."""
    channel = (tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    channel_ok = channel < channels
    row = tl.program_id(1)
    total = tl.zeros([1, CHANNELS], tl.float32)
    for chunk in range(CHUNKS):
        part = (chunk * PARTS + tl.arange(0, PARTS))[:, None]
        at = partials + (part.to(tl.int64) * rows + first + row) * channels + channel
        total += sum_lanes(tl.load(at, mask=(part < parts) & channel_ok, other=0.0), True)
    tl.store(result + row * row_stride + channel * channel_stride, total, mask=channel_ok)
