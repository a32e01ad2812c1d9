"""Registration and derivatives of the separable convolution: opcheck, gradcheck, subsets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from separable_cases import NCHW, NHWC, SeparableCase, Tensors, call, stock
from separable_outcomes import inputs
from torch import Tensor

import dlv3p_kernels as dk
from dlv3p_kernels import dispatch

pytestmark = pytest.mark.usefixtures("one_thread")

C = partial(SeparableCase, c=3, out=2, size=(4, 3))
ORDERS = (
    C("plain", bias=True, residual=True),
    C("smp", end="batch silu", residual=True),
    C("trunk", middle="batch identity", end="batch identity", before="alone relu", residual=True),
    C("trunk-fixed-s2", before="alone silu", middle="fixed identity", end="fixed silu", stride=2,
      padding=(0, 1, 1, 0)),
    C("head", middle="batch relu", end="batch relu", padding=2, dilation=2),
    C("inverted", middle="bare relu6", end="bare identity", residual=True),
    C("affine", before="affine silu", middle="affine relu", end="affine silu", bias=True),
    C("alone", middle="alone silu", end="alone silu", residual=True, kernel=(1, 3)),
)  # fmt: skip
every_order = pytest.mark.parametrize("case", ORDERS, ids=lambda case: case.id)
LAYOUTS = pytest.mark.parametrize("layout", (NCHW, NHWC), ids=("nchw", "nhwc"))


def split(
    case: SeparableCase, dtype: torch.dtype = torch.float64, layout: torch.memory_format = NCHW
) -> tuple[Tensors, Tensors]:
    """What has gradients, as leaves, and the running statistics."""
    tensors = {name: t.clone() for name, t in inputs(case, dtype).tensors.items()}
    tensors["x"] = tensors["x"].contiguous(memory_format=layout)
    leaves = {n: t.requires_grad_() for n, t in tensors.items() if "running" not in n}
    return leaves, {n: t for n, t in tensors.items() if "running" in n}


def function_of(
    case: SeparableCase, names: Tensors, running: Tensors, function: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """The case as a function of the named tensors; changes no statistics."""

    def run(*leaves: Tensor) -> Tensor:
        kept = {name: t.clone() for name, t in running.items()}
        return call(case, function, dict(zip(names, leaves, strict=True)) | kept)

    return run


@pytest.mark.parametrize("backend", ("cpu", "reference"))
@every_order
@LAYOUTS
def test_gradcheck(
    layout: torch.memory_format, case: SeparableCase, backend: str, native: None
) -> None:
    leaves, running = split(case, layout=layout)
    with dk.backend(backend):
        run = function_of(case, leaves, running, dk.separable_conv2d)
        assert torch.autograd.gradcheck(run, tuple(leaves.values()))


@pytest.mark.usefixtures("native")
@every_order
def test_double_backward_says_what_to_do(case: SeparableCase) -> None:
    """The kernels refuse; the definition, which the message names, has second derivatives."""
    slopes = []
    for backend in ("cpu", "reference"):
        leaves, running = split(case)
        run = function_of(case, leaves, running, dk.separable_conv2d)

        def second(run: Callable[..., Tensor] = run, leaves: Tensors = leaves) -> Tensor:
            output = run(*leaves.values()).square().sum()
            (slope,) = torch.autograd.grad(output, leaves["x"], create_graph=True)
            return torch.autograd.grad(slope.square().sum(), leaves["dw_weight"])[0]

        with dk.backend(backend):
            if backend == "reference":
                slopes.append(second())
                continue
            with pytest.raises(RuntimeError, match=r"dk\.backend\('reference'\)"):
                second()
    assert slopes[0].isfinite().all() and slopes[0].any()


@pytest.mark.usefixtures("native")
@every_order
def test_gradients_of_a_subset(case: SeparableCase) -> None:
    """Each tensor alone, and all but it, may require gradients; the rest get none."""
    grad = inputs(case, torch.float64).grad
    names = list(split(case)[0])
    choices = [{name} for name in names] + [set(names) - {name} for name in names]
    for wanted in choices:
        found = []
        for function in (dk.separable_conv2d, stock):
            leaves, running = split(case)
            for name, t in leaves.items():
                t.requires_grad_(name in wanted)
            function_of(case, leaves, running, function)(*leaves.values()).backward(grad)
            found.append({name: t.grad for name, t in leaves.items()})
        for name, theirs in found[1].items():
            ours = found[0][name]
            assert (ours is None) == (theirs is None) == (name not in wanted), (name, wanted)
            if theirs is not None:
                torch.testing.assert_close(ours, theirs)


def operator_arguments(case: SeparableCase, device: str, layout: torch.memory_format) -> Tensors:
    """Tensors of a case in float32, the input as a leaf."""
    tensors = {name: t.to(device) for name, t in inputs(case, torch.float32).tensors.items()}
    x = tensors["x"].contiguous(memory_format=layout)
    return tensors | {"x": x.requires_grad_()}


# The operators as they are registered, on a case with every kind of argument.
FULL = C("full", middle="affine relu", end="affine silu", before="affine relu", bias=True,
         residual=True)  # fmt: skip
GEOMETRY = ([1, 1], [1, 1, 1, 1], [1, 1])


@pytest.mark.usefixtures("native")
@LAYOUTS
def test_opcheck(layout: torch.memory_format, backend_name: str, device: str) -> None:
    ops = dispatch.operators(backend_name)
    t = operator_arguments(FULL, device, layout)
    pw_weight, pw_bias = (t[name].requires_grad_() for name in ("pw_weight", "pw_bias"))
    dw_weight = t["dw_weight"].requires_grad_()
    before = (t["before_weight"], t["before_bias"], 1)
    bare = (t["x"], dw_weight, None, *GEOMETRY, None, None, 0)
    full = (t["x"], dw_weight, t["dw_bias"].requires_grad_(), *GEOMETRY, *before)
    mean, invstd = t["middle_bias"], t["middle_weight"].abs()
    norm = (mean, invstd, t["middle_weight"], t["middle_bias"])
    nothing = (None, None, None, None)
    every = (
        (*full, *norm, 1, False, "", pw_weight, pw_bias, True),
        (*full, *norm, 1, True, "", pw_weight, pw_bias, False),
        (*bare, *nothing, 3, False, "", pw_weight, None, False),
        (*bare, *nothing, 0, False, "", pw_weight, None, True),
    )
    for arguments in every[layout == NHWC :: 2]:  # each takes a second
        torch.library.opcheck(ops.separable_conv2d.default, arguments)
    checks = ("test_schema", "test_faketensor")  # the pieces have no derivative
    middle, end = ((t[f"{at}_weight"], t[f"{at}_bias"]) for at in ("middle", "end"))
    for name, arguments in (
        ("depthwise_conv2d_statistics", bare),
        ("depthwise_conv2d_statistics", full),
        ("separable_conv2d_fused",
         (*full, *middle, 1, pw_weight, pw_bias, *end, 3, t["residual"], False)),
        ("separable_conv2d_fused",
         (*bare, None, None, 0, pw_weight, None, None, None, 0, None, True)),
    ):  # fmt: skip
        plain = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
        torch.library.opcheck(getattr(ops, name).default, plain, test_utils=checks)


@pytest.mark.usefixtures("native")
def test_pieces_without_a_derivative_say_so(backend_name: str, device: str) -> None:
    ops = dispatch.operators(backend_name)
    t = operator_arguments(C("pieces"), device, NHWC)
    before = (t["x"], t["dw_weight"], None, *GEOMETRY, None, None, 0)
    mean, _ = ops.depthwise_conv2d_statistics(*before)
    with pytest.raises(RuntimeError, match="depthwise_conv2d_statistics has no derivative"):
        mean.sum().backward()
    rest = (None, None, 0, t["pw_weight"], None, None, None, 0, None, False)
    output, _, _ = ops.separable_conv2d_fused(*before, *rest)
    with pytest.raises(RuntimeError, match="separable_conv2d_fused has no derivative"):
        output.sum().backward()


@pytest.mark.usefixtures("native")
def test_no_graph_without_gradients() -> None:
    leaves, running = split(ORDERS[4])
    run = function_of(ORDERS[4], leaves, running, dk.separable_conv2d)
    expected = run(*leaves.values())
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            output = run(*leaves.values())
        assert not output.requires_grad
        torch.testing.assert_close(output, expected.detach())
    assert output.is_inference()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", ("x", "dw_weight", "pw_weight", "middle_weight", "end_weight"))
def test_inplace_change_of_a_saved_tensor_is_noticed(name: str) -> None:
    leaves, running = split(ORDERS[4])
    kept = {n: t * 1 for n, t in leaves.items()}  # not leaves, which may not be changed in place
    output = function_of(ORDERS[4], kept, running, dk.separable_conv2d)(*kept.values())
    kept[name].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("case", (ORDERS[0], ORDERS[3], ORDERS[6]), ids=lambda case: case.id)
def test_functional_transforms_run_stock(case: SeparableCase) -> None:
    """They are outside what a registered op can serve, so they take the definition."""
    leaves, running = split(case)
    plain = tuple(t.detach() for t in leaves.values())
    found = []
    for function in (dk.separable_conv2d, stock):
        run = function_of(case, leaves, running, function)
        every = tuple(range(len(plain)))
        found.append(torch.func.grad(lambda *t, run=run: run(*t).sin().sum(), every)(*plain))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.usefixtures("native")
def test_functional_transforms_are_refused_where_the_kernels_are_insisted_on() -> None:
    leaves, running = split(ORDERS[0])
    run = function_of(ORDERS[0], leaves, running, dk.separable_conv2d)
    plain = tuple(t.detach() for t in leaves.values())
    with pytest.raises(RuntimeError, match=r"can not serve separable_conv2d: transforms of torch"):
        torch.func.grad(lambda *t: run(*t).sum())(*plain)
