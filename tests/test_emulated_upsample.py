"""The CUDA kernels of loss and classes of resized logits: which run, and every cut into blocks.

Run with `--backend emulated`, as tests/test_other_backends.py does.
"""

from __future__ import annotations

import pytest
import torch
from emulated import launched
from numerics import assert_accurate
from upsample_cases import (
    UpsampleCase,
    assert_no_class_shows,
    exact,
    inputs,
    options,
    results,
    stock_results,
)
from views import VIEWS

import dlv3p_kernels as dk

NHWC, NCHW = torch.channels_last, torch.contiguous_format
HALF, SINGLE = torch.bfloat16, torch.float32
SUMS = "reduce_sums_kernel"
pytestmark = pytest.mark.usefixtures("emulated")

U = UpsampleCase
ops = torch.ops.dlv3p_emulated


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_loss_is_a_kernel_each_way(smoothing: float) -> None:
    case = U("kernels", 21, (3, 4), (9, 13), smoothing=smoothing)
    tensors = inputs(case, HALF)
    logits = tensors.logits.requires_grad_()

    def step() -> None:
        dk.upsample_cross_entropy(logits, tensors.target, **options(case)).backward()

    assert launched(step) == [
        "upsample_forward_kernel", "class_weight_sum_kernel", SUMS, "upsample_backward_kernel",
    ]  # fmt: skip


@pytest.mark.parametrize("probability", (False, True))
def test_classes_are_one_kernel(probability: bool) -> None:
    logits = torch.randn(2, 21, 3, 4)
    found = launched(lambda: dk.upsample_argmax(logits, 13, return_probability=probability))
    assert found == ["upsample_forward_kernel"]


@pytest.mark.parametrize("layout", (NHWC, NCHW), ids=("nhwc", "nchw"))
@pytest.mark.parametrize(
    "case",
    (
        # Bands of 8, 4 and 2 rows of cells; some bands and tiles are cut off.
        U("bands-8", 3, (131, 25), (264, 51), n=4, weight=True),
        U("bands-4", 3, (37, 40), (80, 120), n=2, smoothing=0.1),
        U("bands-2", 2, (15, 70), (31, 140), n=1),
        # More columns of pixels between two cells than threads; more rows than a thread takes.
        U("wide", 30, (2, 2), (3, 700), n=1, weight=True),
        U("widest", 9, (1, 1), (2, 3000), n=1),
        U("tall", 5, (2, 3), (61, 7), n=1, smoothing=0.1),
        # Chunks of classes, the last with a rest; cells of a block far apart.
        U("chunks", 71, (3, 4), (7, 9), n=1, weight=True, smoothing=0.1),
        U("shrink", 40, (5, 300), (9, 11), n=1),
    ),
    ids=lambda case: case.id,
)
def test_every_way_to_cut_resized_logits(case: U, layout: torch.memory_format) -> None:
    got = results(case, SINGLE, dk.upsample_cross_entropy, layout)
    values, magnitudes = exact(case, SINGLE)
    for name, theirs in stock_results(case, SINGLE).items():
        assert_accurate(name, SINGLE, got[name], theirs, values[name], magnitudes[name])


def test_logits_with_any_strides_are_read_in_place() -> None:
    case = U("strides", 19, (9, 11), (33, 41))
    tensors = inputs(case, SINGLE)
    rest = (tensors.target, None, 255, 0.0, False)
    expected = ops.upsample_cross_entropy(tensors.logits, *rest)
    for view in VIEWS.values():
        found = ops.upsample_cross_entropy(view(tensors.logits), *rest)
        assert all(map(torch.equal, found, expected))


def test_a_target_that_is_no_class_shows() -> None:
    assert_no_class_shows(ops)


def test_no_images_no_launch() -> None:
    logits = torch.empty(0, 5, 4, 4)
    target = torch.empty(0, 9, 9, dtype=torch.int64)
    rest = (255, 0.0, False)

    def call() -> None:
        loss, logsumexp = ops.upsample_cross_entropy(logits, target, None, *rest)
        assert loss.shape == logsumexp.shape == target.shape
        grad = ops.upsample_cross_entropy_backward(loss, logits, target, None, logsumexp, *rest)
        assert grad.shape == logits.shape
        index, probability = ops.upsample_argmax(logits, (9, 9), False, True, False)
        assert index.shape == probability.shape == target.shape

    assert launched(call) == []
    assert ops.class_weight_sum(target, None, 255, logits) == 0


def test_too_many_pixels_between_two_cells_are_an_error() -> None:
    logits = torch.randn(1, 2, 1, 1)
    target = torch.zeros(1, 1, 9000, dtype=torch.int64)
    loss, logsumexp = ops.upsample_cross_entropy(logits, target, None, 255, 0.0, False)
    with pytest.raises(RuntimeError, match="9000 pixels in a row between two cells"):
        ops.upsample_cross_entropy_backward(
            torch.ones_like(loss), logits, target, None, logsumexp, 255, 0.0, False
        )
