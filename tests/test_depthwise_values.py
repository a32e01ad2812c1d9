"""NaN and infinity, empty batches, determinism, and proof of which kernels ran."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import COMPACT_CASES, DepthwiseCase, inputs, leaves, stock_forward
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import dlv3p_kernels as dk
from dlv3p_kernels.backends import BACKENDS

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
NAN, INF = math.nan, math.inf

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("nchw", "nhwc"))
compact_cases = pytest.mark.parametrize("case", COMPACT_CASES, ids=lambda case: case.id)


Run = Callable[..., tuple[Tensor, ...]]


@pytest.fixture
def run(device: str) -> Run:
    """Output, input gradient and weight gradient of the op under test, back on the CPU."""

    def on_device(
        case: DepthwiseCase, x: Tensor, weight: Tensor, grad: Tensor
    ) -> tuple[Tensor, ...]:
        arguments = leaves(x.to(device), weight.to(device), None)
        output = dk.depthwise_conv2d(*arguments, None, case.stride, case.padding, case.dilation)
        grads = torch.autograd.grad(output, arguments, grad.to(device))
        return tuple(t.detach().cpu() for t in (output, *grads))

    return on_device


def kinds(t: Tensor) -> Tensor:
    """0 where finite, 1 where NaN, 2 where infinity, 3 where minus infinity."""
    return t.isnan() + 2 * t.isposinf() + 3 * t.isneginf()


@pytest.mark.usefixtures("native", "one_thread")
@every_layout
@every_dtype
@pytest.mark.parametrize("value", (NAN, INF, -INF), ids=str)
@pytest.mark.parametrize(
    "case",
    (
        DepthwiseCase("spot", 19, (9, 10), padding=2, dilation=2),
        DepthwiseCase("spot-s2", 19, (9, 10), padding=(1, 3, 0, 2), stride=2, dilation=3),
        DepthwiseCase("spot-k4", 8, (7, 9), kernel=(4, 3), padding=6, dilation=5),
    ),
    ids=lambda case: case.id,
)
def test_special_value_reaches_what_sees_it(
    case: DepthwiseCase, value: float, dtype: torch.dtype, layout: torch.memory_format, run: Run
) -> None:
    """One special value in the input, then in the output's gradient: same places as in stock."""
    x, weight, _, grad = (None if t is None else t.clone() for t in inputs(case, dtype))
    x[1, 5, 4, 3] = value
    x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
    output, grad_x, grad_weight = run(case, x, weight, grad)
    assert torch.equal(kinds(output), kinds(stock_forward(case, x.double(), weight.double())))
    assert kinds(output).any()
    assert grad_x.isfinite().all()
    other_channels = torch.arange(case.c) != 5
    assert grad_weight[other_channels].isfinite().all()

    x, grad = (t.clone() for t in (inputs(case, dtype).x, grad))
    grad[0, 7, 2, 1] = value
    x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
    arguments = leaves(x.double(), weight.double(), None)
    expected = torch.autograd.grad(stock_forward(case, *arguments), arguments, grad.double())
    _, grad_x, _ = run(case, x, weight, grad)
    assert torch.equal(kinds(grad_x), kinds(expected[0]))


@pytest.mark.usefixtures("native", "one_thread")
@every_layout
@every_dtype
def test_special_values_in_weight_gradient_and_weight(
    dtype: torch.dtype, layout: torch.memory_format, run: Run
) -> None:
    """Without padding every tap sees every value, so no convention about zeros times NaN enters."""
    case = DepthwiseCase("special", 18, (7, 8))
    x, weight, _, grad = (None if t is None else t.clone() for t in inputs(case, dtype))
    x[0, 0, 3, 3], x[1, 1, 0, 0], x[0, 2, 4, 4] = NAN, INF, -INF
    weight[15, 0, 0, 2], weight[16, 0, 1, 1], weight[17, 0, 2, 0] = NAN, INF, -INF
    x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
    arguments = leaves(x.double(), weight.double(), None)
    expected = stock_forward(case, *arguments)
    expected = (expected, *torch.autograd.grad(expected, arguments, grad.double()))
    for ours, theirs in zip(run(case, x, weight, grad), expected, strict=True):
        assert torch.equal(kinds(ours), kinds(theirs))
        assert kinds(ours).any()


@pytest.mark.usefixtures("native")
@every_dtype
@compact_cases
def test_same_bits_twice_and_for_any_number_of_threads(
    case: DepthwiseCase, dtype: torch.dtype, one_thread: None, run: Run
) -> None:
    x, weight, _, grad = inputs(case, dtype)
    for layout in LAYOUTS:
        x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
        first = run(case, x, weight, grad)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for a, b in zip(first, run(case, x, weight, grad), strict=True):
                assert torch.equal(a, b)


@pytest.mark.usefixtures("native", "poison")
@every_layout
def test_same_bits_on_a_map_of_many_tasks(
    layout: torch.memory_format, one_thread: None, run: Run
) -> None:
    case = DepthwiseCase("many-tasks", 264, (45, 37), padding=6, dilation=6, n=3, bias=False)
    x, weight, _, grad = inputs(case, torch.float32)
    x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
    first = run(case, x, weight, grad)
    assert all(t.isfinite().all() for t in first)
    for threads in (2, 2, 3):
        torch.set_num_threads(threads)
        for a, b in zip(first, run(case, x, weight, grad), strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("native", "poison")
@every_dtype
def test_empty_batch(dtype: torch.dtype, device: str) -> None:
    """Empty results, and zeros for the gradients of weight and bias, as in stock PyTorch."""
    x = torch.empty(0, 8, 7, 6, dtype=dtype, device=device, requires_grad=True)
    weight = torch.ones(8, 1, 3, 3, dtype=dtype, device=device, requires_grad=True)
    bias = torch.ones(8, dtype=dtype, device=device, requires_grad=True)
    outcomes = []
    for output in (
        dk.depthwise_conv2d(x, weight, bias, 2, 1),
        F.conv2d(x, weight, bias, 2, 1, groups=8),
    ):
        gradients = torch.autograd.grad(output.sum(), (x, weight, bias))
        outcomes.append((output, *gradients))
    for ours, theirs in zip(*outcomes, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.usefixtures("native")
@every_layout
@every_dtype
def test_no_stock_convolution_runs(
    dtype: torch.dtype, layout: torch.memory_format, backend_name: str, run: Run
) -> None:
    """The profiler sees our two ops, and none of PyTorch's convolutions under them."""
    case = DepthwiseCase("profiled", 16, (9, 9), padding=2, dilation=2)
    x, weight, _, grad = inputs(case, dtype)
    with profile(activities=[ProfilerActivity.CPU]) as record:
        run(case, x.contiguous(memory_format=layout), weight, grad)
    names = [event.name for event in record.events()]
    namespace = BACKENDS[backend_name].namespace
    assert names.count(f"{namespace}::depthwise_conv2d") == 1
    assert names.count(f"{namespace}::depthwise_conv2d_backward") == 1
    assert not [name for name in names if name.startswith("aten::") and "conv" in name]
