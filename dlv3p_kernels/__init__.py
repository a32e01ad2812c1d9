"""Fused kernels for DeepLabv3+ and other nets of depthwise-separable atrous convolutions."""

from . import nn, reference, triton  # noqa: F401 registers the Triton kernels
from ._native import status
from ._version import __version__
from .accelerate import accelerate, restore
from .dispatch import backend
from .explain import explain
from .ops import (
    BatchNorm,
    Branch,
    ChannelAffine,
    aspp,
    batch_norm_act,
    decoder_conv2d,
    depthwise_conv2d,
    depthwise_conv2d_with_statistics,
    separable_conv2d,
    upsample_argmax,
    upsample_cross_entropy,
)

__all__ = [
    "BatchNorm",
    "Branch",
    "ChannelAffine",
    "__version__",
    "accelerate",
    "aspp",
    "backend",
    "batch_norm_act",
    "decoder_conv2d",
    "depthwise_conv2d",
    "depthwise_conv2d_with_statistics",
    "explain",
    "nn",
    "reference",
    "restore",
    "separable_conv2d",
    "status",
    "upsample_argmax",
    "upsample_cross_entropy",
]
