"""The atrous spatial pyramids that every back end is held to, and stock PyTorch's way to do them.

`inputs` makes the tensors of a case, named PART.TENSOR, `results` runs them through a function with
the signature of `dk.aspp`, and `exact` computes the same at a higher precision, together with what
rounding does to it.

Corners. As in `separable_outcomes`, rounding must not decide on which side of a corner of an inner
activation a value lies. Here the norms' biases are chosen so: each moves the corners of its channel
to where they are farthest from all values, in between them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from cases import Pair
from disturbed import Disturbed
from separable_cases import NCHW, Format, Function, Staged, Tensors, behind, depthwise, epilogue_of
from separable_outcomes import (
    Inputs,
    Running,
    assert_as_exact,
    dtype_of,
    layer_of,
    near_corner,
    outcomes,
    vector_of,
)
from sized import CORNERS, Broadcast, Dense, Depthwise, MapMean, Pointwise, Sized, Steps
from torch import Tensor

from dlv3p_kernels import Branch
from dlv3p_kernels.bench.accuracy import allowed, error, floor
from dlv3p_kernels.fusion import Epilogue


@dataclass(frozen=True)
class Part(Staged):
    """A branch, the pooled one, or the projection; pointwise unless it has a kernel."""

    out: int
    end: str = "batch relu"
    rate: int = 1
    kernel: Pair = (1, 1)
    separable: bool = False
    middle: str = ""
    bias: bool = False
    before = ""

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """Padding as (left, right, top, bottom)."""
        height, width = (self.rate * (size - 1) // 2 for size in self.kernel)
        return width, width, height, height


@dataclass(frozen=True)
class AsppCase:
    """One pyramid."""

    id: str
    c: int
    size: Pair
    branches: tuple[Part, ...]
    pooling: Part | None
    project: Part
    n: int = 3
    pooling_first: bool = False
    compact: bool = False

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Behind two norms in bfloat16 nothing is far enough from a corner."""
        few = (torch.float32, torch.float64, torch.float16)
        corners = [[CORNERS[s.activation] for s in p.stages.values()] for p in self.joined.values()]
        deep = any(len(found) > 1 and found[1] for found in corners)
        return few if deep else (*few, torch.bfloat16)

    @property
    def joined(self) -> dict[str, Part]:
        """What is projected, in the order of the concatenation."""
        branches = {str(i): part for i, part in enumerate(self.branches)}
        pooling = {} if self.pooling is None else {"pooling": self.pooling}
        return pooling | branches if self.pooling_first else branches | pooling

    @property
    def parts(self) -> dict[str, Part]:
        """Everything."""
        return self.joined | {"project": self.project}

    def channels(self, name: str) -> int:
        """That a part reads."""
        return sum(part.out for part in self.joined.values()) if name == "project" else self.c


