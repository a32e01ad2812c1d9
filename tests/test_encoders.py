"""Encoders: parameters, strides, rates, low-level features."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from deeplabv3plus.encoders import ENCODERS, Encoder, build_encoder
from deeplabv3plus.encoders.base import atrous_schedule
from deeplabv3plus.encoders.xception import XceptionModule
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import dlv3p_kernels as dk


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
    assert {conv.pre_activation for conv in last.children()} == {"identity"}


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
