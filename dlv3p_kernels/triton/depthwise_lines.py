"""Depthwise convolution of stride 1: programs walk down lines of rows that are `dilation` apart.

Rows r, r + d, r + 2d, ... of one column share their taps. A lane is a segment of ROWS rows of such
a line, so a source row is read and converted once per tap column and multiplied into up to KH
results that wait in registers. Lanes are numbered with the column fastest, then phase (row modulo
d), segment and image: no lane is wasted at the right border, whatever the width of the map. The
walk is unrolled; weights stay in registers over all blocks of lanes of a program.
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
    zero_tiles,
)
from .moments import add_moments, no_moments, store_moments

RUNTIME = ["batch", "channel_units", "whole_units", "source_h", "source_w", "result_h", "result_w",
           "offset_h", "offset_w", "dilation_h", "dilation_w", "phases", "segments"]  # fmt: skip


@triton.jit
def line_of(lane, result_w, phases, segments, dilation_h, ROWS: tl.constexpr):
    """Image, first row and column of a lane."""
    column = lane % result_w
    line = lane // result_w
    phase = line % phases
    line = line // phases
    return line // segments, phase + (line % segments) * (ROWS * dilation_h), column


@triton.jit
def load_taps(
    weight, channel, channel_ok, KH: tl.constexpr, KW: tl.constexpr, FLIPPED: tl.constexpr
):
    """The KH * KW weights of every channel from (channels, KH, KW), the last first if FLIPPED."""
    taps = ()
    for t in tl.static_range(KH * KW):
        index = KH * KW - 1 - t if FLIPPED else t
        taps = taps + (load_vector(weight + index, channel * (KH * KW), channel_ok),)
    return taps


@triton.jit(do_not_specialize=RUNTIME)
def depthwise_lines_fwd_kernel(
    source, weight, bias, result, in_scale, in_shift, out_scale, out_shift, partials,
    batch, channel_units, whole_units, source_h, source_w, result_h, result_w,
    offset_h, offset_w, dilation_h, dilation_w, phases, segments,
    UNIT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr,
    IN_ACTIVATION: tl.constexpr, OUT_ACTIVATION: tl.constexpr, STATISTICS: tl.constexpr,
    NHWC: tl.constexpr, LANES: tl.constexpr, CHANNELS: tl.constexpr, BLOCKS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Tap (kh, kw) of the result at (row, column) lies at row + offset_h + kh * dilation_h, ...

    The result is a range of the channels of a map with `whole_units`. Without it the statistics
    alone are gathered, of what would be stored.
    """
    channels = channel_units * UNIT
    whole = whole_units * UNIT
    channel = channels_of(CHANNELS, NHWC)
    channel_ok = channel < channels
    taps = load_taps(weight, channel, channel_ok, KH, KW, False)
    before = load_affine(in_scale, in_shift, channel, channel_ok)
    behind = load_affine(out_scale, out_shift, channel, channel_ok)
    start = load_bias(bias, channel, channel_ok)
    moments = no_moments(STATISTICS, LANES, CHANNELS, NHWC)
    for step in range(BLOCKS):
        lane = lanes_of(step, BLOCKS, LANES, NHWC, WIDE)
        image, row, column = line_of(lane, result_w, phases, segments, dilation_h, ROWS)
        lane_ok = image < batch
        ok = lane_ok & channel_ok
        from_ = source + map_offset(image, channel, source_h, source_w, channels, NHWC)
        to = map_offset(image, channel, result_h, result_w, whole, NHWC)
        sums = zero_tiles(ROWS, LANES, CHANNELS, NHWC)
        for i in tl.static_range(ROWS + KH - 1):
            y = row + offset_h + i * dilation_h
            y_ok = lane_ok & (y >= 0) & (y < source_h)
            for kw in tl.static_range(KW):
                x = column + offset_w + kw * dilation_w
                inside = y_ok & (x >= 0) & (x < source_w)
                at = from_ + pixel_offset(y, x, source_w, channels, NHWC)
                value = load_activated(at, inside & channel_ok, before, IN_ACTIVATION)
                for kh in tl.static_range(KH):
                    if (i - kh >= 0) and (i - kh < ROWS):
                        total = multiply_add(sums[i - kh], taps[kh * KW + kw], value, inside)
                        sums = put(sums, i - kh, total)
            if i >= KH - 1:
                made = row + (i - KH + 1) * dilation_h
                value = finished(sums[i - KH + 1], start, behind, OUT_ACTIVATION)
                stored = value.to(source.dtype.element_ty)
                if result is not None:
                    there = to + pixel_offset(made, column, result_w, whole, NHWC)
                    tl.store(result + there, stored, mask=ok & (made < result_h))
                made_ok = lane_ok & (made < result_h)
                moments = add_moments(moments, stored.to(tl.float32), made_ok)
    store_moments(moments, partials, channel, channel_ok, channels, NHWC)


