"""The definition of every op in stock PyTorch: what the kernels must equal, and the fall-back.

Arguments are normalised as in `torch.ops.dlv3p`: `stride` and `dilation` are (height, width),
`padding` is (left, right, top, bottom), and an activation is its number in `ACTIVATIONS`.
"""

from ._common import ACTIVATIONS, channel_affine
from .aspp import aspp, dense_branch
from .decoder import decoder_conv2d, decoder_source
from .depthwise import (
    depthwise_conv2d,
    depthwise_conv2d_backward,
    depthwise_conv2d_fused,
    depthwise_conv2d_fused_backward,
)
from .norm import (
    batch_norm_act,
    batch_norm_apply,
    batch_norm_backward_apply,
    batch_norm_backward_reduce,
    batch_norm_finalise,
    batch_norm_stats,
)
from .separable import depthwise_conv2d_statistics, separable_conv2d, separable_conv2d_fused
from .upsample import (
    class_weight_sum,
    upsample_argmax,
    upsample_cross_entropy,
    upsample_cross_entropy_backward,
)

__all__ = [
    "ACTIVATIONS",
    "aspp",
    "batch_norm_act",
    "batch_norm_apply",
    "batch_norm_backward_apply",
    "batch_norm_backward_reduce",
    "batch_norm_finalise",
    "batch_norm_stats",
    "channel_affine",
    "class_weight_sum",
    "decoder_conv2d",
    "decoder_source",
    "dense_branch",
    "depthwise_conv2d",
    "depthwise_conv2d_backward",
    "depthwise_conv2d_fused",
    "depthwise_conv2d_fused_backward",
    "depthwise_conv2d_statistics",
    "separable_conv2d",
    "separable_conv2d_fused",
    "upsample_argmax",
    "upsample_cross_entropy",
    "upsample_cross_entropy_backward",
]
