"""The fused separable convolution: a GEMM whose left operand is made of depthwise taps on the fly.

Rows of the GEMM are pixels of the result, its sum runs over the input's channels, its columns are
the output's channels. The order of the rows is free. A lane is a block of OUT_H x OUT_W pixels that
lie so far apart that they share taps (`step` = dilation where the stride is 1): a source pixel is
read and converted once for all of them. A tile is LANES lanes; its depthwise results, rounded to
the type of the maps, go from registers into the product and never reach memory.

Taps are loaded within an `if`: there the compiler leaves them in registers and the L1 cache, and
keeps only the pointwise weights in flight in shared memory. Outside, it would stage every tap.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import (
    activate,
    finished,
    load_affine,
    load_bias,
    load_vector,
    multiply_add,
    put,
    scaled,
)
from .moments import store_tile_moments

RUNTIME = ["batch", "in_units", "out_units", "source_h", "source_w", "result_h", "result_w",
           "stride_h", "stride_w", "offset_h", "offset_w", "dilation_h", "dilation_w", "step_h",
           "step_w", "phases_h", "phases_w", "segments_h", "segments_w", "steps"]  # fmt: skip
# Values of a channel in the table behind its taps: what the sums begin with, then scale and shift
# of the prologue.
TABLE_EXTRA: tl.constexpr = tl.constexpr(3)
# Channels that lie together in the table: 16 bytes of each value follow the other.
TABLE_GROUP: tl.constexpr = tl.constexpr(4)
# Channels of a program that makes it; their number is rounded up to a multiple of this.
TABLE_CHANNELS: tl.constexpr = tl.constexpr(128)
# Slices of columns in which a tile is finished: a few copies of one must fit in the registers
# beside the others.
SLICES: tl.constexpr = tl.constexpr(8)


@triton.jit
def in_table(table, channel, TAPS: tl.constexpr):
    """Where the values of a channel lie in the table, TABLE_GROUP apart."""
    groups = channel // TABLE_GROUP * ((TAPS + TABLE_EXTRA) * TABLE_GROUP)
    return table + groups + channel % TABLE_GROUP


@triton.jit(do_not_specialize=["channels"])
def separable_table_kernel(
    weight, bias, in_scale, in_shift, mid_scale, mid_shift, table, channels, TAPS: tl.constexpr
):
    """What every channel needs, as float32 (groups, TAPS + TABLE_EXTRA, TABLE_GROUP).

    The affine between the halves is part of it: its scale is in the taps, its shift in the value
    that the sums begin with. Everything is 0 beyond the last channel.
    """
    channel = tl.program_id(0) * TABLE_CHANNELS + tl.arange(0, TABLE_CHANNELS)
    ok = channel < channels
    to = in_table(table, channel, TAPS)
    start = tl.zeros([TABLE_CHANNELS], tl.float32)
    if bias is not None:
        start = load_vector(bias, channel, ok)
    middle = load_affine(mid_scale, mid_shift, channel, ok)
    if len(middle) == 2:
        start = start * middle[0] + middle[1]
    for t in tl.static_range(TAPS):
        tap = load_vector(weight + t, channel * TAPS, ok)
        if len(middle) == 2:
            tap = tap * middle[0]
        tl.store(to + t * TABLE_GROUP, tap)
    tl.store(to + TAPS * TABLE_GROUP, start)
    before = load_affine(in_scale, in_shift, channel, ok)
    for i in tl.static_range(len(before)):
        tl.store(to + (TAPS + 1 + i) * TABLE_GROUP, before[i])


@triton.jit
def lane_axis(lane, phases, segments, step, OUT: tl.constexpr):
    """First coordinate of a lane's block along an axis, and what is left of the lane's number."""
    phase = lane % phases
    rest = lane // phases
    return phase + (rest % segments) * (OUT * step), rest // segments


@triton.jit
def stacked(tiles):
    """Four tiles one below the other."""
    upper, lower = tl.join(tiles[0], tiles[1]), tl.join(tiles[2], tiles[3])
    four = tl.permute(tl.join(upper, lower), (3, 2, 0, 1))
    return tl.reshape(four, [4 * four.shape[2], four.shape[3]])


@triton.constexpr_function
def reaches(k, size):
    """Whether a kernel of this size has tap k."""
    return 0 <= k < size


@triton.jit
def depthwise_tile(
    source, table, channel, channels, row, column, lane_ok,
    source_h, source_w, dilation_h, dilation_w,
    KH: tl.constexpr, KW: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr,
    APART_H: tl.constexpr, APART_W: tl.constexpr, FIRST_H: tl.constexpr, LAST_H: tl.constexpr,
    FIRST_W: tl.constexpr, LAST_W: tl.constexpr, PROLOGUE: tl.constexpr,
    IN_ACTIVATION: tl.constexpr, MID_ACTIVATION: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Depthwise results of every block, (OUT_H * OUT_W * LANES, channels), output by output.

    `source` points at tap (0, 0) of each lane's first output, which is pixel (row, column). Output
    (r, s) has its tap (kh, kw) at i = r * APART_H + kh, j = s * APART_W + kw in units of dilation.
    Taps outside FIRST to LAST lie outside the map for every lane.
    """
    values = in_table(table, channel, KH * KW)
    taps = ()
    for t in tl.static_range(KH * KW):
        taps = taps + (tl.load(values + t * TABLE_GROUP),)
    values += KH * KW * TABLE_GROUP
    start = tl.load(values) + tl.zeros_like(row)
    before = ()
    if PROLOGUE:
        before = (tl.load(values + TABLE_GROUP), tl.load(values + 2 * TABLE_GROUP))
    sums = ()
    for _ in tl.static_range(OUT_H * OUT_W):
        sums = sums + (start,)
    for i in tl.static_range(FIRST_H, LAST_H):
        y = row + i * dilation_h
        y_ok = lane_ok & (y >= 0) & (y < source_h)
        for j in tl.static_range(FIRST_W, LAST_W):
            x = column + j * dilation_w
            inside = y_ok & (x >= 0) & (x < source_w)
            at = source + (i * dilation_h * source_w + j * dilation_w) * channels
            ok = inside if EVEN else inside & (channel < channels)
            value = tl.load(at, mask=ok, other=0.0).to(tl.float32)
            value = activate(scaled(value, before), IN_ACTIVATION)
            for r in tl.static_range(OUT_H):
                for s in tl.static_range(OUT_W):
                    if reaches(i - r * APART_H, KH) and reaches(j - s * APART_W, KW):
                        tap = taps[(i - r * APART_H) * KW + j - s * APART_W]
                        total = multiply_add(sums[r * OUT_W + s], tap, value, inside)
                        sums = put(sums, r * OUT_W + s, total)
    rounded = ()
    for out in tl.static_range(OUT_H * OUT_W):
        value = finished(sums[out], (), (), MID_ACTIVATION)
        rounded = rounded + (value.to(source.dtype.element_ty),)
    return stacked(rounded)


