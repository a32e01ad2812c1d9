"""The sample, the VOC reader and its complaints, augmentation, data order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from deeplabv3plus.classes import VOC_NAMES, ClassSet, voc_palette
from deeplabv3plus.data import (
    Augmentation,
    AugmentedDataset,
    VOCSegmentation,
    batch_keys,
    sample_path,
    training_batches,
)
from deeplabv3plus.data.voc import read_image
from deeplabv3plus.normalisation import MEAN, normalise
from PIL import Image
from voc_folder import COLOURS, NAMES, make_folder, make_pair, write_mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "voc")


def test_sample_is_whole() -> None:
    train, val = (VOCSegmentation(sample_path(), split) for split in ("train", "val"))
    assert (len(train), len(val)) == (27, 9)
    assert not set(train.names) & set(val.names)
    rule = {f"hgsc_r{r}c{c}" for r in range(6) for c in range(6) if (2 * r + c) % 4 == 1}
    assert set(val.names) == rule
    assert train.classes == val.classes
    assert train.classes.palette[0] == (255, 255, 255)
    assert "BSD 3-Clause" in (sample_path() / "LICENSE").read_text()


@pytest.mark.parametrize("split", ["train", "val"])
def test_sample_has_every_class_in_both_parts(split: str) -> None:
    pairs = VOCSegmentation(sample_path(), split)
    seen = set()
    for image, mask in (pairs[index] for index in range(len(pairs))):
        assert image.shape == (250, 250, 3) and mask.shape == (250, 250)
        seen |= set(np.unique(mask).tolist())
    assert seen == {0, 1, 2, 3}


def test_reader_returns_what_was_written(folder: Path) -> None:
    pairs = VOCSegmentation(folder, "train")
    image, mask = make_pair(2)
    mask[0] = 255
    assert np.array_equal(pairs[2][0], image) and np.array_equal(pairs[2][1], mask)
    assert pairs.classes == ClassSet(NAMES, COLOURS)


def test_names_and_colours_default_to_those_of_voc(folder: Path) -> None:
    (folder / "classes.txt").unlink()
    for path in (folder / "SegmentationClass").iterdir():
        Image.fromarray(np.asarray(Image.open(path))).save(path)
    classes = VOCSegmentation(folder, "train").classes
    assert classes.names == VOC_NAMES
    # Entries of the development kit's colour map.
    assert classes.palette[1] == (128, 0, 0) and classes.palette[15] == (192, 128, 128)
    assert voc_palette(256)[255] == (224, 224, 192)


def _rgb_mask(root: Path) -> None:
    Image.new("RGB", (48, 40)).save(root / "SegmentationClass/b.png")


def _other_size(root: Path) -> None:
    write_mask(root / "SegmentationClass/b.png", np.zeros((40, 47), np.uint8))


BROKEN: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no list": (
        lambda root: (root / "ImageSets/Segmentation/train.txt").unlink(),
        FileNotFoundError,
        "ImageSets/Segmentation/train.txt: no such list",
    ),
    "empty list": (
        lambda root: (root / "ImageSets/Segmentation/train.txt").write_text("\n"),
        ValueError,
        "train.txt: the list is empty",
    ),
    "name twice": (
        lambda root: (root / "ImageSets/Segmentation/train.txt").write_text("a b a"),
        ValueError,
        "train.txt: listed more than once: a",
    ),
    "no picture": (
        lambda root: (root / "JPEGImages/b.png").unlink(),
        FileNotFoundError,
        "JPEGImages/b.jpg: no such picture",
    ),
    "no mask": (
        lambda root: (root / "SegmentationClass/b.png").unlink(),
        FileNotFoundError,
        "SegmentationClass/b.png: no such file",
    ),
    "no picture file": (
        lambda root: (root / "JPEGImages/b.png").write_bytes(b"text"),
        ValueError,
        "JPEGImages/b.png: not a readable picture",
    ),
    "sizes": (_other_size, ValueError, "b.png: mask is 47x40, but its picture .*b.png is 48x40"),
    "mask of colours": (_rgb_mask, ValueError, "b.png: expected a palette .* got mode RGB"),
    "class name twice": (
        lambda root: (root / "classes.txt").write_text("x\ny\nx"),
        ValueError,
        "classes.txt: .*x more than once",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folder_names_the_file(folder: Path, case: str) -> None:
    break_it, error, message = BROKEN[case]
    break_it(folder)
    with pytest.raises(error, match=message):
        VOCSegmentation(folder, "train")


def test_mask_outside_the_classes_names_file_and_values(folder: Path) -> None:
    write_mask(folder / "SegmentationClass/b.png", np.full((40, 48), 7, np.uint8))
    pairs = VOCSegmentation(folder, "train")
    with pytest.raises(ValueError, match=r"b.png: mask values 7 are outside the 3 classes"):
        pairs[1]


def test_cut_off_files_are_named(folder: Path) -> None:
    pairs = VOCSegmentation(folder, "train")
    for path in (pairs.images[0], pairs.masks[1]):
        path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(ValueError, match=r"a.png: not a readable picture"):
        pairs[0]
    with pytest.raises(ValueError, match=r"b.png: not a readable "):
        pairs[1]
    with pytest.raises(FileNotFoundError, match=r"nothing.png: no such picture"):
        read_image(folder / "nothing.png")


@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.5, 2.0), (2.0, 2.0)])
def test_image_and_mask_stay_together(scale: tuple[float, float]) -> None:
    image, mask = make_pair(0)
    augmentation = Augmentation(33, scale, "all")
    padding = np.round(255 * np.array(MEAN))
    for seed in range(20):
        new_image, new_mask = augmentation(image, mask, np.random.default_rng(seed))
        assert new_image.shape == (33, 33, 3) and new_mask.shape == (33, 33)
        assert (new_image[new_mask == 255] == padding).all()
        colours = np.array([*COLOURS, *[(0, 0, 0)] * 252, padding])
        # Colours blend at edges, so compare away from them.
        inner = _away_from_edges(new_mask)
        assert inner.any()
        assert (new_image[inner] == colours[new_mask[inner]]).all()


def _away_from_edges(mask: np.ndarray, distance: int = 3) -> np.ndarray:
    inner = np.zeros(mask.shape, bool)
    for y in range(distance, mask.shape[0] - distance):
        for x in range(distance, mask.shape[1] - distance):
            around = mask[y - distance : y + distance + 1, x - distance : x + distance + 1]
            inner[y, x] = (around == mask[y, x]).all()
    return inner


def test_scale_one_without_flips_is_a_plain_crop() -> None:
    image, mask = make_pair(0)
    new_image, new_mask = Augmentation(40, (1, 1), "none")(image, mask, np.random.default_rng(3))
    lefts = [x for x in range(9) if np.array_equal(mask[:, x : x + 40], new_mask)]
    assert any(np.array_equal(image[:, x : x + 40], new_image) for x in lefts)


@pytest.mark.parametrize(("flips", "views"), [("none", 1), ("horizontal", 2), ("all", 8)])
def test_flips_give_each_view_of_a_square(flips: str, views: int) -> None:
    mask = np.arange(9, dtype=np.uint8).reshape(3, 3)
    image = np.stack([mask] * 3, -1)
    augmentation = Augmentation(3, (1, 1), flips)  # type: ignore[arg-type]
    seen = set()
    for seed in range(100):
        new_image, new_mask = augmentation(image, mask, np.random.default_rng(seed))
        assert np.array_equal(new_image[..., 0], new_mask)
        seen.add(new_mask.tobytes())
    assert len(seen) == views


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"crop": 0}, "crop"),
        ({"crop": 8, "scale": (2.0, 1.0)}, "scale"),
        ({"crop": 8, "flips": "up"}, "flips"),
        ({"crop": 8, "jitter": 1.0}, "jitter"),
    ],
)
def test_augmentation_checks_its_arguments(arguments: dict, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: "):
        Augmentation(**arguments)


def test_order_is_shuffled_passes_and_can_start_anywhere() -> None:
    batches = list(batch_keys(5, 3, seed=1, start=0, stop=10))
    stream = [index for batch in batches for index, _ in batch]
    passes = [stream[at : at + 5] for at in range(0, 30, 5)]
    assert all(sorted(one) == list(range(5)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert len({seed for batch in batches for _, seed in batch}) == 30
    assert list(batch_keys(5, 3, seed=1, start=4, stop=10)) == batches[4:]
    assert list(batch_keys(5, 3, seed=2, start=0, stop=10)) != batches


def test_workers_and_start_do_not_change_the_batches(folder: Path) -> None:
    data = AugmentedDataset(VOCSegmentation(folder, "train"), Augmentation(17, jitter=0.2), 5)
    before = torch.get_rng_state()
    alone = list(training_batches(data, 3, 0, 4))
    helped = list(training_batches(data, 3, 1, 4, workers=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert alone[0][0].shape == (3, 3, 17, 17) and alone[0][1].shape == (3, 17, 17)
    for one, other in zip(alone[1:], helped, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_normalise_is_the_formula() -> None:
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert torch.allclose(normalise(pixels).flatten().double(), torch.tensor(expected).double())
    with pytest.raises(ValueError, match=r"^pixels: expected uint8 \(N, 3, H, W\)"):
        normalise(pixels.float())
