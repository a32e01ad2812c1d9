"""What the kernels share: the tile, element-wise functions, and reading of per-channel vectors.

A tile has the axes (lanes, channels) for channels_last and (channels, lanes) for contiguous maps,
so that neighbouring threads always access neighbouring elements. A lane is a pixel, or a line of
pixels that the program walks along. Per-lane and per-channel values keep both axes, one of them of
size 1. Everything is computed in float32. Tuples of tiles become registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

IDENTITY: tl.constexpr = tl.constexpr(0)
RELU: tl.constexpr = tl.constexpr(1)
RELU6: tl.constexpr = tl.constexpr(2)
SILU: tl.constexpr = tl.constexpr(3)
# Lanes that are added up one after the other at most.
GROUP: tl.constexpr = tl.constexpr(32)


@triton.jit
def along_lanes(values, NHWC: tl.constexpr):
    """A vector with one value per lane, as a tile."""
    if NHWC:
        return values[:, None]
    else:
        return values[None, :]


@triton.jit
def channels_of(CHANNELS: tl.constexpr, NHWC: tl.constexpr):
    """The channels of this program, as a tile; axis 1 of the grid runs over them."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    if NHWC:
        return channel[None, :]
    else:
        return channel[:, None]


@triton.jit
def lanes_of(
    step, BLOCKS: tl.constexpr, LANES: tl.constexpr, NHWC: tl.constexpr, WIDE: tl.constexpr
):
    """The lanes of block `step` out of the BLOCKS that this program works on, as a tile.

    Neighbouring blocks go to one program: what they read in common is then still in the L1 cache.
    """
    block = tl.program_id(0) * BLOCKS + step
    if WIDE:
        block = block.to(tl.int64)
    return along_lanes(block * LANES + tl.arange(0, LANES), NHWC)


@triton.jit
def map_offset(image, channel, height, width, channels, NHWC: tl.constexpr):
    """Offset of the first pixel of a channel of an image."""
    plane = height * width
    if NHWC:
        return image * plane * channels + channel
    else:
        return (image * channels + channel) * plane


@triton.jit
def pixel_offset(row, column, width, channels, NHWC: tl.constexpr):
    """Offset of a pixel from the first of its channel."""
    pixel = row * width + column
    if NHWC:
        return pixel * channels
    else:
        return pixel


@triton.jit
def load_vector(pointer, channel, channel_ok):
    """Per-channel values in float32; 0 beyond the last channel."""
    return tl.load(pointer + channel, mask=channel_ok, other=0.0).to(tl.float32)


@triton.jit
def load_affine(scale, shift, channel, channel_ok):
    """Scale and shift of a `ChannelAffine`; an empty tuple where it has none."""
    if scale is not None:
        return load_vector(scale, channel, channel_ok), load_vector(shift, channel, channel_ok)
    else:
        return ()


