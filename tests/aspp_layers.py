"""`dk.nn.ASPP` of stock layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from separable_cases import ACTIVATIONS
from separable_layers import StockSeparable
from torch import Tensor, nn

import dlv3p_kernels as dk


class StockConvNorm(nn.Module):
    """A convolution that keeps the size, batch norm, activation."""

    def __init__(self, in_channels: int, channels: int, size: int, rate: int, name: str) -> None:
        super().__init__()
        padding = rate * (size - 1) // 2
        self.conv = nn.Conv2d(in_channels, channels, size, 1, padding, rate, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.activation = ACTIVATIONS[name]

    def forward(self, x: Tensor) -> Tensor:
        """One step after another."""
        return self.activation(self.bn(self.conv(x)))


class StockAspp(nn.Module):
    """The layers that `ASPP` stands for, made by the same arguments."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        rates: tuple[int, ...] = (6, 12, 18),
        *,
        separable: bool = True,
        pooling_first: bool = False,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.pooling_first = pooling_first

        def conv_norm(channels: int, size: int = 1, rate: int = 1) -> StockConvNorm:
            return StockConvNorm(channels, out_channels, size, rate, activation)

        def atrous(rate: int) -> nn.Module:
            if not separable:
                return conv_norm(in_channels, 3, rate)
            return StockSeparable(
                in_channels, out_channels, padding=rate, dilation=rate,
                depthwise_activation=activation, pointwise_activation=activation,
            )  # fmt: skip

        self.image_pooling = conv_norm(in_channels)
        self.conv1x1 = conv_norm(in_channels)
        self.atrous = nn.ModuleList(atrous(rate) for rate in rates)
        self.projection = conv_norm((2 + len(rates)) * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Every map made, resized and joined."""
        maps = [branch(x) for branch in (self.conv1x1, *self.atrous)]
        pooled = self.image_pooling(F.adaptive_avg_pool2d(x, 1))
        pooled = F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=False)
        maps = [pooled, *maps] if self.pooling_first else [*maps, pooled]
        return self.projection(torch.cat(maps, 1))


def pyramids(**options: Any) -> tuple[dk.nn.ASPP, StockAspp]:
    """Our layer and the stock ones, of equal parameters, no norm's all ones or zeros."""
    options = {"in_channels": 6, "out_channels": 5, "rates": (1, 3)} | options
    torch.manual_seed(0)
    ours, stocks = dk.nn.ASPP(**options), StockAspp(**options)
    for name, parameter in ours.named_parameters():
        if "bn" in name:
            nn.init.normal_(parameter, 1, 0.3)
    stocks.load_state_dict(ours.state_dict())
    return ours, stocks
