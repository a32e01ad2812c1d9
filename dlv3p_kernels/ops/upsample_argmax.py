"""Classes of logits resized to the size of an image: checks, choice of back end, function."""

from __future__ import annotations

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _checks, dispatch
from .._checks import Ints
from ._upsample import call, check_logits

_OP = "upsample_argmax"
_DTYPES = (torch.int64, torch.uint8)


@overload
def upsample_argmax(
    logits: Tensor,
    size: Ints,
    *,
    align_corners: bool = False,
    return_probability: Literal[False] = False,
    dtype: torch.dtype = torch.int64,
) -> Tensor: ...


@overload
def upsample_argmax(
    logits: Tensor,
    size: Ints,
    *,
    align_corners: bool = False,
    return_probability: Literal[True],
    dtype: torch.dtype = torch.int64,
) -> tuple[Tensor, Tensor]: ...


def upsample_argmax(
    logits: Tensor,
    size: Ints,
    *,
    align_corners: bool = False,
    return_probability: bool = False,
    dtype: torch.dtype = torch.int64,
) -> Tensor | tuple[Tensor, Tensor]:
    """Class of every pixel of logits that are resized bilinearly to `size`.

    Equivalent to

        z = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
        z.argmax(1)                     with the first of equal logits; a NaN counts as the largest
        z.softmax(1).amax(1)            the probability

    without `z`. The resized logits are compared in float32 (float64 for float64), where stock
    PyTorch rounds them to the dtype of `logits` first.

    Args:
        logits: (N, K, h, w), channels_last or contiguous; float32, bfloat16, float16, float64 on
            CPU.
        size: (H, W), or an int for both.
        align_corners: as in `F.interpolate`.
        return_probability: whether to return the probability of the class as well.
        dtype: of the classes, `torch.int64` or, for at most 256 classes, `torch.uint8`.

    Returns:
        Classes (N, H, W); with `return_probability` a pair of these and of probabilities (N, H, W),
        float32, float64 for float64. Neither has gradients.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: `logits` is empty in classes, rows or columns, `size` is below 1, or `dtype`
            cannot hold the classes.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
    Segmentation", ECCV 2018, section 3.
    """
    height, width = _check(logits, size, dtype)
    name = dispatch.choose(call(_OP, logits, (height, width), few=0))
    as_uint8 = dtype == torch.uint8
    if name == dispatch.REFERENCE:
        index, probability = _stock(logits, (height, width), align_corners, return_probability)
        index = index.to(dtype)
    else:
        index, probability = dispatch.operators(name).upsample_argmax(
            logits, (height, width), align_corners, return_probability, as_uint8
        )
    return (index, probability) if return_probability else index


@torch.no_grad()
def _stock(
    logits: Tensor, size: tuple[int, int], align_corners: bool, return_probability: bool
) -> tuple[Tensor, Tensor]:
    z = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    index = z.argmax(1)
    if not return_probability:
        return index, z.new_empty(0)
    wide = torch.promote_types(z.dtype, torch.float32)
    return index, z.softmax(1, dtype=wide).gather(1, index[:, None])[:, 0]


def _check(logits: Tensor, size: Ints, dtype: torch.dtype) -> list[int]:
    """Raise unless the arguments fit each other; height and width."""
    check_logits(_OP, logits)
    if dtype not in _DTYPES:
        raise TypeError(f"{_OP}: dtype must be one of {_DTYPES}, got {dtype!r}")
    if dtype == torch.uint8 and logits.size(1) > 256:
        raise ValueError(f"{_OP}: dtype torch.uint8 holds 256 classes, logits has {logits.size(1)}")
    return _checks.integers(_OP, "size", size, (2,), 1)


def _explain(
    *, logits: Tensor, size: Ints, dtype: torch.dtype, align_corners: bool, return_probability: bool
) -> dispatch.Call:
    return call(_OP, logits, _check(logits, size, dtype), few=0)


dispatch.CALLS[upsample_argmax] = _explain
