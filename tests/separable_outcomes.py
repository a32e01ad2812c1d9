"""The tensors of the separable cases, what comes out of them, and what is to come out.

`inputs` makes the tensors of a case, `results` runs them through a function with the signature of
`dk.separable_conv2d`, and `exact` computes the same at a higher precision, together with what
rounding does to it.

Corners. Close to a corner of an activation, rounding decides which way the derivative goes, and one
element that goes the other way is off by as much as it is large. The last activation is kept out of
it by a gradient of zero at such places. For those within, the input is chosen: it is moved until no
value lies near a corner (`_away_from_corners`), which `inputs` checks in the dtype of the case by
the bounds that `sized` derives.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from cases import pair
from numerics import assert_accurate
from separable_cases import (
    ACTIVATIONS,
    EPS,
    MOMENTUM,
    NCHW,
    Format,
    Function,
    SeparableCase,
    Stage,
    Staged,
    Tensors,
    before_activation,
    call,
    depthwise,
    epilogue_of,
    stock,
)
from sized import CORNERS, Activation, Depthwise, Norm, Pointwise, Sized, Steps
from torch import Tensor

from dlv3p_kernels.bench.accuracy import rounding_unit

# --- tensors --------------------------------------------------------------------------------------


class Inputs(NamedTuple):
    """The tensors of a case by name, contiguous, and the gradient of its output."""

    tensors: Tensors
    grad: Tensor


@cache
def inputs(case: SeparableCase, dtype: torch.dtype) -> Inputs:
    """Maps and weights in one dtype, vectors in float32 (float64 beside float64)."""
    wide, grad = _wide_inputs(case)
    tensors = {name: t.to(dtype_of(name, dtype)) for name, t in wide.items()}
    chain = Chain(case, tensors, np.float64)
    chain.result(chain.x)
    layers = chain.layers
    for at in ("before", "middle"):
        if at in layers:
            assert not near_corner(layers[at], dtype).any(), f"{case.id}, {at}: move the input"
    if "end" in layers:
        grad = grad.clone()
        grad[torch.from_numpy(near_corner(layers["end"], dtype))] = 0
    return Inputs(tensors, grad.to(dtype))


def dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    is_vector = name.split("_")[0] in ("before", "middle", "end")
    return torch.promote_types(dtype, torch.float32) if is_vector else dtype


def near_corner(layer: Norm | Activation, dtype: torch.dtype) -> np.ndarray:
    """Where rounding may decide on which side of a corner a value lies."""
    z, reach = layer.z, np.zeros_like(layer.z.value)
    accumulator = torch.promote_types(dtype, torch.float32)
    for unit, size in ((dtype, z.stored), (accumulator, z.error)):
        reach += rounding_unit(unit) * size
    found = np.zeros(reach.shape, bool)
    for corner in CORNERS[layer.activation]:
        found |= abs(z.value - corner) <= reach
    return found


@cache
def _wide_inputs(case: SeparableCase) -> tuple[Tensors, Tensor]:
    generator = torch.Generator().manual_seed(zlib.crc32(case.id.encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    taps = case.kernel[0] * case.kernel[1]
    tensors = {
        "x": normal(case.n, case.c, *case.size),
        "dw_weight": normal(case.c, 1, *case.kernel) / taps**0.5,
        "pw_weight": normal(case.out, case.c, 1, 1) / case.c**0.5,
    }
    if case.bias:
        tensors |= {
            "dw_bias": normal(case.c) + case.mean,
            "pw_bias": normal(case.out) + case.mean,
        }
    for at, stage in case.stages.items():
        channels = case.out if at == "end" else case.c
        for name in stage.vectors:
            tensors[f"{at}_{name}"] = vector_of(name, stage, normal(channels))
    shape = (case.n, case.out, *case.output_size)
    if case.residual:
        tensors["residual"] = normal(*shape)
    tensors["x"] = _away_from_corners(case, tensors)
    return tensors, normal(*shape)


def vector_of(name: str, stage: Stage, normal: Tensor) -> Tensor:
    if name == "running_var":
        return 0.5 + normal.abs()
    if name == "running_mean":
        return normal / 4
    stretch = 3 if stage.activation == "relu6" else 1  # so that both corners matter
    if name == "bias":
        return normal * stretch + stretch - 1
    return (normal.sign() * 0.5 + normal / 2) * stretch


def _away_from_corners(case: SeparableCase, tensors: Tensors) -> Tensor:
    """The input, moved until nothing before the last activation is close to a corner.

    Adam's steps on the squares of what is missing to the distance wanted, which leaves room for
    rounding the tensors to bfloat16. (`torch.optim` takes two seconds to import.)
    """
    wanted, step = 1 / 8, 1 / 50
    x = tensors["x"].clone().requires_grad_()
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for count in range(1, 400):
        missing = _missing_distances(case, tensors | {"x": x}, wanted)
        if not missing or max(float(m.detach().max()) for m in missing) < wanted / 3:
            break
        (slope,) = torch.autograd.grad(sum(m.square().sum() for m in missing), x)
        first.lerp_(slope, 0.1)
        second.lerp_(slope.square(), 0.001)
        spread = (second / (1 - 0.999**count)).sqrt() + 1e-8
        x = (x - step / (1 - 0.9**count) * first / spread).detach().requires_grad_()
    return x.detach()


def _missing_distances(case: SeparableCase, t: Tensors, wanted: float) -> list[Tensor]:
    found = []
    x = t["x"]
    for at in ("before", "middle"):
        if at == "middle":
            geometry = (case.stride, case.sides, case.dilation)
            x = depthwise(x, t["dw_weight"], t.get("dw_bias"), *geometry)
        epilogue = epilogue_of(case, at, t)
        z = before_activation(x, epilogue)
        x = z if epilogue is None else ACTIVATIONS[epilogue.activation](z)
        corners = () if epilogue is None else CORNERS[epilogue.activation]
        found += [(wanted - (z - corner).abs()).clamp(min=0) for corner in corners]
    return found


# --- results --------------------------------------------------------------------------------------


def results(
    case: SeparableCase,
    dtype: torch.dtype,
    function: Function,
    layout: Format = NCHW,
    other_layout: Format | None = None,
    device: str = "cpu",
    view: Callable[[Tensor], Tensor] = lambda t: t,
) -> Tensors:
    """Outputs without and with gradients, the gradients, running statistics after three batches.

    Args:
        case: the case.
        dtype: of the maps.
        function: with the signature of `dk.separable_conv2d`.
        layout: memory format of the input.
        other_layout: of the residual and of the gradient of the output.
        device: where the tensors lie.
        view: stores a map in another way.
    """
    run = partial(call, case, function)
    return outcomes(inputs(case, dtype), run, layout, other_layout, device, view)


def outcomes(
    given: Inputs,
    run: Callable[[Tensors], Tensor],
    layout: Format = NCHW,
    other_layout: Format | None = None,
    device: str = "cpu",
    view: Callable[[Tensor], Tensor] = lambda t: t,
) -> Tensors:
    """The same of any function of named tensors."""

    def placed(name: str, t: Tensor) -> Tensor:
        if name not in ("x", "residual", "grad"):
            return t.to(device).clone()
        memory_format = layout if name == "x" else other_layout or layout
        return view(t.to(device).contiguous(memory_format=memory_format)).detach()

    tensors = {name: placed(name, t) for name, t in given.tensors.items()}
    with torch.no_grad():
        inference = run(tensors)
        run(tensors | {"x": -tensors["x"]})
    leaves = {name: t.requires_grad_() for name, t in tensors.items() if "running" not in name}
    output = run(tensors)
    grads = torch.autograd.grad(output, list(leaves.values()), placed("grad", given.grad))
    found = {"inference": inference, "output": output.detach()}
    found |= {f"grad_{name}": g for name, g in zip(leaves, grads, strict=True)}
    return found | {name: t for name, t in tensors.items() if "running" in name}


@cache
def stock_results(case: SeparableCase, dtype: torch.dtype) -> Tensors:
    """`results` of stock PyTorch on the CPU, contiguous, where it is the more exact."""
    return results(case, dtype, stock)


# --- exact ----------------------------------------------------------------------------------------


class Chain(Steps):
    """The layers of a case at a higher precision."""

    def __init__(self, case: SeparableCase, tensors: Tensors, wide: type) -> None:
        arrays = {name: t.double().numpy().astype(wide) for name, t in tensors.items()}
        get = arrays.get
        geometry = (pair(case.stride), case.sides, pair(case.dilation), case.output_size)
        layers = {
            "before": layer_of(case, "before", arrays),
            "dw": Depthwise(arrays["dw_weight"], get("dw_bias"), *geometry),
            "middle": layer_of(case, "middle", arrays),
            "pw": Pointwise(arrays["pw_weight"], get("pw_bias")),
            "end": layer_of(case, "end", arrays),
        }
        super().__init__(layers)
        self.x = arrays["x"]
        self._residual = get("residual")

    def result(self, x: np.ndarray) -> Sized:
        """The output."""
        found = self.forward(Sized.given(x))
        return found if self._residual is None else found.plus(Sized.given(self._residual)).kept()

    def gradients(self, grad: np.ndarray) -> dict[str, Sized]:
        """By name."""
        found = Sized.given(grad)
        by_name = {} if self._residual is None else {"grad_residual": found}
        by_x, by_tensors = self.backward(found)
        return by_name | {f"grad_{name}": g for name, g in by_tensors.items()} | {"grad_x": by_x}


def layer_of(case: Staged, at: str, arrays: dict[str, np.ndarray]) -> Norm | Activation | None:
    stage = case.stages.get(at)
    if stage is None:
        return None
    if stage.kind == "alone":
        return Activation(stage.activation)
    weight, bias = (arrays.get(f"{at}_{name}") for name in ("weight", "bias"))
    if stage.by_batch:
        return Norm(None, EPS, weight, bias, stage.activation)
    if stage.kind == "fixed":
        running = (arrays[f"{at}_running_mean"], arrays[f"{at}_running_var"])
        return Norm(running, EPS, weight, bias, stage.activation)
    given = (np.zeros_like(weight), np.ones_like(weight))
    return Norm(given, 0.0, weight, bias, stage.activation)


@cache
def exact(case: SeparableCase, dtype: torch.dtype) -> dict[str, Sized]:
    """What `results` is to be, in float64; in extended precision for float64 tensors."""
    tensors, grad = inputs(case, dtype)
    wide = np.longdouble if dtype == torch.float64 else np.float64
    chain = Chain(case, tensors, wide)
    running = Running(case, chain, tensors, wide)
    for sign in (1, -1, 1):
        output = chain.result(sign * chain.x)
        running.update()
    found = {"inference": output, "output": output}
    return found | chain.gradients(grad.double().numpy().astype(wide)) | running.values


class Running:
    """The running statistics of a chain; each update rounds what it stores."""

    def __init__(self, case: Staged, chain: Steps, tensors: Tensors, wide: type) -> None:
        self.values = {
            name: Sized.given(t.double().numpy().astype(wide))
            for name, t in tensors.items()
            if "running" in name
        }
        self._norms = {
            at: chain.layers[at] for at, stage in case.stages.items() if stage.kind == "batch"
        }

    def update(self) -> None:
        """Count the batch that the chain has just seen."""
        for at, norm in self._norms.items():
            count = norm.z.value.size // norm.z.value.shape[1]
            unbiased = norm.var._replace(value=norm.var.value * count / (count - 1))
            for name, seen in (("running_mean", norm.mean), ("running_var", unbiased)):
                old = self.values[f"{at}_{name}"]
                momentum = np.full_like(old.value, MOMENTUM)
                share, rest = Sized.given(momentum), Sized.given(1 - momentum)
                self.values[f"{at}_{name}"] = old.times(rest).plus(seen.times(share))


def assert_parity(case: SeparableCase, dtype: torch.dtype, got: Tensors) -> None:
    """Everything is as exact as stock PyTorch's, contiguous, where it is the more exact.

    Vectors in float32 are sums over maps that have been rounded to `dtype`.
    """
    assert_as_exact(dtype, got, stock_results(case, dtype), exact(case, dtype))


def assert_as_exact(
    dtype: torch.dtype, got: Tensors, expected: Tensors, values: dict[str, Sized]
) -> None:
    """The same of any results."""
    assert got.keys() == expected.keys() == values.keys()
    for name, theirs in expected.items():
        ours, (value, error, _) = got[name], values[name]
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
        assert_accurate(name, dtype, ours, theirs, value, error)
