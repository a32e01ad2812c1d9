"""The cases of loss and prediction on resized logits, and what they must equal.

`exact` computes loss, gradient and probabilities at a higher precision, from matrices of the
resize along each axis, together with the sizes of the terms that were added up.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255
NCHW, NHWC = torch.contiguous_format, torch.channels_last
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class UpsampleCase:
    """Logits of `classes` at `size`, resized to `out`; `ignored` is the share of such pixels."""

    id: str
    classes: int
    size: tuple[int, int]
    out: tuple[int, int]
    n: int = 2
    align_corners: bool = False
    weight: bool = False
    smoothing: float = 0.0
    ignored: float = 0.2
    target: torch.dtype = torch.int64
    scale: float = 3.0
    compact: bool = False

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """What is exact beside float64 takes long to compute for large maps."""
        few = (torch.float32, torch.bfloat16)
        return few if self.out[0] * self.out[1] > 10_000 else (*few, torch.float16, torch.float64)


C = UpsampleCase
UPSAMPLE_CASES = (
    # Classes around the vector widths, and those of the data sets.
    C("c1", 1, (5, 4), (17, 13), compact=True),
    C("c2", 2, (7, 9), (25, 33), align_corners=True, target=torch.uint8),
    C("c7", 7, (6, 5), (23, 20), weight=True),
    C("c8", 8, (6, 5), (24, 20), target=torch.int32),
    C("c16", 16, (5, 9), (17, 33), align_corners=True, compact=True),
    C("c17", 17, (5, 9), (20, 36), weight=True, smoothing=0.1),
    C("c19", 19, (8, 9), (32, 36), weight=True, target=torch.uint8, compact=True),
    C("c21", 21, (9, 11), (33, 41), align_corners=True, compact=True),
    C("c21-smooth", 21, (9, 11), (33, 41), smoothing=0.2, compact=True),
    C("c150", 150, (5, 6), (17, 21), weight=True, compact=True),
    C("c256", 256, (4, 5), (13, 18), target=torch.uint8, ignored=0),
    C("c300", 300, (3, 4), (9, 13), n=1, smoothing=0.1),
    # Sizes: the nets' own, any ratio, single rows, columns and pixels.
    C("128-512", 2, (128, 128), (512, 512), n=1),
    C("129-513", 3, (129, 129), (513, 513), n=1, align_corners=True, target=torch.uint8),
    C("33-513", 3, (33, 33), (513, 513), n=1),
    C("several-tiles", 5, (3, 200), (11, 801), n=1, compact=True),
    C("several-tiles-shrunk", 5, (3, 801), (5, 200), n=1),
    C("many-rows", 3, (150, 3), (601, 7), n=1),
    C("same", 5, (9, 8), (9, 8), compact=True),
    C("same-rows", 5, (9, 8), (9, 29), align_corners=True),
    C("nearly-same", 6, (20, 21), (21, 20)),
    C("one-to-many", 4, (1, 1), (7, 9), compact=True),
    C("one-to-many-aligned", 4, (1, 1), (7, 9), align_corners=True),
    C("row", 3, (1, 9), (6, 33)),
    C("column", 3, (9, 1), (33, 6), align_corners=True),
    C("to-one", 4, (9, 7), (1, 1), n=3, ignored=0),
    C("to-one-aligned", 4, (9, 7), (1, 1), n=3, ignored=0, align_corners=True),
    C("shrink", 7, (33, 29), (9, 8), compact=True),
    C("shrink-aligned", 7, (33, 29), (9, 8), align_corners=True),
    C("shrink-much", 3, (65, 70), (3, 2)),
    C("both-ways", 6, (9, 31), (33, 7), weight=True),
    C("n5", 9, (4, 5), (15, 17), n=5),
    # Targets and logits.
    C("all-ignored", 5, (5, 6), (17, 21), ignored=1.0),
    C("few-left", 5, (5, 6), (17, 21), ignored=0.97, smoothing=0.1),
    C("large-logits", 12, (6, 7), (22, 25), scale=100, weight=True),
    C("small-logits", 12, (6, 7), (22, 25), scale=1e-3),
)


class Inputs(NamedTuple):
    """The tensors of a case."""

    logits: Tensor
    target: Tensor
    weight: Tensor | None
    grad: Tensor


@cache
def inputs(case: UpsampleCase, dtype: torch.dtype) -> Inputs:
    """Random tensors of a case, contiguous; the same at every call."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.id.encode()))
    vector_dtype = torch.promote_types(dtype, torch.float32)
    shape = (case.n, case.classes, *case.size)
    pixels = (case.n, *case.out)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * case.scale
    target = torch.randint(case.classes, pixels, generator=generator)
    target[torch.rand(pixels, generator=generator) < case.ignored] = IGNORE
    weight = torch.rand(case.classes, generator=generator, dtype=torch.float64) + 0.1
    grad = torch.randn(pixels, generator=generator, dtype=torch.float64)
    return Inputs(
        logits.to(dtype),
        target.to(case.target),
        weight.to(vector_dtype) if case.weight else None,
        grad.to(dtype),
    )


def stock(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    align_corners: bool = False,
    **options: object,
) -> Tensor:
    """The two steps in stock PyTorch."""
    z = F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=align_corners)
    weight = None if weight is None else weight.to(z.dtype)
    return F.cross_entropy(z, target.long(), weight, **options)  # type: ignore[arg-type]


