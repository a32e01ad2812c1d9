"""Atrous spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvBNReLU, SeparableConv2d


class ImagePooling(nn.Module):
    """Global average - 1x1 convolution - BN - ReLU.

    Input (N, in_channels, H, W), output (N, out_channels, 1, 1).

    A training batch of one leaves a single value per channel, of which there is no variance. This
    batch norm then normalises with its running statistics and leaves them as they are, so that
    batches of one (large crops, or the rest of an epoch) train like any other.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Pool, project, normalise, activate."""
        x = self.conv(x.mean((2, 3), keepdim=True))
        bn = self.bn
        if type(bn) is nn.BatchNorm2d and bn.training and x.shape[0] == 1:
            x = F.batch_norm(
                x, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.0, bn.eps
            )
        else:
            x = bn(x)
        return F.relu(x)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with atrous separable convolutions.

    Branches, in the order of their concatenation: image pooling, 1x1, one 3x3 separable convolution
    per rate. A 1x1 projection, BN, ReLU and dropout follow. The pooled branch is constant over the
    map, so its bilinear resize is a broadcast.

    Input (N, in_channels, H, W), output (N, channels, H, W).

    Source: Chen et al., ECCV 2018, section 3.1; "Rethinking Atrous Convolution for Semantic Image
    Segmentation", 2017, section 3.3. Concatenation order, BN eps 1e-5 and dropout 0.1 are those
    of the original TensorFlow code.
    """

    def __init__(
        self, in_channels: int, rates: Sequence[int], channels: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.image_pooling = ImagePooling(in_channels, channels)
        self.conv1x1 = ConvBNReLU(in_channels, channels)
        self.atrous = nn.ModuleList(
            SeparableConv2d(in_channels, channels, rate=rate) for rate in rates
        )
        self.projection = ConvBNReLU((2 + len(rates)) * channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Run all branches and project their concatenation."""
        plain = self.conv1x1(x)
        # expand() would do, but torch.cat of a map without strides falls out of channels_last.
        pooled = torch.empty_like(plain).copy_(self.image_pooling(x))
        branches = [pooled, plain, *(branch(x) for branch in self.atrous)]
        return self.dropout(self.projection(torch.cat(branches, dim=1)))
