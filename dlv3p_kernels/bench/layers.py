"""Times a layer of ours against stock layers with the same parameters, and measures their memory.

Inference is a forward in evaluation; a step is a forward in training and all gradients. In dtypes
other than float32 both run under autocast, on an input of that dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import ASPP, SeparableConv2d
from . import accuracy, memory
from .goals import Goal, Verdict
from .memory import Memory
from .stock import stock_of
from .timing import Spread, interleave, ratios

Layer = SeparableConv2d | ASPP
_LEAST_ROUNDS = 5
# Maps are compared on so many channels, spread over all blocks.
_CHECKED_CHANNELS = 32
# Deviations that the norms in front of an activation shift its argument from its corner, some
# channels downwards: rounding then decides about no gradient.
_OFF_CORNER = 4.0
_DOWNWARDS_EVERY = 16


@dataclass(frozen=True)
class Timed:
    """Milliseconds of one direction, the ratio of stock to ours, and the goal if there is one."""

    stock_ms: Spread
    ours_ms: Spread
    ratio: Spread
    rounds: int
    goal: Goal | None
    verdict: Verdict | None


@dataclass(frozen=True)
class MemoryOfBoth:
    """Memory of a step; the goal is on what is kept."""

    stock: Memory
    ours: Memory
    goal: float | None
    verdict: Verdict | None

    @classmethod
    def of(cls, stock: Memory, ours: Memory, goal: float | None) -> MemoryOfBoth:
        """With the verdict."""
        if goal is None:
            return cls(stock, ours, None, None)
        return cls(stock, ours, goal, "met" if ours.kept <= goal * stock.kept else "missed")


@dataclass(frozen=True)
class Row:
    """A case in one dtype and layout; `failures` says what was not right, then nothing is timed.

    `route` is the back end that serves ours; `count` says how often the layer is in Xception-65.
    """

    case: Any
    dtype: str
    layout: str
    route: str
    count: int
    failures: list[str]
    inference: Timed | None = None
    step: Timed | None = None
    memory: MemoryOfBoth | None = None


@dataclass(frozen=True)
class Goals:
    """Of a case; None where there is none."""

    inference: Goal | None = None
    step: Goal | None = None
    kept: float | None = None


def run(
    case: Any, dtype: str, layout: str, route: str, bench: Bench, goals: Goals, seconds: float
) -> Row:
    """Check and time one row; `seconds` is the time for each of inference and step."""
    count = getattr(case, "count", 0)
    if failures := bench.failures():
        return Row(case, dtype, layout, route, count, failures)
    return Row(
        case, dtype, layout, route, count, [],
        bench.time(bench.infer, goals.inference, seconds),
        bench.time(bench.step, goals.step, seconds),
        MemoryOfBoth.of(bench.memory(bench.stock), bench.memory(bench.ours), goals.kept),
    )  # fmt: skip


class Bench:
    """A layer of ours, the stock layers, and their input.

    Args:
        layer: ours; its parameters and buffers are set.
        x: its input.
        residual: added to its result, or None.
    """

    def __init__(self, layer: Layer, x: Tensor, residual: Tensor | None = None) -> None:
        self.ours: nn.Module = layer
        fill(layer)
        self.stock: nn.Module = stock_of(layer)
        self.inputs = [x] if residual is None else [x, residual]
        self.grad = _normal(7, self.infer(self.ours)())

    def infer(self, layer: nn.Module) -> Callable[[], Tensor]:
        """A forward in evaluation."""

        def forward() -> Tensor:
            with torch.no_grad():
                return self._call(layer.eval())

        return forward

    def step(self, layer: nn.Module) -> Callable[[], Sequence[Tensor]]:
        """A forward in training and all gradients; gives the result and the gradients."""
        leaves = self._leaves(layer)

        def forward_and_backward() -> Sequence[Tensor]:
            output = self._call(layer.train(), leaves[: len(self.inputs)])
            return output.detach(), *torch.autograd.grad(output, leaves, self.grad)

        return forward_and_backward

    def time(
        self,
        direction: Callable[[nn.Module], Callable[[], object]],
        goal: Goal | None,
        seconds: float,
    ) -> Timed:
        """Time stock and ours in turns."""
        calls = {"stock": direction(self.stock), "ours": direction(self.ours)}
        stock, ours = interleave(calls, seconds, _LEAST_ROUNDS).values()
        ratio = ratios(stock, ours)
        verdict = None if goal is None else goal.verdict(ratio.median, 0)
        return Timed(Spread.of(stock), Spread.of(ours), ratio, len(ours), goal, verdict)

    def memory(self, layer: nn.Module) -> Memory:
        """What a step of a layer keeps and takes."""
        leaves = self._leaves(layer)
        layer.train()
        return memory.of_step(
            lambda: self._call(layer, leaves[: len(self.inputs)]),
            lambda output: torch.autograd.grad(output, leaves, self.grad),
            [*layer.parameters(), *layer.buffers()],
            self.grad.device.type,
        )

    def failures(self) -> list[str]:
        """What is less exact than the accuracy rule allows."""
        exact_layer = copy.deepcopy(self.stock).double()
        exact_bench = copy.copy(self)
        # Stock PyTorch is slow on channels_last in float64.
        exact_bench.inputs = [t.double().contiguous() for t in self.inputs]
        exact_bench.grad = self.grad.double().contiguous()
        results = [bench._results(layer) for bench, layer in (
            (exact_bench, exact_layer), (self, self.ours), (self, self.stock)
        )]  # fmt: skip
        found = []
        for (name, exact), (_, ours), (_, stock) in zip(*results, strict=True):
            value = exact.numpy()
            error = accuracy.error(ours, value)
            floor = accuracy.floor(self.grad.dtype, value, abs(value))
            limit = accuracy.allowed(accuracy.error(stock, value), floor)
            if not error <= limit:
                found.append(f"{name}: error {error:.3g}, allowed {limit:.3g}")
        return found

    def _results(self, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
        yield "inference", _some(self.infer(layer)())
        output, *grads = self.step(layer)()
        yield "output", _some(output)
        for name, grad in zip(("input", "residual"), grads[: len(self.inputs)], strict=False):
            yield f"{name} gradient", _some(grad)
        for (name, _), grad in zip(
            layer.named_parameters(), grads[len(self.inputs) :], strict=True
        ):
            yield f"{name} gradient", grad

    def _leaves(self, layer: nn.Module) -> list[Tensor]:
        return [*(t.detach().requires_grad_() for t in self.inputs), *layer.parameters()]

    def _call(self, layer: nn.Module, inputs: Sequence[Tensor] | None = None) -> Tensor:
        with _precision(self.inputs[0]):
            output: Tensor = layer(*(self.inputs if inputs is None else inputs))
        return output


def _precision(x: Tensor) -> AbstractContextManager[object]:
    if x.dtype in (torch.float32, torch.float64):
        return nullcontext()
    return torch.autocast(x.device.type, x.dtype)


def _some(map: Tensor) -> Tensor:
    few = torch.linspace(0, map.size(1) - 1, _CHECKED_CHANNELS).round().long().unique()
    return map[:, few.to(map.device)]


def _normal(seed: int, like: Tensor) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.empty_like(like).normal_(generator=generator)


def normal_map(
    seed: int, shape: Sequence[int], dtype: torch.dtype, layout: torch.memory_format
) -> Tensor:
    """Normally distributed values, the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(tuple(shape), generator=generator).to(dtype)
    return made.contiguous(memory_format=layout)


