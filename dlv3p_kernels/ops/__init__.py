"""The public functions, one file per op family: schema, checks, fake, autograd."""

from ._common import ChannelAffine
from .depthwise import depthwise_conv2d
from .depthwise_fused import depthwise_conv2d_with_statistics

__all__ = ["ChannelAffine", "depthwise_conv2d", "depthwise_conv2d_with_statistics"]
