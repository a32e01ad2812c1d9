"""Random scale, flip and crop of an image and its mask together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from deeplabv3plus.classes import IGNORE_INDEX
from deeplabv3plus.data.order import Key
from deeplabv3plus.data.voc import VOCSegmentation
from deeplabv3plus.normalisation import MEAN

Bytes = NDArray[np.uint8]
Flips = Literal["none", "horizontal", "all"]


@dataclass(frozen=True)
class Augmentation:
    """Scale by a random factor, flip, cut a random square; what lies outside is padded.

    Args:
        crop: side of the square in pixels.
        scale: smallest and largest factor; drawn evenly on a logarithmic scale.
        flips: `"horizontal"`, `"all"` (also vertical and transposed: for pictures without an up,
            such as those from a microscope or a satellite) or `"none"`.
        jitter: brightness, contrast and each colour channel change by up to this share.

    Raises:
        ValueError: crop below 1, scale not `0 < smallest <= largest`, an unknown `flips`, or jitter
            outside `0 <= jitter < 1`.
    """

    crop: int
    scale: tuple[float, float] = (0.5, 2.0)
    flips: Flips = "horizontal"
    jitter: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.crop < 1:
            raise ValueError(f"crop: expected at least 1 pixel, got {self.crop}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale: expected 0 < smallest <= largest, got {self.scale}")
        if self.flips not in ("none", "horizontal", "all"):
            raise ValueError(f"flips: expected none, horizontal or all, got {self.flips!r}")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter: expected 0 <= jitter < 1, got {self.jitter}")

    def __call__(
        self, image: Bytes, mask: Bytes, random: np.random.Generator
    ) -> tuple[Bytes, Bytes]:
        """Return an augmented pair of shapes (crop, crop, 3) and (crop, crop), uint8.

        Padding has the mean colour in the image and 255 (ignored) in the mask.
        """
        image, mask = self._scaled_crop(image, mask, random)
        image, mask = _flip(image, mask, self.flips, random)
        return (_jitter(image, self.jitter, random) if self.jitter else image), mask

    def _scaled_crop(
        self, image: Bytes, mask: Bytes, random: np.random.Generator
    ) -> tuple[Bytes, Bytes]:
        factor = float(np.exp(random.uniform(*np.log(self.scale))))
        spans = [_Span.draw(side, factor, self.crop, random) for side in mask.shape]
        out_image = np.empty((self.crop, self.crop, 3), np.uint8)
        out_image[:] = np.round(255 * np.array(MEAN)).astype(np.uint8)
        out_mask = np.full((self.crop, self.crop), IGNORE_INDEX, np.uint8)
        target = spans[0].target, spans[1].target
        out_image[target] = _resize(image, spans, Image.Resampling.BILINEAR)
        out_mask[target] = _resize(mask, spans, Image.Resampling.NEAREST)
        return out_image, out_mask


@dataclass(frozen=True)
class _Span:
    """What a crop takes along one axis: a stretch of the source, and where it lands."""

    source: tuple[float, float]
    target: slice

    @classmethod
    def draw(cls, side: int, factor: float, crop: int, random: np.random.Generator) -> _Span:
        scaled = max(1, round(side * factor))
        taken = min(scaled, crop)
        offset = int(random.integers(scaled - taken + 1))
        landing = int(random.integers(crop - taken + 1))
        ratio = side / scaled
        return cls(
            (offset * ratio, min(float(side), (offset + taken) * ratio)),
            slice(landing, landing + taken),
        )

    @property
    def length(self) -> int:
        return self.target.stop - self.target.start


def _resize(array: Bytes, spans: list[_Span], resample: Image.Resampling) -> Bytes:
    (top, bottom), (left, right) = spans[0].source, spans[1].source
    size = spans[1].length, spans[0].length
    # Only the part that is kept is resized: at scale 2 that is a quarter of the work or less.
    return np.asarray(Image.fromarray(array).resize(size, resample, box=(left, top, right, bottom)))


def _flip(
    image: Bytes, mask: Bytes, flips: Flips, random: np.random.Generator
) -> tuple[Bytes, Bytes]:
    if flips != "none" and random.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if flips == "all":
        if random.random() < 0.5:
            image, mask = image[::-1], mask[::-1]
        if random.random() < 0.5:
            image, mask = image.transpose(1, 0, 2), mask.T
    return image, mask


def _jitter(image: Bytes, share: float, random: np.random.Generator) -> Bytes:
    values = image.astype(np.float32)
    contrast = 1 + random.uniform(-share, share)
    gain = (1 + random.uniform(-share, share)) * (1 + random.uniform(-share, share, 3) / 2)
    centre = values.mean((0, 1))
    return np.clip((centre + contrast * (values - centre)) * gain, 0, 255).astype(np.uint8)


class AugmentedDataset(Dataset):
    """Pairs of a data set, augmented; indexed by keys (index, seed) instead of numbers.

    Item `(index, seed)` is `(image, mask)`: uint8 tensors of shape (3, crop, crop) and (crop,
    crop). It depends on the key and `run_seed` alone, not on the process that makes it.
    """

    def __init__(self, pairs: VOCSegmentation, augmentation: Augmentation, run_seed: int) -> None:
        self.pairs = pairs
        self.augmentation = augmentation
        self.run_seed = run_seed

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        """Return the augmented pair `key[0]` with randomness from `key[1]`."""
        index, seed = key
        random = np.random.default_rng([self.run_seed, seed, 1])
        image, mask = self.augmentation(*self.pairs[index], random)
        return _to_tensor(image.transpose(2, 0, 1)), _to_tensor(mask)


def _to_tensor(array: Bytes) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
