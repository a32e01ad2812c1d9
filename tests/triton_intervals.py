"""A Triton kernel for the tests: what the kernels on resized logits take for intervals."""

import triton
import triton.language as tl

from dlv3p_kernels.triton.resize import first_pixel, interval_of

LENGTH = 2048


@triton.jit
def intervals_kernel(
    firsts, intervals, cells, size, scale, inverse, ALIGN: tl.constexpr, LENGTH: tl.constexpr
):
    """First pixels of the intervals from -1 on; the interval of every pixel."""
    i = tl.arange(0, LENGTH)
    tl.store(firsts + i, first_pixel(i - 1, cells, size, scale, inverse, ALIGN))
    tl.store(intervals + i, interval_of(i, scale, ALIGN))
