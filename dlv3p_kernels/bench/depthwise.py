"""Times `depthwise_conv2d` and its gradients against stock PyTorch and a copy of the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dispatch
from ..ops.depthwise import call_of, depthwise_conv2d, served_by
from . import accuracy
from .goals import Direction, Goal, Verdict, goal
from .timing import Spread, interleave, ratios

OP = "depthwise_conv2d"
BATCH = 2
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
DEFAULT_LAYOUTS = tuple(LAYOUTS)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CHECKED_CHANNELS = 32
_LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """One layer of the nets, or an extra that no goal was set for."""

    channels: int
    size: int
    dilation: int = 1
    stride: int = 1
    kernel: int = 3
    extra: bool = False
    quick: bool = False

    @property
    def padding(self) -> int:
        """As much as keeps the size of the map at stride 1."""
        return self.dilation * (self.kernel // 2)

    def __str__(self) -> str:
        text = f"{self.channels}x{self.size}x{self.size} d={self.dilation}"
        text += f" stride {self.stride}" if self.stride > 1 else ""
        return text + (f" {self.kernel}x{self.kernel}" if self.kernel != 3 else "")


CASES = (
    # ASPP at output stride 16 and 8.
    Case(2048, 33, 6),
    Case(2048, 33, 12),
    Case(2048, 33, 18, quick=True),
    Case(2048, 65, 12),
    Case(2048, 65, 24),
    Case(2048, 65, 36),
    # Xception's middle flow, decoder and entry flow.
    Case(728, 33, 1, quick=True),
    Case(728, 33, 2),
    Case(304, 65, 1),
    Case(128, 129, 1, stride=2, quick=True),
    Case(2048, 33, 1, extra=True),
    Case(728, 33, 1, kernel=5, extra=True),
    Case(728, 33, 4, kernel=5, extra=True),
)


@dataclass(frozen=True)
class Timed:
    """One direction of a case: milliseconds, their ratios, and the goal."""

    stock_ms: Spread
    ours_ms: Spread
    copy_ms: Spread
    ratio: Spread
    copies: Spread
    rounds: int
    goal: Goal
    verdict: Verdict | None


@dataclass(frozen=True)
class Row:
    """A case in one dtype and layout; `failures` says what was not right, then nothing is timed.

    `route` is who serves our forward: "kernel", or "onednn" where that is routed to stock PyTorch.
    """

    case: Case
    dtype: str
    layout: str
    route: str
    failures: list[str]
    forward: Timed | None = None
    backward: Timed | None = None


def run(case: Case, dtype: str, layout: str, seconds: float) -> Row:
    """Check and time one row; `seconds` is the time for each direction."""
    bench = _Bench(case, DTYPES[dtype], LAYOUTS[layout])
    if failures := bench.failures():
        return Row(case, dtype, layout, bench.route(), failures)
    forward, backward = (bench.time(direction, seconds) for direction in ("forward", "backward"))
    return Row(case, dtype, layout, bench.route(), [], forward, backward)


class _Bench:
    """The tensors of a row and what is done with them."""

    def __init__(self, case: Case, dtype: torch.dtype, layout: torch.memory_format) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            made = torch.randn(shape, generator=generator).to(dtype)
            return made.contiguous(memory_format=layout)

        self.case = case
        self.dtype = dtype
        self.x = normal(BATCH, case.channels, case.size, case.size)
        self.weight = normal(case.channels, 1, case.kernel, case.kernel).contiguous()
        self.copy = torch.empty_like(self.x)
        with torch.no_grad():
            self.grad = normal(*self.ours(self.x, self.weight).shape)

    def route(self) -> str:
        case = self.case
        call = call_of(self.x, self.weight, [case.padding] * 4, [case.dilation] * 2)
        name = served_by(call)
        return "kernel" if name in dispatch.BACKENDS else name

    def ours(self, x: Tensor, weight: Tensor) -> Tensor:
        case = self.case
        return depthwise_conv2d(x, weight, None, case.stride, case.padding, case.dilation)

    def stock(self, x: Tensor, weight: Tensor) -> Tensor:
        case = self.case
        return F.conv2d(x, weight, None, case.stride, case.padding, case.dilation, groups=x.size(1))

    def failures(self) -> list[str]:
        """What is less exact than the accuracy rule allows, on channels spread over all blocks."""
        few = torch.linspace(0, self.case.channels - 1, _CHECKED_CHANNELS).long().unique()
        tensors = (self.x, self.weight, self.grad)
        results = [self._results(f, *tensors) for f in (self.ours, self.stock)]
        wide = (self.x[:, few].double(), self.weight[few].double(), self.grad[:, few].double())
        exact = self._results(self.stock, *wide)
        sizes = self._results(self.stock, *(t.abs() for t in wide))
        names = ("output", "input gradient", "weight gradient")
        found = []
        for name, ours, theirs, value, size in zip(names, *results, exact, sizes, strict=True):
            channels = (few,) if name == "weight gradient" else (slice(None), few)
            array, magnitude = value.numpy(), size.numpy()
            error = accuracy.error(ours[channels], array)
            limit = self._limit(theirs[channels], array, magnitude)
            if not error <= limit:
                found.append(f"{name}: error {error:.3g}, allowed {limit:.3g}")
        return found

    def _limit(self, theirs: Tensor, exact: np.ndarray, magnitude: np.ndarray) -> float:
        return accuracy.allowed(
            accuracy.error(theirs, exact), accuracy.floor(self.dtype, exact, magnitude)
        )

    @staticmethod
    def _results(function: Any, x: Tensor, weight: Tensor, grad: Tensor) -> Sequence[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, weight)]
        output = function(*leaves)
        return (output.detach(), *torch.autograd.grad(output, leaves, grad))

    def time(self, direction: Direction, seconds: float) -> Timed:
        """Time stock, ours and a copy in turns."""
        contenders = {name: self._call(name, direction) for name in ("stock", "ours")}
        contenders["copy"] = lambda: self.copy.copy_(self.x)
        with torch.set_grad_enabled(direction == "backward"):
            samples = interleave(contenders, seconds, _LEAST_ROUNDS)
        stock, ours, copy = samples.values()
        aim = goal(direction, self.case.channels, self.case.dilation)
        ratio, copies = ratios(stock, ours), ratios(ours, copy)
        verdict = None if self.case.extra else aim.verdict(ratio.median, copies.median)
        return Timed(
            Spread.of(stock),
            Spread.of(ours),
            Spread.of(copy),
            ratio,
            copies,
            len(ours),
            aim,
            verdict,
        )

    def _call(self, name: str, direction: Direction) -> Any:
        function = self.ours if name == "ours" else self.stock
        if direction == "forward":
            return lambda: function(self.x, self.weight)
        leaves = [t.detach().requires_grad_() for t in (self.x, self.weight)]
        output = function(*leaves)
        return lambda: torch.autograd.grad(output, leaves, self.grad, retain_graph=True)
