"""The DeepLabv3+ model: its parts against stock PyTorch, its cost, its behaviour."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from deeplabv3plus import DeepLabV3Plus
from deeplabv3plus.aspp import ASPP
from deeplabv3plus.decoder import Decoder
from deeplabv3plus.layers import SeparableConv2d
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import dlv3p_kernels as dk

CLASSES = 5
SMALL: dict[str, Any] = {
    "encoder": "mobilenet_v2",
    "num_classes": CLASSES,
    "aspp_channels": 16,
    "low_level_channels": 8,
    "decoder_channels": 16,
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def small(**kwargs: Any) -> DeepLabV3Plus:
    return DeepLabV3Plus(**{**SMALL, **kwargs})


def batch(n: int = 2, height: int = 65, width: int = 49) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, height, width), torch.randint(0, CLASSES, (n, height, width))


def randomise_norms(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value in (layer.running_var, layer.weight.data):
                value.uniform_(0.5, 1.5)
            for value in (layer.running_mean, layer.bias.data):
                value.uniform_(-0.2, 0.2)


# -- cost ------------------------------------------------------------------------------------------


def multiply_adds(model: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of all convolutions, depthwise ones included, for one image."""
    total = 0

    def count(layer: nn.Conv2d, _inputs: object, output: Tensor) -> None:
        nonlocal total
        total += layer.weight[0].numel() * output.numel()

    handles = [
        layer.register_forward_hook(count)
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    model(torch.empty(1, 3, height, width))
    for handle in handles:
        handle.remove()
    return total


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


# -- parts against stock PyTorch -------------------------------------------------------------------


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


# -- arguments -------------------------------------------------------------------------------------


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


# -- behaviour -------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (31, 64), (65, 33)])
def test_any_size(size: tuple[int, int], output_stride: int) -> None:
    model = small(output_stride=output_stride).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 3, *size))
    assert logits.shape == (1, CLASSES, *size)
    assert logits.isfinite().all()


def test_empty_batch() -> None:
    model = small().eval()
    images, target = batch(0)
    assert model(images).shape == (0, CLASSES, 65, 49)
    assert model.predict(images).shape == (0, 65, 49)
    assert model.loss(images, target) == 0


def test_a_training_batch_of_one_works() -> None:
    model = small()
    images, target = batch(1)
    bn = model.aspp.image_pooling.bn
    randomise_norms(bn)
    before = [value.clone() for value in bn.buffers()]
    x = torch.randn(1, 320, 5, 4)
    pooled = model.aspp.image_pooling(x)
    loss = model.loss(images, target)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, bn.buffers(), strict=True))
    assert torch.equal(pooled, model.aspp.image_pooling.eval()(x))


def test_two_images_update_the_pooling_statistics() -> None:
    model = small()
    model(batch()[0])
    assert model.aspp.image_pooling.bn.num_batches_tracked == 1
    assert model.aspp.image_pooling.bn.running_mean.any()


def test_one_pixel_cannot_be_trained_on() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"images: batch normalisation cannot train .* 16x9"):
        model(torch.randn(1, 3, 16, 9))
    assert model(torch.randn(1, 3, 17, 9)).isfinite().all()
    assert model(torch.randn(2, 3, 16, 9)).isfinite().all()


def test_loss_is_the_stock_one() -> None:
    model = small(dropout=0.0).double()
    images, target = batch()
    target[:, :7] = 255
    results = []
    for name in ("ours", "stock"):
        twin = copy.deepcopy(model)
        if name == "ours":
            loss = twin.loss(images.double(), target.to(torch.uint8))
        else:
            loss = F.cross_entropy(twin(images.double()), target, ignore_index=255)
        loss.backward()
        results.append([loss, *(p.grad for p in twin.parameters())])
    for ours, stock in zip(*results, strict=True):
        torch.testing.assert_close(ours, stock)


def test_loss_of_ignored_pixels_alone_is_zero() -> None:
    model = small()
    images, target = batch()
    loss = model.loss(images, torch.full_like(target, -100), ignore_index=-100)
    loss.backward()
    assert loss == 0
    assert all(not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"encoder": "resnet50", "output_stride": 8, "multi_grid": (1, 2, 4)},
        {"encoder": "xception41"},
    ],
)
def test_gradients_reach_every_parameter(arguments: dict[str, Any]) -> None:
    model = small(**arguments)
    model.loss(*batch(2, 33, 40)).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_predict() -> None:
    model = small()
    model.decoder.eval()
    images, _ = batch()
    modes = [module.training for module in model.modules()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    classes = model.predict(images)
    assert classes.dtype == torch.int64 and not classes.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert torch.equal(classes, model.eval()(images).argmax(1))


def test_channels_last_stays_channels_last() -> None:
    model = small().to(memory_format=torch.channels_last).eval()
    images = batch()[0].to(memory_format=torch.channels_last)
    wrong: list[str] = []

    def check(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], out: Any) -> None:
            maps = [*inputs, *(out if isinstance(out, tuple) else (out,))]
            if not all(m.is_contiguous(memory_format=torch.channels_last) for m in maps):
                wrong.append(name)

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(check(name))
    with torch.no_grad():
        logits = model(images)
    assert wrong == []
    torch.testing.assert_close(logits, model(images.contiguous()))


def test_autocast() -> None:
    model = small()
    images, target = batch()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
        loss = model.loss(images, target)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_bfloat16_and_float64_weights() -> None:
    images, _ = batch()
    model = small().eval()
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(images.double())
        assert exact.dtype == torch.float64
        torch.testing.assert_close(model(images), exact.float())
        assert model.bfloat16()(images.bfloat16()).dtype == torch.bfloat16


def assert_compiles(module: nn.Module, call: Callable[[nn.Module], Tensor]) -> None:
    """The call is one graph, with the results, gradients and buffers of eager mode."""
    results = []
    for compiled in (False, True):
        twin = copy.deepcopy(module)
        function = torch.compile(call, fullgraph=True, backend="aot_eager") if compiled else call
        result = function(twin)
        result.backward()
        results.append([result, *(p.grad for p in twin.parameters()), *twin.buffers()])
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager)


def test_compile() -> None:
    images, target = batch(2, 33, 40)
    model = small(dropout=0.0).double()
    assert_compiles(model, lambda model: model.loss(images.double(), target))


def test_compile_with_a_batch_of_one() -> None:
    x = torch.randn(1, 8, 5, 4, dtype=torch.float64)
    aspp = ASPP(8, (1, 2), channels=4, dropout=0.0).double()
    assert_compiles(aspp, lambda aspp: aspp(x).square().sum())
