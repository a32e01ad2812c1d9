"""DeepLabv3+ for semantic segmentation, on the kernels of `dlv3p_kernels`."""

from .model import DeepLabV3Plus

__all__ = ["DeepLabV3Plus"]
