"""The decoder's convolution: checks, choice of back end, public function."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks, dispatch, reference
from .._checks import Ints
from ..fusion import Epilogue
from . import _depthwise, _epilogue
from ._common import wants_gradients
from ._decoder_operators import OP
from ._epilogue import Stage
from ._norm_prologue import applied_on_load, measured
from .separable import check_pointwise, finished


def decoder_conv2d(
    x: Tensor,
    low_level: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None = None,
    pw_bias: Tensor | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    *,
    align_corners: bool = False,
    encoder_first: bool = True,
    low_level_prologue: Epilogue | None = None,
    dw_epilogue: Epilogue | None = None,
    pw_epilogue: Epilogue | None = None,
) -> Tensor:
    """Separable convolution of an upsampled encoder output beside low-level features.

    Equivalent to

        low_level = low_level_prologue(low_level)
        size = low_level.shape[-2:]
        x = F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
        x = torch.cat([x, low_level] if encoder_first else [low_level, x], 1)
        dk.separable_conv2d(x, dw_weight, pw_weight, dw_bias, pw_bias, 1, padding, dilation,
                            dw_epilogue=dw_epilogue, pw_epilogue=pw_epilogue)

    The depthwise kernel interpolates `x`, and applies `low_level_prologue`, while it reads. The
    resized map and the concatenation never exist; the depthwise result exists a piece at a time on
    the CPU, for as long as a pass takes on a GPU. Gradients go straight to the low-resolution `x`.
    What is kept for backward is `x`, `low_level` and, where `pw_epilogue` is given, the raw result
    of the pointwise half. Works under autograd, autocast, `torch.compile(fullgraph=True)` and
    `torch.export`.

    Args:
        x: encoder output (N, C1, h, w), channels_last (fastest) or contiguous; float32, bfloat16,
            float16, float64 on CPU.
        low_level: (N, C2, H, W), same dtype and device; smaller or larger than `x`.
        dw_weight: (C1 + C2, 1, kh, kw), the same, channels in the order of the concatenation.
        pw_weight: (C', C1 + C2, 1, 1), the same.
        dw_bias: (C1 + C2,) or None, the same.
        pw_bias: (C',) or None, the same.
        padding: zeros around the concatenation: int, (height, width), or (left, right, top,
            bottom) in the order of `F.pad`.
        dilation: atrous rate, int or (height, width).
        align_corners: as in `F.interpolate`.
        encoder_first: order of the concatenation.
        low_level_prologue: a `ChannelAffine` or a `BatchNorm`, applied to `low_level`.
        dw_epilogue: the same between the halves.
        pw_epilogue: the same behind the pointwise half.

    Returns:
        (N, C', H', W') with H' = H + top + bottom - dilation * (kh - 1), in the memory format of
        `low_level`.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, device or size does not fit, running statistics are missing, or a batch
            has a single value per channel to normalise by; the message names the argument.
        RuntimeError: second derivatives are asked of the kernels (the reference has them).

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
    Segmentation", ECCV 2018, section 3.1, "Proposed decoder", and figure 2.
    """
    a = prepare(
        x, low_level, dw_weight, pw_weight, dw_bias, pw_bias, padding, dilation,
        align_corners, encoder_first, low_level_prologue, dw_epilogue, pw_epilogue,
    )  # fmt: skip
    name = dispatch.choose(a.call)
    if name == dispatch.REFERENCE:
        everything = (
            *a.maps, *a.order, low_level_prologue, *a.depthwise, dw_epilogue, *a.pointwise,
            pw_epilogue,
        )  # fmt: skip
        return reference.decoder_conv2d(*everything)
    return _by_kernels(name, a)


class Arguments(NamedTuple):
    """Arguments checked, as the operators take them."""

    call: dispatch.Call
    maps: tuple[Tensor, Tensor]
    order: tuple[bool, bool]
    low: Stage
    depthwise: tuple[Any, ...]
    middle: Stage
    pointwise: tuple[Tensor, Tensor | None]
    end: Stage
    size: tuple[int, int]

    @property
    def values_per_channel(self) -> int:
        """Of either result."""
        return int(self.maps[1].size(0)) * self.size[0] * self.size[1]


def _by_kernels(name: str, a: Arguments) -> Tensor:
    ops = dispatch.operators(name)
    if a.end.by_batch or _wants_gradients(a):
        raw, end = raw_result(name, a)
        return finished(ops, raw, end, None)
    source, middle = _measured(name, a)
    output: Tensor = ops.decoder_conv2d_fused(
        *source, *a.depthwise, *middle.folded, middle.activation, *a.pointwise, *a.end.folded,
        a.end.activation, False,
    )[0]  # fmt: skip
    return output


def raw_result(name: str, a: Arguments) -> tuple[Tensor, Stage]:
    """The result of the pointwise half, and what is still to stand behind it, measured."""
    ops = dispatch.operators(name)
    source, middle = _measured(name, a)
    end = a.end
    raw, mean, var = ops.decoder_conv2d(
        *source, *a.depthwise, *middle.vectors, middle.activation, middle.by_batch, middle.group,
        *a.pointwise, end.by_batch,
    )  # fmt: skip
    if end.by_batch:
        end = end.measured(ops, mean, var, a.values_per_channel)
    return raw, end


def _measured(name: str, a: Arguments) -> tuple[tuple[Any, ...], Stage]:
    """The source as the operators take it, and the norm between the halves."""
    ops = dispatch.operators(name)
    low = measured(name, a.maps[1], a.low)
    low_level, scale, shift = applied_on_load(name, a.maps[1], low)
    source = (a.maps[0], low_level, *a.order, scale, shift, low.activation)
    if not a.middle.by_batch:
        return source, a.middle
    with torch.no_grad():  # derived together with the norm, not by themselves
        mean, var = ops.decoder_conv2d_statistics(*source, *a.depthwise)
    return source, a.middle.measured(ops, mean, var, a.values_per_channel)


def _wants_gradients(a: Arguments) -> bool:
    everything = (*a.maps, *a.low, *a.depthwise, *a.middle, *a.pointwise, *a.end)
    return wants_gradients(*(t for t in everything if isinstance(t, Tensor)))


def prepare(
    x: Tensor,
    low_level: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None,
    pw_bias: Tensor | None,
    padding: Ints,
    dilation: Ints,
    align_corners: bool,
    encoder_first: bool,
    low_level_prologue: Epilogue | None,
    dw_epilogue: Epilogue | None,
    pw_epilogue: Epilogue | None,
) -> Arguments:
    """The arguments of `decoder_conv2d` checked."""
    for flag, value in (("align_corners", align_corners), ("encoder_first", encoder_first)):
        if not isinstance(value, bool):
            raise TypeError(f"{OP}: {flag} must be a bool, got {type(value).__name__}")
    x = _checks.tensor(OP, "x", x, 4)
    low_level = _checks.tensor(OP, "low_level", low_level, 4)
    dw_weight = _checks.tensor(OP, "dw_weight", dw_weight, 4)
    x, dw_weight, dw_bias = _checks.autocast(x, dw_weight, dw_bias)
    low_level, pw_weight, pw_bias = _checks.autocast(low_level, pw_weight, pw_bias)
    _check_maps(x, low_level)
    channels = x.size(1) + low_level.size(1)
    _check_depthwise(x, dw_weight, dw_bias, channels)
    check_pointwise(OP, x, channels, pw_weight, pw_bias)
    geometry = _depthwise.Geometry(OP, low_level, dw_weight, 1, padding, dilation)
    low = _epilogue.checked(OP, "low_level_prologue", low_level_prologue, low_level.size(1), x)
    middle = _epilogue.checked(OP, "dw_epilogue", dw_epilogue, channels, x)
    end = _epilogue.checked(OP, "pw_epilogue", pw_epilogue, pw_weight.size(0), x)
    unfit = "an input is empty" if x.numel() == 0 or low_level.numel() == 0 else None
    arguments = Arguments(
        dispatch.Call(OP, x, unfit, dispatch.no_gpu_record(x)), (x, low_level),
        (align_corners, encoder_first), low,
        (dw_weight, dw_bias, geometry.padding, geometry.dilation), middle, (pw_weight, pw_bias),
        end, geometry.output_size,
    )  # fmt: skip
    _check_values(arguments)
    return arguments


def _check_maps(x: Tensor, low_level: Tensor) -> None:
    _checks.same_kind(OP, "low_level", low_level, "x", x)
    if x.size(0) != low_level.size(0):
        raise ValueError(
            f"{OP}: low_level must have x's batch of {x.size(0)}, got {low_level.size(0)}"
        )
    for name, map in (("x", x), ("low_level", low_level)):
        if 0 in map.shape[1:]:
            raise ValueError(
                f"{OP}: {name} must have channels, height and width, got shape {tuple(map.shape)}"
            )


def _check_depthwise(x: Tensor, dw_weight: Tensor, dw_bias: Tensor | None, channels: int) -> None:
    _checks.same_kind(OP, "dw_weight", dw_weight, "x", x)
    if tuple(dw_weight.shape[:2]) != (channels, 1) or 0 in dw_weight.shape[2:]:
        raise ValueError(
            f"{OP}: dw_weight must be ({channels}, 1, kh, kw), one filter per channel of x and"
            f" low_level, got shape {tuple(dw_weight.shape)}"
        )
    if dw_bias is not None:
        _checks.channel_vector(OP, "dw_bias", dw_bias, channels, x, (x.dtype,))


def _check_values(a: Arguments) -> None:
    low_level = a.maps[1]
    if a.low.by_batch and low_level.numel() == low_level.size(1):
        raise ValueError(
            f"{OP}: low_level must have more than one value per channel to train batch norm"
        )
    if a.values_per_channel == 1 and (a.middle.by_batch or a.end.by_batch):
        raise ValueError(
            f"{OP}: low_level must give more than one value per channel to train batch norm"
        )


def _explain(**arguments: Any) -> dispatch.Call:
    return prepare(**arguments).call


dispatch.CALLS[decoder_conv2d] = _explain
