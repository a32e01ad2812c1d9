"""The least time of a layer on an H100, from bytes and products of matrices that it cannot avoid.

A pass over memory takes at least the longest of its bytes, its products of matrices and its
multiply-adds of 3x3 depthwise convolutions at the rates below; the passes of a layer run one after
another. Vectors of a value per channel are left out. The passes are those of a fully fused layer in
2 bytes an element: no depthwise result in memory, except where a gradient has to pass a batch norm,
whose sums must be known first. X, D and P stand for the maps of input, depthwise and pointwise
result.

* inference: read X, write P.
* training forward: statistics of D from X; X to P with its statistics; norm and activation of P.
* backward: sums of the norm of P (gradient and P read); gradient by D with the sums of its norm
  (the same two and X read, D written); weight gradient of the pointwise half (the same three read);
  gradients of the depthwise half (D and X read, X written).

In an ASPP the branches share their passes over X, and the projection reads their raw results. In a
decoder X of the first convolution is the encoder output and the projected low-level features; norms
are applied where the next convolution reads, and the classifier ends the last one in inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dlv3p_kernels.bench import aspp, decoder, separable

# Of an H100 SXM: large copies and large products of bfloat16 matrices as measured, float32 on the
# CUDA cores by its data sheet.
BYTES_PER_SECOND = 3.00e12
TENSOR_FLOPS = 798e12
CUDA_FLOPS = 66.9e12
_ELEMENT = 2
_DEPTHWISE_FLOPS = 18

Case = separable.Case | aspp.Case | decoder.Case


class Pass(NamedTuple):
    """Bytes; floating-point operations on the tensor cores and on the CUDA cores."""

    moved: float
    products: float = 0
    stencils: float = 0

    @property
    def seconds(self) -> float:
        """At least."""
        return max(
            self.moved / BYTES_PER_SECOND,
            self.products / TENSOR_FLOPS,
            self.stencils / CUDA_FLOPS,
        )


def milliseconds(case: Case, training: bool) -> float:
    """Of one inference, or of a forward in training and all gradients."""
    if isinstance(case, separable.Case):
        passes = _separable(case, training)
    elif isinstance(case, aspp.Case):
        passes = _aspp(case, training)
    else:
        passes = _decoder(case, training)
    return 1e3 * sum(one.seconds for one in passes)


class Halves(NamedTuple):
    """A separable convolution of so many pixels, from `x` bytes."""

    x: float
    pixels: int
    channels: int
    out_channels: int

    @property
    def p(self) -> float:
        """Bytes of the pointwise result."""
        return _ELEMENT * self.pixels * self.out_channels

    @property
    def weight(self) -> float:
        """Bytes of the pointwise weight."""
        return _ELEMENT * self.channels * self.out_channels

    @property
    def product(self) -> float:
        """Operations of the pointwise half."""
        return 2 * self.pixels * self.channels * self.out_channels

    @property
    def stencil(self) -> float:
        """Operations of the depthwise half."""
        return _DEPTHWISE_FLOPS * self.pixels * self.channels

    def statistics(self) -> Pass:
        """Of the depthwise result."""
        return Pass(self.x, 0, self.stencil)

    def through(self) -> Pass:
        """From the input to the pointwise result."""
        return Pass(self.x + self.p + self.weight, self.product, self.stencil)

    def backward(self) -> list[Pass]:
        """From the gradient behind the last norm."""
        x, p, d = self.x, self.p, _ELEMENT * self.pixels * self.channels
        return [
            Pass(2 * p),
            Pass(2 * p + x + d + self.weight, self.product, self.stencil),
            Pass(2 * p + x + 2 * self.weight, self.product, self.stencil),
            Pass(d + 2 * x, 0, 3 * self.stencil),
        ]


def _separable(case: separable.Case, training: bool) -> Sequence[Pass]:
    x = _ELEMENT * case.batch * case.size**2 * case.channels
    pixels = case.batch * case.output_size**2
    halves = Halves(x, pixels, case.channels, case.out_channels)
    if not training:
        return [halves.through()]
    return [halves.statistics(), halves.through(), Pass(2 * halves.p), *halves.backward()]


def _decoder(case: decoder.Case, training: bool) -> Sequence[Pass]:
    pixels, projected = case.batch * case.size**2, decoder.PROJECTED
    low_level = _ELEMENT * pixels * decoder.LOW_LEVEL
    q = _ELEMENT * pixels * projected
    x = _ELEMENT * case.batch * case.source**2 * case.channels
    projection = 2 * pixels * decoder.LOW_LEVEL * projected
    out = _ELEMENT * pixels * case.classes
    classifier = 2 * pixels * case.channels * case.classes
    first = Halves(x + q, pixels, case.channels + projected, case.channels)
    later = [Halves(first.p, pixels, case.channels, case.channels)] * (case.convs - 1)
    convs = [first, *later]
    project = Pass(low_level + q, projection)
    if not training:
        *before, last = (conv.through() for conv in convs)
        ended = Pass(last.moved - first.p + out, last.products + classifier, last.stencils)
        return [project, *before, ended]
    forward = [one for conv in convs for one in (conv.statistics(), conv.through())]
    classify = Pass(first.p + out, classifier)
    backward = [one for conv in reversed(convs) for one in conv.backward()]
    through_projection = Pass(2 * q + low_level, projection)
    return [
        project, *forward, classify,
        classify, classify, *backward,
        Pass(2 * q), through_projection, through_projection,
    ]  # fmt: skip


def _aspp(case: aspp.Case, training: bool) -> Sequence[Pass]:
    pixels, rates = case.batch * case.size**2, len(case.rates)
    branches = 1 + rates
    x = _ELEMENT * pixels * case.channels
    p = _ELEMENT * pixels * case.out_channels
    weight = _ELEMENT * case.channels * case.out_channels
    product = 2 * pixels * case.channels * case.out_channels
    stencils = rates * _DEPTHWISE_FLOPS * pixels * case.channels
    joined = (1 + branches) * case.out_channels  # the pooled branch among them
    to_project = _ELEMENT * joined * case.out_channels
    projection = 2 * pixels * joined * case.out_channels
    through = Pass(x + branches * (p + weight), branches * product, stencils)
    if not training:
        return [through, Pass((branches + 1) * p + to_project, projection)]
    forward = [
        Pass(x, 0, stencils),
        through,
        Pass((branches + 2) * p + to_project, projection),
        Pass(2 * p),
    ]
    backward = [
        # The norm of the projection, and the projection.
        Pass(2 * p),
        Pass(3 * p),
        Pass((branches + 2) * p + to_project, projection),
        Pass((branches + 2) * p + 2 * to_project, projection),
        # The norms of the branches, and the branches.
        Pass(branches * 2 * p),
        Pass(rates * (2 * p + x + weight) + x, rates * product, stencils),
        Pass(branches * 2 * (p + weight) + x, branches * product, stencils),
        Pass(rates * x + 2 * p + 2 * x, product, 3 * stencils),
    ]
    return forward + backward
