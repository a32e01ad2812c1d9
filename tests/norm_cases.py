"""The batch-norm cases that every back end is held to, and what they must equal.

`inputs` makes the tensors of a case, `results` runs them through a function with the signature of
`dk.batch_norm_act` (`stock` is the one of stock PyTorch), and `exact` computes the same at a higher
precision, together with the sizes of the terms that were added up.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
MOMENTUM = 0.3
Format = torch.memory_format
NCHW, NHWC = torch.contiguous_format, torch.channels_last
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class NormCase:
    """One batch norm; `ratio` is the mean of a channel over its standard deviation."""

    id: str
    c: int
    size: tuple[int, int]
    n: int = 2
    activation: str = "identity"
    residual: bool = False
    affine: bool = True
    running: bool = True
    training: bool = True
    ratio: float = 0.5
    compact: bool = False

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The low precisions cannot hold the values where the mean is far from 0."""
        wide = (torch.float32, torch.float64)
        return wide if self.ratio > 10 else (*wide, torch.bfloat16, torch.float16)


C = NormCase
NORM_CASES = (
    # Channel counts around the vector widths (8 and 16 lanes) and the nets' own.
    C("c1", 1, (9, 11), activation="relu", compact=True),
    C("c2", 2, (7, 5), n=3),
    C("c7", 7, (5, 7), n=3, activation="relu6", residual=True, compact=True),
    C("c8", 8, (6, 5), activation="relu"),
    C("c16", 16, (9, 9), activation="relu", compact=True),
    C("c17", 17, (8, 7), activation="silu", compact=True),
    C("c24", 24, (5, 9), activation="relu6"),
    C("c64", 64, (8, 9), activation="relu", residual=True, compact=True),
    C("c100", 100, (5, 5), activation="silu", residual=True),
    C("c728", 728, (9, 9), n=1, activation="relu"),
    C("c1040", 1040, (5, 7), n=1, activation="relu", residual=True),
    # Maps: single pixels, thin, the nets' own, and one that is cut into several blocks.
    C("pixel", 24, (1, 1), n=3, compact=True),
    C("pixel-c7", 7, (1, 1), n=5, activation="relu", residual=True),
    C("two-values", 17, (1, 2), n=1),
    C("thin-high", 17, (23, 1), activation="relu"),
    C("thin-wide", 9, (1, 31), n=3, residual=True),
    C("long-row", 3, (1, 4097), n=3),
    C("33", 16, (33, 33), activation="relu", residual=True),
    C("33-c3", 3, (33, 33), n=3, activation="silu"),
    C("blocks", 5, (130, 129), activation="relu"),
    C("n1", 33, (13, 11), n=1),
    C("n9", 12, (4, 3), n=9, activation="silu"),
    # What may be left out.
    C("identity", 40, (6, 7), compact=True),
    C("identity-residual", 40, (6, 7), residual=True),
    C("silu-residual", 16, (6, 7), activation="silu", residual=True, compact=True),
    C("relu6-residual", 17, (6, 7), activation="relu6", residual=True),
    C("plain", 17, (6, 7), affine=False, running=False, compact=True),
    C("no-affine", 16, (7, 7), activation="relu", residual=True, affine=False),
    C("no-running", 20, (7, 6), activation="relu", running=False),
    # Fixed statistics.
    C("fixed", 17, (6, 7), training=False, compact=True),
    C("fixed-relu", 16, (9, 8), activation="relu", residual=True, training=False, compact=True),
    C("fixed-relu6", 7, (9, 8), activation="relu6", affine=False, training=False),
    C("fixed-silu", 64, (5, 5), activation="silu", training=False),
    C("fixed-pixel", 9, (1, 1), n=1, activation="relu", training=False),
    # Means far from 0: sums of squares would lose every digit of the variance.
    C("mean-100", 24, (9, 8), activation="relu", ratio=100),
    C("mean-1e4", 17, (33, 33), activation="relu", residual=True, ratio=1e4, compact=True),
    C("mean-1e4-identity", 64, (9, 9), ratio=1e4),
    C("mean-1e4-fixed", 16, (9, 9), activation="silu", ratio=1e4, training=False),
)


