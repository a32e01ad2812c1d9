"""torch.compile, torch.export and autocast."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dlv3p_kernels as dk

pytestmark = pytest.mark.usefixtures("native")

LAYOUTS = (torch.contiguous_format, torch.channels_last)
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("nchw", "nhwc"))
inductor = pytest.param(
    "inductor",
    marks=pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler"),
)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def tensors(height: int, width: int, layout: torch.memory_format) -> tuple[Tensor, ...]:
    """Input, weight and bias of 10 channels as leaves."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 10, height, width, generator=generator)
    weight = torch.randn(10, 1, 3, 3, generator=generator)
    bias = torch.randn(10, generator=generator)
    return tuple(t.requires_grad_() for t in (x.contiguous(memory_format=layout), weight, bias))


def block(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Our op between other ones."""
    return dk.depthwise_conv2d(x.relu(), weight, bias, (2, 1), (0, 1, 2, 3), 2).sigmoid()


def gradients(output: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients of the sum of squares."""
    return torch.autograd.grad(output.square().sum(), inputs)


def assert_same(function: object, inputs: tuple[Tensor, ...]) -> None:
    """The compiled function gives the output and gradients of `block`."""
    output, expected = function(*inputs), block(*inputs)
    torch.testing.assert_close(output, expected)
    assert output.stride() == expected.stride()
    for got, wanted in zip(gradients(output, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", ("aot_eager", inductor))
@every_layout
def test_compile(backend: str, layout: torch.memory_format) -> None:
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    assert_same(compiled, tensors(11, 9, layout))


@every_layout
def test_compile_with_dynamic_sizes(layout: torch.memory_format) -> None:
    """One compilation serves every size of map."""
    graphs = []

    def count(graph: torch.fx.GraphModule, examples: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=count)
    traced = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((11, 9), (12, 14), (7, 23)):
        inputs = tensors(*size, layout)
        compiled(*inputs)
        assert_same(traced, inputs)
    assert len(graphs) == 1
    assert "dlv3p.depthwise_conv2d" in graphs[0].code


def test_compiled_code_follows_the_choice_of_back_end() -> None:
    inputs = tensors(9, 9, torch.channels_last)
    codes = []

    def keep(graph: torch.fx.GraphModule, examples: list[Tensor]) -> torch.fx.GraphModule:
        codes.append(graph.code)
        return graph

    compiled = torch.compile(block, fullgraph=True, backend=keep)
    compiled(*inputs)
    with dk.backend("reference"):
        compiled(*inputs)
    assert ["dlv3p.depthwise_conv2d" in code for code in codes] == [True, False]


@pytest.mark.parametrize("strict", (True, False))
def test_export(strict: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = dk.nn.DepthwiseConv2d(10, 10, 3, padding=6, dilation=6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).relu()

    net = Net().eval()
    sizes = {
        2: torch.export.Dim("height", min=2, max=64),
        3: torch.export.Dim("width", min=2, max=64),
    }
    x = torch.randn(2, 10, 12, 13)
    program = torch.export.export(net, (x,), dynamic_shapes=(sizes,), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("dlv3p.depthwise_conv2d.default") == 1
    for size in ((12, 13), (5, 31)):
        x = torch.randn(2, 10, *size)
        torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize(
    "given", (torch.float32, torch.bfloat16, torch.float16, torch.float64), ids=str
)
def test_autocast_casts_as_stock_does(dtype: torch.dtype, given: torch.dtype) -> None:
    """Dtypes of output and gradients are those of `F.conv2d`, values those of casts by hand."""
    inputs = tensors(9, 8, torch.channels_last)
    cast = given if given == torch.float64 else dtype
    x, weight, bias = (t.detach().to(given).requires_grad_() for t in inputs)
    with torch.autocast("cpu", dtype=dtype):
        ours = dk.depthwise_conv2d(x, weight, bias, 1, 2, 2)
        stocks = F.conv2d(x, weight, bias, 1, 2, 2, groups=10)
    by_hand = dk.depthwise_conv2d(x.to(cast), weight.to(cast), bias.to(cast), 1, 2, 2)
    assert ours.dtype == stocks.dtype == by_hand.dtype
    assert torch.equal(ours, by_hand)
    outcomes = [gradients(output.float(), (x, weight, bias)) for output in (ours, stocks, by_hand)]
    for got, stock_gradient, wanted in zip(*outcomes, strict=True):
        assert got.dtype == stock_gradient.dtype == given
        assert torch.equal(got, wanted)


def test_autocast_casts_a_wider_weight() -> None:
    """The usual case: activations already in the low precision, parameters in float32."""
    x, weight, bias = tensors(9, 8, torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = dk.depthwise_conv2d(x.bfloat16(), weight, bias)
    assert output.dtype == torch.bfloat16
    assert [g.dtype for g in gradients(output.float(), (x, weight, bias))] == [torch.float32] * 3


def test_autocast_may_be_off_inside() -> None:
    x, weight, bias = tensors(9, 8, torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert dk.depthwise_conv2d(x, weight, bias).dtype == torch.float32


def test_autocast_under_compile() -> None:
    inputs = tensors(9, 8, torch.channels_last)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, expected = compiled(*inputs), block(*inputs)
    assert output.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    for got, wanted in zip(
        gradients(output.float(), inputs), gradients(expected.float(), inputs), strict=True
    ):
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted)
