"""What only the Triton kernels on resized logits have: intervals, lanes, blocks of classes, bands.

Run with `--backend triton` and TRITON_INTERPRET=1, as tests/test_other_backends.py does. The cases
of every back end are in test_upsample_parity.py.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numerics import assert_accurate
from upsample_cases import (
    NCHW,
    NHWC,
    UpsampleCase,
    assert_no_class_shows,
    exact,
    inputs,
    options,
    results,
    stock_results,
)

import dlv3p_kernels as dk
from dlv3p_kernels import backends
from dlv3p_kernels.bench import accuracy

pytestmark = [
    pytest.mark.skipif(not backends.triton_interpreted(), reason="TRITON_INTERPRET is not 1"),
    pytest.mark.usefixtures("native", "poison", "one_thread"),
]
ops = torch.ops.dlv3p_triton
C = UpsampleCase
# Layouts, types and forms of the rule take turns.
CASES = (
    C("4x", 3, (33, 33), (129, 129), n=1, align_corners=True, target=torch.uint8),
    C("nearly-4x", 3, (33, 33), (129, 129), n=1, weight=True),
    C("one", 2, (1, 1), (7, 7)),
    C("one-aligned", 2, (1, 1), (7, 7), align_corners=True, smoothing=0.1),
    C("9-33", 4, (9, 9), (33, 33), smoothing=0.2, weight=True),
    C("8-32", 4, (8, 8), (32, 32), target=torch.int32),
    C("8-32-aligned", 1, (8, 8), (32, 32), align_corners=True),
    C("down", 3, (129, 129), (33, 33), n=1),
    C("down-aligned", 3, (129, 129), (33, 33), n=1, align_corners=True),
    C("same", 19, (5, 7), (5, 7)),
    C("same-aligned", 21, (5, 7), (5, 7), align_corners=True),
    C("rows-in-groups", 2, (3, 4), (58, 9), n=1),
    C("blocks", 150, (1, 3), (2, 4), n=1, weight=True, smoothing=0.1),
    C("blocks-overlap", 257, (1, 2), (1, 3), n=1, target=torch.int32),
    C("all-ignored", 5, (3, 4), (9, 13), ignored=1.0),
    C("huge-logits", 9, (4, 5), (15, 17), n=1, scale=1e4),
    C("huge-logits-smooth", 23, (2, 3), (3, 7), n=1, scale=1e4, smoothing=0.1),
)


@pytest.fixture(autouse=True)
def classes_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many classes a program as on a GPU; the interpreter is faster with more."""
    from dlv3p_kernels.triton import upsample_launch

    monkeypatch.setattr(upsample_launch, "BACKWARD_CLASSES", upsample_launch.GPU_CLASSES)


def assert_exact(
    case: UpsampleCase, dtype: torch.dtype, layout: torch.memory_format = NHWC
) -> None:
    """Loss and gradient are as exact as stock PyTorch's."""
    got = results(case, dtype, dk.upsample_cross_entropy, layout)
    values, magnitudes = exact(case, dtype)
    for name, theirs in stock_results(case, dtype).items():
        assert_accurate(name, dtype, got[name], theirs, values[name], magnitudes[name])


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number].id)
def test_sizes_and_classes(number: int) -> None:
    dtype = (torch.float32, torch.bfloat16, torch.float16)[number % 3]
    if CASES[number].scale > 1e3:  # more than float16 holds
        dtype = (torch.float32, torch.bfloat16)[number % 2]
    assert_exact(CASES[number], dtype, (NHWC, NCHW)[number % 2])


