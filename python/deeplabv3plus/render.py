"""Class maps as pictures: palette PNGs, overlays with a legend, panels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from deeplabv3plus.atomic import write_bytes
from deeplabv3plus.classes import IGNORE_INDEX, ClassSet, Colour

Bytes = NDArray[np.uint8]
OPACITY = 0.45


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
    """Return `image` (H, W, 3) tinted with the class colours, outlined in full colour.

    A class called "background" is left untinted.
    """
    clear = [number for number, name in enumerate(classes.names) if name == "background"]
    tinted = ~np.isin(classes_map, [*clear, IGNORE_INDEX])
    opacity = np.where(_outlines(classes_map), 1.0, OPACITY) * tinted
    mixed = image + opacity[..., None] * (colourise(classes_map, classes) - image.astype(float))
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
        fontsize=max(10, zoom * max(height, width) / 80),
        frameon=False,
    )
    _save(figure, path, legend=legend)


def save_comparison(path: Path, panels: Sequence[Panel], classes: ClassSet, title: str) -> None:
    """Write picture | truth | prediction of each panel, in one to three columns of panels.

    Raises:
        OSError: the file cannot be written.
        ValueError: no panels.
    """
    if not panels:
        raise ValueError("panels: expected at least one, got none")
    across = min(3, -(-len(panels) // 3))
    rows = -(-len(panels) // across)
    figure = Figure(figsize=(6.6 * across, 2.6 * rows + 1.0), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=14, fontweight="bold")
    cells = figure.subfigures(rows, across, wspace=0.04, hspace=0.03, squeeze=False)
    for number, panel in enumerate(panels):
        _draw_panel(cells[number % rows, number // rows], panel, classes)
    figure.legend(
        handles=[_patch(classes, number, name) for number, name in enumerate(classes.names)],
        loc="outside lower center",
        ncols=2 * across,
        frameon=False,
        fontsize=11,
    )
    _save(figure, path)


def _draw_panel(cell: SubFigure, panel: Panel, classes: ClassSet) -> None:
    pictures = {
        panel.title: panel.image,
        "truth": overlay(panel.image, panel.truth, classes),
        "prediction": overlay(panel.image, panel.prediction, classes),
    }
    for axes, (label, picture) in zip(cell.subplots(1, 3), pictures.items(), strict=True):
        axes.imshow(picture)
        axes.set_title(label, fontsize=10)
        axes.axis("off")


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


def _draw_loss(axes: Axes, rows: Sequence[dict[str, float]]) -> None:
    steps = [row["step"] for row in rows]
    losses = np.array([row["loss"] for row in rows])
    axes.plot(steps, losses, color="0.8", linewidth=0.8, label="loss of the batch")
    axes.plot(steps, _smooth(losses), color="tab:blue", linewidth=2, label="smoothed")
    axes.set(xlabel="step", ylabel="cross entropy", ylim=(0, None), title="Training loss")
    rate = axes.twinx()
    rate.plot(steps, [row["lr"] for row in rows], color="tab:green", linestyle="--", linewidth=1)
    rate.set_ylabel("learning rate (dashed)", color="tab:green")
    rate.set_ylim(0, None)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    axes.grid(alpha=0.3)


def _draw_scores(axes: Axes, rows: Sequence[dict[str, float]], classes: ClassSet) -> None:
    steps = [row["step"] for row in rows]
    axes.plot(
        steps, [row["miou"] for row in rows], "k-o", linewidth=2.5, markersize=4, label="mean"
    )
    for name, colour in zip(classes.names, classes.palette, strict=True):
        values = [row.get(f"iou/{name}", np.nan) for row in rows]
        if not np.isnan(values).all():
            (line,) = axes.plot(steps, values, "-o", color=_unit(colour), markersize=3, label=name)
            if min(colour) > 200:
                line.set_path_effects(
                    [effects.Stroke(linewidth=3, foreground="0.6"), effects.Normal()]
                )
    axes.set(xlabel="step", ylabel="IoU", ylim=(0, 1), title="Held-out part")
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    axes.grid(alpha=0.3)


def _smooth(values: NDArray, share: float = 0.05) -> NDArray:
    width = max(1, int(len(values) * share))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _outlines(classes_map: Bytes) -> NDArray[np.bool_]:
    """Return the pixels with a neighbour of another class above, below, left or right."""
    edge = np.zeros(classes_map.shape, bool)
    down, right = classes_map[1:] != classes_map[:-1], classes_map[:, 1:] != classes_map[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def _unit(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def _patch(classes: ClassSet, number: int, label: str) -> Patch:
    return Patch(facecolor=_unit(classes.palette[number]), edgecolor="0.4", label=label)


def _save(figure: Figure, path: Path, legend: Legend | None = None) -> None:
    buffer = io.BytesIO()
    if legend is None:
        figure.savefig(buffer, format="png")
    else:
        figure.savefig(
            buffer, format="png", bbox_inches="tight", bbox_extra_artists=[legend], pad_inches=0.1
        )
    write_bytes(path, buffer.getvalue())
