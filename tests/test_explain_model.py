"""`dk.explain` for a model: what is listed as replaced, what stays as it is, and why."""

from __future__ import annotations

import pytest
import torch
from accelerate_agreement import swapped
from accelerate_blocks import InPlaceSum, Pyramid, Separable, depthwise
from deeplabv3plus import DeepLabV3Plus
from torch import nn

import dlv3p_kernels as dk

pytestmark = pytest.mark.usefixtures("one_thread", "native")


def _blocks() -> nn.Module:
    return nn.Sequential(Separable(), InPlaceSum(), Pyramid())


def test_report_lists_everything() -> None:
    model = nn.Sequential(_blocks(), depthwise(8), nn.Sequential(nn.Conv2d(8, 3, 1), nn.PReLU()))
    model[1].register_forward_hook(lambda module, args, output: None)
    example = torch.randn(4, 8, 13, 15)
    before = dk.explain(model, example)
    dk.accelerate(model)
    after = dk.explain(model, example)
    assert before.ops == after.ops == {"separable_conv2d": 1, "batch_norm_act": 2, "aspp": 1}
    assert (before.accelerated, after.accelerated) == (False, True)
    assert before.served == after.served and before.unserved == after.unserved
    reasons = {layer.layer: layer.reason for layer in after.unserved}
    assert "hooks" in reasons["1"] and "pointwise" in reasons["2.0"]
    assert reasons["2.1"] == "no op serves it"
    assert 0.2 < after.byte_share < 1 and 0.2 < after.time_share < 1
    text = str(after)
    for words in ("runs on ops", "stays as it is", "2.1", "separable_conv2d", "% of the bytes"):
        assert words in text
    assert swapped(model)


def test_what_is_made_of_the_ops_is_left_alone() -> None:
    """Layers of this package and encoders made of them; what lies inside is not listed."""
    model = DeepLabV3Plus("mobilenet_v2", num_classes=3)
    report = dk.explain(model, torch.randn(1, 3, 33, 33))
    assert not report.served and "runs on ops:" not in str(report)
    listed = {(layer.layer, layer.cls, layer.reason) for layer in report.unserved}
    why = "it runs on the ops already"
    assert {("encoder", "MobileNetV2", why), ("aspp", "ASPP", why)} <= listed
    assert all("." not in layer.layer for layer in report.unserved)
    assert not swapped(dk.accelerate(model))
