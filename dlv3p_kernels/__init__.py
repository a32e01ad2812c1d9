"""Fused kernels for DeepLabv3+ and other nets of depthwise-separable atrous convolutions."""

from . import nn, reference
from ._native import status
from ._version import __version__
from .dispatch import backend
from .ops import depthwise_conv2d

__all__ = ["__version__", "backend", "depthwise_conv2d", "nn", "reference", "status"]
