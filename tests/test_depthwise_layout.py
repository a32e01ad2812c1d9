"""Strided inputs: read in place where channels or columns are adjacent, right everywhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import DepthwiseCase, inputs, leaves
from numerics import assert_parity
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import dlv3p_kernels as dk

pytestmark = pytest.mark.usefixtures("native", "poison", "one_thread")

CASE = DepthwiseCase("strided", 20, (9, 11), padding=2, dilation=2, n=2)
THIN = DepthwiseCase("strided-thin", 12, (7, 1), padding=1, n=2)
PIXEL = DepthwiseCase("strided-pixel", 12, (1, 1), padding=1, n=3)
ONE_CHANNEL = DepthwiseCase("strided-one-channel", 1, (8, 9), padding=1, n=3)
NHWC = torch.channels_last
View = Callable[[Tensor], Tensor]


def inside(
    x: Tensor,
    before: int,
    after: int,
    dims: tuple[int, ...],
    layout: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """`x` as a window of a larger tensor of NaN in the given layout."""
    shape = [n + (before + after) * (d in dims) for d, n in enumerate(x.shape)]
    host = torch.full(shape, float("nan"), dtype=x.dtype)
    host = host.contiguous(memory_format=layout)
    for d in dims:
        host = host.narrow(d, before, x.size(d))
    return host.copy_(x)


def every_second(x: Tensor, dim: int) -> Tensor:
    """`x` as every second element of a larger tensor along one dimension."""
    shape = list(x.shape)
    shape[dim] *= 2
    index = [slice(None)] * 4
    index[dim] = slice(None, None, 2)
    return torch.full(shape, float("nan"), dtype=x.dtype)[tuple(index)].copy_(x)


def permuted(*order: int) -> View:
    """The tensor stored with its dimensions in the given order."""
    back = [order.index(d) for d in range(4)]
    return lambda x: x.permute(order).contiguous().permute(back)


def misaligned(layout: torch.memory_format) -> View:
    """The tensor one element past an aligned address."""

    def make(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=layout)
        storage = torch.full((x.numel() + 1,), float("nan"), dtype=x.dtype)
        return storage.as_strided(x.shape, x.stride(), 1).copy_(x)

    return make


READ_IN_PLACE = {
    "channel-slice-nhwc": lambda x: inside(x, 3, 5, (1,), NHWC),
    "channel-slice-nchw": lambda x: inside(x, 3, 5, (1,)),
    "crop-nhwc": lambda x: inside(x, 2, 1, (2, 3), NHWC),
    "crop-nchw": lambda x: inside(x, 2, 1, (2, 3)),
    "crop-and-slice-nhwc": lambda x: inside(x, 1, 3, (1, 2, 3), NHWC),
    "batch-slice-nhwc": lambda x: inside(x, 1, 1, (0,), NHWC),
    "misaligned-nhwc": misaligned(NHWC),
    "misaligned-nchw": misaligned(torch.contiguous_format),
    "rows-skipped": lambda x: every_second(x, 2),
    "stored-hwnc": permuted(2, 3, 0, 1),
    "stored-whnc": permuted(3, 2, 0, 1),
    "stored-chnw": permuted(1, 2, 0, 3),
}
COPIED = {
    "stored-nwhc-columns-skipped": lambda x: every_second(x, 3),
    "stored-ncwh": permuted(0, 1, 3, 2),
    "stored-chwn": permuted(1, 2, 3, 0),
}

VIEWS = READ_IN_PLACE | COPIED


def results(case: DepthwiseCase, dtype: torch.dtype, view: View) -> tuple[Tensor, ...]:
    """Output and gradients on views of the input and of the output's gradient."""
    x, weight, bias, grad = inputs(case, dtype)
    x, grad = view(x), view(grad)
    arguments = leaves(x, weight, bias)
    assert arguments[0].stride() == x.stride()
    output = dk.depthwise_conv2d(*arguments, case.stride, case.padding, case.dilation)
    return (output.detach(), *torch.autograd.grad(output, arguments, grad))


@pytest.mark.parametrize("case", (CASE, THIN, PIXEL, ONE_CHANNEL), ids=lambda case: case.id)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_strided_input_and_gradient(case: DepthwiseCase, dtype: torch.dtype, view: View) -> None:
    assert_parity(case, dtype, results(case, dtype, view))


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
