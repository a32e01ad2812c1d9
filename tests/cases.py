"""The depthwise cases that every back end is held to, and what they must equal.

`inputs` makes the tensors of a case, `stock` runs them through stock PyTorch, and `exact` computes
the same sums one tap at a time at a higher precision, together with the size of the summed terms.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
NAMES = ("output", "grad_input", "grad_weight", "grad_bias")


class Geometry:
    """What a case's fields say of its sizes."""

    size: Pair
    kernel: Pair
    stride: int | Pair
    padding: int | Pair | tuple[int, int, int, int]
    dilation: int | Pair

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """Padding as (left, right, top, bottom)."""
        if isinstance(self.padding, int):
            return (self.padding,) * 4
        if len(self.padding) == 2:
            height, width = self.padding
            return (width, width, height, height)
        return self.padding

    @property
    def output_size(self) -> Pair:
        """Height and width of the output."""
        left, right, top, bottom = self.sides
        room = (self.size[0] + top + bottom, self.size[1] + left + right)
        spans = (d * (k - 1) + 1 for d, k in zip(pair(self.dilation), self.kernel, strict=True))
        height, width = (
            (r - span) // s + 1 for r, span, s in zip(room, spans, pair(self.stride), strict=True)
        )
        return height, width


@dataclass(frozen=True)
class DepthwiseCase(Geometry):
    """One geometry of a depthwise convolution; `padding` is in the form given by the user."""

    id: str
    c: int
    size: Pair
    kernel: Pair = (3, 3)
    stride: int | Pair = 1
    padding: int | Pair | tuple[int, int, int, int] = 0
    dilation: int | Pair = 1
    n: int = 2
    bias: bool = True
    compact: bool = False


def pair(value: int | Pair) -> Pair:
    """One integer doubled."""
    return (value, value) if isinstance(value, int) else value


C = DepthwiseCase
DEPTHWISE_CASES = (
    # Channel counts around the vector widths (8 and 16 lanes) and the nets' own.
    C("c1", 1, (9, 11), padding=1, compact=True),
    C("c3-rgb", 3, (12, 10), padding=1, bias=False),
    C("c8", 8, (7, 9), padding=1),
    C("c15", 15, (8, 7), padding=1),
    C("c16", 16, (9, 9), padding=1, bias=False, compact=True),
    C("c17", 17, (9, 9), padding=1, compact=True),
    C("c24", 24, (10, 6), padding=1),
    C("c33", 33, (6, 10), padding=2, dilation=2),
    C("c64", 64, (8, 8), padding=1, bias=False),
    C("c100", 100, (7, 7), padding=1),
    C("c304-decoder", 304, (9, 9), padding=1, n=1, bias=False),
    C("c728-middle-flow", 728, (9, 9), padding=2, dilation=2, n=1, bias=False),
    C("c2048-aspp", 2048, (5, 5), padding=6, dilation=6, n=1, bias=False),
    # Atrous rates, up to far larger than the map.
    C("d2", 16, (13, 11), padding=2, dilation=2),
    C("d3-no-padding", 17, (13, 11), dilation=3),
    C("d6", 17, (17, 15), padding=6, dilation=6, compact=True),
    C("d12-large-as-map", 24, (13, 13), padding=12, dilation=12),
    C("d18", 8, (33, 33), padding=18, dilation=18, n=1, bias=False),
    C("d36-beyond-map", 20, (9, 7), padding=36, dilation=36, compact=True),
    C("d24-wide", 5, (3, 50), padding=24, dilation=24),
    C("d-uneven", 18, (14, 12), padding=(2, 3), dilation=(2, 3)),
    C("d-uneven-smaller-padding", 18, (14, 12), padding=(1, 2), dilation=(3, 2), bias=False),
    # Strides.
    C("s2", 24, (13, 13), padding=1, stride=2, compact=True),
    C("s2-even", 16, (12, 10), padding=1, stride=2, bias=False),
    C("s2-tall", 8, (70, 9), padding=1, stride=2, n=1),
    C("s2-same", 32, (12, 11), stride=2, padding=(0, 1, 0, 1), bias=False),
    C("s3", 17, (14, 11), padding=1, stride=3),
    C("s21", 9, (11, 9), padding=1, stride=(2, 1)),
    C("s12", 9, (11, 9), padding=1, stride=(1, 2)),
    C("s2-d2", 19, (15, 15), padding=2, stride=2, dilation=2),
    C("s3-d2-skips-columns", 16, (16, 17), padding=2, stride=3, dilation=2),
    C("s5-beyond-kernel", 8, (17, 16), stride=5),
    # Kernels.
    C("k1", 17, (6, 7), kernel=(1, 1)),
    C("k1-s2", 16, (7, 6), kernel=(1, 1), stride=2),
    C("k1-padded", 16, (5, 5), kernel=(1, 1), padding=2),
    C("k5", 17, (11, 9), kernel=(5, 5), padding=2, compact=True),
    C("k5-s2-d2", 24, (13, 15), kernel=(5, 5), padding=4, stride=2, dilation=2),
    C("k7", 16, (12, 9), kernel=(7, 7), padding=3, bias=False),
    C("k7-d3", 9, (10, 11), kernel=(7, 7), padding=9, dilation=3),
    C("k2", 15, (7, 8), kernel=(2, 2)),
    C("k2-padded", 16, (7, 8), kernel=(2, 2), padding=1, dilation=3),
    C("k17", 17, (6, 13), kernel=(1, 7), padding=(0, 3)),
    C("k71", 8, (13, 6), kernel=(7, 1), padding=(3, 0)),
    C("k43", 24, (9, 8), kernel=(4, 3), padding=(2, 1), stride=(2, 1), compact=True),
    C("k11", 4, (13, 12), kernel=(11, 11), padding=5),
    # Padding: none, asymmetric as TensorFlow's SAME, larger than the kernel, on one side only.
    C("p0", 32, (9, 9)),
    C("p-same-s2", 17, (12, 12), stride=2, padding=(0, 1, 0, 1), compact=True),
    C("p-same-even-kernel", 16, (9, 8), kernel=(4, 4), padding=(1, 2, 1, 2)),
    C("p-four-different", 20, (8, 9), padding=(3, 0, 1, 4), dilation=2),
    C("p-left-only", 16, (7, 6), padding=(5, 0, 0, 0), stride=(1, 2)),
    C("p-beyond-kernel", 17, (6, 5), padding=7),
    C("p-beyond-kernel-s3", 8, (5, 6), padding=(9, 4), stride=3),
    # Thin, single and empty maps.
    C("w1", 17, (9, 1), padding=1),
    C("h1", 17, (1, 9), padding=1),
    C("h1w1", 24, (1, 1), padding=1, compact=True),
    C("h1w1-d36", 33, (1, 1), padding=36, dilation=36),
    C("w1-d12-s2", 8, (9, 1), padding=12, dilation=12, stride=2),
    C("one-output-pixel", 17, (3, 3)),
    C("one-output-pixel-k7", 8, (7, 7), kernel=(7, 7), bias=False),
    C("n0", 16, (6, 6), padding=1, n=0, compact=True),
    C("n1", 17, (6, 6), padding=1, n=1),
    C("n3", 17, (7, 5), padding=1, n=3),
    C("n9-small-map", 8, (2, 3), padding=1, n=9),
    C("tall-map-of-many-bands", 9, (130, 4), padding=1, n=4),
    C("large-map", 3, (257, 190), padding=2, dilation=2, n=1),
    # The kernel meets padding alone: no term is left in the sum.
    C("only-padding", 16, (1, 1), kernel=(2, 2), padding=(3, 3, 3, 3), dilation=5, compact=True),
    C("only-padding-bias-free", 7, (2, 2), kernel=(2, 2), padding=4, dilation=9, bias=False),
)
COMPACT_CASES = tuple(case for case in DEPTHWISE_CASES if case.compact)


