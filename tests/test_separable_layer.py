"""`SeparableConv2d` as a drop-in for the layers it stands for."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from separable_layers import StockSeparable, layers
from torch import Tensor, nn

import dlv3p_kernels as dk

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "head": {"padding": 6, "dilation": 6},
    "trunk": {
        "padding": "same", "pre_activation": "relu", "depthwise_activation": "identity",
        "pointwise_activation": "identity", "eps": 1e-3, "momentum": 0.01,
    },
    "smp": {"padding": 1, "depthwise_norm": False, "depthwise_activation": "identity"},
    "no-norms": {"bias": True, "depthwise_norm": False, "pointwise_norm": False, "padding": (1, 0)},
    "biases": {"bias": True, "kernel_size": (5, 1), "padding": "valid"},
    "same-s2": {"stride": 2, "padding": (0, 1, 1, 0), "depthwise_activation": "relu6"},
    "average": {"momentum": None, "pointwise_activation": "silu", "stride": (1, 2)},
}  # fmt: skip
every_configuration = pytest.mark.parametrize(
    "configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS
)


def images() -> Tensor:
    """Normally distributed float64 in channels_last."""
    x = torch.randn(3, 6, 8, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last)


def assert_same_steps(
    ours: nn.Module, stocks: StockSeparable, training: tuple[bool, ...], residual: bool = False
) -> None:
    """Outputs, gradients and buffers over steps of training and evaluation."""
    for step, mode in enumerate(training):
        ours.train(mode)
        stocks.train(mode)
        x = (images() * (step + 1)).requires_grad_()
        with torch.no_grad():
            raw = stocks.pointwise(stocks.depthwise(F.pad(x, stocks.sides)))
        other = (raw,) if residual else ()
        found = []
        for layer in (ours, stocks):
            output = layer(x, *other)
            grads = torch.autograd.grad(output.sin().sum(), (x, *layer.parameters()))
            found.append((output, *grads))
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected)
        torch.testing.assert_close(dict(ours.named_buffers()), dict(stocks.named_buffers()))


@pytest.mark.usefixtures("native")
@every_configuration
@pytest.mark.parametrize("residual", (False, True), ids=("alone", "residual"))
def test_same_as_stock(configuration: dict[str, Any], residual: bool) -> None:
    ours, stocks = layers(**configuration, dtype=torch.float64)
    assert_same_steps(ours, stocks, (True, True, False, True, False), residual)


@every_configuration
def test_state_dict_passes_both_ways(configuration: dict[str, Any]) -> None:
    ours, stocks = layers(**configuration, dtype=torch.float64)
    assert list(ours.state_dict()) == list(stocks.state_dict())
    assert [t.shape for t in ours.state_dict().values()] == [
        t.shape for t in stocks.state_dict().values()
    ]
    stocks.train()(images())
    ours.load_state_dict(stocks.state_dict())
    torch.testing.assert_close(ours.state_dict(), stocks.state_dict())
    torch.testing.assert_close(ours.eval()(images()), stocks.eval()(images()))


def test_same_initial_values_from_the_same_seed() -> None:
    made = []
    for kind in (dk.nn.SeparableConv2d, StockSeparable):
        torch.manual_seed(3)
        made.append(kind(6, 5, 3, bias=True).state_dict())
    assert all(torch.equal(made[0][name], t) for name, t in made[1].items())


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("part", ("depthwise_bn", "pointwise_bn", "both"))
def test_frozen_statistics_while_training(part: str) -> None:
    """A common recipe: norms are kept in evaluation, parameters are trained."""
    ours, stocks = layers(padding=1, dtype=torch.float64)
    names = ("depthwise_bn", "pointwise_bn") if part == "both" else (part,)
    for layer in (ours, stocks):
        for name in names:
            norm = getattr(layer, name)
            norm.eval()
            norm.weight.requires_grad_(False)
    x = images().requires_grad_()
    found = []
    for layer in (ours, stocks):
        output = layer(x)
        output.sin().sum().backward()
        found.append([output, *(p.grad for p in layer.parameters() if p.requires_grad)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(stocks.named_buffers()))
    for name in names:
        assert getattr(ours, name).num_batches_tracked == 0
        assert getattr(ours, name).weight.grad is None


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("options", ({"affine": False}, {"track_running_stats": False}))
def test_norms_may_be_replaced(options: dict[str, Any]) -> None:
    ours, stocks = layers(padding=1, dtype=torch.float64)
    for layer in (ours, stocks):
        layer.depthwise_bn = nn.BatchNorm2d(6, **options, dtype=torch.float64)
        layer.pointwise_bn = nn.BatchNorm2d(5, **options, dtype=torch.float64)
    assert list(ours.state_dict()) == list(stocks.state_dict())
    assert_same_steps(ours, stocks, (True, False, True))


@pytest.mark.usefixtures("native")
def test_attributes_that_users_reassign() -> None:
    """Of the convolution's, as when a net's output stride is changed."""
    ours, stocks = layers(padding=1, dtype=torch.float64)
    for layer in (ours, stocks):
        layer.depthwise.padding = layer.depthwise.dilation = (4, 4)
    assert_same_steps(ours, stocks, (True, False))


@pytest.mark.usefixtures("native")
def test_copies() -> None:
    ours, _ = layers(padding=2, pre_activation="relu", dtype=torch.float64)
    ours(images())
    expected = ours.eval()(images())
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for other in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(file, weights_only=False),
    ):
        torch.testing.assert_close(other(images()), expected, rtol=0, atol=0)
        other.train()(images())
    torch.testing.assert_close(ours(images()), expected, rtol=0, atol=0)


def test_text() -> None:
    ours = dk.nn.SeparableConv2d(6, 5, padding=2, pre_activation="silu", momentum=None)
    words = "pre_activation=silu, depthwise_activation=relu, pointwise_activation=relu"
    assert ours.extra_repr() == words
    assert words in str(ours) and "(pointwise_bn): BatchNorm2d(5" in str(ours)


@pytest.mark.usefixtures("native")
def test_synchronised_norms_without_processes() -> None:
    """Converted and back to one process, the layer counts its own batch; keys stay."""
    ours, stocks = layers(padding=1, dtype=torch.float64)
    keys = list(ours.state_dict())
    ours = nn.SyncBatchNorm.convert_sync_batchnorm(ours)
    assert isinstance(ours.depthwise_bn, nn.SyncBatchNorm)
    assert isinstance(ours.pointwise_bn, nn.SyncBatchNorm)
    assert list(ours.state_dict()) == keys
    assert_same_steps(ours, stocks, (True, False, True))


def test_moves_to_other_dtypes_and_devices() -> None:
    ours, _ = layers()
    assert ours.to("meta")(torch.empty(2, 6, 8, 7, device="meta")).shape == (2, 5, 6, 5)
    half, _ = layers()
    x = images().bfloat16()
    assert half.bfloat16()(x).dtype == torch.bfloat16
    assert half.pointwise_bn.running_mean.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ("pre_activation", "depthwise_activation", "pointwise_activation"))
def test_wrong_activation(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be one of .*'silu'.* got 'gelu'"):
        dk.nn.SeparableConv2d(3, 4, **{name: "gelu"})


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    (
        ({"out_channels": 0}, ValueError, "pw_weight must be"),
        ({"stride": 0}, ValueError, "stride must be at least 1"),
        ({"padding": (1, 2, 3)}, ValueError, "padding must be an int or 2 or 4 ints"),
        ({"padding": "full"}, ValueError, "full"),
    ),
    ids=("channels", "stride", "padding", "padding text"),
)
def test_wrong_argument_of_a_convolution(
    change: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        dk.nn.SeparableConv2d(**({"in_channels": 6, "out_channels": 5} | change))(images().float())
