"""The definition of every op in stock PyTorch: what the kernels must equal, and the fall-back.

Arguments are normalised as in `torch.ops.dlv3p`: `stride` and `dilation` are (height, width) and
`padding` is (left, right, top, bottom).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Depthwise convolution: (N, C, H, W) and (C * multiplier, 1, kh, kw)."""
    x, symmetric = _split_padding(x, padding)
    return F.conv2d(x, weight, bias, stride, symmetric, dilation, groups=x.size(1))


def depthwise_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `depthwise_conv2d` by input and weight; an empty tensor where not needed."""
    padded, symmetric = _split_padding(x, padding)
    grad_padded, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, padded, weight, None, stride, symmetric, dilation, False, [0, 0],
        x.size(1), [need_input, need_weight, False],
    )  # fmt: skip
    if grad_padded is not None and padded is not x:
        left, _, top, _ = padding
        grad_padded = grad_padded[..., top : top + x.size(2), left : left + x.size(3)]
    return (
        grad_padded if grad_padded is not None else x.new_empty(0),
        grad_weight if grad_weight is not None else x.new_empty(0),
    )


def _split_padding(x: Tensor, padding: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Convolutions take symmetric padding only; anything else is padded beforehand."""
    left, right, top, bottom = padding
    if left == right and top == bottom:
        return x, [top, left]
    return F.pad(x, list(padding)), [0, 0]
