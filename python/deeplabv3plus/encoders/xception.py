"""Aligned Xception, as modified for DeepLabv3+."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ..layers import ConvBNReLU, SeparableConv2d, init_weights
from .base import Encoder, atrous_schedule

_BN_EPS = 1e-3

# channels and stride of the entry-flow modules; the module that yields the low-level features
_ENTRY_SHORT = ((128, 2), (256, 2), (728, 2))
_ENTRY_LONG = ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))
_VARIANTS = {
    "xception41": (_ENTRY_SHORT, 8, 1),
    "xception65": (_ENTRY_SHORT, 16, 1),
    "xception71": (_ENTRY_LONG, 16, 2),
}


class XceptionModule(nn.Module):
    """Three separable convolutions, the third one strided, and a skip connection.

    Args:
        in_channels: channels of the input.
        channels: channels after each of the three convolutions.
        skip: `"conv"` adds a strided 1x1 convolution of the input with BN, `"sum"` adds the input
            itself, `"none"` nothing.
        stride: of the third convolution.
        rates: atrous rate of each convolution.
        pre_activation: as in `SeparableConv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        skip: Literal["conv", "sum", "none"],
        stride: int = 1,
        rates: Sequence[int] = (1, 1, 1),
        pre_activation: bool = True,
    ) -> None:
        super().__init__()
        self.skip = skip
        widths = (in_channels, *channels)
        convs = [
            SeparableConv2d(
                widths[i],
                widths[i + 1],
                stride=stride if i == 2 else 1,
                rate=rates[i],
                eps=_BN_EPS,
                pre_activation=pre_activation,
            )
            for i in range(3)
        ]
        self.separable_conv1, self.separable_conv2, self.separable_conv3 = convs
        if skip == "conv":
            self.shortcut = ConvBNReLU(
                in_channels, channels[-1], stride=stride, eps=_BN_EPS, activation=False
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels[-1], ceil(H / stride), ceil(W / stride))."""
        return self._finish(x, self.separable_conv2(self.separable_conv1(x)))

    def _finish(self, x: Tensor, inner: Tensor) -> Tensor:
        if self.skip == "none":
            return self.separable_conv3(inner)
        return self.separable_conv3(inner, self.shortcut(x) if self.skip == "conv" else x)


class TappedXceptionModule(XceptionModule):
    """An `XceptionModule` that also returns what its second convolution gives."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return the output and the map before the strided convolution."""
        inner = self.separable_conv2(self.separable_conv1(x))
        return self._finish(x, inner), inner


class Xception(Encoder):
    """Xception-41, -65 or -71: strided separable convolutions in place of max pooling.

    Modules are named as in the original TensorFlow code, but counted from 0. ReLU comes before each
    depthwise convolution, BN (eps 1e-3) after it and after the pointwise one; only the last module,
    exit_flow/block2, has ReLU after both and no skip. Low-level features: the second convolution of
    the module that goes from stride 4 to 8, 256 channels, before its ReLU (they may be negative).

    Args:
        variant: `"xception41"`, `"xception65"` or `"xception71"`.
        output_stride: 8, 16 or 32.
        in_channels: channels of the images.
        multi_grid: factors on the rates of the three convolutions of exit_flow/block2.

    Source: Chen et al., ECCV 2018, section 3.2 and figure 4.
    """

    _dlv3p_calls_ops = True

    low_level_channels = 256
    out_channels = 2048

    def __init__(
        self,
        variant: str = "xception65",
        output_stride: int = 16,
        in_channels: int = 3,
        multi_grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.output_stride = output_stride
        entry, middle_units, self._tapped = _VARIANTS[variant]
        strides = [stride for _, stride in entry] + [1] * middle_units + [2, 1]
        units = iter(atrous_schedule(strides, output_stride, start=2))

        self.conv1_1 = ConvBNReLU(in_channels, 32, 3, stride=2, eps=_BN_EPS)
        self.conv1_2 = ConvBNReLU(32, 64, 3, eps=_BN_EPS)
        self.entry_flow = nn.ModuleList()
        width = 64
        for index, (channels, _) in enumerate(entry):
            kind = TappedXceptionModule if index == self._tapped else XceptionModule
            stride, rate = next(units)
            self.entry_flow.append(
                kind(width, (channels,) * 3, skip="conv", stride=stride, rates=(rate,) * 3)
            )
            width = channels
        self.middle_flow = nn.Sequential(
            *(
                XceptionModule(width, (width,) * 3, skip="sum", stride=stride, rates=(rate,) * 3)
                for stride, rate in itertools.islice(units, middle_units)
            )
        )
        (stride, rate1), (_, rate2) = units
        grid = multi_grid or (1, 1, 1)
        self.exit_flow = nn.Sequential(
            XceptionModule(width, (728, 1024, 1024), "conv", stride, (rate1,) * 3),
            XceptionModule(
                1024,
                (1536, 1536, 2048),
                skip="none",
                rates=[rate2 * factor for factor in grid],
                pre_activation=False,
            ),
        )
        init_weights(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return low-level features (N, 256, H/4, W/4) and output (N, 2048, H/os, W/os)."""
        x = self.conv1_2(self.conv1_1(images))
        low_level = x
        for index, block in enumerate(self.entry_flow):
            if index == self._tapped:
                x, low_level = block(x)
            else:
                x = block(x)
        return low_level, self.exit_flow(self.middle_flow(x))
