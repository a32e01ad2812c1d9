"""transformers: the layer of its MobileNetV2, which pads as TensorFlow does."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .. import layers, region, tracing
from ..layers import Role

_HOME = "transformers.models.mobilenet_v2.modeling_mobilenet_v2"


def _sides(conv: nn.Module, x: Tensor) -> list[int]:
    """The zeros that the layer puts around its input: SAME of the kernel, times the dilation."""
    assert isinstance(conv, nn.Conv2d)
    sides: list[int] = []
    for axis in (1, 0):
        stride, rate = conv.stride[axis], conv.dilation[axis]
        taken = x.size(2 + axis) % stride or stride
        total = max(conv.kernel_size[axis] - taken, 0)
        sides += [total // 2 * rate, (total - total // 2) * rate]
    return sides


def _role(conv: nn.Module) -> Role | None:
    if layers.name_of(layers.plain_class(conv)) != "torch.nn.modules.conv.Conv2d":
        return None
    assert isinstance(conv, nn.Conv2d)
    return layers.convolution(conv, _sides) if set(conv.padding) == {0} else None


def _padded(x: Tensor, conv: nn.Module) -> Tensor:
    result: Tensor = conv(F.pad(x, _sides(conv, x)))
    return result


region.CALLS[_padded] = _role
_padded_convolution = tracing.opaque(_padded)


def _forward(self: Any, features: Any) -> Any:
    """The forward of MobileNetV2ConvLayer, which asks for the size of its input."""
    if self.config.tf_padding:
        features = _padded_convolution(features, self.convolution)
    else:
        features = self.convolution(features)
    if self.normalization is not None:
        features = self.normalization(features)
    if self.activation is not None:
        features = self.activation(features)
    return features


tracing.FORWARDS[f"{_HOME}.MobileNetV2ConvLayer"] = _forward
