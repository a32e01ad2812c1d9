"""The fused separable kernel of Triton: when it runs, in which blocks and parts, and how exactly.

Run with `--backend triton` and TRITON_INTERPRET=1, as tests/test_other_backends.py does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from numerics import assert_accurate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dlv3p_kernels import backends, reference
from dlv3p_kernels.bench import accuracy

pytestmark = [
    pytest.mark.skipif(not backends.triton_interpreted(), reason="TRITON_INTERPRET is not 1"),
    pytest.mark.usefixtures("native", "poison", "one_thread"),
]
ops = torch.ops.dlv3p_triton
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
IDENTITY, RELU, RELU6 = 0, 1, 2
FUSED = ["separable_table_kernel", "separable_fwd_kernel"]
MOMENTS = ["merge_moments_kernel"]
PARTS = ["separable_finish_kernel"]


@dataclass(frozen=True)
class Case:
    """A separable convolution; stages are (has an affine, activation)."""

    id: str
    c: int
    out: int
    size: tuple[int, int]
    n: int = 2
    stride: int = 1
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: int = 1
    before: tuple[bool, int] = (False, IDENTITY)
    middle: tuple[bool, int] = (False, IDENTITY)
    end: tuple[bool, int] = (False, IDENTITY)
    bias: bool = False
    residual: bool = False
    statistics: bool = False
    dtype: torch.dtype = BF16

    def arguments(self) -> list[Any]:
        """Those of the operator; maps are channels_last."""
        torch.manual_seed(self.c + self.out + self.size[0])
        x = self.map(self.n, self.c, *self.size)
        dw = torch.randn(self.c, 1, 3, 3).to(self.dtype)
        pw = (torch.randn(self.out, self.c, 1, 1) / math.sqrt(self.c)).to(self.dtype)
        biases = [torch.randn(k).to(self.dtype) if self.bias else None for k in (self.c, self.out)]
        geometry = ((self.stride,) * 2, self.padding, (self.dilation,) * 2)
        before, middle = self.stage(self.before, self.c), self.stage(self.middle, self.c)
        arguments = [x, dw, biases[0], *geometry, *before, *middle, pw, biases[1]]
        shape = ops.depthwise_conv2d(x, dw, None, *geometry).shape
        residual = self.map(self.n, self.out, *shape[2:]) if self.residual else None
        return [*arguments, *self.stage(self.end, self.out), residual, self.statistics]

    def map(self, *shape: int) -> Tensor:
        """A map of random values."""
        return torch.randn(shape).to(self.dtype).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def stage(form: tuple[bool, int], channels: int) -> tuple[Tensor | None, Tensor | None, int]:
        """Scale, shift, activation."""
        if not form[0]:
            return None, None, form[1]
        return 0.5 + torch.rand(channels), torch.randn(channels), form[1]


XCEPTION = {"before": (False, RELU), "middle": (True, IDENTITY), "end": (True, IDENTITY)}
HEAD = {"middle": (True, RELU), "end": (True, RELU)}
CASES = (
    Case("plain", 37, 21, (9, 7)),
    Case("bias", 16, 40, (5, 8), bias=True, dtype=FP16),
    Case("head", 48, 40, (10, 9), **HEAD, statistics=True),
    Case("xception", 24, 24, (7, 9), **XCEPTION, residual=True),
    Case("norm-in-front", 33, 17, (6, 5), before=(True, RELU6), bias=True, statistics=True),
    Case("stride-2", 40, 72, (9, 12), stride=2, middle=(True, RELU), residual=True),
    Case("same-stride-2", 8, 8, (8, 7), stride=2, padding=(0, 1, 1, 2), bias=True, dtype=FP16),
    Case("stride-3-d2", 12, 20, (11, 14), stride=3, dilation=2, padding=(3, 2, 0, 4)),
    Case("d2", 32, 48, (17, 13), dilation=2, padding=(2, 2, 2, 2), before=(False, RELU)),
    Case("d6", 65, 16, (13, 14), n=1, dilation=6, padding=(6, 6, 6, 6), statistics=True),
    Case("beyond-the-map", 9, 12, (4, 5), dilation=7, padding=(7, 7, 7, 7), **HEAD, bias=True),
    Case("centre-row", 20, 8, (1, 9), padding=(9, 5, 9, 9), dilation=9, dtype=FP16),
    Case("few-values", 2, 3, (1, 2), n=1, statistics=True),
    Case("map-33", 16, 304, (33, 33), n=1, dilation=18, padding=(18,) * 4, end=(True, RELU)),
)
BY_NAME = {case.id: case for case in CASES}


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fuse whatever the cost model says."""
    from dlv3p_kernels.triton import separable_plan

    monkeypatch.setattr(separable_plan.Plan, "fuses", True)


def with_parts(monkeypatch: pytest.MonkeyPatch, multiprocessors: int = 64) -> None:
    """Parts of one step at least, as many as fill a GPU of this size."""
    from dlv3p_kernels.triton import separable_plan

    monkeypatch.setattr(separable_plan, "INTERPRETED", (multiprocessors, (9, 0)))
    monkeypatch.setattr(separable_plan, "_LEAST_STEPS", 1)