POINT = Part
DENSE = partial(Part, kernel=(3, 3))
HALVES = partial(Part, kernel=(3, 3), separable=True)
HEAD = partial(HALVES, middle="batch relu")
SMOOTH = partial(HALVES, middle="batch relu", end="batch silu")
FIXED = partial(HALVES, middle="fixed relu", end="fixed relu")
C = AsppCase
ASPP_CASES = (
    # The nets' own: separable branches with norms between the halves or without, dense ones.
    C("deeplabv3+", 16, (5, 7), (POINT(8), HEAD(8, rate=1), HEAD(8, rate=2)), POINT(8), POINT(8),
      pooling_first=True, compact=True),
    C("deeplabv3+-fixed", 9, (5, 6), (POINT(8, "fixed relu"), FIXED(8, rate=2), FIXED(8, rate=3)),
      POINT(8, "fixed relu"), POINT(7, "fixed relu"), n=2, compact=True),
    C("deeplabv3+-silu", 16, (5, 7), (POINT(8, "batch silu"), SMOOTH(8), SMOOTH(8, rate=2)),
      POINT(8, "batch silu"), POINT(8), pooling_first=True),
    C("smp", 8, (6, 5), (POINT(7), HALVES(7, rate=2), HALVES(7, rate=6)), POINT(7), POINT(8)),
    C("deeplabv3", 7, (5, 6), (POINT(5), DENSE(5, rate=2), DENSE(5, rate=3)), POINT(5), POINT(8)),
    C("deeplabv3-fixed", 8, (5, 5), (POINT(3, "fixed relu"), DENSE(5, "fixed relu", rate=2)),
      POINT(4, "fixed relu"), POINT(3, "fixed relu"), n=2, pooling_first=True),
    C("mixture", 9, (6, 7), (DENSE(3, rate=2), HEAD(5), POINT(4), HALVES(2, rate=3)), POINT(3),
      POINT(5), compact=True),
    C("one-branch", 5, (4, 5), (HEAD(6),), None, POINT(4)),
    C("one-branch-pooled", 6, (5, 4), (POINT(6),), POINT(3), POINT(4), pooling_first=True),
    C("no-pooling", 7, (6, 5), (POINT(4), HEAD(4, rate=2), DENSE(4, rate=2)), None, POINT(5)),
    # Other norms, activations and biases; nothing but products.
    C("bare-products", 9, (5, 6), (POINT(4, ""), HALVES(5, "", rate=2), DENSE(3, "")), POINT(2, ""),
      POINT(7, ""), n=2, compact=True),
    C("biases", 6, (5, 6), (POINT(4, "", bias=True), HALVES(5, "", bias=True)),
      POINT(3, "", bias=True), POINT(7, "", bias=True), n=2, pooling_first=True),
    C("biases-and-norms", 6, (5, 6), (POINT(4, "batch silu", bias=True),
      HALVES(5, "batch silu", middle="batch silu", bias=True)), POINT(3, "batch silu", bias=True),
      POINT(7, "batch relu", bias=True)),
    C("affine", 7, (5, 6), (POINT(4, "affine relu"), DENSE(3, "affine relu", bias=True),
      HALVES(5, "affine relu", middle="affine relu6")), POINT(3, "affine relu6"),
      POINT(7, "affine relu6"), n=2, compact=True),
    C("affine-beside-fixed", 7, (4, 6), (POINT(4, "affine silu"), HALVES(5, "fixed silu"),
      DENSE(3, "alone silu", bias=True)), POINT(3, "batch silu"), POINT(7, "batch identity")),
    C("activations-alone", 5, (5, 4), (POINT(4, "alone silu"),
      HALVES(5, "alone silu", middle="alone silu")), POINT(3, "alone silu"),
      POINT(3, "alone relu"), n=2),
    C("bare-norms", 7, (5, 5), (POINT(4, "bare silu"), HALVES(5, "bare silu", middle="bare silu")),
      POINT(3, "bare silu"), POINT(7, "bare identity")),
    C("norm-in-the-middle", 7, (5, 6), (HALVES(4, "", middle="batch relu"),
      HALVES(3, "", middle="fixed relu", rate=2)), None, POINT(5)),
    C("trained-pooling", 7, (5, 4), (POINT(4, "fixed relu"), FIXED(3)), POINT(3), POINT(5)),
    C("relu6", 7, (5, 4), (POINT(4, "batch relu6"), HALVES(3, "batch relu6", middle="batch relu6")),
      POINT(3, "batch relu6"), POINT(5, "batch relu6")),
    # Rates beyond the map, single pixels, images and channels, kernels that are not 3x3.
    C("beyond-map", 8, (4, 5), (HEAD(5, rate=6), DENSE(5, rate=7), HEAD(3, rate=18)), POINT(4),
      POINT(8)),
    C("pixel", 9, (1, 1), (POINT(5), HEAD(4, rate=6), DENSE(3, rate=2)), POINT(4), POINT(5), n=5,
      compact=True),
    C("pixel-fixed", 9, (1, 1), (POINT(5, "fixed relu"), FIXED(4)), POINT(4, "fixed relu"),
      POINT(5, "fixed relu"), n=1),
    C("one-image", 9, (5, 6), (POINT(5), HEAD(4, rate=2), DENSE(3, rate=2)), None, POINT(5), n=1),
    C("one-channel", 1, (5, 4), (POINT(1), HEAD(1, rate=2), DENSE(1)), POINT(1), POINT(1)),
    C("thin", 6, (9, 1), (POINT(3), HEAD(4, rate=2)), POINT(5), POINT(2)),
    C("wide-and-flat", 6, (1, 17), (POINT(3), HEAD(4, rate=2)), POINT(5), POINT(2)),
    C("kernels", 5, (6, 7), (HEAD(4, kernel=(5, 3), rate=2), DENSE(3, kernel=(1, 5)),
      HALVES(2, kernel=(1, 1))), POINT(3), POINT(4)),
    C("odd-widths", 37, (3, 4), (POINT(17), HEAD(19, rate=2)), POINT(1), POINT(33)),
)  # fmt: skip


