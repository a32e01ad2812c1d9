"""Times `batch_norm_act` in training, forward and with its gradients, against stock PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..explain import explain
from ..ops import batch_norm_act
from . import accuracy
from .depthwise import BATCH, DEFAULT_LAYOUTS, DTYPES, LAYOUTS
from .timing import Spread, interleave, ratios

__all__ = ["CASES", "DEFAULT_LAYOUTS", "OP", "Row", "run"]

OP = "batch_norm_act"
_EPS = 1e-5
_CHECKED_CHANNELS = 32
_LEAST_ROUNDS = 5
_NAMES = ("output", "input gradient", "weight gradient", "bias gradient", "residual gradient")
# Closer to the corner of the ReLU rounding decides whether a gradient passes.
_CORNER = 1 / 16


@dataclass(frozen=True)
class Case:
    """A batch norm on a map of the nets, and what follows it."""

    channels: int
    size: int
    relu: bool = True
    residual: bool = False
    quick: bool = False

    def __str__(self) -> str:
        text = f"{self.channels}x{self.size}x{self.size} bn"
        return text + " + residual" * self.residual + " + relu" * self.relu


_MAPS = ((64, 257), (256, 129), (728, 33), (2048, 33))
CASES = tuple(
    Case(*size, relu, residual, quick=size == (728, 33) and relu)
    for size in _MAPS
    for relu, residual in ((False, False), (True, False), (True, True))
)


@dataclass(frozen=True)
class Timed:
    """Milliseconds, and their ratios: of stock to ours, and of ours to a copy of the input."""

    stock_ms: Spread
    ours_ms: Spread
    copy_ms: Spread
    ratio: Spread
    copies: Spread
    rounds: int


@dataclass(frozen=True)
class Row:
    """A case in one dtype and layout; `failures` says what was not right, then nothing is timed.

    `route` is the back end that serves ours; `step` is forward and all gradients together.
    """

    case: Case
    dtype: str
    layout: str
    route: str
    failures: list[str]
    forward: Timed | None = None
    step: Timed | None = None


def run(case: Case, dtype: str, layout: str, seconds: float) -> Row:
    """Check and time one row; `seconds` is the time for each of forward and step."""
    bench = _Bench(case, DTYPES[dtype], LAYOUTS[layout])
    route = bench.route()
    if failures := bench.failures():
        return Row(case, dtype, layout, route, failures)
    forward, step = (bench.time(backward, seconds) for backward in (False, True))
    return Row(case, dtype, layout, route, [], forward, step)


def _stock(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: str,
    residual: Tensor | None,
    **options: Any,
) -> Tensor:
    z = F.batch_norm(x, mean, var, weight, bias, **options)
    z = z if residual is None else z + residual
    return z if activation == "identity" else F.relu(z)


class _Bench:
    """The tensors of a row and what is done with them."""

    def __init__(self, case: Case, dtype: torch.dtype, layout: torch.memory_format) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal() -> Tensor:
            shape = (BATCH, case.channels, case.size, case.size)
            made = torch.randn(shape, generator=generator).to(dtype)
            return made.contiguous(memory_format=layout)

        self.case = case
        self.x = normal()
        self.weight = torch.rand(case.channels, generator=generator) + 0.5
        self.bias = torch.randn(case.channels, generator=generator)
        self.residual = normal() if case.residual else None
        self.grad = normal()
        self.running = (torch.zeros(case.channels), torch.ones(case.channels))
        self.copy = torch.empty_like(self.x)

    def route(self) -> str:
        explanation = explain(
            batch_norm_act,
            self.x, *self.running, self.weight, self.bias, True, residual=self.residual,
        )  # fmt: skip
        return str(explanation.chosen)

    def _call(self, function: Callable[..., Tensor], leaves: Sequence[Tensor]) -> Tensor:
        x, weight, bias, *residual = leaves
        running = self.running if x.dtype != torch.float64 else (None, None)
        return function(
            x, *running, weight, bias, training=True, momentum=0.1, eps=_EPS,
            activation="relu" if self.case.relu else "identity",
            residual=residual[0] if residual else None,
        )  # fmt: skip

    def _leaves(self) -> list[Tensor]:
        tensors = (self.x, self.weight, self.bias, self.residual)
        return [t.detach().requires_grad_() for t in tensors if t is not None]

    def failures(self) -> list[str]:
        """What is less exact than the accuracy rule allows, on channels spread over all blocks."""
        few = torch.linspace(0, self.case.channels - 1, _CHECKED_CHANNELS).long().unique()

        def of(t: Tensor) -> Tensor:
            return t[few] if t.dim() == 1 else t[:, few]

        wide = [of(t.detach()).double().requires_grad_() for t in self._leaves()]
        output = self._call(_stock, wide)
        grad = self.grad.clone()
        if self.case.relu:
            x, weight, bias, *residual = wide
            z = F.batch_norm(x, None, None, weight, bias, True, 0.0, _EPS) + sum(residual)
            grad[:, few] = torch.where(z.abs() < _CORNER, 0, of(grad))
        exact = [output, *torch.autograd.grad(output, wide, of(grad).double())]
        results = []
        for function in (batch_norm_act, _stock):
            leaves = self._leaves()
            output = self._call(function, leaves)
            results.append([output, *torch.autograd.grad(output, leaves, grad)])
        found = []
        for name, ours, theirs, value in zip(_NAMES, *results, exact, strict=False):
            array = value.detach().numpy()
            error = accuracy.error(of(ours), array)
            floor = accuracy.floor(ours.dtype, array, abs(array))
            limit = accuracy.allowed(accuracy.error(of(theirs), array), floor)
            if not error <= limit:
                found.append(f"{name}: error {error:.3g}, allowed {limit:.3g}")
        return found

    def time(self, backward: bool, seconds: float) -> Timed:
        """Time stock, ours and a copy in turns."""
        leaves = self._leaves()

        def contender(function: Callable[..., Tensor]) -> Callable[[], object]:
            if not backward:
                return lambda: self._call(function, leaves)
            return lambda: torch.autograd.grad(self._call(function, leaves), leaves, self.grad)

        calls = {"stock": contender(_stock), "ours": contender(batch_norm_act)}
        calls["copy"] = lambda: self.copy.copy_(self.x)
        with torch.set_grad_enabled(backward):
            stock, ours, copy = interleave(calls, seconds, _LEAST_ROUNDS).values()
        return Timed(
            Spread.of(stock),
            Spread.of(ours),
            Spread.of(copy),
            ratios(stock, ours),
            ratios(ours, copy),
            len(ours),
        )
