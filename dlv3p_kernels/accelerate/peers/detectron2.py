"""detectron2: its convolution with norm and activation inside, its pyramid."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import layers, region, tracing
from ..layers import Role

_CONVOLUTION = "detectron2.layers.wrappers.Conv2d"


def _role(conv: nn.Module) -> Role | None:
    assert isinstance(conv, nn.Conv2d)
    return layers.convolution(conv, layers.own_sides)


def _convolved(x: Tensor, conv: Any) -> Tensor:
    return F.conv2d(
        x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
    )


region.CALLS[_convolved] = _role
_convolution = tracing.opaque(_convolved)


def _convolution_forward(self: Any, x: Tensor) -> Tensor:
    """The forward of Conv2d, which asks for the kind of its norm."""
    x = _convolution(x, self)
    if self.norm is not None:
        x = self.norm(x)
    if self.activation is not None:
        x = self.activation(x)
    return x


@tracing.opaque
def _dropped(x: Tensor, rate: float, layer: nn.Module) -> Tensor:
    return F.dropout(x, rate, training=layer.training)


def _pyramid_forward(self: Any, x: Tensor) -> Tensor:
    """The forward of ASPP, where its pooling is global."""
    if self.pool_kernel_size is not None:
        raise tracing.Untraceable("it pools windows of a fixed size")
    size = x.shape[-2:]
    maps = [conv(x) for conv in self.convs]
    maps[-1] = F.interpolate(maps[-1], size=size, mode="bilinear", align_corners=False)
    x = self.project(torch.cat(maps, dim=1))
    return _dropped(x, self.dropout, self) if self.dropout > 0 else x


tracing.FORWARDS[_CONVOLUTION] = _convolution_forward
tracing.FORWARDS["detectron2.layers.aspp.ASPP"] = _pyramid_forward
