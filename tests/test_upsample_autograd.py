"""Registration and derivatives of loss and classes of resized logits; torch.compile and export."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn
from upsample_cases import IGNORE, NCHW, NHWC, UpsampleCase, inputs, stock

import dlv3p_kernels as dk
from dlv3p_kernels import dispatch

pytestmark = pytest.mark.usefixtures("native")

LAYOUTS = pytest.mark.parametrize("layout", (NCHW, NHWC), ids=("nchw", "nhwc"))
SMOOTHINGS = pytest.mark.parametrize("smoothing", (0.0, 0.1))
every_backend = pytest.mark.parametrize("backend", ("cpu", "reference"))
inductor = pytest.param(
    "inductor",
    marks=pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler"),
)
SMALL = UpsampleCase("autograd", 3, (3, 4), (7, 9), weight=True)
MEDIUM = UpsampleCase("compile", 21, (9, 11), (33, 41), weight=True)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def leaf_of(case: UpsampleCase, dtype: torch.dtype, layout: torch.memory_format = NCHW) -> Tensor:
    logits = inputs(case, dtype).logits.detach()
    return logits.clone(memory_format=layout).requires_grad_()


@every_backend
@SMOOTHINGS
@LAYOUTS
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_gradcheck(
    reduction: str, layout: torch.memory_format, smoothing: float, backend: str
) -> None:
    _, target, weight, _ = inputs(SMALL, torch.float64)

    def loss(logits: Tensor) -> Tensor:
        return dk.upsample_cross_entropy(
            logits, target, weight=weight, ignore_index=IGNORE, reduction=reduction,
            label_smoothing=smoothing, align_corners=True,
        )  # fmt: skip

    leaf = leaf_of(SMALL, torch.float64, layout)
    with dk.backend(backend):
        assert torch.autograd.gradcheck(loss, leaf)


@SMOOTHINGS
def test_gradgradcheck(smoothing: float) -> None:
    _, target, weight, _ = inputs(SMALL, torch.float64)

    def loss(logits: Tensor) -> Tensor:
        return dk.upsample_cross_entropy(
            logits, target, weight=weight, ignore_index=IGNORE, label_smoothing=smoothing
        )

    assert torch.autograd.gradgradcheck(loss, leaf_of(SMALL, torch.float64))


@LAYOUTS
@SMOOTHINGS
def test_opcheck(smoothing: float, layout: torch.memory_format, backend_name: str) -> None:
    ops = dispatch.operators(backend_name)
    leaf = leaf_of(SMALL, torch.float32, layout)
    logits = leaf.detach()
    _, target, weight, grad = inputs(SMALL, torch.float32)
    rest = (IGNORE, smoothing, False)
    torch.library.opcheck(ops.upsample_cross_entropy.default, (leaf, target, weight, *rest))
    torch.library.opcheck(ops.upsample_cross_entropy.default, (leaf, target, None, *rest))
    _, logsumexp = ops.upsample_cross_entropy(logits, target, weight, *rest)
    for given in (grad, torch.ones(()).expand_as(grad)):
        torch.library.opcheck(
            ops.upsample_cross_entropy_backward.default,
            (given, logits, target, weight, logsumexp, *rest),
            test_utils=("test_schema", "test_faketensor"),
        )
    torch.library.opcheck(ops.class_weight_sum.default, (target, weight, IGNORE, leaf))
    for arguments in (((7, 9), True, True, False), ((2, 3), False, False, True)):
        torch.library.opcheck(ops.upsample_argmax.default, (leaf, *arguments))


def test_the_backward_operator_says_that_it_has_no_derivative(backend_name: str) -> None:
    ops = dispatch.operators(backend_name)
    leaf = leaf_of(SMALL, torch.float32)
    _, target, weight, grad = inputs(SMALL, torch.float32)
    _, logsumexp = ops.upsample_cross_entropy(leaf, target, weight, IGNORE, 0.0, False)
    assert not logsumexp.requires_grad
    result = ops.upsample_cross_entropy_backward(
        grad, leaf, target, weight, logsumexp, IGNORE, 0.0, False
    )
    with pytest.raises(RuntimeError, match="upsample_cross_entropy has one"):
        result.sum().backward()


def test_backward_keeps_the_logits_the_target_and_one_number_per_pixel() -> None:
    saved: list[Tensor] = []
    leaf = leaf_of(MEDIUM, torch.bfloat16)
    target = inputs(MEDIUM, torch.bfloat16).target
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        dk.upsample_cross_entropy(leaf, target, ignore_index=IGNORE)
    pixels = [t for t in saved if t.shape == target.shape]
    assert {t.dtype for t in pixels} == {torch.int64, torch.float32} and len(pixels) == 2
    assert sum(t.numel() for t in saved) <= leaf.numel() + 2 * target.numel() + 2


def test_functional_transforms_run_stock() -> None:
    logits, target, weight, _ = inputs(SMALL, torch.float64)
    with dk.backend("auto"):
        found = [
            torch.func.grad(lambda x, f=f: f(x, target, weight=weight, ignore_index=IGNORE))(logits)
            for f in (dk.upsample_cross_entropy, stock)
        ]
    torch.testing.assert_close(*found)


class Head(nn.Module):
    """A loss of ours, and the classes, behind another layer."""

    def __init__(self) -> None:
        super().__init__()
        weight = inputs(MEDIUM, torch.float32).weight
        self.loss = dk.nn.UpsampleCrossEntropyLoss(
            weight, IGNORE, label_smoothing=0.1, all_ignored="zero"
        )

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the classes."""
        logits = x.sin() * 3
        index, probability = dk.upsample_argmax(logits, target.shape[-2:], return_probability=True)
        return self.loss(logits, target), index + probability


