"""Checks of the model's arguments; errors say what was expected and what came."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OUTPUT_STRIDES = (8, 16, 32)


def model_arguments(**arguments: Any) -> dict[str, Any]:
    """Check the constructor's arguments; sequences come back as tuples of int."""
    checked = dict(arguments)
    if not isinstance(arguments["encoder"], str):
        raise TypeError(f"encoder must be a str, got {_kind(arguments['encoder'])}")
    for name in (
        "num_classes",
        "in_channels",
        "aspp_channels",
        "low_level_channels",
        "decoder_channels",
    ):
        _positive(name, arguments[name])
    if _integer("output_stride", arguments["output_stride"]) not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride must be 8, 16 or 32, got {arguments['output_stride']}")
    for name in ("atrous_rates", "multi_grid"):
        if arguments[name] is not None:
            checked[name] = _positives(name, arguments[name])
    grid = checked["multi_grid"]
    if grid is not None and len(grid) != 3:
        raise ValueError(f"multi_grid must have three factors, got {grid}")
    if not isinstance(arguments["align_corners"], bool):
        raise TypeError(f"align_corners must be a bool, got {_kind(arguments['align_corners'])}")
    if not 0 <= _number("dropout", arguments["dropout"]) < 1:
        raise ValueError(f"dropout must be in [0, 1), got {arguments['dropout']}")
    if not 0 < _number("bn_momentum", arguments["bn_momentum"]) <= 1:
        raise ValueError(f"bn_momentum must be in (0, 1], got {arguments['bn_momentum']}")
    return checked


def images(value: Any, channels: int, weight: Tensor) -> None:
    """Check a batch of images against the channels and the weights of a model."""
    if not isinstance(value, Tensor):
        raise TypeError(f"images must be a tensor, got {_kind(value)}")
    if value.dim() != 4 or value.shape[1] != channels:
        raise ValueError(f"images must be (N, {channels}, H, W), got shape {tuple(value.shape)}")
    if value.shape[2] == 0 or value.shape[3] == 0:
        raise ValueError(f"images must have height and width, got shape {tuple(value.shape)}")
    if value.device != weight.device:
        raise ValueError(
            f"images must be on the model's device {weight.device}, got {value.device}"
        )
    if not value.is_floating_point() or (
        value.dtype != weight.dtype and not _autocast(value.device.type)
    ):
        raise TypeError(f"images must be of the model's dtype {weight.dtype}, got {value.dtype}")


def more_than_one_pixel(value: Tensor, output_stride: int) -> None:
    """Refuse a single training image whose encoder map is one pixel: it has no variance."""
    if value.shape[2] <= output_stride and value.shape[3] <= output_stride:
        raise ValueError(
            "images: batch normalisation cannot train on a single value per channel; one image of"
            f" {value.shape[2]}x{value.shape[3]} is a single pixel at output stride"
            f" {output_stride}: use larger images, a larger batch or model.eval()"
        )


def target(value: Any, images: Tensor, classes: int, ignore_index: int, values: bool) -> None:
    """Check a batch of class maps against the images; with `values`, every pixel of it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"target must be a tensor, got {_kind(value)}")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"target must be of an integer dtype, got {value.dtype}")
    wanted = (images.shape[0], *images.shape[2:])
    if tuple(value.shape) != wanted:
        raise ValueError(f"target must be (N, H, W) = {wanted}, got shape {tuple(value.shape)}")
    if value.device != images.device:
        raise ValueError(
            f"target must be on the device of the images, {images.device}, got {value.device}"
        )
    _integer("ignore_index", ignore_index)
    if values and not torch.compiler.is_compiling():
        wrong = (value != ignore_index) & ((value < 0) | (value >= classes))
        if wrong.any():
            raise ValueError(
                f"target must hold classes 0 to {classes - 1} or ignore_index {ignore_index}, got"
                f" {value[wrong].unique()[:8].tolist()}"
            )


def _autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _positives(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} must be a list or tuple of int, got {_kind(value)}")
    if not value:
        raise ValueError(f"{name} must not be empty")
    return tuple(_positive(f"{name}[{i}]", item) for i, item in enumerate(value))


def _positive(name: str, value: Any) -> int:
    if _integer(name, value) < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def _integer(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {_kind(value)}")
    return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"
