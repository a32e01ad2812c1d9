"""Special values, storage, robustness and reproducibility of batch norm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from norm_cases import EPS, NCHW, NHWC, NormCase, exact, inputs, results, stock, stock_results
from numerics import assert_accurate
from torch import Tensor
from views import VIEWS, View

import dlv3p_kernels as dk
from dlv3p_kernels import backends, dispatch

pytestmark = pytest.mark.usefixtures("native", "poison")

CASE = NormCase("strided", 20, (9, 11), activation="silu", residual=True)
THIN = NormCase("strided-thin", 12, (7, 1), activation="silu")
PIXEL = NormCase("strided-pixel", 12, (1, 1), n=3, residual=True)
ONE_CHANNEL = NormCase("strided-one-channel", 1, (8, 9), n=3)
LAYOUTS = pytest.mark.parametrize("layout", (NCHW, NHWC), ids=("nchw", "nhwc"))
ACTIVATIONS = ("identity", "relu", "relu6", "silu")


@pytest.fixture
def ops(backend_name: str) -> object:
    """The operators under test."""
    return dispatch.operators(backend_name)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", (CASE, THIN, PIXEL, ONE_CHANNEL), ids=lambda case: case.id)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_storage(
    case: NormCase, dtype: torch.dtype, view: View, device: str, one_thread: None
) -> None:
    got = results(case, dtype, dk.batch_norm_act, device=device, view=view)
    values, magnitudes = exact(case, dtype)
    for name, theirs in stock_results(case, dtype, NCHW).items():
        assert_accurate(name, theirs.dtype, got[name], theirs, values[name], magnitudes[name])


@LAYOUTS
@pytest.mark.parametrize("training", (True, False), ids=("training", "fixed"))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("special", ("nan", "inf", "-inf"))
def test_special_values_as_in_stock(
    special: str,
    activation: str,
    training: bool,
    layout: torch.memory_format,
    device: str,
    backend_name: str,
) -> None:
    """Where results are finite, NaN or infinite is the same as in stock PyTorch, everywhere."""
    case = NormCase("special", 19, (6, 7), activation=activation, residual=True, training=training)
    x = inputs(case, torch.float32).x.clone()
    x[1, 3, 2, 2] = x[0, 11, 0, 0] = float(special)
    vectors = [t.to(device) for t in inputs(case, torch.float32)[1:5]]
    found = []
    for function in (dk.batch_norm_act, stock):
        weight, bias, mean, var = (t.clone().requires_grad_(i < 2) for i, t in enumerate(vectors))
        leaf = x.to(device).contiguous(memory_format=layout).requires_grad_()
        out = function(leaf, mean, var, weight, bias, training, 0.1, EPS, activation=activation)
        grads = torch.autograd.grad(out, (leaf, weight, bias), torch.ones_like(out))
        found.append((out, *grads, mean, var))
    if activation == "relu6":  # whether NaN has a gradient differs between stock's own kernels
        found = [(out, mean, var) for out, *_, mean, var in found]
    if backend_name != "cpu":  # Welford's update makes NaN of the infinite mean of stock's CPU sums
        for *_, mean, var in found:
            mean[~mean.isfinite()] = torch.nan
            var[~var.isfinite()] = torch.nan
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-3, atol=1e-3)


@LAYOUTS
def test_statistics_survive_an_outlier_in_front(layout: torch.memory_format, ops, device) -> None:
    """The values that come first may be far from all others, and the mean far from 0."""
    x = normal(2, 19, 33, 33) + 1e3
    x[0, :, 0, 0] += 300
    mean, var = (
        t.cpu() for t in ops.batch_norm_stats(x.contiguous(memory_format=layout).to(device))
    )
    exact_var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    unit = torch.finfo(torch.float32).eps / 2
    assert ((mean - exact_mean).abs() <= 2 * unit * exact_mean).all()
    # One rounding of the result, and the sum of squares of one block around its pivot.
    assert ((var - exact_var).abs() <= 64 * unit * exact_var).all()


@LAYOUTS
@pytest.mark.parametrize("value", (0.0, 1e4, -7.3))
def test_a_constant_channel_has_no_variance(value, layout, ops, device) -> None:
    x = torch.full((3, 18, 9, 7), value, device=device).contiguous(memory_format=layout)
    mean, var = ops.batch_norm_stats(x)
    assert (mean == torch.tensor(value, device=device)).all() and (var == 0).all()


@pytest.mark.parametrize("count", (1, 2, 1000))
def test_finalise(count: int, ops, device) -> None:
    mean, var, old_mean = (normal(17).roll(i).to(device) for i in range(3))
    var, old_var = var.square(), old_mean.square()
    invstd, new_mean, new_var = (
        t.cpu().double()
        for t in ops.batch_norm_finalise(mean, var, count, old_mean, old_var, 0.1, EPS)
    )
    mean, var, old_mean, old_var = (t.cpu().double() for t in (mean, var, old_mean, old_var))
    close = torch.testing.assert_close
    close(invstd, (var + EPS).rsqrt(), rtol=1e-6, atol=0)
    close(new_mean, 0.9 * old_mean + 0.1 * mean, rtol=1e-6, atol=1e-6)
    close(new_var, 0.9 * old_var + 0.1 * var * count / max(1, count - 1), rtol=1e-6, atol=1e-6)
    alone = ops.batch_norm_finalise(
        *(t.float().to(device) for t in (mean, var)), 5, None, None, 0.1, EPS
    )
    assert [t.numel() for t in alone] == [17, 0, 0]


@LAYOUTS
def test_results_do_not_depend_on_the_number_of_threads(layout: torch.memory_format) -> None:
    case = NormCase("threads", 40, (65, 33), n=3, activation="silu", residual=True)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(results(case, torch.float32, dk.batch_norm_act, layout))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(other[name], t) for name, t in found[0].items())


@LAYOUTS
def test_two_processes_together_are_one(layout: torch.memory_format, ops, device) -> None:
    """How docs/norm.md merges statistics and sums between processes; halves of unequal size."""
    activation = 1
    x, grad = (normal(5, 11, 6, 7).roll(i, 0).contiguous(memory_format=layout) for i in range(2))
    x, grad = (t.to(device) for t in (x * 3 + 2, grad))
    weight, bias = normal(11).to(device), normal(11).roll(1).to(device)
    halves, grads = (x[:2], x[2:]), (grad[:2], grad[2:])
    counts = torch.tensor([h.numel() // 11 for h in halves], device=device)[:, None]
    means, variances = (
        torch.stack(t) for t in zip(*(ops.batch_norm_stats(h) for h in halves), strict=True)
    )
    total = int(counts.sum())
    mean = (means * counts).sum(0) / total
    var = ((variances + (means - mean).square()) * counts).sum(0) / total
    invstd, _, _ = ops.batch_norm_finalise(mean, var, total, None, None, 0.0, EPS)
    affine = (mean, invstd, weight, bias, None, activation)
    output = torch.cat([ops.batch_norm_apply(h, *affine) for h in halves])
    sums = [
        ops.batch_norm_backward_reduce(g, h, *affine) for g, h in zip(grads, halves, strict=True)
    ]
    sums = [a + b for a, b in zip(*sums, strict=True)]
    by_input = torch.cat([
        ops.batch_norm_backward_apply(g, h, *affine, *sums, total, False)[0]
        for g, h in zip(grads, halves, strict=True)
    ])  # fmt: skip
    leaf = x.clone().requires_grad_()
    whole = F.relu(F.batch_norm(leaf, None, None, weight, bias, True, 0.0, EPS))
    torch.testing.assert_close(output, whole)
    torch.testing.assert_close(by_input, torch.autograd.grad(whole, leaf, grad)[0])


@pytest.mark.parametrize("training", (True, False), ids=("training", "fixed"))
def test_what_no_kernel_takes_runs_stock(training: bool, device: str) -> None:
    """Empty batches, other ranks, a residual of another dtype; insisting on a kernel says why."""
    wide = normal(2, 3, 4, 5)
    for x, residual, words in (
        (wide[:0], None, "the input is empty"),
        (wide[..., 0], None, "4 dimensions, the input has 3"),
        (wide[..., 0, 0], None, "4 dimensions, the input has 2"),
        (wide[..., None], None, "4 dimensions, the input has 5"),
        (wide.bfloat16(), wide, "the residual is torch.float32, the input torch.bfloat16"),
    ):
        found = []
        for function in (dk.batch_norm_act, stock):
            leaf = x.to(device).requires_grad_()
            other = None if residual is None else residual.to(device)
            mean, var = torch.zeros(3, device=device), torch.ones(3, device=device)
            weight = torch.full((3,), 2.0, device=device, requires_grad=True)
            with dk.backend("auto"):
                out = function(
                    leaf, mean, var, weight, None, training, 0.1, EPS,
                    activation="relu", residual=other,
                )  # fmt: skip
            grads = torch.autograd.grad(out.float().sum(), (leaf, weight))
            found.append((out, *grads, mean, var))
        for ours, theirs in zip(*found, strict=True):
            assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
        with pytest.raises(RuntimeError, match=words):
            dk.batch_norm_act(leaf, mean, var, training=training, residual=other)


def test_every_dtype_of_a_back_end_is_served(backend_name: str, device: str) -> None:
    """With parameters in the dtype of the map as well; they are updated in their own dtype."""
    for dtype in backends.BACKENDS[backend_name].dtypes:
        x = normal(2, 9, 5, 4, dtype=dtype).to(device)
        mean, var = torch.zeros(9, dtype=dtype), torch.ones(9, dtype=dtype)
        vectors = [t.to(device) for t in (mean, var, normal(9, dtype=dtype), var / 2)]
        theirs = [t.clone() for t in vectors]
        out = dk.batch_norm_act(x, *vectors, True)
        expected = F.batch_norm(x, *theirs, True)
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(out, expected, rtol=2 * unit, atol=4 * unit)
        for ours, stocks in zip(vectors, theirs, strict=True):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours, stocks, rtol=2 * unit, atol=unit)
