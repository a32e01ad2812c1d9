"""Times `dk.nn.ASPP`, whole, against the stock layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..explain import explain
from ..nn import ASPP
from ..ops import aspp
from . import goals, layers
from .depthwise import DTYPES, LAYOUTS
from .separable import DEFAULT_LAYOUTS

__all__ = ["CASES", "DEFAULT_LAYOUTS", "OP", "Case", "run"]

OP = "aspp"
# One may take some ten seconds.
_LEAST_ROUNDS = 3
_KEPT_ONLY = layers.Goals(kept=goals.KEPT)


@dataclass(frozen=True)
class Case:
    """A pyramid on square maps, with 3x3 branches of these atrous rates."""

    batch: int
    channels: int
    out_channels: int
    size: int
    rates: tuple[int, ...]
    separable: bool = True
    goals: layers.Goals = _KEPT_ONLY
    quick: bool = False

    def layer(self) -> ASPP:
        """As a net would make it."""
        return ASPP(self.channels, self.out_channels, self.rates, separable=self.separable)

    def bench(
        self, dtype: torch.dtype, layout: torch.memory_format, device: str = "cpu"
    ) -> layers.Bench:
        """The layer and stock layers on a map."""
        shape = (self.batch, self.channels, self.size, self.size)
        return layers.Bench(self.layer(), layers.normal_map(0, shape, dtype, layout, device))

    def __str__(self) -> str:
        rates = "/".join(map(str, self.rates))
        kind = "separable" if self.separable else "dense"
        return (
            f"{self.batch}x{self.channels}x{self.size}x{self.size} -> {self.out_channels},"
            f" {kind} {rates}"
        )


# DeepLabv3+ at output stride 16 and 8; DeepLabv3 as torchvision has it, of which there is no goal.
CASES = (
    Case(2, 2048, 256, 33, (6, 12, 18), True, layers.Goals(None, goals.PYRAMID, goals.KEPT), True),
    Case(1, 2048, 256, 65, (12, 24, 36)),
    Case(2, 2048, 256, 33, (12, 24, 36), False, layers.Goals()),
)


def run(case: Case, dtype: str, layout: str, seconds: float) -> layers.Row:
    """Check and time one row; `seconds` is the time for each of inference and step."""
    bench = case.bench(DTYPES[dtype], LAYOUTS[layout])
    layer = case.layer().eval()
    branches = [layer.conv1x1.branch(layer.activation)] * (2 + len(case.rates))
    route = explain(aspp, bench.inputs[0].float(), branches, layer.projection.conv.weight)
    chosen = str(route.chosen)
    return layers.run(case, dtype, layout, chosen, bench, case.goals, seconds, _LEAST_ROUNDS)
