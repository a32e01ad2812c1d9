"""Arguments of the model, and errors for bad ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from deeplabv3plus import DeepLabV3Plus
from models import CLASSES, small
from torch import nn

import dlv3p_kernels as dk


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("output_stride", "given", "rates"),
    [
        (8, None, [12, 24, 36]),
        (16, None, [6, 12, 18]),
        (32, None, [3, 6, 9]),
        (16, [1, 5], [1, 5]),
    ],
)
def test_aspp_rates(output_stride: int, given: list[int] | None, rates: list[int]) -> None:
    model = small(output_stride=output_stride, atrous_rates=given)
    assert [branch.depthwise.dilation[0] for branch in model.aspp.atrous] == rates


def test_config_rebuilds_the_model() -> None:
    model = DeepLabV3Plus(
        "resnet50", 3, 8, in_channels=4, atrous_rates=[2, 4], multi_grid=[1, 2, 1], dropout=0.0
    ).eval()
    config = json.loads(json.dumps(model.config))  # as a checkpoint keeps it
    twin = DeepLabV3Plus(**config).eval()
    assert twin.config == model.config
    twin.load_state_dict(model.state_dict())
    images = torch.randn(1, 4, 33, 40)
    with torch.no_grad():
        assert torch.equal(twin(images), model(images))
    model.config["num_classes"] = 7
    assert model.config["num_classes"] == 3


def test_batch_norm_constants() -> None:
    model = DeepLabV3Plus("xception41", bn_momentum=3e-4)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.eps == (1e-3 if name.startswith("encoder") else 1e-5), name
            assert layer.momentum == 3e-4
    assert small().aspp.conv1x1.bn.momentum == 0.1


def test_initial_weights() -> None:
    model = DeepLabV3Plus("xception41")
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        if layer is model.decoder.classifier:
            expected = 0.01
            assert not layer.bias.any()
        elif isinstance(layer, dk.nn.DepthwiseConv2d):
            expected = 1 / 3
        else:
            expected = (2 / (layer.out_channels * layer.kernel_size[0] ** 2)) ** 0.5
        # Five standard errors of the standard deviation of n normal numbers.
        n = layer.weight.numel()
        assert layer.weight.std().item() == pytest.approx(expected, rel=5 / (2 * n) ** 0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"encoder": 65}, TypeError, "encoder must be a str, got int 65"),
        ({"encoder": "xception"}, ValueError, "encoder must be one of xception41"),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
        ({"num_classes": True}, TypeError, "num_classes must be an int, got bool True"),
        ({"output_stride": 4}, ValueError, "output_stride must be 8, 16 or 32, got 4"),
        ({"output_stride": 16.0}, TypeError, "output_stride must be an int"),
        ({"in_channels": 0}, ValueError, "in_channels must be at least 1"),
        ({"atrous_rates": ()}, ValueError, "atrous_rates must not be empty"),
        ({"atrous_rates": 6}, TypeError, "atrous_rates must be a list or tuple"),
        ({"atrous_rates": (6, 0)}, ValueError, r"atrous_rates\[1\] must be at least 1"),
        ({"multi_grid": (1, 2)}, ValueError, "multi_grid must have three factors"),
        ({"multi_grid": (1, 2, 4)}, ValueError, "multi_grid works with"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": "0.1"}, TypeError, "dropout must be a number"),
        ({"align_corners": 1}, TypeError, "align_corners must be a bool"),
        ({"bn_momentum": 0}, ValueError, r"bn_momentum must be in \(0, 1\]"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small(**arguments)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([[1.0]], TypeError, "images must be a tensor, got list"),
        (torch.zeros(3, 32, 32), ValueError, r"images must be \(N, 3, H, W\)"),
        (torch.zeros(1, 4, 32, 32), ValueError, r"got shape \(1, 4, 32, 32\)"),
        (torch.zeros(1, 3, 0, 32), ValueError, "images must have height and width"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, "float32, got torch.uint8"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.float64), TypeError, "float32, got torch.float64"),
        (torch.zeros(1, 3, 32, 32, device="meta"), ValueError, "model's device cpu, got meta"),
    ],
)
def test_bad_images(images: Any, error: type[Exception], message: str) -> None:
    model = small().eval()
    for call in (model, model.predict, lambda x: model.loss(x, torch.zeros(1, 32, 32))):
        with pytest.raises(error, match=message):
            call(images)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (None, TypeError, "target must be a tensor, got NoneType"),
        (torch.zeros(1, 32, 32), TypeError, "target must be of an integer dtype"),
        (torch.zeros(1, 8, 8).long(), ValueError, r"target must be \(N, H, W\) = \(1, 32, 32\)"),
        (torch.full((1, 32, 32), CLASSES), ValueError, r"classes 0 to 4 or .* 255, got \[5\]"),
        (torch.full((1, 32, 32), -1), ValueError, r"got \[-1\]"),
        (torch.zeros(1, 32, 32, device="meta").long(), ValueError, "device of the images"),
    ],
)
def test_bad_targets(target: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small().loss(torch.zeros(1, 3, 32, 32), target)
