"""The public functions, one file per op family: schema, checks, fake, autograd."""

from ..fusion import BatchNorm, Branch, ChannelAffine
from . import _upsample_operators  # noqa: F401 registers the operators
from .aspp import aspp
from .decoder import decoder_conv2d
from .depthwise import depthwise_conv2d
from .depthwise_fused import depthwise_conv2d_with_statistics
from .norm import batch_norm_act
from .separable import separable_conv2d
from .upsample_argmax import upsample_argmax
from .upsample_loss import upsample_cross_entropy

__all__ = [
    "BatchNorm",
    "Branch",
    "ChannelAffine",
    "aspp",
    "batch_norm_act",
    "decoder_conv2d",
    "depthwise_conv2d",
    "depthwise_conv2d_with_statistics",
    "separable_conv2d",
    "upsample_argmax",
    "upsample_cross_entropy",
]
