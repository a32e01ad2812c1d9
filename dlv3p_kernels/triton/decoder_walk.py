"""The depthwise convolution of a resized map, which is never made: forward.

A lane is a column of the result. A program walks down a segment of its rows, `dilation` apart, the
same for all lanes: which two rows of cells a resized row lies between, and its shares of them, are
scalars. Both rows of cells wait in registers, mixed along columns for every tap column, until the
walk comes to the next; so a row of the resized map costs one mix per tap column, and loads only
where a row of cells begins. KH rows of the result are under way. The walk is unrolled KH times: the
compiler then knows which registers hold which of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import (
    along_lanes,
    channels_of,
    finished,
    load_affine,
    load_bias,
    map_offset,
    multiply_add,
    pixel_offset,
    put,
    zero_tile,
    zero_tiles,
)
from .depthwise_lines import load_taps
from .moments import add_moments, no_moments, store_moments
from .resize import cells_of, interval_of, shares_of
from .upsample_tiles import mixed

RUNTIME = ["batch", "channel_units", "whole_units", "cells_h", "cells_w", "size_h", "size_w",
           "result_h", "result_w", "scale_h", "scale_w", "offset_h", "offset_w", "dilation_h",
           "dilation_w", "phases", "segments", "rows"]  # fmt: skip
# No walk has come to this interval.
NOWHERE: tl.constexpr = tl.constexpr(-9)


@triton.jit
def tap_columns(
    column, offset_w, dilation_w, scale_w, cells_w, size_w, channels,
    KW: tl.constexpr, ALIGN: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    """Offsets of the two cells of every tap column, their shares, and whether it is inside."""
    cells = ()
    shares = ()
    inside = ()
    for kw in tl.static_range(KW):
        x = column + offset_w + kw * dilation_w
        across = interval_of(x, scale_w, ALIGN)
        left, right = cells_of(across, cells_w)
        left = pixel_offset(0, left, cells_w, channels, NHWC)
        right = pixel_offset(0, right, cells_w, channels, NHWC)
        cells = cells + ((left, right),)
        shares = shares + (shares_of(x, across, scale_w, ALIGN),)
        inside = inside + ((x >= 0) & (x < size_w),)
    return cells, shares, inside


@triton.jit
def load_cell_row(source, cells, shares, inside, ok):
    """A row of cells mixed along columns, for every tap column; `source` points at the row."""
    values = ()
    for kw in tl.static_range(len(cells)):
        there = inside[kw] & ok
        left = tl.load(source + cells[kw][0], mask=there, other=0.0).to(tl.float32)
        right = tl.load(source + cells[kw][1], mask=there, other=0.0).to(tl.float32)
        values = values + (mixed(left, right, shares[kw]),)
    return values


@triton.jit
def add_row(sums, taps, upper, lower, shares, inside, ok, AT: tl.constexpr, KH: tl.constexpr):
    """All sums with one more row of the resized map, which is tap row 0 of sum AT.

    Tap row kh belongs to the sum kh in front of it, in a ring of KH.
    """
    for kw in tl.static_range(len(inside)):
        value = mixed(upper[kw], lower[kw], shares)
        for kh in tl.static_range(KH):
            tap = taps[kh * len(inside) + kw]
            total = multiply_add(sums[(AT - kh + KH) % KH], tap, value, inside[kw] & ok)
            sums = put(sums, (AT - kh + KH) % KH, total)
    return sums


@triton.jit(do_not_specialize=RUNTIME)
def decoder_depthwise_fwd_kernel(
    source, weight, bias, result, out_scale, out_shift, partials,
    batch, channel_units, whole_units, cells_h, cells_w, size_h, size_w, result_h, result_w,
    scale_h, scale_w, offset_h, offset_w, dilation_h, dilation_w, phases, segments, rows,
    UNIT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, OUT_ACTIVATION: tl.constexpr,
    STATISTICS: tl.constexpr, ALIGN: tl.constexpr, NHWC: tl.constexpr, LANES: tl.constexpr,
    CHANNELS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """`source` has the cells, `size` is what they are resized to, `rows` those of a segment.

    The result is a range of the channels of a map with `whole_units`. Without it the statistics
    alone are gathered, of what would be stored.
    """
    channels = channel_units * UNIT
    whole = whole_units * UNIT
    channel = channels_of(CHANNELS, NHWC)
    channel_ok = channel < channels
    if WIDE:
        channels = channels.to(tl.int64)
        whole = whole.to(tl.int64)
    taps = load_taps(weight, channel, channel_ok, KH, KW, False)
    behind = load_affine(out_scale, out_shift, channel, channel_ok)
    start = load_bias(bias, channel, channel_ok)
    moments = no_moments(STATISTICS, LANES, CHANNELS, NHWC)
    strip = tl.program_id(0) % (phases * segments)
    lane = tl.program_id(0) // (phases * segments)
    if WIDE:
        lane = lane.to(tl.int64)
    lane = along_lanes(lane * LANES + tl.arange(0, LANES), NHWC)
    image, column = lane // result_w, (lane % result_w).to(tl.int32)
    lane_ok = image < batch
    ok = lane_ok & channel_ok
    cells, shares, inside = tap_columns(
        column, offset_w, dilation_w, scale_w, cells_w, size_w, channels, KW, ALIGN, NHWC
    )
    from_ = source + map_offset(image, channel, cells_h, cells_w, channels, NHWC)
    to = map_offset(image, channel, result_h, result_w, whole, NHWC)
    first = strip % phases + strip // phases * rows * dilation_h
    sums = zero_tiles(KH, LANES, CHANNELS, NHWC)
    upper = zero_tiles(KW, LANES, CHANNELS, NHWC)
    lower = zero_tiles(KW, LANES, CHANNELS, NHWC)
    current = tl.full([], NOWHERE, tl.int32)
    for group in range((rows + 2 * (KH - 1)) // KH):
        for i in tl.static_range(KH):
            step = group * KH + i
            y = first + offset_h + step * dilation_h
            sums = put(sums, i, zero_tile(LANES, CHANNELS, NHWC))
            if (y >= 0) & (y < size_h):
                interval = interval_of(y, scale_h, ALIGN)
                if interval != current:
                    above, below = cells_of(interval, cells_h)
                    if (interval == current + 1) & (interval > 0):
                        upper = lower
                    else:
                        at = from_ + pixel_offset(above, 0, cells_w, channels, NHWC)
                        upper = load_cell_row(at, cells, shares, inside, ok)
                    at = from_ + pixel_offset(below, 0, cells_w, channels, NHWC)
                    lower = load_cell_row(at, cells, shares, inside, ok)
                    current = interval
                down = shares_of(y, interval, scale_h, ALIGN)
                sums = add_row(sums, taps, upper, lower, down, inside, lane_ok, i, KH)
            made = first + (step - KH + 1) * dilation_h
            if (step >= KH - 1) & (step < rows + KH - 1) & (made < result_h):
                value = finished(sums[(i + 1) % KH], start, behind, OUT_ACTIVATION)
                stored = value.to(source.dtype.element_ty)
                if result is not None:
                    there = to + pixel_offset(made, column, result_w, whole, NHWC)
                    tl.store(result + there, stored, mask=ok)
                moments = add_moments(moments, stored.to(tl.float32), lane_ok)
    store_moments(moments, partials, channel, channel_ok, channels, NHWC)
