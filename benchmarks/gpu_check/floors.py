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

In an ASPP the branches share their passes over X, and the projection reads their raw results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dlv3p_kernels.bench import aspp, separable

# Of an H100 SXM: large copies and large products of bfloat16 matrices as measured, float32 on the
# CUDA cores by its data sheet.
BYTES_PER_SECOND = 3.00e12
TENSOR_FLOPS = 798e12
CUDA_FLOPS = 66.9e12
_ELEMENT = 2
_DEPTHWISE_FLOPS = 18


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


def milliseconds(case: separable.Case | aspp.Case, training: bool) -> float:
    """Of one inference, or of a forward in training and all gradients."""
    passes = _aspp(case, training) if isinstance(case, aspp.Case) else _separable(case, training)
    return 1e3 * sum(one.seconds for one in passes)


def _separable(case: separable.Case, training: bool) -> Sequence[Pass]:
    pixels = case.batch * case.output_size**2
    x = _ELEMENT * case.batch * case.size**2 * case.channels
    d = _ELEMENT * pixels * case.channels
    p = _ELEMENT * pixels * case.out_channels
    weight = _ELEMENT * case.channels * case.out_channels
    product = 2 * pixels * case.channels * case.out_channels
    stencil = _DEPTHWISE_FLOPS * pixels * case.channels
    through = Pass(x + p + weight, product, stencil)
    if not training:
        return [through]
    forward = [Pass(x, 0, stencil), through, Pass(2 * p)]
    backward = [
        Pass(2 * p),
        Pass(2 * p + x + d + weight, product, stencil),
        Pass(2 * p + x + 2 * weight, product, stencil),
        Pass(d + 2 * x, 0, 3 * stencil),
    ]
    return forward + backward


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
