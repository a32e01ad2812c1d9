"""Depthwise convolution with prologue, epilogue and statistics: values and every gradient."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from cases import COMPACT_CASES, DEPTHWISE_CASES, DepthwiseCase, inputs, pair
from numerics import assert_accurate
from torch import Tensor

import dlv3p_kernels as dk
from dlv3p_kernels import ChannelAffine, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.channels_last, torch.contiguous_format)
ACTIVATIONS = tuple(reference.ACTIVATIONS)
CASES = (
    *(case for case in COMPACT_CASES if case.n),
    *(
        case
        for case in DEPTHWISE_CASES
        if case.id in ("c24", "d2", "d18", "s2-d2", "k5-s2-d2", "k7")
    ),
    DepthwiseCase("two-tiles", 8, (12, 70), padding=3, dilation=3, n=1, bias=True),
)
GRADIENTS = ("x", "weight", "bias", "in_scale", "in_shift", "out_scale", "out_shift")


@dataclass(frozen=True)
class Fusion:
    """What is fused around the convolution."""

    before: str | None = None  # activation; None: no prologue
    before_affine: bool = True
    behind: str | None = None
    behind_affine: bool = True
    statistics: bool = False

    def __str__(self) -> str:
        parts = [
            f"{side}-{name}{'' if affine else '-alone'}"
            for side, name, affine in (
                ("before", self.before, self.before_affine),
                ("behind", self.behind, self.behind_affine),
            )
            if name
        ]
        return "-".join(parts + ["statistics"] * self.statistics)


FUSIONS = (
    Fusion(before="relu"),
    Fusion(before="silu", before_affine=False),
    Fusion(behind="relu6"),
    Fusion(behind="silu", behind_affine=False),
    Fusion(statistics=True),
    Fusion(before="identity", behind="relu"),
    Fusion(before="relu6", statistics=True),
    Fusion(before="silu", behind="identity"),
)


def tensors_of(case: DepthwiseCase, fusion: Fusion, dtype: torch.dtype) -> dict[str, Tensor]:
    """The leaves of a case by name, contiguous, on the CPU; vectors are float32."""
    x, weight, bias, _ = inputs(case, dtype)
    generator = torch.Generator().manual_seed(1)
    vector = torch.float64 if dtype == torch.float64 else torch.float32

    def normal() -> Tensor:
        return torch.randn(case.c, generator=generator, dtype=torch.float64).to(vector)

    found = {"x": x, "weight": weight}
    if bias is not None:
        found["bias"] = bias
    for side, name, affine in (
        ("in", fusion.before, fusion.before_affine),
        ("out", fusion.behind, fusion.behind_affine),
    ):
        if name and affine:
            found[f"{side}_scale"], found[f"{side}_shift"] = normal(), normal()
    return found


def operator_arguments(
    case: DepthwiseCase, fusion: Fusion, tensors: dict[str, Tensor]
) -> tuple[object, ...]:
    """As `reference.depthwise_conv2d_fused` takes them."""
    get = tensors.get
    codes = [ACTIVATIONS.index(name or "identity") for name in (fusion.before, fusion.behind)]
    geometry = (pair(case.stride), case.sides, pair(case.dilation))
    return (
        tensors["x"], tensors["weight"], get("bias"), *geometry,
        get("in_scale"), get("in_shift"), codes[0],
        get("out_scale"), get("out_shift"), codes[1], fusion.statistics,
    )  # fmt: skip


def ours(case: DepthwiseCase, fusion: Fusion, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The public functions: output, and the statistics if any."""
    get = tensors.get
    before = behind = None
    if fusion.before:
        before = ChannelAffine(get("in_scale"), get("in_shift"), fusion.before)
    if fusion.behind:
        behind = ChannelAffine(get("out_scale"), get("out_shift"), fusion.behind)
    call = (tensors["x"], tensors["weight"], get("bias"), case.stride, case.padding, case.dilation)
    if fusion.statistics:
        return dk.depthwise_conv2d_with_statistics(*call, prologue=before)
    return (dk.depthwise_conv2d(*call, prologue=before, epilogue=behind),)


