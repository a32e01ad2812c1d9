"""A Triton kernel for the tests: what the kernels on resized logits take for intervals."""

import triton
import triton.language as tl

from dlv3p_kernels.triton.resize import first_pixel

LENGTH = 2048


@triton.jit
def first_pixels_kernel(
    result, cells, size, scale, inverse, ALIGN: tl.constexpr, LENGTH: tl.constexpr
):
    i = tl.arange(0, LENGTH)
    tl.store(result + i, first_pixel(i - 1, cells, size, scale, inverse, ALIGN))