@triton.jit
def halves(tile):
    """The left and the right half of the columns; both stay in the registers they are in."""
    parts = tl.reshape(tile, [tile.shape[0], 2, tile.shape[1] // 2])
    return tl.split(tl.permute(parts, (0, 2, 1)))


@triton.jit
def slices(tile, COUNT: tl.constexpr):
    """The columns in COUNT parts, a power of two; fewer where they would have less than 16 each."""
    parts = (tile,)
    for _ in tl.static_range(5):
        if len(parts) < COUNT and parts[0].shape[1] >= 32:
            wide, parts = parts, ()
            for i in tl.static_range(len(wide)):
                parts = parts + halves(wide[i])
    return parts


@triton.jit
def finish_tile(
    total, pixel, pixel_ok, channel, channels, bias, scale, shift, residual, result, partials,
    OUT_ACTIVATION: tl.constexpr, STATISTICS: tl.constexpr,
):  # fmt: skip
    """Statistics of the raw sums as they would be stored, epilogue, residual; stores the result.

    `total` is (pixels, channels), `pixel` and `pixel_ok` (pixels, 1), `channel` (1, channels).
    """
    channel_ok = channel < channels
    start = load_bias(bias, channel, channel_ok)
    if STATISTICS:
        raw = finished(total, start, (), 0).to(result.dtype.element_ty).to(tl.float32)
        store_tile_moments(raw, pixel_ok, partials, channel, channel_ok, channels)
    behind = load_affine(scale, shift, channel, channel_ok)
    value = finished(total, start, behind, OUT_ACTIVATION)
    ok = pixel_ok & channel_ok
    at = pixel * channels + channel
    if residual is not None:
        value += tl.load(residual + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(result + at, value.to(result.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=RUNTIME)
def separable_fwd_kernel(
    source, table, pw_weight, pw_bias, out_scale, out_shift, residual, result, sums, partials,
    batch, in_units, out_units, source_h, source_w, result_h, result_w,
    stride_h, stride_w, offset_h, offset_w, dilation_h, dilation_w, step_h, step_w,
    phases_h, phases_w, segments_h, segments_w, steps,
    IN_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    OUT_H: tl.constexpr, OUT_W: tl.constexpr, APART_H: tl.constexpr, APART_W: tl.constexpr,
    FIRST_H: tl.constexpr, LAST_H: tl.constexpr, FIRST_W: tl.constexpr, LAST_W: tl.constexpr,
    PROLOGUE: tl.constexpr, IN_ACTIVATION: tl.constexpr, MID_ACTIVATION: tl.constexpr,
    OUT_ACTIVATION: tl.constexpr, STATISTICS: tl.constexpr, EVEN: tl.constexpr,
    LANES: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of lanes, tiles of output channels, parts of the input channels).

    A part is `steps` times BLOCK_K input channels. Where there are several, `sums` (parts, pixels,
    output channels) receives them in float32 and `separable_finish_kernel` does the rest. EVEN: the
    input's channels are a multiple of BLOCK_K.
    """
    in_channels = in_units * IN_UNIT
    out_channels = out_units * OUT_UNIT
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    if WIDE:
        lane = lane.to(tl.int64)
    column, rest = lane_axis(lane, phases_w, segments_w, step_w, OUT_W)
    row, image = lane_axis(rest, phases_h, segments_h, step_h, OUT_H)
    lane_ok = (image < batch)[:, None]
    y = (row * stride_h + offset_h)[:, None]
    x = (column * stride_w + offset_w)[:, None]
    from_ = source + ((image[:, None] * source_h + y) * source_w + x) * in_channels
    k = tl.arange(0, BLOCK_K)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([OUT_H * OUT_W * LANES, BLOCK_N], tl.float32)
    first = tl.program_id(2) * steps * BLOCK_K
    for step in range(steps):
        channel = first + step * BLOCK_K + k
        weight = pw_weight + n[None, :] * in_channels + channel[:, None]
        weight_ok = (n < out_channels)[None, :]
        if not EVEN:
            weight_ok = weight_ok & (channel < in_channels)[:, None]
        right = tl.load(weight, mask=weight_ok, other=0.0)
        # The last part may be shorter.
        if first + step * BLOCK_K < in_channels:
            left = depthwise_tile(
                from_ + channel[None, :], table, channel[None, :], in_channels, y, x, lane_ok,
                source_h, source_w, dilation_h, dilation_w,
                KH, KW, OUT_H, OUT_W, APART_H, APART_W, FIRST_H, LAST_H, FIRST_W, LAST_W,
                PROLOGUE, IN_ACTIVATION, MID_ACTIVATION, EVEN,
            )  # fmt: skip
        else:
            left = tl.zeros([OUT_H * OUT_W * LANES, BLOCK_K], source.dtype.element_ty)
        total = tl.dot(left, right, total, input_precision="ieee")
    out = tl.arange(0, OUT_H * OUT_W)[:, None]
    row = row[None, :] + out // OUT_W * step_h
    column = column[None, :] + out % OUT_W * step_w
    pixel_ok = (image < batch)[None, :] & (row < result_h) & (column < result_w)
    pixel = (image[None, :] * result_h + row) * result_w + column
    pixel = tl.reshape(pixel, [OUT_H * OUT_W * LANES])[:, None]
    pixel_ok = tl.reshape(pixel_ok, [OUT_H * OUT_W * LANES])[:, None]
    parts = slices(total, SLICES)
    columns: tl.constexpr = parts[0].shape[1]
    for i in tl.static_range(len(parts)):
        n = tl.program_id(1) * BLOCK_N + i * columns + tl.arange(0, columns)[None, :]
        if sums is None:
            finish_tile(
                parts[i], pixel, pixel_ok, n, out_channels, pw_bias, out_scale, out_shift,
                residual, result, partials, OUT_ACTIVATION, STATISTICS,
            )  # fmt: skip
        else:
            part = tl.program_id(2).to(tl.int64) * batch * result_h * result_w * out_channels
            at = sums + part + pixel * out_channels + n
            tl.store(at, parts[i], mask=pixel_ok & (n < out_channels))


@triton.jit(do_not_specialize=["pixels", "out_units", "parts"])
def separable_finish_kernel(
    sums, pw_bias, out_scale, out_shift, residual, result, partials, pixels, out_units, parts,
    OUT_UNIT: tl.constexpr, OUT_ACTIVATION: tl.constexpr, STATISTICS: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Adds up the parts of `separable_fwd_kernel` in their order, and finishes."""
    channels = out_units * OUT_UNIT
    pixel = (tl.program_id(0) * PIXELS + tl.arange(0, PIXELS))[:, None]
    if WIDE:
        pixel = pixel.to(tl.int64)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    ok = (pixel < pixels) & (channel < channels)
    at = sums + pixel * channels + channel
    total = tl.load(at, mask=ok, other=0.0)
    stride = pixels.to(tl.int64) * channels
    for _ in range(1, parts):
        at += stride
        total += tl.load(at, mask=ok, other=0.0)
    finish_tile(
        total, pixel, pixel < pixels, channel, channels, pw_bias, out_scale, out_shift, residual,
        result, partials, OUT_ACTIVATION, STATISTICS,
    )  # fmt: skip
