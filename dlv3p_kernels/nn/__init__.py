"""Layers: drop-in replacements of stock modules, same arguments, same state_dict."""

from .depthwise import DepthwiseConv2d

__all__ = ["DepthwiseConv2d"]
