"""Times a layer of ours against stock layers with the same parameters, and measures their memory.

Inference is a forward in evaluation; a step is a forward in training and all gradients. In dtypes
other than float32 both run under autocast, on an input of that dtype.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import ASPP, Decoder, SeparableConv2d
from . import accuracy, memory
from .goals import Goal, Verdict
from .memory import Memory
from .stock import stock_of
from .timing import Spread, interleave, ratios

Layer = SeparableConv2d | ASPP | Decoder
# By name; gradients have the names of what they are by.
Results = dict[str, Tensor]
# Maps are compared on so many channels, spread over all blocks.
_CHECKED_CHANNELS = 32
# Norms in front of an activation shift its argument from its corner, some channels downwards, so
# far that of as many normal values as a map has hardly one lies beyond: rounding then decides about
# no gradient.
_DOWNWARDS_EVERY = 16
_PIXELS = (0, 2, 3)


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
    case: Any,
    dtype: str,
    layout: str,
    route: str,
    bench: Bench,
    goals: Goals,
    seconds: float,
    least: int = 5,
) -> Row:
    """Check and time one row.

    `seconds` is the time for each of inference and step, `least` the rounds however long they take.
    """
    count = getattr(case, "count", 0)
    if failures := bench.failures():
        return Row(case, dtype, layout, route, count, failures)
    return Row(
        case, dtype, layout, route, count, [],
        bench.time(bench.infer, goals.inference, seconds, least),
        bench.time(bench.step, goals.step, seconds, least),
        MemoryOfBoth.of(bench.memory(bench.stock), bench.memory(bench.ours), goals.kept),
    )  # fmt: skip


class Bench:
    """A layer of ours, the stock layers, and their input.

    Args:
        layer: ours; its parameters and buffers are set.
        x: its input.
        beside: its second one: the residual, or the low-level features; or None.
    """

    def __init__(self, layer: Layer, x: Tensor, beside: Tensor | None = None) -> None:
        self.ours: nn.Module = layer
        self.inputs = [x] if beside is None else [x, beside]
        fill(layer, max(t.numel() // t.size(1) for t in self.inputs))
        layer.to(x.device)
        self.stock: nn.Module = stock_of(layer)
        self.grad = _normal(7, self.infer(self.ours)())

    def infer(self, layer: nn.Module) -> Callable[[], Tensor]:
        """A forward in evaluation."""
        layer.eval()

        def forward() -> Tensor:
            with torch.no_grad():
                return self._call(layer, self.inputs)

        return forward

    def step(self, layer: nn.Module) -> Callable[[], Sequence[Tensor]]:
        """A forward in training and all gradients; gives the result and the gradients."""
        layer.train()
        leaves = self._leaves(layer)

        def forward_and_backward() -> Sequence[Tensor]:
            output = self._call(layer, leaves[: len(self.inputs)])
            return output.detach(), *torch.autograd.grad(output, leaves, self.grad)

        return forward_and_backward

    def time(
        self,
        direction: Callable[[nn.Module], Callable[[], object]],
        goal: Goal | None,
        seconds: float,
        least: int,
    ) -> Timed:
        """Time stock and ours in turns."""
        calls = {"stock": direction(self.stock), "ours": direction(self.ours)}
        stock, ours = interleave(calls, seconds, least).values()
        ratio = ratios(stock, ours)
        verdict = None if goal is None else goal.verdict(ratio.median, 0)
        return Timed(Spread.of(stock), Spread.of(ours), ratio, len(ours), goal, verdict)

    def memory(self, layer: nn.Module) -> Memory:
        """What a step of a layer keeps and takes."""
        layer.train()
        leaves = self._leaves(layer)
        return memory.of_step(
            lambda: self._call(layer, leaves[: len(self.inputs)]),
            lambda output: torch.autograd.grad(output, leaves, self.grad),
            [*layer.parameters(), *layer.buffers()],
            self.grad.device.type,
        )

    def failures(self) -> list[str]:
        """What is less exact than the accuracy rule allows, in inference or in training."""
        found = []
        for training in (False, True):
            exact = self.exact(training)
            ours, stock = (self.results(layer, training) for layer in (self.ours, self.stock))
            found += exact.objections(ours, stock)
        return found

    def results(self, layer: nn.Module, training: bool) -> Results:
        """The result in evaluation, or in training with all gradients, by name."""
        if not training:
            return {"inference": _some(self.infer(layer)())}
        output, *grads = self.step(layer)()
        beside = "low level" if isinstance(self.ours, Decoder) else "residual"
        inputs = ("input", beside)[: len(self.inputs)]
        maps = zip(("output", *inputs), (output, *grads), strict=False)
        parameters = zip(_names(layer), grads[len(self.inputs) :], strict=True)
        return {name: _some(t) for name, t in maps} | dict(parameters)

    def exact(self, training: bool) -> Exact:
        """The same in float64."""
        bench, layer = copy.copy(self), copy.deepcopy(self.stock).double()
        # Stock PyTorch is slow on channels_last in float64.
        bench.inputs = [t.double().contiguous() for t in self.inputs]
        bench.grad = self.grad.double().contiguous()
        sums: dict[str, float] = {}
        for name, module in layer.named_modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # hooks do not bear it
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(partial(_note, sums, name, _behind_norm))
            if isinstance(module, nn.Conv2d) and module.groups == 1:
                module.register_forward_hook(partial(_note, sums, name, _root_mean_square))
        results = bench.results(layer, training)
        if self.inputs[0].size(0) == 2:
            # The gradients of a norm of two values all but cancel.
            results.pop("image_pooling.conv.weight", None)
        return Exact(results, sums, self.grad.dtype)

    def copies(self, count: int) -> list[Bench]:
        """So many of the same, on inputs of their own."""
        made = [copy.copy(self) for _ in range(count)]
        for bench in made:
            bench.inputs, bench.grad = [t.clone() for t in self.inputs], self.grad.clone()
        return made

    def _leaves(self, layer: nn.Module) -> list[Tensor]:
        return [*(t.detach().requires_grad_() for t in self.inputs), *layer.parameters()]

    @staticmethod
    def _call(layer: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
        with _precision(inputs[0]):
            output: Tensor = layer(*inputs)
        return output


@dataclass(frozen=True)
class Exact:
    """Results in float64, and how far off others may be that were computed in `dtype`.

    Shifts, scales and weights in front of another batch norm have gradients that cancel; what is
    summed up for them has been rounded itself. `sums` holds for shifts the largest sum of absolute
    terms; for scales and weights, whose terms are those times values that were rounded in front of
    the norm or the product, the root of the largest sum of squares times the size of these, as
    their roundings are independent.
    """

    results: Results
    sums: dict[str, float]
    dtype: torch.dtype

    def objections(self, ours: Results, stock: Results) -> list[str]:
        """What of ours is less exact than the accuracy rule allows."""
        found = []
        for name, exact in self.results.items():
            value = exact.cpu().numpy()
            error = accuracy.error(ours[name], value)
            floor = accuracy.floor(self.dtype, value, abs(value))
            if name in self.sums:
                floor += accuracy.rounding_unit(self.dtype) * self.sums[name] / abs(value).max()
            limit = accuracy.allowed(accuracy.error(stock[name], value), floor)
            if not error <= limit:
                what = name if name in ("inference", "output") else f"{name} gradient"
                found.append(f"{what}: error {error:.3g}, allowed {limit:.3g}")
        return found


def _note(
    sums: dict[str, float],
    name: str,
    size_of: Callable[[Tensor], Tensor],
    _module: nn.Module,
    inputs: tuple[Tensor, ...],
    output: Tensor,
) -> None:
    """Keep what the roundings behind the gradients of a layer's parameters sum up to."""
    if not output.requires_grad:
        return
    size = float(size_of(inputs[0].detach()))

    def note(grad: Tensor) -> None:
        sums[f"{name}.bias"] = float(grad.abs().sum(_PIXELS).max())
        sums[f"{name}.weight"] = size * float(grad.square().sum(_PIXELS).max().sqrt())

    output.register_hook(note)


