"""The pointwise convolution of several maps at once, each through its norm and activation.

One product of matrices: its rows are pixels, its sum runs over the channels of one map after the
other. A block of a map is scaled, shifted and activated between memory and the tensor cores, so
neither what stands behind the norms nor all maps side by side ever exist.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import activate, load_affine, load_bias, scaled

# Maps that a kernel takes at most; absent ones are None.
MOST_MAPS = 6
RUNTIME = ["pixels", "channel_units", "out_units"]


@triton.jit
def add_map(
    total, source, pixel, pixel_ok, n, out_channels, channels, first, in_channels, scale, shift,
    pw_weight, ACTIVATION: tl.constexpr, EVEN: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The product with one more map, whose channels are `first` and following of all."""
    for step in range((channels + BLOCK_K - 1) // BLOCK_K):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        k_ok = k < channels
        at = source + pixel * channels + k[None, :]
        ok = pixel_ok if EVEN else pixel_ok & k_ok[None, :]
        x = tl.load(at, mask=ok, other=0.0)
        affine = load_affine(scale, shift, (first + k)[None, :], k_ok[None, :])
        left = activate(scaled(x.to(tl.float32), affine), ACTIVATION).to(x.dtype)
        weight = pw_weight + n * in_channels + (first + k)[:, None]
        weight_ok = n < out_channels
        if not EVEN:
            weight_ok = weight_ok & k_ok[:, None]
        right = tl.load(weight, mask=weight_ok, other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=RUNTIME)
def aspp_projection_fwd_kernel(
    map0, map1, map2, map3, map4, map5, scale, shift, pw_weight, pw_bias, result,
    pixels, channel_units, out_units,
    UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, MAPS: tl.constexpr, ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of output channels, tiles of pixels): what reads the same pixels runs together.

    `scale` and `shift` are those of all maps, which have equally many channels. EVEN: a multiple of
    BLOCK_K.
    """
    channels = channel_units * UNIT
    out_channels = out_units * OUT_UNIT
    pixel = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    if WIDE:
        pixel = pixel.to(tl.int64)
    pixel = pixel[:, None]
    pixel_ok = pixel < pixels
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    maps = (map0, map1, map2, map3, map4, map5)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i in tl.static_range(MAPS):
        total = add_map(
            total, maps[i], pixel, pixel_ok, n, out_channels, channels, i * channels,
            MAPS * channels, scale, shift, pw_weight, ACTIVATION, EVEN, BLOCK_K,
        )  # fmt: skip
    bias = load_bias(pw_bias, n, n < out_channels)
    if len(bias) == 1:
        total = total + bias[0]
    ok = pixel_ok & (n < out_channels)
    tl.store(result + pixel * out_channels + n, total.to(result.dtype.element_ty), mask=ok)
