"""What the op files share: formats of results, wishes for gradients, activations by name."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from ..fusion import ChannelAffine
from ..reference import ACTIVATIONS

_ACTIVATION_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}


def activation_code(op: str, name: str, value: str) -> int:
    """The number of an activation, or a ValueError that names the argument."""
    if value not in _ACTIVATION_CODES:
        raise ValueError(f"{op}: {name} must be one of {tuple(_ACTIVATION_CODES)}, got {value!r}")
    return _ACTIVATION_CODES[value]


def channel_affine(
    op: str, name: str, value: ChannelAffine | None, channels: int, x: Tensor
) -> tuple[Tensor | None, Tensor | None, int]:
    """A `ChannelAffine` checked: scale, shift, number of the activation; None is the identity."""
    if value is None:
        return None, None, 0
    if not isinstance(value, ChannelAffine):
        raise TypeError(f"{op}: {name} must be a ChannelAffine, got {type(value).__name__}")
    code = activation_code(op, f"{name}.activation", value.activation)
    if (value.scale is None) != (value.shift is None):
        raise ValueError(f"{op}: {name} must have both scale and shift, or neither")
    for part, vector in (("scale", value.scale), ("shift", value.shift)):
        if vector is not None:
            _checks.channel_vector(op, f"{name}.{part}", vector, channels, x, (vector_dtype(x),))
    return value.scale, value.shift, code


def vector_dtype(x: Tensor) -> torch.dtype:
    """The dtype of per-channel vectors beside maps like `x`: float32, float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def wants_gradients(*tensors: Tensor | None) -> bool:
    """Whether autograd will record an op on these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def empty_in_format_of(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """channels_last where the channels of `like` are adjacent in memory; contiguous otherwise."""
    nhwc = like.stride(1) == 1 and not like.is_contiguous()
    return like.new_empty(shape).to(
        memory_format=torch.channels_last if nhwc else torch.contiguous_format
    )


def like_map(like: Tensor, values: Tensor) -> Tensor:
    """A new tensor with these values, in the memory format of `like`."""
    return empty_in_format_of(like, tuple(like.shape)).copy_(values)
