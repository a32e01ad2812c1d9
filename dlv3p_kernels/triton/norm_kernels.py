"""Kernels of batch norm: every one reads its maps once, in blocks of a plane.

Channels_last maps are one plane of N * H * W pixels, contiguous ones N planes of H * W. The fastest
axis, channels or plane, comes in units of UNIT elements, so that the compiler knows its alignment.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import (
    activate,
    along_lanes,
    channels_of,
    load_vector,
    map_offset,
    pixel_offset,
    store_sums,
    through_activation,
    zero_tiles,
)
from .moments import add_moments, no_moments, store_moments

RUNTIME = ["images", "channels", "plane", "chunks", "count"]


@triton.jit
def sizes_of(channels, plane, UNIT: tl.constexpr, NHWC: tl.constexpr):
    """Channels and pixels of a plane, in elements."""
    if NHWC:
        return channels * UNIT, plane
    else:
        return channels, plane * UNIT


@triton.jit
def pixels_of(
    step, images, plane, chunks, BLOCKS: tl.constexpr, LANES: tl.constexpr, NHWC: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Image and pixels of one of this program's blocks, and which of them exist."""
    block = tl.program_id(0) * BLOCKS + step
    if WIDE:
        block = block.to(tl.int64)
    image = block // chunks
    pixel = along_lanes((block % chunks) * LANES + tl.arange(0, LANES), NHWC)
    return image, pixel, pixel < tl.where(image < images, plane, 0)


@triton.jit
def load_statistics(mean, invstd, weight, bias, channel, channel_ok):
    """Mean, invstd, then weight and bias as tuples of one or none."""
    scale = ()
    if weight is not None:
        scale = (load_vector(weight, channel, channel_ok),)
    shift = ()
    if bias is not None:
        shift = (load_vector(bias, channel, channel_ok),)
    return (
        load_vector(mean, channel, channel_ok),
        load_vector(invstd, channel, channel_ok),
        scale,
        shift,
    )


@triton.jit
def normalised(input, residual, there, ok, statistics):
    """The normalised input, and what the activation is applied to."""
    mean, invstd, scale, shift = statistics
    x = (tl.load(input + there, mask=ok, other=0.0).to(tl.float32) - mean) * invstd
    z = x
    if len(scale) == 1:
        z = z * scale[0]
    if len(shift) == 1:
        z = z + shift[0]
    if residual is not None:
        z = z + tl.load(residual + there, mask=ok, other=0.0).to(tl.float32)
    return x, z


