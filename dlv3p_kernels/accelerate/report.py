"""`dk.explain(model)`: what runs, or would run, on which op, and why the rest does not."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import dispatch
from ..backends import BACKENDS
from . import layers
from .cost import Cost, costs_of
from .counting import effective
from .finding import Finder
from .swap import is_swapped, plan_of, swap_back

# Left out of the list of what is not replaced: there is nothing to gain, or an op takes them along.
_UNREMARKABLE = (nn.ReLU, nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU6, nn.SiLU)


@dataclass(frozen=True)
class Served:
    """A call of an op.

    Attributes:
        module: path of the module whose forward calls it.
        cls: name of the module's class.
        op: as in `dk.OP`.
        pattern: what was recognised, in words.
        layers: paths of the layers that it stands for.
    """

    module: str
    cls: str
    op: str
    pattern: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Unserved:
    """A layer that runs as it is, and why."""

    layer: str
    cls: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What `dk.accelerate` does, or would do, with a model; printable.

    Attributes:
        accelerated: whether it has been done.
        backend: what serves the ops on the device of the parameters.
        served: the calls of ops.
        unserved: the layers that take time or memory traffic and stay as they are.
        time_share: estimated share of the model's time that the served layers take in stock
            PyTorch; None where that could not be estimated.
        byte_share: the same of the bytes read and written.
        basis: what the estimate was made from, or why there is none.
    """

    accelerated: bool
    backend: str
    served: tuple[Served, ...]
    unserved: tuple[Unserved, ...]
    time_share: float | None
    byte_share: float | None
    basis: str

    @property
    def ops(self) -> Counter[str]:
        """How many calls there are of each op."""
        return Counter(call.op for call in self.served)

    def __str__(self) -> str:
        lines = [f"accelerate: {len(self.served)} calls of ops, back end {self.backend}"]
        lines += [f"  {n:4d} {op}" for op, n in self.ops.most_common()]
        if self.time_share is not None and self.byte_share is not None:
            lines.append(
                f"they stand for about {self.time_share:.0%} of the time and"
                f" {self.byte_share:.0%} of the bytes ({self.basis})"
            )
        else:
            lines.append(f"share of time and bytes: unknown ({self.basis})")
        if self.served:
            lines.append("runs on ops:" if self.accelerated else "would run on ops:")
        calls: dict[tuple[str, str], Counter[str]] = {}
        for call in self.served:
            patterns = calls.setdefault((call.module, call.cls), Counter())
            patterns[f"{call.op} ({call.pattern})"] += 1
        for (module, cls), patterns in calls.items():
            texts = [f"{n} x {text}" if n > 1 else text for text, n in patterns.items()]
            lines.append(f"  {module or '(model)'} [{cls}]: {'; '.join(texts)}")
        lines.append("stays as it is:")
        grouped: dict[tuple[str, str], list[str]] = {}
        for layer in self.unserved:
            grouped.setdefault((layer.cls, layer.reason), []).append(layer.layer)
        for (cls, reason), paths in grouped.items():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            lines.append(f"  {cls} {paths[0] or '(model)'}{more}: {reason}")
        return "\n".join(lines)


def explain_model(model: nn.Module, example: Tensor | None = None) -> Report:
    """The report on a model, which stays as it is.

    Args:
        model: accelerated or not.
        example: an input to estimate shares by; (2, 3, 512, 512) where left out.
    """
    accelerated = any(is_swapped(module) for module in model.modules())
    finder = Finder()
    if not accelerated:
        finder.search(model)
    planned = plan_of if accelerated else lambda module: finder.found[id(module)].plan
    names = {id(module): name for name, module in model.named_modules()}
    served, covered = [], set()
    children = {
        id(inner)
        for module in model.modules()
        if layers.calls_ops(module)
        for inner in module.modules()
        if inner is not module
    }
    for path, module, replacement in effective(model, planned):
        paths = tuple(f"{path}.{p}".strip(".") for p in replacement.paths)
        covered |= {id(model.get_submodule(p)) for p in paths}
        for p in paths:
            children |= {id(child) for child in model.get_submodule(p).children()}
        cls = layers.plain_class(module).__name__
        served.append(Served(path, cls, replacement.op, replacement.pattern, paths))
    if accelerated:  # why the rest is not: look at a copy without plans
        finder = Finder()
        plain = _on_meta(model)
        finder.search(plain)
        reasons = {n: finder.found[id(m)].reason for n, m in plain.named_modules()}
    else:
        reasons = {n: finder.found[id(m)].reason for n, m in model.named_modules()}
    unserved = tuple(
        Unserved(names[id(m)], layers.plain_class(m).__name__, _why(m, reasons[names[id(m)]]))
        for m in model.modules()
        if id(m) not in covered | children and _is_remarkable(m)
    )
    times, sizes, basis = _shares(model, {names[i] for i in covered}, example)
    return Report(accelerated, _backend(model), tuple(served), unserved, times, sizes, basis)


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy without plans, hooks of the user included, that computes nothing."""
    tensors = [*model.parameters(), *model.buffers()]
    memo = {id(t): _meta(t) for t in tensors}
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        swap_back(module)
    return twin


def _meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, tensor.requires_grad)
    return empty


def _shares(
    model: nn.Module, covered: set[str], example: Tensor | None
) -> tuple[float | None, float | None, str]:
    shape = (2, 3, 512, 512) if example is None else tuple(example.shape)
    try:
        costs = costs_of(_on_meta(model), shape)
    except Exception as error:  # any model, any input: an estimate is not worth failing for
        line = (str(error).splitlines() or [""])[0]
        return None, None, f"no forward of {shape} on the meta device: {line}"
    total = sum(costs.values(), Cost())
    ours = sum((cost for name, cost in costs.items() if name in covered), Cost())
    if not total.seconds or not total.bytes:
        return None, None, "nothing was called"
    text = "x".join(map(str, shape))
    return ours.seconds / total.seconds, ours.bytes / total.bytes, f"roofline, input {text}"


def _why(module: nn.Module, reason: str) -> str:
    if altered := layers.altered(module):
        return altered
    role = layers.role_of(module)
    if isinstance(role, layers.Convolution):
        return f"{role.kind} convolution: stock PyTorch's runs"
    return reason


def _is_remarkable(module: nn.Module) -> bool:
    """Whether the layer does work of its own."""
    if isinstance(module, _UNREMARKABLE):
        return layers.altered(module) is not None
    if layers.altered(module) or layers.calls_ops(module):
        return True
    return not any(True for _ in module.children()) and not isinstance(
        module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)
    )


def _backend(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    device = "cpu" if parameter is None else parameter.device.type
    if dispatch.current() != "auto":
        return f"{dispatch.current()!r}, as requested"
    if device == "cuda":
        return "'reference': on GPUs until recorded results show the kernels ahead"
    if device not in BACKENDS:
        return f"'reference': there are no kernels for {device}"
    reason = BACKENDS[device].missing()
    return f"'reference': {reason}" if reason else f"{device!r}, chosen anew at every call"
