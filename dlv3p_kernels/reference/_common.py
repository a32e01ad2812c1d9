"""What the definitions share: activations, vectors of channels, precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# By name, in the order of csrc/common/activation.h.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
}
ACTIVATION_BY_CODE = tuple(ACTIVATIONS.values())


def channel_affine(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: int
) -> Tensor:
    """`activation(x * scale + shift)` per channel, in the dtype of `x`."""
    if scale is None or shift is None:
        return ACTIVATION_BY_CODE[activation](x)
    return ACTIVATION_BY_CODE[activation](x * scale[:, None, None] + shift[:, None, None]).to(
        x.dtype
    )


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def per_channel(vector: Tensor) -> Tensor:
    return vector[:, None, None]


def through_activation(grad: Tensor, z: Tensor, activation: int) -> Tensor:
    """The gradient at `z` from the one at its activation; 0 at the corners, as autograd has it."""
    grad = grad.to(z.dtype)
    if activation == 0:
        return grad
    if activation == 1:
        return torch.ops.aten.threshold_backward(grad, z, 0)
    if activation == 2:
        return torch.ops.aten.hardtanh_backward(grad, z, 0, 6)
    return torch.ops.aten.silu_backward(grad, z)
