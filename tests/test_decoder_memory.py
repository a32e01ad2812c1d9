"""What the decoder allocates and keeps: neither the resized map, the concatenation, nor the
depthwise result."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from allocations import allocated_by, kept_by
from decoder_cases import DecoderCase, arguments, call, ours, stock
from decoder_layers import StockDecoder, decoders, maps
from torch import Tensor, nn

NCHW, NHWC = torch.contiguous_format, torch.channels_last
# Only the C++ kernels of the CPU make no depthwise result either.
pytestmark = pytest.mark.usefixtures("native")

# The encoder's channels dwarf all others, and maps of them the pieces, of at most 4 MiB, in which
# the depthwise result is made.
CASE = DecoderCase("memory", (192, 16), (17, 17), (65, 65), out=24, n=4, low="", middle="", end="")
STAGES = (
    {},
    {"low": "fixed-relu", "middle": "fixed-relu", "end": "fixed-relu"},
    {"low": "silu", "middle": "silu", "end": "silu"},
    {"encoder_first": False, "align_corners": True, "end": "silu"},
)
RUNS = [(stages, NHWC) for stages in STAGES] + [(STAGES[2], NCHW)]
every_run = pytest.mark.parametrize(("stages", "layout"), RUNS, ids=str)


def resized_bytes(n: int) -> int:
    """Of the encoder output at the size of the low-level features, in float32."""
    return n * CASE.c[0] * CASE.size[0] * CASE.size[1] * 4


def leaves_of(case: DecoderCase, layout: torch.memory_format) -> dict[str, Tensor]:
    """The tensors of a case, those with gradients as leaves."""
    given = arguments(case, torch.float32, (layout, layout))
    return {n: t.requires_grad_(not n.endswith(("_mean", "_var"))) for n, t in given.items()}


@every_run
def test_inference_allocates_maps_of_few_channels(
    stages: dict[str, object], layout: torch.memory_format
) -> None:
    """Besides maps as wide as the result or the low-level one, as much for any batch."""
    beside = []
    for n in (4, 8):
        case = replace(CASE, n=n, **stages)
        given = arguments(case, torch.float32, (layout, layout))
        with torch.no_grad():
            found = allocated_by(lambda case=case, given=given: call(case, ours, given), "cpu")
        narrow = n * (2 * case.out + 2 * case.c[1]) * case.size[0] * case.size[1] * 4
        assert found.largest < resized_bytes(n) / 2
        beside.append(found.peak - narrow)
    assert beside[1] <= max(beside[0], 0)
    assert beside[0] < resized_bytes(4) / 2


@every_run
def test_a_step_allocates_no_wide_map(
    stages: dict[str, object], layout: torch.memory_format
) -> None:
    """Nor does backward; kept are the inputs and the raw result."""
    case = replace(CASE, **stages)
    given = leaves_of(case, layout)
    wanted = [t for t in given.values() if t.requires_grad]

    def step() -> object:
        return torch.autograd.grad(call(case, ours, given).sum(), wanted)

    assert allocated_by(step, "cpu").largest < resized_bytes(case.n) / 2
    kept = kept_by(lambda: call(case, ours, given))
    raw = bool(case.end) * call(case, ours, given).nbytes
    vectors = sum(t.nbytes for name, t in given.items() if name not in ("x", "low_level"))
    assert sum(kept.values()) <= given["x"].nbytes + given["low_level"].nbytes + raw + 2 * vectors


def test_what_is_measured_sees_stock_layers() -> None:
    case = replace(CASE, **STAGES[2])
    given = leaves_of(case, NHWC)
    found = allocated_by(lambda: call(case, stock, given), "cpu")
    assert found.largest >= resized_bytes(case.n)
    assert sum(kept_by(lambda: call(case, stock, given)).values()) > 2 * resized_bytes(case.n)


# --- the layer ------------------------------------------------------------------------------------

SIZES = {"source": (17, 17), "size": (65, 65), "n": 4, "dtype": torch.float32}


def layers() -> tuple[nn.Module, StockDecoder]:
    """The decoder with 192 channels from the encoder and 24 in each convolution."""
    return decoders(
        in_channels=192, low_level_in_channels=24, low_level_channels=16, channels=24, num_classes=9
    )


def test_layer_in_inference() -> None:
    pair = tuple(layer.eval() for layer in layers())
    given = maps(**SIZES, channels=(192, 24))
    with torch.no_grad():
        peaks = [allocated_by(lambda layer=layer: layer(*given), "cpu") for layer in pair]
    assert peaks[0].largest < resized_bytes(4) / 2
    assert peaks[0].peak < peaks[1].peak / 4
    assert peaks[1].largest >= resized_bytes(4)


def test_layer_in_training() -> None:
    """Kept are both inputs, and of the projection and of each convolution the raw result."""
    made, theirs = layers()
    given = [t.requires_grad_() for t in maps(**SIZES, channels=(192, 24))]

    def step(layer: nn.Module) -> object:
        return torch.autograd.grad(layer(*given).sum(), (*given, *layer.parameters()))

    found, expected = (allocated_by(partial(step, layer), "cpu") for layer in (made, theirs))
    assert found.largest < resized_bytes(4) / 2
    assert found.peak < expected.peak / 4
    pixels = 4 * 65 * 65 * 4
    parameters = sum(p.nbytes for p in made.parameters())
    allowed = sum(t.nbytes for t in given) + (16 + 24 + 24) * pixels + 3 * parameters
    assert sum(kept_by(lambda: made(*given)).values()) <= allowed
    assert sum(kept_by(lambda: theirs(*given)).values()) > 4 * allowed
