"""timm: batch norm with an activation in it, convolutions with TensorFlow's padding."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .. import layers
from ..layers import Activation, Norm, Role, Same


@layers.role("timm.layers.norm_act.BatchNormAct2d")
def _batch_norm_act(norm: nn.Module) -> Role | None:
    act = layers.role_of(norm.act)  # type: ignore[arg-type]
    if not isinstance(layers.role_of(norm.drop), Same) or not isinstance(act, (Activation, Same)):  # type: ignore[arg-type]
        return None
    return Norm(act.name if isinstance(act, Activation) else "identity", ("drop", "act"))


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's SAME: the result has ceil(size / stride) elements, the odd zero comes last."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def same_sides(conv: nn.Module, x: Tensor) -> list[int]:
    """The zeros around the input that TensorFlow's SAME asks for."""
    assert isinstance(conv, nn.Conv2d)
    settings: Sequence[Sequence[int]] = (conv.kernel_size, conv.stride, conv.dilation)
    top, bottom = same_padding(x.size(-2), *(pair[0] for pair in settings))
    left, right = same_padding(x.size(-1), *(pair[1] for pair in settings))
    return [left, right, top, bottom]


@layers.role("timm.layers.conv2d_same.Conv2dSame")
def _conv2d_same(conv: nn.Conv2d) -> Role | None:
    # Around one tap there is nothing to pad.
    return layers.convolution(conv, same_sides, padded=False)


@layers.role("timm.layers.activations.Swish")
def _swish(layer: nn.Module) -> Role:
    return Activation("silu", bool(layer.inplace))
