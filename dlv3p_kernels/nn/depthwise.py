"""The depthwise convolution layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _checks
from ..ops import depthwise_conv2d

_Pair = int | tuple[int, int]


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d(C, C * multiplier, kernel_size, ..., groups=C)` on the depthwise kernels.

    Arguments, parameters and state_dict are those of `nn.Conv2d`, so checkpoints load both ways.
    Input (N, C, H, W) or (C, H, W); dtypes and result as in `dlv3p_kernels.depthwise_conv2d`.

    Args:
        in_channels: C.
        out_channels: C * multiplier.
        kernel_size: int or (height, width).
        stride: int or (height, width).
        padding: int, (height, width), (left, right, top, bottom), `"same"` or `"valid"`.
        dilation: atrous rate, int or (height, width).
        groups: C, also when left out; anything else raises.
        bias: whether to add a learned per-channel bias.
        padding_mode: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`.
        device: as in `nn.Conv2d`.
        dtype: as in `nn.Conv2d`.

    Raises:
        ValueError: `groups` is not `in_channels`, or an argument that `nn.Conv2d` refuses.
        TypeError: `padding` is neither a string nor ints.
    """

    _dlv3p_calls_ops = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Pair,
        stride: _Pair = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: _Pair = 1,
        groups: int | None = None,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if groups not in (None, in_channels):
            raise ValueError(
                f"DepthwiseConv2d: groups must be in_channels = {in_channels}, got {groups}"
            )
        if not isinstance(padding, str):
            _checks.padding("DepthwiseConv2d", padding)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,  # type: ignore[arg-type]
            dilation,
            in_channels,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device,
            dtype,
        )

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, C, H, W) or (C, H, W)."""
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        padding = self.sides()
        if self.padding_mode != "zeros":
            input = F.pad(input, padding, self.padding_mode)
            padding = [0, 0, 0, 0]
        return depthwise_conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation)

    def sides(self) -> list[int]:
        """Padding as (left, right, top, bottom); users reassign `padding` and `dilation`."""
        if not isinstance(self.padding, str):
            return _checks.padding("DepthwiseConv2d", self.padding)
        if self.padding == "valid":
            return [0, 0, 0, 0]
        rates = _checks.integers("DepthwiseConv2d", "dilation", self.dilation, (2,), 1)
        height, width = (rate * (k - 1) for rate, k in zip(rates, self.kernel_size, strict=True))
        return [width // 2, width - width // 2, height // 2, height - height // 2]
