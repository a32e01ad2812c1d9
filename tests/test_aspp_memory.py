"""What a pyramid allocates and keeps: neither a concatenation nor a depthwise result."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from allocations import allocated_by, kept_by
from torch import Tensor, nn

import dlv3p_kernels as dk

# Other back ends put the maps side by side, so this is for the CPU.
pytestmark = pytest.mark.usefixtures("native")

# Maps are larger than the pieces, of at most 4 MiB, in which depthwise results are made.
BATCH, WIDE, OUT, SIZE, RATES = 2, 192, 96, 65, (1, 2)
# The branches beside the pooled one, which is a pixel per image.
BRANCHES = 1 + len(RATES)
PIXELS = BATCH * SIZE * SIZE * 4  # bytes of a channel


def pyramids() -> tuple[dk.nn.ASPP, nn.Module]:
    """Ours, and the same run by stock PyTorch."""
    torch.manual_seed(0)
    ours = dk.nn.ASPP(WIDE, OUT, RATES)
    return ours, Stock(ours)


class Stock(nn.Module):
    """The definition, with the parameters of ours."""

    def __init__(self, layer: dk.nn.ASPP) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The layer as its definition."""
        with dk.backend("reference"):
            return self.layer(x)


def maps() -> Tensor:
    """The input, far wider than the results."""
    return torch.randn(BATCH, WIDE, SIZE, SIZE).to(memory_format=torch.channels_last)


def test_inference_allocates_results_of_branches_alone() -> None:
    """One for each, the projection and what is made of it; a concatenation would be one more."""
    ours, stock = (layer.eval() for layer in pyramids())
    x = maps()
    with torch.no_grad():
        found, expected = (allocated_by(partial(layer, x), "cpu") for layer in (ours, stock))
    assert found.largest < BRANCHES * OUT * PIXELS
    assert found.largest < WIDE * PIXELS
    assert expected.largest >= (BRANCHES + 1) * OUT * PIXELS


def test_a_step_allocates_no_concatenation() -> None:
    """Neither one way nor the other; the widest map is the gradient by the input."""
    ours, stock = (layer.train() for layer in pyramids())
    x = maps().requires_grad_()

    def step(layer: nn.Module) -> object:
        return torch.autograd.grad(layer(x).sum(), (x, *layer.parameters()))

    found, expected = (allocated_by(partial(step, layer), "cpu") for layer in (ours, stock))
    assert found.largest <= WIDE * PIXELS < BRANCHES * OUT * PIXELS
    assert expected.largest >= (BRANCHES + 1) * OUT * PIXELS
    assert found.peak < expected.peak


def test_training_keeps_the_input_and_raw_results() -> None:
    ours, stock = (layer.train() for layer in pyramids())
    x = maps().requires_grad_()
    parameters = sum(p.nbytes for p in ours.parameters())
    allowed = x.nbytes + (BRANCHES + 1) * OUT * PIXELS + 3 * parameters
    kept = kept_by(lambda: ours(x))
    assert x.data_ptr() in kept
    assert sum(kept.values()) <= allowed
    assert sum(kept_by(lambda: stock(x)).values()) > 2 * allowed
