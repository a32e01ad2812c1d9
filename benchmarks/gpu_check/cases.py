"""The layers that the GPU parts look at, the most telling ones first."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dlv3p_kernels.bench import aspp, decoder, separable

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Case:
    """A depthwise 3x3 layer, the batch norm of a map of that size, or such logits of c classes."""

    n: int
    c: int
    size: int
    dilation: int = 1
    stride: int = 1

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int]]:
        """Stride, padding and dilation as the operators take them."""
        return [self.stride] * 2, [self.dilation] * 4, [self.dilation] * 2

    @property
    def output_size(self) -> int:
        """Height and width of the result of the convolution."""
        return (self.size - 1) // self.stride + 1

    def __str__(self) -> str:
        text = f"{self.n}x{self.c}x{self.size}x{self.size} d={self.dilation}"
        return text + (f" stride {self.stride}" if self.stride > 1 else "")


# ASPP at output stride 16 and 8, Xception's middle flow, decoder.
DEPTHWISE = (
    Case(16, 2048, 33, 6),
    Case(16, 2048, 33, 12),
    Case(16, 2048, 33, 18),
    Case(4, 2048, 65, 12),
    Case(4, 2048, 65, 36),
    Case(16, 728, 33, 1),
    Case(16, 728, 33, 2),
    Case(16, 304, 129, 1),
    Case(16, 256, 129, 1),
    Case(16, 304, 129, 1, stride=2),
    Case(16, 256, 129, 1, stride=2),
    Case(16, 2048, 33, 1),
    # The goals ask for these channels at every rate.
    Case(16, 728, 33, 12),
    Case(16, 728, 65, 36),
    Case(16, 256, 129, 12),
    Case(16, 256, 129, 36),
)
# Entry flow, middle flow, exit flow, ResNet's last stage.
NORM = (Case(16, 128, 257), Case(16, 728, 33), Case(16, 256, 129), Case(16, 2048, 33))
# PASCAL VOC, Cityscapes and ADE20K at a quarter of 513x513.
UPSAMPLE = (Case(16, 21, 129), Case(16, 19, 129), Case(4, 150, 129))
# Of the same kinds, for a run on a CPU that only shows that everything works.
DRY_DEPTHWISE = (Case(1, 16, 9, 2), Case(2, 24, 8, 1, stride=2))
DRY_NORM = (Case(2, 16, 9),)
DRY_UPSAMPLE = (Case(2, 7, 9),)
# By the family of a subject.
FAMILIES = {"depthwise": DEPTHWISE, "norm": NORM, "upsample": UPSAMPLE}
DRY_FAMILIES = {"depthwise": DRY_DEPTHWISE, "norm": DRY_NORM, "upsample": DRY_UPSAMPLE}


@dataclass(frozen=True)
class LayerGoal:
    """How many times as fast as stock and compiled layers, and the share of an H100's floor."""

    stock: float
    compiled: float
    of_floor: float | None = None


@dataclass(frozen=True)
class Layer:
    """A whole layer and its goals."""

    name: str
    case: separable.Case | aspp.Case | decoder.Case
    inference: LayerGoal
    training: LayerGoal


_SEPARABLE_GOALS = (LayerGoal(4, 2.5, 0.65), LayerGoal(2, 1.5, 0.65))
# ASPP at output stride 16 and 8, the decoder's layers and the whole of it, Xception's middle flow.
LAYERS = (
    Layer(
        "ASPP",
        aspp.Case(16, 2048, 256, 33, (6, 12, 18)),
        LayerGoal(5, 3.5, 0.60),
        LayerGoal(3.5, 2.5, 0.55),
    ),
    Layer("separable", separable.Case(256, 256, 129, "DBRWBR", batch=16), *_SEPARABLE_GOALS),
    Layer("separable", separable.Case(304, 256, 129, "DBRWBR", batch=16), *_SEPARABLE_GOALS),
    Layer("separable", separable.Case(728, 728, 33, batch=16), LayerGoal(3, 2), LayerGoal(2, 1.5)),
    Layer(
        "ASPP",
        aspp.Case(4, 2048, 256, 65, (12, 24, 36)),
        LayerGoal(5, 3.5),
        LayerGoal(3.5, 2.5),
    ),
    Layer("decoder", decoder.Case(16, 33, 129), LayerGoal(6, 4), LayerGoal(2.2, 1.7)),
)
DRY_LAYERS = (
    Layer("ASPP", aspp.Case(4, 16, 8, 9, (2, 4)), LayerGoal(1, 1), LayerGoal(1, 1)),
    Layer("separable", separable.Case(16, 24, 9), LayerGoal(1, 1), LayerGoal(1, 1)),
    Layer(
        "decoder", decoder.Case(2, 5, 9, classes=3, channels=16), LayerGoal(1, 1), LayerGoal(1, 1)
    ),
)
