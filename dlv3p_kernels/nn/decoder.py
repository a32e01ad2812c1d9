"""The decoder layer of DeepLabv3+."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from ..ops._decoder_layers import DecoderLayers, decoder_logits
from .aspp import ConvNorm
from .separable import SeparableConv2d, checked_activation


class Decoder(nn.Module):
    """Joins the encoder output with low-level features and classifies every pixel at their size.

    In stock PyTorch

        projection = self.low_level_projection
        low_level = activation(projection.bn(projection.conv(low_level)))
        size = low_level.shape[-2:]
        x = F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
        x = torch.cat([x, low_level] if encoder_first else [low_level, x], 1)
        x = self.conv1(self.conv0(x))
        return self.classifier(x)

    of which neither the resized map nor the concatenation exists (`dk.decoder_conv2d`), and in
    training no activated map either: what is kept for backward are the inputs and the raw result
    of every pointwise convolution but the last. The
    projection is 1x1 without bias; `conv0`, `conv1`, ... are separable: depthwise - norm -
    activation - pointwise - norm - activation; the classifier is 1x1 with bias. The state_dict has
    the keys `low_level_projection.conv.weight`, `low_level_projection.bn.*`, `convI.*` with those
    of `SeparableConv2d`, and `classifier.*`. Forward reads the parameters of these layers and does
    not call them, so their hooks do not run.

    Inputs: encoder output (N, in_channels, h, w) of any size, low-level features (N,
    low_level_in_channels, H, W). Output (N, num_classes, H, W).

    Args:
        in_channels: of the encoder output.
        low_level_in_channels: of the low-level features.
        num_classes: of the result.
        low_level_channels: that the low-level features are reduced to.
        channels: of the separable convolutions.
        convs: how many of these there are, at least 1.
        kernel_size: of their depthwise halves, odd.
        align_corners: as in `F.interpolate`.
        encoder_first: whether the encoder output comes first in the concatenation, as in the
            original, or the low-level features, as in torchvision-style nets.
        activation: "identity", "relu", "relu6" or "silu".
        eps: of all batch norms.
        momentum: of all batch norms, as in `nn.BatchNorm2d`.
        device: as in `nn.Conv2d`.
        dtype: as in `nn.Conv2d`.

    Raises:
        ValueError: `convs` is not positive, `kernel_size` is even, an activation is none of these.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
    Segmentation", ECCV 2018, section 3.1 "Proposed decoder", and 4.1.
    """

    _dlv3p_calls_ops = True

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if convs < 1:
            raise ValueError(f"Decoder: convs must be at least 1, got {convs}")
        if kernel_size % 2 == 0:
            raise ValueError(f"Decoder: kernel_size must be odd, got {kernel_size}")
        super().__init__()
        self.align_corners = align_corners
        self.encoder_first = encoder_first
        self.activation = checked_activation("Decoder", "activation", activation)
        self.convs = convs
        self.low_level_projection = ConvNorm(
            low_level_in_channels, low_level_channels, eps=eps, momentum=momentum,
            device=device, dtype=dtype,
        )  # fmt: skip
        for i in range(convs):
            conv = SeparableConv2d(
                in_channels + low_level_channels if i == 0 else channels, channels, kernel_size,
                padding=kernel_size // 2, depthwise_activation=activation,
                pointwise_activation=activation, eps=eps, momentum=momentum, device=device,
                dtype=dtype,
            )  # fmt: skip
            self.add_module(f"conv{i}", conv)
        self.classifier = nn.Conv2d(channels, num_classes, 1, device=device, dtype=dtype)

    def forward(self, input: Tensor, low_level: Tensor) -> Tensor:
        """Logits of the encoder output and the low-level features."""
        layers = DecoderLayers(
            self.low_level_projection.branch(self.activation),
            [conv.branch() for conv in self.separable_convs()],
            self.classifier.weight,
            self.classifier.bias,
            self.align_corners,
            self.encoder_first,
        )
        return decoder_logits(input, low_level, layers)

    def separable_convs(self) -> Iterator[SeparableConv2d]:
        """`conv0`, `conv1`, ..."""
        for i in range(self.convs):
            yield cast("SeparableConv2d", self.get_submodule(f"conv{i}"))

    def extra_repr(self) -> str:
        """How the maps are joined, as printed."""
        names = ("align_corners", "encoder_first", "activation")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