@triton.jit(do_not_specialize=RUNTIME)
def batch_norm_stats_kernel(
    input, partials, images, channels, plane, chunks,
    UNIT: tl.constexpr, NHWC: tl.constexpr, LANES: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Count, mean and M2 of every program, for `merge_moments_kernel`."""
    channels, plane = sizes_of(channels, plane, UNIT, NHWC)
    channel = channels_of(CHANNELS, NHWC)
    channel_ok = channel < channels
    moments = no_moments(True, LANES, CHANNELS, NHWC)
    for step in range(BLOCKS):
        image, pixel, exists = pixels_of(step, images, plane, chunks, BLOCKS, LANES, NHWC, WIDE)
        there = map_offset(image, channel, 1, plane, channels, NHWC)
        there = there + pixel_offset(0, pixel, plane, channels, NHWC)
        x = tl.load(input + there, mask=exists & channel_ok, other=0.0).to(tl.float32)
        moments = add_moments(moments, x, exists)
    store_moments(moments, partials, channel, channel_ok, channels, NHWC)


@triton.jit(do_not_specialize=["channels", "unbias", "momentum", "eps"])
def batch_norm_finalise_kernel(
    mean, var, running_mean, running_var, invstd, new_mean, new_var,
    channels, unbias, momentum, eps, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Inverse standard deviation; running statistics, which take `var * unbias`."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    ok = channel < channels
    variance = load_vector(var, channel, ok)
    tl.store(invstd + channel, 1.0 / tl.sqrt_rn(variance + eps), mask=ok)
    if running_mean is not None:
        average = load_vector(mean, channel, ok)
        kept = (1.0 - momentum) * load_vector(running_mean, channel, ok)
        tl.store(new_mean + channel, kept + momentum * average, mask=ok)
        kept = (1.0 - momentum) * load_vector(running_var, channel, ok)
        tl.store(new_var + channel, kept + momentum * (variance * unbias), mask=ok)


@triton.jit(do_not_specialize=RUNTIME)
def batch_norm_apply_kernel(
    input, mean, invstd, weight, bias, residual, result, images, channels, plane, chunks,
    UNIT: tl.constexpr, ACTIVATION: tl.constexpr, NHWC: tl.constexpr, LANES: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """act((x - mean) * invstd * weight + bias + residual)."""
    channels, plane = sizes_of(channels, plane, UNIT, NHWC)
    channel = channels_of(CHANNELS, NHWC)
    channel_ok = channel < channels
    center, factor, scale, shift = load_statistics(mean, invstd, weight, bias, channel, channel_ok)
    if len(scale) == 1:  # one vector less to hold
        factor = factor * scale[0]
    for step in range(BLOCKS):
        image, pixel, exists = pixels_of(step, images, plane, chunks, BLOCKS, LANES, NHWC, WIDE)
        there = map_offset(image, channel, 1, plane, channels, NHWC)
        there = there + pixel_offset(0, pixel, plane, channels, NHWC)
        ok = exists & channel_ok
        _, z = normalised(input, residual, there, ok, (center, factor, (), shift))
        tl.store(result + there, activate(z, ACTIVATION).to(result.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=RUNTIME)
def batch_norm_bwd_reduce_kernel(
    grad, input, mean, invstd, weight, bias, residual, partials, images, channels, plane, chunks,
    UNIT: tl.constexpr, ACTIVATION: tl.constexpr, NHWC: tl.constexpr, LANES: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sums of g and of g times the normalised input, (programs, 2, channels)."""
    channels, plane = sizes_of(channels, plane, UNIT, NHWC)
    channel = channels_of(CHANNELS, NHWC)
    channel_ok = channel < channels
    statistics = load_statistics(mean, invstd, weight, bias, channel, channel_ok)
    sums = zero_tiles(2, LANES, CHANNELS, NHWC)
    for step in range(BLOCKS):
        image, pixel, exists = pixels_of(step, images, plane, chunks, BLOCKS, LANES, NHWC, WIDE)
        there = map_offset(image, channel, 1, plane, channels, NHWC)
        there = there + pixel_offset(0, pixel, plane, channels, NHWC)
        ok = exists & channel_ok
        x, z = normalised(input, residual, there, ok, statistics)
        g = tl.load(grad + there, mask=ok, other=0.0).to(tl.float32)
        g = tl.where(ok, through_activation(g, z, ACTIVATION), 0.0)
        sums = (sums[0] + g, sums[1] + g * x)
    store_sums(sums, partials, 0, 2, channel, channel_ok, channels, NHWC)


@triton.jit(do_not_specialize=RUNTIME)
def batch_norm_bwd_apply_kernel(
    grad, input, mean, invstd, weight, bias, residual, sum_grad, sum_grad_normalised,
    by_input, by_residual, images, channels, plane, chunks, count,
    UNIT: tl.constexpr, ACTIVATION: tl.constexpr, NHWC: tl.constexpr, LANES: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients by input, through the statistics where the sums are given, and by residual."""
    channels, plane = sizes_of(channels, plane, UNIT, NHWC)
    channel = channels_of(CHANNELS, NHWC)
    channel_ok = channel < channels
    statistics = load_statistics(mean, invstd, weight, bias, channel, channel_ok)
    factor = statistics[1]
    if weight is not None:
        factor = factor * statistics[2][0]
    if sum_grad is not None:
        level = load_vector(sum_grad, channel, channel_ok) / count
        slope = load_vector(sum_grad_normalised, channel, channel_ok) / count
    for step in range(BLOCKS):
        image, pixel, exists = pixels_of(step, images, plane, chunks, BLOCKS, LANES, NHWC, WIDE)
        there = map_offset(image, channel, 1, plane, channels, NHWC)
        there = there + pixel_offset(0, pixel, plane, channels, NHWC)
        ok = exists & channel_ok
        x, z = normalised(input, residual, there, ok, statistics)
        g = tl.load(grad + there, mask=ok, other=0.0).to(tl.float32)
        g = through_activation(g, z, ACTIVATION)
        if by_residual is not None:
            tl.store(by_residual + there, g.to(by_residual.dtype.element_ty), mask=ok)
        if sum_grad is not None:
            g = g - level - x * slope
        tl.store(by_input + there, (g * factor).to(by_input.dtype.element_ty), mask=ok)
