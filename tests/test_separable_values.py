"""Special values, storage, empty batches and reproducibility of the separable convolution."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from separable_cases import NCHW, NHWC, SeparableCase, call, stock
from separable_outcomes import assert_parity, inputs, results
from special import assert_outputs_alike, assert_taps_alike, gradient_kinds
from views import VIEWS, View

import dlv3p_kernels as dk
from dlv3p_kernels import backends, dispatch

pytestmark = pytest.mark.usefixtures("native", "poison", "one_thread")

LAYOUTS = pytest.mark.parametrize("layout", (NCHW, NHWC), ids=("nchw", "nhwc"))
C = SeparableCase
STORED = (
    C("stored", 20, 17, (9, 11), "alone silu", "batch silu", "batch silu", residual=True),
    C("stored-fixed-s2", 16, 7, (9, 7), "affine silu", "fixed silu", "fixed silu", stride=2,
      residual=True),
    C("stored-thin", 12, 16, (7, 1), end="batch silu"),
    C("stored-pixel", 12, 3, (1, 1), middle="fixed silu", n=3, residual=True),
    C("stored-one-channel", 1, 1, (8, 9), middle="batch silu", n=3),
)  # fmt: skip
SPECIAL = (
    C("special", 19, 16, (9, 10), padding=2, dilation=2),
    C("special-relu", 19, 16, (9, 10), "alone relu", "fixed relu", "fixed relu", residual=True),
    C("special-same-s2", 8, 7, (9, 8), "affine relu6", "affine relu6", "affine relu6", stride=2,
      padding=(0, 1, 1, 2)),
    C("special-silu-d9", 17, 3, (7, 9), "affine silu", "fixed silu", "affine silu", padding=9,
      dilation=9),
    C("special-batch", 16, 17, (7, 6), middle="batch relu", end="batch relu"),
    C("special-smp", 16, 17, (7, 6), end="batch silu", residual=True),
)  # fmt: skip


@pytest.fixture
def ops(backend_name: str) -> object:
    """The operators under test."""
    return dispatch.operators(backend_name)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", STORED, ids=lambda case: case.id)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_storage(case: SeparableCase, dtype: torch.dtype, view: View, device: str) -> None:
    """Views of the input, of the residual and of the gradient of the output."""
    assert_parity(case, dtype, results(case, dtype, dk.separable_conv2d, device=device, view=view))


@LAYOUTS
@pytest.mark.parametrize("special", ("nan", "inf", "-inf"))
@pytest.mark.parametrize("case", SPECIAL, ids=lambda case: case.id)
def test_special_value_reaches_what_sees_it(
    case: SeparableCase, special: str, layout: torch.memory_format, device: str
) -> None:
    """One in a corner, beside the padding, and one within: the same places as in stock PyTorch.

    Both with gradients and without.
    """
    given = {name: t.clone() for name, t in inputs(case, torch.float32).tensors.items()}
    given["x"][0, 3, 0, 0] = given["x"][-1, 5, 4, 3] = float(special)
    runs = partial(call, case, dk.separable_conv2d), partial(call, case, stock)
    expected = assert_outputs_alike(*runs, given, layout, device)
    assert expected.any() or special != "nan"  # ReLU ends minus infinity, ReLU6 both


@LAYOUTS
@pytest.mark.parametrize("case", SPECIAL, ids=lambda case: case.id)
def test_special_gradient_reaches_what_it_moves(
    case: SeparableCase, layout: torch.memory_format, device: str
) -> None:
    """One NaN in the gradient of the output; the inner activations stop it as in stock PyTorch."""
    runs = partial(call, case, dk.separable_conv2d), partial(call, case, stock)
    found = gradient_kinds(*runs, *inputs(case, torch.float64), layout, device)
    for name, (ours, theirs) in found.items():
        if name == "dw_weight":
            assert_taps_alike(ours, theirs)
        else:
            assert torch.equal(ours, theirs), name


@LAYOUTS
@pytest.mark.parametrize("end", ("", "fixed relu"))
def test_huge_dilation_leaves_the_tap_in_the_centre(
    end: str, layout: torch.memory_format, device: str
) -> None:
    case = SeparableCase("huge", 17, 16, (6, 7), "alone relu", "fixed silu", end)
    centre = {"kernel": (1, 1), "padding": 0}
    huge = {"padding": 10**6, "dilation": 10**6}
    tensors = dict(inputs(case, torch.float32).tensors)
    tensors = {name: t.to(device) for name, t in tensors.items()}
    tensors["x"] = tensors["x"].contiguous(memory_format=layout)
    got = call(replace(case, **huge), dk.separable_conv2d, tensors)
    tensors["dw_weight"] = tensors["dw_weight"][:, :, 1:2, 1:2]
    assert torch.equal(got, call(replace(case, **centre), dk.separable_conv2d, tensors))


@LAYOUTS
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", STORED, ids=lambda case: case.id)
def test_same_bits_twice(
    case: SeparableCase, dtype: torch.dtype, layout: torch.memory_format, device: str
) -> None:
    first, second = (
        results(case, dtype, dk.separable_conv2d, layout, device=device) for _ in range(2)
    )
    assert all(torch.equal(second[name], t) for name, t in first.items())


@LAYOUTS
def test_statistics_of_what_is_not_stored_survive_a_large_mean(
    layout: torch.memory_format, ops, device: str
) -> None:
    """Mean over standard deviation is 10 000, where E[y^2] - E[y]^2 has no digit left."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 19, 33, 31, generator=generator) + 1e4
    x[0, :, 0, 0] += 300  # what comes first is far from all others
    weight = torch.zeros(19, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    geometry = ([1, 1], [1, 1, 1, 1], [1, 1])
    placed = (x.to(device).contiguous(memory_format=layout), weight.to(device), None, *geometry)
    mean, var = (t.cpu() for t in ops.depthwise_conv2d_statistics(*placed, None, None, 0))
    exact_var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    unit = torch.finfo(torch.float32).eps / 2
    assert ((mean - exact_mean).abs() <= 2 * unit * exact_mean).all()
    # One rounding of the result, and the sum of squares of one block around its pivot.
    assert ((var - exact_var).abs() <= 64 * unit * exact_var).all()


def test_fixed_statistics_are_left_alone(device: str) -> None:
    case = SeparableCase("fixed", 16, 7, (6, 5), middle="fixed relu", end="fixed relu")
    given = inputs(case, torch.float32).tensors
    tensors = {name: t.to(device).clone() for name, t in given.items()}
    call(case, dk.separable_conv2d, tensors)
    tensors["x"].requires_grad_()
    call(case, dk.separable_conv2d, tensors).sum().backward()
    assert all(torch.equal(tensors[name].detach().cpu(), t) for name, t in given.items())


@pytest.mark.parametrize(
    "case",
    (
        SeparableCase("empty", 8, 5, (7, 6), "alone relu", "fixed relu", "fixed relu", stride=2),
        SeparableCase("empty-bias", 8, 5, (7, 6), middle="alone silu", bias=True, residual=True),
    ),
    ids=lambda case: case.id,
)
def test_empty_batch_runs_stock(case: SeparableCase, device: str) -> None:
    """Empty results, zeros for the gradients of weights; insisting on a kernel says why."""
    tensors = {name: t.to(device) for name, t in inputs(case, torch.float32).tensors.items()}
    for name in ("x", "residual"):
        if name in tensors:
            tensors[name] = tensors[name][:0]
    found = []
    for function in (dk.separable_conv2d, stock):
        leaves = {n: t.detach().requires_grad_() for n, t in tensors.items() if "running" not in n}
        with dk.backend("auto"):
            output = call(case, function, tensors | leaves)
        found.append((output, *torch.autograd.grad(output.sum(), list(leaves.values()))))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs) and ours.shape == theirs.shape
    with pytest.raises(RuntimeError, match="the input is empty"):
        call(case, dk.separable_conv2d, tensors)


@pytest.mark.parametrize("stages", (("batch relu", "batch relu"), ("fixed relu", "fixed relu")))
def test_parameters_in_the_dtype_of_the_map(
    stages: tuple[str, str], backend_name: str, device: str
) -> None:
    """As after `layer.bfloat16()`; they are updated in their own dtype."""
    case = SeparableCase("own-dtype", 16, 7, (6, 5), "", *stages)
    for dtype in backends.BACKENDS[backend_name].dtypes:
        given = inputs(case, dtype).tensors
        tensors = {name: t.to(device, dtype).clone() for name, t in given.items()}
        theirs = {name: t.to("cpu", dtype).clone() for name, t in given.items()}
        output = call(case, dk.separable_conv2d, tensors)
        expected = call(case, stock, theirs)
        assert output.dtype == dtype
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(output.cpu(), expected, rtol=8 * unit, atol=16 * unit)
        for name, t in tensors.items():
            assert t.dtype == dtype
            torch.testing.assert_close(t.cpu(), theirs[name], rtol=2 * unit, atol=unit)
