"""The layer of atrous spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..fusion import BatchNorm, Branch
from ..ops import aspp
from ._norm_state import batch_norm_of, group_of
from .separable import SeparableConv2d, checked_activation


class ConvNorm(nn.Module):
    """Parameters of a convolution without bias and of the batch norm behind it; no forward."""

    _dlv3p_calls_ops = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        dilation: int = 1,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, 1, padding, dilation, bias=False,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.bn = nn.BatchNorm2d(out_channels, eps, momentum, device=device, dtype=dtype)

    def branch(self, activation: str, use_running: bool = False) -> Branch:
        """As `dk.aspp` takes it; `use_running` leaves the running statistics as they are."""
        if use_running:
            bn = self.bn
            norm = BatchNorm(bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
            norm = norm._replace(activation=activation)
        else:
            norm = batch_norm_of(self.bn, activation)
        rate = self.conv.dilation[0]
        return Branch(self.conv.weight, norm, self.conv.bias, rate)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: image pooling, 1x1, one atrous convolution per rate, and the
    projection of all of them; each with batch norm and activation. In one op, `dk.aspp`.

    Input (N, in_channels, H, W), output (N, out_channels, H, W). The state_dict has the keys
    `image_pooling.*`, `conv1x1.*`, `atrous.I.*` and `projection.*`, each `conv` and `bn`, or for
    separable branches those of `SeparableConv2d`.

    A training batch of one leaves a single value per channel of the pooled branch, of which there
    is no variance. Its norm then uses its running statistics and leaves them as they are; unless it
    is an `nn.SyncBatchNorm` among several processes, which counts the images of all of them.

    Args:
        in_channels: C.
        out_channels: of every branch and of the result.
        rates: atrous rates of the 3x3 branches.
        separable: whether these are separable, as in DeepLabv3+, or dense, as in DeepLabv3.
        pooling_first: whether the pooled branch stands first in the concatenation, as in the
            original, or last, as in torchvision and segmentation_models_pytorch.
        activation: "identity", "relu", "relu6" or "silu".
        dropout: probability of dropping an element of the result in training, in [0, 1).

    Raises:
        ValueError: the activation is none of these.

    Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017,
    section 3.3; separable branches, Chen et al., ECCV 2018, section 3.1.
    """

    _dlv3p_calls_ops = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        *,
        separable: bool = True,
        pooling_first: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pooling_first = pooling_first
        self.activation = checked_activation("ASPP", "activation", activation)
        self.image_pooling = ConvNorm(in_channels, out_channels)
        self.conv1x1 = ConvNorm(in_channels, out_channels)
        self.atrous = nn.ModuleList(
            _separable(in_channels, out_channels, rate, activation)
            if separable
            else ConvNorm(in_channels, out_channels, 3, rate)
            for rate in rates
        )
        self.projection = ConvNorm((2 + len(rates)) * out_channels, out_channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:
        """Run all branches and project them."""
        branches = [self.conv1x1.branch(self.activation)]
        for layer in self.atrous:
            if isinstance(layer, SeparableConv2d):
                branches.append(layer.branch())
            elif isinstance(layer, ConvNorm):
                branches.append(layer.branch(self.activation))
        projection = self.projection.branch(self.activation)
        alone = group_of(self.image_pooling.bn) is None
        single = self.training and alone and input.size(0) == 1
        result = aspp(
            input,
            branches,
            projection.weight,
            pooling=self.image_pooling.branch(self.activation, use_running=single),
            pooling_first=self.pooling_first,
            bias=projection.bias,
            epilogue=projection.epilogue,
        )
        dropped: Tensor = self.dropout(result)
        return dropped


def _separable(in_channels: int, channels: int, rate: int, activation: str) -> SeparableConv2d:
    return SeparableConv2d(
        in_channels, channels, 3, padding=rate, dilation=rate,
        depthwise_activation=activation, pointwise_activation=activation,
    )  # fmt: skip
