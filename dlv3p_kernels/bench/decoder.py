"""Times `dk.nn.Decoder`, whole, against the stock layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..explain import explain
from ..nn import Decoder
from ..ops import decoder_conv2d
from . import goals, layers
from .depthwise import DTYPES, LAYOUTS
from .separable import DEFAULT_LAYOUTS

__all__ = ["CASES", "DEFAULT_LAYOUTS", "LOW_LEVEL", "OP", "PROJECTED", "Case", "run"]

OP = "decoder"
# Channels of the low-level features that Xception and ResNet hand over, and after the projection.
LOW_LEVEL, PROJECTED = 256, 48


@dataclass(frozen=True)
class Case:
    """A decoder on square maps: the encoder's of 256 channels, and the low-level one."""

    batch: int
    source: int
    size: int
    classes: int = 21
    convs: int = 2
    kernel_size: int = 3
    channels: int = 256
    align_corners: bool = True
    quick: bool = False

    def layer(self) -> Decoder:
        """As a net would make it."""
        return Decoder(
            self.channels, LOW_LEVEL, self.classes, low_level_channels=PROJECTED,
            channels=self.channels, convs=self.convs, kernel_size=self.kernel_size,
            align_corners=self.align_corners,
        )  # fmt: skip

    def bench(
        self, dtype: torch.dtype, layout: torch.memory_format, device: str = "cpu"
    ) -> layers.Bench:
        """The layer and stock layers on both maps."""
        shapes = (
            (self.batch, self.channels, self.source, self.source),
            (self.batch, LOW_LEVEL, self.size, self.size),
        )
        maps = (layers.normal_map(i, s, dtype, layout, device) for i, s in enumerate(shapes))
        return layers.Bench(self.layer(), *maps)

    def __str__(self) -> str:
        kernel = f"{self.kernel_size}x{self.kernel_size}"
        return (
            f"{self.batch}x{self.channels}x{self.source}x{self.source} to {self.size}x{self.size}"
            f" + {PROJECTED}, {self.convs} {kernel} of {self.channels}, {self.classes} classes"
        )


# The decoder at the training crop of 513 pixels, output stride 16 and 8; one convolution, as in
# segmentation_models_pytorch; 5x5; a size of whole multiples.
CASES = (
    Case(2, 33, 129, quick=True),
    Case(2, 65, 129),
    Case(2, 33, 129, convs=1, align_corners=False),
    Case(2, 33, 129, kernel_size=5),
    Case(2, 32, 128, classes=150, align_corners=False),
)


def run(case: Case, dtype: str, layout: str, seconds: float) -> layers.Row:
    """Check and time one row; `seconds` is the time for each of inference and step."""
    bench = case.bench(DTYPES[dtype], LAYOUTS[layout])
    layer = case.layer()
    low_level = layer.low_level_projection.conv(bench.inputs[1][..., :2, :2].float())
    first = next(layer.separable_convs())
    route = explain(
        decoder_conv2d,
        bench.inputs[0].float(), low_level, first.depthwise.weight, first.pointwise.weight,
        padding=case.kernel_size // 2,
    )  # fmt: skip
    aims = layers.Goals(goals.NOT_SLOWER, goals.NOT_SLOWER, goals.KEPT)
    return layers.run(case, dtype, layout, str(route.chosen), bench, aims, seconds)
