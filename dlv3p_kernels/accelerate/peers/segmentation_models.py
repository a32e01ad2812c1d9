"""segmentation_models_pytorch: its EfficientNet, whose convolutions pad as TensorFlow's do."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import layers, tracing
from ..layers import Padding, Role, Same
from .timm import same_sides

_HOME = "segmentation_models_pytorch.encoders._efficientnet"


@layers.role(f"{_HOME}.Conv2dDynamicSamePadding")
def _dynamic(conv: nn.Conv2d) -> Role | None:
    return layers.convolution(conv, same_sides) if set(conv.padding) == {0} else None


@layers.role(f"{_HOME}.Conv2dStaticSamePadding")
def _static(conv: nn.Conv2d) -> Role | None:
    before = layers.role_of(conv.static_padding)  # type: ignore[arg-type]
    if isinstance(before, Same):
        return layers.convolution(conv, layers.own_sides, ("static_padding",))
    if isinstance(before, Padding):
        return layers.convolution(conv, _static_sides, ("static_padding",), padded=True)
    return None


def _static_sides(conv: nn.Module, x: Tensor) -> list[int]:
    pads = zip(layers.own_sides(conv, x), conv.static_padding.padding, strict=True)  # type: ignore[arg-type, union-attr]
    return [own + more for own, more in pads]


@tracing.opaque
def _drop_connect(x: Tensor, rate: float | None, layer: nn.Module) -> Tensor:
    """Drop whole samples in training, as the block itself would; `layer` is in it."""
    if not rate or not layer.training:
        return x
    kept: Any = 1.0 - rate
    mask = torch.rand([x.size(0), 1, 1, 1], dtype=x.dtype, device=x.device)
    return x / kept * torch.floor(kept + mask)


def _block_forward(self: Any, inputs: Tensor, drop_connect_rate: float) -> Tensor:
    """The forward of MBConvBlock, where it is called with its rate."""
    x = inputs
    if self._has_expansion:
        x = self._swish(self._bn0(self._expand_conv(inputs)))
    x = self._swish(self._bn1(self._depthwise_conv(x)))
    if self._has_se:
        squeezed = self._swish(self._se_reduce(F.adaptive_avg_pool2d(x, 1)))
        x = torch.sigmoid(self._se_expand(squeezed)) * x
    x = self._bn2(self._project_conv(x))
    if self._has_drop_connect:
        x = _drop_connect(x, drop_connect_rate, self._swish) + inputs
    return x


tracing.FORWARDS[f"{_HOME}.MBConvBlock"] = _block_forward
