"""Registration and derivatives of batch norm: opcheck, gradcheck, double backward, subsets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from norm_cases import EPS, NCHW, NHWC, NormCase, inputs, stock
from torch import Tensor

import dlv3p_kernels as dk
from dlv3p_kernels import dispatch

LAYOUTS = pytest.mark.parametrize("layout", (NCHW, NHWC), ids=("nchw", "nhwc"))
ACTIVATIONS = pytest.mark.parametrize("activation", ("identity", "relu", "relu6", "silu"))
MODES = pytest.mark.parametrize("training", (True, False), ids=("training", "fixed"))
every_backend = pytest.mark.parametrize("backend", ("cpu", "reference"))


def arguments_of(
    activation: str, training: bool, dtype: torch.dtype = torch.float64, residual: bool = True
) -> tuple[NormCase, list[Tensor], tuple[Tensor, Tensor]]:
    """A case, its input, weight, bias and residual as leaves, and its running statistics."""
    case = NormCase(
        f"autograd-{activation}", 3, (4, 3),
        activation=activation, residual=residual, training=training,
    )  # fmt: skip
    tensors = inputs(case, dtype)
    leaves = [tensors.x, tensors.weight, tensors.bias, tensors.residual]
    fixed = (tensors.running_mean, tensors.running_var)
    return case, [t.clone().requires_grad_() for t in leaves if t is not None], fixed


def call(
    function: Callable[..., Tensor], case: NormCase, statistics: tuple[Tensor, Tensor]
) -> Callable[..., Tensor]:
    """The function of input, weight, bias and, where given, residual; changes no statistics."""

    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        mean, var = (t.clone() for t in statistics)
        return function(
            x, mean, var, weight, bias, case.training, 0.1, EPS,
            activation=case.activation, residual=residual,
        )  # fmt: skip

    return run


@every_backend
@MODES
@ACTIVATIONS
@LAYOUTS
def test_gradcheck(
    layout: torch.memory_format, activation: str, training: bool, backend: str, native: None
) -> None:
    case, leaves, statistics = arguments_of(activation, training)
    leaves[0] = leaves[0].detach().contiguous(memory_format=layout).requires_grad_()
    with dk.backend(backend):
        assert torch.autograd.gradcheck(call(dk.batch_norm_act, case, statistics), leaves)


@pytest.mark.usefixtures("native")
@MODES
@ACTIVATIONS
@pytest.mark.parametrize("residual", (True, False), ids=("residual", "alone"))
def test_gradgradcheck(residual: bool, activation: str, training: bool) -> None:
    case, leaves, statistics = arguments_of(activation, training, residual=residual)
    assert torch.autograd.gradgradcheck(call(dk.batch_norm_act, case, statistics), leaves)


@pytest.mark.usefixtures("native")
@MODES
@ACTIVATIONS
@pytest.mark.parametrize("wanted", range(1, 16))
def test_gradients_of_a_subset(wanted: int, activation: str, training: bool) -> None:
    """Any of input, weight, bias and residual may require gradients; the rest get none."""
    case, leaves, statistics = arguments_of(activation, training)
    grad = inputs(case, torch.float64).grad
    outcomes = []
    for function in (dk.batch_norm_act, stock):
        tensors = [t.detach().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(leaves)]
        call(function, case, statistics)(*tensors).backward(grad)
        outcomes.append([t.grad for t in tensors])
    for index, (got, expected) in enumerate(zip(*outcomes, strict=True)):
        assert (got is None) == (expected is None) == (not wanted >> index & 1)
        if got is not None:
            torch.testing.assert_close(got, expected)


@MODES
@ACTIVATIONS
@LAYOUTS
def test_opcheck(
    layout: torch.memory_format,
    activation: str,
    training: bool,
    native: None,
    backend_name: str,
    device: str,
) -> None:
    ops = dispatch.operators(backend_name)
    _, leaves, statistics = arguments_of(activation, training, torch.float32)
    x, weight, bias, residual = (t.detach().to(device).requires_grad_() for t in leaves)
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    mean, var = (t.to(device) for t in statistics)
    code = ("identity", "relu", "relu6", "silu").index(activation)
    if training:
        arguments = (x, weight, bias, mean, var, residual, code, 0.1, EPS)
        torch.library.opcheck(ops.batch_norm_act.default, arguments)
        torch.library.opcheck(
            ops.batch_norm_act.default, (x, None, None, None, None, None, code, 0.1, EPS)
        )
        return
    torch.library.opcheck(ops.batch_norm_apply.default, (x, mean, var, weight, bias, None, code))
    grad = torch.ones_like(x)
    plain = [t.detach() for t in (x, mean, var, weight, bias, residual)]
    checks = ("test_schema", "test_faketensor")
    for name, rest in (
        ("batch_norm_stats", (plain[0],)),
        ("batch_norm_finalise", (mean, var, 24, mean, var, 0.1, EPS)),
        ("batch_norm_finalise", (mean, var, 24, None, None, 0.1, EPS)),
        ("batch_norm_backward_reduce", (grad, *plain, code)),
        ("batch_norm_backward_apply", (grad, *plain, code, mean, var, 24, True)),
        ("batch_norm_backward_apply", (grad, *plain, code, None, None, 24, False)),
    ):
        torch.library.opcheck(getattr(ops, name).default, rest, test_utils=checks)


@pytest.mark.usefixtures("native")
def test_pieces_without_a_derivative_say_so(backend_name: str, device: str) -> None:
    ops = dispatch.operators(backend_name)
    x = torch.randn(2, 3, 4, 5, device=device, requires_grad=True)
    mean, _ = ops.batch_norm_stats(x)
    with pytest.raises(RuntimeError, match="batch_norm_stats has no derivative"):
        mean.sum().backward()
    ones = torch.ones(3, device=device, requires_grad=True)
    output = ops.batch_norm_apply(x, ones, ones.detach(), None, None, None, 0)
    with pytest.raises(RuntimeError, match="no gradient by mean and invstd"):
        output.sum().backward()


@pytest.mark.usefixtures("native")
def test_activation_checkpointing() -> None:
    case, leaves, statistics = arguments_of("relu", True)
    function = call(dk.batch_norm_act, case, statistics)
    expected = torch.autograd.grad(function(*leaves).pow(2).sum(), leaves)
    output = torch.utils.checkpoint.checkpoint(function, *leaves, use_reentrant=False)
    for got, want in zip(torch.autograd.grad(output.pow(2).sum(), leaves), expected, strict=True):
        assert torch.equal(got, want)


def test_functional_transforms_run_stock() -> None:
    """They are outside what a registered op can serve, so they take the definition."""
    case, leaves, statistics = arguments_of("silu", True)
    leaves = [t.detach() for t in leaves]
    found = []
    for function in (dk.batch_norm_act, stock):
        run = call(function, case, statistics)
        gradient = torch.func.grad(lambda *t, run=run: run(*t).sin().sum(), (0, 1, 2, 3))
        found.append(gradient(*leaves))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.usefixtures("native")
@MODES
@pytest.mark.parametrize(("activation", "maps"), (("identity", 1), ("relu", 2)))
def test_backward_keeps_only_what_it_needs(activation: str, maps: int, training: bool) -> None:
    """Of maps: the input, and the residual only where the activation is derived."""
    case, leaves, statistics = arguments_of(activation, training)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        call(dk.batch_norm_act, case, statistics)(*leaves)
    assert sum(t.dim() == 4 for t in saved) == maps
