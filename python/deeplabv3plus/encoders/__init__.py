"""Image encoders: Xception, ResNet, MobileNetV2 and, through timm, many more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .base import Encoder
from .mobilenet_v2 import MobileNetV2
from .resnet import ResNet
from .timm_encoder import TimmEncoder
from .xception import Xception

__all__ = [
    "ENCODERS",
    "Encoder",
    "MobileNetV2",
    "ResNet",
    "TimmEncoder",
    "Xception",
    "build_encoder",
]

_Grid = Sequence[int] | None
_Builder = Callable[[int, int, _Grid], Encoder]


def _xception(variant: str) -> _Builder:
    return lambda stride, channels, grid: Xception(variant, stride, channels, grid)


def _resnet(*depths: int) -> _Builder:
    return lambda stride, channels, grid: ResNet(depths, stride, channels, grid)


def _mobilenet_v2(stride: int, channels: int, grid: _Grid) -> Encoder:
    _refuse_grid("mobilenet_v2", grid)
    return MobileNetV2(stride, channels)


ENCODERS: dict[str, _Builder] = {
    "xception41": _xception("xception41"),
    "xception65": _xception("xception65"),
    "xception71": _xception("xception71"),
    "resnet50": _resnet(3, 4, 6, 3),
    "resnet101": _resnet(3, 4, 23, 3),
    "mobilenet_v2": _mobilenet_v2,
}
"""Builders of the encoders by name; each takes output stride, image channels and multi-grid."""

_TIMM = "timm:"


def build_encoder(
    name: str, output_stride: int = 16, in_channels: int = 3, multi_grid: _Grid = None
) -> Encoder:
    """Build an encoder with random weights.

    Args:
        name: a key of `ENCODERS`, or `"timm:NAME"` for a timm model.
        output_stride: 8, 16 or 32.
        in_channels: channels of the images.
        multi_grid: three factors on the rates of the last blocks (Xception and ResNet only).

    Raises:
        ValueError: no such encoder, or one that has no multi-grid.
        ImportError: `"timm:..."` without timm installed.
    """
    if name.startswith(_TIMM):
        _refuse_grid(name, multi_grid)
        return TimmEncoder(name.removeprefix(_TIMM), output_stride, in_channels)
    if name not in ENCODERS:
        raise ValueError(
            f'encoder must be one of {", ".join(ENCODERS)} or "timm:NAME", got {name!r}'
        )
    return ENCODERS[name](output_stride, in_channels, multi_grid)


def _refuse_grid(name: str, grid: _Grid) -> None:
    if grid is not None:
        raise ValueError(
            f"multi_grid works with the Xception and ResNet encoders, got {tuple(grid)} for {name}"
        )
