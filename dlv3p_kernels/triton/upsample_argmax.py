"""Launcher of the prediction on resized logits; arguments as in `dlv3p_kernels.reference`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import launch
from .upsample_kernels import upsample_argmax_kernel
from .upsample_launch import Resize


def upsample_argmax(
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool,
    return_probability: bool,
    as_uint8: bool,
) -> tuple[Tensor, Tensor]:
    """Class of the largest resized logit of every pixel, and its probability, empty if unwanted."""
    resize = Resize.of(logits, (size[0], size[1]), align_corners)
    shape = (logits.size(0), *size)
    index = logits.new_empty(shape, dtype=torch.uint8 if as_uint8 else torch.int64)
    probability = logits.new_empty(shape if return_probability else 0, dtype=torch.float32)
    if index.numel():
        with torch.cuda.device_of(logits):
            grid, constants = resize.forward(logits, index)
            upsample_argmax_kernel[grid](
                launch.dense(logits, resize.nhwc), index,
                probability if return_probability else None, *resize.sizes,
                resize.rows.scale, resize.rows.inverse, resize.columns.scale, **constants,
            )  # fmt: skip
    return index, probability
