"""From a batch-norm layer to what the ops take."""

from __future__ import annotations

import torch
import torch.distributed
from torch import nn

from ..fusion import BatchNorm

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
        _group_of(layer) if by_batch else None,
    )


def count_batch(layer: BatchNormLayer) -> float:
    """Count a batch in the layer's buffer; the weight of it in the running statistics."""
    if layer.num_batches_tracked is None:
        return layer.momentum or 0.0
    layer.num_batches_tracked.add_(1)
    if layer.momentum is None:
        return 1.0 / float(layer.num_batches_tracked)
    return layer.momentum


def _group_of(layer: BatchNormLayer) -> torch.distributed.ProcessGroup | None:
    if not isinstance(layer, nn.SyncBatchNorm) or not layer.training:
        return None
    if not torch.distributed.is_initialized():
        return None
    group: torch.distributed.ProcessGroup | None = layer.process_group
    return torch.distributed.group.WORLD if group is None else group
