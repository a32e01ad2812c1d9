"""`dk.nn.Decoder` of stock layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from separable_cases import ACTIVATIONS
from separable_layers import StockSeparable
from torch import Tensor, nn

import dlv3p_kernels as dk


class StockDecoder(nn.Module):
    """The layers that `Decoder` stands for, made by the same arguments."""

    def __init__(
        self,
        in_channels: int,
        low_level_in_channels: int,
        num_classes: int,
        *,
        low_level_channels: int = 48,
        channels: int = 256,
        convs: int = 2,
        kernel_size: int = 3,
        align_corners: bool = False,
        encoder_first: bool = True,
        activation: str = "relu",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.align_corners, self.encoder_first = align_corners, encoder_first
        self.activation = ACTIVATIONS[activation]
        norm = {"eps": eps, "momentum": momentum, "dtype": dtype}
        projection = nn.Module()
        projection.conv = nn.Conv2d(
            low_level_in_channels, low_level_channels, 1, bias=False, dtype=dtype
        )
        projection.bn = nn.BatchNorm2d(low_level_channels, **norm)
        self.low_level_projection = projection
        self.convs = convs
        for i in range(convs):
            conv = StockSeparable(
                channels if i else in_channels + low_level_channels, channels, kernel_size,
                padding=kernel_size // 2, depthwise_activation=activation,
                pointwise_activation=activation, **norm,
            )  # fmt: skip
            self.add_module(f"conv{i}", conv)
        self.classifier = nn.Conv2d(channels, num_classes, 1, dtype=dtype)

    def forward(self, x: Tensor, low_level: Tensor) -> Tensor:
        """One step after another."""
        projection = self.low_level_projection
        low_level = self.activation(projection.bn(projection.conv(low_level)))
        size = low_level.shape[2:]
        x = F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)
        x = torch.cat([x, low_level] if self.encoder_first else [low_level, x], 1)
        for i in range(self.convs):
            x = self.get_submodule(f"conv{i}")(x)
        return self.classifier(x)


def decoders(**options: Any) -> tuple[dk.nn.Decoder, StockDecoder]:
    """Our layer and the stock ones, of equal parameters, no norm's all ones or zeros."""
    sizes = {"in_channels": 7, "low_level_in_channels": 5, "num_classes": 4}
    options = sizes | {"low_level_channels": 3, "channels": 6} | options
    torch.manual_seed(0)
    ours, stocks = dk.nn.Decoder(**options), StockDecoder(**options)
    for name, parameter in ours.named_parameters():
        if "bn" in name:
            nn.init.normal_(parameter, 1, 0.3)
    stocks.load_state_dict(ours.state_dict())
    return ours, stocks


def maps(
    source: tuple[int, int] = (3, 4),
    size: tuple[int, int] = (9, 11),
    n: int = 2,
    channels: tuple[int, int] = (7, 5),
    dtype: torch.dtype = torch.float64,
    layout: torch.memory_format = torch.channels_last,
) -> list[Tensor]:
    """Encoder output and low-level features, normally distributed."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((n, c, *s) for c, s in zip(channels, (source, size), strict=True))
    made = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return [t.contiguous(memory_format=layout) for t in made]
