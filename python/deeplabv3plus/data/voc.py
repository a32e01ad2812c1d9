"""A reader for folders in the PASCAL VOC layout, with checks that name the file at fault."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from deeplabv3plus.classes import IGNORE_INDEX, VOC_NAMES, ClassSet, Colour

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_MASK_MODES = ("P", "L", "1")


class VOCSegmentation(Dataset):
    """Image and mask pairs named by `ImageSets/Segmentation/<split>.txt` under `root`.

    `root/JPEGImages/<name>.jpg` (or another picture format) goes with
    `root/SegmentationClass/<name>.png`, a palette or 8-bit grey PNG of class numbers, 255 ignored.
    Class names come from `root/classes.txt` (one a line, in order of number) or are the 21 of VOC;
    colours from the palette of the first mask, or the VOC colour map for grey masks.

    Item `i` is `(image, mask)`: uint8 arrays of shape (H, W, 3), RGB, and (H, W).

    Raises:
        FileNotFoundError: a folder, list, picture or mask is missing.
        ValueError: an empty or repeating list, a file that is no picture, a pair of different
            sizes, or (on reading an item) a mask with values outside the classes. Every message
            names the file.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root = Path(root)
        self.split = split
        self.names = _read_list(self.root, split)
        images = _index_images(self.root / "JPEGImages")
        self.images = [_find_image(images, name, self.root) for name in self.names]
        self.masks = [self.root / "SegmentationClass" / f"{name}.png" for name in self.names]
        for image, mask in zip(self.images, self.masks, strict=True):
            _check_pair(image, mask)
        names = _class_names(self.root)
        self.classes = ClassSet(names, _mask_palette(self.masks[0], len(names)))

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return `(image, mask)` of pair `index`, checked."""
        image = read_image(self.images[index])
        return image, read_mask(self.masks[index], self.classes.names)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return the picture in `path` as uint8 RGB of shape (H, W, 3).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a readable picture.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such picture") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from error


def read_mask(path: Path, names: Sequence[str]) -> NDArray[np.uint8]:
    """Return the class numbers in the mask `path`, uint8 (H, W), checked against `names`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a readable palette or grey PNG, or values other than 0..len(names)-1 and
            255.
    """
    with _open(path) as mask:
        try:
            values = np.asarray(mask).astype(np.uint8)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path}: not a readable mask ({error})") from error
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    wrong = [int(value) for value in present if len(names) <= value != IGNORE_INDEX]
    if wrong:
        raise ValueError(
            f"{path}: mask values {_few(wrong)} are outside the {len(names)} classes "
            f"(expected 0 to {len(names) - 1}, or {IGNORE_INDEX} for ignored)"
        )
    return values


def list_images(path: str | Path) -> list[Path]:
    """Return `[path]` for a file, or the pictures in the folder `path` in order of name.

    Raises:
        FileNotFoundError: no such file or folder, or no picture in the folder.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such picture or folder")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{path}: no pictures in this folder ({', '.join(IMAGE_SUFFIXES)})")
    return found


def _read_list(root: Path, split: str) -> list[str]:
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such list (expected the PASCAL VOC layout under {root})"
        )
    names = path.read_text(encoding="utf-8").split()
    if not names:
        raise ValueError(f"{path}: the list is empty")
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{path}: listed more than once: {_few(twice)}")
    return names


def _class_names(root: Path) -> tuple[str, ...]:
    path = root / "classes.txt"
    if not path.is_file():
        return VOC_NAMES
    names = tuple(
        line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    )
    try:
        return ClassSet(names).names
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _index_images(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (expected the PASCAL VOC layout)")
    return {
        file.stem: file
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in IMAGE_SUFFIXES
    }


def _find_image(images: dict[str, Path], name: str, root: Path) -> Path:
    if name not in images:
        raise FileNotFoundError(
            f"{root / 'JPEGImages' / name}.jpg: no such picture, but a list names it"
        )
    return images[name]


def _check_pair(image: Path, mask: Path) -> None:
    with _open(image) as picture, _open(mask) as labels:
        if labels.mode not in _MASK_MODES:
            raise ValueError(
                f"{mask}: expected a palette or 8-bit grey PNG, got mode {labels.mode}"
            )
        if picture.size != labels.size:
            raise ValueError(
                f"{mask}: mask is {labels.width}x{labels.height}, "
                f"but its picture {image} is {picture.width}x{picture.height}"
            )


def _mask_palette(path: Path, count: int) -> tuple[Colour, ...]:
    with _open(path) as mask:
        flat = mask.getpalette() if mask.mode == "P" else None
    if flat is None or len(flat) < 3 * count:
        return ()
    return tuple((flat[i], flat[i + 1], flat[i + 2]) for i in range(0, 3 * count, 3))


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file, but a list names it") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from error


def _few(items: Sequence, limit: int = 5) -> str:
    shown = ", ".join(str(item) for item in items[:limit])
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")
