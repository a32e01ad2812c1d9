"""Which forwards `auto` gives to oneDNN, and that their gradients are still ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from test_backend import Calls

import dlv3p_kernels as dk
from dlv3p_kernels.ops import _depthwise
from dlv3p_kernels.ops.depthwise import call_of, served_by

LAST, FIRST = torch.channels_last, torch.contiguous_format


@pytest.fixture(autouse=True)
def as_with_avx512(native: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The default choice, with the rule of the widest machines, whatever this one has."""
    monkeypatch.setattr(_depthwise, "_ONEDNN_MOST_PADDING", 6)
    monkeypatch.setattr(_depthwise, "_ONEDNN_DTYPES", (torch.float32, torch.bfloat16))
    with dk.backend("auto"):
        yield


def layer(
    dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAST
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 24, 17, 15, generator=generator).to(dtype).contiguous(memory_format=layout)
    return x, torch.randn(24, 1, 3, 3, generator=generator).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "layout", "padding", "dilation", "route"),
    [
        (torch.float32, LAST, (1, 1, 1, 1), (1, 1), "onednn"),
        (torch.bfloat16, LAST, (6, 6, 6, 6), (6, 6), "onednn"),
        (torch.bfloat16, FIRST, (2, 2, 2, 2), (2, 2), "onednn"),
        (torch.float32, FIRST, (1, 1, 1, 1), (1, 1), "cpu"),
        (torch.float32, LAST, (7, 7, 7, 7), (7, 7), "cpu"),
        (torch.float32, LAST, (1, 1, 12, 12), (12, 1), "cpu"),
        (torch.float32, LAST, (0, 1, 0, 1), (1, 1), "cpu"),
        (torch.float16, LAST, (1, 1, 1, 1), (1, 1), "cpu"),
        (torch.float64, LAST, (1, 1, 1, 1), (1, 1), "cpu"),
    ],
)
def test_route(dtype, layout, padding, dilation, route) -> None:
    assert served_by(call_of(*layer(dtype, layout), padding, dilation)) == route


def test_strided_input_runs_our_kernel() -> None:
    x, weight = layer()
    assert served_by(call_of(x[:, :12], weight[:12], (1, 1, 1, 1), (1, 1))) == "cpu"


def test_insisting_on_the_cpu_never_takes_onednn() -> None:
    with dk.backend("cpu"):
        assert served_by(call_of(*layer(), (1, 1, 1, 1), (1, 1))) == "cpu"


def test_without_gradients_stock_runs_and_nothing_else() -> None:
    x, weight = layer()
    with Calls() as calls:
        dk.depthwise_conv2d(x, weight, padding=1)
    assert calls.names == ["aten.convolution.default"]


def test_forward_is_stock_and_gradients_are_ours() -> None:
    x, weight = (t.requires_grad_() for t in layer())
    output = dk.depthwise_conv2d(x, weight, padding=2, dilation=2)
    assert torch.equal(output, F.conv2d(x, weight, padding=2, dilation=2, groups=24))
    with Calls() as calls:
        gradients = torch.autograd.grad(output.square().sum(), (x, weight))
    assert "dlv3p.depthwise_conv2d_backward.default" in calls.names
    with dk.backend("cpu"):
        again = dk.depthwise_conv2d(x, weight, padding=2, dilation=2)
    exact = torch.autograd.grad(again, (x, weight), 2 * output.detach())
    assert all(torch.equal(a, b) for a, b in zip(gradients, exact, strict=True))


def test_operator_keeps_the_rules_of_torch() -> None:
    x, weight = (t.requires_grad_() for t in layer())
    bias = torch.randn(24, requires_grad=True)
    operator = torch.ops.dlv3p.depthwise_conv2d_onednn.default
    torch.library.opcheck(operator, (x, weight, bias, [1, 1], [1, 1, 1, 1], [1, 1]))
