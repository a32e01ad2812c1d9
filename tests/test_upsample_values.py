"""Special values, storage, targets and reproducibility of loss and classes of resized logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_accurate
from torch import Tensor
from upsample_cases import (
    IGNORE,
    NCHW,
    NHWC,
    UpsampleCase,
    exact,
    inputs,
    options,
    results,
    stock,
    stock_results,
)
from views import VIEWS, View

import dlv3p_kernels as dk
from dlv3p_kernels import dispatch

pytestmark = pytest.mark.usefixtures("native", "poison")

CASE = UpsampleCase("values", 19, (9, 11), (33, 41), weight=True)
LAYOUTS = pytest.mark.parametrize("layout", (NCHW, NHWC), ids=("nchw", "nhwc"))
SMOOTHINGS = pytest.mark.parametrize("smoothing", (0.0, 0.1))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_storage(view: View, dtype: torch.dtype, device: str, one_thread: None) -> None:
    got = results(CASE, dtype, dk.upsample_cross_entropy, device=device, view=view)
    values, magnitudes = exact(CASE, dtype)
    for name, theirs in stock_results(CASE, dtype).items():
        assert_accurate(name, dtype, got[name], theirs, values[name], magnitudes[name])
    logits = inputs(CASE, dtype).logits.to(device)
    index = dk.upsample_argmax(view(logits), CASE.out)
    assert torch.equal(index, dk.upsample_argmax(logits, CASE.out))


@LAYOUTS
@SMOOTHINGS
@pytest.mark.parametrize("special", ("nan", "inf", "-inf", "all -inf", "huge"))
def test_special_values_as_in_stock(
    special: str, smoothing: float, layout: torch.memory_format, device: str
) -> None:
    """Where losses and gradients are finite, NaN or infinite is the same as in stock PyTorch."""
    case = UpsampleCase("special", 19, (6, 7), (21, 25), smoothing=smoothing, weight=True)
    tensors = inputs(case, torch.float32)
    x = tensors.logits.clone()
    if special == "all -inf":
        x[1, :, 2, 3] = -torch.inf
    else:
        x[1, 3, 2, 2] = x[0, 11, 5, 6] = 3e38 if special == "huge" else float(special)
    found = []
    for function in (dk.upsample_cross_entropy, stock):
        leaf = x.to(device).contiguous(memory_format=layout).requires_grad_()
        weight = tensors.weight.to(device)
        loss = function(
            leaf, tensors.target.to(device), weight=weight, reduction="none", **options(case)
        )
        (grad,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss))
        found.append((loss, grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-3, atol=1e-3)


@LAYOUTS
def test_classes_of_special_values(layout: torch.memory_format, device: str) -> None:
    """The first of equal logits; NaN is the largest, and the first of several."""
    x = torch.zeros(3, 23, 5, 6)
    x[0, 4, 1] = x[0, 9, 1] = 2
    x[1, 17, 2, 2] = x[1, 5, 2, 2] = torch.nan
    x[1, 3, 2, 3] = torch.inf
    x[2] = -torch.inf
    x = x.to(device).contiguous(memory_format=layout)
    for align_corners in (True, False):
        z = F.interpolate(x, (17, 19), mode="bilinear", align_corners=align_corners)
        index, probability = dk.upsample_argmax(
            x, (17, 19), align_corners=align_corners, return_probability=True
        )
        assert torch.equal(index, z.argmax(1))
        expected = z.softmax(1).gather(1, index[:, None])[:, 0]
        torch.testing.assert_close(probability, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", (torch.int64, torch.int32, torch.uint8), ids=str)
@pytest.mark.parametrize("ignore_index", (IGNORE, -100, 3))
def test_any_target(dtype: torch.dtype, ignore_index: int, device: str) -> None:
    """Every type and stride; the value that is ignored may be a class or impossible."""
    tensors = inputs(CASE, torch.float32)
    target = tensors.target
    target = torch.where(target == IGNORE, ignore_index if ignore_index >= 0 else 0, target)
    wide = torch.zeros(2, CASE.out[1], 2 * CASE.out[0], dtype=dtype, device=device)
    wide = wide.transpose(1, 2)[:, ::2]
    wide.copy_(target)
    assert not wide.is_contiguous() and wide.shape == target.shape
    logits = tensors.logits.to(device)
    expected = stock(tensors.logits, target, ignore_index=ignore_index, reduction="none")
    for given in (wide, wide.contiguous()):
        got = dk.upsample_cross_entropy(
            logits, given, ignore_index=ignore_index, reduction="none"
        ).cpu()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(got == 0, target == ignore_index)


@LAYOUTS
@SMOOTHINGS
@pytest.mark.parametrize("weighted", (True, False))
@pytest.mark.parametrize("reduction", ("mean", "sum"))
def test_reductions(
    reduction: str, weighted: bool, smoothing: float, layout: torch.memory_format, device: str
) -> None:
    tensors = inputs(CASE, torch.float64)
    weight = tensors.weight if weighted else None
    choice = {"ignore_index": IGNORE, "label_smoothing": smoothing, "reduction": reduction}
    wide = tensors.logits.requires_grad_()
    expected = stock(wide, tensors.target, weight=weight, **choice)
    (expected_grad,) = torch.autograd.grad(expected, wide)
    leaf = wide.detach().float().to(device).contiguous(memory_format=layout).requires_grad_()
    weight = None if weight is None else weight.float().to(device)
    got = dk.upsample_cross_entropy(leaf, tensors.target.to(device), weight=weight, **choice)
    (grad,) = torch.autograd.grad(got, leaf)
    torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        grad.cpu().double(), expected_grad, rtol=0, atol=1e-5 * float(expected_grad.abs().max())
    )


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("all_ignored", ("nan", "zero"))
def test_everything_ignored(all_ignored: str, reduction: str, device: str) -> None:
    """As stock has it, or a loss and gradients that change nothing."""
    logits = torch.randn(2, 5, 9, 9, device=device, requires_grad=True)
    target = torch.full((2, 33, 33), IGNORE, device=device)
    loss = dk.upsample_cross_entropy(
        logits, target, ignore_index=IGNORE, reduction=reduction, all_ignored=all_ignored
    )
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    theirs = stock(logits, target, ignore_index=IGNORE, reduction=reduction)
    if all_ignored == "zero":
        assert (loss == 0).all() and (grad == 0).all()
    else:
        assert torch.equal(loss.isnan(), theirs.isnan()) and loss.shape == theirs.shape
        (their_grad,) = torch.autograd.grad(theirs.sum(), logits)
        torch.testing.assert_close(grad, their_grad, equal_nan=True)


@LAYOUTS
@SMOOTHINGS
def test_the_same_bits_every_time(
    smoothing: float, layout: torch.memory_format, device: str
) -> None:
    """Twice, for any number of threads, and with gradients of the loss stored in any way."""
    case = UpsampleCase("threads", 21, (40, 33), (157, 129), smoothing=smoothing, weight=True)
    tensors = inputs(case, torch.float32)
    logits = tensors.logits.to(device).contiguous(memory_format=layout)
    target, weight = tensors.target.to(device), tensors.weight.to(device)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 1, 2, 3, 7):
            torch.set_num_threads(number)
            leaf = logits.detach().requires_grad_()
            loss = dk.upsample_cross_entropy(
                leaf, target, weight=weight, reduction="none",
                ignore_index=IGNORE, label_smoothing=smoothing,
            )  # fmt: skip
            (grad,) = torch.autograd.grad(loss.sum(), leaf, retain_graph=True)  # strides are 0
            ones = torch.ones(2, 129, 157, device=device).transpose(1, 2)
            (same,) = torch.autograd.grad(loss, leaf, ones)
            assert torch.equal(grad, same)
            found.append((loss.detach(), grad))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize("weighted", (True, False))
@pytest.mark.parametrize("dtype", (torch.int64, torch.int32, torch.uint8), ids=str)
def test_class_weight_sum(
    dtype: torch.dtype, weighted: bool, backend_name: str, device: str
) -> None:
    tensors = inputs(CASE, torch.float32)
    weight = tensors.weight if weighted else torch.ones(CASE.classes)
    counted = tensors.target[tensors.target != IGNORE]
    expected = weight.double()[counted].sum()
    target = tensors.target.to(dtype).to(device)
    like = tensors.logits.to(device)
    got = dispatch.operators(backend_name).class_weight_sum(
        target, weight.to(device) if weighted else None, IGNORE, like
    )
    assert got.dtype == torch.float32 and got.shape == ()
    torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-6, atol=0)


def test_pixels_without_gradient_cost_nothing_but_count(device: str) -> None:
    """Where the gradient of the loss is 0 the others are as if these pixels were ignored."""
    tensors = inputs(CASE, torch.float32)
    logits = tensors.logits.to(device)
    target = tensors.target.to(device)
    chosen = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.1
    chosen[:, :9] = False
    chosen = chosen.to(device)
    found: list[Tensor] = []
    for given, grad in ((target, chosen.float()), (torch.where(chosen, target, IGNORE), None)):
        leaf = logits.detach().requires_grad_()
        loss = dk.upsample_cross_entropy(leaf, given, ignore_index=IGNORE, reduction="none")
        ones = torch.ones_like(loss) if grad is None else grad
        found += torch.autograd.grad(loss, leaf, ones)
    assert torch.equal(*found)
