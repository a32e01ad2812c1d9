"""Output and gradients of `depthwise_conv2d` against float64, every case, dtype and layout."""

from __future__ import annotations

import math

import pytest
import torch
from cases import DEPTHWISE_CASES, NAMES, DepthwiseCase, exact, inputs, leaves, stock
from numerics import assert_parity
from torch import Tensor

import dlv3p_kernels as dk
from dlv3p_kernels.bench import accuracy

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NCHW, NHWC = torch.contiguous_format, torch.channels_last
LAYOUTS = ((NHWC, NHWC), (NCHW, NCHW), (NHWC, NCHW), (NCHW, NHWC))


def name_of(value: object) -> str:
    """A short test id for dtypes, layouts and cases."""
    if isinstance(value, tuple):
        return "-grad_".join("nhwc" if layout == NHWC else "nchw" for layout in value)
    return getattr(value, "id", None) or str(value).rsplit(".", 1)[-1]


every_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.compact) if case.compact else case
        for case in DEPTHWISE_CASES
    ],
    ids=name_of,
)


def run(
    case: DepthwiseCase,
    dtype: torch.dtype,
    layouts: tuple[torch.memory_format, ...],
    device: str = "cpu",
) -> tuple[Tensor, ...]:
    """Output and gradients of the op under test, in the order of `NAMES`."""
    x, weight, bias, grad = (None if t is None else t.to(device) for t in inputs(case, dtype))
    layout, grad_layout = layouts
    arguments = leaves(x.contiguous(memory_format=layout), weight, bias)
    shift = arguments[2] if case.bias else None
    output = dk.depthwise_conv2d(*arguments[:2], shift, case.stride, case.padding, case.dilation)
    grad = grad.contiguous(memory_format=grad_layout)
    return (output.detach(), *torch.autograd.grad(output, arguments, grad))


@pytest.mark.usefixtures("native", "poison", "one_thread")
@pytest.mark.parametrize("layouts", LAYOUTS, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@every_case
def test_kernel(
    case: DepthwiseCase,
    dtype: torch.dtype,
    layouts: tuple[torch.memory_format, ...],
    device: str,
) -> None:
    assert_parity(case, dtype, run(case, dtype, layouts, device))


@pytest.mark.usefixtures("poison", "one_thread")
@pytest.mark.parametrize("layouts", LAYOUTS[:2], ids=name_of)
@every_case
def test_reference(case: DepthwiseCase, layouts: tuple[torch.memory_format, ...]) -> None:
    with dk.backend("reference"):
        results = run(case, torch.float32, layouts)
    assert_parity(case, torch.float32, results, stock_layout=layouts[0])


@every_case
def test_the_exact_sums_are_those_of_stock(case: DepthwiseCase) -> None:
    """Ties the tap-by-tap definition to stock PyTorch in float64, by the bound of any summation."""
    dtype = torch.float64
    values, magnitudes = exact(case, dtype)
    terms = math.prod(case.kernel) + case.n * math.prod(case.output_size) + 1
    for name, theirs, value, magnitude in zip(
        NAMES, stock(case, dtype), values, magnitudes, strict=False
    ):
        bound = terms * accuracy.floor(dtype, value, magnitude)
        assert accuracy.error(theirs, value) <= bound, name
