"""torch.compile, torch.export and autocast around the separable convolution."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from separable_cases import NCHW, NHWC
from separable_layers import layers
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import dlv3p_kernels as dk
from dlv3p_kernels.bench import accuracy

pytestmark = pytest.mark.usefixtures("native", "one_thread")

MODES = pytest.mark.parametrize("training", (True, False), ids=("training", "evaluation"))
LOW = pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
inductor = pytest.param(
    "inductor",
    NHWC,
    marks=pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler"),
)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


class Block(nn.Module):
    """Our layers, the two orders that differ most, between other ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = dk.nn.SeparableConv2d(10, 10, padding=2, dilation=2)
        self.trunk = dk.nn.SeparableConv2d(
            10, 10, padding="same", pre_activation="relu", depthwise_activation="identity",
            pointwise_activation="identity",
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Two layers, the second with a residual."""
        y = self.head(x.sin())
        return self.trunk(y * 2, y).sigmoid()


def images(height: int, width: int, layout: torch.memory_format) -> Tensor:
    """A batch of 10 channels as a leaf."""
    x = torch.randn(2, 10, height, width, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=layout).requires_grad_()


def outcome(block: nn.Module, call: object, x: Tensor) -> list[Tensor]:
    """Output, gradients and buffers after one step."""
    output = call(x)
    grads = torch.autograd.grad(output.square().sum(), (x, *block.parameters()))
    return [output, *grads, *(b.clone() for b in block.buffers())]


@MODES
@pytest.mark.parametrize(
    ("backend", "layout"), (("aot_eager", NCHW), ("aot_eager", NHWC), inductor), ids=str
)
def test_compile(backend: str, training: bool, layout: torch.memory_format) -> None:
    plain, compiled = (Block().train(training) for _ in range(2))
    graph = torch.compile(compiled, fullgraph=True, backend=backend)
    x = images(11, 9, layout)
    for got, want in zip(outcome(compiled, graph, x), outcome(plain, plain, x), strict=True):
        torch.testing.assert_close(got, want)
        assert got.stride() == want.stride()


def test_compile_without_gradients() -> None:
    """Inference takes the operator that does everything at once."""
    codes = []

    def keep(graph: torch.fx.GraphModule, examples: list[Tensor]) -> torch.fx.GraphModule:
        codes.append(graph.code)
        return graph

    block = Block().eval()
    x = images(11, 9, NHWC).detach()
    with torch.no_grad():
        got = torch.compile(block, fullgraph=True, backend=keep)(x)
        torch.testing.assert_close(got, block(x))
    assert codes[0].count("dlv3p.separable_conv2d_fused") == 2


def test_compile_with_dynamic_sizes() -> None:
    """What is compiled for the first size, forward and backward, serves every other."""
    counter = CompileCounterWithBackend("aot_eager")
    plain, compiled = Block(), Block()
    counts = []
    graph = torch.compile(compiled, fullgraph=True, dynamic=True, backend=counter)
    for size in ((11, 9), (12, 14), (7, 23)):
        x = images(*size, NHWC)
        for got, want in zip(outcome(compiled, graph, x), outcome(plain, plain, x), strict=True):
            torch.testing.assert_close(got, want)
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1] > 0
    code = counter.graphs[-1].code
    assert code.count("ops.dlv3p.separable_conv2d(") == 2
    assert code.count("ops.dlv3p.depthwise_conv2d_statistics(") == 2


@MODES
@pytest.mark.parametrize("strict", (True, False), ids=("strict", "traced"))
def test_export(strict: bool, training: bool) -> None:
    block = Block().train(training)
    for parameter in block.parameters():
        parameter.requires_grad_(training)
    x = images(12, 13, NHWC).detach()
    sizes = {
        2: torch.export.Dim("height", min=2, max=64),
        3: torch.export.Dim("width", min=2, max=64),
    }
    program = torch.export.export(block, (x,), dynamic_shapes=(sizes,), strict=strict)
    name = "separable_conv2d" if training else "separable_conv2d_fused"
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count(f"dlv3p.{name}.default") == 2
    for size in ((12, 13), (5, 31)):
        x = images(*size, NCHW).detach()
        torch.testing.assert_close(program.module()(x), block(x))


@LOW
@MODES
@pytest.mark.parametrize("given", ("wide", "low"))
def test_autocast_casts_as_stock_does(given: str, training: bool, dtype: torch.dtype) -> None:
    """Dtypes as in stock layers, and by the accuracy rule as exact."""
    ours, theirs = layers(in_channels=10, padding=2, dilation=2)
    exact = copy.deepcopy(theirs).double()
    for layer in (ours, theirs, exact):
        layer.train(training)
    x = images(9, 8, NHWC).detach().to(dtype if given == "low" else torch.float32)
    found = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            output = layer(leaf)
        grads = torch.autograd.grad(output.float().square().sum(), (leaf, *layer.parameters()))
        found.append((output, *grads, *layer.buffers()))
    leaf = x.double().requires_grad_()
    output = exact(leaf)
    grads = torch.autograd.grad(output.square().sum(), (leaf, *exact.parameters()))
    values = (output, *grads, *exact.buffers())
    for got, want, value in zip(*found, values, strict=True):
        assert got.dtype == want.dtype
        reference = value.detach().numpy()
        errors = [accuracy.error(t, reference) for t in (got, want)]
        assert errors[0] <= accuracy.allowed(errors[1], accuracy.rounding_unit(dtype))


def test_autocast_may_be_off_inside() -> None:
    layer = Block().head
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert layer(images(9, 8, NHWC)).dtype == torch.float32


def test_autocast_adds_a_residual_in_its_own_dtype() -> None:
    """A residual in float32 makes the sum float32, as in stock PyTorch."""
    layer = Block().head.eval()
    x = images(9, 8, NHWC)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, wide = layer(x), layer(x, x)
        torch.testing.assert_close(wide, low + x)
    assert (low.dtype, wide.dtype) == (torch.bfloat16, torch.float32)


def test_autocast_under_compile() -> None:
    plain, compiled = (Block() for _ in range(2))
    graph = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    x = images(9, 8, NHWC)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, expected = graph(x), plain(x)
    assert output.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(output, expected)


def test_compiled_code_follows_the_choice_of_back_end() -> None:
    codes = []

    def keep(graph: torch.fx.GraphModule, examples: list[Tensor]) -> torch.fx.GraphModule:
        codes.append(graph.code)
        return graph

    compiled = torch.compile(Block(), fullgraph=True, backend=keep)
    compiled(images(9, 9, NHWC))
    with dk.backend("reference"):
        compiled(images(9, 9, NHWC))
    assert ["dlv3p.separable_conv2d" in code for code in codes] == [True, False]
