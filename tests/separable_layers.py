"""`dk.nn.SeparableConv2d` of stock layers."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from separable_cases import ACTIVATIONS
from torch import Tensor, nn

import dlv3p_kernels as dk


class StockSeparable(nn.Module):
    """The layers that `SeparableConv2d` stands for, made by the same arguments."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any = 3,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        bias: bool = False,
        *,
        depthwise_norm: bool = True,
        pointwise_norm: bool = True,
        pre_activation: str = "identity",
        depthwise_activation: str = "relu",
        pointwise_activation: str = "relu",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.sides = padding if isinstance(padding, tuple) and len(padding) == 4 else (0, 0, 0, 0)
        self.activations = [
            ACTIVATIONS[name]
            for name in (pre_activation, depthwise_activation, pointwise_activation)
        ]
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, kernel_size, stride, 0 if any(self.sides) else padding,
            dilation, in_channels, bias, dtype=dtype,
        )  # fmt: skip
        norm = (eps, momentum)
        self.depthwise_bn = nn.BatchNorm2d(in_channels, *norm, dtype=dtype)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias, dtype=dtype)
        self.pointwise_bn = nn.BatchNorm2d(out_channels, *norm, dtype=dtype)
        if not depthwise_norm:
            self.depthwise_bn = None
        if not pointwise_norm:
            self.pointwise_bn = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """One step after another."""
        before, between, behind = self.activations
        x = self.depthwise(F.pad(before(x), self.sides))
        x = between(x if self.depthwise_bn is None else self.depthwise_bn(x))
        x = self.pointwise(x)
        x = behind(x if self.pointwise_bn is None else self.pointwise_bn(x))
        return x if residual is None else x + residual


def layers(**options: Any) -> tuple[dk.nn.SeparableConv2d, StockSeparable]:
    """Our layer and the stock ones, of equal parameters, none of which is all ones or zeros."""
    options = {"in_channels": 6, "out_channels": 5} | options
    ours, stocks = dk.nn.SeparableConv2d(**options), StockSeparable(**options)
    for name, parameter in ours.named_parameters():
        if "bn" in name:
            nn.init.normal_(parameter, 1, 0.3)
    stocks.load_state_dict(ours.state_dict())
    return ours, stocks