@triton.jit(do_not_specialize=RUNTIME)
def depthwise_lines_bwd_kernel(
    source, weight, input, result, in_scale, in_shift, partials,
    batch, channel_units, whole_units, source_h, source_w, result_h, result_w,
    offset_h, offset_w, dilation_h, dilation_w, phases, segments,
    UNIT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr,
    IN_ACTIVATION: tl.constexpr, NEED_INPUT: tl.constexpr, NEED_WEIGHT: tl.constexpr,
    NHWC: tl.constexpr, LANES: tl.constexpr, CHANNELS: tl.constexpr, BLOCKS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Both gradients in one pass: every tap of `source`, the output's gradient, serves both.

    `source` is a range of the channels of a map with `whole_units`.
    `result` is the input's gradient. `partials` (programs, KH * KW + 2, channels) receives sums for
    the weight, in the order of its taps, then for scale and shift of the prologue.
    """
    channels = channel_units * UNIT
    whole = whole_units * UNIT
    channel = channels_of(CHANNELS, NHWC)
    channel_ok = channel < channels
    taps = load_taps(weight, channel, channel_ok, KH, KW, True)
    before = load_affine(in_scale, in_shift, channel, channel_ok)
    by_taps = zero_tiles(KH * KW if NEED_WEIGHT else 0, LANES, CHANNELS, NHWC)
    by_affine = zero_tiles(len(before) if NEED_INPUT else 0, LANES, CHANNELS, NHWC)
    for step in range(BLOCKS):
        lane = lanes_of(step, BLOCKS, LANES, NHWC, WIDE)
        image, row, column = line_of(lane, result_w, phases, segments, dilation_h, ROWS)
        lane_ok = image < batch
        from_ = source + map_offset(image, channel, source_h, source_w, whole, NHWC)
        base = map_offset(image, channel, result_h, result_w, channels, NHWC)
        sums = zero_tiles(ROWS, LANES, CHANNELS, NHWC)
        inputs = ()
        for i in tl.static_range(ROWS + KH - 1):
            if NEED_WEIGHT and i < ROWS:
                made = row + i * dilation_h
                at = input + base + pixel_offset(made, column, result_w, channels, NHWC)
                made_ok = lane_ok & (made < result_h) & channel_ok
                inputs = inputs + (load_activated(at, made_ok, before, IN_ACTIVATION),)
            y = row + offset_h + i * dilation_h
            y_ok = lane_ok & (y >= 0) & (y < source_h)
            for kw in tl.static_range(KW):
                x = column + offset_w + kw * dilation_w
                inside = y_ok & (x >= 0) & (x < source_w)
                at = from_ + pixel_offset(y, x, source_w, whole, NHWC)
                value = tl.load(at, mask=inside & channel_ok, other=0.0).to(tl.float32)
                for kh in tl.static_range(KH):
                    if (i - kh >= 0) and (i - kh < ROWS):
                        if NEED_INPUT:
                            total = multiply_add(sums[i - kh], taps[kh * KW + kw], value, inside)
                            sums = put(sums, i - kh, total)
                        if NEED_WEIGHT:
                            both = inside & (row + (i - kh) * dilation_h < result_h)
                            total = multiply_add(by_taps[kh * KW + kw], inputs[i - kh], value, both)
                            by_taps = put(by_taps, kh * KW + kw, total)
            if NEED_INPUT and i >= KH - 1:
                made = row + (i - KH + 1) * dilation_h
                ok = lane_ok & (made < result_h) & channel_ok
                there = base + pixel_offset(made, column, result_w, channels, NHWC)
                grad, by_affine = through_prologue(
                    sums[i - KH + 1], input + there, ok, before, by_affine, IN_ACTIVATION
                )
                tl.store(result + there, grad.to(result.dtype.element_ty), mask=ok)
    flipped = ()
    for t in tl.static_range(len(by_taps)):
        flipped = flipped + (by_taps[len(by_taps) - 1 - t],)
    store_sums(flipped, partials, 0, KH * KW + 2, channel, channel_ok, channels, NHWC)
    store_sums(by_affine, partials, KH * KW, KH * KW + 2, channel, channel_ok, channels, NHWC)
