"""Atrous spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fusion import Branch, Epilogue
from .separable import behind


def aspp(
    x: Tensor,
    branches: Sequence[Branch],
    weight: Tensor,
    pooling: Branch | None,
    pooling_first: bool,
    bias: Tensor | None,
    epilogue: Epilogue | None,
) -> Tensor:
    """The whole of stock layers; updates the running statistics in place."""
    maps = [branch_of(x, branch) for branch in branches]
    if pooling is not None:
        pooled = branch_of(x.mean((2, 3), keepdim=True), pooling)
        # What bilinear interpolation makes of a single pixel; in the format of the others, or
        # torch.cat would leave channels_last.
        nhwc = maps[0].is_contiguous(memory_format=torch.channels_last)
        pooled = pooled.expand(-1, -1, *x.shape[2:]).contiguous(
            memory_format=torch.channels_last if nhwc else torch.contiguous_format
        )
        maps.insert(0 if pooling_first else len(maps), pooled)
    return behind(F.conv2d(torch.cat(maps, 1), weight, bias), epilogue)


def branch_of(x: Tensor, branch: Branch) -> Tensor:
    """One branch, of the size of `x`."""
    if branch.dw_weight is None:
        return behind(dense_branch(x, branch), branch.epilogue)
    dw_weight, rate = branch.dw_weight, branch.dilation
    padding = _same(dw_weight, rate)
    x = F.conv2d(x, dw_weight, branch.dw_bias, 1, padding, rate, groups=x.size(1))
    x = behind(x, branch.dw_epilogue)
    return behind(F.conv2d(x, branch.weight, branch.bias), branch.epilogue)


def dense_branch(x: Tensor, branch: Branch) -> Tensor:
    """The convolution of a branch without a depthwise half, without its epilogue."""
    rate = branch.dilation
    return F.conv2d(x, branch.weight, branch.bias, 1, _same(branch.weight, rate), rate)


def _same(weight: Tensor, rate: int) -> list[int]:
    return [rate * (size - 1) // 2 for size in weight.shape[2:]]
