"""What only a GPU can show: streams, graphs, devices, real sizes, more than 2^31 elements.

Runs with `--backend cuda|triton --device cuda`, as `make gpu-check` does; skipped elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gpu_check import cases
from gpu_check.contenders import Row, Setting
from gpu_check.layer_rows import LayerRow
from gpu_check.subjects import SUBJECTS, Subject
from torch import Tensor

from dlv3p_kernels import dispatch
from dlv3p_kernels.bench import accuracy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason=f"no CUDA GPU (torch {torch.__version__})"
    ),
]
LAYOUTS = pytest.mark.parametrize("layout", cases.LAYOUTS.values(), ids=list(cases.LAYOUTS))
SUBJECT = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
# Small enough to be quick, large enough for several blocks of every kernel.
CASE = cases.Case(4, 256, 33, 6)
GIB = 2**30


@pytest.fixture
def ops(native: None, backend_name: str, device: str) -> Any:
    if device != "cuda":
        pytest.skip("runs with --device cuda")
    return dispatch.operators(backend_name)


def tensors(subject: Subject, seed: int = 0) -> dict[str, Tensor]:
    made = subject.tensors(CASE, torch.bfloat16, "cuda")
    x = torch.roll(made["x"], seed, 0)
    return {**made, "x": x.contiguous(memory_format=torch.channels_last)}


def assert_same(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for result, value in zip(results, expected, strict=True):
        assert torch.equal(result, value)


@SUBJECT
@pytest.mark.parametrize("dtype", cases.DTYPES.values(), ids=list(cases.DTYPES))
def test_layers_of_the_nets(
    ops: Any, backend_name: str, subject: Subject, dtype: torch.dtype
) -> None:
    few = {**cases.FAMILIES, "depthwise": cases.DEPTHWISE[:9:2]}
    for case in few[subject.family]:
        row = Row(subject, case, dtype, Setting("cuda", (backend_name,), 0, ()))
        assert len(row.contenders()) >= 5, row.failures
        assert not row.failures, str(row)


@pytest.mark.parametrize("layer", cases.LAYERS, ids=lambda layer: str(layer.case))
@pytest.mark.parametrize("training", (False, True), ids=("inference", "training"))
def test_whole_layers(ops: Any, backend_name: str, layer: cases.Layer, training: bool) -> None:
    row = LayerRow(layer, training, False, Setting("cuda", (backend_name,), 0, ()))
    assert len(row.contenders()) == 2, row.failures
    assert not row.failures, str(row)


@SUBJECT
def test_same_bits_twice(ops: Any, subject: Subject) -> None:
    t = tensors(subject)
    assert_same(subject.ours(ops, CASE, t), subject.ours(ops, CASE, t))


@SUBJECT
def test_runs_on_the_current_stream(ops: Any, subject: Subject) -> None:
    t = tensors(subject)
    expected = subject.ours(ops, CASE, t)
    late = torch.full_like(t["x"], float("nan"))
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        # What does not wait for this stream reads NaN.
        torch.cuda._sleep(200_000_000)
        late.copy_(t["x"])
        results = subject.ours(ops, CASE, {**t, "x": late})
    side.synchronize()
    assert_same(results, expected)


@SUBJECT
def test_captured_in_a_graph(ops: Any, subject: Subject) -> None:
    t, other = tensors(subject), tensors(subject, seed=1)
    expected = subject.ours(ops, CASE, {**t, "x": other["x"]})
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        subject.ours(ops, CASE, t)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = subject.ours(ops, CASE, t)
    t["x"].copy_(other["x"])
    graph.replay()
    torch.cuda.synchronize()
    assert_same(results, expected)


@SUBJECT
def test_second_device(ops: Any, subject: Subject) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    t = tensors(subject)
    expected = subject.ours(ops, CASE, t)
    there = {name: value.to("cuda:1") for name, value in t.items()}
    assert torch.cuda.current_device() == 0
    results = subject.ours(ops, CASE, there)
    assert all(result.device == torch.device("cuda:1") for result in results)
    assert torch.cuda.current_device() == 0
    assert_same(tuple(result.to("cuda:0") for result in results), expected)


# One map, and many small ones, of more than 2^31 elements.
HUGE = pytest.mark.parametrize(
    "shape", [(1, 8, 16400, 16400), (2100, 1024, 32, 32)], ids=["map", "batch"]
)
GEOMETRY = ([1, 1], [1, 1, 1, 1], [1, 1])


def huge(layout: torch.memory_format, shape: tuple[int, ...], seed: int) -> Tensor:
    free, _ = torch.cuda.mem_get_info()
    if free < 40 * GIB:
        pytest.skip(f"needs 40 GiB of free GPU memory, there are {free / GIB:.0f}")
    torch.cuda.manual_seed(seed)
    made = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=layout)
    assert made.numel() > 2**31
    return made.normal_()


def tail(t: Tensor, rows: int) -> Tensor:
    """The last rows of the last image, where indices are the largest."""
    return t[-1:, :, -rows:].contiguous()


def assert_exact(result: Tensor, stock: Tensor | None, exact: Tensor, magnitude: Tensor) -> None:
    value, size = (t.detach().cpu().numpy() for t in (exact, magnitude))
    theirs = 0.0 if stock is None else accuracy.error(stock, value)
    limit = accuracy.allowed(theirs, accuracy.floor(result.dtype, value, np.abs(size)))
    assert accuracy.error(result, value) <= limit


@HUGE
@LAYOUTS
def test_more_than_2_31_elements_forward(
    ops: Any, layout: torch.memory_format, shape: tuple[int, ...]
) -> None:
    x = huge(layout, shape, 0)
    weight = torch.randn(shape[1], 1, 3, 3, device="cuda").bfloat16()
    output = ops.depthwise_conv2d(x, weight, None, *GEOMETRY)
    # Rows of the cut that have all their neighbours in it.
    sources = tail(x, 18)
    stock, exact, magnitude = (
        F.conv2d(a, b, None, 1, 1, 1, groups=shape[1])[:, :, 2:]
        for a, b in (
            (sources, weight),
            (sources.double(), weight.double()),
            (sources.double().abs(), weight.double().abs()),
        )
    )
    assert_exact(tail(output, 16), stock, exact, magnitude)


@HUGE
@LAYOUTS
def test_more_than_2_31_elements_backward(
    ops: Any, layout: torch.memory_format, shape: tuple[int, ...]
) -> None:
    x, grad = huge(layout, shape, 0), huge(layout, shape, 1)
    weight = torch.randn(shape[1], 1, 3, 3, device="cuda").bfloat16()
    grad_input, grad_weight = ops.depthwise_conv2d_backward(grad, x, weight, *GEOMETRY, True, True)
    cut = tail(grad, 18)
    stock, exact, magnitude = (
        F.conv_transpose2d(a, b, None, 1, 1, groups=shape[1])[:, :, 2:]
        for a, b in (
            (cut, weight),
            (cut.double(), weight.double()),
            (cut.double().abs(), weight.double().abs()),
        )
    )
    assert_exact(tail(grad_input, 16), stock, exact, magnitude)
    exact, magnitude = weight_gradient(x, grad)
    assert_exact(grad_weight[:, 0], None, exact, magnitude)


def weight_gradient(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, and of absolute values; a part of the images or of the channels at a time."""
    axis = 0 if x.size(0) > 1 else 1
    count = 50 if axis == 0 else 1
    sums = torch.zeros(2, x.size(1), 3, 3, dtype=torch.float64, device="cuda")
    for start in range(0, x.size(axis), count):
        size = min(count, x.size(axis) - start)
        padded = F.pad(x.narrow(axis, start, size), (1, 1, 1, 1)).double()
        part = grad.narrow(axis, start, size).double()
        into = sums if axis == 0 else sums[:, start : start + size]
        for i, j in np.ndindex(3, 3):
            terms = padded[:, :, i : i + x.size(2), j : j + x.size(3)] * part
            into[0, :, i, j] += terms.sum((0, 2, 3))
            into[1, :, i, j] += terms.abs().sum((0, 2, 3))
    return sums[0], sums[1]


@LAYOUTS
def test_more_than_2_31_elements_statistics(ops: Any, layout: torch.memory_format) -> None:
    x = huge(layout, (2100, 1024, 32, 32), 0)
    mean, var = ops.batch_norm_stats(x)
    stock_var, stock_mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
    few = slice(0, 1024, 128)
    picked = x[:, few].double()
    exact_var, exact_mean = torch.var_mean(picked, (0, 2, 3), correction=0)
    assert_exact(mean[few], stock_mean[few], exact_mean, picked.abs().mean((0, 2, 3)))
    assert_exact(var[few], stock_var[few], exact_var, picked.square().mean((0, 2, 3)))
    output = ops.batch_norm_apply(x, mean, torch.rsqrt(var), None, None, None, 0)
    cut = tail(x, 4).double()
    centred = (cut - mean[:, None, None].double()) / var[:, None, None].double().sqrt()
    assert_exact(tail(output, 4), None, centred, centred.abs() + 1)
