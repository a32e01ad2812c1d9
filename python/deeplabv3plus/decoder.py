"""The decoder: low-level features refine the encoder output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import ConvBNReLU, SeparableConv2d, resize


class Decoder(nn.Module):
    """Join the ASPP output with low-level features and classify every pixel at their resolution.

    The low-level map is reduced by a 1x1 convolution, the encoder map is resized to it, both are
    concatenated (encoder first) and refined by two 3x3 separable convolutions; a 1x1 convolution
    with bias gives the logits.

    Inputs: encoder map (N, in_channels, h, w), low-level map (N, low_level_in_channels, H, W).
    Output (N, num_classes, H, W).

    Source: Chen et al., ECCV 2018, section 3.1 "Proposed decoder" and 4.1.
    """

    def __init__(
        self,
        in_channels: int,
        low_level_in_channels: int,
        num_classes: int,
        *,
        low_level_channels: int = 48,
        channels: int = 256,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.low_level_projection = ConvBNReLU(low_level_in_channels, low_level_channels)
        self.conv0 = SeparableConv2d(in_channels + low_level_channels, channels)
        self.conv1 = SeparableConv2d(channels, channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor, low_level: Tensor) -> Tensor:
        """Upsample, concatenate, refine, classify."""
        low_level = self.low_level_projection(low_level)
        x = resize(x, low_level.shape[-2:], self.align_corners)
        x = torch.cat([x, low_level], dim=1)
        return self.classifier(self.conv1(self.conv0(x)))
