"""A small folder in the PASCAL VOC layout, and settings that train on it in no time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from deeplabv3plus.training.config import TrainConfig
from PIL import Image

NAMES = ("background", "square", "stripe")
COLOURS = ((20, 20, 20), (200, 60, 60), (60, 60, 200))

TINY = TrainConfig(
    encoder="mobilenet_v2",
    aspp_channels=8,
    decoder_channels=8,
    low_level_channels=4,
    steps=6,
    batch_size=2,
    crop=33,
    flips="all",
    jitter=0.1,
    lr=0.05,
    ema=0.9,
    eval_every=4,
    checkpoint_every=1,
    threads=1,
)


def make_pair(seed: int, height: int = 40, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A picture whose colours are those of its classes, and the mask."""
    random = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    top, left = random.integers(2, 16, 2)
    mask[top : top + 14, left : left + 14] = 1
    mask[:, 36 : 40 + seed % 4] = 2
    return np.array(COLOURS, np.uint8)[mask], mask


def write_mask(path: Path, mask: np.ndarray) -> None:
    image = Image.fromarray(mask)
    # A short palette would make Pillow save two bits a pixel and lose the 255.
    image.putpalette([channel for colour in COLOURS for channel in colour] + [0] * 759)
    image.save(path)


def make_folder(root: Path, train: Sequence[str] = "abcd", val: Sequence[str] = "ef") -> Path:
    """Write pictures and masks for the names in both lists, and `classes.txt`; return `root`."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate([*train, *val]):
        image, mask = make_pair(seed)
        mask[0] = 255
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.png")
        write_mask(root / "SegmentationClass" / f"{name}.png", mask)
    for split, names in (("train", train), ("val", val)):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names))
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root
