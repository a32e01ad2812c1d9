"""Times `dk.nn.SeparableConv2d` on the separable layers of DeepLabv3+ with Xception-65."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..explain import explain
from ..nn import SeparableConv2d
from ..ops import separable_conv2d
from . import goals, layers
from .depthwise import BATCH, DTYPES, LAYOUTS

OP = "separable_conv2d"
DEFAULT_LAYOUTS = ("channels_last",)
# Order of norms (B) and activations (R) around the halves (D, W): the layer's arguments.
_ORDERS: dict[str, tuple[str, bool, str, str]] = {
    "RDBWB": ("relu", True, "identity", "identity"),
    "DBRWBR": ("identity", True, "relu", "relu"),
    "DWBR": ("identity", False, "identity", "relu"),
}
Order = Literal["RDBWB", "DBRWBR", "DWBR"]


@dataclass(frozen=True)
class Case:
    """A layer, on square maps; `count` is how often Xception-65 has it (0: it has it not)."""

    channels: int
    out_channels: int
    size: int
    order: Order = "RDBWB"
    stride: int = 1
    dilation: int = 1
    residual: bool = False
    count: int = 0
    quick: bool = False
    batch: int = BATCH

    @property
    def output_size(self) -> int:
        """Height and width of the result."""
        return (self.size - 1) // self.stride + 1

    def layer(self) -> SeparableConv2d:
        """As a net would make it."""
        before, norm, between, behind = _ORDERS[self.order]
        return SeparableConv2d(
            self.channels, self.out_channels, 3, self.stride, self.dilation, self.dilation,
            depthwise_norm=norm, pre_activation=before, depthwise_activation=between,
            pointwise_activation=behind,
        )  # fmt: skip

    def bench(
        self, dtype: torch.dtype, layout: torch.memory_format, device: str = "cpu"
    ) -> layers.Bench:
        """The layer and stock layers on maps."""

        def made(seed: int, channels: int, size: int) -> torch.Tensor:
            shape = (self.batch, channels, size, size)
            return layers.normal_map(seed, shape, dtype, layout, device)

        x = made(0, self.channels, self.size)
        residual = made(2, self.out_channels, self.output_size) if self.residual else None
        return layers.Bench(self.layer(), x, residual)

    def __str__(self) -> str:
        text = f"{self.batch}x{self.channels}x{self.size}x{self.size} -> {self.out_channels}"
        text += f" {self.order}"
        text += f" d={self.dilation}" if self.dilation > 1 else ""
        text += f" stride {self.stride}" if self.stride > 1 else ""
        text += " + residual" * self.residual
        return text + (f" ({self.count} times)" if self.count > 1 else "")


# Xception-65 at output stride 16, images of 513x513: entry, middle and exit flow.
XCEPTION = (
    Case(64, 128, 257, count=1),
    Case(128, 128, 257, count=1),
    Case(128, 128, 257, stride=2, residual=True, count=1),
    Case(128, 256, 129, count=1),
    Case(256, 256, 129, count=1),
    Case(256, 256, 129, stride=2, residual=True, count=1),
    Case(256, 728, 65, count=1),
    Case(728, 728, 65, count=1),
    Case(728, 728, 65, stride=2, residual=True, count=1),
    Case(728, 728, 33, count=33, quick=True),
    Case(728, 728, 33, residual=True, count=16),
    Case(728, 1024, 33, count=1),
    Case(1024, 1024, 33, residual=True, count=1),
    Case(1024, 1536, 33, "DBRWBR", dilation=2, count=1),
    Case(1536, 1536, 33, "DBRWBR", dilation=2, count=1),
    Case(1536, 2048, 33, "DBRWBR", dilation=2, count=1),
)
_ORDERS_OF_HEADS: tuple[Order, Order] = ("DBRWBR", "DWBR")
# The decoder, and branches of the ASPP as DeepLab and as segmentation_models_pytorch have them.
CASES = (
    *XCEPTION,
    Case(304, 256, 129, "DBRWBR"),
    Case(256, 256, 129, "DBRWBR", quick=True),
    *(
        Case(2048, 256, 33, order, dilation=rate, quick=(order, rate) == ("DBRWBR", 12))
        for order in _ORDERS_OF_HEADS
        for rate in (6, 12, 18)
    ),
)


def run(case: Case, dtype: str, layout: str, seconds: float) -> layers.Row:
    """Check and time one row; `seconds` is the time for each of inference and step."""
    bench = case.bench(DTYPES[dtype], LAYOUTS[layout])
    layer = case.layer()
    x = bench.inputs[0].float()
    route = explain(separable_conv2d, x, layer.depthwise.weight, layer.pointwise.weight)
    aims = layers.Goals(goals.NOT_SLOWER, goals.NOT_SLOWER, goals.KEPT)
    return layers.run(case, dtype, layout, str(route.chosen), bench, aims, seconds)
