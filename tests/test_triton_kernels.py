"""What only the launchers of the Triton kernels decide: which kernel runs, and in what blocks.

Run with `--backend triton` and TRITON_INTERPRET=1, as tests/test_other_backends.py does.
"""

from __future__ import annotations

import math

import pytest
import torch
from cases import DEPTHWISE_CASES, DepthwiseCase, inputs, pair
from numerics import assert_parity
from test_depthwise_parity import LAYOUTS, run
from torch import Tensor

import dlv3p_kernels as dk
from dlv3p_kernels import backends
from dlv3p_kernels.bench import accuracy

pytestmark = [
    pytest.mark.skipif(not backends.triton_interpreted(), reason="TRITON_INTERPRET is not 1"),
    pytest.mark.usefixtures("native", "poison", "one_thread"),
]
CASES = {case.id: case for case in DEPTHWISE_CASES}
LINES = ("c17", "d6", "k17", "p-four-different")
TAPS = ("s2", "s3-d2-skips-columns", "k5", "p-same-s2")
WIDE_OR_SMALL = ("c33", "d2", "s21", "n9-small-map", "k43")
ops = torch.ops.dlv3p_triton


@pytest.mark.parametrize("case", [CASES[name] for name in (*LINES, *TAPS)], ids=lambda c: c.id)
def test_which_kernels_run(case: DepthwiseCase, launched: list[str]) -> None:
    run(case, torch.float32, LAYOUTS[0])
    if case.id in LINES:
        expected = ["depthwise_lines_fwd_kernel", "depthwise_lines_bwd_kernel", "sum_parts_kernel"]
    else:
        expected = [
            "depthwise_taps_kernel",
            "depthwise_taps_kernel",
            "depthwise_taps_wgrad_kernel",
            "sum_parts_kernel",
        ]
    assert launched == expected


def test_batch_norm_reads_its_input_once_for_the_statistics(launched: list[str]) -> None:
    x = torch.randn(2, 5, 4, 4, requires_grad=True)
    dk.batch_norm_act(x, None, None, training=True, activation="relu").sum().backward()
    assert launched == [
        "batch_norm_stats_kernel",
        "merge_moments_kernel",
        "batch_norm_finalise_kernel",
        "batch_norm_apply_kernel",
        "batch_norm_bwd_reduce_kernel",
        "sum_parts_kernel",
        "batch_norm_bwd_apply_kernel",
    ]


@pytest.mark.parametrize("layouts", LAYOUTS[:2], ids=("nhwc", "nchw"))
@pytest.mark.parametrize("name", WIDE_OR_SMALL)
@pytest.mark.parametrize("change", ("wide-offsets", "small-blocks"))
def test_blocks_of_a_gpu(
    name: str,
    layouts: tuple[torch.memory_format, ...],
    change: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Offsets of 64 bits; several blocks a program, and many programs whose sums are merged."""
    _change_blocks(change, monkeypatch)
    assert_parity(CASES[name], torch.float32, run(CASES[name], torch.float32, layouts))


@pytest.mark.parametrize("layout", (torch.channels_last, torch.contiguous_format), ids=str)
@pytest.mark.parametrize("change", ("wide-offsets", "small-blocks"))
def test_statistics_of_many_programs(
    layout: torch.memory_format, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _change_blocks(change, monkeypatch)
    x = (1000 + torch.randn(3, 5, 9, 7)).contiguous(memory_format=layout)
    weight = torch.randn(5, 1, 3, 3)
    no_affine = (None, None, 0, None, None, 0)
    output, mean, var = ops.depthwise_conv2d_fused(
        x, weight, None, (1, 1), (0, 0, 0, 0), (1, 1), *no_affine, True
    )
    for got, source in (((mean, var), output), (ops.batch_norm_stats(x), x)):
        expected = torch.var_mean(source.double(), (0, 2, 3), correction=0)[::-1]
        for ours, theirs in zip(got, expected, strict=True):
            # No sum rounds more often than it has terms.
            terms = source.numel() // source.size(1)
            bound = terms * accuracy.rounding_unit(torch.float32)
            assert ((ours - theirs).abs() <= bound * theirs.abs()).all()


def _change_blocks(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlv3p_kernels.triton import launch

    if change == "wide-offsets":
        monkeypatch.setattr(launch, "_INT32_ELEMENTS", 1)
    else:
        monkeypatch.setattr(launch, "_INTERPRETED_TILE", 128)
        monkeypatch.setattr(launch, "_INTERPRETED_CHANNELS", 8)
        monkeypatch.setattr(launch, "PARTS", 2)


@pytest.mark.parametrize("name", ("c17", "s2"))
def test_strided_and_misaligned_maps_give_the_same_bits(name: str) -> None:
    case = CASES[name]
    x, weight, bias, grad = inputs(case, torch.bfloat16)
    geometry = (pair(case.stride), case.sides, pair(case.dilation))
    expected = ops.depthwise_conv2d(x, weight, bias, *geometry)
    grads = ops.depthwise_conv2d_backward(grad, x, weight, *geometry, True, True)
    strided, strided_grad = _strided(x), _strided(grad)
    assert torch.equal(ops.depthwise_conv2d(strided, weight, bias, *geometry), expected)
    results = ops.depthwise_conv2d_backward(strided_grad, strided, weight, *geometry, True, True)
    for ours, theirs in zip(results, grads, strict=True):
        assert torch.equal(ours, theirs)


def _strided(x: Tensor) -> Tensor:
    """The same values with gaps between them, at an odd offset."""
    wide = x.new_full((*x.shape[:3], 2 * x.size(3) + 1), math.nan)
    view = wide[..., 1::2]
    view.copy_(x)
    return view


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("value", (math.inf, math.nan))
def test_padding_multiplies_with_nothing(stride: int, value: float) -> None:
    """Infinity times a zero of the padding would be NaN."""
    case = DepthwiseCase("one-pixel", 3, (1, 1), padding=1, stride=stride, n=1, bias=False)
    x, weight, _, grad = inputs(case, torch.float32)
    weight = weight.clone()
    weight[:, 0, 0, :] = value
    geometry = ((stride, stride), (1, 1, 1, 1), (1, 1))
    assert ops.depthwise_conv2d(x, weight, None, *geometry).isfinite().all()
    x = x.clone()
    x[0, 1] = value
    by_input, by_weight = ops.depthwise_conv2d_backward(grad, x, weight, *geometry, True, True)
    assert by_input.isfinite().all()
    assert by_weight.flatten(1).isfinite().sum(1).tolist() == [9, 8, 9]


def test_nothing_to_do() -> None:
    """No images: empty maps, no gradient, and statistics of nothing."""
    x = torch.empty(0, 4, 5, 6)
    weight = torch.randn(4, 1, 3, 3)
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1))
    scale = torch.ones(4)
    no_epilogue = (None, None, 0)
    output, mean, var = ops.depthwise_conv2d_fused(
        x, weight, None, *geometry, scale, scale, 1, *no_epilogue, True
    )
    assert output.shape == x.shape and mean.isnan().all() and var.isnan().all()
    by_input, *others = ops.depthwise_conv2d_fused_backward(
        output, x, weight, *geometry, scale, scale, 1, True, True
    )
    assert by_input.shape == x.shape and all(t.eq(0).all() for t in others)
    assert [t.shape for t in others] == [weight.shape, scale.shape, scale.shape]