class Inputs(NamedTuple):
    """The tensors of a case: maps in one dtype, vectors in float32 (float64 beside float64)."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    residual: Tensor | None
    grad: Tensor


@cache
def inputs(case: NormCase, dtype: torch.dtype) -> Inputs:
    """Normally distributed tensors of a case, contiguous; the same at every call.

    The gradient of the output is 0 where the activation is derived close to a corner, since there
    any rounding may decide whether it passes.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(case.id.encode()))
    vector_dtype = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shape = (case.n, case.c, *case.size)
    spread = normal(case.c, 1, 1).exp()
    x = ((normal(*shape) + case.ratio * normal(case.c, 1, 1).sign()) * spread).to(dtype)
    made = [
        normal(case.c) if case.affine else None,
        normal(case.c) if case.affine else None,
        (spread * case.ratio).flatten() if case.running else None,
        spread.square().flatten() if case.running else None,
    ]
    vectors = [None if t is None else t.to(vector_dtype) for t in made]
    residual = normal(*shape).to(dtype) if case.residual else None
    grad = normal(*shape)
    ready = Inputs(x, *vectors, residual, grad.to(dtype))
    z = _forward(case, _arrays(ready, np.float64)).z
    for corner in {"relu": (0,), "relu6": (0, 6)}.get(case.activation, ()):
        grad[torch.from_numpy(abs(z - corner) < 1 / 16)] = 0
    return ready._replace(grad=grad.to(dtype))


def stock(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *,
    activation: str = "identity",
    residual: Tensor | None = None,
) -> Tensor:
    """The three steps in stock PyTorch."""
    z = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    z = z if residual is None else z + residual
    return {"identity": lambda z: z, "relu": F.relu, "relu6": F.relu6, "silu": F.silu}[activation](
        z
    )


def results(
    case: NormCase,
    dtype: torch.dtype,
    function: Function,
    layout: Format = NCHW,
    other_layout: Format | None = None,
    device: str = "cpu",
    view: Callable[[Tensor], Tensor] = lambda t: t,
) -> dict[str, Tensor]:
    """Output, gradients and running statistics; in training those after three batches.

    Args:
        case: the case.
        dtype: of the maps.
        function: with the signature of `dk.batch_norm_act`.
        layout: memory format of the input.
        other_layout: of the residual and of the gradient of the output.
        device: where the tensors lie.
        view: stores a map in another way.
    """
    tensors = inputs(case, dtype)

    def to_map(t: Tensor, layout: Format) -> Tensor:
        return view(t.to(device).contiguous(memory_format=layout)).detach()

    x = to_map(tensors.x, layout)
    residual, grad = (
        None if t is None else to_map(t, other_layout or layout)
        for t in (tensors.residual, tensors.grad)
    )
    weight, bias, mean, var = (None if t is None else t.to(device).clone() for t in tensors[1:5])

    def step(x: Tensor) -> Tensor:
        return function(
            x, mean, var, weight, bias, case.training, MOMENTUM, EPS,
            activation=case.activation, residual=residual,
        )  # fmt: skip

    if case.training and case.running:
        with torch.no_grad():
            step(x)
            step(-x)
    leaves = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    leaves = {name: t.requires_grad_() for name, t in leaves.items() if t is not None}
    output = step(x)
    grads = torch.autograd.grad(output, list(leaves.values()), grad)
    found = {"output": output.detach()}
    found |= {f"grad_{name}": g for name, g in zip(leaves, grads, strict=True)}
    if mean is not None and var is not None:
        found |= {"running_mean": mean, "running_var": var}
    return found


@cache
def stock_results(case: NormCase, dtype: torch.dtype, layout: Format) -> dict[str, Tensor]:
    """`results` of stock PyTorch on the CPU."""
    return results(case, dtype, stock, layout)


class Exact(NamedTuple):
    """Values at a higher precision, and the sums of the absolute values of their terms."""

    values: dict[str, np.ndarray]
    magnitudes: dict[str, np.ndarray]


@cache
def exact(case: NormCase, dtype: torch.dtype) -> Exact:
    """What `results` is to be, in float64; in extended precision for float64 tensors."""
    arrays = _arrays(inputs(case, dtype), np.longdouble if dtype == torch.float64 else np.float64)
    forward = _forward(case, arrays)
    values = {"output": forward.output}
    sizes = {"output": forward.z_size}
    by_name, size_by_name = _gradients(case, arrays, forward)
    values |= by_name
    sizes |= size_by_name
    if case.running:
        running, size = _running(case, arrays)
        values |= running
        sizes |= size
    return Exact(values, sizes)


def _arrays(tensors: Inputs, wide: type) -> Inputs:
    return Inputs(*(None if t is None else t.double().numpy().astype(wide) for t in tensors))


