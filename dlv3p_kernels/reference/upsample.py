"""Cross entropy and prediction of logits that are resized to the size of the target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import wide


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    """Loss of every pixel, 0 where ignored, and log-sum-exp of its logits.

    The log-sum-exp is NaN where the log-softmax is: where a logit is NaN or infinity, or all are
    minus infinity.
    """
    z = _resized(logits, target.shape[-2:], align_corners)
    loss = F.cross_entropy(
        z, target.long(), weight,
        ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing,
    )  # fmt: skip
    logsumexp = z.logsumexp(1)
    return loss, torch.where(logsumexp.isfinite(), logsumexp, torch.nan)


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
    """Gradient by the logits from the one by the loss of every pixel; in the format of the logits.

    By resized logit k of a pixel of class t, with loss weights v[k] = label_smoothing / K * w[k],
    and (1 - label_smoothing) * w[t] more for k = t: `grad_loss * (sum(v) * p[k] - v[k])`.
    """
    z = _resized(logits, target.shape[-2:], align_corners)
    classes = logits.size(1)
    weight = z.new_ones(classes) if weight is None else weight
    counted = target != ignore_index
    label = torch.where(counted, target, 0).long()
    share = torch.full_like(z, label_smoothing / classes) * weight[:, None, None]
    on_label = (1 - label_smoothing) * weight[label]
    share.scatter_add_(1, label[:, None], on_label[:, None])
    probability = (z - logsumexp[:, None]).exp()
    grad = grad_loss * counted
    by_resized = grad[:, None] * (share.sum(1, keepdim=True) * probability - share)
    by_logits = torch.ops.aten.upsample_bilinear2d_backward(
        by_resized, list(target.shape[-2:]), list(logits.shape), align_corners
    )
    nhwc = logits.stride(1) == 1 and not logits.is_contiguous()
    return by_logits.to(logits.dtype).contiguous(
        memory_format=torch.channels_last if nhwc else torch.contiguous_format
    )


def class_weight_sum(
    target: Tensor, weight: Tensor | None, ignore_index: int, like: Tensor
) -> Tensor:
    """Sum over the pixels that are not ignored of the weights of their classes, 1 without.

    A scalar, float32, float64 beside float64 logits `like`.
    """
    counted = target != ignore_index
    dtype = wide(like[:0]).dtype
    if weight is None:
        return torch.count_nonzero(counted).to(dtype)
    return (weight[torch.where(counted, target, 0).long()] * counted).sum(dtype=dtype)


def upsample_argmax(
    logits: Tensor,
    size: list[int],
    align_corners: bool,
    return_probability: bool,
    as_uint8: bool,
) -> tuple[Tensor, Tensor]:
    """Class of the largest resized logit of every pixel, and its probability, empty if unwanted."""
    z = _resized(logits, size, align_corners)
    index = z.argmax(1)
    found = z.new_empty(0)
    if return_probability:
        found = z.softmax(1).gather(1, index[:, None])[:, 0]
    return index.to(torch.uint8) if as_uint8 else index, found


def _resized(logits: Tensor, size: torch.Size | list[int], align_corners: bool) -> Tensor:
    return F.interpolate(wide(logits), list(size), mode="bilinear", align_corners=align_corners)
