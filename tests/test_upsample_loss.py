"""Hard pixels, layer, errors, memory and choice of back end of the loss on resized logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from upsample_cases import IGNORE, NCHW, NHWC, UpsampleCase, inputs, stock

import dlv3p_kernels as dk
from dlv3p_kernels import dispatch
from dlv3p_kernels.bench import memory

CASE = UpsampleCase("loss", 19, (9, 11), (33, 41), weight=True)
every_backend = pytest.mark.parametrize("backend", ("cpu", "reference"))


@pytest.fixture
def chosen(backend: str, native: None) -> Iterator[None]:
    """The kernels, or stock PyTorch."""
    with dk.backend(backend):
        yield


# --- hard pixels ----------------------------------------------------------------------------------


def detectron2(losses: Tensor, share: float) -> Tensor:
    """`DeepLabCE` of detectron2's DeepLab project, after its criterion."""
    if share == 1.0:
        return losses.mean()
    values, _ = torch.topk(losses.contiguous().view(-1), int(share * losses.numel()))
    return values.mean()


@every_backend
@pytest.mark.parametrize("share", (0.05, 0.2, 0.9, 1.0))
def test_highest_losses(share: float, backend: str, chosen: None) -> None:
    logits, target, weight, _ = inputs(CASE, torch.float64)
    found = []
    for mined in (True, False):
        leaf = logits.detach().requires_grad_()
        choice = {"weight": weight, "ignore_index": IGNORE}
        loss = (
            dk.upsample_cross_entropy(leaf, target, top_k_percent_pixels=share, **choice)
            if mined
            else detectron2(stock(leaf, target, reduction="none", **choice), share)
        )
        found.append((loss, *torch.autograd.grad(loss, leaf)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def mmsegmentation(logits: Tensor, target: Tensor, threshold: float, min_kept: int) -> Tensor:
    """Which pixels `OHEMPixelSampler.sample` of mmsegmentation keeps."""
    batch_kept = min_kept * target.size(0)
    valid = target != IGNORE
    probability = F.softmax(logits, 1).gather(1, torch.where(valid, target, 0)[:, None])[:, 0]
    sort_prob, _ = probability[valid].sort()
    min_threshold = sort_prob[min(batch_kept, sort_prob.numel() - 1)] if valid.any() else 0.0
    return valid & (probability < max(float(min_threshold), threshold))


@every_backend
@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize(
    ("threshold", "least"), ((0.7, 1), (0.05, 300), (1e-9, 100), (1.0, 1), (0.3, 0))
)
def test_unlikely_pixels(
    threshold: float, least: int, smoothing: float, backend: str, chosen: None
) -> None:
    logits, target, weight, _ = inputs(CASE, torch.float64)
    kept = mmsegmentation(
        F.interpolate(logits, CASE.out, mode="bilinear"), target, threshold, least
    )
    assert 0 < kept.sum() < kept.numel()
    found = []
    for given, mining in (
        (target, {"ohem_threshold": threshold, "ohem_min_kept": least}),
        (torch.where(kept, target, IGNORE), {}),
    ):
        leaf = logits.detach().requires_grad_()
        loss = dk.upsample_cross_entropy(
            leaf, given, weight=weight, ignore_index=IGNORE, label_smoothing=smoothing, **mining
        )
        found.append((loss, *torch.autograd.grad(loss, leaf)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@every_backend
@pytest.mark.parametrize("least", (10**6, 33 * 41))
def test_few_pixels_are_all_kept(least: int, backend: str, chosen: None) -> None:
    logits, target, _, _ = inputs(CASE, torch.float64)
    plain, mined = (
        dk.upsample_cross_entropy(logits, target, ignore_index=IGNORE, **mining)
        for mining in ({}, {"ohem_threshold": 1e-9, "ohem_min_kept": least})
    )
    torch.testing.assert_close(mined, plain)


@every_backend
@pytest.mark.parametrize(
    "mining", ({"top_k_percent_pixels": 0.2}, {"ohem_threshold": 0.7}), ids=str
)
def test_nothing_to_mine_from(mining: dict[str, float], backend: str, chosen: None) -> None:
    logits = torch.randn(2, 5, 9, 9, requires_grad=True)
    target = torch.full((2, 33, 33), IGNORE)
    loss = dk.upsample_cross_entropy(
        logits, target, ignore_index=IGNORE, all_ignored="zero", **mining
    )
    assert loss == 0 and (torch.autograd.grad(loss, logits)[0] == 0).all()


# --- layer ----------------------------------------------------------------------------------------


def test_layer_is_the_stock_layer_on_resized_logits(native: None) -> None:
    logits, target, weight, _ = inputs(CASE, torch.float32)
    ours = dk.nn.UpsampleCrossEntropyLoss(weight, IGNORE, label_smoothing=0.1, align_corners=True)
    theirs = nn.CrossEntropyLoss(weight, ignore_index=IGNORE, label_smoothing=0.1)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    z = F.interpolate(logits, CASE.out, mode="bilinear", align_corners=True)
    torch.testing.assert_close(ours(logits, target), theirs(z, target))
    mined = dk.nn.UpsampleCrossEntropyLoss(
        weight, IGNORE, "sum", ohem_threshold=0.4, ohem_min_kept=7, all_ignored="zero"
    )
    expected = dk.upsample_cross_entropy(
        logits, target, weight=weight, ignore_index=IGNORE, reduction="sum",
        ohem_threshold=0.4, ohem_min_kept=7,
    )  # fmt: skip
    assert torch.equal(mined(logits, target), expected)


# --- errors ---------------------------------------------------------------------------------------

LOGITS, TARGET = torch.zeros(2, 5, 4, 4), torch.zeros(2, 8, 8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("error", "words", "changes"),
    (
        (TypeError, "logits must be a torch.Tensor, got int", {"logits": 3}),
        (TypeError, "logits must be floating point", {"logits": LOGITS.long()}),
        (ValueError, "logits must have 4 dimensions", {"logits": LOGITS[0]}),
        (ValueError, "logits must have at least one class", {"logits": LOGITS[:, :0]}),
        (TypeError, "target must be a torch.Tensor, got NoneType", {"target": None}),
        (TypeError, "target must be one of .*, got torch.float32", {"target": TARGET.float()}),
        (TypeError, "target must be one of .*, got torch.int16", {"target": TARGET.short()}),
        (ValueError, r"target must be \(N, H, W\) with N = 2", {"target": TARGET[:1]}),
        (ValueError, r"target must be \(N, H, W\)", {"target": TARGET[:, None]}),
        (ValueError, r"target must be .* H, W >= 1", {"target": TARGET[:, :0]}),
        (ValueError, "target must be on logits' device", {"target": TARGET.to("meta")}),
        (ValueError, "weight must have 5 elements, got 4", {"weight": torch.ones(4)}),
        (TypeError, "weight must be torch.float32", {"weight": torch.ones(5).double()}),
        (ValueError, "weight must be on x's device", {"weight": torch.ones(5, device="meta")}),
        (ValueError, 'reduction must be "mean", "sum" or "none"', {"reduction": "max"}),
        (ValueError, r"label_smoothing must be in \[0, 1\], got 1.5", {"label_smoothing": 1.5}),
        (ValueError, 'all_ignored must be "nan" or "zero"', {"all_ignored": "one"}),
        (ValueError, r"top_k_percent_pixels must be in \(0, 1\]", {"top_k_percent_pixels": 0.0}),
        (ValueError, r"ohem_threshold must be in \(0, 1\]", {"ohem_threshold": 1.1}),
        (ValueError, "ohem_min_kept must be at least 0", {"ohem_min_kept": -1}),
        (
            ValueError,
            "exclude each other",
            {"ohem_threshold": 0.5, "top_k_percent_pixels": 0.5},
        ),
        (
            ValueError,
            'ohem_threshold needs the reduction "mean" or "sum"',
            {"ohem_threshold": 0.5, "reduction": "none"},
        ),
    ),
)
def test_bad_arguments_are_named(
    error: type[Exception], words: str, changes: dict[str, object]
) -> None:
    arguments = {"logits": LOGITS, "target": TARGET, **changes}
    with pytest.raises(error, match=f"upsample_cross_entropy: .*{words}|{words}"):
        dk.upsample_cross_entropy(**arguments)


@pytest.mark.parametrize("value", (5, 255, -1, -100, 2**40, -(2**40)))
@pytest.mark.parametrize("dtype", (torch.int64, torch.int32, torch.uint8), ids=str)
def test_a_class_out_of_bounds_is_named(dtype: torch.dtype, value: int, native: None) -> None:
    if not torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max:
        return
    target = TARGET.to(dtype).clone()
    target[1, 7, 7] = value
    logits = LOGITS.clone().requires_grad_()
    words = f"target must hold classes from 0 to 4 or ignore_index -2, got {value}$"
    with pytest.raises(IndexError, match=words):
        dk.upsample_cross_entropy(logits, target, ignore_index=-2)
    loss = dk.upsample_cross_entropy(logits, target, ignore_index=value)
    torch.testing.assert_close(loss, torch.tensor(5.0).log())


@pytest.mark.parametrize(
    ("error", "words", "changes"),
    (
        (ValueError, "logits must have 4 dimensions", {"logits": LOGITS[0]}),
        (ValueError, "logits must have at least one class", {"logits": LOGITS[..., :0]}),
        (ValueError, "size must be at least 1", {"size": (0, 4)}),
        (ValueError, "size must be an int or 2 ints", {"size": (4, 4, 4)}),
        (TypeError, "dtype must be one of", {"dtype": torch.int32}),
        (
            ValueError,
            "uint8 holds 256 classes, logits has 257",
            {"logits": torch.zeros(1, 257, 2, 2), "dtype": torch.uint8},
        ),
    ),
)
def test_bad_arguments_of_the_classes_are_named(
    error: type[Exception], words: str, changes: dict[str, object]
) -> None:
    with pytest.raises(error, match=f"upsample_argmax: .*{words}"):
        dk.upsample_argmax(**{"logits": LOGITS, "size": 8, **changes})


# --- what stock PyTorch serves --------------------------------------------------------------------


def test_empty_batches() -> None:
    logits, target = LOGITS[:0].requires_grad_(), TARGET[:0]
    for reduction in ("mean", "sum", "none"):
        ours = dk.upsample_cross_entropy(logits, target, reduction=reduction)
        theirs = stock(logits, target, reduction=reduction)
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    zero = dk.upsample_cross_entropy(logits, target, all_ignored="zero")
    assert zero == 0 and torch.autograd.grad(zero, logits)[0].shape == logits.shape
    assert dk.upsample_argmax(logits, 9).shape == (0, 9, 9)
    ops = dispatch.operators("cpu")
    assert ops.upsample_argmax(logits, (9, 9), False, True, True)[1].shape == (0, 9, 9)
    assert ops.upsample_cross_entropy(logits, target, None, -100, 0.0, False)[0].shape == (0, 8, 8)


def test_a_weight_that_requires_gradients_is_refused_as_by_stock() -> None:
    logits, target, weight, _ = inputs(CASE, torch.float32)
    leaf = weight.detach().requires_grad_()
    with pytest.raises(RuntimeError, match="not differentiable with respect to argument 'weight'"):
        dk.upsample_cross_entropy(logits, target, weight=leaf, ignore_index=IGNORE)


def test_choice_and_explanation(native: None) -> None:
    few = torch.zeros(1, 2, 4, 4), torch.zeros(1, 16, 16, dtype=torch.int64)
    many = torch.zeros(2, 21, 17, 17), torch.zeros(2, 65, 65, dtype=torch.int64)
    shrunk = torch.zeros(2, 21, 129, 129), torch.zeros(2, 33, 33, dtype=torch.int64)
    with dk.backend("auto"):
        said = [dk.explain(dk.upsample_cross_entropy, *pair) for pair in (few, many, shrunk)]
        assert [s.chosen for s in said] == ["reference", "cpu", "reference"]
        assert "512 resized logits are few" in str(said[0])
        assert "more than 8 times as many" in str(said[2])
        said = [dk.explain(dk.upsample_argmax, x, t.shape[-2:]) for x, t in (few, many, shrunk)]
        assert [s.chosen for s in said] == ["cpu", "cpu", "reference"]


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", (NCHW, NHWC), ids=("nchw", "nhwc"))
@pytest.mark.parametrize("weighted", (True, False))
@pytest.mark.parametrize("classes", (2, 21, 150))
def test_memory_does_not_grow_with_the_classes(
    classes: int, weighted: bool, layout: torch.memory_format, native: None
) -> None:
    """At most 8 bytes per pixel beside the gradient of the logits, however many classes."""
    logits = torch.randn(2, classes, 33, 33).contiguous(memory_format=layout).requires_grad_()
    target = torch.randint(classes, (2, 129, 129))
    weight = torch.rand(classes) if weighted else None
    gradient = logits.numel() * logits.element_size()
    scalars = 4096

    def peak_of(function: Callable[..., Tensor]) -> int:
        return memory.of_step(
            lambda: function(logits, target, weight=weight),
            lambda loss: torch.autograd.grad(loss, logits),
            (),
        ).peak

    assert peak_of(dk.upsample_cross_entropy) <= gradient + 8 * target.numel() + scalars
    assert peak_of(stock) > 4 * classes * target.numel()  # which is counted, too
    of_classes = memory.of_step(lambda: dk.upsample_argmax(logits, (129, 129)), lambda t: None, ())
    assert of_classes.peak <= 8 * target.numel() + scalars
