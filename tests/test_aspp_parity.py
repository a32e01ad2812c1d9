"""Outputs, gradients and running statistics of `aspp` against float64; storage, special values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from aspp_cases import (
    ASPP_CASES,
    DENSE,
    FIXED,
    HALVES,
    POINT,
    AsppCase,
    assert_parity,
    call,
    inputs,
    results,
    stock,
)
from separable_cases import NCHW, NHWC, Tensors
from special import assert_outputs_alike, assert_taps_alike, gradient_kinds
from torch import Tensor
from views import VIEWS, View

import dlv3p_kernels as dk

Layouts = tuple[torch.memory_format, torch.memory_format]
SAME, MIXED = ((NHWC, NHWC), (NCHW, NCHW)), ((NHWC, NCHW), (NCHW, NHWC))
LAYOUTS = pytest.mark.parametrize("layout", (NCHW, NHWC), ids=("nchw", "nhwc"))
kernels = pytest.mark.usefixtures("native", "poison", "one_thread")
every_case = pytest.mark.parametrize("case", ASPP_CASES, ids=lambda case: case.id)


def name_of(layouts: Layouts) -> str:
    """A short test id."""
    return "-grad-".join("nhwc" if layout == NHWC else "nchw" for layout in layouts)


def layouts_of(case: AsppCase, dtype: torch.dtype) -> tuple[Layouts, ...]:
    """The format of the gradient only chooses copies, so few runs do for it."""
    if dtype == torch.float32:
        return (*SAME, *(MIXED if case.compact else ()))
    return SAME if case.compact else SAME[:1]


RUNS = [
    pytest.param(
        case,
        dtype,
        layouts,
        marks=[pytest.mark.compact] if case.compact and layouts in SAME else [],
        id=f"{case.id}-{str(dtype).rsplit('.', 1)[-1]}-{name_of(layouts)}",
    )
    for case in ASPP_CASES
    for dtype in case.dtypes
    for layouts in layouts_of(case, dtype)
]


@kernels
@pytest.mark.parametrize(("case", "dtype", "layouts"), RUNS)
def test_kernels(case: AsppCase, dtype: torch.dtype, layouts: Layouts, device: str) -> None:
    got = results(case, dtype, dk.aspp, *layouts, device=device)
    for name in ("inference", "output", "grad_x"):
        assert got[name].is_contiguous(memory_format=layouts[0]), name
    assert_parity(case, dtype, got)


@pytest.mark.usefixtures("poison", "one_thread")
@every_case
def test_reference(case: AsppCase, device: str) -> None:
    """The fall-back; it adds up gradients in another order than stock layers."""
    for dtype in case.dtypes:
        with dk.backend("reference"):
            got = results(case, dtype, dk.aspp, device=device)
        assert_parity(case, dtype, got)


# --- storage, empty batches, reproducibility ------------------------------------------------------

STORED = AsppCase(
    "stored", 12, (5, 7), (POINT(5, "batch silu"), HALVES(7, "batch silu", rate=2),
    DENSE(3, "batch silu", rate=2)), POINT(4, "batch silu"), POINT(6, "batch silu"),
)  # fmt: skip
STORED_FIXED = replace(
    STORED,
    id="stored-fixed",
    branches=(POINT(5, "fixed silu"), FIXED(7, end="fixed silu", rate=2)),
    pooling=POINT(3, "fixed silu"),
    project=POINT(6, "fixed silu"),
    pooling_first=True,
)


@kernels
@pytest.mark.parametrize("case", (STORED, STORED_FIXED), ids=lambda case: case.id)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_storage(case: AsppCase, view: View, device: str) -> None:
    """Views of the input and of the gradient of the output."""
    got = results(case, torch.float32, dk.aspp, device=device, view=view)
    assert_parity(case, torch.float32, got)


@kernels
@LAYOUTS
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_same_bits_twice(dtype: torch.dtype, layout: torch.memory_format, device: str) -> None:
    first, second = (results(STORED, dtype, dk.aspp, layout, device=device) for _ in range(2))
    assert all(torch.equal(second[name], t) for name, t in first.items())


@kernels
@pytest.mark.parametrize("pooled", (True, False))
def test_empty_batch_runs_stock(pooled: bool, device: str) -> None:
    """Empty results, zeros for the gradients of weights; insisting on a kernel says why."""
    case = STORED_FIXED if pooled else replace(STORED_FIXED, pooling=None)
    tensors = {name: t.to(device) for name, t in inputs(case, torch.float32).tensors.items()}
    tensors["x"] = tensors["x"][:0]
    found = []
    for function in (dk.aspp, stock):
        leaves = {n: t.detach().requires_grad_() for n, t in tensors.items() if "running" not in n}
        with dk.backend("auto"):
            output = call(case, function, tensors | leaves)
        found.append((output, *torch.autograd.grad(output.sum(), list(leaves.values()))))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs) and ours.shape == theirs.shape
    with pytest.raises(RuntimeError, match="the input is empty"):
        call(case, dk.aspp, tensors)


@pytest.mark.usefixtures("one_thread")
def test_branches_that_differ_give_what_stock_gives(device: str) -> None:
    """In activation, and in where the statistics of their norms come from."""
    case = replace(
        STORED,
        branches=(POINT(5, "batch silu"), HALVES(7, "fixed identity"), DENSE(3, "affine silu")),
    )
    got = results(case, torch.float32, dk.aspp, device=device)
    assert_parity(case, torch.float32, got)


# --- special values -------------------------------------------------------------------------------

SPECIAL = (
    replace(STORED_FIXED, id="pooled"),
    replace(STORED_FIXED, id="not-pooled", pooling=None),
    AsppCase("dense", 12, (7, 6), (POINT(4, "fixed relu"), DENSE(3, "fixed relu", rate=2)), None,
      POINT(5, "affine relu"), n=2),
    AsppCase("products", 12, (6, 7), (POINT(4, ""), HALVES(3, "", rate=3)), None, POINT(5, ""),
      n=2),
    replace(STORED, id="batch"),
)  # fmt: skip
special_cases = pytest.mark.parametrize("case", SPECIAL, ids=lambda case: case.id)


@kernels
@LAYOUTS
@pytest.mark.parametrize("special", ("nan", "inf", "-inf"))
@special_cases
def test_special_value_reaches_what_sees_it(
    case: AsppCase, special: str, layout: torch.memory_format, device: str
) -> None:
    """The same places as in stock PyTorch, with gradients and without."""
    given = {name: t.clone() for name, t in inputs(case, torch.float32).tensors.items()}
    given["x"][0, 3, 0, 0] = given["x"][0, 5, 3, 4] = float(special)
    runs = partial(call, case, dk.aspp), partial(call, case, stock)
    expected = assert_outputs_alike(*runs, given, layout, device)
    assert expected.any() or special != "nan"


@kernels
@LAYOUTS
@special_cases
def test_special_gradient_reaches_what_it_moves(
    case: AsppCase, layout: torch.memory_format, device: str
) -> None:
    """One NaN in the gradient of the output: the same places as in stock PyTorch."""
    runs = partial(call, case, dk.aspp), partial(call, case, stock)
    found = gradient_kinds(*runs, *inputs(case, torch.float64), layout, device)
    for name, (ours, theirs) in found.items():
        if theirs.dim() == 4 and theirs.size(2) == 3:
            assert_taps_alike(ours, theirs)
        else:
            assert torch.equal(ours, theirs), name


# --- derivatives ----------------------------------------------------------------------------------

TINY = AsppCase(
    "tiny", 2, (2, 3), (POINT(1, "batch silu"), HALVES(2, "batch silu", middle="batch silu"),
    DENSE(1, "batch silu", rate=2)), POINT(1, "batch silu"), POINT(2, "batch silu"),
)  # fmt: skip
TINY_FIXED = AsppCase(
    "tiny-fixed", 2, (3, 2), (POINT(1, "fixed silu", bias=True), HALVES(2, "affine silu",
    middle="fixed silu", bias=True)), POINT(1, "fixed silu"), POINT(2, "affine silu", bias=True),
    n=1, pooling_first=True,
)  # fmt: skip


def function_of(case: AsppCase, names: Tensors, running: Tensors) -> Callable[..., Tensor]:
    """The case as a function of the named tensors; changes no statistics."""

    def run(*leaves: Tensor) -> Tensor:
        kept = {name: t.clone() for name, t in running.items()}
        return call(case, dk.aspp, dict(zip(names, leaves, strict=True)) | kept)

    return run


@pytest.mark.usefixtures("native", "one_thread")
@pytest.mark.parametrize("backend", ("cpu", "reference"))
@pytest.mark.parametrize("case", (TINY, TINY_FIXED), ids=lambda case: case.id)
def test_gradcheck(case: AsppCase, backend: str) -> None:
    tensors = {name: t.clone() for name, t in inputs(case, torch.float64).tensors.items()}
    leaves = {n: t.requires_grad_() for n, t in tensors.items() if "running" not in n}
    running = {n: t for n, t in tensors.items() if "running" in n}
    with dk.backend(backend):
        run = function_of(case, leaves, running)
        assert torch.autograd.gradcheck(run, tuple(leaves.values()))


@kernels
@pytest.mark.parametrize("case", (STORED, STORED_FIXED), ids=lambda case: case.id)
def test_gradients_of_a_subset(case: AsppCase, device: str) -> None:
    """Each tensor alone, and all but it, may require gradients; the rest get none."""
    given, grad = inputs(case, torch.float32)
    names = [name for name in given if "running" not in name]
    every = results(case, torch.float32, dk.aspp, device=device)
    for wanted in [{name} for name in names] + [set(names) - {name} for name in names]:
        tensors = {name: t.to(device).clone() for name, t in given.items()}
        for name in wanted:
            tensors[name].requires_grad_()
        run = partial(call, case, dk.aspp)
        run(tensors).backward(grad.to(device))
        for name in names:
            found = tensors[name].grad
            assert (found is not None) == (name in wanted), (name, wanted)
            if found is not None:
                torch.testing.assert_close(found, every[f"grad_{name}"])
