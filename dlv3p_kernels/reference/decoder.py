"""The separable convolution of the decoder, which reads a resized map beside a full-size one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fusion import Epilogue
from ._common import channel_affine
from .separable import behind, separable_conv2d


def joined(x: Tensor, low_level: Tensor, align_corners: bool, encoder_first: bool) -> Tensor:
    """`x` resized to `low_level` and both side by side, in the memory format of `low_level`."""
    nhwc = low_level.stride(1) == 1 and not low_level.is_contiguous()
    layout = torch.channels_last if nhwc else torch.contiguous_format
    resized = x.contiguous(memory_format=layout)
    if x.shape[2:] != low_level.shape[2:]:
        size = list(low_level.shape[2:])
        resized = F.interpolate(resized, size, mode="bilinear", align_corners=align_corners)
    maps = [resized, low_level] if encoder_first else [low_level, resized]
    return torch.cat(maps, 1).contiguous(memory_format=layout)


def decoder_source(
    x: Tensor,
    low_level: Tensor,
    align_corners: bool,
    encoder_first: bool,
    low_scale: Tensor | None,
    low_shift: Tensor | None,
    low_activation: int,
) -> Tensor:
    """The map that the operators of the decoder read without making it."""
    low_level = channel_affine(low_level, low_scale, low_shift, low_activation)
    return joined(x, low_level, align_corners, encoder_first)


def decoder_conv2d(
    x: Tensor,
    low_level: Tensor,
    align_corners: bool,
    encoder_first: bool,
    low_level_prologue: Epilogue | None,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    padding: Sequence[int],
    dilation: Sequence[int],
    dw_epilogue: Epilogue | None,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    pw_epilogue: Epilogue | None,
) -> Tensor:
    """The whole of stock layers; updates the running statistics in place."""
    source = joined(x, behind(low_level, low_level_prologue), align_corners, encoder_first)
    return separable_conv2d(
        source, dw_weight, dw_bias, [1, 1], padding, dilation, None, dw_epilogue,
        pw_weight, pw_bias, pw_epilogue, None,
    )  # fmt: skip
