"""Class maps as pictures: palette PNGs, overlays with a legend, panels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from deeplabv3plus.atomic import write_bytes
from deeplabv3plus.classes import IGNORE_INDEX, ClassSet

Bytes = NDArray[np.uint8]
OPACITY = 0.5
_LEGEND_WIDTH = 5


@dataclass(frozen=True)
class Panel:
    """A picture (H, W, 3), its true and its predicted classes (H, W), all uint8, and a title."""

    title: str
    image: Bytes
    truth: Bytes
    prediction: Bytes


def save_mask(path: Path, classes_map: Bytes, classes: ClassSet) -> None:
    """Write class numbers, uint8 (H, W), as a palette PNG like those of PASCAL VOC.

    Raises:
        OSError: the file cannot be written.
    """
    mask = Image.fromarray(classes_map, mode="P")
    mask.putpalette(classes.flat_palette())
    buffer = io.BytesIO()
    mask.save(buffer, "PNG", optimize=True)
    write_bytes(path, buffer.getvalue())


def colourise(classes_map: Bytes, classes: ClassSet) -> Bytes:
    """Return RGB (H, W, 3) of class numbers (H, W)."""
    return np.array(classes.flat_palette(), np.uint8).reshape(256, 3)[classes_map]


def overlay(image: Bytes, classes_map: Bytes, classes: ClassSet) -> Bytes:
    """Return `image` (H, W, 3) tinted with the class colours and dark outlines around the regions.

    A class called "background" is left untinted.
    """
    clear = [number for number, name in enumerate(classes.names) if name == "background"]
    opacity = np.where(np.isin(classes_map, [*clear, IGNORE_INDEX]), 0, OPACITY)[..., None]
    mixed = (1 - opacity) * image + opacity * colourise(classes_map, classes)
    mixed[_outlines(classes_map)] *= 0.45
    return mixed.round().astype(np.uint8)


def save_overlay(path: Path, image: Bytes, classes_map: Bytes, classes: ClassSet) -> None:
    """Write the overlay with a legend of the classes that occur and their shares of the picture.

    Raises:
        OSError: the file cannot be written.
    """
    height, width = classes_map.shape
    zoom = max(1, round(600 / max(height, width)))
    shares = np.bincount(classes_map.ravel(), minlength=256)[: len(classes)] / classes_map.size
    labels = [f"{name}  {share:.1%}" for name, share in zip(classes.names, shares, strict=True)]
    present = [number for number in range(len(classes)) if shares[number]]
    size = (width * zoom / 100, height * zoom / 100)
    figure = Figure(figsize=size, dpi=100, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(
        overlay(image, classes_map, classes), interpolation="nearest" if zoom == 1 else "bilinear"
    )
    axes.axis("off")
    legend = axes.legend(
        handles=[_patch(classes, number, labels[number]) for number in present],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        fontsize=10,
        frameon=False,
    )
    _save(figure, path, extra=[legend])


def save_comparison(path: Path, panels: Sequence[Panel], classes: ClassSet, title: str) -> None:
    """Write rows of picture | truth | prediction, two examples a row where there are three or more.

    Raises:
        OSError: the file cannot be written.
        ValueError: no panels.
    """
    if not panels:
        raise ValueError("panels: expected at least one, got none")
    across = 1 if len(panels) < 3 else 2
    rows = -(-len(panels) // across)
    figure = Figure(figsize=(7.2 * across, 2.65 * rows + 1.0), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold")
    grid = figure.add_gridspec(rows, across, wspace=0.06)
    for number, panel in enumerate(panels):
        axes = grid[number % rows, number // rows].subgridspec(1, 3, wspace=0.03).subplots()
        _draw_panel(axes, panel, classes)
    figure.legend(
        handles=[_patch(classes, number, name) for number, name in enumerate(classes.names)],
        loc="outside lower center",
        ncols=_LEGEND_WIDTH,
        frameon=False,
        fontsize=11,
    )
    _save(figure, path)


def _draw_panel(axes: NDArray, panel: Panel, classes: ClassSet) -> None:
    pictures = (
        panel.image,
        overlay(panel.image, panel.truth, classes),
        overlay(panel.image, panel.prediction, classes),
    )
    for axis, picture, label in zip(
        axes, pictures, (panel.title, "truth", "prediction"), strict=True
    ):
        axis.imshow(picture)
        axis.set_title(label, fontsize=9)
        axis.axis("off")


def save_curves(
    path: Path, rows: Sequence[dict[str, float]], classes: ClassSet, title: str
) -> None:
    """Write the curves of a training log: loss and learning rate, held-out IoU.

    Args:
        path: the PNG to write.
        rows: the log, as from `deeplabv3plus.training.log.read_log`.
        classes: names and colours of the per-class curves.
        title: heading of the figure.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold")
    left, right = figure.subplots(1, 2)
    _draw_loss(left, rows)
    _draw_scores(right, [row for row in rows if "miou" in row], classes)
    _save(figure, path)


def _draw_loss(axes, rows: Sequence[dict[str, float]]) -> None:
    steps = [row["step"] for row in rows]
    losses = np.array([row["loss"] for row in rows])
    axes.plot(steps, losses, color="0.8", linewidth=0.8, label="loss of the batch")
    axes.plot(steps, _smooth(losses), color="tab:blue", linewidth=2, label="smoothed")
    axes.set(xlabel="step", ylabel="cross entropy", ylim=(0, None), title="Training loss")
    rate = axes.twinx()
    rate.plot(steps, [row["lr"] for row in rows], color="tab:green", linestyle="--", linewidth=1)
    rate.set_ylabel("learning rate (dashed)", color="tab:green")
    rate.set_ylim(0, None)
    axes.legend(frameon=False, loc="upper center")
    axes.grid(alpha=0.3)


def _draw_scores(axes, rows: Sequence[dict[str, float]], classes: ClassSet) -> None:
    steps = [row["step"] for row in rows]
    axes.plot(
        steps, [row["miou"] for row in rows], "k-o", linewidth=2.5, markersize=4, label="mean"
    )
    for name, colour in zip(classes.names, classes.palette, strict=True):
        values = [row.get(f"iou/{name}", np.nan) for row in rows]
        if not np.isnan(values).all():
            (line,) = axes.plot(
                steps, values, "-o", color=np.array(colour) / 255, markersize=3, label=name
            )
            if min(colour) > 200:
                line.set_path_effects(
                    [effects.Stroke(linewidth=3, foreground="0.6"), effects.Normal()]
                )
    axes.set(xlabel="step", ylabel="IoU", ylim=(0, 1), title="Held-out part")
    axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)
    axes.grid(alpha=0.3)


def _smooth(values: NDArray, share: float = 0.05) -> NDArray:
    width = max(1, int(len(values) * share))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _outlines(classes_map: Bytes) -> NDArray[np.bool_]:
    edge = np.zeros(classes_map.shape, bool)
    edge[1:] |= classes_map[1:] != classes_map[:-1]
    edge[:, 1:] |= classes_map[:, 1:] != classes_map[:, :-1]
    return edge


def _patch(classes: ClassSet, number: int, label: str) -> Patch:
    return Patch(facecolor=np.array(classes.palette[number]) / 255, edgecolor="0.4", label=label)


def _save(figure: Figure, path: Path, extra: Sequence = ()) -> None:
    buffer = io.BytesIO()
    trim = {"bbox_inches": "tight", "bbox_extra_artists": extra, "pad_inches": 0.1} if extra else {}
    figure.savefig(buffer, format="png", **trim)
    write_bytes(path, buffer.getvalue())
