"""Which CUDA kernels make the depthwise half of the decoder, and what is never made.

Run with `--backend emulated`, as tests/test_other_backends.py does.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from allocations import allocated_by
from decoder_cases import DecoderCase, arguments, ours, results
from emulated import launched
from torch import Tensor

NHWC, NCHW = torch.channels_last, torch.contiguous_format
HALF, SINGLE = torch.bfloat16, torch.float32
pytestmark = pytest.mark.usefixtures("emulated")

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
