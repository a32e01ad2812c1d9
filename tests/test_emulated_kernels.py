"""Which CUDA kernels the launchers choose, as the emulator sees them.

Run with `--backend emulated`, as tests/test_other_backends.py does.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from allocations import allocated_by
from cases import DepthwiseCase, inputs
from decoder_cases import DecoderCase, arguments, ours, results
from emulator import build
from test_depthwise_parity import run
from torch import Tensor

import dlv3p_kernels as dk

NHWC, NCHW = torch.channels_last, torch.contiguous_format
HALF, SINGLE = torch.bfloat16, torch.float32
C = DepthwiseCase


@pytest.fixture(autouse=True)
def emulated(backend_name: str, native: None) -> None:
    if backend_name != "emulated":
        pytest.skip("the emulator is not the back end under test")


def launched(call: object) -> list[str]:
    """Names of the kernels that `call()` launches, without their template arguments."""
    emulator = build.load()
    emulator.reset()
    call()
    return [name.split("<")[0] for name in emulator.launches()]


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


# --- the depthwise half of the decoder's convolution ----------------------------------------------

D = DecoderCase
COLUMNS = ["decoder_columns_fwd", "decoder_columns_bwd"]
ROWS = ["depthwise_rows_fwd", "depthwise_rows_bwd"]
ANY_CELLS = ["depthwise_any_fwd", "decoder_any_bwd_input", "depthwise_any_bwd_weight"]


@pytest.mark.parametrize(
    ("case", "dtype", "layout", "kernels"),
    (
        (D("3x3", (16, 8), (5, 5), (17, 17)), HALF, NHWC, [*COLUMNS, *ROWS]),
        (D("5x5", (8, 8), (5, 4), (17, 9), kernel=(5, 5), padding=2), SINGLE, NHWC, COLUMNS),
        (D("nchw", (5, 3), (5, 5), (17, 17)), SINGLE, NCHW, COLUMNS),
        (D("odd-c", (7, 3), (5, 5), (17, 17)), HALF, NHWC, COLUMNS),
        (D("rate-2", (8, 8), (5, 5), (17, 17), padding=2, dilation=2), HALF, NHWC, ANY_CELLS),
        (D("1x1", (8, 8), (5, 5), (9, 9), kernel=(1, 1), padding=0), SINGLE, NHWC, ANY_CELLS),
        # An interval wider than a block.
        (
            D("1-cell", (8, 8), (1, 1), (3, 200)),
            SINGLE,
            NHWC,
            ["decoder_columns_fwd", *ANY_CELLS[1:]],
        ),
        (D("same-size", (16, 8), (9, 9), (9, 9)), HALF, NHWC, ROWS),
    ),
    ids=lambda value: getattr(value, "id", None),
)
def test_decoder(
    case: DecoderCase, dtype: torch.dtype, layout: torch.memory_format, kernels: list[str]
) -> None:
    given = arguments(case, dtype, (layout, layout))
    found = launched(lambda: results(case, ours, given, layout))
    assert {f"{kernel}_kernel" for kernel in kernels} <= set(found)
    others = {*COLUMNS, "decoder_any_bwd_input"} - set(kernels)
    assert not {f"{kernel}_kernel" for kernel in others} & set(found)


def decoder_arguments(layout: torch.memory_format, channels: tuple[int, int]) -> tuple[object, ...]:
    """As the operators take them, with the result's gradient in front."""
    x, low_level = torch.randn(1, channels[0], 9, 9), torch.randn(1, channels[1], 33, 33)
    grad = torch.randn(1, sum(channels), 33, 33)
    grad, x, low_level = (t.contiguous(memory_format=layout) for t in (grad, x, low_level))
    return grad, x, low_level, False, True, None, None, 0, torch.randn(sum(channels), 1, 3, 3)


@pytest.mark.parametrize("layout", (NHWC, NCHW), ids=("nhwc", "nchw"))
def test_decoder_makes_neither_the_resized_map_nor_the_concatenation(
    layout: torch.memory_format,
) -> None:
    channels = (64, 8)
    grad, *source = decoder_arguments(layout, channels)
    geometry = ([1, 1, 1, 1], [1, 1])
    ops = torch.ops.dlv3p_emulated
    statistics = partial(ops.decoder_conv2d_statistics, *source, None, *geometry)
    forward = partial(ops.decoder_depthwise, *source, None, *geometry, None, None, 0)
    backward = partial(ops.decoder_depthwise_backward, grad, *source, *geometry, True, True, True)
    assert isinstance(grad, Tensor)
    narrow = grad.nbytes // sum(channels) * channels[1]
    resized = grad.nbytes - narrow
    assert allocated_by(statistics, "cpu").peak < narrow + resized / 4
    assert allocated_by(forward, "cpu").peak <= grad.nbytes
    assert allocated_by(backward, "cpu").peak < 2 * narrow + resized / 2
