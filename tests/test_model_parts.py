"""ASPP, decoder and cost of the model against stock PyTorch and published numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from deeplabv3plus import DeepLabV3Plus
from deeplabv3plus.aspp import ASPP
from deeplabv3plus.decoder import Decoder
from deeplabv3plus.layers import SeparableConv2d
from models import batch, randomise_norms, small
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import dlv3p_kernels as dk


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def multiply_adds(model: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of all convolutions, depthwise ones included, for one image."""
    with dk.backend("reference"), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, height, width))
    return counter.get_total_flops() // 2


# The original's published numbers (its model zoo; the first also in table 5 of the paper). They
# come from a profiler that counts a little besides convolutions: most of the excess does not grow
# with the image, so it is the smaller in proportion the larger the input.
@pytest.mark.parametrize(
    ("classes", "output_stride", "sizes", "published", "excess"),
    [
        (21, 16, [(513, 513)], 54.17e9, 0.003),
        (19, 16, [(1025, 2049)], 418.64e9, 0.001),
        # six scales from 0.5 to 1.75, each also mirrored
        (21, 8, [(s, s) for s in (257, 385, 513, 641, 769, 897)] * 2, 3055.35e9, 0.0015),
    ],
)
def test_multiply_adds_of_xception65_are_the_published_ones(
    classes: int,
    output_stride: int,
    sizes: list[tuple[int, int]],
    published: float,
    excess: float,
) -> None:
    with FakeTensorMode(), torch.no_grad():
        model = DeepLabV3Plus("xception65", classes, output_stride).eval()
        cost = {size: multiply_adds(model, *size) for size in set(sizes)}
    total = sum(cost[size] for size in sizes)
    assert 1 <= published / total <= 1 + excess, f"{total / 1e9:.3f} billion"


def test_multiply_adds_and_parameters_exactly() -> None:
    with FakeTensorMode(), torch.no_grad():
        model = DeepLabV3Plus("xception65").eval()
        assert multiply_adds(model, 513, 513) == 54_035_303_024
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # trunk; ASPP: pooling, 1x1, three separable, projection; decoder: 48, 304, 256, classes
    separable = 2048 * 9 + 2 * 2048 + 2048 * 256 + 2 * 256
    aspp = 2 * (2048 * 256 + 512) + 3 * separable + 1280 * 256 + 512
    decoder = (256 * 48 + 96) + (304 * 9 + 608 + 304 * 256 + 512)
    decoder += (256 * 9 + 512 + 256 * 256 + 512) + (256 * 21 + 21)
    assert parameters == 37_867_312 + aspp + decoder


def stock_bn(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return F.batch_norm(
        x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=1e-5
    )


def stock_separable(layer: SeparableConv2d, x: Tensor, rate: int) -> Tensor:
    x = F.conv2d(x, layer.depthwise.weight, None, 1, rate, rate, groups=x.shape[1])
    x = F.conv2d(F.relu(stock_bn(layer.depthwise_bn, x)), layer.pointwise.weight)
    return F.relu(stock_bn(layer.pointwise_bn, x))


def stock_conv(layer: nn.Module, x: Tensor) -> Tensor:
    return F.relu(stock_bn(layer.bn, F.conv2d(x, layer.conv.weight)))


def stock_aspp(aspp: ASPP, rates: tuple[int, ...], x: Tensor) -> Tensor:
    pooled = stock_conv(aspp.image_pooling, F.adaptive_avg_pool2d(x, 1))
    pooled = F.interpolate(pooled, x.shape[-2:], mode="bilinear", align_corners=True)
    atrous = [
        stock_separable(branch, x, rate) for branch, rate in zip(aspp.atrous, rates, strict=True)
    ]
    return stock_conv(aspp.projection, torch.cat([pooled, stock_conv(aspp.conv1x1, x), *atrous], 1))


def stock_decoder(decoder: Decoder, align_corners: bool, x: Tensor, low_level: Tensor) -> Tensor:
    low_level = stock_conv(decoder.low_level_projection, low_level)
    x = F.interpolate(x, low_level.shape[-2:], mode="bilinear", align_corners=align_corners)
    x = stock_separable(decoder.conv0, torch.cat([x, low_level], 1), 1)
    x = stock_separable(decoder.conv1, x, 1)
    return F.conv2d(x, decoder.classifier.weight, decoder.classifier.bias)


def assert_same(module: nn.Module, stock: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Same output and same gradients of inputs and parameters, in float64."""
    wanted = [*(x.requires_grad_() for x in inputs), *module.parameters()]
    results = []
    for function in (module, stock):
        out = function(*inputs)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        results.append([out, *torch.autograd.grad((out * weights).sum(), wanted)])
    for ours, theirs in zip(*results, strict=True):
        assert theirs.any()
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rates", [(6, 12, 18), (2,)])
def test_aspp_is_the_stock_one(rates: tuple[int, ...]) -> None:
    aspp = ASPP(6, rates, channels=4).double().eval()
    randomise_norms(aspp)
    x = torch.randn(2, 6, 9, 13, dtype=torch.float64)
    assert_same(aspp, lambda x: stock_aspp(aspp, rates, x), x)


@pytest.mark.parametrize("align_corners", [True, False])
def test_decoder_is_the_stock_one(align_corners: bool) -> None:
    decoder = (
        Decoder(6, 5, 3, low_level_channels=2, channels=4, align_corners=align_corners)
        .double()
        .eval()
    )
    randomise_norms(decoder)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    low_level = torch.randn(2, 5, 13, 17, dtype=torch.float64)
    assert_same(decoder, lambda *maps: stock_decoder(decoder, align_corners, *maps), x, low_level)


@pytest.mark.parametrize("align_corners", [True, False])
def test_logits_are_resized_to_the_input(align_corners: bool) -> None:
    model = small(align_corners=align_corners).eval()
    small_logits: list[Tensor] = []
    model.decoder.register_forward_hook(lambda _m, _i, out: small_logits.append(out))
    images, _ = batch()
    expected = (images.shape[-2:], None, "bilinear", align_corners)
    with torch.no_grad():
        assert torch.equal(model(images), F.interpolate(small_logits[0], *expected))


def test_same_results_on_stock_layers() -> None:
    model = small(dropout=0.0).double()
    images, target = batch()
    twin = copy.deepcopy(model)
    model.loss(images.double(), target).backward()
    with dk.backend("reference"):
        twin.loss(images.double(), target).backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
