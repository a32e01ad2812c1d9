"""Output, gradients and running statistics of `batch_norm_act` against float64."""

from __future__ import annotations

import pytest
import torch
from norm_cases import NCHW, NHWC, NORM_CASES, NormCase, exact, results, stock, stock_results
from numerics import assert_accurate
from torch import Tensor

import dlv3p_kernels as dk
from dlv3p_kernels import backends

LAYOUTS = ((NHWC, NHWC), (NCHW, NCHW), (NHWC, NCHW), (NCHW, NHWC))
CASES = [
    pytest.param(
        case,
        dtype,
        marks=[pytest.mark.compact] if case.compact else [],
        id=f"{case.id}-{str(dtype).rsplit('.', 1)[-1]}",
    )
    for case in NORM_CASES
    for dtype in case.dtypes
]


def name_of(layouts: tuple[torch.memory_format, ...]) -> str:
    """A short test id."""
    return "-others_".join("nhwc" if layout == NHWC else "nchw" for layout in layouts)


def assert_parity(case: NormCase, dtype: torch.dtype, got: dict[str, Tensor]) -> None:
    """Everything is as exact as stock PyTorch's, contiguous, where it is the more exact."""
    expected = stock_results(case, dtype, NCHW)
    values, magnitudes = exact(case, dtype)
    assert got.keys() == expected.keys() == values.keys()
    for name, theirs in expected.items():
        ours = got[name]
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
        assert_accurate(name, ours.dtype, ours, theirs, values[name], magnitudes[name])


@pytest.mark.usefixtures("native", "poison", "one_thread")
@pytest.mark.parametrize("layouts", LAYOUTS, ids=name_of)
@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_kernels(
    case: NormCase,
    dtype: torch.dtype,
    layouts: tuple[torch.memory_format, ...],
    backend_name: str,
    device: str,
) -> None:
    if dtype not in backends.BACKENDS[backend_name].dtypes:
        pytest.skip(f"the back end has no kernel for {dtype}")
    got = results(case, dtype, dk.batch_norm_act, *layouts, device=device)
    assert got["output"].is_contiguous(memory_format=layouts[0])
    assert got["grad_x"].is_contiguous(memory_format=layouts[0])
    assert_parity(case, dtype, got)


@pytest.mark.usefixtures("poison", "one_thread")
@pytest.mark.parametrize("layout", (NHWC, NCHW), ids=("nhwc", "nchw"))
@pytest.mark.parametrize(("case", "dtype"), [p for p in CASES if p.values[1] == torch.float32])
def test_reference(
    case: NormCase, dtype: torch.dtype, layout: torch.memory_format, device: str
) -> None:
    """The fall-back is stock PyTorch to the bit."""
    with dk.backend("reference"):
        got = results(case, dtype, dk.batch_norm_act, layout, device=device)
    for name, theirs in results(case, dtype, stock, layout, device=device).items():
        assert torch.equal(got[name], theirs), name
