"""What the budget compiles of the ops on resized logits: 21, 19 and 150 classes, 4 times larger.

The classes of Pascal VOC, Cityscapes and ADE20K. See `tools/gpu_code/triton_kernels.py`.
"""

from __future__ import annotations

from typing import Any

import triton

from . import class_weights, upsample_launch
from .upsample_backward import upsample_loss_bwd_kernel
from .upsample_kernels import upsample_argmax_kernel, upsample_loss_fwd_kernel

Spec = tuple[str, Any, dict[str, str], dict[str, Any], int, int]
_LOGITS = {"logits", "result"}
_FLOATS = {"scale_h", "inverse_h", "scale_w", "inverse_w", "smoothing"}
_FLOAT_MAPS = {"weight", "loss", "logsumexp", "grad", "probability", "partials"}
_INTEGER_MAPS = {"target", "index"}
_NHWC, _NCHW = True, False


def _spec(
    name: str, function: Any, constants: dict[str, Any], absent: tuple[str, ...], warps: int
) -> Spec:
    """Names of arguments tell their types; `absent` ones are None."""
    signature = {}
    for argument in function.arg_names:
        if argument in _LOGITS:
            signature[argument] = "*bf16"
        elif argument in _FLOAT_MAPS:
            signature[argument] = "*fp32"
        elif argument in _INTEGER_MAPS:
            signature[argument] = "*i64"
        elif not argument.isupper():
            signature[argument] = "fp32" if argument in _FLOATS else "i32"
    given = {**constants, **dict.fromkeys(absent)}
    return f"triton_{name}_bf16", function, signature, given, warps, 1


def _constants(classes: int, nhwc: bool, warps: int) -> dict[str, Any]:
    return {
        "CLASSES": classes, "ALIGN": False, "NHWC": nhwc, "LANES": 32 * warps, "WIDE": False,
    }  # fmt: skip


def _forward(classes: int, nhwc: bool) -> dict[str, Any]:
    return {
        **_constants(classes, nhwc, upsample_launch.FORWARD_WARPS),
        "BLOCK": upsample_launch.forward_classes(classes), "ROWS": upsample_launch.rows_at_once(4),
    }  # fmt: skip


def _backward(classes: int, nhwc: bool) -> dict[str, Any]:
    count = upsample_launch.backward_classes(classes)
    return {
        **_constants(classes, nhwc, upsample_launch.BACKWARD_WARPS),
        "COUNT": count, "PADDED": triton.next_power_of_2(count),
    }  # fmt: skip


def upsample_specs() -> list[Spec]:
    """Channels_last with neither weights nor smoothing, and contiguous with both."""
    specs = []
    for classes, nhwc in ((21, _NHWC), (19, _NHWC), (150, _NHWC), (21, _NCHW)):
        smooth = not nhwc
        name = f"{'nhwc' if nhwc else 'smooth_nchw'}_{classes}"
        absent = () if smooth else ("weight",)
        specs += [
            _spec(f"upsample_loss_fwd_{name}", upsample_loss_fwd_kernel,
                  {**_forward(classes, nhwc), "SMOOTH": smooth}, absent,
                  upsample_launch.FORWARD_WARPS),
            _spec(f"upsample_loss_bwd_{name}", upsample_loss_bwd_kernel,
                  {**_backward(classes, nhwc), "SMOOTH": smooth}, absent,
                  upsample_launch.BACKWARD_WARPS),
        ]  # fmt: skip
    for name, classes, absent in (
        ("nhwc_21", 21, ("probability",)), ("probability_nhwc_150", 150, ()),
    ):  # fmt: skip
        specs.append(_spec(f"upsample_argmax_{name}", upsample_argmax_kernel,
                           _forward(classes, _NHWC), absent,
                           upsample_launch.FORWARD_WARPS))  # fmt: skip
    specs.append(_spec("class_weight_sum", class_weights.class_weight_sum_kernel,
                       {"LANES": class_weights.LANES, "WIDE": False}, (),
                       class_weights.WARPS))  # fmt: skip
    return specs