@triton.jit
def sigmoid(z):
    """1 / (1 + exp(-z))."""
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """NaN passes through, as in stock PyTorch."""
    if ACTIVATION == RELU:
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == RELU6:
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
        z = tl.minimum(z, 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == SILU:
        z = z * sigmoid(z)
    return z


@triton.jit
def through_activation(grad, z, ACTIVATION: tl.constexpr):
    """The gradient at `z`; a branch that is closed passes 0, whatever `grad` is."""
    if ACTIVATION == RELU:
        grad = tl.where(z <= 0.0, 0.0, grad)
    elif ACTIVATION == RELU6:
        grad = tl.where((z <= 0.0) | (z >= 6.0), 0.0, grad)
    elif ACTIVATION == SILU:
        slope = sigmoid(z)
        grad = grad * (slope * (1.0 + z * (1.0 - slope)))
    return grad


@triton.jit
def scaled(x, affine):
    """x * scale + shift; `affine` may be empty."""
    if len(affine) == 2:
        x = x * affine[0] + affine[1]
    return x


@triton.jit
def load_activated(pointer, ok, affine, ACTIVATION: tl.constexpr):
    """Elements through prologue; 0 where not `ok`, as the padding lies behind the prologue."""
    x = tl.load(pointer, mask=ok, other=0.0).to(tl.float32)
    if len(affine) == 2 or ACTIVATION == SILU:
        x = tl.where(ok, activate(scaled(x, affine), ACTIVATION), 0.0)
    else:
        x = activate(x, ACTIVATION)
    return x


@triton.jit
def load_bias(bias, channel, channel_ok):
    """The bias as a tuple of one; an empty tuple where there is none."""
    if bias is not None:
        return (load_vector(bias, channel, channel_ok),)
    else:
        return ()


@triton.jit
def finished(total, bias, affine, ACTIVATION: tl.constexpr):
    """activation((total + bias) * scale + shift); `bias` and `affine` may be empty."""
    if len(bias) == 1:
        total = total + bias[0]
    return activate(scaled(total, affine), ACTIVATION)


@triton.jit
def multiply_add(total, factor, x, ok):
    """total + factor * x where `ok`: beyond it not even infinity times 0 may enter."""
    return tl.where(ok, total + factor * x, total)


@triton.jit
def put(values, AT: tl.constexpr, value):
    """The tuple with element AT replaced."""
    changed = ()
    for i in tl.static_range(len(values)):
        if i == AT:
            changed = changed + (value,)
        else:
            changed = changed + (values[i],)
    return changed


@triton.jit
def zero_tile(LANES: tl.constexpr, CHANNELS: tl.constexpr, NHWC: tl.constexpr):
    """A float32 tile of zeros."""
    if NHWC:
        return tl.zeros([LANES, CHANNELS], tl.float32)
    else:
        return tl.zeros([CHANNELS, LANES], tl.float32)


@triton.jit
def zero_tiles(
    COUNT: tl.constexpr, LANES: tl.constexpr, CHANNELS: tl.constexpr, NHWC: tl.constexpr
):
    """COUNT of them."""
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (zero_tile(LANES, CHANNELS, NHWC),)
    return tiles


@triton.jit
def sum_lanes(tile, NHWC: tl.constexpr):
    """Sum over the lanes, as a per-channel tile; in groups, so that no chain of sums is long."""
    if NHWC:
        lanes: tl.constexpr = tile.shape[0]
        if lanes > GROUP:
            tile = tl.sum(tl.reshape(tile, [lanes // GROUP, GROUP, tile.shape[1]]), 1)
        return tl.sum(tile, 0, keep_dims=True)
    else:
        lanes: tl.constexpr = tile.shape[1]
        if lanes > GROUP:
            tile = tl.sum(tl.reshape(tile, [tile.shape[0], lanes // GROUP, GROUP]), 2)
        return tl.sum(tile, 1, keep_dims=True)


@triton.jit
def nearest_to_zero(tile, ok, NHWC: tl.constexpr):
    """What lies nearest to zero between the smallest and the largest value over the `ok` lanes."""
    least = tl.min(tl.where(ok, tile, float("inf")), 0 if NHWC else 1, keep_dims=True)
    greatest = tl.max(tl.where(ok, tile, float("-inf")), 0 if NHWC else 1, keep_dims=True)
    return tl.maximum(least, 0.0) + tl.minimum(greatest, 0.0)


@triton.jit
def store_sums(
    sums, partials, FIRST: tl.constexpr, ROWS: tl.constexpr, channel, channel_ok, channels,
    NHWC: tl.constexpr,
):  # fmt: skip
    """Row FIRST and following of this program's (ROWS, channels) part of `partials`."""
    if len(sums) > 0:
        rows = partials + tl.program_id(0).to(tl.int64) * ROWS * channels
        for i in tl.static_range(len(sums)):
            total = sum_lanes(sums[i], NHWC)
            tl.store(rows + (FIRST + i) * channels + channel, total, mask=channel_ok)


@triton.jit
def through_prologue(grad, at, ok, before, sums, ACTIVATION: tl.constexpr):
    """The gradient in front of the prologue, and the sums for scale and shift with its share."""
    if len(before) == 2 or ACTIVATION != 0:
        x = tl.load(at, mask=ok, other=0.0).to(tl.float32)
        grad = tl.where(ok, through_activation(grad, scaled(x, before), ACTIVATION), 0.0)
        if len(before) == 2:
            sums = (sums[0] + grad * x, sums[1] + grad)
            grad = grad * before[0]
    return grad, sums
