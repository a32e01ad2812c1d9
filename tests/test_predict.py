"""Sliding windows, palette PNGs, overlays and figures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from deeplabv3plus.classes import ClassSet
from deeplabv3plus.data import VOCSegmentation
from deeplabv3plus.data.voc import list_images, read_mask
from deeplabv3plus.evaluation import evaluate
from deeplabv3plus.inference import OVERLAP, predict_classes, predict_logits, windows
from deeplabv3plus.normalisation import normalise
from deeplabv3plus.render import (
    Panel,
    overlay,
    save_comparison,
    save_curves,
    save_mask,
    save_overlay,
)
from deeplabv3plus.training.setup import build_model
from PIL import Image
from torch import Tensor, nn
from voc_folder import COLOURS, NAMES, TINY, make_folder, make_pair

CLASSES = ClassSet(NAMES, COLOURS)


class Pointwise(nn.Module):
    """Logits of a pixel from that pixel alone, so that windows must not change them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(tuple(images.shape))
        return self.conv(images)


class CountsCalls(nn.Module):
    """Logit 0 is the number of the window."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return torch.full((1, 2, *images.shape[2:]), float(self.calls))


@pytest.mark.parametrize(("length", "window"), [(1, 5), (5, 5), (6, 5), (100, 33), (513, 192)])
def test_windows_cover_and_overlap(length: int, window: int) -> None:
    starts = windows(length, window)
    assert starts[0] == 0 and starts[-1] == max(0, length - window)
    for one, other in pairwise(starts):
        assert one < other
        assert other - one <= max(1, window * (1 - OVERLAP))


def test_windows_checks() -> None:
    for window, overlap in ((0, 0.5), (5, 1.0)):
        with pytest.raises(ValueError, match=r"^window, overlap: expected"):
            windows(10, window, overlap)


@pytest.mark.parametrize("window", [0, 16, 40, 64])
def test_sliding_window_of_a_pointwise_model_is_the_model(window: int) -> None:
    model = Pointwise().eval()
    image, _ = make_pair(0)
    logits = predict_logits(model, image, window)
    sizes = model.sizes
    whole = model(normalise(torch.from_numpy(image.transpose(2, 0, 1).copy())[None]))[0].detach()
    assert all(size[2:] == (min(window or 40, 40), min(window or 48, 48)) for size in sizes[:-1])
    torch.testing.assert_close(logits, whole)
    assert np.array_equal(predict_classes(model, image, window), whole.argmax(0).numpy())


def test_overlapping_windows_are_averaged() -> None:
    image = np.zeros((10, 16, 3), np.uint8)
    logits = predict_logits(CountsCalls(), image, window=10, batch_size=1)
    # Windows at 0 and 6: columns 6 to 9 belong to both.
    assert windows(16, 10) == [0, 6]
    assert logits[0, 0].tolist() == [1.0] * 6 + [1.5] * 4 + [2.0] * 6


def test_mask_png_has_class_numbers_and_palette(tmp_path: Path) -> None:
    _, mask = make_pair(1)
    mask[3] = 255
    save_mask(tmp_path / "mask.png", mask, CLASSES)
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:9] == [channel for colour in COLOURS for channel in colour]
    assert np.array_equal(read_mask(tmp_path / "mask.png", NAMES), mask)


def test_overlay_tints_all_but_the_background() -> None:
    image = np.full((9, 9, 3), 100, np.uint8)
    mask = np.zeros((9, 9), np.uint8)
    mask[3:8, 3:8] = 1
    tinted = overlay(image, mask, CLASSES)
    assert (tinted[mask == 0] == 100).all()
    assert tuple(tinted[3, 3]) == COLOURS[1]  # the outline
    inside = tinted[5, 5].astype(int)
    assert 100 < inside[0] < COLOURS[1][0] and COLOURS[1][1] < inside[1] < 100


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def test_figures_are_written(tmp_path: Path) -> None:
    image, mask = make_pair(2)
    save_overlay(tmp_path / "overlay.png", image, mask, CLASSES)
    assert _size(tmp_path / "overlay.png")[0] > 48
    panels = [Panel(f"tile {number}", image, mask, mask) for number in range(5)]
    save_comparison(tmp_path / "one.png", panels[:1], CLASSES, "one")
    save_comparison(tmp_path / "five.png", panels, CLASSES, "five")
    assert _size(tmp_path / "five.png")[0] > 1.5 * _size(tmp_path / "one.png")[0]
    rows = [{"step": step, "loss": 1 / step, "lr": 0.1} for step in range(1, 9)]
    rows[7] |= {"miou": 0.5, "iou/square": 0.25}
    save_curves(tmp_path / "curves.png", rows, CLASSES, "curves")
    assert _size(tmp_path / "curves.png")[0] > 500
    with pytest.raises(ValueError, match=r"^panels: expected at least one"):
        save_comparison(tmp_path / "none.png", [], CLASSES, "none")
    assert not (tmp_path / "none.png").exists()


def test_list_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no pictures in this folder"):
        list_images(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none: no such picture or folder"):
        list_images(tmp_path / "none")
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
    assert list_images(tmp_path / "b.PNG") == [tmp_path / "b.PNG"]


def test_evaluation_is_the_confusion_of_the_predictions(tmp_path: Path) -> None:
    pairs = VOCSegmentation(make_folder(tmp_path), "val")
    torch.manual_seed(0)
    model = build_model(TINY, 3, torch.device("cpu")).train()
    confusion = evaluate(model, pairs, window=33)
    assert model.training
    model.eval()
    expected = np.zeros((3, 3), np.int64)
    for index in range(len(pairs)):
        image, mask = pairs[index]
        guess = predict_classes(model, image, 33)
        np.add.at(expected, (mask[mask != 255], guess[mask != 255]), 1)
    assert np.array_equal(confusion.matrix.numpy(), expected)
