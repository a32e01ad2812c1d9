"""Weights of classifiers in the encoders, and encoders from timm."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from deeplabv3plus.encoders import build_encoder
from deeplabv3plus.encoders.timm_encoder import swap_depthwise
from torch import Tensor, nn

import dlv3p_kernels as dk

DATA = Path(__file__).parent / "data"


def torchvision_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of `torchvision.models.NAME(weights=None).state_dict()`, torchvision 0.28."""
    lines = (DATA / f"torchvision_{name}.txt").read_text().splitlines()
    entries = (line.partition(" ") for line in lines)
    return {key: tuple(map(int, shape.split(","))) if shape else () for key, _, shape in entries}


def torchvision_weights(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(shape, generator=generator) if shape else torch.tensor(7)
        for key, shape in torchvision_shapes(name).items()
    }


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "mobilenet_v2"])
def test_torchvision_checkpoints_load(name: str) -> None:
    weights = torchvision_weights(name)
    encoder = build_encoder(name)
    encoder.load_torchvision(weights)
    own = encoder.state_dict()
    assert all(torch.equal(own[key], weights[key]) for key in own)
    left_out = {key.split(".")[0] for key in weights.keys() - own.keys() if "features" not in key}
    assert left_out == {"classifier" if name == "mobilenet_v2" else "fc"}


def test_checkpoints_without_batch_counters_load() -> None:
    weights = torchvision_weights("resnet50")
    old = {key: value for key, value in weights.items() if "num_batches" not in key}
    encoder = build_encoder("resnet50")
    encoder.load_torchvision(old)
    assert torch.equal(encoder.state_dict()["layer4.2.bn3.weight"], old["layer4.2.bn3.weight"])


def test_a_checkpoint_of_another_net_is_refused_before_anything_is_loaded() -> None:
    encoder = build_encoder("resnet50")
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    weights = torchvision_weights("resnet50")
    del weights["layer1.0.conv1.weight"]
    weights["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    weights["extra.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="does not fit ResNet") as error:
        encoder.load_torchvision(weights)
    assert "missing: layer1.0.conv1.weight" in str(error.value)
    assert "unexpected: extra.weight" in str(error.value)
    assert "another shape: conv1.weight" in str(error.value)
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


def test_unknown_encoders_are_refused() -> None:
    with pytest.raises(ValueError, match=r"xception65.*timm:NAME.*'resnet18'"):
        build_encoder("resnet18")
    with pytest.raises(ValueError, match="multi_grid works with"):
        build_encoder("mobilenet_v2", multi_grid=(1, 2, 4))


def test_without_timm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'pip install "dlv3p_kernels\[timm\]"'):
        build_encoder("timm:efficientnet_b0")


class PaddedConv2d(nn.Conv2d):
    """Stands for the subclasses of timm, which pad in their own forward."""


def test_swap_depthwise_keeps_parameters_and_results() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, 2, padding=2, dilation=2, groups=4),
        nn.Sequential(nn.Conv2d(4, 8, 5, groups=4, bias=False), nn.Conv2d(8, 4, 1)),
        PaddedConv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 3, groups=2),
    ).double()
    x = torch.randn(2, 4, 30, 31, dtype=torch.float64)
    expected, before = net(x), dict(net.named_parameters())
    net[0].eval()
    swap_depthwise(net)
    assert [type(layer).__name__ for layer in (net[0], net[1][0], net[1][1], net[2], net[3])] == [
        "DepthwiseConv2d",
        "DepthwiseConv2d",
        "Conv2d",
        "PaddedConv2d",
        "Conv2d",
    ]
    after = dict(net.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[key] is before[key] for key in before)
    assert not net[0].training and net[1][0].training
    torch.testing.assert_close(net(x), expected)


def test_timm_encoder() -> None:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    torch.manual_seed(0)
    encoder = build_encoder("timm:mobilenetv3_small_050", 16).eval()
    stock = timm.create_model("mobilenetv3_small_050", features_only=True, output_stride=16).eval()
    stock.load_state_dict(encoder.model.state_dict())
    x = torch.randn(1, 3, 65, 70)
    maps = stock(x)
    low_level, encoded = encoder(x)
    assert low_level.shape[1:] == (encoder.low_level_channels, 17, 18)
    assert encoded.shape[1:] == (encoder.out_channels, 5, 5)
    torch.testing.assert_close(encoded, maps[-1])
    assert any(isinstance(layer, dk.nn.DepthwiseConv2d) for layer in encoder.modules())
    with pytest.raises(ValueError, match="no model 'no_such_net'"):
        build_encoder("timm:no_such_net")
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 cannot be"):
        build_encoder("timm:vit_tiny_patch16_224", 16)
