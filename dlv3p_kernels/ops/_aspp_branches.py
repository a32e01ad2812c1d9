"""The branches of a pyramid that read one input, derived together.

Their gradients by the input are added up in the memory of one of them, that of the pooled mean
included, instead of map by map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import dispatch
from ._common import vector_dtype
from ._epilogue import Stage
from ._norm_operators import IDENTITY
from ._pointwise import pointwise, pointwise_input_gradient, pointwise_weight_gradient
from ._separable_gradients import (
    DW_BIAS,
    DW_WEIGHT,
    MID_BIAS,
    MID_WEIGHT,
    PW_BIAS,
    PW_WEIGHT,
    Halves,
    X,
    gradients,
)  # fmt: skip

_NOTHING = (None, None, IDENTITY)
# Tensors of a branch: weight, bias, dw_weight, dw_bias; mean, invstd, weight and bias of the norm
# between the halves.
TENSORS = 8
# Where the gradients of a separable branch's tensors stand among those of `gradients`.
_POSITIONS = (PW_WEIGHT, PW_BIAS, DW_WEIGHT, DW_BIAS, None, None, MID_WEIGHT, MID_BIAS)
_INPUTS = PW_BIAS + 2


class BranchPlan(NamedTuple):
    """What a branch is, beside its tensors; a pointwise one has no geometry."""

    geometry: tuple[list[int], list[int], list[int]] | None
    mid_activation: int
    mid_by_batch: bool
    group: str


class AsppBranches(torch.autograd.Function):
    """Raw results of all branches, the mean of the map, and means and variances of the results.

    The mean of the map is empty where `pooled` is not set, means and variances where `statistics`
    is not.
    """

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        plans: tuple[BranchPlan, ...],
        pooled: bool,
        statistics: bool,
        x: Tensor,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Run every branch; keeps the input and vectors."""
        ctx.backend, ctx.plans, ctx.pooled = backend, plans, pooled
        ctx.save_for_backward(x, *tensors)
        ops = dispatch.operators(backend)
        results = [
            _forward(ops, plan, x, mine, statistics)
            for plan, mine in zip(plans, _split(tensors), strict=True)
        ]
        vectors = [vector for result in results for vector in result[1:]]
        ctx.mark_non_differentiable(*vectors)
        mean = x.mean((2, 3)) if pooled else x.new_empty(0)
        return *(result[0] for result in results), mean, *vectors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Gradients by the input and by every tensor of the branches."""
        x, *tensors = ctx.saved_tensors
        ops = dispatch.operators(ctx.backend)
        need_x, *need = ctx.needs_input_grad[4:]
        total: Tensor | None = None
        found = []
        for plan, grad, mine, wanted in zip(
            ctx.plans, grads, _split(tensors), _split(need), strict=False
        ):
            by_x, by_tensors = _backward(ops, plan, grad, x, mine, wanted, need_x)
            total = by_x if total is None or by_x is None else total.add_(by_x)
            found += by_tensors
        if ctx.pooled and total is not None:
            by_mean = grads[len(ctx.plans)] / (x.size(2) * x.size(3))
            total.add_(by_mean[:, :, None, None])
        return None, None, None, None, total, *found


def _split(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[i : i + TENSORS] for i in range(0, len(values), TENSORS)]


def _forward(
    ops: Any, plan: BranchPlan, x: Tensor, tensors: Sequence[Any], statistics: bool
) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias, dw_weight, dw_bias, *norm = tensors
    if plan.geometry is None:
        raw = pointwise(x, weight, bias)
        empty = x.new_empty(0, dtype=vector_dtype(x))
        mean, var = ops.batch_norm_stats(raw) if statistics else (empty, empty.clone())
        return raw, mean, var
    raw, mean, var = ops.separable_conv2d_fused(
        x, dw_weight, dw_bias, *plan.geometry, *_NOTHING, *Stage(*norm).folded,
        plan.mid_activation, weight, bias, *_NOTHING, None, statistics,
    )  # fmt: skip
    return raw, mean, var


def _backward(
    ops: Any,
    plan: BranchPlan,
    grad: Tensor,
    x: Tensor,
    tensors: Sequence[Any],
    wanted: Sequence[bool],
    need_x: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients by the input and by the tensors of one branch."""
    weight, _, dw_weight, dw_bias, *norm = tensors
    if plan.geometry is None:
        by_x = pointwise_input_gradient(grad, weight) if need_x else None
        by_weight = pointwise_weight_gradient(grad, x, weight) if wanted[0] else None
        by_bias = grad.sum((0, 2, 3)) if wanted[1] else None
        return by_x, [by_weight, by_bias, *[None] * (TENSORS - 2)]
    need = [False] * _INPUTS
    need[X] = need_x
    for position, want in zip(_POSITIONS, wanted, strict=True):
        if position is not None:
            need[position] = want
    halves = Halves(
        x, dw_weight, dw_bias, plan.geometry, _NOTHING, tuple(norm),
        plan.mid_activation, plan.mid_by_batch, plan.group, weight,
    )  # fmt: skip
    grads = gradients(ops, grad, halves, need)
    return grads[X], [None if p is None else grads[p] for p in _POSITIONS]
