"""What the budget of the kernels compiles: the specialisations that nets of this field use most.

See `tools/gpu_code/triton_kernels.py` for the form.
"""

from __future__ import annotations

from typing import Any

from . import (
    aspp_projection,
    decoder_source,
    launch,
    moments,
    norm_kernels,
    separable,
    separable_plan,
)
from .decoder_gather import decoder_depthwise_bwd_kernel
from .decoder_walk import decoder_depthwise_fwd_kernel
from .depthwise_lines import depthwise_lines_bwd_kernel, depthwise_lines_fwd_kernel
from .depthwise_taps import depthwise_taps_kernel, depthwise_taps_wgrad_kernel
from .projection_kernel import MOST_MAPS, aspp_projection_fwd_kernel
from .separable_kernels import (
    separable_finish_kernel,
    separable_fwd_kernel,
    separable_table_kernel,
)
from .upsample_specs import upsample_specs

Spec = tuple[str, Any, dict[str, str], dict[str, Any], int, int]
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_VECTORS = {"in_scale", "in_shift", "out_scale", "out_shift", "mean", "invstd", "partials", "var",
            "sum_grad", "sum_grad_normalised", "running_mean", "running_var", "new_mean",
            "new_var", "table", "sums", "mid_scale", "mid_shift"}  # fmt: skip
_FLOATS = {"unbias", "momentum", "eps", "scale_h", "scale_w", "inverse_h", "inverse_w"}
_NORM_VECTORS = {*_VECTORS, "weight", "bias", "scale", "shift"}
_MAPS = {"source", "weight", "bias", "pw_weight", "pw_bias", "input", "result", "grad", "residual",
         "by_input", "by_residual", "by_source",
         *(f"map{i}" for i in range(MOST_MAPS))}  # fmt: skip
_NHWC, _NCHW = True, False
_RELU = 1


def _spec(
    name: str,
    function: Any,
    dtype: str,
    constants: dict[str, Any],
    absent: tuple[str, ...] = (),
    vectors: set[str] = _VECTORS,
    options: dict[str, Any] = launch.OPTIONS,
) -> Spec:
    """Names of arguments tell their types; `absent` ones are None."""
    signature = {}
    for argument in function.arg_names:
        if argument in vectors:
            signature[argument] = "*fp32"
        elif argument in _MAPS:
            signature[argument] = f"*{dtype}"
        elif not argument.isupper():
            signature[argument] = "fp32" if argument in _FLOATS else "i32"
    given = {**constants, **dict.fromkeys(absent)}
    return (
        f"triton_{name}_{dtype}",
        function,
        signature,
        given,
        options["num_warps"],
        options.get("num_stages", 1),
    )


def _tile(dtype: str, nhwc: bool, per_thread: int = launch.FORWARD_PER_THREAD) -> dict[str, Any]:
    lanes, channels = launch.tile_shape(nhwc, _BYTES[dtype], per_thread)
    return {
        "UNIT": 8 if nhwc else 1, "NHWC": nhwc, "LANES": lanes, "CHANNELS": channels, "BLOCKS": 4,
        "WIDE": False,
    }  # fmt: skip


