"""Layers the encoders, the ASPP and the decoder share."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

import dlv3p_kernels as dk

HEAD_BN_EPS = 1e-5
"""Batch-norm eps of the ASPP and the decoder; the encoders bring their own."""


class ConvBNReLU(nn.Module):
    """Convolution without bias, batch norm and, unless switched off, ReLU.

    Padding is `dilation * (kernel_size - 1) // 2` on every side, so stride 1 keeps the size.
    Input (N, in_channels, H, W), output (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        eps: float = HEAD_BN_EPS,
        activation: bool = True,
    ) -> None:
        super().__init__()
        padding = same_padding(kernel_size, 1)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=eps)
        self.activation = "relu" if activation else "identity"

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, activate."""
        return dk.nn.apply_batch_norm(self.bn, self.conv(x), self.activation)


class SeparableConv2d(dk.nn.SeparableConv2d):
    """Atrous separable convolution with a batch norm after each half.

    `pre_activation=False` (ASPP, decoder, the last Xception block):
    depthwise - BN - ReLU - pointwise - BN - ReLU.
    `pre_activation=True` (all other Xception blocks): ReLU - depthwise - BN - pointwise - BN. The
    ReLU leaves its input untouched, because a skip connection or the decoder may read it too.

    Neither convolution has a bias. Padding is `rate * (kernel_size - 1) // 2` on every side, which
    for odd kernels is TensorFlow's SAME at stride 1 and its explicit `fixed_padding` at stride 2.
    Input (N, in_channels, H, W), output (N, out_channels, ceil(H / stride), ceil(W / stride)), to
    which a residual of its shape may be added.

    Raises:
        ValueError: `kernel_size` is even.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
    Segmentation", ECCV 2018, section 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        rate: int = 1,
        eps: float = HEAD_BN_EPS,
        pre_activation: bool = False,
    ) -> None:
        before, behind = ("relu", "identity") if pre_activation else ("identity", "relu")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            same_padding(kernel_size, rate),
            rate,
            pre_activation=before,
            depthwise_activation=behind,
            pointwise_activation=behind,
            eps=eps,
        )


def same_padding(kernel_size: int, rate: int) -> int:
    """Zeros on each side that keep the size of a map at stride 1.

    Raises:
        ValueError: `kernel_size` is even, where both sides cannot be equal.
    """
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    return rate * (kernel_size - 1) // 2


def resize(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Bilinear resize of (N, C, H, W) to (N, C, *size); the map itself where the size is right."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, list(size), mode="bilinear", align_corners=align_corners)


def init_weights(module: nn.Module) -> None:
    """Initialise every convolution and batch norm of `module` for training from scratch, in place.

    Depthwise convolutions: normal of variance 1 / (kernel area), standard deviation 0.33 for 3x3 as
    in the original. (He's fan-out rule takes a depthwise layer for a dense one and makes its
    outputs vanish next to the batch-norm eps.) Others: He normal, fan-out, as torchvision's
    ResNet and MobileNetV2. Biases 0, batch norm scale 1 and shift 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            if layer.groups == layer.in_channels > 1:
                nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            else:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()


def set_bn_momentum(module: nn.Module, momentum: float) -> None:
    """Set the running-statistics momentum of every batch norm in `module`, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = momentum
