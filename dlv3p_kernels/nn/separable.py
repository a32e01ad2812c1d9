"""The separable convolution layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..fusion import BatchNorm, Branch, ChannelAffine
from ..ops import separable_conv2d
from ..reference import ACTIVATIONS
from ._norm_state import BatchNormLayer, batch_norm_of
from .depthwise import DepthwiseConv2d

_Pair = int | tuple[int, int]


class SeparableConv2d(nn.Module):
    """Depthwise-separable (atrous) convolution with its norms and activations, in one op.

    The state_dict has the keys of four stock layers: `depthwise.weight` (C, 1, kh, kw),
    `depthwise_bn.*`, `pointwise.weight` (C', C, 1, 1) and `pointwise_bn.*`, and `*.bias` of the
    convolutions where they have one. In stock PyTorch

        x = pre_activation(x)
        x = depthwise_activation(self.depthwise_bn(self.depthwise(x)))
        x = pointwise_activation(self.pointwise_bn(self.pointwise(x)))
        x + residual

    `nn.SyncBatchNorm.convert_sync_batchnorm` makes the norms count over all processes.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: of the depthwise half, int or (height, width).
        stride: the same.
        padding: int, (height, width), (left, right, top, bottom), `"same"` or `"valid"`.
        dilation: atrous rate, int or (height, width).
        bias: whether the convolutions have a learned bias.
        depthwise_norm: whether a batch norm stands between the halves.
        pointwise_norm: whether one stands behind them.
        pre_activation: "identity", "relu", "relu6" or "silu", before the depthwise half.
        depthwise_activation: the same between the halves.
        pointwise_activation: the same behind them.
        eps: of both batch norms.
        momentum: of both batch norms, as in `nn.BatchNorm2d`.
        device: as in `nn.Conv2d`.
        dtype: as in `nn.Conv2d`.

    Raises:
        ValueError: an activation is none of these, or an argument that `nn.Conv2d` refuses.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
    Segmentation", ECCV 2018, sections 3.1 and 3.2.
    """

    _dlv3p_calls_ops = True

    depthwise_bn: BatchNormLayer | None
    pointwise_bn: BatchNormLayer | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Pair = 3,
        stride: _Pair = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: _Pair = 1,
        bias: bool = False,
        *,
        depthwise_norm: bool = True,
        pointwise_norm: bool = True,
        pre_activation: str = "identity",
        depthwise_activation: str = "relu",
        pointwise_activation: str = "relu",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.pre_activation = _checked("pre_activation", pre_activation)
        self.depthwise_activation = _checked("depthwise_activation", depthwise_activation)
        self.pointwise_activation = _checked("pointwise_activation", pointwise_activation)

        def norm(channels: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(channels, eps, momentum, device=device, dtype=dtype)

        self.depthwise = DepthwiseConv2d(
            in_channels, in_channels, kernel_size, stride, padding, dilation, bias=bias,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.depthwise_bn = norm(in_channels) if depthwise_norm else None
        self.pointwise = nn.Conv2d(
            in_channels, out_channels, 1, bias=bias, device=device, dtype=dtype
        )
        self.pointwise_bn = norm(out_channels) if pointwise_norm else None

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve (N, C, H, W) and add `residual`, of the result's shape, if given."""
        before = ChannelAffine(activation=self.pre_activation)
        return separable_conv2d(
            input,
            self.depthwise.weight,
            self.pointwise.weight,
            self.depthwise.bias,
            self.pointwise.bias,
            self.depthwise.stride,
            self.depthwise.sides(),
            self.depthwise.dilation,
            prologue=before,
            dw_epilogue=_epilogue(self.depthwise_bn, self.depthwise_activation),
            pw_epilogue=_epilogue(self.pointwise_bn, self.pointwise_activation),
            residual=residual,
        )

    def branch(self) -> Branch:
        """As `dk.aspp` takes it: stride 1, "same" padding, no activation before."""
        return Branch(
            self.pointwise.weight,
            _epilogue(self.pointwise_bn, self.pointwise_activation),
            self.pointwise.bias,
            self.depthwise.dilation[0],
            self.depthwise.weight,
            _epilogue(self.depthwise_bn, self.depthwise_activation),
            self.depthwise.bias,
        )

    def extra_repr(self) -> str:
        """The activations, as printed."""
        names = ("pre_activation", "depthwise_activation", "pointwise_activation")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _checked(name: str, activation: str) -> str:
    return checked_activation("SeparableConv2d", name, activation)


def checked_activation(layer: str, name: str, activation: str) -> str:
    """The activation, or a ValueError that says what a layer takes."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{layer}: {name} must be one of {tuple(ACTIVATIONS)}, got {activation!r}")
    return activation


def _epilogue(norm: BatchNormLayer | None, activation: str) -> BatchNorm | ChannelAffine:
    """What a norm, if there is one, and an activation amount to in this forward."""
    if norm is None:
        return ChannelAffine(activation=activation)
    return batch_norm_of(norm, activation)
