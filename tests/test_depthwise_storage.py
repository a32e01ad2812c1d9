"""Maps stored in other ways: windows, slices, permutations, addresses that are not aligned."""

from __future__ import annotations

import pytest
import torch
from cases import DepthwiseCase, inputs, leaves
from numerics import assert_parity
from views import VIEWS, View

import dlv3p_kernels as dk

CASES = (
    DepthwiseCase("stored", 20, (9, 11), padding=2, dilation=2),
    DepthwiseCase("stored-packs", 32, (8, 7), padding=1),
    DepthwiseCase("stored-s2", 16, (9, 7), padding=1, stride=2),
    DepthwiseCase("stored-k4", 16, (9, 7), kernel=(4, 4), padding=2),
    DepthwiseCase("stored-thin", 12, (7, 1), padding=1),
    DepthwiseCase("stored-pixel", 12, (1, 1), padding=1, n=3),
    DepthwiseCase("stored-one-channel", 1, (8, 9), padding=1, n=3),
)


@pytest.mark.usefixtures("native", "poison", "one_thread")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_storage(case: DepthwiseCase, dtype: torch.dtype, view: View, device: str) -> None:
    """Output and gradients on views of the input and of the output's gradient."""
    x, weight, bias, grad = (t.to(device) for t in inputs(case, dtype))
    x, grad = view(x), view(grad)
    arguments = leaves(x, weight, bias)
    assert arguments[0].stride() == x.stride()
    output = dk.depthwise_conv2d(*arguments, case.stride, case.padding, case.dilation)
    gradients = torch.autograd.grad(output, arguments, grad)
    assert_parity(case, dtype, (output.detach(), *gradients))
