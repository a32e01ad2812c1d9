"""Which CUDA kernels the launchers choose, as the emulator sees them.

Run with `--backend emulated`, as tests/test_other_backends.py does.
"""

from __future__ import annotations

import pytest
import torch
from cases import DepthwiseCase, inputs
from emulated import launched
from test_depthwise_parity import run

import dlv3p_kernels as dk

NHWC, NCHW = torch.channels_last, torch.contiguous_format
HALF, SINGLE = torch.bfloat16, torch.float32
C = DepthwiseCase
pytestmark = pytest.mark.usefixtures("emulated")


SUMS = "reduce_sums_kernel"


@pytest.mark.parametrize(
    ("case", "dtype", "layout", "kernels"),
    (
        (C("3x3", 16, (9, 9), padding=1), HALF, NHWC, ["rows_fwd", "rows_bwd"]),
        (C("d12", 8, (9, 9), padding=12, dilation=12), HALF, NHWC, ["rows_fwd", "rows_bwd"]),
        (C("5x5", 16, (9, 9), kernel=(5, 5), padding=2), SINGLE, NHWC, ["rows_fwd", "rows_bwd"]),
        (C("7x7", 16, (9, 9), kernel=(7, 7), padding=3), HALF, NHWC, ["rows_fwd", "rows_bwd"]),
        (C("s2", 16, (9, 9), padding=1, stride=2), HALF, NHWC, ["rows_fwd", "stride2_bwd"]),
        (C("3x3", 16, (9, 9), padding=1), HALF, NCHW, ["planes_fwd", "planes_bwd"]),
        (C("s2", 16, (9, 9), padding=1, stride=2), SINGLE, NCHW, ["planes_fwd", "planes_bwd"]),
        (
            C("odd-c", 17, (9, 9), padding=1),
            HALF,
            NHWC,
            ["any_fwd", "any_bwd_input", "any_bwd_weight"],
        ),
        (
            C("4x4", 16, (9, 9), kernel=(4, 4)),
            HALF,
            NHWC,
            ["any_fwd", "any_bwd_input", "any_bwd_weight"],
        ),
    ),
    ids=lambda value: getattr(value, "id", None),
)
def test_depthwise(
    case: DepthwiseCase, dtype: torch.dtype, layout: torch.memory_format, kernels: list[str]
) -> None:
    found = launched(lambda: run(case, dtype, (layout, layout)))
    assert found == [*(f"depthwise_{kernel}_kernel" for kernel in kernels), SUMS]


def test_statistics_come_from_the_convolution() -> None:
    x = inputs(C("statistics", 16, (9, 9)), HALF).x.contiguous(memory_format=NHWC)
    weight = torch.ones(16, 1, 3, 3, dtype=HALF)
    found = launched(lambda: dk.depthwise_conv2d_with_statistics(x, weight, padding=1))
    assert found == ["depthwise_rows_fwd_kernel", "reduce_moments_kernel"]


def test_batch_norm_in_training_is_a_pass_for_each_step() -> None:
    x = inputs(C("norm", 16, (9, 9)), HALF).x.contiguous(memory_format=NHWC).requires_grad_()
    weight, bias = (torch.ones(16, requires_grad=True) for _ in range(2))

    def step() -> None:
        result = dk.batch_norm_act(x, None, None, weight, bias, True, activation="relu")
        torch.autograd.grad(result.sum(), (x, weight, bias))

    assert launched(step) == [
        "norm_stats_rows_kernel",
        "reduce_moments_kernel",
        "norm_finalise_kernel",
        "norm_rows_kernel",
        "norm_backward_rows_kernel",
        SUMS,
        "norm_rows_kernel",
    ]
