"""Behaviour of the model: sizes, training, loss, prediction, formats, compilation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from deeplabv3plus.aspp import ASPP
from models import CLASSES, batch, randomise_norms, small
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


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
    loss = model.loss(images, target)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, bn.buffers(), strict=True))


def test_a_training_batch_of_one_is_pooled_as_in_evaluation() -> None:
    aspp = small().aspp
    for norm in (layer for layer in aspp.modules() if isinstance(layer, nn.BatchNorm2d)):
        randomise_norms(norm)
        norm.eval()
    aspp.dropout.p = 0.0
    x = torch.randn(1, 320, 5, 4)
    pooled_by_running = aspp(x)
    assert torch.equal(pooled_by_running, aspp.eval()(x))


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


@pytest.mark.parametrize("weighted", (False, True))
def test_loss_is_the_stock_one(weighted: bool) -> None:
    model = small(dropout=0.0).double()
    images, target = batch()
    target[:, :7] = 255
    weight = torch.rand(model.config["num_classes"]).double() if weighted else None
    results = []
    for name in ("ours", "stock"):
        twin = copy.deepcopy(model)
        if name == "ours":
            loss = twin.loss(images.double(), target.to(torch.uint8), weight=weight)
        else:
            loss = F.cross_entropy(twin(images.double()), target, weight, ignore_index=255)
        loss.backward()
        results.append([loss, *(p.grad for p in twin.parameters())])
    for ours, stock in zip(*results, strict=True):
        torch.testing.assert_close(ours, stock)


class Shapes(TorchDispatchMode):
    """Collects the shapes of all results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.seen |= {tuple(t.shape) for t in tree_leaves(result) if isinstance(t, torch.Tensor)}
        return result


def test_loss_and_classes_need_no_logits_of_the_size_of_the_images() -> None:
    model = small()
    images, target = batch(2, 161, 129)
    resized = (2, model.config["num_classes"], 161, 129)
    with Shapes() as shapes:
        model.loss(images, target).backward()
        model.predict(images)
    assert resized not in shapes.seen
    with shapes:
        model(images)
    assert resized in shapes.seen


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
