"""Layers: drop-in replacements of stock modules, same arguments, same state_dict."""

from ._norm_state import apply_batch_norm, batch_norm_of
from .aspp import ASPP
from .decoder import Decoder
from .depthwise import DepthwiseConv2d
from .norm import BatchNormAct2d
from .separable import SeparableConv2d
from .upsample_loss import UpsampleCrossEntropyLoss

__all__ = [
    "ASPP",
    "BatchNormAct2d",
    "Decoder",
    "DepthwiseConv2d",
    "SeparableConv2d",
    "UpsampleCrossEntropyLoss",
    "apply_batch_norm",
    "batch_norm_of",
]
