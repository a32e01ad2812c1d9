"""The loss that training minimises."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplabv3plus.classes import IGNORE_INDEX
from deeplabv3plus.model import DeepLabV3Plus


class Objective:
    """Mean cross entropy over the pixels that are not 255, classes weighted by rarity if asked.

    Args:
        class_pixels: training pixels of each class; None for equal weights. The weight of a class
            is the inverse square root of its share, scaled so that the mean over the pixels is 1; a
            class that never occurs gets the weight 0.
        device: where the targets will be.
    """

    def __init__(self, class_pixels: Tensor | None, device: torch.device) -> None:
        self.weights = None if class_pixels is None else _weights(class_pixels).to(device)

    def __call__(self, model: DeepLabV3Plus, images: Tensor, target: Tensor) -> Tensor:
        """Return the loss of images (N, 3, H, W) and classes (N, H, W); 0 without pixels."""
        # The classes were checked when the masks were read.
        return model.loss(images, target, IGNORE_INDEX, weight=self.weights, check_target=False)


def _weights(class_pixels: Tensor) -> Tensor:
    share = class_pixels.double() / class_pixels.sum()
    weights = torch.where(share > 0, share.clamp(min=1e-12).rsqrt(), 0)
    return (weights / (weights * share).sum()).float()