@pytest.mark.parametrize("layout", (NHWC, NCHW), ids=("nhwc", "nchw"))
@pytest.mark.parametrize("change", ("wide-offsets", "32-lanes", "bands"))
def test_programs_of_a_gpu(
    change: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets of 64 bits; many programs, overlapping by a lane; several rows of cells for each."""
    from dlv3p_kernels.triton import launch, upsample_launch

    module, name, value = {
        "wide-offsets": (launch, "_INT32_ELEMENTS", 1),
        "32-lanes": (upsample_launch, "INTERPRETED_LANES", 32),
        "bands": (upsample_launch, "LANES_OF_A_GPU", 1),
    }[change]
    case = C("programs", 8, (5, 6), (13, 17), weight=True)
    tensors = inputs(case, torch.float32)
    expected = results(case, torch.float32, dk.upsample_cross_entropy, layout)
    index, probability = ops.upsample_argmax(tensors.logits, case.out, False, True, False)
    monkeypatch.setattr(module, name, value)
    found = results(case, torch.float32, dk.upsample_cross_entropy, layout)
    # The same terms in the same order: a band does not change what a cell sums.
    for part, theirs in expected.items():
        assert torch.equal(found[part], theirs), part
    again = ops.upsample_argmax(tensors.logits, case.out, False, True, False)
    assert torch.equal(again[0], index) and torch.equal(again[1], probability)
    assert_exact(case, torch.float32, layout)


def test_one_kernel_each_way(launched: list[str]) -> None:
    case = C("kernels", 21, (3, 4), (9, 13))
    tensors = inputs(case, torch.float32)
    logits = tensors.logits.requires_grad_()
    dk.upsample_cross_entropy(logits, tensors.target, **options(case)).backward()
    dk.upsample_argmax(logits.detach(), case.out)
    assert launched == [
        "upsample_loss_fwd_kernel",
        "class_weight_sum_kernel",
        "sum_parts_kernel",
        "upsample_loss_bwd_kernel",
        "upsample_argmax_kernel",
    ]


@pytest.mark.parametrize("align_corners", (False, True))
def test_intervals_partition_the_pixels(align_corners: bool) -> None:
    """Every pixel is in one interval, the one that its source index says, for any two sizes."""
    from triton_intervals import LENGTH, intervals_kernel

    from dlv3p_kernels.triton.resize import Axis

    sizes = (1, 2, 7, 8, 31, 33, 97, 128, 129, 513, 1025)
    for cells, size in itertools.product(sizes, sizes):
        axis = Axis.of(cells, size, align_corners)
        firsts, intervals = torch.empty(2, LENGTH, dtype=torch.int32).unbind()
        intervals_kernel[(1,)](firsts, intervals, *axis, ALIGN=align_corners, LENGTH=LENGTH)
        found = intervals[:size].numpy()
        pixel = np.arange(size)
        source = pixel * axis.scale if align_corners else (pixel + 0.5) * axis.scale - 0.5
        # Two roundings, or one where the multiply-add is fused.
        off = 2 * accuracy.rounding_unit(torch.float32) * (cells + 1)
        assert ((found <= source + off) & (source - off < found + 1)).all(), (cells, size)
        expected = [*np.searchsorted(found, np.arange(-1, cells)), size]
        assert firsts[: cells + 2].tolist() == expected, (cells, size)


def test_a_target_that_is_no_class_shows() -> None:
    assert_no_class_shows(ops)


@pytest.mark.parametrize("layout", (NHWC, NCHW), ids=("nhwc", "nchw"))
def test_equal_logits_give_the_first_class(layout: torch.memory_format) -> None:
    """Small integers, 4 times larger: both interpolations are exact, so are the ties."""
    logits = torch.randint(4, (2, 23, 5, 6)).float().contiguous(memory_format=layout)
    z = F.interpolate(logits, (20, 24), mode="bilinear")
    for as_uint8 in (False, True):
        index, _ = ops.upsample_argmax(logits, (20, 24), False, False, as_uint8)
        assert index.dtype == (torch.uint8 if as_uint8 else torch.int64)
        assert torch.equal(index.long(), z.argmax(1))


def test_strided_gradients_of_the_loss_are_read_in_place(launched: list[str]) -> None:
    case = C("strided", 4, (4, 5), (9, 11))
    tensors = inputs(case, torch.float32)
    rest = (255, 0.0, False)
    _, logsumexp = ops.upsample_cross_entropy(*tensors[:3], *rest)
    wide = torch.full((2, 2 * 11, 9), math.nan).transpose(1, 2)
    view = wide[:, :, ::2]
    view.copy_(tensors.grad)
    assert view.stride() != tensors.grad.stride()
    found = [
        ops.upsample_cross_entropy_backward(grad, *tensors[:3], logsumexp, *rest)
        for grad in (tensors.grad, view)
    ]
    assert torch.equal(*found)
    assert set(launched) == {"upsample_loss_fwd_kernel", "upsample_loss_bwd_kernel"}


def test_nothing_to_do() -> None:
    """No images: nothing is launched, and nothing is left uninitialised."""
    logits = torch.empty(0, 5, 4, 4)
    target = torch.empty(0, 9, 9, dtype=torch.int64)
    loss, logsumexp = ops.upsample_cross_entropy(logits, target, None, 255, 0.0, False)
    assert loss.shape == logsumexp.shape == target.shape
    grad = ops.upsample_cross_entropy_backward(
        loss, logits, target, None, logsumexp, 255, 0.0, False
    )
    assert grad.shape == logits.shape
    index, probability = ops.upsample_argmax(logits, (9, 9), False, True, False)
    assert index.shape == probability.shape == target.shape
    assert ops.class_weight_sum(target, None, 255, logits) == 0
