"""Prediction for pictures of any size."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeplabv3plus.normalisation import normalise

OVERLAP = 1 / 3
"""Share of a window that it has in common, at least, with the next."""


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
    model: nn.Module, image: NDArray[np.uint8], window: int = 0, batch_size: int = 4
) -> Tensor:
    """Return float32 logits (classes, H, W), on the CPU, for one RGB picture (H, W, 3), uint8.

    A picture larger than `window` is covered by overlapping windows, whose logits are averaged;
    `window=0` takes it whole. The model must be in eval mode; its device is used.
    """
    height, width = image.shape[:2]
    side_y, side_x = (min(window, height), min(window, width)) if window else (height, width)
    corners = [(y, x) for y in windows(height, side_y) for x in windows(width, side_x)]
    device = next(model.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    total = torch.zeros(0)
    count = torch.zeros(height, width)
    for start in range(0, len(corners), batch_size):
        some = corners[start : start + batch_size]
        crops = torch.stack([pixels[:, y : y + side_y, x : x + side_x] for y, x in some])
        logits = model(normalise(crops.to(device))).float().cpu()
        if not total.numel():
            total = torch.zeros(logits.shape[1], height, width)
        for (y, x), crop in zip(some, logits, strict=True):
            total[:, y : y + side_y, x : x + side_x] += crop
            count[y : y + side_y, x : x + side_x] += 1
    return total / count


def predict_classes(
    model: nn.Module, image: NDArray[np.uint8], window: int = 0
) -> NDArray[np.uint8]:
    """Return the class of every pixel, uint8 of shape (H, W); arguments as `predict_logits`."""
    return predict_logits(model, image, window).argmax(0).to(torch.uint8).numpy()
