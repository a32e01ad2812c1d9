"""What stands behind a convolution, checked, in the form that the operators take."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..fusion import BatchNorm, ChannelAffine, Epilogue
from . import _group
from ._common import activation_code, channel_affine, vector_dtype
from ._norm_operators import IDENTITY


class Stage(NamedTuple):
    """`activation((x - mean) * invstd * weight + bias)`; without mean and invstd there is no norm.

    Attributes:
        mean: (C,), in the type of per-channel vectors, as all that follow.
        invstd: the same.
        weight: the same, or None for 1.
        bias: the same, or None for 0.
        activation: its number.
        by_batch: whether mean and invstd are, or are still to become, those of the batch.
        group: name of the processes that share a batch.
        norm: where the running statistics are kept.
    """

    mean: Tensor | None = None
    invstd: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    activation: int = IDENTITY
    by_batch: bool = False
    group: str = _group.ALONE
    norm: BatchNorm | None = None

    @property
    def is_identity(self) -> bool:
        """Whether nothing is to be done."""
        return not self.by_batch and self.mean is None and self.activation == IDENTITY

    @property
    def by_own_batch(self) -> bool:
        """Whether the batch is that of this process alone, which takes more than one value."""
        return self.by_batch and self.group == _group.ALONE

    @property
    def vectors(self) -> tuple[Tensor | None, ...]:
        """Mean, invstd, weight and bias, as the operators take them."""
        return self.mean, self.invstd, self.weight, self.bias

    @property
    def folded(self) -> tuple[Tensor | None, Tensor | None]:
        """The norm, its statistics known, as one scale and one shift."""
        if self.mean is None or self.invstd is None:
            return None, None
        scale = self.invstd if self.weight is None else self.invstd * self.weight
        if self.bias is None:
            return scale, -self.mean * scale
        return scale, torch.addcmul(self.bias.to(scale.dtype), self.mean, scale, value=-1)

    def measured(self, ops: Any, mean: Tensor, var: Tensor, count: int) -> Stage:
        """With the statistics of the batch; updates the running ones."""
        norm = self.norm
        assert norm is not None
        with torch.no_grad():
            if self.group != _group.ALONE:
                mean, var, total = _group.merged(mean, var, count, self.group)
                invstd, new_mean, new_var = _group.finalise(mean, var, total, norm)
            else:
                old = (None if t is None else t.to(mean.dtype) for t in norm[:2])
                invstd, new_mean, new_var = ops.batch_norm_finalise(
                    mean, var, count, *old, norm.momentum, norm.eps
                )
            if norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.copy_(new_mean)
                norm.running_var.copy_(new_var)
        return self._replace(mean=mean, invstd=invstd)


def checked(op: str, name: str, value: Epilogue | None, channels: int, x: Tensor) -> Stage:
    """An epilogue of maps with `channels` channels, or an error that names what does not fit."""
    if isinstance(value, BatchNorm):
        return _of_norm(op, name, value, channels, x)
    if value is not None and not isinstance(value, ChannelAffine):
        raise TypeError(
            f"{op}: {name} must be a ChannelAffine or a BatchNorm, got {type(value).__name__}"
        )
    scale, shift, code = channel_affine(op, name, value, channels, x)
    if scale is None or shift is None:
        return Stage(activation=code)
    zero = torch.zeros_like(shift, requires_grad=False)
    return Stage(zero, torch.ones_like(zero), scale, shift, code)


def _of_norm(op: str, name: str, norm: BatchNorm, channels: int, x: Tensor) -> Stage:
    if (norm.running_mean is None) != (norm.running_var is None):
        raise ValueError(f"{op}: {name} must have both running_mean and running_var, or neither")
    if norm.running_mean is None and not norm.training:
        raise ValueError(f"{op}: {name}.running_mean must be given where training is not set")
    dtype = vector_dtype(x)
    vectors = {}
    for field in ("running_mean", "running_var", "weight", "bias"):
        vector = getattr(norm, field)
        if vector is not None:
            _checks.channel_vector(op, f"{name}.{field}", vector, channels, x, (x.dtype, dtype))
            vectors[field] = vector.to(dtype)
    code = activation_code(op, f"{name}.activation", norm.activation)
    affine = (vectors.get("weight"), vectors.get("bias"), code)
    if norm.training:
        return Stage(None, None, *affine, True, _group.name_of(norm.group), norm)
    invstd = torch.rsqrt(vectors["running_var"] + norm.eps)
    return Stage(vectors["running_mean"], invstd, *affine)
