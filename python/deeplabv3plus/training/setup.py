"""What a run needs before its first step."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from deeplabv3plus.checkpoint import read_plain
from deeplabv3plus.data.voc import VOCSegmentation, read_mask
from deeplabv3plus.model import DeepLabV3Plus
from deeplabv3plus.training.config import TrainConfig


def build_model(config: TrainConfig, num_classes: int, device: torch.device) -> DeepLabV3Plus:
    """Return the model on `device`, with random weights or those of `config.encoder_weights`.

    Raises:
        FileNotFoundError, ValueError: no such file of weights, or not weights of this encoder.
    """
    model = DeepLabV3Plus(num_classes=num_classes, **config.model_arguments())
    if config.encoder_weights:
        _load_encoder(model, Path(config.encoder_weights))
    model.to(device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def class_pixels(pairs: VOCSegmentation) -> Tensor:
    """Return the number of pixels of each class in all masks, int64 of shape (classes,)."""
    counts = torch.zeros(len(pairs.classes), dtype=torch.int64)
    for path in pairs.masks:
        values = torch.from_numpy(read_mask(path, pairs.classes.names))
        counts += torch.bincount(values.flatten(), minlength=256)[: len(counts)]
    return counts


def _load_encoder(model: DeepLabV3Plus, path: Path) -> None:
    load = getattr(model.encoder, "load_torchvision", None)
    if load is None:
        raise ValueError(
            f"encoder_weights: {model.config['encoder']} cannot take weights from a file"
        )
    weights = read_plain(path, "file of encoder weights")
    try:
        load(weights)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"encoder_weights: {path}: {error}") from error
