"""Which back end serves a batch norm by default, and what `dk.explain` says of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import dlv3p_kernels as dk

SMALL, MODERATE = (2, 16, 33, 33), (2, 128, 33, 33)
NHWC, NCHW = torch.channels_last, torch.contiguous_format


@pytest.fixture(autouse=True)
def by_default() -> None:
    """The choice is left to the package."""
    if not dk.status().cpu.loaded:
        pytest.skip("there is nothing to choose from")


def served_by_kernels(x: Tensor, training: bool, activation: str, residual: Tensor | None) -> bool:
    """Whether our operator runs."""
    vectors = torch.zeros(x.size(1)), torch.ones(x.size(1))
    with dk.backend("auto"), torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        dk.batch_norm_act(x, *vectors, training=training, activation=activation, residual=residual)
    return any(event.key.startswith("dlv3p::batch_norm") for event in seen.key_averages())


@pytest.mark.parametrize(
    ("shape", "layout", "training", "activation", "residual", "kernels"),
    (
        (SMALL, NHWC, True, "relu", False, False),
        (MODERATE, NHWC, True, "relu", False, True),
        (MODERATE, NHWC, False, "relu", False, True),
        (MODERATE, NHWC, False, "identity", True, True),
        (MODERATE, NHWC, True, "identity", False, False),
        (MODERATE, NCHW, True, "identity", False, True),
        (MODERATE, NCHW, False, "identity", False, False),
    ),
)
def test_choice(shape, layout, training, activation, residual, kernels) -> None:
    x = torch.randn(shape).contiguous(memory_format=layout)
    other = x if residual else None
    assert served_by_kernels(x, training, activation, other) == kernels


def test_choice_of_contiguous_bfloat16() -> None:
    """Stock PyTorch is slow for contiguous float32 only."""
    assert not served_by_kernels(torch.randn(MODERATE).bfloat16(), True, "identity", None)
    assert served_by_kernels(torch.randn(MODERATE).bfloat16(), True, "silu", None)


def test_explained() -> None:
    x, vector = torch.randn(SMALL), torch.ones(16)
    said = str(dk.explain(dk.batch_norm_act, x, vector, vector, activation="relu"))
    assert "34848 elements are few" in said
    said = str(dk.explain(dk.batch_norm_act, x, vector, vector))
    assert "nothing to fuse" in said
