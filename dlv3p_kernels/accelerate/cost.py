"""A rough price of every layer, from the shapes that a forward on the meta device shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# What a core of today does while it moves one byte: 50 to 100 GFLOP/s beside 5 to 10 GB/s.
_FLOP_PER_BYTE = 10.0


@dataclass(frozen=True)
class Cost:
    """Of one layer's forward; seconds are in units of one byte's time."""

    seconds: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.bytes + other.bytes)


def costs_of(model: nn.Module, shape: tuple[int, ...]) -> dict[str, Cost]:
    """The costs of the layers by their paths; `model` is on the meta device and gets used up."""
    costs: dict[str, Cost] = {}
    for name, module in model.named_modules():
        if not any(True for _ in module.children()) or isinstance(module, nn.Conv2d):
            module.register_forward_hook(_recorder(costs, name))
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    with torch.no_grad():
        model.eval()(torch.empty(shape, device="meta", dtype=dtype))
    return costs


def _recorder(costs: dict[str, Cost], name: str):  # type: ignore[no-untyped-def]
    def record(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        maps = [t for t in (*inputs, output) if isinstance(t, Tensor)]
        moved = float(sum(t.numel() * t.element_size() for t in maps))
        work = 0.0
        if isinstance(output, Tensor) and isinstance(module, (nn.Conv2d, nn.Linear)):
            work = 2.0 * output.numel() * module.weight[0].numel()
        cost = Cost(max(moved, work / _FLOP_PER_BYTE), moved)
        costs[name] = costs.get(name, Cost()) + cost

    return record
