"""The whole decoder: projection, convolutions and classifier, one norm behind the other.

Where gradients are wanted, a norm and an activation behind one convolution are applied while the
next one reads: what is kept of each convolution is its raw result alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .. import _checks, dispatch
from ..fusion import Branch
from . import decoder, separable
from ._common import wants_gradients
from ._decoder_operators import OP
from ._epilogue import Stage
from ._norm_operators import IDENTITY
from ._norm_prologue import applied_on_load
from ._pointwise import pointwise_layer


class DecoderLayers(NamedTuple):
    """The parameters of a decoder.

    Attributes:
        projection: of the low-level features, pointwise.
        convs: separable, of stride 1.
        weight: of the classifier, (classes, C, 1, 1).
        bias: the same, (classes,) or None.
        align_corners: as in `F.interpolate`.
        encoder_first: order of the concatenation.
    """

    projection: Branch
    convs: Sequence[Branch]
    weight: Tensor
    bias: Tensor | None
    align_corners: bool
    encoder_first: bool


def decoder_logits(x: Tensor, low_level: Tensor, layers: DecoderLayers) -> Tensor:
    """Logits (N, classes, H, W) of the encoder output and low-level features (N, C, H, W)."""
    _checks.tensor(OP, "x", x, 4)
    wanted = layers.projection.weight.size(1)
    if _checks.tensor(OP, "low_level", low_level, 4).size(1) != wanted:
        raise ValueError(
            f"{OP}: low_level must have {wanted} channels, got shape {tuple(low_level.shape)}"
        )
    unfit = "an input is empty" if x.numel() == 0 or low_level.numel() == 0 else None
    name = dispatch.choose(dispatch.Call(OP, x, unfit, dispatch.no_gpu_record(x)))
    pointwise = F.conv2d if name == dispatch.REFERENCE else pointwise_layer
    projection = layers.projection
    low_level = pointwise(low_level, projection.weight, projection.bias)
    if name != dispatch.REFERENCE and _wants_gradients(x, low_level, layers):
        return _by_raw_results(name, x, low_level, layers)
    first, *rest = layers.convs
    x = decoder.decoder_conv2d(
        x, low_level, *_weights(first), *_padding(first),
        align_corners=layers.align_corners, encoder_first=layers.encoder_first,
        low_level_prologue=projection.epilogue, dw_epilogue=first.dw_epilogue,
        pw_epilogue=first.epilogue,
    )  # fmt: skip
    for conv in rest:
        x = separable.separable_conv2d(
            x, *_weights(conv), 1, *_padding(conv),
            dw_epilogue=conv.dw_epilogue, pw_epilogue=conv.epilogue,
        )  # fmt: skip
    return pointwise(x, layers.weight, layers.bias)


def _wants_gradients(x: Tensor, low_level: Tensor, layers: DecoderLayers) -> bool:
    """Whether autograd will record any of it; the projection of `low_level` has been."""
    found: list[Any] = [
        x,
        low_level,
        layers.weight,
        layers.bias,
        *(layers.projection.epilogue or ()),
    ]
    for conv in layers.convs:
        found += [*_weights(conv), *(conv.dw_epilogue or ()), *(conv.epilogue or ())]
    return wants_gradients(*(t for t in found if isinstance(t, Tensor)))


def _by_raw_results(name: str, x: Tensor, low_level: Tensor, layers: DecoderLayers) -> Tensor:
    ops = dispatch.operators(name)
    first, *rest = layers.convs
    a = decoder.prepare(
        x, low_level, *_weights(first), *_padding(first), layers.align_corners,
        layers.encoder_first, layers.projection.epilogue, first.dw_epilogue, first.epilogue,
    )  # fmt: skip
    raw, end = decoder.raw_result(name, a)
    for conv in rest:
        read, scale, shift = applied_on_load(name, raw, end)
        b = separable.prepare(
            read, *_weights(conv), 1, *_padding(conv), None, conv.dw_epilogue, conv.epilogue, None
        )
        raw, end = separable.raw_result(ops, b.through(scale, shift, end.activation))
    return _classified(ops, raw, end, layers)


def _classified(ops: Any, raw: Tensor, end: Stage, layers: DecoderLayers) -> Tensor:
    """Norm, activation and product: a separable convolution whose depthwise half is nothing."""
    raw, weight, bias = _checks.autocast(raw, layers.weight, layers.bias)
    ones = raw.new_ones(raw.size(1), 1, 1, 1)
    logits: Tensor = ops.separable_conv2d(
        raw, ones, None, [1, 1], [0, 0, 0, 0], [1, 1], None, None, IDENTITY, *end.vectors,
        end.activation, end.by_batch, end.group, weight, bias, False,
    )[0]  # fmt: skip
    return logits


def _weights(conv: Branch) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    assert conv.dw_weight is not None
    return conv.dw_weight, conv.weight, conv.dw_bias, conv.bias


def _padding(conv: Branch) -> tuple[tuple[int, int], int]:
    """Padding that keeps the size, and the atrous rate."""
    assert conv.dw_weight is not None
    height, width = (conv.dilation * (size - 1) // 2 for size in conv.dw_weight.shape[2:])
    return (height, width), conv.dilation
