"""Intersection over union from a confusion matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deeplabv3plus.classes import IGNORE_INDEX


class ConfusionMatrix:
    """Counts of (true class, predicted class) over pixels; true class 255 is ignored.

    `matrix` is int64 of shape (classes, classes), on the CPU, rows = truth.
    """

    def __init__(self, num_classes: int) -> None:
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, truth: Tensor, prediction: Tensor) -> None:
        """Add the pixels of two integer class maps of one shape.

        Raises:
            ValueError: different shapes, or values outside the classes (255 in `truth` is allowed).
        """
        if truth.shape != prediction.shape:
            raise ValueError(
                f"prediction: expected shape {tuple(truth.shape)}, got {tuple(prediction.shape)}"
            )
        classes = len(self.matrix)
        counted = truth != IGNORE_INDEX
        rows, columns = truth[counted].long(), prediction[counted].long()
        for name, values in (("truth", rows), ("prediction", columns)):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < classes:
                raise ValueError(
                    f"{name}: expected classes 0 to {classes - 1}, got up to {int(values.max())}"
                )
        counts = torch.bincount(rows * classes + columns, minlength=classes * classes)
        self.matrix += counts.view(classes, classes).cpu()

    def iou(self) -> list[float]:
        """Return TP / (TP + FP + FN) of each class; NaN if neither truth nor prediction has it."""
        hits = self.matrix.diag()
        union = self.matrix.sum(0) + self.matrix.sum(1) - hits
        return (hits.double() / union.double()).tolist()

    def mean_iou(self) -> float:
        """Return the mean of `iou` over the classes that occur, NaN if none does."""
        known = [value for value in self.iou() if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    def accuracy(self) -> float:
        """Return the share of pixels with the right class, NaN without pixels."""
        total = int(self.matrix.sum())
        return int(self.matrix.diag().sum()) / total if total else math.nan
