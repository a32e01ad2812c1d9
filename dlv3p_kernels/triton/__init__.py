"""Triton kernels of every op, registered in `torch.ops.dlv3p_triton`.

Nothing here imports triton before the first call of an op. With TRITON_INTERPRET=1 in the
environment before that, the kernels run in Triton's interpreter, on CPU tensors too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from .._library import TRITON
from ..backends import triton_interpreted

# Module of this package -> the ops whose launchers are its functions of the same name.
OPS = {
    "aspp_projection": ("aspp_projection_fused",),
    "decoder": ("decoder_depthwise", "decoder_conv2d_statistics"),
    "decoder_backward": ("decoder_depthwise_backward",),
    "depthwise": ("depthwise_conv2d", "depthwise_conv2d_fused", "depthwise_conv2d_statistics"),
    "depthwise_backward": ("depthwise_conv2d_backward", "depthwise_conv2d_fused_backward"),
    "class_weights": ("class_weight_sum",),
    "upsample_argmax": ("upsample_argmax",),
    "upsample_loss": ("upsample_cross_entropy", "upsample_cross_entropy_backward"),
    "norm": (
        "batch_norm_stats",
        "batch_norm_finalise",
        "batch_norm_apply",
        "batch_norm_backward_reduce",
        "batch_norm_backward_apply",
    ),
    "separable": ("separable_conv2d_fused",),
}


def _imported_late(module: str, name: str) -> Callable[..., Any]:
    def launcher(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)(*arguments)

    return launcher


def _register(keys: tuple[str, ...]) -> None:
    for module, names in OPS.items():
        for name in names:
            for key in keys:
                TRITON.impl(name, _imported_late(module, name), key)


_register(("CUDA", "CPU") if triton_interpreted() else ("CUDA",))
