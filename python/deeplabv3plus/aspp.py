"""Atrous spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence

import dlv3p_kernels as dk


class ASPP(dk.nn.ASPP):
    """Atrous spatial pyramid pooling with atrous separable convolutions.

    Branches, in the order of their concatenation: image pooling, 1x1, one 3x3 separable convolution
    per rate. A 1x1 projection, BN, ReLU and dropout follow. A training batch of one trains like any
    other (large crops, or the rest of an epoch): the batch norm of its image pooling, which has a
    single value per channel, then normalises with its running statistics.

    Input (N, in_channels, H, W), output (N, channels, H, W).

    Source: Chen et al., ECCV 2018, section 3.1; "Rethinking Atrous Convolution for Semantic Image
    Segmentation", 2017, section 3.3. Concatenation order, BN eps 1e-5 and dropout 0.1 are those
    of the original TensorFlow code.
    """

    def __init__(
        self, in_channels: int, rates: Sequence[int], channels: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__(in_channels, channels, rates, pooling_first=True, dropout=dropout)
