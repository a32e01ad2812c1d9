"""The start of a decoder in existing models: a resize, a concatenation, a separable convolution."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from accelerate_agreement import assert_agree, counts
from accelerate_blocks import Separable, bn, conv
from torch import Tensor, nn

import dlv3p_kernels as dk

pytestmark = pytest.mark.usefixtures("one_thread", "native")
DECODER = {"decoder_conv2d": 1}


class Start(nn.Module):
    """A quarter of the input, resized beside the whole of it."""

    def __init__(
        self, resize: nn.Module | None = None, low_first: bool = False, pool: int = 4
    ) -> None:
        super().__init__()
        self.resize, self.low_first, self.pool = resize, low_first, pool
        self.low = nn.Sequential(conv(8, 4), bn(4), nn.ReLU(inplace=True))
        self.fuse = Separable(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        return self.joined(F.avg_pool2d(x, self.pool), low)

    def joined(self, x: Tensor, low: Tensor) -> Tensor:
        x = self.resized(x, low)
        return self.fuse(torch.cat([low, x] if self.low_first else [x, low], dim=1))

    def resized(self, x: Tensor, low: Tensor) -> Tensor:
        return self.resize(x)


class BySize(Start):
    def resized(self, x: Tensor, low: Tensor) -> Tensor:
        return F.interpolate(x, low.shape[-2:], mode="bilinear", align_corners=True)


class BySizes(Start):
    def resized(self, x: Tensor, low: Tensor) -> Tensor:
        return F.interpolate(x, (low.size(2), low.size(3)), mode="bilinear")


class ByFactor(Start):
    def resized(self, x: Tensor, low: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.pool, mode="bilinear")


class ByOther(Start):
    """Sized as a map that is not the one beside it, if as large."""

    def resized(self, x: Tensor, low: Tensor) -> Tensor:
        return F.interpolate(x, F.max_pool2d(low, 1).shape[2:], mode="bilinear")


class Kept(Start):
    """The low-level features are a result as well."""

    def forward(self, x: Tensor) -> list[Tensor]:
        low = self.low(x)
        return [self.joined(F.avg_pool2d(x, 4), low), low]


class SharedNorm(Start):
    """One norm counts the low-level features, then those of the encoder."""

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        return self.joined(self.low[1](self.low[0](F.avg_pool2d(x, 4))).repeat(1, 2, 1, 1), low)


def _upsample(align_corners: bool, factor: float = 4) -> nn.Module:
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=align_corners)


CASES = {
    "module": (lambda: Start(_upsample(True)), DECODER),
    "module, low first": (lambda: Start(_upsample(False), low_first=True), DECODER),
    "bilinear module": (lambda: Start(nn.UpsamplingBilinear2d(scale_factor=4)), DECODER),
    "size": (lambda: BySize(), DECODER),
    "sizes": (lambda: BySizes(low_first=True), DECODER),
    "factor": (lambda: ByFactor(), DECODER),
    "kept": (lambda: Kept(_upsample(True)), {**DECODER, "batch_norm_act": 1}),
    "shared norm": (lambda: SharedNorm(_upsample(True)), {**DECODER, "batch_norm_act": 2}),
    "other size": (lambda: ByOther(), {"separable_conv2d": 1, "batch_norm_act": 1}),
    "nearest": (
        lambda: Start(nn.Upsample(scale_factor=4)),
        {"separable_conv2d": 1, "batch_norm_act": 1},
    ),
}


def _input(height: int = 12, width: int = 16) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 8, height, width)


@pytest.mark.parametrize("name", CASES)
def test_agrees(name: str) -> None:
    make, expected = CASES[name]
    torch.manual_seed(0)
    assert_agree(make(), _input(), expected, steps=2)


@pytest.mark.parametrize("align_corners", (True, False))
def test_a_factor_that_does_not_divide(align_corners: bool) -> None:
    """7 rows of 5 by a factor of 1.5: the ratio of the sizes is another."""
    torch.manual_seed(0)
    model = Start(_upsample(align_corners, 1.5), pool=1)
    model.low[0].stride, model.low[0].padding, model.low[0].kernel_size = (1, 1), (1, 1), (1, 1)
    assert_agree(model, _input(5, 5), DECODER, steps=2)


def test_sizes_that_do_not_fit_are_refused_as_before() -> None:
    model, x = Start(_upsample(True)), _input(14, 16)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match") as before:
        model(x)
    assert counts(dk.accelerate(model)) == DECODER
    with pytest.raises(RuntimeError, match="Sizes of tensors must match") as after:
        model(x)
    assert str(after.value) == str(before.value)


def test_autocast_agrees_with_itself() -> None:
    torch.manual_seed(0)
    model, x = Start(_upsample(True)), _input()
    ours = dk.accelerate(copy.deepcopy(model))
    exact = copy.deepcopy(model).double()(x.double()).detach()
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = model(x).detach(), ours(x).detach()
    assert got.dtype == expected.dtype
    allowed = 2 * float((expected - exact).norm()) + 2**-9 * float(exact.norm())
    assert float((got - exact).norm()) <= allowed


def test_compiled_and_exported() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Start(_upsample(False)).eval(), _input()
    expected = model(x)
    dk.accelerate(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    program = torch.export.export(model, (x,))
    assert any("dlv3p" in str(node.target) for node in program.graph.nodes)
    for got in (compiled(x), program.module()(x)):
        torch.testing.assert_close(got, expected)
