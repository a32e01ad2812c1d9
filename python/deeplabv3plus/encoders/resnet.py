"""ResNet-50 and ResNet-101, with torchvision's state_dict keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

import dlv3p_kernels as dk

from ..layers import init_weights
from .base import Encoder, atrous_schedule, load_classifier_weights

_EXPANSION = 4
_WIDTHS = (64, 128, 256, 512)


class Bottleneck(nn.Module):
    """1x1 - 3x3 (strided or dilated) - 1x1 with a residual connection."""

    def __init__(self, in_channels: int, width: int, stride: int, rate: int) -> None:
        super().__init__()
        out_channels = width * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, rate, rate, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, 4 * width, ceil(H / stride), ceil(W / stride))."""
        skip = x if self.downsample is None else self.downsample(x)
        x = dk.nn.apply_batch_norm(self.bn1, self.conv1(x), "relu")
        x = dk.nn.apply_batch_norm(self.bn2, self.conv2(x), "relu")
        return dk.nn.apply_batch_norm(self.bn3, self.conv3(x), "relu", skip)


class ResNet(Encoder):
    """ResNet trunk with torchvision's keys, without `fc`.

    Without `multi_grid` strides become rates as in torchvision (the first block of a dilated stage
    keeps the rate of the stage before). Low-level features: `layer1`, 256 channels.

    Args:
        depths: blocks per stage.
        output_stride: 8, 16 or 32.
        in_channels: channels of the images.
        multi_grid: factors on the rate of the last stage, one per block, e.g. (1, 2, 4): rates
            (2, 4, 8) at output stride 16. The first block is then not contracted.

    Source: He et al., CVPR 2016, table 1; multi-grid: Chen et al., "Rethinking Atrous Convolution
    for Semantic Image Segmentation", 2017, section 3.2.1.
    """

    _dlv3p_calls_ops = True

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    low_level_channels = 256
    out_channels = 2048

    def __init__(
        self,
        depths: Sequence[int],
        output_stride: int = 16,
        in_channels: int = 3,
        multi_grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.output_stride = output_stride
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        strides = [
            2 if stage > 0 and block == 0 else 1
            for stage, depth in enumerate(depths)
            for block in range(depth)
        ]
        schedule = atrous_schedule(strides, output_stride, start=4)
        if multi_grid is not None:
            rate = schedule[-1][1]
            last = depths[-1]
            schedule[-last:] = [
                (stride, rate * grid)
                for (stride, _), grid in zip(schedule[-last:], multi_grid, strict=True)
            ]
        units = iter(schedule)
        channels = 64
        for stage, (depth, width) in enumerate(zip(depths, _WIDTHS, strict=True), start=1):
            blocks = []
            for _ in range(depth):
                blocks.append(Bottleneck(channels, width, *next(units)))
                channels = width * _EXPANSION
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        init_weights(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return low-level features (N, 256, H/4, W/4) and output (N, 2048, H/os, W/os)."""
        x = self.maxpool(dk.nn.apply_batch_norm(self.bn1, self.conv1(images), "relu"))
        low_level = self.layer1(x)
        return low_level, self.layer4(self.layer3(self.layer2(low_level)))

    def load_torchvision(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load a torchvision ResNet state_dict of the same depth, `fc` left aside.

        Raises:
            ValueError: the keys or shapes are those of another net.
        """
        load_classifier_weights(self, state_dict, ("fc.",))