class _Forward(NamedTuple):
    """What the exact forward leaves: the statistics and every step, with the sizes of the terms."""

    invstd: np.ndarray
    weight: np.ndarray
    normalised: np.ndarray
    normalised_size: np.ndarray
    z: np.ndarray
    z_size: np.ndarray
    output: np.ndarray
    slope: np.ndarray
    slope_size: np.ndarray


def _forward(case: NormCase, a: Inputs) -> _Forward:
    mean, var = (v[:, None, None] for v in _statistics(case, a))
    invstd = 1 / np.sqrt(var + np.asarray(EPS, a.x.dtype))
    weight = np.ones_like(invstd) if a.weight is None else a.weight[:, None, None]
    bias = np.zeros_like(invstd) if a.bias is None else a.bias[:, None, None]
    residual = np.zeros_like(a.x) if a.residual is None else a.residual
    normalised = (a.x - mean) * invstd
    normalised_size = (abs(a.x) + abs(mean)) * invstd
    z = normalised * weight + bias + residual
    z_size = normalised_size * abs(weight) + abs(bias) + abs(residual)
    output, slope, curvature = _activation(case.activation, z)
    return _Forward(
        invstd, weight, normalised, normalised_size, z, z_size,
        output, slope, abs(slope) + curvature * z_size,
    )  # fmt: skip


def _statistics(case: NormCase, a: Inputs) -> tuple[np.ndarray, np.ndarray]:
    if not case.training:
        return a.running_mean, a.running_var
    mean = a.x.mean((0, 2, 3))
    return mean, ((a.x - mean[:, None, None]) ** 2).mean((0, 2, 3))


def _activation(name: str, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Value, slope, and how much the slope may change with z, corners apart."""
    if name == "silu":
        sigmoid = (1 + np.tanh(z / 2)) / 2
        return z * sigmoid, sigmoid * (1 + z * (1 - sigmoid)), 0.5
    top = {"identity": np.inf, "relu": np.inf, "relu6": 6}[name]
    bottom = -np.inf if name == "identity" else 0
    return np.clip(z, bottom, top), ((z > bottom) & (z < top)).astype(z.dtype), 0.0


def _gradients(
    case: NormCase, a: Inputs, f: _Forward
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    axes = (0, 2, 3)
    g, g_size = a.grad * f.slope, abs(a.grad) * f.slope_size
    by_bias, by_bias_size = g.sum(axes), g_size.sum(axes)
    by_weight = (g * f.normalised).sum(axes)
    by_weight_size = (g_size * f.normalised_size).sum(axes)
    inner, inner_size = g, g_size
    if case.training:
        count = a.x.size / case.c
        mean_g, mean_gn = (v[:, None, None] / count for v in (by_bias, by_weight))
        inner = g - mean_g - f.normalised * mean_gn
        inner_size = g_size + by_bias_size[:, None, None] / count
        inner_size = inner_size + f.normalised_size * abs(mean_gn)
        inner_size = inner_size + abs(f.normalised) * by_weight_size[:, None, None] / count
    scale = f.invstd * f.weight
    values = {"grad_x": inner * scale}
    sizes = {"grad_x": inner_size * abs(scale)}
    if case.affine:
        values |= {"grad_weight": by_weight, "grad_bias": by_bias}
        sizes |= {"grad_weight": by_weight_size, "grad_bias": by_bias_size}
    if case.residual:
        values["grad_residual"] = g
        sizes["grad_residual"] = g_size
    return values, sizes


def _running(case: NormCase, a: Inputs) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """After the batches x, -x and x; each rounds what it stores, whose size therefore counts."""
    mean, var = a.running_mean, a.running_var
    mean_size, var_size = abs(mean), var
    if case.training:
        batch_mean, batch_var = _statistics(case, a)
        count = a.x.size / case.c
        momentum = np.asarray(MOMENTUM, a.x.dtype)
        for sign in (1, -1, 1):
            mean = (1 - momentum) * mean + momentum * sign * batch_mean
            var = (1 - momentum) * var + momentum * batch_var * (count / (count - 1))
            mean_size = (1 - momentum) * mean_size + momentum * abs(a.x).mean((0, 2, 3)) + abs(mean)
            var_size = (1 - momentum) * var_size + var
    return (
        {"running_mean": mean, "running_var": var},
        {"running_mean": mean_size, "running_var": var_size},
    )