class Inputs(NamedTuple):
    """The tensors of a case, in one dtype: input, weight, bias and the gradient of the output."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    grad: Tensor


@cache
def inputs(case: DepthwiseCase, dtype: torch.dtype) -> Inputs:
    """Normally distributed tensors of a case, contiguous; the same at every call."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.id.encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return Inputs(
        normal(case.n, case.c, *case.size),
        normal(case.c, 1, *case.kernel),
        normal(case.c) if case.bias else None,
        normal(case.n, case.c, *case.output_size),
    )


def leaves(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """The given tensors detached, strides kept, as leaves of a new graph; no bias is left out."""
    return tuple(t.detach().requires_grad_() for t in (x, weight, bias) if t is not None)


@cache
def stock(
    case: DepthwiseCase,
    dtype: torch.dtype,
    layout: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, ...]:
    """Output and gradients of stock PyTorch, in the order of `NAMES`."""
    x, weight, bias, grad = inputs(case, dtype)
    arguments = leaves(x.contiguous(memory_format=layout), weight, bias)
    output = stock_forward(case, *arguments)
    grad = grad.contiguous(memory_format=layout)
    return (output.detach(), *torch.autograd.grad(output, arguments, grad))


def stock_forward(
    case: DepthwiseCase, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The case by `F.pad` and `F.conv2d`."""
    return F.conv2d(
        F.pad(x, case.sides), weight, bias, case.stride, 0, case.dilation, groups=case.c
    )


class Exact(NamedTuple):
    """Sums at a higher precision, and the sums of the absolute values of their terms."""

    values: tuple[np.ndarray, ...]
    magnitudes: tuple[np.ndarray, ...]


@cache
def exact(case: DepthwiseCase, dtype: torch.dtype) -> Exact:
    """Output and gradients in float64; in extended precision for float64 tensors."""
    wide = np.longdouble if dtype == torch.float64 else np.float64
    arrays = [None if t is None else t.double().numpy().astype(wide) for t in inputs(case, dtype)]
    sizes = [None if a is None else abs(a) for a in arrays]
    return Exact(_by_taps(case, *arrays), _by_taps(case, *sizes))


def _by_taps(
    case: DepthwiseCase,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    grad: np.ndarray,
) -> tuple[np.ndarray, ...]:
    left, right, top, bottom = case.sides
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    output, grad_padded, grad_weight = (np.zeros_like(a) for a in (grad, padded, weight))
    spots = [range(0, s * n, s) for s, n in zip(pair(case.stride), case.output_size, strict=True)]
    for i, j in np.ndindex(*case.kernel):
        rows, columns = (
            slice(at * d, at * d + spot[-1] + 1, spot.step)
            for at, d, spot in zip((i, j), pair(case.dilation), spots, strict=True)
        )
        tap = weight[:, :, i, j, None]
        output += padded[:, :, rows, columns] * tap
        grad_padded[:, :, rows, columns] += grad * tap
        grad_weight[:, 0, i, j] = (padded[:, :, rows, columns] * grad).sum((0, 2, 3))
    height, width = case.size
    grad_input = grad_padded[:, :, top : top + height, left : left + width]
    if bias is None:
        return output, grad_input, grad_weight
    return output + bias[:, None, None], grad_input, grad_weight, grad.sum((0, 2, 3))
