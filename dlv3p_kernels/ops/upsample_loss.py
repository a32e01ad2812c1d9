"""Cross entropy of logits resized to their target: checks, choice of back end, function."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _checks, dispatch, reference
from . import _hard_pixels
from ._common import vector_dtype
from ._upsample import call, check_logits

_OP = "upsample_cross_entropy"
_TARGET_DTYPES = (torch.int64, torch.int32, torch.uint8)


class _Loss(NamedTuple):
    """The checked arguments."""

    logits: Tensor
    target: Tensor
    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    align_corners: bool


class _Mining(NamedTuple):
    """Which pixels count."""

    top_k_percent_pixels: float | None
    ohem_threshold: float | None
    ohem_min_kept: int


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    label_smoothing: float = 0.0,
    align_corners: bool = False,
    top_k_percent_pixels: float | None = None,
    ohem_threshold: float | None = None,
    ohem_min_kept: int = 100_000,
    all_ignored: Literal["nan", "zero"] = "nan",
) -> Tensor:
    """Cross entropy of logits that are resized bilinearly to the size of their target.

    Equivalent to

        z = F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=align_corners)
        F.cross_entropy(z, target.long(), weight, ignore_index=ignore_index, reduction=reduction,
                        label_smoothing=label_smoothing)

    without `z`, nor anything else of the size of all classes times all pixels, forward or backward:
    kept for backward are the logits, the target and one number per pixel. Everything is computed in
    float32 (float64 for float64), and rounded once to what stock PyTorch returns: the dtype of the
    logits, float32 under autocast. The gradient is the same to the bit at every run. Works under
    autograd (to any order), autocast, `torch.compile(fullgraph=True)` and `torch.export`.

    Args:
        logits: (N, K, h, w), channels_last or contiguous; float32, bfloat16, float16, float64 on
            CPU.
        target: class of each pixel (N, H, W), int64, int32 or uint8.
        weight: (K,) or None for 1; of the dtype of `logits` or float32 (float64 for float64).
        ignore_index: value of pixels to leave out; need not be a class.
        reduction: "mean" over the pixels that are not left out, weighted by the weights of their
            classes; "sum"; or "none" for the loss of every pixel, (N, H, W).
        label_smoothing: in [0, 1], the share of the target that all classes have in common.
        align_corners: as in `F.interpolate`.
        top_k_percent_pixels: share of all pixels, in (0, 1], with the highest losses; the others do
            not count, and the mean is the plain one of the losses of these (which are 0 for ignored
            pixels), as in TensorFlow's DeepLab and detectron2's `DeepLabCE`.
        ohem_threshold: in (0, 1]. Only pixels count to whose class the logits give a probability
            below this, and the `ohem_min_kept` per image with the lowest, as in mmsegmentation's
            `OHEMPixelSampler`; the mean is over these.
        ohem_min_kept: times N, how many pixels are kept at least, whatever their probability.
        all_ignored: what a mean over no pixels is: "nan" as in stock PyTorch, or "zero", with
            gradients that are zero as well.

    Returns:
        A scalar, or (N, H, W) for `reduction="none"`.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, device or option does not fit; the message names the argument.
        IndexError: on the CPU, `target` holds a value that is neither a class nor `ignore_index`.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
    Segmentation", ECCV 2018, section 4: the loss is taken at the size of the image. Hard pixels:
    Wu et al., "Bridging Category-level and Instance-level Semantic Image Segmentation", 2016,
    section 4; Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example
    Mining", CVPR 2016.
    """
    loss = _Loss(logits, target, weight, ignore_index, label_smoothing, align_corners)
    mining = _Mining(top_k_percent_pixels, ohem_threshold, ohem_min_kept)
    _check(loss, reduction, mining, all_ignored)
    backend = dispatch.choose(_call(loss))
    mined = top_k_percent_pixels is not None or ohem_threshold is not None
    if (
        backend == dispatch.REFERENCE
        and not mined
        and (reduction != "mean" or all_ignored == "nan")
    ):
        return _stock(loss, reduction)
    dtype = _result_dtype(logits)
    if backend != dispatch.REFERENCE and weight is not None:
        loss = loss._replace(weight=weight.to(vector_dtype(logits)))
    pixels = _pixel_losses(loss, backend)
    if reduction == "none":
        return pixels.to(dtype)
    if top_k_percent_pixels is not None:
        hardest = _hard_pixels.highest(pixels, top_k_percent_pixels)
        return (hardest.mean() if reduction == "mean" else hardest.sum()).to(dtype)
    counted_target = target
    if ohem_threshold is not None:
        kept = _kept(loss, pixels, mining, backend)
        pixels = torch.where(kept, pixels, 0)
        counted_target = torch.where(kept, target.long(), ignore_index)
    total = pixels.sum()
    if reduction == "sum":
        return total.to(dtype)
    return _mean(total, counted_target, loss, backend, all_ignored == "zero").to(dtype)


def _stock(loss: _Loss, reduction: str) -> Tensor:
    z = F.interpolate(
        loss.logits, loss.target.shape[-2:], mode="bilinear", align_corners=loss.align_corners
    )
    weight = None if loss.weight is None else loss.weight.to(z.dtype)
    return F.cross_entropy(
        z, loss.target.long(), weight,
        ignore_index=loss.ignore_index, reduction=reduction, label_smoothing=loss.label_smoothing,
    )  # fmt: skip


def _pixel_losses(loss: _Loss, backend: str) -> Tensor:
    """The loss of every pixel; 0 where ignored."""
    if backend == dispatch.REFERENCE:
        return _stock(loss, "none")
    ops = dispatch.operators(backend)
    if torch.compiler.is_compiling():
        pixels: Tensor = ops.upsample_cross_entropy(*loss)[0]
        return pixels
    try:
        pixels = ops.upsample_cross_entropy(*loss)[0]
    except RuntimeError:  # its text depends on the version of torch
        _raise_if_out_of_bounds(loss)
        raise
    return pixels


def _raise_if_out_of_bounds(loss: _Loss) -> None:
    target, classes = loss.target, loss.logits.size(1)
    fits = (target == loss.ignore_index) | ((target >= 0) & (target < classes))
    if not fits.all():
        raise IndexError(
            f"{_OP}: target must hold classes from 0 to {classes - 1} or ignore_index"
            f" {loss.ignore_index}, got {target[~fits][0].item()}"
        )


@torch.no_grad()
def _kept(loss: _Loss, pixels: Tensor, mining: _Mining, backend: str) -> Tensor:
    """The pixels that count."""
    plain = loss._replace(weight=None, label_smoothing=0.0)
    if loss.weight is not None or loss.label_smoothing:
        pixels = _pixel_losses(plain, backend)
    counted = loss.target != loss.ignore_index
    least = mining.ohem_min_kept * loss.logits.size(0)
    assert mining.ohem_threshold is not None
    return _hard_pixels.unlikely((-pixels).exp(), counted, mining.ohem_threshold, least)


def _mean(total: Tensor, target: Tensor, loss: _Loss, backend: str, zero: bool) -> Tensor:
    operators = reference if backend == dispatch.REFERENCE else dispatch.operators(backend)
    by = operators.class_weight_sum(target, loss.weight, loss.ignore_index, loss.logits.detach())
    return total / (torch.where(by == 0, 1, by) if zero else by)


def _result_dtype(logits: Tensor) -> torch.dtype:
    kind = logits.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)
    return vector_dtype(logits) if autocast else logits.dtype


def _check(loss: _Loss, reduction: str, mining: _Mining, all_ignored: str) -> None:
    """Raise unless the arguments fit each other."""
    logits, target = loss.logits, loss.target
    check_logits(_OP, logits)
    if not isinstance(target, Tensor):
        raise TypeError(f"{_OP}: target must be a torch.Tensor, got {type(target).__name__}")
    if target.dtype not in _TARGET_DTYPES:
        raise TypeError(f"{_OP}: target must be one of {_TARGET_DTYPES}, got {target.dtype}")
    if target.dim() != 3 or target.size(0) != logits.size(0) or 0 in target.shape[1:]:
        raise ValueError(
            f"{_OP}: target must be (N, H, W) with N = {logits.size(0)} of logits and H, W >= 1,"
            f" got shape {tuple(target.shape)}"
        )
    if target.device != logits.device:
        raise ValueError(
            f"{_OP}: target must be on logits' device {logits.device}, got {target.device}"
        )
    if loss.weight is not None:
        dtypes = (logits.dtype, vector_dtype(logits))
        _checks.channel_vector(_OP, "weight", loss.weight, logits.size(1), logits, dtypes)
    _check_options(loss, reduction, mining, all_ignored)


def _check_options(loss: _Loss, reduction: str, mining: _Mining, all_ignored: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'{_OP}: reduction must be "mean", "sum" or "none", got {reduction!r}')
    if all_ignored not in ("nan", "zero"):
        raise ValueError(f'{_OP}: all_ignored must be "nan" or "zero", got {all_ignored!r}')
    if not 0 <= loss.label_smoothing <= 1:
        raise ValueError(f"{_OP}: label_smoothing must be in [0, 1], got {loss.label_smoothing!r}")
    shares = {
        "top_k_percent_pixels": mining.top_k_percent_pixels,
        "ohem_threshold": mining.ohem_threshold,
    }
    given = {name: share for name, share in shares.items() if share is not None}
    for name, share in given.items():
        if not 0 < share <= 1:
            raise ValueError(f"{_OP}: {name} must be in (0, 1] or None, got {share!r}")
        if reduction == "none":
            raise ValueError(f'{_OP}: {name} needs the reduction "mean" or "sum", got "none"')
    if len(given) > 1:
        raise ValueError(f"{_OP}: top_k_percent_pixels and ohem_threshold exclude each other")
    if mining.ohem_min_kept < 0:
        raise ValueError(f"{_OP}: ohem_min_kept must be at least 0, got {mining.ohem_min_kept}")


# Where the lines cross on the CPU (docs/upsample.md).
_FEW = 2**15


def _call(loss: _Loss) -> dispatch.Call:
    weight = loss.weight
    learned = weight is not None and weight.requires_grad and torch.is_grad_enabled()
    unfit = "the weight requires gradients" if learned else None
    return call(_OP, loss.logits, loss.target.shape[-2:], _FEW, unfit)


def _explain(
    *, reduction: str, all_ignored: str, top_k_percent_pixels: float | None,
    ohem_threshold: float | None, ohem_min_kept: int, **arguments: Any,
) -> dispatch.Call:  # fmt: skip
    loss = _Loss(**arguments)
    mining = _Mining(top_k_percent_pixels, ohem_threshold, ohem_min_kept)
    _check(loss, reduction, mining, all_ignored)
    return _call(loss)


dispatch.CALLS[upsample_cross_entropy] = _explain