# --- stock PyTorch --------------------------------------------------------------------------------


def own(tensors: dict[str, Tensor], part: str) -> Tensors:
    """The tensors of a part by their names in it."""
    return {name.split(".")[1]: t for name, t in tensors.items() if name.startswith(f"{part}.")}


def _branch(part: Part, t: Tensors) -> Branch:
    end = epilogue_of(part, "end", t)
    rest = (end, t.get("pw_bias"), part.rate)
    if not part.separable:
        return Branch(t["pw_weight"], *rest)
    middle = epilogue_of(part, "middle", t)
    return Branch(t["pw_weight"], *rest, t["dw_weight"], middle, t.get("dw_bias"))


def call(case: AsppCase, function: Function, t: Tensors) -> Tensor:
    """The case by a function with the signature of `dk.aspp`."""
    branches = [_branch(part, own(t, str(i))) for i, part in enumerate(case.branches)]
    return function(
        t["x"],
        branches,
        t["project.pw_weight"],
        pooling=None if case.pooling is None else _branch(case.pooling, own(t, "pooling")),
        pooling_first=case.pooling_first,
        bias=t.get("project.pw_bias"),
        epilogue=epilogue_of(case.project, "end", own(t, "project")),
    )


def stock(
    x: Tensor,
    branches: list[Branch],
    weight: Tensor,
    *,
    pooling: Branch | None,
    pooling_first: bool,
    bias: Tensor | None,
    epilogue: Epilogue | None,
) -> Tensor:
    """Every map made, resized and joined."""
    maps = [_stock_branch(x, branch) for branch in branches]
    if pooling is not None:
        pooled = _stock_branch(F.adaptive_avg_pool2d(x, 1), pooling)
        pooled = F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=False)
        maps = [pooled, *maps] if pooling_first else [*maps, pooled]
    return behind(F.conv2d(torch.cat(maps, 1), weight, bias), epilogue)


