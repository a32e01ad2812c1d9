"""Class names and colours of a segmentation data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

IGNORE_INDEX = 255
"""Mask value of pixels that take no part in the loss and the metrics (the VOC "void" border)."""

VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip

Colour = tuple[int, int, int]


def voc_palette(count: int) -> tuple[Colour, ...]:
    """Return the first `count` colours of the PASCAL VOC map, each (red, green, blue) in 0..255.

    The bits of the class number, three at a time, are spread over the channels from the highest bit
    down, as the VOC development kit (`VOCcolormap.m`) defines it.
    """
    return tuple(_voc_colour(number) for number in range(count))


def _voc_colour(number: int) -> Colour:
    channels = [0, 0, 0]
    for shift in range(8):
        for channel in range(3):
            channels[channel] |= ((number >> (3 * shift + channel)) & 1) << (7 - shift)
    return channels[0], channels[1], channels[2]


@dataclass(frozen=True)
class ClassSet:
    """Names and colours of the classes; position = class number = mask value.

    Args:
        names: one name a class, all different, at most 255 of them.
        palette: one (red, green, blue) a class, each 0..255; empty means the VOC colour map.

    Raises:
        ValueError: no names, a name twice, more than 255 names, or a palette of another length.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        """Check the names and fill in the palette."""
        if not 0 < len(self.names) <= IGNORE_INDEX:
            raise ValueError(
                f"names: expected 1 to {IGNORE_INDEX} class names, got {len(self.names)}"
            )
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(
                f"names: expected different class names, got {', '.join(twice)} more than once"
            )
        if not self.palette:
            object.__setattr__(self, "palette", voc_palette(len(self.names)))
        if len(self.palette) != len(self.names):
            raise ValueError(
                f"palette: expected {len(self.names)} colours, one a class, got {len(self.palette)}"
            )

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.names)

    def flat_palette(self) -> list[int]:
        """Return the 768 numbers of a palette image: class colours, black, ivory for 255."""
        flat = [channel for colour in self.palette for channel in colour]
        return flat + [0] * (3 * IGNORE_INDEX - len(flat)) + [224, 224, 192]

    def state(self) -> dict[str, list]:
        """Return the set as plain lists, for a checkpoint; `from_state` reads them."""
        return {"names": list(self.names), "palette": [list(colour) for colour in self.palette]}

    @classmethod
    def from_state(cls, state: dict[str, Sequence]) -> ClassSet:
        """Build a class set from what `state` returned."""
        palette = tuple((int(r), int(g), int(b)) for r, g, b in state["palette"])
        return cls(tuple(state["names"]), palette)
