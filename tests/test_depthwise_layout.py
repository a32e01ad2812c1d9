"""Strided inputs: read in place where channels or columns are adjacent, right everywhere else."""

from __future__ import annotations

import pytest
import torch
from cases import DepthwiseCase, inputs, leaves
from numerics import assert_parity
from torch.profiler import ProfilerActivity, profile
from views import COPIED, NHWC, VIEWS, View, every_second

import dlv3p_kernels as dk

pytestmark = pytest.mark.usefixtures("native", "poison", "one_thread")

CASE = DepthwiseCase("strided", 20, (9, 11), padding=2, dilation=2, n=2)


@pytest.mark.parametrize("dims", ((0,), (2,), (3,), (0, 1, 2, 3)), ids=str)
def test_expanded_input_and_gradient(dims: tuple[int, ...]) -> None:
    """Stride 0: the same values as from the tensor written out."""
    x, weight, _, grad = inputs(CASE, torch.float32)
    index = tuple(slice(0, 1) if d in dims else slice(None) for d in range(4))
    views = [t[index].expand_as(t) for t in (x, grad)]
    outcomes = []
    for x, grad in (views, [v.contiguous() for v in views]):
        arguments = leaves(x, weight, None)
        output = dk.depthwise_conv2d(*arguments, None, 1, CASE.padding, CASE.dilation)
        outcomes.append((output, *torch.autograd.grad(output, arguments, grad)))
    for expanded, written_out in zip(*outcomes, strict=True):
        torch.testing.assert_close(expanded, written_out, rtol=0, atol=0)


def test_strided_weight_and_bias() -> None:
    x, weight, bias, grad = inputs(CASE, torch.float32)
    weight = every_second(weight, 0).transpose(2, 3).contiguous().transpose(2, 3)
    bias = torch.stack((bias, bias), 1)[:, 0]
    assert not weight.is_contiguous() and not bias.is_contiguous()
    arguments = leaves(x, weight, bias)
    output = dk.depthwise_conv2d(*arguments, CASE.stride, CASE.padding, CASE.dilation)
    gradients = torch.autograd.grad(output, arguments, grad)
    assert_parity(CASE, torch.float32, (output.detach(), *gradients))


@pytest.mark.parametrize("layout", (torch.contiguous_format, NHWC), ids=("nchw", "nhwc"))
@pytest.mark.parametrize("grad_layout", (torch.contiguous_format, NHWC), ids=("nchw", "nhwc"))
def test_memory_format_of_results(
    layout: torch.memory_format, grad_layout: torch.memory_format
) -> None:
    """Output and input gradient lie as the input does, whatever the output's gradient does."""
    x, weight, bias, grad = inputs(CASE, torch.float32)
    arguments = leaves(x.contiguous(memory_format=layout), weight, bias)
    output = dk.depthwise_conv2d(*arguments, CASE.stride, CASE.padding, CASE.dilation)
    grad_x, grad_weight, _ = torch.autograd.grad(
        output, arguments, grad.contiguous(memory_format=grad_layout)
    )
    assert output.is_contiguous(memory_format=layout)
    assert grad_x.is_contiguous(memory_format=layout)
    assert grad_weight.is_contiguous()


@pytest.mark.parametrize(
    ("view", "copied"),
    [(view, name in COPIED) for name, view in VIEWS.items()],
    ids=VIEWS,
)
def test_no_copy_of_what_can_be_read_in_place(view: View, copied: bool) -> None:
    x, weight, _, grad = inputs(CASE, torch.float32)
    x, grad = view(x), view(grad)
    geometry = ([1, 1], list(CASE.sides), [2, 2])
    with profile(activities=[ProfilerActivity.CPU]) as record:
        torch.ops.dlv3p.depthwise_conv2d(x, weight, None, *geometry)
        torch.ops.dlv3p.depthwise_conv2d_backward(grad, x, weight, *geometry, True, True)
    names = [event.name for event in record.events()]
    assert names.count("dlv3p::depthwise_conv2d") == 1
    # Forward copies the input; backward copies the input and the output's gradient.
    assert names.count("aten::copy_") == (3 if copied else 0)
