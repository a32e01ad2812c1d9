"""The stock layers that `dk.nn` stands for, as users write them."""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import ASPP, Decoder, SeparableConv2d
from ..nn.aspp import ConvNorm

_ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU}


class StockSeparable(nn.Module):
    """`nn.Conv2d`, `nn.BatchNorm2d` and activations with the parameters of a layer of ours.

    Activations behind a norm work in place, as in most nets.
    """

    def __init__(self, layer: SeparableConv2d) -> None:
        super().__init__()
        c = layer.depthwise
        self.before = _activation(layer.pre_activation, inplace=False)
        self.depthwise = nn.Conv2d(
            c.in_channels,
            c.in_channels,
            c.kernel_size,  # type: ignore[arg-type]
            c.stride,  # type: ignore[arg-type]
            c.padding,  # type: ignore[arg-type]
            c.dilation,  # type: ignore[arg-type]
            c.groups,
            c.bias is not None,
        )
        self.depthwise_bn = copy.deepcopy(layer.depthwise_bn) or nn.Identity()
        self.between = _activation(layer.depthwise_activation, layer.depthwise_bn is not None)
        self.pointwise = copy.deepcopy(layer.pointwise)
        self.pointwise_bn = copy.deepcopy(layer.pointwise_bn) or nn.Identity()
        self.behind = _activation(layer.pointwise_activation, layer.pointwise_bn is not None)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """As the layer of ours."""
        x = self.between(self.depthwise_bn(self.depthwise(self.before(x))))
        x = self.behind(self.pointwise_bn(self.pointwise(x)))
        return x if residual is None else x + residual


class StockASPP(nn.Module):
    """The branches one by one, a resized pooled branch, `torch.cat` and the projection.

    Its image pooling must not train on a single image; like ours it then uses the running
    statistics.
    """

    def __init__(self, layer: ASPP) -> None:
        super().__init__()
        self.pooling_first = layer.pooling_first
        self.image_pooling = _conv_norm(layer.image_pooling, layer.activation)
        self.conv1x1 = _conv_norm(layer.conv1x1, layer.activation)
        self.atrous = nn.ModuleList(
            StockSeparable(branch)
            if isinstance(branch, SeparableConv2d)
            else _conv_norm(cast("ConvNorm", branch), layer.activation)
            for branch in layer.atrous
        )
        self.projection = _conv_norm(layer.projection, layer.activation)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer of ours."""
        maps = [self.conv1x1(x), *(branch(x) for branch in self.atrous)]
        pooled = self.image_pooling(F.adaptive_avg_pool2d(x, 1))
        pooled = F.interpolate(pooled, x.shape[-2:], mode="bilinear", align_corners=False)
        maps.insert(0 if self.pooling_first else len(maps), pooled)
        output: Tensor = self.projection(torch.cat(maps, 1))
        return output


class _ConvNormAct(nn.Module):
    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.activation = conv, bn, activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        bn = self.bn
        if self.training and x.numel() == x.size(1):
            x = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        else:
            x = bn(x)
        output: Tensor = self.activation(x)
        return output


def _conv_norm(layer: ConvNorm, activation: str) -> _ConvNormAct:
    conv, bn = copy.deepcopy(layer.conv), copy.deepcopy(layer.bn)
    return _ConvNormAct(conv, bn, _activation(activation, inplace=True))


def _activation(name: str, inplace: bool) -> nn.Module:
    return nn.Identity() if name == "identity" else _ACTIVATIONS[name](inplace=inplace)


class StockDecoder(nn.Module):
    """`F.interpolate`, `torch.cat` and layer after layer, all maps made."""

    def __init__(self, layer: Decoder) -> None:
        super().__init__()
        self.align_corners, self.encoder_first = layer.align_corners, layer.encoder_first
        self.low_level_projection = _conv_norm(layer.low_level_projection, layer.activation)
        self.names = [f"conv{i}" for i in range(layer.convs)]
        for name, conv in zip(self.names, layer.separable_convs(), strict=True):
            self.add_module(name, StockSeparable(conv))
        self.classifier = copy.deepcopy(layer.classifier)

    def forward(self, x: Tensor, low_level: Tensor) -> Tensor:
        """As the layer of ours."""
        low_level = self.low_level_projection(low_level)
        size = low_level.shape[-2:]
        x = F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)
        x = torch.cat([x, low_level] if self.encoder_first else [low_level, x], 1)
        for name in self.names:
            x = self.get_submodule(name)(x)
        output: Tensor = self.classifier(x)
        return output


def stock_of(layer: SeparableConv2d | ASPP | Decoder) -> nn.Module:
    """Stock layers with copies of the parameters and buffers of `layer`, under the same names."""
    stock: nn.Module
    if isinstance(layer, Decoder):
        stock = StockDecoder(layer)
    else:
        stock = StockASPP(layer) if isinstance(layer, ASPP) else StockSeparable(layer)
    stock.load_state_dict(layer.state_dict())
    return stock.train(layer.training)
