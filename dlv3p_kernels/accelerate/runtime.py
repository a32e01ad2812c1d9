"""What the rewritten forwards call: the ops, with what they take read from the layers.

Every function falls back to the layers themselves where an op could not take the tensors.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..fusion import BatchNorm, Branch, ChannelAffine, Epilogue
from ..nn import batch_norm_of
from ..ops import batch_norm_act, decoder_conv2d, depthwise_conv2d, separable_conv2d
from .layers import Sides

_ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
}


def activate(name: str, x: Tensor) -> Tensor:
    """Stock PyTorch's activation."""
    activated: Tensor = _ACTIVATIONS[name](x)
    return activated


def epilogue(norm: nn.Module | None, activation: str) -> Epilogue | None:
    """What stands behind a convolution, as the ops take it; counts the batch."""
    if norm is not None:
        return batch_norm_of(norm, activation)  # type: ignore[arg-type]
    return None if activation == "identity" else ChannelAffine(activation=activation)


def padded_sides(sides: Sides, conv: nn.Module, x: Tensor, extra: tuple[int, ...]) -> list[int]:
    """The convolution's own padding, and that of a layer before it."""
    return [own + more for own, more in zip(sides(conv, x), extra, strict=True)]


def depthwise(sides: Sides, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A depthwise convolution."""
    if x.dim() == 3:
        return depthwise(sides, conv, x.unsqueeze(0)).squeeze(0)
    return depthwise_conv2d(x, conv.weight, conv.bias, conv.stride, sides(conv, x), conv.dilation)


def norm_act(norm: nn.Module, activation: str, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Batch norm, sum, activation."""
    if residual is not None and residual.shape != x.shape:
        return activate(activation, norm_act(norm, "identity", x) + residual)
    norm._check_input_dim(x)  # type: ignore[operator]
    n: BatchNorm = batch_norm_of(norm, activation)  # type: ignore[arg-type]
    return batch_norm_act(
        x, n.running_mean, n.running_var, n.weight, n.bias, n.training, n.momentum, n.eps,
        activation=activation, residual=residual, group=n.group,
    )  # fmt: skip


def separable(
    x: Tensor,
    depthwise: nn.Conv2d,
    pointwise: nn.Conv2d,
    padding: list[int],
    before: str,
    between: Epilogue | None,
    behind: Epilogue | None,
    residual: Tensor | None,
) -> Tensor:
    """A separable convolution with what stands around its halves."""
    if residual is not None and not _is_like_result(residual, x, pointwise):
        return residual + separable(x, depthwise, pointwise, padding, before, between, behind, None)
    return separable_conv2d(
        x, depthwise.weight, pointwise.weight, depthwise.bias, pointwise.bias,
        depthwise.stride, padding, depthwise.dilation,
        prologue=None if before == "identity" else ChannelAffine(activation=before),
        dw_epilogue=between, pw_epilogue=behind, residual=residual,
    )  # fmt: skip


def _is_like_result(residual: Tensor, x: Tensor, pointwise: nn.Conv2d) -> bool:
    """Whether the sum stretches nothing; sizes that do not fit are for the op to refuse."""
    if residual.dim() != 4 or residual.shape[:2] != (x.size(0), pointwise.out_channels):
        return False
    return residual.size(2) > 1 and residual.size(3) > 1


def branch(
    convolution: nn.Conv2d,
    norm: nn.Module | None,
    depthwise: nn.Conv2d | None,
    middle: nn.Module | None,
    behind: str,
    between: str,
) -> Branch:
    """A branch of a pyramid, as the op takes it; counts the batch."""
    end = epilogue(norm, behind)
    rate = (depthwise or convolution).dilation[0]
    if depthwise is None:
        return Branch(convolution.weight, end, convolution.bias, rate)
    return Branch(
        convolution.weight, end, convolution.bias, rate,
        depthwise.weight, epilogue(middle, between), depthwise.bias,
    )  # fmt: skip


def aspp(
    x: Tensor,
    branches: list[Branch],
    projection: nn.Conv2d,
    pooling: Branch | None,
    pooling_first: bool,
    end: Epilogue | None,
) -> Tensor:
    """A pyramid and its projection."""
    return ops.aspp(
        x, branches, projection.weight,
        pooling=pooling, pooling_first=pooling_first, bias=projection.bias, epilogue=end,
    )  # fmt: skip


def is_scaled(x: Tensor, low: Tensor, scale: tuple[float, float]) -> bool:
    """Whether one map is of exactly so many times the size of the other."""
    sizes = zip(x.shape[-2:], scale, low.shape[-2:], strict=True)
    return all(size * factor == wanted for size, factor, wanted in sizes)


def decoder(
    x: Tensor,
    low: Tensor,
    before: Epilogue | None,
    depthwise: nn.Conv2d,
    pointwise: nn.Conv2d,
    padding: list[int],
    align_corners: bool,
    encoder_first: bool,
    between: Epilogue | None,
    behind: Epilogue | None,
) -> Tensor:
    """A separable convolution of a map resized to another one, and that one."""
    return decoder_conv2d(
        x, low, depthwise.weight, pointwise.weight, depthwise.bias, pointwise.bias,
        padding, depthwise.dilation, align_corners=align_corners, encoder_first=encoder_first,
        low_level_prologue=before, dw_epilogue=between, pw_epilogue=behind,
    )  # fmt: skip