def _depthwise() -> list[Spec]:
    plain = ("bias", "in_scale", "in_shift", "out_scale", "out_shift", "partials")
    three = {"KH": 3, "KW": 3, "IN_ACTIVATION": 0}
    forward = {**three, "OUT_ACTIVATION": 0, "STATISTICS": False}
    both = {**three, "NEED_INPUT": True, "NEED_WEIGHT": True, "ROWS": 4}
    fused = {**forward, "IN_ACTIVATION": _RELU, "STATISTICS": True, "ROWS": 4}
    down = {"DOWN_H": 1, "DOWN_W": 1, "BACKWARD": False}
    specs = []
    for dtype, layout, nhwc in (
        ("bf16", "nhwc", _NHWC), ("fp32", "nhwc", _NHWC), ("bf16", "nchw", _NCHW),
    ):  # fmt: skip
        tile, half = _tile(dtype, nhwc), _tile(dtype, nhwc, launch.BACKWARD_PER_THREAD)
        specs += [
            _spec(f"depthwise_lines_fwd_{layout}", depthwise_lines_fwd_kernel, dtype,
                  {**forward, **tile, "ROWS": 4}, plain),
            _spec(f"depthwise_lines_bwd_{layout}", depthwise_lines_bwd_kernel, dtype,
                  {**both, **half}, ("in_scale", "in_shift")),
        ]  # fmt: skip
    tile, half = _tile("bf16", _NHWC), _tile("bf16", _NHWC, launch.BACKWARD_PER_THREAD)
    back = {"DOWN_H": 2, "DOWN_W": 2, "BACKWARD": True}
    specs += [
        _spec("depthwise_lines_fwd_fused_nhwc", depthwise_lines_fwd_kernel, "bf16",
              {**fused, **tile}, ("bias", "out_scale", "out_shift")),
        _spec("depthwise_lines_statistics_nhwc", depthwise_lines_fwd_kernel, "bf16",
              {**fused, **tile}, ("bias", "out_scale", "out_shift", "result")),
        _spec("depthwise_lines_bwd_fused_nhwc", depthwise_lines_bwd_kernel, "bf16",
              {**both, **half, "IN_ACTIVATION": _RELU}),
        _spec("depthwise_taps_fwd_nhwc", depthwise_taps_kernel, "bf16",
              {**forward, **tile, **down}, (*plain, "input")),
        _spec("depthwise_taps_bwd_stride2_nhwc", depthwise_taps_kernel, "bf16",
              {**forward, **tile, **back}, plain),
        _spec("depthwise_taps_fwd_7x7_nhwc", depthwise_taps_kernel, "bf16",
              {**forward, **tile, **down, "KH": 7, "KW": 7}, (*plain, "input")),
        _spec("depthwise_taps_wgrad_nhwc", depthwise_taps_wgrad_kernel, "bf16",
              {**three, **half, "TAPS": 3}, ("in_scale", "in_shift")),
    ]  # fmt: skip
    return specs


def _norm() -> list[Spec]:
    specs = []
    for layout, nhwc in (("nhwc", _NHWC), ("nchw", _NCHW)):
        for kind, absent, relu in (
            ("stats", (), False), ("apply", ("residual",), True),
            ("bwd_reduce", ("residual",), True), ("bwd_apply", ("residual", "by_residual"), True),
        ):  # fmt: skip
            constants = {**_tile("bf16", nhwc), "UNIT": 8}
            if relu:
                constants["ACTIVATION"] = _RELU
            function = getattr(norm_kernels, f"batch_norm_{kind}_kernel")
            name = f"batch_norm_{kind}_{layout}"
            specs.append(_spec(name, function, "bf16", constants, absent, _NORM_VECTORS))
    parts = {"CHUNKS": 4, "PARTS": launch.PARTS, "CHANNELS": launch.PART_CHANNELS}
    specs += [
        _spec("batch_norm_finalise", norm_kernels.batch_norm_finalise_kernel, "fp32",
              {"CHANNELS": 128}),
        _spec("merge_moments", moments.merge_moments_kernel, "fp32", parts),
        _spec("sum_parts", moments.sum_parts_kernel, "fp32", parts),
    ]  # fmt: skip
    return specs


