"""Prediction for pictures of any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from deeplabv3plus.layers import resize
from deeplabv3plus.model import DeepLabV3Plus
from deeplabv3plus.normalisation import normalise
from dlv3p_kernels import upsample_argmax

OVERLAP = 1 / 3
"""Share of a window that it has in common, at least, with the next."""
_BATCH = 4


@dataclass(frozen=True)
class Passes:
    """How often a picture is looked at; the logits of all times are averaged.

    Attributes:
        window: a picture larger than this is covered by overlapping windows; 0: taken whole.
        scales: sizes it is resized to, as factors; the window stays the same.
        flip: whether every window is also looked at mirrored left to right.

    Raises:
        ValueError: `window` below 0, no scales, or one that is not a positive number.
    """

    window: int = 0
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.window < 0:
            raise ValueError(f"window: expected at least 0, got {self.window}")
        if not self.scales or not all(s > 0 and math.isfinite(s) for s in self.scales):
            raise ValueError(f"scales: expected positive numbers, got {self.scales}")


def windows(length: int, window: int, overlap: float = OVERLAP) -> list[int]:
    """Return where windows start along an axis: evenly spread, first at 0, last at the end.

    Raises:
        ValueError: `window` below 1 or `overlap` outside `0 <= overlap < 1`.
    """
    if window < 1 or not 0 <= overlap < 1:
        raise ValueError(
            f"window, overlap: expected window >= 1 and 0 <= overlap < 1, got {window}, {overlap}"
        )
    rest = max(0, length - window)
    gaps = -(-rest // max(1, int(window * (1 - overlap))))
    return [0] if gaps == 0 else [round(i * rest / gaps) for i in range(gaps + 1)]


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    image: NDArray[np.uint8],
    window: int = 0,
    batch_size: int = _BATCH,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Return float32 logits (classes, H, W), on the CPU, for one RGB picture (H, W, 3), uint8.

    `window`, `scales` and `flip` as in `Passes`. The model must be in eval mode; its device is
    used.
    """
    passes = Passes(window, tuple(scales), flip)
    size = image.shape[:2]
    total = torch.zeros(0)
    for scale in passes.scales:
        logits = _scaled_logits(model, image, scale, passes, batch_size)
        logits = resize(logits[None], size, False)[0]
        total = logits if not total.numel() else total.add_(logits)
    return total / len(passes.scales)


@torch.inference_mode()
def predict_classes(
    model: nn.Module,
    image: NDArray[np.uint8],
    window: int = 0,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> NDArray[np.uint8]:
    """Return the class of every pixel, uint8 of shape (H, W); arguments as `predict_logits`.

    A picture that a DeepLabV3Plus takes whole at its own size has no logits at that size: those of
    the decoder are averaged, as mirroring and resizing can change places, and then resized.
    """
    passes = Passes(window, tuple(scales), flip)
    height, width = image.shape[:2]
    whole = window == 0 or max(height, width) <= window
    if not (isinstance(model, DeepLabV3Plus) and whole and passes.scales == (1.0,)):
        logits = predict_logits(model, image, window, scales=scales, flip=flip)
        return logits.argmax(0).to(torch.uint8).numpy()
    logits = _with_mirrored(model.small_logits, normalise(_pixels(image, model)), flip)
    found = upsample_argmax(
        logits, (height, width),
        align_corners=model.config["align_corners"], dtype=torch.uint8,
    )  # fmt: skip
    classes: NDArray[np.uint8] = found[0].cpu().numpy()
    return classes


def _scaled_logits(
    model: nn.Module, image: NDArray[np.uint8], scale: float, passes: Passes, batch_size: int
) -> Tensor:
    """Logits of the picture resized by `scale`, at that size: the means over its windows."""
    images = normalise(_pixels(image, model))
    if scale != 1:
        scaled = [max(1, round(scale * side)) for side in image.shape[:2]]
        images = F.interpolate(images, scaled, mode="bilinear", antialias=scale < 1)
    height, width = images.shape[2:]
    side = passes.window or max(height, width)
    side_y, side_x = min(side, height), min(side, width)
    corners = [(y, x) for y in windows(height, side_y) for x in windows(width, side_x)]
    total = torch.zeros(0)
    count = torch.zeros(height, width)
    for start in range(0, len(corners), batch_size):
        some = corners[start : start + batch_size]
        crops = torch.cat([images[:, :, y : y + side_y, x : x + side_x] for y, x in some])
        logits = _resized_logits(model, crops, passes.flip).float().cpu()
        if not total.numel():
            total = torch.zeros(logits.shape[1], height, width)
        for (y, x), crop in zip(some, logits, strict=True):
            total[:, y : y + side_y, x : x + side_x] += crop
            count[y : y + side_y, x : x + side_x] += 1
    return total / count


def _resized_logits(model: nn.Module, crops: Tensor, flip: bool) -> Tensor:
    if not isinstance(model, DeepLabV3Plus):
        return _with_mirrored(model, crops, flip)
    logits = _with_mirrored(model.small_logits, crops, flip)
    return resize(logits, crops.shape[-2:], model.config["align_corners"])


def _with_mirrored(function: Callable[[Tensor], Tensor], images: Tensor, flip: bool) -> Tensor:
    """The logits, or their mean with those of the mirrored images, mirrored back."""
    logits = function(images)
    return (logits + function(images.flip(-1)).flip(-1)) / 2 if flip else logits


def _pixels(image: NDArray[np.uint8], model: nn.Module) -> Tensor:
    """(1, 3, H, W), uint8, on the device of the model."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return pixels[None].to(next(model.parameters()).device)
