"""The operators of a pyramid's projection in every namespace: schemas, fakes, derivatives.

They read several maps as if they lay side by side, each through its norm and activation. A back end
that has no kernels for them puts them side by side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._common import empty_in_format_of, like_map
from ._composed import Operator, register_composed
from ._epilogue import Stage
from ._norm_operators import IDENTITY
from ._pointwise import pointwise_input_gradient
from ._two_passes import (
    Middle,
    Wanted,
    composed_first,
    fake_first,
    gradients,
    norm_arguments,
)

OP = "aspp_projection"
_FUSED, _REDUCE, _APPLY = f"{OP}_fused", f"{OP}_backward_reduce", f"{OP}_backward_apply"
_NORM = "Tensor? mean, Tensor? invstd, Tensor? weight, Tensor? bias, int activation"
_BACKWARD = f"Tensor grad, Tensor[] maps, {_NORM}, Tensor pw_weight"
_SCHEMAS = {
    _FUSED: (
        "(Tensor[] maps, Tensor? scale, Tensor? shift, int activation, Tensor pw_weight,"
        " Tensor? pw_bias) -> Tensor"
    ),
    OP: (
        f"(Tensor[] maps, {_NORM}, bool by_batch, str group, Tensor pw_weight, Tensor? pw_bias)"
        " -> Tensor"
    ),
    # As the decoder's, see there.
    _REDUCE: (
        f"({_BACKWARD}, bool need_weight, bool need_norm)"
        " -> (Tensor grad_pw_weight, Tensor grad_bias, Tensor grad_weight)"
    ),
    _APPLY: f"({_BACKWARD}, Tensor? mean_grad, Tensor? mean_product) -> Tensor[]",
}
# Positions among the inputs of the operator.
_MAPS, _WEIGHT, _BIAS, _PW_WEIGHT, _PW_BIAS = 0, 3, 4, 8, 9


def project(
    ops: Any, maps: list[Tensor], norm: Stage, pw_weight: Tensor, pw_bias: Tensor | None
) -> Tensor:
    """The pointwise convolution of all channels of `maps`, each through its part of `norm`."""
    projected: Tensor = ops.aspp_projection(
        maps, *norm.vectors, norm.activation, norm.by_batch, norm.group, pw_weight, pw_bias
    )
    return projected


# --- composition ----------------------------------------------------------------------------------


def _fused(ops: Any, maps, scale, shift, activation, pw_weight, pw_bias):  # type: ignore[no-untyped-def]
    side_by_side = torch.cat(maps, 1)
    # A separable convolution whose depthwise half changes nothing.
    ones = side_by_side.new_ones(side_by_side.size(1), 1, 1, 1)
    return ops.separable_conv2d_fused(
        side_by_side, ones, None, [1, 1], [0, 0, 0, 0], [1, 1], None, None, IDENTITY,
        scale, shift, activation, pw_weight, pw_bias, None, None, IDENTITY, None, False,
    )[0]  # fmt: skip


def _forward(ops: Any, maps, *arguments):  # type: ignore[no-untyped-def]
    mean, invstd, weight, bias, activation, _by_batch, _group, pw_weight, pw_bias = arguments
    scale, shift = Stage(mean, invstd, weight, bias).folded
    return ops.aspp_projection_fused(maps, scale, shift, activation, pw_weight, pw_bias)


def _reduce(ops: Any, grad, maps, *arguments):  # type: ignore[no-untyped-def]
    *norm, pw_weight, need_weight, need_norm = arguments
    given = norm_arguments(torch.cat(maps, 1), *norm)
    return composed_first(ops, grad, given, pw_weight, need_weight, need_norm)


def _apply(ops: Any, grad, maps, *arguments):  # type: ignore[no-untyped-def]
    *norm, pw_weight, mean_grad, mean_product = arguments
    given = norm_arguments(torch.cat(maps, 1), *norm)
    grad = pointwise_input_gradient(grad, pw_weight)
    grad, _ = ops.batch_norm_backward_apply(grad, *given, mean_grad, mean_product, 1, False)
    parts = grad.split([t.size(1) for t in maps], 1)
    return [like_map(t, part) for t, part in zip(maps, parts, strict=True)]


# --- fake tensors ---------------------------------------------------------------------------------


def _fake_fused(maps, _scale, _shift, _activation, pw_weight, _bias):  # type: ignore[no-untyped-def]
    batch, _, height, width = maps[0].shape
    return empty_in_format_of(maps[0], (batch, pw_weight.size(0), height, width))


def _fake_forward(maps, *arguments):  # type: ignore[no-untyped-def]
    return _fake_fused(maps, None, None, None, *arguments[-2:])


def _fake_reduce(_grad, _maps, *arguments):  # type: ignore[no-untyped-def]
    return fake_first(*arguments[-3:])


def _fake_apply(_grad, maps, *_arguments):  # type: ignore[no-untyped-def]
    return [empty_in_format_of(t, tuple(t.shape)) for t in maps]


# --- derivatives ----------------------------------------------------------------------------------


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    """Keep the maps and vectors."""
    maps, mean, invstd, weight, bias, *ctx.norm, pw_weight, _pw_bias = inputs
    ctx.save_for_backward(mean, invstd, weight, bias, pw_weight, *maps)


def _backward(ops: Any, ctx, grad):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():
        raise RuntimeError(
            "aspp: derivatives of derivatives are not implemented by the kernels; compute them"
            " within dk.backend('reference')"
        )
    saved = ctx.saved_tensors  # once: checkpointing lets go of what it has handed out
    *vectors, pw_weight = saved[:5]
    maps = list(saved[5:])
    activation, by_batch, group = ctx.norm
    arguments = (grad, maps, *vectors, activation, pw_weight)
    need = ctx.needs_input_grad
    wanted = Wanted(
        any(need[_MAPS]), False, need[_WEIGHT], need[_BIAS], need[_PW_WEIGHT], need[_PW_BIAS]
    )
    found = gradients(
        lambda *needs: ops.aspp_projection_backward_reduce(*arguments, *needs),
        lambda *means: tuple(ops.aspp_projection_backward_apply(*arguments, *means)),
        grad, Middle(tuple(vectors), activation, by_batch, group), None, pw_weight, wanted,
    )  # fmt: skip
    grads: list[Any] = [None] * len(need)
    by_maps = found.further or (None,) * len(maps)
    grads[_MAPS] = [g if n else None for g, n in zip(by_maps, need[_MAPS], strict=True)]
    for position, value in (
        (_WEIGHT, found.mid_weight), (_BIAS, found.mid_bias), (_PW_WEIGHT, found.pw_weight),
        (_PW_BIAS, found.pw_bias),
    ):  # fmt: skip
        grads[position] = value if need[position] else None
    return tuple(grads)


# --- registration ---------------------------------------------------------------------------------

register_composed(
    {
        _FUSED: Operator(_SCHEMAS[_FUSED], _fused, _fake_fused),
        OP: Operator(_SCHEMAS[OP], _forward, _fake_forward, _backward, _setup_context),
        _REDUCE: Operator(_SCHEMAS[_REDUCE], _reduce, _fake_reduce),
        _APPLY: Operator(_SCHEMAS[_APPLY], _apply, _fake_apply),
    },
    derived=OP,
)
