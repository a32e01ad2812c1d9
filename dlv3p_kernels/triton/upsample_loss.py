"""Launchers of the loss on resized logits; arguments as in `dlv3p_kernels.reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from . import launch
from .upsample_kernels import upsample_loss_fwd_kernel
from .upsample_launch import Resize


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    """Loss of every pixel, 0 where ignored, and log-sum-exp of its logits."""
    resize = Resize.of(logits, (target.size(1), target.size(2)), align_corners)
    loss = logits.new_empty(target.shape, dtype=torch.float32)
    logsumexp = torch.empty_like(loss)
    if resize.pixels:
        with torch.cuda.device_of(logits):
            grid, constants = resize.forward(logits, target, loss)
            upsample_loss_fwd_kernel[grid](
                launch.dense(logits, resize.nhwc), target, launch.vector(weight), loss, logsumexp,
                *resize.sizes, resize.rows.scale, resize.rows.inverse, resize.columns.scale,
                *target.stride(), ignore_index, label_smoothing,
                SMOOTH=label_smoothing > 0, **constants,
            )  # fmt: skip
    return loss, logsumexp
