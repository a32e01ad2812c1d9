"""Sum of the weights of the classes in a map, without a map of weights."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch, upsample_launch
from .upsample_tiles import load_label_weight, load_target

WARPS = 4
# Elements of a program's block, and programs, whose sums are added up at the end.
LANES = 1024
_PROGRAMS = 4 if launch.INTERPRETED else 512


@triton.jit(do_not_specialize=["steps", "pixels", "height", "width", "target_n", "target_h",
                               "target_w", "ignore_index"])  # fmt: skip
def class_weight_sum_kernel(
    target, weight, partials, classes, steps, pixels, height, width, target_n, target_h, target_w,
    ignore_index, LANES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sums of `steps` blocks of pixels: of the weights of their classes, 1 where there are none."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    total = tl.zeros([LANES], tl.float32)
    for step in range(steps):
        pixel = (program * steps + step) * LANES + tl.arange(0, LANES)
        line = pixel // width
        at = (line // height) * target_n + (line % height) * target_h + (pixel % width) * target_w
        label, counted, valid = load_target(target + at, pixel < pixels, ignore_index, classes)
        total += tl.where(counted, load_label_weight(weight, label, valid), 0.0)
    tl.store(partials + tl.program_id(0), tl.sum(total, 0))


def class_weight_sum(
    target: Tensor, weight: Tensor | None, ignore_index: int, like: Tensor
) -> Tensor:
    """Sum over the pixels that are not ignored of the weights of their classes, 1 without."""
    result = like.new_zeros((), dtype=torch.float32)
    pixels = target.numel()
    if not pixels:
        return result
    with torch.cuda.device_of(target):
        steps = triton.cdiv(pixels, LANES * _PROGRAMS)
        programs = triton.cdiv(pixels, LANES * steps)
        partials = launch.workspace(like, programs, 1, 1)
        class_weight_sum_kernel[(programs,)](
            target, launch.vector(weight), partials, like.size(1), steps, pixels,
            target.size(1), target.size(2), *target.stride(), ignore_index, LANES=LANES,
            WIDE=launch.is_wide(programs * steps * LANES, target),
            **upsample_launch.options(WARPS),
        )  # fmt: skip
        return launch.summed(partials, 0, result.view(1, 1)).view(())
