"""Pixel values to network input."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's red, green, blue, in 0..1, as torchvision's classifiers use it."""
STD = (0.229, 0.224, 0.225)
"""Standard deviation that goes with `MEAN`."""


def normalise(pixels: Tensor) -> Tensor:
    """Return float32 `(pixels / 255 - MEAN) / STD` for uint8 RGB of shape (N, 3, H, W).

    Raises:
        ValueError: not uint8 of shape (N, 3, H, W).
    """
    if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[1] != 3:
        raise ValueError(
            f"pixels: expected uint8 (N, 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}"
        )
    mean = torch.tensor(MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=pixels.device).view(1, 3, 1, 1)
    return (pixels.float() / 255 - mean) / std
