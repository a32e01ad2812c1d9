"""An exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class ModelEMA(Generic[Model]):
    """Keeps `average = d * average + (1 - d) * model` over parameters and float buffers.

    `d` grows with the number of updates n as `min(decay, (1 + n) / (10 + n))`, so that the random
    start does not linger in a short run. Integer buffers are copied.

    Args:
        model: the model that is trained.
        decay: `0 < decay < 1`, e.g. 0.999.

    Raises:
        ValueError: `decay` out of range.
    """

    def __init__(self, model: Model, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay: expected 0 < decay < 1, got {decay}")
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards `model`, after an optimizer step."""
        rate = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages, values = self._pairs(model)
        torch._foreach_lerp_(averages, values, rate)

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        averages: list[Tensor] = []
        values: list[Tensor] = []
        current = model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                averages.append(average)
                values.append(current[name])
            else:
                average.copy_(current[name])
        return averages, values
