"""Scores of a model on a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from deeplabv3plus.classes import ClassSet
from deeplabv3plus.data.voc import VOCSegmentation
from deeplabv3plus.inference import predict_classes
from deeplabv3plus.metrics import ConfusionMatrix


def evaluate(
    model: nn.Module,
    pairs: VOCSegmentation,
    window: int = 0,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> ConfusionMatrix:
    """Return the confusion matrix of `model` over `pairs`, at their own size.

    The model is put into eval mode for it and back afterwards. `window`, `scales` and `flip` as in
    `deeplabv3plus.inference.Passes`.
    """
    training = model.training
    model.eval()
    confusion = ConfusionMatrix(len(pairs.classes))
    try:
        for index in range(len(pairs)):
            image, mask = pairs[index]
            prediction = predict_classes(model, image, window, scales=scales, flip=flip)
            confusion.update(torch.from_numpy(mask), torch.from_numpy(prediction))
    finally:
        model.train(training)
    return confusion


def scores(confusion: ConfusionMatrix, classes: ClassSet) -> dict[str, float]:
    """Return `miou`, `accuracy` and `iou/<class>` for the classes that occur."""
    named = {"miou": confusion.mean_iou(), "accuracy": confusion.accuracy()}
    named |= {
        f"iou/{name}": value for name, value in zip(classes.names, confusion.iou(), strict=True)
    }
    return {name: value for name, value in named.items() if not math.isnan(value)}


def score_table(confusion: ConfusionMatrix, classes: ClassSet) -> str:
    """Return a text table of the IoU and the pixels of each class, and the means."""
    width = max(len(name) for name in (*classes.names, "pixel accuracy"))
    pixels = confusion.matrix.sum(1).tolist()
    lines = [f"{'class':<{width}}     IoU      pixels"]
    for name, value, count in zip(classes.names, confusion.iou(), pixels, strict=True):
        lines.append(f"{name:<{width}}  {value:6.3f}  {count:10d}")
    lines.append(f"{'mean IoU':<{width}}  {confusion.mean_iou():6.3f}")
    lines.append(f"{'pixel accuracy':<{width}}  {confusion.accuracy():6.3f}")
    return "\n".join(lines)
