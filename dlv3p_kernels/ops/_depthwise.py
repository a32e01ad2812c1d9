"""The arguments that every depthwise op shares: checks, and what the choice of back end needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from .._checks import Ints


class Geometry:
    """Checked arguments of a convolution, as the operators take them."""

    def __init__(
        self, op: str, x: Tensor, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints
    ) -> None:
        self.stride = _checks.integers(op, "stride", stride, (2,), 1)
        self.padding = _checks.padding(op, padding)
        self.dilation = _checks.integers(op, "dilation", dilation, (2,), 1)
        self.output_size = output_size(op, x, weight, self.stride, self.padding, self.dilation)


def tensors(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, prefix: str = ""
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, weight and bias checked, and cast to the autocast dtype where autocast is on.

    `prefix` stands before "weight" and "bias" in the names of the arguments.
    """
    x = _checks.tensor(op, "x", x, 4)
    weight = _checks.tensor(op, f"{prefix}weight", weight, 4)
    if bias is not None:
        bias = _checks.tensor(op, f"{prefix}bias", bias, 1)
    x, weight, bias = _checks.autocast(x, weight, bias)
    _check_shapes(op, x, weight, bias, prefix)
    return x, weight, bias


def _check_shapes(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, prefix: str) -> None:
    """Raise unless weight and bias fit the input."""
    channels = x.size(1)
    name = f"{prefix}weight"
    _checks.same_kind(op, name, weight, "x", x)
    if channels == 0:
        raise ValueError(f"{op}: x must have at least one channel, got shape {tuple(x.shape)}")
    if weight.size(1) != 1 or weight.size(0) == 0 or weight.size(0) % channels:
        raise ValueError(
            f"{op}: {name} must be (C * multiplier, 1, kh, kw) with C = {channels} channels of x,"
            f" got shape {tuple(weight.shape)}"
        )
    if weight.size(2) == 0 or weight.size(3) == 0:
        raise ValueError(f"{op}: {name} must have a kernel, got shape {tuple(weight.shape)}")
    if bias is not None:
        _checks.same_kind(op, f"{prefix}bias", bias, "x", x)
        if bias.size(0) != weight.size(0):
            raise ValueError(
                f"{op}: {prefix}bias must have {weight.size(0)} elements, one per output channel,"
                f" got {bias.size(0)}"
            )


def output_size(
    op: str,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of the result; a ValueError where they would not be positive."""
    left, right, top, bottom = padding
    sizes = []
    for axis, before, after in ((0, top, bottom), (1, left, right)):
        span = dilation[axis] * (weight.size(2 + axis) - 1) + 1
        room = x.size(2 + axis) + before + after - span
        if room < 0:
            raise ValueError(
                f"{op}: output {('height', 'width')[axis]} would not be positive: x is"
                f" {x.size(2 + axis)} with padding ({before}, {after}), the dilated kernel spans"
                f" {span}"
            )
        sizes.append(room // stride[axis] + 1)
    return sizes[0], sizes[1]


def unfit(x: Tensor, weight: Tensor) -> str | None:
    """Why no kernel can serve the call; None where one may."""
    if weight.size(0) != x.size(1):
        return f"channel multiplier {weight.size(0) // max(x.size(1), 1)} is not 1"
    return None


# oneDNN computes this many neighbouring pixels at once and needs the left padding to fit in; beyond
# it falls back to a dense convolution: 13 to 40 times slower for 2048x33x33 (benchmarks/results/).
_AVX512 = torch.cpu._is_avx512_supported()
_ONEDNN_MOST_PADDING = 6 if _AVX512 else 3
_ONEDNN_DTYPES: tuple[torch.dtype, ...] = ()
if torch.backends.mkldnn.is_available() and torch.cpu._is_avx2_supported():
    _ONEDNN_DTYPES = (torch.float32, torch.bfloat16) if _AVX512 else (torch.float32,)


def onednn_is_ahead(x: Tensor, padding: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether the forward is one that oneDNN, through stock PyTorch, does faster than our loop.

    So it is recorded (benchmarks/results/cpu/depthwise_kernel.json) for channels_last on its fast
    path. Contiguous input it reorders both ways, which only bfloat16 makes up for. Gradients of
    dilated convolutions have no fast path there; all gradients run on our kernels.
    """
    symmetric = padding[0] == padding[1] and padding[2] == padding[3]
    fits = max(*padding, *dilation) <= _ONEDNN_MOST_PADDING
    if x.device.type != "cpu" or x.dtype not in _ONEDNN_DTYPES or not (symmetric and fits):
        return False
    if x.is_contiguous():
        return x.dtype == torch.bfloat16
    return x.is_contiguous(memory_format=torch.channels_last)
