"""Batch norm: its pieces, and the whole with residual and activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fusion import BatchNorm
from ._common import ACTIVATION_BY_CODE, ACTIVATIONS, per_channel, through_activation, wide


def batch_norm_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel."""
    var, mean = torch.var_mean(wide(x), (0, 2, 3), correction=0)
    return mean, var


def batch_norm_finalise(
    mean: Tensor,
    var: Tensor,
    count: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """1 / sqrt(var + eps), and the running statistics after `count` more values per channel."""
    invstd = torch.rsqrt(var + eps)
    if running_mean is None or running_var is None:
        return invstd, mean.new_empty(0), mean.new_empty(0)
    unbiased = var * (count / max(count - 1, 1))
    return (
        invstd,
        (1 - momentum) * running_mean + momentum * mean,
        (1 - momentum) * running_var + momentum * unbiased,
    )


def batch_norm_apply(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    """act((x - mean) * invstd * weight + bias + residual)."""
    z = _batch_norm(_normalised(x, mean, invstd), weight, bias, residual)
    return _like(x, ACTIVATION_BY_CODE[activation](z))


def batch_norm_backward_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> tuple[Tensor, Tensor]:
    """Sums of g and of g times the normalised input; g is the gradient before the activation."""
    normalised = _normalised(x, mean, invstd)
    g = through_activation(grad, _batch_norm(normalised, weight, bias, residual), activation)
    return g.sum((0, 2, 3)), (g * normalised).sum((0, 2, 3))


def batch_norm_backward_apply(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    sum_grad: Tensor | None,
    sum_grad_normalised: Tensor | None,
    count: int,
    need_residual: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients by input and residual; through the statistics as well where the sums are given."""
    normalised = _normalised(x, mean, invstd)
    g = through_activation(grad, _batch_norm(normalised, weight, bias, residual), activation)
    inner = g
    if sum_grad is not None and sum_grad_normalised is not None:
        inner = g - per_channel(sum_grad / count)
        inner = inner - normalised * per_channel(sum_grad_normalised / count)
    scale = invstd if weight is None else invstd * weight
    grad_residual = _like(x, g) if need_residual else x.new_empty(0)
    return _like(x, inner * per_channel(scale)), grad_residual


def batch_norm_act(x: Tensor, norm: BatchNorm, residual: Tensor | None = None) -> Tensor:
    """Batch norm, residual and activation; updates the running statistics in place."""
    z = _batch_norm_layer(x, norm)
    return ACTIVATIONS[norm.activation](z if residual is None else z + residual)


def _batch_norm_layer(x: Tensor, n: BatchNorm) -> Tensor:
    """`F.batch_norm`, or with a group `nn.SyncBatchNorm` on the same parameters and buffers."""
    if n.group is None or not n.training:
        return F.batch_norm(
            x, n.running_mean, n.running_var, n.weight, n.bias, n.training, n.momentum, n.eps
        )
    layer = torch.nn.SyncBatchNorm(
        x.size(1), n.eps, n.momentum, n.weight is not None, n.running_mean is not None, n.group,
        device=x.device,
    )  # fmt: skip
    tensors = {
        "weight": n.weight, "bias": n.bias, "running_mean": n.running_mean,
        "running_var": n.running_var,
    }  # fmt: skip
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    output: Tensor = torch.func.functional_call(layer, given, (x,))
    return output


def _like(x: Tensor, result: Tensor) -> Tensor:
    """`result` in the dtype and memory format of `x`; contiguous where that has neither format."""
    nhwc = x.stride(1) == 1 and not x.is_contiguous()
    return result.to(x.dtype).contiguous(
        memory_format=torch.channels_last if nhwc else torch.contiguous_format
    )


def _normalised(x: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    return (wide(x) - per_channel(mean)) * per_channel(invstd)


def _batch_norm(
    normalised: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    z = normalised if weight is None else normalised * per_channel(weight)
    z = z if bias is None else z + per_channel(bias)
    return z if residual is None else z + residual
