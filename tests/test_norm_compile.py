"""torch.compile, torch.export and autocast around batch norm."""

from __future__ import annotations

import shutil

import pytest
import torch
from norm_cases import NCHW, NHWC
from torch import Tensor, nn

import dlv3p_kernels as dk

pytestmark = pytest.mark.usefixtures("native")

LAYOUTS = pytest.mark.parametrize("layout", (NCHW, NHWC), ids=("nchw", "nhwc"))
inductor = pytest.param(
    "inductor",
    marks=pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler"),
)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


class Block(nn.Module):
    """Our layers between other ones."""

    def __init__(self, channels: int = 10) -> None:
        super().__init__()
        self.first = dk.nn.BatchNormAct2d(channels, activation="silu")
        self.second = dk.nn.BatchNormAct2d(channels, momentum=0.3)

    def forward(self, x: Tensor) -> Tensor:
        """Two norms, the second with a residual."""
        return self.second(self.first(x.sin()) * 2, x).sigmoid()


def images(height: int, width: int, layout: torch.memory_format) -> Tensor:
    """A batch of 10 channels as a leaf."""
    x = torch.randn(2, 10, height, width, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=layout).requires_grad_()


def outcome(block: nn.Module, call: object, x: Tensor) -> list[Tensor]:
    """Output, gradients and buffers after one step."""
    output = call(x)
    grads = torch.autograd.grad(output.square().sum(), (x, *block.parameters()))
    return [output, *grads, *(b.clone() for b in block.buffers())]


@pytest.mark.parametrize("training", (True, False), ids=("training", "evaluation"))
@pytest.mark.parametrize("backend", ("aot_eager", inductor))
@LAYOUTS
def test_compile(backend: str, training: bool, layout: torch.memory_format) -> None:
    plain, compiled = (Block().train(training) for _ in range(2))
    graph = torch.compile(compiled, fullgraph=True, backend=backend)
    x = images(11, 9, layout)
    for got, want in zip(outcome(compiled, graph, x), outcome(plain, plain, x), strict=True):
        torch.testing.assert_close(got, want)
        assert got.stride() == want.stride()


@LAYOUTS
def test_compile_with_dynamic_sizes(layout: torch.memory_format) -> None:
    """One compilation serves every size of map."""
    codes = []

    def count(graph: torch.fx.GraphModule, examples: list[Tensor]) -> torch.fx.GraphModule:
        codes.append(graph.code)
        return graph

    block = Block()
    counted = torch.compile(block, fullgraph=True, dynamic=True, backend=count)
    traced = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((11, 9), (12, 14), (7, 23)):
        x = images(*size, layout)
        counted(x)
        torch.testing.assert_close(traced(x), block(x))
    assert len(codes) == 1
    assert codes[0].count("dlv3p.batch_norm_act") == 2


@pytest.mark.parametrize("training", (True, False), ids=("training", "evaluation"))
def test_export(training: bool) -> None:
    block = Block().train(training)
    x = images(12, 13, NHWC).detach()
    sizes = {
        2: torch.export.Dim("height", min=2, max=64),
        3: torch.export.Dim("width", min=2, max=64),
    }
    program = torch.export.export(block, (x,), dynamic_shapes=(sizes,))
    name = "dlv3p.batch_norm_act.default" if training else "dlv3p.batch_norm_apply.default"
    assert [str(node.target) for node in program.graph.nodes].count(name) == 2
    for size in ((12, 13), (5, 31)):
        x = images(*size, NCHW).detach()
        torch.testing.assert_close(program.module()(x), block(x))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast_leaves_the_dtype_of_the_map(dtype: torch.dtype) -> None:
    """As stock does: what a convolution made in the low precision stays there, parameters too."""
    ours, theirs = dk.nn.BatchNormAct2d(10, activation="identity"), nn.BatchNorm2d(10)
    for given in (torch.float32, dtype):
        x = images(9, 8, NHWC).detach().to(given)
        with torch.autocast("cpu", dtype=dtype):
            got, want = ours(x), theirs(x)
        assert got.dtype == want.dtype == given
        unit = torch.finfo(given).eps
        torch.testing.assert_close(got, want, rtol=2 * unit, atol=4 * unit)
        torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_compiled_code_follows_the_choice_of_back_end() -> None:
    codes = []

    def keep(graph: torch.fx.GraphModule, examples: list[Tensor]) -> torch.fx.GraphModule:
        codes.append(graph.code)
        return graph

    compiled = torch.compile(Block(), fullgraph=True, backend=keep)
    compiled(images(9, 9, NHWC))
    with dk.backend("reference"):
        compiled(images(9, 9, NHWC))
    assert ["dlv3p.batch_norm_act" in code for code in codes] == [True, False]
