"""Batch-norm layers as the ops take them."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor, nn

from ..fusion import BatchNorm
from ..ops import batch_norm_act

BatchNormLayer = nn.modules.batchnorm._BatchNorm


def batch_norm_of(layer: BatchNormLayer, activation: str = "identity") -> BatchNorm:
    """What a forward of `layer`, with `activation` behind it, would do; counts the batch.

    Args:
        layer: an `nn.BatchNorm2d` or an `nn.SyncBatchNorm`, in training or evaluation.
        activation: "identity", "relu", "relu6" or "silu".
    """
    by_batch = layer.training or layer.running_mean is None
    update = layer.training and layer.track_running_stats
    keeps = update or not by_batch
    return BatchNorm(
        layer.running_mean if keeps else None,
        layer.running_var if keeps else None,
        layer.weight,
        layer.bias,
        by_batch,
        count_batch(layer) if update else 0.0,
        layer.eps,
        activation,
        group_of(layer) if by_batch else None,
    )


def apply_batch_norm(
    layer: BatchNormLayer,
    input: Tensor,
    activation: str = "identity",
    residual: Tensor | None = None,
) -> Tensor:
    """`activation(layer(input) + residual)` in one op, `dk.batch_norm_act`.

    Args:
        layer: an `nn.BatchNorm2d` or an `nn.SyncBatchNorm`, in training or evaluation.
        input: (N, C, H, W).
        activation: "identity", "relu", "relu6" or "silu".
        residual: of the shape of `input`, or None.

    Raises:
        TypeError: as `dk.batch_norm_act`.
        ValueError: the same.
    """
    norm = batch_norm_of(layer, activation)
    return batch_norm_act(
        input,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        norm.training,
        norm.momentum,
        norm.eps,
        activation=norm.activation,
        residual=residual,
        group=norm.group,
    )


def count_batch(layer: BatchNormLayer) -> float:
    """Count a batch in the layer's buffer; the weight of it in the running statistics."""
    if layer.num_batches_tracked is None:
        return layer.momentum or 0.0
    layer.num_batches_tracked.add_(1)
    if layer.momentum is None:
        return 1.0 / float(layer.num_batches_tracked)
    return layer.momentum


def group_of(layer: BatchNormLayer) -> torch.distributed.ProcessGroup | None:
    """The processes whose batches a layer in training counts as one; None for this one alone."""
    if not isinstance(layer, nn.SyncBatchNorm) or not layer.training:
        return None
    if not torch.distributed.is_initialized():
        return None
    group: torch.distributed.ProcessGroup | None = layer.process_group
    return torch.distributed.group.WORLD if group is None else group
