"""Depthwise convolution of any size, stride and direction: a lane is a pixel, taps are looped over.

Forward and input gradient are both sums of weight times source pixel. Along an axis, tap k of
result pixel p lies at (p * up + offset + k * step) / down, where that is a whole number inside the
source: up = stride, step = dilation, down = 1 forward; up = 1, step = -dilation, down = stride
backward.

The weight gradient has its lanes on the pixels of the output: the output's gradient is read once
for a group of taps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import (
    channels_of,
    finished,
    lanes_of,
    load_activated,
    load_affine,
    load_bias,
    load_vector,
    map_offset,
    multiply_add,
    pixel_offset,
    put,
    store_sums,
    through_prologue,
    zero_tile,
    zero_tiles,
)
from .moments import add_moments, no_moments, store_moments

RUNTIME = ["batch", "channel_units", "whole_units", "source_h", "source_w", "result_h", "result_w",
           "up_h", "up_w", "offset_h", "offset_w", "step_h", "step_w"]  # fmt: skip


@triton.jit
def pixel_of(lane, height, width):
    """Image, row and column of a pixel."""
    line = lane // width
    return line // height, line % height, lane % width


@triton.jit
def tap_axis(at, up, offset, step, k, DOWN: tl.constexpr, size):
    """Coordinate of tap k in the source, and whether it is one."""
    at = at * up + offset + k * step
    if DOWN == 1:
        return at, (at >= 0) & (at < size)
    else:
        whole = at // DOWN
        return whole, (at >= 0) & (whole * DOWN == at) & (whole < size)


@triton.jit
def add_tap(
    total, from_, weight, y, y_ok, column, up_w, offset_w, step_w, kw, DOWN_W: tl.constexpr,
    width, channels, channel, channel_ok, before, ACTIVATION: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    """The sum with one more tap; `weight` points at the tap of channel 0."""
    x, x_ok = tap_axis(column, up_w, offset_w, step_w, kw, DOWN_W, width)
    inside = y_ok & x_ok
    at = from_ + pixel_offset(y, x, width, channels, NHWC)
    value = load_activated(at, inside & channel_ok, before, ACTIVATION)
    return multiply_add(total, load_vector(weight, channel, channel_ok), value, inside)


@triton.jit(do_not_specialize=RUNTIME)
def depthwise_taps_kernel(
    source, weight, bias, result, in_scale, in_shift, out_scale, out_shift, input, partials,
    batch, channel_units, whole_units, source_h, source_w, result_h, result_w,
    up_h, up_w, offset_h, offset_w, step_h, step_w, DOWN_H: tl.constexpr, DOWN_W: tl.constexpr,
    UNIT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BACKWARD: tl.constexpr,
    IN_ACTIVATION: tl.constexpr, OUT_ACTIVATION: tl.constexpr, STATISTICS: tl.constexpr,
    NHWC: tl.constexpr, LANES: tl.constexpr, CHANNELS: tl.constexpr, BLOCKS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """`weight` is (KH * KW, channels). BACKWARD: prologue at the result, whose x is `input`.

    What belongs to the convolution's output is a range of the channels of a map with `whole_units`.
    Without `result` the statistics alone are gathered, of what would be stored.
    """
    channels = channel_units * UNIT
    whole = whole_units * UNIT
    from_channels = whole if BACKWARD else channels
    to_channels = channels if BACKWARD else whole
    channel = channels_of(CHANNELS, NHWC)
    channel_ok = channel < channels
    before = load_affine(in_scale, in_shift, channel, channel_ok)
    behind = load_affine(out_scale, out_shift, channel, channel_ok)
    start = load_bias(bias, channel, channel_ok)
    moments = no_moments(STATISTICS, LANES, CHANNELS, NHWC)
    by_affine = zero_tiles(len(before) if BACKWARD else 0, LANES, CHANNELS, NHWC)
    for step in range(BLOCKS):
        lane = lanes_of(step, BLOCKS, LANES, NHWC, WIDE)
        image, row, column = pixel_of(lane, result_h, result_w)
        lane_ok = image < batch
        from_ = source + map_offset(image, channel, source_h, source_w, from_channels, NHWC)
        total = zero_tile(LANES, CHANNELS, NHWC)
        for kh in range(KH):
            y, y_ok = tap_axis(row, up_h, offset_h, step_h, kh, DOWN_H, source_h)
            y_ok = y_ok & lane_ok
            of_row = weight + kh * KW * channels
            for kw in tl.static_range(KW):
                total = add_tap(
                    total, from_, of_row + kw * channels, y, y_ok, column, up_w,
                    offset_w, step_w, kw, DOWN_W, source_w, from_channels, channel, channel_ok,
                    () if BACKWARD else before, 0 if BACKWARD else IN_ACTIVATION, NHWC,
                )  # fmt: skip
        there = map_offset(image, channel, result_h, result_w, to_channels, NHWC)
        there = there + pixel_offset(row, column, result_w, to_channels, NHWC)
        ok = lane_ok & channel_ok
        if BACKWARD:
            total, by_affine = through_prologue(
                total, input + there, ok, before, by_affine, IN_ACTIVATION
            )
        else:
            total = finished(total, start, behind, OUT_ACTIVATION)
        stored = total.to(source.dtype.element_ty)
        if result is not None:
            tl.store(result + there, stored, mask=ok)
        moments = add_moments(moments, stored.to(tl.float32), lane_ok)
    store_moments(moments, partials, channel, channel_ok, channels, NHWC)
    store_sums(by_affine, partials, 0, 2, channel, channel_ok, channels, NHWC)


@triton.jit(do_not_specialize=RUNTIME)
def depthwise_taps_wgrad_kernel(
    source, grad, in_scale, in_shift, partials,
    batch, channel_units, whole_units, source_h, source_w, result_h, result_w,
    up_h, up_w, offset_h, offset_w, step_h, step_w,
    UNIT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr,
    IN_ACTIVATION: tl.constexpr,
    NHWC: tl.constexpr, LANES: tl.constexpr, CHANNELS: tl.constexpr, BLOCKS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """TAPS taps of the weight's gradient, those of axis 2 of the grid, into `partials`.

    `grad` is a range of the channels of a map with `whole_units`; `partials` is (programs, number
    of taps rounded up to a multiple of TAPS, channels).
    """
    channels = channel_units * UNIT
    whole = whole_units * UNIT
    channel = channels_of(CHANNELS, NHWC)
    channel_ok = channel < channels
    before = load_affine(in_scale, in_shift, channel, channel_ok)
    first = tl.program_id(2) * TAPS
    by_taps = zero_tiles(TAPS, LANES, CHANNELS, NHWC)
    for step in range(BLOCKS):
        lane = lanes_of(step, BLOCKS, LANES, NHWC, WIDE)
        image, row, column = pixel_of(lane, result_h, result_w)
        lane_ok = image < batch
        at = map_offset(image, channel, result_h, result_w, whole, NHWC)
        at = grad + at + pixel_offset(row, column, result_w, whole, NHWC)
        by = tl.load(at, mask=lane_ok & channel_ok, other=0.0).to(tl.float32)
        from_ = source + map_offset(image, channel, source_h, source_w, channels, NHWC)
        for t in tl.static_range(TAPS):
            kh, kw = (first + t) // KW, (first + t) % KW
            y, y_ok = tap_axis(row, up_h, offset_h, step_h, kh, 1, source_h)
            x, x_ok = tap_axis(column, up_w, offset_w, step_w, kw, 1, source_w)
            inside = lane_ok & y_ok & x_ok
            at = from_ + pixel_offset(y, x, source_w, channels, NHWC)
            value = load_activated(at, inside & channel_ok, before, IN_ACTIVATION)
            by_taps = put(by_taps, t, multiply_add(by_taps[t], by, value, inside))
    rows: tl.constexpr = (KH * KW + TAPS - 1) // TAPS * TAPS
    part = partials + first * channels
    store_sums(by_taps, part, 0, rows, channel, channel_ok, channels, NHWC)
