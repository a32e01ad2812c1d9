"""Accelerated models of stock layers, each with a trap in it, against themselves untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate_agreement import LAYOUTS, assert_agree, counts
from accelerate_blocks import (
    DilatedPointwise,
    InPlaceFeature,
    InPlaceSkip,
    InPlaceSum,
    Padded,
    Pyramid,
    Separable,
    SharedWeights,
    Stretched,
    TwiceNormed,
    bn,
    conv,
)
from torch import nn

import dlv3p_kernels as dk

pytestmark = pytest.mark.usefixtures("one_thread", "native")
SEPARABLE = {"separable_conv2d": 1}
CASES = {
    "separable": (Separable, SEPARABLE),
    "in-place skip": (InPlaceSkip, SEPARABLE),
    "in-place feature": (InPlaceFeature, {"batch_norm_act": 1}),
    "in-place sum": (InPlaceSum, {"batch_norm_act": 2}),
    "twice normed": (TwiceNormed, {"batch_norm_act": 1}),
    "stretched": (Stretched, {"separable_conv2d": 1, "batch_norm_act": 1}),
    "padded": (Padded, {"separable_conv2d": 2}),
    "dilated pointwise": (DilatedPointwise, SEPARABLE),
    "pyramid": (Pyramid, {"aspp": 1}),
    "pyramid, pooling first": (lambda: Pyramid(True), {"aspp": 1}),
    "pyramid, dense": (lambda: Pyramid(separable=False), {"aspp": 1}),
}


def _input(layout: torch.memory_format = torch.channels_last) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 8, 13, 15).to(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=("channels_last", "contiguous"))
@pytest.mark.parametrize("name", CASES)
def test_trap(name: str, layout: torch.memory_format) -> None:
    make, expected = CASES[name]
    torch.manual_seed(0)
    assert_agree(make(), _input(layout), expected, layout)


def test_shared_weights() -> None:
    torch.manual_seed(0)
    assert_agree(SharedWeights(), _input(), {"separable_conv2d": 2, "batch_norm_act": 2})


@pytest.mark.parametrize("freeze", ("parameters", "evaluation", "momentum", "untracked", "plain"))
def test_norms_that_are_not_the_usual_ones(freeze: str) -> None:
    def prepare(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                if freeze == "parameters":
                    module.requires_grad_(False)
                elif freeze == "evaluation":
                    module.running_mean.normal_()
                    module.eval()
                elif freeze == "momentum":
                    module.momentum = None
        model.training = True

    torch.manual_seed(0)
    model = nn.Sequential(Separable(), InPlaceSum())
    if freeze in ("untracked", "plain"):
        for block, name in ((model[0], "1"), (model[1], "bn1")):
            norm = nn.BatchNorm2d(
                8, affine=freeze != "plain", track_running_stats=freeze != "untracked"
            )
            setattr(block, name, norm)
    expected = {"separable_conv2d": 1, "batch_norm_act": 2}
    assert_agree(model, _input(), expected, prepare=prepare)


def test_autocast_agrees_with_itself() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Separable(), InPlaceSum(), Pyramid())
    ours = dk.accelerate(copy.deepcopy(model))
    x = _input()
    exact = copy.deepcopy(model).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = model(x.clone()), ours(x.clone())
    assert got.dtype == expected.dtype
    allowed = 2 * float((expected - exact).norm()) + 2**-9 * float(exact.norm())
    assert float((got - exact).norm()) <= allowed


def test_unbatched_input_runs() -> None:
    model = nn.Sequential(conv(8, 8, 3, groups=8), conv(8, 4))
    x = _input()[0]
    expected = model(x)
    assert counts(dk.accelerate(model)) == SEPARABLE
    torch.testing.assert_close(model(x), expected)


def test_a_norm_by_itself_is_served() -> None:
    torch.manual_seed(0)
    assert_agree(nn.Sequential(conv(8, 8, 3), bn(8)), _input(), {"batch_norm_act": 1})
