"""`dk.nn.ASPP` on the kernels equals stock layers; what it and separable convolutions keep."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import dlv3p_kernels as dk

FORMATS = [torch.contiguous_format, torch.channels_last]


def layer(separable: bool, pooling_first: bool) -> dk.nn.ASPP:
    torch.manual_seed(0)
    made = dk.nn.ASPP(24, 16, (1, 3, 7), separable=separable, pooling_first=pooling_first)
    for norm in made.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return made.double()


def outcome(aspp: dk.nn.ASPP, x: Tensor) -> list[Tensor]:
    """Output, gradients and running statistics after two steps."""
    results = []
    for _ in range(2):
        output = aspp(x)
        weights = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view(output.shape)
        results += [output, *torch.autograd.grad((output * weights).sum(), [x, *aspp.parameters()])]
    return [*results, *aspp.buffers()]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("pooling_first", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_aspp_equals_stock_layers(
    native: None,
    memory_format: torch.memory_format,
    separable: bool,
    pooling_first: bool,
    train: bool,
) -> None:
    ours = layer(separable, pooling_first).train(train)
    stock = copy.deepcopy(ours)
    x = torch.randn(3, 24, 9, 11, dtype=torch.float64).contiguous(memory_format=memory_format)
    x.requires_grad_()
    results = outcome(ours, x)
    with dk.backend("reference"):
        expected = outcome(stock, x)
    assert results[0].is_contiguous(memory_format=memory_format)
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_separable_convolution_keeps_its_input_and_its_raw_result(native: None) -> None:
    made = dk.nn.SeparableConv2d(64, 48, padding=1)
    x = torch.randn(2, 64, 33, 33).contiguous(memory_format=torch.channels_last).requires_grad_()
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        output = made(x)
    raw_bytes = output.untyped_storage().nbytes()
    vectors = sum(p.untyped_storage().nbytes() for p in made.parameters()) + 64 * 16 * 4
    assert kept[x.untyped_storage().data_ptr()] == x.untyped_storage().nbytes()
    assert sum(kept.values()) <= x.untyped_storage().nbytes() + raw_bytes + vectors


def test_bad_arguments_are_named() -> None:
    x, weight = torch.randn(1, 8, 5, 5), torch.randn(4, 8, 1, 1)
    with pytest.raises(ValueError, match="aspp: branches must hold at least one Branch"):
        dk.aspp(x, [], weight)
    with pytest.raises(ValueError, match=r"aspp: weight must be \(C'', 4, 1, 1\)"):
        dk.aspp(x, [dk.Branch(weight)], torch.randn(6, 5, 1, 1))
    with pytest.raises(TypeError, match=r"aspp: branches\[0\] must be a Branch, got Tensor"):
        dk.aspp(x, [weight], torch.randn(6, 4, 1, 1))  # type: ignore[list-item]