def options(case: UpsampleCase) -> dict[str, object]:
    """Of the loss, weights apart."""
    return {
        "align_corners": case.align_corners,
        "label_smoothing": case.smoothing,
        "ignore_index": IGNORE if case.ignored else -100,
    }


def results(
    case: UpsampleCase,
    dtype: torch.dtype,
    function: Function,
    layout: torch.memory_format = NCHW,
    device: str = "cpu",
    view: Callable[[Tensor], Tensor] = lambda t: t,
) -> dict[str, Tensor]:
    """Loss of every pixel, and the gradient by the logits; `view` stores them in another way."""
    tensors = inputs(case, dtype)
    logits = view(tensors.logits.to(device).contiguous(memory_format=layout)).detach()
    logits.requires_grad_()
    weight = None if tensors.weight is None else tensors.weight.to(device)
    loss = function(
        logits, tensors.target.to(device), weight=weight, reduction="none", **options(case)
    )
    (grad,) = torch.autograd.grad(loss, logits, tensors.grad.to(device))
    return {"loss": loss.detach(), "grad": grad}


@cache
def stock_results(case: UpsampleCase, dtype: torch.dtype) -> dict[str, Tensor]:
    """`results` of stock PyTorch on the CPU."""
    return results(case, dtype, stock)


class Exact(NamedTuple):
    """Values at a higher precision, and the sums of the absolute values of their terms."""

    values: dict[str, np.ndarray]
    magnitudes: dict[str, np.ndarray]


@cache
def exact(case: UpsampleCase, dtype: torch.dtype) -> Exact:
    """What `results` is to be; with the resized logits `z` and the probabilities `p` as well."""
    wide = np.longdouble if dtype == torch.float64 else np.float64
    tensors = inputs(case, dtype)
    x, grad = (t.double().numpy().astype(wide) for t in (tensors.logits, tensors.grad))
    rows, columns = (
        _resize_matrix(i, o, case.align_corners, wide)
        for i, o in zip(case.size, case.out, strict=True)
    )
    z = np.einsum("ay,nkyx,bx->nkab", rows, x, columns, optimize=True)
    z_size = np.einsum("ay,nkyx,bx->nkab", rows, abs(x), columns, optimize=True)
    most = z.max(1, keepdims=True)
    logsumexp = most + np.log(np.exp(z - most).sum(1, keepdims=True))
    p = np.exp(z - logsumexp)
    # The exponent is a difference of rounded numbers.
    p_size = p * (1 + z_size + abs(logsumexp))
    share = _shares(case, tensors, wide)
    size = logsumexp + 0 * z
    loss = (share * (logsumexp - z)).sum(1)
    loss_size = (share * (abs(size) + z_size)).sum(1)
    g = grad[:, None] * (share.sum(1, keepdims=True) * p - share)
    g_size = abs(grad[:, None]) * (share.sum(1, keepdims=True) * p_size + share)
    back = "ay,nkab,bx->nkyx"
    return Exact(
        {"loss": loss, "grad": np.einsum(back, rows, g, columns, optimize=True), "z": z, "p": p},
        {
            "loss": loss_size,
            "grad": np.einsum(back, rows, g_size, columns, optimize=True),
            "z": z_size,
            "p": p_size,
        },
    )


def _shares(case: UpsampleCase, tensors: Inputs, wide: type) -> np.ndarray:
    """(N, K, H, W): the factors of every class' negative log-probability in the loss."""
    target = tensors.target.long().numpy()
    counted = target != (IGNORE if case.ignored else -100)
    weight = np.ones(case.classes, wide)
    if tensors.weight is not None:
        weight = tensors.weight.double().numpy().astype(wide)
    on_label = (target[:, None] == np.arange(case.classes)[:, None, None]).astype(wide)
    smoothing = wide(case.smoothing)
    share = (1 - smoothing) * on_label + smoothing / case.classes
    return share * weight[:, None, None] * counted[:, None]


def _resize_matrix(size: int, out: int, align_corners: bool, wide: type) -> np.ndarray:
    """(out, size): the resize along one axis."""
    o = np.arange(out).astype(wide)
    if align_corners:
        at = o * wide(size - 1) / wide(max(1, out - 1)) * (out > 1)
    else:
        at = np.maximum((o + wide(0.5)) * wide(size) / wide(out) - wide(0.5), 0)
    first = np.minimum(at.astype(int), size - 1)
    second = np.minimum(first + 1, size - 1)
    matrix = np.zeros((out, size), wide)
    np.add.at(matrix, (np.arange(out), first), 1 - (at - first))
    np.add.at(matrix, (np.arange(out), second), at - first)
    return matrix


def assert_no_class_shows(ops: Any) -> None:
    """A target that is no class: GPU kernels raise no errors, but loss, mean, gradients are NaN."""
    logits = torch.randn(1, 3, 4, 4)
    target = torch.zeros(1, 9, 9, dtype=torch.int64)
    target[0, 2, 3] = 3
    target[0, 7, 7] = -5
    rest = (255, 0.0, False)
    loss, logsumexp = ops.upsample_cross_entropy(logits, target, None, *rest)
    assert torch.equal(loss.isnan(), (target != 0)) and logsumexp.isfinite().all()
    assert ops.class_weight_sum(target, None, 255, logits).isnan()
    grad = ops.upsample_cross_entropy_backward(
        torch.ones_like(loss), logits, target, None, logsumexp, *rest
    )
    assert grad[0, :, 0, 1].isnan().all() and grad[0, :, 0, 3].isfinite().all()
