"""The public functions, one file per op family: schema, checks, fake, autograd."""

from .depthwise import depthwise_conv2d

__all__ = ["depthwise_conv2d"]
