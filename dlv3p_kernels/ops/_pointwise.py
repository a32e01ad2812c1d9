"""The pointwise (1x1) convolution as a product of matrices, where channels are adjacent in memory.

There torch's GEMM is faster than its convolution, by up to three times for gradients in bfloat16 on
CPU (docs/separable.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _rows(x: Tensor) -> Tensor | None:
    """A map as a matrix (pixels, channels) in the same memory, if its channels are adjacent.

    Pixels may be further apart than they have channels, as in a slice of the channels of a map.
    """
    n, c, h, w = x.shape
    pitch = x.stride(3)
    dense = x.stride(2) == w * pitch and x.stride(0) == h * w * pitch
    if x.stride(1) != 1 or not dense or pitch < c:
        return None
    return x.permute(0, 2, 3, 1).view(n * h * w, c)


def _map(rows: Tensor, like: Tensor) -> Tensor:
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, rows.size(1)).permute(0, 3, 1, 2)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.conv2d(x, weight, bias)`, weight (C', C, 1, 1)."""
    rows = _rows(x)
    if rows is None:
        return F.conv2d(x, weight, bias)
    return _map(F.linear(rows, weight.flatten(1), bias), x)


def pointwise_layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same, derived by autograd and under autocast as `F.conv2d` is."""
    pixels = x.permute(0, 2, 3, 1)
    if not pixels.is_contiguous():
        return F.conv2d(x, weight, bias)
    return F.linear(pixels, weight.flatten(1), bias).permute(0, 3, 1, 2)


def pointwise_input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient by the input of `F.conv2d(x, weight)`, weight (C', C, 1, 1)."""
    rows = _rows(grad)
    if rows is None:
        return F.conv2d(grad, weight.transpose(0, 1))
    return _map(rows @ weight.flatten(1), grad)


def pointwise_weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient by the weight of `F.conv2d(x, weight)`."""
    grad_rows, rows = _rows(grad), _rows(x)
    if grad_rows is not None and rows is not None:
        return (grad_rows.t() @ rows).view(weight.shape)
    by_weight: Tensor = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
    )[1]
    return by_weight
