"""`DepthwiseConv2d` as a drop-in for `nn.Conv2d`."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dlv3p_kernels as dk

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "no-bias": {"kernel_size": 3, "padding": 1, "bias": False},
    "atrous": {"kernel_size": 3, "padding": 6, "dilation": 6},
    "uneven": {"kernel_size": (5, 2), "stride": (2, 1), "padding": (3, 1), "dilation": (1, 2)},
    "same": {"kernel_size": (4, 3), "padding": "same", "dilation": 3},
    "valid": {"kernel_size": 3, "padding": "valid", "stride": 2},
    "reflect": {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "replicate"},
    "circular": {"kernel_size": 3, "padding": 2, "padding_mode": "circular", "dilation": 2},
    "reflect-same": {"kernel_size": (4, 3), "padding": "same", "padding_mode": "reflect"},
    "multiplier-2": {"kernel_size": 3, "padding": 1, "out_channels": 12},
    "multiplier-3": {"kernel_size": 3, "padding": 2, "dilation": 2, "out_channels": 18},
    "multiplier-2-same": {"kernel_size": 2, "padding": "same", "out_channels": 12},
}
every_configuration = pytest.mark.parametrize(
    "configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS
)


def layers(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Our layer and the stock one, of 6 channels and the same weights."""
    options = {"in_channels": 6, "out_channels": 6, "dtype": dtype} | options
    ours = dk.nn.DepthwiseConv2d(**options)
    stocks = nn.Conv2d(**options, groups=6)
    stocks.load_state_dict(ours.state_dict())
    return ours, stocks


def images(*shape: int) -> Tensor:
    """Normally distributed float64 in channels_last where there is a batch."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def assert_same(ours: nn.Module, stocks: nn.Module, x: Tensor) -> None:
    """Output and every gradient are equal up to float64 rounding."""
    outcomes = []
    for layer in (ours, stocks):
        leaf = x.detach().requires_grad_()
        output = layer(leaf)
        outcomes.append(
            (output, *torch.autograd.grad(output.sin().sum(), [leaf, *layer.parameters()]))
        )
    for got, wanted in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, wanted)


@every_configuration
def test_equals_stock(configuration: dict[str, Any]) -> None:
    ours, stocks = layers(**configuration)
    assert_same(ours, stocks, images(2, 6, 11, 9))
    assert_same(ours, stocks, images(6, 11, 9))


@every_configuration
def test_state_dict_and_representation(configuration: dict[str, Any]) -> None:
    """Keys, shapes and, from the same seed, initial values; loads in both directions."""
    options = {"in_channels": 6, "out_channels": 6} | configuration
    torch.manual_seed(3)
    ours = dk.nn.DepthwiseConv2d(**options)
    torch.manual_seed(3)
    stocks = nn.Conv2d(**options, groups=6)
    assert isinstance(ours, nn.Conv2d)
    assert list(ours.state_dict()) == list(stocks.state_dict())
    for key, value in stocks.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)
    ours.load_state_dict(stocks.state_dict(), strict=True)
    stocks.load_state_dict(ours.state_dict(), strict=True)
    assert ours.extra_repr() == stocks.extra_repr()


def test_positional_arguments_are_those_of_stock() -> None:
    arguments = (6, 12, 3, 2, 1, 2, 6, False, "reflect", "cpu", torch.bfloat16)
    ours, stocks = dk.nn.DepthwiseConv2d(*arguments), nn.Conv2d(*arguments)
    assert repr(ours).replace("DepthwiseConv2d", "Conv2d") == repr(stocks)
    assert ours.weight.dtype == torch.bfloat16


def test_four_sided_padding() -> None:
    """TensorFlow's SAME at stride 2: one more row and column of zeros after than before."""
    ours, stocks = layers(kernel_size=3, stride=2)
    ours.padding = (0, 1, 0, 1)
    constructed = dk.nn.DepthwiseConv2d(6, 6, 3, 2, padding=[0, 1, 0, 1], dtype=torch.float64)
    constructed.load_state_dict(stocks.state_dict())
    for layer in (ours, constructed):
        assert_same(layer, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), stocks), images(2, 6, 12, 10))


@pytest.mark.parametrize("start", (0, "same", "valid"))
def test_geometry_may_be_reassigned(start: str | int) -> None:
    """As code does that turns a classifier into a dense predictor."""
    for change in (
        {"dilation": (2, 2)},
        {"padding": (4, 4), "dilation": (4, 4)},
        {"padding": "same", "dilation": (3, 2)},
        {"stride": (2, 2), "padding": (1, 1)},
        {"padding": 2, "dilation": 2, "stride": 1},
    ):
        ours, stocks = layers(kernel_size=3, padding=start)
        for name, value in change.items():
            setattr(ours, name, value)
            setattr(stocks, name, value)
        assert_same(ours, stocks, images(2, 6, 11, 9))


def test_module_class_may_be_reassigned() -> None:
    """Swapping the class of a stock layer in place is the shortest conversion."""
    _, stocks = layers(kernel_size=3, padding=2, dilation=2)
    converted = copy.deepcopy(stocks)
    converted.__class__ = dk.nn.DepthwiseConv2d
    assert_same(converted, stocks, images(2, 6, 8, 8))


def through_torch_save(layer: nn.Module) -> nn.Module:
    """Saved whole and loaded again."""
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    (copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), through_torch_save),
    ids=("deepcopy", "pickle", "torch.save"),
)
@pytest.mark.parametrize("padding", (1, "same", (0, 1, 2, 3)), ids=str)
def test_duplicates(duplicate: Callable[[nn.Module], nn.Module], padding: Any) -> None:
    layer = dk.nn.DepthwiseConv2d(6, 6, 3, padding=padding, dtype=torch.float64)
    twin = duplicate(layer)
    assert type(twin) is dk.nn.DepthwiseConv2d
    assert twin.weight is not layer.weight
    assert_same(twin, layer, images(2, 6, 7, 7))


def test_double_backward() -> None:
    outcomes = []
    for layer in layers(kernel_size=3, padding=2, dilation=2):
        x = images(2, 6, 7, 8).requires_grad_()
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        outcomes.append(torch.autograd.grad(slope.square().sum(), [x, layer.weight]))
    for got, wanted in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, wanted)


@every_configuration
def test_compiles_into_one_graph(configuration: dict[str, Any]) -> None:
    torch._dynamo.reset()
    ours, stocks = layers(**configuration)
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    x = images(2, 6, 11, 9)
    torch.testing.assert_close(compiled(x), stocks(x))


@pytest.mark.usefixtures("native")
def test_every_stock_argument_reaches_the_kernel() -> None:
    """Insisting on the compiled kernels, the layer runs in all but the multiplier's cases."""
    for name, configuration in CONFIGURATIONS.items():
        ours, _ = layers(**configuration)
        if name.startswith("multiplier"):
            with pytest.raises(RuntimeError, match=r"channel multiplier \d is not 1"):
                ours(images(2, 6, 11, 9))
        else:
            ours(images(2, 6, 11, 9))


def test_trains_like_stock() -> None:
    """Ten steps of SGD end at the same weights."""
    ours, stocks = layers(kernel_size=3, padding=2, dilation=2)
    x = images(2, 6, 9, 9)
    for layer in (ours, stocks):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        for _ in range(10):
            optimizer.zero_grad(set_to_none=True)
            (layer(x) - x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), stocks.state_dict())
