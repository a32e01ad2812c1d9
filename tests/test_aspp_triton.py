"""The projection of a pyramid in Triton: when its kernel runs, on which sizes, and how exactly.

Run with `--backend triton` and TRITON_INTERPRET=1, as tests/test_other_backends.py does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_accurate
from torch import Tensor

from dlv3p_kernels import backends
from dlv3p_kernels.reference import channel_affine

pytestmark = [
    pytest.mark.skipif(not backends.triton_interpreted(), reason="TRITON_INTERPRET is not 1"),
    pytest.mark.usefixtures("native", "poison", "one_thread"),
]
ops = torch.ops.dlv3p_triton
KERNEL = "aspp_projection_fwd_kernel"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NHWC = torch.channels_last


@dataclass(frozen=True)
class Case:
    """A projection of maps of `channels` each."""

    id: str
    channels: tuple[int, ...]
    out: int
    size: tuple[int, int, int] = (2, 5, 7)
    activation: int = 1
    affine: bool = True
    bias: bool = False
    dtype: torch.dtype = BF16

    def arguments(self) -> list[Any]:
        """Those of the operator, channels_last."""
        torch.manual_seed(sum(self.channels) + self.out)
        n, h, w = self.size
        everything = sum(self.channels)
        maps = [
            torch.randn(n, c, h, w).to(self.dtype).contiguous(memory_format=NHWC)
            for c in self.channels
        ]
        vectors = (torch.rand(everything) + 0.5, torch.randn(everything))
        weight = torch.randn(self.out, everything, 1, 1) / math.sqrt(everything)
        bias = torch.randn(self.out).to(self.dtype) if self.bias else None
        affine = vectors if self.affine else (None, None)
        return [maps, *affine, self.activation, weight.to(self.dtype), bias]


CASES = (
    Case("aspp", (64, 64, 64, 64), 64),
    Case("ragged", (37, 37, 37), 21, bias=True, dtype=FP16),
    Case("one-map", (40,), 300, activation=2),
    Case("six-maps", (24,) * 6, 16, size=(1, 13, 11), activation=3),
    Case("identity", (16, 16), 17, activation=0, affine=False, bias=True),
    Case("silu-alone", (9, 9), 8, size=(1, 1, 2), activation=3, affine=False, dtype=FP16),
)


def computed(arguments: list[Any], dtype: torch.dtype) -> Tensor:
    """By stock PyTorch, in this dtype; the norms' vectors keep theirs."""
    maps, scale, shift, activation, weight, bias = arguments
    z = channel_affine(torch.cat(maps, 1).to(dtype), scale, shift, activation)
    return F.conv2d(z, weight.to(dtype), None if bias is None else bias.to(dtype))


def assert_exact(arguments: list[Any], output: Tensor) -> None:
    """By the accuracy rule."""
    maps, scale, shift, activation, weight, bias = arguments
    doubles = [None if t is None else t.double() for t in (scale, shift, weight, bias)]
    exact = [[t.double() for t in maps], *doubles[:2], activation, *doubles[2:]]
    sizes = [
        [t.abs() for t in exact[0]],
        *(None if t is None else t.abs() for t in doubles[:2]),
        0,  # with no activation nothing is smaller
        *(None if t is None else t.abs() for t in doubles[2:]),
    ]
    value, magnitude = (computed(a, torch.float64).numpy() for a in (exact, sizes))
    stock = computed(arguments, output.dtype)
    assert_accurate("output", output.dtype, output, stock, value, magnitude)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel_is_exact(case: Case, launched: list[str]) -> None:
    arguments = case.arguments()
    output = ops.aspp_projection_fused(*arguments)
    assert launched == [KERNEL]
    assert output.is_contiguous(memory_format=NHWC) and output.dtype == case.dtype
    assert_exact(arguments, output)


@pytest.mark.parametrize("reason", ("float32", "contiguous", "other channels", "seven maps"))
def test_what_the_kernel_does_not_take_is_composed(reason: str, launched: list[str]) -> None:
    channels = {"other channels": (24, 16), "seven maps": (8,) * 7}.get(reason, (16, 16))
    arguments = Case(reason, channels, 12, dtype=FP32 if reason == "float32" else BF16).arguments()
    if reason == "contiguous":
        arguments[0][1] = arguments[0][1].contiguous()
    output = ops.aspp_projection_fused(*arguments)
    assert KERNEL not in launched and launched
    assert_exact(arguments, output)


def test_wide_offsets_blocks_and_strided_maps_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dlv3p_kernels.triton import aspp_projection, launch

    arguments = CASES[0].arguments()
    output = ops.aspp_projection_fused(*arguments)
    monkeypatch.setattr(launch, "_INT32_ELEMENTS", 1)
    monkeypatch.setattr(aspp_projection, "BLOCK_M", 32)
    assert torch.equal(ops.aspp_projection_fused(*arguments), output)
    wide = arguments[0][2].repeat(1, 2, 1, 1).contiguous(memory_format=NHWC)
    arguments[0][2] = wide[:, 64:]
    assert torch.equal(ops.aspp_projection_fused(*arguments), output)


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_what_is_not_finite_stays_in_its_pixel(value: float) -> None:
    """Also where channels are filled up to a block."""
    arguments = Case("ragged", (37, 37), 21, activation=0).arguments()
    arguments[0][1][1, 36, 2, 3] = value
    output = ops.aspp_projection_fused(*arguments)
    finite = output.isfinite()
    assert not finite[1, :, 2, 3].any()
    assert finite.sum() == output.numel() - output.size(1)
