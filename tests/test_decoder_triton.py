"""The decoder's depthwise convolution in Triton: at the ratios of nets, cut as for a GPU, and that
nothing of the size of the resized map is made in front of it.

Run with `--backend triton` and TRITON_INTERPRET=1, as tests/test_other_backends.py does.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoder_cases import NCHW, NHWC, DecoderCase, arguments, assert_parity, ours, results
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dlv3p_kernels import backends, reference

pytestmark = [
    pytest.mark.skipif(not backends.triton_interpreted(), reason="TRITON_INTERPRET is not 1"),
    pytest.mark.usefixtures("native", "poison", "one_thread"),
]
ops = torch.ops.dlv3p_triton
C = DecoderCase
CASES = (
    C("9-33-align", (20, 5), (9, 9), (33, 33), n=1, align_corners=True),
    C("8-32", (6, 9), (8, 8), (32, 32), n=1, encoder_first=False),
    C("9-17", (17, 3), (9, 9), (17, 17), n=2, align_corners=True),
    C("4-32", (5, 4), (4, 4), (32, 32), n=1),
    C("5x5", (8, 4), (5, 5), (19, 20), n=1, kernel=(5, 5), padding=2, align_corners=True),
    C("rate-3", (9, 4), (5, 6), (20, 21), n=1, padding=3, dilation=3),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("layout", (NHWC, NCHW), ids=("nhwc", "nchw"))
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda i: CASES[i].id)
def test_ratios_of_nets(number: int, layout: torch.memory_format) -> None:
    case, dtype = CASES[number], DTYPES[(number + (layout == NCHW)) % 3]
    assert_parity(case, dtype, results(case, ours, arguments(case, dtype, (layout, layout))))


def operands(case: DecoderCase, layout: torch.memory_format) -> tuple[list[Any], Tensor]:
    """Those of `decoder_depthwise`, without what stands behind, and a gradient by its result."""
    t = arguments(case, torch.float32, (layout, layout))
    sides = [case.padding] * 4
    source = [t["x"], t["low_level"], case.align_corners, case.encoder_first, None, None, 1]
    shape = (case.n, sum(case.c), *case.size)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    given = [*source, t["dw_weight"], None, sides, [case.dilation] * 2]
    return given, grad.contiguous(memory_format=layout)


def gradients(given: list[Any], grad: Tensor) -> tuple[Tensor, ...]:
    """All of them."""
    source, weight, geometry = given[:7], given[7], given[9:]
    return ops.decoder_depthwise_backward(grad, *source, weight, *geometry, True, True, True)


class Called(TorchDispatchMode):
    """Notes the operators of PyTorch that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("resized", (True, False))
def test_neither_resized_map_nor_concatenation_is_made(resized: bool, launched: list[str]) -> None:
    """An encoder output of the right size is an ordinary depthwise convolution."""
    from dlv3p_kernels.triton import decoder, decoder_backward

    case = CASES[0] if resized else C("same", (20, 5), (9, 9), (9, 9), n=1)
    given, grad = operands(case, NHWC)
    with Called() as called:  # sees into launchers, not into operators
        decoder.decoder_depthwise(*given, None, None, 0)
        decoder.decoder_conv2d_statistics(*given)
        wanted = (True, True, True)
        decoder_backward.decoder_depthwise_backward(grad, *given[:7], given[7], *given[9:], *wanted)
    kernels = {name for name in launched if "depthwise" in name}
    walk = {"decoder_depthwise_fwd_kernel", "decoder_depthwise_bwd_kernel"}
    assert kernels == {"depthwise_lines_fwd_kernel", "depthwise_lines_bwd_kernel"} | (
        walk if resized else set()
    )
    assert not [n for n in called.names if "upsample" in n]
    with Called() as composed:
        reference.decoder_source(*given[:7])
    assert resized == any("upsample" in n for n in composed.names)
    assert "aten::cat" in composed.names
    # Of vectors, where the statistics of both maps are put side by side.
    assert called.names.count("aten::cat") <= 2


CHANGES = {
    "wide-offsets": [("launch", "_INT32_ELEMENTS", 1)],
    "blocks": [("launch", "_INTERPRETED_TILE", 256), ("launch", "_INTERPRETED_CHANNELS", 8)],
    "rows": [("decoder_source", "_ROWS", 3), ("decoder_source", "_BAND", 2)],
    "columns": [("decoder_source", "_MOST_COLUMNS", 2)],
}


@pytest.mark.parametrize("layout", (NHWC, NCHW), ids=("nhwc", "nchw"))
@pytest.mark.parametrize("change", CHANGES)
def test_programs_of_a_gpu(
    change: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets of 64 bits, many programs that overlap: the same terms in the same order, but for
    the sums of all pixels."""
    import importlib

    case = C("programs", (11, 3), (5, 4), (14, 13), align_corners=True)
    given, grad = operands(case, layout)
    expected = ops.decoder_depthwise(*given, None, None, 0)
    by_input, by_low_level = gradients(given, grad)[:2]
    for module, name, value in CHANGES[change]:
        monkeypatch.setattr(importlib.import_module(f"dlv3p_kernels.triton.{module}"), name, value)
    assert torch.equal(ops.decoder_depthwise(*given, None, None, 0), expected)
    found = gradients(given, grad)
    if change != "columns":  # which are summed up together
        assert torch.equal(found[0], by_input) and torch.equal(found[1], by_low_level)
    assert_parity(case, torch.float32, results(case, ours, arguments(case, torch.float32)))


def test_gradients_are_given_in_the_formats_of_the_maps() -> None:
    given, grad = operands(CASES[1], NHWC)
    given[0] = given[0].contiguous()
    by_input, by_low_level, *_ = gradients(given, grad)
    assert by_input.is_contiguous()
    assert by_low_level.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("needed", range(3), ids=("input", "low-level", "weight"))
def test_only_what_is_needed(needed: int) -> None:
    """The same bits, and nothing else."""
    given, grad = operands(CASES[1], NHWC)
    everything = gradients(given, grad)[:3]
    source, weight, geometry = given[:7], given[7], given[9:]
    needs = [i == needed for i in range(3)]
    found = ops.decoder_depthwise_backward(grad, *source, weight, *geometry, *needs)
    assert torch.equal(found[needed], everything[needed])
    assert [bool(t.numel()) for t in found[:3]] == needs