def _root_mean_square(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _behind_norm(x: Tensor) -> Tensor:
    """The size that values in front of a norm would have behind it, were they not centred.

    Constant channels, where an activation has let nothing pass, have no size.
    """
    variance = x.var(_PIXELS, correction=0)
    relative = torch.where(variance > 0, x.square().mean(_PIXELS) / variance, 0)
    return relative.max().sqrt()


def _names(layer: nn.Module) -> list[str]:
    """Of the parameters, without what torch.compile puts in front."""
    return [name.removeprefix("_orig_mod.") for name, _ in layer.named_parameters()]


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
    seed: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    layout: torch.memory_format,
    device: str = "cpu",
) -> Tensor:
    """Normally distributed values, the same at every call."""
    generator = torch.Generator(device).manual_seed(seed)
    made = torch.randn(tuple(shape), generator=generator, device=device).to(dtype)
    return made.contiguous(memory_format=layout)


@torch.no_grad()
def fill(layer: Layer, pixels: int) -> None:
    """Give parameters and buffers values, the same at every call, for maps of so many pixels."""
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
            off_corner = math.sqrt(2 * math.log(pixels * norm.num_features)) * norm.weight
            norm.bias.copy_(torch.where(down, -off_corner, off_corner))
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_(0, 0.1, generator=generator)
        norm.running_var.uniform_(0.5, 1.5, generator=generator)


def _norms(layer: Layer) -> Iterator[tuple[nn.BatchNorm2d, str]]:
    """Every batch norm, and the activation behind it."""
    separable: Iterable[nn.Module] = [layer]
    if isinstance(layer, ASPP):
        separable = layer.atrous
    elif isinstance(layer, Decoder):
        separable = layer.separable_convs()
        yield layer.low_level_projection.bn, layer.activation
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