def _separable() -> list[Spec]:
    """With 256 output channels the wide tiles of 9.0 and 10.0, with 128 those of all others."""
    lanes = separable_plan.TILE_ROWS // 4
    square = {"OUT_H": 2, "OUT_W": 2, "APART_H": 1, "APART_W": 1, "FIRST_H": 0, "LAST_H": 4,
              "FIRST_W": 0, "LAST_W": 4}  # fmt: skip
    column = {**square, "OUT_H": 4, "OUT_W": 1, "FIRST_H": 1, "LAST_H": 4, "LAST_W": 3}
    stride2 = {**square, "APART_H": 2, "APART_W": 2, "LAST_H": 5, "LAST_W": 5, "BLOCK_N": 128}
    head = {"PROLOGUE": False, "IN_ACTIVATION": 0, "MID_ACTIVATION": _RELU,
            "OUT_ACTIVATION": _RELU, "STATISTICS": False}  # fmt: skip
    train = {**head, "PROLOGUE": True, "IN_ACTIVATION": _RELU, "OUT_ACTIVATION": 0,
             "STATISTICS": True}  # fmt: skip
    same = {"IN_UNIT": 8, "OUT_UNIT": 8, "KH": 3, "KW": 3, "EVEN": True, "LANES": lanes,
            "BLOCK_K": separable_plan.BLOCK_K, "BLOCK_N": 256, "WIDE": False}  # fmt: skip
    whole, no_sums = ("residual", "sums", "partials"), ("sums", "partials")
    specs = [
        _spec(f"separable_fwd_{name}nhwc", separable_fwd_kernel, "bf16", {**same, **constants},
              absent, options=separable.OPTIONS)
        for name, constants, absent in (
            ("", {**square, **head}, whole),
            ("statistics_", {**square, **train},
             ("residual", "sums", "pw_bias", "out_scale", "out_shift")),
            ("column_parts_", {**column, **head}, ("residual", "partials")),
            ("stride2_ragged_", {**head, **stride2, "EVEN": False}, no_sums),
        )
    ]  # fmt: skip
    finish = {"OUT_UNIT": 8, "OUT_ACTIVATION": 0, "STATISTICS": True, "WIDE": False,
              "PIXELS": separable.FINISH_PIXELS, "CHANNELS": separable.FINISH_CHANNELS}  # fmt: skip
    specs += [
        _spec("separable_finish_nhwc", separable_finish_kernel, "bf16", finish, ("residual",)),
        _spec("separable_table", separable_table_kernel, "bf16", {"TAPS": 9}),
    ]
    return specs


def _decoder() -> list[Spec]:
    """Of 33x33 to 129x129, by 256 channels."""
    specs = []
    for dtype, layout, kernel in (
        ("bf16", "nhwc", 3), ("fp32", "nhwc", 3), ("bf16", "nchw", 3), ("bf16", "nhwc", 5),
    ):  # fmt: skip
        nhwc = layout == "nhwc"
        square = {"KH": kernel, "KW": kernel, "UNIT": 8, "ALIGN": True, "NHWC": nhwc, "WIDE": False}
        size = "" if kernel == 3 else f"_{kernel}x{kernel}"
        for statistics in (False, True):
            per_thread = decoder_source.walk_per_thread(nhwc, kernel, kernel, statistics)
            lanes, channels = launch.tile_shape(nhwc, _BYTES[dtype], per_thread)
            constants = {**square, "LANES": lanes, "CHANNELS": channels, "STATISTICS": statistics,
                         "OUT_ACTIVATION": 0 if statistics else _RELU}  # fmt: skip
            absent = ("bias", "out_scale", "out_shift", "result") if statistics else ("partials",)
            name = f"decoder_depthwise_{'statistics' if statistics else 'fwd'}{size}_{layout}"
            specs.append(_spec(name, decoder_depthwise_fwd_kernel, dtype, constants, absent))
        per_thread = decoder_source.gather_per_thread(nhwc, kernel * kernel, 4)
        lanes, channels = launch.tile_shape(nhwc, 4, per_thread)
        constants = {**square, "LANES": lanes, "CHANNELS": channels, "DILATION_W": 1,
                     "COLUMNS": 4, "NEED_INPUT": True, "NEED_WEIGHT": True}  # fmt: skip
        name = f"decoder_depthwise_bwd{size}_{layout}"
        specs.append(_spec(name, decoder_depthwise_bwd_kernel, dtype, constants))
    return specs


def _projection() -> list[Spec]:
    """Of four maps of 256 channels, with the tiles of 9.0 and 10.0 and with those of all others."""
    constants = {"UNIT": 8, "OUT_UNIT": 8, "MAPS": 4, "ACTIVATION": _RELU, "EVEN": True,
                 "BLOCK_M": aspp_projection.BLOCK_M, "BLOCK_K": aspp_projection.BLOCK_K,
                 "WIDE": False}  # fmt: skip
    return [
        _spec(f"aspp_projection_fwd_{block_n}_nhwc", aspp_projection_fwd_kernel, "bf16",
              {**constants, "BLOCK_N": block_n}, ("map4", "map5", "pw_bias"), _NORM_VECTORS,
              aspp_projection.OPTIONS)
        for block_n in (256, 128)
    ]  # fmt: skip


COMPILE_SPECS = [
    *_depthwise(), *_norm(), *_separable(), *_decoder(), *_projection(), *upsample_specs(),
]  # fmt: skip
