"""Layouts of packages that are not installed: recognised whole, and in agreement."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from accelerate_agreement import assert_agree, counts
from accelerate_layouts import (
    ASPP,
    AtrousSeparableConvolution,
    BiasedPyramid,
    Conv2d,
    ConvModule,
    DeepLabHead,
    DepthwiseSeparableConv2d,
    DepthwiseSeparableConvModule,
    HeadV3Plus,
    ModulePyramid,
    SeparableASPPHead,
    XceptionBlock,
)
from torch import Tensor, nn

import dlv3p_kernels as dk

pytestmark = pytest.mark.usefixtures("one_thread", "native")
SEPARABLE, PYRAMID = {"separable_conv2d": 1}, {"aspp": 1}
CASES = {
    "mmcv": (lambda: DepthwiseSeparableConvModule(8, 6, 2), SEPARABLE),
    "mmseg": (SeparableASPPHead, {"separable_conv2d": 4, "decoder_conv2d": 1, "batch_norm_act": 2}),
    "detectron2": (lambda: DepthwiseSeparableConv2d(8, 6, 5), SEPARABLE),
    "detectron2 dense": (lambda: ASPP(separable=False), PYRAMID),
    "detectron2 head": (DeepLabHead, {"decoder_conv2d": 1, "aspp": 1}),
    "VainF": (lambda: AtrousSeparableConvolution(8, 6, 2, bias=True), SEPARABLE),
    "VainF head": (HeadV3Plus, {"decoder_conv2d": 1, "aspp": 1}),
    "jfzhang95": (XceptionBlock, {"separable_conv2d": 3}),
    "jfzhang95 pyramid": (ModulePyramid, PYRAMID),
    "bubbliiiing": (BiasedPyramid, PYRAMID),
}


def _input() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 8, 12, 14)


@pytest.mark.parametrize("name", CASES)
def test_agrees(name: str) -> None:
    make, expected = CASES[name]
    torch.manual_seed(0)
    assert_agree(make(), _input(), expected, steps=2)


def test_the_same_samples_are_dropped() -> None:
    torch.manual_seed(0)
    model, x = ASPP(dropout=0.5), _input()
    torch.manual_seed(3)
    expected = model(x)
    assert counts(dk.accelerate(model)) == PYRAMID
    torch.manual_seed(3)
    torch.testing.assert_close(model(x), expected)
    assert (expected == 0).sum() > 0.4 * expected.numel()
    model.eval()
    torch.testing.assert_close(model(x), dk.restore(model)(x))


def test_windows_of_a_fixed_size_are_no_global_pooling() -> None:
    model = ASPP()
    model.pool_kernel_size = (6, 7)
    assert "aspp" not in counts(dk.accelerate(model))


def test_a_lone_convolution_with_a_norm_inside() -> None:
    """Its graph calls the module that it is the graph of."""
    torch.manual_seed(0)
    assert_agree(
        Conv2d(8, 6, 3, norm=bn_like(6), activation=F.relu), _input(), {"batch_norm_act": 1}
    )


def bn_like(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm


@pytest.mark.parametrize("when", ("before", "after"))
def test_a_function_exchanged_later(when: str) -> None:
    """The activation is an attribute that is no module."""
    torch.manual_seed(0)
    model, x = DepthwiseSeparableConv2d(8, 6).eval(), _input()
    if when == "before":
        model.pointwise.activation = torch.tanh
        expected = model(x)
        assert counts(dk.accelerate(model)) == SEPARABLE
    else:
        dk.accelerate(model)(x)
        model.pointwise.activation = torch.tanh
        expected = dk.restore(model)(x)
        model.pointwise.activation = F.relu
        dk.accelerate(model)
        model.pointwise.activation = torch.tanh
    torch.testing.assert_close(model(x), expected)
    assert float(expected.min()) < 0


def test_functions_among_the_settings_compile() -> None:
    torch._dynamo.reset()
    model, x = dk.accelerate(DepthwiseSeparableConv2d(8, 6).eval()), _input()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    model.pointwise.activation = torch.tanh
    torch.testing.assert_close(compiled(x), dk.restore(model)(x))


@pytest.mark.parametrize("when", ("before", "after"))
def test_convolutions_that_fold_their_norm_are_left_alone(when: str) -> None:
    model, x, calls = DepthwiseSeparableConvModule(8, 6).eval(), _input(), []

    def fold(conv: nn.Conv2d, x: Tensor) -> Tensor:
        calls.append(conv)
        return F.conv2d(x, conv.weight * 2, None, 1, conv.padding, 1, conv.groups)

    if when == "after":
        dk.accelerate(model)
    for module in model.modules():
        if isinstance(module, ConvModule):
            module.efficient_conv_bn_eval_forward = fold
    if when == "before":
        dk.accelerate(model)
    got = model(x)
    assert len(calls) == 2
    torch.testing.assert_close(got, dk.restore(model)(x))