def _stock_branch(x: Tensor, b: Branch) -> Tensor:
    kernel = b.weight if b.dw_weight is None else b.dw_weight
    height, width = (b.dilation * (size - 1) // 2 for size in kernel.shape[2:])
    if b.dw_weight is None:
        x = F.conv2d(x, b.weight, b.bias, 1, (height, width), b.dilation)
    else:
        sides = (width, width, height, height)
        x = behind(depthwise(x, b.dw_weight, b.dw_bias, 1, sides, b.dilation), b.dw_epilogue)
        x = F.conv2d(x, b.weight, b.bias)
    return behind(x, b.epilogue)


# --- tensors --------------------------------------------------------------------------------------


@cache
def inputs(case: AsppCase, dtype: torch.dtype) -> Inputs:
    """Maps and weights in one dtype, vectors in float32 (float64 beside float64)."""
    wide, grad = _wide_inputs(case)
    tensors = {n: t.to(dtype_of(n.split(".")[-1], dtype)) for n, t in wide.items()}
    for name, part in case.joined.items():
        for at, stage in part.stages.items():
            if CORNERS[stage.activation]:
                _move_corners(case, tensors, name, at)
    pyramid = Pyramid(case, tensors, np.float64)
    pyramid.forward(pyramid.x)
    for name, part in case.joined.items():
        for at in part.stages:
            near = near_corner(pyramid.parts[name].layers[at], dtype)
            assert not near.any(), f"{case.id}, {name}, {at}: {near.sum()} close to a corner"
    if case.project.end:
        grad = grad.clone()
        near = near_corner(pyramid.parts["project"].layers["end"], dtype)
        grad[torch.from_numpy(near)] = 0
    return Inputs(tensors, grad.to(dtype))


@cache
def _wide_inputs(case: AsppCase) -> tuple[Tensors, Tensor]:
    generator = torch.Generator().manual_seed(zlib.crc32(case.id.encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = {"x": normal(case.n, case.c, *case.size)}
    for name, part in case.parts.items():
        c, taps = case.channels(name), part.kernel[0] * part.kernel[1]
        found = {}
        if part.separable:
            found["dw_weight"] = normal(c, 1, *part.kernel) / taps**0.5
        kernel = (1, 1) if part.separable else part.kernel
        found["pw_weight"] = normal(part.out, c, *kernel) / (c * kernel[0] * kernel[1]) ** 0.5
        if part.bias:
            found["pw_bias"] = normal(part.out)
            found |= {"dw_bias": normal(c)} if part.separable else {}
        for at, stage in part.stages.items():
            for vector in stage.vectors:
                size = part.out if at == "end" else c
                found[f"{at}_{vector}"] = vector_of(vector, stage, normal(size))
        tensors |= {f"{name}.{tensor}": t for tensor, t in found.items()}
    return tensors, normal(case.n, case.project.out, *case.size)


def _move_corners(case: AsppCase, tensors: Tensors, name: str, at: str) -> None:
    """Choose the bias of a stage."""
    pyramid = Pyramid(case, tensors, np.float64)
    pyramid.forward(pyramid.x)
    layer = pyramid.parts[name].layers[at]
    z = np.moveaxis(layer.z.value, 1, 0).reshape(layer.z.value.shape[1], -1)
    bias = tensors[f"{name}.{at}_bias"]
    # What is to lie at the lowest corner: among the values, or beside them where they are few.
    low, high = np.percentile(z, (15, 85), axis=1)
    beside = 2 / z.shape[1]
    steps = np.linspace(low - beside, high + beside, 129, axis=1)
    moved = z[:, None] - steps[:, :, None]
    farthest = min_distance(moved, CORNERS[layer.activation]).argmax(1)
    chosen = np.take_along_axis(steps, farthest[:, None], 1)[:, 0]
    tensors[f"{name}.{at}_bias"] = bias - torch.from_numpy(chosen).to(bias.dtype)


def min_distance(values: np.ndarray, corners: tuple[int, ...]) -> np.ndarray:
    """From the values along the last axis to the nearest corner."""
    return np.min([abs(values - corner).min(-1) for corner in corners], axis=0)


# --- results --------------------------------------------------------------------------------------


def results(
    case: AsppCase,
    dtype: torch.dtype,
    function: Function,
    layout: Format = NCHW,
    other_layout: Format | None = None,
    device: str = "cpu",
    view: Callable[[Tensor], Tensor] = lambda t: t,
) -> Tensors:
    """Outputs without and with gradients, the gradients, running statistics after three batches."""
    run = partial(call, case, function)
    return outcomes(inputs(case, dtype), run, layout, other_layout, device, view)


@cache
def stock_results(case: AsppCase, dtype: torch.dtype) -> Tensors:
    """`results` of stock PyTorch on the CPU, contiguous, where it is the more exact."""
    return results(case, dtype, stock)


def assert_parity(case: AsppCase, dtype: torch.dtype, got: Tensors) -> None:
    """Everything is as exact as stock PyTorch's.

    In low precision stock may have been lucky; what it may well be off by is seen from float64.
    """
    expected, values = dict(stock_results(case, dtype)), exact(case, dtype)
    low = dtype in (torch.bfloat16, torch.float16)
    for name, theirs in expected.items() if low else ():
        value, magnitude, _ = values[name]
        limit = allowed(error(theirs, value), floor(dtype, value, magnitude))
        if error(got[name], value) > limit:
            runs = [theirs, *(run[name].to(theirs.dtype) for run in _disturbed(case, dtype))]
            expected[name] = max(runs, key=partial(error, exact=value))
    assert_as_exact(dtype, got, expected, values)


@cache
def _disturbed(case: AsppCase, dtype: torch.dtype) -> list[Tensors]:
    given, grad = inputs(case, dtype)
    wide = Inputs({name: t.double() for name, t in given.items()}, grad.double())
    found = []
    for seed in range(4):
        with Disturbed(dtype, seed):
            found.append(outcomes(wide, partial(call, case, stock)))
    return found


# --- exact ----------------------------------------------------------------------------------------


class Pyramid:
    """The layers of a case at a higher precision."""

    def __init__(self, case: AsppCase, tensors: Tensors, wide: type) -> None:
        arrays = {name: t.double().numpy().astype(wide) for name, t in tensors.items()}
        self.x = Sized.given(arrays.pop("x"))
        self.case = case
        self.parts = {
            name: _steps(part, own(arrays, name), case.size) for name, part in case.joined.items()
        }
        if case.pooling is not None:
            layers = {"mean": MapMean(), **self.parts["pooling"].layers}
            self.parts["pooling"] = Steps(layers | {"resized": Broadcast(case.size)})
        self.parts["project"] = _steps(case.project, own(arrays, "project"), case.size)

    def forward(self, x: Sized) -> Sized:
        """The output."""
        maps = [self.parts[name].forward(x) for name in self.case.joined]
        return self.parts["project"].forward(Sized(*map(_beside, zip(*maps, strict=True))))

    def backward(self, grad: Sized) -> dict[str, Sized]:
        """The gradients by name."""
        grad, found = self.parts["project"].backward(grad)
        by_name = {f"grad_project.{tensor}": g for tensor, g in found.items()}
        ends = np.cumsum([part.out for part in self.case.joined.values()])[:-1]
        grads = zip(*(np.split(field, ends, 1) for field in grad), strict=True)
        by_x = Sized.given(np.zeros_like(self.x.value))
        for name, mine in zip(self.case.joined, grads, strict=True):
            more, found = self.parts[name].backward(Sized(*mine))
            by_x = by_x.plus(more)
            by_name |= {f"grad_{name}.{tensor}": g for tensor, g in found.items()}
        return by_name | {"grad_x": by_x}


def _beside(maps: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.concatenate(maps, 1)


def _steps(part: Part, arrays: dict[str, np.ndarray], size: Pair) -> Steps:
    get = arrays.get
    geometry = ((1, 1), part.sides, (part.rate, part.rate), size)
    dense = not part.separable and part.kernel != (1, 1)
    last = Dense(arrays["pw_weight"], get("pw_bias"), *geometry) if dense else None
    first = Depthwise(arrays["dw_weight"], get("dw_bias"), *geometry) if part.separable else None
    return Steps(
        {
            "dw": first,
            "middle": layer_of(part, "middle", arrays),
            "pw": last or Pointwise(arrays["pw_weight"], get("pw_bias")),
            "end": layer_of(part, "end", arrays),
        }
    )


@cache
def exact(case: AsppCase, dtype: torch.dtype) -> dict[str, Sized]:
    """What `results` is to be, in float64; in extended precision for float64 tensors."""
    tensors, grad = inputs(case, dtype)
    wide = np.longdouble if dtype == torch.float64 else np.float64
    pyramid = Pyramid(case, tensors, wide)
    running = {
        name: Running(part, pyramid.parts[name], own(tensors, name), wide)
        for name, part in case.parts.items()
    }
    for sign in (1, -1, 1):
        output = pyramid.forward(Sized.given(sign * pyramid.x.value))
        for each in running.values():
            each.update()
    found = {"inference": output, "output": output}
    found |= pyramid.backward(Sized.given(grad.double().numpy().astype(wide)))
    for name, each in running.items():
        found |= {f"{name}.{vector}": value for vector, value in each.values.items()}
    return found