@torch.no_grad()
def fill(layer: Layer) -> None:
    """Give parameters and buffers values, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    for conv in layer.modules():
        if isinstance(conv, nn.Conv2d):
            deviation = conv.weight[0].numel() ** -0.5
            conv.weight.normal_(0, deviation, generator=generator)
    for norm, activation in _norms(layer):
        norm.weight.uniform_(0.5, 1.5, generator=generator)
        norm.bias.normal_(generator=generator)
        if activation != "identity":
            down = torch.arange(norm.num_features) % _DOWNWARDS_EVERY == 1
            norm.bias.copy_(_OFF_CORNER * norm.weight * torch.where(down, -1.0, 1.0))
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_(0, 0.1, generator=generator)
        norm.running_var.uniform_(0.5, 1.5, generator=generator)


def _norms(layer: Layer) -> Iterator[tuple[nn.BatchNorm2d, str]]:
    """Every batch norm, and the activation behind it."""
    separable = layer.atrous if isinstance(layer, ASPP) else [layer]
    for part in separable:
        if isinstance(part, SeparableConv2d):
            yield from (
                (norm, activation)
                for norm, activation in (
                    (part.depthwise_bn, part.depthwise_activation),
                    (part.pointwise_bn, part.pointwise_activation),
                )
                if isinstance(norm, nn.BatchNorm2d)
            )
    if isinstance(layer, ASPP):
        rest = (layer.image_pooling, layer.conv1x1, *layer.atrous, layer.projection)
        for part in rest:
            if not isinstance(part, SeparableConv2d):
                yield part.bn, layer.activation
