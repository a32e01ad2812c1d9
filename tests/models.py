"""A small model and a batch for it."""

from __future__ import annotations

from typing import Any

import torch
from deeplabv3plus import DeepLabV3Plus
from torch import Tensor, nn

CLASSES = 5
SMALL: dict[str, Any] = {
    "encoder": "mobilenet_v2",
    "num_classes": CLASSES,
    "aspp_channels": 16,
    "low_level_channels": 8,
    "decoder_channels": 16,
}


def small(**kwargs: Any) -> DeepLabV3Plus:
    return DeepLabV3Plus(**{**SMALL, **kwargs})


def batch(n: int = 2, height: int = 65, width: int = 49) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, height, width), torch.randint(0, CLASSES, (n, height, width))


def randomise_norms(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value in (layer.running_var, layer.weight.data):
                value.uniform_(0.5, 1.5)
            for value in (layer.running_mean, layer.bias.data):
                value.uniform_(-0.2, 0.2)