@pytest.mark.parametrize("backend", ("aot_eager", inductor))
@LAYOUTS
def test_compile(backend: str, layout: torch.memory_format) -> None:
    target = inputs(MEDIUM, torch.float32).target
    found = []
    for call in (Head(), torch.compile(Head(), fullgraph=True, backend=backend)):
        leaf = leaf_of(MEDIUM, torch.float32, layout)
        loss, classes = call(leaf, target)
        (grad,) = torch.autograd.grad(loss, leaf)
        assert grad.stride() == leaf.stride()
        found.append((loss, classes, grad))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "mining", ({"top_k_percent_pixels": 0.2}, {"ohem_threshold": 0.7, "ohem_min_kept": 50}), ids=str
)
def test_compile_of_hard_pixels(mining: dict[str, float]) -> None:
    _, target, weight, _ = inputs(MEDIUM, torch.float32)
    loss = dk.nn.UpsampleCrossEntropyLoss(weight, IGNORE, **mining)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = []
    for call in (loss, compiled):
        leaf = leaf_of(MEDIUM, torch.float32)
        value = call(leaf, target)
        found.append((value, *torch.autograd.grad(value, leaf)))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


def test_compile_with_dynamic_sizes() -> None:
    """One compilation serves every size of map."""
    codes = []

    def count(graph: torch.fx.GraphModule, examples: list[Tensor]) -> torch.fx.GraphModule:
        codes.append(graph.code)
        return graph

    head = Head()
    counted = torch.compile(head, fullgraph=True, dynamic=True, backend=count)
    for height, width in ((6, 7), (8, 11), (9, 5)):
        x = torch.randn(3, 21, height, width)
        target = torch.randint(21, (3, 4 * height, 4 * width + 1))
        for got, want in zip(counted(x, target), head(x, target), strict=True):
            torch.testing.assert_close(got, want)
    assert len(codes) == 1 and codes[0].count("dlv3p.upsample_cross_entropy") == 1


def test_export() -> None:
    head = Head()
    x = inputs(MEDIUM, torch.float32).logits.detach()
    target = inputs(MEDIUM, torch.float32).target
    sizes = [{d: torch.export.Dim.AUTO for d in dims} for dims in ((2, 3), (1, 2))]
    program = torch.export.export(head, (x, target), dynamic_shapes=tuple(sizes))
    names = [str(node.target) for node in program.graph.nodes]
    for name in ("upsample_cross_entropy", "class_weight_sum", "upsample_argmax"):
        assert names.count(f"dlv3p.{name}.default") == 1
    for size, out in (((9, 11), (33, 41)), ((5, 31), (21, 70))):
        x = torch.randn(2, 21, *size)
        target = torch.randint(21, (2, *out))
        for got, want in zip(program.module()(x, target), head(x, target), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_dtypes_are_those_of_stock(dtype: torch.dtype, reduction: str) -> None:
    """Those of the logits; float32 under autocast, where the logits are not rounded again."""
    _, target, _, _ = inputs(MEDIUM, dtype)
    for autocast in (False, True):
        found = []
        for function in (dk.upsample_cross_entropy, stock):
            leaf = leaf_of(MEDIUM, dtype)
            with torch.autocast("cpu", dtype=dtype, enabled=autocast):
                loss = function(leaf, target, ignore_index=IGNORE, reduction=reduction)
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
            assert grad.dtype == dtype
            found.append(loss)
        assert found[0].dtype == found[1].dtype == (torch.float32 if autocast else dtype)
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(*found, rtol=8 * unit, atol=32 * unit)
