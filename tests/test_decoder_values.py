"""Values, gradients and running statistics of `dk.decoder_conv2d` against stock PyTorch."""

from __future__ import annotations

import pytest
import torch
from decoder_cases import (
    DECODER_CASES,
    NCHW,
    NHWC,
    DecoderCase,
    Format,
    arguments,
    assert_parity,
    call,
    ours,
    results,
    stock,
)
from views import VIEWS, View

import dlv3p_kernels as dk
from dlv3p_kernels import backends

pytestmark = pytest.mark.usefixtures("native", "poison", "one_thread")

BY_ID = {case.id: case for case in DECODER_CASES}
BUFFERS = ("_mean", "_var")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def marks_of(case: DecoderCase) -> list[pytest.MarkDecorator]:
    """When the case is left out or repeated."""
    compact = [pytest.mark.compact] if case.compact else []
    return [*compact, pytest.mark.large] if case.takes_long else compact


CASES = [pytest.param(case, id=case.id, marks=marks_of(case)) for case in DECODER_CASES]
COMBINATIONS = [
    pytest.param(
        case,
        dtype,
        layout,
        id=f"{case.id}-{dtype}-{'nchw' if layout == NCHW else 'nhwc'}",
        marks=marks_of(case),
    )
    for case in DECODER_CASES
    for dtype in (DTYPES[:2] if case.large else DTYPES)
    for layout in ((NHWC, NCHW) if dtype == torch.float32 else (NHWC,))
]


@pytest.mark.parametrize(("case", "dtype", "layout"), COMBINATIONS)
def test_kernels(case: DecoderCase, dtype: torch.dtype, layout: Format, device: str) -> None:
    given = arguments(case, dtype, (layout, layout), device=device)
    found = results(case, ours, given, layout)
    assert_parity(case, dtype, found)
    if min(case.c[1], case.size[0] * case.size[1]) > 1:
        assert found["output"].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layouts", ((NCHW, NHWC), (NHWC, NCHW)), ids=("nchw-nhwc", "nhwc-nchw"))
@pytest.mark.parametrize("grad_layout", (NCHW, NHWC), ids=("grad-nchw", "grad-nhwc"))
def test_formats_may_differ(
    layouts: tuple[Format, Format], grad_layout: Format, device: str
) -> None:
    case = BY_ID["9-33-half"]
    found = results(case, ours, arguments(case, torch.float32, layouts, device=device), grad_layout)
    assert_parity(case, torch.float32, found)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_storage_of_maps(view: View, device: str) -> None:
    case = BY_ID["down"]
    found = results(case, ours, arguments(case, torch.float32, view=view, device=device))
    assert_parity(case, torch.float32, found)


@pytest.mark.parametrize("case", CASES)
def test_inference(case: DecoderCase, device: str) -> None:
    """Without gradients, where all is fused into one op."""
    given = arguments(case, torch.float32, (NHWC, NHWC), device=device)
    with torch.no_grad():
        found = {"output": call(case, ours, given)}
    found |= {name: t for name, t in given.items() if name.endswith(BUFFERS)}
    assert_parity(case, torch.float32, found)


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize(
    "case_id",
    (
        *(pytest.param(name, marks=pytest.mark.large) for name in ("33-129", "pieces")),
        "images",
        "plain",
    ),
)
def test_same_bits_every_time(case_id: str, threads: int, device: str) -> None:
    """From run to run; the products of matrices are torch's and may depend on the threads."""
    case = BY_ID[case_id]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        first, second = (
            results(case, ours, arguments(case, torch.float32, (NHWC, NHWC), device=device), NHWC)
            for _ in range(2)
        )
    finally:
        torch.set_num_threads(before)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("align_corners", (False, True))
@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_what_is_not_finite_goes_where_stock_lets_it(
    value: float, align_corners: bool, device: str
) -> None:
    """In the encoder output, in the gradient: nothing is masked, nothing spreads."""
    case = DecoderCase(
        "nan", (17, 6), (5, 6), (14, 13), low="", middle="", end="", align_corners=align_corners
    )
    found = []
    for function in (ours, stock):
        given = arguments(case, torch.float32, (NHWC, NHWC), device=device)
        given["x"][0, 3, 2, 4] = value
        given["low_level"][1, 2, 7, 7] = value
        given["pw_weight"].fill_(0).diagonal().fill_(1)
        output = call(case, function, given)
        clean = arguments(case, torch.float32, (NHWC, NHWC), device=device)
        clean["pw_weight"] = given["pw_weight"]
        leaves = [clean[n].requires_grad_() for n in ("x", "low_level", "dw_weight")]
        grad = torch.zeros_like(output)
        grad[1, 2, 0, 12] = value
        grads = torch.autograd.grad(call(case, function, clean), leaves, grad)
        found.append([output, *grads])
    for got, want in zip(*found, strict=True):
        assert torch.equal(got.isfinite(), want.isfinite())


@pytest.mark.parametrize("case_id", ("fixed", "only", "plain"))
def test_empty_batch_runs_stock(case_id: str, device: str) -> None:
    """Empty results, zeros for the gradients of weights; insisting on a kernel says why."""
    case = BY_ID[case_id]
    given = arguments(case, torch.float32, device=device)
    given |= {name: given[name][:0] for name in ("x", "low_level")}
    found = []
    for function in (ours, stock):
        tensors = {name: t.detach() for name, t in given.items()}
        leaves = [t.requires_grad_() for n, t in tensors.items() if not n.endswith(BUFFERS)]
        with dk.backend("auto"):
            output = call(case, function, tensors)
        assert output.shape == (0, case.out, *case.size)
        found.append(torch.autograd.grad(output.sum(), leaves))
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want) and got.shape == want.shape
    with pytest.raises(RuntimeError, match="an input is empty"):
        call(case, ours, given)


def test_every_dtype_of_a_back_end_is_served(backend_name: str, device: str) -> None:
    """With norms in the dtype of the maps as well."""
    case = BY_ID["fixed"]
    for dtype in backends.BACKENDS[backend_name].dtypes:
        given = {n: t.to(dtype) for n, t in arguments(case, dtype, device=device).items()}
        assert call(case, ours, given).dtype == dtype
