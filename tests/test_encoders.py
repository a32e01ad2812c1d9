"""Encoders: parameters, strides, rates, low-level features, checkpoints of classifiers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from deeplabv3plus.encoders import ENCODERS, Encoder, build_encoder
from deeplabv3plus.encoders.base import atrous_schedule
from deeplabv3plus.encoders.timm_encoder import swap_depthwise
from deeplabv3plus.encoders.xception import XceptionModule
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import dlv3p_kernels as dk

DATA = Path(__file__).parent / "data"


def on_meta(name: str, *args: object, **kwargs: object) -> Encoder:
    with torch.device("meta"):
        return build_encoder(name, *args, **kwargs)  # type: ignore[arg-type]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def rates(module: nn.Module) -> list[int]:
    """Atrous rates of the 3x3 convolutions, in order."""
    return [
        layer.dilation[0]
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)
    ]


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


# Classifiers with 1000 classes: torchvision's documentation; timm's results table (26.97, 39.92
# and 42.34 million). The second number is what the classifier has beyond the encoder.
PUBLISHED = {
    "resnet50": (25_557_032, 2048 * 1000 + 1000),
    "resnet101": (44_549_160, 2048 * 1000 + 1000),
    "mobilenet_v2": (3_504_872, 1280 * 1000 + 1000 + 320 * 1280 + 2 * 1280),
    "xception41": (26_969_560, 2048 * 1000 + 1000),
    "xception65": (39_916_312, 2048 * 1000 + 1000),
    "xception71": (42_338_736, 2048 * 1000 + 1000),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    total, classifier = PUBLISHED[name]
    assert parameters(on_meta(name)) == total - classifier


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", ENCODERS)
def test_strides_and_channels(name: str, output_stride: int) -> None:
    height, width = 75, 130
    with FakeTensorMode(), torch.no_grad():
        encoder = build_encoder(name, output_stride, in_channels=4)
        low_level, encoded = encoder(torch.empty(2, 4, height, width))
    assert low_level.shape == (2, encoder.low_level_channels, -(-height // 4), -(-width // 4))
    assert encoded.shape == (
        2,
        encoder.out_channels,
        -(-height // output_stride),
        -(-width // output_stride),
    )


@pytest.mark.parametrize(
    ("output_stride", "middle", "exit1", "exit2"), [(8, 2, 2, 4), (16, 1, 1, 2), (32, 1, 1, 1)]
)
@pytest.mark.parametrize(
    ("name", "entry", "units"), [("xception41", 3, 8), ("xception65", 3, 16), ("xception71", 5, 16)]
)
def test_xception_rates(
    name: str, entry: int, units: int, output_stride: int, middle: int, exit1: int, exit2: int
) -> None:
    encoder = on_meta(name, output_stride)
    assert rates(encoder.conv1_1) + rates(encoder.conv1_2) == [1, 1]
    assert rates(encoder.entry_flow) == [1] * 3 * entry
    assert rates(encoder.middle_flow) == [middle] * 3 * units
    assert rates(encoder.exit_flow) == [exit1] * 3 + [exit2] * 3


def test_xception_multi_grid_multiplies_the_last_three_rates() -> None:
    assert rates(on_meta("xception65", 16, multi_grid=(1, 2, 4)).exit_flow) == [1, 1, 1, 2, 4, 8]


@pytest.mark.parametrize(
    ("output_stride", "multi_grid", "layer3", "layer4"),
    [
        (32, None, [1] * 6, [1, 1, 1]),
        (16, None, [1] * 6, [1, 2, 2]),
        (8, None, [1] + [2] * 5, [2, 4, 4]),
        (16, (1, 2, 4), [1] * 6, [2, 4, 8]),
        (8, (1, 2, 4), [1] + [2] * 5, [4, 8, 16]),
        (32, (1, 2, 4), [1] * 6, [1, 2, 4]),
    ],
)
def test_resnet_rates(
    output_stride: int,
    multi_grid: tuple[int, ...] | None,
    layer3: list[int],
    layer4: list[int],
) -> None:
    encoder = on_meta("resnet50", output_stride, multi_grid=multi_grid)
    assert rates(encoder.layer1) + rates(encoder.layer2) == [1] * 7
    assert rates(encoder.layer3) == layer3
    assert rates(encoder.layer4) == layer4


@pytest.mark.parametrize(
    ("output_stride", "expected"),
    [(32, [1] * 18), (16, [1] * 15 + [2] * 3), (8, [1] * 8 + [2] * 7 + [4] * 3)],
)
def test_mobilenet_rates(output_stride: int, expected: list[int]) -> None:
    assert rates(on_meta("mobilenet_v2", output_stride)) == expected


def test_schedule_keeps_the_striding_unit_at_the_rate_before() -> None:
    assert atrous_schedule([2, 1, 2, 1, 2, 1], 4, start=2) == [
        (2, 1),
        (1, 1),
        (1, 1),
        (1, 2),
        (1, 2),
        (1, 4),
    ]


@pytest.mark.parametrize("name", ENCODERS)
def test_depthwise_layers_are_ours_and_keep_the_size(name: str) -> None:
    layers = [
        layer
        for layer in on_meta(name, 8).modules()
        if isinstance(layer, nn.Conv2d) and layer.groups > 1
    ]
    modules = {"xception41": 3 + 8 + 2, "xception65": 3 + 16 + 2, "xception71": 5 + 16 + 2}
    expected = {name: 3 * count for name, count in modules.items()} | {"mobilenet_v2": 17}
    assert len(layers) == expected.get(name, 0)
    for layer in layers:
        assert type(layer) is dk.nn.DepthwiseConv2d
        assert layer.padding == layer.dilation


def _stock_module(module: XceptionModule, x: Tensor, stride: int, rate: int) -> Tensor:
    """An entry or middle-flow module written out: ReLU, 3x3 depthwise, BN, 1x1, BN, three times."""

    def bn(layer: nn.BatchNorm2d, y: Tensor) -> Tensor:
        return F.batch_norm(
            y, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=1e-3
        )

    y = x
    for i in (1, 2, 3):
        conv = getattr(module, f"separable_conv{i}")
        step = stride if i == 3 else 1
        # TensorFlow pads explicitly, k_eff - 1 in all, and convolves "VALID".
        total = 2 * rate
        y = F.pad(F.relu(y), (total // 2, total - total // 2) * 2)
        y = F.conv2d(y, conv.depthwise.weight, None, step, 0, rate, groups=y.shape[1])
        y = F.conv2d(bn(conv.depthwise_bn, y), conv.pointwise.weight)
        y = bn(conv.pointwise_bn, y)
    if module.skip == "conv":
        x = bn(module.shortcut.bn, F.conv2d(x, module.shortcut.conv.weight, stride=stride))
    return y + x


@pytest.mark.parametrize(
    ("skip", "stride", "rate"), [("conv", 2, 1), ("sum", 1, 2), ("conv", 1, 2)]
)
def test_xception_module_is_the_written_out_one(skip: str, stride: int, rate: int) -> None:
    torch.manual_seed(0)
    module = XceptionModule(8, (8, 8, 8), skip, stride, (rate,) * 3)  # type: ignore[arg-type]
    module.double().eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value in (layer.running_var, layer.weight.data):
                value.uniform_(0.5, 1.5)
            layer.running_mean.uniform_(-0.2, 0.2)
    x = torch.randn(2, 8, 12, 9, dtype=torch.float64)  # even and odd, half of it negative
    torch.testing.assert_close(module(x), _stock_module(module, x, stride, rate))


def test_last_xception_module_activates_inside_and_has_no_skip() -> None:
    torch.manual_seed(0)
    last = build_encoder("xception41").exit_flow[1]
    out = last(torch.randn(2, 1024, 3, 3))
    assert out.min() == 0
    assert last.skip == "none"
    assert not any(conv.pre_activation for conv in last.children())


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("xception41", "entry_flow.1.separable_conv2"),
        ("xception71", "entry_flow.2.separable_conv2"),
        ("resnet50", "layer1"),
        ("mobilenet_v2", "features.3"),
    ],
)
def test_low_level_features_come_from(name: str, module: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name)
    seen: list[Tensor] = []
    encoder.get_submodule(module).register_forward_hook(
        lambda _module, _inputs, out: seen.append(out.clone())
    )
    low_level, _ = encoder(torch.randn(1, 3, 33, 33))
    assert torch.equal(low_level, seen[0])
    # before the ReLU of what follows, except in ResNet
    assert (low_level.min() < 0) == (name != "resnet50")


def test_xception_batch_norm_eps() -> None:
    eps = {m.eps for m in on_meta("xception65").modules() if isinstance(m, nn.BatchNorm2d)}
    assert eps == {1e-3}


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
