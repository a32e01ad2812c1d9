"""The depthwise convolution of a resized map, which is never made: both gradients in one pass.

A lane is a column of intervals (resize.py), the resized pixels between the same four cells, and
walks down the intervals of a band of rows of cells. Every pixel gathers the gradient at its taps
once: times the weights for its share of the four cells, times its own value, mixed from the same
cells, for the weights. The gradient at a row of columns is loaded once for all pixels and tap
columns that meet there. A cell is complete with what the interval above has left for it and with
what the lane on its left has for its right cell. Nothing is added in memory, and every run sums in
the same order; the interval above the band and the lane in front of the first are made twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import (
    along_lanes,
    channels_of,
    map_offset,
    multiply_add,
    pixel_offset,
    put,
    store_sums,
    zero_tile,
    zero_tiles,
)
from .depthwise_lines import load_taps
from .resize import cells_of, shares_of
from .upsample_backward import intervals_of, receiving
from .upsample_tiles import mixed, row_range

RUNTIME = ["batch", "channel_units", "whole_units", "cells_h", "cells_w", "size_h", "size_w",
           "grad_h", "grad_w", "scale_h", "inverse_h", "scale_w", "inverse_w", "offset_h",
           "offset_w", "dilation_h", "bands", "band_rows"]  # fmt: skip


@triton.constexpr_function
def tap_at(distance, row, kernel, dilation):
    """The tap of a row that lies this far behind its last one; -1 where there is none."""
    kw, rest = kernel - 1 - distance // dilation, distance % dilation
    return row * kernel + kw if rest == 0 and 0 <= kw < kernel else -1


@triton.constexpr_function
def is_met(m, columns, kernel, dilation):
    """Whether some of `columns` neighbouring pixels has a tap at the m-th column."""
    return any((m - j) % dilation == 0 and 0 <= m - j < kernel * dilation for j in range(columns))


@triton.jit
def load_cell(source, row, column, cells_w, channels, ok, NHWC: tl.constexpr):
    """A cell of every lane."""
    at = source + pixel_offset(row, column, cells_w, channels, NHWC)
    return tl.load(at, mask=ok, other=0.0).to(tl.float32)


@triton.jit
def pixels_of(
    left, right, first, last, across, cells_w, scale_w, row_ok,
    COLUMNS: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """COLUMNS pixels from the values at two cells: theirs, shares that go back, which exist."""
    values = ()
    shares = ()
    exist = ()
    for j in tl.static_range(COLUMNS):
        x = first + j
        share = shares_of(x, across, scale_w, ALIGN)
        values = values + (mixed(left, right, share),)
        shares = shares + (receiving(share, across, cells_w),)
        exist = exist + (row_ok & (x < last),)
    return values, shares, exist


@triton.jit
def add_tap_row(
    totals, by_taps, grad, column, width, pitch, row_ok, channel_ok, taps, values, counted,
    ROW: tl.constexpr, KW: tl.constexpr, DILATION_W: tl.constexpr,
):  # fmt: skip
    """The pixels' totals, and the sums for the weights, with one tap row of the gradient.

    `grad` points at `column`, where the last tap of the first pixel lies.
    """
    COLUMNS: tl.constexpr = len(values)
    for m in tl.static_range(COLUMNS + (KW - 1) * DILATION_W):
        if is_met(m, COLUMNS, KW, DILATION_W):
            inside = row_ok & (column + m >= 0) & (column + m < width)
            value = tl.load(grad + m * pitch, mask=inside & channel_ok, other=0.0).to(tl.float32)
            for j in tl.static_range(COLUMNS):
                if tap_at(m - j, ROW, KW, DILATION_W) >= 0:
                    if len(totals) > 0:
                        tap = taps[tap_at(m - j, ROW, KW, DILATION_W)]
                        totals = put(totals, j, multiply_add(totals[j], tap, value, inside))
                    if len(by_taps) > 0:
                        by_tap = by_taps[tap_at(m - j, ROW, KW, DILATION_W)]
                        by_tap = multiply_add(by_tap, values[j], value, inside & counted[j])
                        by_taps = put(by_taps, tap_at(m - j, ROW, KW, DILATION_W), by_tap)
    return totals, by_taps


@triton.jit
def of_left_neighbour(tile, NHWC: tl.constexpr):
    """Each lane's value of the lane in front of it; the first one keeps its own."""
    axis: tl.constexpr = 0 if NHWC else 1
    lane = along_lanes(tl.maximum(tl.arange(0, tile.shape[axis]) - 1, 0), NHWC)
    return tl.gather(tile, tl.broadcast_to(lane, tile.shape), axis)


