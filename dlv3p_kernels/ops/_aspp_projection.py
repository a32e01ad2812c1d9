"""The operators of a pyramid's projection in every namespace: schemas, fakes, derivatives.

They read several maps as if they lay side by side, each through its norm and activation. A back end
that has no kernels for them puts them side by side for the product forward, and takes them one by
one on the way back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ._common import empty_in_format_of, like_map
from ._composed import Operator, register_composed
from ._epilogue import Stage
from ._norm_operators import IDENTITY
from ._pointwise import pointwise, pointwise_input_gradient
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


def _parts(
    maps: list[Tensor], *vectors: Tensor | None
) -> Iterator[tuple[Tensor, slice, list[Any]]]:
    """Every map, its channels among those of all, and its part of the vectors."""
    first = 0
    for t in maps:
        channels = slice(first, first + t.size(1))
        first = channels.stop
        yield t, channels, [None if v is None else v[channels] for v in vectors]


def composed(ops: Any, maps, scale, shift, activation, pw_weight, pw_bias):  # type: ignore[no-untyped-def]
    """`aspp_projection_fused` of the other operators of a namespace."""
    # Side by side for the product alone: it sums over all of them before it rounds.
    behind = []
    for t, _, (own_scale, own_shift) in _parts(maps, scale, shift):
        plain = own_scale is None and activation == IDENTITY
        norm = norm_arguments(t, None, None, own_scale, own_shift, activation)
        behind.append(t if plain else ops.batch_norm_apply(*norm))
    return pointwise(torch.cat(behind, 1), pw_weight, pw_bias)


def _forward(ops: Any, maps, *arguments):  # type: ignore[no-untyped-def]
    mean, invstd, weight, bias, activation, _by_batch, _group, pw_weight, pw_bias = arguments
    scale, shift = Stage(mean, invstd, weight, bias).folded
    return ops.aspp_projection_fused(maps, scale, shift, activation, pw_weight, pw_bias)


def _reduce(ops: Any, grad, maps, *arguments):  # type: ignore[no-untyped-def]
    *vectors, activation, pw_weight, need_weight, need_norm = arguments
    found = [
        composed_first(
            ops, grad, norm_arguments(t, *(*own, activation)), pw_weight[:, channels], need_weight,
            need_norm,
        )
        for t, channels, own in _parts(maps, *vectors)
    ]  # fmt: skip
    by_weight, *by_norm = zip(*found, strict=True)
    return torch.cat(by_weight, 1) if need_weight else by_weight[0], *map(torch.cat, by_norm)


def _apply(ops: Any, grad, maps, *arguments):  # type: ignore[no-untyped-def]
    *vectors, activation, pw_weight, mean_grad, mean_product = arguments
    found = []
    for t, channels, own in _parts(maps, *vectors, mean_grad, mean_product):
        norm = norm_arguments(t, *(*own[:-2], activation))
        by_part = pointwise_input_gradient(grad, pw_weight[:, channels])
        by_map, _ = ops.batch_norm_backward_apply(by_part, *norm, *own[-2:], 1, False)
        found.append(like_map(t, by_map) if by_map.stride() != t.stride() else by_map)
    return found


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
        _FUSED: Operator(_SCHEMAS[_FUSED], composed, _fake_fused),
        OP: Operator(_SCHEMAS[OP], _forward, _fake_forward, _backward, _setup_context),
        _REDUCE: Operator(_SCHEMAS[_REDUCE], _reduce, _fake_reduce),
        _APPLY: Operator(_SCHEMAS[_APPLY], _apply, _fake_apply),
    },
    derived=OP,
)
