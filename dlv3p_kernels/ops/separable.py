"""Separable convolution: checks, choice of back end, public function."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks, dispatch, reference
from .._checks import Ints
from ..fusion import ChannelAffine, Epilogue
from . import _depthwise, _epilogue
from ._common import channel_affine, vector_dtype, wants_gradients
from ._epilogue import Stage
from ._norm_operators import IDENTITY
from ._separable_operators import OP


def separable_conv2d(
    x: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None = None,
    pw_bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    *,
    prologue: ChannelAffine | None = None,
    dw_epilogue: Epilogue | None = None,
    pw_epilogue: Epilogue | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Depthwise-separable (atrous) convolution, with the norms and activations around its halves.

    Equivalent to

        x = prologue(x)
        x = dw_epilogue(F.conv2d(x, dw_weight, dw_bias, stride, padding, dilation, groups=C))
        x = pw_epilogue(F.conv2d(x, pw_weight, pw_bias))
        x + residual

    each of `prologue`, epilogues and `residual` being optional. That covers all orders in use:

    | order | used by | arguments |
    | --- | --- | --- |
    | depthwise, pointwise, BN, ReLU | segmentation_models_pytorch | `pw_epilogue` |
    | depthwise, BN, pointwise, BN | the middle of Xception | both epilogues, "identity" |
    | depthwise, BN, ReLU, pointwise, BN, ReLU | DeepLabv3+'s heads, mmseg | both, "relu" |
    | ReLU, depthwise, BN, pointwise, BN, + skip | Xception's modules | all |

    The result of the depthwise half is never kept, and without gradients, or without batch
    statistics to form of it, never exists as a whole. For backward the op keeps `x` and, where
    `pw_epilogue` is given, the raw result of the pointwise half; the rest is computed anew. Works
    under autograd, autocast, `torch.compile(fullgraph=True)` and `torch.export`.

    Args:
        x: input (N, C, H, W), channels_last (fastest) or contiguous; float32, bfloat16, float16,
            float64 on CPU. Sums are formed in float32 at least.
        dw_weight: (C, 1, kh, kw), same dtype and device as `x`.
        pw_weight: (C', C, 1, 1), the same.
        dw_bias: (C,) or None, the same.
        pw_bias: (C',) or None, the same.
        stride: of the depthwise half, int or (height, width).
        padding: zeros around `prologue(x)`: int, (height, width), or (left, right, top, bottom) in
            the order of `F.pad`, as TensorFlow's SAME needs.
        dilation: atrous rate, int or (height, width).
        prologue: applied to `x` while it is read.
        dw_epilogue: a `ChannelAffine` or a `BatchNorm` between the halves.
        pw_epilogue: the same behind the pointwise half.
        residual: (N, C', H', W') or None, added last.

    Returns:
        (N, C', H', W') with H' = (H + top + bottom - dilation * (kh - 1) - 1) // stride + 1.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, device or size does not fit, running statistics are missing, or a batch
            has a single value per channel to normalise by; the message names the argument.
        RuntimeError: second derivatives are asked of the kernels (the reference has them).

    Source: atrous separable convolution, Chen et al., "Encoder-Decoder with Atrous Separable
    Convolution for Semantic Image Segmentation", ECCV 2018, section 3.1; orders of norm and
    activation, section 3.2 and figure 4.
    """
    a = prepare(
        x, dw_weight, pw_weight, dw_bias, pw_bias, stride, padding, dilation,
        prologue, dw_epilogue, pw_epilogue, residual,
    )  # fmt: skip
    name = dispatch.choose(a.call)
    if name == dispatch.REFERENCE:
        everything = (
            *a.depthwise[:6], prologue, dw_epilogue, a.pw_weight, a.pw_bias, pw_epilogue, residual,
        )  # fmt: skip
        return reference.separable_conv2d(*everything)
    return _by_kernels(dispatch.operators(name), a)


class Arguments(NamedTuple):
    """Arguments checked, as the operators take them."""

    call: dispatch.Call
    depthwise: tuple[Any, ...]
    middle: Stage
    pw_weight: Tensor
    pw_bias: Tensor | None
    end: Stage
    residual: Tensor | None
    size: tuple[int, int]

    def through(self, scale: Tensor | None, shift: Tensor | None, activation: int) -> Arguments:
        """With a prologue, in place of the one that there is."""
        return self._replace(depthwise=(*self.depthwise[:6], scale, shift, activation))

    @property
    def values_per_channel(self) -> int:
        """Of either result."""
        height, width = self.size
        return int(self.depthwise[0].size(0)) * height * width


def _by_kernels(ops: Any, a: Arguments) -> Tensor:
    end = a.end
    if end.by_batch or wants_gradients(*_tensors(a)):
        raw, end = raw_result(ops, a)
        return finished(ops, raw, end, a.residual)
    middle = _measured_middle(ops, a)
    added, rest = _split_residual(a.residual, a.pw_weight.dtype)
    output: Tensor = ops.separable_conv2d_fused(
        *a.depthwise, *middle.folded, middle.activation, a.pw_weight, a.pw_bias, *end.folded,
        end.activation, added, False,
    )[0]  # fmt: skip
    return output if rest is None else output + rest


