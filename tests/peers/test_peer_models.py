"""Real models of other packages: accelerated, they do what they did, on the ops expected."""

from __future__ import annotations

import pytest
import torch
from accelerate_agreement import assert_agree, counts
from peer_models import build, package
from torch import nn

import dlv3p_kernels as dk
from dlv3p_kernels.__main__ import main

pytestmark = pytest.mark.usefixtures("native")
CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
# Model, output stride, layout, calls of ops.
HEAD = {"separable_conv2d": 1, "decoder_conv2d": 1, "aspp": 1}
RESNET = {"batch_norm_act": 20, **HEAD}
CASES = [
    ("smp:DeepLabV3Plus:resnet18", 16, CHANNELS_LAST, RESNET),
    ("smp:DeepLabV3Plus:resnet18", 16, CONTIGUOUS, RESNET),
    ("smp:DeepLabV3Plus:resnet18", 8, CHANNELS_LAST, RESNET),
    ("smp:DeepLabV3Plus:resnet18", 8, CONTIGUOUS, RESNET),
    (
        "smp:DeepLabV3Plus:tu-xception41", 16, CHANNELS_LAST,
        {**HEAD, "batch_norm_act": 6, "separable_conv2d": 40},
    ),
    (
        "smp:DeepLabV3Plus:mobilenet_v2", 8, CHANNELS_LAST,
        {**HEAD, "batch_norm_act": 18, "separable_conv2d": 18},
    ),
    (
        "smp:DeepLabV3Plus:efficientnet-b0", 16, CONTIGUOUS,
        {"batch_norm_act": 48, "depthwise_conv2d": 16, **HEAD},
    ),
    (
        "smp:UnetPlusPlus:mobilenet_v2", 32, CHANNELS_LAST,
        {"batch_norm_act": 40, "separable_conv2d": 17},
    ),
    (
        "smp:PSPNet:tu-mobilenetv3_small_100", 8, CHANNELS_LAST,
        {"batch_norm_act": 17, "depthwise_conv2d": 9, "separable_conv2d": 2},
    ),
    ("timm:xception41p", 32, CONTIGUOUS, {"batch_norm_act": 14, "separable_conv2d": 39}),
    (
        "timm:tf_efficientnet_b0", 32, CHANNELS_LAST,
        {"batch_norm_act": 49, "depthwise_conv2d": 16},
    ),
    (
        "torchvision:deeplabv3_mobilenet_v3_large", 16, CHANNELS_LAST,
        {"batch_norm_act": 41, "depthwise_conv2d": 12, "separable_conv2d": 3, "aspp": 1},
    ),
    (
        "transformers:MobileNetV2ForSemanticSegmentation", 8, CHANNELS_LAST,
        {"batch_norm_act": 21, "separable_conv2d": 17},
    ),
]  # fmt: skip
# Built and counted only.
COUNTED = {
    "smp:DeepLabV3:tu-resnet18": {"batch_norm_act": 21, "aspp": 1},
    "smp:Unet:timm-efficientnet-b0": {"batch_norm_act": 58, "depthwise_conv2d": 16},
    "timm:mobilenetv2_100": {"batch_norm_act": 18, "separable_conv2d": 17},
    "torchvision:deeplabv3_resnet50": {"batch_norm_act": 54, "aspp": 1},
}


@pytest.mark.parametrize("name,stride,layout,expected", CASES, ids=str)
def test_agrees(
    name: str, stride: int, layout: torch.memory_format, expected: dict[str, int]
) -> None:
    model = build(name, stride)
    torch.manual_seed(1)
    x = torch.randn(3, 3, 64, 64).to(memory_format=layout)
    assert_agree(model, x, expected, layout, steps=1)


@pytest.mark.parametrize("name", COUNTED)
def test_counts(name: str) -> None:
    assert counts(dk.accelerate(build(name))) == COUNTED[name]


@pytest.mark.parametrize(
    "name",
    (
        "smp:DeepLabV3Plus:resnet50",
        "timm:mobilenetv2_100",
        "torchvision:deeplabv3_mobilenet_v3_large",
        "transformers:MobileNetV2ForSemanticSegmentation",
    ),
)
def test_explained_from_a_shell(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    package(name.partition(":")[0])
    assert main(["explain", name]) == 0
    said = capsys.readouterr().out
    assert "batch_norm_act (batch norm, relu" in said
    assert "of the time" in said and "input 2x3x512x512" in said


def test_hooks_that_collect_features_stay() -> None:
    """timm's features are collected by hooks on activations, which are not fused then."""
    model: nn.Module = build("smp:DeepLabV3Plus:tu-xception41")
    report = str(dk.explain(model))
    assert "ReLU encoder.model.blocks_0.stack.act3" in report and "it has hooks" in report


def test_dropped_samples_are_the_same() -> None:
    model = build("smp:DeepLabV3Plus:efficientnet-b0")
    model.encoder._drop_connect_rate = 0.5
    x = torch.randn(4, 3, 64, 64)
    torch.manual_seed(3)
    expected = model(x)
    dk.accelerate(model)
    torch.manual_seed(3)
    got = model(x)
    # Samples dropped otherwise would change everything.
    assert (got - expected).norm() < 1e-3 * expected.norm()
