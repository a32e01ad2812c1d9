"""What a separable convolution allocates and keeps: never the result of its depthwise half."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from allocations import Allocated, allocated_by, kept_by
from separable_cases import NCHW, NHWC, SeparableCase, Tensors, call, stock
from torch import Tensor

import dlv3p_kernels as dk

pytestmark = pytest.mark.usefixtures("native")

# The depthwise result has four times the channels of the final one, and is far larger than caches.
CHANNELS, OUT, SIZE = 256, 64, (65, 65)
Function = Callable[..., Tensor]


def case_of(*stages: str, residual: bool = False, n: int = 2) -> SeparableCase:
    """The case with these stages."""
    return SeparableCase("memory", CHANNELS, OUT, SIZE, *stages, n=n, residual=residual)


def tensors_of(case: SeparableCase, layout: torch.memory_format, device: str) -> Tensors:
    """Uniform maps; vectors of ones."""
    made = {
        "x": torch.rand(case.n, CHANNELS, *SIZE).contiguous(memory_format=layout),
        "dw_weight": torch.rand(CHANNELS, 1, 3, 3),
        "pw_weight": torch.rand(OUT, CHANNELS, 1, 1),
    }
    if case.residual:
        made["residual"] = torch.rand(case.n, OUT, *SIZE).contiguous(memory_format=layout)
    for at, stage in case.stages.items():
        made |= {f"{at}_{v}": torch.ones(OUT if at == "end" else CHANNELS) for v in stage.vectors}
    return {name: t.to(device) for name, t in made.items()}


def bytes_of(n: int, channels: int) -> int:
    """Of a map in float32."""
    return n * channels * SIZE[0] * SIZE[1] * 4


def inference(
    function: Function, n: int, stages: tuple[str, ...], layout: torch.memory_format, device: str
) -> Allocated:
    """What a call without gradients allocates."""
    case = case_of(*stages, residual=stages[0] != "", n=n)
    tensors = tensors_of(case, layout, device)
    with torch.no_grad():
        return allocated_by(lambda: call(case, function, tensors), device)


# Stages, and how many maps of the result's size have to be there at once: the result, and what is
# normalised by its own statistics.
INFERENCE = (
    (("", "", ""), 1),
    (("", "", "fixed relu"), 1),
    (("", "fixed relu", "fixed relu"), 1),
    (("alone relu", "fixed identity", "fixed identity"), 1),
    (("affine silu", "affine silu", "affine silu"), 1),
    (("", "batch relu", "fixed relu"), 1),
    (("", "batch relu", "batch relu"), 2),
)


@pytest.mark.parametrize(("stages", "maps"), INFERENCE, ids=str)
@pytest.mark.parametrize("layout", (NHWC, NCHW), ids=("nhwc", "nchw"))
def test_inference_allocates_its_result(
    stages: tuple[str, ...], maps: int, layout: torch.memory_format, device: str
) -> None:
    """And besides that as much for one batch as for another twice as large.

    Where planes are adjacent, one more map of the result's size: the product of matrices, before
    what stands behind it; two, where a sum stands behind an activation.
    """
    if layout == NCHW and stages[-1]:
        has_sum_behind_activation = stages[0] and "identity" not in stages[-1]
        maps = max(maps, 3 if has_sum_behind_activation else 2)
    beside = []
    for n in (2, 4):
        found = inference(dk.separable_conv2d, n, stages, layout, device)
        assert found.largest < bytes_of(n, CHANNELS)
        beside.append(found.peak - maps * bytes_of(n, OUT))
    assert beside[1] <= max(beside[0], 0)
    assert beside[0] < bytes_of(2, CHANNELS)


def test_stock_allocates_the_depthwise_result(device: str) -> None:
    """What the test above would see if it were allocated."""
    found = inference(stock, 2, ("", "fixed relu", "fixed relu"), NHWC, device)
    assert found.largest >= bytes_of(2, CHANNELS)
    assert found.peak >= 2 * bytes_of(2, CHANNELS)


# Stages, and whether the raw pointwise result is kept for backward.
TRAINING = (
    (("", "", ""), False),
    (("", "batch identity", ""), False),
    (("", "", "batch relu"), True),
    (("", "batch relu", "batch relu"), True),
    (("alone relu", "batch identity", "batch identity"), True),
    (("", "fixed relu", "fixed relu"), True),
    (("affine silu", "affine silu", "affine silu"), True),
)


@pytest.mark.parametrize(("stages", "raw"), TRAINING, ids=str)
@pytest.mark.parametrize("layout", (NHWC, NCHW), ids=("nhwc", "nchw"))
def test_training_keeps_the_input_and_the_raw_result(
    stages: tuple[str, ...], raw: bool, layout: torch.memory_format, device: str
) -> None:
    case = case_of(*stages, residual=stages[0] != "")
    tensors = tensors_of(case, layout, device)
    for name, t in tensors.items():
        t.requires_grad_("running" not in name)

    def forward() -> Tensor:
        return call(case, dk.separable_conv2d, tensors)

    found = allocated_by(forward, device)
    kept = kept_by(forward)
    output = forward()
    vectors = sum(t.nbytes for name, t in tensors.items() if name not in ("x", "residual"))
    allowed = tensors["x"].nbytes + raw * output.nbytes + 2 * vectors
    assert tensors["x"].data_ptr() in kept
    assert sum(kept.values()) <= allowed
    assert found.largest < bytes_of(case.n, CHANNELS)


def test_stock_keeps_every_map() -> None:
    """What the test above would see: each layer's input."""
    case = case_of("", "batch relu", "batch relu")
    tensors = tensors_of(case, NHWC, "cpu")
    tensors["x"].requires_grad_()
    tensors["pw_weight"].requires_grad_()
    kept = kept_by(lambda: call(case, stock, tensors))
    output = call(case, stock, tensors)
    assert sum(kept.values()) > 2 * tensors["x"].nbytes + output.nbytes
