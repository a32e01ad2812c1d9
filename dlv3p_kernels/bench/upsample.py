"""Times loss and classes of resized logits against stock PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..explain import explain
from ..ops import upsample_argmax, upsample_cross_entropy
from . import accuracy, memory
from .depthwise import BATCH, DEFAULT_LAYOUTS, DTYPES, LAYOUTS
from .layers import MemoryOfBoth
from .norm import Timed
from .timing import Spread, interleave, ratios

__all__ = ["CASES", "DEFAULT_LAYOUTS", "OP", "Case", "Row", "run"]

OP = "upsample_cross_entropy"
_IGNORE = 255
_LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """Logits of a net at a quarter of the size of its images, for the loss or for the classes."""

    classes: int
    size: int = 129
    out: int = 513
    loss: bool = True
    quick: bool = False

    def __str__(self) -> str:
        text = f"{self.classes}x{self.size}x{self.size} -> {self.out}x{self.out}"
        return text + (" loss" if self.loss else " classes")


CASES = tuple(
    Case(classes, loss=loss, quick=classes == 21)
    for loss in (True, False)
    for classes in (19, 21, 150)
)


@dataclass(frozen=True)
class Row:
    """A case in one dtype and layout; `failures` says what was not right, then nothing is timed.

    `route` is the back end that serves ours; `step` is the loss and its gradient together, and
    `memory` is that of it. The copy is one of logits and target.
    """

    case: Case
    dtype: str
    layout: str
    route: str
    failures: list[str]
    forward: Timed | None = None
    step: Timed | None = None
    memory: MemoryOfBoth | None = None


def run(case: Case, dtype: str, layout: str, seconds: float) -> Row:
    """Check and time one row; `seconds` is the time for each of forward and step."""
    bench = _Bench(case, DTYPES[dtype], LAYOUTS[layout])
    route = bench.route()
    if failures := bench.failures():
        return Row(case, dtype, layout, route, failures)
    forward = bench.time(False, seconds)
    if not case.loss:
        return Row(case, dtype, layout, route, [], forward)
    return Row(case, dtype, layout, route, [], forward, bench.time(True, seconds), bench.memory())


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _stock_loss(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    size = (target.size(1), target.size(2))
    return F.cross_entropy(_resized(logits, size), target, **options)


def _stock_classes(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return _resized(logits, size).argmax(1)


class _Bench:
    """The tensors of a row and what is done with them."""

    def __init__(self, case: Case, dtype: torch.dtype, layout: torch.memory_format) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (BATCH, case.classes, case.size, case.size)
        logits = 3 * torch.randn(shape, generator=generator)
        self.case = case
        self.size = (case.out, case.out)
        self.logits = logits.to(dtype).contiguous(memory_format=layout)
        self.target = torch.randint(case.classes, (BATCH, *self.size), generator=generator)
        self.target[torch.rand(self.target.shape, generator=generator) < 0.1] = _IGNORE
        self.copies = (torch.empty_like(self.logits), torch.empty_like(self.target))

    def route(self) -> str:
        if self.case.loss:
            return str(explain(upsample_cross_entropy, self.logits, self.target).chosen)
        return str(explain(upsample_argmax, self.logits, self.size).chosen)

    def failures(self) -> list[str]:
        """What is less exact than the accuracy rule allows, in the first image."""
        return self._failures_of_loss() if self.case.loss else self._failures_of_classes()

    def _failures_of_loss(self) -> list[str]:
        target = self.target[:1]
        results = []
        for function, dtype in (
            (upsample_cross_entropy, self.logits.dtype),
            (_stock_loss, self.logits.dtype),
            (_stock_loss, torch.float64),
        ):
            leaf = self.logits[:1].detach().to(dtype).requires_grad_()
            loss = function(leaf, target, ignore_index=_IGNORE, reduction="none")
            results.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaf)))
        found = []
        names = ("loss", "gradient")
        for name, ours, theirs, exact, size in zip(
            names, *results, self._magnitudes(target), strict=True
        ):
            if wrong := _objection(name, ours, theirs, exact, size):
                found.append(wrong)
        return found

    def _magnitudes(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sizes of the terms of loss and gradient; exponents are differences of rounded numbers."""
        wide = self.logits[:1].double()
        size = _resized(wide.abs(), self.size)
        z = _resized(wide, self.size)
        logsumexp = z.logsumexp(1, keepdim=True)
        label = torch.where(target == _IGNORE, 0, target)[:, None]
        loss = size.gather(1, label)[:, 0] + logsumexp[:, 0].abs()
        terms = (z - logsumexp).exp_() * (1 + size + logsumexp.abs())
        terms.scatter_add_(1, label, torch.ones_like(terms[:, :1]))
        gradient = torch.ops.aten.upsample_bilinear2d_backward(
            terms, list(self.size), list(wide.shape), False
        )
        return loss, gradient

    def _failures_of_classes(self) -> list[str]:
        """The logit of the class that was found must be the largest, but for rounding."""
        wide = _resized(self.logits[:1].double(), self.size)
        found = upsample_argmax(self.logits[:1], self.size)
        chosen = wide.gather(1, found[:, None])[:, 0]
        largest = wide.amax(1)
        size = _resized(self.logits[:1].double().abs(), self.size).amax(1)
        stock = _resized(self.logits[:1].float(), self.size).amax(1)
        wrong = _objection("largest logit", chosen.float(), stock, largest, size)
        return [wrong] if wrong else []

    def memory(self) -> MemoryOfBoth:
        """Memory of a step, by stock and ours."""
        leaf = self.logits.detach().requires_grad_()

        def of(function: Callable[..., Tensor]) -> memory.Memory:
            return memory.of_step(
                lambda: function(leaf, self.target, ignore_index=_IGNORE),
                lambda loss: torch.autograd.grad(loss, leaf),
                (),
            )

        return MemoryOfBoth.of(of(_stock_loss), of(upsample_cross_entropy), None)

    def time(self, backward: bool, seconds: float) -> Timed:
        """Time stock, ours and a copy in turns."""
        ours_and_stock: tuple[Callable[..., Tensor], ...] = (upsample_argmax, _stock_classes)
        arguments: tuple[Any, ...] = (self.logits, self.size)
        options: dict[str, Any] = {}
        if self.case.loss:
            ours_and_stock = (upsample_cross_entropy, _stock_loss)
            arguments = (self.logits.detach().requires_grad_(backward), self.target)
            options = {"ignore_index": _IGNORE}

        def contender(function: Callable[..., Tensor]) -> Callable[[], object]:
            if not backward:
                return lambda: function(*arguments, **options)
            return lambda: torch.autograd.grad(function(*arguments, **options), arguments[0])

        def copy() -> None:
            for to, source in zip(self.copies, (self.logits, self.target), strict=True):
                to.copy_(source)

        ours, stock = (contender(function) for function in ours_and_stock)
        with torch.set_grad_enabled(backward):
            timed = interleave({"stock": stock, "ours": ours, "copy": copy}, seconds, _LEAST_ROUNDS)
        return Timed(
            Spread.of(timed["stock"]),
            Spread.of(timed["ours"]),
            Spread.of(timed["copy"]),
            ratios(timed["stock"], timed["ours"]),
            ratios(timed["ours"], timed["copy"]),
            len(timed["ours"]),
        )


def _objection(
    name: str, ours: Tensor, theirs: Tensor, exact: Tensor, magnitude: Tensor
) -> str | None:
    value = exact.detach().numpy()
    error = accuracy.error(ours, value)
    floor = accuracy.floor(ours.dtype, value, magnitude.numpy())
    limit = accuracy.allowed(accuracy.error(theirs, value), floor)
    return None if error <= limit else f"{name}: error {error:.3g}, allowed {limit:.3g}"