def assert_exact(arguments: list[Any], results: tuple[Tensor, ...]) -> None:
    """The output by the accuracy rule, the statistics to what sums of so many values round."""
    dtype = arguments[0].dtype
    exact = [a.double() if isinstance(a, Tensor) else a for a in arguments]
    # Sums of absolute values: no stage but ReLU6 makes anything smaller then.
    absolute = [a.abs() if isinstance(a, Tensor) else IDENTITY if a == RELU6 else a for a in exact]
    value, magnitude = (reference.separable_conv2d_fused(*a)[0].numpy() for a in (exact, absolute))
    stock = reference.separable_conv2d_fused(*arguments)[0]
    output, mean, var = results
    assert output.dtype == dtype and output.is_contiguous(memory_format=torch.channels_last)
    assert_accurate("output", dtype, output, stock, value, magnitude)
    if arguments[-1]:
        raw = [*arguments[:14], None, None, IDENTITY, None, False]
        stored = ops.separable_conv2d_fused(*raw)[0].double()
        expected_var, expected_mean = torch.var_mean(stored, (0, 2, 3), correction=0)
        bound = stored.numel() / stored.size(1) * accuracy.rounding_unit(FP32)
        assert ((mean - expected_mean).abs() <= bound * stored.abs().mean((0, 2, 3))).all()
        assert ((var - expected_var).abs() <= bound * expected_var).all()
    else:
        assert mean.numel() == var.numel() == 0


@pytest.mark.usefixtures("fuse")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_fused_kernel_is_exact(case: Case, launched: list[str]) -> None:
    arguments = case.arguments()
    launched.clear()
    results = ops.separable_conv2d_fused(*arguments)
    assert launched == FUSED + (MOMENTS if case.statistics else [])
    assert_exact(arguments, results)


