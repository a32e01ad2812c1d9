"""`Decoder` as a drop-in for the layers it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoder_layers import StockDecoder, decoders, maps
from torch import nn

import dlv3p_kernels as dk

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "low-level-first": {"encoder_first": False, "align_corners": True},
    "one-conv": {"convs": 1, "align_corners": True, "eps": 1e-3, "momentum": 0.01},
    "three-5x5": {"convs": 3, "kernel_size": 5, "encoder_first": False},
    "silu": {"activation": "silu", "momentum": None},
    "linear": {"activation": "identity", "kernel_size": 1},
}
every_configuration = pytest.mark.parametrize(
    "configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS
)


def assert_same_steps(
    ours: nn.Module, stocks: StockDecoder, training: tuple[bool, ...], **sizes: Any
) -> None:
    """Outputs with and without gradients, gradients and buffers over steps of both modes."""
    for step, mode in enumerate(training):
        found = []
        for layer in (ours.train(mode), stocks.train(mode)):
            leaves = [t * (step + 1) for t in maps(**sizes)]
            with torch.no_grad():
                inference = layer(*leaves)
            leaves = [t.requires_grad_() for t in leaves]
            output = layer(*leaves)
            grads = torch.autograd.grad(output.sin().sum(), (*leaves, *layer.parameters()))
            found.append((inference, output, *grads))
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected)
        torch.testing.assert_close(dict(ours.named_buffers()), dict(stocks.named_buffers()))


@pytest.mark.usefixtures("native")
@every_configuration
@pytest.mark.parametrize("layout", (torch.channels_last, torch.contiguous_format), ids=str)
def test_same_as_stock(configuration: dict[str, Any], layout: torch.memory_format) -> None:
    ours, stocks = decoders(**configuration, dtype=torch.float64)
    assert_same_steps(ours, stocks, (True, False, True, False), layout=layout)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("align_corners", (False, True))
@pytest.mark.parametrize("sizes", (((1, 1), (7, 7)), ((7, 9), (4, 3)), ((5, 2), (1, 2))), ids=str)
def test_sizes(sizes: tuple[tuple[int, int], ...], align_corners: bool) -> None:
    """One pixel of either map's rows, and smaller low-level features."""
    ours, stocks = decoders(align_corners=align_corners, dtype=torch.float64)
    assert_same_steps(ours, stocks, (True, False), source=sizes[0], size=sizes[1])


@pytest.mark.usefixtures("native")
def test_one_pixel_of_one_image() -> None:
    """There is no variance to train by, as in stock layers."""
    ours, stocks = decoders(dtype=torch.float64)
    assert_same_steps(ours, stocks, (False,), source=(3, 2), size=(1, 1), n=1)
    for layer in (ours.train(), stocks.train()):
        with pytest.raises(ValueError, match=r"more than (one|1) value per channel"):
            layer(*maps((3, 2), (1, 1), n=1))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("classes", (1, 2, 19, 21, 150, 256))
def test_classes(classes: int) -> None:
    ours, stocks = decoders(num_classes=classes, dtype=torch.float64)
    assert_same_steps(ours, stocks, (True, False))


def test_empty_batch() -> None:
    ours, stocks = decoders(dtype=torch.float64)
    assert_same_steps(ours, stocks, (False,), n=0)


@every_configuration
def test_state_dict_passes_both_ways(configuration: dict[str, Any]) -> None:
    ours, stocks = decoders(**configuration, dtype=torch.float64)
    assert [(name, t.shape) for name, t in ours.state_dict().items()] == [
        (name, t.shape) for name, t in stocks.state_dict().items()
    ]
    stocks(*maps())
    ours.load_state_dict(stocks.state_dict())
    torch.testing.assert_close(ours.eval()(*maps()), stocks.eval()(*maps()))


def test_keys_that_checkpoints_have() -> None:
    keys = list(decoders(convs=1)[0].state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert keys == [
        "low_level_projection.conv.weight",
        *(f"low_level_projection.bn.{name}" for name in norm),
        "conv0.depthwise.weight",
        *(f"conv0.depthwise_bn.{name}" for name in norm),
        "conv0.pointwise.weight",
        *(f"conv0.pointwise_bn.{name}" for name in norm),
        "classifier.weight",
        "classifier.bias",
    ]


@pytest.mark.usefixtures("native")
def test_frozen_norms_while_training() -> None:
    """A common recipe: norms are kept in evaluation, parameters are trained."""
    ours, stocks = decoders(dtype=torch.float64)
    found = []
    for layer in (ours, stocks):
        for norm in layer.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()
                norm.requires_grad_(False)
        output = layer(*maps())
        wanted = [p for p in layer.parameters() if p.requires_grad]
        found.append((output, *torch.autograd.grad(output.sin().sum(), wanted)))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(stocks.named_buffers()))


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"convs": 0}, "Decoder: convs must be at least 1, got 0"),
        ({"kernel_size": 4}, "Decoder: kernel_size must be odd, got 4"),
        ({"activation": "gelu"}, "Decoder: activation must be one of"),
    ),
    ids=str,
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dk.nn.Decoder(7, 5, 4, **options)


def test_bad_maps_are_named() -> None:
    layer = decoders(dtype=torch.float64)[0].eval()
    x, low_level = maps()
    with pytest.raises(ValueError, match=r"low_level must have x's batch of 2, got 1"):
        layer(x, low_level[:1])
    with pytest.raises(ValueError, match=r"dw_weight must be \(9, 1, kh, kw\)"):
        layer(x[:, :6], low_level)
    with pytest.raises(TypeError, match=r"low_level must have x's dtype torch.float32"):
        layer(x.float(), low_level)
    with pytest.raises(ValueError, match=r"x must have 4 dimensions, got shape \(7, 3, 4\)"):
        layer(x[0], low_level)
    with pytest.raises(ValueError, match=r"low_level must have 5 channels, got shape \(2, 4,"):
        layer(x, low_level[:, :4])
    with pytest.raises(TypeError, match=r"low_level must be a torch.Tensor, got int"):
        layer(x, 3)


def test_text() -> None:
    text = repr(decoders(encoder_first=False)[0])
    assert "align_corners=False, encoder_first=False, activation=relu" in text
