"""The decoder: low-level features refine the encoder output."""

from __future__ import annotations

import dlv3p_kernels as dk

from .layers import HEAD_BN_EPS


class Decoder(dk.nn.Decoder):
    """Join the ASPP output with low-level features and classify every pixel at their resolution.

    The low-level map is reduced by a 1x1 convolution, the encoder map is resized to it, both are
    joined (encoder first) and refined by two 3x3 separable convolutions; a 1x1 convolution with
    bias gives the logits.

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
        super().__init__(
            in_channels,
            low_level_in_channels,
            num_classes,
            low_level_channels=low_level_channels,
            channels=channels,
            align_corners=align_corners,
            eps=HEAD_BN_EPS,
        )
