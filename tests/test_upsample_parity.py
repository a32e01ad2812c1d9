"""Loss, gradient and classes of resized logits against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numerics import assert_accurate
from torch import Tensor
from upsample_cases import (
    NCHW,
    NHWC,
    UPSAMPLE_CASES,
    UpsampleCase,
    exact,
    inputs,
    results,
    stock,
    stock_results,
)

import dlv3p_kernels as dk
from dlv3p_kernels.bench import accuracy

LAYOUTS = pytest.mark.parametrize("layout", (NHWC, NCHW), ids=("nhwc", "nchw"))
CASES = [
    pytest.param(
        case,
        dtype,
        marks=[pytest.mark.compact] if case.compact else [],
        id=f"{case.id}-{str(dtype).rsplit('.', 1)[-1]}",
    )
    for case in UPSAMPLE_CASES
    for dtype in case.dtypes
]


@pytest.mark.usefixtures("native", "poison", "one_thread")
@LAYOUTS
@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_kernels_of_the_loss(
    case: UpsampleCase, dtype: torch.dtype, layout: torch.memory_format, device: str
) -> None:
    got = results(case, dtype, dk.upsample_cross_entropy, layout, device)
    assert got["grad"].is_contiguous(memory_format=layout)
    values, magnitudes = exact(case, dtype)
    for name, theirs in stock_results(case, dtype).items():
        ours = got[name]
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
        assert_accurate(name, dtype, ours, theirs, values[name], magnitudes[name])


@pytest.mark.usefixtures("native", "poison", "one_thread")
@LAYOUTS
@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_kernels_of_the_classes(
    case: UpsampleCase, dtype: torch.dtype, layout: torch.memory_format, device: str
) -> None:
    """The class that is found has the largest logit, but for rounding."""
    wide = torch.promote_types(dtype, torch.float32)
    logits = inputs(case, dtype).logits
    index, probability = (
        t.cpu()
        for t in dk.upsample_argmax(
            logits.to(device).contiguous(memory_format=layout),
            case.out,
            align_corners=case.align_corners,
            return_probability=True,
            dtype=torch.uint8 if case.classes <= 256 else torch.int64,
        )
    )
    values, magnitudes = exact(case, dtype)
    stock_z = F.interpolate(
        logits.to(wide), case.out, mode="bilinear", align_corners=case.align_corners
    )
    error = accuracy.allowed(
        accuracy.error(stock_z, values["z"]),
        accuracy.floor(wide, values["z"], magnitudes["z"]),
    )
    chosen = np.take_along_axis(values["z"], index.long().numpy()[:, None], 1)[:, 0]
    largest = abs(values["z"]).max()
    assert (values["z"].max(1) - chosen <= 2 * error * largest).all()
    at = index.long()[:, None]
    p, p_size = (
        np.take_along_axis(part["p"], at.numpy(), 1)[:, 0] for part in (values, magnitudes)
    )
    theirs = stock_z.softmax(1).gather(1, at)[:, 0]
    assert probability.dtype == wide
    assert_accurate("probability", wide, probability, theirs, p, p_size)


@pytest.mark.usefixtures("poison", "one_thread")
@LAYOUTS
@pytest.mark.parametrize(("case", "dtype"), [p for p in CASES if p.values[1] == torch.float32])
def test_reference(case: UpsampleCase, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """The fall-back is stock PyTorch to the bit."""
    with dk.backend("reference"):
        got = results(case, dtype, dk.upsample_cross_entropy, layout)
        index = dk.upsample_argmax(
            inputs(case, dtype).logits, case.out, align_corners=case.align_corners
        )
    for name, theirs in results(case, dtype, stock, layout).items():
        assert torch.equal(got[name], theirs), name
    z = F.interpolate(
        inputs(case, dtype).logits, case.out, mode="bilinear", align_corners=case.align_corners
    )
    assert torch.equal(index, z.argmax(1))


@pytest.mark.parametrize(
    "case", [case for case in UPSAMPLE_CASES if case.compact], ids=lambda case: case.id
)
def test_definitions_are_exact(case: UpsampleCase) -> None:
    """What devices without a kernel run, operator by operator."""
    tensors = inputs(case, torch.float64)
    rest = (255 if case.ignored else -100, case.smoothing, case.align_corners)
    loss, logsumexp = dk.reference.upsample_cross_entropy(*tensors[:3], *rest)
    grad = dk.reference.upsample_cross_entropy_backward(
        tensors.grad, *tensors[:3], logsumexp, *rest
    )
    found: dict[str, Tensor] = {"loss": loss, "grad": grad}
    values, magnitudes = exact(case, torch.float64)
    for name, theirs in stock_results(case, torch.float64).items():
        assert_accurate(name, grad.dtype, found[name], theirs, values[name], magnitudes[name])