@triton.jit(do_not_specialize=RUNTIME)
def decoder_depthwise_bwd_kernel(
    grad, source, weight, by_source, partials,
    batch, channel_units, whole_units, cells_h, cells_w, size_h, size_w, grad_h, grad_w,
    scale_h, inverse_h, scale_w, inverse_w, offset_h, offset_w, dilation_h, bands, band_rows,
    UNIT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DILATION_W: tl.constexpr,
    COLUMNS: tl.constexpr, NEED_INPUT: tl.constexpr, NEED_WEIGHT: tl.constexpr,
    ALIGN: tl.constexpr, NHWC: tl.constexpr, LANES: tl.constexpr, CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """`grad` is a range of the channels of a map with `whole_units`; tap (kh, kw) of pixel (y, x)
    meets it at row y + offset_h - kh * dilation_h, ...

    `partials` (programs, KH * KW, channels) receives the sums for the weight.
    """
    channels = channel_units * UNIT
    whole = whole_units * UNIT
    channel = channels_of(CHANNELS, NHWC)
    channel_ok = channel < channels
    if WIDE:
        channels = channels.to(tl.int64)
        whole = whole.to(tl.int64)
    taps = load_taps(weight, channel, channel_ok, KH, KW, False)
    by_taps = zero_tiles(KH * KW if NEED_WEIGHT else 0, LANES, CHANNELS, NHWC)
    image, band, across, lane_ok = intervals_of(batch, cells_w, bands, LANES, WIDE)
    image, band = along_lanes(image, NHWC), along_lanes(band, NHWC)
    across, lane_ok = along_lanes(across, NHWC), along_lanes(lane_ok, NHWC)
    owned = lane_ok & along_lanes(tl.arange(0, LANES) > 0, NHWC)
    ok = lane_ok & channel_ok
    left, right = cells_of(across, cells_w)
    first_column, last_column = row_range(across, cells_w, size_w, scale_w, inverse_w, ALIGN)
    chunks = (tl.max(tl.where(lane_ok, last_column - first_column, 0)) + COLUMNS - 1) // COLUMNS
    base = map_offset(image, channel, cells_h, cells_w, channels, NHWC)
    from_ = source + base
    grad += map_offset(image, channel, grad_h, grad_w, whole, NHWC)
    pitch = whole if NHWC else 1
    interval = band * band_rows - 1
    row = tl.maximum(interval, 0)
    upper_left = load_cell(from_, row, left, cells_w, channels, ok, NHWC)
    upper_right = load_cell(from_, row, right, cells_w, channels, ok, NHWC)
    for_left = zero_tile(LANES, CHANNELS, NHWC)
    for_right = zero_tile(LANES, CHANNELS, NHWC)
    for step in range(band_rows + 1):
        row = tl.minimum(interval + 1, cells_h - 1)
        lower_left = load_cell(from_, row, left, cells_w, channels, ok, NHWC)
        lower_right = load_cell(from_, row, right, cells_w, channels, ok, NHWC)
        below_left = zero_tile(LANES, CHANNELS, NHWC)
        below_right = zero_tile(LANES, CHANNELS, NHWC)
        counts = owned & ((step > 0) | (band == 0))
        first_row, last_row = row_range(interval, cells_h, size_h, scale_h, inverse_h, ALIGN)
        for r in range(tl.max(tl.where(lane_ok, last_row - first_row, 0))):
            y = first_row + r
            row_ok = lane_ok & (y < last_row)
            down = shares_of(y, interval, scale_h, ALIGN)
            at_left = mixed(upper_left, lower_left, down)
            at_right = mixed(upper_right, lower_right, down)
            row_left = zero_tile(LANES, CHANNELS, NHWC)
            row_right = zero_tile(LANES, CHANNELS, NHWC)
            for chunk in range(chunks):
                x = first_column + chunk * COLUMNS
                values, shares, exist = pixels_of(
                    at_left, at_right, x, last_column, across, cells_w, scale_w, row_ok,
                    COLUMNS, ALIGN,
                )  # fmt: skip
                counted = ()
                for j in tl.static_range(COLUMNS):
                    counted = counted + (exist[j] & counts,)
                totals = zero_tiles(COLUMNS if NEED_INPUT else 0, LANES, CHANNELS, NHWC)
                column = x + offset_w - (KW - 1) * DILATION_W
                for kh in tl.static_range(KH):
                    line = y + offset_h - kh * dilation_h
                    line_ok = row_ok & (line >= 0) & (line < grad_h)
                    totals, by_taps = add_tap_row(
                        totals, by_taps, grad + pixel_offset(line, column, grad_w, whole, NHWC),
                        column, grad_w, pitch, line_ok, channel_ok, taps, values, counted,
                        kh, KW, DILATION_W,
                    )  # fmt: skip
                for j in tl.static_range(len(totals)):
                    row_left = multiply_add(row_left, shares[j][0], totals[j], exist[j])
                    row_right = multiply_add(row_right, shares[j][1], totals[j], exist[j])
            up, down = receiving(down, interval, cells_h)
            for_left += up * row_left
            for_right += up * row_right
            below_left += down * row_left
            below_right += down * row_right
        if NEED_INPUT:
            total = for_left + of_left_neighbour(for_right, NHWC)
            complete = owned & (across >= 0) & (step > 0) & (interval < cells_h) & channel_ok
            at = base + pixel_offset(interval, across, cells_w, channels, NHWC)
            tl.store(by_source + at, total.to(source.dtype.element_ty), mask=complete)
        for_left, for_right = below_left, below_right
        upper_left, upper_right = lower_left, lower_right
        interval += 1
    store_sums(by_taps, partials, 0, KH * KW, channel, channel_ok, channels, NHWC)
