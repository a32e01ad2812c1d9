"""What the op files share: formats of results, wishes for gradients, activations by name."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..reference import ACTIVATIONS

_ACTIVATION_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}


class ChannelAffine(NamedTuple):
    """`activation(x * scale + shift)` with one scale and one shift per channel.

    What batch norm with known statistics and an activation amount to; fused into a convolution in
    front of it (prologue) or behind it (epilogue).

    Attributes:
        scale: (C,) float32 (float64 for float64 maps), or None together with `shift`.
        shift: the same.
        activation: "identity", "relu", "relu6" or "silu".
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: str = "identity"


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
            channel_vector(op, f"{name}.{part}", vector, channels, x)
    return value.scale, value.shift, code


def channel_vector(op: str, name: str, vector: Tensor, channels: int, x: Tensor) -> None:
    """Raise unless `vector` is (channels,) in float32 (float64 for float64 `x`), beside `x`."""
    _checks.tensor(op, name, vector, 1)
    if vector.size(0) != channels:
        raise ValueError(f"{op}: {name} must have {channels} elements, got {vector.size(0)}")
    dtype = vector_dtype(x)
    if vector.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {dtype} for {x.dtype} maps, got {vector.dtype}")
    if vector.device != x.device:
        raise ValueError(f"{op}: {name} must be on x's device {x.device}, got {vector.device}")


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