def raw_result(ops: Any, a: Arguments) -> tuple[Tensor, Stage]:
    """The result of the pointwise half, and what is still to stand behind it, measured."""
    middle, end = _measured_middle(ops, a), a.end
    raw, mean, var = ops.separable_conv2d(
        *a.depthwise, *middle.vectors, middle.activation, middle.by_batch, middle.group,
        a.pw_weight, a.pw_bias, end.by_batch,
    )  # fmt: skip
    if end.by_batch:
        end = end.measured(ops, mean, var, a.values_per_channel)
    return raw, end


def _measured_middle(ops: Any, a: Arguments) -> Stage:
    if not a.middle.by_batch:
        return a.middle
    with torch.no_grad():  # derived together with the norm, not by themselves
        mean, var = ops.depthwise_conv2d_statistics(*a.depthwise)
    return a.middle.measured(ops, mean, var, a.values_per_channel)


def finished(ops: Any, raw: Tensor, end: Stage, residual: Tensor | None) -> Tensor:
    """What stands behind the raw result: norm, activation and sum."""
    added, rest = None, residual
    if end.activation == IDENTITY and not end.is_identity:  # the operators add before they activate
        added, rest = _split_residual(residual, raw.dtype)
    output = raw
    if end.by_batch:
        output = ops.batch_norm_normalise(raw, *end.vectors, added, end.activation, end.group)
    elif not end.is_identity:
        output = ops.batch_norm_apply(raw, *_with_norm(raw, end), added, end.activation)
    return output if rest is None else output + rest


def _split_residual(
    residual: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """What the operators may add, and what is left to add; one of them is None."""
    if residual is None or residual.dtype == dtype:
        return residual, None
    return None, residual


def _with_norm(raw: Tensor, end: Stage) -> tuple[Tensor | None, ...]:
    if end.mean is not None:
        return end.vectors
    zero = raw.new_zeros(raw.size(1), dtype=vector_dtype(raw))
    return zero, torch.ones_like(zero), None, None


def _tensors(a: Arguments) -> list[Tensor | None]:
    """All that gradients may be asked of."""
    everything = (*a.depthwise, *a.middle, a.pw_weight, a.pw_bias, *a.end, a.residual)
    return [t for t in everything if isinstance(t, Tensor)]


def prepare(
    x: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None,
    pw_bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    prologue: ChannelAffine | None,
    dw_epilogue: Epilogue | None,
    pw_epilogue: Epilogue | None,
    residual: Tensor | None,
) -> Arguments:
    """The arguments of `separable_conv2d` checked."""
    x, dw_weight, dw_bias = _depthwise.tensors(OP, x, dw_weight, dw_bias, "dw_")
    _, pw_weight, pw_bias = _checks.autocast(x, pw_weight, pw_bias)
    check_pointwise(OP, x, dw_weight.size(0), pw_weight, pw_bias)
    geometry = _depthwise.Geometry(OP, x, dw_weight, stride, padding, dilation)
    sizes = (geometry.stride, geometry.padding, geometry.dilation)
    before = channel_affine(OP, "prologue", prologue, x.size(1), x)
    middle = _epilogue.checked(OP, "dw_epilogue", dw_epilogue, dw_weight.size(0), x)
    end = _epilogue.checked(OP, "pw_epilogue", pw_epilogue, pw_weight.size(0), x)
    if residual is not None:
        _check_residual(residual, (x.size(0), pw_weight.size(0), *geometry.output_size), x)
    call = dispatch.Call(OP, x, _unfit(x, dw_weight), dispatch.no_gpu_record(x))
    arguments = Arguments(
        call, (x, dw_weight, dw_bias, *sizes, *before), middle, pw_weight, pw_bias, end, residual,
        geometry.output_size,
    )  # fmt: skip
    if arguments.values_per_channel == 1 and (middle.by_own_batch or end.by_own_batch):
        raise ValueError(f"{OP}: x must give more than one value per channel to train batch norm")
    return arguments


def check_pointwise(
    op: str, x: Tensor, channels: int, pw_weight: Tensor, pw_bias: Tensor | None
) -> None:
    """Raise unless the pointwise half fits the depthwise one, of so many channels."""
    _checks.tensor(op, "pw_weight", pw_weight, 4)
    _checks.same_kind(op, "pw_weight", pw_weight, "x", x)
    expected = (channels, 1, 1)
    if pw_weight.size(0) == 0 or tuple(pw_weight.shape[1:]) != expected:
        raise ValueError(
            f"{op}: pw_weight must be (C', {', '.join(map(str, expected))}), one input channel per"
            f" channel of dw_weight, got shape {tuple(pw_weight.shape)}"
        )
    if pw_bias is not None:
        _checks.tensor(op, "pw_bias", pw_bias, 1)
        _checks.same_kind(op, "pw_bias", pw_bias, "x", x)
        if pw_bias.size(0) != pw_weight.size(0):
            raise ValueError(
                f"{op}: pw_bias must have {pw_weight.size(0)} elements, got {pw_bias.size(0)}"
            )


def _check_residual(residual: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    _checks.tensor(OP, "residual", residual, 4)
    if tuple(residual.shape) != shape:
        raise ValueError(
            f"{OP}: residual must have the result's shape {shape}, got {tuple(residual.shape)}"
        )
    if residual.device != x.device:
        raise ValueError(f"{OP}: residual must be on x's device {x.device}, got {residual.device}")


def _unfit(x: Tensor, dw_weight: Tensor) -> str | None:
    if x.numel() == 0:
        return "the input is empty"
    return _depthwise.unfit(x, dw_weight)


def _explain(**arguments: Any) -> dispatch.Call:
    return prepare(**arguments).call


dispatch.CALLS[separable_conv2d] = _explain