@pytest.mark.usefixtures("fuse")
@pytest.mark.parametrize("name", ("head", "norm-in-front", "xception", "d6"))
def test_input_channels_in_parts(
    name: str,
    launched: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Parts of different lengths, added up by a second kernel that does what stands behind."""
    with_parts(monkeypatch)
    case = replace(BY_NAME[name], c=BY_NAME[name].c + 64)
    arguments = case.arguments()
    launched.clear()
    results = ops.separable_conv2d_fused(*arguments)
    assert launched == FUSED + PARTS + (MOMENTS if case.statistics else [])
    assert_exact(arguments, results)
    again = ops.separable_conv2d_fused(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))


@pytest.mark.usefixtures("fuse")
@pytest.mark.parametrize("outputs", ((2, 2), (4, 1), (1, 4)))
@pytest.mark.parametrize("name", ("stride-3-d2", "d2"))
def test_every_block(name: str, outputs: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    from dlv3p_kernels.triton import separable_plan

    monkeypatch.setattr(separable_plan, "BLOCKS", (outputs,))
    arguments = replace(BY_NAME[name], statistics=True).arguments()
    assert_exact(arguments, ops.separable_conv2d_fused(*arguments))


@pytest.mark.usefixtures("fuse")
@pytest.mark.parametrize("parts", (False, True))
def test_wide_offsets_and_strided_maps_give_the_same_bits(
    parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlv3p_kernels.triton import separable

    if parts:
        with_parts(monkeypatch)
    arguments = replace(BY_NAME["xception"], c=72).arguments()
    output = ops.separable_conv2d_fused(*arguments)[0]
    monkeypatch.setattr(separable, "_INT32_ELEMENTS", 1)
    assert torch.equal(ops.separable_conv2d_fused(*arguments)[0], output)
    for at in (0, -2):  # the input, the residual
        arguments[at] = _slice_of_channels(arguments[at])
    assert torch.equal(ops.separable_conv2d_fused(*arguments)[0], output)


def _slice_of_channels(x: Tensor) -> Tensor:
    """The same values among others of a wider channels_last map, at an odd offset."""
    wide = x.new_full((x.size(0), 2 * x.size(1), *x.shape[2:]), math.nan)
    view = wide.contiguous(memory_format=torch.channels_last)[:, 3 : 3 + x.size(1)]
    return view.copy_(x)


LAYERS = (
    # in, out, size, stride, dilation, whether it fuses
    (2048, 256, 33, 1, 6, True),
    (2048, 256, 33, 1, 12, True),
    (2048, 256, 33, 1, 18, True),
    (304, 256, 129, 1, 1, True),
    (256, 256, 129, 1, 1, True),
    (128, 128, 257, 1, 1, True),
    (128, 128, 257, 2, 1, True),
    (728, 728, 33, 1, 1, False),
    (1536, 2048, 33, 1, 2, False),
)


@pytest.mark.parametrize(
    ("c", "out", "size", "stride", "dilation", "fuses"), LAYERS, ids=lambda v: str(v)
)
def test_what_the_cost_model_fuses(
    c: int, out: int, size: int, stride: int, dilation: int, fuses: bool
) -> None:
    from dlv3p_kernels.triton.depthwise_geometry import Geometry
    from dlv3p_kernels.triton.separable_plan import plan_of

    geometry = Geometry((3, 3), (stride,) * 2, (dilation,) * 4, (dilation,) * 2)
    shape = (16, out, *geometry.output_size(size, size))
    assert plan_of(geometry, (16, c, size, size), shape, 2, (9, 0)).fuses == fuses


@pytest.mark.parametrize("reason", ("contiguous", "float32", "5x5", "costs more", "1x1 map"))
def test_what_is_not_fused_is_composed(
    reason: str,
    launched: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dlv3p_kernels.triton import separable_plan

    case = replace(BY_NAME["head"], bias=True, residual=True)
    if reason == "float32":
        case = replace(case, dtype=FP32)
    if reason == "1x1 map":  # is contiguous as well
        case = replace(case, size=(1, 1))
    arguments = case.arguments()
    if reason == "contiguous":
        arguments[0] = arguments[0].contiguous()
    if reason == "5x5":
        arguments[1] = torch.randn(case.c, 1, 5, 5).to(case.dtype)
        arguments[4] = (2, 2, 2, 2)
    if reason == "costs more":
        monkeypatch.setattr(separable_plan.Plan, "fuses", False)
    launched.clear()
    output = ops.separable_conv2d_fused(*arguments)[0]
    assert launched[0].startswith("depthwise_") and not set(FUSED) & set(launched)
    assert_exact([*arguments[:-1], False], (_in_format(output), output[:0], output[:0]))


def _in_format(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("fuse")
@pytest.mark.parametrize("value", (math.inf, math.nan))
def test_padding_multiplies_with_nothing(value: float) -> None:
    """Infinity times a zero of the padding would be NaN."""
    arguments = Case("row", 5, 4, (1, 3), before=(True, RELU), middle=(True, IDENTITY)).arguments()
    arguments[1][:, 0, 0::2] = value
    assert ops.separable_conv2d_fused(*arguments)[0].isfinite().all()


@pytest.mark.usefixtures("fuse")
@pytest.mark.parametrize("value", (math.inf, -math.inf, math.nan))
def test_values_that_are_not_finite_reach_their_neighbours_alone(value: float) -> None:
    case = Case("one", 40, 6, (9, 8), n=1, dilation=2, padding=(2, 2, 2, 2), middle=(True, RELU))
    arguments = case.arguments()
    arguments[0][0, 3, 4, 5] = value
    arguments[1].abs_()
    touched = torch.zeros(9, 8, dtype=torch.bool)
    touched[2:7:2, 3:8:2] = True
    output = ops.separable_conv2d_fused(*arguments)[0]
    if value == -math.inf:  # ReLU stops it
        touched.zero_()
    assert torch.equal(~output[0].isfinite(), touched.expand(6, 9, 8))


class _Allocated(TorchDispatchMode):
    """Sizes of the tensors that come into being, but for conversions: the interpreter's own."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        if function is torch.ops.aten._to_copy.default:
            return result
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given:
            self.elements.append(result.numel())
        return result


@pytest.mark.usefixtures("fuse")
@pytest.mark.parametrize("statistics", (False, True))
def test_depthwise_map_is_never_allocated(statistics: bool) -> None:
    from dlv3p_kernels.triton import separable

    case = Case("wide", 64, 8, (12, 12), n=1, statistics=statistics, **HEAD)
    arguments = case.arguments()
    with _Allocated() as allocated:
        output = separable.separable_conv2d_fused(*arguments)[0]
    assert output.numel() in allocated.elements
    assert max(allocated.elements) < arguments[0].numel() / 4


@pytest.mark.parametrize("name", ("head", "stride-2", "norm-in-front"))
@pytest.mark.parametrize("layout", (torch.channels_last, torch.contiguous_format), ids=str)
def test_statistics_without_a_map(
    name: str,
    layout: torch.memory_format,
    launched: list[str],
) -> None:
    """The same bits as with it."""
    from dlv3p_kernels.triton import depthwise

    arguments = BY_NAME[name].arguments()[:9]
    arguments[0] = arguments[0].contiguous(memory_format=layout)
    nothing = (None, None, IDENTITY)
    expected = ops.depthwise_conv2d_fused(*arguments, *nothing, True)[1:]
    launched.clear()
    with _Allocated() as allocated:
        results = depthwise.depthwise_conv2d_statistics(*arguments)
    kernel = "depthwise_taps_kernel" if name == "stride-2" else "depthwise_lines_fwd_kernel"
    assert launched == [kernel, *MOMENTS]
    assert max(allocated.elements) < arguments[0].numel() / 4
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    again = ops.depthwise_conv2d_statistics(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_nothing_to_do() -> None:
    """No images: an empty map, and statistics of nothing."""
    arguments = replace(BY_NAME["head"], n=0).arguments()
    output, mean, var = ops.separable_conv2d_fused(*arguments)
    assert output.shape == (0, 40, 10, 9) and mean.isnan().all() and var.isnan().all()
    mean, var = ops.depthwise_conv2d_statistics(*arguments[:9])
    assert mean.shape == var.shape == (48,) and mean.isnan().all() and var.isnan().all()
