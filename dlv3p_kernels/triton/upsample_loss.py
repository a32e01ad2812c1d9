"""Launchers of the loss on resized logits; arguments as in `dlv3p_kernels.reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from . import launch
from .upsample_backward import upsample_loss_bwd_kernel
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


def upsample_cross_entropy_backward(
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    logsumexp: Tensor,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    """Gradient by the logits from the one by the loss of every pixel."""
    resize = Resize.of(logits, (target.size(1), target.size(2)), align_corners)
    result = launch.empty_map(logits, tuple(logits.shape), resize.nhwc)
    if not resize.pixels:
        return result.zero_()
    with torch.cuda.device_of(logits):
        grid, bands, constants = resize.backward(grad_loss, target, logits)
        upsample_loss_bwd_kernel[grid](
            grad_loss, launch.dense(logits, resize.nhwc), target, launch.vector(weight),
            logsumexp.contiguous(), result, *resize.sizes, resize.rows.scale, resize.rows.inverse,
            resize.columns.scale, resize.columns.inverse, *bands, *grad_loss.stride(),
            *target.stride(), ignore_index, label_smoothing,
            SMOOTH=label_smoothing > 0, **constants,
        )  # fmt: skip
    return result
