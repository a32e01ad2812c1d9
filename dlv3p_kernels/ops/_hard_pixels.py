"""Selection of the pixels that are hardest to classify, which a loss is then averaged over."""

from __future__ import annotations

import torch
from torch import Tensor


def highest(loss: Tensor, share: float) -> Tensor:
    """The losses of the `share` of all pixels whose losses are highest, at least one of them.

    Source: `hard_pixel_mining` of TensorFlow's DeepLab and `DeepLabCE` of detectron2.
    """
    count = max(1, int(share * loss.numel()))
    return torch.topk(loss.flatten(), count, sorted=False).values


def unlikely(probability: Tensor, counted: Tensor, threshold: float, least: int) -> Tensor:
    """Which counted pixels have a probability below `threshold`, or are among the `least` lowest.

    As `OHEMPixelSampler` of mmsegmentation: strictly below the larger of `threshold` and of the
    probability that has `least` others before it. Where there are no more than `least` counted
    pixels all of them are kept.

    Args:
        probability: of the right class, of any shape.
        counted: of the same shape, False for ignored pixels.
        threshold: in (0, 1].
        least: pixels that are kept however high their probability.
    """
    above_all = 2.0
    candidates = torch.where(counted, probability, above_all).flatten()
    if least >= candidates.numel():
        return counted
    # Infinities of the sorted list belong to ignored pixels: then everything that counts is kept.
    ranked = torch.topk(candidates, least + 1, largest=False).values.max()
    return counted & (probability < ranked.clamp(min=threshold))
