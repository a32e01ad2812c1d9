"""The public functions, one file per op family: schema, checks, fake, autograd."""

from . import _separable_operators  # noqa: F401 registers the operators
from ._common import ChannelAffine
from .depthwise import depthwise_conv2d
from .depthwise_fused import depthwise_conv2d_with_statistics
from .norm import batch_norm_act

__all__ = [
    "ChannelAffine",
    "batch_norm_act",
    "depthwise_conv2d",
    "depthwise_conv2d_with_statistics",
]
