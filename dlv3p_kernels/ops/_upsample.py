"""What loss and classes of resized logits share: checks, and what the choice of back end needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, dispatch

# Logits that are so many times more than the resized ones take longer to read than to resize.
_SHRINKING = 8


def check_logits(op: str, logits: Tensor) -> None:
    """Raise unless `logits` is a map with at least one class, row and column."""
    _checks.tensor(op, "logits", logits, 4)
    if 0 in logits.shape[1:]:
        raise ValueError(
            f"{op}: logits must have at least one class, row and column, got shape"
            f" {tuple(logits.shape)}"
        )


def call(
    op: str, logits: Tensor, size: Sequence[int], few: int, unfit: str | None = None
) -> dispatch.Call:
    """What the choice of back end depends on.

    Args:
        op: name of the op.
        logits: its input.
        size: height and width it is resized to.
        few: resized logits below which calling our operators takes longer than the work.
        unfit: why no kernel can serve the call, if that is known already.
    """
    if logits.size(0) == 0:
        unfit = "the input is empty"
    ahead = dispatch.no_gpu_record(logits)
    if logits.device.type == "cpu" and not unfit:
        ahead = _cpu_stock_is_ahead(logits, size, few)
    return dispatch.Call(op, logits, unfit, ahead)


def _cpu_stock_is_ahead(logits: Tensor, size: Sequence[int], few: int) -> str | None:
    """Why stock PyTorch is the faster one; compiled code has no sizes to choose by."""
    if torch.compiler.is_compiling():
        return None
    resized = logits.size(0) * logits.size(1) * size[0] * size[1]
    if resized < few:
        return f"{resized} resized logits are few: calling the kernels would take longer"
    if logits.numel() > _SHRINKING * resized:
        return f"the logits are more than {_SHRINKING} times as many as the resized ones"
    return None
