"""`BatchNormAct2d` as a drop-in for `nn.BatchNorm2d`, with activation and residual."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dlv3p_kernels as dk

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.7, "eps": 1e-2},
    "average": {"momentum": None},
    "no-affine": {"affine": False},
    "no-tracking": {"track_running_stats": False},
    "bare": {"affine": False, "track_running_stats": False},
}
every_configuration = pytest.mark.parametrize(
    "configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS
)


def images() -> Tensor:
    """Normally distributed float64 in channels_last."""
    x = torch.randn(3, 6, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last)


def layers(**options: Any) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    """Our layer and the stock one, of the same weights that are not all ones."""
    ours = dk.nn.BatchNormAct2d(6, **options, activation="silu", dtype=torch.float64)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    stocks = nn.BatchNorm2d(6, **options, dtype=torch.float64)
    stocks.load_state_dict(ours.state_dict())
    return ours, stocks


@pytest.mark.usefixtures("native")
@every_configuration
@pytest.mark.parametrize("residual", (False, True), ids=("alone", "residual"))
def test_same_as_stock(configuration: dict[str, Any], residual: bool) -> None:
    """Outputs, gradients and buffers over steps of training and evaluation."""
    ours, stocks = layers(**configuration)
    x = images()
    other = x.flip(0) if residual else None
    for step in range(6):
        training = step not in (2, 5)
        ours.train(training)
        stocks.train(training)
        leaf = (x * (step + 1)).requires_grad_()
        got = ours(leaf, other) if residual else ours(leaf)
        expected = F.silu(stocks(leaf) + (other if residual else 0))
        torch.testing.assert_close(got, expected)
        pairs = [
            torch.autograd.grad(output.sin().sum(), (leaf, *layer.parameters()))
            for layer, output in ((ours, got), (stocks, expected))
        ]
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(dict(ours.named_buffers()), dict(stocks.named_buffers()))


@every_configuration
def test_state_dict_passes_both_ways(configuration: dict[str, Any]) -> None:
    ours, stocks = layers(**configuration)
    assert list(ours.state_dict()) == list(stocks.state_dict())
    stocks.train()(images())
    ours.load_state_dict(stocks.state_dict())
    torch.testing.assert_close(ours.state_dict(), stocks.state_dict())


def test_copies_and_text() -> None:
    ours, _ = layers()
    ours(images())
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert other.activation == "silu"
        torch.testing.assert_close(other.eval()(images()), ours.eval()(images()))
    assert "6, eps=1e-05" in str(ours) and "activation=silu" in str(ours)


@pytest.mark.usefixtures("native")
def test_frozen_statistics_while_training() -> None:
    """A common recipe: the layer is kept in evaluation, the parameters are trained."""
    ours, stocks = layers()
    ours.eval()
    stocks.eval()
    x = images().requires_grad_()
    grads = [
        torch.autograd.grad(output.sum(), (x, *layer.parameters()))
        for layer, output in ((ours, ours(x)), (stocks, F.silu(stocks(x))))
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    assert ours.num_batches_tracked == 0


def test_wrong_activation_and_rank() -> None:
    with pytest.raises(ValueError, match=r"activation must be one of .* got 'gelu'"):
        dk.nn.BatchNormAct2d(3, activation="gelu")
    with pytest.raises(ValueError, match="expected 4D input"):
        dk.nn.BatchNormAct2d(3)(torch.zeros(2, 3, 4))
