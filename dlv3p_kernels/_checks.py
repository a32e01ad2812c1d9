"""Argument checks shared by the public functions: every message names the argument."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

Ints: TypeAlias = int | Iterable[int]


def tensor(op: str, name: str, value: object, rank: int) -> Tensor:
    """A floating-point tensor of the given rank, or a TypeError/ValueError that says what came."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dim() != rank:
        raise ValueError(
            f"{op}: {name} must have {rank} dimensions, got shape {tuple(value.shape)}"
        )
    if not value.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {value.dtype}")
    return value


def same_kind(op: str, name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """Raise unless `value` has the dtype and device of `like`."""
    if value.dtype != like.dtype:
        raise TypeError(
            f"{op}: {name} must have {like_name}'s dtype {like.dtype}, got {value.dtype}"
        )
    if value.device != like.device:
        raise ValueError(
            f"{op}: {name} must be on {like_name}'s device {like.device}, got {value.device}"
        )


def channel_vector(
    op: str, name: str, vector: object, channels: int, x: Tensor, dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raise unless `vector` is (channels,) in one of `dtypes` and on the device of the map `x`."""
    vector = tensor(op, name, vector, 1)
    if vector.size(0) != channels:
        raise ValueError(f"{op}: {name} must have {channels} elements, got {vector.size(0)}")
    if vector.dtype not in dtypes:
        wanted = " or ".join(str(dtype) for dtype in dict.fromkeys(dtypes))
        raise TypeError(f"{op}: {name} must be {wanted} for {x.dtype} maps, got {vector.dtype}")
    if vector.device != x.device:
        raise ValueError(f"{op}: {name} must be on x's device {x.device}, got {vector.device}")


def integers(op: str, name: str, value: Ints, lengths: tuple[int, ...], least: int) -> list[int]:
    """One integer or a sequence of one of the given lengths, each at least `least`."""
    if _is_integer(value):
        numbers = [value] * lengths[0]
    else:
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise TypeError(f"{op}: {name} must be an int or ints, got {value!r}")
        numbers = list(value)
        if len(numbers) not in lengths:
            wanted = " or ".join(str(n) for n in lengths)
            raise ValueError(f"{op}: {name} must be an int or {wanted} ints, got {value!r}")
    for number in numbers:
        if not _is_integer(number):
            raise TypeError(f"{op}: {name} must hold ints, got {value!r}")
        if number < least:
            raise ValueError(f"{op}: {name} must be at least {least}, got {value!r}")
    return [int(n) if isinstance(n, np.integer) else n for n in numbers]


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, (int, torch.SymInt, np.integer)) and not isinstance(value, bool)


def padding(op: str, value: Ints) -> list[int]:
    """Padding as (left, right, top, bottom), from an int, (height, width) or the four numbers."""
    numbers = integers(op, "padding", value, (2, 4), 0)
    if len(numbers) == 2:
        height, width = numbers
        return [width, width, height, height]
    return numbers


def autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast to the autocast dtype of `x`'s device where autocast is on, as `F.conv2d` does."""
    kind = x.device.type
    # Meta tensors have no autocast; torch.compile of torch 2.10 cannot ask whether a device has it.
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)

    def cast(t: Tensor) -> Tensor:
        return t if t.dtype == torch.float64 else t.to(dtype)

    return cast(x), cast(weight), None if bias is None else cast(bias)
