"""Outputs, gradients and running statistics of `separable_conv2d` against float64."""

from __future__ import annotations

import pytest
import torch
from separable_cases import NCHW, NHWC, SEPARABLE_CASES, SeparableCase, stock
from separable_outcomes import assert_parity, results

import dlv3p_kernels as dk

Layouts = tuple[torch.memory_format, torch.memory_format]
SAME, MIXED = ((NHWC, NHWC), (NCHW, NCHW)), ((NHWC, NCHW), (NCHW, NHWC))


def name_of(layouts: Layouts) -> str:
    """A short test id."""
    return "-others_".join("nhwc" if layout == NHWC else "nchw" for layout in layouts)


# The formats of residual and gradient only choose copies, so one dtype does for them.
RUNS = [
    pytest.param(
        case,
        dtype,
        layouts,
        marks=[pytest.mark.compact] if case.compact and layouts in SAME else [],
        id=f"{case.id}-{str(dtype).rsplit('.', 1)[-1]}-{name_of(layouts)}",
    )
    for case in SEPARABLE_CASES
    for dtype in case.dtypes
    for layouts in (*SAME, *(MIXED if dtype == torch.float32 else ()))
]


@pytest.mark.usefixtures("native", "poison", "one_thread")
@pytest.mark.parametrize(("case", "dtype", "layouts"), RUNS)
def test_kernels(case: SeparableCase, dtype: torch.dtype, layouts: Layouts, device: str) -> None:
    got = results(case, dtype, dk.separable_conv2d, *layouts, device=device)
    for name in ("inference", "output", "grad_x"):
        assert got[name].is_contiguous(memory_format=layouts[0]), name
    assert_parity(case, dtype, got)


@pytest.mark.usefixtures("poison", "one_thread")
@pytest.mark.parametrize("layout", (NHWC, NCHW), ids=("nhwc", "nchw"))
@pytest.mark.parametrize("case", SEPARABLE_CASES, ids=lambda case: case.id)
def test_reference(case: SeparableCase, layout: torch.memory_format, device: str) -> None:
    """The fall-back is stock PyTorch to the bit."""
    with dk.backend("reference"):
        got = results(case, torch.float32, dk.separable_conv2d, layout, device=device)
    for name, theirs in results(case, torch.float32, stock, layout, device=device).items():
        assert torch.equal(got[name], theirs), name
