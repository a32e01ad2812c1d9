"""MobileNetV2, with torchvision's state_dict keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormLayer

import dlv3p_kernels as dk

from ..layers import init_weights
from .base import Encoder, atrous_schedule, load_classifier_weights

# expansion, channels, repeats, stride of the first: Sandler et al., 2018, table 2
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_LOW_LEVEL = 3  # features.3: the last block at stride 4


class ConvBNReLU6(nn.Sequential):
    """A convolution without bias, `0`, batch norm, `1`, and ReLU6."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv, nn.BatchNorm2d(conv.out_channels))

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution."""
        return cast(nn.Conv2d, self[0])

    @property
    def bn(self) -> BatchNormLayer:
        """The batch norm."""
        return cast(BatchNormLayer, self[1])

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, activate."""
        return dk.nn.apply_batch_norm(self.bn, self.conv(x), "relu6")


class InvertedResidual(nn.Module):
    """1x1 expansion - 3x3 depthwise - linear 1x1, with a skip where shapes allow it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int,
        stride: int,
        rate: int,
        skip: bool,
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvBNReLU6(nn.Conv2d(in_channels, hidden, 1, bias=False)))
        depthwise = dk.nn.DepthwiseConv2d(hidden, hidden, 3, stride, rate, rate, bias=False)
        layers += [
            ConvBNReLU6(depthwise),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        *expansion, inner, pointwise, pointwise_bn = self.conv
        wide = x
        for layer in expansion:
            wide = layer(wide)
        assert isinstance(inner, ConvBNReLU6)
        assert isinstance(pointwise, nn.Conv2d) and isinstance(pointwise_bn, BatchNormLayer)
        depthwise = inner.conv
        assert not isinstance(depthwise.padding, str)
        return dk.separable_conv2d(
            wide,
            depthwise.weight,
            pointwise.weight,
            stride=depthwise.stride,
            padding=depthwise.padding,
            dilation=depthwise.dilation,
            dw_epilogue=dk.nn.batch_norm_of(inner.bn, "relu6"),
            pw_epilogue=dk.nn.batch_norm_of(pointwise_bn),
            residual=x if self.skip else None,
        )


class MobileNetV2(Encoder):
    """MobileNetV2 up to its 320-channel block; keys `features.0` to `features.17` of torchvision.

    The 1x1 convolution to 1280 channels (`features.18`) belongs to the classifier and is left out,
    as in the original DeepLab. Low-level features: `features.3`, 24 channels.

    Args:
        output_stride: 8, 16 or 32.
        in_channels: channels of the images.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
    sections 4 and 6.3.
    """

    _dlv3p_calls_ops = True

    low_level_channels = 24
    out_channels = 320

    def __init__(self, output_stride: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        self.output_stride = output_stride
        units = [
            (expansion, channels, stride if repeat == 0 else 1, repeat > 0)
            for expansion, channels, repeats, stride in _STAGES
            for repeat in range(repeats)
        ]
        schedule = atrous_schedule([unit[2] for unit in units], output_stride, start=2)
        features: list[nn.Module] = [
            ConvBNReLU6(nn.Conv2d(in_channels, 32, 3, stride=2, padding=1, bias=False))
        ]
        width = 32
        for (expansion, channels, _, skip), (stride, rate) in zip(units, schedule, strict=True):
            features.append(InvertedResidual(width, channels, expansion, stride, rate, skip))
            width = channels
        self.features = nn.Sequential(*features)
        init_weights(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return low-level features (N, 24, H/4, W/4) and output (N, 320, H/os, W/os)."""
        x = low_level = images
        for index, block in enumerate(self.features):
            x = block(x)
            if index == _LOW_LEVEL:
                low_level = x
        return low_level, x

    def load_torchvision(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load a `torchvision.models.mobilenet_v2` state_dict, classifier left aside.

        Raises:
            ValueError: the keys or shapes are those of another net.
        """
        load_classifier_weights(self, state_dict, ("features.18.", "classifier."))