def stock(case: DepthwiseCase, fusion: Fusion, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The same by stock PyTorch layers, in the tensors' dtype."""
    results = reference.depthwise_conv2d_fused(*operator_arguments(case, fusion, tensors))
    return results if fusion.statistics else results[:1]


def majorant(case: DepthwiseCase, fusion: Fusion, tensors: dict[str, Tensor]) -> Tensor:
    """The output without activations: of absolute values, the sums of absolute terms."""
    linear = Fusion(
        before=fusion.before and "identity",
        before_affine=fusion.before_affine,
        behind=fusion.behind and "identity",
        behind_affine=fusion.behind_affine,
    )
    return stock(case, linear, tensors)[0]


def differentiate(
    results: tuple[Tensor, ...], tensors: dict[str, Tensor], grads: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """Gradients of all leaves by name."""
    return dict(
        zip(tensors, torch.autograd.grad(results, tuple(tensors.values()), grads), strict=True)
    )


def leaves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}


def output_grads(case: DepthwiseCase, fusion: Fusion, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Of the output, and of mean and variance."""
    grad = inputs(case, dtype).grad
    if not fusion.statistics:
        return (grad,)
    vector = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        grad,
        torch.linspace(-1, 2, case.c, dtype=vector),
        torch.linspace(2, -1, case.c, dtype=vector),
    )


@pytest.mark.usefixtures("native", "poison", "one_thread")
@pytest.mark.parametrize("layout", LAYOUTS, ids=("nhwc", "nchw"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.compact) if c.id == "d6" else c for c in CASES],
    ids=lambda case: case.id,
)
def test_kernel(
    case: DepthwiseCase,
    fusion: Fusion,
    dtype: torch.dtype,
    layout: torch.memory_format,
    device: str,
) -> None:
    given = tensors_of(case, fusion, dtype)
    grads = output_grads(case, fusion, dtype)

    exact_leaves = leaves({name: t.double() for name, t in given.items()})
    exact = stock(case, fusion, exact_leaves)
    exact_grads = differentiate(exact, exact_leaves, tuple(g.double() for g in grads))

    sizes = leaves({name: t.double().abs() for name, t in given.items()})
    bound = majorant(case, fusion, sizes)
    pull = grads[0].double().abs()
    if fusion.statistics:
        count = pull.numel() // case.c
        level, slope = (g.double().abs()[:, None, None] / count for g in grads[1:])
        spread = (exact[0] - exact[1][:, None, None]).abs().detach()
        pull = pull + level + 2 * slope * spread
    bound_grads = differentiate((bound,), sizes, (pull,))

    stock_leaves = leaves(given)
    theirs = stock(case, fusion, stock_leaves)
    their_grads = differentiate(theirs, stock_leaves, grads)

    our_leaves = {name: t.to(device) for name, t in given.items()}
    our_leaves["x"] = our_leaves["x"].contiguous(memory_format=layout)
    our_leaves = leaves(our_leaves)
    mine = ours(case, fusion, our_leaves)
    placed = [g.to(device) for g in grads]
    placed[0] = placed[0].contiguous(memory_format=layout)
    my_grads = differentiate(mine, our_leaves, tuple(placed))

    assert mine[0].dtype == dtype
    assert_accurate(
        "output", dtype, mine[0], theirs[0], exact[0].detach().numpy(), bound.detach().numpy()
    )
    for name in given:
        assert_accurate(
            name, dtype, my_grads[name], their_grads[name],  # sums of maps of that dtype
            exact_grads[name].numpy(), bound_grads[name].numpy(),
        )  # fmt: skip
    if fusion.statistics:
        assert_statistics(mine)


def assert_statistics(mine: tuple[Tensor, ...]) -> None:
    """Mean and variance are those of the stored output, as exact as stock's in float32.

    Sums are of differences to some value of the channel, the farthest from the mean at worst.
    """
    output, mean, var = (t.detach().cpu() for t in mine)
    values = output.double()
    exact_var, exact_mean = torch.var_mean(values, (0, 2, 3), correction=0)
    stock_var, stock_mean = torch.var_mean(output.float(), (0, 2, 3), correction=0)
    farthest = (values - exact_mean[:, None, None]).abs().amax((0, 2, 3))
    size, spread = values.abs().mean((0, 2, 3)) + farthest, exact_var + farthest.square()
    assert_accurate("mean", torch.float32, mean, stock_mean, exact_mean.numpy(), size.numpy())
    assert_accurate("var", torch.float32, var, stock_var, exact_var.numpy(), spread.numpy())


@pytest.mark.usefixtures("native", "poison", "one_thread")
@pytest.mark.parametrize("layout", LAYOUTS, ids=("nhwc", "nchw"))
def test_statistics_survive_a_large_mean(layout: torch.memory_format, device: str) -> None:
    """|mean| / std = 10 000 in float32, where E[y^2] - E[y]^2 has no digit left."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 33, 31, generator=generator) + 1e4
    weight = torch.ones(16, 1, 1, 1)
    x = x.contiguous(memory_format=layout).to(device)
    mine = dk.depthwise_conv2d_with_statistics(x, weight.to(device))
    naive = mine[0].double().square().float().mean((0, 2, 3)) - mine[0].mean((0, 2, 3)).square()
    assert ((naive.cpu() - 1).abs() > 0.5).any(), "the naive formula would do here"
    assert_statistics(mine)


@pytest.mark.parametrize("fusion", [f for f in FUSIONS if f.before and not f.behind], ids=str)
def test_definition_of_the_backward(fusion: Fusion) -> None:
    """The definition needs no autograd, which is switched off inside an operator."""
    case = DepthwiseCase("backward", 6, (7, 8), padding=1, bias=False)
    given = leaves(tensors_of(case, fusion, torch.float64))
    grad = inputs(case, torch.float64).grad
    plain = Fusion(fusion.before, fusion.before_affine)
    expected = differentiate(stock(case, plain, given), given, (grad,))
    arguments = operator_arguments(case, plain, {n: t.detach() for n, t in given.items()})
    with torch.inference_mode():
        x, weight, _, *geometry_and_prologue = arguments[:9]
        results = reference.depthwise_conv2d_fused_backward(
            grad, x, weight, *geometry_and_prologue, True, True
        )
    found = dict(zip(("x", "weight", "in_scale", "in_shift"), results, strict=True))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
def test_nan_passes(fusion: Fusion, device: str) -> None:
    """One NaN in the input comes out where stock brings it out, in the statistics too."""
    case = DepthwiseCase("nan", 16, (7, 6), padding=1, bias=False)
    given = tensors_of(case, fusion, torch.float32)
    given["x"] = given["x"].clone()
    given["x"][1, 3, 2, 2] = torch.nan
    mine = ours(case, fusion, {name: t.to(device) for name, t in given.items()})
    for ours_, theirs in zip(mine, stock(case, fusion, given), strict=True):
        assert torch.equal(ours_.isnan().cpu(), theirs.isnan())
        assert ours_.isnan().any()
